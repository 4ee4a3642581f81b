//! `kill -9` of the node with most leaders, again and again, under load.

use std::time::{Duration, Instant};

use crate::fleet::Fleet;
use crate::probe::{Probes, client, quantiles};

const PROBES: u64 = 24;
/// Regions of a few keys, and nodes that report often.
pub const CONFIG: &str = "[coprocessor]\nregion-max-keys = 20\nregion-split-keys = 10\n\
                          [raftstore]\nregion-split-check-diff = \"256B\"\n\
                          pd-heartbeat-tick-interval = \"1s\"\npd-store-heartbeat-tick-interval = \"1s\"\n";

/// What the kills did.
#[derive(Debug)]
pub struct Kills {
    /// How long each key of a killed leader could not be written, sorted: those that took more than 100 ms.
    pub keys: Vec<Duration>,
    /// For each kill, until every key could be written again, sorted.
    pub all: Vec<Duration>,
}

/// Kills `count` times, prints each, and checks after each that nothing that was acknowledged is lost, and in the end
/// that all replicas are equal.
///
/// # Panics
/// If it is not so.
pub async fn kill_again_and_again(fleet: &mut Fleet, count: u32) -> Kills {
    let loader = client(&fleet.pd).await;
    // Every tenth key is probed; the others make regions.
    for i in 0..PROBES * 10 {
        loader.put(format!("probe-{i:05}").into_bytes(), b"0".to_vec()).await.expect("a put");
    }
    tokio::task::block_in_place(|| fleet.wait_for_replicas(3));
    let regions = fleet.regions().len();
    println!("{regions} regions, {PROBES} keys probed");
    assert!(regions > 5, "{regions} regions");
    let keys = (0..PROBES).map(|i| format!("probe-{:05}", i * 10).into_bytes());
    let probes = Probes::start(&fleet.pd, keys).await;
    let mut kills = Kills { keys: Vec::new(), all: Vec::new() };
    for round in 0..count {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let number = tokio::task::block_in_place(|| fleet.with_most_leaders());
        let killed = Instant::now();
        tokio::task::block_in_place(|| fleet.kill(number));
        let gaps = probes.gaps(killed).await;
        let whole = gaps[gaps.len() - 1];
        println!("kill {round} of node {number}: median {:?}, all keys after {whole:?}", gaps[gaps.len() / 2]);
        kills.all.push(whole);
        kills.keys.extend(gaps.into_iter().filter(|gap| *gap > Duration::from_millis(100)));
        tokio::task::block_in_place(|| {
            fleet.launch(number);
            fleet.wait_for_replicas(3);
        });
        probes.check().await;
    }
    let acknowledged = probes.acknowledged();
    probes.finish().await;
    kills.keys.sort_unstable();
    kills.all.sort_unstable();
    println!("{count} kills, {acknowledged} acknowledged writes, none lost");
    println!("keys of the killed leaders ({}): {}", kills.keys.len(), quantiles(&kills.keys));
    println!("until every key is writable: {}", quantiles(&kills.all));
    tokio::task::block_in_place(|| fleet.compare());
    kills
}
