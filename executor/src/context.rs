//! What a core's thread knows of itself.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::{Arc, OnceLock};
use std::task::Waker;

use base::{CoreId, Prng};

use crate::affinity::CpuSet;
use crate::helpers::Helpers;
use crate::logio::LogThread;
use crate::metrics::CoreMetrics;
use crate::remote::RemoteQueue;
use crate::rounds::Rounds;
use crate::task::Registry;
use crate::{IoKind, sim, uring};

/// One core of a running process. The simulator has its own.
pub(crate) struct Core {
    pub(crate) kind: IoKind,
    pub(crate) core: CoreId,
    pub(crate) cores: usize,
    pub(crate) name: String,
    pub(crate) metrics: Rc<CoreMetrics>,
    pub(crate) rng: RefCell<Prng>,
    pub(crate) remote: Arc<RemoteQueue>,
    pub(crate) helpers: Arc<Helpers>,
    pub(crate) helper_cpus: CpuSet,
    pub(crate) log_thread: OnceLock<LogThread>,
    /// Operations that found the log thread's queue full. The core ends when they are in it.
    pub(crate) log_unsent: Cell<u64>,
    pub(crate) tasks: Registry,
    /// glommio's task queues, one per class; only on io_uring.
    pub(crate) queues: OnceLock<uring::Queues>,
    /// What the first panicking task left, until the core's main loop ends with it.
    pub(crate) panic: Cell<Option<Box<dyn Any + Send>>>,
    /// Wakes the core's main loop, to look at `panic`.
    pub(crate) main: Cell<Option<Waker>>,
    /// Sees to it that the rings are looked at; only on io_uring.
    pub(crate) rounds: Rc<Rounds>,
}

impl Core {
    /// Ends the core with a task's panic.
    pub(crate) fn fail(&self, panic: Box<dyn Any + Send>) {
        self.panic.set(Some(panic));
        if let Some(main) = self.main.take() {
            main.wake();
        }
    }
}

thread_local! {
    static CORE: RefCell<Option<Rc<Core>>> = const { RefCell::new(None) };
}

/// Runs `look` on this thread's core; `None` if the thread is none (a helper, the simulator, a plain thread).
pub(crate) fn try_with<T>(look: impl FnOnce(&Rc<Core>) -> T) -> Option<T> {
    CORE.try_with(|core| core.borrow().as_ref().map(look)).ok().flatten()
}

/// This thread's core.
#[track_caller]
pub(crate) fn current() -> Rc<Core> {
    match try_with(Rc::clone) {
        Some(core) => core,
        None => panic!("called outside of a core: only tasks started by run_cores, run_one or the simulator may"),
    }
}

/// Makes `core` this thread's core until the guard drops.
pub(crate) fn enter(core: Rc<Core>) -> Entered {
    CORE.with(|slot| {
        let before = slot.borrow_mut().replace(core);
        assert!(before.is_none(), "a thread runs one core at a time");
    });
    Entered
}

/// See [`enter`].
pub(crate) struct Entered;

impl Drop for Entered {
    fn drop(&mut self) {
        let core = CORE.with(|slot| slot.borrow_mut().take());
        drop(core);
    }
}

/// The backend of the running task.
#[track_caller]
pub(crate) fn backend() -> IoKind {
    match try_with(|core| core.kind) {
        Some(kind) => kind,
        None if sim::active() => IoKind::Sim,
        None => panic!("called outside of a core: only tasks started by run_cores, run_one or the simulator may"),
    }
}

/// The core that the running task lives on.
#[track_caller]
pub fn core() -> CoreId {
    match backend() {
        IoKind::Sim => sim::core(),
        IoKind::Uring | IoKind::Epoll => current().core,
    }
}

/// How many cores the node of the running task has.
#[track_caller]
pub fn cores() -> usize {
    match backend() {
        IoKind::Sim => sim::cores(),
        IoKind::Uring | IoKind::Epoll => current().cores,
    }
}

/// What the running task's core does its I/O with.
#[track_caller]
pub fn io_kind() -> IoKind {
    backend()
}

/// The counters of the running task's core.
#[track_caller]
pub fn metrics() -> Rc<CoreMetrics> {
    match backend() {
        IoKind::Sim => sim::metrics(),
        IoKind::Uring | IoKind::Epoll => Rc::clone(&current().metrics),
    }
}

/// Draws from the core's own random numbers, seeded by [`CoresConfig::seed`](crate::CoresConfig::seed). Not for secrets.
///
/// `draw` must not call `with_rng` itself.
#[track_caller]
pub fn with_rng<T>(draw: impl FnOnce(&mut Prng) -> T) -> T {
    match backend() {
        IoKind::Sim => sim::with_rng(draw),
        IoKind::Uring | IoKind::Epoll => draw(&mut current().rng.borrow_mut()),
    }
}
