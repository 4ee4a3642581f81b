//! Commands of transactions that write: their latches, their moment, their entry.

use std::sync::Arc;
use std::time::Duration;

use base::{Instant, RegionId};
use bytes::Bytes;
use executor::Class;
use mvcc::txn::command::{self, Prewritten};
use mvcc::txn::{Conflict, LockScan, Plan, Planned, Reader, TimeStamp, TxnError, Wait, Waiter, Whose, Woken, key};
use mvcc::{Cf, Modify};
use proto::kvrpcpb::write_conflict::Reason;
use proto::kvrpcpb::{self as kv, Context};

use super::{encode_all, reader};
use crate::core::RegionError;
use crate::engine::{Engine, RegionView};
use crate::service::raw::{Outcome, Refusal, Request, frees};
use crate::service::waits::{Edge, Place};

/// Locks that a command over a whole region takes up at once.
const LOCKS_AT_ONCE: usize = 256;

/// How long a request waits for a lock at most, and by default (`pessimistic-txn.wait-for-lock-timeout`).
const WAIT_MS_MAX: u64 = 1000;

/// How long a command looks at the data again because regions come to its core meanwhile.
const SYNC_LIMIT: Duration = Duration::from_secs(1);

/// What a command needs before it looks at anything.
struct Job {
    context: Context,
    /// The client's keys, to be latched.
    keys: Vec<Bytes>,
    /// What it reads at, for `max_ts`.
    reads_at: TimeStamp,
    /// It picks its commit timestamp.
    picks_ts: bool,
    /// If another transaction holds a key, it waits.
    waits: Option<WaitFor>,
}

/// How a request waits for a lock.
#[derive(Clone, Copy)]
struct WaitFor {
    start_ts: TimeStamp,
    allows_conflict: bool,
    until: Instant,
}

/// What came of a command.
enum Ran<A> {
    Done(A),
    /// It stands in the queue of a key that another transaction holds.
    Waits(Box<kv::LockInfo>, Place),
}

impl Job {
    /// One that reads below all others and takes no timestamp.
    fn new(context: Option<Context>, keys: Vec<Bytes>) -> Job {
        let context = context.unwrap_or_default();
        Job { context, keys, reads_at: TimeStamp::ZERO, picks_ts: false, waits: None }
    }

    /// One that brings a transaction to its end, or asks how it stands: it is let through while a disk is almost full, since
    /// what it leaves is less than what there was, and others wait for it.
    fn ending(context: Option<Context>, keys: Vec<Bytes>) -> Job {
        let mut job = Job::new(context, keys);
        if job.context.disk_full_opt() == kv::DiskFullOpt::NotAllowedOnFull {
            job.context.set_disk_full_opt(kv::DiskFullOpt::AllowedOnAlmostFull);
        }
        job
    }
}

impl<E: Engine> Request<E> {
    /// Runs a command to its end.
    async fn command<A: Send + 'static>(
        &mut self,
        job: Job,
        work: impl Fn(&Reader<'_, RegionView<E::Snapshot>>) -> Result<Planned<A>, TxnError> + Send + Sync + 'static,
    ) -> Outcome<A> {
        self.latched(job, work, |planned, _| planned).await?.done()
    }

