//! What the tests of the raft log share: a disk that loses and tears what was not synced, and a naive twin of the log.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]

pub mod disk;
pub mod driver;
pub mod twin;

use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

/// Drives a future whose only waits are those of the faulty disk.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    for _ in 0..10_000_000 {
        if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return value;
        }
    }
    panic!("the future waits for something that never comes");
}

/// Drives two futures in turn, to their ends.
pub fn block_on_both<A, B>(a: impl Future<Output = A>, b: impl Future<Output = B>) -> (A, B) {
    let (mut a, mut b) = (pin!(a), pin!(b));
    let (mut done_a, mut done_b) = (None, None);
    block_on(std::future::poll_fn(move |cx| {
        step(a.as_mut(), &mut done_a, cx);
        step(b.as_mut(), &mut done_b, cx);
        match (done_a.take(), done_b.take()) {
            (Some(a), Some(b)) => Poll::Ready((a, b)),
            (a, b) => {
                (done_a, done_b) = (a, b);
                Poll::Pending
            }
        }
    }))
}

fn step<T>(future: Pin<&mut impl Future<Output = T>>, done: &mut Option<T>, cx: &mut Context<'_>) {
    if done.is_none()
        && let Poll::Ready(value) = future.poll(cx)
    {
        *done = Some(value);
    }
}
