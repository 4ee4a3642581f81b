//! What the engine promises about RocksDB that random scripts would not reach.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use mvcc::Cf;
use shard::engine::rocks::{BlockCache, RocksEngine, RocksOptions};
use shard::engine::{
    Engine, EngineError, EngineIter, EngineSnapshot, RawFormat, ReadError, Tier, TtlFilter, WriteBatch, WriteError,
    WriteMode,
};

fn open_with(folder: &Path, options: &RocksOptions) -> Result<RocksEngine, EngineError> {
    RocksEngine::open(&folder.join("db"), &BlockCache::new(8 << 20), options)
}

fn open(folder: &Path) -> RocksEngine {
    open_with(folder, &RocksOptions::default()).expect("the database opens")
}

fn put(engine: &RocksEngine, cf: Cf, key: &[u8], value: &[u8]) {
    let mut batch = engine.batch();
    batch.put(cf, key, value);
    engine.write(batch, WriteMode::Core).expect("written");
}

fn get(engine: &RocksEngine, cf: Cf, key: &[u8]) -> Option<Bytes> {
    engine.get(cf, key, Tier::Disk).expect("readable")
}

fn table(engine: &RocksEngine, path: PathBuf, keys: &[&[u8]]) -> PathBuf {
    let entries: Vec<(Bytes, Bytes)> =
        keys.iter().map(|key| (Bytes::copy_from_slice(key), Bytes::from_static(b"ingested"))).collect();
    engine.build_table(Cf::Default, &path, entries).expect("built");
    path
}

fn numbered(number: u32) -> Vec<u8> {
    format!("z{number:08}").into_bytes()
}

