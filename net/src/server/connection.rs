//! One HTTP/2 connection: the task that drives h2, polls the calls and writes the answers.
//!
//! A pass: read what the socket has (at most 256 KiB), begin the calls that came, poll the calls that are ready, let
//! h2 frame what they answered, write all of it at once. Handlers run inside of the pass; one that waits is polled
//! again when its own waker fires.

use super::call::Call;
use super::calls::CallSet;
use super::hub::Hub;
use super::lifecycle::Phase as ServerPhase;
use super::shared::{ConnectionShared, CoreShared};
use crate::acceptor::ConnectionGuard;
use crate::config::ServerConfig;
use crate::memory::{ConnectionMemory, OutMessage};
use crate::metrics::add;
use crate::wire::{Activity, Meter, Wire, WireHandle, wire};
use base::Instant;
use bytes::Bytes;
use executor::Sleep;
use executor::io::{AsyncRead, AsyncWrite};
use h2::server::Handshake;
use h2::{Ping, PingPong, Reason};
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// Calls that a pass polls before others on the core get their turn.
const PASS_CALLS_MAX: usize = 256;
/// Time after which a pass ends, whatever is left.
const PASS_TIME_MAX: Duration = Duration::from_micros(500);
/// How long a connection that is told to go away may take to hear it.
const FAREWELL_TIME: Duration = Duration::from_secs(1);
/// Local resets that h2 remembers, to tell late frames from wrong ones, and for how long. h2 counts that time by its
/// own clock; it is long enough that nothing within a simulated run depends on it.
const RESETS_REMEMBERED: usize = 1024;
const RESETS_REMEMBERED_TIME: Duration = Duration::from_secs(30);
/// Streams reset by the client before their call was begun, within one pass. The meter stops floods before that.
const RESETS_UNSEEN_MAX: usize = 8192;
/// Stream errors of the client over the life of a connection.
const STREAM_ERRORS_MAX: usize = 10_000;

enum Phase<S> {
    Handshake(Handshake<Wire<S>, OutMessage>),
    Open(h2::server::Connection<Wire<S>, OutMessage>),
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// All was said, and the socket is shut down. To close it before the client does would reset the connection if the
    /// client has sent anything since, and may cost it our last answers.
    InOrder,
    /// By an error, an abuse or a limit.
    Broken,
}

/// What h2 has for us.
#[allow(clippy::large_enum_variant, reason = "nearly all that comes is a call; a box would cost each of them")]
enum Came {
    /// A call to be begun.
    Call(Call),
    /// A request that is answered already.
    Refused,
    /// The connection is over.
    End,
}

/// Whether a pass has done its share.
fn is_tired(polled: usize, began: Instant) -> bool {
    polled >= PASS_CALLS_MAX || executor::now().since(began) >= PASS_TIME_MAX
}

/// A connection in progress: a future that ends with it.
pub(crate) struct Connection<S> {
    phase: Phase<S>,
    wire: WireHandle<S>,
    calls: CallSet<Call>,
    shared: Rc<ConnectionShared>,
    hub: Arc<Hub>,
    waker: Waker,
    timer: Option<Sleep>,
    pings: Option<PingPong>,
    ping_sent: Option<Instant>,
    opened: Instant,
    last_read: Instant,
    last_written: Instant,
    had_output: bool,
    /// h2 has said all that it had to say.
    in_order: bool,
    /// When we said goodbye for an abuse.
    farewell: Option<Instant>,
    is_draining: bool,
    has_settings: bool,
    /// Our entry in the acceptor's books, if it placed us.
    guard: Option<ConnectionGuard>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    pub(crate) fn new(
        io: S,
        sniffed: Bytes,
        peer: Option<SocketAddr>,
        guard: Option<ConnectionGuard>,
        core: &Rc<CoreShared>,
    ) -> Connection<S> {
        let config = &core.config;
        let memory = ConnectionMemory::new(&core.memory, config);
        let meter = Meter::of_client(config.control_frames_burst, config.resets_burst);
        let (end, wire) = wire(io, sniffed, Some(meter), Rc::clone(&core.metrics));
        let shared = ConnectionShared::new(core, memory, peer);
        let hub = Arc::new(Hub::default());
        core.register(&hub);
        let now = shared.now.get();
        Connection {
            phase: Phase::Handshake(builder(config, shared.memory.window_bytes()).handshake(end)),
            wire,
            calls: CallSet::new(Arc::clone(&hub)),
            shared,
            waker: Waker::from(Arc::clone(&hub)),
            hub,
            timer: None,
            pings: None,
            ping_sent: None,
            opened: now,
            last_read: now,
            last_written: now,
            had_output: false,
            in_order: false,
            farewell: None,
            is_draining: false,
            has_settings: false,
            guard,
        }
    }

    /// The socket, for when the connection has ended.
    pub(crate) fn wire(&self) -> WireHandle<S> {
        self.wire.clone()
    }

