//! One shard at work: the turn, and what others may ask of it.
//!
//! ```text
//!  inbox ─▶ step all ─▶ one log write ─▶ persisted ─▶ apply to the engine ─▶ answers
//!    ▲                     (awaits)                      (awaits if refused)     │
//!    └──────────── meanwhile new inputs gather: the next turn takes them all ◀───┘
//! ```
//!
//! The turn is one task and owns the raft log. Reads do not pass through it: they look at the peer's state, take an
//! engine snapshot and go. No borrow of `peers` is held across an await.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use base::{Instant, PeerId, RegionId, ShardId, StoreId, TokenBucket};
use bytes::Bytes;
use futures_channel::oneshot;
use mvcc::Modify;
use proto::rpc::LocalFuture;
use proto::{kvrpcpb, metapb, raft_cmdpb, raft_serverpb};
use raftstore::command;
use raftstore::eraftpb::ConfChangeV2;

use super::config::ShardConfig;
use super::directory::{Tombstone, Tombstones};
use super::disk::{DiskUsage, FullStores};
use super::error::RegionError;
use super::lease::ReadReply;
use super::lifecycle::{Departure, EventReply};
use super::mail::{PeerView, RegionReport, ShardDescription};
use super::peer::{Done, PeerState, Phase, Waiter, check_store};
use super::planted::PlantedFault;
use super::records::{ApplyingRecord, HomeRecord};
use super::split::Measured;
use super::turn::FlushMark;
use super::work::RegionWork;
use crate::engine::Engine;
use crate::log::{HardState, LogEntry};

/// Inputs that may wait before raft messages are dropped. The bytes of each are bounded by
/// [`raftstore::RaftConfig::message_bytes_max`] and those in flight per follower.
const RAFT_INBOX_MAX: usize = 8192;

/// What a shard tells its core.
pub trait Outlet {
    /// A leader reports its region.
    fn report(&self, report: RegionReport);
    /// A split was applied; all resulting regions in key order. `leads`: here is the leader, who tells PD.
    fn split(&self, shard: ShardId, leads: bool, regions: Vec<metapb::Region>, bytes: u64);
    /// `region` is too large: it should be split at `keys`.
    fn split_due(&self, shard: ShardId, region: metapb::Region, keys: Vec<Vec<u8>>);
    /// The shard cannot go on; the process must end without acknowledging anything more.
    fn failed(&self, shard: ShardId, why: String);
    /// A peer here has begun to lead.
    fn leads(&self, _region: RegionId, _peer: PeerId, _term: u64) {}
    /// A raft message leaves for another store. It may be lost on its way.
    fn send_raft(&self, _to: StoreId, _letter: raft_serverpb::RaftMessage) {}
    /// The way to another store, for a snapshot; nothing if the store is unknown.
    fn channel(&self, _store: StoreId) -> LocalFuture<Option<net::Channel>> {
        Box::pin(std::future::ready(None))
    }
    /// The bandwidth that all snapshots of the node share.
    fn snapshot_io(&self) -> Arc<TokenBucket> {
        Arc::new(TokenBucket::unbounded())
    }
    /// How full the node's disk is.
    fn disk(&self) -> DiskUsage {
        DiskUsage::Normal
    }
    /// A shard's log does not answer, or does so again.
    fn stalled(&self, _is_stalled: bool) {}
    /// A leader is about to serve its region.
    fn begins_to_lead(&self) {}
    /// A peer has heard of no leader for long.
    fn leaderless(&self, _shard: ShardId, _peer: PeerView) {}
    /// A source and its target, which had this version when the merge was prepared, are to be on one shard.
    fn bring_together(&self, _source: RegionId, _target: RegionId, _version: u64) {}
    /// Another member of a region here tells that the region has merged into `target`, as that was before.
    fn left_behind(&self, _shard: ShardId, _region: RegionId, _peer: PeerId, _target: metapb::Region) {}
    /// A merge, or a step of one, gave a region another range or version.
    fn reranged(&self, _shard: ShardId, _region: metapb::Region, _bytes: u64) {}
    /// A peer ended, durably.
    fn ended(&self, _shard: ShardId, _region: RegionId, _tombstone: Tombstone) {}
}