#[test]
fn a_cold_cache_says_so_and_never_that_there_is_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    const KEYS: u32 = 20_000;
    let engine = open(folder.path());
    for chunk in 0..KEYS / 100 {
        let mut batch = engine.batch();
        for number in 0..100 {
            batch.put(Cf::Default, &numbered(chunk * 100 + number), &[9; 100]);
        }
        engine.write(batch, WriteMode::Core).expect("written");
    }
    engine.close().expect("closed");
    drop(engine);

    let engine = open(folder.path());
    assert_eq!(engine.get(Cf::Default, &numbered(7), Tier::Cache), Err(ReadError::NotCached));
    let snapshot = engine.snapshot();
    let (mut seen, mut misses) = (0, 0);
    let mut from = b"z".to_vec();
    loop {
        let mut cold = snapshot.iter(Cf::Default, &from, b"{", Tier::Cache, true);
        let mut found = cold.first().map(|entry| entry.map(|(key, _)| key.to_vec()));
        while let Ok(Some(key)) = &found {
            seen += 1;
            from = [key.as_slice(), &[0]].concat();
            found = cold.next().map(|entry| entry.map(|(key, _)| key.to_vec()));
        }
        match found {
            Ok(_) => break,
            Err(ReadError::NotCached) => {
                misses += 1;
                assert_eq!(cold.next(), Err(ReadError::NotCached), "until the next seek");
                assert_eq!(cold.entry(), None);
                let mut warm = snapshot.iter(Cf::Default, &from, b"{", Tier::Disk, true);
                assert!(warm.first().expect("readable").is_some(), "the rest is there");
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(seen, KEYS);
    assert!(misses > 10, "{misses}");
    let keys: Vec<Vec<u8>> = (0..50).map(numbered).collect();
    for value in engine.multi_get(Cf::Default, &keys, Tier::Cache) {
        assert_eq!(value.expect("cached by now").as_deref(), Some([9; 100].as_slice()));
    }
}

#[test]
fn a_file_that_ends_in_the_next_regions_first_key_stays() {
    let folder = tempfile::tempdir().expect("a folder");
    let engine = open(folder.path());
    for (number, keys) in [[b"za".as_slice(), b"zm"], [b"zn", b"zz"]].iter().enumerate() {
        let path = table(&engine, folder.path().join(number.to_string()), keys);
        engine.ingest(Cf::Default, &[path]).expect("ingested");
    }
    engine.delete_files_in_range(Cf::Default, b"za", b"zm").expect("done");
    assert!(get(&engine, Cf::Default, b"za").is_some());
    assert!(get(&engine, Cf::Default, b"zm").is_some());
    engine.delete_files_in_range(Cf::Default, b"za", b"zn").expect("done");
    assert!(get(&engine, Cf::Default, b"zm").is_none(), "the file lay inside");
    assert!(get(&engine, Cf::Default, b"zn").is_some());
    assert!(get(&engine, Cf::Default, b"zz").is_some());
}

/// Dropping files drops the tombstones in them: the reason for the second look of `Engine::erase`.
///
/// Shown on the bare database, with levels of fixed sizes and no compactions. With our options data as small as a
/// test's lies in level 0, where files are never dropped, and in the last one; RocksDB empties other levels by itself.
#[test]
fn dropping_the_file_of_a_tombstone_brings_the_old_value_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let engine = open(folder.path());
    // In the last level, one file that reaches over the end of the range.
    for key in [b"zb".as_slice(), b"zc", b"zz"] {
        put(&engine, Cf::Default, key, b"old");
    }
    engine.flush().expect("flushed");
    engine.compact(Cf::Default, b"", b"").expect("compacted");
    engine.close().expect("closed");
    drop(engine);

    let path = folder.path().join("tombstone");
    let table = rocksdb::Options::default();
    let mut writer = rocksdb::SstFileWriter::create(&table);
    writer.open(&path).expect("created");
    writer.delete_range(b"za", b"zm").expect("added");
    writer.finish().expect("written");
    let mut options = rocksdb::Options::default();
    options.set_level_compaction_dynamic_level_bytes(false);
    options.set_disable_auto_compactions(true);
    let families = Cf::ALL.map(|cf| (cf.name(), options.clone()));
    let db = rocksdb::DB::open_cf_with_opts(&options, folder.path().join("db"), families).expect("opens");
    let family = db.cf_handle(Cf::Default.name()).expect("it has all families");
    db.ingest_external_file_cf(family, vec![path]).expect("ingested");
    let files = db.live_files().expect("listed");
    let levels: Vec<i32> = files.iter().filter(|f| f.column_family_name == "default").map(|f| f.level).collect();
    assert_eq!(levels, [5, 6]);
    assert_eq!(db.get_cf(family, b"zb"), Ok(None));
    db.delete_file_in_range_cf(family, b"za", b"zy").expect("done");
    assert_eq!(db.get_cf(family, b"zb"), Ok(Some(b"old".to_vec())));
    drop(db);

    let engine = open(folder.path());
    assert_eq!(get(&engine, Cf::Default, b"zb").as_deref(), Some(b"old".as_slice()));
    engine.erase(&Cf::DATA, b"za", b"zm").expect("erased");
    assert_eq!(get(&engine, Cf::Default, b"zb"), None);
    assert!(get(&engine, Cf::Default, b"zz").is_some());
}

#[test]
fn what_was_not_flushed_is_gone_with_the_last_handle_and_close_flushes() {
    let folder = tempfile::tempdir().expect("a folder");
    let engine = open(folder.path());
    put(&engine, Cf::Default, b"za", b"1");
    put(&engine, Cf::Raft, b"\x01a", b"1");
    engine.flush().expect("flushed");
    put(&engine, Cf::Default, b"zb", b"2");
    let again = open_with(folder.path(), &RocksOptions::default());
    assert!(again.is_err(), "one engine at a time");
    drop(engine);
    let engine = open(folder.path());
    assert_eq!(get(&engine, Cf::Default, b"za").as_deref(), Some(b"1".as_slice()));
    assert_eq!(get(&engine, Cf::Raft, b"\x01a").as_deref(), Some(b"1".as_slice()));
    assert_eq!(get(&engine, Cf::Default, b"zb"), None);
    put(&engine, Cf::Default, b"zc", b"3");
    engine.close().expect("closed");
    let mut batch = engine.batch();
    batch.put(Cf::Default, b"zd", b"4");
    assert!(matches!(engine.write(batch, WriteMode::Core), Err(WriteError::Failed(EngineError::Closed))));
    drop(engine);
    assert_eq!(get(&open(folder.path()), Cf::Default, b"zc").as_deref(), Some(b"3".as_slice()));
}

#[test]
fn snapshots_iterators_and_long_values_outlive_the_handle() {
    let folder = tempfile::tempdir().expect("a folder");
    let engine = open(folder.path());
    let long = vec![5; 20_000];
    put(&engine, Cf::Default, b"za", &long);
    engine.flush().expect("flushed");
    let snapshot = engine.snapshot();
    put(&engine, Cf::Default, b"za", b"new");
    let value = snapshot.get(Cf::Default, b"za", Tier::Disk).expect("readable").expect("there");
    let mut iter = snapshot.iter(Cf::Default, b"", b"", Tier::Disk, true);
    drop((engine, snapshot));
    assert_eq!(iter.first().expect("readable"), Some((b"za".as_slice(), long.as_slice())));
    assert_eq!(iter.next(), Ok(None));
    drop(iter);
    assert!(open_with(folder.path(), &RocksOptions::default()).is_err(), "the value pins it");
    assert_eq!(value, long);
    drop(value);
    open(folder.path());
}

#[test]
fn an_ingested_file_stays_and_can_be_ingested_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let engine = open(folder.path());
    let path = table(&engine, folder.path().join("table"), &[b"za", b"zb"]);
    for _ in 0..2 {
        engine.ingest(Cf::Default, std::slice::from_ref(&path)).expect("ingested");
        assert!(path.exists());
    }
    let names = std::fs::read_dir(folder.path()).expect("a folder").count();
    assert_eq!(names, 2, "no link is left beside the table and the database");
    assert_eq!(get(&engine, Cf::Default, b"zb").as_deref(), Some(b"ingested".as_slice()));
    let missing = folder.path().join("missing");
    assert!(engine.ingest(Cf::Default, &[missing]).is_err());
    put(&engine, Cf::Default, b"zm", b"behind it");
    drop(engine);
    // Never flushed, and there all the same, while what was only written is not.
    let engine = open(folder.path());
    assert!(get(&engine, Cf::Default, b"zb").is_some());
    assert!(get(&engine, Cf::Default, b"zm").is_none());
}

