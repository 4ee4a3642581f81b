//! Shards whose disk does not answer.
//!
//! While a log write hangs, the shard's turn stands still: its leaders acknowledge nothing and send no heartbeats. The
//! others would elect after a time-out, and clients that wait here would not hear of it. So a shard whose write takes
//! longer than [`ShardConfig::log_stall`](super::config::ShardConfig::log_stall) gives its leaders up from outside of the
//! turn: their leases end, their heirs are told to campaign at once, whoever waits is told that the result is not known,
//! and whoever comes is sent elsewhere. When the write returns, raft tells who leads by then. A log that fails does the
//! same before its node stops.
//!
//! A region with one voter waits: nobody else can serve it.

use std::time::Duration;

use base::{Instant, PeerId, RegionId};
use futures_channel::oneshot;
use raftstore::eraftpb::{Message, MessageType};

use super::error::RegionError;
use super::peer::{PeerState, Phase};
use super::planted::PlantedFault;
use super::shard::{Input, Shard, add};
use crate::engine::Engine;

impl PeerState {
    /// Whether another peer could lead instead of this leader.
    fn can_be_given_up(&self) -> bool {
        self.leads() && self.phase == Phase::Serving && !self.raft.is_sole_voter()
    }
}

impl<E: Engine> Shard<E> {
    /// Runs an operation on the log, and notes since when.
    pub(crate) async fn on_log<T>(&self, operation: impl Future<Output = T>) -> T {
        self.log_busy_since.set(Some(executor::now()));
        let result = operation.await;
        let took = self.log_busy_since.take().map_or(Duration::ZERO, |since| executor::now().since(since));
        if self.stalled.replace(false) {
            self.outlet.stalled(false);
            tracing::warn!(shard = self.id.0, ?took, "the log's disk answers again");
        }
        result
    }

    /// Looks whether the log answers. Called with each tick, beside the turn.
    pub fn watch_log(&self) {
        let Some(since) = self.log_busy_since.get() else { return };
        if executor::now().since(since) < self.config.log_stall || self.stalled.replace(true) {
            return;
        }
        self.outlet.stalled(true);
        add(&self.metrics.log_stalls_total, 1);
        let given_up = self.give_leaders_up(since);
        tracing::warn!(shard = self.id.0, given_up, limit = ?self.config.log_stall, "the log's disk does not answer");
    }

    /// Has others lead, without the turn, which has heard of them up to `since`. Answers how many leaders there were.
    pub(crate) fn give_leaders_up(&self, since: Instant) -> usize {
        let mut given_up = 0;
        for (region, peer) in self.peers.borrow_mut().iter_mut().filter(|(_, peer)| peer.can_be_given_up()) {
            if !self.config.is_planted(PlantedFault::TransferKeepsLease) {
                peer.lease.hand_over();
            }
            peer.give_waiters_up();
            if let Some(heir) = peer.heir_of(since) {
                self.appoint(peer, heir);
            }
            given_up += 1;
            tracing::debug!(%region, "leadership is given up");
        }
        self.refuse_waiting();
        given_up
    }

    /// Tells `heir` to campaign at once. If it lacks entries that a quorum has, it is not elected.
    fn appoint(&self, peer: &PeerState, heir: PeerId) {
        let message = Message {
            msg_type: MessageType::MsgTimeoutNow as i32,
            from: peer.meta.peer.id,
            to: heir.0,
            term: peer.term,
            ..Message::default()
        };
        if let Some((to, letter)) = peer.letter(&message) {
            self.outlet.send_raft(to, letter);
        }
    }

    /// Refuses what waits for a turn that stands still: it is in no log yet.
    fn refuse_waiting(&self) {
        let peers = self.peers.borrow();
        let is_lost = |region: &RegionId| peers.get(region).is_some_and(PeerState::can_be_given_up);
        let mut inbox = self.inbox.borrow_mut();
        for input in std::mem::take(&mut *inbox) {
            match input {
                Input::Propose { region, body, reply } if is_lost(&region) => {
                    self.inbox_bytes.set(self.inbox_bytes.get().saturating_sub(body.len()));
                    refuse(reply, region);
                }
                Input::Read { region, reply } if is_lost(&region) => refuse(reply, region),
                other => inbox.push_back(other),
            }
        }
    }

    /// Whether a request for a region that leads here would wait for a turn that stands still.
    ///
    /// # Errors
    /// [`RegionError::NotLeader`] then.
    pub(crate) fn check_stall(&self, peer: &PeerState) -> Result<(), RegionError> {
        match self.stalled.get() && peer.can_be_given_up() {
            true => Err(RegionError::NotLeader { region: peer.meta.region_id(), leader: None }),
            false => Ok(()),
        }
    }
}

fn refuse<T>(reply: oneshot::Sender<Result<T, RegionError>>, region: RegionId) {
    // Whoever asked may have given up.
    let _ = reply.send(Err(RegionError::NotLeader { region, leader: None }));
}
