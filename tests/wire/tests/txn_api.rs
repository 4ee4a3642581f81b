//! Transactions through the third-party crate `tikv-client`, against real processes.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use basalt_wire::fleet::Fleet;
use basalt_wire::process::Cluster;
use common::raw::SMALL_REGIONS;
use common::txn::{account, client, impatient, name, optimistic, pairs, pessimistic, run_bank};
use common::{on_a_runtime, start};
use serde_json::json;
use tikv_client::{TimestampExt as _, TransactionClient};

/// Runs `test` with a client of a cluster of one node.
fn with_client(cores: usize, config: &str, test: impl AsyncFnOnce(&TransactionClient, &Cluster)) {
    let (cluster, _dir) = start(cores, "auto", config, &[]);
    on_a_runtime(async {
        let client = client(&cluster.pd).await;
        test(&client, &cluster).await;
    });
    cluster.stop();
}

async fn put(client: &TransactionClient, pairs: &[(&str, &str)]) {
    let mut txn = client.begin_with_options(optimistic()).await.expect("a transaction");
    for (key, value) in pairs {
        txn.put(name(key), value.as_bytes().to_vec()).await.expect("buffered");
    }
    txn.commit().await.expect("a commit");
}

async fn get(client: &TransactionClient, key: &str) -> Option<String> {
    let now = client.current_timestamp().await.expect("a timestamp");
    let found = client.snapshot(now, optimistic().read_only()).get(name(key)).await.expect("a read");
    found.map(|value| String::from_utf8(value).expect("text"))
}

#[test]
fn what_is_committed_is_read_by_later_snapshots_and_not_by_earlier_ones() {
    with_client(2, "", async |client, _| {
        put(client, &[("a", "1"), ("b", "1")]).await;
        let before = client.current_timestamp().await.expect("a timestamp");
        for options in [optimistic(), optimistic().use_async_commit(), optimistic().try_one_pc()] {
            let mut txn = client.begin_with_options(options).await.expect("a transaction");
            assert!(txn.get(name("a")).await.expect("a read").is_some());
            txn.put(name("a"), "x".repeat(1000)).await.expect("buffered");
            txn.delete(name("b")).await.expect("buffered");
            assert_eq!(txn.get(name("b")).await.expect("its own write"), None);
            let commit_ts = txn.commit().await.expect("a commit").expect("it has written");
            assert!(commit_ts.version() > before.version());
            assert_eq!(get(client, "a").await.map(|value| value.len()), Some(1000));
            assert_eq!(get(client, "b").await, None);
            put(client, &[("b", "2")]).await;
        }
        let mut old = client.snapshot(before, optimistic().read_only());
        assert_eq!(old.get(name("a")).await.expect("a read"), Some(b"1".to_vec()));
        assert_eq!(old.get(name("b")).await.expect("a read"), Some(b"1".to_vec()));
    });
}

#[test]
fn of_two_writers_of_a_key_the_later_one_fails() {
    with_client(1, "", async |client, _| {
        for options in [optimistic(), optimistic().use_async_commit(), optimistic().try_one_pc()] {
            let mut first = client.begin_with_options(options.clone()).await.expect("a transaction");
            let mut second = client.begin_with_options(options).await.expect("a transaction");
            first.put(name("k"), "first").await.expect("buffered");
            // Who has read nothing may be ordered after a commit at the very timestamp that it began with: this client
            // lets async commit and one-phase commit choose timestamps without fetching one first.
            second.get(name("k")).await.expect("a read");
            second.put(name("k"), "second").await.expect("buffered");
            second.put(name("other"), "second").await.expect("buffered");
            first.commit().await.expect("a commit");
            let error = second.commit().await.expect_err("a conflict");
            assert!(format!("{error:?}").contains("WriteConflict"), "{error:?}");
            second.rollback().await.expect("a rollback");
            assert_eq!(get(client, "k").await.as_deref(), Some("first"));
            assert_eq!(get(client, "other").await, None);
        }
    });
}

