//! Under the stock placement driver (tikv/pd): its operators are carried out, its own schedulers and checkers run, nodes and
//! the placement driver come and go. `make interop` builds it and runs these tests; without it they are left out.

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use basalt_wire::fleet::{Fleet, Plan};
use basalt_wire::process::wait_for;
use basalt_wire::stock_pd::StockPd;
use base::Prng;
use common::on_a_runtime;
use common::raw::{KEYS, client, key, use_everything, value};
use serde_json::{Value, json};
use tikv_client::RawClient;

/// Nodes that report often, and regions that only split when they are told to.
const QUICK: &str = "[raftstore]\npd-heartbeat-tick-interval = \"1s\"\npd-store-heartbeat-tick-interval = \"1s\"\n";
/// The same, with regions of a few keys.
const SMALL: &str = "[coprocessor]\nregion-max-keys = 20\nregion-split-keys = 10\n\
                     [raftstore]\nregion-split-check-diff = \"256B\"\n\
                     pd-heartbeat-tick-interval = \"1s\"\npd-store-heartbeat-tick-interval = \"1s\"\n";
/// How long an operator may take on a busy machine. The placement driver repeats an order that was lost after seconds.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longest that a key may not be reached while nodes come and go: the aim is a second, and a busy machine gets three times that.
const GAP_MAX: Duration = Duration::from_secs(3);
/// Regions of a new cluster: it has the bounds of the default keyspace cut at once.
const FIRST_REGIONS: usize = 5;

/// Three nodes with three replicas of everything. What is named first is ended first.
struct Stock {
    fleet: Fleet,
    pd: StockPd,
    /// How long a key may be out of reach. The client hands it to its caller when a node cannot be connected to.
    gap: Duration,
}

impl Stock {
    fn start(config: &str) -> Stock {
        let pd = StockPd::start();
        let plan =
            Plan { under: Some(pd.address.clone()), certificates: None, config: config.into(), ..Plan::default() };
        let stock = Stock { fleet: Fleet::start(plan), pd, gap: Duration::ZERO };
        stock.lift_limits();
        wait_for("the first regions", || stock.fleet.regions().len() >= FIRST_REGIONS);
        stock.fleet.wait_for_replicas(3);
        stock
    }

    /// By default it adds fifteen peers a minute to a store.
    fn lift_limits(&self) {
        self.fleet.send("POST", "/pd/api/v1/stores/limit", &json!({ "rate": 5000 })).expect("limits");
    }

    fn region(&self, id: u64) -> Value {
        self.fleet.get(&format!("/pd/api/v1/region/id/{id}"))
    }

    /// The region of the first key.
    fn home(&self) -> u64 {
        self.fleet.get("/pd/api/v1/region/key/key-000000")["id"].as_u64().expect("an id")
    }

