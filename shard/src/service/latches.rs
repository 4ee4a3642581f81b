//! Latches: whoever reads a key to write it holds the key's latch in between. Per core, in memory, first come first
//! served. Keys are hashed: two keys may share a latch, which costs a wait and nothing else.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};

use futures_channel::oneshot;

/// The latches of one core.
#[derive(Default)]
pub(crate) struct Latches {
    held: RefCell<BTreeMap<u64, VecDeque<oneshot::Sender<()>>>>,
}

/// Latches that are held; they are given back when this is dropped.
pub(crate) struct Latched<'a> {
    latches: &'a Latches,
    slots: Vec<u64>,
    waiting: Option<(u64, oneshot::Receiver<()>)>,
}

impl Latches {
    /// Waits for the latches of `keys`. They are taken in one order by everybody, so nobody waits in a circle.
    pub(crate) async fn lock<'a>(&self, keys: impl IntoIterator<Item = &'a [u8]>) -> Latched<'_> {
        let mut slots: Vec<u64> = keys.into_iter().map(|key| base::hash::fold_bytes(0, key)).collect();
        slots.sort_unstable();
        slots.dedup();
        let mut latched = Latched { latches: self, slots: Vec::with_capacity(slots.len()), waiting: None };
        for slot in slots {
            let turn = {
                let mut held = self.held.borrow_mut();
                match held.get_mut(&slot) {
                    None => {
                        held.insert(slot, VecDeque::new());
                        None
                    }
                    Some(waiting) => {
                        let (sender, receiver) = oneshot::channel();
                        waiting.push_back(sender);
                        Some(receiver)
                    }
                }
            };
            if let Some(turn) = turn {
                let (_, turn) = latched.waiting.insert((slot, turn));
                // The sender lives in the queue until it is our turn.
                let _ = turn.await;
                latched.waiting = None;
            }
            latched.slots.push(slot);
        }
        latched
    }
}

impl Drop for Latched<'_> {
    fn drop(&mut self) {
        // Dropped while waiting: the latch may have been passed to us in this very moment.
        if let Some((slot, mut turn)) = self.waiting.take()
            && let Ok(Some(())) = turn.try_recv()
        {
            self.slots.push(slot);
        }
        let mut held = self.latches.held.borrow_mut();
        for slot in &self.slots {
            let Some(waiting) = held.get_mut(slot) else { continue };
            let mut passed = false;
            while let Some(next) = waiting.pop_front() {
                // One that gave up waiting does not take it.
                if next.send(()).is_ok() {
                    passed = true;
                    break;
                }
            }
            if !passed {
                held.remove(slot);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;

    #[test]
    fn the_second_waits_for_the_first_and_one_that_gave_up_is_passed_over() {
        let latches = Latches::default();
        let first = latches.lock([b"k".as_slice(), b"l"]).now_or_never().expect("free");
        let mut second = Box::pin(latches.lock([b"k".as_slice()]));
        let mut third = Box::pin(latches.lock([b"k".as_slice()]));
        assert!((&mut second).now_or_never().is_none());
        assert!((&mut third).now_or_never().is_none());
        drop(second);
        let mut fourth = Box::pin(latches.lock([b"k".as_slice()]));
        assert!((&mut fourth).now_or_never().is_none());
        drop(first);
        // The latch was passed to the third, which gives up without noticing.
        drop(third);
        let third = fourth.now_or_never().expect("its turn");
        assert!(latches.lock([b"l".as_slice()]).now_or_never().is_some(), "l was given back");
        drop(third);
        assert!(latches.held.borrow().is_empty());
    }
}
