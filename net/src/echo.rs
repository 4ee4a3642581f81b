//! A service that gives back what it gets: the floor under every other service, for tests and benchmarks.

use bytes::Bytes;
use proto::rpc::{CallContext, LocalFuture, RawInbound, RawOutbound, Service, Shape, Status, refuse};
use std::future::poll_fn;
use std::rc::Rc;

/// The path of the unary method.
pub const CALL: &str = "/basalt.Echo/Call";
/// The path of the bidirectional method.
pub const STREAM: &str = "/basalt.Echo/Stream";

/// Service `basalt.Echo`: `Call` (unary) and `Stream` (bidirectional), bytes in, the same bytes out.
#[derive(Clone, Copy, Debug, Default)]
pub struct Echo;

impl Service for Echo {
    fn name(&self) -> &'static str {
        "basalt.Echo"
    }

    fn shape(&self, method: &str) -> Option<Shape> {
        match method {
            "Call" => Some(Shape::Unary),
            "Stream" => Some(Shape::Bidi),
            _ => None,
        }
    }

    fn unary(&self, method: &str, _cx: CallContext, request: Bytes) -> LocalFuture<Result<Bytes, Status>> {
        if method == "Call" {
            Box::pin(std::future::ready(Ok(request)))
        } else {
            refuse(Status::no_method(self.name(), method))
        }
    }

    fn stream(
        &self,
        method: &str,
        _cx: CallContext,
        mut inbound: Box<dyn RawInbound>,
        outbound: Rc<dyn RawOutbound>,
    ) -> LocalFuture<Result<(), Status>> {
        if method != "Stream" {
            return refuse(Status::no_method(self.name(), method));
        }
        Box::pin(async move {
            while let Some(message) = poll_fn(|cx| inbound.poll_message(cx)).await {
                let mut message = Some(message?);
                poll_fn(|cx| outbound.poll_send(cx, &mut message)).await?;
            }
            Ok(())
        })
    }
}
