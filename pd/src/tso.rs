//! The timestamp oracle: pure, fed with the clock, asked for timestamps.
//!
//! A timestamp is `physical << 18 | logical`, physical being milliseconds since the epoch. They are given out from
//! memory below a durable upper bound, [`WINDOW_MS`] ahead: after a crash the next process starts at the bound, so
//! that none is given twice, whatever the clock does meanwhile.
//!
//! ```text
//!      given out        may be given out            never without a save
//! ──────────────────┬──────────────────────────┬───────────────────────────▶ physical
//!               physical                    durable
//! ```
//!
//! Source: `compat/2-pd.md` 2.4; the scheme is Percolator's (OSDI 2010, 2.3).

/// Bits of a timestamp's logical part.
pub const LOGICAL_BITS: u32 = 18;
/// Logical parts are below this.
pub const LOGICAL_END: u64 = 1 << LOGICAL_BITS;
/// How far ahead of physical the durable bound is set.
pub const WINDOW_MS: u64 = 5_000;
/// With less than this left of the window, a new bound is saved in the background.
const RENEW_MS: u64 = 2_500;

/// A batch of timestamps: `logical - count + 1 ..= logical` at one physical value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp {
    /// Milliseconds since the epoch.
    pub physical: u64,
    /// The largest logical part of the batch.
    pub logical: u64,
}

impl Timestamp {
    /// The timestamp as one number.
    pub fn compose(self) -> u64 {
        self.physical << LOGICAL_BITS | self.logical
    }
}

/// Why no timestamps can be had right now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotNow {
    /// The logical space of this physical value is used up: ask again after the next [`Oracle::tick`].
    NextTick,
    /// A bound must become durable first: see [`Oracle::wanted_bound`].
    Bound,
}

/// The oracle.
#[derive(Debug)]
pub struct Oracle {
    physical: u64,
    logical: u64,
    /// Physical values below it may be given out.
    durable: u64,
    /// What it shall become; equal to `durable` when nothing is wanted.
    wanted: u64,
    /// A request did not fit: the next tick moves on even if the clock does not.
    exhausted: bool,
    /// The clock has passed the bound: what could be given out would be of the past.
    behind: bool,
}

impl Oracle {
    /// Starts above `durable`, the bound that the last process saved (0 if there was none).
    ///
    /// Nothing is given out before a higher bound is durable.
    pub fn resume(durable: u64) -> Oracle {
        Oracle { physical: durable, logical: LOGICAL_END, durable, wanted: durable, exhausted: true, behind: true }
    }

    /// Looks at the clock: `now_ms` in milliseconds since the epoch. Physical follows it forwards, never backwards;
    /// when half of the logical space is used while the clock stands still, it moves on by itself.
    pub fn tick(&mut self, now_ms: u64) {
        let next = if now_ms > self.physical {
            now_ms
        } else if self.exhausted || self.logical >= LOGICAL_END / 2 {
            self.physical + 1
        } else {
            self.physical
        };
        if next + RENEW_MS >= self.durable {
            self.wanted = self.wanted.max(next + WINDOW_MS);
        }
        self.behind = next >= self.durable;
        if next > self.physical && !self.behind {
            self.physical = next;
            self.logical = 0;
            self.exhausted = false;
        }
    }

    /// The bound that should become durable, if one is wanted. Tell [`Oracle::saved`] when it is.
    pub fn wanted_bound(&self) -> Option<u64> {
        (self.wanted > self.durable).then_some(self.wanted)
    }

    /// A bound is durable.
    pub fn saved(&mut self, bound: u64) {
        self.durable = self.durable.max(bound);
        // Ticks during the save have asked for a little more; that can wait for the next one.
        if self.wanted < self.durable || self.physical + RENEW_MS < self.durable {
            self.wanted = self.durable;
        }
    }

