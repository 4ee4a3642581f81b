//! The server: what it serves, and one function that serves a connection.

mod call;
mod calls;
mod connection;
mod hub;
mod lifecycle;
mod reader;
mod router;
mod shared;
mod sniff;
mod writer;

pub(crate) use lifecycle::Phase;
pub use router::Router;
pub(crate) use shared::CoreShared;

use crate::acceptor::{ConnectionGuard, Placed};
use crate::config::ServerConfig;
use crate::http1::{self, HttpHandler};
use crate::memory::CoreMemory;
use crate::metrics::{NetMetrics, add, sub};
use connection::{Connection, Ended};
use executor::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use executor::net::TcpStream;
use lifecycle::{Lifecycle, Open};
use sniff::{Sniffed, sniff};
use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

/// SETTINGS without a setting, and GOAWAY for stream 0: what a connection too many is told, before the reason.
const GO_AWAY: [u8; 25] = [
    0, 0, 0, 4, 0, 0, 0, 0, 0, // SETTINGS
    0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // GOAWAY
];
/// The reason: none, since the server stops, or ENHANCE_YOUR_CALM, since it has too many.
const NO_ERROR: u8 = 0;
const ENHANCE_YOUR_CALM: u8 = 11;
/// How long one that is refused may take to read that, and how many may do so at a time; others are closed at once.
const REFUSAL_TIME: Duration = Duration::from_millis(100);
const REFUSALS_MAX: u64 = 64;

/// A server on one core. Clones are the same server.
#[derive(Clone)]
pub struct Server {
    shared: Rc<CoreShared>,
    http: Option<Rc<dyn HttpHandler>>,
}

impl Server {
    /// A server of `router`'s services, and of HTTP/1.1 by `http` if there is one.
    pub fn new(
        router: Rc<Router>,
        http: Option<Rc<dyn HttpHandler>>,
        config: ServerConfig,
        metrics: Rc<NetMetrics>,
    ) -> Server {
        let memory = CoreMemory::new(&config, Rc::clone(&metrics));
        Server {
            shared: Rc::new(CoreShared {
                config,
                router,
                metrics,
                memory,
                refusals: Cell::new(0),
                lifecycle: Rc::default(),
                hubs: RefCell::default(),
            }),
            http,
        }
    }

    /// Serves one connection until it ends. Its handlers run inside of this future; dropping it drops them.
    pub async fn serve(&self, stream: TcpStream) {
        self.serve_tcp(stream, None).await;
    }

    /// Serves a connection that an [`Acceptor`](crate::Acceptor) has placed on this core.
    pub async fn serve_placed(&self, placed: Placed) {
        // An error means that the peer has gone.
        if let Ok(stream) = TcpStream::from_handoff(placed.stream) {
            self.serve_tcp(stream, Some(placed.guard)).await;
        }
    }

    async fn serve_tcp(&self, stream: TcpStream, guard: Option<ConnectionGuard>) {
        // Without it, small answers wait for acknowledgements; a failure means that the peer has gone.
        let _ = stream.set_nodelay(true);
        let peer = stream.peer_addr().ok();
        self.serve_guarded(stream, peer, guard).await;
    }

    /// Serves one connection over any stream of bytes: the seam for TLS.
    pub async fn serve_stream<S>(&self, stream: S, peer: Option<SocketAddr>)
    where
        S: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        self.serve_guarded(stream, peer, None).await;
    }

    async fn serve_guarded<S>(&self, mut stream: S, peer: Option<SocketAddr>, guard: Option<ConnectionGuard>)
    where
        S: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let metrics = &self.shared.metrics;
        if metrics.connections.get() >= self.shared.config.connections_max || self.shared.is_draining() {
            self.refuse(&mut stream).await;
            return;
        }
        let _open = OpenConnection::begin(metrics, &self.shared.lifecycle);
        let (config, lifecycle) = (&self.shared.config, &self.shared.lifecycle);
        // Who has not said anything yet has no work with us that a stop would have to wait for.
        let first = lifecycle.unless(Phase::Draining, sniff(&mut stream));
        match executor::timeout(config.handshake_timeout, first).await {
            Ok(Some(Ok(Sniffed::Http2(bytes)))) => {
                let connection = Connection::new(stream, bytes, peer, guard, &self.shared);
                let wire = connection.wire();
                let ended = connection.await;
                if ended == Ended::InOrder
                    && let Some(mut stream) = wire.into_io()
                {
                    let linger = http1::linger(&mut stream, config.stalled_write_timeout);
                    lifecycle.unless(Phase::Closing, linger).await;
                }
            }
            Ok(Some(Ok(Sniffed::Http1(bytes)))) => {
                if let Some(handler) = &self.http {
                    let serving = http1::serve(stream, bytes, peer, Rc::clone(handler), &self.shared);
                    lifecycle.unless(Phase::Closing, serving).await;
                }
            }
            Ok(Some(Ok(Sniffed::Nothing) | Err(_)) | None) => {}
            Err(_) => add(&metrics.stalled_total, 1),
        }
    }

    /// Tells a connection too many to go away. Best effort: the peer sees the end of the stream in any case.
    async fn refuse(&self, stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) {
        let shared = &self.shared;
        add(&shared.metrics.connections_refused_total, 1);
        if shared.refusals.get() < REFUSALS_MAX {
            add(&shared.refusals, 1);
            let mut goodbye = GO_AWAY.to_vec();
            goodbye.push(if shared.is_draining() { NO_ERROR } else { ENHANCE_YOUR_CALM });
            let said = executor::timeout(REFUSAL_TIME, stream.write_all(&goodbye)).await;
            if matches!(said, Ok(Ok(()))) {
                http1::linger(stream, REFUSAL_TIME).await;
            }
            sub(&shared.refusals, 1);
        }
    }

    /// Stops taking new work; returns at once. New connections are refused. Open ones are told to go away (GOAWAY) and
    /// end when their calls have; those of HTTP/1.1 end after the answer under way. Bidirectional streams, which have no
    /// end of their own, get UNAVAILABLE from their inbound half once all that came was read.
    pub fn drain(&self) {
        self.shared.advance(Phase::Draining);
    }

    /// Stops: [`Server::drain`], then waits until all connections have ended, for at most `limit`. What is left then is
    /// cut off, its handlers are dropped. Returns how many connections that were.
    pub async fn stop(&self, limit: Duration) -> u64 {
        self.drain();
        let lifecycle = &self.shared.lifecycle;
        // Whether the limit came first shows in what is open.
        let _ = executor::timeout(limit, lifecycle.until_idle()).await;
        let left = lifecycle.open();
        self.shared.advance(Phase::Closing);
        // They end as soon as their tasks are polled.
        lifecycle.until_idle().await;
        left
    }

    /// The counters.
    pub fn metrics(&self) -> &Rc<NetMetrics> {
        &self.shared.metrics
    }
}

/// Counts a connection as open while it lives.
struct OpenConnection(Rc<NetMetrics>, #[allow(dead_code, reason = "kept for its drop")] Open);

impl OpenConnection {
    fn begin(metrics: &Rc<NetMetrics>, lifecycle: &Rc<Lifecycle>) -> OpenConnection {
        add(&metrics.connections_total, 1);
        add(&metrics.connections, 1);
        OpenConnection(Rc::clone(metrics), Open::begin(lifecycle))
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        sub(&self.0.connections, 1);
    }
}