#[test]
fn a_table_wants_ascending_entries() {
    let folder = tempfile::tempdir().expect("a folder");
    let engine = open(folder.path());
    let entry = |key: &'static [u8]| (Bytes::from_static(key), Bytes::new());
    for entries in [vec![], vec![entry(b"zb"), entry(b"za")], vec![entry(b"za"), entry(b"za")]] {
        let built = engine.build_table(Cf::Default, &folder.path().join("table"), entries);
        assert!(built.is_err());
    }
}

#[test]
fn compactions_drop_what_has_expired_and_nothing_else() {
    let folder = tempfile::tempdir().expect("a folder");
    let now = Arc::new(AtomicU64::new(1_000));
    let expires = |at: u64| [b"value".as_slice(), &at.to_be_bytes()].concat();
    let options = RocksOptions { ttl: Some(TtlFilter::new(RawFormat::V1Ttl, now.clone())), ..RocksOptions::default() };
    let engine = open_with(folder.path(), &options).expect("the database opens");
    put(&engine, Cf::Default, b"zold", &expires(999));
    put(&engine, Cf::Default, b"znew", &expires(2_000));
    put(&engine, Cf::Default, b"zever", &expires(0));
    put(&engine, Cf::Default, base::keys::STORE_IDENT, &expires(1));
    put(&engine, Cf::Lock, b"zold", &expires(999));
    engine.flush().expect("flushed");
    for cf in Cf::ALL {
        engine.compact(cf, b"", b"").expect("compacted");
    }
    assert_eq!(get(&engine, Cf::Default, b"zold"), None);
    for key in [b"znew".as_slice(), b"zever", base::keys::STORE_IDENT] {
        assert!(get(&engine, Cf::Default, key).is_some(), "{key:?}");
    }
    assert!(get(&engine, Cf::Lock, b"zold").is_some(), "only the default family");
    now.store(2_000, Ordering::Relaxed);
    engine.compact(Cf::Default, b"", b"").expect("compacted");
    assert_eq!(get(&engine, Cf::Default, b"znew"), None);
}

