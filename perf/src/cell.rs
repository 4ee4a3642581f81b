//! One cell of the table: a workload with so many in flight against one server, and what everything counted meanwhile.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use base::Prng;
use executor::Class;
use proto::kvrpcpb::Context;

use crate::connection::{self, Client, Keys, Phase, Progress};
use crate::latency::LatencySummary;
use crate::metrics::Counters;
use crate::procfs::{self, ProcSample};
use crate::syscalls::SyscallCounter;
use crate::workload::Workload;

/// How long the answers to the last requests may take.
const DRAIN_TIME: Duration = Duration::from_secs(20);
/// Longest that loading the keys may take.
const LOAD_TIME: Duration = Duration::from_secs(120);

/// The server that is measured.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// Where it serves gRPC.
    pub(crate) address: SocketAddr,
    /// Where it serves `/metrics`.
    pub(crate) status: SocketAddr,
    pub(crate) pid: u32,
    /// What requests carry.
    pub(crate) context: Context,
    /// The generator's certificates, if the server wants some.
    pub(crate) tls: Option<net::Tls>,
}

/// What is common to the cells of a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    pub(crate) warm_up: Duration,
    pub(crate) window: Duration,
    pub(crate) connections: usize,
    pub(crate) keys: u64,
    pub(crate) seed: u64,
}

/// One line of the table.
#[derive(Clone, Debug, serde::Serialize)]
pub(crate) struct Cell {
    /// The server's I/O backend.
    pub(crate) io: String,
    pub(crate) path: String,
    pub(crate) in_flight: usize,
    pub(crate) connections: usize,
    pub(crate) operations: u64,
    pub(crate) seconds: f64,
    pub(crate) operations_per_second: f64,
    /// In microseconds.
    pub(crate) latency: LatencySummary,
    pub(crate) per_operation: PerOperation,
    /// CPUs that the server, the generator, and all other processes of the machine kept busy.
    pub(crate) server_cpus: f64,
    pub(crate) generator_cpus: f64,
    pub(crate) other_cpus: f64,
    pub(crate) server_resident_bytes: u64,
}

/// What the server did for one command, on average.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub(crate) struct PerOperation {
    /// CPU time of all its threads, in microseconds, and the part of it in the kernel.
    pub(crate) cpu_micros: f64,
    pub(crate) system_micros: f64,
    pub(crate) context_switches: f64,
    /// System calls, counted in a window of their own; where that is not allowed, `read` and `write` calls alone.
    pub(crate) system_calls: f64,
    pub(crate) are_calls_exact: bool,
    pub(crate) socket_reads: f64,
    pub(crate) socket_writes: f64,
    pub(crate) durable_writes: f64,
    pub(crate) log_bytes: f64,
    pub(crate) device_bytes: f64,
}

/// How long system calls are counted.
const CALLS_WINDOW: std::time::Duration = std::time::Duration::from_millis(500);

/// Counters at one moment.
struct Moment {
    counters: Counters,
    /// Commands answered when `counters` arrived.
    counted: u64,
    server: ProcSample,
    generator: u64,
    machine: u64,
    commands: u64,
    at: base::Instant,
}

impl Moment {
    async fn take(target: &Target, progress: &Progress) -> Result<Moment, String> {
        let counters = Counters::fetch(target.status, target.tls.as_ref()).await?;
        let counted = progress.commands.get();
        Ok(Moment {
            counters,
            counted,
            server: ProcSample::read(target.pid)?,
            generator: procfs::thread_cpu_nanos(),
            machine: procfs::machine_cpu_nanos(),
            commands: progress.commands.get(),
            at: executor::now(),
        })
    }
}

/// Measures one cell.
///
/// # Errors
/// What the server complains about, or why it does not answer.
pub(crate) async fn measure(
    io: &str,
    target: &Target,
    workload: Workload,
    in_flight: usize,
    settings: &Settings,
) -> Result<Cell, String> {
    let keys = Keys::Random { count: settings.keys };
    let (progress, running) = start(target, workload, in_flight, keys, settings);
    executor::sleep(settings.warm_up).await;
    let before = Moment::take(target, &progress).await?;
    progress.phase.set(Phase::Measure);
    executor::sleep(settings.window).await;
    // Recording stops first, so that latencies are not those of a generator that reads files.
    progress.phase.set(Phase::WarmUp);
    let after = Moment::take(target, &progress).await?;
    let calls = calls_per_command(target, &progress).await;
    progress.phase.set(Phase::Stop);
    let connections = running.len();
    finish(running, DRAIN_TIME).await?;
    let mut cell = summarize(&before, &after, &progress)?;
    cell.io = io.to_owned();
    cell.path = workload.name().to_owned();
    cell.in_flight = in_flight;
    cell.connections = connections;
    if let Some(calls) = calls {
        cell.per_operation.system_calls = calls;
        cell.per_operation.are_calls_exact = true;
    }
    Ok(cell)
}

