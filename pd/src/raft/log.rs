//! The log's tail in memory: every entry behind the truncated one.
//!
//! The journal bounds it: it is rewritten, and the log truncated, when its file is full.

use raftstore::LogPosition;
use raftstore::eraftpb::Entry;
use std::collections::VecDeque;

/// Entries behind `truncated`, following each other.
#[derive(Debug, Default)]
pub(super) struct Log {
    truncated: LogPosition,
    entries: VecDeque<Entry>,
}

impl Log {
    pub(super) fn new(truncated: LogPosition) -> Log {
        Log { truncated, entries: VecDeque::new() }
    }

    /// The entry in front of the first one.
    pub(super) fn truncated(&self) -> LogPosition {
        self.truncated
    }

    pub(super) fn last_index(&self) -> u64 {
        self.truncated.index + self.entries.len() as u64
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter()
    }

    /// The term at `index`; `None` outside of the log.
    pub(super) fn term(&self, index: u64) -> Option<u64> {
        if index == self.truncated.index {
            return Some(self.truncated.term);
        }
        Some(self.entries.get(self.slot(index)?)?.term)
    }

    fn slot(&self, index: u64) -> Option<usize> {
        usize::try_from(index.checked_sub(self.truncated.index + 1)?).ok()
    }

    /// Appends an entry; what stood at its index and behind is void. False if it does not join the log.
    pub(super) fn append(&mut self, entry: Entry) -> bool {
        match self.slot(entry.index) {
            Some(slot) if slot <= self.entries.len() => {
                self.entries.truncate(slot);
                self.entries.push_back(entry);
                true
            }
            _ => false,
        }
    }

    /// Entries from `low` on and below `high`, cut after the first one with which they pass `max_bytes`.
    pub(super) fn range(&self, low: u64, high: u64, max_bytes: u64) -> Vec<Entry> {
        let Some(slot) = self.slot(low) else { return Vec::new() };
        let mut bytes = 0;
        let fits = |entry: &&Entry| {
            let fits = entry.index < high && bytes <= max_bytes;
            bytes += entry.data.len() as u64;
            fits
        };
        self.entries.iter().skip(slot).take_while(fits).cloned().collect()
    }

    /// The smallest index at which the log may be truncated so that at most `keep_bytes` of entries up to `applied` stay.
    pub(super) fn place_to_truncate(&self, applied: u64, keep_bytes: usize) -> LogPosition {
        let mut bytes = 0;
        let mut behind = self.entries.iter().rev().filter(|entry| entry.index <= applied);
        let first_too_much = behind.find(|entry| {
            bytes += entry.data.len() + 64;
            bytes > keep_bytes
        });
        first_too_much.map_or(self.truncated, |entry| LogPosition { index: entry.index, term: entry.term })
    }

    /// Drops the entries up to and including `to`, which the log holds.
    pub(super) fn truncate(&mut self, to: LogPosition) {
        while self.entries.front().is_some_and(|entry| entry.index <= to.index) {
            self.entries.pop_front();
        }
        if to.index > self.truncated.index {
            self.truncated = to;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: u64, term: u64) -> Entry {
        Entry { index, term, data: vec![0; 100].into(), ..Entry::default() }
    }

    fn log() -> Log {
        let mut log = Log::new(LogPosition { index: 5, term: 5 });
        assert!((6..=9).all(|index| log.append(entry(index, 6))));
        log
    }

    #[test]
    fn a_later_entry_voids_what_stood_there_and_behind() {
        let mut log = log();
        assert!(log.append(entry(8, 7)));
        assert_eq!((log.last_index(), log.term(7), log.term(8), log.term(9)), (8, Some(6), Some(7), None));
        assert!(!log.append(entry(10, 7)) && !log.append(entry(5, 7)));
        assert_eq!(log.term(5), Some(5));
    }

    #[test]
    fn ranges_are_cut_by_bytes_but_never_empty() {
        let indexes = |range: Vec<Entry>| range.iter().map(|entry| entry.index).collect::<Vec<_>>();
        assert_eq!(indexes(log().range(6, 10, u64::MAX)), [6, 7, 8, 9]);
        assert_eq!(indexes(log().range(7, 9, u64::MAX)), [7, 8]);
        assert_eq!(indexes(log().range(7, 10, 0)), [7]);
        assert_eq!(indexes(log().range(5, 10, 100)), [0u64; 0]);
    }

    #[test]
    fn truncation_leaves_what_followers_may_want() {
        let mut log = log();
        assert_eq!(log.place_to_truncate(8, 0).index, 8);
        assert_eq!(log.place_to_truncate(8, 350).index, 6);
        assert_eq!(log.place_to_truncate(9, 1 << 20).index, 5);
        log.truncate(LogPosition { index: 7, term: 6 });
        assert_eq!((log.term(6), log.term(7), log.term(8), log.last_index()), (None, Some(6), Some(6), 9));
    }
}
