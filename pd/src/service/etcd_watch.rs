//! etcd's watches: many on one stream, each with events in the order of revisions.

use super::etcd::{EtcdHandler, to_kv};
use super::watch::Compacted;
use crate::kv::Event;
use bytes::Bytes;
use futures_util::future::{Either, select};
use proto::etcdserverpb::watch_create_request::FilterType;
use proto::etcdserverpb::watch_request::RequestUnion;
use proto::etcdserverpb::*;
use proto::mvccpb;
use proto::rpc::{CallContext, Inbound, Outbound, Status};
use std::collections::BTreeMap;
use std::pin::pin;

/// Most watches of a stream.
const WATCHES_MAX: usize = 4096;

struct Watcher {
    key: Bytes,
    end: Bytes,
    /// Events up to this revision were sent, or are not wanted.
    seen: i64,
    with_before: bool,
    puts: bool,
    deletes: bool,
}

impl Watch for EtcdHandler {
    async fn watch(
        &self,
        cx: CallContext,
        mut request: Inbound<WatchRequest>,
        answers: Outbound<WatchResponse>,
    ) -> Result<(), Status> {
        self.0.enter_any(&cx)?;
        let mut watchers: BTreeMap<i64, Watcher> = BTreeMap::new();
        loop {
            let asked = match watchers.values().map(|watcher| watcher.seen).min() {
                None => Some(request.next().await?),
                Some(seen) => {
                    // The next revision is what the slowest watcher has not seen; a request may come before.
                    let next = pin!(request.next());
                    match select(next, pin!(self.0.next_revision(seen))).await {
                        Either::Left((asked, _)) => Some(asked?),
                        Either::Right((until, _)) => {
                            self.tell(&mut watchers, until?, &answers).await?;
                            None
                        }
                    }
                }
            };
            match asked {
                Some(Some(asked)) => self.handle(asked, &mut watchers, &answers).await?,
                Some(None) => return Ok(()),
                None => {}
            }
        }
    }
}

impl EtcdHandler {
    async fn handle(
        &self,
        asked: WatchRequest,
        watchers: &mut BTreeMap<i64, Watcher>,
        answers: &Outbound<WatchResponse>,
    ) -> Result<(), Status> {
        let header = self.header(self.0.line.committed_revision());
        let answer = match asked.request_union {
            Some(RequestUnion::CreateRequest(create)) => self.create(create, watchers)?,
            Some(RequestUnion::CancelRequest(WatchCancelRequest { watch_id })) => {
                if watchers.remove(&watch_id).is_none() {
                    return Ok(());
                }
                WatchResponse { header, watch_id, canceled: true, ..WatchResponse::default() }
            }
            Some(RequestUnion::ProgressRequest(_)) => {
                WatchResponse { header, watch_id: -1, ..WatchResponse::default() }
            }
            None => return Ok(()),
        };
        answers.send(&answer).await
    }

    fn create(
        &self,
        create: WatchCreateRequest,
        watchers: &mut BTreeMap<i64, Watcher>,
    ) -> Result<WatchResponse, Status> {
        if watchers.len() >= WATCHES_MAX {
            return Err(Status::resource_exhausted("etcdserver: too many watches on one stream"));
        }
        let revision = self.0.line.committed_revision();
        let mut answer = WatchResponse { header: self.header(revision), created: true, ..WatchResponse::default() };
        if create.watch_id != 0 && watchers.contains_key(&create.watch_id) {
            answer.watch_id = -1;
            answer.canceled = true;
            answer.cancel_reason = String::from("etcdserver: duplicate watch ID provided on the WatchStream");
            return Ok(answer);
        }
        answer.watch_id = match create.watch_id {
            0 => watchers.last_key_value().map_or(0, |(id, _)| id + 1),
            id => id,
        };
        let key = if create.key.is_empty() { Bytes::from_static(&[0]) } else { create.key.clone() };
        let watcher = Watcher {
            key,
            end: create.range_end.clone(),
            seen: if create.start_revision > 0 { create.start_revision - 1 } else { revision },
            with_before: create.prev_kv,
            puts: !create.filters().any(|filter| filter == FilterType::Noput),
            deletes: !create.filters().any(|filter| filter == FilterType::Nodelete),
        };
        watchers.insert(answer.watch_id, watcher);
        Ok(answer)
    }

    /// Sends each watcher what it has not seen up to revision `until`.
    async fn tell(
        &self,
        watchers: &mut BTreeMap<i64, Watcher>,
        until: i64,
        answers: &Outbound<WatchResponse>,
    ) -> Result<(), Status> {
        let mut late = Vec::new();
        for (id, watcher) in watchers.iter_mut().filter(|(_, watcher)| watcher.seen < until) {
            let events = self.0.events_of(&watcher.key, &watcher.end, watcher.seen, until);
            let mut answer = WatchResponse { header: self.header(until), watch_id: *id, ..WatchResponse::default() };
            match events {
                Ok(events) => {
                    let wanted = events.iter().filter(|event| watcher.wants(event));
                    answer.events = wanted.map(|event| to_event(event, watcher.with_before)).collect();
                }
                Err(Compacted(compact_revision)) => {
                    late.push(*id);
                    answer.canceled = true;
                    answer.compact_revision = compact_revision;
                    answer.cancel_reason = String::from("etcdserver: mvcc: required revision has been compacted");
                }
            }
            watcher.seen = until;
            if answer.canceled || !answer.events.is_empty() {
                answers.send(&answer).await?;
            }
        }
        late.iter().for_each(|id| drop(watchers.remove(id)));
        Ok(())
    }
}

impl Watcher {
    fn wants(&self, event: &Event) -> bool {
        if event.now.is_some() { self.puts } else { self.deletes }
    }
}

fn to_event(event: &Event, with_before: bool) -> mvccpb::Event {
    let kind = if event.now.is_some() { mvccpb::event::EventType::Put } else { mvccpb::event::EventType::Delete };
    let kv = match &event.now {
        Some(record) => to_kv(&event.key, record),
        None => {
            mvccpb::KeyValue { key: event.key.clone(), mod_revision: event.revision, ..mvccpb::KeyValue::default() }
        }
    };
    let before = event.before.as_ref().filter(|_| with_before);
    mvccpb::Event { r#type: kind.into(), kv: Some(kv), prev_kv: before.map(|record| to_kv(&event.key, record)) }
}
