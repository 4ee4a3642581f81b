//! Members' nodes against an adversary, three at first, then whoever was added and not removed: messages that are late, lost, doubled and out of order, members cut off in
//! one direction or both, crashes that take what was not written, disks that are slow, pauses.
//!
//! After each millisecond: at most one member may answer as a leader; whoever begins to lead knows of all that was ever
//! answered; all members apply the same. And when the adversary rests, a leader is there within seconds, and all members
//! come to the same state.

mod world;

use pd::raft::Faults;
use std::panic::{AssertUnwindSafe, catch_unwind};
use world::{Counts, World};

/// Runs one seed.
fn run(seed: u64, faults: Faults) -> Counts {
    let mut world = World::new(seed, faults);
    for _ in 0..20_000 {
        world.millisecond(true);
    }
    world.rest();
    world.counts()
}

#[test]
fn one_leader_at_a_time_and_nothing_answered_is_lost() {
    let seeds = std::env::var("SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(60);
    let mut sum = Counts::default();
    for seed in 0..seeds {
        let counts = catch_unwind(|| run(seed, Faults::default())).unwrap_or_else(|_| panic!("seed {seed}"));
        assert!(counts.answered > 20, "seed {seed}: {counts:?}");
        sum.answered += counts.answered;
        sum.snapshots += counts.snapshots;
        sum.changed += counts.changed;
    }
    println!("{seeds} seeds: {sum:?}");
    assert!(sum.snapshots > seeds && sum.changed > seeds, "{seeds} seeds: {sum:?}");
}

#[test]
fn the_same_seed_is_the_same_run() {
    assert_eq!(run(3, Faults::default()), run(3, Faults::default()));
}

#[test]
fn planted_mistakes_are_found() {
    for (name, faults) in planted() {
        let finds = |seed| catch_unwind(AssertUnwindSafe(|| run(seed, faults))).is_err();
        let first = (0..200).find(|seed| finds(*seed));
        println!("{name}: first found by seed {first:?}");
        assert!(first.is_some(), "{name} was not found");
    }
}

fn planted() -> [(&'static str, Faults); 3] {
    let none = Faults::default();
    [
        ("promise before persist", Faults { promise_before_persist: true, ..none }),
        ("lease unchecked", Faults { lease_unchecked: true, ..none }),
        ("vote after restart", Faults { vote_after_restart: true, ..none }),
    ]
}
