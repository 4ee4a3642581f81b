//! How every core reads its mail.

use std::rc::Rc;
use std::sync::Arc;

use base::{CoreId, RegionId};
use executor::{Class, MailReceiver, Task};

use super::core_zero::CoreZero;
use super::{EngineSource, Node, status};
use crate::core::{Control, CoreHost, CoreMail, compare, destroy_range, moves, orders, snapshots};
use crate::service::{self, ServiceHandle, TikvService};

/// Regions that one letter reports, and that are looked at before other tasks get their turn.
const REPORTS_PER_LETTER: usize = 256;

/// What reads the mail of a core, and what serves the connections that come with it.
pub(super) struct Mailroom {
    pub(super) reader: Task<()>,
    pub(super) server: Rc<net::Server>,
    pub(super) health: Rc<net::Health>,
}

/// Starts reading the mail of `host`'s core; `zero` on core 0.
pub(super) fn read<S: EngineSource>(
    node: &Arc<Node<S>>,
    host: &Rc<CoreHost<S::Engine>>,
    zero: Option<&Rc<CoreZero<S::Engine>>>,
    mail: MailReceiver<CoreMail>,
) -> Mailroom {
    let service = TikvService::new(host.clone());
    let health = net::Health::new();
    let router = net::Router::new().add(Rc::new(ServiceHandle(service.clone()))).add(health.service());
    let metrics = Rc::new(net::NetMetrics::default());
    let server = Rc::new(net::Server::new(Rc::new(router), None, node.config.server.clone(), metrics.clone()));
    let (handler_host, zero) = (host.clone(), zero.cloned());
    let serving = server.clone();
    let handler = move |letter: CoreMail| match letter {
        CoreMail::Connection(placed) => {
            let server = serving.clone();
            executor::spawn_local(Class::Foreground, async move { server.serve_placed(placed).await });
        }
        CoreMail::Requests { from, requests } => service::serve_remote(&service, from, requests),
        CoreMail::Control(control) => match *control {
            control @ Control::MoveActivate { .. } => {
                handler_host.void_timestamps();
                moves::handle(&handler_host, control);
            }
            control @ (Control::Move { .. }
            | Control::MovePrepare { .. }
            | Control::MoveData { .. }
            | Control::MoveInstall { .. }) => moves::handle(&handler_host, control),
            Control::Report => report(&handler_host),
            Control::Order(order) => orders::begin(&handler_host, order),
            // It came here because this core has the region, or because this is core 0 and nobody has it.
            Control::Raft(letter) => match (handler_host.local(RegionId(letter.region_id)), &zero) {
                (Err(_), Some(zero)) if handler_host.route(RegionId(letter.region_id)) == CoreId(0) => {
                    zero.handle(Control::Raft(letter));
                }
                _ => handler_host.deliver(letter),
            },
            control @ (Control::SnapshotTable { .. }
            | Control::SnapshotInstall { .. }
            | Control::SnapshotDrop { .. }) => snapshots::handle(&handler_host, control),
            Control::VoidMerge { shard, region, target } => {
                if let Some(shard) = handler_host.shard(shard) {
                    shard.void_merge(region, target);
                }
            }
            Control::SourceEnded { shard, region, source, peer } => {
                if let Some(shard) = handler_host.shard(shard) {
                    shard.source_ended(region, source, peer);
                }
            }
            Control::WhoIs { shard, region, reply } => {
                reply.send(handler_host.shard(shard).and_then(|shard| shard.peer_of(region)));
            }
            Control::End { shard, region, peer, reply } => {
                let shard = handler_host.shard(shard);
                executor::spawn_local(Class::Background, async move {
                    if let Some(shard) = shard
                        && let Err(error) = shard.destroy(region, peer).await
                    {
                        tracing::debug!(%region, %error, "a peer without a group did not end");
                    }
                    reply.send(());
                });
            }
            Control::DestroyRange { start, end, reply } => destroy_range::begin(&handler_host, start, end, reply),
            Control::ComputeHash { region, reply } => compare::begin(&handler_host, region, reply),
            Control::TakeWork { reply } => {
                reply.send(handler_host.shards().iter().flat_map(|shard| shard.take_work()).collect());
            }
            Control::Describe { reply } => {
                let core = handler_host.core;
                reply.send(handler_host.shards().iter().map(|shard| shard.describe(core)).collect());
            }
            Control::Metrics { reply } => {
                let mut text = status::metrics_text(&handler_host, &metrics, &service);
                if let Some(zero) = &zero {
                    zero.pd_events.metrics_text(&mut text);
                    zero.balancing.metrics_text(&mut text);
                }
                reply.send(text);
            }
            other => {
                if let Some(zero) = &zero {
                    zero.handle(other);
                }
            }
        },
        CoreMail::Replies(_) => {}
    };
    let reader = executor::spawn_local(Class::Foreground, host.clone().read_mail(mail, handler));
    Mailroom { reader, server, health }
}

/// Reports all leaders of this core to core 0, some at a time: a core may have thousands.
fn report<E: crate::engine::Engine>(host: &Rc<CoreHost<E>>) {
    let host = host.clone();
    executor::spawn_local(Class::Background, async move {
        for shard in host.shards() {
            host.control(CoreId(0), Control::Sizes(shard.follower_sizes()));
            let mut from = RegionId(0);
            loop {
                let (reports, next) = shard.reports(from, REPORTS_PER_LETTER);
                if !reports.is_empty() {
                    host.control(CoreId(0), Control::Heartbeats(reports));
                }
                let Some(next) = next else { break };
                from = next;
                executor::yield_now().await;
            }
        }
    });
}
