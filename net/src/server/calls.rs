//! The calls of one connection, in slots that are used again, with their wakers.

use super::hub::{Hub, SlotWaker};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

struct Slot<C> {
    call: Option<C>,
    wake: Arc<SlotWaker>,
    waker: Waker,
}

/// A set of futures of one type that a connection's task polls as they become ready, in the order in which they do.
///
/// Cost: nothing is allocated for a call whose slot was used before.
pub(crate) struct CallSet<C> {
    hub: Arc<Hub>,
    slots: Vec<Slot<C>>,
    free: Vec<u32>,
}

impl<C> CallSet<C> {
    pub(crate) fn new(hub: Arc<Hub>) -> CallSet<C> {
        CallSet { hub, slots: Vec::new(), free: Vec::new() }
    }

    /// How many calls are open.
    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Adds a call and polls it for the first time.
    pub(crate) fn begin(&mut self, call: C, poll: impl FnOnce(&mut C, &mut Context<'_>) -> Poll<()>) {
        let index = self.free.pop().unwrap_or_else(|| {
            let index = u32::try_from(self.slots.len()).expect("streams are limited below 2^32");
            let wake = SlotWaker::new(&self.hub, index);
            let waker = Waker::from(Arc::clone(&wake));
            self.slots.push(Slot { call: None, wake, waker });
            index
        });
        self.slots[index as usize].call = Some(call);
        self.poll(index, poll);
    }

    /// Polls at most `limit` calls that are ready; returns how many it found.
    pub(crate) fn poll_ready(
        &mut self,
        limit: usize,
        mut poll: impl FnMut(&mut C, &mut Context<'_>) -> Poll<()>,
    ) -> usize {
        let mut polled = 0;
        while polled < limit
            && let Some(index) = self.hub.pop_ready()
        {
            polled += 1;
            self.poll(index, &mut poll);
        }
        polled
    }

    /// Has every call polled.
    pub(crate) fn wake_all(&self) {
        self.slots.iter().filter(|slot| slot.call.is_some()).for_each(|slot| slot.waker.wake_by_ref());
    }

    /// Shows every call to `visit`; those for which it answers ready are over.
    pub(crate) fn sweep(&mut self, mut visit: impl FnMut(&mut C) -> Poll<()>) {
        for index in 0..self.slots.len() as u32 {
            let slot = &mut self.slots[index as usize];
            if let Some(call) = &mut slot.call
                && visit(call).is_ready()
            {
                slot.call = None;
                self.free.push(index);
            }
        }
    }

    fn poll(&mut self, index: u32, poll: impl FnOnce(&mut C, &mut Context<'_>) -> Poll<()>) {
        let slot = &mut self.slots[index as usize];
        slot.wake.begin_poll();
        // A waker may outlive its call; then it wakes nobody, or the next call for nothing.
        let Some(call) = &mut slot.call else { return };
        if poll(call, &mut Context::from_waker(&slot.waker)).is_ready() {
            slot.call = None;
            self.free.push(index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_used_again_and_late_wakers_harm_nobody() {
        let mut calls: CallSet<u32> = CallSet::new(Arc::default());
        let mut late = None;
        calls.begin(1, |_, cx| {
            late = Some(cx.waker().clone());
            Poll::Ready(())
        });
        assert_eq!(calls.len(), 0);
        calls.begin(2, |_, _| Poll::Pending);
        assert_eq!((calls.len(), calls.slots.len()), (1, 1));
        late.expect("set by the first call").wake();
        let mut seen = Vec::new();
        let polled = calls.poll_ready(10, |call, _| {
            seen.push(*call);
            Poll::Pending
        });
        assert_eq!((polled, seen), (1, vec![2]));
    }

    #[test]
    fn a_call_that_wakes_itself_is_polled_again_but_not_without_end() {
        let mut calls: CallSet<u32> = CallSet::new(Arc::default());
        let poll = |call: &mut u32, cx: &mut Context<'_>| {
            *call += 1;
            cx.waker().wake_by_ref();
            Poll::Pending
        };
        calls.begin(0, poll);
        assert_eq!(calls.poll_ready(5, poll), 5);
        calls.sweep(|call| {
            assert_eq!(*call, 6);
            Poll::Ready(())
        });
        assert_eq!(calls.len(), 0);
        assert_eq!(calls.poll_ready(5, poll), 1, "the waker of a call that is over");
        assert_eq!(calls.poll_ready(5, poll), 0);
    }
}
