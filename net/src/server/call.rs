//! One gRPC call on a server, from its headers to its trailers.
//!
//! ```text
//!   begin ─> Collect ──────> Handle ─> over        unary: one message, half-close, handler, answer
//!        └─> Stream ─────────────────> over        others: the handler reads and writes on its own
//! ```
//! A call is a future inside of its connection's task. Dropping it drops the handler.

use super::reader::{Held, Progress, ReadError, Reader};
use super::router::Router;
use super::shared::{ConnectionShared, OpenCall};
use super::writer::{Writer, response};
use crate::grpc::headers::{self, GRPC_TIMEOUT};
use crate::grpc::{gzip, timeout};
use crate::memory::{BodyCharge, OutMessage};
use crate::metrics::{NetMetrics, add};
use base::Instant;
use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::header::{HeaderMap, HeaderValue};
use http::{Method, Request, StatusCode};
use proto::rpc::{CallContext, LocalFuture, RawInbound, RawOutbound, Service, Shape, Status};
use std::rc::Rc;
use std::task::{Context, Poll};

/// A call in progress.
pub(crate) struct Call {
    stage: Stage,
    deadline: Option<Instant>,
    shared: Rc<ConnectionShared>,
    _open: OpenCall,
    /// For large headers, while the call lives.
    _head: Option<BodyCharge>,
}

/// Headers up to this many bytes are not charged: stock clients send a few hundred.
const HEAD_BYTES_FREE: usize = 1 << 10;

#[allow(clippy::large_enum_variant, reason = "most calls pass through the large stage; a box would cost each of them")]
enum Stage {
    Collect(Collect),
    Handle {
        future: LocalFuture<Result<Bytes, Status>>,
        writer: Writer,
        held: Held,
        /// The future gives the answer compressed.
        is_compressed: bool,
    },
    Stream {
        future: LocalFuture<Result<(), Status>>,
        writer: Rc<Writer>,
        progress: Rc<Progress>,
    },
}

/// A unary call whose request is on its way.
struct Collect {
    reader: Option<Reader>,
    message: Option<Bytes>,
    writer: Option<Writer>,
    context: CallContext,
    service: Rc<dyn Service>,
    path: http::Uri,
}

impl Call {
    /// Looks at the headers of a request. `None`: it is answered already.
    pub(crate) fn begin(
        request: Request<RecvStream>,
        mut respond: SendResponse<OutMessage>,
        shared: &Rc<ConnectionShared>,
    ) -> Option<Call> {
        add(&shared.metrics().requests_total, 1);
        let (parts, body) = request.into_parts();
        if let Some(answer) = refuse_as_http(&parts.method, &parts.headers) {
            add(&shared.metrics().errors_total, 1);
            drop(respond.send_response(answer, true));
            return None;
        }
        let writer = Writer::new(respond, headers::accepts_gzip(&parts.headers), shared);
        match Call::start(parts, body, shared, writer) {
            Ok(call) => Some(call),
            Err((writer, status)) => {
                writer.finish(Err(status));
                None
            }
        }
    }