    /// Orders an operator; again while the placement driver refuses, since it may be busy with the region.
    fn order(&self, operator: &Value) {
        let limit = Instant::now() + PATIENCE;
        while let Err(why) = self.fleet.send("POST", "/pd/api/v1/operators", operator) {
            assert!(Instant::now() < limit, "{operator}: {why}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Orders an operator for `region` and waits until its listing shows what `holds`, and the placement driver calls the
    /// operator a success. Answers with its words on it.
    fn ordered(&self, region: u64, operator: &Value, holds: impl Fn(&Value) -> bool) -> String {
        let started = Instant::now();
        self.order(operator);
        while !holds(&self.region(region)) {
            let listed = || self.region(region);
            assert!(started.elapsed() < PATIENCE, "{operator}: {:#}\n{:#?}", listed(), self.records());
            std::thread::sleep(Duration::from_millis(10));
        }
        println!("{operator}: {:?}", started.elapsed());
        let status = || self.fleet.get(&format!("/pd/api/v1/operators/{region}")).to_string();
        wait_for("the operator's success", || status().contains("status: SUCCESS"));
        status()
    }

    /// What has ended, in the placement driver's words.
    fn records(&self) -> Vec<String> {
        let records = self.fleet.get("/pd/api/v1/operators/records");
        records.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_string).collect()
    }

    /// Asks until there is an answer, for as long as a key may be out of reach. Each time with a new client: it goes on asking
    /// a node that it could not connect to.
    async fn patiently<T>(&self, raw: &mut RawClient, ask: impl AsyncFn(&RawClient) -> tikv_client::Result<T>) -> T {
        let started = Instant::now();
        loop {
            match ask(raw).await {
                Ok(answer) => return answer,
                Err(error) => assert!(started.elapsed() < self.gap, "after {:?}: {error:?}", started.elapsed()),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
            *raw = client(&self.fleet.pd).await;
        }
    }

    fn pause_rules(&self, seconds: u64) {
        self.fleet.send("POST", "/pd/api/v1/checker/rule", &json!({ "delay": seconds })).expect("a pause");
    }
}

fn peers(region: &Value) -> &[Value] {
    region["peers"].as_array().map_or(&[], Vec::as_slice)
}

/// The role of the peer on a store, if there is one.
fn role(region: &Value, store: u64) -> Option<&str> {
    peers(region).iter().find(|peer| peer["store_id"] == store)?["role_name"].as_str()
}

fn is_led_by(region: &Value, store: u64) -> bool {
    region["leader"]["store_id"] == store
}

/// The stores of the leader and of the two followers.
fn stores_of(region: &Value) -> (u64, u64, u64) {
    let leader = region["leader"]["store_id"].as_u64().expect("a leader");
    let followers: Vec<u64> =
        peers(region).iter().filter_map(|peer| peer["store_id"].as_u64()).filter(|store| *store != leader).collect();
    let [one, other] = followers[..] else { panic!("three peers: {region:#}") };
    (leader, one, other)
}

fn fill(stock: &Stock, keys: u32, round: u32) {
    on_a_runtime(async {
        let mut raw = client(&stock.fleet.pd).await;
        for i in 0..keys {
            stock.patiently(&mut raw, async |raw| raw.put(key(i), value(i, round)).await).await;
        }
    });
}

fn check(stock: &Stock, keys: u32, round: u32) {
    on_a_runtime(async {
        let mut raw = client(&stock.fleet.pd).await;
        for i in 0..keys {
            let found = stock.patiently(&mut raw, async |raw| raw.get(key(i)).await).await;
            assert_eq!(found, Some(value(i, round)), "key {i}");
        }
    });
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02X}")).collect()
}

#[test]
#[ignore = "needs the stock placement driver: make interop"]
fn changes_of_members_and_leaders_are_carried_out() {
    let stock = Stock::start(QUICK);
    fill(&stock, 200, 1);
    let id = stock.home();
    // Else it would mend at once what is ordered here.
    stock.pause_rules(600);

    let (_, follower, _) = stores_of(&stock.region(id));
    let transfer = json!({ "name": "transfer-leader", "region_id": id, "to_store_id": follower });
    stock.ordered(id, &transfer, |region| is_led_by(region, follower));
    let (a, b, c) = stores_of(&stock.region(id));

    let remove = |store: u64| json!({ "name": "remove-peer", "region_id": id, "store_id": store });
    let learner = |store: u64| json!({ "name": "add-learner", "region_id": id, "store_id": store });
    let move_to = |roles: &[(u64, &str)]| {
        let (stores, roles): (Vec<u64>, Vec<&str>) = roles.iter().copied().unzip();
        json!({ "name": "transfer-region", "region_id": id, "to_store_ids": stores, "peer_roles": roles })
    };
    let settled = |region: &Value, roles: &[(u64, &str)]| {
        peers(region).len() == roles.len() && roles.iter().all(|(store, name)| role(region, *store) == Some(*name))
    };

    stock.ordered(id, &remove(c), |region| settled(region, &[(a, "Voter"), (b, "Voter")]));
    stock.ordered(id, &learner(c), |region| settled(region, &[(a, "Voter"), (b, "Voter"), (c, "Learner")]));
    let all = [(a, "voter"), (b, "voter"), (c, "voter")];
    let voters = [(a, "Voter"), (b, "Voter"), (c, "Voter")];
    stock.ordered(id, &move_to(&all), |region| settled(region, &voters));
    check(&stock, 200, 1);
    stock.ordered(id, &remove(c), |region| settled(region, &voters[..2]));
    let add = json!({ "name": "add-peer", "region_id": id, "store_id": c });
    stock.ordered(id, &add, |region| settled(region, &voters));

    // Two roles change at once: through a joint configuration.
    stock.ordered(id, &remove(c), |region| settled(region, &voters[..2]));
    stock.ordered(id, &learner(c), |region| settled(region, &[(a, "Voter"), (b, "Voter"), (c, "Learner")]));
    let swap = move_to(&[(a, "voter"), (b, "learner"), (c, "voter")]);
    let told = stock.ordered(id, &swap, |region| settled(region, &[(a, "Voter"), (b, "Learner"), (c, "Voter")]));
    assert!(told.contains("use joint consensus") && told.contains("leave joint state"), "{told}");
    fill(&stock, 200, 2);
    // The leader is demoted, and the only one who can follow it is a learner: it hands over inside the joint configuration.
    stock.ordered(id, &remove(c), |region| settled(region, &[(a, "Voter"), (b, "Learner")]));
    let swap = move_to(&[(a, "learner"), (b, "voter")]);
    let told =
        stock.ordered(id, &swap, |region| settled(region, &[(a, "Learner"), (b, "Voter")]) && is_led_by(region, b));
    assert!(told.contains("use joint consensus") && told.contains("transfer leader"), "{told}");
    check(&stock, 200, 2);

    stock.pause_rules(0);
    stock.fleet.wait_for_replicas(3);
    fill(&stock, 200, 3);
    check(&stock, 200, 3);
    assert!(stock.fleet.ctl(&["consistency", "--all"]).contains(&id.to_string()));
}

#[test]
#[ignore = "needs the stock placement driver: make interop"]
fn regions_are_split_scattered_and_rid_of_leaders() {
    let stock = Stock::start(QUICK);
    fill(&stock, 200, 1);
    let count = || stock.fleet.regions().len();
    for policy in ["scan", "approximate"] {
        let (before, id) = (count(), stock.home());
        let split = json!({ "name": "split-region", "region_id": id, "policy": policy });
        let version = stock.region(id)["epoch"]["version"].clone();
        stock.ordered(id, &split, |region| region["epoch"]["version"] != version);
        wait_for("one more region", || count() == before + 1);
    }
    // Whatever region the halving left it in.
    let holder = |key: &[u8]| {
        let at = hex(key);
        let regions = stock.fleet.regions();
        let holds = |region: &&Value| {
            let (start, end) = (region["start_key"].as_str().unwrap_or(""), region["end_key"].as_str().unwrap_or(""));
            start < at.as_str() && (end.is_empty() || at.as_str() < end)
        };
        regions.iter().find(holds).and_then(|region| region["id"].as_u64())
    };
    for i in [33, 77, 133] {
        // A cut may be there already.
        let Some(id) = holder(&key(i)) else { continue };
        let split = json!({ "name": "split-region", "region_id": id, "policy": "usekey", "keys": [hex(&key(i))] });
        let at = hex(&key(i));
        stock.order(&split);
        wait_for("a region that begins at the key", || {
            stock.fleet.regions().iter().any(|region| region["start_key"] == at.as_str())
        });
    }
    wait_for("all parts", || count() >= FIRST_REGIONS + 4);
    stock.fleet.wait_for_replicas(3);
    check(&stock, 200, 1);

    let scattered = || stock.records().iter().filter(|record| record.starts_with("scatter-region")).count();
    let mut group = 0;
    wait_for("a region that is scattered", || {
        group += 1;
        for region in stock.fleet.regions() {
            let order = json!({ "name": "scatter-region", "region_id": region["id"], "group": format!("g{group}") });
            // The region may be busy with another operator.
            drop(stock.fleet.send("POST", "/pd/api/v1/operators", &order));
        }
        std::thread::sleep(Duration::from_millis(300));
        scattered() > 0
    });

    // The transfers of this scheduler name several stores to choose from.
    let store = stock.fleet.members[0].store_id;
    let evict = json!({ "name": "evict-leader-scheduler", "store_id": store });
    stock.fleet.send("POST", "/pd/api/v1/schedulers", &evict).expect("a scheduler");
    wait_for("no leader on the store", || !stock.fleet.regions().iter().any(|region| is_led_by(region, store)));
    let remove = format!("/pd/api/v1/schedulers/evict-leader-scheduler-{store}");
    stock.fleet.send("DELETE", &remove, &Value::Null).expect("it ends");
    let id = stock.home();
    let back = json!({ "name": "transfer-leader", "region_id": id, "to_store_id": store });
    stock.ordered(id, &back, |region| is_led_by(region, store));
    check(&stock, 200, 1);
    let failed: Vec<String> = stock
        .records()
        .into_iter()
        .filter(|record| record.starts_with("admin-") && !record.contains(" finished"))
        .collect();
    assert!(failed.is_empty(), "{failed:#?}");
}

/// Orders leaders away, replicas off a node that the placement driver then places again, splits and scatters, until `done`.
/// Answers how many orders were taken.
fn disturb(fleet: &Fleet, done: &AtomicBool) -> u64 {
    let mut prng = Prng::new(11);
    let mut orders = 0;
    while !done.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(50));
        let regions = fleet.regions();
        let Some(region) = regions.get(prng.below(regions.len().max(1) as u64) as usize) else { continue };
        let id = &region["id"];
        let leader = region["leader"]["store_id"].as_u64();
        let follower = peers(region).iter().filter_map(|peer| peer["store_id"].as_u64()).find(|s| Some(*s) != leader);
        let Some(store) = follower else { continue };
        let order = match prng.below(6) {
            0 | 1 if peers(region).len() == 3 => json!({ "name": "remove-peer", "region_id": id, "store_id": store }),
            // What cannot be split keeps the placement driver waiting for a minute.
            2 if region["approximate_keys"].as_u64() > Some(4) => {
                json!({ "name": "split-region", "region_id": id, "policy": "scan" })
            }
            3 => json!({ "name": "scatter-region", "region_id": id }),
            _ => json!({ "name": "transfer-leader", "region_id": id, "to_store_id": store }),
        };
        orders += u64::from(fleet.order(&order));
    }
    orders
}