    fn pass(&mut self) -> Poll<()> {
        let now = executor::now();
        let elapsed = now.since(self.shared.now.replace(now));
        self.wire.begin_pass();
        self.wire.with_meter(|meter| meter.elapsed(elapsed));
        let waker = self.waker.clone();
        let cx = &mut Context::from_waker(&waker);
        if self.obey(cx).is_ready() || self.work(now, cx).is_ready() {
            return Poll::Ready(());
        }
        if let Poll::Ready(Err(_)) = self.wire.flush(cx) {
            return Poll::Ready(());
        }
        self.account();
        let activity = self.wire.activity();
        if activity.has_more {
            self.hub.notify();
        }
        self.watch(now, activity, cx)
    }

    /// Drives h2 and the calls until none of them has anything to do.
    fn work(&mut self, began: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let mut polled = 0;
        loop {
            loop {
                match self.poll_h2(cx) {
                    Poll::Ready(Came::Call(call)) => {
                        self.set_busy(true);
                        self.calls.begin(call, Call::poll);
                    }
                    Poll::Ready(Came::Refused) => {}
                    Poll::Ready(Came::End) => return Poll::Ready(()),
                    Poll::Pending => break,
                }
                polled += 1;
                if is_tired(polled, began) {
                    break;
                }
            }
            polled += self.calls.poll_ready(PASS_CALLS_MAX / 4, Call::poll);
            self.account();
            if is_tired(polled, began) {
                // What was answered so far leaves with this pass; the rest has to wait for the next.
                self.hub.notify();
                return self.frame(cx);
            }
            // More calls may be ready than were polled, though nothing woke since the pass began.
            if !self.hub.take_woken() && !self.hub.has_ready() {
                return Poll::Pending;
            }
        }
    }

    /// Lets h2 read and frame, without taking new calls.
    fn frame(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.phase {
            Phase::Open(h2) => h2.poll_closed(cx).map(|closed| self.in_order = closed.is_ok()),
            Phase::Handshake(_) => Poll::Pending,
        }
    }

