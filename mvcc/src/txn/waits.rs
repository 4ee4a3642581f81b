//! Pessimistic requests that wait for a key: one queue a key, in the order of their transactions.
//!
//! When the key is released, the oldest transaction's request goes first: it is told of the conflict, so that its client
//! looks at the key anew, or, if it allows conflicts, it takes the lock itself. The others follow a moment later, unless
//! somebody has taken the lock by then: that moment is for the first one's client to come back.

use std::collections::BTreeMap;
use std::time::Duration;

use base::Instant;
use bytes::Bytes;

use super::{Released, TimeStamp};

/// How long the others wait for the first one's client (`wake-up-delay-duration`).
pub const WAKE_UP_DELAY: Duration = Duration::from_millis(20);

/// Names a request that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WaiterId(pub u64);

/// A request that waits for a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiter {
    /// Its transaction.
    pub start_ts: TimeStamp,
    /// Whose lock it met.
    pub holder: TimeStamp,
    /// It takes the lock whatever was committed meanwhile.
    pub allows_conflict: bool,
    /// When it gives up.
    pub until: Instant,
}

/// What a request that has waited is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Woken {
    /// The lock is gone: look at the key anew.
    Released {
        /// Whose it was.
        start_ts: TimeStamp,
        /// When that committed; 0 if it did not.
        commit_ts: TimeStamp,
    },
    /// The lock is gone, and it is this request's turn to take it.
    Retry,
    /// It has waited long enough.
    TimedOut,
}

/// Too many requests wait already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many requests wait for locks")]
pub struct WaitsFull;

/// A key's queue.
#[derive(Debug, Default)]
struct Queue {
    /// The oldest transaction first; of one transaction's requests the first one first.
    waiters: BTreeMap<(TimeStamp, WaiterId), Waiter>,
    /// The last release, and when those that were not woken then are.
    wakes: Option<(Instant, TimeStamp, TimeStamp)>,
}

/// All queues of one core.
#[derive(Debug)]
pub struct LockWaits {
    queues: BTreeMap<Bytes, Queue>,
    /// Where each waiter stands.
    places: BTreeMap<WaiterId, (Bytes, TimeStamp)>,
    next: u64,
    max: usize,
}

impl LockWaits {
    /// No waiters; `max` at most.
    pub fn new(max: usize) -> LockWaits {
        LockWaits { queues: BTreeMap::new(), places: BTreeMap::new(), next: 0, max }
    }

    /// A request begins to wait for an encoded key.
    ///
    /// # Errors
    /// [`WaitsFull`].
    pub fn wait(&mut self, key: &Bytes, waiter: Waiter) -> Result<WaiterId, WaitsFull> {
        if self.places.len() >= self.max {
            return Err(WaitsFull);
        }
        let id = WaiterId(self.next);
        self.next += 1;
        self.places.insert(id, (key.clone(), waiter.start_ts));
        self.queues.entry(key.clone()).or_default().waiters.insert((waiter.start_ts, id), waiter);
        Ok(id)
    }

    /// A lock was removed: who is woken now. The others are by [`due`](Self::due).
    pub fn released(&mut self, now: Instant, released: &Released) -> Option<(WaiterId, Woken)> {
        let queue = self.queues.get_mut(&released.key)?;
        let ((_, id), waiter) = queue.waiters.pop_first()?;
        queue.wakes = Some((now + WAKE_UP_DELAY, released.start_ts, released.commit_ts));
        self.leave(id, &released.key);
        let Released { start_ts, commit_ts, .. } = released;
        let woken = match waiter.allows_conflict {
            true => Woken::Retry,
            false => Woken::Released { start_ts: *start_ts, commit_ts: *commit_ts },
        };
        Some((id, woken))
    }

    /// A key was locked: whoever waits for it goes on to.
    pub fn locked(&mut self, key: &Bytes) {
        if let Some(queue) = self.queues.get_mut(key) {
            queue.wakes = None;
        }
    }

    /// A request gives up: its client has gone, or its region.
    pub fn give_up(&mut self, id: WaiterId) -> Option<Waiter> {
        let (key, start_ts) = self.places.get(&id).cloned()?;
        let waiter = self.queues.get_mut(&key)?.waiters.remove(&(start_ts, id));
        self.leave(id, &key);
        waiter
    }

    /// Who has waited long enough, for a lock or for the first one's client.
    ///
    /// Cost: a look at every queue.
    pub fn due(&mut self, now: Instant) -> Vec<(WaiterId, Woken)> {
        let mut out = Vec::new();
        for queue in self.queues.values_mut() {
            if let Some((_, start_ts, commit_ts)) = queue.wakes.filter(|(at, ..)| *at <= now) {
                queue.wakes = None;
                // One that takes the lock itself is enough; those behind it wait for that one.
                while let Some(((_, id), waiter)) = queue.waiters.pop_first() {
                    if waiter.allows_conflict {
                        out.push((id, Woken::Retry));
                        break;
                    }
                    out.push((id, Woken::Released { start_ts, commit_ts }));
                }
            }
            let late: Vec<_> =
                queue.waiters.iter().filter(|(_, waiter)| waiter.until <= now).map(|(at, _)| *at).collect();
            for at in late {
                queue.waiters.remove(&at);
                out.push((at.1, Woken::TimedOut));
            }
        }
        self.queues.retain(|_, queue| !queue.waiters.is_empty());
        for (id, _) in &out {
            self.places.remove(id);
        }
        out
    }