/// A region's data at one moment, for a read.
pub struct RegionRead<E: Engine> {
    /// The region.
    pub region: Arc<metapb::Region>,
    /// The engine at this moment.
    pub snapshot: E::Snapshot,
    /// Index of the last entry that the snapshot contains.
    pub applied_index: u64,
    /// The term in which this peer led.
    pub term: u64,
}

/// Counters of one shard.
#[derive(Debug, Default)]
pub struct ShardMetrics {
    /// Turns that had something to do.
    pub turns_total: Cell<u64>,
    /// Entries proposed.
    pub proposals_total: Cell<u64>,
    /// Entries applied.
    pub applied_total: Cell<u64>,
    /// Log commits, each one durable write.
    pub log_commits_total: Cell<u64>,
    /// Engine writes that were refused for lack of room and tried again.
    pub engine_refusals_total: Cell<u64>,
    /// Flushes that the shard asked for.
    pub flushes_total: Cell<u64>,
    /// Splits applied.
    pub splits_total: Cell<u64>,
    /// Regions that arrived from another shard.
    pub moves_in_total: Cell<u64>,
    /// Regions that took over a neighbour's range.
    pub merges_total: Cell<u64>,
    /// Regions whose data came at once: as files, or in its record.
    pub ingests_total: Cell<u64>,
    /// Raft messages that were sent.
    pub raft_sent_total: Cell<u64>,
    /// Raft messages that came in for a peer that is here.
    pub raft_received_total: Cell<u64>,
    /// Raft messages that were dropped because too much waited.
    pub raft_dropped_total: Cell<u64>,
    /// Times that a leader without a lease, or a follower for a read, asked a quorum.
    pub read_index_total: Cell<u64>,
    /// Replicas that were found to differ from their leader's.
    pub divergence_total: Cell<u64>,
    /// Snapshots that were begun.
    pub snapshots_sent_total: Cell<u64>,
    /// Bytes of keys and values that were read for them, each when its part of the node's bandwidth came.
    pub snapshot_read_bytes_total: Cell<u64>,
    /// Entries of other leaders that were not taken because the disk is exhausted.
    pub disk_refused_total: Cell<u64>,
    /// Times that the log took too long for its leaders to stay.
    pub log_stalls_total: Cell<u64>,
    /// Bytes of log on disk.
    pub log_bytes: Cell<u64>,
    /// Bytes of log that a restart would replay.
    pub log_unflushed_bytes: Cell<u64>,
    /// Bytes of proposals that wait for the turn.
    pub inbox_bytes: Cell<u64>,
}

/// Adds to a counter.
pub(crate) fn add(cell: &Cell<u64>, by: u64) {
    cell.set(cell.get() + by);
}

pub(crate) enum Body {
    Write(Bytes),
    Admin(Bytes),
    ConfChange(ConfChangeV2),
}

impl Body {
    /// What it counts for while it waits.
    pub(crate) fn len(&self) -> usize {
        match self {
            Body::Write(data) | Body::Admin(data) => data.len(),
            Body::ConfChange(change) => change.context.len(),
        }
    }
}