#[test]
fn an_expired_version_hides_the_one_before_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let now = Arc::new(AtomicU64::new(1_000));
    let options = RocksOptions { ttl: Some(TtlFilter::new(RawFormat::V2, now)), ..RocksOptions::default() };
    let engine = open_with(folder.path(), &options).expect("the database opens");
    let version = |ts: u64| [b"zr\0\0\0key".as_slice(), &(!ts).to_be_bytes()].concat();
    put(&engine, Cf::Default, &version(1), b"first\0");
    let second = [b"second".as_slice(), &900u64.to_be_bytes(), &[1]].concat();
    put(&engine, Cf::Default, &version(2), &second);
    engine.flush().expect("flushed");
    engine.compact(Cf::Default, b"", b"").expect("compacted");
    let snapshot = engine.snapshot();
    let mut iter = snapshot.iter(Cf::Default, b"z", b"{", Tier::Disk, true);
    let newest = iter.first().expect("readable").expect("both are there");
    assert_eq!(newest, (version(2).as_slice(), [2].as_slice()), "a tombstone");
}

#[test]
fn a_refused_batch_was_not_written_and_can_be_written_later() {
    let folder = tempfile::tempdir().expect("a folder");
    // Memtables so small that a fast writer outruns the flushes.
    let options = RocksOptions { memtable_bytes_max: 64 << 10, ..RocksOptions::default() };
    let engine = open_with(folder.path(), &options).expect("the database opens");
    let mut refused = 0;
    for number in 0..6_000 {
        let key = numbered(number);
        let mut batch = engine.batch();
        batch.put(Cf::Default, &key, &[3; 1000]);
        match engine.write(batch, WriteMode::Core) {
            Ok(()) => {}
            Err(WriteError::Incomplete(batch)) => {
                refused += 1;
                assert_eq!(get(&engine, Cf::Default, &key), None);
                assert_eq!(batch.count(), 1);
                engine.write(batch, WriteMode::Helper).expect("written after a wait");
            }
            Err(error) => panic!("{error}"),
        }
        assert!(engine.get(Cf::Default, &key, Tier::Disk).expect("readable").is_some());
    }
    println!("refused: {refused}");
    let keys: Vec<Vec<u8>> = (0..6_000).map(numbered).collect();
    assert!(
        engine.multi_get(Cf::Default, &keys, Tier::Disk).into_iter().all(|value| value.expect("readable").is_some())
    );
}

#[test]
fn a_failed_flush_says_so_and_ends_writing() {
    let folder = tempfile::tempdir().expect("a folder");
    let engine = open(folder.path());
    put(&engine, Cf::Default, b"za", b"1");
    // A folder where the next table files shall be: they cannot be created.
    for number in 1..200 {
        let path = folder.path().join("db").join(format!("{number:06}.sst"));
        std::fs::create_dir(path).expect("a folder");
    }
    assert!(engine.flush().is_err());
    assert_eq!(engine.flushed_sequence(), 0);
    assert!(engine.memtable_bytes() > 0, "still to be flushed");
    assert!(engine.stats().background_errors > 0);
    let mut batch = engine.batch();
    batch.put(Cf::Default, b"zb", b"2");
    let write = engine.write(batch, WriteMode::Core);
    assert!(matches!(write, Err(WriteError::Failed(_))), "{write:?}");
}

#[test]
fn numbers_about_the_engine_move_with_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let engine = open(folder.path());
    assert_eq!((engine.memtable_bytes(), engine.last_sequence()), (0, 0));
    let mut batch = engine.batch();
    for number in 0..1_000 {
        batch.put(Cf::Default, &numbered(number), &[number as u8; 1000]);
    }
    batch.put(Cf::Raft, b"\x01", b"state");
    engine.write(batch, WriteMode::Core).expect("written");
    assert_eq!(engine.last_sequence(), 1_001);
    let (counted, real) = (engine.memtable_bytes(), engine.stats().memtable_bytes);
    assert!(counted > 1_000_000 && counted < real * 2 && real < counted * 2, "{counted} {real}");
    engine.flush().expect("flushed");
    assert_eq!((engine.memtable_bytes(), engine.flushed_sequence()), (0, 1_001));
    assert!(engine.disk_bytes() > 500_000, "{}", engine.disk_bytes());
    let halves: [(&[u8], &[u8]); 3] = [(b"z", b"z00000500"), (b"z00000500", b""), (b"zz", b"{")];
    let bytes = engine.approximate_bytes(Cf::Default, &halves);
    assert!(bytes[0] > 250_000 && bytes[1] > 250_000 && bytes[2] == 0, "{bytes:?}");
    let snapshot = engine.snapshot();
    let stats = engine.stats();
    assert_eq!((stats.snapshots, stats.l0_files, stats.writes_stopped), (1, 1, false));
    assert_eq!(snapshot.sequence(), 1_001);
}
