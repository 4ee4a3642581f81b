//! RocksDB behind [`Engine`]: its log off, its families flushed together, its waits made visible.
//!
//! Open databases on a helper: RocksDB's background threads are started by the first one that is opened and inherit
//! its thread's CPUs. The choice of the binding stands in `docs/decisions/0001-rocksdb-binding.md`.

mod options;
mod owned;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use bytes::Bytes;
use mvcc::{Cf, ReadError};
use rocksdb::properties as property;
use rocksdb::{DB, ErrorKind, FlushOptions, IngestExternalFileOptions, Range, SstFileWriter, WriteOptions};

use super::{EncodedBatch, Engine, EngineError, EngineStats, TableInfo, Tier, WriteBatch, WriteError, WriteMode};

pub use options::{BlockCache, RocksOptions};
use owned::Handle;
pub use owned::{RocksIter, RocksSnapshot};

/// What a skiplist entry takes beside its key and value: node, tower, length prefixes, sequence number.
const MEMTABLE_ENTRY_BYTES: u64 = 56;

/// A shard's RocksDB.
#[derive(Clone)]
pub struct RocksEngine {
    shared: Arc<Shared>,
}

struct Shared {
    core_writes: WriteOptions,
    helper_writes: WriteOptions,
    /// Helpers inside a call that a core's write would wait behind.
    helpers_inside: AtomicU32,
    memtable_bytes: AtomicU64,
    flushed_sequence: AtomicU64,
    links: AtomicU64,
    closed: AtomicBool,
    cache: BlockCache,
    handle: Arc<Handle>,
}

/// While it lives, cores' writes are refused.
struct Inside<'a>(&'a AtomicU32);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Release);
    }
}

impl RocksEngine {
    /// Opens the database in the folder `path`, or creates it. Helpers only.
    pub fn open(path: &Path, cache: &BlockCache, options: &RocksOptions) -> Result<RocksEngine, EngineError> {
        let db = DB::open_cf_descriptors(
            &options::database(options).map_err(engine_error)?,
            path,
            options::families(options, cache),
        )
        .map_err(engine_error)?;
        let handle = Handle::new(db).ok_or_else(|| EngineError::Corruption("a column family is missing".into()))?;
        check_encoding(&handle)?;
        let mut core_writes = WriteOptions::default();
        core_writes.disable_wal(true);
        core_writes.set_no_slowdown(true);
        let mut helper_writes = WriteOptions::default();
        helper_writes.disable_wal(true);
        Ok(RocksEngine {
            shared: Arc::new(Shared {
                core_writes,
                helper_writes,
                helpers_inside: AtomicU32::new(0),
                memtable_bytes: AtomicU64::new(0),
                flushed_sequence: AtomicU64::new(0),
                links: AtomicU64::new(0),
                closed: AtomicBool::new(false),
                cache: cache.clone(),
                handle,
            }),
        })
    }

    fn db(&self) -> &DB {
        self.shared.handle.db()
    }

    fn hold_cores_back(&self) -> Inside<'_> {
        self.shared.helpers_inside.fetch_add(1, Ordering::Acquire);
        Inside(&self.shared.helpers_inside)
    }

    fn check_open(&self) -> Result<(), EngineError> {
        if self.shared.closed.load(Ordering::Acquire) { Err(EngineError::Closed) } else { Ok(()) }
    }

    /// Hard links beside `files`, for RocksDB to move into its folder: the files themselves stay, so that an ingest
    /// cut short by a crash can be done again.
    fn link_all(&self, files: &[PathBuf]) -> Result<Vec<PathBuf>, EngineError> {
        let mut links = Vec::with_capacity(files.len());
        for file in files {
            let number = self.shared.links.fetch_add(1, Ordering::Relaxed);
            let mut name = file.as_os_str().to_owned();
            name.push(format!(".ingest-{number}"));
            let link = PathBuf::from(name);
            // One that a crash left behind.
            let _ = fs::remove_file(&link);
            let made = fs::hard_link(file, &link);
            links.push(link);
            if let Err(error) = made {
                unlink(&links);
                return Err(io_error(file, &error));
            }
        }
        Ok(links)
    }
}

