//! etcd's transactions: comparisons choose a branch, whose operations run in order at one revision. Pure.

use super::etcd::{lease_not_found, range_status};
use crate::kv::{Op, RangeQuery, RangeResult, Record, SortBy};
use crate::state::State;
use bytes::Bytes;
use proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use proto::etcdserverpb::request_op::Request;
use proto::etcdserverpb::response_op::Response;
use proto::etcdserverpb::*;
use proto::mvccpb::KeyValue;
use proto::rpc::Status;
use std::cmp::Ordering;
use std::collections::BTreeSet;

/// Most comparisons, and most operations of a branch.
pub(super) const OPS_MAX: usize = 128;
/// Most transactions inside of each other.
const DEPTH_MAX: usize = 4;

/// Checks a transaction by itself; returns the bytes that it may write.
pub(super) fn check(request: &TxnRequest) -> Result<usize, Status> {
    check_at(request, 0)
}

fn check_at(request: &TxnRequest, depth: usize) -> Result<usize, Status> {
    if request.compare.len() > OPS_MAX || request.success.len() > OPS_MAX || request.failure.len() > OPS_MAX {
        return Err(Status::invalid_argument("etcdserver: too many operations in txn request"));
    }
    if depth > DEPTH_MAX {
        return Err(Status::invalid_argument("etcdserver: txn requests are nested too deeply"));
    }
    if request.compare.iter().any(|compare| compare.key.is_empty()) {
        return Err(key_missing());
    }
    Ok(check_branch(&request.success, depth)?.max(check_branch(&request.failure, depth)?))
}

fn check_branch(ops: &[RequestOp], depth: usize) -> Result<usize, Status> {
    let (mut bytes, mut puts) = (0, BTreeSet::new());
    for op in ops {
        match op.request.as_ref() {
            Some(Request::RequestRange(range)) => check_range(range)?,
            Some(Request::RequestPut(put)) => {
                check_put(put)?;
                bytes += put.key.len() + put.value.len();
                if !puts.insert(put.key.clone()) {
                    return Err(Status::invalid_argument("etcdserver: duplicate key given in txn request"));
                }
            }
            Some(Request::RequestDeleteRange(delete)) if delete.key.is_empty() => {
                return Err(key_missing());
            }
            Some(Request::RequestDeleteRange(_)) => {}
            Some(Request::RequestTxn(inner)) => bytes += check_at(inner, depth + 1)?,
            None => return Err(Status::invalid_argument("etcdserver: key is not provided")),
        }
    }
    Ok(bytes)
}

pub(super) fn check_range(range: &RangeRequest) -> Result<(), Status> {
    if range.key.is_empty() { Err(key_missing()) } else { Ok(()) }
}

fn check_put(put: &PutRequest) -> Result<(), Status> {
    if put.key.is_empty() {
        return Err(key_missing());
    }
    if put.ignore_value && !put.value.is_empty() {
        return Err(Status::invalid_argument("etcdserver: value is provided"));
    }
    if put.ignore_lease && put.lease != 0 {
        return Err(Status::invalid_argument("etcdserver: lease is provided"));
    }
    Ok(())
}

fn key_missing() -> Status {
    Status::invalid_argument("etcdserver: key is not provided")
}

/// Checks what a transaction would write against the state: reserved keys, leases, keys that must be there. Both
/// branches are checked, so that nothing fails half-way.
pub(super) fn check_against(state: &mut State, request: &TxnRequest) -> Result<(), Status> {
    for op in request.success.iter().chain(&request.failure) {
        match op.request.as_ref() {
            Some(Request::RequestPut(put)) => {
                if state.is_reserved(&put.key) {
                    return Err(Status::permission_denied("etcdserver: permission denied"));
                }
                if put.lease != 0 && !state.leases().contains(put.lease) {
                    return Err(lease_not_found());
                }
                if (put.ignore_value || put.ignore_lease) && state.space().get(&put.key).is_none() {
                    return Err(Status::invalid_argument("etcdserver: key not found"));
                }
            }
            Some(Request::RequestDeleteRange(delete)) => {
                let doomed = state.space().slice(&delete.key, &delete.range_end);
                if doomed.keys().any(|key| state.is_reserved(key)) {
                    return Err(Status::permission_denied("etcdserver: permission denied"));
                }
            }
            Some(Request::RequestRange(range)) => {
                state.space().range(&RangeQuery { count_only: true, ..query(range) }).map_err(range_status)?;
            }
            Some(Request::RequestTxn(inner)) => check_against(state, inner)?,
            None => {}
        }
    }
    Ok(())
}

/// Runs a checked transaction; what it writes has `revision`.
pub(super) fn run(state: &mut State, request: &TxnRequest, revision: i64) -> Result<TxnResponse, Status> {
    let succeeded = request.compare.iter().all(|compare| holds(state, compare));
    let branch = if succeeded { &request.success } else { &request.failure };
    let mut responses = Vec::with_capacity(branch.len());
    for op in branch {
        let response = match op.request.as_ref().ok_or_else(key_missing)? {
            Request::RequestRange(range) => {
                let found = state.space().range(&query(range)).map_err(range_status)?;
                Response::ResponseRange(range_answer(found, range.keys_only))
            }
            Request::RequestPut(put) => Response::ResponsePut(run_put(state, put, revision)),
            Request::RequestDeleteRange(delete) => Response::ResponseDeleteRange(run_delete(state, delete, revision)),
            Request::RequestTxn(inner) => Response::ResponseTxn(run(state, inner, revision)?),
        };
        responses.push(ResponseOp { response: Some(response) });
    }
    Ok(TxnResponse { header: None, succeeded, responses })
}

