//! `KvTxnHeartBeat` (`compat/6-transactions.md`, 6.11).

use proto::kvrpcpb as kv;

use crate::ReadView;
use crate::txn::{Plan, Planned, Reader, TimeStamp, TxnError, key};

/// Has the primary's lock hold longer; never shorter.
///
/// # Errors
/// [`TxnError::TxnNotFound`] without a lock of the transaction, [`TxnError::Read`].
pub fn heart_beat<V: ReadView>(
    reader: &Reader<'_, V>,
    request: &kv::TxnHeartBeatRequest,
) -> Result<Planned<kv::TxnHeartBeatResponse>, TxnError> {
    let start_ts = TimeStamp(request.start_version);
    let encoded = key::encode(&request.primary_lock);
    let lock = reader.lock(&encoded)?.filter(|lock| lock.start_ts == start_ts);
    let Some(mut lock) = lock else {
        return Err(TxnError::TxnNotFound { start_ts, key: request.primary_lock.clone() });
    };
    let mut plan = Plan::default();
    let ttl_ms = lock.ttl_ms.max(request.advise_lock_ttl);
    let min_commit_ts = match lock.generation {
        0 => lock.min_commit_ts,
        _ => lock.min_commit_ts.max(TimeStamp(request.min_commit_ts)),
    };
    if (ttl_ms, min_commit_ts) != (lock.ttl_ms, lock.min_commit_ts) {
        (lock.ttl_ms, lock.min_commit_ts) = (ttl_ms, min_commit_ts);
        plan.put_lock(&encoded, &lock);
    }
    Ok(Planned { plan, answer: kv::TxnHeartBeatResponse { lock_ttl: ttl_ms, ..Default::default() } })
}
