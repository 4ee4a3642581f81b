//! Turns of an io_uring core: how long tasks run before the rings are looked at again.
//!
//! glommio 0.9 limits a turn by a timer in its latency ring, and takes any completion there for "the time is up". If
//! one is there before the first task of a turn has begun (the thread lost its CPU in between, or another thread's wake
//! arrived late), it concludes that nothing was runnable and sleeps until something else happens: we saw a core hang
//! in 8% of runs on a busy machine with a limit of one millisecond. So that timer is put out of reach, and turns are
//! limited here: when tasks have had [`TURN_NANOS`], those that come next are put off, the queues run empty, glommio
//! looks at its rings, and a timer that is due at once lets the tasks go on. glommio's shares hold from turn to turn.
//!
//! What is left of the fault is the late wake, a matter of a few instructions. A heartbeat bounds what it costs.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::{IoKind, uring};

/// Time that the tasks of a core have in one turn.
const TURN_NANOS: u64 = 500_000;

/// The most polls of one turn, for tasks so short that their time hardly counts.
const TURN_POLLS: u32 = 1024;

/// The longest sleep of a core that has run tasks since the last beat, and of one that has not.
const BEAT_BUSY: Duration = Duration::from_millis(10);
const BEAT_IDLE: Duration = Duration::from_millis(100);

/// What a core's tasks have used of their turn, and who waits for the next.
#[derive(Default)]
pub(crate) struct Rounds {
    nanos: Cell<u64>,
    polls: Cell<u32>,
    /// Polls ever, for the heartbeat.
    total: Cell<u64>,
    /// In the order in which they came; bounded by the tasks of the core.
    put_off: RefCell<Vec<Waker>>,
    server: Cell<Option<Waker>>,
    closed: Cell<bool>,
}

enum Event {
    TurnOver,
    Beat,
    Closed,
}

impl Rounds {
    /// True if the turn is over; the task is then woken in the next.
    pub(crate) fn is_over(&self, cx: &Context<'_>) -> bool {
        if self.nanos.get() < TURN_NANOS && self.polls.get() < TURN_POLLS {
            return false;
        }
        let mut put_off = self.put_off.borrow_mut();
        put_off.push(cx.waker().clone());
        if put_off.len() == 1 {
            self.wake_server();
        }
        true
    }

    /// Counts a poll.
    pub(crate) fn spend(&self, nanos: u64) {
        self.nanos.set(self.nanos.get() + nanos);
        self.polls.set(self.polls.get() + 1);
        self.total.set(self.total.get() + 1);
    }

    /// Ends [`Rounds::serve`].
    pub(crate) fn close(&self) {
        self.closed.set(true);
        self.wake_server();
    }

    fn wake_server(&self) {
        if let Some(server) = self.server.take() {
            server.wake();
        }
    }

    /// The task that begins the turns and beats. Other backends have no need of it.
    pub(crate) async fn serve(self: Rc<Rounds>, kind: IoKind) {
        if kind != IoKind::Uring {
            return;
        }
        let mut beat = uring::timer(BEAT_BUSY);
        let mut seen = 0;
        loop {
            match poll_fn(|cx| self.poll_event(&mut beat, cx)).await {
                Event::Closed => return,
                Event::Beat => {
                    let busy = self.total.get() != seen;
                    seen = self.total.get();
                    beat = uring::timer(if busy { BEAT_BUSY } else { BEAT_IDLE });
                }
                Event::TurnOver => {
                    // Fires when the rings have been looked at.
                    uring::timer(Duration::ZERO).await;
                    self.nanos.set(0);
                    self.polls.set(0);
                    for waker in self.put_off.take() {
                        waker.wake();
                    }
                }
            }
        }
    }

    fn poll_event(&self, beat: &mut uring::Timer, cx: &mut Context<'_>) -> Poll<Event> {
        if self.closed.get() {
            return Poll::Ready(Event::Closed);
        }
        if !self.put_off.borrow().is_empty() {
            return Poll::Ready(Event::TurnOver);
        }
        if Pin::new(beat).poll(cx).is_ready() {
            return Poll::Ready(Event::Beat);
        }
        self.server.set(Some(cx.waker().clone()));
        Poll::Pending
    }
}
