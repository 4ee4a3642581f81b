//! Replicas of three nodes (real processes) compared in full while they are written to: all hash the same entry's state,
//! and find the same. And what they say of their chains.

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use basalt_wire::fleet::Fleet;
use common::on_a_runtime;
use common::raw::client;
use serde_json::Value;
use tikv_client::RawClient;

const CONFIG: &str = "[coprocessor]\nregion-max-keys = 40\nregion-split-keys = 20\n\
                      [raftstore]\nregion-split-check-diff = \"256B\"\n\
                      pd-heartbeat-tick-interval = \"1s\"\npd-store-heartbeat-tick-interval = \"1s\"\n";

/// What each node says of its replica of a region.
fn replicas(nodes: &Fleet, region: u64) -> Vec<Value> {
    let path = format!("/region?region={region}");
    (0..nodes.members.len()).filter_map(|number| nodes.status(number, &path)).collect()
}

/// Has a region's replicas hashed; what each of the three found. Its leader may move meanwhile, and a replica that moves
/// between the shards of its node forgets what it found: then they are asked again.
fn compare(nodes: &Fleet, region: u64) -> Vec<Value> {
    let path = format!("/consistency?region={region}");
    let limit = Instant::now() + Duration::from_secs(30);
    let mut index = Value::Null;
    let mut asked: Option<Instant> = None;
    loop {
        if asked.is_none_or(|asked| asked.elapsed() > Duration::from_secs(2)) {
            let answer = (0..nodes.members.len()).find_map(|number| nodes.status(number, &path));
            if let Some(answer) = answer {
                (index, asked) = (answer["index"].clone(), Some(Instant::now()));
            }
        }
        let hashes: Vec<Value> = replicas(nodes, region).into_iter().map(|replica| replica["hashed"].clone()).collect();
        if asked.is_some() && hashes.len() == 3 && hashes.iter().all(|hash| hash["index"] == index) {
            return hashes;
        }
        assert!(Instant::now() < limit, "region {region} at {index}: {hashes:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Writes until `done`; answers how often.
async fn write(client: RawClient, done: Arc<AtomicBool>) -> u64 {
    let mut written = 0;
    while !done.load(Ordering::Relaxed) {
        written += 1;
        let key = format!("key-{:04}", written % 300).into_bytes();
        client.put(key, written.to_string().into_bytes()).await.expect("a put");
    }
    written
}

#[test]
fn replicas_are_the_same_in_full_while_they_are_written_to() {
    let nodes = Fleet::replicated(3, 2, CONFIG);
    on_a_runtime(async {
        let client = client(&nodes.pd).await;
        for i in 0..300 {
            client.put(format!("key-{i:04}").into_bytes(), vec![b'v'; i]).await.expect("a put");
        }
        nodes.wait_for_replicas(3);
        let regions: Vec<u64> = nodes.regions().iter().filter_map(|region| region["id"].as_u64()).collect();
        assert!(regions.len() > 3, "{} regions", regions.len());
        let done = Arc::new(AtomicBool::new(false));
        let writer = tokio::spawn(write(client, done.clone()));
        let compared: Vec<Vec<Value>> = tokio::task::block_in_place(|| {
            // Regions split meanwhile, but none ends.
            regions.iter().map(|region| compare(&nodes, *region)).collect()
        });
        done.store(true, Ordering::Relaxed);
        let written = writer.await.expect("the writer");
        println!("{} regions compared beside {written} writes", compared.len());
        let mut keys = 0;
        for hashes in compared {
            assert!(hashes.iter().all(|hash| *hash == hashes[0]), "{hashes:?}");
            keys += hashes[0]["keys"].as_u64().expect("a number");
        }
        assert!(keys >= 100, "{keys} keys were hashed");
    });
    ctl_compares_them(&nodes);
    the_chains_agree(&nodes);
}

fn ctl_compares_them(nodes: &Fleet) {
    let ctl = |args: &[&str]| {
        let output = nodes.ctl_output(&[&["consistency"][..], args].concat());
        let text = |bytes| String::from_utf8(bytes).expect("text");
        (output.status.success(), text(output.stdout), text(output.stderr))
    };
    let (success, out, err) = ctl(&["--all"]);
    let same = out.lines().filter(|line| line.contains(": the same at entry ")).count();
    assert!(success && same > 3 && same == out.lines().count(), "{out}{err}");
    let first = nodes.regions()[0]["id"].as_u64().expect("a number").to_string();
    let (success, out, err) = ctl(&["--region", &first]);
    assert!(success && out.starts_with(&format!("region {first}: the same at entry ")), "{out}{err}");
    let (success, _, err) = ctl(&[]);
    assert!(!success && err.contains("--all"), "{err}");
}

/// At rest all replicas stand at the same entry, with the same chain.
fn the_chains_agree(nodes: &Fleet) {
    let limit = Instant::now() + Duration::from_secs(30);
    for region in nodes.regions().iter().filter_map(|region| region["id"].as_u64()) {
        loop {
            let mut chains: BTreeMap<u64, Vec<String>> = BTreeMap::new();
            for replica in replicas(nodes, region) {
                assert_eq!(replica["diverged"], false);
                let index = replica["applied_index"].as_u64().expect("a number");
                chains.entry(index).or_default().push(replica["chain"].as_str().expect("text").into());
            }
            for same in chains.values() {
                assert!(
                    same.iter().all(|chain| *chain == same[0] && chain != "unknown"),
                    "region {region}: {chains:?}"
                );
            }
            if chains.values().any(|same| same.len() == 3) {
                break;
            }
            assert!(Instant::now() < limit, "region {region}: {chains:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    for number in 0..3 {
        assert_eq!(nodes.metric(number, "basalt_shard_divergence_total"), 0);
    }
}
