//! A node's own idea of the time: it started somewhere, runs a little fast or slow, and its wall clock may step.

use base::{Instant, UnixTime};

const MILLION: i128 = 1_000_000;

/// Maps the world's time to a node's. All numbers are nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    world_at: u64,
    local_at: u64,
    /// Parts per million that the clock runs fast (or slow, if negative).
    drift_ppm: i64,
    /// Wall clock minus monotonic clock.
    wall: i64,
    /// What the monotonic clock missed while the machine was suspended.
    slept: u64,
}

impl Clock {
    /// A clock that shows `local` and `unix` at world time `world`.
    pub(super) fn new(world: u64, local: u64, unix: u64) -> Clock {
        Clock { world_at: world, local_at: local, drift_ppm: 0, wall: unix as i64 - local as i64, slept: 0 }
    }

    /// The monotonic clock.
    pub(super) fn now(&self, world: u64) -> Instant {
        // Behind it while the machine is suspended.
        let passed = world.saturating_sub(self.world_at);
        Instant(self.local_at + scale(passed, MILLION + i128::from(self.drift_ppm), MILLION))
    }

    /// The clock that runs on while the machine is suspended.
    pub(super) fn boottime(&self, world: u64) -> Instant {
        Instant(self.now(world).0 + self.slept)
    }

    /// The wall clock.
    pub(super) fn unix_time(&self, world: u64) -> UnixTime {
        UnixTime(self.now(world).0.saturating_add_signed(self.wall))
    }

    /// The earliest world time at which the monotonic clock shows `local` or more.
    pub(super) fn world_time(&self, local: Instant) -> u64 {
        let ahead = local.0.saturating_sub(self.local_at).min(1 << 63);
        let rate = MILLION + i128::from(self.drift_ppm);
        let passed = (i128::from(ahead) * MILLION + rate - 1) / rate;
        self.world_at.saturating_add(u64::try_from(passed).unwrap_or(u64::MAX))
    }

    /// Runs at another speed from `world` on. Clamped to half and double speed.
    pub(super) fn set_drift(&mut self, world: u64, ppm: i64) {
        self.local_at = self.now(world).0;
        self.world_at = world.max(self.world_at);
        self.drift_ppm = ppm.clamp(-500_000, 1_000_000);
    }

    /// Stops the monotonic clock for so long, as a machine's that is suspended; the others show that it passed.
    pub(super) fn suspend(&mut self, world: u64, nanos: u64) {
        self.local_at = self.now(world).0;
        self.world_at = world.max(self.world_at).saturating_add(nanos);
        self.slept += nanos;
        self.wall = self.wall.saturating_add_unsigned(nanos);
    }

    /// Steps the wall clock.
    pub(super) fn step(&mut self, by: i64) {
        self.wall = self.wall.saturating_add(by);
    }

    /// Starts the monotonic clock anew at `local`, as a reboot does. The wall clock goes on.
    pub(super) fn reboot(&mut self, world: u64, local: u64) {
        let before = self.now(world).0;
        self.wall = self.wall.saturating_add(before as i64 - local as i64);
        self.world_at = world;
        self.local_at = local;
        self.slept = 0;
    }
}

fn scale(value: u64, by: i128, of: i128) -> u64 {
    if by == of {
        return value;
    }
    u64::try_from(i128::from(value) * by / of).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn world_time_is_the_first_at_which_the_clock_shows_it() {
        for ppm in [-500_000, -321, 0, 1, 777, 1_000_000] {
            let mut clock = Clock::new(10, 1_000, 5_000_000);
            clock.set_drift(50, ppm);
            for ahead in [0, 1, 2, 3, 1_000, 999_999, 123_456_789] {
                let local = clock.now(50) + std::time::Duration::from_nanos(ahead);
                let at = clock.world_time(local);
                assert!(clock.now(at) >= local);
                assert!(at == 50 || clock.now(at - 1) < local);
            }
        }
    }

    #[test]
    fn a_suspended_machine_shows_it_by_one_clock() {
        let mut clock = Clock::new(0, 500, 9_000);
        clock.suspend(100, 1_000);
        assert_eq!((clock.now(1_100), clock.boottime(1_100)), (Instant(600), Instant(1_600)));
        assert_eq!((clock.now(1_150), clock.unix_time(1_150)), (Instant(650), UnixTime(10_150)));
        assert_eq!(clock.world_time(Instant(650)), 1_150);
    }

    #[test]
    fn a_reboot_moves_the_monotonic_clock_only() {
        let mut clock = Clock::new(0, 500, 9_000);
        clock.step(-100);
        clock.reboot(1_000, 7);
        assert_eq!(clock.now(1_000), Instant(7));
        assert_eq!(clock.unix_time(1_000), UnixTime(9_900));
    }
}
