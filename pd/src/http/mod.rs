//! PD's REST paths, as far as tools, tests and clients ask a leader for them. The shapes are those of `pd-ctl`. What any
//! member answers stands in `crate::member::front`.

mod encoding;
mod keyspaces;
mod operators;
mod regions;
mod schedulers;
mod settings;
mod stores;

use crate::service::Core;
use crate::state::GcScope;
use encoding::Query;
use net::{HttpRequest, HttpResponse};
use serde_json::{Value, json};
use std::rc::Rc;

/// A leader's answer to a request.
pub(crate) async fn handle(core: Rc<Core>, request: &HttpRequest) -> HttpResponse {
    match route(&core, request).await {
        Ok(response) => response,
        Err(failure) => failure.into_response(),
    }
}

/// A request that is not answered with 200.
#[derive(Debug)]
struct Failure {
    status: u16,
    text: String,
}

impl Failure {
    fn new(status: u16, text: impl ToString) -> Failure {
        Failure { status, text: text.to_string() }
    }

    fn not_found() -> Failure {
        Failure::new(404, "404 page not found")
    }

    fn bad(text: impl ToString) -> Failure {
        Failure::new(400, text)
    }

    /// PD answers errors with a JSON string.
    fn into_response(self) -> HttpResponse {
        HttpResponse::json(self.status, Value::from(self.text).to_string())
    }
}

impl From<proto::rpc::Status> for Failure {
    fn from(status: proto::rpc::Status) -> Failure {
        Failure::new(503, status.message)
    }
}

type Answer = Result<HttpResponse, Failure>;

fn ok(value: Value) -> Answer {
    Ok(HttpResponse::json(200, value.to_string()))
}

async fn route(core: &Rc<Core>, request: &HttpRequest) -> Answer {
    let path = request.path.trim_end_matches('/');
    let parts: Vec<&str> = path.split('/').skip(1).collect();
    let query = Query::parse(&request.query);
    match (request.method.as_str(), parts.as_slice()) {
        ("GET", ["pd", "api", "v1", rest @ ..]) => get(core, rest, &query).await,
        (_, ["pd", "api", "v1", rest @ ..]) => change(core, request, rest, &query).await,
        (_, ["pd", "api", "v2", "keyspaces", rest @ ..]) => keyspaces::route(core, request, rest, &query).await,
        _ => Err(Failure::not_found()),
    }
}

async fn get(core: &Rc<Core>, path: &[&str], query: &Query) -> Answer {
    match path {
        ["cluster"] => cluster(core).await,
        ["cluster", "status"] => cluster_status(core).await,
        ["min-resolved-ts", scope @ ..] => min_resolved_ts(core, scope),
        ["gc", "safepoint"] => gc_safe_point(core).await,
        ["stores", "limit"] => stores::limits(core).await,
        ["stores"] | ["stores", "check"] => stores::list(core, query).await,
        ["store", id] => stores::one(core, id).await,
        ["regions", rest @ ..] => regions::list(core, rest, query).await,
        ["region", "id", id] => regions::by_id(core, id),
        ["region", "key", key] => regions::by_key(core, key, query),
        ["stats", "region"] => regions::stats(core, query),
        ["hotspot", "regions", "read" | "write"] => ok(json!({ "as_peer": {}, "as_leader": {} })),
        ["hotspot", "stores"] => ok(json!({
            "bytes-write-rate": {}, "bytes-read-rate": {}, "keys-write-rate": {}, "keys-read-rate": {},
        })),
        ["operators"] => operators::list(core, query),
        ["operators", "records"] => operators::records(core),
        ["operators", region] => operators::one(core, region),
        ["schedulers"] => schedulers::list(core, query),
        ["scheduler-config", rest @ ..] => schedulers::config(core, rest),
        ["config", rest @ ..] => settings::get(core, rest),
        _ => Err(Failure::not_found()),
    }
}

