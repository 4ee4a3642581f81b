//! `KvCheckTxnStatus` (`compat/6-transactions.md`, 6.6): what became of a transaction, by its primary. Who asks may push
//! it: beyond the reader's timestamp, or into its rollback once it has been silent for too long.

use bytes::Bytes;
use proto::kvrpcpb as kv;

use crate::ReadView;
use crate::txn::rollback::{Found, Rollback};
use crate::txn::{Lock, Plan, Planned, Reader, TimeStamp, TxnError, TxnRecord, key};

/// The timestamps that the request raises `max_ts` to.
pub fn check_txn_status_reads_at(request: &kv::CheckTxnStatusRequest) -> TimeStamp {
    let all = [request.lock_ts, request.current_ts, request.caller_start_ts].map(TimeStamp);
    all.into_iter().filter(|ts| !ts.is_max()).max().unwrap_or_default()
}

/// Looks at the primary of a transaction.
///
/// # Errors
/// [`TxnError::TxnNotFound`], [`TxnError::PrimaryMismatch`], [`TxnError::Read`].
pub fn check_txn_status<V: ReadView>(
    reader: &Reader<'_, V>,
    request: &kv::CheckTxnStatusRequest,
) -> Result<Planned<kv::CheckTxnStatusResponse>, TxnError> {
    let encoded = key::encode(&request.primary_key);
    let check =
        Check { reader, request, start_ts: TimeStamp(request.lock_ts), user_key: &request.primary_key, encoded };
    let mut plan = Plan::default();
    let answer = match reader.lock(&check.encoded)? {
        Some(lock) if lock.start_ts == check.start_ts => check.with_lock(&mut plan, lock)?,
        other => check.without_lock(&mut plan, other.as_ref())?,
    };
    Ok(Planned { plan, answer })
}

struct Check<'r, 'v, V> {
    reader: &'r Reader<'v, V>,
    request: &'r kv::CheckTxnStatusRequest,
    start_ts: TimeStamp,
    user_key: &'r Bytes,
    encoded: Bytes,
}

type Answer = kv::CheckTxnStatusResponse;

fn acted(action: kv::Action) -> Answer {
    Answer { action: action as i32, ..Default::default() }
}

impl<V: ReadView> Check<'_, '_, V> {
    fn with_lock(&self, plan: &mut Plan, lock: Lock) -> Result<Answer, TxnError> {
        if self.request.verify_is_primary && lock.primary != *self.user_key {
            // The primary of a pessimistic transaction may have changed; the lock is a left-over of the first one.
            if !self.request.resolving_pessimistic_lock
                && lock.is_pessimistic()
                && let Some(decided) = self.decided()?
            {
                plan.unlock(&self.encoded, self.start_ts, TimeStamp::ZERO);
                return Ok(decided);
            }
            return Err(TxnError::PrimaryMismatch(Box::new(lock.info(self.user_key))));
        }
        if lock.use_async_commit && !self.request.force_sync_commit {
            // Its secondaries decide, however silent it is.
            return Ok(self.alive(&lock, false));
        }
        if lock.is_pessimistic()
            && lock.is_locked_with_conflict
            && let Some(decided) = self.decided()?
        {
            // The lock was granted to a late request.
            plan.unlock(&self.encoded, self.start_ts, TimeStamp::ZERO);
            return Ok(decided);
        }
        if lock.has_expired(TimeStamp(self.request.current_ts)) {
            return self.expire(plan, &lock);
        }
        self.push(plan, lock)
    }

    fn expire(&self, plan: &mut Plan, lock: &Lock) -> Result<Answer, TxnError> {
        if lock.is_pessimistic() && self.request.resolving_pessimistic_lock {
            plan.unlock(&self.encoded, self.start_ts, TimeStamp::ZERO);
            return Ok(acted(kv::Action::TtlExpirePessimisticRollback));
        }
        self.rollback().lock(self.reader, plan, lock)?;
        Ok(acted(kv::Action::TtlExpireRollback))
    }

    /// The caller waits for a transaction that lives; unless it may commit beyond the caller, who then need not wait.
    fn push(&self, plan: &mut Plan, mut lock: Lock) -> Result<Answer, TxnError> {
        let caller = TimeStamp(self.request.caller_start_ts);
        if !lock.min_commit_ts.is_zero() && !caller.is_max() && caller >= lock.min_commit_ts {
            lock.min_commit_ts = caller.next().max(TimeStamp(self.request.current_ts));
            plan.put_lock(&self.encoded, &lock);
        }
        let is_pushed = caller.is_max() || (!caller.is_zero() && lock.min_commit_ts > caller);
        Ok(self.alive(&lock, is_pushed))
    }

    fn alive(&self, lock: &Lock, is_pushed: bool) -> Answer {
        let action = if is_pushed { kv::Action::MinCommitTsPushed } else { kv::Action::NoAction };
        Answer { lock_ttl: lock.ttl_ms, lock_info: Some(lock.info(self.user_key)), ..acted(action) }
    }

    fn without_lock(&self, plan: &mut Plan, other: Option<&Lock>) -> Result<Answer, TxnError> {
        if let Some(decided) = self.decided()? {
            return Ok(decided);
        }
        if !self.request.rollback_if_not_exist {
            return Err(TxnError::TxnNotFound { start_ts: self.start_ts, key: self.user_key.clone() });
        }
        if self.request.resolving_pessimistic_lock {
            return Ok(acted(kv::Action::LockNotExistDoNothing));
        }
        let found = self.rollback().without_lock(self.reader, plan, other)?;
        debug_assert_eq!(found, Found::Nothing, "it was looked at just before");
        Ok(acted(kv::Action::LockNotExistRollback))
    }

    /// The answer if the transaction has committed or was rolled back.
    fn decided(&self) -> Result<Option<Answer>, TxnError> {
        Ok(match self.reader.txn_record(&self.encoded, self.start_ts)? {
            TxnRecord::Committed { commit_ts } => {
                Some(Answer { commit_version: commit_ts.0, ..acted(kv::Action::NoAction) })
            }
            TxnRecord::RolledBack => Some(acted(kv::Action::NoAction)),
            TxnRecord::None { .. } => None,
        })
    }

    fn rollback(&self) -> Rollback<'_> {
        Rollback { start_ts: self.start_ts, user_key: self.user_key, encoded: &self.encoded, protect: true }
    }
}