pub(crate) enum Input {
    Propose {
        region: RegionId,
        body: Body,
        reply: oneshot::Sender<Result<Done, RegionError>>,
    },
    Tick,
    /// A peer that is alone in its group leads it.
    Campaign(RegionId),
    /// A region was split off one that leads here: its peer is to lead as well.
    Lead(RegionId),
    Raft(Box<raft_serverpb::RaftMessage>),
    Fetched {
        region: RegionId,
        low: u64,
        entries: Option<Vec<LogEntry>>,
    },
    SnapshotSent {
        region: RegionId,
        to: PeerId,
    },
    Read {
        region: RegionId,
        reply: ReadReply,
    },
    Transfer {
        region: RegionId,
        to: PeerId,
    },
    /// Letters to a peer on another store got lost.
    Unreachable {
        region: RegionId,
        peer: PeerId,
    },
    /// The peer is no member any more.
    Leave {
        region: RegionId,
        peer: PeerId,
    },
    Freeze {
        region: RegionId,
        reply: oneshot::Sender<Result<Departure, RegionError>>,
    },
    Unfreeze(RegionId),
    /// A source whose merge is prepared is to be looked at.
    LookAtMerge(RegionId),
    /// A step of a source's merge that was proposed here is over.
    MergeTried(RegionId),
    /// A peer that led before it moved here is to ask for that back.
    Reclaim(RegionId),
    Create {
        region: Box<metapb::Region>,
        reply: oneshot::Sender<Result<(), RegionError>>,
    },
    Install {
        home: Box<HomeRecord>,
        tail: Vec<LogEntry>,
        reply: oneshot::Sender<Result<(), RegionError>>,
    },
    End {
        region: RegionId,
        reply: oneshot::Sender<Result<(), RegionError>>,
    },
    Destroy {
        region: RegionId,
        peer: PeerId,
        reply: EventReply,
    },
    Ingest {
        record: Box<ApplyingRecord>,
        reply: EventReply,
    },
    Measured {
        region: RegionId,
        version: u64,
        result: Result<Measured, String>,
    },
    Flushed {
        applied: Vec<FlushMark>,
        last_event: u64,
        result: Result<(), String>,
    },
    Flush {
        reply: oneshot::Sender<()>,
    },
    Close {
        reply: oneshot::Sender<()>,
    },
}

/// One RocksDB, one raft log, and the peers in them. See the module's text.
pub struct Shard<E: Engine> {
    /// Which.
    pub id: ShardId,
    /// The node's store id.
    pub store: StoreId,
    /// Its engine.
    pub engine: E,
    /// Settings.
    pub config: ShardConfig,
    /// Where table files lie that are to be ingested. All that lies there at an open is removed.
    pub snap_dir: PathBuf,
    /// Counters.
    pub metrics: ShardMetrics,
    pub(crate) peers: RefCell<BTreeMap<RegionId, PeerState>>,
    /// The highest peer of each region that was destroyed here.
    pub(crate) tombstones: RefCell<Tombstones>,
    /// Other stores that are full, as their letters say.
    pub(crate) full_stores: RefCell<FullStores>,
    pub(crate) inbox: RefCell<VecDeque<Input>>,
    pub(crate) inbox_bytes: Cell<usize>,
    pub(crate) wake: executor::Notify,
    pub(crate) outlet: Rc<dyn Outlet>,
    pub(crate) last_event: Cell<u64>,
    /// Its log lost durable records and takes no more.
    pub(crate) is_damaged: bool,
    /// Snapshots that are being sent.
    pub(crate) sending: Cell<usize>,
    /// A tick is in the inbox.
    pub(crate) tick_waits: Cell<bool>,
    /// Since when the turn has waited for the log.
    pub(crate) log_busy_since: Cell<Option<Instant>>,
    /// It has waited too long.
    pub(crate) stalled: Cell<bool>,
    pub(crate) closing: Cell<bool>,
    /// True after the last turn.
    pub(crate) finished: Cell<bool>,
    pub(crate) seed: u64,
}

impl<E: Engine> Shard<E> {
    /// Puts `input` into the next turn.
    ///
    /// After the last turn it is dropped, and with it the place of its answer: whoever waits there learns that the shard
    /// is closed.
    pub(crate) fn push(&self, input: Input) {
        if self.finished.get() {
            return;
        }
        self.inbox.borrow_mut().push_back(input);
        self.wake.notify();
    }

    /// Number of regions here.
    pub fn regions(&self) -> usize {
        self.peers.borrow().len()
    }

