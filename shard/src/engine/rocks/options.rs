//! RocksDB's settings: every one that differs from its default, and why.

use rocksdb::{
    BlockBasedOptions, BottommostLevelCompaction, Cache, ChecksumType, ColumnFamilyDescriptor, CompactOptions,
    CompactionDecision, DBCompressionType, Error, InfoLogger, LogLevel, Options,
};

use crate::engine::ttl::TOMBSTONE_V2;
use crate::engine::{TtlFilter, Verdict};
use mvcc::Cf;

/// The cache of uncompressed blocks that all shards of a node share.
#[derive(Clone)]
pub struct BlockCache {
    pub(super) cache: Cache,
    capacity_bytes: usize,
}

impl BlockCache {
    /// An empty cache for `capacity_bytes` of blocks, indexes and filters. It takes memory as it fills.
    ///
    /// RocksDB's HyperClock cache: a lookup takes no lock, where the LRU cache takes one per shard of it that all
    /// cores' reads would meet in. Without an estimate of the entry size its table grows by `mmap` as needed.
    pub fn new(capacity_bytes: usize) -> BlockCache {
        BlockCache { cache: Cache::new_hyper_clock_cache(capacity_bytes, 0), capacity_bytes }
    }

    /// What it was made for.
    pub fn capacity_bytes(&self) -> usize {
        self.capacity_bytes
    }

    /// What it holds now.
    pub fn used_bytes(&self) -> usize {
        self.cache.get_usage()
    }
}

/// What a shard may choose about its database.
#[derive(Clone, Debug)]
pub struct RocksOptions {
    /// Memtable size at which RocksDB flushes by itself, per family. The shard flushes long before: this is the limit
    /// if it does not. Default 512 MiB, twice the replay cap of a shard; memory is taken as it is written.
    pub memtable_bytes_max: usize,
    /// Threads for flushes and compactions of the whole process. Default 4: one flush and three compactions.
    pub background_jobs: i32,
    /// Expiry of raw values in compactions. Default none.
    pub ttl: Option<TtlFilter>,
}

impl Default for RocksOptions {
    fn default() -> RocksOptions {
        RocksOptions { memtable_bytes_max: 512 << 20, background_jobs: 4, ttl: None }
    }
}

/// Settings of the database.
pub(super) fn database(options: &RocksOptions) -> Result<Options, Error> {
    // The one setting that the binding has no function for. Without it the drop of the last handle would flush, on
    // whatever thread that is; `Engine::close` flushes where it is wanted.
    let mut db = Options::default().get_options_from_string("avoid_flush_during_shutdown=true")?;
    db.create_if_missing(true);
    db.create_missing_column_families(true);
    // All families reach the disk together or not at all. With the log off this is what makes the durable state a
    // prefix of the order of writes.
    db.set_atomic_flush(true);
    // Files are deleted and memtables freed by a background thread, not by the core that drops the last iterator.
    db.set_avoid_unnecessary_blocking_io(true);
    // Every table reader stays open: a cache-tier read then never meets one that it would have to open.
    db.set_max_open_files(-1);
    // One writer at a time (the core, or its helper while the core holds back), so a memtable that several threads
    // may fill at once would only cost.
    db.set_allow_concurrent_memtable_write(false);
    // Nobody to yield to, and no spinning.
    db.set_enable_write_thread_adaptive_yield(false);
    db.set_max_background_jobs(options.background_jobs);
    // A long compaction may use two of them.
    db.set_max_subcompactions(2);
    // Writeback in small steps, so that the raft log's syncs on the same disk do not wait behind a whole file.
    db.set_bytes_per_sync(1 << 20);
    // No thread that wakes to count.
    db.set_stats_dump_period_sec(0);
    db.set_stats_persist_period_sec(0);
    // Identity in the manifest: a copied database is recognised without the IDENTITY file.
    db.set_write_dbid_to_manifest(true);
    // Kept small: with many shards the manifests add up, and each open reads one.
    db.set_max_manifest_file_size(16 << 20);
    db.set_info_logger(InfoLogger::new_callback_logger(LogLevel::Warn, log));
    Ok(db)
}

/// RocksDB's warnings and errors go to the node's log.
fn log(level: LogLevel, message: &str) {
    let message = message.trim_end();
    match level {
        LogLevel::Error | LogLevel::Fatal => tracing::error!(target: "rocksdb", "{message}"),
        LogLevel::Warn => tracing::warn!(target: "rocksdb", "{message}"),
        LogLevel::Debug | LogLevel::Info | LogLevel::Header => {
            tracing::trace!(target: "rocksdb", "{message}");
        }
    }
}

