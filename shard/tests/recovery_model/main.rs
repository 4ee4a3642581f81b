//! Random lives of a node whose two shards share overlapping ranges over time: writes, splits, destroyed peers, peers
//! that come with all their data, as files or in a record, moves between the shards, flushes at any write. Each story is told again and again, and ends
//! before each of its durable steps in turn; recovery, which may be cut short as well, must then lead to what a naive
//! model allows. RocksDB, its twin and the model agree.
//!
//! What is compared: the set of regions with their ranges, epochs, peers and shards; all data, so that nothing
//! acknowledged is missing and nothing of an ended peer is back; and that no peer takes back a term, a vote or a commit.
//!
//! More seeds: `BASALT_RECOVERY_SEEDS=200 cargo test --release -p shard --test recovery_model`.
//! Found by it: a vote that was forgotten when a peer's data came again as files (seed 51, cut before step 151).

mod follower;
mod killable;
mod model;
mod script;
mod world;

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;

use base::hash::fold;
use shard::core::PlantedFault;
use world::{Plan, Rocks, Store, Twins, World};

type Marks = BTreeMap<&'static str, u64>;

/// Things that happen in the life that is cut short.
const OPS: u64 = 20;
/// Things that happen after the recovery, which show that what was recovered works.
const OPS_AFTER: u64 = 4;
const NEVER: u64 = u64::MAX;

/// Tells the story of `seed` up to step `end_before`, and what follows. Returns the steps of the first life.
fn tell<S: Store>(
    seed: u64,
    end_before: u64,
    store: S,
    fault: Option<PlantedFault>,
    marks: &mut Marks,
) -> Result<u64, String> {
    let mut world = World::new(seed, store, fault);
    let steps = world.live(Plan { ops: OPS, end_before, close: false })?;
    if end_before != NEVER {
        // From here on the story depends on where it was cut.
        let mut draw = fold(seed, end_before);
        while draw % 2 == 1 {
            // Recovery is cut short, too.
            draw = fold(draw, 1);
            world.live(Plan { ops: 1, end_before: (draw >> 8) & 31, close: false })?;
        }
        let close = world.draw(3) == 0;
        world.live(Plan { ops: OPS_AFTER, end_before: NEVER, close })?;
    }
    world.live(Plan { ops: 0, end_before: NEVER, close: false })?;
    for (mark, count) in world.marks() {
        *marks.entry(mark).or_default() += count;
    }
    Ok(steps)
}

/// [`tell`], where a panic is a failure like others.
fn told<S: Store>(seed: u64, end_before: u64, store: S, fault: Option<PlantedFault>) -> Result<u64, String> {
    let story = AssertUnwindSafe(|| tell(seed, end_before, store, fault, &mut Marks::new()));
    std::panic::catch_unwind(story).unwrap_or_else(|_| Err("a panic".into()))
}

fn must<T>(result: Result<T, String>, seed: u64, end_before: u64) -> T {
    result.unwrap_or_else(|why| panic!("seed {seed}, cut before step {end_before}: {why}"))
}

