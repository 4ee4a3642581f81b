//! When a leader may read without asking anybody: the lease.
//!
//! A region with one voter needs none. Any other leader asks a quorum whether it still leads (raft's ReadIndex) and may
//! then read for as long as no member of that quorum can vote for another: the shortest election time-out, counted from
//! when it *sent* the question, less what clocks may drift. One question serves all reads that come meanwhile.
//!
//! That time is measured by two clocks at once, of which one runs on while the machine sleeps and neither is slewed or
//! stepped ([`Clocks`]). When they disagree, there is no lease.
//!
//! Members of the quorum do not vote while they hear of a leader (pre-vote and check-quorum of raft-rs), and not for
//! [`quiet_ticks`] after their own start. A transfer of leadership goes around that: from its order on there is no lease in
//! that term.

use std::rc::Rc;
use std::time::Duration;

use base::{Instant, RegionId};
use executor::Clocks;
use futures_channel::oneshot;
use raftstore::Input as RaftInput;

use super::config::ShardConfig;
use super::error::RegionError;
use super::peer::{PeerState, Phase};
use super::planted::PlantedFault;
use super::shard::{Input, Shard, add};
use super::turn::Turn;
use crate::engine::Engine;

/// How long a read waits for its quorum. Clients give up after a few of these.
const READ_INDEX_WAIT: Duration = Duration::from_secs(1);
/// Ticks after which a follower repeats its question. A round trip, a quorum's confirmation and a turn or two take less.
const RESEND_TICKS: u32 = 2;

/// A peer's lease, and the reads that wait for one.
#[derive(Default)]
pub(crate) struct Lease {
    /// When the question was sent that a quorum has answered.
    begun: Option<Clocks>,
    /// Leadership was handed over in this term, and how long the order is on its way is not known: no lease begins.
    handed_over: bool,
    /// The question that is out.
    asked: Option<Question>,
    /// Reads that came too late for it.
    next: Vec<ReadReply>,
}

/// Where a read learns that it may go on, and up to which index it must see the log applied.
pub(crate) type ReadReply = oneshot::Sender<Result<u64, RegionError>>;

struct Question {
    id: u64,
    sent: Instant,
    sent_by_clocks: Clocks,
    /// When a follower sent it last: its way to the leader is lossy.
    resent: Instant,
    /// Where a quorum says that the log was committed up to; what was applied must reach it.
    index: Option<u64>,
    readers: Vec<ReadReply>,
}

impl Lease {
    pub(crate) fn holds(&self, config: &ShardConfig) -> bool {
        let Some(begun) = self.begun else { return false };
        let (now, limit) = (executor::clocks(), lease_duration(config));
        if config.is_planted(PlantedFault::LeaseByOneClock) {
            return now.monotonic_raw.since(begun.monotonic_raw) < limit;
        }
        now.within(limit, begun)
    }

    /// Ends the lease and all that waits for one.
    pub(crate) fn end(&mut self, why: &RegionError) {
        self.begun = None;
        let asked = self.asked.take().into_iter().flat_map(|question| question.readers);
        for reader in asked.chain(self.next.drain(..)) {
            // A reader may have given up.
            let _ = reader.send(Err(why.clone()));
        }
    }

    /// The members have changed: the next quorum may be another one.
    pub(crate) fn revoke(&mut self) {
        self.begun = None;
    }

    /// Leadership is being handed over: whoever gets it need not wait for us, and may get the order late. If nobody takes
    /// it, this leader asks its quorum for every read until its term ends.
    pub(crate) fn hand_over(&mut self) {
        self.begun = None;
        self.handed_over = true;
    }

    /// Another term, or another leader.
    pub(crate) fn begin_term(&mut self, why: &RegionError) {
        self.end(why);
        self.handed_over = false;
    }
}

/// How long a lease lasts from the sending of the question. Ticks are coarse: a member's first one may come at once.
pub(crate) fn lease_duration(config: &ShardConfig) -> Duration {
    if config.is_planted(PlantedFault::LeaseTooLong) {
        return config.tick * config.raft.election_ticks * 2;
    }
    config.tick * config.raft.election_ticks.saturating_sub(1) * 9 / 10
}

/// Ticks for which a peer with others in its group neither votes nor campaigns after its start: before it, it may have
/// confirmed a lease.
pub(crate) fn quiet_ticks(config: &ShardConfig) -> u32 {
    if config.is_planted(PlantedFault::VoteAtOnce) { 0 } else { config.raft.election_ticks }
}

impl PeerState {
    /// Whether this leader may read right now.
    pub(crate) fn may_read(&self, config: &ShardConfig) -> bool {
        (self.raft.is_sole_voter() || self.lease.holds(config)) && self.raft.has_applied_what_others_read()
    }
}

impl<E: Engine> Shard<E> {
    /// Waits until the leader of `region`, if it is here, may read. Others are told by the checks of the read itself.
    ///
    /// # Errors
    /// [`RegionError::NotLeader`] if it loses its place meanwhile, or hears from no quorum in time.
    pub async fn lease(&self, region: RegionId) -> Result<(), RegionError> {
        {
            let peers = self.peers.borrow();
            let Some(peer) = peers.get(&region) else { return Ok(()) };
            let is_unchecked = self.config.is_planted(PlantedFault::LeaseUnchecked);
            if is_unchecked || !peer.serves() || peer.may_read(&self.config) {
                return Ok(());
            }
        }
        self.read_index(region).await.map(drop)
    }

