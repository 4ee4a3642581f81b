//! The two halves of a client's call.

use super::OpenCall;
use crate::grpc::gzip::{self, InflateError};
use crate::grpc::headers::{self, Encoding};
use crate::grpc::message::{Deframer, FrameError};
use crate::grpc::status;
use crate::memory::{ConnectionMemory, OutMessage};
use base::Instant;
use bytes::Bytes;
use executor::Sleep;
use h2::client::ResponseFuture;
use h2::{Reason, RecvStream, SendStream};
use http::StatusCode;
use proto::rpc::{Code, RawInbound, RawOutbound, Status};
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, ready};

enum Stage {
    Headers(ResponseFuture),
    Body(RecvStream, Encoding),
    Trailers(RecvStream),
    Over,
}

/// Reads the answers of a call, and its status.
pub(crate) struct ClientReader {
    stage: Stage,
    deframer: Deframer,
    message_bytes_max: usize,
    timer: Option<Sleep>,
    /// Weak, so that dropping the sender is the half-close.
    writer: Weak<ClientWriter>,
    open: Option<OpenCall>,
}

impl ClientReader {
    pub(crate) fn new(
        response: ResponseFuture,
        deframer: Deframer,
        message_bytes_max: usize,
        deadline: Option<Instant>,
    ) -> ClientReader {
        ClientReader {
            stage: Stage::Headers(response),
            deframer,
            message_bytes_max,
            timer: deadline.map(executor::sleep_until),
            writer: Weak::new(),
            open: None,
        }
    }

    /// Makes it the reading half of a stream: dropping it resets the call.
    pub(crate) fn attach(&mut self, writer: &Rc<ClientWriter>, open: OpenCall) {
        self.writer = Rc::downgrade(writer);
        self.open = Some(open);
    }

    /// The next answer, or `None` once the status OK has come.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Status>> {
        let result = match self.poll_stages(cx) {
            Poll::Pending => match &mut self.timer {
                Some(timer) => {
                    ready!(Pin::new(timer).poll(cx));
                    self.reset();
                    Err(super::deadline_passed())
                }
                None => return Poll::Pending,
            },
            Poll::Ready(result) => result,
        };
        if !matches!(result, Ok(Some(_))) {
            self.finish();
        }
        Poll::Ready(result)
    }

    fn poll_stages(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Status>> {
        loop {
            match &mut self.stage {
                Stage::Headers(response) => {
                    let response = match ready!(Pin::new(response).poll(cx)) {
                        Ok(response) => response,
                        Err(error) => return Poll::Ready(Err(status::from_h2(&error))),
                    };
                    let (parts, body) = response.into_parts();
                    if let Some(status) = status::read(&parts.headers) {
                        return Poll::Ready(end(status));
                    }
                    if parts.status != StatusCode::OK || !headers::is_grpc(&parts.headers) {
                        return Poll::Ready(Err(status::from_http(parts.status)));
                    }
                    let unknown = |name| Status::internal(format!("answers in unknown encoding {name:?}"));
                    let encoding = headers::encoding(&parts.headers).map_err(unknown)?;
                    self.stage = Stage::Body(body, encoding);
                }
                Stage::Body(body, encoding) => {
                    if let Some(message) = self.deframer.next_message().map_err(bad_frame)? {
                        if !message.is_compressed {
                            return Poll::Ready(Ok(Some(message.bytes)));
                        }
                        if *encoding == Encoding::Identity {
                            let status = Status::internal("answer is compressed but names no compression");
                            return Poll::Ready(Err(status));
                        }
                        let inflated = gzip::inflate(&message.bytes, self.message_bytes_max).map_err(bad_gzip)?;
                        return Poll::Ready(Ok(Some(inflated)));
                    }
                    match ready!(body.poll_data(cx)) {
                        Some(Ok(chunk)) => {
                            // An error means that the stream is gone, and its window with it.
                            let _ = body.flow_control().release_capacity(chunk.len());
                            self.deframer.feed(chunk);
                        }
                        Some(Err(error)) => return Poll::Ready(Err(status::from_h2(&error))),
                        None => {
                            let Stage::Body(body, _) = std::mem::replace(&mut self.stage, Stage::Over) else {
                                unreachable!("matched above")
                            };
                            self.stage = Stage::Trailers(body);
                        }
                    }
                }
                Stage::Trailers(body) => {
                    let trailers = ready!(body.poll_trailers(cx)).map_err(|error| status::from_h2(&error))?;
                    let status = trailers.as_ref().and_then(status::read);
                    let missing = || Status::unknown("the stream ended without a status");
                    let status = status.unwrap_or_else(missing);
                    if status.code == Code::Ok && !self.deframer.is_at_boundary() {
                        return Poll::Ready(Err(Status::internal("stream ended inside of a message")));
                    }
                    return Poll::Ready(end(status));
                }
                Stage::Over => return Poll::Ready(Ok(None)),
            }
        }
    }

    /// The call is over: nothing more may be sent.
    fn finish(&mut self) {
        self.stage = Stage::Over;
        self.timer = None;
        self.open = None;
        if let Some(writer) = self.writer.upgrade() {
            writer.end(None);
        }
    }

    fn reset(&mut self) {
        if let Some(writer) = self.writer.upgrade() {
            writer.end(Some(Reason::CANCEL));
        }
    }
}

