//! `KVPessimisticRollback` (`compat/6-transactions.md`, 6.11).

use proto::kvrpcpb as kv;

use crate::ReadView;
use crate::txn::{Plan, Planned, Reader, TimeStamp, TxnError, key};

/// Removes a transaction's pessimistic locks that were taken at or before `for_update_ts`. Without keys the caller looks
/// for them ([`Whose::PessimisticOf`](crate::txn::Whose::PessimisticOf)) and asks for each part of them.
///
/// # Errors
/// [`TxnError::Read`]. A lock that is not there is no error.
pub fn pessimistic_rollback<V: ReadView>(
    reader: &Reader<'_, V>,
    request: &kv::PessimisticRollbackRequest,
) -> Result<Planned<kv::PessimisticRollbackResponse>, TxnError> {
    let (start_ts, for_update_ts) = (TimeStamp(request.start_version), TimeStamp(request.for_update_ts));
    let mut plan = Plan::default();
    for user_key in &request.keys {
        let encoded = key::encode(user_key);
        if let Some(lock) = reader.lock(&encoded)?
            && lock.start_ts == start_ts
            && lock.is_pessimistic()
            && lock.for_update_ts <= for_update_ts
        {
            plan.unlock(&encoded, start_ts, TimeStamp::ZERO);
        }
    }
    Ok(Planned { plan, answer: kv::PessimisticRollbackResponse::default() })
}
