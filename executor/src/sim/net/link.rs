//! Links: each direction between two nodes has its delays, and may be blocked.

use super::{EndKey, Net};
use crate::sim::config::{Link, nanos};
use crate::sim::timer::Event;
use crate::sim::world::{Note, World};

/// One direction between two nodes, where it is not as configured.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Wire {
    link: Option<Link>,
    blocked: bool,
}

/// Longest wait of a retransmission, beyond the link's own delay, after a blockade ended.
const RETRANSMIT_NS: u64 = 200_000_000;

impl Net {
    pub(super) fn is_blocked(&self, from: usize, to: usize) -> bool {
        self.wires.get(&(from, to)).is_some_and(|wire| wire.blocked)
    }

    /// True if a sender at `from` hears nothing from `to`: its segments or their acknowledgements are lost.
    pub(super) fn is_cut(&self, from: usize, to: usize) -> bool {
        !self.wires.is_empty() && (self.is_blocked(from, to) || self.is_blocked(to, from))
    }
}

impl World {
    pub(in crate::sim) fn set_link(&self, from: usize, to: usize, link: Option<Link>) {
        self.note(Note::Link, (from as u64) << 16 | to as u64);
        let mut net = self.net.borrow_mut();
        net.wires.entry((from, to)).or_default().link = link;
    }

    /// Blocks one direction: what is under way or sent later waits for [`World::unblock`], or for its sender to give up.
    pub(in crate::sim) fn block(&self, from: usize, to: usize) {
        self.note(Note::Link, 1 << 32 | (from as u64) << 16 | to as u64);
        let mut net = self.net.borrow_mut();
        net.wires.entry((from, to)).or_default().blocked = true;
        for end in senders_between(&net, from, to) {
            if net.conn(end).is_some_and(|conn| conn.has_unsent(end.side)) {
                self.expect_way(&mut net, end);
            }
        }
    }

    /// Opens one direction again. Held segments arrive after a retransmission.
    pub(in crate::sim) fn unblock(&self, from: usize, to: usize) {
        self.note(Note::Link, 2 << 32 | (from as u64) << 16 | to as u64);
        let mut net = self.net.borrow_mut();
        match net.wires.get_mut(&(from, to)) {
            Some(wire) if wire.blocked => wire.blocked = false,
            _ => return,
        }
        for end in senders_between(&net, from, to) {
            self.way_may_be_open(&mut net, end);
        }
    }

    fn way_may_be_open(&self, net: &mut Net, end: EndKey) {
        let Some((from, to)) = net.conn(end).map(|conn| conn.way(end.side)) else {
            return;
        };
        let (cut, blocked) = (net.is_cut(from, to), net.is_blocked(from, to));
        let again = self.chance.net.borrow_mut().below(RETRANSMIT_NS);
        let after = again + self.latency(net, from, to);
        let Some(conn) = net.conn(end) else { return };
        if !cut {
            conn.way_is_open(end.side);
        }
        if !blocked && conn.release_held(end.side) {
            self.after(after, Event::Arrive(end));
        }
    }

    pub(super) fn link(&self, net: &Net, from: usize, to: usize) -> Link {
        if from == to {
            return self.config.loopback;
        }
        let set = net.wires.get(&(from, to)).and_then(|wire| wire.link);
        set.unwrap_or(self.config.link)
    }

    /// Draws how long a segment takes, in nanoseconds.
    pub(super) fn latency(&self, net: &Net, from: usize, to: usize) -> u64 {
        self.link(net, from, to).draw(&mut self.chance.net.borrow_mut())
    }

    /// Starts the clock of a sender whose segments do not get through, unless it runs.
    pub(super) fn expect_way(&self, net: &mut Net, end: EndKey) {
        if let Some(blockade) = net.conn(end).and_then(|conn| conn.begin_stuck(end.side)) {
            self.after(nanos(self.config.retransmit_timeout), Event::Stuck(end, blockade));
        }
    }
}

/// Ends at either node whose other end is at the other, in order.
fn senders_between(net: &Net, a: usize, b: usize) -> Vec<EndKey> {
    let mut ends = Vec::new();
    for (slot, place) in (0..).zip(&net.places) {
        let Some(conn) = &place.conn else { continue };
        let [first, second] = [conn.ends[0].node, conn.ends[1].node];
        if (first, second) == (a, b) || (first, second) == (b, a) {
            let generation = place.generation;
            ends.extend([0, 1].map(|side| EndKey { slot, generation, side }));
        }
    }
    ends
}
