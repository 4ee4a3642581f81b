//! Beginnings and ends of peers: created, taken over from another shard, installed from files, moved away, destroyed.
//!
//! Each is an event with a record in the log, durable before any of its effects is in the engine, so that recovery can
//! do it again:
//!
//! ```text
//!  created, taken over:     record ─▶ state
//!  moved away, destroyed:   peer stops ─▶ flush ─▶ record ─▶ data and state erased
//!  ingested:                peer stops ─▶ flush ─▶ record `applying` ─▶ flush, range emptied, files ingested, state
//!                             ─▶ flush ─▶ record `applied`, files removed ─▶ peer serves
//!    without files:        [peer stops ─▶ flush ─▶] record `applying` with the data ─▶ range emptied, data, state
//!                             ─▶ peer serves
//! ```
//!
//! With a record that ends a peer, or begins its log anew, the log forgets the peer's entries. Among them may be splits
//! whose children live on, so the engine must hold them before: that is the flush in front of such a record. It runs
//! beside the turns, and one flush serves all who wait for it. The ingest itself runs inside the turn, since events take
//! effect in their order and the engine takes no writes meanwhile; after the flush it finds little to write out.
//!
//! Data without files is in its record as entries are in theirs: it goes through the memtable in one batch with its event's
//! number, so a crash finds all of it or none, and then the record has it. The range of a peer that is new here was given up
//! by others in events before it, which recovery replays with all that came before them; so nothing needs a flush there.
//! A peer that is replaced loses its entries, and waits for one.
//!
//! A destroyed peer leaves its region state behind as a tombstone: no peer of that region with its id or a lower one
//! begins here again.

use base::{PeerId, RegionId};
use bytes::Bytes;
use futures_channel::oneshot;
use mvcc::Cf;
use prost::Message as _;
use raftstore::LogPosition;

use super::chain::Chain;
use super::directory::Tombstone;
use super::error::RegionError;
use super::lease::quiet_ticks;
use super::meta::{INITIAL_INDEX, PeerMeta, erase_range};
use super::peer::{PeerState, Phase};
use super::planted::PlantedFault;
use super::records::{EndRecord, HomeRecord, SHARD_STATE_KEY, ShardState};
use super::recovery::decode_entries;
use super::shard::{Input, Shard, add};
use super::turn::{AfterFlush, ShardFailure, Turn, log_failed};
use crate::engine::{Engine, WriteBatch};
use crate::log::{HardState, Lifecycle, LifecycleKind, LogEffect, LogEntry, Position, RaftLog, Record, Scope};

/// What a peer takes with it to another shard of its node, beside its data.
pub(crate) struct Departure {
    pub(crate) home: Box<HomeRecord>,
    /// The entries of its log that it has not applied.
    pub(crate) tail: Vec<LogEntry>,
}

/// Where the outcome of an event goes.
pub(crate) type EventReply = oneshot::Sender<Result<(), RegionError>>;

impl<E: Engine> Shard<E> {
    /// The number of the next event.
    pub(crate) fn next_event(&self) -> u64 {
        self.last_event.set(self.last_event.get() + 1);
        self.last_event.get()
    }

    /// Makes the record of an event durable, then writes its effects.
    pub(crate) async fn carry_out_event(
        &self,
        record: Record,
        batch: E::Batch,
        log: &RaftLog,
    ) -> Result<(), ShardFailure> {
        if self.config.is_planted(PlantedFault::EngineBeforeRecord) {
            self.write_engine(batch).await?;
            log.append(record).map_err(log_failed)?;
            return self.commit(log).await;
        }
        log.append(record).map_err(log_failed)?;
        self.commit(log).await?;
        self.write_engine(batch).await
    }

