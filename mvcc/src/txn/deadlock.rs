//! Who waits for whom, and whether a new wait would close a circle.
//!
//! ```text
//!  A ──k1──▶ B ──k2──▶ C          C is about to wait for A on k3: A, B and C would wait for ever
//! ```
//!
//! A wait that is never taken back, because its waiter was lost, ends by itself after a while.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use base::Instant;
use bytes::Bytes;

use super::TimeStamp;

/// Waits that are held at most; beyond, the oldest ones are forgotten, and their circles end by their time.
const WAITS_MAX: usize = 100_000;

/// One transaction waits for another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wait {
    /// Who waits.
    pub txn: TimeStamp,
    /// For whom.
    pub holder: TimeStamp,
    /// On which of the client's keys.
    pub key: Bytes,
    /// What the client wants to be told of the waiter.
    pub tag: Bytes,
}

/// What one transaction waits for: by holder and key, since when, and its tag.
type Others = BTreeMap<(TimeStamp, Bytes), (Instant, Bytes)>;

/// All waits of a part of the cluster.
#[derive(Debug)]
pub struct WaitGraph {
    waits: BTreeMap<TimeStamp, Others>,
    count: usize,
    lasts: Duration,
}

impl WaitGraph {
    /// A graph without waits, which last for as long as a transaction waits at most.
    pub fn new(lasts: Duration) -> WaitGraph {
        WaitGraph { waits: BTreeMap::new(), count: 0, lasts }
    }

    /// Notes that a transaction waits. If that would close a circle nothing is noted, and the circle is the answer: the
    /// waits that lead from the holder back to the waiter, in that order.
    ///
    /// Cost: each wait that can be reached from the holder is looked at once.
    pub fn wait(&mut self, now: Instant, wait: Wait) -> Option<Vec<Wait>> {
        if let Some(circle) = self.path(now, wait.holder, wait.txn) {
            return Some(circle);
        }
        if self.count >= WAITS_MAX {
            self.forget_expired(now);
        }
        if self.count >= WAITS_MAX
            && let Some(oldest) = self.waits.keys().next().copied()
        {
            self.clean(oldest);
        }
        let others = self.waits.entry(wait.txn).or_default();
        if others.insert((wait.holder, wait.key), (now, wait.tag)).is_none() {
            self.count += 1;
        }
        None
    }

    /// All waits, with how long they have lasted.
    pub fn list(&self, now: Instant) -> Vec<(Wait, Duration)> {
        let of = |(txn, others): (&TimeStamp, &Others)| {
            let wait = |((holder, key), (since, tag)): (&(TimeStamp, Bytes), &(Instant, Bytes))| {
                (Wait { txn: *txn, holder: *holder, key: key.clone(), tag: tag.clone() }, now.since(*since))
            };
            others.iter().map(wait).collect::<Vec<_>>()
        };
        self.waits.iter().flat_map(of).filter(|(_, lasted)| *lasted <= self.lasts).collect()
    }

    /// A transaction waits for another no more.
    pub fn end_wait(&mut self, txn: TimeStamp, holder: TimeStamp, key: &Bytes) {
        let Some(others) = self.waits.get_mut(&txn) else { return };
        if others.remove(&(holder, key.clone())).is_some() {
            self.count -= 1;
        }
        if others.is_empty() {
            self.waits.remove(&txn);
        }
    }

    /// A transaction waits for nobody any more.
    pub fn clean(&mut self, txn: TimeStamp) {
        self.count -= self.waits.remove(&txn).map_or(0, |others| others.len());
    }

    /// How many waits there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// All waits, for whoever shows them.
    pub fn all(&self) -> impl Iterator<Item = Wait> {
        self.waits.iter().flat_map(|(txn, others)| {
            others.iter().map(|((holder, key), (_, tag))| Wait {
                txn: *txn,
                holder: *holder,
                key: key.clone(),
                tag: tag.clone(),
            })
        })
    }

