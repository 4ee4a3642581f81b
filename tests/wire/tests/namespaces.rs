//! Three nodes in network namespaces of their own: links that are cut in one direction, flap, or are slow.

mod common;

use std::time::{Duration, Instant};

use basalt_wire::fleet::{Fleet, Plan};
use basalt_wire::kills::CONFIG;
use basalt_wire::networks::Networks;
use basalt_wire::probe::{Probes, client};
use common::on_a_runtime;

const PROBES: u64 = 24;
/// A leader that is cut off is replaced as one that is dead: in about a second, and a busy machine gets three times that.
const GAP_MAX: Duration = Duration::from_secs(3);

fn fleet(networks: &Networks) -> Fleet {
    let plan = Plan { nodes: 0, config: CONFIG.into(), host: networks.host(), ..Plan::default() };
    let mut fleet = Fleet::start(plan);
    for node in 0..3 {
        let folder = fleet.dir().join(format!("node-{node}"));
        fleet.add_behind(networks.prefix(node), folder, &format!("{}:0", networks.address(node)));
    }
    fleet.replicate(3);
    fleet
}

/// How long keys could not be written from now on, the longest of all.
async fn longest(probes: &Probes, what: &str) -> Duration {
    let gaps = probes.gaps(Instant::now()).await;
    let longest = gaps[gaps.len() - 1];
    println!("{what}: all keys after {longest:?}");
    longest
}

#[test]
fn links_that_are_cut_flap_or_are_slow_cost_no_write() {
    let Some(networks) = Networks::make(3) else { return };
    let fleet = fleet(&networks);
    on_a_runtime(async {
        let loader = client(&fleet.pd).await;
        for i in 0..PROBES * 10 {
            loader.put(format!("probe-{i:05}").into_bytes(), b"0".to_vec()).await.expect("a put");
        }
        tokio::task::block_in_place(|| fleet.wait_for_replicas(3));
        let keys = (0..PROBES).map(|i| format!("probe-{:05}", i * 10).into_bytes());
        let probes = Probes::start(&fleet.pd, keys).await;
        let leader = || tokio::task::block_in_place(|| fleet.with_most_leaders());
        let settle = async || {
            tokio::task::block_in_place(|| fleet.wait_for_replicas(3));
            probes.check().await;
        };

        // It reaches nobody, and hears everybody; clients and the placement driver reach it.
        let at = leader();
        let others = [(at + 1) % 3, (at + 2) % 3];
        others.iter().for_each(|other| networks.cut(at, *other));
        let gap = longest(&probes, "a leader that reaches nobody").await;
        assert!(gap < GAP_MAX, "{gap:?}");
        tokio::time::sleep(Duration::from_secs(3)).await;
        others.iter().for_each(|other| networks.heal(at, *other));
        settle().await;

        // It hears nobody.
        let at = leader();
        let others = [(at + 1) % 3, (at + 2) % 3];
        others.iter().for_each(|other| networks.cut(*other, at));
        let gap = longest(&probes, "a leader that hears nobody").await;
        assert!(gap < GAP_MAX, "{gap:?}");
        tokio::time::sleep(Duration::from_secs(3)).await;
        others.iter().for_each(|other| networks.heal(*other, at));
        settle().await;

        // One link in one direction: two of three are always a quorum.
        let at = leader();
        networks.cut(at, (at + 1) % 3);
        let gap = longest(&probes, "a leader that does not reach one").await;
        assert!(gap < GAP_MAX, "{gap:?}");
        tokio::time::sleep(Duration::from_secs(3)).await;
        networks.heal(at, (at + 1) % 3);
        settle().await;

        let at = leader();
        for _ in 0..10 {
            networks.cut(at, (at + 1) % 3);
            networks.cut((at + 2) % 3, at);
            tokio::time::sleep(Duration::from_millis(300)).await;
            networks.heal(at, (at + 1) % 3);
            networks.heal((at + 2) % 3, at);
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        longest(&probes, "after links that flapped").await;
        settle().await;

        let at = leader();
        networks.slow(at, "512kbit");
        tokio::time::sleep(Duration::from_secs(5)).await;
        longest(&probes, "a leader behind a slow link").await;
        networks.restore(at);
        settle().await;

        println!("{} acknowledged writes", probes.acknowledged());
        probes.finish().await;
    });
    fleet.compare();
}
