//! Regions as JSON.

use super::encoding::{Query, hex, unescape, unhex};
use super::{Answer, Failure, ok};
use crate::directory::Region;
use crate::schedule;
use crate::service::Core;
use bytes::Bytes;
use net::{HttpRequest, HttpResponse};
use proto::metapb;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::rc::Rc;

/// Regions turned into JSON before other tasks get their turn.
const SLICE: usize = 256;
/// Regions that a list by keys holds at most, if the caller names no limit; PD's default.
const LIST_DEFAULT: usize = 16;

/// `/regions` and what is under it.
pub(super) async fn list(core: &Core, path: &[&str], query: &Query) -> Answer {
    let regions: Vec<Rc<Region>> = {
        let directory = core.directory.borrow();
        match path {
            [] => directory.iter().cloned().collect(),
            ["key"] => {
                let bad = || Failure::bad("the key is not hexadecimal");
                let (start, end) = (query.key("key").ok_or_else(bad)?, query.key("end_key").ok_or_else(bad)?);
                let limit = match query.text("limit") {
                    None => LIST_DEFAULT,
                    Some(limit) => limit.parse::<i64>().map_err(Failure::bad)?.try_into().unwrap_or(usize::MAX),
                };
                directory.scan(&start, &end).take(limit).cloned().collect()
            }
            ["store", id] => {
                let id = number(id)?;
                let on_store = |region: &&Rc<Region>| region.meta.peers.iter().any(|peer| peer.store_id == id);
                directory.iter().filter(on_store).cloned().collect()
            }
            ["sibling", id] => {
                let region = directory.by_id(number(id)?).ok_or_else(|| Failure::new(404, "region not found"))?;
                let before = directory.before_key(&region.meta.start_key);
                before.into_iter().chain(directory.after(region)).cloned().collect()
            }
            ["check", check] => directory.iter().filter(|region| checked(core, check, region)).cloned().collect(),
            ["count"] => return ok(json!({ "count": directory.len() })),
            ["replicated"] => return replicated(core, query),
            _ => return Err(Failure::not_found()),
        }
    };
    let mut body = format!("{{\"count\":{},\"regions\":[", regions.len());
    for (at, slice) in regions.chunks(SLICE).enumerate() {
        for (inside, region) in slice.iter().enumerate() {
            if at + inside > 0 {
                body.push(',');
            }
            body.push_str(&to_json(region).to_string());
        }
        executor::yield_now().await;
    }
    body.push_str("]}");
    Ok(HttpResponse::json(200, body))
}

fn checked(core: &Core, check: &str, region: &Region) -> bool {
    let voters = || schedule::view::voters(region).len() as u64;
    match check {
        "miss-peer" => voters() < core.scheduler().config().max_replicas,
        "extra-peer" => voters() > core.scheduler().config().max_replicas,
        "offline-peer" => {
            let scheduler = core.scheduler();
            let leaves = |peer: &metapb::Peer| scheduler.stores().get(&peer.store_id).is_none_or(|s| !s.is_up());
            region.meta.peers.iter().any(leaves)
        }
        "empty-region" => region.approximate_size == 1,
        "down-peer" => !region.down_peers.is_empty(),
        "pending-peer" => !region.pending_peers.is_empty(),
        "learner-peer" => region.meta.peers.iter().any(|peer| peer.role() == metapb::PeerRole::Learner),
        _ => false,
    }
}

/// Whether the regions of a range have their replicas: nothing is on its way to be placed.
fn replicated(core: &Core, query: &Query) -> Answer {
    let key =
        |name| unhex(query.bytes(name).unwrap_or_default()).ok_or_else(|| Failure::bad("the key is not hexadecimal"));
    let (start, end) = (key("startKey")?, key("endKey")?);
    let directory = core.directory.borrow();
    let scheduler = core.scheduler();
    let moves = |region: &Region| scheduler.controller().is_running(region.meta.id);
    let pending = directory.scan(&start, &end).any(|region| !region.pending_peers.is_empty() || moves(region));
    ok(json!(if pending { "INPROGRESS" } else { "REPLICATED" }))
}

/// `/region/id/{id}`; PD answers `null` for none.
pub(super) fn by_id(core: &Core, id: &str) -> Answer {
    let directory = core.directory.borrow();
    ok(directory.by_id(number(id)?).map_or(Value::Null, |region| to_json(region)))
}

/// `/region/key/{key}`.
pub(super) fn by_key(core: &Core, key: &str, query: &Query) -> Answer {
    let mut key = Bytes::from(unescape(key, true));
    if query.text("format") == Some("hex") {
        key = unhex(&key).ok_or_else(|| Failure::bad("the key is not hexadecimal"))?;
    }
    let directory = core.directory.borrow();
    ok(directory.by_key(&key).map_or(Value::Null, |region| to_json(region)))
}