    /// The shortest way of waits from `from` to `to`.
    fn path(&self, now: Instant, from: TimeStamp, to: TimeStamp) -> Option<Vec<Wait>> {
        let mut came_by: BTreeMap<TimeStamp, Wait> = BTreeMap::new();
        let mut seen = BTreeSet::from([from]);
        let mut open = VecDeque::from([from]);
        while let Some(txn) = open.pop_front() {
            if txn == to {
                return Some(Self::way_back(&mut came_by, from, to));
            }
            for ((holder, key), (since, tag)) in self.waits.get(&txn).into_iter().flatten() {
                if now.since(*since) <= self.lasts && seen.insert(*holder) {
                    came_by.insert(*holder, Wait { txn, holder: *holder, key: key.clone(), tag: tag.clone() });
                    open.push_back(*holder);
                }
            }
        }
        None
    }

    fn way_back(came_by: &mut BTreeMap<TimeStamp, Wait>, from: TimeStamp, to: TimeStamp) -> Vec<Wait> {
        let mut way = Vec::new();
        let mut at = to;
        while at != from
            && let Some(wait) = came_by.remove(&at)
        {
            at = wait.txn;
            way.push(wait);
        }
        way.reverse();
        way
    }

    fn forget_expired(&mut self, now: Instant) {
        let lasts = self.lasts;
        for others in self.waits.values_mut() {
            let before = others.len();
            others.retain(|_, (since, _)| now.since(*since) <= lasts);
            self.count -= before - others.len();
        }
        self.waits.retain(|_, others| !others.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait(txn: u64, holder: u64, key: &'static str) -> Wait {
        Wait { txn: TimeStamp(txn), holder: TimeStamp(holder), key: key.into(), tag: Bytes::new() }
    }

    fn graph() -> WaitGraph {
        WaitGraph::new(Duration::from_secs(1))
    }

    #[test]
    fn two_that_wait_for_each_other_are_a_circle() {
        let mut graph = graph();
        assert_eq!(graph.wait(Instant(0), wait(1, 2, "k2")), None);
        assert_eq!(graph.wait(Instant(0), wait(2, 1, "k1")), Some(vec![wait(1, 2, "k2")]));
        // It did not begin to wait.
        assert_eq!(graph.len(), 1);
    }

    #[test]
    fn a_circle_of_ten_names_them_in_order() {
        let mut graph = graph();
        for txn in 1..10 {
            assert_eq!(graph.wait(Instant(0), wait(txn, txn + 1, "k")), None);
        }
        let circle = graph.wait(Instant(0), wait(10, 1, "k")).expect("a circle");
        assert_eq!(circle, (1..10).map(|txn| wait(txn, txn + 1, "k")).collect::<Vec<_>>());
    }

    #[test]
    fn a_wait_that_ended_closes_no_circle() {
        let mut graph = graph();
        graph.wait(Instant(0), wait(1, 2, "a"));
        graph.wait(Instant(0), wait(1, 2, "b"));
        graph.end_wait(TimeStamp(1), TimeStamp(2), &"a".into());
        assert!(graph.wait(Instant(0), wait(2, 1, "c")).is_some(), "it waits on b still");
        graph.end_wait(TimeStamp(1), TimeStamp(2), &"b".into());
        assert_eq!(graph.wait(Instant(0), wait(2, 1, "c")), None);
        graph.clean(TimeStamp(2));
        assert!(graph.is_empty());
    }

    #[test]
    fn a_lost_wait_ends_by_itself() {
        let mut graph = graph();
        graph.wait(Instant(0), wait(1, 2, "a"));
        assert!(graph.wait(Instant(1_000_000_000), wait(2, 1, "b")).is_some());
        assert_eq!(graph.wait(Instant(1_000_000_001), wait(2, 1, "b")), None);
    }

    #[test]
    fn waiting_for_oneself_is_a_circle_of_one() {
        assert_eq!(graph().wait(Instant(0), wait(1, 1, "a")), Some(Vec::new()));
    }
}
