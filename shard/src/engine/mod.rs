//! The storage engine of a shard: four families of sorted keys, without a log of its own.
//!
//! [`Engine`] is the small trait that the rest of the shard is written against. [`rocks::RocksEngine`] is RocksDB with
//! its write-ahead log off; [`twin::TwinEngine`] is the same in plain Rust for the simulator, with RocksDB's habits
//! that matter after a crash and a seeded choice of when they show.
//!
//! What both promise (and `tests/engine_differential.rs` compares):
//!
//! - A batch is applied whole or not at all, and batches are visible in the order of the calls.
//! - After a crash the state is a *prefix of the order of writes*, over all families together, which ends at or after
//!   the last [`Engine::flush`] that returned `Ok`. The engine may flush by itself at any write.
//! - [`Engine::ingest`] and [`Engine::delete_files_in_range`] are durable at once and jump ahead of that order. So
//!   the shard flushes before either.
//! - A read with [`Tier::Cache`] never waits for the disk. It says [`ReadError::NotCached`] instead, and never takes
//!   that for a missing key or the end of a range.
//! - A write with [`WriteMode::Core`] never waits for room, nor behind a helper. It says [`WriteError::Incomplete`]
//!   instead, with the batch, and nothing of it was written.
//!
//! Keys here are the engine's: data keys carry their `z`. [`RegionView`] is the door for code that speaks of a
//! region's keys without it.

mod batch;
pub mod rocks;
mod ttl;
pub mod twin;
mod view;

use std::path::{Path, PathBuf};

use base::keys;
use bytes::Bytes;
pub use mvcc::ReadError;
use mvcc::{Cf, Modify};

pub use batch::{BatchMark, BatchOp, EncodedBatch};
pub use ttl::{RawFormat, TtlFilter, Verdict};
pub use view::{RegionCursor, RegionView};

/// How far down a read may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// Memtables and block cache: for cores. What is not there is [`ReadError::NotCached`].
    Cache,
    /// The files too: for helpers, as it may block.
    Disk,
}

/// Who writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteMode {
    /// A core: refused rather than delayed, and refused while a helper is inside a long call of the same engine.
    Core,
    /// A helper: may wait for the engine to catch up.
    Helper,
}

/// Why the engine did not do what it was asked. Each of these but [`EngineError::NoSpace`] ends the shard's service.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// The disk is full.
    #[error("no space left: {0}")]
    NoSpace(String),
    /// Data read back is not what was written.
    #[error("corruption: {0}")]
    Corruption(String),
    /// The engine was closed or killed.
    #[error("the engine is closed")]
    Closed,
    /// Anything else that went wrong, a background error included.
    #[error("engine failed: {0}")]
    Failed(String),
}

/// Why a batch was not written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError<B> {
    /// No room or not the time: nothing was written; the same batch, given back here, may be tried again later.
    #[error("the engine is behind")]
    Incomplete(B),
    /// The engine failed. Whether the batch is in the memtable is unknown, and no further write may follow.
    #[error(transparent)]
    Failed(#[from] EngineError),
}

/// Changes that become visible together, in their order: a later one of a key wins. Engine keys, with `z`.
pub trait WriteBatch: Default + std::fmt::Debug + Send + 'static {
    /// Sets `key` to `value`.
    fn put(&mut self, cf: Cf, key: &[u8], value: &[u8]);
    /// Removes `key`.
    fn delete(&mut self, cf: Cf, key: &[u8]);
    /// Removes all keys in `[start, end)`. An empty or inverted range adds nothing.
    fn delete_range(&mut self, cf: Cf, start: &[u8], end: &[u8]);
    /// [`WriteBatch::put`] of a region's key, to which the `z` is added.
    fn put_data(&mut self, cf: Cf, key: &[u8], value: &[u8]);
    /// [`WriteBatch::delete`] of a region's key.
    fn delete_data(&mut self, cf: Cf, key: &[u8]);
    /// Number of changes.
    fn count(&self) -> usize;
    /// Bytes of keys and values.
    fn data_bytes(&self) -> usize;
    /// Removes all changes and keeps the memory.
    fn clear(&mut self);

    /// True if there is nothing to write.
    fn is_empty(&self) -> bool {
        self.count() == 0
    }

    /// Adds one change of a region that ends at `region_end`: where a `DeleteRange` without an end stops.
    fn modify(&mut self, change: &Modify, region_end: &[u8]) {
        match change {
            Modify::Put { cf, key, value } => self.put_data(*cf, key, value),
            Modify::Delete { cf, key } => self.delete_data(*cf, key),
            Modify::DeleteRange { cf, start, end } => {
                let end = if end.is_empty() { region_end } else { end };
                self.delete_range(*cf, &keys::data_key(start), &keys::data_end_key(end));
            }
        }
    }
}

