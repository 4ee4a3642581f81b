//! The raft log of a shard: one append-only stream of blocks in preallocated segments, and the shard's only
//! write-ahead log.
//!
//! ```text
//!  append ──> open block ──close──> closed blocks ──commit: write, sync──> durable ──maintain──> segment recycled
//!             (memory)              (memory)                               (on disk)   (nothing live, or copied on)
//! ```
//!
//! - Records are buffered by [`RaftLog::append`] and made durable by [`RaftLog::commit`], all in one write where they
//!   fit into one segment. After a crash the log holds a prefix of what was appended, with all that was committed.
//! - Whether a bad block is a torn tail or damage is decided by witnesses, see `recover.rs`.
//! - What is live, and so what must stay, is counted in `index.rs`; `maintain.rs` recycles the rest.
//! - One write is in flight at a time. The format allows more: each block names its predecessor, and the highest
//!   sequence that was durable when it was written.
//!
//! What it is not: it knows nothing of raft's rules, of the engine, or of what a lifecycle payload means. The bytes
//! are described in docs/formats.md, "Raft log".

mod block;
mod disk;
mod index;
mod maintain;
mod open;
mod read;
mod record;
mod recover;
mod runs;
mod write;

use std::cell::{Cell, RefCell};
use std::time::Duration;

use base::{Instant, PeerId, RegionId, ShardId};
use executor::LogSync;

pub use disk::{Disk, DiskFile, Files, SyncProbe};
pub use maintain::Maintained;
pub use open::{Damage, EngineState, OpenError, Recovered, RecoveredPeer, RecoveryStats};
pub use read::ReadError;
pub use record::{HardState, Lifecycle, LifecycleKind, LogEffect, LogEntry, Position, Record, Scope};
pub use write::Durable;

use index::Index;
use write::{Gate, State};

/// Longest record in bytes. A raft entry of 8 MiB fits twice.
pub const RECORD_BYTES_MAX: usize = 16 << 20;

/// Settings of a log.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// Length of a segment file, a multiple of 4 KiB. Long enough that switching is rare, short enough that an idle
    /// shard takes little disk.
    pub segment_bytes: u64,
    /// Length in bytes at which a block ends and the next one begins, but for longer records. Reading one entry reads
    /// its whole block.
    pub block_bytes: usize,
    /// How a write is made durable; `None` lets a probe choose at every open.
    pub sync: Option<LogSync>,
    /// How much log without a flush the shard lets grow. Twice of it held back by old records makes
    /// [`RaftLog::maintain`] copy them forward.
    pub replay_cap_bytes: u64,
    /// Segment files kept ready, so that no commit waits for one to be written with zeros. The last of them is kept
    /// for restart and maintenance when the disk is full. At least 1.
    pub spare_segments: usize,
    /// Time without a commit after which the seal is due.
    pub seal_after: Duration,
    /// Runs in memory above which [`RaftLog::flushed`] forgets where flushed entries lie; 48 bytes each.
    pub index_runs_max: u64,
    /// Leaves the syncs out, for tests that must find what is lost then.
    pub planted_no_sync: bool,
}

impl LogConfig {
    /// Length in use above which what is live in the oldest segments is copied forward: twice the cap, less the spare
    /// segments. With the cap itself, which may be written until the next flush, all files stay within three caps.
    fn copy_above_bytes(&self) -> u64 {
        let spare = self.spare_segments as u64 * self.segment_bytes;
        (2 * self.replay_cap_bytes).saturating_sub(spare).max(self.replay_cap_bytes)
    }
}

impl Default for LogConfig {
    fn default() -> LogConfig {
        LogConfig {
            segment_bytes: 16 << 20,
            block_bytes: 256 << 10,
            sync: None,
            replay_cap_bytes: 256 << 20,
            spare_segments: 2,
            seal_after: Duration::from_millis(10),
            index_runs_max: 1 << 18,
            planted_no_sync: false,
        }
    }
}

/// Why the log does not take records.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// A write or a sync failed. What is durable is unknown, and every later call fails too: the node must stop.
    #[error("the raft log failed: {0}")]
    Failed(String),
    /// There is no room for another segment. What was appended stays in memory; a later commit may succeed.
    #[error("no room for another segment of the raft log: {0}")]
    DiskFull(String),
    /// The log was found damaged, and [`RaftLog::accept_damage`] was not called.
    #[error("the raft log is damaged and takes no records")]
    Damaged,
    /// The record is longer than [`RECORD_BYTES_MAX`].
    #[error("a record of {0} bytes is too long for the raft log")]
    TooLarge(usize),
    /// The record is about a peer that a newer one of its region has replaced.
    #[error("{peer:?} of {region:?} was replaced by a newer peer")]
    StalePeer {
        /// The region.
        region: RegionId,
        /// The peer of the record.
        peer: PeerId,
    },
    /// The entries do not follow the last one.
    #[error("entry {first_index} of {region:?} does not follow entry {last_index}")]
    Gap {
        /// The region.
        region: RegionId,
        /// Index of the first entry of the record.
        first_index: u64,
        /// Index of the last entry in the log.
        last_index: u64,
    },
}

