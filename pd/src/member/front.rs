//! The REST paths of any member: what it answers itself, and the rest from the leader.

use super::Member;
use super::group::{MemberInfo, full};
use crate::clock::lease_now;
use crate::config::ANNOUNCED_VERSION;
use crate::http;
use crate::raft::MemberRole;
use net::{HttpHandler, HttpRequest, HttpResponse, NetMetrics};
use proto::memberpb::{HttpCall, MemberAction, MemberCall, MembersClient};
use proto::rpc::{CallContext, Code, LocalFuture, Status};
use serde_json::{Value, json};
use std::rc::Rc;
use std::time::Duration;

/// How long the leader may take for a request that came here.
const LEADER_LIMIT: Duration = Duration::from_secs(30);
/// A member that was not heard for so long counts as not healthy.
const HEALTHY: Duration = Duration::from_secs(2);

/// Answers the REST paths.
pub(crate) struct Front {
    pub(crate) member: Rc<Member>,
    /// Counters of the port.
    pub(crate) net: Rc<NetMetrics>,
}

impl HttpHandler for Front {
    fn handle(&self, request: HttpRequest) -> LocalFuture<HttpResponse> {
        let (member, net) = (Rc::clone(&self.member), Rc::clone(&self.net));
        Box::pin(async move {
            if request.method == "GET" && request.path == "/metrics" {
                return HttpResponse::new(200, "text/plain; version=0.0.4", metrics(&member, &net));
            }
            let leader = member.leader().map(|leader| leader.id).filter(|leader| *leader != member.own_id());
            match leader {
                Some(leader) if !is_own(&request) => ask_leader(&member, leader, request).await,
                _ => answer_here(&member, &request).await,
            }
        })
    }
}

/// Whether every member answers this by itself.
fn is_own(request: &HttpRequest) -> bool {
    let path = request.path.trim_end_matches('/');
    let own = ["/members", "/leader", "/version", "/status", "/ping"];
    let in_v1 = path.strip_prefix("/pd/api/v1").is_some_and(|path| own.contains(&path));
    let changes_members = request.method != "GET" && path.starts_with("/pd/api/v1/members");
    changes_members
        || request.method == "GET" && (in_v1 || matches!(path, "/pd/api/v2/members" | "/health" | "/version"))
}

/// The leader's answer to a request.
async fn ask_leader(member: &Member, leader: u64, request: HttpRequest) -> HttpResponse {
    let Some(channel) = member.lines.channel(leader) else { return no_leader() };
    let call = HttpCall {
        group: member.group().number,
        method: request.method,
        path: request.path,
        query: request.query,
        body: request.body,
    };
    let cx = CallContext::with_deadline(executor::now() + LEADER_LIMIT);
    match MembersClient::new(channel).http(cx, &call).await {
        Ok(answer) => {
            let status = u16::try_from(answer.status).unwrap_or(500);
            HttpResponse { status, content_type: answer.content_type, body: answer.body }
        }
        Err(status) => error(503, &format!("the leader cannot be asked: {status}")),
    }
}

/// This member's answer, which is an error where only a leader could say more.
pub(super) async fn answer_here(member: &Rc<Member>, request: &HttpRequest) -> HttpResponse {
    if member.is_over() {
        return HttpResponse::text(503, "server not started");
    }
    let path = request.path.trim_end_matches('/');
    let parts: Vec<&str> = path.split('/').skip(1).collect();
    match (request.method.as_str(), parts.as_slice()) {
        ("GET", ["pd", "api", "v1", "members"]) => json_of(&members(member)),
        ("GET", ["pd", "api", "v2", "members"]) => json_of(&json!({ "members": list(member) })),
        ("GET", ["pd", "api", "v1", "leader"]) => match member.leader() {
            Some(leader) => json_of(&to_json(member, &leader)),
            None => no_leader(),
        },
        ("GET", ["pd", "api", "v1", "health"]) => json_of(&health(member)),
        ("GET", ["pd", "api", "v1", "ping"]) => HttpResponse::text(200, ""),
        ("GET", ["pd", "api", "v1", "version"]) => json_of(&json!({ "version": ANNOUNCED_VERSION })),
        ("GET", ["pd", "api", "v1", "status"]) => json_of(&json!({
            "build_ts": "",
            "version": ANNOUNCED_VERSION,
            "git_hash": "",
            "start_timestamp": member.started.seconds(),
        })),
        ("POST", ["pd", "api", "v1", "leader", "resign"]) => hand_over(member, None).await,
        ("POST", ["pd", "api", "v1", "leader", "transfer", name]) => hand_over(member, Some(name)).await,
        ("DELETE", ["pd", "api", "v1", "members", "name", name]) => {
            remove(member, |info| info.name == **name, name).await
        }
        ("DELETE", ["pd", "api", "v1", "members", "id", id]) => {
            let Ok(number) = id.parse::<u64>() else { return error(400, "the member's id is not a number") };
            remove(member, |info| info.id == number, id).await
        }
        ("POST", ["pd", "api", "v1", "members"]) => add(member, request).await,
        // etcd's own paths, which some tools probe.
        ("GET", ["health"]) => json_of(&json!({ "health": member.leader().is_some().to_string() })),
        ("GET", ["version"]) => json_of(&json!({ "etcdserver": "3.5.0", "etcdcluster": "3.5.0" })),
        _ => match member.serving() {
            Some(term) => http::handle(Rc::clone(&term.core), request).await,
            None => no_leader(),
        },
    }
}

