//! `KvPrewrite` (`compat/6-transactions.md`, 6.3), in two parts: [`prewrite`] looks at the data and may do so on a
//! helper; [`Prewritten::finish`] picks the timestamps of async commit and one-phase commit and reads nothing, so that no
//! reader comes in between.

use bytes::Bytes;
use proto::kvrpcpb as kv;
use proto::kvrpcpb::prewrite_request::PessimisticAction;
use proto::kvrpcpb::write_conflict::Reason;

use crate::txn::codec::{LastChange, SHORT_VALUE_BYTES_MAX};
use crate::txn::error::{Conflict, FailedAssertion};
use crate::txn::reader::last_change_after;
use crate::txn::{Lock, LockKind, Plan, Planned, Reader, TimeStamp, TxnError, TxnRecord, WriteKind, WriteRecord, key};
use crate::{Cf, Cursor, ReadError, ReadView};

/// Mutations above which it pays to ask whether there is any record at all in their range.
const MUTATIONS_WORTH_A_LOOK: usize = 12;

/// The highest timestamp that the request reads at, for `max_ts`: what it says not to exist must not come to be below.
pub fn prewrite_reads_at(request: &kv::PrewriteRequest) -> TimeStamp {
    let expects_nothing = request.mutations.iter().any(|mutation| must_not_exist(mutation.op()));
    if expects_nothing { TimeStamp(request.start_version) } else { TimeStamp::ZERO }
}

fn must_not_exist(op: kv::Op) -> bool {
    matches!(op, kv::Op::Insert | kv::Op::CheckNotExists)
}

/// A prewrite whose keys were looked at.
#[derive(Clone, Debug)]
pub struct Prewritten {
    outcome: Outcome,
    start_ts: TimeStamp,
    for_update_ts: TimeStamp,
    max_commit_ts: TimeStamp,
    commits: Commits,
}

/// When the transaction is to commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Commits {
    /// When it is told.
    Later,
    /// Once all its locks are there.
    Async,
    /// Now.
    AtOnce,
}

#[derive(Clone, Debug)]
enum Outcome {
    /// All errors of locked keys, or one of another kind.
    Refused(Vec<TxnError>),
    /// The transaction has committed before; this request is late.
    CommittedAt(TimeStamp),
    Locks(Vec<KeyLock>, Dues),
}

#[derive(Clone, Debug)]
struct KeyLock {
    encoded: Bytes,
    lock: Lock,
    /// A value too long for the lock.
    value: Option<Bytes>,
    /// There is a pessimistic lock of the transaction.
    was_locked: bool,
}

/// What keys without a new lock say about the commit.
#[derive(Clone, Copy, Debug, Default)]
struct Dues {
    /// Their highest `min_commit_ts`.
    min_commit_ts: TimeStamp,
    /// One of them has a lock that waits for a commit, so all have to.
    falls_back: bool,
}

/// What one mutation comes to.
enum Step {
    New(Box<KeyLock>),
    /// Its lock is there from an earlier request.
    Duplicate(Lock),
    /// It was only looked at.
    Checked,
}

/// Looks at the data for a prewrite. Lock errors are collected, all others end it.
///
/// Cost: a point read of the lock and a seek of the records for each key.
///
/// # Errors
/// What the view said. What is wrong with the keys is in the result.
pub fn prewrite<V: ReadView>(reader: &Reader<'_, V>, request: &kv::PrewriteRequest) -> Result<Prewritten, ReadError> {
    let commits = match (request.try_one_pc, request.use_async_commit) {
        (true, _) => Commits::AtOnce,
        (false, true) => Commits::Async,
        (false, false) => Commits::Later,
    };
    let outcome = match Checker::new(reader, request, commits)?.check_all() {
        Ok(outcome) => outcome,
        Err(TxnError::Read(error)) => return Err(error),
        Err(error) => Outcome::Refused(vec![error]),
    };
    Ok(Prewritten {
        outcome,
        start_ts: TimeStamp(request.start_version),
        for_update_ts: TimeStamp(request.for_update_ts),
        max_commit_ts: TimeStamp(request.max_commit_ts),
        commits,
    })
}

struct Checker<'r, 'v, V> {
    reader: &'r Reader<'v, V>,
    request: &'r kv::PrewriteRequest,
    commits: Commits,
    start_ts: TimeStamp,
    for_update_ts: TimeStamp,
    skips_constraints: bool,
    is_retry: bool,
    txn_source: u64,
}

