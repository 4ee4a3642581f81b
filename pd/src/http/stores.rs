//! Stores as JSON.

use super::encoding::{Query, byte_size, go_duration, rfc3339};
use super::regions::number;
use super::{Answer, Failure, ok};
use crate::directory::Tally;
use crate::schedule::config::{Weight, as_float};
use crate::schedule::limits::Rates;
use crate::service::{Core, StoreVitals};
use crate::state::ClusterError;
use base::UnixTime;
use net::HttpRequest;
use proto::metapb::{self, NodeState, StoreState};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// `/stores`: without tombstones, or those of the asked states.
pub(super) async fn list(core: &Core, query: &Query) -> Answer {
    let stores = core.read(|state| state.stores()).await?;
    let asked: Vec<u64> = query
        .all("state")
        .filter_map(|state| match state.to_ascii_lowercase().as_slice() {
            b"up" => Some(0),
            b"offline" => Some(1),
            b"tombstone" => Some(2),
            number => std::str::from_utf8(number).ok()?.parse().ok(),
        })
        .collect();
    let wanted = |store: &metapb::Store| match asked.as_slice() {
        [] => store.state() != StoreState::Tombstone,
        asked => asked.contains(&u64::from(store.state.unsigned_abs())),
    };
    let stores: Vec<Value> = stores.into_iter().filter(wanted).map(|store| to_json(core, store)).collect();
    ok(json!({ "count": stores.len(), "stores": stores }))
}

/// `/store/{id}`.
pub(super) async fn one(core: &Core, id: &str) -> Answer {
    let id = number(id)?;
    match core.read(|state| state.store(id)).await? {
        Some(store) => ok(to_json(core, store)),
        None => Err(Failure::new(404, ClusterError::StoreNotFound(id))),
    }
}

/// `POST /store/{id}/label` with `{"key": "value"}`; `force=true` replaces the labels.
pub(super) async fn label(core: &Core, id: &str, request: &HttpRequest, query: &Query) -> Answer {
    let id = number(id)?;
    let labels: BTreeMap<String, String> = serde_json::from_slice(&request.body).map_err(Failure::bad)?;
    let labels: Vec<_> = labels.into_iter().map(|(key, value)| metapb::StoreLabel { key, value }).collect();
    let force = query.text("force") == Some("true");
    core.write(|state| state.set_labels(id, &labels, force)).await?.map_err(failure)?;
    ok(json!("The store's label is updated."))
}

/// `POST /store/{id}/state?state=Up|Offline`.
pub(super) async fn set_state(core: &Core, id: &str, query: &Query) -> Answer {
    let id = number(id)?;
    let outcome = match query.text("state") {
        Some("Up") => core.write(|state| state.recall_store(id)).await?,
        Some("Offline") => core.write(|state| state.remove_store(id, false)).await?,
        other => {
            return Err(Failure::bad(format!("invalid state {:?}", other.unwrap_or_default())));
        }
    };
    outcome.map_err(failure)?;
    ok(json!("The store's state is updated."))
}

/// `DELETE /store/{id}`.
pub(super) async fn remove(core: &Core, id: &str, query: &Query) -> Answer {
    let id = number(id)?;
    let force = query.text("force").is_some();
    core.write(|state| state.remove_store(id, force)).await?.map_err(failure)?;
    ok(json!("The store is set as Offline."))
}

/// `GET /stores/limit`.
pub(super) async fn limits(core: &Core) -> Answer {
    let stores = core.read(|state| state.stores()).await?;
    let scheduler = core.scheduler();
    let here = stores.iter().filter(|store| store.state() != StoreState::Tombstone);
    let limits = here.map(|store| (store.id.to_string(), scheduler.config().rates(store.id).to_json()));
    ok(Value::Object(limits.collect()))
}

/// `POST /store/{id}/limit` and `/stores/limit` with `{"rate": n, "type": "add-peer" | "remove-peer"}`; both types
/// when none is named.
pub(super) async fn set_limit(core: &Core, id: Option<&str>, request: &HttpRequest) -> Answer {
    let id = id.map(|id| known(core, id)).transpose()?;
    let body: Value = serde_json::from_slice(&request.body).map_err(Failure::bad)?;
    let rate = as_float(&body["rate"]).filter(|rate| *rate > 0.0);
    let rate = rate.ok_or_else(|| Failure::bad("rate should be a number that > 0."))?;
    let (add, remove) = match body["type"].as_str() {
        None => (true, true),
        Some("add-peer") => (true, false),
        Some("remove-peer") => (false, true),
        Some(other) => return Err(Failure::bad(format!("unknown type {other:?}"))),
    };
    let set = |rates: &mut Rates| {
        if add {
            rates.add_peer = rate;
        }
        if remove {
            rates.remove_peer = rate;
        }
    };
    let changed = core.change_settings(|config| {
        match id {
            Some(id) => set(config.store_limit.entry(id).or_insert(config.default_store_limit)),
            None => {
                set(&mut config.default_store_limit);
                config.store_limit.values_mut().for_each(set);
            }
        }
        Ok::<(), Failure>(())
    });
    changed.await??;
    ok(json!("The store's limit is updated."))
}

