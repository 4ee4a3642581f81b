//! Load generator and benchmark reports: `basalt perf`.
//!
//! ```text
//!   bench ── child: a node, or an echo server, pinned to the first CPU
//!     │        ▲ gRPC                       ▲ /proc, /metrics
//!     ├── cell ┴ connection × n, last CPU ──┴ counters before and after   one line of the table
//!     ├── rocks   the engine's calls, nothing around them
//!     └── empty   a node without work; time to the first answer
//! ```
//!
//! The generator speaks HTTP/2 by itself (`frames`): messages are encoded once and only keys and values are patched
//! in, answers are checked by their first bytes. A full client costs as much CPU as the server, and would be what is
//! measured.
//!
//! It never: leaves the loopback interface, holds more requests in flight than it was told, or ends processes that it
//! did not start.

mod bench;
mod cell;
mod child;
mod cluster;
mod connection;
mod cpus;
mod deframe;
mod echo_server;
mod empty;
mod frames;
mod latency;
mod metrics;
mod procfs;
mod report;
mod rocks;
mod syscalls;
mod table;
mod template;
mod workload;

/// What `basalt perf` is asked to do.
#[derive(clap::Args)]
pub struct PerfArgs {
    #[command(subcommand)]
    command: PerfCommand,
}

#[derive(clap::Subcommand)]
enum PerfCommand {
    /// Measure raw get and put, the bare HTTP/2 echo and bare RocksDB on this machine, and print a table.
    Bench(bench::BenchArgs),
    /// The bare HTTP/2 echo, which `bench` starts.
    #[command(hide = true)]
    EchoServer(echo_server::EchoServerArgs),
}

/// Runs what was asked for. With `security`, the nodes that are measured have these certificates, and so has the
/// generator; the bare echo stays without.
///
/// # Errors
/// In words: what did not start, answer or fit.
pub fn run(args: PerfArgs, security: net::TlsConfig) -> Result<(), String> {
    match args.command {
        PerfCommand::Bench(args) => bench::run(&args, security),
        PerfCommand::EchoServer(args) => echo_server::run(&args),
    }
}
