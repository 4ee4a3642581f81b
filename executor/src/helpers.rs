//! Threads for work that blocks, apart from the cores.
//!
//! Every class has its queue, and within it every core has its own, served in turn, so that neither a noisy core nor
//! a noisy class starves another. Classes get helpers by their shares; scans and background work may each hold at most
//! half of the helpers, and together never all of them.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::task::Waker;

use base::CoreId;

use crate::metrics::{add, less};
use crate::oneshot::oneshot;
use crate::remote::WakePlace;
use crate::run::FATAL;
use crate::{Class, IoKind, affinity, context, sim};

/// Jobs that one core may have waiting in one class; beyond, `blocking` waits.
const QUEUE_MAX: usize = 1024;

/// Runs `work` on a helper thread and waits for its result.
///
/// The work begins when this is first polled and runs to its end, even if the future is dropped. A panic in it ends
/// the process. In the simulator it runs on the simulated core's own thread.
pub async fn blocking<T: Send + 'static>(
    class: Class,
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
    if context::backend() == IoKind::Sim {
        return sim::blocking(class, work).await;
    }
    let core = context::current();
    let (fill, filled) = oneshot();
    // In `run_cores` a panic ends the process before it unwinds; under `run_one` it comes back to the caller.
    let mut job: Option<Job> = Some(Box::new(move || {
        fill.fill(catch_unwind(AssertUnwindSafe(work)))
    }));
    let mut place = WakePlace::default();
    std::future::poll_fn(|cx| {
        core.helpers
            .poll_submit(class, core.core, &mut job, || place.waker(cx))
    })
    .await;
    place.clear();
    let metrics = &core.metrics;
    add(&metrics.blocking_total[class.index()], 1);
    add(&metrics.blocking_queued[class.index()], 1);
    let _queued = Queued { metrics, class };
    filled.await.unwrap_or_else(|panic| resume_unwind(panic))
}

/// Lowers the gauge even if the caller goes away. The job may then still run, unseen by the gauge.
struct Queued<'a> {
    metrics: &'a crate::CoreMetrics,
    class: Class,
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        less(&self.metrics.blocking_queued[self.class.index()]);
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// The helpers of one process, shared by its cores.
pub(crate) struct Helpers {
    state: Mutex<State>,
    work: Condvar,
}

struct State {
    queues: [ClassQueue; Class::COUNT],
    idle: usize,
    ended: bool,
}

struct ClassQueue {
    /// One per core.
    cores: Vec<VecDeque<Job>>,
    /// Tasks that wait for room in their core's queue.
    waiting: Vec<Waker>,
    /// The core to serve next.
    turn: usize,
    queued: usize,
    running: usize,
    /// The most helpers that may run this class.
    most: usize,
    /// Work received, by shares: the class with the least is served next.
    served: u64,
}

impl ClassQueue {
    fn pop(&mut self) -> Option<Job> {
        let cores = self.cores.len();
        for step in 0..cores {
            let at = (self.turn + step) % cores;
            if let Some(job) = self.cores[at].pop_front() {
                self.turn = (at + 1) % cores;
                self.queued -= 1;
                return Some(job);
            }
        }
        None
    }
}

impl State {
    /// The next job that may run, and who is to be told of the room in its queue.
    fn next(&mut self, helpers: usize) -> Option<(Class, Job, Vec<Waker>)> {
        let long = |state: &State| {
            state.queues[Class::Scan.index()].running
                + state.queues[Class::Background.index()].running
        };
        let long_full = helpers > 1 && long(self) >= helpers - 1;
        let class = Class::ALL
            .into_iter()
            .filter(|class| {
                let queue = &self.queues[class.index()];
                let is_long = matches!(class, Class::Scan | Class::Background);
                queue.queued > 0 && queue.running < queue.most && !(is_long && long_full)
            })
            .min_by_key(|class| self.queues[class.index()].served)?;
        let queue = &mut self.queues[class.index()];
        let job = queue.pop()?;
        queue.running += 1;
        queue.served += u64::from(1_000_000 / class.shares());
        Some((class, job, std::mem::take(&mut queue.waiting)))
    }

