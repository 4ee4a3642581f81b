//! `basalt`: the one binary. It reads the command line, wires the crates together and handles signals.

mod config;
mod ctl;
mod dev;
mod pd;
mod security;
mod serve;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "basalt", version, about = "A distributed, transactional key-value store that speaks TiKV's protocol")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start a whole cluster on this machine: a placement driver and nodes, each a process of its own.
    Dev(dev::DevArgs),
    /// Run one node.
    Serve(serve::ServeArgs),
    /// Run a placement driver.
    Pd(pd::PdArgs),
    /// Look into a running cluster: stores, regions, get, put, scan. Look for damage in a stopped node's folder.
    Ctl(ctl::CtlArgs),
    /// Measure a cluster and this machine.
    Perf(PerfArgs),
}

#[derive(clap::Args)]
struct PerfArgs {
    #[command(flatten)]
    security: security::SecurityArgs,
    #[command(flatten)]
    perf: perf::PerfArgs,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    init_logs();
    let result = match cli.command {
        Command::Dev(args) => dev::run(args),
        Command::Serve(args) => serve::run(args),
        Command::Pd(args) => pd::run(args),
        Command::Ctl(args) => ctl::run(args),
        Command::Perf(args) => perf::run(args.perf, args.security.config()).map_err(Into::into),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("basalt: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Logs go to standard error: `BASALT_LOG` says which (default `info`), `BASALT_LOG_FORMAT=json` how.
fn init_logs() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("BASALT_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if std::env::var("BASALT_LOG_FORMAT").is_ok_and(|format| format == "json") {
        builder.json().init();
    } else {
        builder.with_ansi(false).init();
    }
}