    /// Whether `meta`'s peer may begin here: none of its region is here, nor one with a key of its range, and no peer
    /// with its id or a higher one was destroyed.
    pub(crate) fn may_begin(&self, meta: &PeerMeta) -> bool {
        let buried = self.tombstones.borrow().get(&meta.region_id()).map(|tombstone| tombstone.peer);
        let region = &meta.region;
        buried.is_none_or(|buried| meta.peer_id() > buried)
            && !self.peers.borrow().values().any(|peer| {
                let other = &peer.meta.region;
                other.id == region.id
                    || base::keys::overlaps(&other.start_key, &other.end_key, &region.start_key, &region.end_key)
            })
    }

    /// Makes a region's first peer here, with an empty range.
    pub(crate) async fn step_create(
        &self,
        region: proto::metapb::Region,
        log: &RaftLog,
    ) -> Result<Result<(), RegionError>, ShardFailure> {
        let Some(meta) = PeerMeta::first(region.clone(), self.store).filter(|meta| self.may_begin(meta)) else {
            return Ok(Err(RegionError::StaleCommand));
        };
        let id = meta.region_id();
        let event = self.next_event();
        let starts = vec![start_effect(&meta, first_state())];
        let record = HomeRecord {
            region: Some(region),
            peer_id: meta.peer.id,
            term: INITIAL_INDEX,
            applied_index: INITIAL_INDEX,
            applied_term: INITIAL_INDEX,
            ..Default::default()
        };
        let record = lifecycle(event, LifecycleKind::Created, &meta, starts, &record);
        let mut batch = self.engine.batch();
        erase_range(&mut batch, &meta.region.start_key, &meta.region.end_key);
        meta.put_all(&mut batch);
        put_event(&mut batch, event);
        self.carry_out_event(record, batch, log).await?;
        let peer = self.fresh_peer(meta);
        self.peers.borrow_mut().insert(id, peer);
        self.push(Input::Campaign(id));
        Ok(Ok(()))
    }

    /// Takes a peer over whose data is durable in this engine. It sleeps until it is told to campaign.
    pub(crate) async fn install(
        &self,
        home: HomeRecord,
        tail: Vec<LogEntry>,
        log: &RaftLog,
    ) -> Result<Result<(), RegionError>, ShardFailure> {
        let Some(meta) = home_meta(&home, self.store).filter(|meta| self.may_begin(meta)) else {
            return Ok(Err(RegionError::StaleCommand));
        };
        let region = meta.region_id();
        let event = self.next_event();
        let starts = vec![start_effect_with(&meta, home_state(&home), &tail)];
        let record = lifecycle(event, LifecycleKind::Home, &meta, starts, &home);
        let mut batch = self.engine.batch();
        meta.put_all(&mut batch);
        put_event(&mut batch, event);
        if self.config.is_planted(PlantedFault::MoveWithoutHome) {
            self.write_engine(batch).await?;
        } else {
            self.carry_out_event(record, batch, log).await?;
        }
        let peer = self.sleeping_peer(meta, home_state(&home), tail)?;
        self.peers.borrow_mut().insert(region, peer);
        add(&self.metrics.moves_in_total, 1);
        Ok(Ok(()))
    }

    /// A peer that knows of no entry but those that are applied and `tail`.
    pub(crate) fn sleeping_peer(
        &self,
        meta: PeerMeta,
        state: HardState,
        tail: Vec<LogEntry>,
    ) -> Result<PeerState, ShardFailure> {
        let mut init = raftstore::PeerInit::first((*meta.region).clone(), meta.peer);
        init.seed = self.seed;
        init.quiet_ticks = quiet_ticks(&self.config);
        init.hard_state.term = state.term;
        init.hard_state.vote = state.vote;
        init.hard_state.commit = meta.applied_index;
        init.applied = LogPosition { index: meta.applied_index, term: meta.applied_term };
        init.truncated = init.applied;
        init.entries = decode_entries(tail).collect();
        let raft = raftstore::Peer::new(init, &self.config.raft)
            .map_err(|error| ShardFailure::Log(format!("home record of region {}: {error}", meta.region.id)))?;
        Ok(PeerState::new(meta, raft, Phase::Asleep))
    }