#[test]
#[ignore = "needs the stock placement driver: make interop"]
fn the_raw_api_works_while_its_operators_and_schedulers_run() {
    let stock = Stock::start(SMALL);
    let (fleet, done) = (&stock.fleet, AtomicBool::new(false));
    let orders = std::thread::scope(|scope| {
        let disturber = scope.spawn(|| disturb(fleet, &done));
        let used = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            on_a_runtime(use_everything(&fleet.pd, KEYS, || fleet.regions().len() as u64));
        }));
        done.store(true, Ordering::Relaxed);
        let orders = disturber.join().expect("orders are given");
        if let Err(panic) = used {
            std::panic::resume_unwind(panic);
        }
        orders
    });
    println!("{orders} orders, {} regions", fleet.regions().len());
    assert!(orders > 10, "only {orders} orders were taken");
    fleet.wait_for_replicas(3);
    let leaders = |store: u64| fleet.regions().iter().filter(|region| is_led_by(region, store)).count();
    wait_for("leaders everywhere", || fleet.members.iter().all(|member| leaders(member.store_id) > 0));
}

#[test]
#[ignore = "needs the stock placement driver: make interop"]
fn nodes_and_the_placement_driver_come_and_go() {
    let mut stock = Stock::start(SMALL);
    fill(&stock, 300, 1);
    stock.gap = GAP_MAX;
    wait_for("regions", || stock.fleet.regions().len() > 10);
    stock.fleet.wait_for_replicas(3);

    stock.fleet.stop(0);
    check(&stock, 300, 1);
    stock.fleet.launch(0);
    stock.fleet.kill(1);
    fill(&stock, 300, 2);
    stock.fleet.launch(1);
    stock.fleet.wait_for_replicas(3);
    check(&stock, 300, 2);

    // Its regions are on its disk, and their leaders in its memory: it must hear of them again.
    stock.pd.kill();
    std::thread::sleep(Duration::from_secs(1));
    stock.pd.launch();
    wait_for("leaders of all regions", || {
        let regions = stock.fleet.regions();
        !regions.is_empty()
            && regions.iter().all(|region| region["leader"]["store_id"].as_u64().is_some_and(|id| id > 0))
    });
    fill(&stock, 300, 3);
    check(&stock, 300, 3);

    // A fourth node, and the first one leaves: all of its replicas move.
    let leaves = stock.fleet.members[0].store_id;
    let data_dir = stock.fleet.dir().join("node-3");
    stock.fleet.add(data_dir, "127.0.0.1:0");
    stock.lift_limits();
    stock.fleet.send("DELETE", &format!("/pd/api/v1/store/{leaves}"), &Value::Null).expect("a drained store");
    wait_for("an empty store", || {
        let listed = stock.fleet.regions();
        let state = stock.fleet.get(&format!("/pd/api/v1/store/{leaves}"))["store"]["state_name"].clone();
        state == "Tombstone" && listed.iter().all(|region| role(region, leaves).is_none())
    });
    stock.fleet.wait_for_replicas(3);
    check(&stock, 300, 3);
}

