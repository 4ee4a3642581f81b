//! The world: virtual time, seeded chance, the event hash, and the loop that runs everything.

use super::config::SimConfig;
use super::context::{self, Core};
use super::net::Net;
use super::node::{Node, Parked, Process};
use super::task::{self, Ready, TaskId, Tasks};
use super::timer::{Event, Key, Timers};
use crate::metrics::add;
use crate::{Class, LocalFuture};
use base::{CoreId, Prng, hash};
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
    returned: RefCell<Vec<Rc<Core>>>,
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

/// How a process ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// All mains returned: connections are closed, the disk is left as it is.
    Exit,
    /// SIGKILL: connections are reset, what was written to files stays.
    Killed,
    /// The power fails: connections are reset, unsynced bytes are lost or torn by the seed.
    PowerLoss,
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
            chance: Chance {
                schedule: fork(),
                net: fork(),
                disk: fork(),
                helper: fork(),
                node: fork(),
            },
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
        self.hash
            .set(hash::fold(self.hash.get(), detail ^ ((what as u64) << 56)));
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
        self.after(
            after,
            Event::Work {
                core,
                work: Box::new(work),
            },
        );
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
        if let Some(id) = self
            .ready
            .take(|count| self.chance.schedule.borrow_mut().below(count))
        {
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

    /// Runs what a core's helper was given, unless its process is gone; after the pause, if there is one.
    fn run_work(&self, core: Rc<Core>, work: Box<dyn FnOnce()>) {
        if core.node.paused.get() {
            core.node
                .parked
                .borrow_mut()
                .push(Parked::Work(core.clone(), work));
            return;
        }
        let _entered = context::enter(&core);
        if core.run == core.node.run.get() {
            work()
        } else {
            drop(work)
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
        let Some(mut turn) = turn else { return };
        let (low, high) = self.config.poll_ns;
        let cost = self.chance.schedule.borrow_mut().range(low, high);
        self.note(Note::Poll, u64::from(id.slot) << 8 | turn.class as u64);
        self.steps.set(self.steps.get() + 1);

        add(
            &turn.core.metrics.busy_nanos_total[turn.class.index()],
            cost,
        );

        let entered = context::enter(&turn.core);
        let done = turn.cancelled
            || turn
                .future
                .as_mut()
                .poll(&mut Context::from_waker(&turn.waker))
                .is_ready();
        if done {
            let entry = self.tasks.borrow_mut().remove(id);
            drop(entry);
            drop(turn.future);
        } else {
            self.put_back(id, turn.future);
        }
        drop(entered);
        self.now.set(self.now() + cost);
        self.end_returned();
    }

    /// Keeps the future for its next poll, or drops it if the task was killed while it ran.
    fn put_back(&self, id: TaskId, future: task::BoxFuture) {
        let rest = match self.tasks.borrow_mut().get(id) {
            Some(entry) => entry.future.replace(future),
            None => Some(future),
        };
        drop(rest);
    }

    /// Starts a process on `node`, with a main on each core if there is one.
    pub(super) fn start(
        self: &Rc<Self>,
        node: &Rc<Node>,
        cores: usize,
        main: Option<&dyn Fn(CoreId) -> LocalFuture<()>>,
    ) {
        assert!(!node.is_running(), "node {:?} runs already", node.name);
        let count = u16::try_from(cores).expect("at most 65535 cores");
        let mut prng = self.chance.node.borrow_mut().fork();
        node.run.set(node.run.get() + 1);
        let mut clock = node.clock.get();
        clock.reboot(self.now(), prng.range(1_000_000_000, 1_000_000_000_000));
        node.clock.set(clock);
        self.note(Note::Start, (node.index as u64) << 16 | u64::from(count));
        let cores: Vec<Rc<Core>> = (0..count)
            .map(|id| {
                Rc::new(Core {
                    world: self.clone(),
                    node: node.clone(),
                    run: node.run.get(),
                    id: CoreId(id),
                    cores,
                    rng: RefCell::new(prng.fork()),
                    metrics: Rc::default(),
                    ended: Cell::new(false),
                })
            })
            .collect();
        *node.process.borrow_mut() = Some(Process {
            cores: cores.clone(),
            mains: main.map(|_| cores.len()),
            stopping: false,
            stop_wakers: Vec::new(),
        });
        for core in main.iter().flat_map(|_| &cores) {
            let future = {
                let _entered = context::enter(core);
                main.map(|main| main(core.id))
            };
            let (world, ended) = (self.clone(), core.clone());
            task::spawn_on(core, Class::Foreground, async move {
                if let Some(future) = future {
                    future.await;
                }
                world.returned.borrow_mut().push(ended);
            });
        }
    }

    /// Ends the cores whose main returned, as a real core's thread ends with its main, and the process with the last.
    fn end_returned(self: &Rc<Self>) {
        if self.returned.borrow().is_empty() {
            return;
        }
        for core in self.returned.take() {
            if !core.is_alive() {
                continue;
            }
            core.ended.set(true);
            self.drop_tasks(|other| Rc::ptr_eq(other, &core));
            let left = core.node.process.borrow_mut().as_mut().and_then(|process| {
                process.mains = process.mains.map(|mains| mains - 1);
                process.mains
            });
            if left == Some(0) {
                self.end_process(&core.node, Ending::Exit);
            }
        }
    }

    /// Ends a node's process: its tasks are dropped in their own context, and nothing of it runs afterwards.
    pub(super) fn end_process(self: &Rc<Self>, node: &Rc<Node>, ending: Ending) {
        let Some(process) = node.process.take() else {
            return;
        };
        self.note(Note::End, (node.index as u64) << 8 | ending as u64);
        node.run.set(node.run.get() + 1);
        node.paused.set(false);
        let parked = node.parked.take();
        if ending != Ending::Exit {
            self.abort_sockets(node.index);
        }
        self.drop_tasks(|core| core.node.index == node.index);
        self.abort_sockets(node.index);
        parked.into_iter().for_each(Parked::discard);
        self.end_disk(node, ending);
        self.drop_events(node, ending);
        let _entered = process.cores.first().map(context::enter);
        drop(process.stop_wakers);
    }

    fn drop_tasks(&self, pick: impl Fn(&Rc<Core>) -> bool) {
        let entries = self.tasks.borrow_mut().remove_all(&pick);
        for entry in entries {
            let core = entry.core.clone();
            let _entered = context::enter(&core);
            drop(entry);
        }
    }

    /// Work that waited is dropped. Disk operations run to their end, unless the power failed.
    fn drop_events(self: &Rc<Self>, node: &Node, ending: Ending) {
        let events = self
            .timers
            .borrow_mut()
            .take_all(|event| event.owner() == Some(node.index));
        for event in events {
            match event {
                Event::Work { core, work } => Parked::Work(core, work).discard(),
                Event::Disk { done, .. } if ending != Ending::PowerLoss => done(self),
                other => drop(other),
            }
        }
    }

    /// Stops polling the node's tasks for so long.
    pub(super) fn pause(&self, node: &Node, nanos: u64) {
        self.note(Note::Pause, (node.index as u64) << 48 | nanos & 0xFFFF_FFFF);
        node.paused.set(true);
        node.pauses.set(node.pauses.get() + 1);
        self.after(
            nanos,
            Event::Resume {
                node: node.index,
                pause: node.pauses.get(),
            },
        );
    }

    fn resume(&self, node: usize, pause: u64) {
        let node = self.node(node);
        if node.pauses.get() == pause {
            node.paused.set(false);
            for parked in node.parked.take() {
                match parked {
                    Parked::Task(id) => self.ready.push(id),
                    Parked::Work(core, work) => self.run_work(core, work),
                }
            }
        }
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

    /// Ends everything, so that no task keeps the world alive.
    pub(super) fn end(self: &Rc<Self>) {
        let nodes = self.nodes.borrow().clone();
        for node in &nodes {
            self.end_process(node, Ending::Killed);
        }
        let events = self.timers.borrow_mut().take_all(|_| true);
        drop(events);
    }
}

/// The loop is entered.
pub(super) struct Running(Rc<World>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.set(false);
    }
}