    #[allow(clippy::result_large_err, reason = "the error is consumed at once by the one caller")]
    fn start(
        parts: http::request::Parts,
        body: RecvStream,
        shared: &Rc<ConnectionShared>,
        writer: Writer,
    ) -> Result<Call, (Writer, Status)> {
        let router: &Router = &shared.core.router;
        let (service, method, shape) = match router.find(parts.uri.path()) {
            Ok(found) => found,
            Err(status) => return Err((writer, status)),
        };
        let encoding = match headers::encoding(&parts.headers) {
            Ok(encoding) => encoding,
            Err(name) => {
                return Err((writer, Status::unimplemented(format!("message encoding {name:?} is not supported"))));
            }
        };
        let deadline = match deadline(&parts.headers, shared.now.get()) {
            Ok(deadline) => deadline,
            Err(status) => return Err((writer, status)),
        };
        let Some(open) = OpenCall::begin(&shared.core) else {
            add(&shared.metrics().refused_total, 1);
            return Err((writer, Status::resource_exhausted("the server has too many calls in progress")));
        };
        let Ok(head) = charge_head(&parts.headers, shared) else {
            add(&shared.metrics().refused_total, 1);
            return Err((writer, Status::resource_exhausted("the server's memory for requests is used up")));
        };
        if let Some(deadline) = deadline {
            shared.look_at(deadline);
        }
        let context = CallContext { deadline, metadata: headers::metadata(&parts.headers), peer: shared.peer };
        let mut reader = Reader::new(body, encoding, shape, shared);
        let stage = if shape == Shape::Unary {
            Stage::Collect(Collect {
                reader: Some(reader),
                message: None,
                writer: Some(writer),
                context,
                service: Rc::clone(service),
                path: parts.uri,
            })
        } else {
            let writer = Rc::new(writer);
            let progress = reader.share_progress();
            let outbound: Rc<dyn RawOutbound> = Rc::<Writer>::clone(&writer);
            let inbound: Box<dyn RawInbound> = Box::new(reader);
            let future = service.stream(method, context, inbound, outbound);
            Stage::Stream { future, writer, progress }
        };
        Ok(Call { stage, deadline, shared: Rc::clone(shared), _open: open, _head: head })
    }

    /// Goes on. Ready: the call is over.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            match &mut self.stage {
                Stage::Collect(collect) => match collect.poll(self.shared.metrics(), cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Some(next)) => self.stage = next,
                    Poll::Ready(None) => return Poll::Ready(()),
                },
                Stage::Handle { future, writer, held, is_compressed } => {
                    let Poll::Ready(result) = future.as_mut().poll(cx) else {
                        held.release(cx);
                        return self.poll_cancelled(cx);
                    };
                    let sent = match result {
                        Ok(message) if *is_compressed => writer.send_as(message, true, false),
                        Ok(message) if writer.wants_helper(&message) => {
                            *is_compressed = true;
                            *future = compress(message);
                            continue;
                        }
                        Ok(message) => writer.send(message, false),
                        Err(status) => Err(status),
                    };
                    writer.finish(sent);
                    return Poll::Ready(());
                }
                Stage::Stream { future, writer, .. } => {
                    let Poll::Ready(result) = future.as_mut().poll(cx) else {
                        // Clients may wait for the headers before they send anything.
                        writer.open();
                        return self.poll_cancelled(cx);
                    };
                    // A handler may hear of a reset from its stream of requests before we look.
                    if writer.poll_gone(cx).is_ready() {
                        add(&self.shared.metrics().cancelled_total, 1);
                    } else {
                        writer.finish(result);
                    }
                    return Poll::Ready(());
                }
            }
        }
    }

    /// Looks at the clock. Ready: the call is over.
    pub(crate) fn look(&mut self, now: Instant) -> Poll<()> {
        if let Some(deadline) = self.deadline {
            if now >= deadline {
                add(&self.shared.metrics().deadlines_total, 1);
                self.end(Status::deadline_exceeded("the deadline passed while the call was handled"));
                return Poll::Ready(());
            }
            self.shared.look_at(deadline);
        }
        let progress = match &self.stage {
            Stage::Collect(Collect { reader: Some(reader), .. }) => reader.progress(),
            Stage::Stream { progress, .. } => progress,
            Stage::Collect(_) | Stage::Handle { .. } => return Poll::Pending,
        };
        match progress.deadline(&self.shared) {
            Some(at) if now >= at => {
                add(&self.shared.metrics().refused_total, 1);
                self.end(progress.complaint());
                Poll::Ready(())
            }
            Some(at) => {
                self.shared.look_at(at);
                Poll::Pending
            }
            None => Poll::Pending,
        }
    }

    fn end(&mut self, status: Status) {
        match &self.stage {
            Stage::Collect(Collect { writer: Some(writer), .. }) | Stage::Handle { writer, .. } => {
                writer.finish(Err(status));
            }
            Stage::Stream { writer, .. } => writer.finish(Err(status)),
            Stage::Collect(_) => {}
        }
    }

    fn poll_cancelled(&self, cx: &mut Context<'_>) -> Poll<()> {
        let gone = match &self.stage {
            Stage::Handle { writer, .. } => writer.poll_gone(cx),
            Stage::Stream { writer, .. } => writer.poll_gone(cx),
            Stage::Collect(_) => Poll::Pending,
        };
        if gone.is_ready() {
            add(&self.shared.metrics().cancelled_total, 1);
        }
        gone
    }
}

