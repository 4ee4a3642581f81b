//! Where the time of requests went, and how many there were.

use std::cell::Cell;
use std::fmt::Write as _;
use std::time::Duration;

use base::Instant;
use proto::kvrpcpb;

use super::command;
use crate::core::Done;

/// Time and work of one request, for the slow log and the histograms.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ledger {
    /// When it came in.
    pub(crate) arrived: Instant,
    /// When its region's core took it up.
    pub(crate) started: Instant,
    /// When its engine snapshot was taken.
    pub(crate) snapshot: Instant,
    /// Entries of the engine that were looked at.
    pub(crate) stepped: u64,
    /// Keys that were found.
    pub(crate) keys: u64,
    /// Bytes that were found.
    pub(crate) bytes: u64,
    /// Reads that left the core because a block was not in memory.
    pub(crate) cache_misses: u64,
    /// How its write went.
    pub(crate) write: Option<(Instant, Instant, Instant)>,
}

impl Ledger {
    /// A write that was applied.
    pub(crate) fn wrote(&mut self, done: &Done) {
        self.write = Some((done.proposed, done.persisted, done.applied));
    }

    /// The details, as answers of transactions carry them. Raw answers have no field for them in release 8.5, so the
    /// slow log is the only place.
    pub(crate) fn details(&self, now: Instant) -> kvrpcpb::ExecDetailsV2 {
        let nanos = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let time = kvrpcpb::TimeDetailV2 {
            wait_wall_time_ns: nanos(self.started.since(self.arrived)),
            process_wall_time_ns: nanos(now.since(self.started)),
            total_rpc_wall_time_ns: nanos(now.since(self.arrived)),
            ..Default::default()
        };
        let scan = kvrpcpb::ScanDetailV2 {
            processed_versions: self.keys,
            processed_versions_size: self.bytes,
            total_versions: self.stepped.max(self.keys),
            rocksdb_block_read_count: self.cache_misses,
            ..Default::default()
        };
        let write = self.write.map(|(proposed, persisted, applied)| kvrpcpb::WriteDetail {
            store_batch_wait_nanos: nanos(proposed.since(self.started)),
            persist_log_nanos: nanos(persisted.since(proposed)),
            apply_log_nanos: nanos(applied.since(persisted)),
            ..Default::default()
        });
        kvrpcpb::ExecDetailsV2 {
            time_detail_v2: Some(time),
            scan_detail_v2: Some(scan),
            write_detail: write,
            ..Default::default()
        }
    }
}

/// Requests above this are logged.
const SLOW: Duration = Duration::from_millis(500);

/// Upper bounds of the latency histogram, in microseconds.
const BUCKETS: [u64; 12] = [50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 50_000, 200_000, 1_000_000, 10_000_000];

#[derive(Default)]
struct CommandMetrics {
    count: Cell<u64>,
    nanos: Cell<u64>,
    buckets: [Cell<u64>; BUCKETS.len()],
}

/// Counters of one core's service.
#[derive(Default)]
pub(crate) struct ServiceMetrics {
    commands: [CommandMetrics; command::KINDS],
    /// Requests that ended with a region error.
    pub(crate) region_errors: Cell<u64>,
    /// Requests that were sent to another core.
    pub(crate) hops: Cell<u64>,
    /// Requests that were asked for again because their region was moving.
    pub(crate) retries: Cell<u64>,
    /// Reads that left the core because a block was not in memory.
    pub(crate) cache_misses: Cell<u64>,
    /// Messages of BatchCommands that came in.
    pub(crate) batches: Cell<u64>,
    /// Messages of BatchCommands that went out.
    pub(crate) batch_answers: Cell<u64>,
}

/// What one core's service holds at the moment.
#[derive(Debug, Default)]
pub(crate) struct Held {
    /// Bytes of answers that wait for their clients.
    pub(crate) answer_bytes: u64,
    /// Locks in memory.
    pub(crate) memory_locks: u64,
    /// Requests that wait for a lock.
    pub(crate) lock_waits: u64,
}

/// Adds one.
pub(crate) fn count(cell: &Cell<u64>) {
    cell.set(cell.get() + 1);
}

