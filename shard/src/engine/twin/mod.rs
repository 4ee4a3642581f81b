//! RocksDB's twin in plain Rust, for the simulator: same trait, same promises, seeded whims.
//!
//! A [`TwinDisk`] is what survives; a [`TwinEngine`] is one life of a process on it. [`TwinEngine::kill`], or dropping
//! the engine, forgets what was not durable. What RocksDB does when it likes, the twin does when its seed says so:
//!
//! - an atomic flush before or after any write;
//! - a refused write of a core ([`WriteError::Incomplete`]), a read that is [`ReadError::NotCached`], any time;
//! - a flush that fails, whose data may be durable all the same, and background errors that end all writing;
//! - files dropped by `delete_files_in_range` in any part of the range, so that older values reappear.
//!
//! It is only worth what `tests/engine_differential.rs` proves.

mod read;
mod store;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use base::Prng;
use bytes::Bytes;
use mvcc::{Cf, ReadError};

use super::{EncodedBatch, Engine, EngineError, EngineStats, TableInfo, Tier, TtlFilter, WriteError, WriteMode};

pub use read::{TwinIter, TwinSnapshot};
use store::{Durable, Store};

/// How often the twin has a whim: once in so many chances, never if 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TwinFaults {
    /// An atomic flush around a write.
    pub flush_one_in: u64,
    /// A core's write refused.
    pub incomplete_one_in: u64,
    /// A cache-tier read or step refused.
    pub not_cached_one_in: u64,
    /// A flush, asked for or not, that fails.
    pub flush_fails_one_in: u64,
    /// A write that finds a background error: the engine writes no more.
    pub background_error_one_in: u64,
    /// An older value that reappears when files are dropped, per key.
    pub resurface_one_in: u64,
}

impl TwinFaults {
    /// What a healthy RocksDB does: no failures, all the freedom.
    pub const HEALTHY: TwinFaults = TwinFaults {
        flush_one_in: 50,
        incomplete_one_in: 100,
        not_cached_one_in: 10,
        flush_fails_one_in: 0,
        background_error_one_in: 0,
        resurface_one_in: 3,
    };

    /// Some healthy mixture: often, seldom or never of each whim.
    pub fn arbitrary(prng: &mut Prng) -> TwinFaults {
        let mut rate = |low: u64| {
            let rates = [0, low, low * 10, low * 100];
            rates[prng.below(rates.len() as u64) as usize]
        };
        TwinFaults {
            flush_one_in: rate(3),
            incomplete_one_in: rate(3),
            not_cached_one_in: rate(2),
            resurface_one_in: rate(2),
            ..TwinFaults::default()
        }
    }
}

/// What survives a kill. Clones are the same disk.
#[derive(Clone, Debug, Default)]
pub struct TwinDisk {
    durable: Arc<Mutex<Durable>>,
}

impl TwinDisk {
    /// An empty disk.
    pub fn new() -> TwinDisk {
        TwinDisk::default()
    }

    /// A disk of its own with the same contents, open in no engine: for trying several ends of one story.
    pub fn fork(&self) -> TwinDisk {
        let mut copy = self.lock().clone();
        copy.in_use = false;
        TwinDisk { durable: Arc::new(Mutex::new(copy)) }
    }

    /// All durable entries of a family.
    pub fn entries(&self, cf: Cf) -> Vec<(Bytes, Bytes)> {
        self.lock().families[cf.index()].iter().map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    /// Whether a durable value begins with `start`, in a family or in a table file that is not ingested yet.
    pub fn holds_value(&self, start: &[u8]) -> bool {
        let disk = self.lock();
        let mut held = disk.families.iter().flat_map(|family| family.values());
        let mut coming = disk.tables.values().flatten().map(|(_, value)| value);
        held.any(|value| value.starts_with(start)) || coming.any(|value| value.starts_with(start))
    }

    fn lock(&self) -> MutexGuard<'_, Durable> {
        self.durable.lock().expect("no call panics while it holds the disk")
    }
}

