//! A naive twin of the log: it applies records to maps, and knows nothing of blocks, segments or purging.

use std::collections::BTreeMap;

use base::{PeerId, RegionId};
use shard::log::{Disk, EngineState, HardState, Lifecycle, LogEffect, LogEntry, Position, RaftLog, Record, Recovered};

use super::block_on;

/// A peer as records made it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TwinPeer {
    pub peer: PeerId,
    pub hard_state: Option<HardState>,
    pub truncated: Position,
    pub entries: BTreeMap<u64, LogEntry>,
    pub damaged: bool,
}

impl TwinPeer {
    pub fn last(&self) -> Position {
        let last = self.entries.last_key_value();
        last.map_or(self.truncated, |(&index, entry)| Position { index, term: entry.term })
    }
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Twin {
    pub peers: BTreeMap<RegionId, TwinPeer>,
    pub lifecycle: BTreeMap<u64, Lifecycle>,
}

impl Twin {
    fn peer(&mut self, region: RegionId, peer: PeerId) -> &mut TwinPeer {
        let slot = self.peers.entry(region).or_default();
        if slot.peer < peer {
            *slot = TwinPeer { peer, ..TwinPeer::default() };
        }
        assert_eq!(slot.peer, peer, "the tests append no stale records");
        slot
    }

    pub fn apply(&mut self, record: &Record) {
        match record {
            Record::HardState { region, peer, state } => {
                self.peer(*region, *peer).hard_state = Some(*state);
            }
            Record::Entries { region, peer, first_index, entries } => {
                let slot = self.peer(*region, *peer);
                slot.entries.split_off(first_index);
                slot.entries.extend((*first_index..).zip(entries.iter().cloned()));
            }
            Record::Truncated { region, peer, at } => {
                let slot = self.peer(*region, *peer);
                if at.index >= slot.truncated.index {
                    slot.truncated = *at;
                    slot.entries = slot.entries.split_off(&(at.index + 1));
                }
            }
            Record::Damaged { region, peer, damaged } => {
                self.peer(*region, *peer).damaged = *damaged;
            }
            Record::Lifecycle(lifecycle) => {
                self.lifecycle.insert(lifecycle.event, lifecycle.clone());
                lifecycle.effects.iter().for_each(|effect| self.affect(effect));
            }
        }
    }

    fn affect(&mut self, effect: &LogEffect) {
        match effect {
            LogEffect::Start { region, peer, hard_state, truncated, entries } => {
                let slot = self.peer(*region, *peer);
                // The tests start a living peer again only with a hard state that is not older.
                slot.hard_state = Some(*hard_state);
                slot.truncated = *truncated;
                slot.entries = (truncated.index + 1..).zip(entries.iter().cloned()).collect();
            }
            LogEffect::End { region, peer } => {
                if self.peers.get(region).is_some_and(|slot| slot.peer <= *peer) {
                    self.peers.remove(region);
                }
            }
        }
    }

    /// Says how what was recovered differs from this twin, if it does.
    pub fn difference(&self, recovered: &Recovered, engine: &EngineState) -> Option<String> {
        if !self.peers.keys().eq(recovered.peers.keys()) {
            return Some(format!("regions {:?}, recovered {:?}", self.peers.keys(), recovered.peers.keys()));
        }
        for (region, twin) in &self.peers {
            let found = &recovered.peers[region];
            let engine = engine.peers.get(region);
            let applied = engine.filter(|(peer, _)| *peer == twin.peer).map_or(0, |e| e.1);
            let last = twin.last().index.max(applied);
            let hard_state =
                twin.hard_state.map(|state| HardState { commit: state.commit.max(applied).min(last), ..state });
            let first = twin.truncated.index.max(applied) + 1;
            let entries: Vec<LogEntry> = twin.entries.range(first..).map(|(_, e)| e.clone()).collect();
            let same = found.peer == twin.peer
                && found.hard_state == hard_state
                && found.first_index == first
                && found.entries == entries
                && found.damaged == twin.damaged
                && found.truncated.index >= twin.truncated.index
                && found.truncated.index < first;
            if !same {
                return Some(format!("{region:?}: {twin:?}, applied {applied}, recovered {found:?}"));
            }
        }
        let events: Vec<&Lifecycle> = self.lifecycle.range(engine.last_event + 1..).map(|(_, l)| l).collect();
        if !events.iter().copied().eq(&recovered.lifecycle) {
            return Some(format!("events {events:?}, recovered {:?}", recovered.lifecycle));
        }
        None
    }

    /// Reads everything that the log still has, and compares.
    pub fn check_reads<D: Disk>(&self, log: &RaftLog<D>) {
        for (&region, twin) in &self.peers {
            let summary = log.peer(region).expect("the region is in the log");
            assert_eq!(summary.last, twin.last(), "{region:?}");
            assert_eq!(log.term(region, summary.last.index), Some(summary.last.term));
            assert_eq!(log.term(region, summary.truncated.index), Some(summary.truncated.term));
            let (low, high) = (summary.truncated.index + 1, summary.last.index + 1);
            for max_bytes in [usize::MAX, 1] {
                let read = block_on(log.entries(region, low, high, max_bytes)).expect("readable");
                let range = twin.entries.range(low..);
                let expected: Vec<LogEntry> = range.map(|(_, entry)| entry.clone()).collect();
                if max_bytes == usize::MAX {
                    assert_eq!(read, expected, "{region:?} from {low}");
                } else {
                    assert!(expected.starts_with(&read));
                    assert_eq!(read.is_empty(), expected.is_empty());
                }
            }
        }
    }
}
