//! Counters of the placement driver, and their Prometheus form.

use std::cell::Cell;
use std::fmt::Write;

/// Counters of one member. Plain cells: it lives on one core.
#[derive(Debug, Default)]
pub struct PdMetrics {
    /// Timestamps given out.
    pub tso_timestamps_total: Cell<u64>,
    /// Requests for timestamps that were answered.
    pub tso_requests_total: Cell<u64>,
    /// Requests for timestamps that failed.
    pub tso_failures_total: Cell<u64>,
    /// Bounds of timestamps that became durable.
    pub tso_bounds_total: Cell<u64>,
    /// Region heartbeats taken.
    pub region_heartbeats_total: Cell<u64>,
    /// Region heartbeats refused.
    pub region_heartbeats_refused_total: Cell<u64>,
    /// Store heartbeats taken.
    pub store_heartbeats_total: Cell<u64>,
    /// Records written to the journal.
    pub journal_records_total: Cell<u64>,
    /// Bytes of changes in them.
    pub journal_bytes_total: Cell<u64>,
    /// Images written.
    pub journal_images_total: Cell<u64>,
}

/// Adds to a counter.
pub(crate) fn add(counter: &Cell<u64>, by: u64) {
    counter.set(counter.get().wrapping_add(by));
}

impl PdMetrics {
    /// The counters, and the `gauges` besides, as Prometheus reads them.
    pub(crate) fn to_prometheus(&self, gauges: &[(&str, u64)]) -> String {
        let counters = [
            ("pd_tso_timestamps_total", &self.tso_timestamps_total),
            ("pd_tso_requests_total", &self.tso_requests_total),
            ("pd_tso_failures_total", &self.tso_failures_total),
            ("pd_tso_bounds_total", &self.tso_bounds_total),
            ("pd_region_heartbeats_total", &self.region_heartbeats_total),
            ("pd_region_heartbeats_refused_total", &self.region_heartbeats_refused_total),
            ("pd_store_heartbeats_total", &self.store_heartbeats_total),
            ("pd_journal_records_total", &self.journal_records_total),
            ("pd_journal_bytes_total", &self.journal_bytes_total),
            ("pd_journal_images_total", &self.journal_images_total),
        ];
        let mut text = String::new();
        let mut put = |name: &str, kind: &str, value: u64| {
            writeln!(text, "# TYPE {name} {kind}\n{name} {value}").expect("writing to a String cannot fail");
        };
        counters.iter().for_each(|(name, value)| put(name, "counter", value.get()));
        gauges.iter().for_each(|(name, value)| put(name, "gauge", *value));
        text
    }
}
