//! Wakes from other threads.
//!
//! A waker of a core's runtime never leaves its thread: glommio 0.9 counts a task's references from foreign threads
//! in two steps (drop to zero, then queue the task once more), and a task that ends in between is freed under the
//! foreign thread's feet. So what other threads hold is a [`Slot`]: it owns nothing of the runtime, and waking it puts
//! it on a lock-free list of its core. One task per core, the dispatcher, takes the whole list and wakes the tasks
//! locally. Only the push onto an empty list wakes the dispatcher, so a burst of wakes costs one.

use std::cell::UnsafeCell;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use crate::context;
use crate::metrics::add;

/// What one core's dispatcher drains.
#[derive(Debug, Default)]
pub(crate) struct RemoteQueue {
    /// Newest first; each entry is an `Arc<Slot>` turned into a pointer.
    head: AtomicPtr<Slot>,
    /// The dispatcher's own waker: the one waker of the runtime that other threads call. It is taken away, on the
    /// core's thread, before the runtime ends.
    dispatcher: Mutex<Option<Waker>>,
    closed: AtomicBool,
}

/// One waiting place: a waker of the core's runtime that only the core's thread touches.
#[derive(Debug)]
pub(crate) struct Slot {
    owner: Arc<RemoteQueue>,
    queued: AtomicBool,
    next: AtomicPtr<Slot>,
    waker: UnsafeCell<Option<Waker>>,
}

// SAFETY: `waker` is read and written on the owner's thread only (`is_here` is checked before each access); all else
// is atomic. A `Waker` itself is Send and Sync.
unsafe impl Sync for Slot {}
// SAFETY: as above.
unsafe impl Send for Slot {}

impl Slot {
    /// Sets or takes the runtime's waker. Only on the owner's thread.
    fn swap(&self, waker: Option<Waker>) -> Option<Waker> {
        debug_assert!(self.is_here());
        // SAFETY: only the owner's thread comes here, and no reference into the cell outlives this line.
        unsafe { std::mem::replace(&mut *self.waker.get(), waker) }
    }

    fn is_here(&self) -> bool {
        context::try_with(|core| Arc::ptr_eq(&core.remote, &self.owner)).unwrap_or(false)
    }

    /// Forgets the waker, so that the slot holds nothing of the runtime any more.
    fn clear(self: &Arc<Slot>) {
        if self.is_here() {
            drop(self.swap(None));
        } else {
            self.wake_by_ref();
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // A task that outlived its core has left its waker here. To drop that elsewhere is what slots are there to avoid.
        if let Some(waker) = self.waker.get_mut().take()
            && !self.is_here()
        {
            std::mem::forget(waker);
        }
    }
}

impl Wake for Slot {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.is_here() {
            if let Some(waker) = self.swap(None) {
                waker.wake();
            }
        } else if !self.queued.swap(true, Ordering::AcqRel) {
            self.owner.push(Arc::clone(self));
        }
    }
}

impl RemoteQueue {
    fn push(&self, slot: Arc<Slot>) {
        if self.closed.load(Ordering::Acquire) {
            return;
        }
        let slot = Arc::into_raw(slot).cast_mut();
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            // SAFETY: the list owns one reference of `slot`, so it is alive.
            unsafe { (*slot).next.store(head, Ordering::Relaxed) };
            match self.head.compare_exchange_weak(head, slot, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => break,
                Err(newer) => head = newer,
            }
        }
        if head.is_null()
            && let Some(dispatcher) = &*self.lock()
        {
            dispatcher.wake_by_ref();
        }
        fence(Ordering::SeqCst);
        if self.closed.load(Ordering::Relaxed) {
            // Closed in between: nobody takes the list any more, and its slots own the queue that owns the list.
            drop(self.take_all());
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Waker>> {
        self.dispatcher.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The slots that were woken, oldest first.
    fn take_all(&self) -> Vec<Arc<Slot>> {
        let mut at = self.head.swap(ptr::null_mut(), Ordering::AcqRel);
        let mut slots = Vec::new();
        while !at.is_null() {
            // SAFETY: the pointer came from `Arc::into_raw` in `push`, and the swap made this list ours alone.
            let slot = unsafe { Arc::from_raw(at) };
            at = slot.next.load(Ordering::Relaxed);
            slots.push(slot);
        }
        slots.reverse();
        slots
    }

    /// True once the dispatcher can be woken.
    pub(crate) fn is_open(&self) -> bool {
        self.lock().is_some()
    }

    /// One pass of the dispatcher; runs on the owner's thread. Ready once the queue is closed.
    pub(crate) fn poll_dispatch(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.closed.load(Ordering::Acquire) {
            return Poll::Ready(());
        }
        {
            let mut dispatcher = self.lock();
            if !dispatcher.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                *dispatcher = Some(cx.waker().clone());
            }
        }
        self.dispatch();
        Poll::Pending
    }

    fn dispatch(&self) {
        let slots = self.take_all();
        context::try_with(|core| add(&core.metrics.remote_wakes_total, slots.len() as u64));
        for slot in slots {
            // An exchange, not a store: whoever found the slot queued and left it to us has written what the task is
            // to see, and the task must not look before the next such writer would queue the slot again.
            slot.queued.swap(false, Ordering::AcqRel);
            if let Some(waker) = slot.swap(None) {
                waker.wake();
            }
        }
    }

    /// Ends the dispatcher. Only on the owner's thread, when no task of the core waits any more.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        fence(Ordering::SeqCst);
        let dispatcher = self.lock().take();
        self.dispatch();
        if let Some(dispatcher) = dispatcher {
            dispatcher.wake();
        }
    }
}