#[test]
fn an_insert_of_what_is_there_fails() {
    with_client(1, "", async |client, _| {
        put(client, &[("k", "v")]).await;
        let mut txn = client.begin_with_options(optimistic()).await.expect("a transaction");
        txn.insert(name("k"), "w").await.expect("buffered");
        let error = txn.commit().await.expect_err("it is there");
        assert!(format!("{error:?}").contains("AlreadyExist"), "{error:?}");
        txn.rollback().await.expect("a rollback");
        let mut txn = client.begin_with_options(optimistic()).await.expect("a transaction");
        txn.insert(name("l"), "w").await.expect("buffered");
        txn.commit().await.expect("it is not there");
        assert_eq!(get(client, "k").await.as_deref(), Some("v"));
        assert_eq!(get(client, "l").await.as_deref(), Some("w"));
    });
}

#[test]
fn a_locked_key_keeps_who_has_read_it_from_write_skew() {
    with_client(1, "", async |client, _| {
        put(client, &[("a", "on call"), ("b", "on call")]).await;
        let mut one = client.begin_with_options(optimistic()).await.expect("a transaction");
        let mut two = client.begin_with_options(optimistic()).await.expect("a transaction");
        for (txn, own, other) in [(&mut one, "a", "b"), (&mut two, "b", "a")] {
            assert_eq!(txn.get(name(other)).await.expect("a read"), Some(b"on call".to_vec()));
            txn.lock_keys([name(other)]).await.expect("buffered");
            txn.put(name(own), "home").await.expect("buffered");
        }
        one.commit().await.expect("a commit");
        two.commit().await.expect_err("the other one went home");
        two.rollback().await.expect("a rollback");
        assert_eq!(get(client, "b").await.as_deref(), Some("on call"));
    });
}

#[test]
fn scans_go_both_ways_over_many_regions() {
    with_client(4, SMALL_REGIONS, async |client, cluster| {
        const KEYS: u32 = 600;
        for first in (0..KEYS).step_by(50) {
            let mut txn = client.begin_with_options(optimistic()).await.expect("a transaction");
            for i in first..first + 50 {
                txn.put(account(i), format!("{i}")).await.expect("buffered");
            }
            txn.commit().await.expect("a commit");
        }
        let expected: Vec<_> = (0..KEYS).map(|i| (account(i), format!("{i}").into_bytes())).collect();
        let mut reversed = expected.clone();
        reversed.reverse();
        for _ in 0..5 {
            let now = client.current_timestamp().await.expect("a timestamp");
            let mut snapshot = client.snapshot(now, optimistic().read_only());
            let all = account(0)..account(KEYS);
            assert_eq!(pairs(snapshot.scan(all.clone(), KEYS).await.expect("a scan")), expected);
            assert_eq!(pairs(snapshot.scan_reverse(all.clone(), KEYS).await.expect("a scan")), reversed);
            assert_eq!(pairs(snapshot.scan(account(7)..account(300), 20).await.expect("a scan")), expected[7..27]);
            let keys: Vec<Vec<u8>> =
                snapshot.scan_keys(account(100)..account(200), 200).await.expect("a scan").map(Into::into).collect();
            assert_eq!(keys.len(), 100);
            let asked = (0..KEYS).step_by(3).map(account).chain([b"absent".to_vec()]);
            let mut some = pairs(snapshot.batch_get(asked).await.expect("a read"));
            some.sort();
            assert_eq!(some.len(), 200);
        }
        assert!(cluster.metric("basalt_shard_splits_total") > 5, "there are many regions");
    });
}