    /// Latches the keys of `job`, has `work` look at the data, and carries out what `finish` makes of that and `max_ts`.
    ///
    /// In a task of its own: a client that hangs up must not free the latches between the look and the write.
    async fn latched<T: Send + 'static, A: 'static>(
        &mut self,
        job: Job,
        work: impl Fn(&Reader<'_, RegionView<E::Snapshot>>) -> Result<T, TxnError> + Send + Sync + 'static,
        finish: impl FnOnce(T, TimeStamp) -> Planned<A> + 'static,
    ) -> Outcome<Ran<A>> {
        self.check_txn(&job.context, &job.keys)?;
        let mut inner = Request::new(self.service.clone(), self.deadline, self.ledger);
        let (result, ledger) = executor::spawn_local(Class::Foreground, async move {
            let result = inner.run(job, work, finish).await;
            (result, inner.ledger)
        })
        .await;
        self.ledger = ledger;
        result
    }

    async fn run<T: Send + 'static, A>(
        &mut self,
        job: Job,
        work: impl Fn(&Reader<'_, RegionView<E::Snapshot>>) -> Result<T, TxnError> + Send + Sync + 'static,
        finish: impl FnOnce(T, TimeStamp) -> Planned<A>,
    ) -> Outcome<Ran<A>> {
        let Job { context, keys, reads_at, picks_ts, waits } = job;
        let service = self.service.clone();
        let (memory, host) = (&service.memory, &service.host);
        memory.allow(host, reads_at).await?;
        let encoded = encode_all(&keys);
        let _latched = service.latches.lock(encoded.iter().map(|key| &key[..])).await;
        let region = RegionId(context.region_id);
        let work = Arc::new(work);
        let begun = executor::now();
        let (read, looked) = loop {
            if picks_ts {
                memory.sync(host, region).await?;
            }
            let read = self.view_of_leader(&context).await?.1;
            memory.read_at(reads_at);
            self.check_inside(&read, &encoded)?;
            let work = work.clone();
            let look = move |view: &RegionView<E::Snapshot>| match work(&reader(view)) {
                Err(TxnError::Read(error)) => Err(error),
                looked => Ok(looked),
            };
            let looked = match (self.look(&read, |_| 0, look).await?, waits) {
                (Err(TxnError::KeyIsLocked(info)), Some(wait)) => return self.stand(info, wait),
                (looked, _) => looked?,
            };
            if !picks_ts || memory.is_synced(host) {
                break (read, looked);
            }
            // A region has come to this core meanwhile, perhaps this one.
            if executor::now().since(begun) > SYNC_LIMIT {
                return Err(RegionError::MaxTimestampNotSynced(region).into());
            }
        };
        let Planned { plan, answer } = finish(looked, memory.max_ts());
        let Plan { changes, in_memory, released } = plan;
        let _held = memory.hold(&in_memory);
        if !changes.is_empty() {
            let locked: Vec<Bytes> = changes.iter().filter_map(locked_key).collect();
            // Only while this peer has led without a break since it was read: others may have written otherwise.
            let shard = self.shard(&context)?;
            let done = shard.write_in(Some(read.term), &context, changes, true, self.deadline).await?;
            self.ledger.wrote(&done);
            locked.iter().for_each(|key| service.waits.locked(key));
            service.waits.released(&released);
        }
        Ok(Ran::Done(answer))
    }

    /// Takes a place in the queue of a key that another transaction holds.
    fn stand<A>(&self, info: Box<kv::LockInfo>, wait: WaitFor) -> Outcome<Ran<A>> {
        let WaitFor { start_ts, allows_conflict, until } = wait;
        let waiter = Waiter { start_ts, holder: TimeStamp(info.lock_version), allows_conflict, until };
        match self.service.waits.stand(&key::encode(&info.key), waiter) {
            Ok(place) => Ok(Ran::Waits(info, place)),
            Err(full) => Err(RegionError::ServerIsBusy { reason: full.to_string(), backoff_ms: 100 }.into()),
        }
    }

    pub(super) async fn kv_prewrite(&mut self, message: kv::PrewriteRequest) -> Outcome<kv::PrewriteResponse> {
        let keys = message.mutations.iter().map(|mutation| mutation.key.clone()).collect();
        let job = Job {
            reads_at: command::prewrite_reads_at(&message),
            picks_ts: message.use_async_commit || message.try_one_pc,
            ..Job::new(message.context.clone(), keys)
        };
        self.latched(
            job,
            move |reader| Ok(command::prewrite(reader, &message)?),
            |prewritten: Prewritten, max_ts| prewritten.finish(max_ts),
        )
        .await?
        .done()
    }

    pub(super) async fn kv_commit(&mut self, message: kv::CommitRequest) -> Outcome<kv::CommitResponse> {
        let job = Job::ending(message.context.clone(), message.keys.clone());
        self.command(job, move |reader| command::commit(reader, &message)).await
    }

    pub(super) async fn kv_cleanup(&mut self, message: kv::CleanupRequest) -> Outcome<kv::CleanupResponse> {
        // It may leave a protected rollback, on which no commit that is picked later may fall.
        let reads_at = TimeStamp(message.start_version);
        let job = Job { reads_at, ..Job::ending(message.context.clone(), vec![message.key.clone()]) };
        self.command(job, move |reader| command::cleanup(reader, &message)).await
    }

    pub(super) async fn kv_batch_rollback(
        &mut self,
        message: kv::BatchRollbackRequest,
    ) -> Outcome<kv::BatchRollbackResponse> {
        let job = Job::ending(message.context.clone(), message.keys.clone());
        self.command(job, move |reader| command::batch_rollback(reader, &message)).await
    }

    pub(super) async fn kv_heart_beat(
        &mut self,
        message: kv::TxnHeartBeatRequest,
    ) -> Outcome<kv::TxnHeartBeatResponse> {
        let job = Job::ending(message.context.clone(), vec![message.primary_lock.clone()]);
        self.command(job, move |reader| command::heart_beat(reader, &message)).await
    }

    pub(super) async fn kv_check_txn_status(
        &mut self,
        message: kv::CheckTxnStatusRequest,
    ) -> Outcome<kv::CheckTxnStatusResponse> {
        let reads_at = command::check_txn_status_reads_at(&message);
        let job = Job { reads_at, ..Job::ending(message.context.clone(), vec![message.primary_key.clone()]) };
        self.command(job, move |reader| command::check_txn_status(reader, &message)).await
    }

    pub(super) async fn kv_check_secondary_locks(
        &mut self,
        message: kv::CheckSecondaryLocksRequest,
    ) -> Outcome<kv::CheckSecondaryLocksResponse> {
        let reads_at = TimeStamp(message.start_version);
        let job = Job { reads_at, ..Job::ending(message.context.clone(), message.keys.clone()) };
        self.command(job, move |reader| command::check_secondary_locks(reader, &message)).await
    }

    pub(super) async fn kv_resolve_lock(
        &mut self,
        message: kv::ResolveLockRequest,
    ) -> Outcome<kv::ResolveLockResponse> {
        if !message.keys.is_empty() {
            let job = Job::ending(message.context.clone(), message.keys.clone());
            return self.command(job, move |reader| command::resolve_keys(reader, &message)).await;
        }
        let decisions = command::decisions(&message)?;
        let whose = Whose::Of(decisions.keys().copied().collect());
        self.over_region(message.context.clone(), whose, move |reader, keys| {
            command::resolve_found(reader, &decisions, keys)
        })
        .await?;
        Ok(kv::ResolveLockResponse::default())
    }

    /// Locks keys. Where another transaction holds one, the request waits for a while, unless that would be for ever.
    pub(super) async fn kv_pessimistic_lock(
        &mut self,
        message: kv::PessimisticLockRequest,
    ) -> Outcome<kv::PessimisticLockResponse> {
        let allows_conflict = message.wake_up_mode() == kv::PessimisticLockWakeUpMode::WakeUpModeForceLock;
        match self.lock_or_wait(&message, allows_conflict).await {
            Err(Refusal::Key(error)) if allows_conflict => {
                let mut failed = kv::PessimisticLockKeyResult::default();
                failed.set_type(kv::PessimisticLockKeyResultType::LockResultFailed);
                Ok(kv::PessimisticLockResponse { errors: vec![*error], results: vec![failed], ..Default::default() })
            }
            outcome => outcome,
        }
    }

    async fn lock_or_wait(
        &mut self,
        message: &kv::PessimisticLockRequest,
        allows_conflict: bool,
    ) -> Outcome<kv::PessimisticLockResponse> {
        let context = message.context.clone().unwrap_or_default();
        let start_ts = TimeStamp(message.start_version);
        let until = wait_until(message.wait_timeout, self.deadline);
        loop {
            let keys = message.mutations.iter().map(|mutation| mutation.key.clone()).collect();
            let job = Job {
                reads_at: command::pessimistic_lock_reads_at(message),
                waits: until.map(|until| WaitFor { start_ts, allows_conflict, until }),
                ..Job::new(message.context.clone(), keys)
            };
            let request = message.clone();
            let ran = self
                .latched(job, move |reader| command::pessimistic_lock(reader, &request), |planned, _| planned)
                .await?;
            let (info, place) = match ran {
                Ran::Done(answer) => return Ok(answer),
                Ran::Waits(info, place) => (info, place),
            };
            let wait = Wait {
                txn: start_ts,
                holder: TimeStamp(info.lock_version),
                key: info.key.clone(),
                tag: context.resource_group_tag.clone(),
            };
            // The first lock of a transaction cannot close a circle: nobody waits for one that holds nothing.
            let host = self.service.host.clone();
            let _edge = if message.is_first_lock { None } else { Some(Edge::note(&host, wait).await?) };
            match place.wait().await {
                Woken::Retry => {}
                Woken::TimedOut => return Err(TxnError::KeyIsLocked(info).into()),
                Woken::Released { start_ts: conflict_ts, commit_ts } => {
                    return Err(TxnError::WriteConflict(Box::new(Conflict {
                        start_ts,
                        conflict_ts,
                        conflict_commit_ts: commit_ts,
                        key: info.key.clone(),
                        primary: message.primary_lock.clone(),
                        reason: Reason::PessimisticRetry,
                    }))
                    .into());
                }
            }
        }
    }

    pub(super) async fn kv_pessimistic_rollback(
        &mut self,
        message: kv::PessimisticRollbackRequest,
    ) -> Outcome<kv::PessimisticRollbackResponse> {
        if !message.keys.is_empty() {
            let job = Job::ending(message.context.clone(), message.keys.clone());
            return self.command(job, move |reader| command::pessimistic_rollback(reader, &message)).await;
        }
        let whose = Whose::PessimisticOf(TimeStamp(message.start_version));
        self.over_region(message.context.clone(), whose, move |reader, keys| {
            let part = kv::PessimisticRollbackRequest { keys: keys.to_vec(), ..message.clone() };
            Ok(command::pessimistic_rollback(reader, &part)?.plan)
        })
        .await?;
        Ok(kv::PessimisticRollbackResponse::default())
    }

    /// Looks for locks over the whole region, some at a time, and runs a command on each part.
    async fn over_region(
        &mut self,
        context: Option<Context>,
        whose: Whose,
        work: impl Fn(&Reader<'_, RegionView<E::Snapshot>>, &[Bytes]) -> Result<Plan, TxnError>
        + Send
        + Sync
        + Clone
        + 'static,
    ) -> Outcome<()> {
        let context = context.unwrap_or_default();
        self.check_txn(&context, [])?;
        let mut from = Bytes::new();
        loop {
            let read = self.view_of_leader(&context).await?.1;
            let (start, end) = (&read.region.start_key, &read.region.end_key);
            let scan = LockScan::new(whose.clone(), &from, b"", start, end, LOCKS_AT_ONCE);
            let found = self.walk(&read, scan, 0).await?.drain();
            drop(read);
            let keys: Vec<Bytes> = found.into_iter().map(|(key, _)| key).collect();
            let Some(last) = keys.last().cloned() else { return Ok(()) };
            let is_last = keys.len() < LOCKS_AT_ONCE;
            let (part, work) = (keys.clone(), work.clone());
            self.command(Job::ending(Some(context.clone()), keys), move |reader| {
                Ok(Planned { plan: work(reader, &part)?, answer: () })
            })
            .await?;
            if is_last {
                return Ok(());
            }
            from = [&last[..], &[0]].concat().into();
        }
    }

    pub(super) async fn kv_delete_range(
        &mut self,
        message: kv::DeleteRangeRequest,
    ) -> Outcome<kv::DeleteRangeResponse> {
        let context = frees(message.context.clone());
        self.check_txn(&context, [&message.start_key, &message.end_key])?;
        let changes = command::delete_range(&message);
        if changes.is_empty() {
            self.view_of_leader(&context).await?;
            return Ok(kv::DeleteRangeResponse::default());
        }
        let done = self.shard(&context)?.write(&context, changes, true, self.deadline).await?;
        self.ledger.wrote(&done);
        Ok(kv::DeleteRangeResponse::default())
    }
}

impl<A> Ran<A> {
    /// The answer of a command that does not wait.
    fn done(self) -> Outcome<A> {
        match self {
            Ran::Done(answer) => Ok(answer),
            Ran::Waits(info, _) => Err(TxnError::KeyIsLocked(info).into()),
        }
    }
}

/// When a request with this `wait_timeout` gives up; `None`: it does not wait at all.
fn wait_until(wait_timeout: i64, deadline: Option<Instant>) -> Option<Instant> {
    let millis = match wait_timeout {
        0 => WAIT_MS_MAX,
        some => u64::try_from(some).ok()?.min(WAIT_MS_MAX),
    };
    let until = executor::now() + Duration::from_millis(millis);
    Some(deadline.map_or(until, |deadline| until.min(deadline)))
}

/// The key that a change locks.
fn locked_key(change: &Modify) -> Option<Bytes> {
    match change {
        Modify::Put { cf: Cf::Lock, key, .. } => Some(key.clone()),
        _ => None,
    }
}
