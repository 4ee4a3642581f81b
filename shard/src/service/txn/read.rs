//! Reads of transactions, and of what is stored of them.

use bytes::Bytes;
use mvcc::ReadError;
use mvcc::txn::command::{StartTsSearch, mvcc_by_key};
use mvcc::txn::{self, LockScan, ReadOptions, Scan, ScanRequest, TimeStamp, TxnError, Whose};
use proto::kvrpcpb as kv;

use super::answers::pair;
use super::{encode_all, reader};
use crate::core::RegionRead;
use crate::engine::{Engine, RegionView};
use crate::service::raw::{Outcome, Request, check_answer};
use crate::service::walk::TxnWalk;

/// A key's value, or why it cannot be read.
type Found = Result<Option<Bytes>, TxnError>;

impl<E: Engine> Request<E> {
    pub(super) async fn kv_get(&mut self, message: kv::GetRequest) -> Outcome<kv::GetResponse> {
        let context = message.context.unwrap_or_default();
        let key = message.key;
        self.check_txn(&context, [&key])?;
        let options = ReadOptions::of(&context, message.version);
        let read = self.view_at(&context, options.ts).await?;
        self.service.memory.check(&key, &options)?;
        self.check_inside(&read, &encode_all([&key]))?;
        let work = move |view: &RegionView<E::Snapshot>| one(txn::get(&reader(view), &key, &options));
        let found = self.look(&read, value_bytes, work).await??;
        Ok(match found {
            Some(value) => {
                self.note_found(&context, 1, value.len() as u64);
                kv::GetResponse { value, ..Default::default() }
            }
            None => kv::GetResponse { not_found: true, ..Default::default() },
        })
    }

