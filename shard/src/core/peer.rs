//! One region's peer on its shard: raft, what was applied, and who waits for what.

use std::collections::BTreeMap;

use base::{Instant, StoreId};
use futures_channel::oneshot;
use proto::{kvrpcpb, metapb};

use super::apply::epoch_not_match;
use super::error::RegionError;
use super::mail::{RegionDescription, RegionReport};
use super::meta::PeerMeta;

/// What a peer may do at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Everything.
    Serving,
    /// It hands its region to another shard: it reads, and refuses writes.
    Frozen,
    /// It arrived from another shard, whose copy still reads: it does nothing until it is told to serve.
    Asleep,
    /// Its part of the log is damaged: it does nothing, and keeps its term and vote.
    Damaged,
}

/// The answer to a write or a split that was applied.
#[derive(Clone, Debug, Default)]
pub struct Done {
    /// Index of its entry.
    pub index: u64,
    /// When the turn took it up.
    pub proposed: Instant,
    /// When its entry was durable.
    pub persisted: Instant,
    /// When its effects were in the engine.
    pub applied: Instant,
    /// The resulting regions in key order, if it was a split.
    pub regions: Vec<metapb::Region>,
}

/// Somebody who waits for an entry.
pub(crate) struct Waiter {
    pub(crate) proposed: Instant,
    pub(crate) reply: oneshot::Sender<Result<Done, RegionError>>,
}

/// Counts since the last report to PD.
#[derive(Clone, Debug, Default)]
pub(crate) struct Traffic {
    pub(crate) bytes_written: u64,
    pub(crate) keys_written: u64,
    pub(crate) bytes_read: u64,
    pub(crate) keys_read: u64,
}

pub(crate) struct PeerState {
    pub(crate) meta: PeerMeta,
    pub(crate) raft: raftstore::Peer,
    pub(crate) phase: Phase,
    pub(crate) term: u64,
    pub(crate) leader: Option<u64>,
    /// True once this leader has applied an entry of its own term: only then does it know all that was committed.
    pub(crate) readable: bool,
    /// Proposals given to raft and not answered, by the id that raft knows them by.
    pub(crate) waiting: BTreeMap<u64, Waiter>,
    pub(crate) traffic: Traffic,
    /// Bytes and keys written since the size was measured.
    pub(crate) unmeasured: (u64, u64),
    pub(crate) measuring: bool,
}

impl PeerState {
    pub(crate) fn new(meta: PeerMeta, raft: raftstore::Peer, phase: Phase) -> PeerState {
        PeerState {
            meta,
            raft,
            phase,
            term: 0,
            leader: None,
            readable: false,
            waiting: BTreeMap::new(),
            traffic: Traffic::default(),
            unmeasured: (0, 0),
            measuring: false,
        }
    }

    pub(crate) fn leads(&self) -> bool {
        self.leader == Some(self.meta.peer.id)
    }

    /// The leader as clients are told.
    pub(crate) fn leader_peer(&self) -> Option<metapb::Peer> {
        let leader = self.leader?;
        self.meta.region.peers.iter().find(|peer| peer.id == leader).cloned()
    }

    /// The checks that every request passes, in the order of `compat/4-store.md` 4.1.
    pub(crate) fn check(&self, store: StoreId, context: &kvrpcpb::Context) -> Result<(), RegionError> {
        let region = self.meta.region_id();
        let asked = context.peer.as_ref();
        check_store(store, context)?;
        if let Some(peer) = asked.filter(|peer| peer.id != self.meta.peer.id) {
            let (request, actual) = (peer.id.into(), self.meta.peer_id());
            return Err(RegionError::MismatchPeerId { region, request, actual });
        }
        match self.phase {
            Phase::Damaged => return Err(RegionError::Damaged(region)),
            Phase::Asleep => return Err(RegionError::Moving(region)),
            Phase::Serving | Phase::Frozen => {}
        }
        if !self.leads() || !self.readable {
            return Err(RegionError::NotLeader { region, leader: self.leader_peer().filter(|_| !self.leads()) });
        }
        if context.term != 0 && self.term > context.term + 1 {
            return Err(RegionError::StaleCommand);
        }
        let version = context.region_epoch.as_ref().map_or(0, |epoch| epoch.version);
        if version != self.meta.version() {
            return Err(epoch_not_match(&self.meta, vec![(*self.meta.region).clone()]));
        }
        Ok(())
    }

    /// What PD is told; the traffic counts start again at zero.
    pub(crate) fn report(&mut self, shard: base::ShardId) -> RegionReport {
        let traffic = std::mem::take(&mut self.traffic);
        RegionReport {
            shard,
            region: (*self.meta.region).clone(),
            leader: self.meta.peer,
            term: self.term,
            approximate_bytes: self.meta.approximate_bytes.max(1),
            approximate_keys: self.meta.approximate_keys,
            bytes_written: traffic.bytes_written,
            keys_written: traffic.keys_written,
            bytes_read: traffic.bytes_read,
            keys_read: traffic.keys_read,
        }
    }

    pub(crate) fn describe(&self) -> RegionDescription {
        RegionDescription {
            id: self.meta.region.id,
            start_key: hex(&self.meta.region.start_key),
            end_key: hex(&self.meta.region.end_key),
            epoch: format!("{}:{}", self.meta.conf_ver(), self.meta.version()),
            peer: self.meta.peer.id,
            leader: self.leads(),
            term: self.term,
            applied_index: self.meta.applied_index,
            approximate_bytes: self.meta.approximate_bytes,
            approximate_keys: self.meta.approximate_keys,
            moves: self.meta.move_number,
        }
    }

    /// Everybody who waits is told `error`.
    pub(crate) fn fail_waiters(&mut self, error: &RegionError) {
        for waiter in std::mem::take(&mut self.waiting).into_values() {
            waiter.answer(Err(error.clone()));
        }
    }
}

/// The first check of all: the request is for this store.
pub(crate) fn check_store(store: StoreId, context: &kvrpcpb::Context) -> Result<(), RegionError> {
    match &context.peer {
        Some(peer) if peer.store_id != store.0 => {
            Err(RegionError::StoreNotMatch { request: peer.store_id.into(), actual: store })
        }
        _ => Ok(()),
    }
}

/// Upper-case hexadecimal, as PD and TiKV print keys.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, byte| {
        // Writing to a string cannot fail.
        let _ = write!(out, "{byte:02X}");
        out
    })
}
