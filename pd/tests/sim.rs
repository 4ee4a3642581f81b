//! The member and the node's client for it in the simulator: power failures, clocks that step, networks that part.
//!
//! The client's module is compiled here from `shard`'s folder, so that this needs no storage engine.

#[path = "../../shard/src/pd_client/mod.rs"]
#[allow(dead_code, unreachable_pub, reason = "a module of another crate, of which this uses a part")]
mod pd_client;

use base::Prng;
use executor::sim::{Sim, SimConfig, SimNode};
use net::{Channel, ChannelConfig};
use pd::PdConfig;
use pd_client::{PdClient, PdEvent};
use proto::etcdserverpb::{KvClient, PutRequest, RangeRequest};
use proto::rpc::CallContext;
use proto::{metapb, pdpb};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

const ADDRESS: &str = "10.0.0.1:2379";

/// What the clients were told. It lives outside of the simulated machines.
#[derive(Default)]
struct Told {
    timestamps: Cell<u64>,
    last_timestamp: Cell<u64>,
    last_id: Cell<u64>,
    /// Keys with the newest value that was acknowledged, and one that may have been written.
    acknowledged: RefCell<BTreeMap<u64, (u64, Option<u64>)>>,
    writes: Cell<u64>,
}

fn world(seed: u64) -> (Sim, SimNode, SimNode) {
    let mut prng = Prng::new(seed);
    let config = if seed.is_multiple_of(2) { SimConfig::default() } else { SimConfig::arbitrary(&mut prng) };
    let sim = Sim::new(seed, config);
    let pd = sim.add_node("pd", "10.0.0.1".parse().expect("an address"));
    let client = sim.add_node("client", "10.0.0.2".parse().expect("an address"));
    (sim, pd, client)
}

fn start_pd(sim: &Sim, node: SimNode) {
    sim.start(node, 1, |_| {
        Box::pin(async {
            let config = PdConfig {
                listen: ADDRESS.parse().expect("an address"),
                data_dir: PathBuf::from("/pd"),
                ..PdConfig::default()
            };
            pd::run(config).await.expect("the member runs until it is stopped");
        })
    });
}

fn cx() -> CallContext {
    CallContext::with_deadline(executor::now() + Duration::from_secs(3))
}

async fn take_timestamps(told: Rc<Told>) {
    let Ok(client) = PdClient::connect(&[ADDRESS.to_owned()], ChannelConfig::default()).await else {
        return;
    };
    loop {
        let count = executor::with_rng(|prng| 1 + prng.below(1_000) as u32);
        if let Ok(largest) = client.timestamps(count).await {
            let first = largest - u64::from(count) + 1;
            assert!(first > told.last_timestamp.get(), "{first} was given out before");
            told.last_timestamp.set(largest);
            told.timestamps.set(told.timestamps.get() + 1);
        }
        if let Ok(id) = client.alloc_id().await {
            assert!(id > told.last_id.get(), "id {id} was given out before");
            told.last_id.set(id);
        }
        executor::sleep(Duration::from_millis(15)).await;
    }
}

async fn write_keys(told: Rc<Told>) {
    let kv = KvClient::new(Channel::new(ADDRESS.to_owned(), ChannelConfig::default()));
    loop {
        let (key, value) = executor::with_rng(|prng| (prng.below(40), prng.next_u64()));
        let known = told.acknowledged.borrow().get(&key).map(|(value, _)| *value);
        told.acknowledged.borrow_mut().insert(key, (known.unwrap_or(0), Some(value)));
        let put =
            PutRequest { key: format!("/k/{key:02}").into(), value: value.to_string().into(), ..PutRequest::default() };
        match kv.put(cx(), &put).await {
            Ok(_) => {
                told.acknowledged.borrow_mut().insert(key, (value, None));
                told.writes.set(told.writes.get() + 1);
            }
            // It may or may not be there: this key is left alone from here on.
            Err(_) => loop {
                executor::sleep(Duration::from_millis(20)).await;
                if let Some(found) = read_key(&kv, key).await {
                    let possible = [known.unwrap_or(0), value];
                    assert!(possible.contains(&found), "key {key} has {found}, none of {possible:?}");
                    told.acknowledged.borrow_mut().insert(key, (found, None));
                    break;
                }
            },
        }
        executor::sleep(Duration::from_millis(8)).await;
    }
}