/// `POST /store/{id}/weight` with `{"leader": n, "region": n}`.
pub(super) async fn set_weight(core: &Core, id: &str, request: &HttpRequest) -> Answer {
    let id = known(core, id)?;
    let body: Value = serde_json::from_slice(&request.body).map_err(Failure::bad)?;
    let part = |name: &str| as_float(&body[name]).ok_or_else(|| Failure::bad(format!("bad format {name} weight")));
    let weight = Weight { leader: part("leader")?, region: part("region")? };
    let changed = core.change_settings(|config| {
        config.store_weight.insert(id, weight);
        Ok::<(), Failure>(())
    });
    changed.await??;
    ok(json!("The store's weight is updated."))
}

/// The id of a store that there is.
fn known(core: &Core, id: &str) -> Result<u64, Failure> {
    let id = number(id)?;
    core.peek().store(id).map(|store| store.id).ok_or_else(|| failure(ClusterError::StoreNotFound(id)))
}

fn failure(error: ClusterError) -> Failure {
    let status = match error {
        ClusterError::StoreNotFound(_) => 404,
        ClusterError::Tombstone => 410,
        _ => 400,
    };
    Failure::new(status, error)
}

fn to_json(core: &Core, store: metapb::Store) -> Value {
    let vitals = core.vitals.borrow().of(store.id);
    let (directory, nothing) = (core.directory.borrow(), Tally::default());
    let tally = directory.tally(store.id).unwrap_or(&nothing);
    let store = core.with_heartbeat(store);
    let labels: Vec<Value> =
        store.labels.iter().map(|label| json!({ "key": label.key, "value": label.value })).collect();
    json!({
        "store": {
            "id": store.id,
            "address": store.address,
            "labels": labels,
            "version": store.version,
            "peer_address": store.peer_address,
            "status_address": store.status_address,
            "git_hash": store.git_hash,
            "start_timestamp": store.start_timestamp,
            "deploy_path": store.deploy_path,
            "last_heartbeat": store.last_heartbeat,
            "node_state": store.node_state,
            "state": store.state,
            "state_name": state_name(&store, &vitals),
            "node_state_name": node_state_name(&store),
        },
        "status": status(&vitals, tally, core.scheduler().config().weight(store.id)),
    })
}

fn state_name(store: &metapb::Store, vitals: &StoreVitals) -> &'static str {
    match store.state() {
        StoreState::Up if vitals.heartbeat_ns > 0 && !vitals.is_connected(executor::unix_time().seconds()) => {
            "Disconnected"
        }
        StoreState::Up => "Up",
        StoreState::Offline => "Offline",
        StoreState::Tombstone => "Tombstone",
    }
}

fn node_state_name(store: &metapb::Store) -> &'static str {
    match store.node_state() {
        NodeState::Preparing => "Preparing",
        NodeState::Serving => "Serving",
        NodeState::Removing => "Removing",
        NodeState::Removed => "Removed",
    }
}

fn status(vitals: &StoreVitals, tally: &Tally, weight: Weight) -> Value {
    let stats = &vitals.stats;
    let mut status = json!({
        "capacity": byte_size(stats.capacity),
        "available": byte_size(stats.available),
        "used_size": byte_size(stats.used_size),
        "leader_count": tally.leaders(),
        "leader_weight": weight.leader,
        "leader_score": tally.leaders(),
        "leader_size": tally.leader_size_mib,
        "region_count": tally.regions(),
        "region_weight": weight.region,
        "region_score": tally.region_size_mib,
        "region_size": tally.region_size_mib,
        "slow_score": stats.slow_score,
        "is_busy": stats.is_busy,
    });
    if stats.start_time > 0 {
        let start = UnixTime(u64::from(stats.start_time) * 1_000_000_000);
        status["start_ts"] = json!(rfc3339(start));
        status["uptime"] = json!(go_duration(vitals.heartbeat_ns.saturating_sub(start.0)));
    }
    if vitals.heartbeat_ns > 0 {
        status["last_heartbeat_ts"] = json!(rfc3339(UnixTime(vitals.heartbeat_ns)));
    }
    status
}
