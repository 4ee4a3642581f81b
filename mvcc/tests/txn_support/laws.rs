//! What holds of answers and stored data whatever came before, written down once more and as plainly as can be.

use bytes::Bytes;
use mvcc::txn::{Lock, LockKind, Plan, ReadOptions, Reader, TimeStamp, TxnRecord, command, key};
use mvcc::{Cf, Modify};
use proto::kvrpcpb as kv;

use crate::txn_support::Region;

fn lock_of(region: &Region, user_key: &Bytes) -> Option<Lock> {
    let view = region.view();
    Reader::new(&view).lock(&key::encode(user_key)).expect("readable")
}

/// Whether a read of `user_key` may answer although the lock that is stored there is (`compat/6-transactions.md`, 6.1,
/// step 4).
pub(crate) fn may_answer(region: &Region, user_key: &Bytes, options: &ReadOptions) -> bool {
    let Some(lock) = lock_of(region, user_key) else { return true };
    let writes_data = lock.kind == LockKind::Put || lock.kind == LockKind::Delete;
    let commits_later = lock.start_ts > options.ts || lock.min_commit_ts > options.ts;
    let is_known =
        [&options.resolved_locks, &options.committed_locks].iter().any(|them| them.contains(&lock.start_ts.0));
    let may_still_choose = lock.primary == *user_key && !lock.use_async_commit && !lock.is_one_pc;
    !writes_data || commits_later || is_known || (options.ts.is_max() && may_still_choose)
}

/// What the answer to a prewrite says of the commit goes for every key of the request (6.3, steps 3 g and h).
///
/// # Panics
/// With `what`, if it does not.
pub(crate) fn check_promise(
    region: &Region,
    request: &kv::PrewriteRequest,
    plan: &Plan,
    answer: &kv::PrewriteResponse,
    what: &str,
) {
    let promised = answer.min_commit_ts.max(answer.one_pc_commit_ts);
    if promised == 0 {
        for change in &plan.changes {
            if let Modify::Put { cf: Cf::Lock, value, .. } = change {
                let lock = Lock::decode(value).expect("a lock");
                assert!(!lock.use_async_commit && !lock.is_one_pc, "{what}: it falls back, but for {lock:?}");
            }
        }
        return;
    }
    let bound = request.max_commit_ts;
    assert!(bound == 0 || promised <= bound, "{what}: {promised} is promised, {bound} is the bound");
    for mutation in &request.mutations {
        let lock = lock_of(region, &mutation.key).filter(|lock| lock.start_ts.0 == request.start_version);
        let Some(lock) = lock else { continue };
        assert_eq!(answer.one_pc_commit_ts, 0, "{what}: it has committed in one phase, but for {lock:?}");
        assert!(lock.use_async_commit, "{what}: it commits by its locks, but {lock:?} waits for a commit");
        assert!(lock.min_commit_ts.0 <= promised, "{what}: {promised} is promised below {lock:?}");
    }
}

/// Whether the primary says for ever that the transaction was rolled back (6.17, rule 2).
pub(crate) fn is_rolled_back(region: &Region, primary: &Bytes, start_ts: u64) -> bool {
    let view = region.view();
    let record = Reader::new(&view).txn_record(&key::encode(primary), TimeStamp(start_ts));
    record.expect("readable") == TxnRecord::RolledBack
}

/// Transactions whose long value on `user_key` belongs to neither a lock nor a commit: nothing will ever remove it.
pub(crate) fn left_over_values(region: &Region, user_key: &Bytes) -> Vec<u64> {
    let view = region.view();
    let info = command::mvcc_by_key(&Reader::new(&view), user_key).expect("readable");
    let has_owner = |start_ts: u64| {
        let lock = info.lock.as_ref();
        lock.is_some_and(|lock| {
            lock.r#type() == kv::Op::Put && lock.start_ts == start_ts && lock.short_value.is_empty()
        }) || info
            .writes
            .iter()
            .any(|write| write.r#type() == kv::Op::Put && write.start_ts == start_ts && write.short_value.is_empty())
    };
    info.values.iter().map(|value| value.start_ts).filter(|start_ts| !has_owner(*start_ts)).collect()
}
