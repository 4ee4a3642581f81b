//! `meta_storagepb.MetaStorage`: etcd's keys in PD's clothes.

use super::Core;
use super::watch::Compacted;
use crate::kv::{Event, Op, RangeQuery, Record};
use bytes::Bytes;
use proto::meta_storagepb::*;
use proto::rpc::{CallContext, Outbound, Status};
use std::rc::Rc;

/// Handles `meta_storagepb.MetaStorage`.
pub(super) struct MetaStorageHandler(pub(super) Rc<Core>);

impl MetaStorageHandler {
    fn enter(&self, cx: &CallContext, header: Option<&RequestHeader>) -> Result<(), Status> {
        self.0.enter_any(cx)?;
        // PD's own client leaves the id out before it has learned it.
        match header.map_or(0, |header| header.cluster_id) {
            0 => Ok(()),
            id => self.0.check_cluster(id),
        }
    }

    fn header(&self, revision: i64) -> Option<ResponseHeader> {
        Some(ResponseHeader { cluster_id: self.0.identity.cluster_id.0, error: None, revision })
    }

    fn error(&self, kind: ErrorType, message: impl ToString) -> Option<ResponseHeader> {
        let error = Error { r#type: kind.into(), message: message.to_string() };
        let revision = self.0.line.committed_revision();
        Some(ResponseHeader { cluster_id: self.0.identity.cluster_id.0, error: Some(error), revision })
    }
}

impl MetaStorage for MetaStorageHandler {
    async fn get(&self, cx: CallContext, request: GetRequest) -> Result<GetResponse, Status> {
        self.enter(&cx, request.header.as_ref())?;
        let query = RangeQuery {
            key: request.key,
            end: request.range_end,
            limit: request.limit,
            revision: request.revision,
            ..RangeQuery::default()
        };
        let (found, revision) = self.0.read(|state| (state.space().range(&query), state.space().revision())).await?;
        Ok(match found {
            Ok(found) => GetResponse {
                header: self.header(revision),
                kvs: found.records.iter().map(|(key, record)| key_value(key, record)).collect(),
                more: found.more,
                count: found.count,
            },
            Err(error) => GetResponse { header: self.error(ErrorType::Unknown, error), ..GetResponse::default() },
        })
    }

    async fn put(&self, cx: CallContext, request: PutRequest) -> Result<PutResponse, Status> {
        self.enter(&cx, request.header.as_ref())?;
        let (key, value) = (Bytes::copy_from_slice(&request.key), Bytes::copy_from_slice(&request.value));
        self.0.check_put(&key, &value, request.lease)?;
        let command = |state: &mut crate::state::State| {
            let before = state.space().get(&key).cloned();
            state.commit(vec![Op::Put { key: key.clone(), value, lease: request.lease }]);
            (before, state.space().revision())
        };
        let (before, revision) = self.0.write(command).await?;
        let prev_kv = before.filter(|_| request.prev_kv).map(|record| key_value(&key, &record));
        Ok(PutResponse { header: self.header(revision), prev_kv })
    }

    async fn delete(&self, cx: CallContext, request: DeleteRequest) -> Result<DeleteResponse, Status> {
        self.enter(&cx, request.header.as_ref())?;
        self.0.check_own_key(&request.key)?;
        let command = |state: &mut crate::state::State| {
            let before = state.space().get(&request.key).cloned();
            state.commit(vec![Op::delete(request.key.clone())]);
            (before, state.space().revision())
        };
        let (before, revision) = self.0.write(command).await?;
        let deleted = i64::from(before.is_some());
        let prev_kvs = before.filter(|_| request.prev_kv).map(|record| key_value(&request.key, &record));
        Ok(DeleteResponse { header: self.header(revision), deleted, prev_kvs: prev_kvs.into_iter().collect() })
    }

    async fn watch(
        &self,
        cx: CallContext,
        request: WatchRequest,
        answers: Outbound<WatchResponse>,
    ) -> Result<(), Status> {
        self.enter(&cx, request.header.as_ref())?;
        let mut seen = match request.start_revision {
            0 => self.0.read(|state| state.space().revision()).await?,
            start => start - 1,
        };
        loop {
            let until = self.0.next_revision(seen).await?;
            match self.0.events_of(&request.key, &request.range_end, seen, until) {
                Ok(events) if events.is_empty() => {}
                Ok(events) => {
                    let events = events.iter().map(|event| to_event(event, request.prev_kv)).collect();
                    let header = self.header(until);
                    answers.send(&WatchResponse { header, compact_revision: 0, events }).await?;
                }
                Err(Compacted(compact_revision)) => {
                    let text = format!(
                        "required watch revision is smaller than current compact/min revision {compact_revision}"
                    );
                    let header = self.error(ErrorType::DataCompacted, text);
                    answers.send(&WatchResponse { header, compact_revision, events: Vec::new() }).await?;
                    return Err(Status::out_of_range("etcdserver: mvcc: required revision has been compacted"));
                }
            }
            seen = until;
        }
    }
}

fn to_event(event: &Event, with_before: bool) -> proto::meta_storagepb::Event {
    let kind = if event.now.is_some() { event::EventType::Put } else { event::EventType::Delete };
    let kv = match &event.now {
        Some(record) => key_value(&event.key, record),
        None => KeyValue { key: event.key.clone(), mod_revision: event.revision, ..KeyValue::default() },
    };
    let before = event.before.as_ref().filter(|_| with_before);
    proto::meta_storagepb::Event {
        r#type: kind.into(),
        kv: Some(kv),
        prev_kv: before.map(|record| key_value(&event.key, record)),
    }
}

fn key_value(key: &Bytes, record: &Record) -> KeyValue {
    KeyValue {
        key: key.clone(),
        create_revision: record.create_revision,
        mod_revision: record.mod_revision,
        version: record.version,
        value: record.value.clone(),
        lease: record.lease,
    }
}
