//! What readers of raw keys do, one sentence a rule.

mod raw_support;

use base::Prng;
use bytes::Bytes;
use mvcc::raw::{Checksum, RawMode, RawReader, ScanOptions, ScanState, Step, batch_ranges, get};
use mvcc::{Cf, ReadError};
use raw_support::{BACKWARD, FORWARD, Twin, View, range, reader, scan, shown};

const MODES: [RawMode; 3] = [RawMode::V1, RawMode::V1Ttl, RawMode::V2];
const NOW: u64 = 1_000;

/// Keys `a` to `e` with their upper-case values.
fn letters() -> Twin {
    let mut twin = Twin::default();
    for letter in b'a'..=b'e' {
        twin.put(&[letter], &[letter.to_ascii_uppercase()], 0);
    }
    twin
}

fn value(view: &View, mode: RawMode, now: u64, key: &str) -> Option<String> {
    let found = get(view, reader(mode, now), key.as_bytes()).expect("readable");
    found.map(|value| value.value.escape_ascii().to_string())
}

#[test]
fn a_key_is_found_under_its_own_name_only() {
    for mode in MODES {
        let mut twin = letters();
        twin.put(b"ab", b"longer", 0);
        let view = twin.view(mode, Cf::Default);
        assert_eq!(value(&view, mode, NOW, "a").as_deref(), Some("A"));
        assert_eq!(value(&view, mode, NOW, "ab").as_deref(), Some("longer"));
        for missing in ["", "abc", "f", "A"] {
            assert_eq!(value(&view, mode, NOW, missing), None, "{mode:?} {missing}");
        }
    }
}

