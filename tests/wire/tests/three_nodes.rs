//! Three nodes as real processes: the raw API through the third-party crate `tikv-client` while leaders and replicas
//! move, and the node with most leaders killed (SIGKILL) again and again.

mod common;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use basalt_wire::fleet::Fleet;
use base::Prng;
use common::on_a_runtime;
use common::raw::{KEYS, client, use_everything};
use serde_json::{Value, json};
use tikv_client::RawClient;

/// Regions of a few keys, and nodes that report often.
const CONFIG: &str = "[coprocessor]\nregion-max-keys = 20\nregion-split-keys = 10\n\
                      [raftstore]\nregion-split-check-diff = \"256B\"\n\
                      pd-heartbeat-tick-interval = \"1s\"\npd-store-heartbeat-tick-interval = \"1s\"\n";

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

/// Kills in CI; `BASALT_KILLS` asks for more.
const KILLS: u32 = 4;
const PROBES: u64 = 24;

fn kills() -> u32 {
    std::env::var("BASALT_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(KILLS)
}

/// What is known of one key, which one task writes.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    sure: u64,
    /// The highest value that was sent.
    sent: u64,
    /// When the put that was acknowledged last had begun, and when it was acknowledged.
    last: Option<(Instant, Instant)>,
}

type Books = Arc<Mutex<BTreeMap<Vec<u8>, Known>>>;

static ACKNOWLEDGED: AtomicU64 = AtomicU64::new(0);

/// Puts rising numbers until `done`, whatever becomes of each.
async fn probe(client: RawClient, key: Vec<u8>, books: Books, done: Arc<AtomicBool>) {
    while !done.load(Ordering::Relaxed) {
        let begun = Instant::now();
        let next = {
            let mut books = books.lock().expect("no panic while locked");
            let known = books.entry(key.clone()).or_default();
            known.sent += 1;
            known.sent
        };
        if client.put(key.clone(), next.to_string().into_bytes()).await.is_ok() {
            ACKNOWLEDGED.fetch_add(1, Ordering::Relaxed);
            let mut books = books.lock().expect("no panic while locked");
            let known = books.entry(key.clone()).or_default();
            known.sure = next;
            known.last = Some((begun, Instant::now()));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// How long each key could not be written after `killed`: until the first acknowledgement of a put that began later.
async fn gaps(books: &Books, killed: Instant) -> Vec<Duration> {
    let mut gaps = BTreeMap::new();
    let limit = Instant::now() + Duration::from_secs(60);
    while gaps.len() < PROBES as usize {
        assert!(Instant::now() < limit, "{} of {PROBES} keys can be written a minute after a kill", gaps.len());
        for (key, known) in books.lock().expect("no panic while locked").iter() {
            if let Some((_, acknowledged)) = known.last.filter(|(begun, _)| *begun > killed) {
                gaps.entry(key.clone()).or_insert(acknowledged - killed);
            }
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    gaps.into_values().collect()
}

async fn check(pd: &str, books: &Books) {
    let client = client(pd).await;
    let keys: Vec<Vec<u8>> = books.lock().expect("no panic while locked").keys().cloned().collect();
    for key in keys {
        // The probes go on: what was acknowledged before the read must be seen, and nothing that was not sent after it.
        let sure = books.lock().expect("no panic while locked")[&key].sure;
        let found = client
            .get(key.clone())
            .await
            .expect("a get")
            .map_or(0, |value| String::from_utf8(value).expect("text").parse::<u64>().expect("a number"));
        let sent = books.lock().expect("no panic while locked")[&key].sent;
        assert!(
            (sure..=sent).contains(&found),
            "{} holds {found}, acknowledged was {sure}, sent {sent}",
            String::from_utf8_lossy(&key)
        );
    }
}

#[test]
fn kill_9_of_the_node_with_most_leaders_loses_nothing() {
    let mut nodes = Fleet::replicated(3, 1, CONFIG);
    let pd = nodes.pd.clone();
    let books = Books::default();
    let mut all = Vec::new();
    on_a_runtime(async {
        let client = client(&pd).await;
        // Every tenth key is probed; the others make regions.
        for i in 0..PROBES * 10 {
            client.put(format!("probe-{i:05}").into_bytes(), b"0".to_vec()).await.expect("a put");
        }
        nodes.wait_for_replicas(3);
        println!("{} regions", nodes.regions().len());
        let done = Arc::new(AtomicBool::new(false));
        let probes: Vec<_> = (0..PROBES)
            .map(|i| {
                let key = format!("probe-{:05}", i * 10).into_bytes();
                tokio::spawn(probe(client.clone(), key, books.clone(), done.clone()))
            })
            .collect();
        for round in 0..kills() {
            tokio::time::sleep(Duration::from_secs(2)).await;
            let number = nodes.with_most_leaders();
            let killed = Instant::now();
            nodes.kill(number);
            let mut gaps = gaps(&books, killed).await;
            gaps.sort_unstable();
            println!(
                "kill {round} of node {number}: median {:?}, all keys after {:?}",
                gaps[gaps.len() / 2],
                gaps[gaps.len() - 1]
            );
            all.extend(gaps);
            nodes.launch(number);
            nodes.wait_for_replicas(3);
            check(&pd, &books).await;
        }
        done.store(true, Ordering::Relaxed);
        for probe in probes {
            probe.await.expect("a probe");
        }
        check(&pd, &books).await;
    });
    all.sort_unstable();
    let at = |percent: usize| all[(all.len() - 1) * percent / 100];
    println!(
        "{} kills, {} acknowledged writes; a key could not be written for p50 {:?}, p90 {:?}, p99 {:?}, at most {:?}",
        kills(),
        ACKNOWLEDGED.load(Ordering::Relaxed),
        at(50),
        at(90),
        at(99),
        at(100)
    );
    let regions: Vec<Value> = nodes.regions();
    assert!(regions.len() > 5, "{} regions", regions.len());
}
