//! The turn: one iteration of a shard's raft loop. See `shard` for the drawing.

use std::collections::BTreeSet;
use std::rc::Rc;

use base::{Instant, PeerId, RegionId, StoreId};
use executor::Class;
use futures_channel::oneshot;
use futures_util::FutureExt as _;
use proto::raft_serverpb::RaftMessage;
use raftstore::eraftpb::Entry;
use raftstore::{Committed, Effect, Input as RaftInput, RejectReason};

use super::apply::{Outcome, apply_entry, apply_split, apply_unchecked};
use super::error::RegionError;
use super::lifecycle::{
    Departure, EventReply, first_state, home_record, lifecycle, put_event, region_of, start_effect,
};
use super::membership::{apply_members, removes_own};
use super::merge::{apply_state_of_merge, committed_merge};
use super::meta::PeerMeta;
use super::peer::{Done, PeerState, Phase, Waiter};
use super::planted::PlantedFault;
use super::records::{ApplyingRecord, HomeRecord, SplitRecord};
use super::replication::Fetch;
use super::shard::{Body, Input, Shard, add};
use super::split::{Measured, measure};
use crate::engine::{Engine, WriteBatch as _, WriteError, WriteMode};
use crate::log::{HardState, LifecycleKind, LogEntry, RaftLog, Record};

/// Inputs taken into one turn at most, so that the first of them does not wait for the last.
const INPUTS_PER_TURN: usize = 4096;

/// Bytes of entries that a peer takes along unapplied when it moves, or keeps behind a snapshot; with more it stays as it is,
/// and applies them first. With their frames they fit into one record ([`RECORD_BYTES_MAX`](crate::log::RECORD_BYTES_MAX)).
pub(crate) const TAIL_BYTES_MAX: usize = 8 << 20;

/// What stops a shard for good.
#[derive(Debug, thiserror::Error)]
pub enum ShardFailure {
    /// The raft log could not be written.
    #[error("raft log: {0}")]
    Log(String),
    /// The engine could not be written or flushed.
    #[error("engine: {0}")]
    Engine(String),
}

/// A region, our peer of it, and up to where that one is applied.
pub(crate) type FlushMark = (RegionId, base::PeerId, u64);

/// A peer that hands its region over once all its proposals are applied.
struct Freezing {
    region: RegionId,
    reply: oneshot::Sender<Result<Departure, RegionError>>,
}

/// What goes on once a flush has made durable all that was applied before it began.
pub(crate) enum AfterFlush {
    /// Somebody is told.
    Answer(oneshot::Sender<()>),
    /// A stopped peer ends.
    Destroy { region: RegionId, reply: EventReply },
    /// Data comes in, by files or to a peer that is here; the peer that it replaces, if any, is stopped. `keeps_log`: it has a
    /// log that is whole.
    Ingest { record: Box<ApplyingRecord>, reply: EventReply, keeps_log: bool },
    /// Files are in, and are not needed any more.
    Ingested { record: Box<ApplyingRecord>, reply: EventReply },
    /// A region takes over its neighbour's range.
    Merge { target: RegionId },
}

impl AfterFlush {
    /// Whether files are under way for keys of `region`.
    pub(crate) fn overlaps(&self, region: &proto::metapb::Region) -> bool {
        let (AfterFlush::Ingest { record, .. } | AfterFlush::Ingested { record, .. }) = self else { return false };
        let filled = record.home.as_ref().and_then(|home| home.region.as_ref());
        filled.is_some_and(|filled| {
            base::keys::overlaps(&filled.start_key, &filled.end_key, &region.start_key, &region.end_key)
        })
    }
}

/// The turn's own state: it outlives one iteration, and nobody else sees it.
#[derive(Default)]
pub(crate) struct Turn {
    pub(crate) dirty: BTreeSet<RegionId>,
    persisted: Vec<(RegionId, u64)>,
    pub(crate) committed: Vec<(RegionId, Vec<Committed>)>,
    freezing: Vec<Freezing>,
    /// What waits for the next flush, and what for the one that runs: a flush covers what came before its start.
    pub(crate) after_flush: Vec<AfterFlush>,
    after_running_flush: Vec<AfterFlush>,
    close_waiters: Vec<oneshot::Sender<()>>,
    flushing: bool,
    /// Names proposals and reads. See [`Shard::first_name`].
    pub(crate) next_proposal: u64,
    oldest_unflushed: Option<Instant>,
    /// Records for the next log write.
    pub(crate) records: Vec<Record>,
    /// Regions whose members changed, with those that were removed, until the log has it.
    pub(crate) members_changed: Vec<(RegionId, Vec<proto::metapb::Peer>)>,
    /// Messages that promise what the next log write makes durable.
    pub(crate) after_log: Vec<(StoreId, RaftMessage)>,
    /// Targets whose sources are to be looked for now, and those with the next tick.
    pub(crate) merging: BTreeSet<RegionId>,
    pub(crate) merging_later: BTreeSet<RegionId>,
    /// What followers need from the log.
    pub(crate) fetches: Vec<Fetch>,
    /// Followers that need a snapshot.
    pub(crate) snapshots: Vec<(RegionId, PeerId)>,
    log_written: Instant,
}

impl Turn {
    /// All that waits for a flush.
    pub(crate) fn waiting_for_flush(&self) -> impl Iterator<Item = &AfterFlush> {
        self.after_running_flush.iter().chain(&self.after_flush)
    }
}