/// The value of a key, 0 for none; `None` if the member cannot be asked.
async fn read_key(kv: &KvClient<Channel>, key: u64) -> Option<u64> {
    let range = RangeRequest { key: format!("/k/{key:02}").into(), ..RangeRequest::default() };
    let found = kv.range(cx(), &range).await.ok()?;
    Some(found.kvs.first().map_or(0, |kv| String::from_utf8_lossy(&kv.value).parse().expect("a number")))
}

fn check_keys(sim: &Sim, client: SimNode, told: &Rc<Told>, seed: u64) {
    let expected = told.acknowledged.borrow().clone();
    let check = async move {
        let kv = KvClient::new(Channel::new(ADDRESS.to_owned(), ChannelConfig::default()));
        for (key, (value, maybe)) in expected {
            let found = loop {
                match read_key(&kv, key).await {
                    Some(found) => break found,
                    None => executor::sleep(Duration::from_millis(50)).await,
                }
            };
            assert!(found == value || Some(found) == maybe, "key {key} has {found}, not {value} or {maybe:?}");
        }
    };
    assert!(sim.block_on(client, check, Duration::from_secs(60)).is_some(), "seed {seed}: the member cannot be asked");
}

fn run(seed: u64) -> (u64, u64, u64) {
    let (sim, pd, client) = world(seed);
    let told = Rc::new(Told::default());
    start_pd(&sim, pd);
    sim.spawn_on(client, take_timestamps(Rc::clone(&told)));
    sim.spawn_on(client, write_keys(Rc::clone(&told)));
    let mut prng = Prng::new(seed ^ 0xFA17);
    for _ in 0..12 {
        sim.run_for(Duration::from_millis(100 + prng.below(3_000)));
        match prng.below(6) {
            0 | 1 => {
                sim.kill(pd);
                sim.run_for(Duration::from_millis(prng.below(500)));
                start_pd(&sim, pd);
            }
            2 => {
                sim.kill_process(pd);
                start_pd(&sim, pd);
            }
            3 => sim.step_clock(pd, prng.below(40_000_000_000) as i64 - 20_000_000_000),
            4 => {
                sim.partition(pd, client);
                sim.run_for(Duration::from_millis(prng.below(2_000)));
                sim.heal_all();
            }
            _ => sim.pause(pd, Duration::from_millis(prng.below(2_000))),
        }
    }
    sim.kill(client);
    sim.kill(pd);
    start_pd(&sim, pd);
    check_keys(&sim, client, &told, seed);
    (sim.event_hash(), told.timestamps.get(), told.writes.get())
}

#[test]
fn nothing_that_was_told_is_lost_or_told_twice() {
    let (mut timestamps, mut writes) = (0, 0);
    for seed in 0..16 {
        let (_, more_timestamps, more_writes) = run(seed);
        timestamps += more_timestamps;
        writes += more_writes;
        assert!(
            more_timestamps > 50 && more_writes > 50,
            "seed {seed}: {more_timestamps} batches, {more_writes} writes"
        );
    }
    println!("{timestamps} batches of timestamps, {writes} writes");
}

#[test]
fn the_same_seed_is_the_same_run() {
    assert_eq!(run(7), run(7));
}

