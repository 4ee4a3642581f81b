//! Global configuration: keys under `/global/config`.

use super::Core;
use super::watch::{Compacted, prefix_end};
use crate::kv::{Event, Op};
use bytes::Bytes;
use proto::pdpb::*;
use proto::rpc::{Outbound, Status};

const ROOT: &str = "/global/config";
/// The one path outside of the root that may be read.
const CONTROLLER: &str = "resource_group/controller";

impl Core {
    pub(super) async fn store_global_config(
        &self,
        request: StoreGlobalConfigRequest,
    ) -> Result<StoreGlobalConfigResponse, Status> {
        let folder = folder_of(&request.config_path)?;
        let mut ops = Vec::new();
        for item in request.changes {
            let key = Bytes::from(format!("{folder}{}", item.name));
            if item.kind() == EventType::Delete {
                ops.push(Op::delete(key));
                continue;
            }
            let value = if item.value.is_empty() { item.payload } else { Bytes::from(item.value) };
            let value = Bytes::copy_from_slice(&value);
            self.check_put(&key, &value, 0)?;
            ops.push(Op::Put { key, value, lease: 0 });
        }
        self.check_ops(ops.len())?;
        self.write(|state| state.commit(ops)).await?;
        Ok(StoreGlobalConfigResponse { error: None })
    }

    pub(super) async fn load_global_config(
        &self,
        request: LoadGlobalConfigRequest,
    ) -> Result<LoadGlobalConfigResponse, Status> {
        if request.config_path == CONTROLLER && request.names.is_empty() {
            let look = |state: &crate::state::State| state.space().value(CONTROLLER.as_bytes()).cloned();
            let (value, revision) = self.read(|state| (look(state), state.space().revision())).await?;
            let items = value.map(|payload| item(CONTROLLER.to_owned(), payload)).into_iter().collect();
            return Ok(LoadGlobalConfigResponse { items, revision });
        }
        let folder = folder_of(&request.config_path)?;
        let look = |state: &crate::state::State| {
            let space = state.space();
            let named = |name: &String| match space.value(format!("{folder}{name}").as_bytes()) {
                Some(payload) => item(name.clone(), payload.clone()),
                None => missing(name),
            };
            let all = |(key, record): (&Bytes, &crate::kv::Record)| {
                item(String::from_utf8_lossy(key).into_owned(), record.value.clone())
            };
            let items = if request.names.is_empty() {
                space.prefix(folder.as_bytes()).map(all).collect()
            } else {
                request.names.iter().map(named).collect()
            };
            LoadGlobalConfigResponse { items, revision: space.revision() }
        };
        self.read(look).await
    }

    pub(super) async fn watch_global_config(
        &self,
        request: WatchGlobalConfigRequest,
        answers: Outbound<WatchGlobalConfigResponse>,
    ) -> Result<(), Status> {
        let folder = folder_of(&request.config_path)?;
        let end = prefix_end(folder.as_bytes());
        let mut seen = match request.revision {
            0 => self.read(|state| state.space().revision()).await?,
            start => start - 1,
        };
        loop {
            let until = self.next_revision(seen).await?;
            match self.events_of(folder.as_bytes(), &end, seen, until) {
                Ok(events) if events.is_empty() => {}
                Ok(events) => {
                    let changes = events.iter().map(|event| changed(event)).collect();
                    let answer = WatchGlobalConfigResponse { changes, revision: until, header: self.header() };
                    answers.send(&answer).await?;
                }
                Err(Compacted(from)) => {
                    let text = format!("required watch revision is smaller than current compact/min revision {from}");
                    let header = self.error(ErrorType::DataCompacted, text);
                    answers.send(&WatchGlobalConfigResponse { header, ..Default::default() }).await?;
                    return Ok(());
                }
            }
            seen = until;
        }
    }
}

/// The folder of a configuration path, with its closing slash.
fn folder_of(path: &str) -> Result<String, Status> {
    let path = path.trim_end_matches('/');
    if path.is_empty() || path == ROOT {
        return Ok(format!("{ROOT}/"));
    }
    if path.starts_with("/global/config/") && !path.split('/').any(|part| part == "..") {
        return Ok(format!("{path}/"));
    }
    Err(Status::invalid_argument(format!("config path {path:?} is not under {ROOT}")))
}

fn item(name: String, payload: Bytes) -> GlobalConfigItem {
    GlobalConfigItem { name, payload, kind: EventType::Put.into(), ..GlobalConfigItem::default() }
}

fn missing(name: &str) -> GlobalConfigItem {
    let error = Error { r#type: ErrorType::GlobalConfigNotFound.into(), message: format!("key {name} not found") };
    GlobalConfigItem { name: name.to_owned(), error: Some(error), ..GlobalConfigItem::default() }
}

fn changed(event: &Event) -> GlobalConfigItem {
    let name = String::from_utf8_lossy(&event.key).into_owned();
    match &event.now {
        Some(record) => item(name, record.value.clone()),
        None => GlobalConfigItem { name, kind: EventType::Delete.into(), ..GlobalConfigItem::default() },
    }
}