/// What the engine says about itself. Polled on a helper, since it takes the engine's locks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineStats {
    /// Writes are refused (core) or blocked (helper) until the engine has caught up.
    pub writes_stopped: bool,
    /// Bytes per second to which writes are held back; 0 if they are not. Cores are refused then too.
    pub delayed_bytes_per_second: u64,
    /// Failures of flushes and compactions since the engine was opened. Any at all closes the shard.
    pub background_errors: u64,
    /// Bytes that compactions still have to rewrite, by the engine's estimate.
    pub pending_compaction_bytes: u64,
    /// Files in level 0 of the family that has most of them.
    pub l0_files: u64,
    /// Memory of memtables that take writes or wait for a flush.
    pub memtable_bytes: u64,
    /// Memtables that wait for a flush, over all families.
    pub immutable_memtables: u64,
    /// Memory of the block cache in use; shared, so the same for all engines of a node.
    pub block_cache_bytes: u64,
    /// The part of it that readers hold and that cannot be evicted.
    pub block_cache_pinned_bytes: u64,
    /// Flushes and compactions that run now.
    pub background_jobs: u64,
    /// Bytes of table files, those that only old snapshots need included.
    pub disk_bytes: u64,
    /// Engine snapshots that are open.
    pub snapshots: u64,
    /// Sequence number of the last write.
    pub last_sequence: u64,
}

/// One shard's database. A handle: clones share it, and the last one to go, snapshots and iterators included, closes it.
pub trait Engine: Clone + Send + Sync + 'static {
    /// A frozen state of this engine.
    type Snapshot: EngineSnapshot;
    /// Its batches of changes.
    type Batch: WriteBatch;

    /// An empty batch.
    fn batch(&self) -> Self::Batch {
        Self::Batch::default()
    }

    /// Applies `batch` to the memtables. Not durable before the next flush.
    ///
    /// # Errors
    /// [`WriteError::Incomplete`] only with [`WriteMode::Core`].
    fn write(&self, batch: Self::Batch, mode: WriteMode) -> Result<(), WriteError<Self::Batch>>;

    /// The state now. Takes a lock that background jobs take too, for about 100 ns; a single read needs none.
    fn snapshot(&self) -> Self::Snapshot;

    /// The newest value of `key`.
    fn get(&self, cf: Cf, key: &[u8], tier: Tier) -> Result<Option<Bytes>, ReadError>;

    /// The newest values of `keys`, in their order. Each key has its own answer.
    fn multi_get<K: AsRef<[u8]>>(&self, cf: Cf, keys: &[K], tier: Tier) -> Vec<Result<Option<Bytes>, ReadError>>;

    /// Makes everything durable that was written before the call, all families together. Helpers only.
    fn flush(&self) -> Result<(), EngineError>;

    /// Writes `entries`, which ascend strictly by engine key, to a new table file at `path` that any engine of this
    /// kind can ingest, and syncs it. A file that is there is removed first. Helpers only. RocksDB's files are of format version 5, which TiKV reads.
    ///
    /// # Errors
    /// No entries, or entries out of order, are [`EngineError::Failed`].
    fn build_table<I>(&self, cf: Cf, path: &Path, entries: I) -> Result<TableInfo, EngineError>
    where
        I: IntoIterator<Item = (Bytes, Bytes)>;

    /// The table files in `folder`, and links to them that a crash left there; none if there is no such folder. Helpers
    /// only.
    fn tables(&self, folder: &Path) -> Result<Vec<PathBuf>, EngineError>;

    /// Removes a table file, if it is there. What was ingested stays. Helpers only.
    fn remove_table(&self, path: &Path) -> Result<(), EngineError>;

    /// Adds the entries of table files to `cf`, over what is there. Durable when it returns, ahead of earlier writes
    /// that were not flushed. The files stay where they are and share their bytes with the database (hard links): they
    /// may be removed, or ingested again, but never written to. Helpers only; writes with [`WriteMode::Core`] are
    /// refused meanwhile.
    fn ingest(&self, cf: Cf, files: &[PathBuf]) -> Result<(), EngineError>;

    /// Drops table files that lie entirely in `[start, end)`, whatever they hold: values, and *tombstones* too, so
    /// that an older value in a file that reaches over the range's edge may reappear. Durable at once. Snapshots may
    /// lose keys of the range. Helpers only. [`Engine::erase`] is the safe way to use it.
    fn delete_files_in_range(&self, cf: Cf, start: &[u8], end: &[u8]) -> Result<(), EngineError>;

    /// Rewrites `[start, end)` of `cf` down to the last level. Helpers only, and long.
    fn compact(&self, cf: Cf, start: &[u8], end: &[u8]) -> Result<(), EngineError>;

    /// Bytes on disk of each range of `cf`. Memtables do not count: the shard knows what it wrote since the flush.
    fn approximate_bytes(&self, cf: Cf, ranges: &[(&[u8], &[u8])]) -> Vec<u64>;

    /// Memory of the memtables that take writes, over all families: what a flush now would write, and free.
    fn memtable_bytes(&self) -> u64;

    /// Bytes of table files.
    fn disk_bytes(&self) -> u64;

    /// Sequence number of the last write. Each operation of a batch takes one.
    fn last_sequence(&self) -> u64;

    /// Sequence number up to which our own flushes made the state durable. Zero after opening.
    fn flushed_sequence(&self) -> u64;

    /// What the engine says about itself. Helpers only.
    fn stats(&self) -> EngineStats;

    /// Flushes, stops background work and refuses writes from then on. Files and lock are released with the last
    /// handle, snapshot and iterator. Helpers only. Dropping an engine without this loses what was not flushed.
    fn close(&self) -> Result<(), EngineError>;

    /// Removes all keys in `[start, end)` of `families` and gives their disk space back where whole files allow it.
    /// When it returns, the range is empty and durably so. Helpers only; nobody may write into the range meanwhile.
    ///
    /// A range tombstone, a flush, then the files: a crash in between finds the range empty or whole. The last step
    /// looks again, since a dropped file may have been what hid an older value.
    fn erase(&self, families: &[Cf], start: &[u8], end: &[u8]) -> Result<(), EngineError> {
        let bury = |families: &[Cf]| -> Result<(), EngineError> {
            let mut batch = self.batch();
            for &cf in families {
                batch.delete_range(cf, start, end);
            }
            match self.write(batch, WriteMode::Helper) {
                Ok(()) => self.flush(),
                Err(WriteError::Failed(error)) => Err(error),
                Err(WriteError::Incomplete(_)) => Err(EngineError::Failed("a helper's write was refused".into())),
            }
        };
        bury(families)?;
        for &cf in families {
            self.delete_files_in_range(cf, start, end)?;
        }
        let snapshot = self.snapshot();
        let mut risen = Vec::new();
        for &cf in families {
            let mut iter = snapshot.iter(cf, start, end, Tier::Disk, false);
            if iter.first().map_err(|error| EngineError::Failed(error.to_string()))?.is_some() {
                risen.push(cf);
            }
        }
        if risen.is_empty() { Ok(()) } else { bury(&risen) }
    }
}