impl<E: Engine> Shard<E> {
    /// Runs the shard until it is closed or fails. The log comes from recovery, as do the peers.
    pub(crate) async fn run(self: Rc<Self>, log: RaftLog) {
        let log = Rc::new(log);
        let mut turn = Turn {
            // What recovery replayed is in memory only.
            oldest_unflushed: (log.unflushed_bytes() > 0).then(executor::now),
            next_proposal: self.first_name(),
            ..Turn::default()
        };
        let result = if self.is_damaged { self.refuse_all().await } else { self.run_turns(&mut turn, &log).await };
        match result {
            Ok(()) => {}
            Err(failure) => {
                self.closing.set(true);
                tracing::error!(shard = self.id.0, %failure, "shard stops");
                self.give_leaders_up(executor::now());
                self.outlet.failed(self.id, failure.to_string());
            }
        }
        self.finished.set(true);
        for peer in self.peers.borrow_mut().values_mut() {
            peer.fail_waiters(&RegionError::Undetermined);
        }
        self.inbox.borrow_mut().clear();
        for waiter in turn.close_waiters.drain(..) {
            // Whoever closes us may have given up.
            let _ = waiter.send(());
        }
    }

    async fn run_turns(self: &Rc<Self>, turn: &mut Turn, log: &Rc<RaftLog>) -> Result<(), ShardFailure> {
        loop {
            self.wait(log).await?;
            let inputs: Vec<Input> = {
                let mut inbox = self.inbox.borrow_mut();
                let count = inbox.len().min(INPUTS_PER_TURN);
                inbox.drain(..count).collect()
            };
            if !inputs.is_empty() {
                add(&self.metrics.turns_total, 1);
            }
            for input in inputs {
                self.step(input, turn, log).await?;
            }
            self.settle(turn, log).await?;
            self.absorb(turn);
            self.fetch(turn, log);
            self.begin_snapshots(turn);
            self.hand_over(turn, log);
            self.maintain(turn, log).await?;
            if self.closing.get() && !turn.close_waiters.is_empty() && self.inbox.borrow().is_empty() {
                return self.finish(log).await;
            }
        }
    }

    /// The turns of a shard whose log takes no records: whoever asks for something is told.
    async fn refuse_all(&self) -> Result<(), ShardFailure> {
        loop {
            while let Some(input) = { self.inbox.borrow_mut().pop_front() } {
                // Whoever asked may have gone.
                let _ = match input {
                    Input::Propose { region, reply, .. } => reply.send(Err(RegionError::Damaged(region))).is_ok(),
                    Input::Freeze { region, reply } => reply.send(Err(RegionError::Damaged(region))).is_ok(),
                    Input::Create { region, reply } => {
                        reply.send(Err(RegionError::Damaged(RegionId(region.id)))).is_ok()
                    }
                    Input::Install { home, reply, .. } => {
                        reply.send(Err(RegionError::Damaged(region_of(&home)))).is_ok()
                    }
                    Input::Ingest { record, reply } => {
                        let region = record.home.as_ref().map_or(RegionId(0), region_of);
                        reply.send(Err(RegionError::Damaged(region))).is_ok()
                    }
                    Input::End { region, reply } | Input::Destroy { region, reply, .. } => {
                        reply.send(Err(RegionError::Damaged(region))).is_ok()
                    }
                    Input::Close { reply } => {
                        let _ = reply.send(());
                        return Ok(());
                    }
                    Input::Flush { reply } => reply.send(()).is_ok(),
                    Input::Read { region, reply } => reply.send(Err(RegionError::Damaged(region))).is_ok(),
                    Input::Tick
                    | Input::Lead(_)
                    | Input::Raft(_)
                    | Input::Fetched { .. }
                    | Input::SnapshotSent { .. }
                    | Input::Transfer { .. }
                    | Input::Unreachable { .. }
                    | Input::Leave { .. }
                    | Input::Campaign(_)
                    | Input::Unfreeze(_)
                    | Input::Reclaim(_)
                    | Input::LookAtMerge(_)
                    | Input::MergeTried(_)
                    | Input::Measured { .. }
                    | Input::Flushed { .. } => true,
                };
            }
            self.wake.notified().await;
        }
    }

    /// Waits for inputs; seals the log if none come.
    async fn wait(&self, log: &RaftLog) -> Result<(), ShardFailure> {
        loop {
            if !self.inbox.borrow().is_empty() {
                return Ok(());
            }
            let Some(due) = log.next_seal() else {
                self.wake.notified().await;
                continue;
            };
            futures_util::select_biased! {
                () = self.wake.notified().fuse() => {}
                () = executor::sleep_until(due).fuse() => {
                    self.on_log(log.seal()).await.map_err(log_failed)?;
                }
            }
        }
    }