/// Lets a member in that has not started yet: `{"url": …}`, and `"learner": true` for one that is not to vote.
async fn add(member: &Member, request: &HttpRequest) -> HttpResponse {
    let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
    let Some(url) = body["url"].as_str() else { return error(400, "the member's url is missing") };
    let action = if body["learner"] == true { MemberAction::Learn } else { MemberAction::Add };
    let call = MemberCall { action: action.into(), url: full(url, &member.config), ..MemberCall::default() };
    match member.change_members(call).await {
        Ok(answer) => json_of(&json!({ "member_id": answer.id, "peer_urls": [full(url, &member.config)] })),
        Err(status) => refusal(&status),
    }
}

fn refusal(status: &Status) -> HttpResponse {
    let number = match status.code {
        Code::NotFound => 404,
        Code::Unavailable => 503,
        Code::InvalidArgument => 400,
        _ => 500,
    };
    error(number, &status.message)
}

/// Removes the member that `is_it` finds; `word` is how the caller named it.
async fn remove(member: &Member, is_it: impl Fn(&MemberInfo) -> bool, word: &str) -> HttpResponse {
    let Some(id) = member.group().members.iter().find(|info| is_it(info)).map(|info| info.id) else {
        return error(404, &format!("not found, pd: {word}"));
    };
    let call = MemberCall { action: MemberAction::Remove.into(), id, ..MemberCall::default() };
    match member.change_members(call).await {
        Ok(_) => json_of(&json!(format!("removed, pd: {word}"))),
        Err(status) if status.code == Code::NotFound => error(404, &format!("not found, pd: {word}")),
        Err(status) => refusal(&status),
    }
}

async fn hand_over(member: &Member, name: Option<&str>) -> HttpResponse {
    if member.serving().is_none() {
        return no_leader();
    }
    let group = member.group();
    let named = |name: &str| group.others().find(|other| other.name == name).map(|other| other.id);
    let to = match name {
        Some(name) if name == group.own().name => {
            return json_of(&json!("The transfer command is submitted."));
        }
        Some(name) => match named(name) {
            Some(id) => Some(id),
            None => return error(404, &format!("not found, pd: {name}")),
        },
        None => None,
    };
    if member.hand_over(to).await {
        let what = if name.is_some() { "transfer" } else { "resign" };
        json_of(&json!(format!("The {what} command is submitted.")))
    } else {
        error(500, "no valid pd to transfer leader to")
    }
}

fn json_of(value: &Value) -> HttpResponse {
    HttpResponse::json(200, value.to_string())
}

/// PD answers errors with a JSON string.
fn error(status: u16, text: &str) -> HttpResponse {
    HttpResponse::json(status, Value::from(text).to_string())
}

fn no_leader() -> HttpResponse {
    error(503, "no leader")
}

fn to_json(member: &Member, info: &MemberInfo) -> Value {
    let own = info.id == member.own_id();
    let deploy_path = if own { member.config.data_dir.display().to_string() } else { String::new() };
    json!({
        "name": info.name,
        "member_id": info.id,
        "peer_urls": [info.url],
        "client_urls": info.client_urls(),
        "deploy_path": deploy_path,
        "binary_version": ANNOUNCED_VERSION,
        "git_hash": "",
        "is_learner": info.role != MemberRole::Voter,
    })
}

fn list(member: &Member) -> Vec<Value> {
    member.group().members.iter().map(|info| to_json(member, info)).collect()
}

fn members(member: &Member) -> Value {
    let leader = member.leader().map(|leader| to_json(member, &leader));
    json!({
        "header": { "cluster_id": member.cluster_id().0 },
        "members": list(member),
        "leader": leader,
        "etcd_leader": leader,
    })
}

/// A leader hears of all members; without one each member knows of itself alone.
fn health(member: &Member) -> Value {
    let now = lease_now();
    let node = member.node.borrow();
    let is_healthy = |id: u64| {
        let heard = || node.heard(id).is_some_and(|heard| now.since(heard) < HEALTHY);
        if id == member.own_id() { node.leader().is_some() } else { heard() }
    };
    let one = |info: &MemberInfo| {
        json!({
            "name": info.name,
            "member_id": info.id,
            "client_urls": info.client_urls(),
            "health": is_healthy(info.id),
        })
    };
    member.group().members.iter().map(one).collect()
}

fn metrics(member: &Member, net: &NetMetrics) -> String {
    let node = member.node.borrow();
    let reloads = member.config.server.tls.as_ref().map(net::Tls::reloads).unwrap_or_default();
    let raft = [
        ("pd_net_connections", net.connections.get()),
        ("pd_net_tls_handshakes_total", net.tls_handshakes_total.get()),
        ("pd_net_tls_refused_total", net.tls_refused_total.get()),
        ("pd_net_tls_reloads_total", reloads.swapped),
        ("pd_net_tls_reloads_refused_total", reloads.refused),
        ("pd_raft_term", node.term()),
        ("pd_raft_applied_index", node.applied().index),
        ("pd_raft_is_leader", u64::from(node.leads().is_some())),
    ];
    drop(node);
    match member.serving() {
        Some(term) => http::metrics(&term.core, &raft),
        None => member.metrics.to_prometheus(&raft),
    }
}
