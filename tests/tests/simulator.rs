//! The simulator in CI: seeds that once found a bug, a window that moves with the commit, and the proof that a seed is
//! the same run in every process.

use std::process::Command;
use std::time::Duration;

use basalt_tests::sim::{Fault, Focus, Plan, World, planted, run};
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
        3004, // a first region was ended for one that had lost itself, and that a heartbeat had brought to PD
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

/// Small regions merge all the time, as others split, while nodes fail.
#[test]
fn regions_that_merge_lose_nothing() {
    let found = [
        5006, // a region moved to another shard while a snapshot of it came in, and the older copy won
        5034, // as before: two regions had the same keys
        5073, // a source whose log was damaged was in the way of its target for good
        6184, // a snapshot took acknowledged entries behind its end along
    ];
    let mut merged = 0;
    for seed in (20..26).chain(found) {
        merged += run(seed, Plan { nodes: 3, merges: true, ..Plan::default() }).merged;
    }
    println!("{merged} regions have merged");
    assert!(merged > 20, "{merged} regions have merged");
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

/// Five nodes, with three replicas of each region or five.
#[test]
fn five_nodes_lose_nothing() {
    for seed in 20..25 {
        run(seed, Plan { nodes: 5, ..Plan::default() });
    }
}

/// Minutes in which nothing happens to the cluster, while clients write and regions split.
#[test]
fn nobody_is_elected_without_a_cause() {
    for seed in 1..3 {
        let plan = Plan { nodes: 3, focus: Focus::Quiet, ..Plan::default() };
        let report = World::new(seed, plan).run_quietly(Duration::from_secs(300));
        assert!(report.regions > 1 && report.operations > 1000, "{report:?}");
    }
}

/// One fault of several steps, again and again, while all ask all who take themselves for the leader.
#[test]
fn faults_of_several_steps_lose_nothing() {
    let faults = [
        Fault::RestartBehindCut,
        Fault::LoseVote,
        Fault::LateAnswers,
        Fault::CutUntilReplaced,
        Fault::HandOverBehindSlowLink,
        Fault::ThereAndBack,
        Fault::SlowThenLost,
    ];
    let mut looked_for = 0;
    for fault in faults {
        let plan = Plan { nodes: 3, focus: Focus::Leaders, only: Some(fault), ..Plan::default() };
        for seed in 1..3 {
            looked_for += run(seed, Plan { operations: 1000, duration: Duration::from_secs(30), ..plan }).looked_for;
        }
    }
    assert!(looked_for > 0, "no acknowledged write was looked for on the disks");
}

/// A block of one node's log is damaged: the replicas that it was about are made anew, and nothing is lost.
#[test]
fn replicas_whose_log_is_damaged_are_replaced() {
    let mut damaged = 0;
    // Not every run damages a block that is needed.
    for seed in 1..13 {
        if seed > 4 && damaged > 0 {
            break;
        }
        let plan = Plan { nodes: 3, focus: Focus::Crashes, only: Some(Fault::DamagedBlock), ..Plan::default() };
        damaged += run(seed, Plan { operations: 1000, duration: Duration::from_secs(30), ..plan }).damaged;
    }
    assert!(damaged > 0);
}

/// Seeds that are tried for each mistake.
const TRIES: u64 = 12;

/// Each mistake that can be planted and that few seeds find; `sim --planted --count 20` counts for all in how many.
#[test]
fn mistakes_that_are_planted_are_found() {
    for fault in PlantedFault::ALL {
        let Some(plan) = planted::plan(fault) else { continue };
        let finder = (1..=TRIES).find(|seed| planted::is_found(*seed, plan));
        let finder = finder.unwrap_or_else(|| panic!("no seed up to {TRIES} finds {fault:?}"));
        println!("{fault:?} is found by seed {finder}");
    }
}

#[test]
fn a_node_that_is_asked_to_stop_answers_the_writes_under_way() {
    for seed in 0..10 {
        World::new(seed, Plan::default()).stop_with_writes_under_way();
    }
}

#[test]
fn a_node_whose_disk_is_full_refuses_what_takes_room_and_nothing_else() {
    for seed in 0..5 {
        World::new(seed, Plan { focus: Focus::Quiet, ..Plan::default() }).fill_the_only_disk();
    }
}

#[test]
fn a_full_disk_costs_a_group_nothing_until_most_are_full() {
    for seed in 0..5 {
        World::new(seed, Plan { nodes: 3, focus: Focus::Quiet, ..Plan::default() }).fill_disks_of_many();
    }
}

#[test]
fn a_leader_whose_machine_was_suspended_does_not_read_by_its_old_lease() {
    let plan = Plan { nodes: 3, focus: Focus::Quiet, ..Plan::default() };
    for seed in 0..5 {
        World::new(seed, plan).suspend_a_leader();
        let planted = Plan { planted: Some(PlantedFault::LeaseByOneClock), ..plan };
        let run = std::panic::catch_unwind(|| World::new(seed, planted).suspend_a_leader());
        assert!(run.is_err(), "seed {seed}: a lease by one clock is not found");
    }
}

#[test]
fn hot_regions_of_one_core_come_to_lie_on_both() {
    let plan = Plan { focus: Focus::Quiet, ..Plan::default() };
    for seed in 0..5 {
        let spread = World::new(seed, plan).read_hot_regions_of_one_core(Duration::from_millis(200));
        assert_eq!(spread, [2, 2], "seed {seed}");
    }
    let stayed = World::new(0, plan).read_hot_regions_of_one_core(Duration::ZERO);
    assert_eq!(stayed, [0, 4], "without a look at the load");
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