fn seeds(usual: u64) -> u64 {
    std::env::var("BASALT_RECOVERY_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

/// Everything worth testing happened at all.
fn check_marks(marks: &Marks) {
    println!("{marks:?}");
    for mark in [
        "write",
        "split",
        "destroy",
        "ingest",
        "create",
        "replace",
        "without files",
        "move",
        "refusal",
        "flush",
        "close",
    ] {
        assert!(marks.contains_key(mark), "no {mark} in {marks:?}");
    }
}

#[test]
fn the_twin_is_killed_at_every_step_and_recovers_what_the_model_says() {
    let mut marks = Marks::new();
    let mut cuts = 0;
    // Besides the first ones, a story that found something.
    for seed in (0..seeds(6)).chain([51]) {
        let steps = must(tell(seed, NEVER, Twins::default(), None, &mut marks), seed, NEVER);
        for end_before in 0..steps {
            must(tell(seed, end_before, Twins::default(), None, &mut marks), seed, end_before);
        }
        cuts += steps;
    }
    println!("{cuts} cuts");
    check_marks(&marks);
}

/// Many stories, each cut in a few places only.
#[test]
fn the_twin_is_killed_somewhere_in_many_stories() {
    let mut marks = Marks::new();
    for seed in 1000..1000 + 10 * seeds(12) {
        let steps = must(tell(seed, NEVER, Twins::default(), None, &mut marks), seed, NEVER);
        for draw in 0..6 {
            let end_before = fold(seed, draw) % steps;
            must(tell(seed, end_before, Twins::default(), None, &mut marks), seed, end_before);
        }
    }
    check_marks(&marks);
}

#[test]
fn rocksdb_is_killed_at_many_steps_and_recovers_what_the_model_says() {
    let mut marks = Marks::new();
    for seed in 0..seeds(6) {
        let steps = must(tell(seed, NEVER, Rocks::new(), None, &mut marks), seed, NEVER);
        for draw in 0..10 {
            let end_before = fold(seed, draw) % steps;
            must(tell(seed, end_before, Rocks::new(), None, &mut marks), seed, end_before);
        }
    }
    check_marks(&marks);
}

/// A block of a log is spoiled after a life, whichever it is; an operator accepts what is lost, perhaps not at the first
/// try; everything that is left serves, and the story goes on.
#[test]
fn what_a_damaged_log_leaves_serves_once_an_operator_says_so() {
    let (mut damaged, mut kept, mut overlapping) = (0, 0, 0);
    for seed in 0..40 * seeds(6) {
        let mut world = World::new(seed, Twins::default(), None);
        must(world.live(Plan { ops: OPS, end_before: NEVER, close: seed % 3 == 0 }), seed, NEVER);
        world.spoil_a_block();
        let mut is_damaged = false;
        if seed % 5 == 0 {
            // A node that starts with a damaged log changes nothing.
            let opened = world.live(Plan { ops: 0, end_before: NEVER, close: false });
            is_damaged = opened.is_err_and(|why| why.contains("damage"));
        }
        if seed % 2 == 0 {
            let end_before = world.draw(12);
            is_damaged |= must(world.accept(end_before), seed, end_before).unwrap_or(false);
        }
        is_damaged |= must(world.accept(NEVER), seed, NEVER).expect("not cut short");
        if !must(world.give_up(), seed, NEVER) {
            overlapping += 1;
            continue;
        }
        let again = must(world.accept(NEVER), seed, NEVER).expect("not cut short");
        assert!(!again, "seed {seed}: accepted damage is still there");
        must(world.live(Plan { ops: OPS_AFTER, end_before: NEVER, close: false }), seed, NEVER);
        must(world.live(Plan { ops: 0, end_before: NEVER, close: false }), seed, NEVER);
        damaged += u64::from(is_damaged);
        kept += world.marks().get("kept").copied().unwrap_or(0);
    }
    println!("{damaged} damaged logs, {kept} regions kept, {overlapping} stories that end with two owners of a key");
    assert!(damaged > 20, "{damaged} of the stories had a damaged log");
    assert!(overlapping < damaged / 4, "{overlapping} of {damaged}");
}

/// A follower has acknowledged more than a snapshot holds that comes late. The leader counts on that.
#[test]
fn what_a_follower_acknowledged_behind_a_snapshot_stays() {
    for seed in 0..8 {
        let mut world = World::new(seed, Twins::default(), None);
        let is_late = seed % 2 == 0;
        must(world.tell(move |life| follower::gets_a_snapshot(life, is_late)), seed, NEVER);
        must(world.tell(follower::goes_on), seed, NEVER);
    }
}

/// What one shard alone can do wrong, and this test can see. The rest of the planted faults is for whole clusters.
const FAULTS: [PlantedFault; 10] = [
    PlantedFault::AnswerBeforeLog,
    PlantedFault::ForgetTail,
    PlantedFault::ForgetSplit,
    PlantedFault::SplitBeforeRecord,
    PlantedFault::FlushUnfinished,
    PlantedFault::EngineBeforeRecord,
    PlantedFault::EndWithoutFlush,
    PlantedFault::EndKeepsData,
    PlantedFault::ReplayPastEnd,
    PlantedFault::NoRedo,
];

/// The test of this test: what recovery and the turn could do wrong is noticed.
#[test]
fn every_planted_fault_is_caught() {
    for fault in FAULTS {
        let caught = (0..3000).find_map(|seed| {
            let steps = match told(seed, NEVER, Twins::default(), Some(fault)) {
                Ok(steps) => steps,
                Err(why) => return Some((seed, NEVER, why)),
            };
            (0..12).find_map(|draw| {
                let end_before = fold(seed, draw) % steps;
                let why = told(seed, end_before, Twins::default(), Some(fault)).err()?;
                Some((seed, end_before, why))
            })
        });
        let (seed, end_before, why) = caught.unwrap_or_else(|| panic!("{fault:?} was not noticed"));
        let why: String = why.chars().take(100).collect();
        println!("{fault:?} is noticed at seed {seed}, cut before step {end_before}: {why}");
    }
}
