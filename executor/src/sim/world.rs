//! The world: virtual time, seeded chance, the event hash, and the loop that runs everything.

use super::config::SimConfig;
use super::context::{self, Core};
use super::net::Net;
use super::node::Node;
use super::process::Parked;
use super::task::{self, Ready, TaskId, Tasks, Turn};
use super::timer::{Event, Key, Timers};
use crate::metrics::add;
use base::{Prng, hash};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Context;

/// Who is told of every event, in a line each.
pub(super) type Tracer = Box<dyn FnMut(&str)>;

/// Everything of one simulation. Each part has a cell of its own, so that no borrow spans a call to outside code.
pub(super) struct World {
    pub(super) config: SimConfig,
    now: Cell<u64>,
    hash: Cell<u64>,
    steps: Cell<u64>,
    traced: Cell<bool>,
    tracer: RefCell<Option<Tracer>>,
    /// True while the loop runs: it must not be entered again from within.
    running: Cell<bool>,
    pub(super) chance: Chance,
    pub(super) ready: Arc<Ready>,
    pub(super) tasks: RefCell<Tasks>,
    pub(super) timers: RefCell<Timers>,
    pub(super) net: RefCell<Net>,
    pub(super) nodes: RefCell<Vec<Rc<Node>>>,
    /// Cores whose main returned in the current poll.
    pub(super) returned: RefCell<Vec<Rc<Core>>>,
}

/// A generator for each part, so that a draw more in one does not shift the others.
pub(super) struct Chance {
    pub(super) schedule: RefCell<Prng>,
    pub(super) net: RefCell<Prng>,
    pub(super) disk: RefCell<Prng>,
    pub(super) helper: RefCell<Prng>,
    pub(super) node: RefCell<Prng>,
}

/// What the event hash is told about.
#[derive(Clone, Copy, Debug)]
pub(super) enum Note {
    Poll = 1,
    Spawn,
    Timer,
    Blocking,
    Start,
    End,
    Pause,
    Clock,
    Link,
    Bind,
    Connect,
    Accept,
    Send,
    Arrive,
    Receive,
    Close,
    Reset,
    Disk,
    Write,
    Sync,
    Crash,
}

impl World {
    pub(super) fn new(seed: u64, config: SimConfig) -> Rc<World> {
        let mut prng = Prng::new(seed);
        let mut fork = || RefCell::new(prng.fork());
        Rc::new(World {
            config,
            now: Cell::new(0),
            hash: Cell::new(hash::mix64(seed)),
            steps: Cell::new(0),
            traced: Cell::new(false),
            tracer: RefCell::new(None),
            running: Cell::new(false),
            chance: Chance { schedule: fork(), net: fork(), disk: fork(), helper: fork(), node: fork() },
            ready: Arc::default(),
            tasks: RefCell::default(),
            timers: RefCell::default(),
            net: RefCell::default(),
            nodes: RefCell::default(),
            returned: RefCell::default(),
        })
    }

    /// World time in nanoseconds since the start.
    pub(super) fn now(&self) -> u64 {
        self.now.get()
    }

    /// Folds something that happened into the event hash.
    pub(super) fn note(&self, what: Note, detail: u64) {
        if self.traced.get() {
            self.trace(what, detail);
        }
        self.hash.set(hash::fold(self.hash.get(), detail ^ ((what as u64) << 56)));
    }

    fn trace(&self, what: Note, detail: u64) {
        // Taken out for the call, which is outside code.
        let Some(mut sink) = self.tracer.take() else {
            return;
        };
        sink(&format!("{:>14} {what:?} {detail:x}", self.now()));
        self.tracer.replace(Some(sink));
    }

    /// From now on tells `sink` of every event that the hash is told of.
    pub(super) fn set_tracer(&self, sink: Tracer) {
        self.traced.set(true);
        self.tracer.replace(Some(sink));
    }

    /// Folds bytes that travel or are written into the event hash.
    pub(super) fn note_bytes(&self, bytes: &[u8]) {
        self.hash.set(hash::fold_bytes(self.hash.get(), bytes));
    }

    /// The hash over all that happened, and the time it is now.
    pub(super) fn event_hash(&self) -> u64 {
        hash::fold(self.hash.get(), self.now())
    }

    /// Polls and events so far.
    pub(super) fn steps(&self) -> u64 {
        self.steps.get()
    }

    pub(super) fn node(&self, index: usize) -> Rc<Node> {
        self.nodes.borrow()[index].clone()
    }

