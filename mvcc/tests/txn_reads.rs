//! What reading costs, and scans that stop anywhere against a naive twin.

mod raw_support;
mod txn_support;

use std::collections::BTreeMap;

use base::Prng;
use bytes::Bytes;
use mvcc::raw::Step;
use mvcc::txn::{LastChange, Lock, LockKind, ReadOptions, Reader, Scan, ScanRequest, TimeStamp, TxnError};
use mvcc::txn::{TxnRecord, WriteKind, WriteRecord, get, key};
use mvcc::{Cf, Modify, ReadError};
use txn_support::Region;

fn put_record(region: &mut Region, name: &[u8], commit_ts: u64, record: &WriteRecord) {
    let place = key::versioned(&key::encode(name), TimeStamp(commit_ts));
    region.change(&[Modify::Put { cf: Cf::Write, key: place, value: record.encode() }]);
}

fn value(text: &str) -> Option<Bytes> {
    Some(Bytes::copy_from_slice(text.as_bytes()))
}

fn at(ts: u64) -> ReadOptions {
    ReadOptions { ts: TimeStamp(ts), ..ReadOptions::default() }
}

/// A key with a thousand versions, two a step apart.
fn many_versions() -> Region {
    let mut region = Region::default();
    for ts in 1..=1000 {
        let record = WriteRecord::new(WriteKind::Put, TimeStamp(2 * ts), value(&ts.to_string()));
        put_record(&mut region, b"k", 2 * ts + 1, &record);
    }
    region
}

#[test]
fn a_read_does_not_step_over_versions() {
    let region = many_versions();
    let view = region.view();
    for ts in [3, 1000, 2001, u64::MAX] {
        let reader = Reader::new(&view);
        let expected = ((ts - 1) / 2).min(1000).to_string();
        assert_eq!(get(&reader, &Bytes::from_static(b"k"), &at(ts)), Ok(value(&expected)));
        let stats = reader.stats();
        assert!(stats.stepped <= 1 && stats.seeks <= 2, "at {ts}: {stats:?}");
    }
}

#[test]
fn a_limited_reader_leaves_long_work_to_others() {
    let region = many_versions();
    let view = region.view();
    let encoded = key::encode(b"k");
    let look = |reader: &Reader<'_, _>| reader.txn_record(&encoded, TimeStamp(2));
    assert_eq!(look(&Reader::limited(&view, 500)), Err(ReadError::NotCached));
    assert_eq!(look(&Reader::new(&view)), Ok(TxnRecord::Committed { commit_ts: TimeStamp(3) }));
    let quick = Reader::limited(&view, 500);
    assert_eq!(get(&quick, &Bytes::from_static(b"k"), &at(1000)), Ok(value("499")));
}

#[test]
fn a_scan_steps_over_few_versions_and_then_seeks() {
    let mut region = many_versions();
    put_record(&mut region, b"l", 3, &WriteRecord::new(WriteKind::Put, TimeStamp(2), value("next")));
    for reverse in [false, true] {
        let request = ScanRequest { limit: 10, reverse, ..ScanRequest::default() };
        let mut scan = Scan::new(request, at(1000), b"", b"");
        while scan.step(&region.view(), u64::MAX).expect("readable") == Step::More {}
        let stats = scan.stats();
        assert!(stats.stepped < 40 && stats.seeks < 12, "{stats:?}");
        assert_eq!(scan.into_pairs().len(), 2);
    }
}

#[test]
fn a_read_skips_to_the_last_change() {
    let mut region = Region::default();
    put_record(&mut region, b"k", 3, &WriteRecord::new(WriteKind::Put, TimeStamp(2), value("v")));
    for i in 0..500 {
        let mut record = WriteRecord::new(WriteKind::Lock, TimeStamp(10 + 2 * i), None);
        record.last_change = LastChange::Exists { ts: TimeStamp(3), versions: i + 1 };
        put_record(&mut region, b"k", 11 + 2 * i, &record);
    }
    let view = region.view();
    let reader = Reader::new(&view);
    assert_eq!(get(&reader, &Bytes::from_static(b"k"), &at(2000)), Ok(value("v")));
    assert!(reader.stats().stepped <= 2, "{:?}", reader.stats());
}