/// A client dies between its prewrites and its commit: whoever meets its locks later finds out.
#[test]
fn locks_of_a_dead_client_are_resolved() {
    with_client(2, "", async |client, _| {
        put(client, &[("a", "old"), ("b", "old")]).await;
        let mut txn = client.begin_with_options(optimistic()).await.expect("a transaction");
        txn.put(name("a"), "new").await.expect("buffered");
        txn.put(name("b"), "new").await.expect("buffered");
        // The commit is cut off anywhere on its way.
        for micros in [0, 300, 1000, 2000, 3000, 5000] {
            let mut txn = client.begin_with_options(impatient()).await.expect("a transaction");
            txn.put(name("a"), format!("{micros}")).await.expect("buffered");
            txn.put(name("b"), format!("{micros}")).await.expect("buffered");
            let _ = tokio::time::timeout(Duration::from_micros(micros), txn.commit()).await;
            drop(txn);
            let now = client.current_timestamp().await.expect("a timestamp");
            let mut found = None;
            for _ in 0..100 {
                let mut snapshot = client.snapshot(now.clone(), optimistic().read_only());
                if let Ok(pairs) = snapshot.batch_get([name("a"), name("b")]).await {
                    found = Some(pairs.map(|pair| pair.1).collect::<Vec<_>>());
                    break;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            let found = found.expect("locks are resolved in ten seconds");
            assert_eq!(found.len(), 2);
            assert_eq!(found[0], found[1], "all of a transaction or nothing");
        }
        let now = client.current_timestamp().await.expect("a timestamp");
        assert!(client.gc(now.clone()).await.expect("a collection"));
        assert_eq!(client.scan_locks(&now, .., 100).await.expect("a scan").len(), 0);
        let _ = txn.rollback().await;
    });
}

#[test]
fn who_locks_a_key_makes_the_next_one_wait() {
    with_client(2, "", async |client, _| {
        put(client, &[("k", "old")]).await;
        let mut first = client.begin_with_options(pessimistic()).await.expect("a transaction");
        assert_eq!(first.get_for_update(name("k")).await.expect("a lock"), Some(b"old".to_vec()));
        let started = Instant::now();
        let second = async {
            // A conflict says: look again.
            loop {
                let mut txn = client.begin_with_options(pessimistic()).await.expect("a transaction");
                match txn.get_for_update(name("k")).await {
                    Ok(found) => {
                        txn.put(name("k"), "newer").await.expect("locked");
                        txn.commit().await.expect("a commit");
                        return (found, started.elapsed());
                    }
                    Err(error) => {
                        let _ = txn.rollback().await;
                        assert!(started.elapsed() < Duration::from_secs(10), "{error:?}");
                    }
                }
            }
        };
        let commit = async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            first.put(name("k"), "new").await.expect("locked");
            first.commit().await.expect("a commit");
        };
        let ((found, waited), ()) = tokio::join!(second, commit);
        assert_eq!(found, Some(b"new".to_vec()));
        assert!(waited >= Duration::from_millis(300), "{waited:?}");
        assert_eq!(get(client, "k").await.as_deref(), Some("newer"));
    });
}

#[test]
fn two_that_wait_for_each_other_are_told_so() {
    with_client(4, "", async |client, _| {
        put(client, &[("a", "0"), ("b", "0")]).await;
        let mut one = client.begin_with_options(pessimistic()).await.expect("a transaction");
        let mut two = client.begin_with_options(pessimistic()).await.expect("a transaction");
        one.lock_keys([name("a")]).await.expect("a lock");
        two.lock_keys([name("b")]).await.expect("a lock");
        let started = Instant::now();
        let first = async {
            let locked = one.lock_keys([name("b")]).await;
            if locked.is_err() {
                one.rollback().await.expect("a rollback");
            }
            locked
        };
        let second = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let locked = two.lock_keys([name("a")]).await;
            if locked.is_err() {
                two.rollback().await.expect("a rollback");
            }
            locked
        };
        let (_, second) = tokio::join!(first, second);
        let error = format!("{:?}", second.expect_err("it would wait for ever"));
        assert!(error.contains("deadlock: Some"), "{error}");
        assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    });
}

#[test]
fn a_counter_under_locks_counts_all() {
    const CLIENTS: u32 = 8;
    const ROUNDS: u32 = 10;
    with_client(2, "", async |_, cluster| {
        let client = Arc::new(client(&cluster.pd).await);
        put(&client, &[("counter", "0")]).await;
        let mut tasks = Vec::new();
        for _ in 0..CLIENTS {
            let client = client.clone();
            tasks.push(tokio::spawn(async move {
                for _ in 0..ROUNDS {
                    let started = Instant::now();
                    while let Err(error) = increment(&client).await {
                        assert!(started.elapsed() < Duration::from_secs(60), "{error:?}");
                    }
                }
            }));
        }
        for task in tasks {
            task.await.expect("a client");
        }
        assert_eq!(get(&client, "counter").await, Some((CLIENTS * ROUNDS).to_string()));
        assert_eq!(cluster.metric("basalt_service_lock_waits"), 0);
    });
}