impl<'r, 'v, V: ReadView> Checker<'r, 'v, V> {
    fn new(
        reader: &'r Reader<'v, V>,
        request: &'r kv::PrewriteRequest,
        commits: Commits,
    ) -> Result<Checker<'r, 'v, V>, ReadError> {
        let is_optimistic = request.for_update_ts == 0;
        let skips = is_optimistic && (request.skip_constraint_check || is_fresh_range(reader, request)?);
        let context = request.context.as_ref();
        Ok(Checker {
            reader,
            request,
            commits,
            start_ts: TimeStamp(request.start_version),
            for_update_ts: TimeStamp(request.for_update_ts),
            skips_constraints: skips,
            is_retry: context.is_some_and(|context| context.is_retry_request),
            txn_source: context.map_or(0, |context| context.txn_source),
        })
    }

    fn is_pessimistic(&self) -> bool {
        !self.for_update_ts.is_zero()
    }

    fn check_all(&self) -> Result<Outcome, TxnError> {
        let mut locked = Vec::new();
        let mut assertion = None;
        let mut locks = Vec::new();
        let mut dues = Dues::default();
        for (i, mutation) in self.request.mutations.iter().enumerate() {
            match self.mutation(i, mutation, &mut assertion) {
                Ok(Step::New(lock)) => locks.push(*lock),
                Ok(Step::Duplicate(lock)) => {
                    let waits = !lock.use_async_commit;
                    // A lock that is stored cannot become a record of this request any more.
                    dues.falls_back |= waits || self.commits == Commits::AtOnce;
                    dues.min_commit_ts = dues.min_commit_ts.max(lock.min_commit_ts);
                }
                Ok(Step::Checked) => {
                    let least = TimeStamp(self.request.min_commit_ts).max(self.start_ts.next());
                    dues.min_commit_ts = dues.min_commit_ts.max(least);
                }
                Err(error) => {
                    if self.may_be_late(&error)
                        && let TxnRecord::Committed { commit_ts } =
                            self.reader.txn_record(&key::encode(&mutation.key), self.start_ts)?
                    {
                        return Ok(Outcome::CommittedAt(commit_ts));
                    }
                    match error {
                        TxnError::KeyIsLocked(_) => locked.push(error),
                        error => return Err(error),
                    }
                }
            }
        }
        Ok(match (locked.is_empty(), assertion) {
            (false, _) => Outcome::Refused(locked),
            (true, Some(failed)) => Outcome::Refused(vec![failed]),
            (true, None) => Outcome::Locks(locks, dues),
        })
    }

    /// Whether the error may only say that the transaction has committed meanwhile.
    fn may_be_late(&self, error: &TxnError) -> bool {
        match error {
            TxnError::WriteConflict(conflict) => conflict.conflict_commit_ts > self.start_ts,
            TxnError::KeyIsLocked(_) | TxnError::PessimisticLockNotFound { .. } => true,
            _ => false,
        }
    }

    fn mutation(&self, at: usize, mutation: &kv::Mutation, assertion: &mut Option<TxnError>) -> Result<Step, TxnError> {
        let action = match self.is_pessimistic() {
            // Actions that are missing are those of old clients: nothing was locked before.
            true => self.request.pessimistic_actions.get(at).copied().unwrap_or_default(),
            false => PessimisticAction::SkipPessimisticCheck as i32,
        };
        let action = PessimisticAction::try_from(action).unwrap_or(PessimisticAction::SkipPessimisticCheck);
        let op = mutation.op();
        let kind = match op {
            kv::Op::Put | kv::Op::Insert => Some(LockKind::Put),
            kv::Op::Del => Some(LockKind::Delete),
            kv::Op::Lock => Some(LockKind::Lock),
            kv::Op::CheckNotExists if self.is_pessimistic() => {
                return Err(TxnError::Invalid("CheckNotExists is for optimistic transactions only".into()));
            }
            kv::Op::CheckNotExists => None,
            kv::Op::Rollback | kv::Op::PessimisticLock => {
                return Err(TxnError::Invalid(format!("{} cannot be prewritten", op.as_str_name())));
            }
        };
        let user_key = &mutation.key;
        let encoded = key::encode(user_key);
        let must_lock = self.is_pessimistic() && action == PessimisticAction::DoPessimisticCheck;
        let held = match self.reader.lock(&encoded)? {
            None if must_lock => {
                self.amend(user_key, &encoded)?;
                None
            }
            None => None,
            Some(lock) => match self.meet(at, user_key, lock, must_lock)? {
                Held::Prewritten(lock) => return Ok(Step::Duplicate(lock)),
                Held::Pessimistic(lock) => Some(lock),
            },
        };
        if held.is_none() && self.is_pessimistic() && action == PessimisticAction::SkipPessimisticCheck {
            self.check_ended(mutation, &encoded)?;
        }
        let skips = match (self.is_pessimistic(), action) {
            (false, _) => self.skips_constraints,
            (true, PessimisticAction::DoConstraintCheck) => false,
            (true, PessimisticAction::DoPessimisticCheck) => true,
            (true, PessimisticAction::SkipPessimisticCheck) => !self.is_retry,
        };
        let newest = if skips { None } else { Some(self.check_constraints(mutation, &encoded, action)?) };
        if let Some(failed) = self.check_assertion(mutation, &encoded, newest.as_ref().map(Option::as_ref))? {
            if skips {
                // Another transaction's commit is the better reason.
                self.check_constraints(mutation, &encoded, action)?;
            }
            assertion.get_or_insert(failed);
        }
        let Some(kind) = kind else { return Ok(Step::Checked) };
        let last_change = match (&held, &newest) {
            _ if kind != LockKind::Lock => LastChange::Unknown,
            (_, Some(newest)) => last_change_after(newest.as_ref()),
            (Some(held), None) => held.last_change,
            (None, None) => LastChange::Unknown,
        };
        Ok(Step::New(Box::new(self.lock(mutation, encoded, kind, held, last_change))))
    }

