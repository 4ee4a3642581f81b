//! Which proposal became which entry, and what became of it.

use crate::eraftpb::Entry;
use std::collections::VecDeque;

#[derive(Clone, Copy, Debug)]
struct Proposal {
    id: u64,
    index: u64,
    term: u64,
}

/// The proposals of this peer that are not applied yet, in the order of their indexes.
///
/// A proposal ends in one of two ways. The entry applied at its index has its term: then it is that entry. Or an entry
/// with a higher term is applied at or before its index: then no log that holds this entry can hold the proposal, so it
/// surely never happened (log matching, Raft dissertation 3.5).
#[derive(Debug, Default)]
pub(crate) struct Proposals {
    pending: VecDeque<Proposal>,
}

impl Proposals {
    pub(crate) fn len(&self) -> usize {
        self.pending.len()
    }

    /// Notes that `id` was appended at (`index`, `term`); neither the term nor, within it, the index ever goes back.
    pub(crate) fn push(&mut self, id: u64, index: u64, term: u64) {
        self.pending.push_back(Proposal { id, index, term });
    }

    /// Settles what the applying of `entry` decides: the proposal that it is, and those that it makes impossible.
    ///
    /// Constant time per proposal: terms rise in the order of proposing, so the impossible ones stand in front.
    pub(crate) fn applied(&mut self, entry: &Entry, mut stale: impl FnMut(u64)) -> Option<u64> {
        while self.pending.front().is_some_and(|first| first.term < entry.term) {
            stale(self.pending.pop_front().expect("just seen").id);
        }
        let first = self.pending.front()?;
        assert!(
            first.term > entry.term || first.index >= entry.index,
            "proposal {} at {} was passed over",
            first.id,
            first.index
        );
        if (first.index, first.term) != (entry.index, entry.term) {
            return None;
        }
        self.pending.pop_front().map(|proposal| proposal.id)
    }

    /// Gives up on all of them; their fate is unknown.
    pub(crate) fn drain(&mut self) -> Vec<u64> {
        self.pending.drain(..).map(|proposal| proposal.id).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apply(proposals: &mut Proposals, index: u64, term: u64) -> (Option<u64>, Vec<u64>) {
        let mut stale = Vec::new();
        let entry = Entry { index, term, ..Default::default() };
        let done = proposals.applied(&entry, |id| stale.push(id));
        (done, stale)
    }

    #[test]
    fn the_entry_with_its_term_is_the_proposal() {
        let mut proposals = Proposals::default();
        proposals.push(1, 7, 6);
        proposals.push(2, 8, 6);
        assert_eq!(apply(&mut proposals, 6, 6), (None, vec![]));
        assert_eq!(apply(&mut proposals, 7, 6), (Some(1), vec![]));
        assert_eq!(apply(&mut proposals, 8, 6), (Some(2), vec![]));
        assert_eq!(proposals.len(), 0);
    }

    #[test]
    fn a_higher_term_before_it_makes_it_impossible() {
        let mut proposals = Proposals::default();
        proposals.push(1, 7, 6);
        proposals.push(2, 8, 6);
        proposals.push(3, 9, 8);
        assert_eq!(apply(&mut proposals, 7, 7), (None, vec![1, 2]));
        assert_eq!(apply(&mut proposals, 8, 8), (None, vec![]));
        assert_eq!(apply(&mut proposals, 9, 8), (Some(3), vec![]));
    }
}
