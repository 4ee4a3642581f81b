//! Turns of an io_uring core: how long tasks run before the rings are looked at again.
//!
//! glommio 0.9 limits a turn by a timer in its latency ring, and takes any completion there for "the time is up". If
//! one is there before the first task of a turn has begun (the thread lost its CPU in between, or another thread's wake
//! arrived late), it concludes that nothing was runnable and sleeps until something else happens: we saw a core hang
//! in 8% of runs on a busy machine with a limit of one millisecond. So that timer is put out of reach, and turns are
//! limited here: when tasks have had [`TURN_NANOS`], those that come next are put off, the queues run empty, glommio
//! looks at its rings, and [`uring::Looked`] lets the tasks go on.
//!
//! Each class has a budget of its own in a turn, by its shares. glommio's shares would not do here: a queue that becomes
//! runnable again begins at the virtual time of the one that runs, so of several that begin a turn together the same one
//! would be the first each time, and take all of it.
//!
//! What is left of the fault is the late wake: it must come within the microsecond between glommio's last look at its
//! rings and the first task of the turn, on a core that something else has woken. Any other event ends it; where there
//! is none, a heartbeat bounds what it costs. That beats fast only while there is work, since a wake of an idle core
//! costs 150 µs of processor (virtual machine, 2026-11).

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::{Class, IoKind, uring};

/// Time that the tasks of the class with the most shares have in one turn, and those of any class at least.
const TURN_NANOS: u64 = 500_000;
const TURN_NANOS_MIN: u64 = 20_000;

/// The most polls of one turn, and what any class may have, for tasks so short that their time hardly counts.
const TURN_POLLS: u32 = 1024;
const TURN_POLLS_MIN: u32 = 16;

/// The longest sleep of a core that has run tasks since the last beat, and of one that has not.
const BEAT_BUSY: Duration = Duration::from_millis(10);
const BEAT_IDLE: Duration = Duration::from_millis(100);

/// What a core's tasks have used of their turn, and who waits for the next.
#[derive(Default)]
pub(crate) struct Rounds {
    used: [Used; Class::COUNT],
    /// Polls ever, for the heartbeat.
    total: Cell<u64>,
    /// In the order in which they came; bounded by the tasks of the core.
    put_off: RefCell<Vec<Waker>>,
    server: Cell<Option<Waker>>,
    closed: Cell<bool>,
}

/// What the tasks of one class have used of the turn.
#[derive(Default)]
struct Used {
    nanos: Cell<u64>,
    polls: Cell<u32>,
}

impl Used {
    fn is_all(&self, class: Class) -> bool {
        let most = u64::from(Class::ALL.map(Class::shares).into_iter().max().unwrap_or(1));
        let part = |whole: u64| whole * u64::from(class.shares()) / most;
        self.nanos.get() >= part(TURN_NANOS).max(TURN_NANOS_MIN)
            || u64::from(self.polls.get()) >= part(TURN_POLLS.into()).max(TURN_POLLS_MIN.into())
    }
}

enum Event {
    TurnOver,
    Beat,
    Closed,
}

impl Rounds {
    /// True if the turn is over for a task of `class`, which is then woken in the next.
    pub(crate) fn is_over(&self, class: Class, cx: &Context<'_>) -> bool {
        if self.closed.get() || !self.used[class.index()].is_all(class) {
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
    pub(crate) fn spend(&self, class: Class, nanos: u64) {
        let used = &self.used[class.index()];
        used.nanos.set(used.nanos.get() + nanos);
        used.polls.set(used.polls.get() + 1);
        self.total.set(self.total.get() + 1);
    }

    /// Ends [`Rounds::serve`], and the limit of turns with it: a core that ends has only drops left for its tasks, and
    /// those need not wait for a next turn.
    pub(crate) fn close(&self) {
        self.closed.set(true);
        self.wake_put_off();
        self.wake_server();
    }

    fn wake_put_off(&self) {
        for waker in self.put_off.take() {
            waker.wake();
        }
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
                    let mut looked = uring::Looked::default();
                    poll_fn(|cx| self.poll_unless_closed(&mut looked, cx)).await;
                    for used in &self.used {
                        used.nanos.set(0);
                        used.polls.set(0);
                    }
                    self.wake_put_off();
                }
            }
        }
    }

    fn poll_unless_closed(&self, looked: &mut uring::Looked, cx: &mut Context<'_>) -> Poll<()> {
        if self.closed.get() || Pin::new(looked).poll(cx).is_ready() {
            return Poll::Ready(());
        }
        self.server.set(Some(cx.waker().clone()));
        Poll::Pending
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
