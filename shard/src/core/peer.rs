//! One region's peer on its shard: raft, what was applied, and who waits for what.

use std::collections::BTreeMap;

use base::{Instant, StoreId};
use futures_channel::oneshot;
use proto::{kvrpcpb, metapb};

use super::apply::epoch_not_match;
use super::chain::Marks;
use super::compare::RegionHash;
use super::error::RegionError;
use super::lease::Lease;
use super::mail::{RegionDescription, RegionReport};
use super::merge::Merging;
use super::meta::PeerMeta;
use super::replication::Contacts;
use super::work::Work;

/// A follower is reported as down after so long without a word (`raftstore.max-peer-down-duration`).
const PEER_DOWN_AFTER: std::time::Duration = std::time::Duration::from_secs(600);

/// A follower that was heard of within this time is alive and not on its way to another shard: it answers every heartbeat.
pub(crate) const HEARD_LATELY: std::time::Duration = std::time::Duration::from_millis(300);

/// What a peer may do at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Everything.
    Serving,
    /// It hands its region to another shard: it reads, and refuses writes.
    Frozen,
    /// It arrived from another shard, whose copy still reads: it does nothing until it is told to serve.
    Asleep,
    /// Its end is under way, or files are about to replace its data: it does nothing any more.
    Stopped,
    /// Its part of the log is damaged: it does nothing, and keeps its term and vote.
    Damaged,
    /// Its data differ from its leader's: it does nothing any more, and is replaced.
    Diverged,
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
    /// When they began, in seconds since the epoch.
    pub(crate) since: u64,
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
    /// When it ceased to lead, while writes from then wait.
    pub(crate) deposed: Option<Instant>,
    /// Term and last index of the log when those who waited were told that their results are not known. They hold no
    /// latches and no locks in memory any more, so nothing is served in that term before all of it is applied.
    unsettled: Option<(u64, u64)>,
    pub(crate) traffic: Traffic,
    /// What it has cost this core.
    pub(crate) work: Work,
    /// Bytes and keys written since the size was measured.
    pub(crate) unmeasured: (u64, u64),
    pub(crate) measuring: bool,
    pub(crate) contacts: Contacts,
    /// When a leader was heard of, or missed, last.
    pub(crate) led_at: Instant,
    pub(crate) marks: Marks,
    /// What the last full comparison found here.
    pub(crate) hashed: Option<Box<RegionHash>>,
    /// The index of the comparison that goes on.
    pub(crate) hashing: Option<u64>,
    pub(crate) lease: Lease,
    /// Followers that get a snapshot, and until when no other one is begun.
    pub(crate) snapshots: BTreeMap<u64, Instant>,
    /// The last report named followers that had nothing.
    pub(crate) reported_pending: bool,
    /// A committed entry removes this peer: it applies nothing more, and ends. See [`super::removal`].
    pub(crate) leaving: bool,
    /// Ticks after which a peer that leaves asks again whether it may go.
    pub(crate) asks_in: u32,
    /// Whether a restart finds the last change of members committed.
    pub(crate) members_durable: bool,
    /// Ticks after which a peer that led before it moved asks for the leadership back; 0: it does not.
    pub(crate) reclaims_in: u32,
    pub(crate) merging: Merging,
    /// What the last split here made of the region, this peer's part left out: for clients with the epoch of before.
    split_off: Vec<metapb::Region>,
}