impl Collect {
    /// Reads until the half-close. Ready with the next stage, or with nothing if the call is over.
    fn poll(&mut self, metrics: &NetMetrics, cx: &mut Context<'_>) -> Poll<Option<Stage>> {
        loop {
            let Some(reader) = &mut self.reader else {
                return Poll::Ready(None);
            };
            let status = match reader.poll_next(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(ReadError::Gone(_))) => {
                    add(&metrics.cancelled_total, 1);
                    return Poll::Ready(None);
                }
                Poll::Ready(Err(ReadError::Bad(status))) => status,
                Poll::Ready(Ok(Some(message))) if self.message.is_none() => {
                    self.message = Some(message);
                    continue;
                }
                Poll::Ready(Ok(Some(_))) => Status::internal("more than one message for a unary call"),
                Poll::Ready(Ok(None)) => match self.message.take() {
                    Some(message) => return Poll::Ready(Some(self.handle(message))),
                    None => Status::internal("no message for a unary call"),
                },
            };
            if let Some(writer) = self.writer.take() {
                writer.finish(Err(status));
            }
            return Poll::Ready(None);
        }
    }

    fn handle(&mut self, message: Bytes) -> Stage {
        let path = std::mem::take(&mut self.path);
        let method = path.path().rsplit_once('/').map_or("", |(_, method)| method);
        let context = std::mem::take(&mut self.context);
        let future = self.service.unary(method, context, message);
        let reader = self.reader.take().expect("it gave the message just now");
        let writer = self.writer.take().expect("taken only here and when the call is over");
        Stage::Handle { future, writer, held: reader.into_held(), is_compressed: false }
    }
}

/// Compresses a large answer on a helper.
fn compress(message: Bytes) -> LocalFuture<Result<Bytes, Status>> {
    Box::pin(async move {
        let deflate = move || gzip::deflate(&message);
        Ok(executor::blocking(executor::Class::Foreground, deflate).await)
    })
}

/// The answer to a request that is not gRPC.
fn refuse_as_http(method: &Method, headers: &HeaderMap) -> Option<http::Response<()>> {
    if method != Method::POST {
        let allow = HeaderMap::from_iter([(http::header::ALLOW, HeaderValue::from_static("POST"))]);
        return Some(response(StatusCode::METHOD_NOT_ALLOWED, allow));
    }
    if !headers::is_grpc(headers) {
        return Some(response(StatusCode::UNSUPPORTED_MEDIA_TYPE, HeaderMap::new()));
    }
    None
}

/// Charges the headers of a call, which its context copies, if they are large. The error: there is no room.
fn charge_head(headers: &HeaderMap, shared: &ConnectionShared) -> Result<Option<BodyCharge>, ()> {
    let bytes = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    if bytes <= HEAD_BYTES_FREE {
        return Ok(None);
    }
    BodyCharge::new(&shared.core.memory, bytes).map(Some).ok_or(())
}

/// When the client stops waiting.
fn deadline(headers: &HeaderMap, now: Instant) -> Result<Option<Instant>, Status> {
    let Some(value) = headers.get(GRPC_TIMEOUT) else {
        return Ok(None);
    };
    match timeout::parse(value.as_bytes()) {
        None => Err(Status::internal("malformed grpc-timeout")),
        Some(timeout) if timeout.is_zero() => Err(Status::deadline_exceeded("the deadline had passed on arrival")),
        Some(timeout) => Ok(Some(now + timeout)),
    }
}
