//! `basalt perf bench`: the run, phase by phase.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use executor::{IoChoice, run_one};

use crate::cell::{self, Cell, Settings, Target};
use crate::child::{Child, Folder};
use crate::cluster::{Cluster, ClusterConfig, address};
use crate::cpus::Cpus;
use crate::report::{Machine, Report};
use crate::workload::{Carriage, Operation, Workload};
use crate::{empty, rocks};

/// Commands in flight of the cells of each path.
const IN_FLIGHT: [usize; 4] = [1, 16, 64, 256];

/// What to measure, and how long.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct BenchArgs {
    /// Half a second per cell instead of three, and fewer keys: a smoke test, not a measurement.
    #[arg(long)]
    quick: bool,
    /// Seconds per cell.
    #[arg(long)]
    seconds: Option<f64>,
    /// Write the results to this file, too.
    #[arg(long)]
    json: Option<PathBuf>,
    /// I/O backends of the servers, in turn.
    #[arg(long, value_delimiter = ',', default_value = "uring,epoll")]
    io: Vec<IoChoice>,
    /// Connections of the generator, if as many messages are in flight.
    #[arg(long, default_value_t = 4)]
    connections: usize,
    /// Number of keys that are read and written; default 100,000 (quick: 10,000).
    #[arg(long)]
    keys: Option<u64>,
    /// Seed of keys and values.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where the servers keep their data meanwhile; use a disk like that of production.
    #[arg(long, default_value = "basalt-bench-data")]
    data_dir: PathBuf,
    /// Allow a filesystem without O_DIRECT (tmpfs), where durable writes cost next to nothing.
    #[arg(long)]
    allow_buffered: bool,
}

/// What a phase needs to know.
#[derive(Clone)]
struct Run {
    settings: Settings,
    cpus: Cpus,
    folder: Arc<Folder>,
    allow_buffered: bool,
    security: net::TlsConfig,
}

/// Runs all phases and prints the report.
///
/// # Errors
/// Why a phase could not be finished. What was measured before is printed then.
pub(crate) fn run(args: &BenchArgs, security: net::TlsConfig) -> Result<(), String> {
    let (run, idle) = plan(args, security)?;
    let mut report = Report::new(Machine::read(), run.cpus, run.settings);
    let result = phases(args, &run, idle, &mut report);
    report.finish();
    print!("{}", report.render());
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&report).map_err(|error| error.to_string())?;
        std::fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    result
}

/// The run, and how long the empty node is watched.
fn plan(args: &BenchArgs, security: net::TlsConfig) -> Result<(Run, Duration), String> {
    let seconds = args.seconds.unwrap_or(if args.quick { 0.5 } else { 3.0 });
    if !(0.05..=3600.0).contains(&seconds) || args.connections == 0 || args.keys == Some(0) {
        return Err("a cell takes 0.05 to 3600 seconds, one connection and one key at least".into());
    }
    let window = Duration::from_secs_f64(seconds);
    let settings = Settings {
        warm_up: window / 4,
        window,
        connections: args.connections,
        keys: args.keys.unwrap_or(if args.quick { 10_000 } else { 100_000 }),
        seed: args.seed,
    };
    let run = Run {
        settings,
        cpus: Cpus::choose()?,
        folder: Arc::new(Folder::create(&args.data_dir)?),
        allow_buffered: args.allow_buffered,
        security,
    };
    let idle = Duration::from_secs(if args.quick { 3 } else { 10 });
    Ok((run, idle))
}

fn phases(args: &BenchArgs, run: &Run, idle: Duration, report: &mut Report) -> Result<(), String> {
    for io in &args.io {
        if let Err(error) = executor::preflight(*io, None) {
            report.note(format!("{io} was left out: {error}"));
            continue;
        }
        let (name, phase) = (io.to_string(), run.clone());
        report.cells.extend(run_one(IoChoice::Epoll, move || echo(phase, name))?);
        let (name, phase) = (io.to_string(), run.clone());
        report.cells.extend(run_one(IoChoice::Epoll, move || node(phase, name))?);
    }
    eprintln!("bare RocksDB");
    let phase = run.clone();
    report.rocks = run_one(IoChoice::Epoll, move || async move {
        let Settings { keys, window, seed, .. } = phase.settings;
        rocks::measure(&phase.folder.join("rocks"), phase.cpus, keys, window, seed).await
    })?;
    eprintln!("empty node");
    let phase = run.clone();
    report.empty = Some(run_one(IoChoice::Epoll, move || async move {
        empty::measure(&phase.folder.join("empty"), phase.allow_buffered, &phase.security, idle).await
    })?);
    Ok(())
}

/// The bare echo.
async fn echo(run: Run, io: String) -> Result<Vec<Cell>, String> {
    run.cpus.pin_to_server();
    let log = run.folder.join(&format!("echo-{io}.log"));
    let child = Child::start(&["perf", "echo-server", "--io", &io], &log).await?;
    run.cpus.pin_to_generator();
    let server = address(&child.ready["address"])?;
    let target = Target {
        address: server,
        status: server,
        pid: u32::try_from(child.ready["pid"].as_u64().unwrap_or(0)).unwrap_or(0),
        context: like_a_clients(),
        tls: None,
    };
    let cells = cells(&run.settings, &io, &target, &[Operation::Echo]).await;
    child.stop().await;
    cells
}

/// A context of the size that requests to a node carry.
fn like_a_clients() -> proto::kvrpcpb::Context {
    proto::kvrpcpb::Context {
        region_id: 2,
        region_epoch: Some(proto::metapb::RegionEpoch { conf_ver: 1, version: 1 }),
        peer: Some(proto::metapb::Peer { id: 3, store_id: 1, ..Default::default() }),
        ..Default::default()
    }
}

/// A node of one core.
async fn node(run: Run, io: String) -> Result<Vec<Cell>, String> {
    let folder = run.folder.join(&format!("node-{io}"));
    run.cpus.pin_to_server();
    let cluster = start(&run, &io, &folder).await?;
    run.cpus.pin_to_generator();
    eprintln!("{io}: loading {} keys", run.settings.keys);
    let load = Workload::new(Operation::Put, Carriage::Batched);
    let mut result = cell::load(&cluster.target, load, &run.settings).await.map(|()| Vec::new());
    if result.is_ok() {
        let operations = [Operation::Get, Operation::Put];
        result = cells(&run.settings, &io, &cluster.target, &operations).await;
    }
    cluster.stop().await;
    result
}

async fn start(run: &Run, io: &str, folder: &Path) -> Result<Cluster, String> {
    let security = &run.security;
    let config = ClusterConfig { io, cores: 1, folder, allow_buffered: run.allow_buffered, security };
    Cluster::start(config).await
}

async fn cells(settings: &Settings, io: &str, target: &Target, operations: &[Operation]) -> Result<Vec<Cell>, String> {
    let mut cells = Vec::new();
    for operation in operations {
        for carriage in [Carriage::Unary, Carriage::Batched] {
            let workload = Workload::new(*operation, carriage);
            for in_flight in IN_FLIGHT {
                let cell = cell::measure(io, target, workload, in_flight, settings).await?;
                eprintln!(
                    "{io}: {}, {in_flight} in flight: {:.0}/s, p99 {:.0} µs",
                    cell.path, cell.operations_per_second, cell.latency.p99
                );
                cells.push(cell);
            }
        }
    }
    Ok(cells)
}