#[test]
#[ignore = "needs the stock placement driver: make interop"]
fn it_shows_what_nodes_report() {
    let stock = Stock::start(SMALL);
    fill(&stock, 300, 1);
    let fleet = &stock.fleet;
    wait_for("regions", || fleet.regions().len() > 10);
    fleet.wait_for_replicas(3);
    wait_for("what the stores report of themselves", || {
        let regions = fleet.regions().len() as u64;
        let list = fleet.get("/pd/api/v1/stores");
        let stores = list["stores"].as_array().map_or(&[][..], Vec::as_slice);
        let leaders: u64 = stores.iter().filter_map(|store| store["status"]["leader_count"].as_u64()).sum();
        stores.len() == 3
            && leaders == regions
            && stores.iter().all(|store| {
                let status = &store["status"];
                store["store"]["state_name"] == "Up"
                    && store["store"]["version"] == "8.1.0"
                    && status["region_count"].as_u64() == Some(regions)
                    && status["capacity"].as_str().is_some_and(|size| size.ends_with("iB") && !size.starts_with('0'))
                    && status["available"].as_str().is_some_and(|size| size.ends_with("iB") && !size.starts_with('0'))
                    && status["used_size"].as_str().is_some_and(|size| !size.starts_with('0'))
                    && status["start_ts"].is_string()
                    && status["uptime"].is_string()
            })
    });
    let keys = |region: &Value| region["approximate_keys"].as_u64().unwrap_or(0);
    wait_for("sizes of regions", || {
        let regions = fleet.regions();
        regions.iter().map(keys).sum::<u64>() >= 150
            && regions.iter().all(|region| region["approximate_size"].as_u64() > Some(0))
    });
    let written = |region: &Value| region["written_keys"].as_u64().unwrap_or(0);
    fill(&stock, 300, 2);
    wait_for("traffic", || fleet.regions().iter().any(|region| written(region) > 0));
    let reads = || fleet.get("/pd/api/v1/hotspot/stores")["bytes-read-rate"].clone();
    wait_for("reads of every store", || {
        check(&stock, 300, 2);
        reads()
            .as_object()
            .is_some_and(|rates| rates.len() == 3 && rates.values().all(|rate| rate.as_f64() > Some(0.0)))
    });
    let stats = fleet.get("/pd/api/v1/stats/region?start_key=&end_key=");
    assert_eq!(stats["count"].as_u64(), Some(fleet.regions().len() as u64), "{stats:#}");
    for check in ["miss-peer", "extra-peer", "down-peer", "pending-peer", "offline-peer", "learner-peer"] {
        wait_for(check, || fleet.get(&format!("/pd/api/v1/regions/check/{check}"))["count"] == 0);
    }
    // It asks nodes for the sizes at which they split.
    let status = fleet.members[0].status.as_str();
    assert!(fleet.get("/pd/api/v1/stores").to_string().contains(status));

    let list = stock.fleet.ctl(&["store", "list"]);
    assert!(fleet.members.iter().all(|member| list.contains(&member.address)), "{list}");
    assert_eq!(stock.fleet.ctl(&["stores"]).lines().count(), 1 + 3);
    assert!(stock.fleet.ctl(&["regions"]).lines().count() > 10);
    assert!(stock.fleet.ctl(&["member"]).contains("leads"));
    assert!(stock.fleet.ctl(&["scheduler", "list"]).contains("balance-region-scheduler"));
    assert!(stock.fleet.ctl(&["config", "show", "replication"]).contains("max-replicas"));
    stock.fleet.ctl(&["operator", "list"]);
    stock.fleet.ctl(&["put", "by-ctl", "here"]);
    assert_eq!(stock.fleet.ctl(&["get", "by-ctl"]).trim(), "here");
}

#[test]
#[ignore = "needs the stock placement driver: make interop"]
fn merges_are_carried_out() {
    let stock = Stock::start(QUICK);
    fill(&stock, 200, 1);
    let source = stock.home();
    stock.order(&json!({ "name": "split-region", "region_id": source, "policy": "scan" }));
    wait_for("one more region", || stock.fleet.regions().len() == FIRST_REGIONS + 1);
    stock.fleet.wait_for_replicas(3);
    // The halves, in either order.
    let (source, end) = (stock.home(), stock.region(stock.home())["end_key"].clone());
    let target = stock.fleet.regions().into_iter().find(|region| region["start_key"] == end).expect("a neighbour");
    let merge = json!({ "name": "merge-region", "source_region_id": source, "target_region_id": target["id"] });
    stock.order(&merge);
    wait_for("one region less", || stock.fleet.regions().len() == FIRST_REGIONS);
    stock.fleet.wait_for_replicas(3);
    check(&stock, 200, 1);
}