    async fn step(self: &Rc<Self>, input: Input, turn: &mut Turn, log: &Rc<RaftLog>) -> Result<(), ShardFailure> {
        match input {
            Input::Propose { region, body, reply } => self.step_propose(region, body, reply, turn),
            Input::Tick => {
                self.tick_waits.set(false);
                self.step_tick(turn);
            }
            Input::Campaign(region) => self.step_campaign(region, false, turn),
            Input::Lead(region) => self.step_campaign(region, true, turn),
            Input::Raft(letter) => self.step_raft(&letter, turn),
            Input::Fetched { region, low, entries } => self.step_fetched(region, low, entries, turn),
            Input::SnapshotSent { region, to } => self.step_snapshot_sent(region, to),
            Input::Read { region, reply } => self.step_read(region, reply, turn),
            Input::Transfer { region, to } => self.step_transfer(region, to, turn),
            Input::Unreachable { region, peer } => {
                if let Some(held) = self.peers.borrow_mut().get_mut(&region) {
                    held.raft.handle(RaftInput::Unreachable { peer });
                }
            }
            Input::Leave { region, peer } => self.step_destroy(region, peer, oneshot::channel().0, turn),
            Input::Freeze { region, reply } => self.step_freeze(region, reply, turn),
            Input::Unfreeze(region) => {
                if let Some(peer) = self.peers.borrow_mut().get_mut(&region).filter(|peer| peer.phase == Phase::Frozen)
                {
                    peer.phase = Phase::Serving;
                }
            }
            Input::LookAtMerge(region) => self.look_at_merge(region, turn),
            Input::MergeTried(region) => self.merge_tried(region),
            Input::Reclaim(region) => self.step_reclaim(region),
            Input::Create { region, reply } => {
                let result = self.step_create(*region, log).await?;
                let _ = reply.send(result);
            }
            Input::Install { home, tail, reply } => {
                let result = self.install(*home, tail, log).await?;
                let _ = reply.send(result);
            }
            Input::End { region, reply } => {
                let result = self.end(region, log).await?;
                let _ = reply.send(result);
            }
            Input::Measured { region, version, result } => self.step_measured(region, version, result),
            Input::Flushed { applied, last_event, result } => {
                self.step_flushed(applied, last_event, result, turn, log).await?;
            }
            Input::Destroy { region, peer, reply } => {
                self.step_destroy(region, peer, reply, turn);
                if self.config.is_planted(PlantedFault::EndWithoutFlush)
                    && let Some(AfterFlush::Destroy { region, reply }) =
                        turn.after_flush.pop_if(|last| matches!(last, AfterFlush::Destroy { .. }))
                {
                    self.destroy_flushed(region, reply, log).await?;
                }
            }
            Input::Ingest { record, reply } => self.step_ingest(record, reply, turn, log).await?,
            Input::Flush { reply } => turn.after_flush.push(AfterFlush::Answer(reply)),
            Input::Close { reply } => turn.close_waiters.push(reply),
        }
        Ok(())
    }

    fn step_propose(
        &self,
        region: RegionId,
        body: Body,
        reply: oneshot::Sender<Result<Done, RegionError>>,
        turn: &mut Turn,
    ) {
        self.inbox_bytes.set(self.inbox_bytes.get().saturating_sub(body.len()));
        let mut peers = self.peers.borrow_mut();
        let refusal = match peers.get_mut(&region) {
            None => Some(RegionError::RegionNotFound(region)),
            Some(peer) if peer.phase != Phase::Serving => Some(RegionError::Moving(region)),
            Some(peer) => {
                let now = executor::now();
                turn.next_proposal += 1;
                peer.waiting.insert(turn.next_proposal, Waiter { proposed: now, reply });
                let id = turn.next_proposal;
                peer.raft.handle(match body {
                    Body::Write(data) | Body::Admin(data) => {
                        RaftInput::Propose { id, data, context: Default::default() }
                    }
                    Body::ConfChange(change) => {
                        RaftInput::ProposeConfChange { id, change, context: Default::default() }
                    }
                });
                turn.dirty.insert(region);
                add(&self.metrics.proposals_total, 1);
                return;
            }
        };
        if let Some(error) = refusal {
            let _ = reply.send(Err(error));
        }
    }

    fn step_tick(&self, turn: &mut Turn) {
        turn.merging.append(&mut turn.merging_later);
        for (region, peer) in self.peers.borrow_mut().iter_mut() {
            self.tick_merge(*region, peer);
            self.miss_leader(peer);
            if peer.phase == Phase::Serving && peer.meta.region.peers.len() > 1 {
                peer.raft.handle(RaftInput::Tick);
                turn.dirty.insert(*region);
                if peer.reclaims_in > 0 {
                    self.reclaim(peer);
                }
                if peer.leaving {
                    self.ask_to_leave(peer);
                }
                self.ask_again(*region, peer, turn);
                self.give_writes_up(peer);
                peer.begin_chain();
                // PD waits for those who catch up.
                if peer.reported_pending && peer.leads() && peer.pending_peers().is_empty() {
                    self.report(peer);
                }
            }
        }
    }

    /// Writes of a leader that was deposed get their answers from its successor's log. One that does not hear from that
    /// one would have clients wait in vain: they are told that the result is not known.
    fn give_writes_up(&self, peer: &mut PeerState) {
        let limit = self.config.tick * self.config.raft.election_ticks;
        if peer.deposed.is_some_and(|since| executor::now().since(since) > limit) {
            peer.deposed = None;
            peer.fail_writes();
        }
    }

    fn step_campaign(&self, region: RegionId, leads: bool, turn: &mut Turn) {
        if let Some(peer) = self.peers.borrow_mut().get_mut(&region)
            && matches!(peer.phase, Phase::Serving | Phase::Asleep)
        {
            peer.phase = Phase::Serving;
            // It may be a source that was waited for, or have come to its target.
            turn.merging.append(&mut turn.merging_later);
            if peer.meta.merge.is_some() {
                self.push(Input::LookAtMerge(region));
            }
            if leads || peer.raft.is_sole_voter() {
                peer.raft.handle(RaftInput::Campaign);
            }
            turn.dirty.insert(region);
        }
    }

