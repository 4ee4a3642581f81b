//! Where a peer's entries lie in the log: runs of consecutive entries of one term, close together in one segment.
//!
//! A run costs 48 bytes however many entries it has. To read an entry, the blocks from the run's first to its last are
//! read, and the last one of that index wins: a later one outside of them would have ended the run.

use std::collections::{BTreeMap, VecDeque};

use super::record::Position;

/// Farthest that the last block of a run begins behind its first one, in units (1 MiB): the most that is read for
/// one entry, but for the length of the last block.
pub(crate) const RUN_SPAN_UNITS: u32 = 256;

/// Place of a block: its segment's number and its first unit there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct At {
    pub(crate) segment: u64,
    pub(crate) unit: u32,
}

/// Entries `first .. first + count`, all of one term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) first: u64,
    pub(crate) term: u64,
    pub(crate) segment: u64,
    pub(crate) count: u32,
    /// Bytes in the log, an estimate once the run was cut.
    pub(crate) bytes: u32,
    /// First unit of the first and of the last block.
    pub(crate) start: u32,
    pub(crate) end: u32,
    /// Whether the log must keep it: some entry is above what is released. Kept by [`Runs`].
    pub(crate) live: bool,
}

impl Run {
    /// Index after the last entry.
    pub(crate) fn next(&self) -> u64 {
        self.first + u64::from(self.count)
    }

    fn last(&self) -> Position {
        Position { index: self.next() - 1, term: self.term }
    }

    /// Keeps the entries in `[low, high)`, which is not empty.
    fn narrow(&mut self, low: u64, high: u64) {
        let (low, high) = (low.max(self.first), high.min(self.next()));
        let kept = high - low;
        self.bytes = (u64::from(self.bytes) * kept / u64::from(self.count)).max(1) as u32;
        self.first = low;
        self.count = kept as u32;
    }
}

/// What a segment holds that is live.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Use {
    pub(crate) items: u64,
    pub(crate) bytes: u64,
}

/// Counts what is live, per segment and together.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    segments: BTreeMap<u64, Use>,
    pub(crate) total: Use,
    /// Bytes of what is no entry and no event, in `total`.
    pub(crate) small_bytes: u64,
    /// Runs in memory, live or not.
    pub(crate) runs: u64,
}

impl Ledger {
    pub(crate) fn add(&mut self, segment: u64, bytes: u64) {
        for place in [self.segments.entry(segment).or_default(), &mut self.total] {
            place.items += 1;
            place.bytes += bytes;
        }
    }

    pub(crate) fn sub(&mut self, segment: u64, bytes: u64) {
        let place = self.segments.get_mut(&segment).expect("added before");
        place.items -= 1;
        place.bytes -= bytes;
        if place.items == 0 {
            debug_assert_eq!(place.bytes, 0);
            self.segments.remove(&segment);
        }
        self.total.items -= 1;
        self.total.bytes -= bytes;
    }

    fn resize(&mut self, segment: u64, from: u32, to: u32) {
        for place in [self.segments.get_mut(&segment).expect("added before"), &mut self.total] {
            place.bytes = place.bytes + u64::from(to) - u64::from(from);
        }
    }

    /// The lowest segment with something live in it.
    pub(crate) fn first_segment(&self) -> Option<u64> {
        self.segments.keys().next().copied()
    }
}

/// A peer's runs by index, without overlaps. There are gaps only while a log is being replayed.
#[derive(Debug, Default)]
pub(crate) struct Runs {
    runs: VecDeque<Run>,
    /// The log need not keep entries up to here.
    released: u64,
}

impl Runs {
    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = &Run> {
        self.runs.iter()
    }

    pub(crate) fn last(&self) -> Option<Position> {
        self.runs.back().map(Run::last)
    }

    pub(crate) fn released(&self) -> u64 {
        self.released
    }

    fn is_live(&self, run: &Run) -> bool {
        run.next() > self.released.saturating_add(1)
    }

    fn slot(&self, index: u64) -> usize {
        self.runs.partition_point(|run| run.next() <= index)
    }

    /// The run that holds `index`.
    pub(crate) fn locate(&self, index: u64) -> Option<&Run> {
        self.runs.get(self.slot(index)).filter(|run| run.first <= index)
    }

    /// Appends a run behind all others, or makes the last one longer.
    pub(crate) fn push(&mut self, mut run: Run, ledger: &mut Ledger) {
        run.live = self.is_live(&run);
        if let Some(last) = self.runs.back_mut() {
            debug_assert!(last.next() <= run.first);
            let near = run.start >= last.start && run.start - last.start <= RUN_SPAN_UNITS;
            let count = last.count.checked_add(run.count);
            let bytes = last.bytes.checked_add(run.bytes);
            if let (Some(count), Some(bytes)) = (count, bytes)
                && near
                && (last.next(), last.term, last.segment, last.live) == (run.first, run.term, run.segment, run.live)
            {
                if last.live {
                    ledger.resize(last.segment, last.bytes, bytes);
                }
                (last.count, last.bytes, last.end) = (count, bytes, run.end);
                return;
            }
        }
        Self::enter(&run, ledger);
        self.runs.push_back(run);
    }

    /// Puts a run in place of whatever covers its indexes.
    pub(crate) fn replace(&mut self, run: Run, ledger: &mut Ledger) {
        let tail = self.split_off(run.next(), ledger);
        self.cut_from(run.first, ledger);
        self.push(run, ledger);
        // Never joined: the tail's blocks may hold an older entry of the same index.
        self.runs.extend(tail);
    }

