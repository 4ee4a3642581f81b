//! What a leader must remember of reads, so that a transaction that picks its own commit timestamp does not commit below
//! one (`compat/6-transactions.md`, 6.2).
//!
//! A reader first raises `max_ts`, then looks at the locks here, then takes its snapshot. A writer takes its commit
//! timestamp from `max_ts`, puts its locks here in the same moment, and removes them once they are applied. So a reader
//! either meets the lock, or the writer commits above it.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{Lock, ReadOptions, TimeStamp, TxnError, key};

/// One core's memory.
#[derive(Debug, Default)]
pub struct MemoryLocks {
    max_ts: TimeStamp,
    locks: BTreeMap<Bytes, Lock>,
}

impl MemoryLocks {
    /// The highest timestamp that anybody read at.
    pub fn max_ts(&self) -> TimeStamp {
        self.max_ts
    }

    /// Somebody reads at `ts`. [`TimeStamp::MAX`] raises nothing: such a read has no place in time.
    pub fn read_at(&mut self, ts: TimeStamp) {
        if !ts.is_max() {
            self.max_ts = self.max_ts.max(ts);
        }
    }

    /// Puts locks here until they are [removed](Self::remove). Their keys are latched by whoever does.
    pub fn insert(&mut self, locks: &[(Bytes, Lock)]) {
        self.locks.extend(locks.iter().cloned());
    }

    /// The locks are stored, or never will be.
    pub fn remove<'a>(&mut self, keys: impl IntoIterator<Item = &'a Bytes>) {
        for key in keys {
            self.locks.remove(key);
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.locks.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.locks.is_empty()
    }

    /// Whether a read of a key may go on.
    ///
    /// # Errors
    /// As those of a read that meets the lock in the engine.
    pub fn check(&self, user_key: &Bytes, options: &ReadOptions) -> Result<(), TxnError> {
        if self.locks.is_empty() {
            return Ok(());
        }
        self.locks.get(&key::encode(user_key)).map_or(Ok(()), |lock| options.check_memory(lock, user_key))
    }

    /// Whether a read of the encoded keys `[start, end)` may go on; an empty end is infinity.
    ///
    /// # Errors
    /// As [`check`](Self::check), for the first lock in the way.
    pub fn check_range(&self, start: &[u8], end: &[u8], options: &ReadOptions) -> Result<(), TxnError> {
        for (encoded, lock) in self.inside(start, end) {
            options.check_memory(lock, &key::decode(encoded)?)?;
        }
        Ok(())
    }

    /// Whether a search for locks at or below `max_version` in `[start, end)` would miss one that is about to be stored.
    ///
    /// # Errors
    /// [`TxnError::KeyIsLocked`].
    pub fn check_scan_lock(&self, start: &[u8], end: &[u8], max_version: TimeStamp) -> Result<(), TxnError> {
        match self.inside(start, end).find(|(_, lock)| lock.start_ts <= max_version) {
            None => Ok(()),
            Some((encoded, lock)) => Err(TxnError::KeyIsLocked(Box::new(lock.info(&key::decode(encoded)?)))),
        }
    }

    fn inside<'a>(&'a self, start: &[u8], end: &'a [u8]) -> impl Iterator<Item = (&'a Bytes, &'a Lock)> {
        let from = Bytes::copy_from_slice(start);
        self.locks.range(from..).take_while(move |(key, _)| end.is_empty() || key.as_ref() < end)
    }
}
