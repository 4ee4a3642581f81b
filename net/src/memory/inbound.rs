//! What requests are charged, and the line of those that wait for memory.

use super::{ConnectionMemory, CoreMemory, push_waker};
use crate::metrics::{add, sub};
use h2::FlowControl;
use std::cell::RefCell;
use std::rc::Rc;
use std::task::{Context, Waker};

/// A stream's place in the queue of those that owe.
pub(super) struct Place {
    pub(super) waker: RefCell<Option<Waker>>,
}

/// Where a stream stands in the line for memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// It does not wait for memory.
    No,
    /// Somewhere behind the head.
    Waits,
    /// At the head: it may go beyond the budgets until its message is complete.
    Head,
}

/// What one stream's requests take.
pub(crate) struct InboundCharge {
    memory: Rc<ConnectionMemory>,
    bytes: u64,
    owed: usize,
    place: Option<Rc<Place>>,
}

impl InboundCharge {
    pub(crate) fn new(memory: &Rc<ConnectionMemory>) -> InboundCharge {
        InboundCharge { memory: Rc::clone(memory), bytes: 0, owed: 0, place: None }
    }

    /// Charges `bytes` that arrived through the stream's window; the window is to be released for them.
    pub(crate) fn arrived(&mut self, bytes: usize) {
        self.take(bytes);
        self.owed += bytes;
    }

    fn take(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
        add(&self.memory.inbound, bytes as u64);
        add(&self.memory.core.metrics.inbound_bytes, bytes as u64);
    }

    /// Releases window for what arrived if the budgets allow. If not, and the stream is in the midst of a message, it
    /// gets in line: the first of the line may go beyond the budgets, the others are woken when that changes. Between
    /// messages it is just woken when there is room.
    pub(crate) fn release(&mut self, flow: &mut FlowControl, is_inside_message: bool, cx: &mut Context<'_>) {
        if self.owed == 0 {
            return;
        }
        let mut may = self.memory.has_inbound_room();
        if !may && is_inside_message {
            may = self.line_up(cx);
        } else if !may {
            push_waker(&mut self.memory.core.inbound_waiters.borrow_mut(), cx.waker());
        }
        if may {
            // An error means that the stream is gone, and its window with it.
            let _ = flow.release_capacity(std::mem::take(&mut self.owed));
        }
    }

    /// Charges `bytes` that a message will have when it is inflated, if the budgets allow all of them, or if the stream
    /// is the first of the line. If not, it gets in line.
    pub(crate) fn reserve(&mut self, bytes: usize, cx: &mut Context<'_>) -> bool {
        let may = self.memory.has_inbound_room_for(bytes as u64) || self.line_up(cx);
        if may {
            self.take(bytes);
            self.completed();
        }
        may
    }

    /// Gets in line, if the stream is not there, and says whether it is the first.
    pub(super) fn line_up(&mut self, cx: &mut Context<'_>) -> bool {
        let core = &self.memory.core;
        let place = self.place.get_or_insert_with(|| {
            let place = Rc::new(Place { waker: RefCell::default() });
            core.queue.borrow_mut().push_back(Rc::clone(&place));
            place
        });
        *place.waker.borrow_mut() = Some(cx.waker().clone());
        core.is_head(place)
    }

    /// Whether window is still to be released.
    pub(crate) fn is_owing(&self) -> bool {
        self.owed > 0
    }

    /// Where the stream stands in the line for memory.
    pub(crate) fn line(&self) -> Line {
        match &self.place {
            None => Line::No,
            Some(place) if self.memory.core.is_head(place) => Line::Head,
            Some(_) => Line::Waits,
        }
    }

    /// The message is complete: the stream leaves the line. The first stays until the message is used up; if it made
    /// room for the next one now, each in turn would go beyond the budgets.
    pub(crate) fn completed(&mut self) {
        if self.line() == Line::Waits {
            self.leave();
        }
    }

    /// The messages so far are used up.
    pub(crate) fn settle(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        if bytes > 0 {
            sub(&self.memory.inbound, bytes);
            let core = &self.memory.core;
            sub(&core.metrics.inbound_bytes, bytes);
            // Others may wait for the core's room only, whatever this connection still holds.
            if core.metrics.inbound_bytes.get() <= core.inbound_max {
                core.wake_queue();
            }
        }
        self.leave();
    }

    fn leave(&mut self) {
        if let Some(place) = self.place.take() {
            self.memory.core.leave(&place);
        }
    }
}

impl Drop for InboundCharge {
    fn drop(&mut self) {
        self.settle();
    }
}

/// What the body of an HTTP/1.1 request takes.
pub(crate) struct BodyCharge {
    core: Rc<CoreMemory>,
    bytes: u64,
}

impl BodyCharge {
    /// `None` if the core has no room for `bytes` more. Nothing is always room for.
    pub(crate) fn new(core: &Rc<CoreMemory>, bytes: usize) -> Option<BodyCharge> {
        let bytes = bytes as u64;
        if bytes > 0 && core.metrics.inbound_bytes.get() + bytes > core.inbound_max {
            return None;
        }
        add(&core.metrics.inbound_bytes, bytes);
        Some(BodyCharge { core: Rc::clone(core), bytes })
    }
}

impl Drop for BodyCharge {
    fn drop(&mut self) {
        sub(&self.core.metrics.inbound_bytes, self.bytes);
        self.core.wake_queue();
    }
}
