//! How long requests took.

use std::time::Duration;

use hdrhistogram::Histogram;

/// Longest latency that is told apart: a minute. Longer ones count as that.
const LIMIT_NANOS: u64 = 60_000_000_000;

/// Latencies in nanoseconds, three digits exact. Merged by adding, never by averaging.
#[derive(Clone)]
pub(crate) struct Latency(Histogram<u64>);

/// What a table and a results file tell of it, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub(crate) struct LatencySummary {
    pub(crate) mean: f64,
    pub(crate) p50: f64,
    pub(crate) p90: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
    pub(crate) p9999: f64,
    pub(crate) max: f64,
}

impl Latency {
    pub(crate) fn new() -> Latency {
        Latency(Histogram::new_with_bounds(1, LIMIT_NANOS, 3).expect("bounds that make sense"))
    }

    /// Adds `count` requests that took `time` each.
    pub(crate) fn record(&mut self, time: Duration, count: u64) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.0.saturating_record_n(nanos.max(1), count);
    }

    /// Adds all of another.
    #[cfg(test)]
    pub(crate) fn merge(&mut self, other: &Latency) {
        self.0.add(&other.0).expect("equal bounds");
    }

    pub(crate) fn count(&self) -> u64 {
        self.0.len()
    }

    pub(crate) fn summary(&self) -> LatencySummary {
        let micros = |nanos: u64| nanos as f64 / 1000.0;
        let quantile = |quantile| micros(self.0.value_at_quantile(quantile));
        LatencySummary {
            mean: self.0.mean() / 1000.0,
            p50: quantile(0.5),
            p90: quantile(0.9),
            p99: quantile(0.99),
            p999: quantile(0.999),
            p9999: quantile(0.9999),
            max: micros(self.0.max()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(value: f64, expected: f64) -> bool {
        (value - expected).abs() <= expected / 500.0
    }

    #[test]
    fn merged_latencies_are_those_of_all() {
        let (mut fast, mut slow) = (Latency::new(), Latency::new());
        fast.record(Duration::from_micros(100), 990);
        slow.record(Duration::from_millis(5), 9);
        slow.record(Duration::from_secs(1), 1);
        let mut all = Latency::new();
        all.merge(&fast);
        all.merge(&slow);
        let summary = all.summary();
        assert_eq!(all.count(), 1000);
        assert!(near(summary.p50, 100.0) && near(summary.p99, 100.0), "{summary:?}");
        assert!(near(summary.p999, 5000.0), "{summary:?}");
        assert!(near(summary.max, 1_000_000.0), "{summary:?}");
    }

    #[test]
    fn what_is_out_of_bounds_counts_at_the_bound() {
        let mut latency = Latency::new();
        latency.record(Duration::from_secs(3600), 1);
        latency.record(Duration::ZERO, 1);
        assert_eq!(latency.count(), 2);
        assert!(latency.summary().max >= 60e6 * 0.99);
    }
}
