//! What the log holds, in memory: each peer's newest state, where its entries lie, and which segments are needed.
//!
//! The same [`Index::apply`] takes a record when it is appended and when it is replayed, so that both end in the same
//! state. Applying is cheap: it looks at no data of entries.

use std::collections::BTreeMap;

use base::{PeerId, RegionId};

use super::record::{HardState, Lifecycle, LogEffect, LogEntry, Position, Record};
use super::runs::{At, Ledger, Run, Runs};

/// Bytes that a small record (hard state, truncation, damage mark) counts for.
const SMALL: u64 = 32;

/// A peer's log.
#[derive(Debug, Default)]
pub(crate) struct PeerLog {
    pub(crate) peer: PeerId,
    pub(crate) hard_state: Option<HardState>,
    /// Entries up to here are gone.
    pub(crate) truncated: Position,
    /// Entries up to here are in the engine, durably.
    pub(crate) flushed: u64,
    pub(crate) runs: Runs,
    hard_state_in: Option<u64>,
    truncated_in: Option<u64>,
    damaged_in: Option<u64>,
    /// `truncated` is ahead of the newest `Truncated` record.
    unsaved: bool,
}

impl PeerLog {
    pub(crate) fn damaged(&self) -> bool {
        self.damaged_in.is_some()
    }

    /// The last entry, or what was truncated if there is none.
    pub(crate) fn last(&self) -> Position {
        self.runs.last().unwrap_or(self.truncated)
    }

    /// Term of the entry at `index`, if it is known.
    pub(crate) fn term(&self, index: u64) -> Option<u64> {
        if index == self.truncated.index {
            return Some(self.truncated.term);
        }
        self.runs.locate(index).map(|run| run.term)
    }

    /// Entries up to here need not stay in the log: they are truncated or flushed.
    pub(crate) fn released(&self) -> u64 {
        self.runs.released()
    }

    fn move_item(place: &mut Option<u64>, to: Option<u64>, ledger: &mut Ledger) {
        if let Some(segment) = std::mem::replace(place, to) {
            ledger.sub(segment, SMALL);
            ledger.small_bytes -= SMALL;
        }
        if let Some(segment) = to {
            ledger.add(segment, SMALL);
            ledger.small_bytes += SMALL;
        }
    }

    fn forget(&mut self, ledger: &mut Ledger) {
        self.runs.cut_from(0, ledger);
        for place in [&mut self.hard_state_in, &mut self.truncated_in, &mut self.damaged_in] {
            Self::move_item(place, None, ledger);
        }
    }

    fn set_truncated(&mut self, at: Position, segment: u64, ledger: &mut Ledger) {
        self.truncated = at;
        self.unsaved = false;
        self.runs.drop_through(at.index, ledger);
        Self::move_item(&mut self.truncated_in, Some(segment), ledger);
    }

    fn set_hard_state(&mut self, state: HardState, segment: u64, ledger: &mut Ledger) {
        self.hard_state = Some(state);
        Self::move_item(&mut self.hard_state_in, Some(segment), ledger);
    }

    fn put_entries(&mut self, first: u64, entries: &[LogEntry], copied: bool, at: At, ledger: &mut Ledger) {
        let skip = (self.truncated.index + 1).saturating_sub(first);
        let entries = entries.get(usize::try_from(skip).unwrap_or(usize::MAX)..);
        let mut first = first + skip;
        if !copied {
            self.runs.cut_from(first, ledger);
        }
        let entries = entries.unwrap_or(&[]);
        for same_term in entries.chunk_by(|a, b| a.term == b.term) {
            let bytes: usize = same_term.iter().map(|entry| entry.data.len() + 8).sum();
            let run = Run {
                first,
                term: same_term[0].term,
                segment: at.segment,
                count: u32::try_from(same_term.len()).expect("a record holds fewer entries"),
                bytes: u32::try_from(bytes).expect("a record is smaller"),
                start: at.unit,
                end: at.unit,
                live: true,
            };
            first = run.next();
            if copied {
                self.runs.replace(run, ledger);
            } else {
                self.runs.push(run, ledger);
            }
        }
    }
}

/// A lifecycle record that no flush covers yet.
#[derive(Clone, Copy, Debug)]
struct Event {
    at: At,
    bytes: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Index {
    pub(crate) peers: BTreeMap<RegionId, PeerLog>,
    pub(crate) ledger: Ledger,
    /// Highest lifecycle event seen.
    pub(crate) last_event: u64,
    /// Events up to here are in the engine, durably.
    flushed_event: u64,
    events: BTreeMap<u64, Event>,
}

impl Index {
    /// The log of `region`'s peer, begun anew if `peer` is newer; `None` if it is older.
    fn peer(&mut self, region: RegionId, peer: PeerId) -> Option<(&mut PeerLog, &mut Ledger)> {
        let log = self.peers.entry(region).or_default();
        if log.peer > peer {
            return None;
        }
        if log.peer < peer {
            log.forget(&mut self.ledger);
            *log = PeerLog { peer, ..PeerLog::default() };
        }
        Some((log, &mut self.ledger))
    }