impl Traffic {
    fn begin() -> Traffic {
        Traffic { since: executor::unix_time().seconds(), ..Traffic::default() }
    }
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
            traffic: Traffic::begin(),
            work: Work::default(),
            unmeasured: (0, 0),
            measuring: false,
            contacts: Contacts::default(),
            led_at: executor::now(),
            marks: Marks::default(),
            hashed: None,
            hashing: None,
            deposed: None,
            unsettled: None,
            lease: Lease::default(),
            snapshots: BTreeMap::new(),
            reported_pending: false,
            leaving: false,
            asks_in: 0,
            members_durable: true,
            reclaims_in: 0,
            merging: Merging::default(),
            split_off: Vec::new(),
        }
    }

    /// Remembers the results of a split that was applied here.
    pub(crate) fn note_split(&mut self, regions: &[metapb::Region]) {
        let own = self.meta.region.id;
        self.split_off = regions.iter().filter(|region| region.id != own).cloned().collect();
    }

    /// The error for a request of epoch `version`, with all regions that its keys may be in, as far as they are known.
    fn epoch_not_match(&self, version: u64) -> RegionError {
        let mut current = vec![(*self.meta.region).clone()];
        // A client that is further behind, or ahead, would get neighbours that it did not ask for.
        let before = self.meta.version().saturating_sub(self.split_off.len() as u64);
        if version == before {
            current.extend(self.split_off.iter().cloned());
        }
        epoch_not_match(&self.meta, current)
    }

    pub(crate) fn leads(&self) -> bool {
        self.leader == Some(self.meta.peer.id)
    }

    /// Whether it leads and knows all that was promised to clients, by others before it and by itself.
    pub(crate) fn serves(&self) -> bool {
        let is_settled = |(term, index): (u64, u64)| term != self.term || self.meta.applied_index >= index;
        self.leads() && self.readable && self.unsettled.is_none_or(is_settled)
    }

    /// The leader as clients are told.
    pub(crate) fn leader_peer(&self) -> Option<metapb::Peer> {
        let leader = self.leader?;
        self.meta.region.peers.iter().find(|peer| peer.id == leader).cloned()
    }

    /// The checks that every request passes that only a leader serves, in the order of `compat/4-store.md` 4.1.
    pub(crate) fn check(&self, store: StoreId, context: &kvrpcpb::Context) -> Result<(), RegionError> {
        self.check_here(store, context)?;
        if !self.serves() {
            let region = self.meta.region_id();
            if self.leads() && !self.readable {
                // It has just been elected, and serves in a moment.
                return Err(RegionError::Moving(region));
            }
            return Err(RegionError::NotLeader { region, leader: self.leader_peer().filter(|_| !self.leads()) });
        }
        self.check_age(context)
    }

    /// Of those checks, what comes before the question who leads.
    pub(crate) fn check_here(&self, store: StoreId, context: &kvrpcpb::Context) -> Result<(), RegionError> {
        let region = self.meta.region_id();
        let asked = context.peer.as_ref();
        check_store(store, context)?;
        if let Some(peer) = asked.filter(|peer| peer.id != self.meta.peer.id) {
            let (request, actual) = (peer.id.into(), self.meta.peer_id());
            return Err(RegionError::MismatchPeerId { region, request, actual });
        }
        match self.phase {
            Phase::Damaged => return Err(RegionError::Damaged(region)),
            Phase::Diverged => return Err(RegionError::Diverged(region)),
            Phase::Asleep => return Err(RegionError::Moving(region)),
            Phase::Stopped => return Err(RegionError::StaleCommand),
            Phase::Serving | Phase::Frozen => {}
        }
        if self.raft.is_sole_voter() && !(self.leads() && self.readable) {
            // Just born, or just arrived: it will lead in a moment, and nobody else can.
            return Err(RegionError::Moving(region));
        }
        Ok(())
    }

    /// And what comes after it.
    pub(crate) fn check_age(&self, context: &kvrpcpb::Context) -> Result<(), RegionError> {
        if context.term != 0 && self.term > context.term.saturating_add(1) {
            return Err(RegionError::StaleCommand);
        }
        if self.is_merging() {
            return Err(RegionError::Merging(self.meta.region_id()));
        }
        let version = context.region_epoch.as_ref().map_or(0, |epoch| epoch.version);
        if version != self.meta.version() {
            return Err(self.epoch_not_match(version));
        }
        Ok(())
    }

    /// What PD is told; the traffic counts start again at zero.
    pub(crate) fn report(&mut self, shard: base::ShardId) -> RegionReport {
        let pending = self.pending_peers();
        self.reported_pending = !pending.is_empty();
        let traffic = std::mem::replace(&mut self.traffic, Traffic::begin());
        RegionReport {
            shard,
            region: (*self.meta.region).clone(),
            leader: self.meta.peer,
            term: self.term,
            pending,
            down: self.down_peers(),
            approximate_bytes: self.meta.approximate_bytes.max(1),
            approximate_keys: self.meta.approximate_keys,
            bytes_written: traffic.bytes_written,
            keys_written: traffic.keys_written,
            bytes_read: traffic.bytes_read,
            keys_read: traffic.keys_read,
            counted_since: traffic.since,
        }
    }

    /// Who leads best instead of this leader: the voter that has most of the log, if one was heard of lately.
    pub(crate) fn heir(&self) -> Option<base::PeerId> {
        self.heir_of(executor::now())
    }

    /// As [`heir`](Self::heir), with what is known since `now`, which may be the past: a turn that stands still hears nobody.
    pub(crate) fn heir_of(&self, now: base::Instant) -> Option<base::PeerId> {
        let is_voter =
            |id: u64| self.meta.region.peers.iter().any(|peer| peer.id == id && peer.role() == metapb::PeerRole::Voter);
        let followers = self.raft.followers().into_iter();
        let candidates =
            followers.filter(|(id, _)| is_voter(id.0) && self.contacts.heard_within(id.0, now, HEARD_LATELY));
        candidates.max_by_key(|(_, matched)| *matched).map(|(id, _)| id)
    }

    /// Followers that have nothing yet.
    pub(crate) fn pending_peers(&self) -> Vec<metapb::Peer> {
        let behind: Vec<u64> =
            self.raft.followers().into_iter().filter(|(_, matched)| *matched == 0).map(|(peer, _)| peer.0).collect();
        self.meta.region.peers.iter().filter(|peer| behind.contains(&peer.id)).copied().collect()
    }

    /// Followers that were not heard of for long, with the seconds since.
    fn down_peers(&mut self) -> Vec<(metapb::Peer, u64)> {
        let now = executor::now();
        let others = self.meta.region.peers.iter().filter(|peer| peer.id != self.meta.peer.id);
        let silent = others.map(|peer| (*peer, now.since(self.contacts.heard_or(peer.id, now))));
        silent
            .filter(|(_, silence)| *silence > PEER_DOWN_AFTER)
            .map(|(peer, silence)| (peer, silence.as_secs()))
            .collect()
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
            chain: self.meta.chain.to_string(),
            diverged: self.phase == Phase::Diverged,
            hashed: self.hashed.as_deref().cloned(),
            hashing: self.hashing,
            approximate_bytes: self.meta.approximate_bytes,
            approximate_keys: self.meta.approximate_keys,
            moves: self.meta.move_number,
        }
    }

    /// Those who wait for writes are told that the result is not known.
    pub(crate) fn fail_writes(&mut self) {
        for waiter in std::mem::take(&mut self.waiting).into_values() {
            waiter.answer(Err(RegionError::Undetermined));
        }
    }

    /// Everybody who waits is told that the result is not known, although it may yet be this peer that makes it known.
    pub(crate) fn give_waiters_up(&mut self) {
        self.unsettled = Some((self.term, self.raft.last_index()));
        self.fail_waiters(&RegionError::Undetermined);
    }

    /// Everybody who waits is told `error`.
    pub(crate) fn fail_waiters(&mut self, error: &RegionError) {
        // A read that was not answered was surely not done.
        let is_open = *error == RegionError::Undetermined;
        let refused = RegionError::NotLeader { region: self.meta.region_id(), leader: None };
        self.lease.end(if is_open { &refused } else { error });
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
