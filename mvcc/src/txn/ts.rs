//! Timestamps of transactions.

use std::fmt;

/// Bits of a timestamp below its milliseconds.
const LOGICAL_BITS: u32 = 18;

/// A timestamp of the placement driver: milliseconds since the epoch, shifted left by 18 bits, and a counter.
///
/// 0 stands for "none", and [`TimeStamp::MAX`] in a read for "whatever is newest".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TimeStamp(pub u64);

impl TimeStamp {
    /// None.
    pub const ZERO: TimeStamp = TimeStamp(0);
    /// Above all that the placement driver gives out.
    pub const MAX: TimeStamp = TimeStamp(u64::MAX);

    /// The timestamp of a millisecond since the epoch, with the lowest counter.
    pub const fn of_millis(millis: u64) -> TimeStamp {
        TimeStamp(millis << LOGICAL_BITS)
    }

    /// Milliseconds since the epoch.
    pub const fn millis(self) -> u64 {
        self.0 >> LOGICAL_BITS
    }

    /// The next one; the last one has none above it and stays.
    pub const fn next(self) -> TimeStamp {
        TimeStamp(self.0.saturating_add(1))
    }

    /// The one before; 0 stays.
    pub const fn prev(self) -> TimeStamp {
        TimeStamp(self.0.saturating_sub(1))
    }

    /// Whether it stands for "none".
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// Whether it stands for "whatever is newest".
    pub const fn is_max(self) -> bool {
        self.0 == u64::MAX
    }
}

impl From<u64> for TimeStamp {
    fn from(ts: u64) -> TimeStamp {
        TimeStamp(ts)
    }
}

impl fmt::Display for TimeStamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn milliseconds_are_above_the_lowest_18_bits() {
        let ts = TimeStamp(445_644_800_000_000_005);
        assert_eq!(ts.millis(), 1_700_000_000_000);
        assert_eq!(TimeStamp::of_millis(1_700_000_000_000).0 + 5, ts.0);
    }

    #[test]
    fn the_ends_have_no_neighbours_beyond() {
        assert_eq!((TimeStamp::MAX.next(), TimeStamp::ZERO.prev()), (TimeStamp::MAX, TimeStamp::ZERO));
        assert_eq!((TimeStamp(5).next(), TimeStamp(5).prev()), (TimeStamp(6), TimeStamp(4)));
    }
}
