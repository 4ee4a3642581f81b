//! A simulated machine: what it is called, its clock and disk, and the run of its process if there is one.

use super::clock::Clock;
use super::disk::Disk;
use super::process::{Parked, Process};
use super::world::World;
use base::{Instant, UnixTime};
use std::cell::{Cell, RefCell};
use std::net::IpAddr;
use std::task::Waker;

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
    /// Nanoseconds that helpers take longer to begin anything.
    pub(super) slow_helpers: Cell<u64>,
}

impl Node {
    /// The monotonic clock.
    pub(super) fn now(&self, world: &World) -> Instant {
        self.clock.get().now(world.now())
    }

    /// The clock that runs on while the machine is suspended.
    pub(super) fn boottime(&self, world: &World) -> Instant {
        self.clock.get().boottime(world.now())
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