    pub(super) async fn kv_batch_get(&mut self, message: kv::BatchGetRequest) -> Outcome<kv::BatchGetResponse> {
        let context = message.context.unwrap_or_default();
        let keys = message.keys;
        self.check_txn(&context, &keys)?;
        let options = ReadOptions::of(&context, message.version);
        let read = self.view_at(&context, options.ts).await?;
        let open: Vec<Result<(), TxnError>> = keys.iter().map(|key| self.service.memory.check(key, &options)).collect();
        self.check_inside(&read, &encode_all(&keys))?;
        let names = keys.clone();
        let work = move |view: &RegionView<E::Snapshot>| {
            let reader = reader(view);
            let mut bytes = 0;
            let mut out: Vec<Found> = Vec::with_capacity(keys.len());
            for (key, open) in keys.iter().zip(&open) {
                let found = match open {
                    Ok(()) => one(txn::get(&reader, key, &options))?,
                    Err(error) => Err(error.clone()),
                };
                bytes += key.len() + value_bytes(&found);
                check_answer(bytes)?;
                out.push(found);
            }
            Ok(out)
        };
        let found = self.look(&read, |found: &Vec<Found>| found.iter().map(value_bytes).sum(), work).await?;
        let mut pairs = Vec::with_capacity(found.len());
        for (key, found) in names.into_iter().zip(found) {
            match found {
                Ok(None) => {}
                Ok(Some(value)) => {
                    self.note_found(&context, 1, (key.len() + value.len()) as u64);
                    pairs.push(kv::KvPair { key, value, ..Default::default() });
                }
                Err(error @ TxnError::KeyIsLocked(_)) => pairs.push(pair(error.key_error())),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(kv::BatchGetResponse { pairs, ..Default::default() })
    }

    pub(super) async fn kv_scan(&mut self, message: kv::ScanRequest) -> Outcome<kv::ScanResponse> {
        let context = message.context.unwrap_or_default();
        let (start, end) = match message.reverse {
            true => (message.end_key, message.start_key),
            false => (message.start_key, message.end_key),
        };
        self.check_txn_range(&context, &start, &end)?;
        let options = ReadOptions::of(&context, message.version);
        let read = self.view_at(&context, options.ts).await?;
        let request = ScanRequest {
            start,
            end,
            reverse: message.reverse,
            key_only: message.key_only,
            limit: message.limit as usize,
            sample_step: message.sample_step as usize,
        };
        let scan = Scan::new(request, options.clone(), &read.region.start_key, &read.region.end_key);
        let (lower, upper) = scan.bounds();
        self.service.memory.check_range(lower, upper, &options)?;
        let walked = self.walk(&read, TxnWalk { scan, error: None }, 0).await?;
        if let Some(error) = walked.error {
            return Err(error.into());
        }
        let bytes = walked.scan.stats().bytes;
        let pairs = walked.scan.into_pairs();
        self.note_found(&context, pairs.len() as u64, bytes);
        Ok(kv::ScanResponse { pairs, ..Default::default() })
    }

    pub(super) async fn kv_scan_lock(&mut self, message: kv::ScanLockRequest) -> Outcome<kv::ScanLockResponse> {
        let context = message.context.unwrap_or_default();
        let max = TimeStamp(message.max_version);
        // No check of the API version: garbage collection looks at all locks.
        let context = kv::Context { replica_read: false, stale_read: false, ..context };
        let read = self.view_at(&context, max).await?;
        let (start, end) = (&read.region.start_key, &read.region.end_key);
        let limit = message.limit as usize;
        let scan = LockScan::new(Whose::UpTo(max), &message.start_key, &message.end_key, start, end, limit);
        let (lower, upper) = scan.bounds();
        self.service.memory.check_scan_lock(lower, upper, max)?;
        let locks = self.walk(&read, scan, 0).await?.drain();
        let locks = locks.iter().map(|(key, lock)| lock.info(key)).collect();
        Ok(kv::ScanLockResponse { locks, ..Default::default() })
    }

    pub(super) async fn mvcc_get_by_key(
        &mut self,
        message: kv::MvccGetByKeyRequest,
    ) -> Outcome<kv::MvccGetByKeyResponse> {
        let context = message.context.unwrap_or_default();
        self.check_txn(&context, [&message.key])?;
        let read = self.view_of_leader(&context).await?.1;
        self.check_inside(&read, &encode_all([&message.key]))?;
        let info = self.info(&read, message.key).await?;
        Ok(kv::MvccGetByKeyResponse { info: Some(info), ..Default::default() })
    }

    pub(super) async fn mvcc_get_by_start_ts(
        &mut self,
        message: kv::MvccGetByStartTsRequest,
    ) -> Outcome<kv::MvccGetByStartTsResponse> {
        let context = message.context.unwrap_or_default();
        self.check_txn(&context, [])?;
        let read = self.view_of_leader(&context).await?.1;
        let (start, end) = (&read.region.start_key, &read.region.end_key);
        let search = StartTsSearch::new(TimeStamp(message.start_ts), start, end);
        let Some(key) = self.walk(&read, search, 0).await?.into_key() else {
            return Ok(kv::MvccGetByStartTsResponse::default());
        };
        let info = Some(self.info(&read, key.clone()).await?);
        Ok(kv::MvccGetByStartTsResponse { key, info, ..Default::default() })
    }

    async fn info(&mut self, read: &RegionRead<E>, key: Bytes) -> Outcome<kv::MvccInfo> {
        self.look(read, info_bytes, move |view: &RegionView<E::Snapshot>| mvcc_by_key(&reader(view), &key)).await
    }
}

/// The view's errors apart from all others: it is they that are tried again.
fn one(found: Found) -> Result<Found, ReadError> {
    match found {
        Err(TxnError::Read(error)) => Err(error),
        found => Ok(found),
    }
}

fn info_bytes(info: &kv::MvccInfo) -> usize {
    prost::Message::encoded_len(info)
}

fn value_bytes(found: &Found) -> usize {
    found.as_ref().map_or(0, |value| value.as_ref().map_or(0, Bytes::len))
}
