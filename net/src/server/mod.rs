//! The server: what it serves, and one function that serves a connection.

mod call;
mod calls;
mod connection;
mod hub;
mod reader;
mod router;
mod shared;
mod sniff;
mod writer;

pub use router::Router;

use crate::acceptor::{ConnectionGuard, Placed};
use crate::config::ServerConfig;
use crate::http1::{self, HttpHandler};
use crate::memory::CoreMemory;
use crate::metrics::{NetMetrics, add, sub};
use connection::Connection;
use executor::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use executor::net::TcpStream;
use shared::CoreShared;
use sniff::{Sniffed, sniff};
use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

/// SETTINGS without a setting, and GOAWAY with ENHANCE_YOUR_CALM for stream 0: what a connection too many is told.
const GO_AWAY: [u8; 26] = [
    0, 0, 0, 4, 0, 0, 0, 0, 0, // SETTINGS
    0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 11, // GOAWAY
];
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
                is_draining: Cell::new(false),
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
        if metrics.connections.get() >= self.shared.config.connections_max || self.shared.is_draining.get() {
            self.refuse(&mut stream).await;
            return;
        }
        let _open = OpenConnection::begin(metrics);
        let config = &self.shared.config;
        match executor::timeout(config.handshake_timeout, sniff(&mut stream)).await {
            Ok(Ok(Sniffed::Http2(bytes))) => {
                Connection::new(stream, bytes, peer, guard, &self.shared).await;
            }
            Ok(Ok(Sniffed::Http1(bytes))) => {
                if let Some(handler) = &self.http {
                    http1::serve(stream, bytes, peer, Rc::clone(handler), config, &self.shared.memory).await;
                }
            }
            Ok(Ok(Sniffed::Nothing) | Err(_)) => {}
            Err(_) => add(&metrics.stalled_total, 1),
        }
    }

    /// Tells a connection too many to go away. Best effort: the peer sees the end of the stream in any case.
    async fn refuse(&self, stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) {
        let shared = &self.shared;
        add(&shared.metrics.connections_refused_total, 1);
        if shared.refusals.get() < REFUSALS_MAX {
            add(&shared.refusals, 1);
            let said = executor::timeout(REFUSAL_TIME, stream.write_all(&GO_AWAY)).await;
            if matches!(said, Ok(Ok(()))) {
                http1::linger(stream, REFUSAL_TIME).await;
            }
            sub(&shared.refusals, 1);
        }
    }

    /// Stops taking new work: connections are told to go away and end when their calls have; new ones are refused.
    pub fn drain(&self) {
        self.shared.is_draining.set(true);
        self.shared.notify_all();
    }

    /// The counters.
    pub fn metrics(&self) -> &Rc<NetMetrics> {
        &self.shared.metrics
    }
}

/// Counts a connection as open while it lives.
struct OpenConnection(Rc<NetMetrics>);

impl OpenConnection {
    fn begin(metrics: &Rc<NetMetrics>) -> OpenConnection {
        add(&metrics.connections_total, 1);
        add(&metrics.connections, 1);
        OpenConnection(Rc::clone(metrics))
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        sub(&self.0.connections, 1);
    }
}