/// A table file that was built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableInfo {
    /// Entries in the file.
    pub entries: u64,
    /// Its length.
    pub file_bytes: u64,
}

/// A frozen state of an engine. Clones share it; it can go to a helper while the core keeps one.
pub trait EngineSnapshot: Clone + Send + Sync + 'static {
    /// Its iterators, which keep the state alive by themselves.
    type Iter: EngineIter;

    /// Sequence number of the last write it sees.
    fn sequence(&self) -> u64;

    /// The value of `key`.
    fn get(&self, cf: Cf, key: &[u8], tier: Tier) -> Result<Option<Bytes>, ReadError>;

    /// The values of `keys`, in their order. Each key has its own answer.
    fn multi_get<K: AsRef<[u8]>>(&self, cf: Cf, keys: &[K], tier: Tier) -> Vec<Result<Option<Bytes>, ReadError>>;

    /// An iterator over `[lower, upper)`; an empty bound is none. `fill_cache` says whether blocks that it reads from
    /// disk stay in the block cache; long scans say no.
    fn iter(&self, cf: Cf, lower: &[u8], upper: &[u8], tier: Tier, fill_cache: bool) -> Self::Iter;
}

/// A key and its value, borrowed until the iterator moves.
pub type Entry<'a> = (&'a [u8], &'a [u8]);

/// A place among the entries of a family. It has no `valid()`: each move says where it arrived, `None` past either
/// end, or why it cannot know. After an error every step repeats it until the next seek.
pub trait EngineIter: Send + 'static {
    /// To the first entry of the range.
    fn first(&mut self) -> Result<Option<Entry<'_>>, ReadError>;
    /// To the last entry of the range.
    fn last(&mut self) -> Result<Option<Entry<'_>>, ReadError>;
    /// To the first entry at or after `key`.
    fn seek(&mut self, key: &[u8]) -> Result<Option<Entry<'_>>, ReadError>;
    /// To the last entry at or before `key`.
    fn seek_for_prev(&mut self, key: &[u8]) -> Result<Option<Entry<'_>>, ReadError>;
    /// One entry up; `None` before the first seek.
    fn next(&mut self) -> Result<Option<Entry<'_>>, ReadError>;
    /// One entry down; `None` before the first seek.
    fn prev(&mut self) -> Result<Option<Entry<'_>>, ReadError>;
    /// The entry it stands on, as the last move returned it.
    fn entry(&self) -> Option<Entry<'_>>;
}

/// The engine's range for a region's `[start, end)`, where an empty `end` is infinity.
pub fn data_range(start: &[u8], end: &[u8]) -> (Vec<u8>, Vec<u8>) {
    (keys::data_key(start), keys::data_end_key(end))
}