    fn meet(&self, at: usize, user_key: &Bytes, lock: Lock, must_lock: bool) -> Result<Held, TxnError> {
        let lost = || TxnError::PessimisticLockNotFound { start_ts: self.start_ts, key: user_key.clone() };
        if lock.start_ts != self.start_ts {
            if must_lock {
                return Err(lost());
            }
            let mut info = lock.info(user_key);
            if self.is_pessimistic() {
                // The lock can only be a left-over: the client resolves it without waiting for its time to live.
                info.lock_ttl = 0;
            }
            return Err(TxnError::KeyIsLocked(Box::new(info)));
        }
        if !lock.is_pessimistic() {
            return Ok(Held::Prewritten(lock));
        }
        if !self.is_pessimistic() {
            return Err(TxnError::LockTypeNotMatch {
                start_ts: self.start_ts,
                key: user_key.clone(),
                is_pessimistic: true,
            });
        }
        let expected = self.request.for_update_ts_constraints.iter().find(|one| one.index as usize == at);
        if expected.is_some_and(|one| one.expected_for_update_ts != lock.for_update_ts.0) {
            return Err(lost());
        }
        Ok(Held::Pessimistic(lock))
    }

    /// A pessimistic lock that was only in some leader's memory is gone. If nobody has written since, nothing was lost.
    fn amend(&self, user_key: &Bytes, encoded: &[u8]) -> Result<(), TxnError> {
        match self.reader.newest(encoded, TimeStamp::MAX)? {
            Some((commit_ts, _)) if commit_ts >= self.start_ts => {
                Err(TxnError::PessimisticLockNotFound { start_ts: self.start_ts, key: user_key.clone() })
            }
            _ => Ok(()),
        }
    }

    /// A key that was never locked says nothing of a request that is late. One that picks its commit timestamp would lock a
    /// key of a transaction that has ended, above its end, for good. Others are resolved like any left-over.
    fn check_ended(&self, mutation: &kv::Mutation, encoded: &[u8]) -> Result<(), TxnError> {
        if self.is_retry || self.commits == Commits::Later {
            return Ok(());
        }
        match self.reader.txn_record(encoded, self.start_ts)? {
            TxnRecord::None { .. } => Ok(()),
            TxnRecord::Committed { .. } => {
                Err(TxnError::PessimisticLockNotFound { start_ts: self.start_ts, key: mutation.key.clone() })
            }
            TxnRecord::RolledBack => Err(TxnError::WriteConflict(Box::new(Conflict {
                start_ts: self.start_ts,
                conflict_ts: self.start_ts,
                conflict_commit_ts: self.start_ts,
                key: mutation.key.clone(),
                primary: self.request.primary_lock.clone(),
                reason: Reason::SelfRolledBack,
            }))),
        }
    }