impl RawInbound for ClientReader {
    fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Status>>> {
        self.poll_next(cx).map(Result::transpose)
    }
}

impl Drop for ClientReader {
    fn drop(&mut self) {
        if !matches!(self.stage, Stage::Over) {
            self.reset();
        }
    }
}

fn end(status: Status) -> Result<Option<Bytes>, Status> {
    if status.code == Code::Ok { Ok(None) } else { Err(status) }
}

fn bad_frame(error: FrameError) -> Status {
    match error {
        FrameError::TooLarge(..) => Status::resource_exhausted(error.to_string()),
        FrameError::BadFlag(_) => Status::internal(error.to_string()),
    }
}

fn bad_gzip(error: InflateError) -> Status {
    match error {
        InflateError::TooLarge(_) => Status::resource_exhausted(error.to_string()),
        InflateError::Corrupt => Status::internal(error.to_string()),
    }
}

/// Writes the requests of a streaming call.
pub(crate) struct ClientWriter {
    send: RefCell<Option<SendStream<OutMessage>>>,
    memory: Rc<ConnectionMemory>,
    pending: Rc<Cell<u64>>,
    pending_max: u64,
}

impl ClientWriter {
    pub(crate) fn new(send: SendStream<OutMessage>, memory: &Rc<ConnectionMemory>, pending_max: u64) -> ClientWriter {
        ClientWriter { send: RefCell::new(Some(send)), memory: Rc::clone(memory), pending: Rc::default(), pending_max }
    }

    /// Ends the sending: by a reset, or by just letting go of a stream that the server has ended.
    fn end(&self, reset: Option<Reason>) {
        if let Some(mut send) = self.send.borrow_mut().take()
            && let Some(reason) = reset
        {
            send.send_reset(reason);
        }
        self.memory.stir();
    }
}

impl RawOutbound for ClientWriter {
    fn poll_send(&self, cx: &mut Context<'_>, message: &mut Option<Bytes>) -> Poll<Result<(), Status>> {
        let mut send = self.send.borrow_mut();
        let Some(stream) = &mut *send else {
            return Poll::Ready(Err(Status::cancelled("the call is over")));
        };
        if self.memory.is_closed() {
            return Poll::Ready(Err(Status::unavailable("the connection is gone")));
        }
        if self.pending.get() >= self.pending_max || !self.memory.has_outbound_room() {
            self.memory.wait_for_outbound_room(cx.waker());
            return Poll::Pending;
        }
        let Some(bytes) = message.take() else {
            return Poll::Ready(Ok(()));
        };
        let message = OutMessage::new(&self.memory, Some(Rc::clone(&self.pending)), false, bytes);
        Poll::Ready(stream.send_data(message, false).map_err(|error| {
            *send = None;
            Status::unavailable(format!("HTTP/2: {error}"))
        }))
    }

    fn close(&self) {
        if let Some(mut send) = self.send.borrow_mut().take() {
            // The server may have ended the call; then there is nothing to close.
            let _ = send.send_data(OutMessage::end(&self.memory), true);
        }
    }
}

impl Drop for ClientWriter {
    fn drop(&mut self) {
        self.close();
    }
}