/// Writes every key once.
///
/// # Errors
/// What the server complains about.
pub(crate) async fn load(target: &Target, workload: Workload, settings: &Settings) -> Result<(), String> {
    let keys = Keys::EachOnce { count: settings.keys };
    let (_, running) = start(target, workload, 256, keys, settings);
    finish(running, LOAD_TIME).await
}

type Running = Vec<executor::Task<Result<(), String>>>;

/// Starts the connections of a cell: no more than there are messages in flight.
fn start(
    target: &Target,
    workload: Workload,
    in_flight: usize,
    keys: Keys,
    settings: &Settings,
) -> (Rc<Progress>, Running) {
    let progress = Rc::new(Progress::new());
    let commands = workload.commands(in_flight);
    let messages = in_flight.div_ceil(commands);
    let connections = settings.connections.clamp(1, messages);
    let mut prng = Prng::new(settings.seed);
    let running = (0..connections).map(|number| {
        let slots = messages / connections + usize::from(number < messages % connections);
        let size = (slots, commands);
        let client = Client::new(workload, &target.context, size, keys, prng.fork(), Rc::clone(&progress));
        executor::spawn_local(Class::Foreground, connection::run(target.address, target.tls.clone(), client))
    });
    let running = running.collect();
    (progress, running)
}

async fn finish(running: Running, limit: Duration) -> Result<(), String> {
    let all = async {
        for task in running {
            task.await?;
        }
        Ok(())
    };
    executor::timeout(limit, all).await.map_err(|_| format!("requests unanswered after {} s", limit.as_secs()))?
}

/// The server's system calls for one command, while the load goes on and nothing else is measured.
async fn calls_per_command(target: &Target, progress: &Progress) -> Option<f64> {
    let mut counter = SyscallCounter::open(target.pid)?;
    let (calls, commands) = (counter.count(), progress.commands.get());
    executor::sleep(CALLS_WINDOW).await;
    let (calls, commands) = (counter.count() - calls, progress.commands.get() - commands);
    (commands > 0).then(|| calls as f64 / commands as f64)
}

fn summarize(before: &Moment, after: &Moment, progress: &Progress) -> Result<Cell, String> {
    let operations = after.commands - before.commands;
    if operations == 0 || progress.latency.borrow().count() == 0 {
        return Err("nothing was answered while it was measured".into());
    }
    let nanos = after.at.since(before.at).as_nanos() as f64;
    let server = after.server.since(&before.server);
    let generator = after.generator.saturating_sub(before.generator) as f64;
    let machine = after.machine.saturating_sub(before.machine) as f64;
    let cpu = server.cpu_nanos() as f64;
    let each = |total: f64| total / operations as f64;
    let counted = (after.counted - before.counted).max(1) as f64;
    let counter = |name: &str| after.counters.since(&before.counters, name) / counted;
    Ok(Cell {
        io: String::new(),
        path: String::new(),
        in_flight: 0,
        connections: 0,
        operations,
        seconds: nanos / 1e9,
        operations_per_second: operations as f64 / (nanos / 1e9),
        latency: progress.latency.borrow().summary(),
        per_operation: PerOperation {
            cpu_micros: each(cpu) / 1000.0,
            system_micros: each(cpu) / 1000.0 * server.system_share(),
            context_switches: each((server.switches_voluntary + server.switches_forced) as f64),
            system_calls: each((server.read_calls + server.write_calls) as f64),
            are_calls_exact: false,
            socket_reads: counter("basalt_net_socket_reads_total"),
            socket_writes: counter("basalt_net_socket_writes_total"),
            durable_writes: counter("basalt_core_log_durable_total"),
            log_bytes: counter("basalt_core_log_bytes_total"),
            device_bytes: each(server.device_bytes as f64),
        },
        server_cpus: cpu / nanos,
        generator_cpus: generator / nanos,
        other_cpus: ((machine - cpu - generator) / nanos).max(0.0),
        server_resident_bytes: server.resident_bytes,
    })
}
