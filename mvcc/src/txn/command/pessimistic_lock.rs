//! `KvPessimisticLock` without its waiting (`compat/6-transactions.md`, 6.10).

use bytes::Bytes;
use proto::kvrpcpb as kv;
use proto::kvrpcpb::write_conflict::Reason;

use crate::ReadView;
use crate::txn::error::Conflict;
use crate::txn::reader::last_change_after;
use crate::txn::{Lock, LockKind, Plan, Planned, Reader, TimeStamp, TxnError, TxnRecord, WriteKind, WriteRecord, key};

/// The highest timestamp that the request reads at, for `max_ts`.
pub fn pessimistic_lock_reads_at(request: &kv::PessimisticLockRequest) -> TimeStamp {
    let claims = request.mutations.iter().any(|mutation| mutation.assertion() == kv::Assertion::NotExist);
    if request.return_values || request.check_existence || claims {
        TimeStamp(request.for_update_ts)
    } else {
        TimeStamp::ZERO
    }
}

/// Locks keys before the transaction knows what it will write: all of them or none.
///
/// # Errors
/// [`TxnError::KeyIsLocked`] for the first key that another transaction holds: whoever may wait does.
/// [`TxnError::WriteConflict`], [`TxnError::PessimisticLockRolledBack`], [`TxnError::LockTypeNotMatch`],
/// [`TxnError::AlreadyExist`], [`TxnError::Invalid`], [`TxnError::Read`].
pub fn pessimistic_lock<V: ReadView>(
    reader: &Reader<'_, V>,
    request: &kv::PessimisticLockRequest,
) -> Result<Planned<kv::PessimisticLockResponse>, TxnError> {
    let locking = Locking {
        reader,
        request,
        start_ts: TimeStamp(request.start_version),
        for_update_ts: TimeStamp(request.for_update_ts),
        allows_conflict: request.wake_up_mode() == kv::PessimisticLockWakeUpMode::WakeUpModeForceLock,
    };
    if locking.allows_conflict && request.mutations.len() > 1 {
        return Err(TxnError::Invalid("a lock with conflict is for one key only".into()));
    }
    if request.lock_only_if_exists && !request.return_values {
        return Err(TxnError::Invalid("LockIfExistsFailed: lock_only_if_exists needs return_values".into()));
    }
    let mut plan = Plan::default();
    let mut answer = kv::PessimisticLockResponse::default();
    for mutation in &request.mutations {
        let granted = locking.key(&mut plan, mutation)?;
        locking.tell(granted, &mut answer);
    }
    Ok(Planned { plan, answer })
}

struct Locking<'r, 'v, V> {
    reader: &'r Reader<'v, V>,
    request: &'r kv::PessimisticLockRequest,
    start_ts: TimeStamp,
    for_update_ts: TimeStamp,
    allows_conflict: bool,
}

/// A key that is locked, or need not be.
struct Granted {
    value: Option<Bytes>,
    /// The newest commit, if it is above what the transaction had seen.
    conflict_ts: TimeStamp,
}

impl<V: ReadView> Locking<'_, '_, V> {
    fn key(&self, plan: &mut Plan, mutation: &kv::Mutation) -> Result<Granted, TxnError> {
        if mutation.op() != kv::Op::PessimisticLock {
            return Err(TxnError::Invalid(format!("{} is no pessimistic lock", mutation.op().as_str_name())));
        }
        let user_key = &mutation.key;
        let encoded = key::encode(user_key);
        match self.reader.lock(&encoded)? {
            Some(lock) if lock.start_ts == self.start_ts => self.again(plan, user_key, &encoded, lock),
            Some(lock) => Err(TxnError::KeyIsLocked(Box::new(lock.info(user_key)))),
            None => self.first(plan, mutation, &encoded),
        }
    }

    /// The transaction's lock is there.
    fn again(&self, plan: &mut Plan, user_key: &Bytes, encoded: &Bytes, mut lock: Lock) -> Result<Granted, TxnError> {
        if !lock.is_pessimistic() {
            return Err(TxnError::LockTypeNotMatch {
                start_ts: self.start_ts,
                key: user_key.clone(),
                is_pessimistic: false,
            });
        }
        let (held, mut conflict_ts) = (lock.for_update_ts, TimeStamp::ZERO);
        if self.allows_conflict && self.for_update_ts < held {
            conflict_ts = held;
        } else if self.for_update_ts > held {
            lock.for_update_ts = self.for_update_ts;
            lock.ttl_ms = lock.ttl_ms.max(self.request.lock_ttl);
            lock.min_commit_ts = lock.min_commit_ts.max(TimeStamp(self.request.min_commit_ts));
            plan.put_lock(encoded, &lock);
        }
        let ts = self.for_update_ts.max(conflict_ts);
        Ok(Granted { value: self.value_at(encoded, ts, !conflict_ts.is_zero())?, conflict_ts })
    }

