//! The messages of one request stream: from h2's chunks to whole, inflated messages, charged and bounded.

use super::shared::ConnectionShared;
use crate::grpc::gzip::{self, InflateError};
use crate::grpc::headers::Encoding;
use crate::grpc::message::{Deframer, FrameError};
use crate::memory::{InboundCharge, Line};
use base::Instant;
use bytes::Bytes;
use executor::Class;
use h2::RecvStream;
use proto::rpc::{LocalFuture, RawInbound, Shape, Status};
use std::cell::Cell;
use std::ops::Deref;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

/// Messages that inflate to more than this are inflated on a helper, since they hold the core too long.
const INFLATE_HERE_BYTES_MAX: usize = 64 << 10;

/// Why a reader is waiting, for the connection's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waiting {
    /// For nothing, or for a message that has not begun.
    No,
    /// For the rest of a message.
    HalfSent,
    /// For memory.
    Memory,
    /// For memory, though it may go beyond the limits: the client is slow.
    MemoryFavoured,
}

/// What the connection may look at while the reader belongs to a handler.
pub(crate) struct Progress {
    pub(crate) waiting: Cell<Waiting>,
    pub(crate) since: Cell<Instant>,
}

/// Whose eyes are on a reader's progress. Most calls are unary, and spare the allocation.
enum Watched {
    Own(Progress),
    Shared(Rc<Progress>),
}

impl Deref for Watched {
    type Target = Progress;

    fn deref(&self) -> &Progress {
        match self {
            Watched::Own(progress) => progress,
            Watched::Shared(progress) => progress,
        }
    }
}

/// Reads messages off a request stream.
pub(crate) struct Reader {
    body: RecvStream,
    deframer: Deframer,
    charge: InboundCharge,
    encoding: Encoding,
    inflating: Option<Inflating>,
    progress: Watched,
    shared: Rc<ConnectionShared>,
    /// The client owes the rest of the stream, not only the rest of a message.
    owes_end: bool,
    /// The stream has no end of its own, and is told when the server stops.
    is_session: bool,
    is_over: bool,
}

/// A whole message that is still compressed.
enum Inflating {
    /// It waits for memory for the bytes that it will have.
    Waits(Bytes, usize),
    /// A helper works on it.
    Runs(LocalFuture<Result<Bytes, InflateError>>),
}

/// What is kept of a request while it is handled.
pub(crate) enum Held {
    /// The charge for its bytes.
    Charge(#[allow(dead_code, reason = "kept for its drop")] InboundCharge),
    /// Everything: memory was short, so its window is not released yet.
    Stream(Box<Reader>),
}

impl Held {
    /// Releases the window if there is room now.
    pub(crate) fn release(&mut self, cx: &mut Context<'_>) {
        if let Held::Stream(reader) = self {
            reader.charge.release(reader.body.flow_control(), false, cx);
        }
    }
}

/// A read that gave no message.
pub(crate) enum ReadError {
    /// The client reset the stream, or the connection broke: nobody waits for an answer.
    Gone(Status),
    /// What the client sent is not right.
    Bad(Status),
}

impl Reader {
    pub(crate) fn new(body: RecvStream, encoding: Encoding, shape: Shape, shared: &Rc<ConnectionShared>) -> Reader {
        Reader {
            body,
            deframer: Deframer::new(shared.config().message_bytes_max),
            charge: InboundCharge::new(&shared.memory),
            encoding,
            inflating: None,
            progress: Watched::Own(Progress::new(shared.now.get())),
            shared: Rc::clone(shared),
            owes_end: shape == Shape::Unary,
            is_session: matches!(shape, Shape::Bidi | Shape::ClientStream),
            is_over: false,
        }
    }

    /// How far it is, to be looked at by the clock.
    pub(crate) fn progress(&self) -> &Progress {
        &self.progress
    }

    /// The same, to be looked at while the reader belongs to a handler. Before anything is read.
    pub(crate) fn share_progress(&mut self) -> Rc<Progress> {
        let progress = Rc::new(Progress::new(self.shared.now.get()));
        self.progress = Watched::Shared(Rc::clone(&progress));
        progress
    }

    /// All messages are read. What stays is their charge; the stream too, if window is owed for them.
    pub(crate) fn into_held(self) -> Held {
        if self.charge.is_owing() { Held::Stream(Box::new(self)) } else { Held::Charge(self.charge) }
    }

    /// The messages read so far are used up.
    pub(crate) fn settle(&mut self) {
        self.charge.settle();
    }

