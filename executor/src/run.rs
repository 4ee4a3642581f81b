//! Starting cores and waiting for their end.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Once, OnceLock};
use std::task::Poll;
use std::time::Duration;

use base::{CoreId, Prng};

use crate::context::{self, Core};
use crate::helpers::{HelperThreads, Helpers};
use crate::metrics::CoreMetrics;
use crate::preflight::{PreflightError, preflight};
use crate::remote::RemoteQueue;
use crate::task::Registry;
use crate::{
    Class, CoresConfig, Io, IoChoice, IoKind, LocalFuture, affinity, epoll, spawn_local, time, uring, watchdog,
};

/// Why the cores did not start. None of them has run anything then.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A configuration without cores, or with more than have numbers.
    #[error("cannot start {0} cores")]
    Count(usize),
    /// This machine does not allow what was asked for.
    #[error(transparent)]
    Preflight(#[from] PreflightError),
    /// A thread did not start.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
    /// A core's runtime did not start.
    #[error("core {core} cannot start")]
    Core {
        /// Which one.
        core: CoreId,
        /// What the runtime says.
        #[source]
        source: io::Error,
    },
}

/// Starts the cores, runs `main` on each, and returns when every core's `main` has returned.
///
/// When a core's `main` returns, what tasks it has left are dropped. A panic on a core, or in work that it gave to a
/// helper, is printed and ends the process: a shard that stops half-way must not look alive.
///
/// # Errors
/// [`StartError`] if not all cores can start; `main` has not run on any of them then.
pub fn run_cores(
    config: CoresConfig,
    main: impl Fn(CoreId) -> LocalFuture<()> + Send + Sync + 'static,
) -> Result<(), StartError> {
    if config.cores == 0 || config.cores > usize::from(u16::MAX) {
        return Err(StartError::Count(config.cores));
    }
    let io = preflight(config.io, None)?;
    abort_on_panic();
    let main = Arc::new(main);
    let node = Node::start(&config, &io, true)?;
    tracing::info!(
        cores = config.cores,
        pinned = !node.plan.cores.is_empty(),
        helpers = config.helpers.unwrap_or_else(|| default_helpers(config.cores)),
        io = %io.kind,
        reason = io.reason,
        locked_memory_suffices = uring::locked_memory_suffices(config.cores),
        "cores start"
    );
    let mut threads = Vec::new();
    let (report, reports) = channel();
    let mut started = Ok(());
    let mut gates = Vec::new();
    for number in 0..config.cores {
        let (gate, go) = channel();
        let seat = node.seat(&config, io.kind, number, report.clone(), go);
        let main = Arc::clone(&main);
        let id = seat.id;
        let thread = std::thread::Builder::new().name(format!("{}-{number}", config.name)).spawn(move || {
            FATAL.set(true);
            seat.run(move || main(id));
        });
        match thread {
            Ok(thread) => threads.push(thread),
            Err(error) => {
                started = Err(StartError::Thread(error));
                break;
            }
        }
        gates.push(gate);
    }
    drop(report);
    started = started.and_then(|()| all_ready(&reports, config.cores));
    for gate in gates {
        // A core that failed to start does not listen any more.
        let _ = gate.send(started.is_ok());
    }
    for thread in threads {
        if let Err(panic) = thread.join() {
            resume_unwind(panic);
        }
    }
    started
}

