//! A wake-up call between tasks of one core.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

/// Lets tasks of one core wait for a call from other tasks of the same core.
///
/// A call wakes all who wait. If nobody does, it is kept, once, for the next who asks; so is a call that reached only
/// a waiter that was dropped before it looked.
#[derive(Debug, Default)]
pub struct Notify {
    kept: Cell<bool>,
    /// Counts calls, so that a waiter knows that one came since it began.
    calls: Cell<u64>,
    tickets: Cell<u64>,
    /// Who waits; bounded by the tasks of the core.
    waiters: RefCell<Vec<(u64, Waker)>>,
}

impl Notify {
    /// Nobody waits, no call is kept.
    pub fn new() -> Notify {
        Notify::default()
    }

    /// Calls: wakes all who wait, or keeps one call for the next.
    pub fn notify(&self) {
        self.calls.set(self.calls.get().wrapping_add(1));
        let waiters = std::mem::take(&mut *self.waiters.borrow_mut());
        self.kept.set(waiters.is_empty());
        for (_, waiter) in waiters {
            waiter.wake();
        }
    }

    /// Waits for a call, or takes the kept one. Cancel-safe.
    pub fn notified(&self) -> Notified<'_> {
        Notified { notify: self, waiting: None }
    }
}

/// See [`Notify::notified`].
#[derive(Debug)]
pub struct Notified<'a> {
    notify: &'a Notify,
    waiting: Option<Waiting>,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    ticket: u64,
    /// [`Notify::calls`] when the wait began.
    calls: u64,
}

impl Future for Notified<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let notify = self.notify;
        let waiting = match self.waiting {
            None if notify.kept.take() => return Poll::Ready(()),
            None => {
                let ticket = notify.tickets.get();
                notify.tickets.set(ticket + 1);
                *self.waiting.insert(Waiting { ticket, calls: notify.calls.get() })
            }
            Some(waiting) if waiting.calls != notify.calls.get() => {
                self.waiting = None;
                return Poll::Ready(());
            }
            Some(waiting) => waiting,
        };
        let mut waiters = notify.waiters.borrow_mut();
        match waiters.iter_mut().find(|(ticket, _)| *ticket == waiting.ticket) {
            Some((_, waker)) => waker.clone_from(cx.waker()),
            None => waiters.push((waiting.ticket, cx.waker().clone())),
        }
        Poll::Pending
    }
}

impl Drop for Notified<'_> {
    fn drop(&mut self) {
        let Some(waiting) = self.waiting else { return };
        if waiting.calls == self.notify.calls.get() {
            self.notify.waiters.borrow_mut().retain(|(ticket, _)| *ticket != waiting.ticket);
        } else if self.notify.waiters.borrow().is_empty() {
            self.notify.kept.set(true);
        }
    }
}
