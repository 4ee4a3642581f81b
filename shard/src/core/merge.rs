//! Merge: a region, the source, ends, and a neighbour, the target, takes its range over.
//!
//! ```text
//!  source's leader                 every node                          target's leader
//!  wait for all followers,
//!  refuse requests, drain
//!  ── PrepareMerge ──────────────▶ source frozen for good; moved to
//!                                  its target's shard, if it is on
//!                                  another one
//!                                  source and target on one shard ───▶ ── CommitMerge ──┐
//!                                  target stops before it   ◀──────────────────────────┘
//!                                  source brought up to PrepareMerge
//!                                  flush ─▶ record `commit merge` ─▶ target has the range,
//!                                  source is buried; target goes on
//! ```
//!
//! Before PrepareMerge is proposed, every follower has all of the log up to it, and PrepareMerge counts only at the very
//! next index. So no member can lack an entry but PrepareMerge itself, which changes no data: CommitMerge need not carry
//! entries of the source, as TiKV's does, and a source whose log was left behind on another shard can still be merged.
//!
//! Both are peers of one engine then, so no data moves: the record ends the source and widens the target. The flush before
//! it means that a replay needs nothing of the source's log, which the record ends.
//!
//! PrepareMerge names the target's epoch, and CommitMerge is for that epoch. If the target changes first, CommitMerge can
//! never be applied, and the source's leader takes the merge back (RollbackMerge). It must see that in its own node's
//! peer of the target, which has applied its log without a gap since that epoch: a snapshot could hide a merge. A target
//! that was itself merged away leaves a tombstone that says as much: its own end waited for every source that it took.

use std::cell::RefMut;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use base::{Instant, PeerId, RegionId};
use executor::Class;
use proto::raft_cmdpb::{self, AdminCmdType};
use proto::raft_serverpb::MergeState;
use proto::{metapb, raft_serverpb};
use raftstore::command::{self, Command};
use raftstore::epoch::{CommandKind, check_epoch, epoch_of};
use raftstore::eraftpb::Entry;
use raftstore::{Committed, Input as RaftInput};

use super::apply::epoch_not_match;
use super::directory::{Merged, Tombstone};
use super::error::RegionError;
use super::lifecycle::{lifecycle, put_event};
use super::meta::PeerMeta;
use super::peer::{HEARD_LATELY, PeerState, Phase};
use super::records::MergeRecord;
use super::shard::{Body, Input, Shard, add, header};
use super::turn::{AfterFlush, ShardFailure, Turn, log_failed};
use crate::engine::{Engine, WriteBatch};
use crate::log::{LifecycleKind, LogEffect, RaftLog};

/// How long the source's leader waits for its followers, while it serves, before it gives a merge up.
const CATCH_UP_LIMIT: Duration = Duration::from_secs(2);
/// Entries that a follower may lack by then.
const NEAR: u64 = 64;
/// How long it refuses requests to have everybody at the same index. Stock Rust clients bear about 1.5 s in all.
const DRAIN_LIMIT: Duration = Duration::from_millis(300);
const DRAIN_PAUSE: Duration = Duration::from_millis(5);
/// Ticks between two looks at what a prepared merge waits for.
const LOOK_TICKS: u32 = 5;
/// Between two requests for a snapshot.
const SNAPSHOT_PAUSE: Duration = Duration::from_secs(1);
/// Looks after which a leader that cannot tell whether to take a merge back lets another member lead, and one whose target
/// is led elsewhere asks for that leadership.
const LOOKS_BEFORE_TRANSFER: u32 = 20;

/// A peer's part in merges, beside what is durable of it.
#[derive(Default)]
pub(crate) struct Merging {
    /// This leader is about to propose PrepareMerge: it takes no requests.
    pub(crate) preparing: bool,
    /// A CommitMerge or RollbackMerge for this source is proposed from here.
    proposed: bool,
    /// Ticks until the next look, and looks since the merge was prepared.
    ticks: u32,
    looks: u32,
    /// This target waits for its source: the CommitMerge and what was committed after it.
    pub(crate) parked: Vec<Committed>,
    /// This target waits for a source that has ended here: only a snapshot brings it on, and its group may be gone.
    pub(crate) is_stranded: bool,
    /// Before then it does not ask for a snapshot again.
    asked_again: Instant,
    /// The flush before the record is under way.
    pub(crate) absorbing: bool,
}

