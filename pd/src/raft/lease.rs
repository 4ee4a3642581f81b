//! How long a leader may answer by itself.
//!
//! It asks a quorum, with each tick, whether it still leads (raft's ReadIndex). The members of a quorum that say so do not
//! vote for another for an election time-out (pre-vote and check-quorum), nor do they after a restart. So from when the
//! question was *sent*, less what clocks may drift and what ticks are coarse, nobody else can lead.
//!
//! Members change one at a time, so a quorum of before a change and one of after it have a member in common, and a lease
//! outlives one change. It would not outlive two: the next one is not begun before a lease was confirmed by the members as
//! they are ([`Lease::is_confirmed`]), by a question that was asked since.

use base::Instant;
use std::collections::VecDeque;
use std::time::Duration;

/// Questions that are remembered; older ones are of no use by then.
const ASKED_MAX: usize = 64;

/// What a member may answer without asking the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// Nothing: it does not lead, or does not know.
    Never,
    /// All, before this moment.
    Until(Instant),
    /// All: it is alone.
    Always,
}

impl Right {
    /// Whether it holds at `now`.
    pub fn holds(self, now: Instant) -> bool {
        match self {
            Right::Never => false,
            Right::Until(until) => now < until,
            Right::Always => true,
        }
    }
}

/// A leader's lease.
#[derive(Debug)]
pub struct Lease {
    duration: Duration,
    until: Option<Instant>,
    /// Questions without an answer, with when they were sent; oldest first.
    asked: VecDeque<(u64, Instant)>,
    /// A question of after the last change of members was answered.
    confirmed: bool,
}

impl Lease {
    /// No lease yet; each will last for `duration` from its question.
    pub fn new(duration: Duration) -> Lease {
        Lease { duration, until: None, asked: VecDeque::new(), confirmed: false }
    }

    /// How long a lease may last if no member votes within `election_ticks` of hearing from its leader. Ticks are coarse:
    /// a member's first one may come at once. A tenth is for clocks that run apart.
    pub fn longest(tick: Duration, election_ticks: u32) -> Duration {
        tick * election_ticks.saturating_sub(1) * 9 / 10
    }

    /// A question leaves. Their numbers rise.
    pub fn asked(&mut self, question: u64, now: Instant) {
        if self.asked.len() == ASKED_MAX {
            self.asked.pop_front();
        }
        self.asked.push_back((question, now));
    }

    /// A quorum has answered a question, and with it the older ones.
    pub fn answered(&mut self, question: u64) {
        let mut sent = None;
        while let Some((number, at)) = self.asked.front().copied().filter(|(number, _)| *number <= question) {
            self.asked.pop_front();
            sent = (number == question).then_some(at);
        }
        if let Some(sent) = sent {
            self.until = self.until.max(Some(sent + self.duration));
            self.confirmed = true;
        }
    }

    /// The members have changed. Answers to questions of before count for nothing: nobody knows whose they are.
    pub fn members_changed(&mut self) {
        self.asked.clear();
        self.confirmed = false;
    }

    /// The leader voted alone until `now`, and one more votes from now on. Until there is a third one, which takes a
    /// confirmed lease, nobody is elected without this leader's vote: its own word is a lease.
    pub fn no_longer_alone(&mut self, now: Instant) {
        self.until = self.until.max(Some(now + self.duration));
    }

    /// Whether a question is under way.
    pub fn is_asked(&self) -> bool {
        !self.asked.is_empty()
    }

    /// Whether the members as they are have confirmed a lease.
    pub fn is_confirmed(&self) -> bool {
        self.confirmed
    }

    /// The leader leads no more, or is about to hand over. Answers to questions of before count for nothing.
    pub fn end(&mut self) {
        self.until = None;
        self.members_changed();
    }

    /// When the lease ends; `None` without one.
    pub fn until(&self) -> Option<Instant> {
        self.until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: Duration = Duration::from_millis(100);

    fn at(ms: u64) -> Instant {
        Instant(ms * 1_000_000)
    }

    #[test]
    fn a_lease_counts_from_the_question() {
        let mut lease = Lease::new(Lease::longest(TICK, 6));
        lease.asked(1, at(1_000));
        assert_eq!(lease.until(), None);
        lease.answered(1);
        assert_eq!(lease.until(), Some(at(1_450)));
        // An answer that comes late says nothing about what came after its question.
        lease.asked(2, at(1_100));
        lease.asked(3, at(1_200));
        lease.answered(3);
        assert_eq!(lease.until(), Some(at(1_650)));
        lease.answered(2);
        assert_eq!(lease.until(), Some(at(1_650)));
    }

    #[test]
    fn answers_from_before_the_end_count_for_nothing() {
        let mut lease = Lease::new(Lease::longest(TICK, 6));
        lease.asked(1, at(1_000));
        lease.end();
        lease.answered(1);
        assert_eq!(lease.until(), None);
    }

    #[test]
    fn a_lease_outlives_one_change_of_members_and_is_to_be_confirmed_before_the_next() {
        let mut lease = Lease::new(Lease::longest(TICK, 6));
        lease.asked(1, at(1_000));
        lease.answered(1);
        assert!(lease.is_confirmed());
        lease.asked(2, at(1_100));
        lease.members_changed();
        lease.answered(2);
        assert_eq!((lease.until(), lease.is_confirmed()), (Some(at(1_450)), false));
        lease.asked(3, at(1_200));
        lease.answered(3);
        assert_eq!((lease.until(), lease.is_confirmed()), (Some(at(1_650)), true));
    }

    #[test]
    fn questions_without_answers_are_bounded() {
        let mut lease = Lease::new(TICK);
        (0..1_000).for_each(|question| lease.asked(question, at(question)));
        assert_eq!(lease.asked.len(), ASKED_MAX);
        lease.answered(0);
        assert_eq!(lease.until(), None);
        lease.answered(999);
        assert_eq!(lease.until(), Some(at(1_099)));
    }
}
