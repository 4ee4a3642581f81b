//! Who holds the core, and for how long.
//!
//! Every poll of every task is timed. The clock is the CPU's time-stamp counter where it is invariant: 16 ns per
//! reading against 44 ns of `clock_gettime` (virtual machine, 2026-11).

use std::sync::OnceLock;
use std::time::Duration;

use crate::context::Core;
use crate::metrics::add;
use crate::{Class, time};

/// A poll that holds the core longer than this is counted and logged as a stall.
pub const STALL: Duration = Duration::from_millis(10);

const STALL_NANOS: u64 = STALL.as_nanos() as u64;

/// Reads the clock at the start of a poll.
pub(crate) fn begin() -> u64 {
    ticks()
}

/// Counts a poll that began at `began`; returns its nanoseconds.
pub(crate) fn end(core: &Core, class: Class, began: u64) -> u64 {
    let nanos = to_nanos(ticks().saturating_sub(began));
    let (at, metrics) = (class.index(), &core.metrics);
    add(&metrics.polls_total[at], 1);
    add(&metrics.busy_nanos_total[at], nanos);
    if nanos > STALL_NANOS {
        stalled(core, class, nanos);
    }
    nanos
}

#[cold]
fn stalled(core: &Core, class: Class, nanos: u64) {
    let (at, metrics) = (class.index(), &core.metrics);
    add(&metrics.stalls_total[at], 1);
    metrics.stall_nanos_max[at].set(metrics.stall_nanos_max[at].get().max(nanos));
    tracing::warn!(core = core.core.0, class = class.name(), held_ms = nanos / 1_000_000, "a task held its core");
}

#[cfg(target_arch = "x86_64")]
fn ticks() -> u64 {
    match scale() {
        // SAFETY: the instruction exists on every x86-64 and has no effect but its result.
        Some(_) => unsafe { std::arch::x86_64::_rdtsc() },
        None => time::monotonic_nanos(),
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn ticks() -> u64 {
    time::monotonic_nanos()
}

fn to_nanos(ticks: u64) -> u64 {
    match scale() {
        Some(scale) => ((u128::from(ticks) * u128::from(scale)) >> 32) as u64,
        None => ticks,
    }
}

/// Nanoseconds per tick of the time-stamp counter, times 2^32; `None` if the counter cannot be used.
fn scale() -> Option<u64> {
    static SCALE: OnceLock<Option<u64>> = OnceLock::new();
    *SCALE.get_or_init(calibrate)
}

/// Reads the scale once, before the first task runs.
pub(crate) fn prepare() {
    scale();
}

#[cfg(target_arch = "x86_64")]
fn calibrate() -> Option<u64> {
    const INVARIANT: u32 = 1 << 8;
    let highest = std::arch::x86_64::__cpuid(0x8000_0000).eax;
    if highest < 0x8000_0007 || std::arch::x86_64::__cpuid(0x8000_0007).edx & INVARIANT == 0 {
        return None;
    }
    let read = || {
        // SAFETY: the instruction exists on every x86-64 and has no effect but its result.
        (time::monotonic_nanos(), unsafe { std::arch::x86_64::_rdtsc() })
    };
    let from = read();
    // Two milliseconds: the two clocks are then matched to about one part in ten thousand.
    let to = loop {
        let to = read();
        if to.0 - from.0 >= 2_000_000 {
            break to;
        }
        std::hint::spin_loop();
    };
    let ticks = to.1.checked_sub(from.1).filter(|ticks| *ticks > 0)?;
    u64::try_from((u128::from(to.0 - from.0) << 32) / u128::from(ticks)).ok()
}

#[cfg(not(target_arch = "x86_64"))]
fn calibrate() -> Option<u64> {
    None
}