fn run_put(state: &mut State, put: &PutRequest, revision: i64) -> PutResponse {
    let before = state.space().get(&put.key).cloned();
    let old = before.as_ref();
    let value = if put.ignore_value { old.map(|old| old.value.clone()) } else { None };
    let lease = if put.ignore_lease { old.map(|old| old.lease) } else { None };
    // Requests are slices of larger buffers, and what is kept here stays.
    let op = Op::Put {
        key: Bytes::copy_from_slice(&put.key),
        value: value.unwrap_or_else(|| Bytes::copy_from_slice(&put.value)),
        lease: lease.unwrap_or(put.lease),
    };
    state.commit_at(revision, vec![op]);
    let prev_kv = before.filter(|_| put.prev_kv).map(|record| key_value(&put.key, &record, false));
    PutResponse { header: None, prev_kv }
}

fn run_delete(state: &mut State, delete: &DeleteRangeRequest, revision: i64) -> DeleteRangeResponse {
    let doomed = state.space().slice(&delete.key, &delete.range_end);
    let deleted = i64::try_from(doomed.len()).unwrap_or(i64::MAX);
    state.commit_at(revision, doomed.keys().cloned().map(Op::delete).collect());
    let prev_kvs = if delete.prev_kv {
        doomed.iter().map(|(key, record)| key_value(key, record, false)).collect()
    } else {
        Vec::new()
    };
    DeleteRangeResponse { header: None, deleted, prev_kvs }
}

/// Whether a comparison holds. Over a range it must hold for each key; a missing key compares as zeros, and its value
/// with nothing.
fn holds(state: &State, compare: &Compare) -> bool {
    let found = state.space().slice(&compare.key, &compare.range_end);
    if found.is_empty() {
        if compare.target() == CompareTarget::Value {
            return false;
        }
        let none = Record { value: Bytes::new(), create_revision: 0, mod_revision: 0, version: 0, lease: 0 };
        return matches(&none, compare);
    }
    found.values().all(|record| matches(record, compare))
}

fn matches(record: &Record, compare: &Compare) -> bool {
    let order = match (compare.target(), compare.target_union.as_ref()) {
        (CompareTarget::Value, Some(TargetUnion::Value(value))) => record.value.cmp(value),
        (CompareTarget::Value, _) => record.value.as_ref().cmp(&[][..]),
        (CompareTarget::Version, union) => record.version.cmp(&number(union)),
        (CompareTarget::Create, union) => record.create_revision.cmp(&number(union)),
        (CompareTarget::Mod, union) => record.mod_revision.cmp(&number(union)),
        (CompareTarget::Lease, union) => record.lease.cmp(&number(union)),
    };
    match compare.result() {
        CompareResult::Equal => order == Ordering::Equal,
        CompareResult::Greater => order == Ordering::Greater,
        CompareResult::Less => order == Ordering::Less,
        CompareResult::NotEqual => order != Ordering::Equal,
    }
}

fn number(union: Option<&TargetUnion>) -> i64 {
    match union {
        Some(TargetUnion::Version(number) | TargetUnion::CreateRevision(number)) => *number,
        Some(TargetUnion::ModRevision(number) | TargetUnion::Lease(number)) => *number,
        Some(TargetUnion::Value(_)) | None => 0,
    }
}

/// A range request in the map's words.
pub(super) fn query(range: &RangeRequest) -> RangeQuery {
    RangeQuery {
        key: range.key.clone(),
        end: range.range_end.clone(),
        limit: range.limit,
        revision: range.revision,
        sort_by: match range.sort_target() {
            SortTarget::Key => SortBy::Key,
            SortTarget::Version => SortBy::Version,
            SortTarget::Create => SortBy::Create,
            SortTarget::Mod => SortBy::Mod,
            SortTarget::Value => SortBy::Value,
        },
        descending: range.sort_order() == SortOrder::Descend,
        mod_revisions: (range.min_mod_revision, range.max_mod_revision),
        create_revisions: (range.min_create_revision, range.max_create_revision),
        count_only: range.count_only,
    }
}

/// What a range found, without its header.
pub(super) fn range_answer(found: RangeResult, keys_only: bool) -> RangeResponse {
    let kvs = found.records.iter().map(|(key, record)| key_value(key, record, keys_only)).collect();
    RangeResponse { header: None, kvs, more: found.more, count: found.count }
}

pub(super) fn key_value(key: &Bytes, record: &Record, keys_only: bool) -> KeyValue {
    KeyValue {
        key: key.clone(),
        create_revision: record.create_revision,
        mod_revision: record.mod_revision,
        version: record.version,
        value: if keys_only { Bytes::new() } else { record.value.clone() },
        lease: record.lease,
    }
}
