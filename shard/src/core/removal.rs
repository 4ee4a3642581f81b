//! How a removed peer ends: not before a member knows durably that it was removed.
//!
//! That an entry is committed is known from messages, and is forgotten with a crash until the next entry is logged. The
//! members then go by the old configuration, and may need the removed peer's vote to commit its removal again: of two voters
//! each does. So
//!
//! - whoever applies a change of members logs right behind it that it is committed, and tells nobody before, nor the placement
//!   driver;
//! - a voter that has seen its removal committed applies nothing more and never campaigns, but votes and acknowledges until it
//!   is told to go: by the leader once it knows durably, or by any member that it asks, as one asks who is away for long.
//!
//! A learner's voice counts nowhere: it goes at once.

use base::{PeerId, RegionId, StoreId};
use proto::metapb;
use raftstore::Input as RaftInput;
use raftstore::eraftpb::{Message, MessageType};

use super::peer::PeerState;
use super::planted::PlantedFault;
use super::shard::{Input, Shard};
use super::turn::Turn;
use crate::engine::Engine;
use crate::log::{HardState, Record};

impl<E: Engine> Shard<E> {
    /// A committed entry removes `peer`.
    pub(crate) fn begin_to_leave(&self, region: RegionId, peer: &mut PeerState) {
        peer.leaving = true;
        peer.raft.handle(RaftInput::Retire);
        if peer.meta.peer.role() == metapb::PeerRole::Learner {
            self.push(Input::Leave { region, peer: peer.meta.peer_id() });
        }
    }

    /// A tick of a peer that leaves: asks the others every now and then whether it may go.
    pub(crate) fn ask_to_leave(&self, peer: &mut PeerState) {
        peer.asks_in = peer.asks_in.saturating_sub(1);
        if peer.asks_in > 0 {
            return;
        }
        peer.asks_in = self.config.raft.election_ticks;
        self.ask_members(peer);
    }

    /// Asks the others whether this peer, and its region, is still there. The question is one for a vote that nobody gives,
    /// since the log that it names is empty; who knows better answers as to any stranger.
    pub(crate) fn ask_members(&self, peer: &PeerState) {
        let own = peer.meta.peer.id;
        for member in peer.meta.region.peers.iter().filter(|member| member.id != own) {
            let question = Message {
                msg_type: MessageType::MsgRequestPreVote as i32,
                from: own,
                to: member.id,
                term: peer.term + 1,
                ..Message::default()
            };
            if let Some((to, letter)) = peer.letter(&question) {
                self.outlet.send_raft(to, letter);
            }
        }
    }

    /// `peer` has just taken over its region's new members, from `before`, by the entry of `index`.
    pub(crate) fn log_members(
        &self,
        region: RegionId,
        peer: &mut PeerState,
        before: &metapb::Region,
        index: u64,
        turn: &mut Turn,
    ) {
        if !self.config.is_planted(PlantedFault::HardStateLost) {
            let state = peer.raft.hard_state();
            let state = HardState { term: state.term, vote: state.vote, commit: state.commit.max(index) };
            turn.records.push(Record::HardState { region, peer: peer.meta.peer_id(), state });
        }
        peer.members_durable = false;
        let is_gone = |member: &&metapb::Peer| peer.meta.region.peers.iter().all(|held| held.id != member.id);
        let gone = before.peers.iter().filter(is_gone).copied().collect();
        turn.members_changed.push((region, gone));
        if peer.raft.is_sole_voter() && !peer.leads() {
            // No tick would make it campaign.
            self.push(Input::Lead(region));
        }
    }

    /// Tells the placement driver of a region that leads here, unless its members are news that a crash could take back: it
    /// tells those who ask that they are no members any more.
    pub(crate) fn report(&self, peer: &mut PeerState) {
        if peer.members_durable {
            self.outlet.report(peer.report(self.id));
        }
    }

    /// The log write is durable: those who were removed may go.
    pub(crate) fn members_logged(&self, turn: &mut Turn) {
        for (region, gone) in turn.members_changed.drain(..) {
            let mut peers = self.peers.borrow_mut();
            let Some(peer) = peers.get_mut(&region) else { continue };
            peer.members_durable = true;
            if peer.leads() {
                self.report(peer);
            }
            for member in gone.into_iter().filter(|_| peer.leads()) {
                tracing::debug!(%region, peer = %PeerId(member.id), "a removed peer is told to go");
                self.outlet.send_raft(StoreId(member.store_id), peer.tombstone_letter(member));
            }
        }
    }
}
