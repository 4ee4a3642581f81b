//! The status port: metrics, configuration, and a page for people. HTTP/1.1 on core 0.

use std::cell::Cell;
use std::fmt::Write as _;
use std::rc::Rc;
use std::sync::Arc;

use base::{CoreId, RegionId};
use executor::Class;
use net::{HttpHandler, HttpRequest, HttpResponse, NetMetrics};
use proto::rpc::LocalFuture;

use super::{EngineSource, Node, NodeIdent};
use crate::core::{Control, CoreHost, ShardDescription, reply};
use crate::engine::Engine;
use crate::service::TikvService;

/// The node as `/status` and the page show it.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct StatusReport {
    /// The program's version.
    pub version: String,
    /// The version that the protocol is told.
    pub announced_version: String,
    /// The cluster.
    pub cluster_id: u64,
    /// The node.
    pub store_id: u64,
    /// The I/O backend, and why.
    pub io: String,
    /// `raft-kv`: what PD calls an engine whose regions share a database.
    pub engine_type: String,
    /// Shards, by core.
    pub shards: Vec<ShardDescription>,
}

struct Status<S: EngineSource> {
    node: Arc<Node<S>>,
    host: Rc<CoreHost<S::Engine>>,
    ident: NodeIdent,
    /// Of the status port itself.
    port: Rc<NetMetrics>,
}

impl<S: EngineSource> Clone for Status<S> {
    fn clone(&self) -> Self {
        Status { node: self.node.clone(), host: self.host.clone(), ident: self.ident.clone(), port: self.port.clone() }
    }
}

/// Serves the status port until the node stops.
pub(super) async fn serve<S: EngineSource>(
    node: Arc<Node<S>>,
    host: Rc<CoreHost<S::Engine>>,
    ident: NodeIdent,
    listener: executor::net::TcpListener,
) {
    let metrics = Rc::new(NetMetrics::default());
    let status = Rc::new(Status { node: node.clone(), host, ident, port: metrics.clone() });
    let router = Rc::new(net::Router::new());
    let server = Rc::new(net::Server::new(router, Some(status), node.config.server.clone(), metrics));
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let server = server.clone();
                executor::spawn_local(Class::Background, async move { server.serve(stream).await });
            }
            Err(error) => {
                tracing::warn!(%error, "status port: accept failed");
                executor::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}

impl<S: EngineSource> HttpHandler for Status<S> {
    fn handle(&self, request: HttpRequest) -> LocalFuture<HttpResponse> {
        let status = self.clone();
        Box::pin(async move {
            if request.method != "GET" {
                return HttpResponse::text(405, "only GET is answered here\n");
            }
            match request.path.as_str() {
                "/metrics" => HttpResponse::text(200, status.metrics().await),
                "/consistency" => status.compare(&request.query).await,
                "/region" => status.region(&request.query).await,
                "/status" => HttpResponse::json(200, to_json(&status.report().await)),
                "/ready" => HttpResponse::text(200, ""),
                "/config" => HttpResponse::json(200, status.node.config.config_json.clone()),
                "/engine_type" => HttpResponse::text(200, "raft-kv"),
                "/" => HttpResponse::html(page(&status.report().await)),
                _ => HttpResponse::text(
                    404,
                    "unknown path; try /, /metrics, /status, /ready, /config, /region?region=ID or /consistency?region=ID\n",
                ),
            }
        })
    }
}

fn to_json(value: &impl serde::Serialize) -> String {
    serde_json::to_string_pretty(value).unwrap_or_else(|error| format!("{{\"error\":\"{error}\"}}"))
}

fn named_region(query: &str) -> Option<RegionId> {
    query.strip_prefix("region=")?.parse().ok().map(RegionId)
}

fn which_region() -> HttpResponse {
    HttpResponse::text(400, "say which region: ?region=ID\n")
}

impl<S: EngineSource> Status<S> {
    async fn report(&self) -> StatusReport {
        let mut shards = Vec::new();
        for core in 0..self.host.node.mail.len() {
            let (place, answer) = reply();
            self.host.control(CoreId(core as u16), Control::Describe { reply: place });
            shards.extend(answer.wait().await.unwrap_or_default());
        }
        shards.sort_by_key(|shard: &ShardDescription| shard.shard);
        StatusReport {
            version: env!("CARGO_PKG_VERSION").into(),
            announced_version: super::core_zero::ANNOUNCED_VERSION.into(),
            cluster_id: self.ident.cluster_id,
            store_id: self.ident.store_id,
            io: format!("{:?}: {}", self.node.io.kind, self.node.io.reason),
            engine_type: "raft-kv".into(),
            shards,
        }
    }

