//! Streams of messages: bytes below, typed above.

use super::{Status, decode, encode};
use bytes::Bytes;
use std::fmt;
use std::future::poll_fn;
use std::marker::PhantomData;
use std::rc::Rc;
use std::task::{Context, Poll};

/// The receiving half of a call, as a transport gives it.
///
/// On a server its end is the client's half-close. On a client its end is the status OK, an error is the status, and
/// dropping it before either cancels the call.
pub trait RawInbound {
    /// The next message; `None` at the end, and from then on. One task polls at a time.
    fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Status>>>;
}

/// The sending half of a call, as a transport gives it.
///
/// Several tasks of the core may share it and wait on it at once: an implementation keeps every waiter's waker, not
/// only the last one's. Its memory is bounded: it takes a message only when the flow-control window or its own buffer
/// has room. Dropping the last handle is the same as [`close`](RawOutbound::close).
pub trait RawOutbound {
    /// Takes `message` out of its option when there is room; messages go out in the order in which they were taken.
    /// Pending is back-pressure: the message stays where it is. An error means that the call is over.
    fn poll_send(&self, cx: &mut Context<'_>, message: &mut Option<Bytes>) -> Poll<Result<(), Status>>;

    /// No more messages. On a client this is the half-close; on a server it has no effect, since the handler's result
    /// ends the call.
    fn close(&self);
}

/// The receiving half of a call, of messages of one type.
pub struct Inbound<M> {
    raw: Box<dyn RawInbound>,
    message: PhantomData<fn() -> M>,
}

impl<M: prost::Message + Default> Inbound<M> {
    /// Decodes what comes out of `raw`.
    pub fn new(raw: Box<dyn RawInbound>) -> Inbound<M> {
        Inbound { raw, message: PhantomData }
    }

    /// The next message, or `None` at the end.
    ///
    /// It may be dropped while it waits without losing a message.
    ///
    /// # Errors
    /// The call's status, or INTERNAL for a message that cannot be decoded. The stream stays usable after the latter.
    pub async fn next(&mut self) -> Result<Option<M>, Status> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// [`next`](Inbound::next) for those who poll several things in one place.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<M>, Status>> {
        self.raw.poll_message(cx).map(|message| message.transpose()?.map(decode).transpose())
    }

    /// The one message of a stream that must have one. What follows it is not looked at.
    ///
    /// # Errors
    /// As [`next`](Inbound::next), and INTERNAL if the stream ends without a message.
    pub async fn one(mut self) -> Result<M, Status> {
        self.next().await?.ok_or_else(|| Status::internal("the stream ended without its message"))
    }

    /// The bytes below, for those who parse them on their own.
    pub fn into_raw(self) -> Box<dyn RawInbound> {
        self.raw
    }
}

/// The sending half of a call, of messages of one type. Clones send into the same call.
pub struct Outbound<M> {
    raw: Rc<dyn RawOutbound>,
    message: PhantomData<fn(M)>,
}

impl<M: prost::Message> Outbound<M> {
    /// Encodes into `raw`.
    pub fn new(raw: Rc<dyn RawOutbound>) -> Outbound<M> {
        Outbound { raw, message: PhantomData }
    }

    /// Sends a message when there is room. If it is dropped while it waits, nothing was sent.
    ///
    /// # Errors
    /// The status that ended the call; CANCELLED or UNAVAILABLE where the other side has gone.
    pub async fn send(&self, message: &M) -> Result<(), Status> {
        self.send_encoded(encode(message)).await
    }

    /// Sends a message that is encoded already, under the same rules as [`send`](Outbound::send).
    ///
    /// # Errors
    /// As [`send`](Outbound::send).
    pub async fn send_encoded(&self, message: Bytes) -> Result<(), Status> {
        let mut message = Some(message);
        poll_fn(|cx| self.raw.poll_send(cx, &mut message)).await
    }

    /// No more messages: the half-close of a client. Without effect on a server.
    pub fn close(&self) {
        self.raw.close();
    }

    /// The bytes below, for those who encode on their own.
    pub fn into_raw(self) -> Rc<dyn RawOutbound> {
        self.raw
    }
}

impl<M> Clone for Outbound<M> {
    fn clone(&self) -> Outbound<M> {
        Outbound { raw: Rc::clone(&self.raw), message: PhantomData }
    }
}

impl<M> fmt::Debug for Inbound<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Inbound")
    }
}

impl<M> fmt::Debug for Outbound<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Outbound")
    }
}
