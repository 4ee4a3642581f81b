//! The twin's own promises: what it forgets, how it fails, and that a seed decides over all of it.

use std::path::PathBuf;

use base::Prng;
use bytes::Bytes;
use mvcc::Cf;
use shard::engine::twin::{TwinDisk, TwinEngine, TwinFaults};
use shard::engine::{
    Engine, EngineError, EngineIter, EngineSnapshot, ReadError, Tier, WriteBatch, WriteError, WriteMode,
};

fn put(engine: &TwinEngine, key: &[u8], value: &[u8]) -> Result<(), String> {
    let mut batch = engine.batch();
    batch.put(Cf::Default, key, value);
    engine.write(batch, WriteMode::Helper).map_err(|error| error.to_string())
}

fn get(engine: &TwinEngine, key: &[u8]) -> Option<Bytes> {
    engine.get(Cf::Default, key, Tier::Disk).expect("readable")
}

fn quiet(disk: &TwinDisk) -> TwinEngine {
    TwinEngine::open(disk, 1, TwinFaults::default()).expect("the disk is free")
}

#[test]
fn an_ingest_jumps_ahead_of_what_was_not_flushed() {
    let disk = TwinDisk::new();
    let engine = quiet(&disk);
    put(&engine, b"za", b"1").expect("written");
    let path = PathBuf::from("/table");
    let entry = (Bytes::from_static(b"zm"), Bytes::from_static(b"2"));
    engine.build_table(Cf::Default, &path, [entry]).expect("built");
    engine.ingest(Cf::Default, &[path]).expect("ingested");
    drop(engine);
    let engine = quiet(&disk);
    assert_eq!(get(&engine, b"za"), None);
    assert_eq!(get(&engine, b"zm").as_deref(), Some(b"2".as_slice()));
}

#[test]
fn the_dead_say_that_they_are() {
    let disk = TwinDisk::new();
    let engine = quiet(&disk);
    put(&engine, b"za", b"1").expect("written");
    let snapshot = engine.snapshot();
    let mut iter = snapshot.iter(Cf::Default, b"", b"", Tier::Disk, true);
    assert!(TwinEngine::open(&disk, 1, TwinFaults::default()).is_err());
    engine.kill();
    assert!(matches!(iter.first(), Err(ReadError::Failed(_))));
    assert!(matches!(snapshot.get(Cf::Default, b"za", Tier::Cache), Err(ReadError::Failed(_))));
    assert!(put(&engine, b"zb", b"2").is_err());
    assert_eq!(engine.flush(), Err(EngineError::Closed));
    // Its remains do not keep the disk, nor free it once more when they go.
    let next = quiet(&disk);
    drop((engine, snapshot, iter));
    assert!(TwinEngine::open(&disk, 1, TwinFaults::default()).is_err());
    drop(next);
}

#[test]
fn a_failed_flush_may_have_been_one_and_may_be_the_end() {
    let faults = TwinFaults { flush_fails_one_in: 1, ..TwinFaults::default() };
    let (mut durable, mut ended) = (0, 0);
    for seed in 0..64 {
        let disk = TwinDisk::new();
        let engine = TwinEngine::open(&disk, seed, faults).expect("the disk is free");
        put(&engine, b"za", b"1").expect("written");
        assert!(engine.flush().is_err());
        assert_eq!(engine.flushed_sequence(), 0);
        assert_eq!(engine.stats().background_errors, 1);
        ended += u32::from(put(&engine, b"zb", b"2").is_err());
        engine.kill();
        let after = quiet(&disk);
        durable += u32::from(get(&after, b"za").is_some());
        assert_eq!(get(&after, b"zb"), None);
    }
    assert!((10..54).contains(&durable), "{durable}");
    assert!((10..54).contains(&ended), "{ended}");
}

#[test]
fn a_background_error_ends_all_writing_and_no_reading() {
    let faults = TwinFaults { background_error_one_in: 20, ..TwinFaults::default() };
    let engine = TwinEngine::open(&TwinDisk::new(), 3, faults).expect("the disk is free");
    let written = (0..1000u32)
        .take_while(|number| put(&engine, &[b"z", &number.to_be_bytes()[..]].concat(), b"").is_ok())
        .count();
    assert!((1..1000).contains(&written));
    for _ in 0..3 {
        assert!(put(&engine, b"z", b"").is_err());
        assert!(engine.flush().is_err());
    }
    assert!(get(&engine, b"z\0\0\0\0").is_some());
}

#[test]
fn dropped_files_bring_old_values_back_but_never_after_an_erase() {
    let faults = TwinFaults { resurface_one_in: 2, ..TwinFaults::default() };
    let mut risen = 0;
    for seed in 0..32 {
        let disk = TwinDisk::new();
        let engine = TwinEngine::open(&disk, seed, faults).expect("the disk is free");
        put(&engine, b"za", b"old").expect("written");
        engine.flush().expect("flushed");
        let mut batch = engine.batch();
        batch.delete_range(Cf::Default, b"z", b"{");
        engine.write(batch, WriteMode::Helper).expect("written");
        engine.flush().expect("flushed");
        assert_eq!(get(&engine, b"za"), None);
        engine.delete_files_in_range(Cf::Default, b"z", b"{").expect("done");
        risen += u32::from(get(&engine, b"za").is_some());
        engine.erase(&Cf::DATA, b"z", b"{").expect("erased");
        assert_eq!(get(&engine, b"za"), None);
        engine.kill();
        assert!(disk.entries(Cf::Default).is_empty());
    }
    assert!((5..27).contains(&risen), "{risen}");
}

#[test]
fn the_same_seed_has_the_same_whims() {
    let story = |seed: u64| {
        let mut prng = Prng::new(7);
        let disk = TwinDisk::new();
        let mut told = Vec::new();
        for life in 0..3 {
            let engine = TwinEngine::open(&disk, seed + life, TwinFaults::HEALTHY).expect("the disk is free");
            for _ in 0..300 {
                let key = [b'z', prng.below(50) as u8];
                let mut batch = engine.batch();
                batch.put(Cf::Default, &key, &prng.next_u64().to_be_bytes());
                let refused = engine.write(batch, WriteMode::Core);
                told.push(matches!(refused, Err(WriteError::Incomplete(_))));
                told.push(engine.get(Cf::Default, &key, Tier::Cache).is_err());
            }
            engine.kill();
        }
        (told, disk.entries(Cf::Default))
    };
    assert_eq!(story(1), story(1));
    assert_ne!(story(1), story(2));
}

#[test]
fn a_fork_of_a_disk_is_another_disk() {
    let disk = TwinDisk::new();
    let engine = quiet(&disk);
    put(&engine, b"za", b"1").expect("written");
    engine.flush().expect("flushed");
    let fork = disk.fork();
    put(&engine, b"za", b"2").expect("written");
    engine.flush().expect("flushed");
    assert_eq!(get(&quiet(&fork), b"za").as_deref(), Some(b"1".as_slice()));
}
