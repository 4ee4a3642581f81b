//! How every core reads its mail.

use std::rc::Rc;
use std::sync::Arc;

use executor::{Class, MailReceiver, Task};

use super::core_zero::CoreZero;
use super::{EngineSource, Node, status};
use crate::core::{Control, CoreHost, CoreMail, moves};
use crate::service::{self, ServiceHandle, TikvService};

/// Starts reading the mail of `host`'s core; `zero` on core 0.
pub(super) fn read<S: EngineSource>(
    node: &Arc<Node<S>>,
    host: &Rc<CoreHost<S::Engine>>,
    zero: Option<&Rc<CoreZero<S::Engine>>>,
    mail: MailReceiver<CoreMail>,
) -> Task<()> {
    let service = TikvService::new(host.clone());
    let health = net::Health::new();
    let router = net::Router::new().add(Rc::new(ServiceHandle(service.clone()))).add(health.service());
    let metrics = Rc::new(net::NetMetrics::default());
    let server = Rc::new(net::Server::new(Rc::new(router), None, node.config.server.clone(), metrics.clone()));
    let (handler_host, zero) = (host.clone(), zero.cloned());
    let handler = move |letter: CoreMail| match letter {
        CoreMail::Connection(placed) => {
            let server = server.clone();
            executor::spawn_local(Class::Foreground, async move { server.serve_placed(placed).await });
        }
        CoreMail::Requests { from, requests } => service::serve_remote(&service, from, requests),
        CoreMail::Control(control) => match *control {
            control @ (Control::Move { .. }
            | Control::MovePrepare { .. }
            | Control::MoveData { .. }
            | Control::MoveInstall { .. }
            | Control::MoveActivate { .. }) => moves::handle(&handler_host, control),
            Control::Report => report(&handler_host),
            Control::Describe { reply } => {
                let core = handler_host.core;
                reply.send(handler_host.shards().iter().map(|shard| shard.describe(core)).collect());
            }
            Control::Metrics { reply } => reply.send(status::metrics_text(&handler_host, &metrics, &service)),
            other => {
                if let Some(zero) = &zero {
                    zero.handle(other);
                }
            }
        },
        CoreMail::Replies(_) => {}
    };
    executor::spawn_local(Class::Foreground, host.clone().read_mail(mail, handler))
}

fn report<E: crate::engine::Engine>(host: &Rc<CoreHost<E>>) {
    for shard in host.shards() {
        for report in shard.reports() {
            host.control(base::CoreId(0), Control::Heartbeat(Box::new(report)));
        }
    }
}
