//! The scheduler against a naive cluster: it brings the cluster to where it should be, never costs a quorum, and ends.
//!
//! Every check is shown to be able to fail, by a fault that is planted in the model.

mod checks;
mod world;

use checks::*;
use pd::schedule::ScheduleConfig;
use proto::metapb::StoreState;
use std::time::Duration;
use world::{Checked, Plant, World};

const SEEDS: u64 = 4;
const REGIONS: u64 = 60;
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// A scenario by its seed, with a fault or without.
type Scenario = fn(u64, Option<Plant>) -> Checked;

/// Runs a scenario over all seeds.
fn holds(scenario: Scenario) {
    for seed in 0..SEEDS {
        scenario(seed, None).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
}

/// The check whose words these are fails with the fault, at least for one seed.
fn fails(scenario: Scenario, plant: Plant, words: &str) {
    let mut found = Vec::new();
    for seed in 0..SEEDS {
        match scenario(seed, Some(plant)) {
            Err(error) if error.contains(words) => return,
            other => found.push(other),
        }
    }
    panic!("{plant:?} should end with {words:?}: {found:?}");
}

fn no_merges() -> ScheduleConfig {
    ScheduleConfig { max_merge_region_size: 0, ..ScheduleConfig::default() }
}

/// A cluster of `stores`, each a zone of its own, on which the regions have spread.
fn spread(seed: u64, stores: u64, plant: Option<Plant>) -> Result<World, String> {
    let mut world = World::new(seed, REGIONS, 10, no_merges(), None);
    (2..=stores).for_each(|store| world.join(store, store));
    world.run_until_quiet(2 * HOUR)?;
    replicas_are(&world, 3)?;
    world.plant = plant;
    Ok(world)
}

/// Two nodes join one that has everything. One message in ten is lost on the way.
fn grow(seed: u64, plant: Option<Plant>) -> Checked {
    let mut world = World::new(seed, REGIONS, 10, no_merges(), plant);
    world.loss = if seed.is_multiple_of(2) { 0 } else { 10 };
    world.run_for(5 * MINUTE)?;
    operators_are_at_most(&world, 0)?;
    world.join(2, 2);
    world.run_for(5 * MINUTE)?;
    operators_are_at_most(&world, 0)?;
    world.join(3, 3);
    world.run_until_quiet(2 * HOUR)?;
    replicas_are(&world, 3)?;
    leaders_are_even(&world, &[1, 2, 3])?;
    // Two new peers and two thirds of a leader for each region, and what lost messages cost.
    operators_are_at_most(&world, 5 * REGIONS)
}

#[test]
fn one_node_becomes_three() {
    holds(grow);
}

#[test]
fn leaders_that_stay_or_are_left_alone_and_peers_that_do_not_come_are_found() {
    fails(grow, Plant::LeadersStay, "it does not end");
    fails(grow, Plant::NoBalance, "the leaders are not even");
    fails(grow, Plant::AddsVanish, "it does not end");
}

/// A node is taken out.
fn drain(seed: u64, plant: Option<Plant>) -> Checked {
    let mut world = spread(seed, 4, plant)?;
    world.stores.get_mut(&2).expect("a store").state = StoreState::Offline;
    let before = world.created("");
    world.run_until_quiet(2 * HOUR)?;
    is_empty(&world, 2)?;
    replicas_are(&world, 3)?;
    leaders_are_even(&world, &[1, 3, 4])?;
    operators_are_at_most(&world, before + 3 * REGIONS)
}

#[test]
fn a_node_that_leaves_is_emptied() {
    holds(drain);
}

#[test]
fn peers_that_do_not_go_are_found() {
    fails(drain, Plant::RemovesVanish, "it does not end");
}

/// A node dies.
fn die(seed: u64, plant: Option<Plant>) -> Checked {
    let mut world = spread(seed, 4, None)?;
    world.kill(3);
    let patience = world.scheduler.config().max_store_down_time;
    if plant == Some(Plant::Impatient) {
        world.configure(|config| config.max_store_down_time = MINUTE);
    }
    world.run_for(patience - MINUTE)?;
    if world.created("replace-down-replica") > 0 {
        return Err("peers were replaced before their time".into());
    }
    world.run_for(2 * MINUTE)?;
    world.run_until_quiet(2 * HOUR)?;
    is_empty(&world, 3)?;
    replicas_are(&world, 3)?;
    leaders_are_even(&world, &[1, 2, 4])
}

#[test]
fn a_dead_nodes_peers_are_replaced_after_its_time() {
    holds(die);
}

#[test]
fn impatience_is_found() {
    fails(die, Plant::Impatient, "before their time");
}

/// Regions of five voters, of which two stores are dead, shall have three.
fn shrink(seed: u64, plant: Option<Plant>) -> Checked {
    let mut world = World::new(seed, REGIONS, 10, ScheduleConfig { max_replicas: 5, ..no_merges() }, None);
    (2..=5).for_each(|store| world.join(store, store));
    world.run_until_quiet(2 * HOUR)?;
    replicas_are(&world, 5)?;
    world.plant = plant;
    world.kill(2);
    world.kill(4);
    world.run_for(2 * MINUTE)?;
    world.configure(|config| config.max_replicas = 3);
    world.run_until_quiet(2 * HOUR)?;
    replicas_are(&world, 3)?;
    is_empty(&world, 2)?;
    is_empty(&world, 4)
}

#[test]
fn the_sick_go_before_the_healthy() {
    holds(shrink);
}

#[test]
fn a_lost_quorum_is_found() {
    fails(shrink, Plant::AllSeemAlive, "lost its quorum");
}

/// Six nodes in three zones.
fn zones(seed: u64, plant: Option<Plant>) -> Checked {
    let config = ScheduleConfig { location_labels: vec!["zone".into()], ..no_merges() };
    let mut world = World::new(seed, REGIONS, 10, config, plant);
    // The second node comes to the first one's zone; at the time there is nowhere else to go.
    world.join(2, 1);
    world.join(3, 2);
    world.run_until_quiet(2 * HOUR)?;
    (4..=6).for_each(|store| world.join(store, 1 + store / 2));
    world.join(4, 2);
    world.run_until_quiet(2 * HOUR)?;
    replicas_are(&world, 3)?;
    zones_differ(&world)?;
    // With the isolation level set, a zone that is lost is not made up for in another.
    world.configure(|config| config.isolation_level = "zone".into());
    world.stores.get_mut(&5).expect("a store").state = StoreState::Offline;
    world.run_until_quiet(2 * HOUR)?;
    zones_differ(&world)?;
    operators_are_at_most(&world, 12 * REGIONS)
}

#[test]
fn replicas_go_to_different_zones() {
    holds(zones);
}

#[test]
fn zones_that_are_not_told_are_found() {
    fails(zones, Plant::NoLabels, "two peers in one zone");
}

/// Two empty nodes join three full ones.
fn balance(seed: u64, plant: Option<Plant>) -> Checked {
    let mut world = spread(seed, 3, plant)?;
    world.join(4, 4);
    world.join(5, 5);
    if plant == Some(Plant::NoBalance) {
        world.configure(|config| config.schedulers.balance_region = false);
    }
    let before = world.created("");
    world.run_until_quiet(2 * HOUR)?;
    replicas_are(&world, 3)?;
    data_are_even(&world, &[1, 2, 3, 4, 5], 40)?;
    leaders_are_even(&world, &[1, 2, 3, 4, 5])?;
    operators_are_at_most(&world, before + 4 * REGIONS)
}

#[test]
fn data_spread_over_new_nodes() {
    holds(balance);
}

#[test]
fn running_for_ever_is_found() {
    fails(balance, Plant::SizesFlicker, "it does not end");
    fails(balance, Plant::NoBalance, "the data are not even");
}

/// Small regions come together.
fn merge(seed: u64, plant: Option<Plant>) -> Checked {
    let config = ScheduleConfig { split_merge_interval: 20 * MINUTE, ..ScheduleConfig::default() };
    let mut world = World::new(seed, REGIONS, 10, config, plant);
    (2..=4).for_each(|store| world.join(store, store));
    world.run_for(19 * MINUTE)?;
    if world.regions.len() as u64 != REGIONS {
        return Err("regions were merged before their time".into());
    }
    world.run_for(2 * MINUTE)?;
    world.run_until_quiet(4 * HOUR)?;
    replicas_are(&world, 3)?;
    let sizes: Vec<u64> = world.regions.values().map(|region| region.size_mib).collect();
    if world.regions.len() as u64 > REGIONS / 5 || sizes.iter().any(|size| *size > 108) {
        return Err(format!("the sizes are not what they should be: {sizes:?}"));
    }
    operators_are_at_most(&world, 20 * REGIONS)
}

#[test]
fn small_neighbours_become_one() {
    holds(merge);
    fails(merge, Plant::Impatient, "merged before their time");
}

/// Messages are lost, leaders change, nodes are away for a while, one leaves: in the end all is as it should be.
fn storm(seed: u64, plant: Option<Plant>) -> Checked {
    let mut world = spread(seed, 5, plant)?;
    (world.loss, world.unrest) = (4, 2_000);
    for _ in 0..6 {
        let store = 1 + world.prng.below(5);
        world.kill(store);
        let away = world.prng.below(2_400);
        world.run_for(Duration::from_secs(away))?;
        world.revive(store);
        let back = world.prng.below(600);
        world.run_for(Duration::from_secs(20 + back))?;
    }
    world.stores.get_mut(&5).expect("a store").state = StoreState::Offline;
    world.run_for(30 * MINUTE)?;
    (world.loss, world.unrest) = (0, 0);
    world.run_until_quiet(2 * HOUR)?;
    replicas_are(&world, 3)?;
    is_empty(&world, 5)?;
    leaders_are_even(&world, &[1, 2, 3, 4])
}

#[test]
fn a_storm_passes() {
    holds(storm);
}

/// A node is emptied of leaders, and gets them back.
fn restart(seed: u64, plant: Option<Plant>) -> Checked {
    let mut world = spread(seed, 3, plant)?;
    world.configure(|config| config.schedulers.evict_leader.extend([2]));
    world.run_until_quiet(HOUR)?;
    leaders_are_even(&world, &[1, 3])?;
    world.configure(|config| config.schedulers.evict_leader.clear());
    world.run_until_quiet(HOUR)?;
    leaders_are_even(&world, &[1, 2, 3])
}

#[test]
fn a_node_that_restarts_is_emptied_of_leaders() {
    holds(restart);
    fails(restart, Plant::LeadersStay, "it does not end");
}

/// Every region is scattered over six nodes of which three were empty.
fn scatter(seed: u64, plant: Option<Plant>) -> Checked {
    let mut world = spread(seed, 3, plant)?;
    world.configure(|config| {
        (config.schedulers.balance_leader, config.schedulers.balance_region) = (false, false);
        config.default_store_limit.add_peer = 10_000.0;
    });
    (4..=6).for_each(|store| world.join(store, store));
    world.run_for(MINUTE)?;
    world.scatter()?;
    world.run_until_quiet(HOUR)?;
    replicas_are(&world, 3)?;
    data_are_even(&world, &[1, 2, 3, 4, 5, 6], 60)?;
    leaders_are_even(&world, &[1, 2, 3, 4, 5, 6])
}

#[test]
fn scattered_regions_are_everywhere() {
    holds(scatter);
    fails(scatter, Plant::AddsVanish, "the data are not even");
}

/// With one node, or two, and three replicas wanted, nothing is done: not one operator, not one order.
#[test]
fn a_small_cluster_is_left_alone() {
    for nodes in 1..=2 {
        let mut world = World::new(1, REGIONS, 10, ScheduleConfig::default(), None);
        (2..=nodes).for_each(|store| world.join(store, store));
        world.run_for(HOUR).expect("nothing can go wrong");
        assert_eq!((world.orders, world.created("")), (0, 0), "{nodes} nodes");
    }
}

/// Checks that are always right in the scenarios see what is wrong.
#[test]
fn wrong_expectations_are_found() {
    let world = spread(1, 3, None).expect("spreads");
    assert!(operators_are_at_most(&world, 2 * REGIONS - 1).is_err(), "two peers came for each region");
    assert!(replicas_are(&world, 2).is_err() && is_empty(&world, 3).is_err());
    assert!(leaders_are_even(&world, &[1, 2]).is_err());
}

#[test]
fn the_same_seed_is_the_same_run() {
    let run = || {
        let mut world = spread(3, 4, None).expect("spreads");
        (world.loss, world.unrest) = (5, 1_000);
        world.run_for(20 * MINUTE).expect("runs");
        (world.orders, world.scheduler.controller().counts().clone(), world.prng.next_u64())
    };
    assert_eq!(run(), run());
}