#[test]
fn a_damaged_record_that_was_acknowledged_keeps_the_member_from_starting() {
    let (sim, pd, client) = world(2);
    let told = Rc::new(Told::default());
    start_pd(&sim, pd);
    sim.spawn_on(client, write_keys(Rc::clone(&told)));
    sim.run_for(Duration::from_secs(2));
    sim.kill(client);
    // Time enough for the journal to be sealed.
    sim.run_for(Duration::from_millis(200));
    sim.kill(pd);
    let disk = sim.disk(pd);
    let (journal, _) =
        disk.files().into_iter().find(|(path, _)| path.to_string_lossy().contains("journal-")).expect("a journal");
    let bytes = disk.bytes(&journal).expect("its bytes");
    let last = (0..bytes.len() / 4096).rev().find(|block| bytes[block * 4096] != 0).expect("a record");
    assert!(last > 3, "records were written");
    // The last one is the seal; the one in front was acknowledged.
    assert!(disk.corrupt(&journal, (last as u64 - 1) * 4096 + 70, b"!!!!"));
    let open = async {
        let config = PdConfig {
            listen: ADDRESS.parse().expect("an address"),
            data_dir: PathBuf::from("/pd"),
            ..PdConfig::default()
        };
        pd::PdServer::start(config).await.map(drop).expect_err("damage is no torn tail").to_string()
    };
    let error = sim.block_on(pd, open, Duration::from_secs(5)).expect("an answer");
    assert!(error.contains("journal"), "{error}");
}

#[test]
fn the_stream_of_heartbeats_comes_back_and_asks_for_reports() {
    let (sim, pd, client) = world(4);
    start_pd(&sim, pd);
    let connected = Rc::new(Cell::new(0));
    let (seen, found) = (Rc::clone(&connected), Rc::new(Cell::new(0)));
    let regions = Rc::clone(&found);
    sim.spawn_on(client, async move {
        let client =
            Rc::new(PdClient::connect(&[ADDRESS.to_owned()], ChannelConfig::default()).await.expect("a leader"));
        let peer = metapb::Peer { id: 3, store_id: 1, ..metapb::Peer::default() };
        let region = metapb::Region {
            id: 2,
            region_epoch: Some(metapb::RegionEpoch { conf_ver: 1, version: 1 }),
            peers: vec![peer],
            ..metapb::Region::default()
        };
        let store = metapb::Store { id: 1, address: "10.0.0.2:20160".into(), ..metapb::Store::default() };
        client.bootstrap(store.clone(), region.clone()).await.expect("bootstraps");
        client.put_store(store, None).await.expect("registers");
        let reporter = Rc::downgrade(&client);
        client.listen(move |event| {
            if let (PdEvent::Connected, Some(client)) = (event, reporter.upgrade()) {
                seen.set(seen.get() + 1);
                client.region_heartbeat(pdpb::RegionHeartbeatRequest {
                    region: Some(region.clone()),
                    leader: Some(peer),
                    term: 6,
                    ..Default::default()
                });
            }
        });
        loop {
            if let Ok(Some((_, Some(_)))) = client.region("".into()).await {
                regions.set(regions.get() + 1);
            }
            executor::sleep(Duration::from_millis(100)).await;
        }
    });
    for round in 1..4 {
        found.set(0);
        assert!(
            sim.run_until(Duration::from_secs(30), || connected.get() >= round && found.get() > 3),
            "round {round}"
        );
        sim.kill(pd);
        sim.run_for(Duration::from_millis(300));
        start_pd(&sim, pd);
    }
}

#[test]
fn a_quiet_stream_of_heartbeats_shows_life_every_minute() {
    let (sim, pd, client) = world(6);
    start_pd(&sim, pd);
    let (alive, others) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
    let (seen, wrong) = (Rc::clone(&alive), Rc::clone(&others));
    sim.spawn_on(client, async move {
        let client = PdClient::connect(&[ADDRESS.to_owned()], ChannelConfig::default()).await.expect("a leader");
        client.listen(move |event| match event {
            PdEvent::Connected => {}
            PdEvent::Order(order)
                if order.region_id == 0 && order.header.as_ref().is_some_and(|h| h.error.is_none()) =>
            {
                seen.set(seen.get() + 1);
            }
            PdEvent::Order(_) => wrong.set(wrong.get() + 1),
        });
        std::future::pending::<()>().await;
    });
    sim.run_for(Duration::from_secs(200));
    assert_eq!((alive.get(), others.get()), (3, 0));
}