    /// Adds an event `after` nanoseconds from now.
    pub(super) fn after(&self, after: u64, event: Event) -> Key {
        let at = self.now().saturating_add(after);
        self.timers.borrow_mut().add(at, event)
    }

    /// Runs `work` in the context of `core` later, unless its process has ended by then.
    pub(super) fn run_on(&self, core: &Rc<Core>, after: u64, work: impl FnOnce() + 'static) {
        let core = core.clone();
        self.after(after, Event::Work { core, work: Box::new(work) });
    }

    /// Enters the loop; the guard leaves it. Panics if it is entered already.
    pub(super) fn begin(self: &Rc<Self>) -> Running {
        assert!(
            !self.running.replace(true) && !context::active(),
            "the simulation is run from within itself: only the driver may call run_for and the like"
        );
        Running(self.clone())
    }

    /// One step: what is due happens, then one runnable task is polled, or else time jumps to the next event, at most
    /// to `until`. False when there was nothing to do before `until`.
    pub(super) fn step(self: &Rc<Self>, until: u64) -> bool {
        self.happen();
        if let Some(id) = self.ready.take(|count| self.chance.schedule.borrow_mut().below(count)) {
            self.run_task(id);
            return true;
        }
        let next = self.timers.borrow().next_at();
        match next {
            Some(at) if at <= until => {
                self.now.set(self.now().max(at));
                true
            }
            _ => {
                self.now.set(self.now().max(until));
                false
            }
        }
    }

    /// Lets all events happen that are due.
    fn happen(self: &Rc<Self>) {
        loop {
            let due = self.timers.borrow_mut().take_due(self.now());
            let Some((key, event)) = due else { return };
            self.note(Note::Timer, key.1);
            self.steps.set(self.steps.get() + 1);
            match event {
                Event::Wake { waker, .. } => waker.wake(),
                Event::Arrive(end) => self.segments_arrive(end),
                Event::Reset(end) => self.reset_arrives(end),
                Event::Stuck(end, blockade) => self.stuck_too_long(end, blockade),
                Event::Resume { node, pause } => self.resume(node, pause),
                Event::Disk { done, .. } => done(self),
                Event::Work { core, work } => self.run_work(core, work),
            }
        }
    }

    fn run_task(self: &Rc<Self>, id: TaskId) {
        let turn = {
            let mut tasks = self.tasks.borrow_mut();
            match tasks.get(id) {
                Some(entry) if entry.core.node.paused.get() => {
                    entry.core.node.parked.borrow_mut().push(Parked::Task(id));
                    None
                }
                _ => tasks.begin(id, self.now(), self.config.busy_polls_max),
            }
        };
        let Some(turn) = turn else { return };
        let (low, high) = self.config.poll_ns;
        let cost = self.chance.schedule.borrow_mut().range(low, high);
        let class = turn.class.index();
        self.note(Note::Poll, u64::from(id.slot) << 8 | class as u64);
        self.steps.set(self.steps.get() + 1);
        add(&turn.core.metrics.busy_nanos_total[class], cost);
        self.poll(id, turn);
        self.now.set(self.now() + cost);
        self.end_returned();
    }

    fn poll(&self, id: TaskId, turn: Turn) {
        let _entered = context::enter(&turn.core);
        let mut future = turn.future; // dropped in context, though a poll panics
        let mut cx = Context::from_waker(&turn.waker);
        if turn.cancelled || future.as_mut().poll(&mut cx).is_ready() {
            let entry = self.tasks.borrow_mut().remove(id);
            drop(entry);
        } else {
            self.put_back(id, future);
        }
    }

    /// Keeps the future for its next poll, or drops it if the task was killed while it ran.
    fn put_back(&self, id: TaskId, future: task::BoxFuture) {
        let rest = match self.tasks.borrow_mut().get(id) {
            Some(entry) => entry.future.replace(future),
            None => Some(future),
        };
        drop(rest);
    }

    /// Wakes all who sleep by the node's clock, so that they look at it again.
    pub(super) fn clock_changed(&self, node: usize) {
        self.note(Note::Clock, node as u64);
        let events = self
            .timers
            .borrow_mut()
            .take_all(|event| matches!(event, Event::Wake { node: Some(at), .. } if *at == node));
        for event in events {
            if let Event::Wake { waker, .. } = event {
                waker.wake();
            }
        }
    }
}

/// The loop is entered.
pub(super) struct Running(Rc<World>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.set(false);
    }
}