impl PeerState {
    /// Whether this peer takes no requests because its region is about to end.
    pub(crate) fn is_merging(&self) -> bool {
        self.merging.preparing || self.meta.merge.is_some()
    }

    /// Whether every follower has the log up to `index`, and was heard of lately: one that has lost its log answers
    /// nothing, and raft does not know.
    fn followers_have(&self, index: u64) -> bool {
        let now = executor::now();
        let keeps_up =
            |(id, matched): &(PeerId, u64)| *matched >= index && self.contacts.heard_within(id.0, now, HEARD_LATELY);
        self.raft.followers().iter().all(keeps_up)
    }
}

fn behind() -> RegionError {
    RegionError::ServerIsBusy { reason: "a follower is behind".into(), backoff_ms: 1000 }
}

/// The merge that `entry` commits into `meta`'s region; `None` if it is something else, or comes too late.
///
/// # Panics
/// As [`super::apply::apply_entry`].
pub(crate) fn committed_merge(meta: &PeerMeta, entry: &Entry) -> Option<raft_cmdpb::CommitMergeRequest> {
    let command = Command::decode(entry).expect("a committed entry is a command that a peer proposed");
    let Command::Admin(admin) = command else { return None };
    let kind = CommandKind::Admin(admin.request.cmd_type());
    let merge = admin.request.commit_merge.filter(|_| kind == CommandKind::Admin(AdminCmdType::CommitMerge))?;
    let fits = check_epoch(&admin.header.epoch, &meta.region, kind).is_ok() && meta.merge.is_none();
    (fits && merged(meta, &merge).is_some()).then_some(merge)
}

/// The region that the merge makes of `meta`'s.
fn merged(meta: &PeerMeta, merge: &raft_cmdpb::CommitMergeRequest) -> Option<metapb::Region> {
    raftstore::merge::commit(merge.source.as_ref()?, &meta.region).ok()
}

/// `meta` takes what PrepareMerge or RollbackMerge makes of it.
pub(crate) fn apply_state_of_merge(
    meta: &mut PeerMeta,
    region: metapb::Region,
    merge: Option<MergeState>,
    batch: &mut impl WriteBatch,
) {
    meta.region = std::sync::Arc::new(region);
    meta.merge = merge;
    meta.put_all(batch);
}

/// `target` takes the range over, and `source`, which has applied all that counts, leaves a tombstone behind. No data
/// changes. Without a source, there was none any more when this was begun before.
///
/// # Errors
/// What is wrong with the source.
pub(crate) fn apply_merge(
    target: &mut PeerMeta,
    source: Option<&PeerMeta>,
    record: &MergeRecord,
    batch: &mut impl WriteBatch,
) -> Result<(), String> {
    if let Some(source) = source {
        if source.applied_index + 1 < record.commit {
            return Err(format!("region {} is not at its end", source.region.id));
        }
        target.approximate_bytes += source.approximate_bytes;
        target.approximate_keys += source.approximate_keys;
        source.retire(&target.region, record.commit, batch);
    }
    target.region = std::sync::Arc::new(record.region.clone().unwrap_or_default());
    target.chain.link_merge(record.index, &target.region);
    target.applied_index = record.index;
    target.applied_term = record.term;
    target.put_all(batch);
    Ok(())
}

/// Whether the target, as it is on this node, shows that no CommitMerge for `state` was or will be applied.
fn is_void(target: &PeerMeta, state: &MergeState) -> bool {
    let expected = state.target.as_ref().map(epoch_of).unwrap_or_default();
    let (version, conf_ver) = (target.version(), target.conf_ver());
    let has_changed = version > expected.version || conf_ver > expected.conf_ver;
    // Without another version there was no merge. With one, only the log itself tells what it came from.
    has_changed && (version == expected.version || target.began_version <= expected.version)
}

fn same_voters(one: &metapb::Region, other: &metapb::Region) -> bool {
    let is_voter = |peer: &metapb::Peer| peer.role() == metapb::PeerRole::Voter;
    let has = |store: u64| other.peers.iter().any(|peer| peer.store_id == store && is_voter(peer));
    one.peers.len() == other.peers.len() && one.peers.iter().all(|peer| is_voter(peer) && has(peer.store_id))
}