impl ServiceMetrics {
    /// A request ended.
    pub(crate) fn done(&self, tag: u32, ledger: &Ledger, now: Instant) {
        let Some(metrics) = command::row(tag).map(|row| &self.commands[row]) else { return };
        let took = now.since(ledger.arrived);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        count(&metrics.count);
        metrics.nanos.set(metrics.nanos.get().saturating_add(micros.saturating_mul(1000)));
        if let Some(bucket) = BUCKETS.iter().position(|bound| micros <= *bound) {
            count(&metrics.buckets[bucket]);
        }
        if took > SLOW {
            let command = command::row(tag).and_then(|row| command::names().nth(row)).unwrap_or_default();
            tracing::warn!(command, micros, details = ?ledger.details(now), "slow request");
        }
    }

    /// The counters as lines of the Prometheus text format, and what is held, under TiKV's names where its dashboards read
    /// them.
    pub(crate) fn write_text(&self, core: u16, held: &Held, out: &mut String) {
        for (name, metrics) in command::names().zip(&self.commands) {
            let total = metrics.count.get();
            if total == 0 {
                continue;
            }
            let label = format!("core=\"{core}\",type=\"{}\"", snake(name));
            let mut sum = 0;
            for (bound, bucket) in BUCKETS.iter().zip(&metrics.buckets) {
                sum += bucket.get();
                let seconds = *bound as f64 / 1e6;
                line(out, "tikv_grpc_msg_duration_seconds_bucket", &format!("{label},le=\"{seconds}\""), sum);
            }
            line(out, "tikv_grpc_msg_duration_seconds_bucket", &format!("{label},le=\"+Inf\""), total);
            line(out, "tikv_grpc_msg_duration_seconds_count", &label, total);
            let seconds = metrics.nanos.get() as f64 / 1e9;
            // Writing to a string cannot fail.
            let _ = writeln!(out, "tikv_grpc_msg_duration_seconds_sum{{{label}}} {seconds}");
        }
        let label = format!("core=\"{core}\"");
        line(out, "basalt_service_region_errors_total", &label, self.region_errors.get());
        line(out, "basalt_service_hops_total", &label, self.hops.get());
        line(out, "basalt_service_retries_total", &label, self.retries.get());
        line(out, "basalt_service_cache_misses_total", &label, self.cache_misses.get());
        line(out, "basalt_service_batches_total", &label, self.batches.get());
        line(out, "basalt_service_batch_answers_total", &label, self.batch_answers.get());
        line(out, "basalt_service_answer_bytes", &label, held.answer_bytes);
        line(out, "basalt_service_memory_locks", &label, held.memory_locks);
        line(out, "basalt_service_lock_waits", &label, held.lock_waits);
    }
}

fn line(out: &mut String, name: &str, labels: &str, value: u64) {
    // Writing to a string cannot fail.
    let _ = writeln!(out, "{name}{{{labels}}} {value}");
}

/// `RawBatchGet` as dashboards know it: `raw_batch_get`.
fn snake(name: &str) -> String {
    let mut out = String::with_capacity(name.len() + 4);
    let mut before_upper = true;
    for c in name.chars() {
        if c.is_ascii_uppercase() && !before_upper {
            out.push('_');
        }
        before_upper = c.is_ascii_uppercase();
        out.push(c.to_ascii_lowercase());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_dashboards() {
        assert_eq!(snake("RawBatchGet"), "raw_batch_get");
        assert_eq!(snake("RawGetKeyTTL"), "raw_get_key_ttl");
    }

    #[test]
    fn a_request_is_counted_in_every_bucket_above_it() {
        let metrics = ServiceMetrics::default();
        let ledger = Ledger { arrived: Instant(0), ..Default::default() };
        metrics.done(command::by_name("RawGet").expect("known"), &ledger, Instant(150_000));
        let mut out = String::new();
        metrics.write_text(3, &Held::default(), &mut out);
        assert!(
            out.contains("tikv_grpc_msg_duration_seconds_bucket{core=\"3\",type=\"raw_get\",le=\"0.0001\"} 0\n"),
            "{out}"
        );
        assert!(out.contains("tikv_grpc_msg_duration_seconds_bucket{core=\"3\",type=\"raw_get\",le=\"0.0002\"} 1\n"));
        assert!(out.contains("tikv_grpc_msg_duration_seconds_count{core=\"3\",type=\"raw_get\"} 1\n"));
    }
}