    /// Lets go of a peer that lives on another shard now. Its mover has flushed what it did here.
    pub(crate) async fn end(&self, region: RegionId, log: &RaftLog) -> Result<Result<(), RegionError>, ShardFailure> {
        let Some(meta) = self.peers.borrow().get(&region).map(|peer| peer.meta.clone()) else {
            return Ok(Err(RegionError::RegionNotFound(region)));
        };
        let event = self.next_event();
        let mut batch = self.engine.batch();
        meta.erase(&mut batch);
        put_event(&mut batch, event);
        if let Some(mut peer) = self.peers.borrow_mut().remove(&region) {
            peer.fail_waiters(&RegionError::Moving(region));
        }
        self.carry_out_event(end_event(event, LifecycleKind::MovedAway, &meta), batch, log).await?;
        Ok(Ok(()))
    }

    /// Stops a peer that is to be destroyed; the rest waits for the next flush.
    pub(crate) fn step_destroy(&self, region: RegionId, peer: PeerId, reply: EventReply, turn: &mut Turn) {
        let held = self.peers.borrow().get(&region).map(|held| held.meta.peer_id());
        let stopped = match held {
            None => Err(RegionError::RegionNotFound(region)),
            Some(actual) if actual != peer => Err(RegionError::MismatchPeerId { region, request: peer, actual }),
            Some(_) => self.stop_peer(region),
        };
        match stopped {
            Ok(()) => turn.after_flush.push(AfterFlush::Destroy { region, reply }),
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    /// Stops the peer of `region`, if there is one: from now on it takes, applies and answers nothing. A peer that is
    /// moving, or whose end is under way, is busy.
    pub(crate) fn stop_peer(&self, region: RegionId) -> Result<(), RegionError> {
        if let Some(peer) = self.peers.borrow_mut().get_mut(&region) {
            if !matches!(peer.phase, Phase::Serving | Phase::Damaged | Phase::Diverged) || peer.merging.absorbing {
                return Err(busy("the peer is on its way"));
            }
            peer.phase = Phase::Stopped;
            peer.fail_waiters(&RegionError::Undetermined);
        }
        Ok(())
    }

    /// Destroys a stopped peer; the engine holds durably what it applied.
    pub(crate) async fn destroy_flushed(
        &self,
        region: RegionId,
        reply: EventReply,
        log: &RaftLog,
    ) -> Result<(), ShardFailure> {
        let meta = self.peers.borrow_mut().remove(&region).map(|peer| peer.meta);
        let meta = meta.expect("a stopped peer stays until its end");
        let event = self.next_event();
        let mut batch = self.engine.batch();
        meta.bury(&mut batch);
        put_event(&mut batch, event);
        self.carry_out_event(end_event(event, LifecycleKind::Destroyed, &meta), batch, log).await?;
        let tombstone = Tombstone::of(meta.peer_id());
        self.tombstones.borrow_mut().insert(region, tombstone.clone());
        self.outlet.ended(self.id, region, tombstone);
        // Whoever asked may be gone.
        let _ = reply.send(Ok(()));
        Ok(())
    }
}

pub(crate) fn busy(reason: &str) -> RegionError {
    RegionError::ServerIsBusy { reason: reason.into(), backoff_ms: 100 }
}

/// The range of `meta`'s region, without `z`.
pub(crate) fn range_of(meta: &PeerMeta) -> (Bytes, Bytes) {
    (meta.region.start_key.clone(), meta.region.end_key.clone())
}

/// Puts the number of the last event whose effects are in `batch`.
pub(crate) fn put_event(batch: &mut impl WriteBatch, event: u64) {
    batch.put(Cf::Raft, SHARD_STATE_KEY, &ShardState { last_event: event }.encode_to_vec());
}

/// A lifecycle record about `meta`'s peer.
pub(crate) fn lifecycle(
    event: u64,
    kind: LifecycleKind,
    meta: &PeerMeta,
    effects: Vec<LogEffect>,
    payload: &impl prost::Message,
) -> Record {
    let scope = Scope {
        conf_ver: meta.conf_ver(),
        version: meta.version(),
        start: meta.region.start_key.clone(),
        end: meta.region.end_key.clone(),
        applied: meta.applied_index,
        move_number: meta.move_number,
    };
    Record::Lifecycle(Lifecycle {
        event,
        kind,
        region: meta.region_id(),
        peer: meta.peer_id(),
        scope,
        effects,
        payload: payload.encode_to_vec().into(),
    })
}

/// The record of a peer's end on this shard.
pub(crate) fn end_event(event: u64, kind: LifecycleKind, meta: &PeerMeta) -> Record {
    let (start, end) = range_of(meta);
    let record = EndRecord { applied_index: meta.applied_index, start, end, move_number: meta.move_number };
    let ends = vec![LogEffect::End { region: meta.region_id(), peer: meta.peer_id() }];
    lifecycle(event, kind, meta, ends, &record)
}

/// The log of `meta`'s peer begins after what is applied.
pub(crate) fn start_effect(meta: &PeerMeta, hard_state: HardState) -> LogEffect {
    start_effect_with(meta, hard_state, &[])
}

/// And goes on with `tail`.
pub(crate) fn start_effect_with(meta: &PeerMeta, hard_state: HardState, tail: &[LogEntry]) -> LogEffect {
    LogEffect::Start {
        region: meta.region_id(),
        peer: meta.peer_id(),
        hard_state,
        truncated: Position { index: meta.applied_index, term: meta.applied_term },
        entries: tail.to_vec(),
    }
}

/// The hard state of a new region's peers.
pub(crate) fn first_state() -> HardState {
    HardState { term: INITIAL_INDEX, vote: 0, commit: INITIAL_INDEX }
}

/// What a peer hands over to its next shard.
pub(crate) fn home_record(peer: &PeerState) -> HomeRecord {
    let state = peer.raft.hard_state();
    HomeRecord {
        region: Some((*peer.meta.region).clone()),
        peer_id: peer.meta.peer.id,
        move_number: peer.meta.move_number + 1,
        term: state.term,
        vote: state.vote,
        applied_index: peer.meta.applied_index,
        applied_term: peer.meta.applied_term,
        approximate_bytes: peer.meta.approximate_bytes,
        approximate_keys: peer.meta.approximate_keys,
        began_version: peer.meta.began_version,
        merge: peer.meta.merge.clone(),
        chain: peer.meta.chain.record(),
    }
}

/// What a home record says of the peer. `None` if the region has no peer of that id on `store`.
pub(crate) fn home_meta(home: &HomeRecord, store: base::StoreId) -> Option<PeerMeta> {
    let mut meta = PeerMeta::first(home.region.clone()?, store).filter(|meta| meta.peer.id == home.peer_id)?;
    meta.applied_index = home.applied_index;
    meta.applied_term = home.applied_term;
    meta.move_number = home.move_number;
    meta.approximate_bytes = home.approximate_bytes;
    meta.approximate_keys = home.approximate_keys;
    meta.merge.clone_from(&home.merge);
    if home.began_version > 0 {
        meta.began_version = home.began_version;
    }
    meta.chain = Chain::of_record(home.chain, meta.region_id(), home.applied_index);
    Some(meta)
}

/// What a home record says of the peer's promises.
pub(crate) fn home_state(home: &HomeRecord) -> HardState {
    HardState { term: home.term.max(home.applied_term), vote: home.vote, commit: home.applied_index }
}

/// The region that a home record is about; 0 if it says none.
pub(crate) fn region_of(home: &HomeRecord) -> RegionId {
    RegionId(home.region.as_ref().map_or(0, |region| region.id))
}