impl Engine for RocksEngine {
    type Snapshot = RocksSnapshot;
    type Batch = EncodedBatch;

    fn write(&self, batch: EncodedBatch, mode: WriteMode) -> Result<(), WriteError<EncodedBatch>> {
        self.check_open()?;
        let (options, _inside) = match mode {
            WriteMode::Core if self.shared.helpers_inside.load(Ordering::Acquire) > 0 => {
                return Err(WriteError::Incomplete(batch));
            }
            WriteMode::Core => (&self.shared.core_writes, None),
            WriteMode::Helper => (&self.shared.helper_writes, Some(self.hold_cores_back())),
        };
        let encoded = rocksdb::WriteBatch::from_data(batch.encoded());
        match self.db().write_opt(encoded, options) {
            Ok(()) => {
                let bytes = batch.data_bytes() as u64 + batch.count() as u64 * MEMTABLE_ENTRY_BYTES;
                self.shared.memtable_bytes.fetch_add(bytes, Ordering::Relaxed);
                Ok(())
            }
            // "Incomplete" is also how a stopped database wraps its background error.
            Err(error) if error.kind() == ErrorKind::Incomplete && error.as_ref().ends_with("stall") => {
                Err(WriteError::Incomplete(batch))
            }
            Err(error) => Err(WriteError::Failed(engine_error(error))),
        }
    }

    fn snapshot(&self) -> RocksSnapshot {
        RocksSnapshot::new(self.shared.handle.clone())
    }

    fn get(&self, cf: Cf, key: &[u8], tier: Tier) -> Result<Option<Bytes>, ReadError> {
        self.shared.handle.get(cf, key, tier)
    }

    fn multi_get<K: AsRef<[u8]>>(&self, cf: Cf, keys: &[K], tier: Tier) -> Vec<Result<Option<Bytes>, ReadError>> {
        self.shared.handle.multi_get(cf, keys, tier)
    }

    fn flush(&self) -> Result<(), EngineError> {
        self.check_open()?;
        let sequence = self.last_sequence();
        let memtable = &self.shared.memtable_bytes;
        let bytes = memtable.swap(0, Ordering::Relaxed);
        let mut options = FlushOptions::default();
        options.set_wait(true);
        let families = self.shared.handle.families();
        self.db().flush_cfs_opt(&families.each_ref().map(|family| *family), &options).map_err(|error| {
            memtable.fetch_add(bytes, Ordering::Relaxed);
            engine_error(error)
        })?;
        self.shared.flushed_sequence.fetch_max(sequence, Ordering::AcqRel);
        Ok(())
    }

    fn build_table<I>(&self, _cf: Cf, path: &Path, entries: I) -> Result<TableInfo, EngineError>
    where
        I: IntoIterator<Item = (Bytes, Bytes)>,
    {
        // Never through an older file of that name: it may be one that was ingested, whose bytes are now also a file of
        // the database.
        self.remove_table(path)?;
        let options = options::portable_table();
        let mut writer = SstFileWriter::create(&options);
        writer.open(path).map_err(engine_error)?;
        let mut count = 0;
        for (key, value) in entries {
            writer.put(&key, &value).map_err(engine_error)?;
            count += 1;
        }
        writer.finish().map_err(engine_error)?;
        Ok(TableInfo { entries: count, file_bytes: writer.file_size() })
    }

