//! A token bucket: how long those who share a bandwidth have to wait.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::Instant;

const SECOND: u128 = 1_000_000_000;

/// A bandwidth that many share, on any core: each says how much it takes, and is told how long to wait before it uses it.
///
/// Takers come true in the order in which they ask. If each waits as told, no more comes true within any time `t` than
/// `t` times the rate, and besides the burst, or the largest single take if that is more. A taker that goes away without
/// waiting has had its part all the same.
///
/// Kept as the one number of GCRA (ITU-T I.371): the time by which all that was taken will have been earned and the bucket
/// be full again. So a take is an atomic step, and nobody who takes waits for another one's.
#[derive(Debug)]
pub struct TokenBucket {
    /// Bytes per second; 0 bounds nothing.
    rate: u64,
    /// How long an empty bucket takes to be full, in nanoseconds.
    depth: u64,
    /// See the type; nanoseconds of the clock that takers read.
    full_at: AtomicU64,
}

impl TokenBucket {
    /// A bucket for `rate` bytes per second, none if 0, of which at most `burst` bytes are saved up while nobody takes any.
    /// It begins full.
    pub fn new(rate: u64, burst: u64) -> TokenBucket {
        TokenBucket { rate, depth: nanos(burst, rate), full_at: AtomicU64::new(0) }
    }

    /// One that bounds nothing.
    pub fn unbounded() -> TokenBucket {
        TokenBucket::new(0, 0)
    }

    /// Bytes per second; 0: no bound.
    pub fn rate(&self) -> u64 {
        self.rate
    }

    /// Takes `bytes` at `now`. They may be used once the answer has passed.
    pub fn take(&self, now: Instant, bytes: u64) -> Duration {
        if self.rate == 0 {
            return Duration::ZERO;
        }
        let cost = nanos(bytes, self.rate);
        let after = |full_at: u64| full_at.max(now.0).saturating_add(cost);
        let before = self.full_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |full_at| Some(after(full_at)));
        // The update cannot be refused: it always names a next value.
        let before = before.unwrap_or_else(|before| before);
        Duration::from_nanos(after(before).saturating_sub(now.0.saturating_add(self.depth)))
    }
}

/// What `bytes` take at `rate` bytes per second; 0 without a rate.
fn nanos(bytes: u64, rate: u64) -> u64 {
    let exact = (u128::from(bytes) * SECOND).checked_div(u128::from(rate)).unwrap_or(0);
    u64::try_from(exact).unwrap_or(u64::MAX)
}
