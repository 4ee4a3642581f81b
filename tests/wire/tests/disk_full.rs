//! Disks that fill, on filesystems of the tests' own: what is refused, what goes on, and that it ends by itself.

mod common;

use std::time::Duration;

use basalt_wire::fleet::{Fleet, Plan};
use basalt_wire::process::wait_for;
use basalt_wire::small_disk::SmallDisk;
use common::clients::Clients;
use common::raw::client;
use common::{bytes, on_a_runtime};
use proto::errorpb;
use proto::kvrpcpb::{self as kv, DiskFullOpt};

/// A small log, and nodes that report often.
const CONFIG: &str = "[storage]\nreserve-space = \"96MiB\"\n[basalt]\nlog-segment-size = \"1MiB\"\n\
                      replay-cap = \"8MiB\"\n[raftstore]\npd-heartbeat-tick-interval = \"1s\"\n\
                      pd-store-heartbeat-tick-interval = \"1s\"\n";
const DISK_MEBIBYTES: u64 = 320;
const MEBIBYTE: u64 = 1 << 20;

/// A put in one attempt at the leader.
async fn put(clients: &Clients, key: &str, opt: DiskFullOpt) -> Result<(), errorpb::Error> {
    let place = clients.place(key.as_bytes()).await;
    let mut context = place.context(place.leader);
    context.set_disk_full_opt(opt);
    let request =
        kv::RawPutRequest { context: Some(context), key: bytes(key), value: bytes("value"), ..Default::default() };
    let answer: kv::RawPutResponse = clients.store(place.leader).tikv("RawPut", &request).await;
    assert_eq!(answer.error, "");
    answer.region_error.map_or(Ok(()), Err)
}

