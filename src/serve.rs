//! `basalt serve`: one node.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use base::ShardId;
use shard::core::ApiMode;
use shard::engine::rocks::{BlockCache, RocksEngine, RocksOptions};
use shard::engine::{RawFormat, TtlFilter};
use shard::node::{EngineSource, Node, NodeConfig, NodeReady, run_core};

use crate::config::{Config, Error, NodeLine};

#[derive(clap::Args)]
pub(crate) struct ServeArgs {
    /// Addresses of the placement driver, `host:port`, separated by commas.
    #[arg(long, value_delimiter = ',', required_unless_present = "join", env = "BASALT_PD")]
    pd: Vec<String>,
    /// The same, for a node that joins a cluster that is there: it never makes a new one, and refuses to start where it
    /// would have to.
    #[arg(long, value_delimiter = ',', value_name = "PD")]
    join: Vec<String>,
    /// Folder that holds everything of this node.
    #[arg(long, env = "BASALT_DATA_DIR")]
    data_dir: PathBuf,
    /// Where clients connect; port 0 picks a free one.
    #[arg(long, default_value = "127.0.0.1:20160")]
    addr: SocketAddr,
    /// The address that clients are told; default: the one that was bound.
    #[arg(long, default_value = "")]
    advertise_addr: String,
    /// Where the status page is; port 0 picks a free one.
    #[arg(long, default_value = "127.0.0.1:20180")]
    status_addr: SocketAddr,
    /// Number of cores; 0 takes every CPU that this process may use.
    #[arg(long, default_value_t = 0)]
    cores: usize,
    /// How cores do I/O: auto, uring or epoll.
    #[arg(long, default_value = "auto")]
    io: executor::IoChoice,
    /// Do not pin cores to CPUs. More cores than CPUs are never pinned.
    #[arg(long)]
    no_pin: bool,
    /// Spin for a moment before a core sleeps: lower latency, more CPU when idle.
    #[arg(long, default_value_t = 20)]
    idle_spin_us: u64,
    /// Allow a filesystem without O_DIRECT (tmpfs): every write goes through the page cache. For tests.
    #[arg(long)]
    allow_buffered: bool,
    /// A fault to plant, for tests that must notice it: no-sync, late-sync, hang or fail.
    #[arg(long, default_value = "none", hide = true)]
    plant: executor::LogFault,
    /// End when the process that started this one ends.
    #[arg(long, hide = true)]
    die_with_parent: bool,
    /// Configuration file (TOML, TiKV's names).
    #[arg(long)]
    config: Option<PathBuf>,
}

/// Opens RocksDB for each shard; the block cache is the node's.
pub(crate) struct RocksSource {
    cache: BlockCache,
    options: RocksOptions,
    unix_seconds: Arc<AtomicU64>,
}

impl EngineSource for RocksSource {
    type Engine = RocksEngine;
    fn open(&self, _shard: ShardId, dir: &Path) -> Result<RocksEngine, String> {
        RocksEngine::open(dir, &self.cache, &self.options).map_err(|error| error.to_string())
    }
    fn tick(&self, unix_seconds: u64) {
        self.unix_seconds.store(unix_seconds, Ordering::Relaxed);
    }
}

pub(crate) fn run(args: ServeArgs) -> Result<(), Error> {
    if args.die_with_parent {
        executor::die_with_parent()?;
    }
    let config = Config::load(args.config.as_deref())?;
    std::fs::create_dir_all(&args.data_dir).map_err(|error| format!("{}: {error}", args.data_dir.display()))?;
    executor::LogFile::allow_buffered(args.allow_buffered);
    args.plant.plant();
    let io = executor::preflight(args.io, Some(&args.data_dir))?;
    tracing::info!(kind = ?io.kind, reason = io.reason, "I/O backend");
    let cores = if args.cores == 0 { executor::allowed_cpus() } else { args.cores };
    let node_config = NodeConfig {
        listen: args.addr,
        advertise: args.advertise_addr,
        status_listen: args.status_addr,
        joins: !args.join.is_empty(),
        pd: if args.join.is_empty() { args.pd } else { args.join },
        data_dir: args.data_dir,
        disk: config.disk,
        cores,
        api: config.api(),
        labels: config.labels.clone(),
        shard: config.shard(),
        snapshots: config.snapshots,
        log: config.log()?,
        server: server_config(&config, cores)?,
        region_heartbeat: config.pd_heartbeat,
        store_heartbeat: config.pd_store_heartbeat,
        config_json: config.to_json(),
        spread: Default::default(),
        seed: 0,
    };
    let source = RocksSource::new(&config);
    let node = Node::new(node_config, source, io, print_ready);
    let main_node = node.clone();
    executor::run_cores(
        executor::CoresConfig {
            cores,
            io: args.io,
            pin: !args.no_pin,
            idle_spin: std::time::Duration::from_micros(args.idle_spin_us),
            name: "basalt".into(),
            ..Default::default()
        },
        move |core| Box::pin(run_core(main_node.clone(), core)),
    )?;
    match node.failure() {
        Some(why) => Err(why.into()),
        None => Ok(()),
    }
}

/// Connections take at most half of the files that this process may open: the engine, which cannot go on without a file
/// that it asks for, has the other half. Requests, windows and answers of all cores take at most a sixteenth of the
/// machine's memory each, where that is less than their usual bounds.
fn server_config(config: &Config, cores: usize) -> Result<net::ServerConfig, Error> {
    let defaults = net::ServerConfig::default();
    let files = executor::open_files_max() / 2 / cores as u64;
    let bytes = (executor::memory_bytes() / 16 / cores as u64).max(32 << 20);
    Ok(net::ServerConfig {
        gzip: config.gzip,
        tls: config.security.clone().load()?,
        connections_max: defaults.connections_max.min(files.max(1)),
        core_window_bytes: defaults.core_window_bytes.min(bytes),
        core_inbound_bytes: defaults.core_inbound_bytes.min(bytes),
        core_outbound_bytes: defaults.core_outbound_bytes.min(bytes),
        ..defaults
    })
}

/// An eighth of the machine's memory, between 64 MiB and 4 GiB: taken only as it fills.
fn block_cache_bytes(config: &Config) -> usize {
    let bytes = config.block_cache.unwrap_or_else(|| (executor::memory_bytes() / 8).clamp(64 << 20, 4 << 30));
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

impl RocksSource {
    pub(crate) fn new(config: &Config) -> RocksSource {
        let unix_seconds = Arc::new(AtomicU64::new(0));
        let format = match config.api() {
            ApiMode::V1 => RawFormat::V1,
            ApiMode::V1Ttl => RawFormat::V1Ttl,
            ApiMode::V2 => RawFormat::V2,
        };
        let ttl = Some(TtlFilter::new(format, unix_seconds.clone())).filter(TtlFilter::is_needed);
        RocksSource {
            cache: BlockCache::new(block_cache_bytes(config)),
            options: RocksOptions { ttl, ..Default::default() },
            unix_seconds,
        }
    }
}

fn print_ready(ready: NodeReady) {
    let line = NodeLine {
        store_id: ready.store_id,
        address: ready.address,
        status: ready.status,
        pid: std::process::id(),
        cores: ready.cores,
        io: ready.io,
    };
    println!("{}", serde_json::json!({ "ready": line }));
}