async fn increment(client: &TransactionClient) -> tikv_client::Result<()> {
    let mut txn = client.begin_with_options(pessimistic()).await?;
    let done = async {
        let value = txn.get_for_update(name("counter")).await?.expect("it is there");
        let next = String::from_utf8(value).expect("text").parse::<u32>().expect("a number") + 1;
        txn.put(name("counter"), next.to_string()).await?;
        txn.commit().await
    }
    .await;
    if done.is_err() {
        // A commit whose answer is lost would be counted twice; nothing fails here that could lose one.
        let _ = txn.rollback().await;
    }
    done.map(drop)
}

#[test]
fn a_bank_loses_nothing_while_regions_split_and_move() {
    with_client(4, SMALL_REGIONS, async |_, cluster| {
        let (transfers, looks) = run_bank(&cluster.pd, Duration::from_secs(10)).await;
        println!("{transfers} transfers, {looks} snapshots");
        assert!(transfers > 100 && looks > 10, "{transfers} {looks}");
        assert!(cluster.metric("basalt_shard_moves_in_total") > 0);
    });
}

#[test]
fn a_bank_on_three_nodes_loses_nothing_while_leaders_move() {
    let config =
        format!("{SMALL_REGIONS}pd-heartbeat-tick-interval = \"1s\"\npd-store-heartbeat-tick-interval = \"1s\"\n");
    let fleet = Fleet::replicated(3, 1, &config);
    let done = AtomicBool::new(false);
    let orders = std::thread::scope(|scope| {
        let disturber = scope.spawn(|| {
            let (mut orders, mut turn) = (0u64, 0usize);
            while !done.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(200));
                let regions = fleet.regions();
                let Some(region) = regions.get(turn % regions.len().max(1)) else { continue };
                turn += 1;
                let leader = region["leader"]["store_id"].as_u64();
                let peers = region["peers"].as_array().map_or(&[][..], Vec::as_slice);
                let other = peers.iter().filter_map(|peer| peer["store_id"].as_u64()).find(|id| Some(*id) != leader);
                let Some(store) = other else { continue };
                let order = json!({ "name": "transfer-leader", "region_id": region["id"], "to_store_id": store });
                orders += u64::from(fleet.order(&order));
            }
            orders
        });
        let used = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            on_a_runtime(run_bank(&fleet.pd, Duration::from_secs(15)))
        }));
        done.store(true, Ordering::Relaxed);
        let orders = disturber.join().expect("orders are given");
        match used {
            Err(panic) => std::panic::resume_unwind(panic),
            Ok((transfers, looks)) => {
                println!("{transfers} transfers, {looks} snapshots, {orders} orders");
                assert!(transfers > 50 && looks > 5, "{transfers} {looks}");
            }
        }
        orders
    });
    assert!(orders > 5, "leaders were moved: {orders}");
}

/// What TiDB does when a table was dropped: it asks every store.
#[test]
fn a_destroyed_range_is_gone_from_every_store_and_stays_so() {
    let check = async |client: &TransactionClient| {
        for (key, value) in [("a", Some("1")), ("b", None), ("c", None), ("d", Some("4"))] {
            assert_eq!(get(client, key).await.as_deref(), value, "{key}");
        }
    };
    let mut fleet = Fleet::replicated(3, 2, SMALL_REGIONS);
    fleet.wait_for_replicas(3);
    on_a_runtime(async {
        let client = client(&fleet.pd).await;
        put(&client, &[("a", "1"), ("b", "2"), ("c", "3"), ("d", "4")]).await;
        // Every replica has applied that.
        fleet.compare();
        client.unsafe_destroy_range(name("b")..name("d")).await.expect("every store does it");
        check(&client).await;
    });
    for number in 0..3 {
        fleet.kill(number);
        fleet.launch(number);
    }
    on_a_runtime(async { check(&client(&fleet.pd).await).await });
    fleet.compare();
}
