//! A simulated machine: what it is called, its clock and disk, and the run of its process if there is one.

use super::clock::Clock;
use super::context::{self, Core};
use super::disk::Disk;
use super::task::TaskId;
use super::world::World;
use base::{Instant, UnixTime};
use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::net::IpAddr;
use std::rc::Rc;
use std::task::{Poll, Waker};

/// A machine. Clock and disk outlive the process that runs on it.
pub(super) struct Node {
    pub(super) index: usize,
    pub(super) name: String,
    pub(super) ip: IpAddr,
    pub(super) clock: Cell<Clock>,
    pub(super) disk: RefCell<Disk>,
    /// Counts the runs, and their ends. What carries another number is of a process that is gone.
    pub(super) run: Cell<u32>,
    pub(super) process: RefCell<Option<Process>>,
    /// Stopped as by SIGSTOP: nothing is polled, the world goes on.
    pub(super) paused: Cell<bool>,
    /// Counts the pauses, so that only the newest one's end counts.
    pub(super) pauses: Cell<u64>,
    /// What was to run while the node was paused.
    pub(super) parked: RefCell<Vec<Parked>>,
    pub(super) next_port: Cell<u16>,
}

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

impl Node {
    /// The monotonic clock.
    pub(super) fn now(&self, world: &World) -> Instant {
        self.clock.get().now(world.now())
    }

    /// The wall clock.
    pub(super) fn unix_time(&self, world: &World) -> UnixTime {
        self.clock.get().unix_time(world.now())
    }

    /// True while a process runs.
    pub(super) fn is_running(&self) -> bool {
        self.process.borrow().is_some()
    }

    /// Asks the process to end; its `shutdown_signal`s resolve.
    pub(super) fn stop(&self) {
        let wakers = match &mut *self.process.borrow_mut() {
            Some(process) => {
                process.stopping = true;
                std::mem::take(&mut process.stop_wakers)
            }
            None => Vec::new(),
        };
        wakers.into_iter().for_each(Waker::wake);
    }
}

/// Asks the current task's node to end, as SIGTERM does.
pub(crate) fn request_shutdown() {
    context::current().node.stop();
}

/// Resolves when the node is asked to end ([`super::Sim::stop`]), as SIGTERM does.
pub(crate) fn shutdown_signal() -> impl Future<Output = ()> {
    let core = context::current();
    poll_fn(move |cx| match &mut *core.node.process.borrow_mut() {
        Some(process) if core.is_alive() => {
            if process.stopping {
                return Poll::Ready(());
            }
            if !process
                .stop_wakers
                .iter()
                .any(|waker| waker.will_wake(cx.waker()))
            {
                process.stop_wakers.push(cx.waker().clone());
            }
            Poll::Pending
        }
        _ => Poll::Pending,
    })
}
