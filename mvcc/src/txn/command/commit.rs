//! `KvCommit` (`compat/6-transactions.md`, 6.4).

use bytes::Bytes;
use proto::kvrpcpb as kv;

use crate::ReadView;
use crate::txn::{Plan, Planned, Reader, TimeStamp, TxnError, TxnRecord, WriteRecord, key};

/// Commits the keys of a transaction: all of them or none.
///
/// Cost: a point read a key; without a lock, its records down to `start_ts`.
///
/// # Errors
/// [`TxnError::InvalidTxnTso`], [`TxnError::CommitTsExpired`], [`TxnError::TxnLockNotFound`], [`TxnError::Read`].
pub fn commit<V: ReadView>(
    reader: &Reader<'_, V>,
    request: &kv::CommitRequest,
) -> Result<Planned<kv::CommitResponse>, TxnError> {
    let (start_ts, commit_ts) = (TimeStamp(request.start_version), TimeStamp(request.commit_version));
    let mut plan = Plan::default();
    check_order(start_ts, commit_ts)?;
    for key in &request.keys {
        commit_key(reader, &mut plan, key, start_ts, commit_ts)?;
    }
    let answer = kv::CommitResponse { commit_version: commit_ts.0, ..Default::default() };
    Ok(Planned { plan, answer })
}

pub(super) fn check_order(start_ts: TimeStamp, commit_ts: TimeStamp) -> Result<(), TxnError> {
    if commit_ts <= start_ts {
        return Err(TxnError::InvalidTxnTso { start_ts, commit_ts });
    }
    Ok(())
}

pub(super) fn commit_key<V: ReadView>(
    reader: &Reader<'_, V>,
    plan: &mut Plan,
    user_key: &Bytes,
    start_ts: TimeStamp,
    commit_ts: TimeStamp,
) -> Result<(), TxnError> {
    let encoded = key::encode(user_key);
    let Some(lock) = reader.lock(&encoded)?.filter(|lock| lock.start_ts == start_ts) else {
        return match reader.txn_record(&encoded, start_ts)? {
            TxnRecord::Committed { .. } => Ok(()),
            TxnRecord::RolledBack | TxnRecord::None { .. } => {
                Err(TxnError::TxnLockNotFound { start_ts, commit_ts, key: user_key.clone() })
            }
        };
    };
    if commit_ts < lock.min_commit_ts {
        let min_commit_ts = lock.min_commit_ts;
        return Err(TxnError::CommitTsExpired { start_ts, commit_ts, key: user_key.clone(), min_commit_ts });
    }
    if let Some(kind) = lock.kind.committed() {
        let mut record = WriteRecord::new(kind, start_ts, lock.short_value.clone());
        record.txn_source = lock.txn_source;
        if !kind.is_data() {
            record.last_change = lock.last_change;
        }
        // Nothing is newer than a key's lock but what came with a smaller timestamp: the fence is open.
        if lock.rollback_ts.contains(&commit_ts) {
            record.has_overlapped_rollback = true;
        }
        plan.put_record(&encoded, commit_ts, &record);
    }
    plan.unlock(&encoded, start_ts, commit_ts);
    Ok(())
}
