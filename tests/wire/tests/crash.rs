//! Real processes, killed (SIGKILL) at random moments under load with splits and moves: every acknowledged write is
//! there afterwards.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use basalt_wire::process::{Cluster, Start, config_file};
use base::Prng;
use tikv_client::{Config, RawClient};

/// Kills in CI; `BASALT_KILLS` asks for more.
const KILLS: u32 = 8;
const WRITERS: u64 = 8;
const KEYS: u64 = 400;

/// What writers know: the last acknowledged value of each key, and the one that was being written when the node died.
#[derive(Default)]
struct Books {
    sure: BTreeMap<Vec<u8>, u64>,
    pending: BTreeMap<Vec<u8>, u64>,
}

static ACKNOWLEDGED: AtomicU64 = AtomicU64::new(0);

fn kills() -> u32 {
    std::env::var("BASALT_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(KILLS)
}

async fn client(cluster: &Cluster) -> RawClient {
    let config = Config::default().with_timeout(Duration::from_secs(5));
    RawClient::new_with_config(vec![cluster.pd.clone()], config).await.expect("a client")
}

/// Writes until the node is gone. Keys of a writer are its own, values rise.
async fn write(client: RawClient, writer: u64, seed: u64, books: Arc<Mutex<Books>>) {
    let mut prng = Prng::new(seed);
    loop {
        let key = format!("crash-{:04}-{writer}", prng.below(KEYS)).into_bytes();
        let next = {
            let mut books = books.lock().expect("no panic while locked");
            let last = books.sure.get(&key).max(books.pending.get(&key)).copied().unwrap_or(0);
            books.pending.insert(key.clone(), last + 1);
            last + 1
        };
        let value = format!("{next}:{}", "v".repeat(prng.below(600) as usize));
        if client.put(key.clone(), value.into_bytes()).await.is_err() {
            return;
        }
        ACKNOWLEDGED.fetch_add(1, Ordering::Relaxed);
        let mut books = books.lock().expect("no panic while locked");
        books.sure.insert(key.clone(), next);
        books.pending.remove(&key);
    }
}

/// Every key holds its last acknowledged value, or the one that was in doubt.
async fn check(cluster: &Cluster, books: &Mutex<Books>, round: u32) {
    let client = client(cluster).await;
    let keys: Vec<Vec<u8>> = {
        let books = books.lock().expect("no panic while locked");
        books.sure.keys().chain(books.pending.keys()).cloned().collect()
    };
    for chunk in keys.chunks(500) {
        let found = client.batch_get(chunk.to_vec()).await.expect("a batch get");
        let found: BTreeMap<Vec<u8>, u64> = found
            .into_iter()
            .map(|pair| {
                let text = String::from_utf8(pair.1).expect("text");
                let number = text.split(':').next().and_then(|number| number.parse().ok()).expect("a number");
                (pair.0.into(), number)
            })
            .collect();
        let mut books = books.lock().expect("no panic while locked");
        for key in chunk {
            let held = found.get(key).copied().unwrap_or(0);
            let (sure, pending) = (books.sure.get(key).copied().unwrap_or(0), books.pending.get(key).copied());
            assert!(
                held == sure || Some(held) == pending,
                "round {round}: {} holds {held}, acknowledged was {sure}, in doubt {pending:?}",
                String::from_utf8_lossy(key)
            );
            if held > 0 {
                books.sure.insert(key.clone(), held);
            }
            books.pending.remove(key);
        }
    }
}

#[test]
fn kill_9_loses_nothing_that_was_acknowledged() {
    let dir = tempfile::tempdir().expect("a folder");
    let config = config_file(
        dir.path(),
        "[coprocessor]\nregion-max-keys = 200\nregion-split-keys = 100\n[raftstore]\nregion-split-check-diff = \"4KiB\"\n\
         [basalt]\nreplay-cap = \"4MiB\"\nlog-segment-size = \"1MiB\"\n",
    );
    let seed = 20_260_722;
    let mut prng = Prng::new(seed);
    let books = Arc::new(Mutex::new(Books::default()));
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let (mut splits, mut moves) = (0, 0);
    for round in 0..kills() {
        let start = Start {
            data_dir: dir.path().join("data"),
            cores: 1 + prng.below(4) as usize,
            io: if prng.one_in(2) { "auto" } else { "epoll" }.into(),
            config: Some(config.clone()),
            ..Default::default()
        };
        let cluster = Cluster::start(&start);
        runtime.block_on(async {
            check(&cluster, &books, round).await;
            let client = client(&cluster).await;
            for writer in 0..WRITERS {
                tokio::spawn(write(client.clone(), writer, prng.next_u64(), books.clone()));
            }
            tokio::time::sleep(Duration::from_millis(prng.range(200, 1500))).await;
            splits += cluster.metric("basalt_shard_splits_total");
            moves += cluster.metric("basalt_shard_moves_in_total");
            cluster.kill_node();
        });
        // Writers end by themselves when their client gives up; what they still have in doubt stays in the books.
        runtime.block_on(async { tokio::time::sleep(Duration::from_millis(100)).await });
    }
    let start = Start {
        data_dir: dir.path().join("data"),
        cores: 2,
        io: "auto".into(),
        config: Some(config),
        ..Default::default()
    };
    let cluster = Cluster::start(&start);
    runtime.block_on(check(&cluster, &books, kills()));
    let written = books.lock().expect("no panic while locked").sure.len();
    let acknowledged = ACKNOWLEDGED.load(Ordering::Relaxed);
    println!("{} kills: {acknowledged} acknowledged writes, {splits} splits, {moves} moves", kills());
    assert!(written > 100, "only {written} keys were ever written");
    assert!(splits > 0 && moves > 0, "{splits} splits and {moves} moves");
    cluster.stop();
}
