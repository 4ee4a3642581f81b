//! What the calls of one connection share, and what connections of one core share.

use crate::config::ServerConfig;
use crate::memory::{ConnectionMemory, CoreMemory};
use crate::metrics::{NetMetrics, add, sub};
use crate::server::router::Router;
use base::Instant;
use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, Weak};

use super::hub::Hub;
use super::lifecycle::{Lifecycle, Phase};
use super::refusals::RefusalLog;

/// What the connections of a server share.
pub(crate) struct CoreShared {
    pub(crate) config: ServerConfig,
    pub(crate) router: Rc<Router>,
    pub(crate) metrics: Rc<NetMetrics>,
    pub(crate) memory: Rc<CoreMemory>,
    /// Connections that are being told to go away.
    pub(crate) refusals: Cell<u64>,
    /// Says why connections are refused.
    pub(crate) refusal_log: RefusalLog,
    pub(crate) lifecycle: Rc<Lifecycle>,
    pub(crate) hubs: RefCell<Vec<Weak<Hub>>>,
}

impl CoreShared {
    /// Whether no new work is taken.
    pub(crate) fn is_draining(&self) -> bool {
        self.lifecycle.phase() >= Phase::Draining
    }

    /// Goes on to `phase` and tells every connection.
    pub(crate) fn advance(&self, phase: Phase) {
        self.lifecycle.advance(phase);
        self.notify_all();
    }

    /// Has every HTTP/2 connection look at the phase.
    fn notify_all(&self) {
        self.hubs.borrow_mut().retain(|hub| match hub.upgrade() {
            Some(hub) => {
                hub.notify();
                true
            }
            None => false,
        });
    }

    /// Remembers the hub of a new connection, and forgets those of old ones now and then.
    pub(crate) fn register(&self, hub: &Arc<Hub>) {
        let mut hubs = self.hubs.borrow_mut();
        if hubs.len() == hubs.capacity() {
            hubs.retain(|hub| hub.strong_count() > 0);
        }
        hubs.push(Arc::downgrade(hub));
    }
}

/// What the calls of a connection share.
pub(crate) struct ConnectionShared {
    pub(crate) core: Rc<CoreShared>,
    pub(crate) memory: Rc<ConnectionMemory>,
    pub(crate) peer: Option<SocketAddr>,
    /// The time at which the running pass began.
    pub(crate) now: Cell<Instant>,
    /// When the next call wants to be looked at by the clock.
    next_look: Cell<Option<Instant>>,
    /// Calls answered since it was last asked.
    pub(crate) answered: Cell<u64>,
}

impl ConnectionShared {
    pub(crate) fn new(core: &Rc<CoreShared>, memory: Rc<ConnectionMemory>, peer: Option<SocketAddr>) -> Rc<Self> {
        Rc::new(ConnectionShared {
            core: Rc::clone(core),
            memory,
            peer,
            now: Cell::new(executor::now()),
            next_look: Cell::new(None),
            answered: Cell::new(0),
        })
    }

    pub(crate) fn config(&self) -> &ServerConfig {
        &self.core.config
    }

    pub(crate) fn metrics(&self) -> &NetMetrics {
        &self.core.metrics
    }

    /// Asks for a look at `at` or before.
    pub(crate) fn look_at(&self, at: Instant) {
        let next = self.next_look.get();
        self.next_look.set(Some(next.map_or(at, |next| next.min(at))));
    }

    pub(crate) fn next_look(&self) -> Option<Instant> {
        self.next_look.get()
    }

    pub(crate) fn clear_looks(&self) {
        self.next_look.set(None);
    }
}

/// Counts a call as open while it lives.
pub(crate) struct OpenCall(Rc<CoreShared>);

impl OpenCall {
    /// `None` if the core has too many.
    pub(crate) fn begin(core: &Rc<CoreShared>) -> Option<OpenCall> {
        if core.metrics.streams.get() >= core.config.calls_max {
            return None;
        }
        add(&core.metrics.streams, 1);
        Some(OpenCall(Rc::clone(core)))
    }
}

impl Drop for OpenCall {
    fn drop(&mut self) {
        sub(&self.0.metrics.streams, 1);
    }
}
