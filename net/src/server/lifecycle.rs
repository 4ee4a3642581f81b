//! Whether a server takes work, and who is told when that changes.

use executor::Notify;
use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

/// What a server does with work; it only goes forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// It takes what comes.
    Serving,
    /// It finishes what it has.
    Draining,
    /// It drops what is left.
    Closing,
}

/// The phase of a server, and how many connections it has.
pub(crate) struct Lifecycle {
    phase: Cell<Phase>,
    changed: Notify,
    open: Cell<u64>,
    ended: Notify,
}

impl Default for Lifecycle {
    fn default() -> Lifecycle {
        Lifecycle { phase: Cell::new(Phase::Serving), changed: Notify::new(), open: Cell::new(0), ended: Notify::new() }
    }
}

impl Lifecycle {
    pub(crate) fn phase(&self) -> Phase {
        self.phase.get()
    }

    /// Goes on to `phase`, unless it is there or beyond.
    pub(crate) fn advance(&self, phase: Phase) {
        if phase > self.phase.get() {
            self.phase.set(phase);
            self.changed.notify();
        }
    }

    /// Waits until `phase` has come.
    async fn until(&self, phase: Phase) {
        while self.phase.get() < phase {
            self.changed.notified().await;
        }
    }

    /// Runs `work`, but not beyond the coming of `phase`; `None` if that came first. Not for what is polled often: each
    /// poll looks through all who wait.
    pub(crate) async fn unless<T>(&self, phase: Phase, work: impl Future<Output = T>) -> Option<T> {
        let mut work = pin!(work);
        let mut until = pin!(self.until(phase));
        poll_fn(|cx| {
            if let Poll::Ready(done) = work.as_mut().poll(cx) {
                return Poll::Ready(Some(done));
            }
            until.as_mut().poll(cx).map(|()| None)
        })
        .await
    }

    /// How many connections are open.
    pub(crate) fn open(&self) -> u64 {
        self.open.get()
    }

    /// Waits until no connection is open.
    pub(crate) async fn until_idle(&self) {
        while self.open.get() > 0 {
            self.ended.notified().await;
        }
    }
}

/// Counts a connection as open while it lives.
pub(crate) struct Open(Rc<Lifecycle>);

impl Open {
    pub(crate) fn begin(lifecycle: &Rc<Lifecycle>) -> Open {
        lifecycle.open.set(lifecycle.open.get() + 1);
        Open(Rc::clone(lifecycle))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let left = self.0.open.get() - 1;
        self.0.open.set(left);
        if left == 0 {
            self.0.ended.notify();
        }
    }
}