/// Puts until it is refused for the reason that disks are full; whose.
async fn until_refused(clients: &Clients, opt: DiskFullOpt) -> Vec<u64> {
    for _ in 0..500 {
        match put(clients, "refused", opt).await {
            Err(errorpb::Error { disk_full: Some(full), .. }) => {
                assert!(!full.reason.is_empty());
                return full.store_id;
            }
            Ok(()) | Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
    panic!("ten seconds after a disk was filled, writes are not refused");
}

async fn until_taken(clients: &Clients, key: &str) {
    for _ in 0..500 {
        match put(clients, key, DiskFullOpt::NotAllowedOnFull).await {
            Ok(()) => return,
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
    panic!("ten seconds after there is room again, writes are refused");
}

async fn get(clients: &Clients, key: &str) -> bool {
    let place = clients.place(key.as_bytes()).await;
    clients.get(&place.context(place.leader), key.as_bytes()).await.0.is_some()
}

async fn delete(clients: &Clients, key: &str) {
    let place = clients.place(key.as_bytes()).await;
    let context = Some(place.context(place.leader));
    let request = kv::RawDeleteRequest { context, key: bytes(key), ..Default::default() };
    let answer: kv::RawDeleteResponse = clients.store(place.leader).tikv("RawDelete", &request).await;
    assert_eq!((answer.region_error, answer.error.as_str()), (None, ""));
}

async fn delete_range(clients: &Clients, start: &str, end: &str) {
    let place = clients.place(start.as_bytes()).await;
    let context = Some(place.context(place.leader));
    let request =
        kv::RawDeleteRangeRequest { context, start_key: bytes(start), end_key: bytes(end), ..Default::default() };
    let answer: kv::RawDeleteRangeResponse = clients.store(place.leader).tikv("RawDeleteRange", &request).await;
    assert_eq!((answer.region_error, answer.error.as_str()), (None, ""));
}

fn is_busy(fleet: &Fleet, number: usize) -> bool {
    let store = fleet.get(&format!("/pd/api/v1/store/{}", fleet.members[number].store_id));
    store["status"]["is_busy"] == true
}

#[test]
fn a_full_node_reads_and_deletes_and_comes_back_by_itself() {
    let Some(disk) = SmallDisk::mount(DISK_MEBIBYTES) else { return };
    let mut fleet = Fleet::start(Plan { nodes: 0, config: CONFIG.into(), ..Plan::default() });
    let number = fleet.add(disk.path().join("node"), "127.0.0.1:0");
    let store = fleet.members[number].store_id;
    let reserve = disk.path().join("node/reserve");
    on_a_runtime(async {
        let clients = Clients::connect(&fleet).await;
        for key in ["a", "b", "c", "d", "e", "f"] {
            clients.put(key.as_bytes(), b"value").await;
        }
        tokio::task::block_in_place(|| {
            wait_for("the reserve file", || reserve.exists());
            disk.leave_free(72 * MEBIBYTE);
        });
        assert_eq!(until_refused(&clients, DiskFullOpt::NotAllowedOnFull).await, [store]);
        assert_eq!(put(&clients, "g", DiskFullOpt::AllowedOnAlmostFull).await, Ok(()));
        assert!(get(&clients, "a").await);
        delete(&clients, "a").await;
        tokio::task::block_in_place(|| {
            wait_for("PD to know", || is_busy(&fleet, number));
            disk.leave_free(24 * MEBIBYTE);
        });
        assert_eq!(until_refused(&clients, DiskFullOpt::AllowedOnAlmostFull).await, [store]);
        assert_eq!(put(&clients, "h", DiskFullOpt::AllowedOnAlreadyFull).await, Ok(()));
        delete_range(&clients, "b", "c").await;
        delete(&clients, "c").await;
        assert!(!get(&clients, "b").await && !get(&clients, "c").await && get(&clients, "d").await);
        assert!(reserve.exists());
    });
    // Others take the last byte, and the node restarts: the reserve file makes room for that.
    fleet.kill(number);
    disk.leave_free(0);
    fleet.launch(number);
    assert!(!reserve.exists());
    on_a_runtime(async {
        let clients = Clients::connect(&fleet).await;
        assert!(!get(&clients, "c").await && get(&clients, "d").await && get(&clients, "h").await);
        assert_eq!(until_refused(&clients, DiskFullOpt::NotAllowedOnFull).await, [store]);
        delete(&clients, "d").await;
        disk.empty();
        until_taken(&clients, "i").await;
        assert!(get(&clients, "i").await && !get(&clients, "d").await);
        tokio::task::block_in_place(|| {
            wait_for("the reserve file again", || reserve.exists());
            wait_for("PD to know", || !is_busy(&fleet, number));
        });
    });
    fleet.stop(number);
    drop(fleet);
}

#[test]
fn a_full_node_gives_its_leaders_away_and_writes_go_on() {
    let Some(disk) = SmallDisk::mount(DISK_MEBIBYTES) else { return };
    let mut fleet = Fleet::start(Plan { nodes: 0, config: CONFIG.into(), ..Plan::default() });
    let number = fleet.add(disk.path().join("node"), "127.0.0.1:0");
    for other in ["other-1", "other-2"] {
        fleet.add(fleet.dir().join(other), "127.0.0.1:0");
    }
    let store = fleet.members[number].store_id;
    let leaders_there = |fleet: &Fleet| {
        fleet.regions().iter().filter(|region| region["leader"]["store_id"].as_u64() == Some(store)).count()
    };
    fleet.replicate(3);
    on_a_runtime(async {
        let raw = client(&fleet.pd).await;
        for i in 0..200 {
            raw.put(format!("key-{i:03}"), vec![b'v'; 1000]).await.expect("a put");
        }
        tokio::task::block_in_place(|| {
            for cut in ["key-050", "key-100", "key-150"] {
                fleet.ctl(&["split", cut]);
            }
            wait_for("the pieces", || fleet.regions().len() >= 4);
            fleet.wait_for_replicas(3);
            disk.leave_free(24 * MEBIBYTE);
        });
        let filled = std::time::Instant::now();
        let mut longest = Duration::ZERO;
        for i in 0..200 {
            let begun = std::time::Instant::now();
            raw.put(format!("key-{i:03}"), vec![b'w'; 1000]).await.expect("a put while a disk is full");
            longest = longest.max(begun.elapsed());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        tokio::task::block_in_place(|| wait_for("the leaders to leave", || leaders_there(&fleet) == 0));
        println!("the leaders had left after {:?} at most; the longest put took {longest:?}", filled.elapsed());
        tokio::task::block_in_place(|| {
            wait_for("PD to know", || is_busy(&fleet, number));
            // Nothing comes back while it is full.
            std::thread::sleep(Duration::from_secs(2));
            assert_eq!(leaders_there(&fleet), 0);
            disk.empty();
            wait_for("PD to know", || !is_busy(&fleet, number));
        });
        let found = raw.scan("key-000".to_string().."key-999".to_string(), 200).await.expect("a scan");
        assert_eq!(found.iter().filter(|pair| pair.1[0] == b'w').count(), 200);
    });
    fleet.compare();
    (0..3).for_each(|number| fleet.kill(number));
    drop(fleet);
}
