//! What stores report of themselves, as far as it need not survive a restart.

use base::Instant;
use proto::pdpb::StoreStats;
use std::collections::BTreeMap;

/// Without a heartbeat for so long a store counts as disconnected.
const DISCONNECTED_AFTER_S: u64 = 20;

/// One store's reports.
#[derive(Clone, Debug, Default)]
pub(crate) struct StoreVitals {
    /// The last heartbeat.
    pub(crate) stats: StoreStats,
    /// When it came, in nanoseconds since the epoch; 0 before the first.
    pub(crate) heartbeat_ns: u64,
    /// The same on the clock that never steps; `None` before the first.
    pub(crate) heard: Option<Instant>,
    /// The store's resolved timestamp; `None` until it has reported one.
    pub(crate) min_resolved_ts: Option<u64>,
}

impl StoreVitals {
    /// Whether the store has been heard lately.
    pub(crate) fn is_connected(&self, now_s: u64) -> bool {
        self.heartbeat_ns > 0 && now_s.saturating_sub(self.heartbeat_ns / 1_000_000_000) < DISCONNECTED_AFTER_S
    }
}

/// The reports of all stores. Bounded by the number of stores: only known ones are kept.
#[derive(Debug, Default)]
pub(crate) struct Vitals {
    by_store: BTreeMap<u64, StoreVitals>,
    /// The smallest resolved timestamp that all stores had reached.
    min_resolved_ts: Option<u64>,
}

impl Vitals {
    /// A store's reports.
    pub(crate) fn of(&self, store: u64) -> StoreVitals {
        self.by_store.get(&store).cloned().unwrap_or_default()
    }

    /// Takes a heartbeat.
    pub(super) fn heartbeat(&mut self, stats: StoreStats, now_ns: u64, now: Instant) {
        let vitals = self.by_store.entry(stats.store_id).or_default();
        vitals.stats = stats;
        vitals.heartbeat_ns = now_ns;
        vitals.heard = Some(now);
    }

    /// Takes a store's resolved timestamp.
    pub(super) fn resolved(&mut self, store: u64, ts: u64) {
        let vitals = self.by_store.entry(store).or_default();
        vitals.min_resolved_ts = vitals.min_resolved_ts.max(Some(ts));
    }

    /// The smallest resolved timestamp that was kept by a former process.
    pub(super) fn resume(min_resolved_ts: Option<u64>) -> Vitals {
        Vitals { min_resolved_ts, ..Vitals::default() }
    }

    /// The smallest resolved timestamp over `stores`. It never falls, and stays while one of them has not reported.
    pub(super) fn min_resolved(&mut self, stores: impl Iterator<Item = u64>) -> Option<u64> {
        let mut reported = stores.map(|store| self.by_store.get(&store)?.min_resolved_ts);
        let min = reported.try_fold(u64::MAX, |min, ts| Some(min.min(ts?))).filter(|min| *min != u64::MAX);
        self.min_resolved_ts = self.min_resolved_ts.max(min);
        self.min_resolved_ts
    }
}
