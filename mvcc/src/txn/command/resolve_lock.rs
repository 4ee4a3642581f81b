//! `KvResolveLock` (`compat/6-transactions.md`, 6.8): carries the decision on a transaction from its primary to its locks.
//!
//! With keys it is one command. Without, the caller looks for the locks of the region with a
//! [`LockScan`](crate::txn::LockScan), some at a time, and has [`resolve_found`] carry the decisions out under their latches.

use std::collections::BTreeMap;

use bytes::Bytes;
use proto::kvrpcpb as kv;

use super::commit::{check_order, commit_key};
use super::rollback::rollback_key;
use crate::ReadView;
use crate::txn::{Plan, Planned, Reader, TimeStamp, TxnError, key};

/// Decisions by transaction: when it committed, or 0 for its rollback.
pub type Decisions = BTreeMap<TimeStamp, TimeStamp>;

/// The decisions that a request carries.
///
/// # Errors
/// [`TxnError::InvalidTxnTso`] for a commit before its beginning.
pub fn decisions(request: &kv::ResolveLockRequest) -> Result<Decisions, TxnError> {
    let mut out = Decisions::new();
    if request.txn_infos.is_empty() {
        out.insert(TimeStamp(request.start_version), TimeStamp(request.commit_version));
    }
    out.extend(request.txn_infos.iter().map(|info| (TimeStamp(info.txn), TimeStamp(info.status))));
    for (start_ts, commit_ts) in &out {
        if !commit_ts.is_zero() {
            check_order(*start_ts, *commit_ts)?;
        }
    }
    Ok(out)
}

/// Resolves the keys that the request names.
///
/// # Errors
/// Those of a commit or a rollback, [`TxnError::TxnLockNotFound`] among them.
pub fn resolve_keys<V: ReadView>(
    reader: &Reader<'_, V>,
    request: &kv::ResolveLockRequest,
) -> Result<Planned<kv::ResolveLockResponse>, TxnError> {
    let (start_ts, commit_ts) = (TimeStamp(request.start_version), TimeStamp(request.commit_version));
    if !commit_ts.is_zero() {
        check_order(start_ts, commit_ts)?;
    }
    let mut plan = Plan::default();
    for user_key in &request.keys {
        match commit_ts.is_zero() {
            true => rollback_key(reader, &mut plan, user_key, start_ts, TimeStamp::ZERO, false)?,
            false => commit_key(reader, &mut plan, user_key, start_ts, commit_ts)?,
        }
    }
    Ok(Planned { plan, answer: kv::ResolveLockResponse::default() })
}

/// Resolves keys on which locks of decided transactions were found. Those that are gone since are left alone.
///
/// # Errors
/// Those of a commit or a rollback.
pub fn resolve_found<V: ReadView>(
    reader: &Reader<'_, V>,
    decisions: &Decisions,
    keys: &[Bytes],
) -> Result<Plan, TxnError> {
    let mut plan = Plan::default();
    for user_key in keys {
        let Some(lock) = reader.lock(&key::encode(user_key))? else { continue };
        match decisions.get(&lock.start_ts) {
            None => {}
            Some(commit_ts) if commit_ts.is_zero() => {
                rollback_key(reader, &mut plan, user_key, lock.start_ts, TimeStamp::ZERO, false)?;
            }
            Some(commit_ts) => commit_key(reader, &mut plan, user_key, lock.start_ts, *commit_ts)?,
        }
    }
    Ok(plan)
}
