//! What operators do, on real processes: `basalt ctl` in the words of `pd-ctl`, restarts one by one under load, nodes that
//! join, and folders that were wiped or copied.

mod common;

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use basalt_wire::fleet::{Fleet, Plan, are_whole};
use basalt_wire::process::{Log, binary, start, wait_for};
use common::on_a_runtime;
use serde_json::{Value, json};
use tikv_client::{Config, RawClient};

/// Nodes that report often.
const QUICK: &str = "[raftstore]\npd-heartbeat-tick-interval = \"1s\"\npd-store-heartbeat-tick-interval = \"1s\"\n";
/// Keys of the load, and those at which its regions are cut.
const KEYS: u32 = 60;
const CUTS: [u32; 5] = [10, 20, 30, 40, 50];
/// Longest that a key may not be writable: the aim is a second, and a busy machine gets three times that.
const GAP_MAX: Duration = Duration::from_secs(3);

fn fleet(nodes: usize) -> Fleet {
    Fleet::start(Plan { nodes, config: QUICK.into(), ..Plan::default() })
}

fn key(i: u32) -> String {
    format!("key-{i:04}")
}

fn store_of(stores: &Value, id: u64) -> Option<&Value> {
    stores["stores"].as_array()?.iter().find(|store| store["store"]["id"] == id)
}

fn leader_of(fleet: &Fleet, region: u64) -> Option<u64> {
    fleet.get(&format!("/pd/api/v1/region/id/{region}"))["leader"]["store_id"].as_u64()
}

/// A refusal of ctl: exit code 1 and a reason, which is returned.
fn refused(fleet: &Fleet, arguments: &[&str]) -> String {
    let output = fleet.ctl_output(arguments);
    let told = String::from_utf8_lossy(&output.stderr).to_string();
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {told}");
    assert!(told.starts_with("basalt: ") && output.stdout.is_empty(), "{arguments:?}: {told}");
    told
}

