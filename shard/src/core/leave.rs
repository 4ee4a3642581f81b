//! Leaders that leave: before their node stops, and while its disk is full.

use std::rc::Rc;

use base::PeerId;
use proto::metapb;

use super::peer::Phase;
use super::shard::Shard;
use crate::engine::Engine;

impl<E: Engine> Shard<E> {
    /// Begins to hand up to `limit` leaders to the best of their followers; those under way do not count. Returns how
    /// many lead here that others could lead, those that have just been asked included.
    pub fn hand_leaders_over(self: &Rc<Self>, limit: usize) -> usize {
        self.hand_over_to(limit, |_| true)
    }

    /// As [`hand_leaders_over`](Self::hand_leaders_over), to stores that have not said that they are full: one with room
    /// takes the writes that this one refuses.
    pub fn hand_leaders_to_room(self: &Rc<Self>, limit: usize) -> usize {
        self.hand_over_to(limit, |peer| self.has_room(peer))
    }

    fn hand_over_to(self: &Rc<Self>, limit: usize, fits: impl Fn(&metapb::Peer) -> bool) -> usize {
        if self.finished.get() {
            return 0;
        }
        let (mut left, mut orders) = (0, Vec::new());
        for (region, peer) in self.peers.borrow().iter() {
            if !peer.leads() || peer.phase != Phase::Serving || peer.raft.is_sole_voter() {
                continue;
            }
            left += 1;
            if orders.len() < limit
                && let Some(to) = peer.raft.successor_among(|id: PeerId| {
                    peer.meta.region.peers.iter().any(|member| member.id == id.0 && fits(member))
                })
            {
                orders.push((*region, to));
            }
        }
        for (region, to) in orders {
            self.transfer(region, to);
        }
        left
    }
}
