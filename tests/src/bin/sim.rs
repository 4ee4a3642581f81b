//! The simulator as a program: `sim --seed 42` runs one seed, `sim --count 2000` runs many.

use clap::Parser;

#[derive(Parser)]
struct Args {
    /// One seed.
    #[arg(long)]
    seed: Option<u64>,
    /// So many seeds.
    #[arg(long, default_value_t = 200)]
    count: u64,
    /// The first of them.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// Print every step.
    #[arg(long)]
    trace: bool,
}

fn main() {
    let args = Args::parse();
    let (from, count) = args.seed.map_or((args.from, args.count), |seed| (seed, 1));
    if args.seed.is_some() {
        tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    }
    let (mut operations, mut restarts, mut faults) = (0, 0, 0);
    for seed in from..from + count {
        eprint!("\rseed {seed}   ");
        let plan = basalt_tests::sim::Plan::default();
        let world = basalt_tests::sim::World::new(seed, plan);
        if args.trace {
            world.trace();
        }
        let report = world.run();
        operations += report.operations;
        restarts += report.restarts;
        faults += report.faults;
        if args.seed.is_some() {
            println!("{report:?}");
        }
    }
    eprintln!();
    println!("{count} seeds passed: {operations} operations, {faults} faults, {restarts} restarts");
}