    fn step_freeze(&self, region: RegionId, reply: oneshot::Sender<Result<Departure, RegionError>>, turn: &mut Turn) {
        let mut peers = self.peers.borrow_mut();
        let refusal = match peers.get_mut(&region) {
            None => RegionError::RegionNotFound(region),
            // A leader that others count on hands over first: what they send is lost meanwhile.
            Some(peer)
                if peer.phase != Phase::Serving
                    || peer.leads() != peer.raft.is_sole_voter()
                    || peer.merging.absorbing =>
            {
                RegionError::NotLeader { region, leader: None }
            }
            Some(peer) => {
                if self.config.is_planted(PlantedFault::MoveUnfrozen) {
                    let _ = reply.send(Ok(Departure { home: Box::new(home_record(peer)), tail: Vec::new() }));
                    return;
                }
                peer.phase = Phase::Frozen;
                turn.freezing.push(Freezing { region, reply });
                return;
            }
        };
        let _ = reply.send(Err(refusal));
    }

    /// Carries all peers' effects out until none is left: one log write, then one pass of applying, and again.
    async fn settle(self: &Rc<Self>, turn: &mut Turn, log: &RaftLog) -> Result<(), ShardFailure> {
        loop {
            self.collect_effects(turn);
            if self.config.is_planted(PlantedFault::AnswerBeforeLog) {
                self.persisted(turn);
                let unlogged = std::mem::take(&mut turn.records);
                self.collect_effects(turn);
                self.apply(turn, log).await?;
                turn.records.splice(..0, unlogged);
            }
            self.write_log(turn, log).await?;
            self.post_promises(turn);
            self.members_logged(turn);
            self.persisted(turn);
            if turn.dirty.is_empty() && turn.committed.is_empty() {
                return Ok(());
            }
            self.collect_effects(turn);
            self.apply(turn, log).await?;
        }
    }

    /// Tells the peers whose records were written.
    fn persisted(&self, turn: &mut Turn) {
        for (region, number) in std::mem::take(&mut turn.persisted) {
            if let Some(peer) = self.peers.borrow_mut().get_mut(&region) {
                if self.config.is_planted(PlantedFault::AnswerBeforeCommit) {
                    std::mem::take(&mut peer.waiting)
                        .into_values()
                        .for_each(|waiter| waiter.answer(Ok(Done::default())));
                }
                peer.raft.handle(RaftInput::Persisted { number });
                turn.dirty.insert(region);
            }
        }
    }

    /// Makes the turn's records durable.
    async fn write_log(&self, turn: &mut Turn, log: &RaftLog) -> Result<(), ShardFailure> {
        for record in turn.records.drain(..) {
            log.append(record).map_err(log_failed)?;
        }
        if log.pending_bytes() > 0 {
            self.commit(log).await?;
            turn.log_written = executor::now();
            turn.oldest_unflushed.get_or_insert(turn.log_written);
        }
        Ok(())
    }

    fn collect_effects(&self, turn: &mut Turn) {
        let mut peers = self.peers.borrow_mut();
        for region in std::mem::take(&mut turn.dirty) {
            let Some(peer) = peers.get_mut(&region) else { continue };
            while let Some(effect) = peer.raft.poll_effect() {
                self.carry_out(region, peer, effect, turn);
            }
        }
    }

    fn carry_out(&self, region: RegionId, peer: &mut PeerState, effect: Effect, turn: &mut Turn) {
        match effect {
            Effect::Persist { number, hard_state, entries } => {
                let (region_peer, records) = (peer.meta.peer_id(), &mut turn.records);
                if let Some(state) = hard_state.filter(|_| !self.config.is_planted(PlantedFault::HardStateLost)) {
                    let state = HardState { term: state.term, vote: state.vote, commit: state.commit };
                    records.push(Record::HardState { region, peer: region_peer, state });
                }
                if let Some(first) = entries.first() {
                    let first_index = first.index;
                    let entries = entries.iter().map(log_entry).collect();
                    records.push(Record::Entries { region, peer: region_peer, first_index, entries });
                }
                turn.persisted.push((region, number));
            }
            Effect::Apply(entries) => turn.committed.push((region, entries)),
            Effect::Rejected { id, reason } => {
                let why = rejection(peer, reason);
                if !self.read_rejected(peer, id, &why)
                    && let Some(waiter) = peer.waiting.remove(&id)
                {
                    waiter.answer(Err(why));
                }
            }
            Effect::Role(role) => {
                let leader = role.leader.map(|leader| leader.0);
                let changed = peer.term != role.term || peer.leader != leader;
                let (led, leads) = (peer.leads(), leader == Some(peer.meta.peer.id));
                if led != leads {
                    peer.deposed = led.then(executor::now);
                }
                peer.term = role.term;
                peer.leader = leader;
                peer.readable &= !changed;
                if changed && peer.leads() {
                    self.outlet.leads(region, peer.meta.peer_id(), role.term);
                }
                if changed {
                    peer.lease.begin_term(&RegionError::NotLeader { region, leader: peer.leader_peer() });
                    peer.contacts.forget();
                    peer.snapshots.clear();
                }
                peer.readable |= self.config.is_planted(PlantedFault::ReadTooEarly);
            }
            Effect::Send { messages, after_persist } => self.post(peer, &messages, after_persist.is_some(), turn),
            Effect::FetchEntries { low, high, max_bytes } => {
                turn.fetches.push(Fetch { region, low, high, max_bytes });
            }
            Effect::SnapshotWanted { to } => turn.snapshots.push((region, to)),
            Effect::ReadReady { id, index } => self.read_ready(region, peer, id, index, turn),
        }
    }