#[test]
fn a_key_may_be_empty_and_hold_any_bytes() {
    let odd: [&[u8]; 6] =
        [b"", b"\0", b"\0\0\0\0\0\0\0\0", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff", b"12345678", b"123456789"];
    for mode in MODES {
        let mut twin = Twin::default();
        odd.iter().for_each(|key| twin.put(key, key, 0));
        let view = twin.view(mode, Cf::Default);
        for key in odd {
            let found = get(&view, reader(mode, NOW), key).expect("readable").expect("there");
            assert_eq!(found.value, key, "{mode:?}");
        }
        for options in [FORWARD, BACKWARD] {
            let pairs = scan(&view, reader(mode, NOW), options, &range("", ""));
            assert_eq!(pairs, twin.scan(mode, NOW, b"", b"", options), "{mode:?}");
        }
    }
}

#[test]
fn v1_knows_no_expiry() {
    let mut twin = Twin::default();
    twin.put(b"k", b"v", 1);
    let view = twin.view(RawMode::V1, Cf::Default);
    assert_eq!(value(&view, RawMode::V1, NOW, "k").as_deref(), Some("v"));
}

#[test]
fn a_value_is_gone_from_the_second_of_its_expiry_on() {
    for mode in [RawMode::V1Ttl, RawMode::V2] {
        let mut twin = Twin::default();
        twin.put(b"k", b"v", NOW);
        let view = twin.view(mode, Cf::Default);
        for (now, found) in [(0, true), (NOW - 1, true), (NOW, false), (NOW + 1, false), (u64::MAX, false)] {
            assert_eq!(value(&view, mode, now, "k").is_some(), found, "{mode:?} at {now}");
            for options in [FORWARD, BACKWARD] {
                let pairs = scan(&view, reader(mode, now), options, &range("", ""));
                assert_eq!(!pairs.is_empty(), found, "{mode:?} at {now}");
            }
        }
    }
}

#[test]
fn an_expiry_of_zero_is_never() {
    for mode in [RawMode::V1Ttl, RawMode::V2] {
        let view = letters().view(mode, Cf::Default);
        assert_eq!(value(&view, mode, u64::MAX, "a").as_deref(), Some("A"));
    }
}

#[test]
fn a_read_tells_when_the_value_expires() {
    for mode in [RawMode::V1Ttl, RawMode::V2] {
        let mut twin = Twin::default();
        twin.put(b"k", b"v", NOW + 7);
        let view = twin.view(mode, Cf::Default);
        let found = get(&view, reader(mode, NOW), b"k").expect("readable").expect("alive");
        assert_eq!(found.expires, NOW + 7);
    }
}

#[test]
fn in_v2_the_newest_version_is_the_value() {
    let mut twin = Twin::default();
    for version in ["1", "2", "3"] {
        twin.put(b"k", version.as_bytes(), 0);
    }
    let view = twin.view(RawMode::V2, Cf::Default);
    assert_eq!(value(&view, RawMode::V2, NOW, "k").as_deref(), Some("3"));
    for options in [FORWARD, BACKWARD] {
        assert_eq!(shown(&scan(&view, reader(RawMode::V2, NOW), options, &range("", ""))), ["k=3"]);
    }
}

#[test]
fn in_v2_a_removal_or_an_expired_version_hides_the_older_ones() {
    let mut twin = Twin::default();
    twin.put(b"expired", b"old", 0);
    twin.put(b"expired", b"new", NOW);
    twin.put(b"removed", b"old", 0);
    twin.delete(b"removed");
    twin.put(b"revived", b"old", 0);
    twin.delete(b"revived");
    twin.put(b"revived", b"new", 0);
    let view = twin.view(RawMode::V2, Cf::Default);
    for (key, found) in [("expired", None), ("removed", None), ("revived", Some("new"))] {
        assert_eq!(value(&view, RawMode::V2, NOW, key).as_deref(), found, "{key}");
    }
    for options in [FORWARD, BACKWARD] {
        assert_eq!(shown(&scan(&view, reader(RawMode::V2, NOW), options, &range("", ""))), ["revived=new"]);
    }
}

#[test]
fn a_scan_begins_with_its_start_and_ends_before_its_end_in_both_directions() {
    for mode in MODES {
        let view = letters().view(mode, Cf::Default);
        let table: [(&str, &str, &[&str]); 8] = [
            ("", "", &["a=A", "b=B", "c=C", "d=D", "e=E"]),
            ("b", "d", &["b=B", "c=C"]),
            ("b", "", &["b=B", "c=C", "d=D", "e=E"]),
            ("", "b", &["a=A"]),
            ("aa", "cc", &["b=B", "c=C"]),
            ("b", "b", &[]),
            ("d", "b", &[]),
            ("x", "z", &[]),
        ];
        for (start, end, expected) in table {
            let forward = shown(&scan(&view, reader(mode, NOW), FORWARD, &range(start, end)));
            assert_eq!(forward, expected, "{mode:?} {start}..{end}");
            let mut backward = shown(&scan(&view, reader(mode, NOW), BACKWARD, &range(start, end)));
            backward.reverse();
            assert_eq!(backward, expected, "{mode:?} {start}..{end}, backwards");
        }
    }
}

#[test]
fn a_scan_stays_within_its_region() {
    for mode in MODES {
        let view = letters().view(mode, Cf::Default);
        let (start, end) = (mode.prefix(b"b"), mode.prefix(b"d"));
        for (options, expected) in [(FORWARD, ["b=B", "c=C"]), (BACKWARD, ["c=C", "b=B"])] {
            for asked in [range("", ""), range("a", "e"), range("b", "d")] {
                let mut state = ScanState::new(reader(mode, NOW), options, &asked, &start, &end);
                assert_eq!(state.step(&view, usize::MAX), Ok(Step::Done));
                assert_eq!(shown(&state.into_pairs()), expected, "{mode:?} {asked:?}");
            }
            let mut state = ScanState::new(reader(mode, NOW), options, &range("d", ""), &start, &end);
            assert_eq!(state.step(&view, usize::MAX), Ok(Step::Done), "nothing of it is here");
            assert_eq!((state.stepped(), state.into_pairs().len()), (0, 0));
        }
    }
}

#[test]
fn a_limit_counts_living_pairs_and_zero_reads_nothing() {
    for mode in [RawMode::V1Ttl, RawMode::V2] {
        let mut twin = letters();
        twin.put(b"b", b"dead", 1);
        let view = twin.view(mode, Cf::Default);
        for (reverse, expected) in [(false, ["a=A", "c=C"]), (true, ["e=E", "d=D"])] {
            let options = ScanOptions { reverse, key_only: false, limit: 2 };
            assert_eq!(shown(&scan(&view, reader(mode, NOW), options, &range("", ""))), expected);
        }
        let before = view.reads();
        let none = ScanOptions { limit: 0, ..FORWARD };
        assert!(scan(&view, reader(mode, NOW), none, &range("", "")).is_empty());
        assert_eq!(view.reads(), before);
    }
}

#[test]
fn a_scan_for_keys_leaves_the_values_out() {
    for mode in MODES {
        let view = letters().view(mode, Cf::Default);
        for reverse in [false, true] {
            let options = ScanOptions { reverse, key_only: true, limit: 2 };
            let pairs = scan(&view, reader(mode, NOW), options, &range("", ""));
            assert_eq!(shown(&pairs), if reverse { ["e=", "d="] } else { ["a=", "b="] });
        }
    }
}

#[test]
fn each_family_has_its_own_keys() {
    for mode in MODES {
        let view = letters().view(mode, Cf::Lock);
        for (cf, found) in [(Cf::Default, 0), (Cf::Lock, 5), (Cf::Write, 0)] {
            let reader = RawReader { cf, ..reader(mode, NOW) };
            assert_eq!(scan(&view, reader, FORWARD, &range("", "")).len(), found);
            assert_eq!(get(&view, reader, b"a").expect("readable").is_some(), found > 0);
        }
    }
}

#[test]
fn keys_of_another_format_are_passed_over_in_v2() {
    let foreign: [&'static [u8]; 4] = [b"a", b"short", b"long enough, but no name of eight", b"zz"];
    let mut entries: Vec<(Bytes, Bytes)> =
        foreign.map(|key| (Bytes::from_static(key), Bytes::from_static(b"\0"))).to_vec();
    entries.push((RawMode::V2.encode_key(b"k", 1), RawMode::V2.encode_value(&Bytes::from_static(b"v"), 0)));
    let view = View::of(Cf::Default, entries);
    for options in [FORWARD, BACKWARD] {
        for entries in [1, 2, 100] {
            let mut state = ScanState::new(reader(RawMode::V2, NOW), options, &range("", ""), b"", b"");
            while state.step(&view, entries).expect("readable") == Step::More {}
            assert_eq!(shown(&state.into_pairs()), ["k=v"]);
        }
    }
}

#[test]
fn a_malformed_value_is_a_failure_and_not_a_missing_key() {
    let table: [(RawMode, &'static [u8]); 4] =
        [(RawMode::V1Ttl, b"1234567"), (RawMode::V2, b""), (RawMode::V2, b"\x01"), (RawMode::V2, b"v\x04")];
    for (mode, stored) in table {
        let view = View::of(Cf::Default, [(mode.encode_key(b"k", 1), Bytes::from_static(stored))]);
        let reader = reader(mode, NOW);
        assert!(matches!(get(&view, reader, b"k"), Err(ReadError::Failed(_))), "{mode:?} {stored:?}");
        for options in [FORWARD, BACKWARD] {
            let mut state = ScanState::new(reader, options, &range("", ""), b"", b"");
            assert!(matches!(state.step(&view, 10), Err(ReadError::Failed(_))), "{mode:?} {stored:?}");
        }
    }
}

#[test]
fn a_step_looks_at_no_more_entries_than_it_may_however_many_versions_a_key_has() {
    let mut twin = letters();
    for version in 0..50u8 {
        twin.put(b"c", &[b'0' + version % 10], 0);
    }
    let view = twin.view(RawMode::V2, Cf::Default);
    for (options, expected) in
        [(FORWARD, ["a=A", "b=B", "c=9", "d=D", "e=E"]), (BACKWARD, ["e=E", "d=D", "c=9", "b=B", "a=A"])]
    {
        for entries in [1, 2, 3, 7] {
            let mut state = ScanState::new(reader(RawMode::V2, NOW), options, &range("", ""), b"", b"");
            let mut before = 0;
            loop {
                let step = state.step(&view, entries).expect("readable");
                assert!(state.stepped() - before <= entries as u64, "{entries} {options:?}");
                before = state.stepped();
                if step == Step::Done {
                    break;
                }
                assert!(before < 1000, "it must come to an end");
            }
            assert_eq!(shown(&state.into_pairs()), expected, "{entries}");
        }
    }
}

#[test]
fn a_scan_that_misses_the_cache_goes_on_where_it_stopped() {
    for mode in MODES {
        let warm = letters().view(mode, Cf::Default);
        for options in [FORWARD, BACKWARD] {
            let whole = scan(&warm, reader(mode, NOW), options, &range("", ""));
            for seed in 0..40 {
                let cold = warm.cold(Prng::new(seed), 3);
                let mut state = ScanState::new(reader(mode, NOW), options, &range("", ""), b"", b"");
                // Once on each side, in turn, as between a core and its helper.
                let mut step = state.step(&cold, 100);
                while step != Ok(Step::Done) {
                    assert!(matches!(step, Err(ReadError::NotCached) | Ok(Step::More)), "{step:?}");
                    step = state.step(&warm, 1);
                    if step == Ok(Step::More) {
                        step = state.step(&cold, 100);
                    }
                }
                assert_eq!(state.into_pairs(), whole, "{mode:?} {options:?} {seed}");
            }
        }
    }
}

#[test]
fn pairs_may_be_taken_out_on_the_way_and_count_against_the_limit() {
    for mode in MODES {
        let view = letters().view(mode, Cf::Default);
        for reverse in [false, true] {
            let options = ScanOptions { reverse, key_only: false, limit: 4 };
            let mut state = ScanState::new(reader(mode, NOW), options, &range("", ""), b"", b"");
            let mut pairs = Vec::new();
            while state.step(&view, 2) == Ok(Step::More) {
                pairs.extend(state.drain_pairs());
            }
            pairs.extend(state.drain_pairs());
            assert_eq!(pairs, scan(&view, reader(mode, NOW), options, &range("", "")), "{mode:?}");
            assert_eq!(state.step(&view, 2), Ok(Step::Done), "and it stays done");
        }
    }
}

#[test]
fn ranges_of_a_batch_end_where_the_next_begins_if_they_say_no_end() {
    let pair = |start: &'static str, end: &'static str| {
        (Bytes::from_static(start.as_bytes()), Bytes::from_static(end.as_bytes()))
    };
    let ranges = |pairs: &[(Bytes, Bytes)], reverse| batch_ranges(pairs, reverse);
    assert_eq!(ranges(&[pair("a", "b"), pair("c", "")], false), Ok(vec![range("a", "b"), range("c", "")]));
    assert_eq!(ranges(&[pair("a", ""), pair("c", "d")], false), Ok(vec![range("a", "c"), range("c", "d")]));
    assert_eq!(ranges(&[pair("b", "a")], true), Ok(vec![range("a", "b")]), "backwards they begin at the top");
    for (pairs, reverse) in [([pair("b", "a")], false), ([pair("a", "a")], false), ([pair("a", "b")], true)] {
        assert_eq!(ranges(&pairs, reverse), Err("Invalid KeyRanges".into()), "{pairs:?} {reverse}");
    }
}

/// CRC-64/XZ, bit by bit.
fn crc64(bytes: &[u8]) -> u64 {
    let mut crc = !0u64;
    for byte in bytes {
        crc ^= u64::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0xC96C_5795_D787_0F42 } else { crc >> 1 };
        }
    }
    !crc
}

#[test]
fn a_checksum_is_the_same_in_any_order_and_that_of_key_and_value_together() {
    let mut prng = Prng::new(1);
    let mut pairs: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    for _ in 0..100 {
        let mut pair = (vec![0; prng.below(20) as usize], vec![0; prng.below(50) as usize]);
        prng.fill(&mut pair.0);
        prng.fill(&mut pair.1);
        pairs.push(pair);
    }
    let mut expected = Checksum { pairs: 100, ..Checksum::default() };
    for (key, value) in &pairs {
        expected.checksum ^= crc64(&[key.as_slice(), value].concat());
        expected.bytes += (key.len() + value.len()) as u64;
    }
    for _ in 0..3 {
        let mut sum = Checksum::default();
        pairs.iter().for_each(|(key, value)| sum.add(key, value));
        assert_eq!(sum, expected);
        prng.shuffle(&mut pairs);
    }
}