#[test]
fn ctl_speaks_to_a_cluster_in_the_words_of_pd_ctl() {
    let fleet = fleet(4);
    fleet.ctl(&["config", "set", "low-space-ratio", "0.999"]);
    assert!(
        fleet
            .ctl(&["config", "show", "schedule"])
            .lines()
            .any(|line| { line.split_whitespace().collect::<Vec<_>>() == ["low-space-ratio", "0.999"] })
    );
    wait_for("three replicas", || are_whole(&fleet.get("/pd/api/v1/regions"), 3));
    let ids: Vec<u64> = fleet.members.iter().map(|member| member.store_id).collect();
    let texts: Vec<String> = ids.iter().map(u64::to_string).collect();

    let list = fleet.ctl(&["store", "list"]);
    assert_eq!(list.lines().count(), 1 + 4, "{list}");
    assert!(fleet.members.iter().all(|member| list.contains(&member.address)), "{list}");
    fleet.ctl(&["store", &texts[0], "label", "zone=a", "host=h1"]);
    fleet.ctl(&["store", "weight", &texts[0], "1", "0.5"]);
    fleet.ctl(&["store", "limit", &texts[0], "30", "add-peer"]);
    let list = fleet.ctl(&["store"]);
    assert!(list.contains("host=h1") && list.contains("zone=a") && list.contains("0.5"), "{list}");
    assert!(fleet.ctl(&["store", &texts[0]]).contains(&fleet.members[0].address));
    let limits = fleet.ctl(&["store", "limit"]);
    let limit = limits.lines().find(|line| line.split_whitespace().next() == Some(&texts[0])).expect("its line");
    assert_eq!(limit.split_whitespace().nth(1).and_then(|rate| rate.parse().ok()), Some(30.0));
    let members = fleet.ctl(&["member"]);
    assert!(members.lines().count() == 2 && members.contains(&fleet.pd) && members.contains("leads"), "{members}");

    // A leader moves by an operator, and by a scheduler.
    let regions = fleet.get("/pd/api/v1/regions");
    let region = regions["regions"][0]["id"].as_u64().expect("an id");
    let leader = leader_of(&fleet, region).expect("a leader");
    let peers: Vec<u64> = regions["regions"][0]["peers"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|peer| peer["store_id"].as_u64())
        .collect();
    let other = *peers.iter().find(|store| **store != leader).expect("a follower");
    let region = region.to_string();
    fleet.ctl(&["operator", "add", "transfer-leader", &region, &other.to_string()]);
    wait_for("the leader to move", || leader_of(&fleet, region.parse().expect("an id")) == Some(other));
    assert!(fleet.ctl(&["operator", "check", &region]).contains("transfer"));
    fleet.ctl(&["operator", "list"]);
    assert!(!fleet.ctl(&["operator", "records"]).is_empty());
    fleet.ctl(&["scheduler", "add", "evict-leader-scheduler", &other.to_string()]);
    assert!(fleet.ctl(&["scheduler"]).contains("evict-leader-scheduler"));
    wait_for("the leader to leave", || leader_of(&fleet, region.parse().expect("an id")) != Some(other));
    fleet.ctl(&["scheduler", "remove", "evict-leader-scheduler"]);
    fleet.ctl(&["scheduler", "pause", "all", "1"]);
    fleet.ctl(&["scheduler", "resume", "all"]);

    // Draining is undone, and done.
    let drained = peers[0].to_string();
    fleet.ctl(&["scheduler", "pause", "all", "60"]);
    fleet.ctl(&["store", "delete", &drained]);
    fleet.ctl(&["store", "cancel-delete", &drained]);
    let state = |id: u64| {
        store_of(&fleet.get("/pd/api/v1/stores?state=0&state=1&state=2"), id)
            .and_then(|store| store["store"]["state_name"].as_str().map(str::to_string))
    };
    assert_eq!(state(peers[0]).as_deref(), Some("Up"));
    fleet.ctl(&["scheduler", "resume", "all"]);
    fleet.ctl(&["store", "delete", &drained]);
    wait_for("the store to be empty and buried", || state(peers[0]).as_deref() == Some("Tombstone"));
    assert!(are_whole(&fleet.get("/pd/api/v1/regions"), 3), "its replicas are elsewhere");

    assert!(refused(&fleet, &["store", "999999"]).contains("not found"));
    assert!(refused(&fleet, &["store", "cancel-delete", &drained]).contains("tombstone"));
    assert!(refused(&fleet, &["operator", "add", "transfer-leader", "999999", "1"]).contains("999999"));
    assert!(refused(&fleet, &["scheduler", "add", "no-such-scheduler"]).contains("unknown scheduler"));
    assert!(refused(&fleet, &["config", "set", "no-such-setting", "1"]).contains("no-such-setting"));
    assert!(refused(&fleet, &["operator", "add", "fly", "1"]).contains("transfer-leader REGION STORE"));
}

/// Writes every key again and again, and notes the longest time between two writes of one key that were acknowledged.
/// An error that reaches the caller ends it.
async fn load(client: Arc<RawClient>, part: u32, stop: Arc<AtomicBool>, gap_millis: Arc<AtomicU64>) -> u64 {
    let mut last = vec![Instant::now(); KEYS as usize];
    let mut writes = 0;
    while !stop.load(Ordering::Relaxed) {
        for i in (0..KEYS).filter(|i| i % 6 == part) {
            let value = format!("{writes}");
            client.put(key(i), value.clone()).await.unwrap_or_else(|error| panic!("a put of {}: {error:?}", key(i)));
            let found = client.get(key(i)).await.unwrap_or_else(|error| panic!("a get of {}: {error:?}", key(i)));
            assert_eq!(found, Some(value.into_bytes()), "one's own write");
            let gap = last[i as usize].elapsed();
            gap_millis.fetch_max(u64::try_from(gap.as_millis()).expect("short"), Ordering::Relaxed);
            last[i as usize] = Instant::now();
            writes += 1;
        }
    }
    writes
}