    fn tables(&self, folder: &Path) -> Result<Vec<PathBuf>, EngineError> {
        let entries = match fs::read_dir(folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(|error| io_error(folder, &error))?,
        };
        let mut tables = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|error| io_error(folder, &error))?;
            if entry.file_type().is_ok_and(|kind| kind.is_file()) {
                tables.push(entry.path());
            }
        }
        tables.sort();
        Ok(tables)
    }

    fn remove_table(&self, path: &Path) -> Result<(), EngineError> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io_error(path, &error)),
            _ => Ok(()),
        }
    }

    fn ingest(&self, cf: Cf, files: &[PathBuf]) -> Result<(), EngineError> {
        self.check_open()?;
        if files.is_empty() {
            return Ok(());
        }
        let links = self.link_all(files)?;
        let mut options = IngestExternalFileOptions::default();
        options.set_move_files(true);
        let _inside = self.hold_cores_back();
        self.db().ingest_external_file_cf_opts(self.shared.handle.family(cf), &options, links.clone()).map_err(
            |error| {
                unlink(&links);
                engine_error(error)
            },
        )
    }

    fn delete_files_in_range(&self, cf: Cf, start: &[u8], end: &[u8]) -> Result<(), EngineError> {
        self.check_open()?;
        let last = below(end);
        if !end.is_empty() && last.as_slice() < start {
            return Ok(());
        }
        let _inside = self.hold_cores_back();
        self.db().delete_file_in_range_cf(self.shared.handle.family(cf), start, &last).map_err(engine_error)
    }

    fn compact(&self, cf: Cf, start: &[u8], end: &[u8]) -> Result<(), EngineError> {
        self.check_open()?;
        fn bound(key: &[u8]) -> Option<&[u8]> {
            (!key.is_empty()).then_some(key)
        }
        self.db().compact_range_cf_opt(
            self.shared.handle.family(cf),
            bound(start),
            bound(end),
            &options::full_compaction(),
        );
        Ok(())
    }

    fn approximate_bytes(&self, cf: Cf, ranges: &[(&[u8], &[u8])]) -> Vec<u64> {
        let ranges: Vec<Range<'_>> =
            ranges.iter().map(|(start, end)| Range::new(start, if end.is_empty() { INFINITY } else { end })).collect();
        self.db().get_approximate_sizes_cf(self.shared.handle.family(cf), &ranges)
    }

    fn memtable_bytes(&self) -> u64 {
        self.shared.memtable_bytes.load(Ordering::Relaxed)
    }

    fn disk_bytes(&self) -> u64 {
        self.sum(property::TOTAL_SST_FILES_SIZE)
    }

    fn last_sequence(&self) -> u64 {
        self.db().latest_sequence_number()
    }

    fn flushed_sequence(&self) -> u64 {
        self.shared.flushed_sequence.load(Ordering::Acquire)
    }

    fn stats(&self) -> EngineStats {
        let one = |name| self.property(Cf::Default, name);
        let l0_files = Cf::ALL.iter().map(|cf| self.property(*cf, property::num_files_at_level(0))).max();
        EngineStats {
            writes_stopped: one(property::IS_WRITE_STOPPED) != 0,
            delayed_bytes_per_second: one(property::ACTUAL_DELAYED_WRITE_RATE),
            background_errors: one(property::BACKGROUND_ERRORS),
            pending_compaction_bytes: self.sum(property::ESTIMATE_PENDING_COMPACTION_BYTES),
            l0_files: l0_files.unwrap_or(0),
            memtable_bytes: self.sum(property::CUR_SIZE_ALL_MEM_TABLES),
            immutable_memtables: self.sum(property::NUM_IMMUTABLE_MEM_TABLE),
            block_cache_bytes: self.shared.cache.cache.get_usage() as u64,
            block_cache_pinned_bytes: self.shared.cache.cache.get_pinned_usage() as u64,
            background_jobs: one(property::NUM_RUNNING_FLUSHES) + one(property::NUM_RUNNING_COMPACTIONS),
            disk_bytes: self.disk_bytes(),
            snapshots: one(property::NUM_SNAPSHOTS),
            last_sequence: self.last_sequence(),
        }
    }

    fn close(&self) -> Result<(), EngineError> {
        let flushed = self.flush();
        self.shared.closed.store(true, Ordering::Release);
        self.db().cancel_all_background_work(true);
        flushed
    }
}

impl RocksEngine {
    /// A number of RocksDB's about one family (or, for some, about the database); 0 if it has none.
    fn property(&self, cf: Cf, name: impl rocksdb::CStrLike) -> u64 {
        self.db().property_int_value_cf(self.shared.handle.family(cf), name).ok().flatten().unwrap_or(0)
    }

