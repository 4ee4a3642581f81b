//! Leaders that leave before their node stops.

use std::rc::Rc;

use super::peer::Phase;
use super::shard::Shard;
use crate::engine::Engine;

impl<E: Engine> Shard<E> {
    /// Begins to hand up to `limit` leaders to the best of their followers; those under way do not count. Returns how
    /// many lead here that others could lead, those that have just been asked included.
    pub fn hand_leaders_over(self: &Rc<Self>, limit: usize) -> usize {
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
                && let Some(to) = peer.raft.successor()
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