/// Runs one future on one unpinned core with two helpers, on a thread of its own, and returns its result: for tests and
/// small tools.
///
/// # Panics
/// If the core cannot start, or with the panic of the future, of any task of the core, or of its blocking work.
pub fn run_one<T, F>(io: IoChoice, main: impl FnOnce() -> F + Send + 'static) -> T
where
    T: Send + 'static,
    F: Future<Output = T> + 'static,
{
    let config = CoresConfig {
        io,
        pin: false,
        helpers: Some(2),
        name: "one".to_owned(),
        idle_spin: Duration::ZERO,
        ..CoresConfig::default()
    };
    let io = preflight(config.io, None).unwrap_or_else(|error| panic!("{error}"));
    let node = Node::start(&config, &io, false).unwrap_or_else(|error| panic!("{error:?}"));
    let (report, reports) = channel();
    let (gate, go) = channel();
    let seat = node.seat(&config, io.kind, 0, report, go);
    gate.send(true).expect("the core listens");
    let thread = std::thread::spawn(move || seat.run(main));
    all_ready(&reports, 1).unwrap_or_else(|error| panic!("{error:?}"));
    match thread.join() {
        Ok(Some(result)) => result,
        Ok(None) => panic!("the core did not start"),
        Err(panic) => resume_unwind(panic),
    }
}

fn all_ready(reports: &Receiver<(CoreId, io::Result<()>)>, cores: usize) -> Result<(), StartError> {
    for _ in 0..cores {
        match reports.recv() {
            Ok((_, Ok(()))) => {}
            Ok((core, Err(source))) => return Err(StartError::Core { core, source }),
            Err(_) => {
                return Err(StartError::Thread(io::Error::other("a core ended before it started")));
            }
        }
    }
    Ok(())
}

fn default_helpers(cores: usize) -> usize {
    (2 * cores).max(8)
}

/// What the cores of one process share.
struct Node {
    plan: affinity::Plan,
    helpers: HelperThreads,
    seed: u64,
}

impl Node {
    fn start(config: &CoresConfig, io: &Io, fatal: bool) -> Result<Node, StartError> {
        debug_assert_ne!(io.kind, IoKind::Sim);
        watchdog::prepare();
        let plan = affinity::Plan::new(&affinity::CpuSet::allowed(), config.cores, config.pin);
        let count = config.helpers.unwrap_or_else(|| default_helpers(config.cores));
        let helpers =
            Helpers::start(count, config.cores, &config.name, &plan.helpers, fatal).map_err(StartError::Thread)?;
        let seed = if config.seed == 0 { entropy() } else { config.seed };
        Ok(Node { plan, helpers, seed })
    }

    fn seat(
        &self,
        config: &CoresConfig,
        kind: IoKind,
        number: usize,
        report: Sender<(CoreId, io::Result<()>)>,
        go: Receiver<bool>,
    ) -> Seat {
        let id = CoreId(u16::try_from(number).expect("counted in run_cores"));
        Seat {
            id,
            kind,
            cores: config.cores,
            name: config.name.clone(),
            cpu: self.plan.cores.get(number).copied(),
            helper_cpus: self.plan.helpers.clone(),
            idle_spin: config.idle_spin,
            rng: Prng::new(base::hash::mix64(self.seed ^ base::hash::mix64(number as u64 + 1))),
            helpers: self.helpers.helpers(),
            report,
            go,
        }
    }
}

/// What one core's thread gets.
struct Seat {
    id: CoreId,
    kind: IoKind,
    cores: usize,
    name: String,
    cpu: Option<usize>,
    helper_cpus: affinity::CpuSet,
    idle_spin: Duration,
    rng: Prng,
    helpers: Arc<Helpers>,
    report: Sender<(CoreId, io::Result<()>)>,
    go: Receiver<bool>,
}

impl Seat {
    /// Runs the core on this thread until its `main` ends. `None` if it did not start, or was told not to.
    fn run<T: 'static, F: Future<Output = T> + 'static>(self, main: impl FnOnce() -> F) -> Option<T> {
        if let Some(cpu) = self.cpu
            && let Err(error) = affinity::pin(cpu)
        {
            tracing::warn!(core = self.id.0, cpu, %error, "cannot pin the core");
        }
        let core = Rc::new(Core {
            kind: self.kind,
            core: self.id,
            cores: self.cores,
            name: self.name,
            metrics: Rc::new(CoreMetrics::default()),
            rng: RefCell::new(self.rng),
            remote: Arc::new(RemoteQueue::default()),
            helpers: self.helpers,
            helper_cpus: self.helper_cpus,
            log_thread: OnceLock::new(),
            log_unsent: Cell::new(0),
            tasks: Registry::default(),
            queues: OnceLock::new(),
            panic: Cell::new(None),
            main: Cell::new(None),
            rounds: Rc::default(),
        });
        let _entered = context::enter(Rc::clone(&core));
        let (report, go, id) = (self.report, self.go, self.id);
        let ready = move |result: io::Result<()>| {
            let made = result.is_ok();
            report.send((id, result)).is_ok() && made && go.recv().unwrap_or(false)
        };
        let life = live(&core, main);
        let ended = match self.kind {
            IoKind::Epoll => epoll::run(ready, life),
            IoKind::Uring => uring::run(&uring::Settings { cpu: self.cpu, idle_spin: self.idle_spin }, ready, life),
            IoKind::Sim => unreachable!("the simulator runs its own cores"),
        };
        ended.map(|result| result.unwrap_or_else(|panic| resume_unwind(panic)))
    }
}

type Ended<T> = Result<T, Box<dyn Any + Send>>;

/// The life of a core: what keeps it going, `main`, and the end of all that is left.
async fn live<T: 'static, F: Future<Output = T> + 'static>(core: &Rc<Core>, main: impl FnOnce() -> F) -> Ended<T> {
    let dispatcher_done = keep(core, {
        let remote = Arc::clone(&core.remote);
        poll_fn(move |cx| remote.poll_dispatch(cx))
    });
    let rounds_done = keep(core, Rc::clone(&core.rounds).serve(core.kind));
    while !core.remote.is_open() {
        give_way().await;
    }
    let result = run_main(core, main).await;
    core.rounds.close();
    end_tasks(core).await;
    while core.log_unsent.get() > 0 {
        // Asleep, so that the runtime hears of the room that the log thread makes.
        time::sleep(Duration::from_millis(1)).await;
    }
    core.remote.close();
    while !(dispatcher_done.get() && rounds_done.get()) {
        give_way().await;
    }
    match core.panic.take() {
        Some(panic) => Err(panic),
        None => result,
    }
}

/// Starts one of the core's own tasks, which are in no register and so are not dropped with the others; the flag is set
/// when it has ended.
pub(crate) fn keep(core: &Rc<Core>, work: impl Future<Output = ()> + 'static) -> Rc<Cell<bool>> {
    let done = Rc::new(Cell::new(false));
    let ended = Rc::clone(&done);
    let task = async move {
        work.await;
        ended.set(true);
    };
    match core.kind {
        IoKind::Uring => uring::spawn_own(core, task),
        IoKind::Epoll => epoll::spawn(task),
        IoKind::Sim => unreachable!("the simulator runs its own cores"),
    }
    done
}

/// Runs `main` as a task like any other, until it ends or any task panics.
async fn run_main<T: 'static, F: Future<Output = T> + 'static>(core: &Rc<Core>, main: impl FnOnce() -> F) -> Ended<T> {
    let main = catch_unwind(AssertUnwindSafe(main))?;
    let mut main = spawn_local(Class::Foreground, main);
    poll_fn(|cx| {
        if let Some(panic) = core.panic.take() {
            return Poll::Ready(Err(panic));
        }
        core.main.set(Some(cx.waker().clone()));
        Pin::new(&mut main).poll(cx).map(Ok)
    })
    .await
}

/// Drops all tasks while the runtime still works. Tasks may start others while they are dropped, but not for ever.
async fn end_tasks(core: &Rc<Core>) {
    const LIMIT: Duration = Duration::from_secs(1);
    let began = time::now();
    while core.tasks.cancel_all() > 0 {
        if time::now().since(began) > LIMIT {
            tracing::warn!(core = core.core.0, tasks = core.metrics.tasks.get(), "tasks outlive their core");
            return;
        }
        give_way().await;
    }
}

/// Lets the other tasks of the core run.
async fn give_way() {
    if context::backend() == IoKind::Uring {
        // Waking ourselves would not do: glommio stays with a task queue for as long as that has something to run, and
        // the others are in other queues. We saw each core spin for `uring::PREEMPT`, ten seconds, at its start and
        // again at its end.
        return uring::Looked::default().await;
    }
    let mut gave = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut gave, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

thread_local! {
    /// Whether a panic of this thread ends the process.
    pub(crate) static FATAL: Cell<bool> = const { Cell::new(false) };
}

/// Lets a panic of a core, helper or log thread end the process, after it has been printed and logged.
fn abort_on_panic() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            before(panic);
            if FATAL.try_with(Cell::get).unwrap_or(false) {
                tracing::error!(%panic, "a core panicked: the process ends");
                std::process::abort();
            }
        }));
    });
}

fn entropy() -> u64 {
    let mut bytes = [0u8; 8];
    // SAFETY: `bytes` is a valid place of the given length.
    let filled = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if filled == 8 { u64::from_ne_bytes(bytes) } else { time::monotonic_nanos() ^ u64::from(std::process::id()) }
}
