//! Settings of a shard, with the reason for each default.

use std::time::Duration;

use base::TokenBucket;

use super::lines::LineFaults;
use super::planted::PlantedFault;

/// How a shard splits, flushes and holds back.
#[derive(Clone, Debug)]
pub struct ShardConfig {
    /// A region above this many bytes is split (`coprocessor.region-max-size`).
    pub region_max_bytes: u64,
    /// The pieces that a split leaves (`coprocessor.region-split-size`).
    pub region_split_bytes: u64,
    /// A region above this many keys is split (`coprocessor.region-max-keys`).
    pub region_max_keys: u64,
    /// The pieces, in keys (`coprocessor.region-split-keys`).
    pub region_split_keys: u64,
    /// A region's size is measured again after this many bytes were written to it
    /// (`raftstore.region-split-check-diff`).
    pub split_check_diff_bytes: u64,
    /// Most pieces of one split (`coprocessor.batch-split-limit`). The rest follows with the next check.
    pub batch_split_limit: usize,
    /// Log that a restart may have to replay, per shard. 256 MiB replay within seconds.
    pub replay_cap_bytes: u64,
    /// A flush is due once this much of the log is not covered by one: half the cap, so that the other half has room
    /// while the flush runs.
    pub flush_at_bytes: u64,
    /// A flush is due this long after the oldest write that none covers, so that an idle shard's log becomes free.
    pub flush_age: Duration,
    /// Largest raft entry, in bytes (`raftstore.raft-entry-max-size`).
    pub entry_max_bytes: u64,
    /// Entries that raw batches are cut into, and the largest batch that a core writes to the engine itself: above
    /// it, a write holds the core for milliseconds.
    pub entry_cut_bytes: usize,
    /// Proposals waiting for the turn, in bytes, before writers are made to wait.
    pub inbox_max_bytes: usize,
    /// How long a writer waits for room before it is told that the server is busy.
    pub busy_wait: Duration,
    /// Raw keys end in an 8-byte timestamp (API V2), which a split key must not.
    pub versioned_raw_keys: bool,
    /// How long a log write may take before the shard's leaders are given up (`basalt.log-stall`). A healthy disk takes
    /// milliseconds, and after 700 ms of silence the others elect by themselves.
    pub log_stall: Duration,
    /// Time between raft ticks of peers with other voters.
    pub tick: Duration,
    /// Settings of raft itself, in ticks.
    pub raft: raftstore::RaftConfig,
    /// Prepare merges that are ordered.
    pub merges: bool,
    /// How long a peer hears of no leader before it asks the placement driver whether it is a member still, and between two
    /// such questions. A region without a quorum costs a question of each of its peers every so often.
    pub leader_missing: Duration,
    /// A replica that differs from its leader's ends the program instead of itself, for tests that must not miss it.
    pub halts_on_divergence: bool,
    /// What befalls raft messages on their way out, for tests.
    pub line_faults: Option<LineFaults>,
    /// A fault to make, for tests that must find it.
    pub planted: Option<PlantedFault>,
}

/// What the snapshots of a node may take of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotConfig {
    /// Bytes per second that all of them together read from its disks and write to them
    /// (`server.snap-io-max-bytes-per-sec`); 0 is no bound. A disk that serves requests besides has as much to spare, and a
    /// region of usual size is copied within seconds.
    pub bytes_per_second: u64,
    /// One with at most so many bytes of keys and values is written as one batch, without files and flushes. It is a core's
    /// work, so not more than a core may write by itself.
    pub small_bytes: u64,
}

impl SnapshotConfig {
    /// The bandwidth, of which a tenth of a second is saved up.
    pub(crate) fn bucket(&self) -> TokenBucket {
        TokenBucket::new(self.bytes_per_second, self.bytes_per_second / 10)
    }
}

impl Default for SnapshotConfig {
    fn default() -> Self {
        SnapshotConfig { bytes_per_second: 100 << 20, small_bytes: 64 << 10 }
    }
}

impl ShardConfig {
    pub(crate) fn is_planted(&self, fault: PlantedFault) -> bool {
        self.planted == Some(fault)
    }
}

impl Default for ShardConfig {
    fn default() -> Self {
        ShardConfig {
            region_max_bytes: 384 << 20,
            region_split_bytes: 256 << 20,
            region_max_keys: 3_840_000,
            region_split_keys: 2_560_000,
            split_check_diff_bytes: 16 << 20,
            batch_split_limit: 10,
            replay_cap_bytes: 256 << 20,
            flush_at_bytes: 128 << 20,
            flush_age: Duration::from_secs(600),
            entry_max_bytes: 8 << 20,
            entry_cut_bytes: 256 << 10,
            inbox_max_bytes: 64 << 20,
            busy_wait: Duration::from_secs(1),
            versioned_raw_keys: false,
            log_stall: Duration::from_millis(500),
            tick: Duration::from_millis(100),
            raft: raftstore::RaftConfig::default(),
            merges: true,
            leader_missing: Duration::from_secs(300),
            halts_on_divergence: false,
            line_faults: None,
            planted: None,
        }
    }
}