    /// Lets h2 read and frame; what came, if there is room for its answer.
    fn poll_h2(&mut self, cx: &mut Context<'_>) -> Poll<Came> {
        if let Phase::Handshake(handshake) = &mut self.phase {
            match Pin::new(handshake).poll(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(_)) => return Poll::Ready(Came::End),
                Poll::Ready(Ok(mut open)) => {
                    self.pings = open.ping_pong();
                    self.phase = Phase::Open(open);
                }
            }
        }
        let Phase::Open(h2) = &mut self.phase else {
            return Poll::Pending;
        };
        if !self.shared.memory.has_outbound_room() {
            self.shared.memory.wait_for_outbound_room(&self.waker);
            return h2.poll_closed(cx).map(|closed| {
                self.in_order = closed.is_ok();
                Came::End
            });
        }
        h2.poll_accept(cx).map(|came| match came {
            Some(Ok((request, respond))) => match Call::begin(request, respond, &self.shared) {
                Some(call) => Came::Call(call),
                None => Came::Refused,
            },
            Some(Err(error)) => {
                if error.reason() == Some(Reason::ENHANCE_YOUR_CALM) && error.is_library() {
                    add(&self.shared.metrics().floods_total, 1);
                }
                Came::End
            }
            None => {
                self.in_order = true;
                Came::End
            }
        })
    }

    /// Carries what left and what was answered over to the meter and to those who wait for room.
    fn account(&mut self) {
        let frames = self.shared.memory.settle_outbound();
        let answered = self.shared.answered.take();
        if frames > 0 {
            self.last_written = self.shared.now.get();
        }
        if frames > 0 || answered > 0 {
            self.wire.with_meter(|meter| {
                meter.sent(frames);
                meter.answered(answered);
            });
        }
    }

    /// Says goodbye once the server takes no new work. Ready: the connection is to be dropped.
    fn obey(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let phase = self.shared.core.lifecycle.phase();
        match &mut self.phase {
            Phase::Open(h2) if phase == ServerPhase::Draining && !self.is_draining => {
                self.is_draining = true;
                h2.graceful_shutdown();
                // Streams that wait for requests are to learn of it.
                self.calls.wake_all();
                Poll::Pending
            }
            Phase::Open(h2) if phase == ServerPhase::Closing => {
                h2.abrupt_shutdown(Reason::NO_ERROR);
                // As much of the goodbye as the socket takes; the connection ends in any case.
                let _ = h2.poll_closed(cx);
                let _ = self.wire.flush(cx);
                Poll::Ready(())
            }
            Phase::Handshake(_) if phase == ServerPhase::Closing => Poll::Ready(()),
            Phase::Open(_) | Phase::Handshake(_) => Poll::Pending,
        }
    }

    /// Looks at what the client owes, and sets the timer for the next look.
    fn watch(&mut self, now: Instant, activity: Activity, cx: &mut Context<'_>) -> Poll<()> {
        if activity.has_read {
            self.last_read = now;
            self.ping_sent = None;
        }
        let has_output = activity.has_unwritten || self.shared.memory.outbound_bytes() > 0;
        if activity.has_written || (has_output && !self.had_output) {
            // Patience begins when there is something to wait for.
            self.last_written = now;
        }
        self.had_output = has_output;
        self.has_settings |= activity.has_settings;
        if activity.flood.is_some() && self.farewell.is_none() {
            add(&self.shared.metrics().floods_total, 1);
            self.say_goodbye(now);
        }
        loop {
            let next = self.next_look(activity);
            match next {
                Some(at) if at <= now => {
                    if self.look(now, activity).is_ready() {
                        add(&self.shared.metrics().stalled_total, 1);
                        return Poll::Ready(());
                    }
                }
                Some(at) => {
                    self.set_timer(now, at, cx);
                    return Poll::Pending;
                }
                None => return Poll::Pending,
            }
        }
    }

    /// The earliest of all that the clock may end.
    fn next_look(&self, activity: Activity) -> Option<Instant> {
        let config = self.shared.config();
        let handshake = (!self.has_settings).then(|| self.opened + config.handshake_timeout);
        let inside = activity.is_inside_frame.then(|| self.last_read + config.half_sent_timeout);
        let has_output = activity.has_unwritten || self.shared.memory.outbound_bytes() > 0;
        let output = has_output.then(|| self.last_written.max(self.opened) + config.stalled_write_timeout);
        let farewell = self.farewell.map(|at| at + FAREWELL_TIME);
        let ping = match (self.ping_sent, config.keepalive_interval) {
            (Some(sent), _) => Some(sent + config.keepalive_timeout),
            (None, Some(interval)) => Some(self.last_read + interval),
            (None, None) => None,
        };
        [handshake, inside, output, farewell, ping, self.shared.next_look()].into_iter().flatten().min()
    }

    /// Ends what has run out of time. Ready: the connection is to be dropped.
    fn look(&mut self, now: Instant, activity: Activity) -> Poll<()> {
        let config = self.shared.config();
        let is_late = (!self.has_settings && now >= self.opened + config.handshake_timeout)
            || (activity.is_inside_frame && now >= self.last_read + config.half_sent_timeout)
            || ((activity.has_unwritten || self.shared.memory.outbound_bytes() > 0)
                && now >= self.last_written + config.stalled_write_timeout)
            || self.farewell.is_some_and(|at| now >= at + FAREWELL_TIME)
            || self.ping_sent.is_some_and(|at| now >= at + config.keepalive_timeout);
        if is_late {
            return Poll::Ready(());
        }
        if self.ping_sent.is_none()
            && config.keepalive_interval.is_some_and(|interval| now >= self.last_read + interval)
        {
            self.ping_sent = Some(now);
            self.set_busy(self.calls.len() > 0);
            if let Some(pings) = &mut self.pings {
                // h2 sends no other one before the answer to the last one was taken. That it came is seen by the bytes
                // that are read, so nobody waits for it here.
                let _ = pings.poll_pong(&mut Context::from_waker(Waker::noop()));
                // An error means that the answer to the last one is still out; then this one is not needed.
                let _ = pings.send_ping(Ping::opaque());
            }
        }
        self.shared.clear_looks();
        self.calls.sweep(|call| call.look(now));
        // What ended has answers to be written.
        self.hub.notify();
        Poll::Pending
    }

    fn set_timer(&mut self, now: Instant, at: Instant, cx: &mut Context<'_>) {
        // Timers never fire early, so one that is not yet due still holds our waker. If what it was set for has gone,
        // it fires for nothing and is set anew.
        let is_set = self.timer.as_ref().is_some_and(|timer| now < timer.deadline() && timer.deadline() <= at);
        if !is_set {
            let mut timer = executor::sleep_until(at);
            if Pin::new(&mut timer).poll(cx).is_ready() {
                self.hub.notify();
            }
            self.timer = Some(timer);
        }
    }

    fn set_busy(&mut self, is_busy: bool) {
        if let Some(guard) = &mut self.guard {
            guard.set_busy(is_busy);
        }
    }

    fn say_goodbye(&mut self, now: Instant) {
        self.farewell = Some(now);
        match &mut self.phase {
            Phase::Open(h2) => h2.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM),
            Phase::Handshake(_) => {}
        }
        self.hub.notify();
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Future for Connection<S> {
    type Output = Ended;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Ended> {
        self.hub.begin_pass(cx.waker());
        let ended = self.pass();
        self.hub.end_pass();
        ended.map(|()| if self.in_order { Ended::InOrder } else { Ended::Broken })
    }
}

impl<S> Drop for Connection<S> {
    fn drop(&mut self) {
        self.shared.memory.close();
    }
}

fn builder(config: &ServerConfig, window_bytes: u32) -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(config.stream_window_bytes)
        .max_concurrent_streams(config.streams_max)
        .max_frame_size(config.frame_bytes_max)
        .max_header_list_size(config.header_bytes_max)
        .max_concurrent_reset_streams(RESETS_REMEMBERED)
        .reset_stream_duration(RESETS_REMEMBERED_TIME)
        .max_pending_accept_reset_streams(RESETS_UNSEEN_MAX)
        .max_local_error_reset_streams(Some(STREAM_ERRORS_MAX));
    if window_bytes > 0 {
        builder.initial_connection_window_size(window_bytes);
    }
    builder
}
