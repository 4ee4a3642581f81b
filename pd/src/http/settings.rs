//! `/config`: what clients and tools read of PD's configuration, and what of it can be changed.

use super::{Answer, Failure, ok};
use crate::schedule::config::ConfigError;
use crate::service::Core;
use net::HttpRequest;
use serde_json::{Value, json};

/// Answers what is under `/config`.
pub(super) fn get(core: &Core, path: &[&str]) -> Answer {
    match path {
        [] => ok(all(core)),
        ["schedule"] => ok(core.scheduler().config().schedule_json()),
        ["replicate"] => ok(core.scheduler().config().replication_json()),
        ["store"] => ok(json!({})),
        ["cluster-version"] => ok(json!(cluster_version(core))),
        ["rules"] | ["rules", "group", "pd"] | ["rules", "key", _] => ok(json!([default_rule(core)])),
        ["rules", "group", _] => ok(json!([])),
        ["rule", "pd", "default"] => ok(default_rule(core)),
        ["rule_group", "pd"] => ok(json!({ "id": "pd", "index": 0, "override": false })),
        ["rule_groups"] => ok(json!([{ "id": "pd", "index": 0, "override": false }])),
        ["placement-rule"] => ok(json!([bundle("pd", json!([default_rule(core)]))])),
        ["placement-rule", "pd"] => ok(bundle("pd", json!([default_rule(core)]))),
        ["placement-rule", group] => ok(bundle(group, json!([]))),
        ["region-label", "rules"] | ["region-label", "rules", "ids"] => ok(json!([])),
        _ => Err(Failure::not_found()),
    }
}

fn all(core: &Core) -> Value {
    json!({
        "client-urls": core.identity.client_url,
        "advertise-client-urls": core.identity.client_url,
        "peer-urls": core.identity.client_url,
        "name": core.identity.name,
        "data-dir": core.config.data_dir.display().to_string(),
        "lease": 5,
        "tso-save-interval": "5s",
        "tso-update-physical-interval": "50ms",
        "cluster-version": cluster_version(core),
        "quota-backend-bytes": core.config.quota_backend_bytes.to_string(),
        "schedule": core.scheduler().config().schedule_json(),
        "replication": core.scheduler().config().replication_json(),
        "pd-server": { "metric-storage": "", "dashboard-address": "none" },
        "keyspace": { "pre-alloc": [] },
    })
}

/// `POST /config`, `/config/schedule` and `/config/replicate`: an object of items, their names with or without the
/// section in front.
pub(super) async fn set(core: &Core, path: &[&str], request: &HttpRequest) -> Answer {
    let body: Value = serde_json::from_slice(&request.body).map_err(Failure::bad)?;
    let items = body.as_object().ok_or_else(|| Failure::bad("the body is not an object"))?;
    let changed = core
        .change_settings(|config| {
            for (name, value) in items {
                match (name.as_str(), value) {
                    ("schedule" | "replication", Value::Object(inner)) if path.len() == 1 => {
                        inner.iter().try_for_each(|(name, value)| config.set(name, value))?;
                    }
                    (name, value) => {
                        let bare = name.strip_prefix("schedule.").or_else(|| name.strip_prefix("replication."));
                        config.set(bare.unwrap_or(name), value)?;
                    }
                }
            }
            Ok::<(), ConfigError>(())
        })
        .await?;
    changed.map_err(Failure::bad)?;
    ok(json!("The config is updated."))
}

fn cluster_version(core: &Core) -> String {
    core.peek().cluster_version().map_or_else(|| "0.0.0".to_owned(), |version| version.to_string())
}

fn default_rule(core: &Core) -> Value {
    let scheduler = core.scheduler();
    let config = scheduler.config();
    json!({
        "group_id": "pd",
        "id": "default",
        "start_key": "",
        "end_key": "",
        "role": "voter",
        "is_witness": false,
        "count": config.max_replicas,
        "location_labels": config.location_labels,
        "isolation_level": config.isolation_level,
    })
}

fn bundle(group: &str, rules: Value) -> Value {
    json!({ "group_id": group, "group_index": 0, "group_override": false, "rules": rules })
}