    /// Applies what was committed: batches of at most `entry_cut_bytes`, each with the apply states of its peers.
    async fn apply(self: &Rc<Self>, turn: &mut Turn, log: &RaftLog) -> Result<(), ShardFailure> {
        let mut pass = Pass::new(self.engine.batch(), turn.log_written);
        for (region, entries) in std::mem::take(&mut turn.committed) {
            let mut entries = entries.into_iter().peekable();
            while entries.peek().is_some() {
                self.apply_some(region, &mut entries, &mut pass, turn);
                if pass.batch.data_bytes() >= self.config.entry_cut_bytes || !pass.hashes.is_empty() {
                    self.write_pass(&mut pass, turn, log).await?;
                }
            }
        }
        self.write_pass(&mut pass, turn, log).await
    }

    /// Applies entries of one region until the batch is full or they end.
    fn apply_some(
        &self,
        region: RegionId,
        entries: &mut std::iter::Peekable<std::vec::IntoIter<Committed>>,
        pass: &mut Pass<E::Batch>,
        turn: &mut Turn,
    ) {
        let mut peers = self.peers.borrow_mut();
        // A stopped peer applies nothing more: the flush that its end waits for would not contain it.
        let Some(peer) = peers.get_mut(&region).filter(|peer| peer.phase != Phase::Stopped && !peer.leaving) else {
            entries.by_ref().for_each(drop);
            return;
        };
        if !peer.merging.parked.is_empty() {
            peer.merging.parked.extend(entries);
            return;
        }
        pass.touched.insert(region);
        // A hash is over what the engine holds, so its entry is the last one of a batch.
        while pass.batch.data_bytes() < self.config.entry_cut_bytes && pass.hashes.is_empty() {
            let Some(Committed { entry, proposal }) = entries.next() else { return };
            if removes_own(&peer.meta, &entry) {
                self.begin_to_leave(region, peer);
                entries.by_ref().for_each(drop);
                return;
            }
            if committed_merge(&peer.meta, &entry).is_some() {
                peer.merging.parked.push(Committed { entry, proposal });
                peer.merging.parked.extend(entries);
                turn.merging.insert(region);
                return;
            }
            add(&self.metrics.applied_total, 1);
            let entry = self.maybe_tampered(peer, entry);
            let effect = match self.config.is_planted(PlantedFault::EpochUnchecked) {
                true => apply_unchecked(&mut peer.meta, &entry, &mut pass.batch),
                false => apply_entry(&mut peer.meta, &entry, &mut pass.batch),
            };
            peer.marks.note(&peer.meta);
            peer.meta.approximate_bytes += effect.bytes;
            peer.meta.approximate_keys += effect.keys;
            peer.unmeasured.0 += effect.bytes;
            peer.unmeasured.1 += effect.keys;
            peer.traffic.bytes_written += effect.bytes;
            peer.traffic.keys_written += effect.keys;
            peer.work.begin();
            peer.work.carry(effect.keys, effect.bytes);
            let mut done = Done { index: entry.index, ..Default::default() };
            let mut result = Ok(());
            match effect.outcome {
                Outcome::Done => {}
                Outcome::Refused(error) => result = Err(error),
                Outcome::Hash => pass.hashes.push((region, entry.index)),
                Outcome::Members { change, region: next } => {
                    let before = peer.meta.region.clone();
                    apply_members(&mut peer.meta, next.clone(), &mut pass.batch);
                    peer.lease.revoke();
                    if peer.leads() || !self.config.is_planted(PlantedFault::MembersForgotten) {
                        peer.raft.handle(RaftInput::ConfChanged { change, region: next });
                    }
                    self.log_members(region, peer, &before, entry.index, turn);
                    pass.members_changed.push(region);
                }
                Outcome::Merging { region: next, merge } => {
                    let frozen = merge.is_some();
                    apply_state_of_merge(&mut peer.meta, next, merge, &mut pass.batch);
                    peer.raft.set_region((*peer.meta.region).clone());
                    peer.lease.revoke();
                    pass.members_changed.push(region);
                    // The heartbeats of a version that the node does not know are held back.
                    self.outlet.reranged(self.id, (*peer.meta.region).clone(), peer.meta.approximate_bytes);
                    if frozen {
                        tracing::info!(%region, leads = peer.leads(), "frozen until it is merged");
                        // The followers are to know at once that it is committed, not with the next heartbeat.
                        peer.raft.handle(RaftInput::Ping);
                        self.push(Input::LookAtMerge(region));
                    }
                }
                Outcome::Split(regions) => {
                    done.regions = regions.clone();
                    self.apply_split(peer, entry.index, regions, pass, turn);
                }
            }
            if let Some(waiter) = proposal.and_then(|id| peer.waiting.remove(&id)) {
                pass.answers.push((waiter, result.map(|()| done)));
            }
        }
    }