    /// Has the replicas of a region that leads here hashed: `region=ID`. The answer names the index at which they are.
    async fn compare(&self, query: &str) -> HttpResponse {
        let Some(region) = named_region(query) else { return which_region() };
        let (place, answer) = reply();
        self.host.control(self.host.route(region), Control::ComputeHash { region, reply: place });
        match answer.wait().await.unwrap_or_else(|| Err("the core is closing".into())) {
            Ok(index) => HttpResponse::json(200, format!("{{\"region\": {region}, \"index\": {index}}}")),
            Err(why) => HttpResponse::text(409, format!("{why}\n")),
        }
    }

    /// One region of this node: `region=ID`.
    async fn region(&self, query: &str) -> HttpResponse {
        let Some(region) = named_region(query) else { return which_region() };
        let (place, answer) = reply();
        self.host.control(self.host.route(region), Control::Describe { reply: place });
        let shards = answer.wait().await.unwrap_or_default();
        let found = shards.into_iter().flat_map(|shard| shard.regions).find(|found| found.id == region.0);
        match found {
            Some(found) => HttpResponse::json(200, to_json(&found)),
            None => HttpResponse::text(404, format!("region {region} is not on this node\n")),
        }
    }

    async fn metrics(&self) -> String {
        let mut out = String::new();
        for core in 0..self.host.node.mail.len() {
            let (place, answer) = reply();
            self.host.control(CoreId(core as u16), Control::Metrics { reply: place });
            out.push_str(&answer.wait().await.unwrap_or_default());
        }
        out.push_str(&self.tls_text());
        out
    }

    /// TLS on the status port, and the certificates of the whole node.
    fn tls_text(&self) -> String {
        let mut out = String::new();
        let mut line = |name: &str, labels: &str, value: u64| {
            // Writing to a string cannot fail.
            let _ = writeln!(out, "{name}{labels} {value}");
        };
        for (name, cell) in tls_cells(&self.port) {
            line(name, "{core=\"0\",port=\"status\"}", cell.get());
        }
        if let Some(tls) = &self.node.config.server.tls {
            line("basalt_net_tls_reloads_total", "", tls.reloads().swapped);
            line("basalt_net_tls_reloads_refused_total", "", tls.reloads().refused);
        }
        out
    }
}

