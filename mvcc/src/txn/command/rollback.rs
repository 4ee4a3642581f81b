//! `KvBatchRollback` and `KvCleanup` (`compat/6-transactions.md`, 6.5).

use bytes::Bytes;
use proto::kvrpcpb as kv;

use crate::ReadView;
use crate::txn::rollback::{Found, Rollback};
use crate::txn::{Plan, Planned, Reader, TimeStamp, TxnError, key};

/// Rolls back the keys of a transaction: all of them or none.
///
/// # Errors
/// [`TxnError::Committed`], [`TxnError::Read`].
pub fn batch_rollback<V: ReadView>(
    reader: &Reader<'_, V>,
    request: &kv::BatchRollbackRequest,
) -> Result<Planned<kv::BatchRollbackResponse>, TxnError> {
    let mut plan = Plan::default();
    for key in &request.keys {
        rollback_key(reader, &mut plan, key, TimeStamp(request.start_version), TimeStamp::ZERO, false)?;
    }
    Ok(Planned { plan, answer: kv::BatchRollbackResponse::default() })
}

/// Rolls back one key whose transaction has been silent for too long; with a `current_ts` of 0, in any case.
///
/// # Errors
/// [`TxnError::KeyIsLocked`] while its lock may live, [`TxnError::Read`]. A commit is an answer.
pub fn cleanup<V: ReadView>(
    reader: &Reader<'_, V>,
    request: &kv::CleanupRequest,
) -> Result<Planned<kv::CleanupResponse>, TxnError> {
    let mut plan = Plan::default();
    let (start_ts, now) = (TimeStamp(request.start_version), TimeStamp(request.current_ts));
    match rollback_key(reader, &mut plan, &request.key, start_ts, now, true) {
        Ok(()) => Ok(Planned { plan, answer: kv::CleanupResponse::default() }),
        Err(TxnError::Committed { commit_ts, .. }) => {
            let answer = kv::CleanupResponse { commit_version: commit_ts.0, ..Default::default() };
            Ok(Planned { plan: Plan::default(), answer })
        }
        Err(error) => Err(error),
    }
}

pub(super) fn rollback_key<V: ReadView>(
    reader: &Reader<'_, V>,
    plan: &mut Plan,
    user_key: &Bytes,
    start_ts: TimeStamp,
    now: TimeStamp,
    protect: bool,
) -> Result<(), TxnError> {
    let encoded = key::encode(user_key);
    let rollback = Rollback { start_ts, user_key, encoded: &encoded, protect };
    match reader.lock(&encoded)? {
        Some(lock) if lock.start_ts == start_ts => {
            if !now.is_zero() && start_ts.millis().saturating_add(lock.ttl_ms) >= now.millis() {
                return Err(TxnError::KeyIsLocked(Box::new(lock.info(user_key))));
            }
            rollback.lock(reader, plan, &lock)
        }
        other => match rollback.without_lock(reader, plan, other.as_ref())? {
            Found::Committed(commit_ts) => Err(TxnError::Committed { start_ts, commit_ts }),
            Found::RolledBack | Found::Nothing => Ok(()),
        },
    }
}
