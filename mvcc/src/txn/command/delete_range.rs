//! `KvDeleteRange` (`compat/4-store.md`, 4.10): removes a range without a trace, locks and history included.

use bytes::Bytes;
use proto::kvrpcpb as kv;

use crate::txn::key;
use crate::{Cf, Modify};

/// The changes. An empty end is the end of the region.
pub fn delete_range(request: &kv::DeleteRangeRequest) -> Vec<Modify> {
    let is_empty = !request.end_key.is_empty() && request.start_key >= request.end_key;
    if request.notify_only || is_empty {
        return Vec::new();
    }
    let bound = |key: &Bytes| if key.is_empty() { Bytes::new() } else { key::encode(key) };
    let (start, end) = (bound(&request.start_key), bound(&request.end_key));
    Cf::DATA.map(|cf| Modify::DeleteRange { cf, start: start.clone(), end: end.clone() }).into()
}