    fn apply_split(
        &self,
        peer: &mut PeerState,
        index: u64,
        regions: Vec<proto::metapb::Region>,
        pass: &mut Pass<E::Batch>,
        turn: &mut Turn,
    ) {
        let event = self.next_event();
        let record = SplitRecord { index, regions: regions.clone() };
        let children = apply_split(&mut peer.meta, regions.clone(), self.store, &mut pass.batch);
        let starts = children.iter().map(|child| start_effect(child, first_state())).collect();
        turn.records.push(lifecycle(event, LifecycleKind::Split, &peer.meta, starts, &record));
        peer.raft.set_region((*peer.meta.region).clone());
        peer.note_split(&regions);
        // The sooner the followers have the children, the sooner those have leaders.
        peer.raft.handle(RaftInput::Ping);
        put_event(&mut pass.batch, event);
        add(&self.metrics.splits_total, 1);
        pass.splits.push((peer.leads(), regions, peer.meta.approximate_bytes));
        let leads = peer.leads();
        pass.children.extend(children.into_iter().map(|child| (child, leads)));
    }

    /// Writes the pass's batch, answers those who waited for it, and wakes the children of its splits.
    ///
    /// The engine may flush at any write. So the records of splits are durable before the batch that has their
    /// children: an engine that knows a peer of which the log knows nothing is a log that has lost something.
    async fn write_pass(
        self: &Rc<Self>,
        pass: &mut Pass<E::Batch>,
        turn: &mut Turn,
        log: &RaftLog,
    ) -> Result<(), ShardFailure> {
        let planted = [PlantedFault::SplitBeforeRecord, PlantedFault::EngineBeforeRecord];
        if !pass.splits.is_empty() && !planted.into_iter().any(|fault| self.config.is_planted(fault)) {
            self.write_log(turn, log).await?;
        }
        for region in &pass.touched {
            if let Some(peer) = self.peers.borrow().get(region) {
                peer.meta.put_applied(&mut pass.batch);
            }
        }
        let batch = std::mem::replace(&mut pass.batch, self.engine.batch());
        if batch.count() > 0 {
            self.write_engine(batch).await?;
        }
        let now = executor::now();
        let mut peers = self.peers.borrow_mut();
        for region in std::mem::take(&mut pass.touched) {
            let Some(peer) = peers.get_mut(&region) else { continue };
            peer.raft.handle(RaftInput::Applied { index: peer.meta.applied_index });
            turn.dirty.insert(region);
            if peer.leads() && !peer.readable && peer.meta.applied_term == peer.term {
                peer.readable = true;
                tracing::debug!(%region, term = peer.term, "leads");
                self.outlet.begins_to_lead();
                self.report(peer);
            }
            self.finish_reads(region, peer, turn);
            self.measure_if_due(peer);
        }
        for (region, index) in pass.hashes.drain(..) {
            if let Some(peer) = peers.get_mut(&region) {
                self.begin_hash(peer, index);
            }
        }
        for region in pass.members_changed.drain(..) {
            if let Some(peer) = peers.get_mut(&region).filter(|peer| peer.leads()) {
                self.report(peer);
            }
        }
        for (child, leads) in pass.children.drain(..) {
            let region = child.region_id();
            let child = self.fresh_peer(child);
            tracing::debug!(%region, leads, "born of a split");
            if leads && !child.raft.is_sole_voter() {
                self.campaign_again(&child);
            }
            peers.insert(region, child);
            let next = if leads { Input::Lead(region) } else { Input::Campaign(region) };
            self.inbox.borrow_mut().push_back(next);
        }
        drop(peers);
        for (leads, regions, bytes) in pass.splits.drain(..) {
            self.outlet.split(self.id, leads, regions, bytes);
        }
        for (waiter, result) in pass.answers.drain(..) {
            let (proposed, persisted) = (waiter.proposed, pass.persisted);
            waiter.answer(result.map(|done| Done { proposed, persisted, applied: now, ..done }));
        }
        Ok(())
    }

    /// Writes `batch` without waiting inside the engine; if that has no room, waits here and tries again.
    pub(crate) async fn write_engine(&self, batch: E::Batch) -> Result<(), ShardFailure> {
        if batch.data_bytes() > self.config.entry_cut_bytes * 2 {
            // One large entry: it would hold the core, so a helper writes it.
            let engine = self.engine.clone();
            let result = executor::blocking(Class::Foreground, move || engine.write(batch, WriteMode::Helper)).await;
            return result.map_err(|error| ShardFailure::Engine(error.to_string()));
        }
        let mut batch = batch;
        let mut pause = std::time::Duration::from_micros(200);
        loop {
            match self.engine.write(batch, WriteMode::Core) {
                Ok(()) => return Ok(()),
                Err(WriteError::Incomplete(back)) => {
                    batch = back;
                    add(&self.metrics.engine_refusals_total, 1);
                    executor::sleep(pause).await;
                    pause = (pause * 2).min(std::time::Duration::from_millis(20));
                }
                Err(error) => return Err(ShardFailure::Engine(error.to_string())),
            }
        }
    }

    pub(crate) fn fresh_peer(&self, meta: PeerMeta) -> PeerState {
        let init =
            raftstore::PeerInit { seed: self.seed, ..raftstore::PeerInit::first((*meta.region).clone(), meta.peer) };
        let raft = raftstore::Peer::new(init, &self.config.raft).expect("the first state of a peer is sound");
        PeerState::new(meta, raft, Phase::Serving)
    }

