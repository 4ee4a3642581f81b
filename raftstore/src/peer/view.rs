//! What others may ask of a peer, between inputs.

use super::Peer;
use crate::eraftpb::HardState;
use crate::init::{LogPosition, conf_state};
use crate::io::{Effect, RejectReason};
use base::{PeerId, RegionId};
use proto::metapb;
use raft::{ProgressState, StateRole};

/// What others may know of a peer.
impl Peer {
    /// The region, as of the last [`Peer::set_region`] or [`Input::ConfChanged`].
    pub fn region(&self) -> &metapb::Region {
        &self.region
    }

    /// Replaces the region after a split or a merge changed its range and epoch. Its peers must be the same.
    pub fn set_region(&mut self, region: metapb::Region) {
        assert!(
            raft_proto::conf_state_eq(&conf_state(&region), &conf_state(&self.region)),
            "members change by ConfChanged only"
        );
        self.region = region;
    }

    /// The region's id.
    pub fn region_id(&self) -> RegionId {
        RegionId(self.region.id)
    }

    /// This peer, as its region lists it.
    pub fn peer(&self) -> &metapb::Peer {
        &self.peer
    }

    /// This peer's id.
    pub fn id(&self) -> PeerId {
        PeerId(self.peer.id)
    }

    /// Part, term and leader right now; [`Effect::Role`] may still have to say so.
    pub fn is_leader(&self) -> bool {
        self.node.raft.state == StateRole::Leader
    }

    /// The leader of the present term, if it is known.
    pub fn leader(&self) -> Option<PeerId> {
        Some(PeerId(self.node.raft.leader_id)).filter(|id| id.0 != 0)
    }

    /// The present term.
    pub fn term(&self) -> u64 {
        self.node.raft.term
    }

    /// True if this peer is the only voter, so that it is its own quorum.
    pub fn is_sole_voter(&self) -> bool {
        let conf = self.node.raft.prs().conf();
        self.node.raft.prs().is_singleton() && conf.voters().contains(self.peer.id)
    }

    /// True if the peer leads and has applied an entry of its term: then its engine holds all that was ever
    /// acknowledged. A sole voter may read; others also need a lease or a quorum.
    pub fn is_leader_up_to_date(&self) -> bool {
        self.is_leader() && self.node.raft.apply_to_current_term()
    }

    /// Last index of the log, durable or not.
    pub fn last_index(&self) -> u64 {
        self.node.raft.raft_log.last_index()
    }

    /// Whether the log has this entry, or had it.
    pub fn holds(&self, position: LogPosition) -> bool {
        self.node.raft.raft_log.match_term(position.index, position.term)
    }

    /// Last index known to be committed.
    pub fn committed(&self) -> u64 {
        self.node.raft.raft_log.committed
    }

    /// Last index that was said to be applied.
    pub fn applied(&self) -> u64 {
        self.node.raft.raft_log.applied
    }

    /// Index before the first one that the log holds.
    pub fn truncated(&self) -> u64 {
        self.node.store().truncated()
    }

    /// Place of `index`; `None` before the truncated index and beyond the log's end.
    pub fn position(&self, index: u64) -> Option<LogPosition> {
        let log = &self.node.raft.raft_log;
        if !(self.truncated()..=log.last_index()).contains(&index) {
            return None;
        }
        let term = log.term(index).ok()?;
        Some(LogPosition { index, term })
    }

    /// The hard state of the last [`Effect::Persist`] that had one, or the recovered one.
    pub fn hard_state(&self) -> HardState {
        self.hard_state
    }

    /// Every other member with the index up to which its log is known to match, if this peer leads.
    pub fn followers(&self) -> Vec<(PeerId, u64)> {
        if !self.is_leader() {
            return Vec::new();
        }
        let all = self.node.raft.prs().iter();
        let mut followers: Vec<_> =
            all.filter(|(id, _)| **id != self.peer.id).map(|(id, progress)| (PeerId(*id), progress.matched)).collect();
        followers.sort_unstable();
        followers
    }

    /// To whom this leader would best hand over: of those that could take over at once, the one with most of the log.
    /// `None` if there is none, if this peer does not lead, or if it is handing over already.
    pub fn successor(&self) -> Option<PeerId> {
        self.successor_among(|_| true)
    }

    /// Whether nobody who reads at another member can have seen what this leader has not applied.
    ///
    /// A quorum of others may commit what the leader has not written yet, and apply it when they hear of that, before the
    /// leader does: what one client saw there would be gone for the next one here. Whoever reads there has asked before, so
    /// a leader whom nobody asks in its term need not look.
    pub fn has_applied_what_others_read(&self) -> bool {
        !self.others_read || self.applied() >= self.told_commit
    }

    /// As [`successor`](Self::successor), among those that `fits` says are fit for it.
    pub fn successor_among(&self, fits: impl Fn(PeerId) -> bool) -> Option<PeerId> {
        let followers = self.followers().into_iter().filter(|(id, _)| fits(*id) && self.can_take_over(*id));
        followers.max_by_key(|(id, matched)| (*matched, std::cmp::Reverse(*id))).map(|(id, _)| id)
    }

    /// Whether this peer leads, hands over to nobody yet, and `to` is a voter that answers and keeps up. Others would not
    /// campaign when they are asked to, and until that is noticed the region takes no writes.
    pub fn can_take_over(&self, to: PeerId) -> bool {
        let all = self.node.raft.prs();
        // Who was out of reach once is probed until the next entry, which a frozen region never has.
        let last = self.last_index();
        let keeps_up = |progress: &raft::Progress| {
            progress.recent_active && (progress.state == ProgressState::Replicate || progress.matched == last)
        };
        self.is_leader()
            && to != self.id()
            && self.node.raft.lead_transferee.is_none()
            && all.conf().voters().contains(to.0)
            && all.get(to.0).is_some_and(keeps_up)
    }

    /// What the peer holds in memory, for gauges and budgets.
    pub fn load(&self) -> PeerLoad {
        PeerLoad {
            cached_bytes: self.node.store().cached_bytes(),
            applying_bytes: self.applying_bytes,
            proposals: self.proposals.len(),
            persists: self.outstanding.len(),
        }
    }

    /// Drops applied entries from memory until at most `bytes` of entries are left. Entries not applied yet stay.
    pub fn trim(&mut self, bytes: usize) {
        let applied = self.applied();
        self.node.mut_store().evict(applied, bytes);
    }

    /// Ends the peer: every pending proposal comes out as rejected with `Unknown`.
    pub fn close(mut self) -> impl Iterator<Item = Effect> {
        let reason = RejectReason::Unknown;
        self.proposals.drain().into_iter().map(move |id| Effect::Rejected { id, reason })
    }
}

/// What a peer holds in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerLoad {
    /// Bytes of log entries.
    pub cached_bytes: usize,
    /// Of those, bytes handed out to apply and not applied yet.
    pub applying_bytes: usize,
    /// Proposals not applied yet.
    pub proposals: usize,
    /// `Persist`s not durable yet.
    pub persists: usize,
}
