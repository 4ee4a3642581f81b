//! The transactional commands at the core of their region. What they mean is in `mvcc`; here they get their latches,
//! their view and their place in the log.
//!
//! ```text
//!  latches ─▶ lease, max_ts, snapshot ─▶ command ─▶ locks into memory ─▶ one raft entry ─▶ applied ─▶ answer
//!                  (one moment)        (perhaps on      (one moment,
//!                                       a helper)        nothing read)
//! ```

mod answers;
mod read;
mod write;

use base::RegionId;
use bytes::Bytes;
use mvcc::txn::{Reader, TimeStamp, TxnError, key};
use proto::kvrpcpb::{self as kv, Context};
use proto::shallow::tag;

use super::command as own;
use super::raw::{self, Outcome, Refusal, Request};
use crate::core::{Answered, ApiMode, RegionError, RegionRead};
use crate::engine::{Engine, EngineSnapshot, RegionView, Tier};

/// Longest key in its encoded form (`storage.max-key-size` of TiKV).
const KEY_BYTES_MAX: usize = 8 << 10;

/// Entries that a command looks at on the core.
const STEPS_ON_CORE: u64 = 2048;

/// Serves one encoded request on this core.
pub(super) async fn execute<E: Engine>(mut request: Request<E>, number: u32, body: Bytes) -> Answered {
    let r = &mut request;
    match number {
        tag::GET => r.serve(number, body, async |r, m: kv::GetRequest| r.kv_get(m).await).await,
        tag::BATCH_GET => r.serve(number, body, async |r, m| r.kv_batch_get(m).await).await,
        tag::SCAN => r.serve(number, body, async |r, m| r.kv_scan(m).await).await,
        tag::SCAN_LOCK => r.serve(number, body, async |r, m| r.kv_scan_lock(m).await).await,
        tag::PREWRITE => r.serve(number, body, async |r, m| r.kv_prewrite(m).await).await,
        tag::COMMIT => r.serve(number, body, async |r, m| r.kv_commit(m).await).await,
        tag::CLEANUP => r.serve(number, body, async |r, m| r.kv_cleanup(m).await).await,
        tag::BATCH_ROLLBACK => r.serve(number, body, async |r, m| r.kv_batch_rollback(m).await).await,
        tag::RESOLVE_LOCK => r.serve(number, body, async |r, m| r.kv_resolve_lock(m).await).await,
        tag::CHECK_TXN_STATUS => r.serve(number, body, async |r, m| r.kv_check_txn_status(m).await).await,
        tag::TXN_HEART_BEAT => r.serve(number, body, async |r, m| r.kv_heart_beat(m).await).await,
        tag::CHECK_SECONDARY_LOCKS => r.serve(number, body, async |r, m| r.kv_check_secondary_locks(m).await).await,
        tag::PESSIMISTIC_LOCK => r.serve(number, body, async |r, m| r.kv_pessimistic_lock(m).await).await,
        tag::PESSIMISTIC_ROLLBACK => r.serve(number, body, async |r, m| r.kv_pessimistic_rollback(m).await).await,
        tag::DELETE_RANGE => r.serve(number, body, async |r, m| r.kv_delete_range(m).await).await,
        own::MVCC_GET_BY_KEY => r.serve(number, body, async |r, m| r.mvcc_get_by_key(m).await).await,
        own::MVCC_GET_BY_START_TS => r.serve(number, body, async |r, m| r.mvcc_get_by_start_ts(m).await).await,
        _ => raw::execute(request, number, body).await,
    }
}

impl From<TxnError> for Refusal {
    fn from(error: TxnError) -> Self {
        Refusal::Key(Box::new(error.key_error()))
    }
}

