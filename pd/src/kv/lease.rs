//! Leases: a time to live that clients renew, and that takes its keys with it.

use base::Instant;
use std::collections::BTreeMap;
use std::time::Duration;

/// Leases with their deadlines. The deadline is known to this process alone: after a restart each lease begins anew.
#[derive(Debug, Default)]
pub struct Leases {
    by_id: BTreeMap<i64, Lease>,
}

#[derive(Debug)]
struct Lease {
    ttl: i64,
    deadline: Option<Instant>,
}

impl Leases {
    /// The same leases without their deadlines.
    pub fn to_begin_anew(&self) -> Leases {
        let anew = |(id, lease): (&i64, &Lease)| (*id, Lease { ttl: lease.ttl, deadline: None });
        Leases { by_id: self.by_id.iter().map(anew).collect() }
    }

    /// Adds a lease of `ttl` seconds; its deadline begins with the next [`Leases::expired`] unless renewed before.
    pub fn insert(&mut self, id: i64, ttl: i64) {
        self.by_id.insert(id, Lease { ttl, deadline: None });
    }

    /// Removes a lease; false if there is none.
    pub fn remove(&mut self, id: i64) -> bool {
        self.by_id.remove(&id).is_some()
    }

    /// Whether `id` exists.
    pub fn contains(&self, id: i64) -> bool {
        self.by_id.contains_key(&id)
    }

    /// Begins the time to live anew and returns it in seconds; `None` without such a lease.
    pub fn renew(&mut self, id: i64, now: Instant) -> Option<i64> {
        let lease = self.by_id.get_mut(&id)?;
        lease.deadline = Some(now + seconds(lease.ttl));
        Some(lease.ttl)
    }

    /// Seconds left and granted; `None` without such a lease.
    pub fn left(&self, id: i64, now: Instant) -> Option<(i64, i64)> {
        let lease = self.by_id.get(&id)?;
        let left = lease
            .deadline
            .map_or(lease.ttl, |deadline| i64::try_from(deadline.since(now).as_secs()).unwrap_or(i64::MAX));
        Some((left, lease.ttl))
    }

    /// Every lease with its time to live, by id.
    pub fn iter(&self) -> impl Iterator<Item = (i64, i64)> {
        self.by_id.iter().map(|(id, lease)| (*id, lease.ttl))
    }

    /// Number of leases.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// Leases whose deadline has passed at `now`, at most `limit`. Starts the clock of those that have none yet.
    pub fn expired(&mut self, now: Instant, limit: usize) -> Vec<i64> {
        let mut expired = Vec::new();
        for (id, lease) in &mut self.by_id {
            let deadline = *lease.deadline.get_or_insert(now + seconds(lease.ttl));
            if deadline <= now && expired.len() < limit {
                expired.push(*id);
            }
        }
        expired
    }
}

fn seconds(ttl: i64) -> Duration {
    Duration::from_secs(ttl.max(0).unsigned_abs())
}