/// `/stats/region`: sums over a range.
pub(super) fn stats(core: &Core, query: &Query) -> Answer {
    let bad = || Failure::bad("the key is not hexadecimal");
    let (start, end) = (query.key("start_key").ok_or_else(bad)?, query.key("end_key").ok_or_else(bad)?);
    let (mut count, mut empty, mut size, mut keys) = (0_u64, 0_u64, 0_u64, 0_u64);
    let mut by_store: BTreeMap<u64, [u64; 6]> = BTreeMap::new();
    for region in core.directory.borrow().scan(&start, &end) {
        count += 1;
        empty += u64::from(region.approximate_size <= 1);
        size += region.size_mib();
        keys += region.approximate_keys;
        for peer in &region.meta.peers {
            let sums = by_store.entry(peer.store_id).or_default();
            let leads = usize::from(region.leader.as_ref().is_some_and(|leader| leader.id == peer.id));
            sums[1] += 1;
            sums[3] += region.size_mib();
            sums[5] += region.approximate_keys;
            if leads == 1 {
                sums[0] += 1;
                sums[2] += region.size_mib();
                sums[4] += region.approximate_keys;
            }
        }
    }
    let column = |at: usize| -> BTreeMap<String, u64> {
        by_store.iter().map(|(store, sums)| (store.to_string(), sums[at])).collect()
    };
    ok(json!({
        "count": count,
        "empty_count": empty,
        "storage_size": size,
        "storage_keys": keys,
        "user_storage_size": size,
        "user_storage_keys": keys,
        "store_leader_count": column(0),
        "store_peer_count": column(1),
        "store_leader_size": column(2),
        "store_peer_size": column(3),
        "store_leader_keys": column(4),
        "store_peer_keys": column(5),
    }))
}

/// `POST /regions/split` with `{"split_keys": [hex], "retry_limit": n}`.
pub(super) async fn split(core: &Core, request: &HttpRequest) -> Answer {
    let body: Value = serde_json::from_slice(&request.body).map_err(Failure::bad)?;
    let key = |key: &Value| key.as_str().and_then(|digits| unhex(digits.as_bytes()));
    let keys: Option<Vec<Bytes>> = body["split_keys"].as_array().and_then(|keys| keys.iter().map(key).collect());
    let keys = keys.ok_or_else(|| Failure::bad("split_keys should be provided, in hexadecimal digits"))?;
    let (percentage, regions) = core.split_at(&keys, body["retry_limit"].as_u64().unwrap_or(0)).await;
    ok(json!({ "processed-percentage": percentage, "regions-id": regions }))
}

/// `POST /regions/scatter` with `{"start_key": hex, "end_key": hex}` or `{"regions_id": [n]}`, `"group"` and
/// `"retry_limit"`.
pub(super) async fn scatter(core: &Core, request: &HttpRequest) -> Answer {
    let body: Value = serde_json::from_slice(&request.body).map_err(Failure::bad)?;
    let key = |name: &str| {
        let digits = body[name].as_str().unwrap_or_default();
        unhex(digits.as_bytes()).ok_or_else(|| Failure::bad("the key is not hexadecimal"))
    };
    let (start, end) = (key("start_key")?, key("end_key")?);
    let regions: Vec<u64> = body["regions_id"].as_array().into_iter().flatten().filter_map(Value::as_u64).collect();
    let group = body["group"].as_str().unwrap_or_default();
    super::operators::scatter(core, &start, &end, regions, group, body["retry_limit"].as_u64().unwrap_or(0)).await
}

/// `DELETE /admin/cache/region/{id}`: its leader's next heartbeat brings it back.
pub(super) fn forget(core: &Core, id: &str) -> Answer {
    core.directory.borrow_mut().remove(number(id)?);
    ok(json!("The region is removed from server cache."))
}

pub(super) fn number(text: &str) -> Result<u64, Failure> {
    text.parse().map_err(|_| Failure::bad(format!("strconv.ParseUint: parsing {text:?}: invalid syntax")))
}

fn to_json(region: &Region) -> Value {
    let mut json = json!({
        "id": region.meta.id,
        "start_key": hex(&region.meta.start_key),
        "end_key": hex(&region.meta.end_key),
        "epoch": { "conf_ver": region.conf_ver(), "version": region.version() },
        "peers": region.meta.peers.iter().map(peer_to_json).collect::<Vec<_>>(),
        "leader": region.leader.as_ref().map_or_else(|| json!({ "role_name": "Voter" }), peer_to_json),
        "cpu_usage": 0,
        "written_bytes": region.flow.bytes_written,
        "read_bytes": region.flow.bytes_read,
        "written_keys": region.flow.keys_written,
        "read_keys": region.flow.keys_read,
        "approximate_size": region.size_mib(),
        "approximate_keys": region.approximate_keys,
    });
    if !region.down_peers.is_empty() {
        let down = region
            .down_peers
            .iter()
            .map(|down| json!({ "peer": down.peer.as_ref().map(peer_to_json), "down_sec": down.down_seconds }));
        json["down_peers"] = down.collect();
    }
    if !region.pending_peers.is_empty() {
        json["pending_peers"] = region.pending_peers.iter().map(peer_to_json).collect();
    }
    json
}

fn peer_to_json(peer: &metapb::Peer) -> Value {
    let role = peer.role();
    let name = match role {
        metapb::PeerRole::Voter => "Voter",
        metapb::PeerRole::Learner => "Learner",
        metapb::PeerRole::IncomingVoter => "IncomingVoter",
        metapb::PeerRole::DemotingVoter => "DemotingVoter",
    };
    let mut json = json!({ "id": peer.id, "store_id": peer.store_id, "role_name": name });
    if role != metapb::PeerRole::Voter {
        json["role"] = json!(i32::from(role));
    }
    if role == metapb::PeerRole::Learner {
        json["is_learner"] = json!(true);
    }
    json
}