    pub(crate) async fn commit(&self, log: &RaftLog) -> Result<(), ShardFailure> {
        self.on_log(log.commit()).await.map_err(log_failed)?;
        add(&self.metrics.log_commits_total, 1);
        Ok(())
    }

    /// Answers those frozen peers' movers whose proposals are all applied. A follower has none: what it has not applied
    /// goes with it.
    fn hand_over(&self, turn: &mut Turn, log: &Rc<RaftLog>) {
        let mut peers = self.peers.borrow_mut();
        let mut waiting = Vec::new();
        for freezing in turn.freezing.drain(..) {
            match peers.get_mut(&freezing.region) {
                Some(peer) if peer.phase == Phase::Frozen => {
                    let (applied, last) = (peer.meta.applied_index, peer.raft.last_index());
                    let is_drained = last == applied || !peer.merging.parked.is_empty();
                    if !peer.raft.is_sole_voter() || !peer.merging.parked.is_empty() {
                        // What it proposed while it led is in other hands; a merge, and what is behind it, goes along.
                        peer.give_waiters_up();
                    }
                    if (is_drained || !peer.raft.is_sole_voter()) && peer.waiting.is_empty() {
                        let home = Box::new(home_record(peer));
                        let is_left = self.config.is_planted(PlantedFault::MoveWithoutTail);
                        depart(log.clone(), freezing, home, if is_left { 0 } else { last - applied });
                    } else {
                        waiting.push(freezing);
                    }
                }
                _ => {
                    let _ = freezing.reply.send(Err(RegionError::StaleCommand));
                }
            }
        }
        turn.freezing = waiting;
    }

    /// Starts measuring a region of which enough was written, on a helper.
    fn measure_if_due(self: &Rc<Self>, peer: &mut PeerState) {
        let (bytes, keys) = peer.unmeasured;
        let due = bytes >= self.config.split_check_diff_bytes || keys >= (self.config.region_max_keys / 8).max(1);
        let large = peer.meta.approximate_bytes >= self.config.region_max_bytes
            || peer.meta.approximate_keys >= self.config.region_max_keys;
        if due && large && peer.phase == Phase::Serving {
            self.measure(peer);
        }
    }

    /// Starts measuring a region, unless that goes on already.
    pub(crate) fn measure(self: &Rc<Self>, peer: &mut PeerState) {
        if std::mem::replace(&mut peer.measuring, true) {
            return;
        }
        peer.unmeasured = (0, 0);
        let (shard, config, meta) = (self.clone(), self.config.clone(), peer.meta.clone());
        let snapshot = self.engine.snapshot();
        executor::spawn_local(Class::Background, async move {
            let (region, version) = (meta.region_id(), meta.version());
            let work = move || measure::<E>(&snapshot, &meta.region, &config);
            let result = executor::blocking(Class::Background, work).await;
            shard.push(Input::Measured { region, version, result });
        });
    }