/// One life of an engine on a [`TwinDisk`].
#[derive(Clone, Debug)]
pub struct TwinEngine {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    disk: TwinDisk,
    store: Mutex<Store>,
    ttl: Option<TtlFilter>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Store> {
        self.store.lock().expect("no call panics while it holds the store")
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let store = self.store.get_mut().expect("no call panics while it holds the store");
        if store.alive {
            self.disk.lock().in_use = false;
        }
    }
}

impl TwinEngine {
    /// Opens the database on `disk`. The seed decides over all whims of this life.
    ///
    /// # Errors
    /// An engine, or a snapshot or iterator of one, still has the disk open.
    pub fn open(disk: &TwinDisk, seed: u64, faults: TwinFaults) -> Result<TwinEngine, EngineError> {
        TwinEngine::open_with_ttl(disk, seed, faults, None)
    }

    /// [`TwinEngine::open`] with a rule for the compaction of raw values.
    pub fn open_with_ttl(
        disk: &TwinDisk,
        seed: u64,
        faults: TwinFaults,
        ttl: Option<TtlFilter>,
    ) -> Result<TwinEngine, EngineError> {
        let mut durable = disk.lock();
        if durable.in_use {
            return Err(EngineError::Failed("the disk is in use".into()));
        }
        durable.in_use = true;
        let store = Store::recover(&durable, Prng::new(seed), faults);
        drop(durable);
        Ok(TwinEngine { shared: Arc::new(Shared { disk: disk.clone(), store: Mutex::new(store), ttl }) })
    }

    /// The end of the process: what is not durable is gone, the disk is free for another engine, and every handle,
    /// snapshot and iterator of this life answers [`EngineError::Closed`] or [`ReadError::Failed`].
    pub fn kill(&self) {
        let mut store = self.shared.lock();
        if store.alive {
            store.die();
            self.shared.disk.lock().in_use = false;
        }
    }

    /// Other whims from now on.
    pub fn set_faults(&self, faults: TwinFaults) {
        self.shared.lock().faults = faults;
    }
}

impl Engine for TwinEngine {
    type Snapshot = TwinSnapshot;
    type Batch = EncodedBatch;

    fn write(&self, batch: EncodedBatch, mode: WriteMode) -> Result<(), WriteError<EncodedBatch>> {
        let mut store = self.shared.lock();
        store.check_writable()?;
        let faults = store.faults;
        if mode == WriteMode::Core && store.chance(faults.incomplete_one_in) {
            return Err(WriteError::Incomplete(batch));
        }
        if store.chance(faults.background_error_one_in) {
            let written = store.chance(2);
            if written {
                store.apply(&batch);
            }
            return Err(WriteError::Failed(store.fail("a background error")));
        }
        let flush = store.chance(faults.flush_one_in);
        let before = store.chance(2);
        if flush && before {
            self.spontaneous_flush(&mut store)?;
        }
        store.apply(&batch);
        if flush && !before {
            self.spontaneous_flush(&mut store)?;
        }
        Ok(())
    }

    fn snapshot(&self) -> TwinSnapshot {
        TwinSnapshot::new(self.shared.clone())
    }

    fn get(&self, cf: Cf, key: &[u8], tier: Tier) -> Result<Option<Bytes>, ReadError> {
        self.shared.lock().read(cf, key, u64::MAX, tier)
    }

    fn multi_get<K: AsRef<[u8]>>(&self, cf: Cf, keys: &[K], tier: Tier) -> Vec<Result<Option<Bytes>, ReadError>> {
        let mut store = self.shared.lock();
        keys.iter().map(|key| store.read(cf, key.as_ref(), u64::MAX, tier)).collect()
    }

    fn flush(&self) -> Result<(), EngineError> {
        let mut store = self.shared.lock();
        store.check_writable()?;
        let faults = store.faults;
        if store.chance(faults.flush_fails_one_in) {
            if store.chance(2) {
                store.make_durable(&mut self.shared.disk.lock());
            }
            return Err(store.flush_failed());
        }
        store.make_durable(&mut self.shared.disk.lock());
        store.flushed_sequence = store.sequence;
        Ok(())
    }

