//! The run of a node: how it starts, pauses and ends.
//!
//! Whatever a process leaves behind is dropped in the context of its core, and nothing of it runs afterwards.

use super::context::{self, Core};
use super::node::Node;
use super::task::{self, TaskId};
use super::timer::Event;
use super::world::{Note, World};
use crate::{Class, LocalFuture};
use base::CoreId;
use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::rc::Rc;
use std::task::{Poll, Waker};

/// What waits for the end of a pause.
pub(super) enum Parked {
    /// A woken task.
    Task(TaskId),
    /// Work of a helper.
    Work(Rc<Core>, Box<dyn FnOnce()>),
}

impl Parked {
    /// Drops what no longer runs, in its core's context.
    pub(super) fn discard(self) {
        if let Parked::Work(core, work) = self {
            let _entered = context::enter(&core);
            drop(work);
        }
    }
}

/// One run of a node.
pub(super) struct Process {
    pub(super) cores: Vec<Rc<Core>>,
    /// Cores whose main has not returned; `None` if the process has no mains and lives until it is killed.
    pub(super) mains: Option<usize>,
    pub(super) stopping: bool,
    pub(super) stop_wakers: Vec<Waker>,
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
    pub(super) fn end_returned(self: &Rc<Self>) {
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
            if ending == Ending::PowerLoss {
                // The machine is there without a process, too.
                self.note(Note::End, (node.index as u64) << 8 | ending as u64);
                self.end_disk(node, ending);
            }
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
        let events = self.timers.borrow_mut().take_all(|event| event.owner() == Some(node.index));
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
        self.after(nanos, Event::Resume { node: node.index, pause: node.pauses.get() });
    }

    pub(super) fn resume(&self, node: usize, pause: u64) {
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

    /// Runs what a core's helper was given, unless its process is gone; after the pause, if there is one.
    pub(super) fn run_work(&self, core: Rc<Core>, work: Box<dyn FnOnce()>) {
        if core.node.paused.get() {
            core.node.parked.borrow_mut().push(Parked::Work(core.clone(), work));
            return;
        }
        let _entered = context::enter(&core);
        if core.run == core.node.run.get() { work() } else { drop(work) }
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

/// Resolves when the node is asked to end ([`super::Sim::stop`]), as SIGTERM does.
pub(crate) fn shutdown_signal() -> impl Future<Output = ()> {
    let core = context::current();
    poll_fn(move |cx| match &mut *core.node.process.borrow_mut() {
        Some(process) if core.is_alive() => {
            if process.stopping {
                return Poll::Ready(());
            }
            if !process.stop_wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
                process.stop_wakers.push(cx.waker().clone());
            }
            Poll::Pending
        }
        _ => Poll::Pending,
    })
}

/// Asks the current task's node to end, as SIGTERM does.
pub(crate) fn request_shutdown() {
    context::current().node.stop();
}
