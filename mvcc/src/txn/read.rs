//! Reads at a timestamp: what a lock means to them, and a single key (`compat/6-transactions.md`, 6.1).

use bytes::Bytes;
use proto::kvrpcpb as kv;
use proto::kvrpcpb::write_conflict::Reason;

use super::error::Conflict;
use super::{Lock, LockKind, Reader, TimeStamp, TxnError, WriteKind, key};
use crate::ReadView;

/// What a read may see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Isolation {
    /// A snapshot: what was committed at or before its timestamp, and no lock of anybody who may still commit there.
    #[default]
    Snapshot,
    /// What was committed, whatever locks there are.
    ReadCommitted,
    /// As before, and an error if anything newer is there.
    ReadCommittedCheckTs,
}

/// How a read is done.
#[derive(Clone, Debug, Default)]
pub struct ReadOptions {
    /// Its timestamp; [`TimeStamp::MAX`] is whatever is newest.
    pub ts: TimeStamp,
    /// What it may see.
    pub isolation: Isolation,
    /// Transactions that will not commit at or before `ts`: their locks are passed by.
    pub resolved_locks: Vec<u64>,
    /// Transactions that have committed at or before `ts`: their locks count as records.
    pub committed_locks: Vec<u64>,
}

/// What a lock means to a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meeting {
    /// Nothing.
    PassedBy,
    /// It is the newest version.
    ReadThrough,
}

impl ReadOptions {
    /// The options of a request with this context.
    pub fn of(context: &kv::Context, ts: u64) -> ReadOptions {
        ReadOptions {
            ts: TimeStamp(ts),
            isolation: match context.isolation_level() {
                kv::IsolationLevel::Si => Isolation::Snapshot,
                kv::IsolationLevel::Rc => Isolation::ReadCommitted,
                kv::IsolationLevel::RcCheckTs => Isolation::ReadCommittedCheckTs,
            },
            resolved_locks: context.resolved_locks.clone(),
            committed_locks: context.committed_locks.clone(),
        }
    }

    /// What `lock` on `user_key` means to this read.
    ///
    /// # Errors
    /// [`TxnError::KeyIsLocked`], or with [`Isolation::ReadCommittedCheckTs`] [`TxnError::WriteConflict`].
    pub(super) fn meet(&self, lock: &Lock, user_key: &Bytes) -> Result<Meeting, TxnError> {
        let start_ts = lock.start_ts.0;
        match self.isolation {
            Isolation::ReadCommitted => return Ok(Meeting::PassedBy),
            Isolation::ReadCommittedCheckTs => {
                let changes = matches!(lock.kind, LockKind::Put | LockKind::Delete);
                if !changes || self.resolved_locks.contains(&start_ts) {
                    return Ok(Meeting::PassedBy);
                }
                return Err(self.newer(user_key, lock.start_ts, TimeStamp::ZERO));
            }
            Isolation::Snapshot => {}
        }
        if matches!(lock.kind, LockKind::Lock | LockKind::Pessimistic)
            || lock.start_ts > self.ts
            || lock.min_commit_ts > self.ts
            || self.resolved_locks.contains(&start_ts)
        {
            return Ok(Meeting::PassedBy);
        }
        if self.committed_locks.contains(&start_ts) {
            return Ok(Meeting::ReadThrough);
        }
        // The newest version is older than a primary that may still choose its commit timestamp: nobody was told that
        // it committed. With async commit or one phase the choice is made.
        if self.ts.is_max() && lock.primary == *user_key && !lock.use_async_commit && !lock.is_one_pc {
            return Ok(Meeting::PassedBy);
        }
        Err(TxnError::KeyIsLocked(Box::new(lock.info(user_key))))
    }

    /// Whether a lock in memory, which is about to be stored, stops this read.
    ///
    /// # Errors
    /// As those of a read that meets a stored one.
    pub fn check_memory(&self, lock: &Lock, user_key: &Bytes) -> Result<(), TxnError> {
        match self.meet(lock, user_key)? {
            Meeting::PassedBy => Ok(()),
            // It is committed for sure, and not stored here yet.
            Meeting::ReadThrough => Err(TxnError::KeyIsLocked(Box::new(lock.info(user_key)))),
        }
    }

    pub(super) fn checks_newer(&self) -> bool {
        self.isolation == Isolation::ReadCommittedCheckTs
    }

    pub(super) fn newer(&self, user_key: &Bytes, conflict_ts: TimeStamp, conflict_commit_ts: TimeStamp) -> TxnError {
        TxnError::WriteConflict(Box::new(Conflict {
            start_ts: self.ts,
            conflict_ts,
            conflict_commit_ts,
            key: user_key.clone(),
            primary: Bytes::new(),
            reason: Reason::RcCheckTs,
        }))
    }
}

/// The value of a key, or `None`.
///
/// Cost: a point read of the lock, a seek of the record, and a point read of a long value.
///
/// # Errors
/// [`TxnError::KeyIsLocked`], [`TxnError::WriteConflict`] with [`Isolation::ReadCommittedCheckTs`], [`TxnError::Read`].
pub fn get<V: ReadView>(
    reader: &Reader<'_, V>,
    user_key: &Bytes,
    options: &ReadOptions,
) -> Result<Option<Bytes>, TxnError> {
    let encoded = key::encode(user_key);
    if options.isolation != Isolation::ReadCommitted
        && let Some(lock) = reader.lock(&encoded)?
        && options.meet(&lock, user_key)? == Meeting::ReadThrough
    {
        return Ok(match lock.kind {
            LockKind::Put => Some(reader.value(&encoded, lock.short_value.as_ref(), lock.start_ts)?),
            _ => None,
        });
    }
    committed(reader, user_key, &encoded, options)
}

/// The committed value of a key whose lock was looked at.
pub(super) fn committed<V: ReadView>(
    reader: &Reader<'_, V>,
    user_key: &Bytes,
    encoded: &[u8],
    options: &ReadOptions,
) -> Result<Option<Bytes>, TxnError> {
    let mut versions = reader.versions(encoded)?;
    if options.checks_newer() && !options.ts.is_max() {
        versions.seek(TimeStamp::MAX)?;
        while let Some((commit_ts, record)) = versions.next()? {
            if commit_ts <= options.ts {
                break;
            }
            if record.kind != WriteKind::Rollback {
                return Err(options.newer(user_key, record.start_ts, commit_ts));
            }
        }
    }
    versions.seek(options.ts)?;
    match versions.data(options.ts)? {
        Some((_, record)) if record.kind == WriteKind::Put => {
            Ok(Some(reader.value(encoded, record.short_value.as_ref(), record.start_ts)?))
        }
        _ => Ok(None),
    }
}