impl<E: Engine> Shard<E> {
    /// Begins to merge a region that leads here into `target`. When this returns the source is frozen; the rest follows
    /// by itself, or the merge is taken back.
    ///
    /// # Errors
    /// [`RegionError::EpochNotMatch`] if the region is not that of `epoch`, [`RegionError::StaleCommand`] if the two
    /// cannot merge, or merges are off, [`RegionError::ServerIsBusy`] if a follower is behind; else what a write can meet.
    pub async fn prepare_merge(
        &self,
        region: RegionId,
        epoch: &metapb::RegionEpoch,
        target: metapb::Region,
    ) -> Result<(), RegionError> {
        if !self.config.merges {
            return Err(RegionError::StaleCommand);
        }
        self.catch_up(region, epoch, &target).await?;
        self.begin_to_prepare(region, epoch, &target)?;
        let outcome = match self.drain(region, &target).await {
            Ok(data) => match self.propose(region, Body::Admin(data)).await {
                Ok(answer) => answer.map(drop),
                Err(_) => Err(RegionError::Undetermined),
            },
            Err(error) => Err(error),
        };
        if let Some(peer) = self.peers.borrow_mut().get_mut(&region) {
            peer.merging.preparing = false;
        }
        outcome
    }

    /// Waits until no follower is far behind.
    async fn catch_up(
        &self,
        region: RegionId,
        epoch: &metapb::RegionEpoch,
        target: &metapb::Region,
    ) -> Result<(), RegionError> {
        let begun = executor::now();
        loop {
            {
                let peers = self.peers.borrow();
                let peer = self.check_to_prepare(&peers, region, epoch, target)?;
                if peer.followers_have(peer.raft.last_index().saturating_sub(NEAR)) {
                    return Ok(());
                }
            }
            if executor::now().since(begun) > CATCH_UP_LIMIT {
                return Err(behind());
            }
            executor::sleep(DRAIN_PAUSE).await;
        }
    }