    /// The newest record, if the transaction may write over it.
    fn check_constraints(
        &self,
        mutation: &kv::Mutation,
        encoded: &[u8],
        action: PessimisticAction,
    ) -> Result<Option<(TimeStamp, WriteRecord)>, TxnError> {
        let mut versions = self.reader.versions(encoded)?;
        versions.seek(TimeStamp::MAX)?;
        while let Some((commit_ts, record)) = versions.next()? {
            let conflict = |reason| {
                TxnError::WriteConflict(Box::new(Conflict {
                    start_ts: self.start_ts,
                    conflict_ts: record.start_ts,
                    conflict_commit_ts: commit_ts,
                    key: mutation.key.clone(),
                    primary: self.request.primary_lock.clone(),
                    reason,
                }))
            };
            if record.rolls_back(commit_ts, self.start_ts) {
                return Err(conflict(Reason::SelfRolledBack));
            }
            if !self.is_pessimistic() {
                if commit_ts > self.start_ts {
                    return Err(conflict(Reason::Optimistic));
                }
            } else if action == PessimisticAction::DoConstraintCheck {
                if commit_ts > self.start_ts {
                    return Err(conflict(Reason::LazyUniquenessCheck));
                }
            } else if commit_ts > self.for_update_ts {
                if record.kind == WriteKind::Rollback {
                    continue;
                }
                return Err(TxnError::PessimisticLockNotFound { start_ts: self.start_ts, key: mutation.key.clone() });
            }
            if must_not_exist(mutation.op()) {
                let data = match record.kind.is_data() {
                    true => record.passes_fence(TimeStamp::MAX).then_some(record.kind),
                    false => versions.data(TimeStamp::MAX)?.map(|(_, record)| record.kind),
                };
                if data == Some(WriteKind::Put) {
                    return Err(TxnError::AlreadyExist { key: mutation.key.clone() });
                }
            }
            return Ok(Some((commit_ts, record)));
        }
        Ok(None)
    }

    /// The error of a claim that does not hold. `newest` is the newest record, if it was looked at.
    fn check_assertion(
        &self,
        mutation: &kv::Mutation,
        encoded: &[u8],
        newest: Option<Option<&(TimeStamp, WriteRecord)>>,
    ) -> Result<Option<TxnError>, ReadError> {
        let claim = mutation.assertion();
        let is_strict = match self.request.assertion_level() {
            kv::AssertionLevel::Off => return Ok(None),
            kv::AssertionLevel::Fast => false,
            kv::AssertionLevel::Strict => true,
        };
        if claim == kv::Assertion::None || (newest.is_none() && !is_strict) {
            return Ok(None);
        }
        let data = match newest {
            Some(None) => None,
            Some(Some(newest)) if newest.1.kind.is_data() => Some(newest.clone()),
            Some(Some(_)) | None => self.reader.data(encoded, TimeStamp::MAX)?,
        };
        let exists = data.as_ref().is_some_and(|(_, record)| record.kind == WriteKind::Put);
        if exists == (claim == kv::Assertion::Exist) {
            return Ok(None);
        }
        let (start_ts, commit_ts) = data.map_or_else(Default::default, |(ts, record)| (record.start_ts, ts));
        Ok(Some(TxnError::AssertionFailed {
            start_ts: self.start_ts,
            key: mutation.key.clone(),
            failed: FailedAssertion { assertion: claim, existing_start_ts: start_ts, existing_commit_ts: commit_ts },
        }))
    }

    fn lock(
        &self,
        mutation: &kv::Mutation,
        encoded: Bytes,
        kind: LockKind,
        held: Option<Lock>,
        last_change: LastChange,
    ) -> KeyLock {
        let request = self.request;
        let mut lock = Lock::new(kind, request.primary_lock.clone(), self.start_ts, request.lock_ttl);
        lock.for_update_ts = self.for_update_ts;
        lock.txn_size = request.txn_size;
        lock.min_commit_ts = TimeStamp(request.min_commit_ts);
        lock.txn_source = self.txn_source;
        lock.last_change = last_change;
        if let Some(held) = &held {
            lock.ttl_ms = lock.ttl_ms.max(held.ttl_ms);
            lock.min_commit_ts = lock.min_commit_ts.max(held.min_commit_ts);
            lock.for_update_ts = lock.for_update_ts.max(held.for_update_ts);
        }
        if self.commits == Commits::Async {
            lock.use_async_commit = true;
            if mutation.key == request.primary_lock {
                lock.secondaries = request.secondaries.clone();
            }
        }
        lock.is_one_pc = self.commits == Commits::AtOnce;
        let mut value = None;
        if kind == LockKind::Put {
            match mutation.value.len() <= SHORT_VALUE_BYTES_MAX {
                true => lock.short_value = Some(mutation.value.clone()),
                false => value = Some(mutation.value.clone()),
            }
        }
        KeyLock { encoded, lock, value, was_locked: held.is_some() }
    }
}

