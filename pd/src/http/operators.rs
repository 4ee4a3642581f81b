//! `/operators`: what is done with regions, and asking for something to be done with one.

use super::encoding::{Query, unhex};
use super::regions::number;
use super::{Answer, Failure, ok};
use crate::schedule::{Kind, Operator, Request, RequestError};
use crate::service::{Core, OrderError};
use bytes::Bytes;
use net::HttpRequest;
use proto::pdpb::CheckPolicy;
use serde::Deserialize;
use serde_json::{Value, json};

/// The body of `POST /operators`, in the words of `pd-ctl`.
#[derive(Deserialize)]
struct Body {
    name: String,
    #[serde(default)]
    region_id: u64,
    source_region_id: Option<u64>,
    target_region_id: Option<u64>,
    store_id: Option<u64>,
    from_store_id: Option<u64>,
    to_store_id: Option<u64>,
    to_store_ids: Option<Vec<u64>>,
    #[serde(default)]
    policy: String,
    #[serde(default)]
    keys: Vec<String>,
    #[serde(default)]
    start_key: String,
    #[serde(default)]
    end_key: String,
    #[serde(default)]
    region_ids: Vec<u64>,
    #[serde(default)]
    group: String,
    #[serde(default)]
    retry_limit: u64,
}

/// `POST /operators`. The answer comes when the operator is begun, not when it is done.
pub(super) async fn add(core: &Core, request: &HttpRequest) -> Answer {
    let body: Body = serde_json::from_slice(&request.body).map_err(Failure::bad)?;
    match body.name.as_str() {
        "scatter-region" => {
            let outcome = core.scatter_one(body.region_id, &body.group).await;
            outcome.map_err(|refused| failure(OrderError::Refused(refused)))?;
        }
        "scatter-regions" => {
            let key = |text: &str| unhex(text.as_bytes()).ok_or_else(|| Failure::bad("the key is not hexadecimal"));
            let (start, end) = (key(&body.start_key)?, key(&body.end_key)?);
            return scatter(core, &start, &end, body.region_ids, &body.group, body.retry_limit).await;
        }
        _ => {
            let (region, request) = wanted(&body)?;
            core.order(region, &request).await.map_err(failure)?;
        }
    }
    ok(json!("The operator is created."))
}

/// What a body wants, and of which region.
fn wanted(body: &Body) -> Result<(u64, Request), Failure> {
    let need = |field: Option<u64>, text: &str| field.ok_or_else(|| Failure::bad(text));
    let store = || need(body.store_id, "invalid store id");
    let request = match body.name.as_str() {
        "transfer-leader" => Request::TransferLeader(need(body.to_store_id, "missing store id to transfer leader to")?),
        "transfer-region" => {
            let stores = body.to_store_ids.clone().filter(|stores| !stores.is_empty());
            Request::TransferRegion(stores.ok_or_else(|| Failure::bad("invalid store ids to transfer region to"))?)
        }
        "transfer-peer" => Request::TransferPeer {
            from: need(body.from_store_id, "invalid store id to transfer peer from")?,
            to: need(body.to_store_id, "invalid store id to transfer peer to")?,
        },
        "add-peer" => Request::AddPeer(store()?),
        "add-learner" => Request::AddLearner(store()?),
        "remove-peer" => Request::RemovePeer(store()?),
        "merge-region" => {
            let source = need(body.source_region_id, "invalid source region id to merge")?;
            let target = need(body.target_region_id, "invalid target region id to merge to")?;
            return Ok((source, Request::Merge(target)));
        }
        "split-region" => split(body)?,
        _ => return Err(Failure::bad("unknown operator")),
    };
    Ok((body.region_id, request))
}

fn split(body: &Body) -> Result<Request, Failure> {
    let policy = CheckPolicy::from_str_name(&body.policy.to_ascii_uppercase())
        .ok_or_else(|| Failure::bad(format!("check policy {:?} is not supported", body.policy)))?;
    let keys: Option<Vec<Bytes>> = body.keys.iter().map(|key| unhex(key.as_bytes())).collect();
    let keys = keys.ok_or_else(|| Failure::bad("the keys are not hexadecimal"))?;
    if policy == CheckPolicy::Usekey && keys.is_empty() {
        return Err(Failure::bad("split-region with the policy usekey needs keys"));
    }
    Ok(Request::Split(policy, keys))
}

/// Scatters regions by their ids, or those of a range.
pub(super) async fn scatter(
    core: &Core,
    start: &[u8],
    end: &[u8],
    mut regions: Vec<u64>,
    group: &str,
    retry_limit: u64,
) -> Answer {
    if regions.is_empty() {
        regions = core.directory.borrow().scan(start, end).map(|region| region.meta.id).collect();
    }
    let scattered = core.scatter_regions(&regions, group, retry_limit).await?;
    ok(json!({ "processed-percentage": scattered.percentage }))
}

fn failure(error: OrderError) -> Failure {
    let status = match &error {
        OrderError::Request(RequestError::NoRegion(_) | RequestError::NoStore(_)) => 404,
        OrderError::Request(RequestError::Unfit(_)) => 400,
        OrderError::Refused(_) | OrderError::NoStream { .. } => 500,
    };
    Failure::new(status, error)
}

/// `GET /operators`: what is under way, `kind=` this or that.
pub(super) fn list(core: &Core, query: &Query) -> Answer {
    let kinds: Vec<&str> = query.all("kind").filter_map(|kind| std::str::from_utf8(kind).ok()).collect();
    let wanted = |operator: &&Operator| {
        let is = |kind: &&str| match *kind {
            "admin" => operator.plan.is_admin,
            "region" => operator.plan.kind != Kind::Leader,
            kind => kind == operator.plan.kind.name(),
        };
        kinds.is_empty() || kinds.iter().any(is)
    };
    let now = executor::now();
    let scheduler = core.scheduler();
    let operators: Vec<String> =
        scheduler.controller().operators().filter(wanted).map(|operator| operator.describe(now)).collect();
    ok(json!(operators))
}

/// `GET /operators/records`: what has ended, the newest first.
pub(super) fn records(core: &Core) -> Answer {
    let scheduler = core.scheduler();
    let records: Vec<Value> = scheduler.controller().records().rev().map(|record| json!(record.text)).collect();
    ok(json!(records))
}

/// `GET /operators/{region}`: what is done with it, or was done last.
pub(super) fn one(core: &Core, region: &str) -> Answer {
    let region = number(region)?;
    let scheduler = core.scheduler();
    let controller = scheduler.controller();
    if let Some(operator) = controller.operator(region) {
        return ok(json!(format!("status: RUNNING, operator: {}", operator.describe(executor::now()))));
    }
    let record = controller.records().rev().find(|record| record.region == region);
    let record = record.ok_or_else(|| Failure::new(404, "operator not found"))?;
    ok(json!(format!("status: {}, operator: {}", record.status.as_str_name(), record.text)))
}

/// `DELETE /operators/{region}`.
pub(super) fn remove(core: &Core, region: &str) -> Answer {
    if !core.scheduler_mut().controller_mut().cancel(number(region)?, executor::now()) {
        return Err(Failure::new(404, "operator not found"));
    }
    ok(json!("The pending operator is canceled."))
}

/// `DELETE /operators`.
pub(super) fn remove_all(core: &Core) -> Answer {
    let now = executor::now();
    let mut scheduler = core.scheduler_mut();
    let regions: Vec<u64> = scheduler.controller().operators().map(|operator| operator.plan.region).collect();
    for region in regions {
        scheduler.controller_mut().cancel(region, now);
    }
    ok(json!("All pending operators are canceled."))
}