    /// Asks a quorum, by way of the leader, up to where the log is committed, and waits until our peer has applied it.
    ///
    /// # Errors
    /// [`RegionError::NotLeader`] if no leader is known, another one comes, or none answers in time.
    pub(crate) async fn read_index(&self, region: RegionId) -> Result<u64, RegionError> {
        if let Some(peer) = self.peers.borrow().get(&region) {
            self.check_stall(peer)?;
        }
        let (reply, answer) = oneshot::channel();
        self.push(Input::Read { region, reply });
        match executor::timeout(READ_INDEX_WAIT, answer).await {
            Ok(answer) => answer.map_err(|_| RegionError::Closing)?,
            Err(_) => Err(RegionError::NotLeader { region, leader: None }),
        }
    }

    /// Asks the quorum, unless the question is out already.
    pub(crate) fn step_read(&self, region: RegionId, reply: ReadReply, turn: &mut Turn) {
        let mut peers = self.peers.borrow_mut();
        let is_ready = |peer: &PeerState| peer.leader.is_some() && peer.phase == Phase::Serving;
        let Some(peer) = peers.get_mut(&region).filter(|peer| is_ready(peer)) else {
            // Whoever asked may have given up.
            let _ = reply.send(Err(RegionError::NotLeader { region, leader: None }));
            return;
        };
        peer.lease.next.push(reply);
        self.ask_quorum(region, peer, turn);
    }

    fn ask_quorum(&self, region: RegionId, peer: &mut PeerState, turn: &mut Turn) {
        let now = executor::now();
        // A lost question is never answered.
        let is_lost = |question: &Question| now.since(question.sent) > READ_INDEX_WAIT;
        if peer.lease.next.is_empty() || peer.lease.asked.as_ref().is_some_and(|question| !is_lost(question)) {
            return;
        }
        turn.next_proposal += 1;
        let lost = peer.lease.asked.take().into_iter().flat_map(|question| question.readers);
        let readers = lost.chain(std::mem::take(&mut peer.lease.next)).collect();
        peer.lease.asked = Some(Question {
            id: turn.next_proposal,
            sent: now,
            sent_by_clocks: executor::clocks(),
            resent: now,
            index: None,
            readers,
        });
        peer.raft.handle(RaftInput::ReadIndex { id: turn.next_proposal });
        add(&self.metrics.read_index_total, 1);
        turn.dirty.insert(region);
    }

    /// A follower's question, or its answer, may be lost: it is asked again under its old name, which a leader that knows
    /// it takes for the same one. One that nobody answers makes room for the next.
    pub(crate) fn ask_again(&self, region: RegionId, peer: &mut PeerState, turn: &mut Turn) {
        if peer.lease.asked.is_none() && peer.lease.next.is_empty() {
            return;
        }
        let now = executor::now();
        let pause = RESEND_TICKS * self.config.tick;
        let follows = !peer.leads();
        if let Some(question) = peer.lease.asked.as_mut()
            && follows
            && question.index.is_none()
            && now.since(question.resent) >= pause
        {
            question.resent = now;
            peer.raft.handle(RaftInput::ReadIndex { id: question.id });
        }
        self.ask_quorum(region, peer, turn);
    }

    /// A quorum has answered.
    pub(crate) fn read_ready(&self, region: RegionId, peer: &mut PeerState, id: u64, index: u64, turn: &mut Turn) {
        if let Some(question) = peer.lease.asked.as_mut().filter(|question| question.id == id) {
            question.index = Some(index);
            self.finish_reads(region, peer, turn);
        }
    }

    /// Raft refuses to ask.
    pub(crate) fn read_rejected(&self, peer: &mut PeerState, id: u64, why: &RegionError) -> bool {
        let is_ours = peer.lease.asked.as_ref().is_some_and(|question| question.id == id);
        if is_ours {
            let asked = peer.lease.asked.take().map_or_else(Vec::new, |question| question.readers);
            for reader in asked {
                // A reader may have given up.
                let _ = reader.send(Err(why.clone()));
            }
        }
        is_ours
    }

    /// Lets the reads go whose question is answered, once what they must see is applied.
    pub(crate) fn finish_reads(&self, region: RegionId, peer: &mut PeerState, turn: &mut Turn) {
        let applied = peer.meta.applied_index;
        let is_ready = |question: &Question| question.index.is_some_and(|index| index <= applied);
        if let Some(question) = peer.lease.asked.take_if(|question| is_ready(question)) {
            if peer.leads() && !peer.lease.handed_over {
                let is_late = self.config.is_planted(PlantedFault::LeaseFromReceipt);
                peer.lease.begun = Some(if is_late { executor::clocks() } else { question.sent_by_clocks });
            }
            for reader in question.readers {
                // A reader may have given up.
                let _ = reader.send(Ok(applied));
            }
            self.ask_quorum(region, peer, turn);
        }
    }

    /// Hands the leadership of `region` to its member `to`, if it leads here and that one answers and keeps up. Nothing
    /// tells whether it comes about but the next reports.
    pub fn transfer(self: &Rc<Self>, region: RegionId, to: base::PeerId) {
        self.push(Input::Transfer { region, to });
    }

    pub(crate) fn step_transfer(&self, region: RegionId, to: base::PeerId, turn: &mut Turn) {
        let mut peers = self.peers.borrow_mut();
        let Some(peer) = peers.get_mut(&region).filter(|peer| peer.leads() && peer.phase == Phase::Serving) else {
            return;
        };
        if !peer.raft.can_take_over(to) {
            return;
        }
        if !self.config.is_planted(PlantedFault::TransferKeepsLease) {
            peer.lease.hand_over();
        }
        peer.raft.handle(RaftInput::TransferLeader { to });
        turn.dirty.insert(region);
    }
}
