//! The answers of one call: headers, messages, trailers.

use super::shared::ConnectionShared;
use crate::grpc::gzip::{COMPRESS_BYTES_MIN, deflate};
use crate::grpc::headers::{CONTENT_TYPE_GRPC, ENCODINGS, GRPC_ACCEPT_ENCODING, GRPC_ENCODING, GZIP};
use crate::grpc::status;
use crate::memory::OutMessage;
use crate::metrics::add;
use bytes::Bytes;
use h2::SendStream;
use h2::server::SendResponse;
use http::header::HeaderMap;
use http::{Response, StatusCode};
use proto::rpc::{Code, RawOutbound, Status};
use std::cell::{Cell, OnceCell, RefCell};
use std::rc::Rc;
use std::task::{Context, Poll};

/// Largest message that h2 can send: its windows are 31 bits.
const SENT_BYTES_MAX: usize = (1 << 31) - 64;

/// Larger messages hold the core too long: a helper compresses the answer of a unary call, and those of a stream
/// are sent as they are.
const DEFLATE_HERE_BYTES_MAX: usize = 16 << 10;

enum Stage {
    /// Nothing was sent.
    Begun(SendResponse<OutMessage>),
    /// Headers were sent.
    Open(SendStream<OutMessage>),
    /// All was sent, or the stream is gone.
    Closed,
}

/// Writes the answers of one call.
pub(crate) struct Writer {
    stage: RefCell<Stage>,
    /// Bytes of this stream that are not yet written.
    pending: OnceCell<Rc<Cell<u64>>>,
    gzip: bool,
    shared: Rc<ConnectionShared>,
}

impl Writer {
    /// `accepts_gzip`: whether the client can read compressed answers.
    pub(crate) fn new(respond: SendResponse<OutMessage>, accepts_gzip: bool, shared: &Rc<ConnectionShared>) -> Writer {
        Writer {
            stage: RefCell::new(Stage::Begun(respond)),
            pending: OnceCell::new(),
            gzip: accepts_gzip && shared.config().gzip,
            shared: Rc::clone(shared),
        }
    }

    /// Sends the headers, if that has not been done.
    pub(crate) fn open(&self) {
        let mut stage = self.stage.borrow_mut();
        if let Stage::Begun(respond) = &mut *stage {
            let mut headers = HeaderMap::with_capacity(2);
            headers.insert(http::header::CONTENT_TYPE, CONTENT_TYPE_GRPC);
            if self.gzip {
                headers.insert(GRPC_ENCODING, GZIP);
            }
            *stage = match respond.send_response(response(StatusCode::OK, headers), false) {
                Ok(send) => Stage::Open(send),
                Err(_) => Stage::Closed,
            };
        }
    }

    /// Whether a message is to be compressed, and is so large that a helper should do it.
    pub(crate) fn wants_helper(&self, message: &Bytes) -> bool {
        self.gzip && message.len() > DEFLATE_HERE_BYTES_MAX
    }

    /// Sends one message, compressed here if that is worth it; headers first, if needed.
    ///
    /// # Errors
    /// CANCELLED if the stream is gone, RESOURCE_EXHAUSTED if the message is beyond what HTTP/2 carries.
    pub(crate) fn send(&self, message: Bytes, counts: bool) -> Result<(), Status> {
        if self.gzip && (COMPRESS_BYTES_MIN..=DEFLATE_HERE_BYTES_MAX).contains(&message.len()) {
            self.send_as(deflate(&message), true, counts)
        } else {
            self.send_as(message, false, counts)
        }
    }

    /// Sends one message as it is.
    ///
    /// # Errors
    /// As [`Writer::send`].
    pub(crate) fn send_as(&self, message: Bytes, is_compressed: bool, counts: bool) -> Result<(), Status> {
        if message.len() > SENT_BYTES_MAX {
            return Err(Status::resource_exhausted(format!("an answer of {} bytes is too large", message.len())));
        }
        self.open();
        let mut stage = self.stage.borrow_mut();
        let Stage::Open(send) = &mut *stage else {
            return Err(Status::cancelled("the call is over"));
        };
        let stream = counts.then(|| Rc::clone(self.pending.get_or_init(Rc::default)));
        let message = OutMessage::new(&self.shared.memory, stream, is_compressed, message);
        send.send_data(message, false).map_err(|_| {
            *stage = Stage::Closed;
            Status::cancelled("the client has reset the stream")
        })
    }

    /// Ends the call. Nothing happens if it has ended before.
    pub(crate) fn finish(&self, result: Result<(), Status>) {
        let metrics = self.shared.metrics();
        // A stream that is gone meanwhile refuses what is sent; nobody waits for it then.
        match (std::mem::replace(&mut *self.stage.borrow_mut(), Stage::Closed), &result) {
            (Stage::Closed, _) => return,
            (Stage::Open(mut send), Ok(())) => drop(send.send_trailers(status::ok_trailers())),
            (Stage::Open(mut send), Err(status)) => drop(send.send_trailers(status::trailers(status))),
            (Stage::Begun(mut respond), result) => {
                let ok = Status::new(Code::Ok, "");
                let mut headers = status::trailers_only(result.as_ref().err().unwrap_or(&ok));
                if result.as_ref().is_err_and(|status| status.code == Code::Unimplemented) {
                    headers.insert(GRPC_ACCEPT_ENCODING, ENCODINGS);
                }
                drop(respond.send_response(response(StatusCode::OK, headers), true));
            }
        }
        self.shared.memory.stir();
        add(&self.shared.answered, 1);
        if result.is_err() {
            add(&metrics.errors_total, 1);
        }
    }

    /// Ready once the client has reset the stream, or the connection is gone.
    pub(crate) fn poll_gone(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut stage = self.stage.borrow_mut();
        let gone = match &mut *stage {
            Stage::Begun(respond) => respond.poll_reset(cx),
            Stage::Open(send) => send.poll_reset(cx),
            Stage::Closed => return Poll::Ready(()),
        };
        gone.map(|_| *stage = Stage::Closed)
    }
}

/// Answers of a streaming call as handlers see them.
impl RawOutbound for Writer {
    fn poll_send(&self, cx: &mut Context<'_>, message: &mut Option<Bytes>) -> Poll<Result<(), Status>> {
        if matches!(*self.stage.borrow(), Stage::Closed) || self.shared.memory.is_closed() {
            return Poll::Ready(Err(Status::cancelled("the call is over")));
        }
        let pending = self.pending.get().map_or(0, |pending| pending.get());
        let is_full = pending >= self.shared.config().stream_outbound_bytes;
        if is_full || !self.shared.memory.has_outbound_room() {
            self.shared.memory.wait_for_outbound_room(cx.waker());
            return Poll::Pending;
        }
        Poll::Ready(match message.take() {
            Some(message) => self.send(message, true),
            None => Ok(()),
        })
    }

    fn close(&self) {}
}

/// An answer of HTTP without a body so far.
pub(crate) fn response(status: StatusCode, headers: HeaderMap) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}