#[test]
fn nodes_are_restarted_one_by_one_and_no_client_notices() {
    let mut fleet = fleet(3);
    fleet.replicate(3);
    fleet.ctl(&["put", &key(0), "first"]);
    CUTS.iter().for_each(|cut| drop(fleet.ctl(&["split", &key(*cut)])));
    wait_for("the pieces", || {
        let regions = fleet.get("/pd/api/v1/regions");
        regions["count"].as_u64() > Some(CUTS.len() as u64) && are_whole(&regions, 3)
    });
    let (stop, gap_millis) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let pd = fleet.pd.clone();
    let mut handed_over = 0;
    on_a_runtime(async {
        let client = Arc::new(
            RawClient::new_with_config(vec![pd], Config::default().with_timeout(Duration::from_secs(10)))
                .await
                .expect("a client"),
        );
        let tasks: Vec<_> =
            (0..6).map(|part| tokio::spawn(load(client.clone(), part, stop.clone(), gap_millis.clone()))).collect();
        for number in 0..3 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let before = fleet.node_log(number).len();
            tokio::task::block_in_place(|| fleet.stop(number));
            let log = fleet.node_log(number)[before..].to_string();
            if let Some(line) = log.lines().find(|line| line.contains("leaders were handed to other nodes")) {
                assert!(line.contains("left=0"), "{line}");
                handed_over += 1;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
            tokio::task::block_in_place(|| {
                fleet.launch(number);
                wait_for("all replicas", || are_whole(&fleet.get("/pd/api/v1/regions"), 3));
            });
        }
        stop.store(true, Ordering::Relaxed);
        let mut writes = 0;
        for task in tasks {
            writes += task.await.expect("no error reaches a client");
        }
        assert!(writes > u64::from(KEYS), "{writes} writes");
    });
    let gap = Duration::from_millis(gap_millis.load(Ordering::Relaxed));
    println!("longest time between two writes of a key: {gap:?}");
    assert!(gap < GAP_MAX, "a key was not writable for {gap:?}");
    assert!(handed_over >= 2, "leaders were handed over at {handed_over} of three stops");
}

/// The log of a node that is down is not known to be whole: it may come back without it.
#[test]
fn no_replica_is_removed_while_too_few_of_the_others_answer() {
    let mut fleet = Fleet::replicated(3, 1, QUICK);
    fleet.wait_for_replicas(3);
    let leader = fleet.with_most_leaders();
    let (kept, down) = ((leader + 1) % 3, (leader + 2) % 3);
    let told = |fleet: &Fleet| fleet.node_log(leader).matches("no quorum with a log that answers").count();
    let region = fleet.regions().swap_remove(0);
    fleet.kill(down);
    std::thread::sleep(Duration::from_millis(500));
    let (id, store) = (region["id"].clone(), fleet.members[kept].store_id);
    assert!(fleet.order(&json!({ "name": "remove-peer", "region_id": id, "store_id": store })), "an order is taken");
    wait_for("a refusal", || told(&fleet) > 0);
    let stays = fleet.get(&format!("/pd/api/v1/region/id/{id}"));
    assert_eq!(stays["peers"].as_array().map(Vec::len), Some(3), "{stays}");
    // When it is back, nothing holds the order up any more; and the placement driver makes a third replica again.
    fleet.launch(down);
    fleet.wait_for_replicas(3);
}

#[test]
fn a_node_that_joins_never_makes_a_cluster() {
    let empty = fleet(0);
    let dir = tempfile::tempdir().expect("a folder");
    let join = |pd: &str, folder: &str| {
        let mut command = Command::new(binary());
        command
            .args(["serve", "--die-with-parent", "--allow-buffered", "--cores", "1", "--no-pin", "--join", pd])
            .args(["--addr", "127.0.0.1:0", "--status-addr", "127.0.0.1:0", "--data-dir"])
            .arg(dir.path().join(folder))
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        command
    };
    let output = join(&empty.pd, "first").stderr(Stdio::piped()).output().expect("it runs");
    let told = String::from_utf8_lossy(&output.stderr).to_string();
    assert!(output.status.code() == Some(1) && told.contains("no cluster yet to join"), "{told}");
    assert_eq!(empty.get("/pd/api/v1/cluster/status")["is_initialized"], false);

    let fleet = fleet(1);
    let mut joined = join(&fleet.pd, "second").spawn().expect("it runs");
    wait_for("the second store", || fleet.get("/pd/api/v1/stores")["count"] == 2);
    executor::terminate(joined.id());
    assert!(joined.wait().expect("it ends").success());
}

