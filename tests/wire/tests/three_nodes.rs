//! Three nodes as real processes: the raw API through the third-party crate `tikv-client` while leaders and replicas
//! move, and the node with most leaders killed (SIGKILL) again and again.

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use basalt_wire::fleet::Fleet;
use basalt_wire::kills::{CONFIG, kill_again_and_again};
use base::Prng;
use common::on_a_runtime;
use common::raw::{KEYS, use_everything};
use serde_json::json;

/// Orders leaders away, and replicas off a node that the placement driver then places again, until `done`. Answers how
/// many orders it gave.
fn disturb(nodes: &Fleet, done: &AtomicBool) -> u64 {
    let mut prng = Prng::new(7);
    let mut orders = 0;
    while !done.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(50));
        let regions = nodes.regions();
        if regions.is_empty() {
            continue;
        }
        let region = &regions[prng.below(regions.len() as u64) as usize];
        let peers = region["peers"].as_array().map_or(&[][..], Vec::as_slice);
        let leader = region["leader"]["store_id"].as_u64();
        let follower = peers.iter().find(|peer| peer["store_id"].as_u64() != leader);
        let Some(store) = follower.and_then(|peer| peer["store_id"].as_u64()) else { continue };
        let order = if prng.one_in(3) && peers.len() == 3 {
            json!({ "name": "remove-peer", "region_id": region["id"], "store_id": store })
        } else {
            json!({ "name": "transfer-leader", "region_id": region["id"], "to_store_id": store })
        };
        orders += u64::from(nodes.order(&order));
    }
    orders
}

#[test]
fn the_raw_api_works_while_leaders_and_replicas_move() {
    let nodes = Fleet::replicated(3, 1, CONFIG);
    let done = AtomicBool::new(false);
    let orders = std::thread::scope(|scope| {
        let disturber = scope.spawn(|| disturb(&nodes, &done));
        let used = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            on_a_runtime(use_everything(&nodes.pd, KEYS, || nodes.regions().len() as u64));
        }));
        done.store(true, Ordering::Relaxed);
        let orders = disturber.join().expect("orders are given");
        if let Err(panic) = used {
            std::panic::resume_unwind(panic);
        }
        orders
    });
    println!("{orders} orders, {} regions", nodes.regions().len());
    assert!(orders > 10, "only {orders} orders were taken");
    nodes.wait_for_replicas(3);
}

/// Kills in CI; `measure kills` does more.
const KILLS: u32 = 4;
/// Until every key is writable again: the aim is a second, and a busy machine gets three times that.
const GAP_MAX: Duration = Duration::from_secs(3);

#[test]
fn kill_9_of_the_node_with_most_leaders_loses_nothing() {
    let mut nodes = Fleet::replicated(3, 1, CONFIG);
    let kills = on_a_runtime(kill_again_and_again(&mut nodes, KILLS));
    assert!(kills.all.iter().all(|gap| *gap < GAP_MAX), "{kills:?}");
}