    /// Takes `count` timestamps, at least one.
    ///
    /// # Errors
    /// [`NotNow`] when the caller has to wait for a tick, or for a bound to be saved (and then tick).
    pub fn take(&mut self, count: u32) -> Result<Timestamp, NotNow> {
        assert!(count > 0, "the caller refuses a count of zero");
        let logical = self.logical + u64::from(count);
        if !self.behind && logical < LOGICAL_END {
            self.logical = logical;
            return Ok(Timestamp { physical: self.physical, logical });
        }
        self.exhausted = true;
        let stuck = self.behind || self.physical + 1 >= self.durable;
        Err(if stuck { NotNow::Bound } else { NotNow::NextTick })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::Prng;

    /// A process with its disk: the bound survives, the oracle does not.
    struct Model {
        oracle: Oracle,
        disk: u64,
        last: u64,
        given: u64,
    }

    impl Model {
        fn new() -> Model {
            Model { oracle: Oracle::resume(0), disk: 0, last: 0, given: 0 }
        }

        fn save(&mut self) {
            if let Some(bound) = self.oracle.wanted_bound() {
                assert!(bound > self.disk, "a bound never falls");
                self.disk = bound;
                self.oracle.saved(bound);
            }
        }

        fn take(&mut self, count: u32) -> Option<Timestamp> {
            let given = self.oracle.take(count).ok()?;
            assert!(given.logical < LOGICAL_END && given.physical < self.disk);
            let first = given.compose() - u64::from(count) + 1;
            assert!(first > self.last, "{first} after {}", self.last);
            self.last = given.compose();
            self.given += 1;
            Some(given)
        }
    }

    #[test]
    fn nothing_is_given_before_a_bound_is_durable() {
        let mut oracle = Oracle::resume(0);
        assert_eq!(oracle.take(1), Err(NotNow::Bound));
        oracle.tick(1_000);
        assert_eq!(oracle.take(1), Err(NotNow::Bound));
        assert_eq!(oracle.wanted_bound(), Some(1_000 + WINDOW_MS));
        oracle.saved(1_000 + WINDOW_MS);
        assert_eq!(oracle.take(1), Err(NotNow::Bound));
        oracle.tick(1_000);
        assert_eq!(oracle.take(3), Ok(Timestamp { physical: 1_000, logical: 3 }));
        assert_eq!(oracle.wanted_bound(), None);
    }

    #[test]
    fn after_a_pause_no_timestamp_of_the_past_is_given() {
        let mut model = Model::new();
        model.oracle.tick(1_000);
        model.save();
        model.oracle.tick(1_000);
        assert!(model.take(1).is_some());
        model.oracle.tick(60_000);
        assert_eq!(model.oracle.take(1), Err(NotNow::Bound));
        model.save();
        model.oracle.tick(60_000);
        assert_eq!(model.take(1).map(|given| given.physical), Some(60_000));
    }

    #[test]
    fn a_batch_never_spans_two_physical_values() {
        let mut model = Model::new();
        model.oracle.tick(1_000);
        model.save();
        model.oracle.tick(1_000);
        assert!(model.take((LOGICAL_END - 1) as u32).is_some());
        assert_eq!(model.oracle.take(1), Err(NotNow::NextTick));
        model.oracle.tick(1_000);
        assert_eq!(model.take(1), Some(Timestamp { physical: 1_001, logical: 1 }));
        assert_eq!(model.oracle.take(LOGICAL_END as u32), Err(NotNow::NextTick));
    }

    #[test]
    fn a_clock_that_steps_back_does_not_stop_the_oracle() {
        let mut model = Model::new();
        model.oracle.tick(10_000);
        model.save();
        for _ in 0..20_000 {
            model.oracle.tick(3);
            model.save();
            model.take(200_000);
        }
        assert!(model.given > 19_000, "{}", model.given);
    }

    #[test]
    fn timestamps_rise_through_restarts_and_steps_of_the_clock() {
        for seed in 0..200 {
            let mut prng = Prng::new(seed);
            let mut model = Model::new();
            let mut clock = 1_700_000_000_000_i64;
            for _ in 0..2_000 {
                match prng.below(100) {
                    0..=1 => model.oracle = Oracle::resume(model.disk),
                    2 => clock += prng.below(40_000) as i64 - 20_000,
                    3 => clock += prng.below(4_000_000) as i64 - 2_000_000,
                    // A save that is still under way when the process dies may or may not have reached the disk.
                    4 => {
                        if let Some(bound) = model.oracle.wanted_bound() {
                            model.disk = bound;
                        }
                        model.oracle = Oracle::resume(model.disk);
                    }
                    5..=40 => model.oracle.tick(clock.max(0) as u64),
                    41..=60 => model.save(),
                    61..=70 => clock += prng.below(60) as i64,
                    _ => drop(model.take(1 + prng.below(50_000) as u32)),
                }
            }
            assert!(model.given > 50, "seed {seed} gave out {} batches", model.given);
        }
    }
}
