//! What a simulation looks like: how fast things are, and how bad.

use base::{Prng, UnixTime};
use std::time::Duration;

/// How long something takes: evenly drawn between two bounds, and now and then much longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delay {
    /// Shortest time.
    pub least: Duration,
    /// Longest usual time.
    pub most: Duration,
    /// One in so many takes between `most` and `slow`; 0 = none does.
    pub slow_one_in: u64,
    /// Longest time of the slow ones.
    pub slow: Duration,
}

impl Delay {
    /// A delay between two numbers of microseconds, without slow ones.
    pub const fn micros(least: u64, most: u64) -> Delay {
        Delay {
            least: Duration::from_micros(least),
            most: Duration::from_micros(most),
            slow_one_in: 0,
            slow: Duration::ZERO,
        }
    }

    /// The same delay, with one in `one_in` taking up to `slow`.
    pub const fn with_slow(mut self, one_in: u64, slow: Duration) -> Delay {
        self.slow_one_in = one_in;
        self.slow = slow;
        self
    }

    /// Draws one delay, in nanoseconds.
    pub(super) fn draw(&self, prng: &mut Prng) -> u64 {
        if prng.one_in(self.slow_one_in) {
            between(prng, self.most, self.slow)
        } else {
            between(prng, self.least, self.most)
        }
    }
}

fn between(prng: &mut Prng, least: Duration, most: Duration) -> u64 {
    let (least, most) = (nanos(least), nanos(most));
    prng.range(least, most.saturating_add(1).max(least))
}

/// `duration` in nanoseconds, at most 2^63 so that sums of a few do not overflow.
pub(super) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).map_or(1 << 63, |ns| ns.min(1 << 63))
}

/// One direction between two nodes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Link {
    /// Shortest time of a segment under way.
    pub latency: Duration,
    /// Up to so much is added to `latency`, drawn for each segment; segments of one connection stay in order.
    pub jitter: Duration,
    /// Chance, from 0 to 1, that a segment resets its connection instead of arriving.
    pub reset_rate: f64,
}

impl Link {
    pub(super) fn draw(&self, prng: &mut Prng) -> u64 {
        nanos(self.latency).saturating_add(prng.below(nanos(self.jitter).saturating_add(1)))
    }
}

/// Settings of a [`super::Sim`]. The default is a calm machine room; [`SimConfig::arbitrary`] draws odd ones.
#[derive(Clone, Debug)]
pub struct SimConfig {
    /// Between any two nodes that [`super::Sim::set_link`] did not treat otherwise.
    pub link: Link,
    /// Between a node and itself.
    pub loopback: Link,
    /// Most bytes of one direction of a connection that were written but not read. More makes the writer wait.
    pub window_bytes: usize,
    /// One in so many socket reads and writes takes only a part of what it could; 0 = none.
    pub short_io_one_in: u64,
    /// How long a connection is attempted while nothing answers.
    pub connect_timeout: Duration,
    /// How long sent bytes may stay without a way through before the sender gives its connection up.
    pub retransmit_timeout: Duration,
    /// Accepted but not yet taken connections of one listener. More are ignored, and tried again by the client.
    pub backlog: usize,
    /// A write to a file, a read from one, a change of a folder.
    pub disk: Delay,
    /// What a sync takes, or a write with `LogSync::Dsync` in addition.
    pub disk_sync: Delay,
    /// Size of each disk.
    pub disk_capacity_bytes: u64,
    /// Until a helper runs what `blocking` gave it.
    pub helper: Delay,
    /// Until the core hears that a helper is done.
    pub wake: Delay,
    /// Virtual nanoseconds that a poll takes, drawn between these two, the second not included.
    pub poll_ns: (u64, u64),
    /// Polls of one task within 100 virtual milliseconds that count as a busy loop. The simulation panics then.
    pub busy_polls_max: u32,
    /// What the wall clocks show at the start, before each node's own offset.
    pub unix_start: UnixTime,
    /// Largest offset of a node's wall clock, either way.
    pub clock_offset: Duration,
}

impl Default for SimConfig {
    fn default() -> SimConfig {
        SimConfig {
            link: Link { latency: Duration::from_micros(80), jitter: Duration::from_micros(120), reset_rate: 0.0 },
            loopback: Link { latency: Duration::from_micros(8), jitter: Duration::from_micros(12), reset_rate: 0.0 },
            window_bytes: 256 << 10,
            short_io_one_in: 8,
            connect_timeout: Duration::from_secs(5),
            retransmit_timeout: Duration::from_secs(15),
            backlog: 128,
            disk: Delay::micros(15, 120).with_slow(200, Duration::from_millis(8)),
            disk_sync: Delay::micros(40, 900).with_slow(100, Duration::from_millis(40)),
            disk_capacity_bytes: 100 << 30,
            helper: Delay::micros(10, 150).with_slow(100, Duration::from_millis(10)),
            wake: Delay::micros(2, 30).with_slow(200, Duration::from_millis(2)),
            poll_ns: (60, 400),
            busy_polls_max: 80_000,
            unix_start: UnixTime(1_767_225_600_000_000_000), // 2026-01-01T00:00:00Z
            clock_offset: Duration::from_millis(250),
        }
    }
}

impl SimConfig {
    /// Settings drawn by the seed: from a fast and calm network and disk to slow ones with resets and tiny windows.
    pub fn arbitrary(prng: &mut Prng) -> SimConfig {
        let calm = SimConfig::default();
        let slower = [1u32, 1, 3, 20][prng.below(4) as usize];
        SimConfig {
            link: Link {
                latency: calm.link.latency * slower,
                jitter: calm.link.jitter * [0, 1, 5, 40][prng.below(4) as usize],
                reset_rate: [0.0, 0.0, 0.0001, 0.002][prng.below(4) as usize],
            },
            window_bytes: [1 << 10, 16 << 10, 256 << 10, 1 << 20][prng.below(4) as usize],
            short_io_one_in: [0, 2, 8, 32][prng.below(4) as usize],
            connect_timeout: Duration::from_millis(prng.range(500, 10_000)),
            retransmit_timeout: Duration::from_millis(prng.range(1_000, 20_000)),
            disk: Delay { most: calm.disk.most * slower, ..calm.disk },
            disk_sync: Delay { most: calm.disk_sync.most * [1, 1, 10][prng.below(3) as usize], ..calm.disk_sync },
            helper: Delay { most: calm.helper.most * [1, 1, 30][prng.below(3) as usize], ..calm.helper },
            clock_offset: Duration::from_millis(prng.below(5_000)),
            ..calm
        }
    }
}
