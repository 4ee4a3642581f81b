//! In front of every service: who answers a call.
//!
//! ```text
//!   `pd-forwarded-host` names another member  ─▶ that one, whatever it says
//!   about the members themselves              ─▶ any member
//!   everything else                           ─▶ the leader's services, for as long as it leads; elsewhere "not leader"
//! ```

use super::Member;
use crate::service::{SERVICES, not_leader};
use bytes::Bytes;
use futures_util::FutureExt as _;
use proto::rpc::{
    self, CallContext, Channel as _, LocalFuture, Metadata, RawInbound, RawOutbound, Service, Shape, Status,
};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::sync::OnceLock;

/// Names the member that a call is meant for.
const FORWARDED_HOST: &str = "pd-forwarded-host";

/// One service of a member.
pub(super) struct Gate {
    name: &'static str,
    member: Rc<Member>,
}

/// A gate for each service.
pub(super) fn gates(member: &Rc<Member>) -> Vec<Rc<dyn Service>> {
    let mut names: Vec<&'static str> = SERVICES.iter().map(|(name, _)| *name).collect();
    names.dedup();
    names.into_iter().map(|name| Rc::new(Gate { name, member: Rc::clone(member) }) as Rc<dyn Service>).collect()
}

impl Gate {
    fn methods(&self) -> impl Iterator<Item = &'static (&'static str, Shape)> {
        let name = self.name;
        SERVICES.iter().filter(move |(service, _)| *service == name).flat_map(|(_, methods)| *methods)
    }
}

/// A call's way to another member.
struct Elsewhere {
    channel: net::Channel,
    path: &'static str,
    cx: CallContext,
}

/// Where a call goes that names a host: `None` for one that stays.
fn elsewhere(member: &Member, name: &'static str, method: &str, cx: &CallContext) -> Result<Option<Elsewhere>, Status> {
    let Some(host) = cx.metadata.get_str(FORWARDED_HOST).filter(|host| !host.is_empty()) else { return Ok(None) };
    let group = member.group();
    let target = group.at(host);
    let target =
        target.ok_or_else(|| Status::unavailable(format!("not leader: {host} is no member of this cluster")))?;
    let Some(channel) = member.lines.channel(target.id) else { return Ok(None) };
    let path = path_of(name, method).ok_or_else(|| Status::no_method(name, method))?;
    let mut metadata = Metadata::new();
    let others = cx.metadata.iter().filter(|(name, _)| *name != FORWARDED_HOST);
    others.for_each(|(name, value)| metadata.push(name, value));
    Ok(Some(Elsewhere { channel, path, cx: CallContext { metadata, peer: None, ..cx.clone() } }))
}

/// `/service/method`, kept for ever: there are as many as the protocol has.
fn path_of(name: &'static str, method: &str) -> Option<&'static str> {
    static PATHS: OnceLock<BTreeMap<(&'static str, &'static str), String>> = OnceLock::new();
    let paths = PATHS.get_or_init(|| {
        let of = |(name, methods): &(&'static str, &'static [(&'static str, Shape)])| {
            let name = *name;
            methods.iter().map(move |(method, _)| ((name, *method), format!("/{name}/{method}"))).collect::<Vec<_>>()
        };
        SERVICES.iter().flat_map(of).collect()
    });
    let found = paths.iter().find(|((service, known), _)| *service == name && *known == method);
    found.map(|(_, path)| path.as_str())
}

impl Service for Gate {
    fn name(&self) -> &'static str {
        self.name
    }

    fn shape(&self, method: &str) -> Option<Shape> {
        self.methods().find(|(known, _)| *known == method).map(|(_, shape)| *shape)
    }

    fn unary(&self, method: &str, cx: CallContext, request: Bytes) -> LocalFuture<Result<Bytes, Status>> {
        match elsewhere(&self.member, self.name, method, &cx) {
            Err(status) => return rpc::refuse(status),
            Ok(Some(there)) => return there.channel.unary(there.path, there.cx, request),
            Ok(None) => {}
        }
        if let Some(answer) = self.member.answer(self.name, method) {
            return answer;
        }
        let Some(term) = self.member.serving() else { return rpc::refuse(not_leader()) };
        let Some(service) = term.service(self.name) else { return rpc::refuse(Status::no_method(self.name, method)) };
        let work = service.unary(method, cx, request);
        Box::pin(async move {
            let mut over = pin!(term.core.line.until_closed().fuse());
            futures_util::select_biased! {
                answer = work.fuse() => answer,
                _ = over => Err(not_leader()),
            }
        })
    }

    fn stream(
        &self,
        method: &str,
        cx: CallContext,
        inbound: Box<dyn RawInbound>,
        outbound: Rc<dyn RawOutbound>,
    ) -> LocalFuture<Result<(), Status>> {
        match elsewhere(&self.member, self.name, method, &cx) {
            Err(status) => return rpc::refuse(status),
            Ok(Some(there)) => return Box::pin(pass_on(there, inbound, outbound)),
            Ok(None) => {}
        }
        let Some(term) = self.member.serving() else { return rpc::refuse(not_leader()) };
        let Some(service) = term.service(self.name) else { return rpc::refuse(Status::no_method(self.name, method)) };
        let work = service.stream(method, cx, inbound, outbound);
        Box::pin(async move {
            let mut over = pin!(term.core.line.until_closed().fuse());
            futures_util::select_biased! {
                ended = work.fuse() => ended,
                _ = over => Err(not_leader()),
            }
        })
    }
}

/// Carries a stream's messages to another member and back.
async fn pass_on(
    there: Elsewhere,
    mut inbound: Box<dyn RawInbound>,
    outbound: Rc<dyn RawOutbound>,
) -> Result<(), Status> {
    let (mut answers, requests) = there.channel.stream(there.path, there.cx).await?;
    let to = async {
        while let Some(request) = poll_fn(|cx| inbound.poll_message(cx)).await {
            let mut request = Some(request?);
            poll_fn(|cx| requests.poll_send(cx, &mut request)).await?;
        }
        requests.close();
        std::future::pending().await
    };
    let back = async {
        while let Some(answer) = poll_fn(|cx| answers.poll_message(cx)).await {
            let mut answer = Some(answer?);
            poll_fn(|cx| outbound.poll_send(cx, &mut answer)).await?;
        }
        Ok(())
    };
    let (mut to, mut back) = (pin!(to.fuse()), pin!(back.fuse()));
    futures_util::select_biased! {
        ended = back => ended,
        failed = to => failed,
    }
}