#[test]
fn basalt_dev_goes_on_while_one_of_its_nodes_is_left() {
    let dir = tempfile::tempdir().expect("a folder");
    let log = dir.path().join("dev.log");
    let mut command = Command::new(binary());
    command
        .args(["dev", "--die-with-parent", "--nodes", "2", "--cores", "1", "--pd-port", "0", "--allow-buffered"])
        .arg("--data-dir")
        .arg(dir.path().join("data"));
    let (mut dev, ready) = start(command, Log::File(log.clone())).expect("basalt dev starts");
    let kill = |node: usize| {
        let pid = ready["nodes"][node]["pid"].to_string();
        assert!(Command::new("kill").args(["-KILL", &pid]).status().expect("kill runs").success());
    };
    let told = |text: &str| std::fs::read_to_string(&log).expect("a log").contains(text);
    kill(1);
    wait_for("a line about the node", || told("node 2 ended") && told("others that are left to go on: 1"));
    assert!(dev.try_wait().expect("a process").is_none(), "dev goes on");
    let pd = ready["pd"].as_str().expect("an address");
    let put = Command::new(binary()).args(["ctl", "--pd", pd, "put", "a", "1"]).status().expect("ctl runs");
    assert!(put.success(), "the other node serves");
    kill(0);
    assert!(!dev.wait().expect("it ends").success(), "nothing is left to go on with");
    assert!(told("node 1 ended"));
}

#[test]
fn a_wiped_folder_is_refused_under_its_old_id_and_welcome_as_a_new_node() {
    let mut fleet = fleet(3);
    fleet.replicate(3);
    let old = fleet.members[2].store_id;
    let dir = fleet.members[2].data_dir.clone();
    fleet.kill(2);

    // The identity without its shards would vote again where it has voted.
    std::fs::remove_dir_all(dir.join("shard-000")).expect("it was there");
    assert!(!fleet.try_launch(2), "an identity without its shards starts");
    assert!(fleet.node_log(2).contains("lacks what store"), "{}", fleet.node_log(2));

    // Nothing left: a new store, whose address is still the old one's.
    std::fs::remove_dir_all(&dir).expect("it was there");
    assert!(!fleet.try_launch(2), "an address in use is taken");
    assert!(fleet.node_log(2).contains("duplicated store address"), "{}", fleet.node_log(2));

    fleet.ctl(&["store", "delete", &old.to_string(), "force"]);
    fleet.launch(2);
    assert_ne!(fleet.members[2].store_id, old);
    wait_for("three replicas without the old store", || {
        let regions = fleet.get("/pd/api/v1/regions");
        let has_old =
            |region: &Value| region["peers"].as_array().into_iter().flatten().any(|peer| peer["store_id"] == old);
        are_whole(&regions, 3) && !regions["regions"].as_array().into_iter().flatten().any(has_old)
    });
}

#[test]
fn a_stale_copy_of_a_folder_is_refused() {
    let mut fleet = fleet(1);
    fleet.ctl(&["put", "a", "1"]);
    fleet.stop(0);
    let dir = fleet.members[0].data_dir.clone();
    let copy = fleet.dir().join("copy");
    copy_folder(&dir, &copy);
    fleet.launch(0);
    fleet.ctl(&["put", "a", "2"]);
    fleet.kill(0);

    let original = std::mem::replace(&mut fleet.members[0].data_dir, copy);
    assert!(!fleet.try_launch(0), "a stale copy starts");
    assert!(fleet.node_log(0).contains("stale copy"), "{}", fleet.node_log(0));
    assert!(fleet.pd_log().contains("stale copy"), "{}", fleet.pd_log());
    fleet.members[0].data_dir = original;
    fleet.launch(0);
    assert_eq!(fleet.ctl(&["get", "a"]), "2\n");
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for entry in std::fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("a type").is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("a file");
        }
    }
}
