//! The network: reliable byte streams between nodes, over links that delay, block and reset.

mod conn;
mod link;
mod listener;
mod stream;
mod traffic;

pub(crate) use listener::SimListener;
pub(crate) use stream::{SimHandoff, SimStream};

use conn::Conn;
use link::Wire;
use listener::Listener;
use std::collections::BTreeMap;

/// One end of a connection: where it lies in the table, which connection of that place, and which side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct EndKey {
    slot: u32,
    generation: u32,
    side: u8,
}

impl EndKey {
    fn other(self) -> EndKey {
        EndKey { side: 1 - self.side, ..self }
    }

    /// What the event hash is told: all but the generation.
    fn mark(self) -> u64 {
        u64::from(self.slot) << 1 | u64::from(self.side)
    }
}

#[derive(Default)]
struct Place {
    generation: u32,
    conn: Option<Conn>,
}

/// All connections, listeners and links.
#[derive(Default)]
pub(super) struct Net {
    places: Vec<Place>,
    free: Vec<u32>,
    /// By node and port.
    listeners: BTreeMap<(usize, u16), Listener>,
    /// One direction between two nodes each; absent = as configured.
    wires: BTreeMap<(usize, usize), Wire>,
}

impl Net {
    fn add(&mut self, conn: Conn) -> EndKey {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.places.push(Place::default());
            (self.places.len() - 1) as u32
        });
        let place = &mut self.places[slot as usize];
        place.conn = Some(conn);
        EndKey { slot, generation: place.generation, side: 0 }
    }

    fn conn(&mut self, end: EndKey) -> Option<&mut Conn> {
        let place = &mut self.places[end.slot as usize];
        if place.generation == end.generation { place.conn.as_mut() } else { None }
    }

    /// Forgets the connection once neither end is open.
    fn release(&mut self, end: EndKey) {
        let gone = self.conn(end).is_some_and(|conn| conn.ends.iter().all(|end| !end.open));
        if gone {
            let place = &mut self.places[end.slot as usize];
            place.conn = None;
            place.generation = place.generation.wrapping_add(1);
            self.free.push(end.slot);
        }
    }

    /// Every end that is open, in order.
    fn open_ends(&self) -> Vec<(EndKey, usize)> {
        let mut ends = Vec::new();
        for (slot, place) in (0..).zip(&self.places) {
            for (side, end) in (0..).zip(place.conn.iter().flat_map(|conn| &conn.ends)) {
                let generation = place.generation;
                if end.open {
                    ends.push((EndKey { slot, generation, side }, end.node));
                }
            }
        }
        ends
    }
}