    /// A class that was idle does not bring its unused share along.
    fn wake_class(&mut self, class: Class) {
        let least = Class::ALL
            .into_iter()
            .map(|other| &self.queues[other.index()])
            .filter(|queue| queue.queued + queue.running > 0)
            .map(|queue| queue.served)
            .min();
        let queue = &mut self.queues[class.index()];
        if queue.queued + queue.running == 0
            && let Some(least) = least
        {
            queue.served = queue.served.max(least);
        }
    }
}

/// The helpers' threads; ends and joins them when dropped.
pub(crate) struct HelperThreads {
    helpers: Arc<Helpers>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Helpers {
    /// Starts `count` helpers (at least 1) for `cores` cores on `cpus`. If `fatal`, a panic in one ends the process.
    pub(crate) fn start(
        count: usize,
        cores: usize,
        name: &str,
        cpus: &affinity::CpuSet,
        fatal: bool,
    ) -> io::Result<HelperThreads> {
        let count = count.max(1);
        let queue = |class: Class| ClassQueue {
            cores: (0..cores).map(|_| VecDeque::new()).collect(),
            waiting: Vec::new(),
            turn: 0,
            queued: 0,
            running: 0,
            most: match class {
                Class::Foreground | Class::Raft => count,
                Class::Scan | Class::Background => (count / 2).max(1),
            },
            served: 0,
        };
        let helpers = Arc::new(Helpers {
            state: Mutex::new(State {
                queues: Class::ALL.map(queue),
                idle: 0,
                ended: false,
            }),
            work: Condvar::new(),
        });
        let mut started = HelperThreads {
            helpers: Arc::clone(&helpers),
            threads: Vec::new(),
        };
        for number in 0..count {
            let helpers = Arc::clone(&helpers);
            let cpus = cpus.clone();
            let thread = std::thread::Builder::new()
                .name(format!("{name}-h{number}"))
                .spawn(move || {
                    FATAL.set(fatal);
                    // A helper that may not leave the caller's CPUs works all the same.
                    let _ = cpus.apply();
                    helpers.serve(count);
                })?;
            started.threads.push(thread);
        }
        Ok(started)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self, count: usize) {
        let mut state = self.lock();
        loop {
            if let Some((class, job, waiting)) = state.next(count) {
                drop(state);
                for waker in waiting {
                    waker.wake();
                }
                job();
                state = self.lock();
                state.queues[class.index()].running -= 1;
                // What this class's limit or the common one held back may run now, on this helper.
            } else if state.ended {
                return;
            } else {
                state.idle += 1;
                state = self
                    .work
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
                state.idle -= 1;
            }
        }
    }

    fn poll_submit(
        &self,
        class: Class,
        core: CoreId,
        job: &mut Option<Job>,
        waker: impl FnOnce() -> Waker,
    ) -> std::task::Poll<()> {
        let mut state = self.lock();
        if state.queues[class.index()].cores[usize::from(core.0)].len() >= QUEUE_MAX {
            state.queues[class.index()].waiting.push(waker());
            return std::task::Poll::Pending;
        }
        state.wake_class(class);
        let queue = &mut state.queues[class.index()];
        queue.cores[usize::from(core.0)].push_back(job.take().expect("submitted once"));
        queue.queued += 1;
        let idle = state.idle > 0;
        drop(state);
        if idle {
            self.work.notify_one();
        }
        std::task::Poll::Ready(())
    }
}

impl HelperThreads {
    pub(crate) fn helpers(&self) -> Arc<Helpers> {
        Arc::clone(&self.helpers)
    }
}

impl Drop for HelperThreads {
    fn drop(&mut self) {
        self.helpers.lock().ended = true;
        self.helpers.work.notify_all();
        for thread in self.threads.drain(..) {
            // A helper that panicked in `run_one` has nothing more to say.
            let _ = thread.join();
        }
    }
}
