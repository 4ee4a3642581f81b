//! A value that one party promises and another awaits.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

struct Shared<T> {
    value: Option<T>,
    kept: bool,
    waker: Option<Waker>,
}

/// The giving end. Dropped without a value it leaves the other end waiting for ever, as a dead node does.
pub(super) struct Promise<T>(Rc<RefCell<Shared<T>>>);

/// The waiting end.
pub(super) struct Answer<T>(Rc<RefCell<Shared<T>>>);

/// A new pair.
pub(super) fn promise<T>() -> (Promise<T>, Answer<T>) {
    let shared = Rc::new(RefCell::new(Shared { value: None, kept: false, waker: None }));
    (Promise(shared.clone()), Answer(shared))
}

impl<T> Promise<T> {
    /// Hands `value` over and wakes whoever waits.
    pub(super) fn keep(self, value: T) {
        let waker = {
            let mut shared = self.0.borrow_mut();
            shared.value = Some(value);
            shared.kept = true;
            shared.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl<T> Answer<T> {
    /// True once there was a value, taken or not.
    pub(super) fn is_kept(&self) -> bool {
        self.0.borrow().kept
    }
}

impl<T> Future for Answer<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let mut shared = self.0.borrow_mut();
        if let Some(value) = shared.value.take() {
            return Poll::Ready(value);
        }
        let old = set_waker(&mut shared.waker, cx);
        drop(shared);
        drop(old);
        Poll::Pending
    }
}

/// Stores the waker of `cx`, unless the stored one already wakes the same task. The caller drops the old one when it
/// holds no borrow, since a waker may own what it wakes.
#[must_use]
pub(super) fn set_waker(slot: &mut Option<Waker>, cx: &Context<'_>) -> Option<Waker> {
    match slot {
        Some(waker) if waker.will_wake(cx.waker()) => None,
        _ => slot.replace(cx.waker().clone()),
    }
}
