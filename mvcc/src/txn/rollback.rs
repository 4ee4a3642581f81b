//! How a transaction is rolled back on a key (`compat/6-transactions.md`, 6.5).
//!
//! A rollback leaves a record at its `start_ts`, so that a prewrite that comes late finds it. Of the unprotected ones a
//! key keeps the last only. Those that the decision on a transaction hangs on, as on its primary, are protected.

use bytes::Bytes;

use super::{Lock, LockKind, Plan, Reader, TimeStamp, TxnError, TxnRecord, WriteKind, WriteRecord};
use crate::{ReadError, ReadView};

/// The rollback of one transaction on one key.
pub(super) struct Rollback<'a> {
    pub(super) start_ts: TimeStamp,
    pub(super) user_key: &'a Bytes,
    pub(super) encoded: &'a Bytes,
    /// Whether the record that it leaves is protected in any case.
    pub(super) protect: bool,
}

/// What was found of a transaction that has no lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    Committed(TimeStamp),
    RolledBack,
    /// Nothing; now it is rolled back.
    Nothing,
}

impl Rollback<'_> {
    /// Removes the transaction's own lock and notes the rollback.
    pub(super) fn lock<V: ReadView>(
        &self,
        reader: &Reader<'_, V>,
        plan: &mut Plan,
        lock: &Lock,
    ) -> Result<(), TxnError> {
        let overlapped = match reader.txn_record(self.encoded, self.start_ts)? {
            TxnRecord::None { overlapped } => overlapped,
            TxnRecord::RolledBack => {
                // A lock that came after its own rollback only goes.
                self.remove(plan, lock);
                return Ok(());
            }
            TxnRecord::Committed { commit_ts } => {
                return Err(TxnError::Committed { start_ts: self.start_ts, commit_ts });
            }
        };
        let protected = self.protect || lock.primary == *self.user_key || lock.generation > 0;
        self.put(plan, protected, overlapped);
        if !self.protect {
            self.collapse(reader, plan)?;
        }
        self.remove(plan, lock);
        Ok(())
    }

    fn remove(&self, plan: &mut Plan, lock: &Lock) {
        if lock.kind == LockKind::Put && lock.short_value.is_none() {
            plan.delete_value(self.encoded, self.start_ts);
        }
        plan.unlock(self.encoded, self.start_ts, TimeStamp::ZERO);
    }

    /// Looks for what became of the transaction, which has no lock here; if nothing did, it is rolled back from now on.
    /// `other` is another transaction's lock on the key.
    pub(super) fn without_lock<V: ReadView>(
        &self,
        reader: &Reader<'_, V>,
        plan: &mut Plan,
        other: Option<&Lock>,
    ) -> Result<Found, ReadError> {
        match reader.txn_record(self.encoded, self.start_ts)? {
            TxnRecord::Committed { commit_ts } => Ok(Found::Committed(commit_ts)),
            TxnRecord::RolledBack => Ok(Found::RolledBack),
            TxnRecord::None { overlapped } => {
                if self.protect
                    && overlapped.is_none()
                    && let Some(lock) = other
                {
                    self.warn(plan, lock);
                }
                self.put(plan, self.protect, overlapped);
                if !self.protect {
                    self.collapse(reader, plan)?;
                }
                Ok(Found::Nothing)
            }
        }
    }

    /// Another transaction's commit may fall on our place: its lock remembers to note the rollback then.
    fn warn(&self, plan: &mut Plan, lock: &Lock) {
        let may_fall_on_us = lock.use_async_commit && lock.min_commit_ts <= self.start_ts;
        if may_fall_on_us && !lock.rollback_ts.contains(&self.start_ts) {
            let mut lock = lock.clone();
            lock.rollback_ts.push(self.start_ts);
            plan.put_lock(self.encoded, &lock);
        }
    }

    fn put(&self, plan: &mut Plan, protected: bool, overlapped: Option<(WriteRecord, TimeStamp)>) {
        match overlapped {
            None => {
                let record = WriteRecord::rollback(self.start_ts, protected);
                plan.put_record(self.encoded, self.start_ts, &record);
            }
            // The place is taken by a commit, which must not be lost.
            Some((mut record, newer)) if protected => {
                record.has_overlapped_rollback = true;
                record.gc_fence = Some(newer);
                plan.put_record(self.encoded, self.start_ts, &record);
            }
            Some(_) => {}
        }
    }

    /// Removes the rollback before ours, unless it is protected.
    fn collapse<V: ReadView>(&self, reader: &Reader<'_, V>, plan: &mut Plan) -> Result<(), ReadError> {
        if let Some((ts, record)) = reader.newest(self.encoded, self.start_ts)?
            && ts < self.start_ts
            && record.kind == WriteKind::Rollback
            && !record.is_protected()
        {
            plan.delete_record(self.encoded, ts);
        }
        Ok(())
    }
}
