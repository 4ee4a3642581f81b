//! The simulator as a program.
//!
//! `sim --seed 42` replays one seed, `sim --count 2000` runs many, `sim --scenario LoseVote --nodes 3` draws nothing but one
//! fault. `sim --plant NoSync --count 50` counts the seeds that find a mistake, `sim --planted --count 20` does so for each
//! one that can be planted. Ends with 1 if a seed failed, or a mistake was not found.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use basalt_tests::sim::{Fault, Focus, Plan, Report, World, planted};
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
    /// Nothing but this fault, in runs that are about leaders.
    #[arg(long)]
    scenario: Option<Fault>,
    /// A mistake that is made on purpose, in runs that are about it.
    #[arg(long)]
    plant: Option<PlantedFault>,
    /// All of them, one after the other.
    #[arg(long)]
    planted: bool,
    /// No fault for so many seconds, in which nobody may be elected without a cause.
    #[arg(long)]
    quiet: Option<u64>,
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
    if args.planted || (args.plant.is_some() && args.seed.is_none()) {
        return plant(&args);
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
        "{} seeds passed: {} operations, {} acknowledged writes, {} faults, {} restarts, {} writes looked \
         for on disks, {} damaged replicas, {} undecided keys, in {} s",
        sums.reports.len(),
        sum(|report| report.operations),
        sum(|report| report.acknowledged),
        sum(|report| report.faults),
        sum(|report| report.restarts),
        sum(|report| report.looked_for),
        sum(|report| report.damaged),
        sum(|report| report.undecided),
        started.elapsed().as_secs()
    );
    sums.failed.sort_unstable();
    if !sums.failed.is_empty() {
        eprintln!("failed: {:?}", sums.failed);
    }
    if !sums.failed.is_empty() {
        std::process::exit(1);
    }
}

fn work(args: &Args, next: &AtomicU64, end: u64, sums: &Mutex<Sums>) {
    loop {
        let seed = next.fetch_add(1, Ordering::Relaxed);
        if seed >= end {
            return;
        }
        let usual = Plan { nodes: args.nodes.max(1), merges: args.merges, only: args.scenario, ..Plan::default() };
        let focus = if args.scenario.is_some() { Focus::Leaders } else { usual.focus };
        let usual = Plan { focus, ..usual };
        let planted = args.plant.map(|fault| planted::plan(fault).unwrap_or(Plan { planted: Some(fault), ..usual }));
        let plan = planted.unwrap_or(usual);
        let plan = Plan { only: args.scenario.or(plan.only), ..plan };
        let quiet = args.quiet.map(std::time::Duration::from_secs);
        let result = catch_unwind(AssertUnwindSafe(|| {
            let world = World::new(seed, if quiet.is_some() { Plan { focus: Focus::Quiet, ..plan } } else { plan });
            if args.trace {
                world.trace();
            }
            match quiet {
                Some(duration) => world.run_quietly(duration),
                None => world.run(),
            }
        }));
        let mut sums = sums.lock().expect("no thread panics while it holds the sums");
        match result {
            Ok(report) => sums.reports.push(report),
            Err(_) => {
                eprintln!("seed {seed} failed");
                sums.failed.push(seed);
            }
        }
    }
}

/// Prints for each mistake how many seeds find it, and the first ones.
fn plant(args: &Args) {
    std::panic::set_hook(Box::new(|_| {}));
    let faults = PlantedFault::ALL.into_iter().filter(|fault| args.plant.is_none_or(|only| only == *fault));
    let mut is_missed = false;
    for fault in faults {
        let Some(plan) = planted::plan(fault) else {
            println!("{fault:?}: by the model test of recovery");
            continue;
        };
        let plan = Plan { only: args.scenario.or(plan.only), ..plan };
        let started = Instant::now();
        let (next, end) = (AtomicU64::new(args.from), args.from + args.count);
        let found = Mutex::new(Vec::new());
        std::thread::scope(|threads| {
            for _ in 0..args.jobs.max(1) {
                threads.spawn(|| {
                    loop {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        if seed >= end {
                            return;
                        }
                        if planted::is_found(seed, plan) {
                            found.lock().expect("no thread panics while it holds the list").push(seed);
                        }
                    }
                });
            }
        });
        let mut found = found.into_inner().expect("no thread panics while it holds the list");
        found.sort_unstable();
        is_missed |= found.is_empty();
        let (first, seconds) = (&found[..found.len().min(5)], started.elapsed().as_secs());
        println!("{fault:?}: {} of {} seeds, first {first:?}, in {seconds} s", found.len(), args.count);
    }
    if is_missed {
        std::process::exit(1);
    }
}
