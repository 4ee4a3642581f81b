//! The simulator as a program.
//!
//! `sim --seed 42` replays one seed, `sim --count 2000` runs many, `sim --count 50 --planted NoSync` shows that a
//! mistake is found. Ends with 1 if a seed failed (with `--planted`: if none did).

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use basalt_tests::sim::{Plan, Report, World};
use clap::Parser;
use shard::core::PlantedFault;
use tracing_subscriber::filter::LevelFilter;

#[derive(Parser)]
struct Args {
    /// One seed, with the log of the node on standard error.
    #[arg(long)]
    seed: Option<u64>,
    /// So many seeds.
    #[arg(long, default_value_t = 200)]
    count: u64,
    /// The first of them.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// Seeds that run at the same time, each on a thread of its own.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Nodes of the cluster.
    #[arg(long, default_value_t = 1)]
    nodes: usize,
    /// Small regions are merged.
    #[arg(long)]
    merges: bool,
    /// A mistake that the node makes on purpose: ends with the first seed that finds it.
    #[arg(long)]
    planted: Option<PlantedFault>,
    /// Print the event hash of each seed.
    #[arg(long)]
    hashes: bool,
    /// With `--seed`: more of the log.
    #[arg(long)]
    verbose: bool,
    /// Print every step.
    #[arg(long)]
    trace: bool,
}

#[derive(Default)]
struct Sums {
    reports: Vec<Report>,
    failed: Vec<u64>,
}

fn main() {
    let args = Args::parse();
    let (from, count) = args.seed.map_or((args.from, args.count), |seed| (seed, 1));
    if args.seed.is_some() {
        let level = if args.verbose { LevelFilter::DEBUG } else { LevelFilter::INFO };
        tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).with_max_level(level).init();
    }
    let started = Instant::now();
    let (next, sums) = (AtomicU64::new(from), Mutex::new(Sums::default()));
    std::thread::scope(|threads| {
        for _ in 0..args.jobs.clamp(1, count as usize) {
            threads.spawn(|| work(&args, &next, from + count, &sums));
        }
    });
    let mut sums = sums.into_inner().expect("no thread panics while it holds the sums");
    sums.reports.sort_by_key(|report| report.seed);
    if args.seed.is_some() || args.hashes {
        sums.reports.iter().for_each(|report| match args.hashes {
            true => println!("{} {:016x}", report.seed, report.event_hash),
            false => println!("{report:?}"),
        });
    }
    let sum = |field: fn(&Report) -> u64| sums.reports.iter().map(field).sum::<u64>();
    eprintln!(
        "{} seeds passed: {} operations, {} acknowledged writes, {} faults, {} restarts, in {} s",
        sums.reports.len(),
        sum(|report| report.operations),
        sum(|report| report.acknowledged),
        sum(|report| report.faults),
        sum(|report| report.restarts),
        started.elapsed().as_secs()
    );
    sums.failed.sort_unstable();
    if !sums.failed.is_empty() {
        eprintln!("failed: {:?}", sums.failed);
    }
    if sums.failed.is_empty() == args.planted.is_some() {
        std::process::exit(1);
    }
}

fn work(args: &Args, next: &AtomicU64, end: u64, sums: &Mutex<Sums>) {
    loop {
        let seed = next.fetch_add(1, Ordering::Relaxed);
        if seed >= end {
            return;
        }
        let plan = Plan { planted: args.planted, nodes: args.nodes.max(1), merges: args.merges, ..Plan::default() };
        let result = catch_unwind(AssertUnwindSafe(|| {
            let world = World::new(seed, plan);
            if args.trace {
                world.trace();
            }
            world.run()
        }));
        let mut sums = sums.lock().expect("no thread panics while it holds the sums");
        match result {
            Ok(report) => sums.reports.push(report),
            Err(_) => {
                eprintln!("seed {seed} failed");
                sums.failed.push(seed);
                if args.planted.is_some() {
                    next.store(end, Ordering::Relaxed);
                }
            }
        }
    }
}
