//! `/schedulers` and `/scheduler-config`: what runs by itself.

use super::encoding::Query;
use super::regions::number;
use super::{Answer, Failure, ok};
use crate::schedule::config::{Schedulers, as_number};
use crate::schedule::{BALANCE_LEADER, BALANCE_REGION, EVICT_LEADER};
use crate::service::Core;
use crate::state::ClusterError;
use net::HttpRequest;
use serde_json::{Map, Value, json};
use std::time::Duration;

/// The longest pause: what is meant for longer is removed.
const PAUSE_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

/// `GET /schedulers`: names; `status=paused` or `status=disabled` for those that do nothing.
pub(super) fn list(core: &Core, query: &Query) -> Answer {
    let (scheduler, now) = (core.scheduler(), executor::now());
    let names = scheduler.schedulers();
    match query.text("status") {
        None | Some("") => ok(json!(names)),
        Some("paused") => {
            let paused: Vec<_> = names.into_iter().filter(|name| scheduler.is_paused(name, now)).collect();
            ok(json!(paused))
        }
        Some("disabled") => {
            let off = [BALANCE_LEADER, BALANCE_REGION].into_iter().filter(|name| !names.iter().any(|n| n == name));
            ok(json!(off.collect::<Vec<_>>()))
        }
        Some(other) => Err(Failure::bad(format!("unknown status {other:?}"))),
    }
}

/// `POST /schedulers` with `{"name": …, "store_id": n}`.
pub(super) async fn add(core: &Core, request: &HttpRequest) -> Answer {
    let body: Value = serde_json::from_slice(&request.body).map_err(Failure::bad)?;
    let name = body["name"].as_str().ok_or_else(|| Failure::bad("missing scheduler name"))?;
    if name == EVICT_LEADER {
        let store = as_number(&body["store_id"]).ok_or_else(|| Failure::bad("missing store id"))?;
        core.peek().store(store).ok_or_else(|| Failure::new(404, ClusterError::StoreNotFound(store)))?;
    }
    let change = |running: &mut Schedulers| match name {
        BALANCE_LEADER => running.balance_leader = true,
        BALANCE_REGION => running.balance_region = true,
        _ => running.evict_leader.extend(as_number(&body["store_id"])),
    };
    if ![BALANCE_LEADER, BALANCE_REGION, EVICT_LEADER].contains(&name) {
        return Err(Failure::bad("unknown scheduler"));
    }
    save(core, change).await?;
    ok(json!("The scheduler is created."))
}

/// `DELETE /schedulers/{name}`.
pub(super) async fn remove(core: &Core, name: &str) -> Answer {
    let runs = core.scheduler().schedulers().iter().any(|running| running == name);
    let evicts = name == EVICT_LEADER && !core.scheduler().config().schedulers.evict_leader.is_empty();
    if !runs && !evicts {
        return Err(Failure::new(404, "scheduler not found"));
    }
    let store = evicted(name);
    let change = |running: &mut Schedulers| match (name, store) {
        (BALANCE_LEADER, _) => running.balance_leader = false,
        (BALANCE_REGION, _) => running.balance_region = false,
        (_, Some(store)) => drop(running.evict_leader.remove(&store)),
        _ => running.evict_leader.clear(),
    };
    save(core, change).await?;
    ok(json!("The scheduler is removed."))
}

/// `POST /schedulers/{name}` with `{"delay": seconds}`; 0 goes on. `all` means every one.
pub(super) fn pause(core: &Core, name: &str, request: &HttpRequest) -> Answer {
    let body: Value = serde_json::from_slice(&request.body).map_err(Failure::bad)?;
    let delay = as_number(&body["delay"]).ok_or_else(|| Failure::bad("missing pause time"))?;
    let until = executor::now() + Duration::from_secs(delay).min(PAUSE_MAX);
    let mut scheduler = core.scheduler_mut();
    let names: Vec<String> = scheduler.schedulers();
    let chosen: Vec<String> = names.into_iter().filter(|other| is_named(other, name)).collect();
    if chosen.is_empty() && name != "all" {
        return Err(Failure::new(404, "scheduler not found"));
    }
    chosen.iter().for_each(|name| scheduler.pause(name, until));
    ok(json!("Pause or resume the scheduler successfully."))
}

fn is_named(scheduler: &str, name: &str) -> bool {
    name == "all" || scheduler == name || (name == EVICT_LEADER && evicted(scheduler).is_some())
}

/// The store of `evict-leader-scheduler-{id}`.
fn evicted(name: &str) -> Option<u64> {
    name.strip_prefix(EVICT_LEADER)?.strip_prefix('-')?.parse().ok()
}

/// `GET /scheduler-config[/{name}/list]`.
pub(super) fn config(core: &Core, path: &[&str]) -> Answer {
    let everything = || json!([{ "start-key": "", "end-key": "" }]);
    let stores: Map<String, Value> = {
        let scheduler = core.scheduler();
        let evicted = &scheduler.config().schedulers.evict_leader;
        evicted.iter().map(|store| (store.to_string(), everything())).collect()
    };
    let mut all = Map::new();
    all.insert(BALANCE_LEADER.into(), json!({ "ranges": everything(), "batch": 4 }));
    all.insert(BALANCE_REGION.into(), json!({ "ranges": everything() }));
    all.insert(EVICT_LEADER.into(), json!({ "store-id-ranges": stores, "batch": 4 }));
    match path {
        [] => ok(Value::Object(all)),
        [name] | [name, "list"] => ok(all.remove(*name).ok_or_else(|| Failure::new(404, "scheduler not found"))?),
        _ => Err(Failure::not_found()),
    }
}

/// `POST /scheduler-config/evict-leader-scheduler/config` and `DELETE …/delete/{store}`, as `pd-ctl` changes its stores.
pub(super) async fn set_config(core: &Core, request: &HttpRequest, path: &[&str]) -> Answer {
    match (request.method.as_str(), path) {
        ("POST", [EVICT_LEADER, "config"]) => add(core, request).await,
        ("DELETE", [EVICT_LEADER, "delete", store]) => {
            remove(core, &format!("{EVICT_LEADER}-{}", number(store)?)).await
        }
        _ => Err(Failure::not_found()),
    }
}

async fn save(core: &Core, change: impl FnOnce(&mut Schedulers)) -> Result<(), Failure> {
    let saved = core.change_settings(|config| {
        change(&mut config.schedulers);
        Ok::<(), Failure>(())
    });
    saved.await?
}
