//! The client side: a channel that connects when it is needed and again when it must.

mod connect;
mod driver;
mod request;
mod stream;
mod transport;

pub use transport::Transport;

use crate::config::ChannelConfig;
use crate::grpc::message::Deframer;
use crate::grpc::status;
use crate::memory::{ConnectionMemory, OutMessage};
use crate::metrics::{NetMetrics, add, sub};
use connect::{Link, Target};
use h2::SendStream;
use h2::client::{ResponseFuture, SendRequest};
use proto::rpc::{self, CallContext, LocalFuture, Status, Streams};
use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

use bytes::Bytes;
use stream::{ClientReader, ClientWriter};

/// A way to one server: one HTTP/2 connection, made at the first call and made again when it broke. Cheap to clone;
/// clones share the connection. When the last clone and the last call are gone, the connection closes.
///
/// A call that finds no connection waits for one; while the server cannot be reached, calls fail at once with
/// UNAVAILABLE until the next attempt is due. No call is ever sent twice.
#[derive(Clone)]
pub struct Channel(Rc<Inner>);

struct Inner {
    target: Result<Target, Status>,
    config: ChannelConfig,
    link: RefCell<Link>,
    metrics: Rc<NetMetrics>,
}

/// What a call needs of a connection.
#[derive(Clone)]
struct Connected {
    send: SendRequest<OutMessage>,
    memory: Rc<ConnectionMemory>,
    /// Calls in progress, for the connection's keepalive.
    open: Rc<Cell<u64>>,
    number: u64,
}

/// A call that has begun: headers are on their way.
struct Begun {
    response: ResponseFuture,
    send: SendStream<OutMessage>,
    connected: Connected,
    open: OpenCall,
}

impl Channel {
    /// A channel to `address`, which is `host:port`, `http://host:port` or `https://host:port`; whether it is by TLS is
    /// said by [`ChannelConfig::tls`] alone. Nothing is sent before the first call.
    pub fn new(address: String, config: ChannelConfig) -> Channel {
        Channel::with_metrics(address, config, Rc::default())
    }

    /// The same, counting in `metrics`, which other channels of the core may share.
    pub fn with_metrics(address: String, config: ChannelConfig, metrics: Rc<NetMetrics>) -> Channel {
        let target = Target::parse(&address, config.tls.is_some());
        Channel(Rc::new(Inner { target, config, link: RefCell::default(), metrics }))
    }

    /// The counters.
    pub fn metrics(&self) -> &Rc<NetMetrics> {
        &self.0.metrics
    }

    /// Whether there is a connection now.
    pub fn is_connected(&self) -> bool {
        self.0.link.borrow().is_up()
    }

    /// Begins a call on a live connection.
    async fn begin(&self, path: &'static str, cx: &CallContext) -> Result<Begun, Status> {
        let target = self.0.target.as_ref().map_err(Clone::clone)?;
        let mut connected = self.connected().await?;
        if let Err(error) = poll_fn(|cx| connected.send.poll_ready(cx)).await {
            // It broke while it was idle, and nothing was sent: one new connection is worth a try.
            self.0.link.borrow_mut().broke(connected.number);
            drop(error);
            connected = self.connected().await?;
            poll_fn(|cx| connected.send.poll_ready(cx)).await.map_err(|error| status::from_h2(&error))?;
        }
        let request = request::head(target, path, cx)?;
        let (response, send) = connected
            .send
            .send_request(request, false)
            .map_err(|error| Status::unavailable(format!("HTTP/2: {error}")))?;
        add(&self.0.metrics.requests_total, 1);
        let open = OpenCall::begin(&connected.open, &self.0.metrics);
        Ok(Begun { response, send, connected, open })
    }

    async fn call(self, path: &'static str, cx: CallContext, request: Bytes) -> Result<Bytes, Status> {
        let mut begun = self.begin(path, &cx).await?;
        let memory = &begun.connected.memory;
        poll_fn(|cx| {
            if memory.has_outbound_room() || memory.is_closed() {
                return Poll::Ready(());
            }
            memory.wait_for_outbound_room(cx.waker());
            Poll::Pending
        })
        .await;
        let message = OutMessage::new(memory, None, false, request);
        let sent = begun.send.send_data(message, true);
        // If the server has ended the call already, its answer says why.
        drop(sent);
        let deframer = Deframer::new(self.0.config.message_bytes_max);
        let mut reader = ClientReader::new(begun.response, deframer, self.0.config.message_bytes_max, None);
        let message = poll_fn(|cx| reader.poll_next(cx)).await?;
        let message = message.ok_or_else(|| Status::internal("OK without an answer"))?;
        match poll_fn(|cx| reader.poll_next(cx)).await? {
            None => Ok(message),
            Some(_) => Err(Status::internal("more than one answer to a unary call")),
        }
    }
}

impl rpc::Channel for Channel {
    fn unary(&self, path: &'static str, cx: CallContext, request: Bytes) -> LocalFuture<Result<Bytes, Status>> {
        let channel = self.clone();
        Box::pin(async move {
            let metrics = Rc::clone(&channel.0.metrics);
            let result = match cx.deadline {
                None => channel.call(path, cx, request).await,
                Some(deadline) => before(deadline, channel.call(path, cx, request)).await,
            };
            if result.is_err() {
                add(&metrics.errors_total, 1);
            }
            result
        })
    }

    fn stream(&self, path: &'static str, cx: CallContext) -> LocalFuture<Result<Streams, Status>> {
        let channel = self.clone();
        Box::pin(async move {
            let deadline = cx.deadline;
            let begin = channel.begin(path, &cx);
            let begun = match deadline {
                None => begin.await?,
                Some(deadline) => before(deadline, begin).await?,
            };
            let config = &channel.0.config;
            let writer = ClientWriter::new(begun.send, &begun.connected.memory, config.stream_outbound_bytes);
            let writer = Rc::new(writer);
            let deframer = Deframer::new(config.message_bytes_max);
            let mut reader = ClientReader::new(begun.response, deframer, config.message_bytes_max, deadline);
            reader.attach(&writer, begun.open);
            Ok((Box::new(reader) as Box<dyn rpc::RawInbound>, writer as Rc<dyn rpc::RawOutbound>))
        })
    }
}

/// Waits for `call` until `deadline`; then it is dropped, which resets its stream.
async fn before<T>(deadline: base::Instant, call: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    let mut call = pin!(call);
    let mut timer = pin!(executor::sleep_until(deadline));
    poll_fn(|cx| {
        if let Poll::Ready(result) = call.as_mut().poll(cx) {
            return Poll::Ready(result);
        }
        timer.as_mut().poll(cx).map(|()| Err(deadline_passed()))
    })
    .await
}

fn deadline_passed() -> Status {
    Status::deadline_exceeded("the deadline passed before the answer came")
}

/// Counts a call as open while it lives.
pub(super) struct OpenCall {
    open: Rc<Cell<u64>>,
    metrics: Rc<NetMetrics>,
}

impl OpenCall {
    fn begin(open: &Rc<Cell<u64>>, metrics: &Rc<NetMetrics>) -> OpenCall {
        add(open, 1);
        add(&metrics.streams, 1);
        OpenCall { open: Rc::clone(open), metrics: Rc::clone(metrics) }
    }
}

impl Drop for OpenCall {
    fn drop(&mut self) {
        sub(&self.open, 1);
        sub(&self.metrics.streams, 1);
    }
}
