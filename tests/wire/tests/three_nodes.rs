//! Three nodes as real processes: the raw API through the third-party crate `tikv-client` while leaders and replicas
//! move and regions merge, and the node with most leaders killed (SIGKILL) again and again.

mod common;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use basalt_wire::fleet::Fleet;
use basalt_wire::kills::{CONFIG, kill_again_and_again};
use base::Prng;
use common::on_a_runtime;
use common::raw::{KEYS, client, key, use_everything, value};
use serde_json::{Value, json};

/// What the disturber does, and what has come of it.
#[derive(Default)]
struct Disturber {
    done: AtomicBool,
    /// Orders that were taken.
    orders: AtomicU64,
    /// Regions that were there once, and are gone: they have merged into others.
    merged: AtomicU64,
}

/// Merges that must have happened, and how long they may take.
const MERGES: u64 = 5;
const MERGES_LIMIT: Duration = Duration::from_secs(60);

fn id(region: &Value) -> u64 {
    region["id"].as_u64().expect("an id")
}

/// Orders leaders away, regions into their neighbours, and replicas off a node that the placement driver then places
/// again, until it is done.
fn disturb(nodes: &Fleet, disturber: &Disturber) {
    let mut prng = Prng::new(7);
    let mut seen = BTreeSet::new();
    while !disturber.done.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(50));
        let regions = nodes.regions();
        if regions.is_empty() {
            continue;
        }
        let here: BTreeSet<u64> = regions.iter().map(id).collect();
        seen.extend(&here);
        disturber.merged.store(seen.difference(&here).count() as u64, Ordering::Relaxed);
        let region = &regions[prng.below(regions.len() as u64) as usize];
        let peers = region["peers"].as_array().map_or(&[][..], Vec::as_slice);
        let leader = region["leader"]["store_id"].as_u64();
        let follower = peers.iter().find(|peer| peer["store_id"].as_u64() != leader);
        let Some(store) = follower.and_then(|peer| peer["store_id"].as_u64()) else { continue };
        let next = regions.iter().find(|other| other["start_key"] == region["end_key"] && id(other) != id(region));
        let order = match (prng.below(4), next) {
            (0, _) if peers.len() == 3 => {
                json!({ "name": "remove-peer", "region_id": region["id"], "store_id": store })
            }
            (1 | 2, Some(next)) => {
                json!({ "name": "merge-region", "source_region_id": region["id"], "target_region_id": next["id"] })
            }
            _ => json!({ "name": "transfer-leader", "region_id": region["id"], "to_store_id": store }),
        };
        disturber.orders.fetch_add(u64::from(nodes.order(&order)), Ordering::Relaxed);
    }
}

/// Writes and reads keys until enough regions have merged.
async fn use_while_regions_merge(pd: &str, disturber: &Disturber) {
    let client = client(pd).await;
    let begun = Instant::now();
    let mut round = 3;
    while disturber.merged.load(Ordering::Relaxed) < MERGES {
        assert!(begun.elapsed() < MERGES_LIMIT, "{} merges", disturber.merged.load(Ordering::Relaxed));
        for i in (0..KEYS).step_by(7) {
            client.put(key(i), value(i, round)).await.expect("a put");
            assert_eq!(client.get(key(i)).await.expect("a get"), Some(value(i, round)));
        }
        round += 1;
    }
}

/// Two cores each, so that source and target of a merge are often on different shards, and differently on each node.
#[test]
fn the_raw_api_works_while_leaders_and_replicas_move_and_regions_split_and_merge() {
    let nodes = Fleet::replicated(3, 2, CONFIG);
    let disturber = Disturber::default();
    std::thread::scope(|scope| {
        let orders = scope.spawn(|| disturb(&nodes, &disturber));
        let used = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            on_a_runtime(async {
                use_everything(&nodes.pd, KEYS, || nodes.regions().len() as u64).await;
                use_while_regions_merge(&nodes.pd, &disturber).await;
            });
        }));
        disturber.done.store(true, Ordering::Relaxed);
        orders.join().expect("orders are given");
        if let Err(panic) = used {
            std::panic::resume_unwind(panic);
        }
    });
    nodes.wait_for_replicas(3);
    println!(
        "{} orders were taken, {} regions have merged",
        disturber.orders.into_inner(),
        disturber.merged.into_inner()
    );
    nodes.compare();
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
