//! The raw API through the third-party crate `tikv-client`, against real processes, while regions split and move.

mod common;

use std::time::Duration;

use basalt_wire::certificates::secured;
use basalt_wire::process::{self, Cluster};
use common::raw::{KEYS, SMALL_REGIONS, client, key, use_everything, value};
use common::{on_a_runtime, start};
use tikv_client::{ColumnFamily, Config, RawClient};

/// Regions as the placement driver lists them.
fn regions(cluster: &Cluster) -> u64 {
    let output = process::command()
        .args(["ctl", "--pd", &cluster.pd, "regions", "--limit", "100000"])
        .output()
        .expect("ctl runs");
    assert!(output.status.success());
    String::from_utf8_lossy(&output.stdout).lines().skip(1).count() as u64
}

/// The whole API on one backend and number of cores, while its regions split and, with several cores, move.
fn everything_on(io: executor::IoChoice, cores: usize) {
    if let Err(error) = executor::preflight(io, None) {
        println!("{io} is left out: {error}");
        return;
    }
    let (cluster, _dir) = start(cores, &io.to_string(), SMALL_REGIONS, &[]);
    on_a_runtime(use_everything(&cluster.pd, KEYS, || regions(&cluster)));
    assert_eq!(cluster.metric("basalt_shard_moves_in_total") > 0, cores > 1, "one core has one shard");
    cluster.stop();
}

#[test]
fn the_raw_api_works_on_uring_and_1_core() {
    everything_on(executor::IoChoice::Uring, 1);
}

#[test]
fn the_raw_api_works_on_uring_and_4_cores() {
    everything_on(executor::IoChoice::Uring, 4);
}

#[test]
fn the_raw_api_works_on_epoll_and_1_core() {
    everything_on(executor::IoChoice::Epoll, 1);
}

#[test]
fn the_raw_api_works_on_epoll_and_4_cores() {
    everything_on(executor::IoChoice::Epoll, 4);
}

#[test]
fn values_with_a_time_to_live_expire() {
    let (cluster, _dir) = start(2, "auto", "[storage]\nenable-ttl = true\n", &[]);
    on_a_runtime(async {
        let client = client(&cluster.pd).await;
        client.put_with_ttl("short".to_owned(), "x".to_owned(), 1).await.expect("a put");
        client.put_with_ttl("long".to_owned(), "y".to_owned(), 1000).await.expect("a put");
        client.put("ever".to_owned(), "z".to_owned()).await.expect("a put");
        let left = client.get_key_ttl_secs("long".to_owned()).await.expect("a ttl").expect("it is there");
        assert!((900..=1000).contains(&left), "{left}");
        assert_eq!(client.get_key_ttl_secs("ever".to_owned()).await.expect("a ttl"), Some(0));
        let mut gone = false;
        for _ in 0..50 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            gone = client.get("short".to_owned()).await.expect("a get").is_none();
            if gone {
                break;
            }
        }
        assert!(gone, "a value with a second to live is there after five");
        assert_eq!(client.get("long".to_owned()).await.expect("a get"), Some(b"y".to_vec()));
        let keys = client.scan_keys("a".to_owned().."z".to_owned(), 2).await.expect("a scan");
        assert_eq!(keys.len(), 2, "the expired key is no part of a scan");
    });
    cluster.stop();
}

#[test]
fn families_are_apart_from_each_other() {
    let (cluster, _dir) = start(1, "auto", "", &[]);
    on_a_runtime(async {
        let default = client(&cluster.pd).await;
        let lock = default.with_cf(ColumnFamily::Lock);
        default.put("k".to_owned(), "in default".to_owned()).await.expect("a put");
        lock.put("k".to_owned(), "in lock".to_owned()).await.expect("a put");
        assert_eq!(default.get("k".to_owned()).await.expect("a get"), Some(b"in default".to_vec()));
        assert_eq!(lock.get("k".to_owned()).await.expect("a get"), Some(b"in lock".to_vec()));
    });
    cluster.stop();
}

/// Writers overwrite their keys again and again while regions move between four cores. A core hands out timestamps
/// from a batch of its own, and a region that arrives must not be written with older ones than it has.
#[test]
fn api_version_2_overwrites_in_order_while_regions_move() {
    const ROUNDS: u32 = 8;
    let config = format!("{SMALL_REGIONS}[storage]\napi-version = 2\n");
    let (cluster, _dir) = start(4, "auto", &config, &[]);
    on_a_runtime(async {
        let config = secured(Config::default().with_default_keyspace().with_timeout(Duration::from_secs(10)));
        let client = RawClient::new_with_config(vec![cluster.pd.clone()], config).await.expect("a client");
        let mut writers = Vec::new();
        for part in 0..8 {
            let client = client.clone();
            writers.push(tokio::spawn(async move {
                for round in 0..ROUNDS {
                    for i in (0..KEYS).filter(|i| i % 8 == part) {
                        client.put(key(i), value(i, round)).await.expect("a put");
                        let found = client.get(key(i)).await.expect("a get");
                        assert_eq!(found, Some(value(i, round)), "one's own write in round {round}");
                    }
                }
            }));
        }
        for writer in writers {
            writer.await.expect("a writer");
        }
        for i in 0..KEYS {
            assert_eq!(client.get(key(i)).await.expect("a get"), Some(value(i, ROUNDS - 1)));
        }
        client.delete(key(3)).await.expect("a delete");
        assert_eq!(client.get(key(3)).await.expect("a get"), None);
        let keys = client.scan_keys(key(0)..key(20), 19).await.expect("a scan");
        assert_eq!(keys.len(), 19, "one version of each key, and no removed one");
    });
    assert!(cluster.metric("basalt_shard_moves_in_total") > 0);
    cluster.stop();
}
