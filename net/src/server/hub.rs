//! Wakers of one connection: h2's, the timer's, and one per call.
//!
//! All calls of a connection run inside its one task. A call's waker puts the call's number on a list; the task polls
//! what is on the list, and nothing else. While a pass runs, waking costs a flag: what woke is seen before the pass
//! ends, and the task is not scheduled again for it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Wake, Waker};

/// Where the wakers of a connection meet. Wakers may be used from any thread.
#[derive(Default)]
pub(crate) struct Hub {
    task: Mutex<Option<Waker>>,
    ready: Mutex<VecDeque<u32>>,
    is_passing: AtomicBool,
    is_woken: AtomicBool,
}

impl Hub {
    /// Begins a pass of the task that `waker` wakes.
    pub(crate) fn begin_pass(&self, waker: &Waker) {
        let mut task = lock(&self.task);
        match &mut *task {
            Some(old) => old.clone_from(waker),
            None => *task = Some(waker.clone()),
        }
        self.is_passing.store(true, Ordering::SeqCst);
        self.is_woken.store(false, Ordering::SeqCst);
    }

    /// Ends a pass. If something woke too late for it, the task is scheduled again.
    pub(crate) fn end_pass(&self) {
        self.is_passing.store(false, Ordering::SeqCst);
        if self.is_woken.load(Ordering::SeqCst) {
            self.wake_task();
        }
    }

    /// Whether anything woke since the last call.
    pub(crate) fn take_woken(&self) -> bool {
        self.is_woken.swap(false, Ordering::SeqCst)
    }

    /// The next call that is ready.
    pub(crate) fn pop_ready(&self) -> Option<u32> {
        lock(&self.ready).pop_front()
    }

    /// Whether a call is ready.
    pub(crate) fn has_ready(&self) -> bool {
        !lock(&self.ready).is_empty()
    }

    /// Schedules the task, or has the running pass go on.
    pub(crate) fn notify(&self) {
        if !self.is_woken.swap(true, Ordering::SeqCst) && !self.is_passing.load(Ordering::SeqCst) {
            self.wake_task();
        }
    }

    fn wake_task(&self) {
        if let Some(waker) = &*lock(&self.task) {
            waker.wake_by_ref();
        }
    }
}

/// Wakes the connection itself: for h2, the socket and the timer.
impl Wake for Hub {
    fn wake(self: Arc<Self>) {
        self.notify();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.notify();
    }
}

/// Wakes the call in one slot.
pub(crate) struct SlotWaker {
    hub: Arc<Hub>,
    slot: u32,
    is_ready: AtomicBool,
}

impl SlotWaker {
    pub(crate) fn new(hub: &Arc<Hub>, slot: u32) -> Arc<SlotWaker> {
        Arc::new(SlotWaker { hub: Arc::clone(hub), slot, is_ready: AtomicBool::new(false) })
    }

    /// The call is about to be polled: what wakes from now on is news.
    pub(crate) fn begin_poll(&self) {
        self.is_ready.store(false, Ordering::SeqCst);
    }

    fn notify(&self) {
        if !self.is_ready.swap(true, Ordering::SeqCst) {
            lock(&self.hub.ready).push_back(self.slot);
            self.hub.notify();
        }
    }
}

impl Wake for SlotWaker {
    fn wake(self: Arc<Self>) {
        self.notify();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.notify();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[derive(Default)]
    struct Counter(AtomicUsize);

    impl Wake for Counter {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn waking_schedules_outside_of_a_pass_and_flags_inside() {
        let (hub, counter) = (Arc::new(Hub::default()), Arc::new(Counter::default()));
        let task = Waker::from(Arc::clone(&counter));
        hub.begin_pass(&task);
        hub.notify();
        assert_eq!(counter.0.load(Ordering::SeqCst), 0);
        assert!(hub.take_woken());
        assert!(!hub.take_woken());
        hub.end_pass();
        assert_eq!(counter.0.load(Ordering::SeqCst), 0);
        hub.notify();
        hub.notify();
        assert_eq!(counter.0.load(Ordering::SeqCst), 1, "scheduled once");
    }

    #[test]
    fn what_woke_too_late_for_a_pass_schedules_another() {
        let (hub, counter) = (Arc::new(Hub::default()), Arc::new(Counter::default()));
        hub.begin_pass(&Waker::from(Arc::clone(&counter)));
        assert!(!hub.take_woken());
        hub.notify();
        hub.end_pass();
        assert_eq!(counter.0.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn a_slot_is_on_the_list_once_until_it_is_polled() {
        let hub = Arc::new(Hub::default());
        let slot = SlotWaker::new(&hub, 7);
        let waker = Waker::from(Arc::clone(&slot));
        waker.wake_by_ref();
        waker.wake_by_ref();
        assert_eq!((hub.pop_ready(), hub.pop_ready()), (Some(7), None));
        slot.begin_poll();
        waker.wake();
        assert_eq!(hub.pop_ready(), Some(7));
    }
}