#[test]
fn a_step_ends_after_its_entries() {
    let mut region = Region::default();
    for i in 0..100u8 {
        put_record(&mut region, &[b'a', i], 3, &WriteRecord::new(WriteKind::Put, TimeStamp(2), value("v")));
    }
    let request = ScanRequest { limit: 1000, ..ScanRequest::default() };
    let mut scan = Scan::new(request, at(10), b"", b"");
    let mut steps = 0;
    let mut before = 0;
    while scan.step(&region.view(), 10).expect("readable") == Step::More {
        steps += 1;
        assert!(scan.stats().stepped - before < 20, "a step is bounded");
        before = scan.stats().stepped;
    }
    assert!(steps >= 9, "{steps}");
    assert_eq!(scan.into_pairs().len(), 100);
}

#[test]
fn a_scan_stays_within_its_region() {
    let mut region = Region::default();
    for name in [b"a", b"b", b"c", b"d"] {
        put_record(&mut region, name, 3, &WriteRecord::new(WriteKind::Put, TimeStamp(2), value("v")));
    }
    let (start, end) = (key::encode(b"b"), key::encode(b"d"));
    for reverse in [false, true] {
        let request = ScanRequest { limit: 10, reverse, ..ScanRequest::default() };
        let mut scan = Scan::new(request, at(10), &start, &end);
        while scan.step(&region.view(), u64::MAX).expect("readable") == Step::More {}
        let mut keys: Vec<Bytes> = scan.into_pairs().into_iter().map(|pair| pair.key).collect();
        keys.sort();
        assert_eq!(keys, ["b", "c"]);
    }
}

/// One key of the twin: its committed versions, newest last, and perhaps a lock.
#[derive(Default)]
struct Naive {
    versions: BTreeMap<u64, (WriteKind, Bytes)>,
    lock: Option<(LockKind, u64)>,
}

impl Naive {
    /// `Err` for a lock in the way.
    fn get(&self, ts: u64) -> Result<Option<Bytes>, u64> {
        if let Some((LockKind::Put | LockKind::Delete, start_ts)) = self.lock
            && start_ts <= ts
        {
            return Err(start_ts);
        }
        let data = self.versions.range(..=ts).rev().find(|(_, (kind, _))| kind.is_data());
        Ok(data.and_then(|(_, (kind, value))| (*kind == WriteKind::Put).then(|| value.clone())))
    }
}

fn random_region(prng: &mut Prng) -> (Region, BTreeMap<Vec<u8>, Naive>) {
    let (mut region, mut twin) = (Region::default(), BTreeMap::new());
    for _ in 0..prng.below(40) {
        let len = [0, 1, 2, 7, 8, 9][prng.below(6) as usize];
        let name: Vec<u8> = (0..len).map(|_| [0, b'a', 0xFF][prng.below(3) as usize]).collect();
        if twin.contains_key(&name) {
            continue;
        }
        let mut naive = Naive::default();
        let mut ts = 1;
        for _ in 0..prng.below(25) {
            let start_ts = ts + prng.below(3);
            let mut commit_ts = start_ts + 1 + prng.below(3);
            let kind = [WriteKind::Put, WriteKind::Put, WriteKind::Delete, WriteKind::Lock, WriteKind::Rollback]
                [prng.below(5) as usize];
            if kind == WriteKind::Rollback {
                commit_ts = start_ts;
            }
            let text = format!("{start_ts}").repeat(if prng.one_in(4) { 200 } else { 1 });
            let is_long = text.len() > 255;
            let short = (kind == WriteKind::Put && !is_long).then(|| Bytes::from(text.clone()));
            put_record(&mut region, &name, commit_ts, &WriteRecord::new(kind, TimeStamp(start_ts), short));
            if kind == WriteKind::Put && is_long {
                let place = key::versioned(&key::encode(&name), TimeStamp(start_ts));
                region.change(&[Modify::Put { cf: Cf::Default, key: place, value: text.clone().into() }]);
            }
            naive.versions.insert(commit_ts, (kind, text.into()));
            ts = commit_ts + 1;
        }
        if prng.one_in(3) {
            let kind = [LockKind::Put, LockKind::Delete, LockKind::Lock, LockKind::Pessimistic][prng.below(4) as usize];
            let lock = Lock::new(kind, Bytes::from_static(b"elsewhere"), TimeStamp(ts), 3000);
            region.change(&[Modify::Put { cf: Cf::Lock, key: key::encode(&name), value: lock.encode() }]);
            naive.lock = Some((kind, ts));
        }
        twin.insert(name, naive);
    }
    (region, twin)
}