    /// Checks `context` and gives a view of its region. The caller looks the region up on another core if the error
    /// is [`RegionError::Moving`] or [`RegionError::RegionNotFound`].
    ///
    /// # Errors
    /// Every [`RegionError`] that the checks of a read can meet.
    pub fn read(&self, context: &kvrpcpb::Context) -> Result<RegionRead<E>, RegionError> {
        check_store(self.store, context)?;
        if self.finished.get() {
            // Nobody hears here any more who leads.
            return Err(RegionError::Closing);
        }
        let region = RegionId(context.region_id);
        let peers = self.peers.borrow();
        let peer = peers.get(&region).ok_or(RegionError::RegionNotFound(region))?;
        let is_follower = |error: &RegionError| matches!(error, RegionError::NotLeader { .. });
        match peer.check(self.store, context) {
            Err(error) if is_follower(&error) && self.config.is_planted(PlantedFault::FollowerReads) => {}
            checked => checked?,
        }
        peer.work.begin();
        Ok(RegionRead {
            region: peer.meta.region.clone(),
            snapshot: self.engine.snapshot(),
            applied_index: peer.meta.applied_index,
            term: peer.term,
        })
    }

    /// Notes what a read returned, for PD's picture of the load.
    pub fn note_read(&self, region: RegionId, keys: u64, bytes: u64) {
        if let Some(peer) = self.peers.borrow_mut().get_mut(&region) {
            peer.traffic.keys_read += keys;
            peer.traffic.bytes_read += bytes;
            peer.work.carry(keys, bytes);
        }
    }

    /// Replicates `changes` and applies them; answers when they are in the engine. They become one entry if they
    /// fit into `entry_cut_bytes` or must be `atomic`, else several in order.
    ///
    /// # Errors
    /// Every [`RegionError`] that the checks can meet. [`RegionError::Undetermined`] if the shard closed meanwhile.
    pub async fn write(
        &self,
        context: &kvrpcpb::Context,
        changes: Vec<Modify>,
        atomic: bool,
        deadline: Option<Instant>,
    ) -> Result<Done, RegionError> {
        self.write_in(None, context, changes, atomic, deadline).await
    }

    /// As [`write`](Self::write), if this peer has led without a break since `term`: what was read then still holds but
    /// for what this peer wrote itself.
    ///
    /// # Errors
    /// As [`write`](Self::write), and [`RegionError::NotLeader`] in another term.
    pub async fn write_in(
        &self,
        term: Option<u64>,
        context: &kvrpcpb::Context,
        changes: Vec<Modify>,
        atomic: bool,
        deadline: Option<Instant>,
    ) -> Result<Done, RegionError> {
        let entries = self.cut(RegionId(context.region_id), changes, atomic)?;
        self.wait_for_room(deadline).await?;
        let mut answers = Vec::with_capacity(entries.len());
        for ops in &entries {
            answers.push(self.propose_write(term, context, ops)?);
        }
        let mut done = Done::default();
        for answer in answers {
            done = answer.await.map_err(|_| RegionError::Undetermined)??;
        }
        Ok(done)
    }

    fn cut(
        &self,
        region: RegionId,
        changes: Vec<Modify>,
        atomic: bool,
    ) -> Result<Vec<Vec<command::WriteOp>>, RegionError> {
        let mut entries = vec![Vec::new()];
        let mut bytes = 0;
        for change in changes {
            let size = change.data_bytes() + 32;
            if bytes > 0 && bytes + size > self.config.entry_cut_bytes && !atomic {
                entries.push(Vec::new());
                bytes = 0;
            }
            bytes += size;
            if bytes as u64 > self.config.entry_max_bytes {
                return Err(RegionError::EntryTooLarge { region, entry_bytes: bytes as u64 });
            }
            if let Some(entry) = entries.last_mut() {
                entry.push(write_op(change));
            }
        }
        Ok(entries)
    }

    async fn wait_for_room(&self, deadline: Option<Instant>) -> Result<(), RegionError> {
        let started = executor::now();
        while self.inbox_bytes.get() > self.config.inbox_max_bytes {
            let now = executor::now();
            if deadline.is_some_and(|deadline| now >= deadline) {
                return Err(RegionError::DeadlineExceeded);
            }
            if now.since(started) > self.config.busy_wait {
                return Err(RegionError::ServerIsBusy { reason: "raftstore is busy".into(), backoff_ms: 100 });
            }
            executor::sleep(std::time::Duration::from_millis(1)).await;
        }
        Ok(())
    }