impl<E: Engine> Request<E> {
    /// The checks of `compat/4-store.md` 4.2 and 4.5: API version, the mode byte of every key, its length.
    fn check_txn<'a>(&self, context: &Context, keys: impl IntoIterator<Item = &'a Bytes>) -> Outcome<()> {
        let storage = self.storage_version();
        let asked = kv::ApiVersion::try_from(context.api_version).ok();
        let modes: &[u8] = match (self.service.host.node.api, asked) {
            (ApiMode::V1, Some(kv::ApiVersion::V1)) => &[],
            (ApiMode::V2, Some(kv::ApiVersion::V2)) => b"x",
            (ApiMode::V2, Some(kv::ApiVersion::V1)) => b"mt",
            _ => {
                let asked = asked.map_or("unknown", |version| version.as_str_name());
                return Err(Refusal::Request(format!(
                    "ApiVersionNotMatched: storage_api_version: {storage}, req_api_version: {asked}"
                )));
            }
        };
        for key in keys {
            if !modes.is_empty() && !key.first().is_some_and(|mode| modes.contains(mode)) {
                let key = crate::core::hex(key);
                return Err(Refusal::Request(format!(
                    "InvalidKeyMode: command: txn, storage_api_version: {storage}, key: {key}"
                )));
            }
            let size = base::codec::memcomparable_len(key.len());
            if size > KEY_BYTES_MAX {
                return Err(Refusal::Request(format!("max key size exceeded, size: {size}, limit: {KEY_BYTES_MAX}")));
            }
        }
        Ok(())
    }

    /// A range of API V2 must lie within one mode byte.
    fn check_txn_range(&self, context: &Context, start: &Bytes, end: &Bytes) -> Outcome<()> {
        self.check_txn(context, [])?;
        if self.service.host.node.api != ApiMode::V2 {
            return Ok(());
        }
        let modes: &[u8] = if context.api_version == kv::ApiVersion::V2 as i32 { b"x" } else { b"mt" };
        let is_inside = modes.iter().any(|mode| {
            start.first() == Some(mode) && (end.first() == Some(mode) || end[..] == [mode.saturating_add(1)])
        });
        if is_inside {
            return Ok(());
        }
        let (start, end) = (crate::core::hex(start), crate::core::hex(end));
        Err(Refusal::Request(format!("InvalidKeyRangeMode: command: txn, range: ({start}, {end})")))
    }

    /// Whether keys are in the region that was read; the epoch has said so already.
    fn check_inside<'a>(&self, read: &RegionRead<E>, encoded: impl IntoIterator<Item = &'a Bytes>) -> Outcome<()> {
        for key in encoded {
            if !base::keys::contains(&read.region.start_key, &read.region.end_key, key) {
                let (key, region) = (key.to_vec(), Box::new((*read.region).clone()));
                return Err(RegionError::KeyNotInRegion { key, region }.into());
            }
        }
        Ok(())
    }

    /// A view for a read at `ts`. From this moment on no transaction commits below `ts` of its own choice; the caller
    /// looks at the locks in memory before it awaits anything.
    async fn view_at(&mut self, context: &Context, ts: TimeStamp) -> Outcome<RegionRead<E>> {
        let service = self.service.clone();
        service.memory.allow(&service.host, ts).await?;
        let read = match context.stale_read {
            // A leader reads what is newest, others refuse: clients come back to the leader.
            true => self.shard(context)?.read_at_any_peer(context).await?,
            // Followers would have to ask the leader at this timestamp: clients come to the leader.
            false => self.view_of_leader(context).await?.1,
        };
        service.memory.read_at(ts);
        Ok(read)
    }

    fn note_found(&mut self, context: &Context, keys: u64, bytes: u64) {
        self.ledger.keys += keys;
        self.ledger.bytes += bytes;
        if let Ok(shard) = self.service.host.local(RegionId(context.region_id)) {
            shard.note_read(RegionId(context.region_id), keys, bytes);
        }
    }
}

/// A reader that does not hold the core for long: what takes many steps goes on on a helper, as what is not in memory does.
fn reader<S: EngineSnapshot>(view: &RegionView<S>) -> Reader<'_, RegionView<S>> {
    match view.tier() {
        Tier::Cache => Reader::limited(view, STEPS_ON_CORE),
        Tier::Disk => Reader::new(view),
    }
}

fn encode_all<'a>(keys: impl IntoIterator<Item = &'a Bytes>) -> Vec<Bytes> {
    keys.into_iter().map(|user_key| key::encode(user_key)).collect()
}
