//! Three members' nodes against an adversary: messages that are late, lost, doubled and out of order, members cut off in
//! one direction or both, crashes that take what was not written, disks that are slow, pauses.
//!
//! After each millisecond: at most one member may answer as a leader; whoever begins to lead knows of all that was ever
//! answered; all members apply the same. And when the adversary rests, a leader is there within seconds, and all members
//! come to the same state.

mod world;

use pd::raft::Faults;
use std::panic::{AssertUnwindSafe, catch_unwind};
use world::World;

/// Runs one seed; how many proposals were answered, and how many snapshots were taken over.
fn run(seed: u64, faults: Faults) -> (u64, u64) {
    let mut world = World::new(seed, faults);
    for _ in 0..20_000 {
        world.millisecond(true);
    }
    world.rest();
    world.counts()
}

#[test]
fn one_leader_at_a_time_and_nothing_answered_is_lost() {
    let (mut answered, mut snapshots) = (0, 0);
    for seed in 0..60 {
        let (more_answered, more_snapshots) = run(seed, Faults::default());
        assert!(more_answered > 20, "seed {seed}: only {more_answered} proposals were answered");
        answered += more_answered;
        snapshots += more_snapshots;
    }
    println!("{answered} proposals answered, {snapshots} snapshots taken over");
    assert!(snapshots > 60, "only {snapshots} snapshots were taken over");
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