    /// True if `peer` is older than the newest one of its region.
    pub(crate) fn is_stale(&self, region: RegionId, peer: PeerId) -> bool {
        self.peers.get(&region).is_some_and(|log| log.peer > peer)
    }

    /// Takes a record of `len` bytes that lies in the block at `at`. A record of an old peer changes nothing.
    pub(crate) fn apply(&mut self, record: &Record, copied: bool, len: usize, at: At) {
        match record {
            Record::HardState { region, peer, state } => {
                if let Some((log, ledger)) = self.peer(*region, *peer) {
                    log.set_hard_state(*state, at.segment, ledger);
                }
            }
            Record::Entries { region, peer, first_index, entries } => {
                if let Some((log, ledger)) = self.peer(*region, *peer) {
                    log.put_entries(*first_index, entries, copied, at, ledger);
                }
            }
            Record::Truncated { region, peer, at: to } => {
                if let Some((log, ledger)) = self.peer(*region, *peer)
                    && to.index >= log.truncated.index
                {
                    log.set_truncated(*to, at.segment, ledger);
                }
            }
            Record::Damaged { region, peer, damaged } => {
                if let Some((log, ledger)) = self.peer(*region, *peer) {
                    let place = damaged.then_some(at.segment);
                    PeerLog::move_item(&mut log.damaged_in, place, ledger);
                }
            }
            Record::Lifecycle(lifecycle) => self.apply_lifecycle(lifecycle, copied, len, at),
        }
    }

    fn apply_lifecycle(&mut self, lifecycle: &Lifecycle, copied: bool, len: usize, at: At) {
        let event = lifecycle.event;
        self.last_event = self.last_event.max(event);
        if event > self.flushed_event {
            let bytes = len as u64;
            if let Some(old) = self.events.insert(event, Event { at, bytes }) {
                self.ledger.sub(old.at.segment, old.bytes);
            }
            self.ledger.add(at.segment, bytes);
        }
        if copied {
            return;
        }
        for effect in &lifecycle.effects {
            match effect {
                LogEffect::Start { region, peer, hard_state, truncated, entries } => {
                    let Some((log, ledger)) = self.peer(*region, *peer) else {
                        continue;
                    };
                    let state = not_backwards(log.hard_state, *hard_state);
                    log.runs.cut_from(0, ledger);
                    (log.runs, log.flushed) = (Runs::default(), 0);
                    log.set_hard_state(state, at.segment, ledger);
                    log.set_truncated(*truncated, at.segment, ledger);
                    log.put_entries(truncated.index + 1, entries, false, at, ledger);
                }
                LogEffect::End { region, peer } => {
                    if !self.is_stale(*region, *peer)
                        && let Some(mut log) = self.peers.remove(region)
                    {
                        log.forget(&mut self.ledger);
                    }
                }
            }
        }
    }

    /// Raises the hard states with which `lifecycle` begins logs to what their peers have promised. The record is the only
    /// place where that stands once the segments before it are gone.
    pub(crate) fn keep_promises(&self, lifecycle: &mut Lifecycle) {
        let mut ended = Vec::new();
        for effect in &mut lifecycle.effects {
            match effect {
                LogEffect::End { region, .. } => ended.push(*region),
                LogEffect::Start { region, peer, hard_state, .. } => {
                    let log = self.peers.get(region).filter(|log| log.peer == *peer && !ended.contains(region));
                    *hard_state = not_backwards(log.and_then(|log| log.hard_state), *hard_state);
                }
            }
        }
    }

    /// Notes what the engine made durable: per peer the applied index, and the last lifecycle event.
    pub(crate) fn flushed(&mut self, applied: impl IntoIterator<Item = (RegionId, PeerId, u64)>, event: u64) {
        for (region, peer, index) in applied {
            if let Some(log) = self.peers.get_mut(&region)
                && log.peer == peer
                && index > log.flushed
            {
                log.flushed = index;
                log.runs.release_through(index, &mut self.ledger);
            }
        }
        self.flushed_event = self.flushed_event.max(event);
        while let Some(entry) = self.events.first_entry()
            && *entry.key() <= self.flushed_event
        {
            let event = entry.remove();
            self.ledger.sub(event.at.segment, event.bytes);
        }
    }

