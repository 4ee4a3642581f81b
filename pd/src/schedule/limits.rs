//! How fast a store takes new peers and gives old ones: a token bucket for each.

use base::Instant;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Cost of a peer of an ordinary region, in tokens.
pub const PEER_COST: f64 = 1.0;
/// Cost of a peer of a small one: the snapshot is hardly more than its envelope.
pub const SMALL_PEER_COST: f64 = 0.2;
/// Regions up to this many MiB are small.
const SMALL_MIB: u64 = 20;

/// Peers in a minute.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// New peers.
    pub add_peer: f64,
    /// Peers that go.
    pub remove_peer: f64,
}

impl Default for Rates {
    fn default() -> Self {
        Rates { add_peer: 15.0, remove_peer: 15.0 }
    }
}

impl Rates {
    /// PD's form.
    pub fn to_json(self) -> Value {
        json!({ "add-peer": self.add_peer, "remove-peer": self.remove_peer })
    }

    /// Reads PD's form; `None` if it lacks something or is negative.
    pub fn from_json(value: &Value) -> Option<Rates> {
        let rate = |name: &str| super::config::as_float(&value[name]);
        Some(Rates { add_peer: rate("add-peer")?, remove_peer: rate("remove-peer")? })
    }

    /// Takes what there is of that form; the rest stays.
    pub fn restore(&mut self, value: &Value) {
        for (name, rate) in [("add-peer", &mut self.add_peer), ("remove-peer", &mut self.remove_peer)] {
            *rate = super::config::as_float(&value[name]).unwrap_or(*rate);
        }
    }

    fn of(self, way: Way) -> f64 {
        match way {
            Way::Add => self.add_peer,
            Way::Remove => self.remove_peer,
        }
    }
}

/// Which of a store's two buckets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// New peers.
    Add,
    /// Peers that go.
    Remove,
}

/// What a peer of a region of `size_mib` costs.
pub fn cost(size_mib: u64) -> f64 {
    if size_mib > SMALL_MIB { PEER_COST } else { SMALL_PEER_COST }
}

/// The buckets of all stores. A bucket holds one minute's worth; a store that was never used has a full one.
#[derive(Debug, Default)]
pub struct Limits(BTreeMap<(u64, Way), Bucket>);

#[derive(Clone, Copy, Debug)]
struct Bucket {
    used: f64,
    at: Instant,
}

impl Limits {
    /// Whether `store` has `cost` left.
    pub fn has(&self, now: Instant, store: u64, way: Way, rates: Rates, cost: f64) -> bool {
        self.used(now, store, way, rates) + cost <= rates.of(way)
    }

    /// Takes `cost`, whether it is there or not.
    pub fn take(&mut self, now: Instant, store: u64, way: Way, rates: Rates, cost: f64) {
        let used = self.used(now, store, way, rates) + cost;
        self.0.insert((store, way), Bucket { used, at: now });
    }

    fn used(&self, now: Instant, store: u64, way: Way, rates: Rates) -> f64 {
        let Some(bucket) = self.0.get(&(store, way)) else { return 0.0 };
        let back = now.since(bucket.at).as_secs_f64() * rates.of(way) / 60.0;
        (bucket.used - back).max(0.0)
    }

    /// Forgets stores that are gone.
    pub fn retain(&mut self, known: impl Fn(u64) -> bool) {
        self.0.retain(|(store, _), _| known(*store));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_bucket_holds_a_minute_and_fills_again() {
        let mut limits = Limits::default();
        let (rates, start) = (Rates::default(), Instant(0));
        for _ in 0..15 {
            assert!(limits.has(start, 1, Way::Add, rates, 1.0));
            limits.take(start, 1, Way::Add, rates, 1.0);
        }
        assert!(!limits.has(start, 1, Way::Add, rates, 0.2));
        assert!(limits.has(start, 1, Way::Remove, rates, 1.0) && limits.has(start, 2, Way::Add, rates, 1.0));
        assert!(!limits.has(start + Duration::from_millis(3_900), 1, Way::Add, rates, 1.0));
        assert!(limits.has(start + Duration::from_millis(4_100), 1, Way::Add, rates, 1.0));
        // A rate of nothing lets nothing through, at any time.
        let closed = Rates { add_peer: 0.0, remove_peer: 0.0 };
        assert!(!limits.has(start + Duration::from_secs(3600), 3, Way::Add, closed, 0.2));
        limits.retain(|store| store != 1);
        assert!(limits.has(start, 1, Way::Add, rates, 1.0));
    }
}