    /// When [`due`](Self::due) has something to say next.
    pub fn next_due(&self) -> Option<Instant> {
        let of = |queue: &Queue| {
            let wakes = queue.wakes.map(|(at, ..)| at);
            queue.waiters.values().map(|waiter| waiter.until).chain(wakes).min()
        };
        self.queues.values().filter_map(of).min()
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    fn leave(&mut self, id: WaiterId, key: &Bytes) {
        self.places.remove(&id);
        if self.queues.get(key).is_some_and(|queue| queue.waiters.is_empty()) {
            self.queues.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLI: u64 = 1_000_000;

    fn waiter(start_ts: u64) -> Waiter {
        Waiter {
            start_ts: TimeStamp(start_ts),
            holder: TimeStamp(1),
            allows_conflict: false,
            until: Instant(1000 * MILLI),
        }
    }

    fn released(commit_ts: u64) -> Released {
        Released { key: "k".into(), start_ts: TimeStamp(1), commit_ts: TimeStamp(commit_ts) }
    }

    fn gone(commit_ts: u64) -> Woken {
        Woken::Released { start_ts: TimeStamp(1), commit_ts: TimeStamp(commit_ts) }
    }

    #[test]
    fn the_oldest_transaction_is_woken_first_and_the_others_a_moment_later() {
        let mut waits = LockWaits::new(10);
        let key = Bytes::from("k");
        let [c, a, b] = [30, 10, 20].map(|ts| waits.wait(&key, waiter(ts)).expect("room"));
        assert_eq!(waits.released(Instant(0), &released(5)), Some((a, gone(5))));
        assert_eq!(waits.due(Instant(19 * MILLI)), []);
        assert_eq!(waits.next_due(), Some(Instant(20 * MILLI)));
        assert_eq!(waits.due(Instant(20 * MILLI)), [(b, gone(5)), (c, gone(5))]);
        assert!(waits.is_empty() && waits.next_due().is_none());
    }

    #[test]
    fn whoever_comes_back_in_time_keeps_the_others_waiting() {
        let mut waits = LockWaits::new(10);
        let key = Bytes::from("k");
        waits.wait(&key, waiter(10)).expect("room");
        let second = waits.wait(&key, waiter(20)).expect("room");
        waits.released(Instant(0), &released(5)).expect("the first one");
        waits.locked(&key);
        assert_eq!(waits.due(Instant(100 * MILLI)), []);
        assert_eq!(waits.released(Instant(200 * MILLI), &released(7)), Some((second, gone(7))));
    }

    #[test]
    fn one_that_allows_conflicts_takes_the_lock_and_those_behind_it_wait() {
        let mut waits = LockWaits::new(10);
        let key = Bytes::from("k");
        let force = |ts| Waiter { allows_conflict: true, ..waiter(ts) };
        let first = waits.wait(&key, force(10)).expect("room");
        waits.wait(&key, waiter(15)).expect("room");
        let third = waits.wait(&key, force(20)).expect("room");
        waits.wait(&key, waiter(30)).expect("room");
        assert_eq!(waits.released(Instant(0), &released(0)), Some((first, Woken::Retry)));
        let woken = waits.due(Instant(20 * MILLI));
        assert_eq!(woken.last(), Some(&(third, Woken::Retry)));
        assert_eq!((woken.len(), waits.len()), (2, 1));
    }

    #[test]
    fn who_waits_too_long_is_told_so() {
        let mut waits = LockWaits::new(10);
        let id = waits.wait(&"k".into(), waiter(10)).expect("room");
        let later = Waiter { until: Instant(2000 * MILLI), ..waiter(11) };
        waits.wait(&"k".into(), later).expect("room");
        assert_eq!(waits.next_due(), Some(Instant(1000 * MILLI)));
        assert_eq!(waits.due(Instant(1000 * MILLI)), [(id, Woken::TimedOut)]);
        assert_eq!((waits.len(), waits.next_due()), (1, Some(Instant(2000 * MILLI))));
    }

    #[test]
    fn who_gave_up_is_not_woken() {
        let mut waits = LockWaits::new(10);
        let first = waits.wait(&"k".into(), waiter(10)).expect("room");
        let second = waits.wait(&"k".into(), waiter(20)).expect("room");
        assert_eq!(waits.give_up(first).map(|waiter| waiter.start_ts), Some(TimeStamp(10)));
        assert_eq!(waits.give_up(first), None);
        assert_eq!(waits.released(Instant(0), &released(0)).map(|(id, _)| id), Some(second));
        assert_eq!(waits.released(Instant(0), &released(0)), None);
        assert!(waits.is_empty());
    }

    #[test]
    fn the_number_of_waiters_is_bounded() {
        let mut waits = LockWaits::new(2);
        let ids = [1, 2].map(|ts| waits.wait(&"k".into(), waiter(ts)).expect("room"));
        assert_eq!(waits.wait(&"l".into(), waiter(3)), Err(WaitsFull));
        waits.give_up(ids[0]);
        assert!(waits.wait(&"l".into(), waiter(3)).is_ok());
    }
}
