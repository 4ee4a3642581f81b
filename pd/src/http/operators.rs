//! `/operators`: asking something of one region. Only splits: everything else moves replicas.

use super::encoding::unhex;
use super::{Answer, Failure, ok};
use crate::service::{Core, OrderError};
use bytes::Bytes;
use net::HttpRequest;
use proto::pdpb::CheckPolicy;
use serde::Deserialize;
use serde_json::json;

#[derive(Deserialize)]
struct Operator {
    name: String,
    #[serde(default)]
    region_id: u64,
    #[serde(default)]
    policy: String,
    #[serde(default)]
    keys: Vec<String>,
}

/// `POST /operators` with `{"name": "split-region", "region_id": n, "policy": "scan" | "approximate" | "usekey",
/// "keys": [hex]}`. The answer comes when the region's leader has been asked, not when it has split.
pub(super) async fn add(core: &Core, request: &HttpRequest) -> Answer {
    let Operator { name, region_id, policy, keys } = serde_json::from_slice(&request.body).map_err(Failure::bad)?;
    if name != "split-region" {
        return Err(Failure::new(412, format!("operator {name:?} needs replicas, which are not placed yet")));
    }
    let policy = CheckPolicy::from_str_name(&policy.to_ascii_uppercase())
        .ok_or_else(|| Failure::bad(format!("check policy {policy:?} is not supported")))?;
    let keys: Option<Vec<Bytes>> = keys.iter().map(|key| unhex(key.as_bytes())).collect();
    let keys = keys.ok_or_else(|| Failure::bad("the keys are not hexadecimal"))?;
    if policy == CheckPolicy::Usekey && keys.is_empty() {
        return Err(Failure::bad("split-region with the policy usekey needs keys"));
    }
    match core.order_split(region_id, policy, keys).await {
        Ok(()) => ok(json!("The operator is created.")),
        Err(error @ OrderError::Unknown(_)) => Err(Failure::new(404, error)),
        Err(error) => Err(Failure::new(500, error)),
    }
}
