//! How a connection begins: who may stay, and what it speaks.
//!
//! ```text
//!   too many, or the server stops ──> refused
//!   first byte 0x16 ── certificates? ── yes ─> TLS handshake ─> first bytes inside ─┐
//!                                    └─ no ──> closed, the log has the reason       │
//!   anything else ──── certificates? ── no ────────────────────────────────────────>┴─> HTTP/2 or HTTP/1.1
//!                                    └─ yes ─> closed, the log has the reason
//! ```

use super::connection::{Connection, Ended};
use super::lifecycle::Phase;
use super::sniff::{Sniffed, sniff};
use super::{OpenConnection, Server};
use crate::acceptor::ConnectionGuard;
use crate::http1;
use crate::metrics::{add, sub};
use crate::tls::{Tls, TlsStream};
use base::Instant;
use bytes::Bytes;
use executor::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use std::fmt::Display;
use std::future::Future;
use std::io;
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
/// The same for TLS: a record with the fatal alert `internal_error`. TLS knows no better word.
const TLS_ALERT: [u8; 7] = [21, 3, 3, 0, 2, 2, 80];
/// How long one that is refused may take to read that, and how many may do so at a time; others are closed at once.
const REFUSAL_TIME: Duration = Duration::from_millis(100);
const REFUSALS_MAX: u64 = 64;

/// Why a connection ends before it has asked for anything.
enum Early {
    Failed(io::Error),
    Late,
    Stopped,
}

impl Server {
    pub(super) async fn serve_guarded<S>(&self, mut stream: S, peer: Option<SocketAddr>, guard: Option<ConnectionGuard>)
    where
        S: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let shared = &self.shared;
        if shared.metrics.connections.get() >= shared.config.connections_max || shared.is_draining() {
            self.turn_away(&mut stream).await;
            return;
        }
        let _open = OpenConnection::begin(&shared.metrics, &shared.lifecycle);
        let until = executor::now() + shared.config.handshake_timeout;
        let Ok(first) = self.in_time(until, sniff(&mut stream)).await else {
            return;
        };
        match (first, &shared.config.tls) {
            (Sniffed::Nothing, _) => {}
            // A box: TLS makes the future larger, and servers that run without it need not pay.
            (Sniffed::Tls(bytes), Some(tls)) => {
                if let Some((stream, first)) = Box::pin(self.accept_tls(stream, bytes, tls, peer, until)).await {
                    Box::pin(self.serve_http(stream, first, peer, guard)).await;
                }
            }
            (Sniffed::Tls(_), None) => self.refuse(peer, &"it speaks TLS, and no certificates are configured"),
            (_, Some(_)) => self.refuse(peer, &"it does not speak TLS, and certificates are configured"),
            (first, None) => self.serve_http(stream, first, peer, guard).await,
        }
    }

    /// The handshake, and what is spoken inside. `None`: the connection is over, and the log has the reason.
    async fn accept_tls<S>(
        &self,
        stream: S,
        first: Bytes,
        tls: &Tls,
        peer: Option<SocketAddr>,
        until: Instant,
    ) -> Option<(TlsStream<S>, Sniffed)>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        tls.refresh().await;
        let mut stream =
            TlsStream::server(stream, first, tls.server()).map_err(|error| self.refuse(peer, &error)).ok()?;
        match self.in_time(until, stream.handshake()).await {
            Ok(()) => add(&self.shared.metrics.tls_handshakes_total, 1),
            Err(early) => {
                match early {
                    Early::Failed(error) => self.refuse(peer, &error),
                    Early::Late => self.refuse(peer, &"the TLS handshake was not done in time"),
                    Early::Stopped => {}
                }
                // The peer has been told why, if it still listens.
                self.linger(stream.io_mut()).await;
                return None;
            }
        }
        match self.in_time(until, sniff(&mut stream)).await {
            Ok(Sniffed::Tls(_)) => {
                self.refuse(peer, &"it speaks TLS inside of TLS");
                None
            }
            Ok(first) => Some((stream, first)),
            Err(_) => None,
        }
    }

    async fn serve_http<S>(&self, stream: S, first: Sniffed, peer: Option<SocketAddr>, guard: Option<ConnectionGuard>)
    where
        S: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let (config, lifecycle) = (&self.shared.config, &self.shared.lifecycle);
        match first {
            Sniffed::Http2(bytes) => {
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
            Sniffed::Http1(bytes) => {
                if let Some(handler) = &self.http {
                    let serving = http1::serve(stream, bytes, peer, Rc::clone(handler), &self.shared);
                    lifecycle.unless(Phase::Closing, serving).await;
                }
            }
            Sniffed::Tls(_) | Sniffed::Nothing => {}
        }
    }

    /// Runs a step of a connection that has not asked for anything yet: not beyond the time for that, which is counted,
    /// nor beyond a stop of the server, since there is no work that it would have to wait for.
    async fn in_time<T>(&self, until: Instant, step: impl Future<Output = io::Result<T>>) -> Result<T, Early> {
        let shared = &self.shared;
        let step = shared.lifecycle.unless(Phase::Draining, step);
        match executor::timeout(until.since(executor::now()), step).await {
            Ok(Some(done)) => done.map_err(Early::Failed),
            Ok(None) => Err(Early::Stopped),
            Err(_) => {
                add(&shared.metrics.stalled_total, 1);
                Err(Early::Late)
            }
        }
    }

    /// Counts a connection that is refused because of TLS, and says why.
    fn refuse(&self, peer: Option<SocketAddr>, reason: &dyn Display) {
        add(&self.shared.metrics.tls_refused_total, 1);
        self.shared.refusal_log.say(peer, reason);
    }

    /// Tells a connection too many to go away. Best effort: the peer sees the end of the stream in any case.
    async fn turn_away(&self, stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) {
        let shared = &self.shared;
        add(&shared.metrics.connections_refused_total, 1);
        if shared.refusals.get() < REFUSALS_MAX {
            let goodbye = if shared.config.tls.is_some() {
                TLS_ALERT.to_vec()
            } else {
                let reason = if shared.is_draining() { NO_ERROR } else { ENHANCE_YOUR_CALM };
                [&GO_AWAY[..], &[reason]].concat()
            };
            add(&shared.refusals, 1);
            let said = executor::timeout(REFUSAL_TIME, stream.write_all(&goodbye)).await;
            if matches!(said, Ok(Ok(()))) {
                http1::linger(stream, REFUSAL_TIME).await;
            }
            sub(&shared.refusals, 1);
        }
    }

    /// Gives one that was refused the time to read why.
    async fn linger(&self, stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) {
        let shared = &self.shared;
        if shared.refusals.get() < REFUSALS_MAX {
            add(&shared.refusals, 1);
            http1::linger(stream, REFUSAL_TIME).await;
            sub(&shared.refusals, 1);
        }
    }
}