/// The transaction's own lock on a key.
enum Held {
    Prewritten(Lock),
    Pessimistic(Lock),
}

/// Whether no record at all is in the range of many mutations.
fn is_fresh_range<V: ReadView>(reader: &Reader<'_, V>, request: &kv::PrewriteRequest) -> Result<bool, ReadError> {
    if request.mutations.len() <= MUTATIONS_WORTH_A_LOOK {
        return Ok(false);
    }
    let keys = || request.mutations.iter().map(|mutation| &mutation.key);
    let (Some(first), Some(last)) = (keys().min(), keys().max()) else { return Ok(false) };
    let (first, last) = (key::encode(first), key::after(&key::encode(last)));
    let mut cursor = reader.view().cursor(Cf::Write, &first, &last)?;
    reader.count_seek();
    Ok(cursor.next_entry()?.is_none())
}

impl Prewritten {
    /// The changes and the answer. `max_ts` is the highest timestamp that anybody has read at: no commit of this
    /// transaction that is decided here comes to lie below. From now on readers must meet [`Plan::in_memory`].
    pub fn finish(self, max_ts: TimeStamp) -> Planned<kv::PrewriteResponse> {
        let Prewritten { outcome, start_ts, for_update_ts, max_commit_ts, commits } = self;
        let answer = kv::PrewriteResponse::default();
        let (mut locks, dues) = match outcome {
            Outcome::Refused(errors) => {
                let errors = errors.iter().map(TxnError::key_error).collect();
                return Planned { plan: Plan::default(), answer: kv::PrewriteResponse { errors, ..answer } };
            }
            Outcome::CommittedAt(commit_ts) => {
                let answer = match commits {
                    Commits::Later => answer,
                    Commits::Async => kv::PrewriteResponse { min_commit_ts: commit_ts.0, ..answer },
                    Commits::AtOnce => kv::PrewriteResponse { one_pc_commit_ts: commit_ts.0, ..answer },
                };
                return Planned { plan: Plan::default(), answer };
            }
            Outcome::Locks(locks, dues) => (locks, dues),
        };
        if commits == Commits::Later {
            return Planned { plan: store(locks), answer };
        }
        let least = max_ts.max(start_ts).max(for_update_ts).next();
        let raised = |key: &KeyLock| key.lock.min_commit_ts.max(least);
        let commit_ts = locks.iter().map(raised).fold(dues.min_commit_ts, TimeStamp::max);
        let is_too_late = !max_commit_ts.is_zero() && commit_ts > max_commit_ts;
        if dues.falls_back || is_too_late {
            for KeyLock { lock, .. } in &mut locks {
                lock.use_async_commit = false;
                lock.is_one_pc = false;
                lock.secondaries.clear();
            }
            return Planned { plan: store(locks), answer };
        }
        for key in &mut locks {
            key.lock.min_commit_ts = raised(key);
        }
        let in_memory = locks.iter().map(|key| (key.encoded.clone(), key.lock.clone())).collect();
        let (plan, answer) = match commits {
            Commits::AtOnce => {
                (commit_at_once(locks, commit_ts), kv::PrewriteResponse { one_pc_commit_ts: commit_ts.0, ..answer })
            }
            _ => (store(locks), kv::PrewriteResponse { min_commit_ts: commit_ts.0, ..answer }),
        };
        Planned { plan: Plan { in_memory, ..plan }, answer }
    }
}

fn store(locks: Vec<KeyLock>) -> Plan {
    let mut plan = Plan::default();
    for KeyLock { encoded, lock, value, .. } in locks {
        if let Some(value) = value {
            plan.put_value(&encoded, lock.start_ts, value);
        }
        plan.put_lock(&encoded, &lock);
    }
    plan
}

fn commit_at_once(locks: Vec<KeyLock>, commit_ts: TimeStamp) -> Plan {
    let mut plan = Plan::default();
    for KeyLock { encoded, lock, value, was_locked } in locks {
        let Some(kind) = lock.kind.committed() else { continue };
        if let Some(value) = value {
            plan.put_value(&encoded, lock.start_ts, value);
        }
        let mut record = WriteRecord::new(kind, lock.start_ts, lock.short_value);
        record.txn_source = lock.txn_source;
        record.last_change = lock.last_change;
        plan.put_record(&encoded, commit_ts, &record);
        if was_locked {
            plan.unlock(&encoded, lock.start_ts, commit_ts);
        }
    }
    plan
}
