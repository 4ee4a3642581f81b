//! From one node to three, to four, and back to three: how evenly replicas and leaders lie, how long that took, and how
//! much was sent for it.

use std::time::{Duration, Instant};

use basalt_wire::fleet::{Fleet, Plan, settings};
use basalt_wire::probe::client;
use serde_json::{Value, json};

const CONFIG: &str = "[raftstore]\npd-heartbeat-tick-interval = \"1s\"\npd-store-heartbeat-tick-interval = \"1s\"\n";
/// Keys of a region, and bytes of a value: 256 KiB a region.
const KEYS: u32 = 64;
const VALUE_BYTES: usize = 4096;
/// How long one phase may take.
const LIMIT: Duration = Duration::from_secs(900);
/// Peers that each store may be given in a minute: no limit in practice.
const STORE_LIMIT: f64 = 2000.0;

fn key(region: u32, i: u32) -> String {
    format!("region-{region:05}-key-{i:03}")
}

/// Replicas and leaders of each node that runs, by its number.
fn counts(fleet: &Fleet) -> Vec<(usize, usize)> {
    let regions = fleet.regions();
    let of = |store: u64| {
        let has = |region: &&Value| {
            region["peers"].as_array().into_iter().flatten().any(|peer| peer["store_id"].as_u64() == Some(store))
        };
        let leads = |region: &&Value| region["leader"]["store_id"].as_u64() == Some(store);
        (regions.iter().filter(has).count(), regions.iter().filter(leads).count())
    };
    fleet.members.iter().map(|member| of(member.store_id)).collect()
}

fn received(fleet: &Fleet) -> u64 {
    (0..fleet.members.len()).map(|number| fleet.metric(number, "basalt_net_received_bytes_total")).sum()
}

/// Whether all of `counts` are within a tenth of their mean.
fn are_even(counts: &[usize]) -> bool {
    let mean = counts.iter().sum::<usize>() as f64 / counts.len() as f64;
    counts.iter().all(|count| (*count as f64 - mean).abs() <= mean / 10.0)
}

/// Waits until `holds`, and prints what it took.
fn phase(fleet: &Fleet, name: &str, holds: impl Fn(&[(usize, usize)]) -> bool) {
    let (begun, before) = (Instant::now(), received(fleet));
    loop {
        let counts = counts(fleet);
        if holds(&counts) {
            let mebibytes = (received(fleet) - before) >> 20;
            let took = begun.elapsed();
            println!("{name}: {took:.1?}, {mebibytes} MiB received by nodes; (replicas, leaders): {counts:?}");
            return;
        }
        assert!(begun.elapsed() < LIMIT, "{name}: {counts:?}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn add(fleet: &mut Fleet) {
    let folder = fleet.dir().join(format!("node-{}", fleet.members.len()));
    fleet.add(folder, "127.0.0.1:0");
    for kind in ["add-peer", "remove-peer"] {
        fleet.post("/pd/api/v1/stores/limit", &json!({ "rate": STORE_LIMIT, "type": kind }));
    }
}

fn is_balanced(counts: &[(usize, usize)], replicas: usize) -> bool {
    let (peers, leaders): (Vec<usize>, Vec<usize>) = counts.iter().copied().unzip();
    peers.iter().sum::<usize>() == replicas && are_even(&peers) && are_even(&leaders)
}

pub(crate) fn run(regions: u32) {
    let mut fleet = Fleet::start(Plan { nodes: 1, config: CONFIG.into(), ..Plan::default() });
    fleet.post("/pd/api/v1/config", &settings());
    super::on_a_runtime(async {
        let raw = client(&fleet.pd).await;
        for region in 0..regions {
            for i in 0..KEYS {
                raw.put(key(region, i), vec![b'v'; VALUE_BYTES]).await.expect("a put");
            }
        }
    });
    (1..regions).for_each(|region| drop(fleet.ctl(&["split", &key(region, 0)])));
    let data = u64::from(regions * KEYS) * VALUE_BYTES as u64;
    println!("{regions} regions with {} MiB of values on one node", data >> 20);
    let replicas = 3 * regions as usize;
    add(&mut fleet);
    add(&mut fleet);
    phase(&fleet, "two nodes join", |counts| is_balanced(counts, replicas));
    fleet.wait_for_replicas(3);
    add(&mut fleet);
    phase(&fleet, "a fourth joins", |counts| is_balanced(counts, replicas));
    fleet.ctl(&["store", "delete", &fleet.members[0].store_id.to_string()]);
    phase(&fleet, "the first is drained", |counts| counts[0] == (0, 0) && is_balanced(&counts[1..], replicas));
    fleet.wait_for_replicas(3);
    fleet.compare();
}
