//! What raft-rs sees of a peer's log: the terms of all of it, the bytes of its tail.
//!
//! The log itself is the shard's. This view keeps in memory every entry that is not applied yet (raft-rs reads those
//! without being able to wait), and below that as many as the cache bound allows, for followers that lag a little.
//! Terms are kept for the whole log, as runs: one pair of numbers for each change of term, not for each entry.
//!
//! ```text
//!   truncated        cache_first        applied           last
//!       |  terms only     |   terms and bytes, evictable    |  terms and bytes, pinned  |
//! ```
//!
//! A follower that needs older entries makes the view ask for them ([`LogView::take_wanted`]); raft-rs is told to wait,
//! and asks again when the shard has read them from its log.

use crate::eraftpb::{ConfState, Entry, HardState, Snapshot};
use prost::Message;
use raft::{Error, GetEntriesContext, RaftState, Storage, StorageError};
use std::cell::RefCell;
use std::collections::VecDeque;

/// Ranges that may be wanted at a time; a further one is asked for again at the follower's next heartbeat answer.
const WANTED_MAX: usize = 8;
/// raft-rs's calls that wait for one range; more are dropped, since they repeat themselves.
const WAITERS_MAX: usize = 8;

/// A stretch of the log with one term, from `first` up to the next run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TermRun {
    /// First index of the run.
    pub(crate) first: u64,
    /// The term of its entries.
    pub(crate) term: u64,
}

/// A range of old entries that a follower needs: `[low, high)`, cut after the first entry that passes `max_bytes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    /// First index, inclusive.
    pub(crate) low: u64,
    /// Last index, exclusive.
    pub(crate) high: u64,
    /// Entries beyond this sum of sizes are of no use now.
    pub(crate) max_bytes: u64,
}

#[derive(Debug)]
struct Wanted {
    range: Range,
    told: bool,
    waiters: Vec<GetEntriesContext>,
}

/// The storage that a peer's `RawNode` reads.
#[derive(Debug)]
pub(crate) struct LogView {
    hard_state: HardState,
    conf_state: ConfState,
    /// Runs from the truncated index on; the first one holds the truncated index itself.
    runs: VecDeque<TermRun>,
    truncated: u64,
    last: u64,
    /// Entries `[cache_first, last]` with their encoded lengths.
    cache: VecDeque<(Entry, u32)>,
    cache_bytes: usize,
    fetched: Vec<Entry>,
    wanted: RefCell<Vec<Wanted>>,
    snapshot_wanted: RefCell<Vec<u64>>,
}

impl LogView {
    /// A view over a log that ends at the last of `entries`, or where `runs` say if there are none.
    ///
    /// `runs` begin at the truncated index and reach to the entry before the first of `entries`.
    pub(crate) fn new(
        hard_state: HardState,
        conf_state: ConfState,
        runs: Vec<TermRun>,
        last: u64,
        entries: Vec<Entry>,
    ) -> LogView {
        let truncated = runs.first().expect("a log begins at its truncated index").first;
        let mut view = LogView {
            hard_state,
            conf_state,
            runs: runs.into(),
            truncated,
            last,
            cache: VecDeque::new(),
            cache_bytes: 0,
            fetched: Vec::new(),
            wanted: RefCell::default(),
            snapshot_wanted: RefCell::default(),
        };
        view.append(entries);
        view
    }

    /// Index before the first one that the log holds.
    pub(crate) fn truncated(&self) -> u64 {
        self.truncated
    }

    /// Bytes of the entries in memory.
    pub(crate) fn cached_bytes(&self) -> usize {
        self.cache_bytes
    }

    fn cache_first(&self) -> u64 {
        self.last + 1 - self.cache.len() as u64
    }

    /// Appends `entries`, which follow each other; whatever stood at their indexes and after is void.
    pub(crate) fn append(&mut self, entries: Vec<Entry>) {
        let Some(first) = entries.first().map(|entry| entry.index) else {
            return;
        };
        assert!(
            self.truncated < first && first <= self.last + 1,
            "appending at {first} to a log of ({}, {}]",
            self.truncated,
            self.last
        );
        self.cut(first);
        for entry in entries {
            assert_eq!(entry.index, self.last + 1, "entries follow each other");
            if self.runs.back().is_none_or(|run| run.term != entry.term) {
                self.runs.push_back(TermRun { first: entry.index, term: entry.term });
            }
            self.last = entry.index;
            let size = entry.encoded_len();
            self.cache_bytes += size;
            self.cache.push_back((entry, u32::try_from(size).unwrap_or(u32::MAX)));
        }
    }

    /// Forgets everything from `from` on.
    fn cut(&mut self, from: u64) {
        while self.last >= from {
            self.last -= 1;
            if let Some((_, size)) = self.cache.pop_back() {
                self.cache_bytes -= size as usize;
            }
        }
        while self.runs.back().is_some_and(|run| run.first >= from && run.first > self.truncated) {
            self.runs.pop_back();
        }
        self.fetched.truncate(self.fetched.iter().take_while(|entry| entry.index < from).count());
    }

    /// Drops the log up to and including `index`, except for its term.
    pub(crate) fn truncate(&mut self, index: u64) {
        if index <= self.truncated {
            return;
        }
        assert!(index <= self.last, "truncating at {index}, the log ends at {}", self.last);
        let term = self.run_of(index).expect("inside the log").term;
        while self.cache_first() <= index && !self.cache.is_empty() {
            self.evict_first();
        }
        while self.runs.front().is_some_and(|run| run.first <= index) {
            self.runs.pop_front();
        }
        self.runs.push_front(TermRun { first: index, term });
        self.truncated = index;
        self.fetched.clear();
    }