async fn change(core: &Rc<Core>, request: &HttpRequest, path: &[&str], query: &Query) -> Answer {
    match (request.method.as_str(), path) {
        ("POST", ["store", id, "label"]) => stores::label(core, id, request, query).await,
        ("POST", ["store", id, "state"]) => stores::set_state(core, id, query).await,
        ("POST", ["store", id, "weight"]) => stores::set_weight(core, id, request).await,
        ("POST", ["store", id, "limit"]) => stores::set_limit(core, Some(id), request).await,
        ("POST", ["stores", "limit"]) => stores::set_limit(core, None, request).await,
        ("DELETE", ["store", id]) => stores::remove(core, id, query).await,
        ("POST", ["regions", "split"]) => regions::split(core, request).await,
        ("POST", ["regions", "scatter"]) => regions::scatter(core, request).await,
        ("POST", ["regions", "accelerate-schedule"] | ["regions", "accelerate-schedule", "batch"]) => {
            ok(json!("Accelerate regions scheduling in a given range, the patrol takes them in turn"))
        }
        ("DELETE", ["admin", "cache", "region", id]) => regions::forget(core, id),
        ("POST", ["operators"]) => operators::add(core, request).await,
        ("DELETE", ["operators"]) => operators::remove_all(core),
        ("DELETE", ["operators", region]) => operators::remove(core, region),
        ("POST", ["schedulers"]) => schedulers::add(core, request).await,
        ("POST", ["schedulers", name]) => schedulers::pause(core, name, request),
        ("DELETE", ["schedulers", name]) => schedulers::remove(core, name).await,
        (_, ["scheduler-config", rest @ ..]) => schedulers::set_config(core, request, rest).await,
        ("POST", ["config"] | ["config", "schedule"] | ["config", "replicate"]) => {
            settings::set(core, path, request).await
        }
        // There is nothing behind these: 412 is what TiDB takes for "not supported".
        ("POST" | "PATCH" | "PUT" | "DELETE", ["config", ..]) => {
            Err(Failure::new(412, "this placement driver has one placement rule, which cannot be changed here"))
        }
        _ => Err(Failure::not_found()),
    }
}

/// The counters of a leader, and `more` gauges besides, as Prometheus reads them.
pub(crate) fn metrics(core: &Core, more: &[(&str, u64)]) -> String {
    let scheduler = core.scheduler();
    let operators = scheduler.controller();
    let state = core.peek();
    let mut gauges = vec![
        ("pd_schedule_operators_running", operators.operators().count() as u64),
        ("pd_schedule_up_stores", scheduler.stores().values().filter(|store| store.is_up()).count() as u64),
        ("pd_regions", core.directory.borrow().len() as u64),
        ("pd_stores", state.stores().len() as u64),
        ("pd_keys", state.space().len() as u64),
        ("pd_keys_bytes", state.space().bytes() as u64),
        ("pd_journal_backlog_bytes", core.line.backlog() as u64),
    ];
    gauges.extend_from_slice(more);
    let text = core.metrics.to_prometheus(&gauges);
    let counts = operators.counts().iter().map(|((name, event), count)| {
        format!("pd_schedule_operators_count{{type=\"{name}\",event=\"{event}\"}} {count}\n")
    });
    text + "# TYPE pd_schedule_operators_count counter\n" + &counts.collect::<String>()
}

async fn cluster(core: &Core) -> Answer {
    let cluster = core.read(|state| state.cluster()).await?;
    let max_peer_count = cluster.map_or(core.config.max_replicas, |cluster| cluster.max_peer_count);
    ok(json!({ "id": core.identity.cluster_id.0, "max_peer_count": max_peer_count }))
}

async fn cluster_status(core: &Core) -> Answer {
    let time = core.read(|state| state.bootstrap_time()).await?;
    ok(json!({
        "raft_bootstrap_time": time.map_or_else(|| "0001-01-01T00:00:00Z".to_owned(), encoding::rfc3339),
        "is_initialized": time.is_some(),
        "replication_status": "",
    }))
}

fn min_resolved_ts(core: &Core, scope: &[&str]) -> Answer {
    let ts = match scope {
        [] => core.min_resolved_ts(),
        [store] => {
            let store = store.parse().map_err(|_| Failure::bad("the store's id is not a number"))?;
            core.vitals.borrow().of(store).min_resolved_ts
        }
        _ => return Err(Failure::not_found()),
    };
    ok(json!({
        "min_resolved_ts": ts.unwrap_or(u64::MAX),
        "persist_interval": "1s",
        "is_real_time": true,
        "stores_min_resolved_ts": null,
    }))
}

async fn gc_safe_point(core: &Core) -> Answer {
    let now = executor::unix_time();
    let state = core.read(|state| state.gc_state(GcScope::CLUSTER, now)).await?;
    let barriers: Vec<Value> = state
        .barriers
        .iter()
        .map(|barrier| json!({ "service_id": barrier.id, "expired_at": barrier.expires_at, "safe_point": barrier.ts }))
        .collect();
    let smallest = state.barriers.iter().map(|barrier| barrier.ts).fold(state.txn_safe_point, u64::min);
    ok(json!({
        "service_gc_safe_points": barriers,
        "min_service_gc_safe_point": smallest,
        "gc_safe_point": state.gc_safe_point,
    }))
}
