//! The raw API through the third-party crate `tikv-client`, against real processes, while regions split and move.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use basalt_wire::process::{Cluster, binary, wait_for};
use common::{on_a_runtime, start};
use tikv_client::{ColumnFamily, Config, Key, KvPair, RawClient, Value};

/// Twelve hundred keys are some ninety regions.
const SMALL_REGIONS: &str = "[coprocessor]\nregion-max-keys = 20\nregion-split-keys = 10\n\
                             [raftstore]\nregion-split-check-diff = \"256B\"\n";
const KEYS: u32 = 1200;
const REGIONS: u64 = 50;

fn key(i: u32) -> Vec<u8> {
    format!("key-{i:06}").into_bytes()
}

fn value(i: u32, round: u32) -> Vec<u8> {
    format!("value-{i}-{round}").into_bytes()
}

async fn client(cluster: &Cluster) -> RawClient {
    let config = Config::default().with_timeout(Duration::from_secs(10));
    RawClient::new_with_config(vec![cluster.pd.clone()], config).await.expect("a client")
}

/// Keys are put in rounds, which makes regions split and move, while other tasks read what was put.
async fn use_everything(cluster: &Cluster, keys: u32) {
    let client = Arc::new(client(cluster).await.with_atomic_for_cas());
    let plain = Arc::new(self::client(cluster).await);
    let done = Arc::new(AtomicBool::new(false));
    let reader = tokio::spawn({
        let (plain, done) = (plain.clone(), done.clone());
        async move {
            let mut reads = 0u32;
            while !done.load(Ordering::Relaxed) {
                let i = reads.wrapping_mul(7919) % keys;
                let found = plain.get(key(i)).await.expect("a get");
                assert!(found.is_none_or(|found| found.starts_with(format!("value-{i}-").as_bytes())));
                reads += 1;
            }
            reads
        }
    });
    let mut writers = Vec::new();
    for part in 0..8 {
        let plain = plain.clone();
        writers.push(tokio::spawn(async move {
            for i in (0..keys).filter(|i| i % 8 == part) {
                plain.put(key(i), value(i, 1)).await.expect("a put");
                assert_eq!(plain.get(key(i)).await.expect("a get"), Some(value(i, 1)), "one's own write");
            }
        }));
    }
    for writer in writers {
        writer.await.expect("a writer");
    }
    // The last of them are split, and the placement driver hears of it, in a moment.
    wait_for("fifty regions", || regions(cluster) >= REGIONS);
    done.store(true, Ordering::Relaxed);
    assert!(reader.await.expect("the reader") > 0);

    batches(&plain, keys).await;
    scans(&plain, keys).await;
    deletes(&plain, keys).await;
    swaps(&client).await;
}

async fn batches(client: &RawClient, keys: u32) {
    let pairs: Vec<KvPair> = (0..keys).map(|i| KvPair(key(i).into(), value(i, 2))).collect();
    client.batch_put(pairs).await.expect("a batch put over many regions");
    let asked: Vec<Key> = (0..keys).chain(keys * 2..keys * 2 + 5).map(|i| key(i).into()).collect();
    let mut found = client.batch_get(asked).await.expect("a batch get over many regions");
    found.sort_by(|a, b| a.0.cmp(&b.0));
    let expected: Vec<KvPair> = (0..keys).map(|i| KvPair(key(i).into(), value(i, 2))).collect();
    assert!(found == expected, "absent keys are left out, all others are there");
}

async fn scans(client: &RawClient, keys: u32) {
    // The crate does not stop at the last region, so a scan asks for no more keys than there are.
    let found = client.scan(key(0)..key(keys), keys).await.expect("a scan");
    let names: Vec<Vec<u8>> = found.iter().map(|pair| pair.0.clone().into()).collect();
    assert!(names == (0..keys).map(key).collect::<Vec<_>>(), "a scan finds every key in order");
    assert_eq!(found[5].1, value(5, 2));
    let some = client.scan(key(10)..key(20), 5).await.expect("a scan with a limit");
    assert_eq!(some.len(), 5);
    let keys_only = client.scan_keys(key(10)..key(20), 100).await.expect("keys only");
    assert_eq!(keys_only.len(), 10);
    let ranges = vec![key(0)..key(3), key(100)..key(103)];
    let batch = client.batch_scan(ranges, 2).await.expect("a batch scan");
    let names: Vec<Vec<u8>> = batch.iter().map(|pair| pair.0.clone().into()).collect();
    // The crate asks every region of a range for so many, and regions are being split.
    let mut total = 0;
    for range in [0..3, 100..103] {
        let inside = |name: &&Vec<u8>| key(range.start) <= **name && **name < key(range.end);
        let part: Vec<Vec<u8>> = names.iter().filter(inside).cloned().collect();
        assert!(part.len() >= 2, "{part:?}");
        assert_eq!(part, range.take(part.len()).map(key).collect::<Vec<_>>());
        total += part.len();
    }
    assert_eq!(names.len(), total);
}

async fn deletes(client: &RawClient, keys: u32) {
    client.delete(key(1)).await.expect("a delete");
    assert_eq!(client.get(key(1)).await.expect("a get"), None);
    client.batch_delete(vec![key(2), key(3)]).await.expect("a batch delete");
    client.delete_range(key(10)..key(keys / 2)).await.expect("a delete over many regions");
    let expected: Vec<Vec<u8>> =
        (0..keys).filter(|i| !(1..=3).contains(i) && !(10..keys / 2).contains(i)).map(key).collect();
    let left = client.scan_keys(key(0)..key(keys), expected.len() as u32).await.expect("a scan");
    let left: Vec<Vec<u8>> = left.into_iter().map(Into::into).collect();
    assert!(left == expected, "{} keys are left, {} should be", left.len(), expected.len());
}

async fn swaps(client: &RawClient) {
    let k = b"swap".to_vec();
    let v = |text: &str| -> Value { text.as_bytes().to_vec() };
    assert_eq!(client.compare_and_swap(k.clone(), None, v("a")).await.expect("a swap"), (None, true));
    assert_eq!(client.compare_and_swap(k.clone(), None, v("b")).await.expect("a swap"), (Some(v("a")), false));
    assert_eq!(client.compare_and_swap(k.clone(), v("a"), v("b")).await.expect("a swap"), (Some(v("a")), true));
    assert_eq!(client.get(k).await.expect("a get"), Some(v("b")));
}

/// Regions as the placement driver lists them.
fn regions(cluster: &Cluster) -> u64 {
    let output = std::process::Command::new(binary())
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
    on_a_runtime(use_everything(&cluster, KEYS));
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
        let client = client(&cluster).await;
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
        let default = client(&cluster).await;
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
        let config = Config::default().with_default_keyspace().with_timeout(Duration::from_secs(10));
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
