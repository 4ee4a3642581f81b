//! Clocks and timers.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use base::{Instant, UnixTime};

use crate::{IoKind, context, epoll, sim, uring};

/// Monotonic time: `CLOCK_MONOTONIC`, or the simulated node's clock. Works on every thread.
pub fn now() -> Instant {
    if sim::active() { sim::now() } else { Instant(monotonic_nanos()) }
}

/// Wall-clock time: `CLOCK_REALTIME`, or the simulated node's. Works on every thread.
pub fn unix_time() -> UnixTime {
    if sim::active() { sim::unix_time() } else { UnixTime(read_clock(libc::CLOCK_REALTIME)) }
}

/// Two clocks read together, for leases: while they run apart by no more than the drift allowance, neither was
/// stopped, slewed or stepped. See [`Clocks::within`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clocks {
    /// `CLOCK_BOOTTIME`: runs on while the machine sleeps.
    pub boottime: Instant,
    /// `CLOCK_MONOTONIC_RAW`: is not slewed by time synchronization.
    pub monotonic_raw: Instant,
}

impl Clocks {
    /// How far the clocks may part: a twentieth of the time that is measured. Between the readings of the two a thread
    /// may lose its CPU for a while; a machine that slept is apart by more.
    const APART_MAX: u32 = 20;

    /// Whether less than `limit` has passed since `earlier`, by both clocks, and they agree about it. If in doubt, false:
    /// whoever measures a lease then asks again.
    ///
    /// Cost: none beside that of [`clocks`].
    pub fn within(self, limit: Duration, earlier: Clocks) -> bool {
        let (slept, ran) = (self.boottime.since(earlier.boottime), self.monotonic_raw.since(earlier.monotonic_raw));
        slept.max(ran) < limit && slept.abs_diff(ran) <= limit / Clocks::APART_MAX
    }
}

/// Reads the clocks for leases. Cost: two calls into the vDSO, some 50 ns together.
pub fn clocks() -> Clocks {
    if sim::active() {
        return Clocks { boottime: sim::boottime(), monotonic_raw: sim::now() };
    }
    Clocks {
        boottime: Instant(read_clock(libc::CLOCK_BOOTTIME)),
        monotonic_raw: Instant(read_clock(libc::CLOCK_MONOTONIC_RAW)),
    }
}

pub(crate) fn monotonic_nanos() -> u64 {
    read_clock(libc::CLOCK_MONOTONIC)
}

fn read_clock(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid place for the result.
    let result = unsafe { libc::clock_gettime(clock, &raw mut time) };
    assert_eq!(result, 0, "this clock exists on every Linux since 2.6.39");
    (time.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(time.tv_nsec as u64)
}

/// Waits for `duration`. On epoll, timers fire on whole milliseconds, never early.
#[track_caller]
pub fn sleep(duration: Duration) -> Sleep {
    sleep_until(now() + duration)
}

/// Waits until `deadline`; returns at once, without a turn, if it has passed.
#[track_caller]
pub fn sleep_until(deadline: Instant) -> Sleep {
    let timer = match context::backend() {
        IoKind::Uring => Timer::Uring(None),
        IoKind::Epoll => Timer::Epoll(None),
        IoKind::Sim => Timer::Sim(sim::sleep_until(deadline)),
    };
    Sleep { deadline, timer }
}

/// See [`sleep`].
#[must_use = "a timer does nothing unless it is awaited"]
pub struct Sleep {
    deadline: Instant,
    timer: Timer,
}

enum Timer {
    Uring(Option<uring::Timer>),
    Epoll(Option<epoll::Timer>),
    Sim(sim::Sleep),
}

impl Sleep {
    /// When it fires.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }
}

impl std::fmt::Debug for Sleep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Sleep({:?})", self.deadline)
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let deadline = self.deadline;
        match &mut self.timer {
            Timer::Sim(timer) => Pin::new(timer).poll(cx),
            Timer::Uring(timer) => poll_timer(deadline, timer, cx, uring::timer),
            Timer::Epoll(timer) => poll_timer(deadline, timer, cx, epoll::timer),
        }
    }
}

/// Polls a runtime's timer, made at the first poll and made again should it fire before `deadline`.
fn poll_timer<T: Future + Unpin>(
    deadline: Instant,
    timer: &mut Option<T>,
    cx: &mut Context<'_>,
    make: impl Fn(Duration) -> T,
) -> Poll<()> {
    loop {
        if let Some(running) = timer
            && Pin::new(running).poll(cx).is_pending()
        {
            return Poll::Pending;
        }
        let now = now();
        if now >= deadline {
            *timer = None;
            return Poll::Ready(());
        }
        *timer = Some(make(deadline.since(now)));
    }
}

/// The time ran out before the future was ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("timed out")]
pub struct Elapsed;

/// Waits for `future`, at most for `duration`. The future is looked at first, so that one that is ready wins.
///
/// # Errors
/// [`Elapsed`] if the time ran out; the future has been dropped then.
pub async fn timeout<T>(duration: Duration, future: impl Future<Output = T>) -> Result<T, Elapsed> {
    let mut future = std::pin::pin!(future);
    let mut limit = sleep(duration);
    std::future::poll_fn(|cx| {
        if let Poll::Ready(value) = future.as_mut().poll(cx) {
            return Poll::Ready(Ok(value));
        }
        Pin::new(&mut limit).poll(cx).map(|()| Err(Elapsed))
    })
    .await
}