    fn first(&self, plan: &mut Plan, mutation: &kv::Mutation, encoded: &Bytes) -> Result<Granted, TxnError> {
        let user_key = &mutation.key;
        let newest = self.reader.newest(encoded, TimeStamp::MAX)?;
        let mut conflict_ts = TimeStamp::ZERO;
        if let Some((commit_ts, record)) = &newest {
            if *commit_ts > self.for_update_ts {
                if !self.allows_conflict {
                    return Err(self.conflict(user_key, *commit_ts, record));
                }
                conflict_ts = *commit_ts;
            }
            self.check_rolled_back(user_key, encoded, *commit_ts, record)?;
        }
        let must_not_exist = mutation.assertion() == kv::Assertion::NotExist;
        if must_not_exist
            && let Some((commit_ts, data)) = self.reader.data(encoded, TimeStamp::MAX)?
            && data.kind == WriteKind::Put
        {
            return Err(match conflict_ts.is_zero() {
                true => TxnError::AlreadyExist { key: user_key.clone() },
                false => self.conflict(user_key, commit_ts, &data),
            });
        }
        let value = self.value_at(encoded, TimeStamp::MAX, !conflict_ts.is_zero())?;
        if self.request.lock_only_if_exists && value.is_none() {
            return Ok(Granted { value, conflict_ts });
        }
        let mut lock =
            Lock::new(LockKind::Pessimistic, self.request.primary_lock.clone(), self.start_ts, self.request.lock_ttl);
        lock.for_update_ts = self.for_update_ts.max(conflict_ts);
        lock.min_commit_ts = TimeStamp(self.request.min_commit_ts);
        lock.last_change = last_change_after(newest.as_ref());
        lock.is_locked_with_conflict = !conflict_ts.is_zero();
        plan.put_lock(encoded, &lock);
        Ok(Granted { value, conflict_ts })
    }

    /// Whether the transaction was rolled back here. Its record cannot be below a newest one that is older than it.
    fn check_rolled_back(
        &self,
        user_key: &Bytes,
        encoded: &[u8],
        commit_ts: TimeStamp,
        record: &WriteRecord,
    ) -> Result<(), TxnError> {
        let is_below = || -> Result<bool, TxnError> {
            if commit_ts <= self.start_ts {
                return Ok(false);
            }
            Ok(self.reader.txn_record(encoded, self.start_ts)? == TxnRecord::RolledBack)
        };
        if record.rolls_back(commit_ts, self.start_ts) || is_below()? {
            return Err(TxnError::PessimisticLockRolledBack { start_ts: self.start_ts, key: user_key.clone() });
        }
        Ok(())
    }

    fn conflict(&self, user_key: &Bytes, commit_ts: TimeStamp, record: &WriteRecord) -> TxnError {
        TxnError::WriteConflict(Box::new(Conflict {
            start_ts: self.start_ts,
            conflict_ts: record.start_ts,
            conflict_commit_ts: commit_ts,
            key: user_key.clone(),
            primary: self.request.primary_lock.clone(),
            reason: Reason::PessimisticRetry,
        }))
    }

    /// The newest value at or before `ts`, as far as the client asked for it. With a conflict it is told in any case.
    fn value_at(&self, encoded: &[u8], ts: TimeStamp, has_conflict: bool) -> Result<Option<Bytes>, TxnError> {
        if !(self.request.return_values || self.request.check_existence || has_conflict) {
            return Ok(None);
        }
        match self.reader.data(encoded, ts)? {
            Some((_, record)) if record.kind == WriteKind::Put => {
                if !self.request.return_values && !has_conflict {
                    return Ok(Some(Bytes::new()));
                }
                Ok(Some(self.reader.value(encoded, record.short_value.as_ref(), record.start_ts)?))
            }
            _ => Ok(None),
        }
    }

    fn tell(&self, granted: Granted, answer: &mut kv::PessimisticLockResponse) {
        let Granted { value, conflict_ts } = granted;
        let existence = value.is_some();
        let value = value.unwrap_or_default();
        if self.allows_conflict {
            let kind = match conflict_ts.is_zero() {
                true => kv::PessimisticLockKeyResultType::LockResultNormal,
                false => kv::PessimisticLockKeyResultType::LockResultLockedWithConflict,
            };
            answer.results.push(kv::PessimisticLockKeyResult {
                r#type: kind as i32,
                value,
                existence,
                locked_with_conflict_ts: conflict_ts.0,
                ..Default::default()
            });
            return;
        }
        if self.request.return_values {
            answer.values.push(value);
        }
        if self.request.return_values || self.request.check_existence {
            answer.not_founds.push(!existence);
        }
    }
}
