//! `KvCheckSecondaryLocks` (`compat/6-transactions.md`, 6.7): whether a transaction with async commit has all its locks.
//! A missing one is kept from coming late.

use proto::kvrpcpb as kv;

use crate::ReadView;
use crate::txn::rollback::{Found, Rollback};
use crate::txn::{Plan, Planned, Reader, TimeStamp, TxnError, TxnRecord, key};

/// Looks at the secondaries one after the other, up to the first one that decides: a commit or a rollback.
///
/// # Errors
/// [`TxnError::Read`].
pub fn check_secondary_locks<V: ReadView>(
    reader: &Reader<'_, V>,
    request: &kv::CheckSecondaryLocksRequest,
) -> Result<Planned<kv::CheckSecondaryLocksResponse>, TxnError> {
    let start_ts = TimeStamp(request.start_version);
    let mut plan = Plan::default();
    let mut locks = Vec::with_capacity(request.keys.len());
    for user_key in &request.keys {
        let encoded = key::encode(user_key);
        let rollback = Rollback { start_ts, user_key, encoded: &encoded, protect: true };
        let found = match reader.lock(&encoded)? {
            Some(lock) if lock.start_ts == start_ts && !lock.is_pessimistic() => {
                locks.push(lock.info(user_key));
                continue;
            }
            Some(lock) if lock.start_ts == start_ts => match reader.txn_record(&encoded, start_ts)? {
                TxnRecord::Committed { commit_ts } => {
                    plan.unlock(&encoded, start_ts, commit_ts);
                    Found::Committed(commit_ts)
                }
                TxnRecord::RolledBack | TxnRecord::None { .. } => {
                    rollback.lock(reader, &mut plan, &lock)?;
                    Found::RolledBack
                }
            },
            other => rollback.without_lock(reader, &mut plan, other.as_ref())?,
        };
        let commit_ts = match found {
            Found::Committed(commit_ts) => commit_ts.0,
            Found::RolledBack | Found::Nothing => 0,
        };
        let answer = kv::CheckSecondaryLocksResponse { commit_ts, ..Default::default() };
        return Ok(Planned { plan, answer });
    }
    Ok(Planned { plan, answer: kv::CheckSecondaryLocksResponse { locks, ..Default::default() } })
}
