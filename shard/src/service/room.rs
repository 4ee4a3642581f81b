//! Room for answers: what reads have taken out of the engine and no socket has taken over yet.
//!
//! A client that asks for much and reads slowly, or a hundred that ask at once, must not take the node's memory. Every
//! large answer is counted from the moment it is made (a scan's while it grows) until its last byte has left. Over the
//! bound, reads that would make more wait a while, and are then told that the server is busy. If it is reads under way
//! that fill the room, one of them may go on beyond the bound, so that there is progress.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;

use crate::core::RegionError;

/// Answers below this are not counted: their number is bounded, and most are as short-lived as their request.
const COUNTED_MIN: usize = 4 << 10;
/// Bytes of answers of one core. As much again may be in the hands of the network.
const ROOM_BYTES: u64 = 256 << 20;
/// How long a read waits for room.
const WAIT: Duration = Duration::from_secs(5);
/// Largest answer: a client takes no larger message either.
pub(crate) const ANSWER_BYTES_MAX: u64 = 256 << 20;

/// One core's room.
#[derive(Default)]
pub(crate) struct AnswerRoom {
    /// Bytes of complete answers. They may end on another core.
    complete: Arc<AtomicU64>,
    making: Rc<Making>,
}

/// Reads under way.
#[derive(Default)]
struct Making {
    bytes: Cell<u64>,
    /// True while one of them goes on beyond the bound.
    has_head: Cell<bool>,
}

/// A part of the room, given back when this is dropped. Costs nothing until it holds something.
#[derive(Default)]
pub(crate) struct Share {
    making: Option<Rc<Making>>,
    bytes: u64,
    is_head: bool,
}

/// The bytes of an answer, counted until they are dropped, on whatever core that is.
struct Counted {
    bytes: Vec<u8>,
    complete: Arc<AtomicU64>,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.complete.fetch_sub(self.bytes.len() as u64, Ordering::Relaxed);
    }
}

impl AnswerRoom {
    /// Bytes that are taken.
    pub(crate) fn held(&self) -> u64 {
        self.complete.load(Ordering::Relaxed) + self.making.bytes.get()
    }

    /// Counts `bytes` in all for `share`, which never becomes less.
    pub(crate) fn count(&self, share: &mut Share, bytes: u64) {
        if bytes > share.bytes {
            self.making.bytes.set(self.making.bytes.get() + (bytes - share.bytes));
            share.bytes = bytes;
            share.making.get_or_insert_with(|| self.making.clone());
        }
    }

    /// True if a read that makes `bytes` needs no leave.
    pub(crate) fn has_room(&self, bytes: usize) -> bool {
        bytes < COUNTED_MIN || self.held() < ROOM_BYTES
    }

    /// Waits until there is room for `share` to grow, or it may grow beyond the bound.
    ///
    /// # Errors
    /// [`RegionError::ServerIsBusy`] after a few seconds.
    pub(crate) async fn wait(&self, share: &mut Share) -> Result<(), RegionError> {
        let mut pause = Duration::from_millis(1);
        let started = executor::now();
        // What it holds itself is no reason to wait.
        while !share.is_head && self.held().saturating_sub(share.bytes) >= ROOM_BYTES {
            // Complete answers leave by themselves, or their client is cut off.
            let is_full_of_complete = self.complete.load(Ordering::Relaxed) >= ROOM_BYTES;
            if !is_full_of_complete && !self.making.has_head.replace(true) {
                share.is_head = true;
                share.making.get_or_insert_with(|| self.making.clone());
                return Ok(());
            }
            if executor::now().since(started) > WAIT {
                return Err(RegionError::ServerIsBusy {
                    reason: "too many answers wait to be read".into(),
                    backoff_ms: 500,
                });
            }
            executor::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(50));
        }
        Ok(())
    }

    /// An answer, counted until it is dropped if it is large.
    pub(crate) fn answer(&self, bytes: Vec<u8>) -> Bytes {
        if bytes.len() < COUNTED_MIN {
            return bytes.into();
        }
        self.complete.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Bytes::from_owner(Counted { bytes, complete: self.complete.clone() })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        if let Some(making) = &self.making {
            making.bytes.set(making.bytes.get() - self.bytes);
            if self.is_head {
                making.has_head.set(false);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;

    #[test]
    fn answers_count_until_they_are_gone_and_small_ones_never() {
        let room = AnswerRoom::default();
        let small = room.answer(vec![1; COUNTED_MIN - 1]);
        assert_eq!((small.len(), room.held()), (COUNTED_MIN - 1, 0));
        let large = room.answer(vec![2; COUNTED_MIN]);
        let part = large.slice(5..9);
        drop(large);
        assert_eq!((&part[..], room.held()), (&[2; 4][..], COUNTED_MIN as u64));
        drop(part);
        assert_eq!(room.held(), 0);
    }

    #[test]
    fn over_the_bound_one_goes_on_and_the_others_wait() {
        let room = AnswerRoom::default();
        let mut full = Share::default();
        room.count(&mut full, ROOM_BYTES);
        assert!(room.wait(&mut full).now_or_never().is_some_and(|leave| leave.is_ok()), "its own bytes are its own");
        let mut head = Share::default();
        assert!(room.wait(&mut head).now_or_never().is_some_and(|leave| leave.is_ok()), "one may go on");
        assert!(!room.has_room(COUNTED_MIN) && room.has_room(COUNTED_MIN - 1));
        drop(full);
        assert!(room.has_room(COUNTED_MIN));
        assert!(head.is_head && room.making.has_head.get());
        drop(head);
        assert!(!room.making.has_head.get());
    }

    #[test]
    fn nobody_goes_on_beyond_answers_that_are_complete() {
        let room = AnswerRoom::default();
        let mut answers = Vec::new();
        while room.held() < ROOM_BYTES {
            answers.push(room.answer(vec![0; 1 << 20]));
        }
        // It would not only wait for the answers, but also for a clock, which there is none of here.
        assert!(!room.has_room(COUNTED_MIN));
        answers.pop();
        let mut share = Share::default();
        assert!(room.has_room(COUNTED_MIN) && room.wait(&mut share).now_or_never().is_some_and(|leave| leave.is_ok()));
        assert!(!share.is_head);
    }
}