    fn step_measured(&self, region: RegionId, version: u64, result: Result<Measured, String>) {
        let mut peers = self.peers.borrow_mut();
        let Some(peer) = peers.get_mut(&region) else { return };
        peer.measuring = false;
        match result {
            Ok(measured) if peer.meta.version() == version => {
                peer.meta.approximate_bytes = measured.bytes;
                peer.meta.approximate_keys = measured.keys;
                if !measured.split_keys.is_empty() && peer.leads() {
                    let meta = (*peer.meta.region).clone();
                    self.outlet.split_due(self.id, meta, measured.split_keys);
                }
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(%region, %error, "region could not be measured"),
        }
    }

    /// Between turns: flush what is due, and let the log recycle what nothing needs.
    async fn maintain(self: &Rc<Self>, turn: &mut Turn, log: &Rc<RaftLog>) -> Result<(), ShardFailure> {
        self.metrics.log_bytes.set(log.size_bytes());
        self.metrics.log_unflushed_bytes.set(log.unflushed_bytes());
        self.metrics.inbox_bytes.set(self.inbox_bytes.get() as u64);
        if self.flush_is_due(turn, log) && !turn.flushing {
            self.start_flush(turn);
        }
        // The cap is hard: while a flush is behind, nothing more is taken.
        while turn.flushing && log.unflushed_bytes() >= self.config.replay_cap_bytes {
            if let Some(input) = self.wait_for_flush().await {
                self.step(input, turn, log).await?;
            }
            if !turn.after_flush.is_empty() && !turn.flushing {
                self.start_flush(turn);
            }
        }
        Ok(())
    }

    fn flush_is_due(&self, turn: &Turn, log: &RaftLog) -> bool {
        let aged = turn.oldest_unflushed.is_some_and(|oldest| executor::now().since(oldest) > self.config.flush_age);
        log.unflushed_bytes() >= self.config.flush_at_bytes || aged || !turn.after_flush.is_empty()
    }

    /// Takes the end of the running flush out of the inbox, past everything else, or waits for it.
    async fn wait_for_flush(&self) -> Option<Input> {
        loop {
            {
                let mut inbox = self.inbox.borrow_mut();
                if let Some(at) = inbox.iter().position(|input| matches!(input, Input::Flushed { .. })) {
                    return inbox.remove(at);
                }
            }
            executor::sleep(std::time::Duration::from_millis(1)).await;
        }
    }

    fn start_flush(self: &Rc<Self>, turn: &mut Turn) {
        turn.flushing = true;
        turn.after_running_flush = std::mem::take(&mut turn.after_flush);
        turn.oldest_unflushed = None;
        add(&self.metrics.flushes_total, 1);
        let applied = self.flush_marks();
        let (shard, engine, last_event) = (self.clone(), self.engine.clone(), self.last_event.get());
        executor::spawn_local(Class::Background, async move {
            let skip = shard.config.is_planted(PlantedFault::FlushUnfinished);
            let work = move || if skip { Ok(()) } else { engine.flush() };
            let result = executor::blocking(Class::Background, work).await;
            let result = result.map_err(|error| error.to_string());
            shard.push(Input::Flushed { applied, last_event, result });
        });
    }

    async fn step_flushed(
        &self,
        applied: Vec<FlushMark>,
        last_event: u64,
        result: Result<(), String>,
        turn: &mut Turn,
        log: &RaftLog,
    ) -> Result<(), ShardFailure> {
        turn.flushing = false;
        result.map_err(ShardFailure::Engine)?;
        log.flushed(applied, last_event);
        self.on_log(log.maintain()).await.map_err(log_failed)?;
        for next in std::mem::take(&mut turn.after_running_flush) {
            match next {
                // Whoever asked may be gone.
                AfterFlush::Answer(reply) => drop(reply.send(())),
                AfterFlush::Destroy { region, reply } => self.destroy_flushed(region, reply, log).await?,
                AfterFlush::Ingest { record, reply, keeps_log } => {
                    self.ingest_flushed(record, reply, keeps_log, turn, log).await?;
                }
                AfterFlush::Ingested { record, reply } => self.ingest_done(record, reply, log).await?,
                AfterFlush::Merge { target } => self.merge_flushed(target, turn, log).await?,
            }
        }
        Ok(())
    }

    /// Up to where each peer is applied: what a flush that begins now will make durable.
    fn flush_marks(&self) -> Vec<FlushMark> {
        let peers = self.peers.borrow();
        peers.iter().map(|(region, peer)| (*region, peer.meta.peer_id(), peer.meta.applied_index)).collect()
    }

    async fn finish(&self, log: &RaftLog) -> Result<(), ShardFailure> {
        let applied = self.flush_marks();
        let engine = self.engine.clone();
        executor::blocking(Class::Background, move || engine.flush())
            .await
            .map_err(|error| ShardFailure::Engine(error.to_string()))?;
        log.flushed(applied, self.last_event.get());
        log.maintain().await.map_err(log_failed)?;
        log.seal().await.map_err(log_failed).map(drop)
    }
}

/// One pass of applying: a batch and what follows when it is written.
struct Pass<B> {
    batch: B,
    persisted: Instant,
    touched: BTreeSet<RegionId>,
    answers: Vec<(Waiter, Result<Done, RegionError>)>,
    /// With whether the parent leads.
    children: Vec<(PeerMeta, bool)>,
    members_changed: Vec<RegionId>,
    /// With the index of the entry that asks for it.
    hashes: Vec<(RegionId, u64)>,
    /// With whether the parent leads.
    splits: Vec<(bool, Vec<proto::metapb::Region>, u64)>,
}

impl<B> Pass<B> {
    fn new(batch: B, persisted: Instant) -> Pass<B> {
        Pass {
            batch,
            persisted,
            touched: BTreeSet::new(),
            answers: Vec::new(),
            children: Vec::new(),
            members_changed: Vec::new(),
            hashes: Vec::new(),
            splits: Vec::new(),
        }
    }
}

pub(crate) fn log_failed(error: crate::log::LogError) -> ShardFailure {
    ShardFailure::Log(error.to_string())
}

/// Reads the `count` entries that a frozen peer has not applied, and lets it go.
fn depart(log: Rc<RaftLog>, freezing: Freezing, home: Box<HomeRecord>, count: u64) {
    let Freezing { region, reply } = freezing;
    if count == 0 {
        // The mover may be gone.
        drop(reply.send(Ok(Departure { home, tail: Vec::new() })));
        return;
    }
    executor::spawn_local(Class::Raft, async move {
        let low = home.applied_index + 1;
        let tail = log.entries(region, low, low + count, TAIL_BYTES_MAX).await.unwrap_or_default();
        let is_whole = tail.len() as u64 == count;
        let departure = if is_whole { Ok(Departure { home, tail }) } else { Err(RegionError::StaleCommand) };
        // The mover may be gone.
        drop(reply.send(departure));
    });
}

fn rejection(peer: &PeerState, reason: RejectReason) -> RegionError {
    let region = peer.meta.region_id();
    match reason {
        RejectReason::NotLeader { .. } => RegionError::NotLeader { region, leader: peer.leader_peer() },
        RejectReason::Stale => RegionError::StaleCommand,
        RejectReason::Busy => RegionError::ServerIsBusy { reason: "raftstore is busy".into(), backoff_ms: 100 },
        RejectReason::Unknown => RegionError::Undetermined,
        // Over in a moment, most often: a client that was refused would pause for longer.
        RejectReason::Transferring | RejectReason::NotReady => RegionError::Moving(region),
        RejectReason::ConfChangeRefused => RegionError::NotLeader { region, leader: None },
    }
}

fn log_entry(entry: &Entry) -> LogEntry {
    LogEntry { term: entry.term, data: prost::Message::encode_to_vec(entry).into() }
}