    /// Drops the bytes of applied entries until at most `bytes` are left, oldest first.
    pub(crate) fn evict(&mut self, applied: u64, bytes: usize) {
        while self.cache_bytes > bytes && self.cache_first() <= applied && !self.cache.is_empty() {
            self.evict_first();
        }
        if self.cache.capacity() > 64 && self.cache.len() < self.cache.capacity() / 4 {
            self.cache.shrink_to(self.cache.len() * 2);
        }
    }

    fn evict_first(&mut self) {
        if let Some((_, size)) = self.cache.pop_front() {
            self.cache_bytes -= size as usize;
        }
    }

    fn run_of(&self, index: u64) -> Option<TermRun> {
        let after = self.runs.partition_point(|run| run.first <= index);
        self.runs.get(after.checked_sub(1)?).copied()
    }

    /// Ranges that were wanted since the last call.
    pub(crate) fn take_wanted(&mut self) -> Vec<Range> {
        let mut new = Vec::new();
        for wanted in self.wanted.get_mut().iter_mut().filter(|wanted| !wanted.told) {
            wanted.told = true;
            new.push(wanted.range);
        }
        new
    }

    /// Peers that need a snapshot, since the last call.
    pub(crate) fn take_snapshot_wanted(&mut self) -> Vec<u64> {
        std::mem::take(self.snapshot_wanted.get_mut())
    }

    /// Takes in the entries of a range that was asked for, and answers which of raft-rs's calls waited for them.
    ///
    /// The entries stay until [`LogView::drop_fetched`]. If the log was cut or truncated meanwhile, what no longer fits
    /// is left out. An empty answer makes the waiters ask anew.
    pub(crate) fn fetched(&mut self, low: u64, entries: Vec<Entry>) -> Vec<GetEntriesContext> {
        let wanted = self.wanted.get_mut();
        let Some(at) = wanted.iter().position(|wanted| wanted.range.low == low && wanted.told) else {
            return Vec::new();
        };
        let wanted = wanted.remove(at);
        let fits = |index: u64, entry: &Entry| {
            entry.index == index
                && index > self.truncated
                && index <= self.last
                && self.run_of(index).is_some_and(|run| run.term == entry.term)
        };
        let count = (low..).zip(&entries).take_while(|(index, entry)| fits(*index, entry)).count();
        self.fetched = entries;
        self.fetched.truncate(count);
        wanted.waiters
    }

    /// Drops what [`LogView::fetched`] took in.
    pub(crate) fn drop_fetched(&mut self) {
        self.fetched = Vec::new();
    }

    fn want(&self, range: Range, waiter: GetEntriesContext) {
        let mut all = self.wanted.borrow_mut();
        if let Some(wanted) = all.iter_mut().find(|wanted| wanted.range.low == range.low) {
            if wanted.waiters.len() < WAITERS_MAX {
                wanted.waiters.push(waiter);
            }
        } else if all.len() < WANTED_MAX {
            all.push(Wanted { range, told: false, waiters: vec![waiter] });
        }
    }
}

/// The longest beginning of `entries` whose sizes sum up to at most `max_bytes`, at least one.
fn limited<'a>(entries: impl Iterator<Item = (&'a Entry, u64)>, max_bytes: u64) -> Vec<Entry> {
    let mut sum = 0u64;
    entries
        .take_while(|(_, size)| {
            let first = sum == 0;
            sum += size.max(&1);
            first || sum <= max_bytes
        })
        .map(|(entry, _)| entry.clone())
        .collect()
}

impl Storage for LogView {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState::new(self.hard_state, self.conf_state.clone()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        assert!(high <= self.last + 1, "reading up to {high}, the log ends at {}", self.last);
        let max_bytes = max_size.into().unwrap_or(u64::MAX);
        if low <= self.truncated {
            return Err(Error::Store(StorageError::Compacted));
        }
        if low >= self.cache_first() {
            let skip = (low - self.cache_first()) as usize;
            let found = self.cache.iter().skip(skip).take((high - low) as usize);
            return Ok(limited(found.map(|(entry, size)| (entry, u64::from(*size))), max_bytes));
        }
        if let Some(at) = self.fetched.iter().position(|entry| entry.index == low) {
            let found = self.fetched[at..].iter().take((high - low) as usize);
            return Ok(limited(found.map(|entry| (entry, entry.encoded_len() as u64)), max_bytes));
        }
        if !context.can_async() {
            return Err(Error::Store(StorageError::Unavailable));
        }
        let high = high.min(self.cache_first());
        self.want(Range { low, high, max_bytes }, context);
        Err(Error::Store(StorageError::LogTemporarilyUnavailable))
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index < self.truncated {
            return Err(Error::Store(StorageError::Compacted));
        }
        if index > self.last {
            return Err(Error::Store(StorageError::Unavailable));
        }
        Ok(self.run_of(index).expect("runs cover the whole log").term)
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.truncated + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last)
    }

    fn snapshot(&self, _request_index: u64, to: u64) -> raft::Result<Snapshot> {
        let mut wanted = self.snapshot_wanted.borrow_mut();
        if !wanted.contains(&to) && wanted.len() < WANTED_MAX {
            wanted.push(to);
        }
        Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable))
    }
}

#[cfg(test)]
mod tests;