    fn build_table<I>(&self, _cf: Cf, path: &Path, entries: I) -> Result<TableInfo, EngineError>
    where
        I: IntoIterator<Item = (Bytes, Bytes)>,
    {
        let entries: Vec<(Bytes, Bytes)> = entries.into_iter().collect();
        if entries.is_empty() || !entries.is_sorted_by(|a, b| a.0 < b.0) {
            return Err(EngineError::Failed("entries out of order, or none".into()));
        }
        let info = TableInfo {
            entries: entries.len() as u64,
            file_bytes: entries.iter().map(|(key, value)| (key.len() + value.len()) as u64).sum(),
        };
        self.shared.lock().check_alive()?;
        self.shared.disk.lock().tables.insert(path.to_path_buf(), entries);
        Ok(info)
    }

    fn tables(&self, folder: &Path) -> Result<Vec<PathBuf>, EngineError> {
        self.shared.lock().check_alive()?;
        let disk = self.shared.disk.lock();
        Ok(disk.tables.keys().filter(|path| path.parent() == Some(folder)).cloned().collect())
    }

    fn remove_table(&self, path: &Path) -> Result<(), EngineError> {
        self.shared.lock().check_alive()?;
        self.shared.disk.lock().tables.remove(path);
        Ok(())
    }

    fn ingest(&self, cf: Cf, files: &[PathBuf]) -> Result<(), EngineError> {
        let mut store = self.shared.lock();
        store.check_writable()?;
        let mut disk = self.shared.disk.lock();
        let mut tables = Vec::new();
        for path in files {
            tables.push(
                disk.tables
                    .get(path)
                    .cloned()
                    .ok_or_else(|| EngineError::Failed(format!("no table file {}", path.display())))?,
            );
        }
        if tables.iter().any(|table| store.overlaps_memtable(cf, table)) {
            store.make_durable(&mut disk);
        }
        for table in tables {
            store.ingest(cf, table, &mut disk);
        }
        Ok(())
    }

    fn delete_files_in_range(&self, cf: Cf, start: &[u8], end: &[u8]) -> Result<(), EngineError> {
        let mut store = self.shared.lock();
        store.check_writable()?;
        store.drop_files(cf, start, end, &mut self.shared.disk.lock());
        Ok(())
    }

    fn compact(&self, cf: Cf, start: &[u8], end: &[u8]) -> Result<(), EngineError> {
        let mut store = self.shared.lock();
        store.check_writable()?;
        let mut disk = self.shared.disk.lock();
        store.make_durable(&mut disk);
        store.compact(cf, start, end, self.shared.ttl.as_ref(), &mut disk);
        Ok(())
    }

    fn approximate_bytes(&self, cf: Cf, ranges: &[(&[u8], &[u8])]) -> Vec<u64> {
        let disk = self.shared.disk.lock();
        ranges.iter().map(|(start, end)| disk.bytes_in(cf, start, end)).collect()
    }

    fn memtable_bytes(&self) -> u64 {
        self.shared.lock().memtable_bytes
    }

    fn disk_bytes(&self) -> u64 {
        let disk = self.shared.disk.lock();
        Cf::ALL.iter().map(|cf| disk.bytes_in(*cf, b"", b"")).sum()
    }

    fn last_sequence(&self) -> u64 {
        self.shared.lock().sequence
    }

    fn flushed_sequence(&self) -> u64 {
        self.shared.lock().flushed_sequence
    }

    fn stats(&self) -> EngineStats {
        let disk_bytes = self.disk_bytes();
        let store = self.shared.lock();
        EngineStats {
            background_errors: store.background_errors,
            memtable_bytes: store.memtable_bytes,
            disk_bytes,
            snapshots: store.open_snapshots(),
            last_sequence: store.sequence,
            ..EngineStats::default()
        }
    }

    fn close(&self) -> Result<(), EngineError> {
        let flushed = self.flush();
        self.shared.lock().closed = true;
        flushed
    }
}

impl TwinEngine {
    fn spontaneous_flush(&self, store: &mut Store) -> Result<(), EngineError> {
        let faults = store.faults;
        if store.chance(faults.flush_fails_one_in) {
            return Err(store.fail("a background flush failed"));
        }
        store.make_durable(&mut self.shared.disk.lock());
        Ok(())
    }
}
