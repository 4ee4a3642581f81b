//! Random raw keys, versions and expiries in every format, read in every way, against a naive twin.

mod raw_support;

use base::Prng;
use bytes::Bytes;
use mvcc::raw::{RawMode, RawRange, RawValue, ScanOptions, ScanState, Step, get};
use mvcc::{Cf, ReadError};
use raw_support::{Twin, View, reader};

const SEEDS: u64 = 300;
const NOW: u64 = 1_000;

/// Few and short, so that keys meet, with lengths around the memcomparable group of eight.
fn key(prng: &mut Prng) -> Vec<u8> {
    let len = [0, 1, 1, 2, 2, 3, 7, 8, 9, 16][prng.below(10) as usize];
    (0..len).map(|_| [0, b'a', b'b', 0xFF][prng.below(4) as usize]).collect()
}

fn fill(prng: &mut Prng) -> Twin {
    let mut twin = Twin::default();
    for _ in 0..prng.below(60) {
        let key = key(prng);
        if prng.one_in(5) {
            twin.delete(&key);
            continue;
        }
        let mut value = vec![0; prng.below(12) as usize];
        prng.fill(&mut value);
        let expires = [0, 0, 1, NOW - 1, NOW, NOW + 1, u64::MAX][prng.below(7) as usize];
        twin.put(&key, &value, expires);
    }
    twin
}

/// A scan in steps of random length, over views that miss the cache now and then; pairs are taken out at random.
fn scan_in_pieces(
    prng: &mut Prng,
    view: &View,
    mode: RawMode,
    options: ScanOptions,
    range: &RawRange,
    region: (&[u8], &[u8]),
) -> Vec<(Bytes, RawValue)> {
    let cold = view.cold(prng.fork(), prng.range(2, 6));
    let mut state = ScanState::new(reader(mode, NOW), options, range, region.0, region.1);
    let mut pairs = Vec::new();
    for _ in 0..10_000 {
        let entries = prng.range(1, 6);
        let before = state.stepped();
        let step = state.step(if prng.one_in(2) { &cold } else { view }, entries as usize);
        assert!(state.stepped() - before <= entries, "{options:?}");
        match step {
            Ok(Step::Done) => {
                pairs.extend(state.into_pairs());
                return pairs;
            }
            Ok(Step::More) | Err(ReadError::NotCached) => {}
            Err(error) => panic!("{error}"),
        }
        if prng.one_in(3) {
            pairs.extend(state.drain_pairs());
        }
    }
    panic!("the scan does not end");
}

#[test]
fn reads_in_every_format_agree_with_the_twin() {
    let (mut found, mut dead) = (0, 0);
    for seed in 0..SEEDS {
        let mut prng = Prng::new(seed);
        let mode = [RawMode::V1, RawMode::V1Ttl, RawMode::V2][seed as usize % 3];
        let twin = fill(&mut prng);
        let view = twin.view(mode, Cf::Default);
        for _ in 0..30 {
            let key = key(&mut prng);
            let expected = twin.get(mode, NOW, &key);
            if expected.is_some() {
                found += 1;
            } else {
                dead += 1;
            }
            assert_eq!(get(&view, reader(mode, NOW), &key), Ok(expected.clone()), "seed {seed} {mode:?} {key:?}");
            let cold = get(&view.cold(prng.fork(), 2), reader(mode, NOW), &key);
            assert!(cold == Ok(expected) || cold == Err(ReadError::NotCached), "seed {seed}: {cold:?}");
        }
        for _ in 0..20 {
            let options = ScanOptions {
                reverse: prng.one_in(2),
                key_only: prng.one_in(3),
                limit: [0, 1, 2, 5, usize::MAX][prng.below(5) as usize],
            };
            let (start, end) = (key(&mut prng), key(&mut prng));
            let (low, high) = (key(&mut prng), key(&mut prng));
            let (low, high) = if high.is_empty() || low <= high { (low, high) } else { (high, low) };
            let range = RawRange { start: start.clone().into(), end: end.clone().into() };
            let region = (mode.prefix(&low), if high.is_empty() { Vec::new() } else { mode.prefix(&high) });
            let pairs = scan_in_pieces(&mut prng, &view, mode, options, &range, (&region.0, &region.1));
            let from = start.max(low);
            let to = match (end.is_empty(), high.is_empty()) {
                (true, _) => high,
                (false, true) => end,
                (false, false) => end.min(high),
            };
            let expected = twin.scan(mode, NOW, &from, &to, options);
            assert_eq!(pairs, expected, "seed {seed} {mode:?} {options:?} {range:?} {region:?}");
        }
    }
    assert!(found > 1_000 && dead > 1_000, "{found} {dead}");
}
