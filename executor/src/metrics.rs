//! Counters of one core.

use std::cell::Cell;

use crate::Class;

/// Counters of one core: plain cells, as no other core writes them. Tables are indexed by [`Class::index`].
#[derive(Debug, Default)]
pub struct CoreMetrics {
    /// Tasks spawned and not yet finished.
    pub tasks: Cell<u64>,
    /// Tasks ever spawned.
    pub tasks_spawned_total: Cell<u64>,
    /// Polls of tasks, per class.
    pub polls_total: [Cell<u64>; Class::COUNT],
    /// Nanoseconds spent in polls, per class.
    pub busy_nanos_total: [Cell<u64>; Class::COUNT],
    /// Polls that held the core longer than [`STALL`](crate::STALL), per class.
    pub stalls_total: [Cell<u64>; Class::COUNT],
    /// The longest of these stalls in nanoseconds, per class.
    pub stall_nanos_max: [Cell<u64>; Class::COUNT],
    /// Wakes that came from other threads.
    pub remote_wakes_total: Cell<u64>,
    /// Blocking jobs handed to helpers and not yet finished, per class.
    pub blocking_queued: [Cell<u64>; Class::COUNT],
    /// Blocking jobs ever handed to helpers, per class.
    pub blocking_total: [Cell<u64>; Class::COUNT],
    /// Writes to log files.
    pub log_writes_total: Cell<u64>,
    /// Bytes written to log files.
    pub log_bytes_total: Cell<u64>,
    /// Operations on log files that made bytes durable: syncs, and writes to files opened with `O_DSYNC`.
    pub log_durable_total: Cell<u64>,
    /// Log operations handed to the log thread and not yet finished.
    pub log_queued: Cell<u64>,
}

/// Adds to a counter.
pub(crate) fn add(counter: &Cell<u64>, by: u64) {
    counter.set(counter.get().wrapping_add(by));
}

/// Takes one off a gauge.
pub(crate) fn less(gauge: &Cell<u64>) {
    gauge.set(gauge.get().saturating_sub(1));
}
