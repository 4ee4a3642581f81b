//! What a transport dispatches to, and what a stub calls.

use super::{CallContext, RawInbound, RawOutbound, Status};
use bytes::Bytes;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

/// A boxed future that stays on its core.
pub type LocalFuture<T> = Pin<Box<dyn Future<Output = T>>>;

/// Which sides of a method stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// One request, one answer.
    Unary,
    /// One request, many answers.
    ServerStream,
    /// Many requests, one answer.
    ClientStream,
    /// Many requests, many answers.
    Bidi,
}

/// A service as a transport sees it: methods by name, messages as bytes.
///
/// The transport asks for the [`shape`](Service::shape) first and calls [`unary`](Service::unary) for
/// [`Shape::Unary`], else [`stream`](Service::stream). Dropping the future cancels the call.
pub trait Service: 'static {
    /// The full name, e.g. `tikvpb.Tikv`.
    fn name(&self) -> &'static str;

    /// The shape of a method; `None` for one that the service does not have (answer UNIMPLEMENTED).
    fn shape(&self, method: &str) -> Option<Shape>;

    /// Handles a unary call. UNIMPLEMENTED if the method is not unary.
    fn unary(&self, method: &str, cx: CallContext, request: Bytes) -> LocalFuture<Result<Bytes, Status>>;

    /// Handles a call of another shape; its result is the call's status, sent after the last answer.
    /// UNIMPLEMENTED if the method is unary.
    fn stream(
        &self,
        method: &str,
        cx: CallContext,
        inbound: Box<dyn RawInbound>,
        outbound: Rc<dyn RawOutbound>,
    ) -> LocalFuture<Result<(), Status>>;
}

/// A way to a server, as a stub sees it. Dropping a future, or a stream's inbound half, cancels the call.
pub trait Channel: 'static {
    /// Makes a unary call to `path` (`/tikvpb.Tikv/RawGet`).
    fn unary(&self, path: &'static str, cx: CallContext, request: Bytes) -> LocalFuture<Result<Bytes, Status>>;

    /// Starts a call of another shape. It is ready when messages can be sent, which may be before the server has
    /// answered anything; the call's status comes out of the inbound half.
    fn stream(&self, path: &'static str, cx: CallContext) -> LocalFuture<Result<Streams, Status>>;
}

/// The two halves of a call in progress.
pub type Streams = (Box<dyn RawInbound>, Rc<dyn RawOutbound>);

impl<C: Channel + ?Sized> Channel for Rc<C> {
    fn unary(&self, path: &'static str, cx: CallContext, request: Bytes) -> LocalFuture<Result<Bytes, Status>> {
        (**self).unary(path, cx, request)
    }

    fn stream(&self, path: &'static str, cx: CallContext) -> LocalFuture<Result<Streams, Status>> {
        (**self).stream(path, cx)
    }
}

/// A call that fails at once.
pub fn refuse<T: 'static>(status: Status) -> LocalFuture<Result<T, Status>> {
    Box::pin(std::future::ready(Err(status)))
}
