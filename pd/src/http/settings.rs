//! `/config`: what clients and tools read of PD's configuration. Nothing can be changed over HTTP yet.

use super::{Answer, Failure, ok};
use crate::service::Core;
use serde_json::{Value, json};

/// Answers what is under `/config`.
pub(super) fn get(core: &Core, path: &[&str]) -> Answer {
    match path {
        [] => ok(all(core)),
        ["schedule"] => ok(schedule()),
        ["replicate"] => ok(replication(core)),
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
        "schedule": schedule(),
        "replication": replication(core),
        "pd-server": { "metric-storage": "", "dashboard-address": "none" },
        "keyspace": { "pre-alloc": [] },
    })
}

/// PD's defaults. As long as no replica is placed they are what tools expect to find, no more.
fn schedule() -> Value {
    json!({
        "max-snapshot-count": 64,
        "max-pending-peer-count": 64,
        "max-merge-region-size": 54,
        "max-merge-region-keys": 0,
        "split-merge-interval": "1h0m0s",
        "max-store-down-time": "30m0s",
        "leader-schedule-limit": 4,
        "region-schedule-limit": 2048,
        "replica-schedule-limit": 64,
        "merge-schedule-limit": 8,
        "hot-region-schedule-limit": 4,
        "patrol-region-interval": "10ms",
    })
}

fn replication(core: &Core) -> Value {
    json!({
        "max-replicas": core.config.max_replicas,
        "location-labels": "",
        "strictly-match-label": "false",
        "enable-placement-rules": "true",
        "isolation-level": "",
    })
}

fn cluster_version(core: &Core) -> String {
    core.peek().cluster_version().map_or_else(|| "0.0.0".to_owned(), |version| version.to_string())
}

fn default_rule(core: &Core) -> Value {
    json!({
        "group_id": "pd",
        "id": "default",
        "start_key": "",
        "end_key": "",
        "role": "voter",
        "is_witness": false,
        "count": core.config.max_replicas,
    })
}

fn bundle(group: &str, rules: Value) -> Value {
    json!({ "group_id": group, "group_index": 0, "group_override": false, "rules": rules })
}
