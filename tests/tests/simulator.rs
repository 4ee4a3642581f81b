//! The simulator in CI: seeds that once found a bug, a window that moves with the commit, and the proof that a seed is
//! the same run in every process.

use std::panic::catch_unwind;
use std::process::Command;

use basalt_tests::sim::{Plan, World, run};
use shard::core::PlantedFault;

/// Seeds that found a bug once; each line says which.
const REGRESSIONS: [u64; 3] = [
    1,   // a node did not make its data folder
    140, // a log went on after a failed sync as if its last block were durable
    147, // a node hung at its start when its placement driver was away
];

/// Seeds of this window.
const WINDOW: u64 = 100;

#[test]
fn seeds_that_found_bugs_pass() {
    for seed in REGRESSIONS {
        run(seed, Plan::default());
    }
}

/// Three nodes, to which the placement driver gives replicas while they fail, and are cut off from each other.
#[test]
fn three_nodes_lose_nothing() {
    let found = [
        6,    // nodes that started together each kept a first region
        1032, // a voter was counted that had no log, and nobody could be elected to send it one
        1117, // two snapshots of one region were installed on two shards of a node
    ];
    let (mut regions, mut replicas) = (0, 0);
    for seed in (20..32).chain(found) {
        let report = run(seed, Plan { nodes: 3, ..Plan::default() });
        regions += report.regions;
        replicas += report.replicas;
    }
    println!("{replicas} replicas of {regions} regions");
    assert!(replicas > 2 * regions, "{replicas} replicas of {regions} regions");
}

#[test]
fn a_window_of_seeds_derived_from_the_commit_passes() {
    let commit =
        Command::new("git").args(["rev-parse", "HEAD"]).output().map(|output| output.stdout).unwrap_or_default();
    let first = base::hash::fold_bytes(0, &commit) >> 16;
    println!("seeds {first} to {}", first + WINDOW - 1);
    for seed in first..first + WINDOW {
        let report = run(seed, Plan::default());
        assert!(report.operations >= 2000 && report.faults >= 3, "{report:?}");
    }
}

/// Those that a few seeds find; `sim --count 100 --planted ReadTooEarly` takes about sixty, and what
/// `SplitBeforeRecord` breaks needs a crash between two steps, which the model test of recovery tries one by one.
#[test]
fn mistakes_that_are_planted_are_found() {
    use PlantedFault::{AnswerBeforeLog, FlushUnfinished, ForgetSplit, ForgetTail, MoveUnfrozen, NoLatches, NoSync};
    for planted in [AnswerBeforeLog, FlushUnfinished, ForgetSplit, ForgetTail, MoveUnfrozen, NoLatches, NoSync] {
        let plan = Plan { planted: Some(planted), ..Plan::default() };
        let finder = (1..=10).find(|seed| catch_unwind(|| run(*seed, plan)).is_err());
        assert!(finder.is_some(), "no seed up to 10 finds {planted:?}");
    }
}

#[test]
fn a_node_that_is_asked_to_stop_answers_the_writes_under_way() {
    for seed in 0..10 {
        World::new(seed, Plan::default()).stop_with_writes_under_way();
    }
}

#[test]
fn the_same_seed_is_the_same_run_in_another_process() {
    let program = std::env::current_exe().expect("this program");
    for seed in [3, 4, 5] {
        let here = run(seed, Plan::default());
        let output = Command::new(&program)
            .args(["--exact", "child_prints_a_hash", "--include-ignored", "--nocapture"])
            .env("BASALT_SIM_SEED", seed.to_string())
            .output()
            .expect("a child");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let there = text.lines().find_map(|line| line.split("hash=").nth(1)).map(str::trim);
        assert_eq!(there, Some(here.event_hash.to_string().as_str()), "seed {seed}: {text}");
    }
}

/// Run by the test above in another process; by itself it checks nothing new.
#[test]
fn child_prints_a_hash() {
    let seed = std::env::var("BASALT_SIM_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(3);
    println!("hash={}", run(seed, Plan::default()).event_hash);
}