fn tls_cells(net: &NetMetrics) -> [(&'static str, &Cell<u64>); 2] {
    [
        ("basalt_net_tls_handshakes_total", &net.tls_handshakes_total),
        ("basalt_net_tls_refused_total", &net.tls_refused_total),
    ]
}

/// The counters of one core as lines of the Prometheus text format.
pub(super) fn metrics_text<E: Engine>(host: &CoreHost<E>, net: &NetMetrics, service: &TikvService<E>) -> String {
    let core = host.core.0;
    let mut out = String::new();
    let mut line = |name: &str, labels: &str, value: u64| {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{name}{{core=\"{core}\"{labels}}} {value}");
    };
    for shard in host.shards() {
        let label = format!(",shard=\"{}\"", shard.id.0);
        let metrics = &shard.metrics;
        let counters: [(&str, &Cell<u64>); 20] = [
            ("basalt_shard_turns_total", &metrics.turns_total),
            ("basalt_shard_proposals_total", &metrics.proposals_total),
            ("basalt_shard_applied_total", &metrics.applied_total),
            ("basalt_shard_log_commits_total", &metrics.log_commits_total),
            ("basalt_shard_engine_refusals_total", &metrics.engine_refusals_total),
            ("basalt_shard_flushes_total", &metrics.flushes_total),
            ("basalt_shard_splits_total", &metrics.splits_total),
            ("basalt_shard_moves_in_total", &metrics.moves_in_total),
            ("basalt_shard_read_index_total", &metrics.read_index_total),
            ("basalt_shard_ingests_total", &metrics.ingests_total),
            ("basalt_shard_snapshots_sent_total", &metrics.snapshots_sent_total),
            ("basalt_shard_snapshot_read_bytes_total", &metrics.snapshot_read_bytes_total),
            ("basalt_shard_divergence_total", &metrics.divergence_total),
            ("basalt_shard_disk_refused_total", &metrics.disk_refused_total),
            ("basalt_shard_log_stalls_total", &metrics.log_stalls_total),
            ("basalt_shard_raft_sent_total", &metrics.raft_sent_total),
            ("basalt_shard_raft_received_total", &metrics.raft_received_total),
            ("basalt_shard_log_bytes", &metrics.log_bytes),
            ("basalt_shard_log_unflushed_bytes", &metrics.log_unflushed_bytes),
            ("basalt_shard_inbox_bytes", &metrics.inbox_bytes),
        ];
        for (name, cell) in counters {
            line(name, &label, cell.get());
        }
        line("basalt_shard_regions", &label, shard.regions() as u64);
        line("basalt_shard_memtable_bytes", &label, shard.engine.memtable_bytes());
    }
    core_lines(&mut line);
    net_lines(net, &mut line);
    service.metrics_text(core, &mut out);
    out
}

fn core_lines(line: &mut impl FnMut(&str, &str, u64)) {
    let metrics = executor::metrics();
    for class in executor::Class::ALL {
        let label = format!(",class=\"{}\"", class.name());
        let tables = [
            ("basalt_core_polls_total", &metrics.polls_total),
            ("basalt_core_busy_nanoseconds_total", &metrics.busy_nanos_total),
            ("basalt_core_stalls_total", &metrics.stalls_total),
            ("basalt_core_stall_nanoseconds_max", &metrics.stall_nanos_max),
            ("basalt_core_blocking_queued", &metrics.blocking_queued),
            ("basalt_core_blocking_total", &metrics.blocking_total),
        ];
        for (name, table) in tables {
            line(name, &label, table[class.index()].get());
        }
    }
    let cells = [
        ("basalt_core_tasks", &metrics.tasks),
        ("basalt_core_tasks_spawned_total", &metrics.tasks_spawned_total),
        ("basalt_core_remote_wakes_total", &metrics.remote_wakes_total),
        ("basalt_core_log_writes_total", &metrics.log_writes_total),
        ("basalt_core_log_bytes_total", &metrics.log_bytes_total),
        ("basalt_core_log_durable_total", &metrics.log_durable_total),
        ("basalt_core_log_queued", &metrics.log_queued),
    ];
    for (name, cell) in cells {
        line(name, "", cell.get());
    }
}

fn net_lines(net: &NetMetrics, line: &mut impl FnMut(&str, &str, u64)) {
    let cells = [
        ("basalt_net_connections_total", &net.connections_total),
        ("basalt_net_connections", &net.connections),
        ("basalt_net_connections_refused_total", &net.connections_refused_total),
        ("basalt_net_streams", &net.streams),
        ("basalt_net_requests_total", &net.requests_total),
        ("basalt_net_errors_total", &net.errors_total),
        ("basalt_net_cancelled_total", &net.cancelled_total),
        ("basalt_net_deadlines_total", &net.deadlines_total),
        ("basalt_net_refused_total", &net.refused_total),
        ("basalt_net_received_bytes_total", &net.received_bytes_total),
        ("basalt_net_sent_bytes_total", &net.sent_bytes_total),
        ("basalt_net_socket_reads_total", &net.socket_reads_total),
        ("basalt_net_socket_writes_total", &net.socket_writes_total),
        ("basalt_net_floods_total", &net.floods_total),
        ("basalt_net_stalled_total", &net.stalled_total),
        ("basalt_net_inbound_bytes", &net.inbound_bytes),
        ("basalt_net_outbound_bytes", &net.outbound_bytes),
    ];
    for (name, cell) in cells.into_iter().chain(tls_cells(net)) {
        line(name, "", cell.get());
    }
}

/// The page for people: plain HTML, nothing loaded from elsewhere.
fn page(report: &StatusReport) -> String {
    let mut rows = String::new();
    for shard in &report.shards {
        for region in &shard.regions {
            // Writing to a string cannot fail.
            let _ = writeln!(
                rows,
                "<tr><td>{}</td><td>{}</td><td>{}</td><td><code>{}</code></td><td><code>{}</code></td><td>{}</td>\
                 <td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
                shard.core,
                shard.shard,
                region.id,
                short(&region.start_key, "first"),
                short(&region.end_key, "last"),
                region.epoch,
                if region.leader { "leads" } else { "follows" },
                region.applied_index,
                region.approximate_bytes,
                region.approximate_keys,
            );
        }
    }
    let cores = report.shards.iter().fold(String::new(), |mut out, shard| {
        let _ = writeln!(
            out,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            shard.core,
            shard.shard,
            shard.regions.len(),
            shard.log_bytes,
            shard.log_bytes_unflushed,
            shard.memtable_bytes,
        );
        out
    });
    format!(
        "<!doctype html><meta charset=\"utf-8\"><title>Basalt store {store}</title>\
         <style>body{{font:14px system-ui,sans-serif;margin:2em}}table{{border-collapse:collapse;margin:1em 0}}\
         td,th{{border:1px solid #ccc;padding:.2em .6em;text-align:left}}</style>\
         <h1>Basalt store {store}</h1><p>Cluster {cluster}, version {version}, announced as {announced}, I/O {io}.</p>\
         <p><a href=\"/metrics\">metrics</a> <a href=\"/status\">status</a> <a href=\"/config\">config</a></p>\
         <h2>Shards</h2><table><tr><th>core<th>shard<th>regions<th>log bytes<th>of them unflushed<th>memtable bytes</tr>\
         {cores}</table>\
         <h2>Regions</h2><table><tr><th>core<th>shard<th>region<th>start<th>end<th>epoch<th>role<th>applied\
         <th>bytes<th>keys</tr>{rows}</table>",
        store = report.store_id,
        cluster = report.cluster_id,
        version = report.version,
        announced = report.announced_version,
        io = report.io,
    )
}

fn short(key: &str, empty: &str) -> String {
    match key.len() {
        0 => format!("({empty})"),
        1..=40 => key.to_string(),
        _ => format!("{}…", &key[..40]),
    }
}