    /// Takes the runs at and above `index` out without telling the ledger that they are gone.
    fn split_off(&mut self, index: u64, ledger: &mut Ledger) -> VecDeque<Run> {
        let mut at = self.slot(index);
        if let Some(&run) = self.runs.get(at)
            && run.first < index
        {
            let (mut low, mut high) = (run, run);
            low.narrow(run.first, index);
            high.narrow(index, run.next());
            low.live = self.is_live(&low);
            Self::leave(&run, ledger);
            Self::enter(&low, ledger);
            Self::enter(&high, ledger);
            self.runs[at] = low;
            at += 1;
            self.runs.insert(at, high);
        }
        self.runs.split_off(at)
    }

    /// Removes all entries at and above `index`.
    pub(crate) fn cut_from(&mut self, index: u64, ledger: &mut Ledger) {
        while let Some(run) = self.runs.back_mut() {
            if run.next() <= index {
                return;
            }
            Self::leave(run, ledger);
            if run.first < index {
                run.narrow(run.first, index);
                run.live = run.next() > self.released.saturating_add(1);
                Self::enter(run, ledger);
                return;
            }
            self.runs.pop_back();
        }
    }

    /// Removes all entries up to and including `index`.
    pub(crate) fn drop_through(&mut self, index: u64, ledger: &mut Ledger) {
        self.release_through(index, ledger);
        while let Some(run) = self.runs.front_mut() {
            if run.first > index {
                return;
            }
            Self::leave(run, ledger);
            if run.next() > index + 1 {
                run.narrow(index + 1, run.next());
                Self::enter(run, ledger);
                return;
            }
            self.runs.pop_front();
        }
    }

    /// Notes that the log need not keep entries up to and including `index`.
    pub(crate) fn release_through(&mut self, index: u64, ledger: &mut Ledger) {
        if index <= self.released {
            return;
        }
        self.released = index;
        for run in &mut self.runs {
            if run.next() > index.saturating_add(1) {
                return;
            }
            if run.live {
                ledger.sub(run.segment, u64::from(run.bytes));
                run.live = false;
            }
        }
    }

    fn enter(run: &Run, ledger: &mut Ledger) {
        ledger.runs += 1;
        if run.live {
            ledger.add(run.segment, u64::from(run.bytes));
        }
    }

    fn leave(run: &Run, ledger: &mut Ledger) {
        ledger.runs -= 1;
        if run.live {
            ledger.sub(run.segment, u64::from(run.bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::Prng;

    fn run(first: u64, count: u32, term: u64, segment: u64, unit: u32) -> Run {
        Run { first, term, segment, count, bytes: count * 10, start: unit, end: unit, live: true }
    }

    #[test]
    fn a_run_takes_48_bytes() {
        assert_eq!(std::mem::size_of::<Run>(), 48);
    }

    #[test]
    fn appends_near_each_other_share_a_run() {
        let (mut runs, mut ledger) = (Runs::default(), Ledger::default());
        for i in 0..1000u32 {
            runs.push(run(1 + u64::from(i), 1, 1, 7, i), &mut ledger);
        }
        assert_eq!(runs.runs.len(), 1000usize.div_ceil(RUN_SPAN_UNITS as usize + 1));
        assert_eq!(ledger.total.bytes, 10_000);
        runs.push(run(1001, 1, 2, 7, 1000), &mut ledger);
        runs.push(run(1002, 1, 2, 8, 0), &mut ledger);
        assert_eq!(runs.runs.len(), 6, "another term, another segment");
    }

    /// Random operations against a map from index to (term, segment, live).
    #[test]
    fn runs_agree_with_a_map_from_index_to_place() {
        for seed in 0..200 {
            let mut prng = Prng::new(seed);
            let (mut runs, mut ledger) = (Runs::default(), Ledger::default());
            let mut model: BTreeMap<u64, (u64, u64, bool)> = BTreeMap::new();
            let mut released = 0;
            for step in 0..100u32 {
                let segment = u64::from(step / 10);
                let last = model.keys().next_back().copied().unwrap_or(released);
                let index = prng.range(released + 1, last + 2);
                let count = prng.range(1, 6);
                match prng.below(6) {
                    0..3 => {
                        model.retain(|&at, _| at < index);
                        runs.cut_from(index, &mut ledger);
                        runs.push(run(index, count as u32, segment, segment, step), &mut ledger);
                        (index..index + count).for_each(|at| _ = model.insert(at, (segment, segment, true)));
                    }
                    3 => {
                        let count = count.min(last + 1 - index);
                        if count > 0 {
                            runs.replace(run(index, count as u32, 99, segment, step), &mut ledger);
                            (index..index + count).for_each(|at| _ = model.insert(at, (99, segment, true)));
                        }
                    }
                    4 => {
                        released = released.max(index - 1);
                        runs.release_through(released, &mut ledger);
                    }
                    _ => {
                        let through = prng.below(released + 1);
                        model.retain(|&at, _| at > through);
                        runs.drop_through(through, &mut ledger);
                    }
                }
                let seen: Vec<_> =
                    runs.iter().flat_map(|run| (run.first..run.next()).map(|at| (at, run.term, run.segment))).collect();
                let expected: Vec<_> = model.iter().map(|(&at, v)| (at, v.0, v.1)).collect();
                assert_eq!(seen, expected, "seed {seed}, step {step}");
                let live = runs.iter().filter(|run| run.live);
                let (items, bytes) = live.fold((0, 0), |(items, bytes), run| (items + 1, bytes + u64::from(run.bytes)));
                assert_eq!(ledger.total, Use { items, bytes });
                assert_eq!(ledger.runs, runs.runs.len() as u64);
                assert!(runs.iter().all(|run| run.live == (run.next() > released + 1)));
                for (&at, value) in &model {
                    assert_eq!(runs.locate(at).map(|run| run.term), Some(value.0));
                }
            }
        }
    }
}