    fn propose_write(
        &self,
        term: Option<u64>,
        context: &kvrpcpb::Context,
        ops: &[command::WriteOp],
    ) -> Result<oneshot::Receiver<Result<Done, RegionError>>, RegionError> {
        check_store(self.store, context)?;
        let region = RegionId(context.region_id);
        let data = {
            let peers = self.peers.borrow();
            let peer = peers.get(&region).ok_or(RegionError::RegionNotFound(region))?;
            let is_old = |error: &RegionError| matches!(error, RegionError::EpochNotMatch { .. });
            match peer.check(self.store, context) {
                Err(error) if is_old(&error) && self.config.is_planted(PlantedFault::EpochUnchecked) => {}
                checked => checked?,
            }
            self.check_writable(peer)?;
            self.check_disk(peer, context)?;
            if term.is_some_and(|term| term != peer.term) {
                return Err(RegionError::NotLeader { region, leader: None });
            }
            command::encode_write(&header(peer), ops)
        };
        if data.len() as u64 > self.config.entry_max_bytes {
            return Err(RegionError::EntryTooLarge { region, entry_bytes: data.len() as u64 });
        }
        Ok(self.propose(region, Body::Write(data)))
    }

    pub(crate) fn check_writable(&self, peer: &PeerState) -> Result<(), RegionError> {
        if self.closing.get() {
            return Err(RegionError::Closing);
        }
        self.check_stall(peer)?;
        match peer.phase {
            _ if peer.is_merging() => Err(RegionError::Merging(peer.meta.region_id())),
            Phase::Frozen => Err(RegionError::Moving(peer.meta.region_id())),
            _ => Ok(()),
        }
    }

    pub(crate) fn propose(&self, region: RegionId, body: Body) -> oneshot::Receiver<Result<Done, RegionError>> {
        let (reply, answer) = oneshot::channel();
        self.inbox_bytes.set(self.inbox_bytes.get() + body.len());
        self.push(Input::Propose { region, body, reply });
        answer
    }

    /// Splits the region of `context` at `requests`' keys; answers with all resulting regions in key order.
    ///
    /// # Errors
    /// Every [`RegionError`] that the checks can meet.
    pub async fn split(
        &self,
        region: &metapb::Region,
        requests: Vec<raft_cmdpb::SplitRequest>,
    ) -> Result<Vec<metapb::Region>, RegionError> {
        let id = RegionId(region.id);
        let admin = raft_cmdpb::AdminRequest {
            cmd_type: raft_cmdpb::AdminCmdType::BatchSplit as i32,
            splits: Some(raft_cmdpb::BatchSplitRequest { requests, right_derive: true, ..Default::default() }),
            ..Default::default()
        };
        let data = {
            let peers = self.peers.borrow();
            let peer = peers.get(&id).ok_or(RegionError::RegionNotFound(id))?;
            if !peer.leads() || !peer.readable {
                return Err(RegionError::NotLeader { region: id, leader: None });
            }
            self.check_writable(peer)?;
            let epoch = region.region_epoch.unwrap_or_default();
            command::encode_admin(&command::Header { epoch, ..header(peer) }, admin)
        };
        let done = self.propose(id, Body::Admin(data)).await.map_err(|_| RegionError::Undetermined)??;
        Ok(done.regions)
    }

    /// The region of `context` as it is now, after the checks of a write.
    ///
    /// # Errors
    /// Every [`RegionError`] that the checks can meet.
    pub fn region(&self, context: &kvrpcpb::Context) -> Result<Arc<metapb::Region>, RegionError> {
        self.read(context).map(|read| read.region)
    }

    /// Makes a region's first peer here: the first region of a cluster.
    ///
    /// # Errors
    /// [`RegionError::StaleCommand`] if the region has no peer on this store or exists here already.
    pub async fn create(&self, region: metapb::Region) -> Result<(), RegionError> {
        let (reply, answer) = oneshot::channel();
        self.push(Input::Create { region: Box::new(region), reply });
        answer.await.map_err(|_| RegionError::Closing)?
    }

