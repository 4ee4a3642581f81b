//! One value from another thread to one future.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;

use crate::remote::WakePlace;

struct Shared<T> {
    value: Mutex<Option<T>>,
    waker: AtomicWaker,
}

/// A place for one value that a thread fills and a future takes.
pub(crate) fn oneshot<T: Send>() -> (Fill<T>, Filled<T>) {
    let shared = Arc::new(Shared { value: Mutex::new(None), waker: AtomicWaker::new() });
    (Fill { shared: Arc::clone(&shared) }, Filled { shared, place: WakePlace::default() })
}

/// The side that gives the value.
pub(crate) struct Fill<T> {
    shared: Arc<Shared<T>>,
}

impl<T> Fill<T> {
    /// Gives the value; it is dropped here if nobody waits any more.
    pub(crate) fn fill(self, value: T) {
        *self.shared.value.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
        self.shared.waker.wake();
    }
}

/// The future that takes the value. It waits for ever if the other side is dropped without one.
pub(crate) struct Filled<T> {
    shared: Arc<Shared<T>>,
    place: WakePlace,
}

impl<T> Filled<T> {
    fn take(&self) -> Option<T> {
        self.shared.value.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl<T> Future for Filled<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        if let Some(value) = self.take() {
            return Poll::Ready(value);
        }
        let waker = self.place.waker(cx);
        self.shared.waker.register(&waker);
        match self.take() {
            Some(value) => {
                self.place.clear();
                Poll::Ready(value)
            }
            None => Poll::Pending,
        }
    }
}
