//! The part of etcd's API that stock clients call on PD's port and a leader answers: keys. Membership and status are
//! answered by every member (`crate::member`).

use super::Core;
use super::etcd_txn::{self, key_value, query};
use crate::kv::RangeError;
use bytes::Bytes;
use proto::etcdserverpb::*;
use proto::rpc::{CallContext, Status};
use std::rc::Rc;

/// Most bytes of one request's keys and values, etcd's default.
const REQUEST_BYTES_MAX: usize = 3 << 19;

/// Handles `etcdserverpb`.
pub(super) struct EtcdHandler(pub(super) Rc<Core>);

impl EtcdHandler {
    pub(super) fn header(&self, revision: i64) -> Option<ResponseHeader> {
        let identity = &self.0.identity;
        Some(ResponseHeader {
            cluster_id: identity.cluster_id.0,
            member_id: identity.member_id,
            revision,
            raft_term: identity.raft_term,
        })
    }
}

pub(super) fn range_status(error: RangeError) -> Status {
    Status::out_of_range(error.to_string())
}

impl Kv for EtcdHandler {
    async fn range(&self, cx: CallContext, request: RangeRequest) -> Result<RangeResponse, Status> {
        self.0.enter_any(&cx)?;
        etcd_txn::check_range(&request)?;
        let query = query(&request);
        let (found, revision) = self.0.read(|state| (state.space().range(&query), state.space().revision())).await?;
        let answer = etcd_txn::range_answer(found.map_err(range_status)?, request.keys_only);
        Ok(RangeResponse { header: self.header(revision), ..answer })
    }

    async fn put(&self, cx: CallContext, request: PutRequest) -> Result<PutResponse, Status> {
        self.0.enter_any(&cx)?;
        let requests = vec![RequestOp { request: Some(request_op::Request::RequestPut(request)) }];
        let answer = self.transact(TxnRequest { success: requests, ..TxnRequest::default() }).await?;
        match answer.responses.into_iter().next().and_then(|op| op.response) {
            Some(response_op::Response::ResponsePut(put)) => Ok(PutResponse { header: answer.header, ..put }),
            _ => Err(Status::internal("a put answers a put")),
        }
    }

    async fn delete_range(&self, cx: CallContext, request: DeleteRangeRequest) -> Result<DeleteRangeResponse, Status> {
        self.0.enter_any(&cx)?;
        let requests = vec![RequestOp { request: Some(request_op::Request::RequestDeleteRange(request)) }];
        let answer = self.transact(TxnRequest { success: requests, ..TxnRequest::default() }).await?;
        match answer.responses.into_iter().next().and_then(|op| op.response) {
            Some(response_op::Response::ResponseDeleteRange(deleted)) => {
                Ok(DeleteRangeResponse { header: answer.header, ..deleted })
            }
            _ => Err(Status::internal("a deletion answers a deletion")),
        }
    }

    async fn txn(&self, cx: CallContext, request: TxnRequest) -> Result<TxnResponse, Status> {
        self.0.enter_any(&cx)?;
        self.transact(request).await
    }

    async fn compact(&self, cx: CallContext, request: CompactionRequest) -> Result<CompactionResponse, Status> {
        self.0.enter_any(&cx)?;
        let command = |state: &mut crate::state::State| {
            let (compacted, revision) = (state.space().compacted(), state.space().revision());
            if request.revision <= compacted {
                return Err(range_status(RangeError::Compacted));
            }
            if request.revision > revision {
                return Err(range_status(RangeError::Future));
            }
            state.compact(request.revision);
            Ok(revision)
        };
        let revision = self.0.write(command).await??;
        Ok(CompactionResponse { header: self.header(revision) })
    }
}

impl EtcdHandler {
    async fn transact(&self, request: TxnRequest) -> Result<TxnResponse, Status> {
        let bytes = etcd_txn::check(&request)?;
        self.0.check_size(bytes)?;
        let command = |state: &mut crate::state::State| {
            etcd_txn::check_against(state, &request)?;
            let revision = state.space().revision() + 1;
            let answer = etcd_txn::run(state, &request, revision)?;
            Ok((answer, state.space().revision()))
        };
        let (answer, revision) = self.0.write(command).await?.map_err(|status: Status| status)?;
        Ok(TxnResponse { header: self.header(revision), ..answer })
    }
}

impl Core {
    /// Refuses a write that is too large, over the quota, to a reserved key, or with an unknown lease.
    pub(super) fn check_put(&self, key: &Bytes, value: &Bytes, lease: i64) -> Result<(), Status> {
        if key.is_empty() {
            return Err(Status::invalid_argument("etcdserver: key is not provided"));
        }
        self.check_size(key.len() + value.len())?;
        self.check_own_key(key)?;
        if lease != 0 && !self.state.borrow_mut().leases().contains(lease) {
            return Err(lease_not_found());
        }
        Ok(())
    }

    /// Refuses to touch what the cluster itself keeps.
    pub(super) fn check_own_key(&self, key: &[u8]) -> Result<(), Status> {
        if self.peek().is_reserved(key) {
            return Err(Status::permission_denied("etcdserver: permission denied"));
        }
        Ok(())
    }

    /// Refuses a request that is too large, or one for which there is no room.
    pub(super) fn check_size(&self, bytes: usize) -> Result<(), Status> {
        if bytes > REQUEST_BYTES_MAX {
            return Err(Status::invalid_argument("etcdserver: request is too large"));
        }
        if bytes > 0 && self.peek().space().bytes() + bytes > self.config.quota_backend_bytes {
            return Err(Status::resource_exhausted("etcdserver: mvcc: database space exceeded"));
        }
        Ok(())
    }

    /// Refuses a request with too many operations.
    pub(super) fn check_ops(&self, ops: usize) -> Result<(), Status> {
        if ops > etcd_txn::OPS_MAX {
            return Err(Status::invalid_argument("etcdserver: too many operations in txn request"));
        }
        Ok(())
    }
}

pub(super) fn lease_not_found() -> Status {
    Status::not_found("etcdserver: requested lease not found")
}

/// A record as etcd shows it.
pub(super) fn to_kv(key: &Bytes, record: &crate::kv::Record) -> proto::mvccpb::KeyValue {
    key_value(key, record, false)
}