    /// Bytes of entries and events that no flush covers.
    pub(crate) fn unflushed_bytes(&self) -> u64 {
        self.ledger.total.bytes - self.ledger.small_bytes
    }

    /// Forgets where released entries lie, if there are more than `limit` runs. They count as truncated then.
    pub(crate) fn prune(&mut self, limit: u64) {
        if self.ledger.runs <= limit {
            return;
        }
        for log in self.peers.values_mut() {
            let dead = log.runs.iter().take_while(|run| !run.live).last();
            if let Some(run) = dead {
                log.truncated = Position { index: run.next() - 1, term: run.term };
                log.unsaved = true;
                log.runs.drop_through(log.truncated.index, &mut self.ledger);
            }
        }
    }

    /// Records that say what is truncated once the segments below `oldest`, in which nothing is live, are gone.
    pub(crate) fn truncations_below(&self, oldest: u64) -> Vec<Record> {
        let mut records = Vec::new();
        for (&region, log) in &self.peers {
            let gone = log.runs.iter().rfind(|run| run.segment < oldest);
            let at = match gone {
                Some(run) => Position { index: run.next() - 1, term: run.term },
                None if log.unsaved => log.truncated,
                None => continue,
            };
            let peer = log.peer;
            records.push(Record::Truncated { region, peer, at });
        }
        records
    }

    /// Regions after `after` with something live in `segment`, at most `limit` of them.
    pub(crate) fn regions_in(&self, segment: u64, after: Option<RegionId>, limit: usize) -> Vec<RegionId> {
        let from = after.map_or(RegionId(0), |region| RegionId(region.0.saturating_add(1)));
        self.peers
            .range(from..)
            .filter(|(_, log)| {
                let small = [log.hard_state_in, log.truncated_in, log.damaged_in];
                small.contains(&Some(segment)) || log.runs.iter().any(|run| run.live && run.segment == segment)
            })
            .map(|(&region, _)| region)
            .take(limit)
            .collect()
    }

    /// The small records of `region` that stand in `segment`, to be copied.
    pub(crate) fn small_records_in(&self, region: RegionId, segment: u64) -> Vec<Record> {
        let mut records = Vec::new();
        let Some(log) = self.peers.get(&region) else {
            return records;
        };
        let (peer, segment) = (log.peer, Some(segment));
        if let Some(state) = log.hard_state
            && log.hard_state_in == segment
        {
            records.push(Record::HardState { region, peer, state });
        }
        if log.truncated_in == segment {
            let at = log.truncated;
            records.push(Record::Truncated { region, peer, at });
        }
        if log.damaged_in == segment {
            records.push(Record::Damaged { region, peer, damaged: true });
        }
        records
    }

    /// Events whose record lies in `segment`, and where.
    pub(crate) fn events_in(&self, segment: u64) -> Vec<(u64, At)> {
        self.events
            .iter()
            .filter(|(_, event)| event.at.segment == segment)
            .map(|(&number, event)| (number, event.at))
            .collect()
    }

    /// Where the record of `event` lies, if no flush covers it.
    pub(crate) fn event_at(&self, event: u64) -> Option<At> {
        self.events.get(&event).map(|event| event.at)
    }

    /// Makes `region`'s entries end before the first one that is missing, and says whether one was.
    pub(crate) fn close_gaps(&mut self, region: RegionId) -> bool {
        let Some(log) = self.peers.get_mut(&region) else {
            return false;
        };
        // What a flush covers may have gaps: only the part above the last of them can be read.
        let mut next = log.truncated.index + 1;
        let mut below = None;
        let mut cut = None;
        for run in log.runs.iter() {
            if run.first != next {
                if run.first > log.released() + 1 {
                    cut = Some(next);
                    break;
                }
                // The term of an entry that is not there is unknown; it is that of the next one at most, and whoever
                // goes on from a flush asks the engine.
                let index = run.first.min(log.released());
                below = Some(Position { index, term: run.term });
            }
            next = run.next();
        }
        if let Some(cut) = cut {
            log.runs.cut_from(cut, &mut self.ledger);
        }
        if let Some(below) = below {
            log.truncated = below;
            log.unsaved = true;
            log.runs.drop_through(below.index, &mut self.ledger);
        }
        cut.is_some()
    }
}

/// `new`, unless the peer has already promised more.
fn not_backwards(old: Option<HardState>, new: HardState) -> HardState {
    let Some(old) = old else { return new };
    let commit = old.commit.max(new.commit);
    if old.term > new.term || (old.term == new.term && new.vote == 0) {
        return HardState { commit, ..old };
    }
    HardState { commit, ..new }
}
