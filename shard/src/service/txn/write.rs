//! Commands of transactions that write: their latches, their moment, their entry.

use base::RegionId;
use bytes::Bytes;
use executor::Class;
use mvcc::txn::command::{self, Prewritten};
use mvcc::txn::{LockScan, Plan, Planned, Reader, TimeStamp, TxnError, Whose};
use proto::kvrpcpb::{self as kv, Context};

use super::{encode_all, reader};
use crate::core::RegionError;
use crate::engine::{Engine, RegionView};
use crate::service::raw::{Outcome, Refusal, Request};

/// Locks that a command over a whole region takes up at once.
const LOCKS_AT_ONCE: usize = 256;

/// What a command needs before it looks at anything.
struct Job {
    context: Context,
    /// The client's keys, to be latched.
    keys: Vec<Bytes>,
    /// What it reads at, for `max_ts`.
    reads_at: TimeStamp,
    /// It picks its commit timestamp.
    picks_ts: bool,
}

impl Job {
    fn new(context: &Context, keys: Vec<Bytes>) -> Job {
        Job { context: context.clone(), keys, reads_at: TimeStamp::ZERO, picks_ts: false }
    }
}

impl<E: Engine> Request<E> {
    /// Runs a command to its end.
    async fn command<A: Send + 'static>(
        &mut self,
        job: Job,
        work: impl Fn(&Reader<'_, RegionView<E::Snapshot>>) -> Result<Planned<A>, TxnError> + Send + Sync + 'static,
    ) -> Outcome<A> {
        self.latched(job, work, |planned, _| planned).await
    }