    /// The next message, or `None` at the end of the stream.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, ReadError>> {
        loop {
            if self.inflating.is_some() {
                return self.poll_inflated(cx).map(|result| result.map(Some).map_err(ReadError::Bad));
            }
            if let Some(message) = self.deframer.next_message().map_err(bad_frame)? {
                self.note(Waiting::No);
                self.charge.completed();
                self.charge.release(self.body.flow_control(), false, cx);
                if !message.is_compressed {
                    return Poll::Ready(Ok(Some(message.bytes)));
                }
                if self.encoding == Encoding::Identity {
                    let status = Status::internal("message is compressed but grpc-encoding names no compression");
                    return Poll::Ready(Err(ReadError::Bad(status)));
                }
                let len = gzip::inflated_len(&message.bytes, self.shared.config().message_bytes_max);
                self.inflating =
                    Some(Inflating::Waits(message.bytes, len.map_err(|error| ReadError::Bad(bad_gzip(error)))?));
                continue;
            }
            if self.is_over || self.body.is_end_stream() {
                self.is_over = true;
                return Poll::Ready(if self.deframer.is_at_boundary() {
                    Ok(None)
                } else {
                    Err(ReadError::Bad(Status::internal("stream ended inside of a message")))
                });
            }
            match self.body.poll_data(cx) {
                Poll::Ready(Some(Ok(chunk))) => {
                    self.progress.since.set(self.shared.now.get());
                    self.charge.arrived(chunk.len());
                    self.deframer.feed(chunk);
                }
                Poll::Ready(Some(Err(error))) => {
                    self.is_over = true;
                    return Poll::Ready(Err(ReadError::Gone(crate::grpc::status::from_h2(&error))));
                }
                Poll::Ready(None) => self.is_over = true,
                Poll::Pending => {
                    let is_inside = !self.deframer.is_at_boundary();
                    if self.is_session && !is_inside && self.shared.core.is_draining() {
                        self.is_over = true;
                        return Poll::Ready(Err(ReadError::Bad(Status::unavailable("the server stops"))));
                    }
                    self.charge.release(self.body.flow_control(), is_inside, cx);
                    let owes = is_inside || self.owes_end;
                    self.note(if owes { waiting_in(self.charge.line()) } else { Waiting::No });
                    return Poll::Pending;
                }
            }
        }
    }

    /// Waits for memory, then inflates: here if it is little.
    fn poll_inflated(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bytes, Status>> {
        if let Some(Inflating::Waits(message, len)) = &self.inflating {
            let (message, len) = (message.clone(), *len);
            if !self.charge.reserve(len, cx) {
                if self.progress.waiting.get() == Waiting::No {
                    self.progress.since.set(self.shared.now.get());
                }
                self.note(waiting_in(self.charge.line()));
                return Poll::Pending;
            }
            self.note(Waiting::No);
            self.inflating = None;
            if len <= INFLATE_HERE_BYTES_MAX {
                return Poll::Ready(gzip::inflate(&message, len).map_err(bad_gzip));
            }
            let inflate = move || gzip::inflate(&message, len);
            self.inflating = Some(Inflating::Runs(Box::pin(executor::blocking(Class::Foreground, inflate))));
        }
        let Some(Inflating::Runs(future)) = &mut self.inflating else {
            return Poll::Ready(Err(Status::internal("no message is being inflated")));
        };
        let result = ready!(future.as_mut().poll(cx));
        self.inflating = None;
        Poll::Ready(result.map_err(bad_gzip))
    }

    fn note(&self, waiting: Waiting) {
        self.progress.waiting.set(waiting);
        if let Some(at) = self.progress.deadline(&self.shared) {
            self.shared.look_at(at);
        }
    }
}

impl Progress {
    fn new(now: Instant) -> Progress {
        Progress { waiting: Cell::new(Waiting::No), since: Cell::new(now) }
    }

    /// When patience ends; `None` if nothing is owed to us.
    pub(crate) fn deadline(&self, shared: &ConnectionShared) -> Option<Instant> {
        let config = shared.config();
        let patience = match self.waiting.get() {
            Waiting::No => return None,
            Waiting::HalfSent => config.half_sent_timeout,
            Waiting::Memory => config.memory_wait,
            Waiting::MemoryFavoured => 2 * config.memory_wait,
        };
        Some(self.since.get() + patience)
    }

    /// What to tell the client when patience has ended.
    pub(crate) fn complaint(&self) -> Status {
        match self.waiting.get() {
            Waiting::No | Waiting::HalfSent => Status::deadline_exceeded("the rest of a message did not come in time"),
            Waiting::Memory | Waiting::MemoryFavoured => {
                Status::resource_exhausted("the server's memory for requests is used up; try again later")
            }
        }
    }
}

/// What a reader waits for that owes us something.
fn waiting_in(line: Line) -> Waiting {
    match line {
        Line::No => Waiting::HalfSent,
        Line::Waits => Waiting::Memory,
        Line::Head => Waiting::MemoryFavoured,
    }
}

fn bad_gzip(error: InflateError) -> Status {
    match error {
        InflateError::TooLarge(_) => Status::resource_exhausted(error.to_string()),
        InflateError::Corrupt => Status::internal(error.to_string()),
    }
}

fn bad_frame(error: FrameError) -> ReadError {
    ReadError::Bad(match error {
        FrameError::TooLarge(..) => Status::resource_exhausted(error.to_string()),
        FrameError::BadFlag(_) => Status::internal(error.to_string()),
    })
}

/// A request stream as handlers see it.
impl RawInbound for Reader {
    fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Status>>> {
        if self.inflating.is_none() {
            self.settle();
        }
        self.poll_next(cx).map(|result| match result {
            Ok(message) => message.map(Ok),
            Err(ReadError::Gone(status) | ReadError::Bad(status)) => Some(Err(status)),
        })
    }
}
