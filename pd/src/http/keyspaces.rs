//! `/pd/api/v2/keyspaces`: the only way to create one.

use super::encoding::Query;
use super::regions::number;
use super::{Answer, Failure, ok};
use crate::service::Core;
use crate::state::KeyspaceError;
use net::HttpRequest;
use proto::keyspacepb::{KeyspaceMeta, KeyspaceState};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Keyspaces on one page, if the caller names no number; PD's default.
const PAGE: u32 = 100;

#[derive(Deserialize)]
struct Create {
    name: String,
    #[serde(default)]
    config: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct SetState {
    state: String,
}

#[derive(Deserialize)]
struct SetConfig {
    config: BTreeMap<String, Option<String>>,
}

/// Answers what is under `/pd/api/v2/keyspaces`.
pub(super) async fn route(core: &Core, request: &HttpRequest, path: &[&str], query: &Query) -> Answer {
    let now = executor::unix_time();
    match (request.method.as_str(), path) {
        ("POST", []) => {
            let Create { name, config } = body(request)?;
            if !core.peek().is_bootstrapped() {
                return Err(Failure::new(500, "cluster is not bootstrapped"));
            }
            let created = core.write(|state| state.create_keyspace(&name, config, now)).await?;
            ok(to_json(&created.map_err(failure)?))
        }
        ("GET", []) => list(core, query).await,
        ("GET", ["id", id]) => {
            let id = u32::try_from(number(id)?).map_err(Failure::bad)?;
            one(core.read(|state| state.keyspace(id)).await?)
        }
        ("GET", [name]) => one(core.read(|state| state.keyspace_by_name(name)).await?),
        ("PUT", [name, "state"]) => {
            let SetState { state: to } = body(request)?;
            let to = KeyspaceState::from_str_name(&to.to_ascii_uppercase())
                .ok_or_else(|| Failure::bad(format!("unknown target state: {to}")))?;
            let id = core.peek().keyspace_by_name(name).map(|meta| meta.id);
            let id = id.ok_or_else(|| failure(KeyspaceError::NotFound))?;
            let changed = core.write(|state| state.set_keyspace_state(id, to, now)).await?;
            ok(to_json(&changed.map_err(failure)?))
        }
        ("PATCH", [name, "config"]) => {
            let SetConfig { config } = body(request)?;
            let changed = core.write(|state| state.set_keyspace_config(name, config)).await?;
            ok(to_json(&changed.map_err(failure)?))
        }
        _ => Err(Failure::not_found()),
    }
}

async fn list(core: &Core, query: &Query) -> Answer {
    let number = |name, default: u32| match query.text(name).filter(|text| !text.is_empty()) {
        None => Ok(default),
        Some(text) => text.parse::<u32>().map_err(Failure::bad),
    };
    let (start, limit) = (number("page_token", 0)?, number("limit", PAGE)?.clamp(1, 10_000));
    // One more than asked for tells whether there is a next page.
    let mut keyspaces = core.read(|state| state.keyspaces(start, limit + 1)).await?;
    let next = keyspaces.get(limit as usize).map(|meta| meta.id.to_string());
    keyspaces.truncate(limit as usize);
    let keyspaces: Vec<Value> = keyspaces.iter().map(to_json).collect();
    ok(json!({ "keyspaces": keyspaces, "next_page_token": next.unwrap_or_default() }))
}

fn one(keyspace: Option<KeyspaceMeta>) -> Answer {
    ok(to_json(&keyspace.ok_or_else(|| failure(KeyspaceError::NotFound))?))
}

fn body<'a, T: Deserialize<'a>>(request: &'a HttpRequest) -> Result<T, Failure> {
    serde_json::from_slice(&request.body).map_err(Failure::bad)
}

fn failure(error: KeyspaceError) -> Failure {
    let status = match error {
        KeyspaceError::NotFound => 404,
        KeyspaceError::Exists => 409,
        KeyspaceError::Name(_) | KeyspaceError::Config | KeyspaceError::Transition { .. } => 400,
        KeyspaceError::Default | KeyspaceError::Full => 500,
    };
    Failure::new(status, error)
}

fn to_json(meta: &KeyspaceMeta) -> Value {
    json!({
        "id": meta.id,
        "name": meta.name,
        "state": meta.state().as_str_name(),
        "created_at": meta.created_at,
        "state_changed_at": meta.state_changed_at,
        "config": meta.config,
    })
}