impl Drop for RemoteQueue {
    fn drop(&mut self) {
        drop(self.take_all());
    }
}

/// The place of one future among those that other threads may wake. Keep it inside the future: dropping it takes the
/// runtime's waker back.
#[derive(Debug, Default)]
pub(crate) struct WakePlace {
    slot: Option<Arc<Slot>>,
    armed: bool,
}

impl WakePlace {
    /// A waker for the current task that may be woken, cloned and dropped on any thread.
    pub(crate) fn waker(&mut self, cx: &Context<'_>) -> Waker {
        let Some(owner) = context::try_with(|core| Arc::clone(&core.remote)) else {
            // The simulator, or a plain thread: its wakers may go anywhere.
            return cx.waker().clone();
        };
        if self.slot.as_ref().is_some_and(|slot| !Arc::ptr_eq(&slot.owner, &owner)) {
            self.clear();
            self.slot = None;
        }
        let slot = match self.slot.take() {
            Some(slot) => slot,
            None => Arc::new(Slot {
                owner,
                queued: AtomicBool::new(false),
                next: AtomicPtr::new(ptr::null_mut()),
                waker: UnsafeCell::new(None),
            }),
        };
        slot.swap(Some(cx.waker().clone()));
        self.armed = true;
        self.slot = Some(Arc::clone(&slot));
        Waker::from(slot)
    }

    /// Takes the runtime's waker back; the place can be used again.
    pub(crate) fn clear(&mut self) {
        if std::mem::take(&mut self.armed)
            && let Some(slot) = &self.slot
        {
            slot.clear();
        }
    }
}

impl Drop for WakePlace {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{IoChoice, preflight, run_one};
    use std::future::poll_fn;

    /// A slot owns its core's queue, and the queue the slots in it: one that got in at the last moment would keep both.
    #[test]
    fn wakes_while_a_core_ends_leak_nothing() {
        for io in [IoChoice::Epoll, IoChoice::Uring] {
            if preflight(io, None).is_err() {
                continue;
            }
            for _ in 0..100 {
                let stop = Arc::new(AtomicBool::new(false));
                let stopped = Arc::clone(&stop);
                let (queue, threads) = run_one(io, move || async move {
                    let mut place = WakePlace::default();
                    let waker = poll_fn(|cx| Poll::Ready(place.waker(cx))).await;
                    let thread = || {
                        let (waker, stop) = (waker.clone(), Arc::clone(&stopped));
                        std::thread::spawn(move || {
                            while !stop.load(Ordering::Relaxed) {
                                waker.wake_by_ref();
                            }
                        })
                    };
                    let threads = [thread(), thread()];
                    crate::yield_now().await;
                    (Arc::downgrade(&context::current().remote), threads)
                });
                stop.store(true, Ordering::Relaxed);
                for thread in threads {
                    thread.join().expect("only wakes");
                }
                assert_eq!(queue.strong_count(), 0);
            }
        }
    }
}