/// Where a peer's log stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerSummary {
    /// The region's replica here.
    pub peer: PeerId,
    /// Its newest hard state.
    pub hard_state: Option<HardState>,
    /// The entry before the first one that can be read.
    pub truncated: Position,
    /// The last entry; `truncated` if there is none.
    pub last: Position,
    /// Whether durable records of it were lost.
    pub damaged: bool,
}

/// A shard's raft log. Used from one core; its calls may overlap, commits are done one after the other.
pub struct RaftLog<D: Disk = Files> {
    disk: D,
    config: LogConfig,
    shard: ShardId,
    state: RefCell<State<D::File>>,
    gate: Gate,
    maintaining: Cell<bool>,
}

impl<D: Disk> RaftLog<D> {
    /// Takes a record into memory; [`commit`](Self::commit) makes it durable. The caller bounds what is pending.
    ///
    /// Entries of more than [`LogConfig::block_bytes`] together become several records, a prefix of which may survive a crash.
    ///
    /// # Errors
    /// [`LogError`], and then nothing of the record was taken.
    pub fn append(&self, record: Record) -> Result<(), LogError> {
        let mut state = self.state.borrow_mut();
        state.check()?;
        state.check_record(&record)?;
        state.append(record, false)
    }

    /// Bytes appended that no commit has made durable.
    pub fn pending_bytes(&self) -> u64 {
        self.state.borrow().pending_bytes()
    }

    /// Notes what the engine made durable: each peer's applied index and the last lifecycle event that the flush
    /// contains. Entries and events up to there need not stay.
    pub fn flushed(&self, applied: impl IntoIterator<Item = (RegionId, PeerId, u64)>, event: u64) {
        let mut state = self.state.borrow_mut();
        state.index.flushed(applied, event);
        state.index.prune(self.config.index_runs_max);
    }

    /// When [`seal`](Self::seal) is due, if nothing is appended before; `None` if there is nothing to seal.
    pub fn next_seal(&self) -> Option<Instant> {
        let state = self.state.borrow();
        let due = !state.sealed && state.pending_bytes() == 0 && state.check().is_ok();
        due.then(|| state.last_write + self.config.seal_after)
    }

    /// Bytes of all segment files, spare ones included.
    pub fn size_bytes(&self) -> u64 {
        let state = self.state.borrow();
        state.used_bytes() + state.free_bytes()
    }

    /// Bytes of the segment files from the oldest that is needed to the newest.
    pub fn used_bytes(&self) -> u64 {
        self.state.borrow().used_bytes()
    }

    /// Bytes of records that must stay, about.
    pub fn live_bytes(&self) -> u64 {
        self.state.borrow().index.ledger.total.bytes
    }

    /// Bytes of entries and lifecycle records that no flush covers, about: what a restart would replay.
    pub fn unflushed_bytes(&self) -> u64 {
        self.state.borrow().index.unflushed_bytes()
    }

    /// Runs in the index, 48 bytes each.
    pub fn index_runs(&self) -> u64 {
        self.state.borrow().index.ledger.runs
    }

    /// Incarnation of this opening.
    pub fn incarnation(&self) -> u64 {
        self.state.borrow().incarnation
    }

    /// The shard that the log belongs to.
    pub fn shard(&self) -> ShardId {
        self.shard
    }

    /// Where the log of `region`'s newest peer stands.
    pub fn peer(&self, region: RegionId) -> Option<PeerSummary> {
        let state = self.state.borrow();
        let log = state.index.peers.get(&region)?;
        Some(PeerSummary {
            peer: log.peer,
            hard_state: log.hard_state,
            truncated: log.truncated,
            last: log.last(),
            damaged: log.damaged(),
        })
    }

    /// Term of the entry at `index` of `region`, also of the last truncated one; `None` if it is not in the log.
    pub fn term(&self, region: RegionId, index: u64) -> Option<u64> {
        self.state.borrow().index.peers.get(&region)?.term(index)
    }
}

impl<D: Disk> std::fmt::Debug for RaftLog<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RaftLog")
            .field("shard", &self.shard)
            .field("size_bytes", &self.size_bytes())
            .field("live_bytes", &self.live_bytes())
            .finish_non_exhaustive()
    }
}