    /// Destroys a peer: its data, its log, its state. When this returns, no restart brings any of it back, and no peer
    /// of the region with its id or a lower one can begin here.
    ///
    /// Cost: a flush, shared by all who wait for one, and a durable write. From the call on the peer takes, applies and
    /// answers nothing; what was proposed and is unanswered becomes [`RegionError::Undetermined`].
    ///
    /// # Errors
    /// [`RegionError::RegionNotFound`], [`RegionError::MismatchPeerId`] if the region's peer here is another one,
    /// [`RegionError::ServerIsBusy`] while it moves or its end is under way. [`RegionError::Closing`]: it may or may not
    /// be destroyed.
    pub async fn destroy(&self, region: RegionId, peer: PeerId) -> Result<(), RegionError> {
        let (reply, answer) = oneshot::channel();
        self.push(Input::Destroy { region, peer, reply });
        answer.await.map_err(|_| RegionError::Closing)?
    }

    /// Installs a peer whose data comes as table files in [`Shard::snap_dir`] or, small, in the record itself, as a raft
    /// snapshot does: a new peer, or a later state of one that is here. When this returns the peer serves, and the files
    /// are removed.
    ///
    /// The caller has written the files and synced them, and has the range reserved. They hold engine keys (with `z`)
    /// of the region's range, all of its data. Whatever else is in the range is erased. From the record on it is done
    /// again after every crash, until it is durable. Cost: two flushes, shared, and one more of little; three durable
    /// writes; during the ingest itself the shard applies nothing. Without files: a durable write and an engine write of
    /// the data, and a shared flush if a peer is replaced; a core does it, so it should be at most 256 KiB.
    ///
    /// # Errors
    /// [`RegionError::StaleCommand`] if the region has no such peer on this store, another region here has keys of the
    /// range, the peer is not above the region's highest destroyed one, or what is here is as new.
    /// [`RegionError::ServerIsBusy`] while the peer moves or ends, or files for the range are under way.
    /// [`RegionError::Closing`]: it may or may not be installed.
    pub async fn ingest(&self, record: ApplyingRecord) -> Result<(), RegionError> {
        let (reply, answer) = oneshot::channel();
        self.push(Input::Ingest { record: Box::new(record), reply });
        answer.await.map_err(|_| RegionError::Closing)?
    }

    /// The highest peer of a region that was destroyed here, unless a newer one has lived here since.
    pub fn buried(&self, region: RegionId) -> Option<PeerId> {
        self.tombstones.borrow().get(&region).map(|tombstone| tombstone.peer)
    }

    /// What a region's peer has promised: its term, whom it voted for, and up to where it knows entries to be committed.
    /// The log may be a write behind.
    pub fn hard_state(&self, region: RegionId) -> Option<HardState> {
        let peers = self.peers.borrow();
        let state = peers.get(&region)?.raft.hard_state();
        Some(HardState { term: state.term, vote: state.vote, commit: state.commit })
    }

    /// Takes a raft message into the next turn, or loses it if too many wait: raft sends it again.
    pub fn push_raft(&self, letter: Box<raft_serverpb::RaftMessage>) {
        if self.inbox.borrow().len() >= RAFT_INBOX_MAX {
            add(&self.metrics.raft_dropped_total, 1);
            return;
        }
        self.push(Input::Raft(letter));
    }

    /// Messages to `peer` of `region` were lost.
    pub fn unreachable(&self, region: RegionId, peer: PeerId) {
        self.push(Input::Unreachable { region, peer });
    }

    /// Whether a peer here has others in its group. Raft counts ticks for their sake.
    pub(crate) fn needs_ticks(&self) -> bool {
        self.peers.borrow().values().any(|peer| peer.meta.region.peers.len() > 1)
    }

    /// Gives raft its sense of time, and has the shard look after flushes and its log.
    ///
    /// A turn that stood still gets one tick for all that it missed: time in which it heard nobody is no silence of others.
    pub fn tick(&self) {
        if !self.tick_waits.replace(true) {
            self.push(Input::Tick);
        }
    }

    /// A region's meta, whoever leads it.
    pub fn region_by_id(&self, region: RegionId) -> Option<Arc<metapb::Region>> {
        self.peers.borrow().get(&region).map(|peer| peer.meta.region.clone())
    }

