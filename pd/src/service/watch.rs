//! What watchers of all kinds share: waiting for durable revisions, and picking the events of a range.

use super::Core;
use crate::kv::{Event, in_range};
use bytes::Bytes;
use prost::Message;
use proto::rpc::Status;
use std::rc::Rc;

/// The events that a watcher wants are gone; watching may go on from this revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Compacted(pub(super) i64);

impl Core {
    /// Waits for a durable revision above `seen` and returns the newest one.
    pub(super) async fn next_revision(&self, seen: i64) -> Result<i64, Status> {
        self.line.revision_above(seen).await.map_err(|closed| Status::unavailable(closed.to_string()))
    }

    /// Events of the range `[key, end)` (etcd's rules) after revision `seen` and up to `until`.
    pub(super) fn events_of(&self, key: &[u8], end: &[u8], seen: i64, until: i64) -> Result<Vec<Rc<Event>>, Compacted> {
        let state = self.peek();
        let space = state.space();
        let events = space.events(seen, until).ok_or(Compacted(space.compacted() + 1))?;
        Ok(events.filter(|event| in_range(&event.key, key, end)).cloned().collect())
    }

    /// The newest values of keys under `prefix` that were set after revision `seen` and up to `until`, decoded.
    pub(super) fn changed_values<M: Message + Default>(
        &self,
        prefix: &[u8],
        seen: i64,
        until: i64,
    ) -> Result<Vec<M>, Status> {
        let events = self.events_of(prefix, &prefix_end(prefix), seen, until);
        let events = events.map_err(|_| Status::unavailable("the watcher is too far behind"))?;
        let set = events.iter().filter_map(|event| M::decode(event.now.as_ref()?.value.clone()).ok());
        Ok(set.collect())
    }
}

/// The end of the range of all keys that begin with `prefix`.
pub(super) fn prefix_end(prefix: &[u8]) -> Bytes {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xFF {
            end.push(last + 1);
            return Bytes::from(end);
        }
    }
    Bytes::from_static(&[0])
}