#[test]
fn reads_and_scans_in_pieces_agree_with_a_naive_twin() {
    let (mut found, mut locked, mut long_scans) = (0, 0, 0);
    for seed in 0..400 {
        let prng = &mut Prng::new(seed);
        let (region, twin) = random_region(prng);
        let view = region.view();
        for _ in 0..12 {
            let ts = prng.below(60);
            for (name, naive) in &twin {
                let name = Bytes::copy_from_slice(name);
                match (get(&Reader::new(&view), &name, &at(ts)), naive.get(ts)) {
                    (Ok(got), Ok(expected)) => {
                        assert_eq!(got, expected, "seed {seed} {name:?} at {ts}");
                        found += usize::from(got.is_some());
                    }
                    (Err(TxnError::KeyIsLocked(info)), Err(start_ts)) => assert_eq!(info.lock_version, start_ts),
                    other => panic!("seed {seed} {name:?} at {ts}: {other:?}"),
                }
            }
            let request = ScanRequest {
                start: [&b""[..], b"\0", b"a", b"aa"][prng.below(4) as usize].into(),
                end: [&b""[..], b"\xFF", b"a\xFF", b"aaa"][prng.below(4) as usize].into(),
                reverse: prng.one_in(2),
                key_only: prng.one_in(3),
                limit: [1, 2, 5, 100][prng.below(4) as usize],
                sample_step: 0,
            };
            let expected: Vec<_> = {
                let inside = |name: &[u8]| base::keys::contains(&request.start, &request.end, name);
                let all = twin.iter().filter(|(name, _)| inside(name));
                let mut all: Vec<_> = all
                    .filter_map(|(name, naive)| match naive.get(ts) {
                        Ok(None) => None,
                        Ok(Some(value)) => {
                            Some(Ok((name.clone(), if request.key_only { Bytes::new() } else { value })))
                        }
                        Err(start_ts) => Some(Err(start_ts)),
                    })
                    .collect();
                if request.reverse {
                    all.reverse();
                }
                all.truncate(request.limit);
                all
            };
            let mut scan = Scan::new(request.clone(), at(ts), b"", b"");
            let cold = view.cold(prng.fork(), prng.range(20, 60));
            let mut steps = 0;
            loop {
                match scan.step(if prng.one_in(2) { &cold } else { &view }, prng.range(1, 20)) {
                    Ok(Step::Done) => break,
                    Ok(Step::More) | Err(TxnError::Read(ReadError::NotCached)) => steps += 1,
                    Err(error) => panic!("seed {seed}: {error}"),
                }
                assert!(steps < 10_000, "seed {seed}: the scan does not end");
            }
            long_scans += usize::from(steps > 3);
            let got: Vec<_> = scan
                .into_pairs()
                .into_iter()
                .map(|pair| match pair.error {
                    None => Ok((pair.key.to_vec(), pair.value)),
                    Some(error) => Err(error.locked.expect("locked").lock_version),
                })
                .collect();
            locked += got.iter().filter(|pair| pair.is_err()).count();
            assert_eq!(got, expected, "seed {seed} at {ts}: {request:?}");
        }
    }
    assert!(found > 1000 && locked > 300 && long_scans > 300, "{found} {locked} {long_scans}");
}
