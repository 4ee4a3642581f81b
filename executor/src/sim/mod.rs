//! The deterministic backend: a whole cluster in one thread.
//!
//! A [`Sim`] owns nodes; a node owns cores, a clock, sockets and a disk that lives in memory. Tasks of all nodes are
//! polled by one loop, which picks among the runnable ones by the seed. Time is virtual: it moves a little with every
//! poll, and jumps to the next event when nothing is runnable. The same seed gives the same run in any process, and
//! [`Sim::event_hash`] proves it: it folds every pick, timer, message and disk operation.
//!
//! ```text
//!   Sim (driver)                     the test: faults, run_for, assertions
//!     └─ World                       virtual time, seeded chance, event hash, the loop
//!          ├─ tasks ─ ready queue    polls; a waker pushes an id, nothing else
//!          ├─ timers                 everything that happens later: sleeps, segments, disk completions
//!          ├─ net                    connections, listeners, links with their faults
//!          └─ nodes ─ clock, disk    what survives a kill
//! ```
//!
//! What a node's code calls (`spawn_local`, `now`, sockets, files) finds its node and core in a thread-local that the
//! loop sets for each poll, and for each drop of a task. Rule of the house: no borrow of the world is held while code
//! from outside this module may run, wakers included.
//!
//! Not modelled: parallel cores (polls of all cores share one virtual time line, so their cost adds up), bandwidth,
//! the number of helper threads, and duplicated or reordered packets (streams are reliable, as TCP's are).

mod answer;
mod clock;
mod config;
mod context;
mod disk;
mod driver;
mod net;
mod node;
mod process;
mod task;
#[cfg(test)]
mod tests;
mod timer;
mod world;

use crate::metrics::{add, less};
use crate::{Class, CoreMetrics, LocalFuture};
use base::{CoreId, Instant, Prng, UnixTime};
use std::rc::Rc;

pub use config::{Delay, Link, SimConfig};
pub(crate) use disk::SimLogFile;
pub(crate) use disk::fs;
pub use disk::{DiskCounters, SimDisk};
pub use driver::{Sim, SimNode};
pub(crate) use net::{SimHandoff, SimListener, SimStream};
pub(crate) use process::{request_shutdown, shutdown_signal};
pub(crate) use task::{SimTask, spawn_local, yield_now};
pub(crate) use timer::{Sleep, sleep_until};

/// True while code of a simulated node runs on this thread.
pub(crate) fn active() -> bool {
    context::active()
}

/// The current node's monotonic clock. It drifts and restarts by the seed.
pub(crate) fn now() -> Instant {
    context::with(|core| core.node.now(&core.world))
}

/// The current node's clock that runs on while its machine is suspended.
pub(crate) fn boottime() -> Instant {
    context::with(|core| core.node.boottime(&core.world))
}

/// The current node's wall clock, which [`Sim::step_clock`] steps.
pub(crate) fn unix_time() -> UnixTime {
    context::with(|core| core.node.unix_time(&core.world))
}

/// The core whose code runs.
pub(crate) fn core() -> CoreId {
    context::with(|core| core.id)
}

/// How many cores the current node has.
pub(crate) fn cores() -> usize {
    context::with(|core| core.cores)
}

/// Lends out the current core's generator. Must not be nested.
pub(crate) fn with_rng<T>(work: impl FnOnce(&mut Prng) -> T) -> T {
    let core = context::current();
    let mut rng = core.rng.borrow_mut();
    work(&mut rng)
}

/// The counters of the current core.
pub(crate) fn metrics() -> Rc<CoreMetrics> {
    context::with(|core| core.metrics.clone())
}

/// Runs `work` as a helper thread would: a while from now, whether or not the caller still waits, and its result takes
/// another while to arrive. `work` runs in the context of the calling core.
pub(crate) fn blocking<T: 'static>(class: Class, work: impl FnOnce() -> T + 'static) -> LocalFuture<T> {
    let core = context::current();
    let world = core.world.clone();
    world.note(world::Note::Blocking, class as u64);
    let (promise, answer) = answer::promise();
    let drawn = world.config.helper.draw(&mut world.chance.helper.borrow_mut());
    let run = drawn.saturating_add(core.node.slow_helpers.get());
    let back = world.config.wake.draw(&mut world.chance.helper.borrow_mut());
    let (then, queued) = (world.clone(), class.index());
    add(&core.metrics.blocking_total[queued], 1);
    add(&core.metrics.blocking_queued[queued], 1);
    world.run_on(&core.clone(), run, move || {
        let value = work();
        less(&core.metrics.blocking_queued[queued]);
        then.run_on(&core, back, move || promise.keep(value));
    });
    Box::pin(answer)
}
