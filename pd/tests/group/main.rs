//! Members in the simulator, three at first, then those that were added and not removed, with clients that know only their URLs: power failures, clocks that step, networks
//! that part, members that stand still.
//!
//! The client's module is compiled here from `shard`'s folder, so that this needs no storage engine.

#[path = "../../../shard/src/pd_client/mod.rs"]
#[allow(dead_code, unreachable_pub, reason = "a module of another crate, of which this uses a part")]
mod pd_client;

mod calls;
mod clients;
mod world;

use base::Prng;
use pd::raft::Faults;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;
use world::World;

/// The group may take so long to serve again after the last fault.
const WHOLE_AGAIN: Duration = Duration::from_secs(5);

/// Runs one seed: its hash, batches of timestamps, writes, members removed.
fn run(seed: u64, faults: Faults) -> (u64, u64, u64, u64) {
    let world = World::new(seed, faults);
    world.start_all();
    world.start_clients();
    let mut prng = Prng::new(seed ^ 0xFA17);
    for _ in 0..14 {
        world.sim.run_for(Duration::from_millis(300 + prng.below(2_500)));
        world.disturb(&mut prng);
    }
    world.end_of_disturbance();
    let before = world.told.timestamps.get();
    let again = || world.told.timestamps.get() > before + 5;
    assert!(world.sim.run_until(WHOLE_AGAIN, again), "seed {seed}: nobody leads {WHOLE_AGAIN:?} after the last fault");
    world.sim.run_for(Duration::from_secs(2));
    world.check();
    let told = &world.told;
    (world.sim.event_hash(), told.timestamps.get(), told.writes.get(), told.removed.get())
}

#[test]
fn nothing_that_was_told_is_lost_or_told_twice() {
    let seeds = std::env::var("SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(12);
    let (mut timestamps, mut writes, mut removed) = (0, 0, 0);
    for seed in 0..seeds {
        let (_, more_timestamps, more_writes, more_removed) = run(seed, Faults::default());
        assert!(
            more_timestamps > 100 && more_writes > 50,
            "seed {seed}: {more_timestamps} batches, {more_writes} writes"
        );
        timestamps += more_timestamps;
        writes += more_writes;
        removed += more_removed;
    }
    println!("{seeds} seeds: {timestamps} batches of timestamps, {writes} writes, {removed} members removed");
    assert!(removed > seeds / 2, "{removed} members were removed in {seeds} seeds");
}

#[test]
fn the_same_seed_is_the_same_run() {
    assert_eq!(run(5, Faults::default()), run(5, Faults::default()));
}

#[test]
fn planted_mistakes_are_found() {
    let none = Faults::default();
    let planted = [
        ("bound of timestamps not persisted", Faults { bound_not_persisted: true, ..none }),
        ("answer before commit", Faults { answer_before_commit: true, ..none }),
        ("lease unchecked", Faults { lease_unchecked: true, ..none }),
    ];
    for (name, faults) in planted {
        let first = (0..40).find(|seed| catch_unwind(AssertUnwindSafe(|| run(*seed, faults))).is_err());
        println!("{name}: first found by seed {first:?}");
        assert!(first.is_some(), "{name} was not found");
    }
}