    /// Latches the keys of `job`, has `work` look at the data, and carries out what `finish` makes of that and `max_ts`.
    ///
    /// In a task of its own: a client that hangs up must not free the latches between the look and the write.
    async fn latched<T: Send + 'static, A: 'static>(
        &mut self,
        job: Job,
        work: impl Fn(&Reader<'_, RegionView<E::Snapshot>>) -> Result<T, TxnError> + Send + Sync + 'static,
        finish: impl FnOnce(T, TimeStamp) -> Planned<A> + 'static,
    ) -> Outcome<A> {
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
    ) -> Outcome<A> {
        let Job { context, keys, reads_at, picks_ts } = job;
        let service = self.service.clone();
        let (memory, host) = (&service.memory, &service.host);
        memory.allow(host, reads_at).await?;
        let encoded = encode_all(&keys);
        let _latched = service.latches.lock(encoded.iter().map(|key| &key[..])).await;
        let region = RegionId(context.region_id);
        if picks_ts {
            memory.sync(host, region).await?;
        }
        let read = self.view_of_leader(&context).await?.1;
        memory.read_at(reads_at);
        self.check_inside(&read, &encoded)?;
        let look = move |view: &RegionView<E::Snapshot>| match work(&reader(view)) {
            Err(TxnError::Read(error)) => Err(error),
            looked => Ok(looked),
        };
        let looked = self.look(&read, |_| 0, look).await??;
        if picks_ts && !memory.is_synced(host) {
            // A region has come to this core meanwhile, perhaps this one.
            return Err(RegionError::MaxTimestampNotSynced(region).into());
        }
        let Planned { plan, answer } = finish(looked, memory.max_ts());
        let Plan { changes, in_memory, .. } = plan;
        let _held = memory.hold(&in_memory);
        if !changes.is_empty() {
            // Only while this peer has led without a break since it was read: others may have written otherwise.
            let shard = self.shard(&context)?;
            let done = shard.write_in(Some(read.term), &context, changes, true, self.deadline).await?;
            self.ledger.wrote(&done);
        }
        Ok(answer)
    }

    pub(super) async fn kv_prewrite(&mut self, message: kv::PrewriteRequest) -> Outcome<kv::PrewriteResponse> {
        let context = message.context.clone().unwrap_or_default();
        let keys = message.mutations.iter().map(|mutation| mutation.key.clone()).collect();
        let job = Job {
            reads_at: command::prewrite_reads_at(&message),
            picks_ts: message.use_async_commit || message.try_one_pc,
            ..Job::new(&context, keys)
        };
        self.latched(
            job,
            move |reader| Ok(command::prewrite(reader, &message)?),
            |prewritten: Prewritten, max_ts| prewritten.finish(max_ts),
        )
        .await
    }

    pub(super) async fn kv_commit(&mut self, message: kv::CommitRequest) -> Outcome<kv::CommitResponse> {
        let context = message.context.clone().unwrap_or_default();
        let job = Job::new(&context, message.keys.clone());
        self.command(job, move |reader| command::commit(reader, &message)).await
    }

    pub(super) async fn kv_cleanup(&mut self, message: kv::CleanupRequest) -> Outcome<kv::CleanupResponse> {
        let context = message.context.clone().unwrap_or_default();
        let job = Job::new(&context, vec![message.key.clone()]);
        self.command(job, move |reader| command::cleanup(reader, &message)).await
    }

    pub(super) async fn kv_batch_rollback(
        &mut self,
        message: kv::BatchRollbackRequest,
    ) -> Outcome<kv::BatchRollbackResponse> {
        let context = message.context.clone().unwrap_or_default();
        let job = Job::new(&context, message.keys.clone());
        self.command(job, move |reader| command::batch_rollback(reader, &message)).await
    }

    pub(super) async fn kv_heart_beat(
        &mut self,
        message: kv::TxnHeartBeatRequest,
    ) -> Outcome<kv::TxnHeartBeatResponse> {
        let context = message.context.clone().unwrap_or_default();
        let job = Job::new(&context, vec![message.primary_lock.clone()]);
        self.command(job, move |reader| command::heart_beat(reader, &message)).await
    }

    pub(super) async fn kv_check_txn_status(
        &mut self,
        message: kv::CheckTxnStatusRequest,
    ) -> Outcome<kv::CheckTxnStatusResponse> {
        let context = message.context.clone().unwrap_or_default();
        let reads_at = command::check_txn_status_reads_at(&message);
        let job = Job { reads_at, ..Job::new(&context, vec![message.primary_key.clone()]) };
        self.command(job, move |reader| command::check_txn_status(reader, &message)).await
    }

    pub(super) async fn kv_check_secondary_locks(
        &mut self,
        message: kv::CheckSecondaryLocksRequest,
    ) -> Outcome<kv::CheckSecondaryLocksResponse> {
        let context = message.context.clone().unwrap_or_default();
        let reads_at = TimeStamp(message.start_version);
        let job = Job { reads_at, ..Job::new(&context, message.keys.clone()) };
        self.command(job, move |reader| command::check_secondary_locks(reader, &message)).await
    }

    pub(super) async fn kv_resolve_lock(
        &mut self,
        message: kv::ResolveLockRequest,
    ) -> Outcome<kv::ResolveLockResponse> {
        let context = message.context.clone().unwrap_or_default();
        if !message.keys.is_empty() {
            let job = Job::new(&context, message.keys.clone());
            return self.command(job, move |reader| command::resolve_keys(reader, &message)).await;
        }
        let decisions = command::decisions(&message)?;
        let whose = Whose::Of(decisions.keys().copied().collect());
        self.over_region(&context, whose, move |reader, keys| command::resolve_found(reader, &decisions, keys)).await?;
        Ok(kv::ResolveLockResponse::default())
    }

    /// Locks keys, or says at once who holds one: a client that may wait comes again.
    pub(super) async fn kv_pessimistic_lock(
        &mut self,
        message: kv::PessimisticLockRequest,
    ) -> Outcome<kv::PessimisticLockResponse> {
        let context = message.context.clone().unwrap_or_default();
        let keys = message.mutations.iter().map(|mutation| mutation.key.clone()).collect();
        let reads_at = command::pessimistic_lock_reads_at(&message);
        let allows_conflict = message.wake_up_mode() == kv::PessimisticLockWakeUpMode::WakeUpModeForceLock;
        let job = Job { reads_at, ..Job::new(&context, keys) };
        match self.command(job, move |reader| command::pessimistic_lock(reader, &message)).await {
            Err(Refusal::Key(error)) if allows_conflict => {
                let mut failed = kv::PessimisticLockKeyResult::default();
                failed.set_type(kv::PessimisticLockKeyResultType::LockResultFailed);
                Ok(kv::PessimisticLockResponse { errors: vec![*error], results: vec![failed], ..Default::default() })
            }
            outcome => outcome,
        }
    }

    pub(super) async fn kv_pessimistic_rollback(
        &mut self,
        message: kv::PessimisticRollbackRequest,
    ) -> Outcome<kv::PessimisticRollbackResponse> {
        let context = message.context.clone().unwrap_or_default();
        if !message.keys.is_empty() {
            let job = Job::new(&context, message.keys.clone());
            return self.command(job, move |reader| command::pessimistic_rollback(reader, &message)).await;
        }
        let whose = Whose::PessimisticOf(TimeStamp(message.start_version));
        self.over_region(&context, whose, move |reader, keys| {
            let part = kv::PessimisticRollbackRequest { keys: keys.to_vec(), ..message.clone() };
            Ok(command::pessimistic_rollback(reader, &part)?.plan)
        })
        .await?;
        Ok(kv::PessimisticRollbackResponse::default())
    }

    /// Looks for locks over the whole region, some at a time, and runs a command on each part.
    async fn over_region(
        &mut self,
        context: &Context,
        whose: Whose,
        work: impl Fn(&Reader<'_, RegionView<E::Snapshot>>, &[Bytes]) -> Result<Plan, TxnError>
        + Send
        + Sync
        + Clone
        + 'static,
    ) -> Outcome<()> {
        self.check_txn(context, [])?;
        let mut from = Bytes::new();
        loop {
            let read = self.view_of_leader(context).await?.1;
            let (start, end) = (&read.region.start_key, &read.region.end_key);
            let scan = LockScan::new(whose.clone(), &from, b"", start, end, LOCKS_AT_ONCE);
            let found = self.walk(&read, scan, 0).await?.drain();
            drop(read);
            let keys: Vec<Bytes> = found.into_iter().map(|(key, _)| key).collect();
            let Some(last) = keys.last().cloned() else { return Ok(()) };
            let is_last = keys.len() < LOCKS_AT_ONCE;
            let (part, work) = (keys.clone(), work.clone());
            self.command(Job::new(context, keys), move |reader| Ok(Planned { plan: work(reader, &part)?, answer: () }))
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
        let context = message.context.clone().unwrap_or_default();
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