    /// What the peer of `region` here knows of it.
    pub fn peer_of(&self, region: RegionId) -> Option<PeerView> {
        let peers = self.peers.borrow();
        Some(peers.get(&region)?.view())
    }

    /// Reports of those that lead among the `limit` regions from `from` on, whose traffic counts start again; and the
    /// region to go on from, if there is one.
    pub fn reports(&self, from: RegionId, limit: usize) -> (Vec<RegionReport>, Option<RegionId>) {
        let mut peers = self.peers.borrow_mut();
        let mut rest = peers.range_mut(from..);
        let some = rest.by_ref().take(limit).filter(|(_, peer)| peer.leads() && peer.members_durable);
        let reports = some.map(|(_, peer)| peer.report(self.id)).collect();
        (reports, rest.next().map(|(region, _)| *region))
    }

    /// What each region here has cost since the last call, those left out that cost nothing.
    pub fn take_work(&self) -> Vec<RegionWork> {
        let peers = self.peers.borrow();
        let work =
            peers.iter().map(|(region, peer)| RegionWork { shard: self.id, region: *region, work: peer.work.take() });
        work.filter(|counted| counted.work > 0).collect()
    }

    /// Estimated bytes of each region that is here and does not lead.
    pub fn follower_sizes(&self) -> Vec<(RegionId, u64)> {
        let peers = self.peers.borrow();
        let followers = peers.iter().filter(|(_, peer)| !peer.leads());
        followers.map(|(region, peer)| (*region, peer.meta.approximate_bytes)).collect()
    }

    /// Flushes the engine and waits until the log knows it.
    pub async fn flush(&self) -> Result<(), RegionError> {
        let (reply, answer) = oneshot::channel();
        self.push(Input::Flush { reply });
        answer.await.map_err(|_| RegionError::Closing)
    }

    /// Ends the shard's work: no more writes; what was proposed is applied; the engine is flushed and the log sealed.
    pub async fn close(&self) {
        self.closing.set(true);
        let (reply, answer) = oneshot::channel();
        self.push(Input::Close { reply });
        // A turn that is gone has nothing left to close.
        let _ = answer.await;
    }

    /// For the status page.
    pub fn describe(&self, core: base::CoreId) -> ShardDescription {
        ShardDescription {
            shard: self.id.0,
            core: core.0,
            regions: self.peers.borrow().values().map(PeerState::describe).collect(),
            log_bytes: self.metrics.log_bytes.get(),
            log_bytes_unflushed: self.metrics.log_unflushed_bytes.get(),
            memtable_bytes: self.engine.memtable_bytes(),
        }
    }
}

pub(crate) fn header(peer: &PeerState) -> command::Header {
    command::Header {
        region_id: peer.meta.region.id,
        peer_id: peer.meta.peer.id,
        store_id: peer.meta.peer.store_id,
        epoch: peer.meta.region.region_epoch.unwrap_or_default(),
        term: peer.term,
        flags: 0,
    }
}

fn write_op(change: Modify) -> command::WriteOp {
    match change {
        Modify::Put { cf, key, value } => command::WriteOp::Put { cf: cf_name(cf), key, value },
        Modify::Delete { cf, key } => command::WriteOp::Delete { cf: cf_name(cf), key },
        Modify::DeleteRange { cf, start, end } => {
            command::WriteOp::DeleteRange { cf: cf_name(cf), start, end, notify_only: false }
        }
    }
}

fn cf_name(cf: mvcc::Cf) -> command::CfName {
    match cf {
        mvcc::Cf::Default => command::CfName::Default,
        mvcc::Cf::Lock => command::CfName::Lock,
        mvcc::Cf::Write => command::CfName::Write,
        mvcc::Cf::Raft => unreachable!("no command plans changes of the node's own records"),
    }
}

impl Waiter {
    pub(crate) fn answer(self, result: Result<Done, RegionError>) {
        // A receiver that is gone gave up waiting.
        let _ = self.reply.send(result);
    }
}
