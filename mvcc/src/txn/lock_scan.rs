//! A search for locks that can stop anywhere and go on with another view of the same state.

use bytes::Bytes;

use super::scan::{Peeked, clip};
use super::{Lock, Reader, TimeStamp, key};
use crate::raw::Step;
use crate::{Cf, ReadError, ReadView};

/// Whose locks.
#[derive(Clone, Debug)]
pub enum Whose {
    /// Of all transactions that began at or before this.
    UpTo(TimeStamp),
    /// Of these transactions.
    Of(Vec<TimeStamp>),
    /// The pessimistic ones of this transaction.
    PessimisticOf(TimeStamp),
}

impl Whose {
    fn includes(&self, lock: &Lock) -> bool {
        match self {
            Whose::UpTo(ts) => lock.start_ts <= *ts,
            Whose::Of(transactions) => transactions.contains(&lock.start_ts),
            Whose::PessimisticOf(ts) => lock.start_ts == *ts && lock.is_pessimistic(),
        }
    }
}

/// A search under way. It holds no view.
#[derive(Clone, Debug)]
pub struct LockScan {
    whose: Whose,
    lower: Vec<u8>,
    upper: Vec<u8>,
    limit: usize,
    done: bool,
    locks: Vec<(Bytes, Lock)>,
    stepped: u64,
}

impl LockScan {
    /// At most `limit` locks (0: all) on the client's keys `[start, end)` within the region of encoded bounds.
    pub fn new(
        whose: Whose,
        start: &[u8],
        end: &[u8],
        region_start: &[u8],
        region_end: &[u8],
        limit: usize,
    ) -> LockScan {
        let (lower, upper) = clip(start, end, region_start, region_end);
        let done = !upper.is_empty() && lower >= upper;
        let limit = if limit == 0 { usize::MAX } else { limit };
        LockScan { whose, lower, upper, limit, done, locks: Vec::new(), stepped: 0 }
    }

    /// The encoded range that is left, for the locks in memory.
    pub fn bounds(&self) -> (&[u8], &[u8]) {
        (&self.lower, &self.upper)
    }

    /// Looks at `entries` locks at most, one at least.
    ///
    /// # Errors
    /// What the view said. What was found before stays, and the next call goes on behind it.
    pub fn step(&mut self, view: &impl ReadView, entries: u64) -> Result<Step, ReadError> {
        if self.done {
            return Ok(Step::Done);
        }
        let reader = Reader::new(view);
        let mut cursor = Peeked::new(view.cursor(Cf::Lock, &self.lower, &self.upper)?);
        cursor.seek(&reader, &self.lower)?;
        for _ in 0..entries.max(1) {
            let Some((encoded, stored)) = cursor.entry.take() else {
                self.done = true;
                return Ok(Step::Done);
            };
            let lock = Lock::decode(&stored)?;
            self.stepped += 1;
            self.lower = key::after(&encoded);
            if self.whose.includes(&lock) {
                self.locks.push((key::decode(&encoded)?, lock));
                if self.locks.len() >= self.limit {
                    self.done = true;
                    return Ok(Step::Done);
                }
            }
            cursor.advance(&reader)?;
        }
        Ok(Step::More)
    }

    /// Entries that were looked at.
    pub fn stepped(&self) -> u64 {
        self.stepped
    }

    /// How many locks were found and not taken out.
    pub fn held(&self) -> usize {
        self.locks.len()
    }

    /// Takes out what was found so far, by client's key, in order; the limit begins again.
    pub fn drain(&mut self) -> Vec<(Bytes, Lock)> {
        std::mem::take(&mut self.locks)
    }
}
