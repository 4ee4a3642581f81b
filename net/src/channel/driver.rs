//! The task of a client's connection: drives h2, writes once per pass, pings a quiet server.

use super::connect::Counted;
use crate::config::ChannelConfig;
use crate::memory::{ConnectionMemory, OutMessage};
use crate::wire::{Activity, Wire, WireHandle};
use base::Instant;
use executor::Sleep;
use executor::io::{AsyncRead, AsyncWrite};
use h2::{Ping, PingPong};
use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// How a connection ended.
pub(crate) struct Ended {
    /// Whether the server has ever sent anything.
    pub(crate) has_read: bool,
    /// What went wrong, if h2 knows.
    pub(crate) error: Option<h2::Error>,
}

/// A connection to a server: a future that ends with it.
pub(crate) struct Driver<S: AsyncRead + AsyncWrite + Unpin> {
    h2: h2::client::Connection<Wire<S>, OutMessage>,
    wire: WireHandle<S>,
    pub(crate) memory: Rc<ConnectionMemory>,
    /// Calls in progress.
    pub(crate) open: Rc<Cell<u64>>,
    /// Its entry in the gauge of connections.
    #[allow(dead_code, reason = "kept for its drop")]
    pub(crate) counted: Option<Counted>,
    config: ChannelConfig,
    pings: Option<PingPong>,
    ping_sent: Option<Instant>,
    timer: Option<Sleep>,
    has_read: bool,
    error: Option<h2::Error>,
    /// When bytes came last, or when the first call after a quiet time began.
    last_read: Instant,
    last_written: Instant,
    was_quiet: bool,
    had_output: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Driver<S> {
    pub(crate) fn new(
        h2: h2::client::Connection<Wire<S>, OutMessage>,
        wire: WireHandle<S>,
        memory: Rc<ConnectionMemory>,
        pings: Option<PingPong>,
        config: ChannelConfig,
    ) -> Driver<S> {
        let now = executor::now();
        Driver {
            h2,
            wire,
            memory,
            open: Rc::default(),
            counted: None,
            config,
            pings,
            ping_sent: None,
            timer: None,
            has_read: false,
            error: None,
            last_read: now,
            last_written: now,
            was_quiet: true,
            had_output: false,
        }
    }

    fn pass(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.wire.begin_pass();
        if let Poll::Ready(ended) = Pin::new(&mut self.h2).poll(cx) {
            self.error = ended.err();
            self.has_read |= self.wire.activity().has_read;
            return Poll::Ready(());
        }
        let frames = self.memory.settle_outbound();
        if self.wire.flush(cx).is_ready_and(|result| result.is_err()) {
            return Poll::Ready(());
        }
        let activity = self.wire.activity();
        if activity.has_more {
            cx.waker().wake_by_ref();
        }
        self.watch(executor::now(), activity, frames > 0, cx)
    }

    /// Gives up on a server that does not read or does not answer pings; sets the timer for the next look.
    fn watch(&mut self, now: Instant, activity: Activity, has_framed: bool, cx: &mut Context<'_>) -> Poll<()> {
        let is_quiet = self.open.get() == 0;
        if activity.has_read || (self.was_quiet && !is_quiet) {
            self.has_read |= activity.has_read;
            self.last_read = now;
            self.ping_sent = None;
        }
        self.was_quiet = is_quiet;
        let has_output = activity.has_unwritten || self.memory.outbound_bytes() > 0;
        if activity.has_written || has_framed || (has_output && !self.had_output) {
            self.last_written = now;
        }
        self.had_output = has_output;
        let output = has_output.then(|| self.last_written + self.config.stalled_write_timeout);
        let mut ping = match (self.ping_sent, self.config.keepalive_interval) {
            (Some(sent), _) => Some(sent + self.config.keepalive_timeout),
            (None, Some(interval)) if !is_quiet => Some(self.last_read + interval),
            (None, _) => None,
        };
        if self.ping_sent.is_none() && ping.is_some_and(|at| at <= now) {
            self.ping_sent = Some(now);
            ping = Some(now + self.config.keepalive_timeout);
            if let Some(pings) = &mut self.pings {
                // h2 sends no other one before the answer to the last one was taken. That it came is seen by the bytes
                // that are read, so nobody waits for it here.
                let _ = pings.poll_pong(&mut Context::from_waker(Waker::noop()));
                // An error means that the answer to the last one is still out.
                let _ = pings.send_ping(Ping::opaque());
                cx.waker().wake_by_ref();
            }
        }
        let Some(at) = output.into_iter().chain(ping).min() else {
            return Poll::Pending;
        };
        if at <= now {
            return Poll::Ready(());
        }
        let is_set = self.timer.as_ref().is_some_and(|timer| now < timer.deadline() && timer.deadline() <= at);
        if !is_set {
            let mut timer = executor::sleep_until(at);
            if Pin::new(&mut timer).poll(cx).is_ready() {
                cx.waker().wake_by_ref();
            }
            self.timer = Some(timer);
        }
        Poll::Pending
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Future for Driver<S> {
    type Output = Ended;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Ended> {
        match self.pass(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(()) => Poll::Ready(Ended { has_read: self.has_read, error: self.error.take() }),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Drop for Driver<S> {
    fn drop(&mut self) {
        self.memory.close();
    }
}

/// A question that the standard library lacks.
trait ReadyAnd<T> {
    #[allow(clippy::wrong_self_convention, reason = "named like Option::is_some_and")]
    fn is_ready_and(self, test: impl FnOnce(T) -> bool) -> bool;
}

impl<T> ReadyAnd<T> for Poll<T> {
    fn is_ready_and(self, test: impl FnOnce(T) -> bool) -> bool {
        match self {
            Poll::Ready(value) => test(value),
            Poll::Pending => false,
        }
    }
}
