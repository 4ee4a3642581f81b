//! The server: what it serves, and one function that serves a connection.

mod call;
mod calls;
mod connection;
mod hub;
mod lifecycle;
mod opening;
mod reader;
mod refusals;
mod router;
mod shared;
mod sniff;
mod writer;

pub(crate) use lifecycle::Phase;
pub use router::Router;
pub(crate) use shared::CoreShared;

use crate::acceptor::{ConnectionGuard, Placed};
use crate::config::ServerConfig;
use crate::http1::HttpHandler;
use crate::memory::CoreMemory;
use crate::metrics::{NetMetrics, add, sub};
use executor::io::{AsyncRead, AsyncWrite};
use executor::net::TcpStream;
use lifecycle::{Lifecycle, Open};
use refusals::RefusalLog;
use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

/// A server on one core. Clones are the same server.
#[derive(Clone)]
pub struct Server {
    shared: Rc<CoreShared>,
    http: Option<Rc<dyn HttpHandler>>,
}

impl Server {
    /// A server of `router`'s services, and of HTTP/1.1 by `http` if there is one. With [`ServerConfig::tls`] it serves
    /// all of it over TLS and nothing else.
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
                refusal_log: RefusalLog::default(),
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

    /// Serves one connection over any stream of bytes, as if it were a socket.
    pub async fn serve_stream<S>(&self, stream: S, peer: Option<SocketAddr>)
    where
        S: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        self.serve_guarded(stream, peer, None).await;
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
