//! An engine whose every durable step is counted, and which dies before one of them.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use base::Prng;
use bytes::Bytes;
use mvcc::Cf;
use shard::engine::{Engine, EngineError, EngineStats, ReadError, TableInfo, Tier, WriteError, WriteMode};

/// Counts the steps of one life: engine writes, flushes, ingests, table files, writes and syncs of the log. The life
/// is over before the step with the number it was given.
pub(crate) struct Steps {
    engine: AtomicU64,
    disk: AtomicU64,
    end_before: u64,
    /// An engine write comes with a flush once in so many times; never if 0.
    flush_one_in: u64,
    whims: Mutex<Prng>,
    /// Lets go of the engines.
    closers: Mutex<Vec<Box<dyn FnOnce() + Send>>>,
}

impl Steps {
    /// A life that ends before step `end_before`, counted from 0.
    pub(crate) fn new(end_before: u64, flush_one_in: u64, seed: u64) -> Arc<Steps> {
        Arc::new(Steps {
            engine: AtomicU64::new(0),
            disk: AtomicU64::new(0),
            end_before,
            flush_one_in,
            whims: Mutex::new(Prng::new(seed)),
            closers: Mutex::default(),
        })
    }

    /// Steps so far.
    pub(crate) fn count(&self) -> u64 {
        self.engine.load(Ordering::Relaxed) + self.disk.load(Ordering::Relaxed)
    }

    /// Whether the life has come to its end.
    pub(crate) fn over(&self) -> bool {
        self.count() >= self.end_before
    }

    /// The process has ended: its engines go with it, whoever still holds a handle.
    pub(crate) fn end(&self) {
        let closers = std::mem::take(&mut *self.closers.lock().expect("no closer panics"));
        closers.into_iter().for_each(|close| close());
    }

    /// What the disk did in this life so far.
    pub(crate) fn note_disk(&self, steps: u64) {
        self.disk.store(steps, Ordering::Relaxed);
    }

    fn step(&self) -> Result<(), EngineError> {
        if self.over() {
            return Err(EngineError::Closed);
        }
        self.engine.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Whether a write comes with a flush, and whether before it.
    fn flushes(&self) -> (bool, bool) {
        let mut whims = self.whims.lock().expect("no call panics while it holds them");
        (whims.one_in(self.flush_one_in), whims.one_in(2))
    }
}

/// See the module.
#[derive(Clone)]
pub(crate) struct Killable<E> {
    inner: Arc<Mutex<Option<E>>>,
    steps: Arc<Steps>,
}

impl<E: Engine> Killable<E> {
    pub(crate) fn new(engine: E, steps: Arc<Steps>) -> Killable<E> {
        let inner = Arc::new(Mutex::new(Some(engine)));
        let held = inner.clone();
        let close = move || drop(held.lock().expect("no call panics while it holds the engine").take());
        steps.closers.lock().expect("no closer panics").push(Box::new(close));
        Killable { inner, steps }
    }

    fn inner(&self) -> E {
        let inner = self.inner.lock().expect("no call panics while it holds the engine");
        inner.clone().expect("nothing runs after the end of the process")
    }
}

impl<E: Engine> Engine for Killable<E> {
    type Snapshot = E::Snapshot;
    type Batch = E::Batch;

    fn write(&self, batch: E::Batch, mode: WriteMode) -> Result<(), WriteError<E::Batch>> {
        let (flush, before) = self.steps.flushes();
        if flush && before {
            self.flush()?;
        }
        self.steps.step()?;
        self.inner().write(batch, mode)?;
        if flush && !before {
            self.flush()?;
        }
        Ok(())
    }

    fn snapshot(&self) -> E::Snapshot {
        self.inner().snapshot()
    }

    fn get(&self, cf: Cf, key: &[u8], tier: Tier) -> Result<Option<Bytes>, ReadError> {
        self.inner().get(cf, key, tier)
    }

    fn multi_get<K: AsRef<[u8]>>(&self, cf: Cf, keys: &[K], tier: Tier) -> Vec<Result<Option<Bytes>, ReadError>> {
        self.inner().multi_get(cf, keys, tier)
    }

    fn flush(&self) -> Result<(), EngineError> {
        self.steps.step()?;
        self.inner().flush()
    }

    fn build_table<I>(&self, cf: Cf, path: &Path, entries: I) -> Result<TableInfo, EngineError>
    where
        I: IntoIterator<Item = (Bytes, Bytes)>,
    {
        self.steps.step()?;
        self.inner().build_table(cf, path, entries)
    }

    fn tables(&self, folder: &Path) -> Result<Vec<PathBuf>, EngineError> {
        self.inner().tables(folder)
    }

    fn remove_table(&self, path: &Path) -> Result<(), EngineError> {
        self.steps.step()?;
        self.inner().remove_table(path)
    }

    fn ingest(&self, cf: Cf, files: &[PathBuf]) -> Result<(), EngineError> {
        self.steps.step()?;
        self.inner().ingest(cf, files)
    }

    fn delete_files_in_range(&self, cf: Cf, start: &[u8], end: &[u8]) -> Result<(), EngineError> {
        self.steps.step()?;
        self.inner().delete_files_in_range(cf, start, end)
    }

    fn compact(&self, cf: Cf, start: &[u8], end: &[u8]) -> Result<(), EngineError> {
        self.inner().compact(cf, start, end)
    }

    fn approximate_bytes(&self, cf: Cf, ranges: &[(&[u8], &[u8])]) -> Vec<u64> {
        self.inner().approximate_bytes(cf, ranges)
    }

    fn memtable_bytes(&self) -> u64 {
        self.inner().memtable_bytes()
    }

    fn disk_bytes(&self) -> u64 {
        self.inner().disk_bytes()
    }

    fn last_sequence(&self) -> u64 {
        self.inner().last_sequence()
    }

    fn flushed_sequence(&self) -> u64 {
        self.inner().flushed_sequence()
    }

    fn stats(&self) -> EngineStats {
        self.inner().stats()
    }

    fn close(&self) -> Result<(), EngineError> {
        self.steps.step()?;
        self.inner().close()
    }
}
