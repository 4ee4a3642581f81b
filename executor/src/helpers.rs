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
pub async fn blocking<T: Send + 'static>(class: Class, work: impl FnOnce() -> T + Send + 'static) -> T {
    if context::backend() == IoKind::Sim {
        return sim::blocking(class, work).await;
    }
    let core = context::current();
    let (fill, filled) = oneshot();
    // In `run_cores` a panic ends the process before it unwinds; under `run_one` it comes back to the caller.
    let mut job: Option<Job> = Some(Box::new(move || fill.fill(catch_unwind(AssertUnwindSafe(work)))));
    let (mut place, mut in_line) = (WakePlace::default(), None);
    std::future::poll_fn(|cx| core.helpers.poll_submit(class, core.core, &mut job, &mut in_line, || place.waker(cx)))
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

/// What one core has queued in one class.
#[derive(Default)]
struct CoreQueue {
    jobs: VecDeque<Job>,
    /// Tasks that wait for room, each once. All are woken when half of the queue is free, and queue up again if that
    /// does not suffice: waking one for each job that leaves would need to know which of those woken are still there.
    waiting: Vec<Waker>,
    /// How often those who waited were woken.
    wakes: u64,
}

impl CoreQueue {
    fn pop(&mut self) -> Option<(Job, Vec<Waker>)> {
        let job = self.jobs.pop_front()?;
        if self.waiting.is_empty() || self.jobs.len() > QUEUE_MAX / 2 {
            return Some((job, Vec::new()));
        }
        self.wakes += 1;
        Some((job, std::mem::take(&mut self.waiting)))
    }

    /// Takes the place in line that a task has, or a new one.
    fn wait(&mut self, in_line: &mut Option<u64>, waker: Waker) {
        // Not woken since: the waker in line has been pointed at the task by making this one.
        if in_line.replace(self.wakes) != Some(self.wakes) {
            self.waiting.push(waker);
        }
    }
}

struct ClassQueue {
    cores: Vec<CoreQueue>,
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
    fn new(class: Class, cores: usize, helpers: usize) -> ClassQueue {
        ClassQueue {
            cores: (0..cores).map(|_| CoreQueue::default()).collect(),
            turn: 0,
            queued: 0,
            running: 0,
            most: match class {
                Class::Foreground | Class::Raft => helpers,
                Class::Scan | Class::Background => (helpers / 2).max(1),
            },
            served: 0,
        }
    }

    fn pop(&mut self) -> Option<(Job, Vec<Waker>)> {
        let cores = self.cores.len();
        for step in 0..cores {
            let at = (self.turn + step) % cores;
            if let Some(popped) = self.cores[at].pop() {
                self.turn = (at + 1) % cores;
                self.queued -= 1;
                return Some(popped);
            }
        }
        None
    }
}

impl State {
    /// The next job that may run, and who is to be told of the room in its queue.
    fn next(&mut self, helpers: usize) -> Option<(Class, Job, Vec<Waker>)> {
        let long =
            |state: &State| state.queues[Class::Scan.index()].running + state.queues[Class::Background.index()].running;
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
        let (job, waiting) = queue.pop()?;
        queue.running += 1;
        queue.served += u64::from(1_000_000 / class.shares());
        Some((class, job, waiting))
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
        let helpers = Arc::new(Helpers {
            state: Mutex::new(State {
                queues: Class::ALL.map(|class| ClassQueue::new(class, cores, count)),
                idle: 0,
                ended: false,
            }),
            work: Condvar::new(),
        });
        let mut started = HelperThreads { helpers: Arc::clone(&helpers), threads: Vec::new() };
        for number in 0..count {
            let helpers = Arc::clone(&helpers);
            let cpus = cpus.clone();
            let thread = std::thread::Builder::new().name(format!("{name}-h{number}")).spawn(move || {
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
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.idle -= 1;
            }
        }
    }

    /// Queues the job, or gets in line for room; `in_line` is the caller's own note of that.
    fn poll_submit(
        &self,
        class: Class,
        core: CoreId,
        job: &mut Option<Job>,
        in_line: &mut Option<u64>,
        waker: impl FnOnce() -> Waker,
    ) -> std::task::Poll<()> {
        let mut state = self.lock();
        let queue = &mut state.queues[class.index()].cores[usize::from(core.0)];
        if queue.jobs.len() >= QUEUE_MAX {
            queue.wait(in_line, waker());
            return std::task::Poll::Pending;
        }
        state.wake_class(class);
        let queue = &mut state.queues[class.index()];
        queue.cores[usize::from(core.0)].jobs.push_back(job.take().expect("submitted once"));
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

#[cfg(test)]
mod tests {
    use super::*;

    const HELPERS: usize = 4;

    fn state(cores: usize) -> State {
        State { queues: Class::ALL.map(|class| ClassQueue::new(class, cores, HELPERS)), idle: 0, ended: false }
    }

    fn submit(state: &mut State, class: Class, core: usize, job: impl FnOnce() + Send + 'static) {
        state.wake_class(class);
        let queue = &mut state.queues[class.index()];
        queue.cores[core].jobs.push_back(Box::new(job));
        queue.queued += 1;
    }

    fn next(state: &mut State) -> Option<Class> {
        state.next(HELPERS).map(|(class, _, _)| class)
    }

    #[test]
    fn long_work_never_takes_all_helpers() {
        let mut state = state(1);
        for _ in 0..10 {
            submit(&mut state, Class::Scan, 0, || ());
            submit(&mut state, Class::Background, 0, || ());
        }
        let mut taken: Vec<Class> = std::iter::from_fn(|| next(&mut state)).collect();
        taken.sort_unstable();
        assert_eq!(taken.len(), HELPERS - 1);
        assert!(taken.iter().filter(|class| **class == Class::Scan).count() <= HELPERS / 2);
        assert!(taken.iter().filter(|class| **class == Class::Background).count() <= HELPERS / 2);
        submit(&mut state, Class::Foreground, 0, || ());
        assert_eq!(next(&mut state), Some(Class::Foreground));
    }

    #[test]
    fn classes_are_served_by_their_shares() {
        let mut state = state(1);
        for _ in 0..200 {
            submit(&mut state, Class::Foreground, 0, || ());
            submit(&mut state, Class::Scan, 0, || ());
        }
        let mut counts = [0; Class::COUNT];
        for _ in 0..120 {
            let class = next(&mut state).expect("more work");
            counts[class.index()] += 1;
            state.queues[class.index()].running -= 1;
        }
        assert_eq!(counts[Class::Foreground.index()], 100);
        assert_eq!(counts[Class::Scan.index()], 20);
    }

    #[test]
    fn a_class_that_was_idle_does_not_catch_up() {
        let mut state = state(1);
        for _ in 0..100 {
            submit(&mut state, Class::Background, 0, || ());
            assert_eq!(next(&mut state), Some(Class::Background));
            state.queues[Class::Background.index()].running -= 1;
        }
        for _ in 0..10 {
            submit(&mut state, Class::Background, 0, || ());
        }
        for _ in 0..100 {
            submit(&mut state, Class::Foreground, 0, || ());
        }
        let first: Vec<Class> = (0..22)
            .map(|_| {
                let class = next(&mut state).expect("more work");
                state.queues[class.index()].running -= 1;
                class
            })
            .collect();
        assert!(first.contains(&Class::Background), "{first:?}");
    }

    #[test]
    fn cores_of_a_class_are_served_in_turn() {
        let mut state = state(3);
        let (report, order) = std::sync::mpsc::channel();
        for core in [0, 0, 0, 2, 1] {
            let report = report.clone();
            submit(&mut state, Class::Raft, core, move || report.send(core).expect("received below"));
        }
        while let Some((_, job, _)) = state.next(HELPERS) {
            job();
            state.queues[Class::Raft.index()].running -= 1;
        }
        drop(report);
        assert_eq!(order.iter().collect::<Vec<_>>(), [0, 1, 2, 0, 0]);
    }
}