/// The four families in the order of their numbers.
pub(super) fn families(options: &RocksOptions, cache: &BlockCache) -> Vec<ColumnFamilyDescriptor> {
    Cf::ALL.into_iter().map(|cf| ColumnFamilyDescriptor::new(cf.name(), family(cf, options, cache))).collect()
}

fn family(cf: Cf, options: &RocksOptions, cache: &BlockCache) -> Options {
    let mut family = Options::default();
    family.set_block_based_table_factory(&table(cf, &cache.cache));
    family.set_write_buffer_size(options.memtable_bytes_max);
    // A stall begins when all but one wait for a flush. Ours come one at a time, so this is slack for slow disks.
    family.set_max_write_buffer_number(6);
    // RocksDB would take an eighth of the memtable at once. Small, because there are four families a shard.
    family.set_arena_block_size(64 << 10);
    // Young files change soon, so they are cheap to write and to read; the last level holds nine tenths of the data.
    family.set_compression_per_level(&[
        DBCompressionType::None,
        DBCompressionType::None,
        DBCompressionType::Lz4,
        DBCompressionType::Lz4,
        DBCompressionType::Lz4,
        DBCompressionType::Lz4,
        DBCompressionType::Lz4,
    ]);
    family.set_bottommost_compression_type(match cf {
        Cf::Default | Cf::Write => DBCompressionType::Zstd,
        // Few and short-lived entries.
        Cf::Lock | Cf::Raft => DBCompressionType::Lz4,
    });
    // Levels sized from the last one upwards: at most about a tenth more space than the data.
    family.set_level_compaction_dynamic_level_bytes(true);
    family.set_target_file_size_base(match cf {
        // An index and a filter that are read whole on a miss stay at some 100 KiB.
        Cf::Default | Cf::Write => 32 << 20,
        Cf::Lock | Cf::Raft => 8 << 20,
    });
    family.set_max_bytes_for_level_base(256 << 20);
    // Stops of writes are for the shard to decide, which sees the same numbers; these are the last resort.
    family.set_level_zero_slowdown_writes_trigger(40);
    family.set_level_zero_stop_writes_trigger(60);
    family.set_soft_pending_compaction_bytes_limit(192 << 30);
    family.set_hard_pending_compaction_bytes_limit(1024 << 30);
    if let (Cf::Default, Some(ttl)) = (cf, options.ttl.clone().filter(TtlFilter::is_needed)) {
        family.set_compaction_filter("basalt.ttl", move |_level: u32, key: &[u8], value: &[u8]| {
            match ttl.judge(key, value) {
                Verdict::Keep => CompactionDecision::Keep,
                Verdict::Remove => CompactionDecision::Remove,
                Verdict::Bury => CompactionDecision::Change(TOMBSTONE_V2),
            }
        });
    }
    family
}

fn table(cf: Cf, cache: &Cache) -> BlockBasedOptions {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    table.set_block_size(16 << 10);
    // Checksums that know which file and place a block belongs to, so that a misplaced one is caught.
    table.set_format_version(6);
    // Indexes and filters count against the cache, so a node's memory is bounded however large its data; those of
    // level 0, which every read asks, stay.
    table.set_cache_index_and_filter_blocks(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    match cf {
        // Point reads. Ten bits a key: one needless block in a hundred. In the last level ribbon takes 30% less
        // memory for more CPU when a file is built; above it bloom.
        Cf::Default | Cf::Lock | Cf::Raft => {
            table.set_hybrid_ribbon_filter(10.0, 1);
            table.set_whole_key_filtering(true);
        }
        // Read by seeks to a key at a timestamp, which a filter of whole keys cannot answer.
        Cf::Write => {}
    }
    table
}

/// Settings for table files that leave the node or enter it by ingest: what TiKV's older RocksDB reads as well.
pub(super) fn portable_table() -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_size(16 << 10);
    table.set_format_version(5);
    table.set_checksum_type(ChecksumType::CRC32c);
    table.set_bloom_filter(10.0, false);
    let mut options = Options::default();
    options.set_block_based_table_factory(&table);
    options.set_compression_type(DBCompressionType::Lz4);
    options
}

/// A compaction that was asked for rewrites the last level too, which is where expired values are.
pub(super) fn full_compaction() -> CompactOptions {
    let mut options = CompactOptions::default();
    options.set_bottommost_level_compaction(BottommostLevelCompaction::Force);
    options
}
