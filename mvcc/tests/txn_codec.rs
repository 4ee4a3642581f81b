//! Locks and records stand in the engine byte for byte as TiKV writes them.

use bytes::Bytes;
use mvcc::ReadError;
use mvcc::txn::{LastChange, Lock, LockKind, TimeStamp, WriteKind, WriteRecord};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02X}")).collect()
}

fn lock(kind: LockKind, start_ts: u64, ttl_ms: u64) -> Lock {
    Lock::new(kind, Bytes::from_static(b"pk"), TimeStamp(start_ts), ttl_ms)
}

fn short(value: &'static str) -> Option<Bytes> {
    Some(Bytes::from_static(value.as_bytes()))
}

fn locks() -> Vec<(Lock, &'static str)> {
    let put = || Lock { short_value: short("v"), ..lock(LockKind::Put, 1, 3000) };
    let ts = TimeStamp;
    let min = |lock: Lock, at| Lock { min_commit_ts: ts(at), ..lock };
    vec![
        (put(), "5004706B01B817760176"),
        (
            min(Lock { for_update_ts: ts(301), ..lock(LockKind::Pessimistic, 300, 20000) }, 302),
            "5304706BAC02A09C0166000000000000012D63000000000000012E",
        ),
        (
            min(
                Lock {
                    start_ts: ts(10),
                    txn_size: 2,
                    use_async_commit: true,
                    secondaries: vec![Bytes::from_static(b"s1"), Bytes::from_static(b"s2")],
                    ..put()
                },
                12,
            ),
            "5004706B0AB81776017674000000000000000263000000000000000C6102047331047332",
        ),
        (
            min(Lock { use_async_commit: true, ..lock(LockKind::Delete, 10, 3000) }, 12),
            "4404706B0AB81763000000000000000C6100",
        ),
        (
            min(
                Lock {
                    use_async_commit: true,
                    rollback_ts: vec![ts(7)],
                    last_change: LastChange::Exists { ts: ts(5), versions: 3 },
                    txn_source: 1,
                    ..lock(LockKind::Lock, 10, 3000)
                },
                8,
            ),
            "4C04706B0AB8176300000000000000086100720100000000000000076C0000000000000005037301",
        ),
        (
            min(
                Lock {
                    for_update_ts: ts(30),
                    last_change: LastChange::NotExist,
                    is_locked_with_conflict: true,
                    ..lock(LockKind::Pessimistic, 10, 3000)
                },
                31,
            ),
            "5304706B0AB81766000000000000001E63000000000000001F6C00000000000000000146",
        ),
        (
            min(Lock { generation: 2, start_ts: ts(10), ..put() }, 11),
            "5004706B0AB81776017663000000000000000B670000000000000002",
        ),
    ]
}

fn records() -> Vec<(WriteRecord, &'static str)> {
    let record = |kind, start_ts, value| WriteRecord::new(kind, TimeStamp(start_ts), value);
    vec![
        (record(WriteKind::Put, 1, short("v")), "5001760176"),
        (record(WriteKind::Delete, 300, None), "44AC02"),
        (WriteRecord::rollback(TimeStamp(9), false), "5209"),
        (WriteRecord::rollback(TimeStamp(9), true), "5209760170"),
        (
            WriteRecord {
                has_overlapped_rollback: true,
                gc_fence: Some(TimeStamp(0)),
                ..record(WriteKind::Put, 5, short("v"))
            },
            "500576017652460000000000000000",
        ),
        (
            WriteRecord {
                last_change: LastChange::Exists { ts: TimeStamp(3), versions: 2 },
                txn_source: 1,
                ..record(WriteKind::Lock, 5, None)
            },
            "4C056C0000000000000003025301",
        ),
    ]
}

#[test]
fn locks_agree_with_the_known_vectors() {
    for (lock, expected) in locks() {
        let stored = lock.encode();
        assert_eq!(hex(&stored), expected);
        assert_eq!(Lock::decode(&stored), Ok(lock));
    }
}

#[test]
fn records_agree_with_the_known_vectors() {
    for (record, expected) in records() {
        let stored = record.encode();
        assert_eq!(hex(&stored), expected);
        assert_eq!(WriteRecord::decode(&stored), Ok(record));
    }
}

#[test]
fn protected_rollbacks_are_told_from_values() {
    assert!(WriteRecord::rollback(TimeStamp(9), true).is_protected());
    assert!(!WriteRecord::rollback(TimeStamp(9), false).is_protected());
    assert!(!WriteRecord::new(WriteKind::Put, TimeStamp(9), short("p")).is_protected());
}

#[test]
fn an_empty_value_is_a_value() {
    let empty = Lock { short_value: Some(Bytes::new()), ..lock(LockKind::Put, 1, 3000) };
    assert_eq!(Lock::decode(&empty.encode()), Ok(empty));
}

/// Whatever is cut off or put on, nothing is read that an encoder would write in another way.
#[test]
fn what_is_damaged_is_an_error_or_reads_as_what_was_written() {
    for (stored, is_lock) in locks()
        .iter()
        .map(|(lock, _)| (lock.encode(), true))
        .chain(records().iter().map(|(one, _)| (one.encode(), false)))
    {
        let read = |bytes: Vec<u8>| -> Option<Bytes> {
            let bytes = Bytes::from(bytes);
            match is_lock {
                true => Lock::decode(&bytes).ok().map(|lock| lock.encode()),
                false => WriteRecord::decode(&bytes).ok().map(|record| record.encode()),
            }
        };
        for len in 0..stored.len() {
            if let Some(again) = read(stored[..len].to_vec()) {
                assert!(stored.starts_with(&again[..len.min(again.len())]), "{}", hex(&stored[..len]));
            }
        }
        for tag in 0..=255u8 {
            let known: &[u8] = if is_lock { b"vftcarlsFg" } else { b"vRFlS" };
            let longer = [&stored[..], &[tag]].concat();
            if !known.contains(&tag) {
                assert_eq!(read(longer), None, "tag {tag:#X} behind {}", hex(&stored));
            }
        }
    }
    for kind in [b'H', b'T', b'I', 0, 0xFF] {
        let mut stored = locks()[0].0.encode().to_vec();
        stored[0] = kind;
        assert!(matches!(Lock::decode(&stored.into()), Err(ReadError::Failed(_))), "{kind:#X} is no lock that we know");
    }
}

#[test]
fn an_absurd_count_is_refused_before_anything_is_made_of_it() {
    let stored = [locks()[3].0.encode()[..15].to_vec(), vec![b'a', 0xFF, 0xFF, 0xFF, 0xFF, 0x0F]].concat();
    assert!(matches!(Lock::decode(&stored.into()), Err(ReadError::Failed(_))));
}