    fn sum(&self, name: &rocksdb::properties::PropName) -> u64 {
        Cf::ALL.iter().map(|cf| self.property(*cf, name)).sum()
    }
}

/// Above every key that a shard has: they begin with `z` or with `0x01`.
const INFINITY: &[u8] = &[0xFF; 8];

/// A key below `end` and near it. RocksDB's deletion of files takes its upper bound as *inclusive*, and a file that
/// ends in the first key of the next region must stay. Between the result and `end` lie at most keys whose files are
/// then kept needlessly.
fn below(end: &[u8]) -> Vec<u8> {
    match end.split_last() {
        None => INFINITY.to_vec(),
        Some((0, rest)) => rest.to_vec(),
        Some((last, rest)) => [rest, &[last - 1], INFINITY].concat(),
    }
}

/// Compares [`EncodedBatch`] with the binding's encoder on this database's families: their numbers depend on the order
/// in which they were once created.
fn check_encoding(handle: &Handle) -> Result<(), EngineError> {
    let mut theirs = rocksdb::WriteBatch::default();
    let mut ours = EncodedBatch::new();
    for cf in Cf::ALL {
        let family = handle.family(cf);
        theirs.put_cf(family, b"key", vec![1; 200]);
        theirs.delete_cf(family, b"key");
        theirs.delete_range_cf(family, b"a", b"b");
        ours.put(cf, b"key", &[1; 200]);
        ours.delete(cf, b"key");
        ours.delete_range(cf, b"a", b"b");
    }
    if theirs.data() == ours.encoded() {
        Ok(())
    } else {
        let what = "the column families were created in another order, or batches have another form";
        Err(EngineError::Corruption(what.into()))
    }
}

fn unlink(links: &[PathBuf]) {
    for link in links {
        // Those that were not made, or were moved, are not there.
        let _ = fs::remove_file(link);
    }
}

fn io_error(path: &Path, error: &std::io::Error) -> EngineError {
    let message = format!("{}: {error}", path.display());
    if error.kind() == std::io::ErrorKind::StorageFull {
        EngineError::NoSpace(message)
    } else {
        EngineError::Failed(message)
    }
}

fn engine_error(error: rocksdb::Error) -> EngineError {
    let kind = error.kind();
    let message = error.into_string();
    match kind {
        ErrorKind::Corruption => EngineError::Corruption(message),
        _ if message.contains("No space left") => EngineError::NoSpace(message),
        _ => EngineError::Failed(message),
    }
}

fn read_error(error: rocksdb::Error) -> ReadError {
    match error.kind() {
        ErrorKind::Incomplete => ReadError::NotCached,
        _ => ReadError::Failed(error.into_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_are_refused_while_a_helper_is_inside() {
        let folder = tempfile::tempdir().expect("a folder");
        let engine = RocksEngine::open(folder.path(), &BlockCache::new(1 << 20), &RocksOptions::default())
            .expect("the database opens");
        let batch = || {
            let mut batch = engine.batch();
            batch.put(Cf::Default, b"zk", b"v");
            batch
        };
        let inside = engine.hold_cores_back();
        assert!(matches!(engine.write(batch(), WriteMode::Core), Err(WriteError::Incomplete(_))));
        assert!(engine.write(batch(), WriteMode::Helper).is_ok());
        drop(inside);
        assert!(engine.write(batch(), WriteMode::Core).is_ok());
        assert_eq!(engine.last_sequence(), 2);
    }

    #[test]
    fn the_key_below_an_end_is_below_it_and_above_what_lies_lower() {
        for end in [b"{".as_slice(), b"zk", b"zk\0", b"z\xff", b"z\0\0"] {
            let last = below(end);
            assert!(last.as_slice() < end, "{end:?}");
            assert!(last.as_slice() >= &end[..end.len() - 1], "{end:?}");
        }
        assert!(below(b"zb").as_slice() > b"za\xff\xff".as_slice());
    }
}