    /// The source, if it can be merged into `target`.
    fn check_to_prepare<'a>(
        &self,
        peers: &'a BTreeMap<RegionId, PeerState>,
        region: RegionId,
        epoch: &metapb::RegionEpoch,
        target: &metapb::Region,
    ) -> Result<&'a PeerState, RegionError> {
        let peer = peers.get(&region).ok_or(RegionError::RegionNotFound(region))?;
        if !peer.serves() || peer.phase != Phase::Serving {
            return Err(RegionError::NotLeader { region, leader: peer.leader_peer() });
        }
        self.check_writable(peer)?;
        if epoch_of(&peer.meta.region) != *epoch {
            return Err(epoch_not_match(&peer.meta, vec![(*peer.meta.region).clone()]));
        }
        let source = raftstore::merge::prepare(&peer.meta.region);
        if !same_voters(&source, target) || raftstore::merge::commit(&source, target).is_err() {
            return Err(RegionError::StaleCommand);
        }
        Ok(peer)
    }

    fn begin_to_prepare(
        &self,
        region: RegionId,
        epoch: &metapb::RegionEpoch,
        target: &metapb::Region,
    ) -> Result<(), RegionError> {
        let mut peers = self.peers.borrow_mut();
        self.check_to_prepare(&peers, region, epoch, target)?;
        if let Some(peer) = peers.get_mut(&region) {
            // The last reads of the region are those that have begun.
            peer.merging.preparing = true;
            peer.lease.revoke();
        }
        Ok(())
    }

    /// Waits until everything that was proposed is applied, and every follower has all of the log.
    async fn drain(&self, region: RegionId, target: &metapb::Region) -> Result<bytes::Bytes, RegionError> {
        let begun = executor::now();
        loop {
            {
                let peers = self.peers.borrow();
                let peer = peers.get(&region).ok_or(RegionError::RegionNotFound(region))?;
                if !peer.leads() || !peer.readable || peer.phase != Phase::Serving {
                    return Err(RegionError::NotLeader { region, leader: peer.leader_peer() });
                }
                let last = peer.raft.last_index();
                let is_drained = peer.waiting.is_empty() && peer.meta.applied_index == last;
                if is_drained && peer.followers_have(last) {
                    let request = raft_cmdpb::AdminRequest {
                        cmd_type: AdminCmdType::PrepareMerge as i32,
                        prepare_merge: Some(raft_cmdpb::PrepareMergeRequest {
                            min_index: last + 1,
                            target: Some(target.clone()),
                        }),
                        ..Default::default()
                    };
                    return Ok(command::encode_admin(&header(peer), request));
                }
            }
            if executor::now().since(begun) > DRAIN_LIMIT {
                return Err(behind());
            }
            executor::sleep(DRAIN_PAUSE).await;
        }
    }

    /// A tick of a source: looks at what it waits for now and then.
    pub(crate) fn tick_merge(&self, region: RegionId, peer: &mut PeerState) {
        if peer.meta.merge.is_none() || peer.phase != Phase::Serving {
            return;
        }
        peer.merging.ticks += 1;
        if peer.merging.ticks >= LOOK_TICKS || peer.raft.is_sole_voter() {
            peer.merging.ticks = 0;
            self.push(Input::LookAtMerge(region));
        }
    }

    /// Goes on with a prepared merge, as far as it is this node's turn.
    pub(crate) fn look_at_merge(self: &Rc<Self>, region: RegionId, turn: &mut Turn) {
        let mut peers = self.peers.borrow_mut();
        let Some(source) = peers.get(&region).filter(|peer| peer.phase == Phase::Serving) else { return };
        let Some(state) = source.meta.merge.clone().filter(|_| !source.merging.proposed) else { return };
        let expected = state.target.clone().unwrap_or_default();
        let target_id = RegionId(expected.id);
        let leads = source.leads() && source.readable;
        let Some(target) = peers.get(&target_id) else {
            self.outlet.bring_together(region, target_id, epoch_of(&expected).version);
            if leads {
                // This node may have no peer of the target any more, and cannot tell then whether the merge is void.
                self.let_another_look(region, peers, turn);
            }
            return;
        };
        if epoch_of(&target.meta.region) == epoch_of(&expected) {
            let takes = target.leads() && target.readable && target.phase == Phase::Serving;
            if takes && target.merging.parked.is_empty() && !target.is_merging() {
                let request = raft_cmdpb::AdminRequest {
                    cmd_type: AdminCmdType::CommitMerge as i32,
                    commit_merge: Some(raft_cmdpb::CommitMergeRequest {
                        source: Some((*source.meta.region).clone()),
                        commit: state.commit,
                        ..Default::default()
                    }),
                    ..Default::default()
                };
                let data = command::encode_admin(&header(target), request);
                peers.get_mut(&region).expect("it was there").merging.proposed = true;
                self.propose_and_look_again(region, target_id, data);
            } else if leads && !target.leads() {
                // Where the target's leader is, the source may lag, and get no snapshot any more.
                let source = peers.get_mut(&region).expect("it was there");
                source.merging.looks += 1;
                if source.merging.looks.is_multiple_of(LOOKS_BEFORE_TRANSFER) {
                    peers.get_mut(&target_id).expect("it was there").reclaims_in = 1;
                }
            }
        } else if leads && is_void(&target.meta, &state) {
            self.take_back(region, peers.get_mut(&region).expect("it was there"), &state);
        } else if leads {
            self.let_another_look(region, peers, turn);
        }
    }

    /// Counts looks in vain of a source that leads, and lets another member lead now and then.
    fn let_another_look(
        &self,
        region: RegionId,
        mut peers: RefMut<'_, BTreeMap<RegionId, PeerState>>,
        turn: &mut Turn,
    ) {
        let source = peers.get_mut(&region).expect("it was there");
        source.merging.looks += 1;
        if source.merging.looks.is_multiple_of(LOOKS_BEFORE_TRANSFER)
            && let Some(heir) = source.heir()
        {
            drop(peers);
            self.step_transfer(region, heir, turn);
        }
    }

    /// The target of a source here was itself merged into another region, and did not take the source with it.
    pub(crate) fn void_merge(self: &Rc<Self>, region: RegionId, target: RegionId) {
        let mut peers = self.peers.borrow_mut();
        let Some(source) = peers.get_mut(&region).filter(|peer| peer.phase == Phase::Serving) else { return };
        let Some(state) = source.meta.merge.clone().filter(|_| !source.merging.proposed) else { return };
        let is_target = state.target.as_ref().is_some_and(|named| named.id == target.0);
        if is_target && source.leads() && source.readable {
            self.take_back(region, source, &state);
        }
    }

    fn take_back(self: &Rc<Self>, region: RegionId, source: &mut PeerState, state: &MergeState) {
        let request = raft_cmdpb::AdminRequest {
            cmd_type: AdminCmdType::RollbackMerge as i32,
            rollback_merge: Some(raft_cmdpb::RollbackMergeRequest { commit: state.commit }),
            ..Default::default()
        };
        source.merging.proposed = true;
        self.propose_and_look_again(region, region, command::encode_admin(&header(source), request));
    }

    /// Proposes to `to`, and has `region` looked at again when that is over.
    fn propose_and_look_again(self: &Rc<Self>, region: RegionId, to: RegionId, data: bytes::Bytes) {
        let answer = self.propose(to, Body::Admin(data));
        let shard = self.clone();
        executor::spawn_local(Class::Raft, async move {
            if let Ok(Err(error)) = answer.await {
                tracing::debug!(%region, %to, %error, "a step of a merge is refused");
            }
            shard.push(Input::MergeTried(region));
        });
    }

    pub(crate) fn merge_tried(&self, region: RegionId) {
        if let Some(peer) = self.peers.borrow_mut().get_mut(&region) {
            peer.merging.proposed = false;
        }
    }

    /// Stops the sources of waiting targets that have applied all that counts, and has what is needed flushed.
    pub(crate) fn absorb(&self, turn: &mut Turn) {
        for target in std::mem::take(&mut turn.merging) {
            let waits = |peer: &PeerState| !peer.merging.parked.is_empty() && !peer.merging.absorbing;
            if !self.peers.borrow().get(&target).is_some_and(waits) {
                continue;
            }
            let Some(merge) = self.waiting_merge(target) else {
                // It is on its way to another shard, and may come back from that.
                turn.merging_later.insert(target);
                continue;
            };
            let source = RegionId(merge.source.as_ref().map_or(0, |source| source.id));
            if self.stop_source(source, target, merge.commit, turn) {
                if let Some(peer) = self.peers.borrow_mut().get_mut(&target) {
                    peer.merging.absorbing = true;
                }
                turn.after_flush.push(AfterFlush::Merge { target });
            } else {
                tracing::debug!(%target, %source, commit = merge.commit, "waits for its source");
                turn.merging_later.insert(target);
            }
        }
    }

    /// The source that `target` waits for ended on this node as its peer `peer`, without having been taken over: only a
    /// snapshot brings the target past the merge. Who leads lets another one do so.
    pub(crate) fn source_ended(&self, target: RegionId, source: RegionId, peer: PeerId) {
        let Some(merge) = self.waiting_merge(target) else { return };
        let own = merge.source.iter().flat_map(|source| &source.peers).find(|peer| peer.store_id == self.store.0);
        let is_it = merge.source.as_ref().is_some_and(|region| region.id == source.0);
        let now = executor::now();
        let mut peers = self.peers.borrow_mut();
        let Some(held) = peers.get_mut(&target) else { return };
        if !is_it || own.is_none_or(|own| own.id > peer.0) || held.merging.asked_again > now {
            return;
        }
        held.merging.is_stranded = true;
        held.merging.asked_again = now + SNAPSHOT_PAUSE;
        if !held.leads() {
            if let Some((leader, letter)) = held.snapshot_request() {
                self.outlet.send_raft(leader, letter);
            }
        } else if let Some(heir) = held.heir() {
            self.push(Input::Transfer { region: target, to: heir });
        }
    }

    /// The merge that `target` waits for, unless its flush is under way.
    fn waiting_merge(&self, target: RegionId) -> Option<raft_cmdpb::CommitMergeRequest> {
        let peers = self.peers.borrow();
        let peer = peers.get(&target).filter(|peer| peer.phase == Phase::Serving && !peer.merging.absorbing)?;
        committed_merge(&peer.meta, &peer.merging.parked.first()?.entry)
    }

    /// Stops the source, if it is here, is not on its way, and has applied all but PrepareMerge, at `commit`. One that
    /// has not is told that all of its log up to there is committed: its group may be gone, and tells it no more.
    fn stop_source(&self, source: RegionId, target: RegionId, commit: u64, turn: &mut Turn) -> bool {
        let mut peers = self.peers.borrow_mut();
        let Some(peer) = peers.get_mut(&source) else {
            self.outlet.bring_together(source, target, 0);
            return false;
        };
        if peer.phase != Phase::Serving || peer.merging.absorbing || !peer.merging.parked.is_empty() {
            return false;
        }
        if peer.meta.applied_index + 1 < commit {
            peer.raft.handle(RaftInput::KnownCommitted { index: commit - 1 });
            turn.dirty.insert(source);
            // A turn, to apply it in.
            self.push(Input::LookAtMerge(source));
            return false;
        }
        peer.phase = Phase::Stopped;
        peer.fail_waiters(&RegionError::Undetermined);
        true
    }

    /// The engine holds source and target durably up to the merge: the record, then its effects.
    pub(crate) async fn merge_flushed(
        &self,
        target: RegionId,
        turn: &mut Turn,
        log: &RaftLog,
    ) -> Result<(), ShardFailure> {
        let (entry, merge, mut meta) = {
            let peers = self.peers.borrow();
            let peer = peers.get(&target).expect("a target that absorbs its source stays");
            let entry = peer.merging.parked[0].entry.clone();
            let merge = committed_merge(&peer.meta, &entry).expect("checked when it was parked");
            (entry, merge, peer.meta.clone())
        };
        let source = RegionId(merge.source.as_ref().map_or(0, |source| source.id));
        let source_meta = self.peers.borrow().get(&source).map(|peer| peer.meta.clone());
        let source_meta = source_meta.expect("a source that was stopped stays until its end");
        let event = self.next_event();
        let record = MergeRecord {
            index: entry.index,
            term: entry.term,
            source: source.0,
            source_peer: source_meta.peer.id,
            region: merged(&meta, &merge),
            commit: merge.commit,
        };
        let before = meta.region.clone();
        let mut batch = self.engine.batch();
        apply_merge(&mut meta, Some(&source_meta), &record, &mut batch).map_err(ShardFailure::Log)?;
        put_event(&mut batch, event);
        let ends = vec![LogEffect::End { region: source, peer: source_meta.peer_id() }];
        log.append(lifecycle(event, LifecycleKind::CommitMerge, &meta, ends, &record)).map_err(log_failed)?;
        self.commit(log).await?;
        self.write_engine(batch).await?;
        let merged = Some(merged_away(source_meta.began_version, &before));
        let tombstone = Tombstone { peer: source_meta.peer_id(), merged };
        self.tombstones.borrow_mut().insert(source, tombstone.clone());
        self.finish_merge(target, source, meta, turn);
        self.outlet.ended(self.id, source, tombstone);
        add(&self.metrics.merges_total, 1);
        Ok(())
    }

    /// The target has the range: it goes on with what was committed after the merge.
    fn finish_merge(&self, target: RegionId, source: RegionId, meta: PeerMeta, turn: &mut Turn) {
        let mut peers = self.peers.borrow_mut();
        if let Some(mut gone) = peers.remove(&source) {
            gone.fail_waiters(&RegionError::RegionNotFound(source));
        }
        let Some(peer) = peers.get_mut(&target) else { return };
        peer.meta = meta;
        peer.merging.absorbing = false;
        peer.raft.set_region((*peer.meta.region).clone());
        peer.raft.handle(RaftInput::Applied { index: peer.meta.applied_index });
        let mut parked = std::mem::take(&mut peer.merging.parked);
        let waiter = parked.remove(0).proposal.and_then(|id| peer.waiting.remove(&id));
        if let Some(waiter) = waiter {
            waiter.answer(Ok(Default::default()));
        }
        if !parked.is_empty() {
            turn.committed.push((target, parked));
        }
        turn.dirty.insert(target);
        self.finish_reads(target, peer, turn);
        let region = (*peer.meta.region).clone();
        let (index, leads) = (peer.meta.applied_index, peer.leads());
        tracing::info!(region = %target, %source, index, leads, "regions merged");
        self.outlet.reranged(self.id, region, peer.meta.approximate_bytes);
        if peer.leads() {
            self.outlet.report(peer.report(self.id));
        }
    }
}

/// What a tombstone says of a merge into `target`, which was so before.
pub(crate) fn merged_away(began_version: u64, target: &metapb::Region) -> Arc<Merged> {
    Arc::new(Merged { began_version, target: target.clone() })
}

/// The state of a region's peer in family `raft`.
pub(crate) fn local_state(meta: &PeerMeta) -> raft_serverpb::PeerState {
    match meta.merge {
        Some(_) => raft_serverpb::PeerState::Merging,
        None => raft_serverpb::PeerState::Normal,
    }
}
