//! What clients do, and what they were told.

use crate::calls::{Kv, ask};
use crate::pd_client::PdClient;
use crate::world::{PLACES, addresses};
use proto::metapb;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

/// It lives outside of the simulated machines.
#[derive(Default)]
pub(crate) struct Told {
    pub(crate) timestamps: Cell<u64>,
    pub(crate) writes: Cell<u64>,
    /// Members that were removed.
    pub(crate) removed: Cell<u64>,
    /// The highest timestamp that anybody was told.
    highest: Cell<u64>,
    /// Batches by their first timestamp: the last one.
    batches: RefCell<BTreeMap<u64, u64>>,
    ids: RefCell<BTreeSet<u64>>,
    /// Keys with the smallest value that a read may find from now on, and the largest that may have been written.
    keys: RefCell<BTreeMap<String, (u64, u64)>>,
    stores: RefCell<BTreeSet<u64>>,
    /// The setting that was acknowledged last, and the one that was tried last.
    setting: Cell<(u64, u64)>,
}

async fn connect() -> PdClient {
    loop {
        if let Ok(client) = PdClient::connect(&addresses(), net::ChannelConfig::default()).await {
            return client;
        }
    }
}

/// Timestamps rise over all clients: one that is asked for after another was told is higher.
pub(crate) async fn take_timestamps(told: Rc<Told>) {
    let client = connect().await;
    loop {
        let count = executor::with_rng(|prng| 1 + prng.below(1_000) as u32);
        let before = told.highest.get();
        if let Ok(largest) = client.timestamps(count).await {
            let first = largest - u64::from(count) + 1;
            assert!(first > before, "{first} was given out after {before}");
            let mut batches = told.batches.borrow_mut();
            let overlaps = batches.range(..=largest).next_back().is_some_and(|(_, last)| *last >= first);
            assert!(!overlaps, "{first} to {largest} were given out before");
            batches.insert(first, largest);
            told.highest.set(told.highest.get().max(largest));
            told.timestamps.set(told.timestamps.get() + 1);
        }
        executor::sleep(Duration::from_millis(10)).await;
    }
}

pub(crate) async fn take_ids(told: Rc<Told>) {
    let client = connect().await;
    loop {
        if let Ok(id) = client.alloc_id().await {
            assert!(told.ids.borrow_mut().insert(id), "id {id} was given out before");
        }
        executor::sleep(Duration::from_millis(35)).await;
    }
}

/// Writes rising values to keys of its own. A key with a write of unknown outcome is left alone from then on.
pub(crate) async fn write_keys(told: Rc<Told>, writer: u64) {
    let kv = Kv::new();
    let mut names = 0;
    let mut keys: Vec<String> = Vec::new();
    loop {
        while keys.len() < 5 {
            names += 1;
            keys.push(format!("/k/{writer}/{names}"));
        }
        let at = executor::with_rng(|prng| prng.below(5) as usize);
        let key = keys[at].clone();
        let (_, tried) = told.keys.borrow().get(&key).copied().unwrap_or_default();
        let value = tried + 1;
        told.keys.borrow_mut().entry(key.clone()).or_default().1 = value;
        match kv.put(&key, value).await {
            Ok(()) => {
                raise(&told, &key, value);
                told.writes.set(told.writes.get() + 1);
            }
            Err(_) => {
                keys.swap_remove(at);
                executor::sleep(Duration::from_millis(30)).await;
            }
        }
        executor::sleep(Duration::from_millis(8)).await;
    }
}

fn raise(told: &Told, key: &str, value: u64) {
    let mut keys = told.keys.borrow_mut();
    let least = &mut keys.get_mut(key).expect("it was written to").0;
    *least = (*least).max(value);
}

/// Reads what others write: never less than what was there before the question.
pub(crate) async fn read_keys(told: Rc<Told>) {
    let kv = Kv::new();
    loop {
        let known = told.keys.borrow().len() as u64;
        let nth = executor::with_rng(|prng| prng.below(known.min(12)) as usize);
        let chosen = told.keys.borrow().iter().rev().nth(nth).map(|(key, (least, _))| (key.clone(), *least));
        if let Some((key, least)) = chosen
            && let Some(found) = kv.get(&key).await
        {
            let tried = told.keys.borrow()[&key].1;
            assert!(found >= least && found <= tried, "key {key} has {found}, not {least} to {tried}");
            raise(&told, &key, found);
        }
        executor::sleep(Duration::from_millis(12)).await;
    }
}

pub(crate) async fn register_stores(told: Rc<Told>) {
    let client = connect().await;
    let peer = metapb::Peer { id: 3, store_id: 1, ..metapb::Peer::default() };
    let region = metapb::Region {
        id: 2,
        region_epoch: Some(metapb::RegionEpoch { conf_ver: 1, version: 1 }),
        peers: vec![peer],
        ..metapb::Region::default()
    };
    while !client.is_bootstrapped().await.unwrap_or(false) {
        drop(client.bootstrap(store(1), region.clone()).await);
    }
    told.stores.borrow_mut().insert(1);
    for id in 2.. {
        if client.put_store(store(id), None).await.is_ok() {
            told.stores.borrow_mut().insert(id);
        }
        executor::sleep(Duration::from_millis(400)).await;
    }
}

fn store(id: u64) -> metapb::Store {
    metapb::Store { id, address: format!("10.1.0.1:{id}"), version: "8.1.0".into(), ..metapb::Store::default() }
}

/// Any member takes a setting, as any other request.
pub(crate) async fn change_settings(told: Rc<Told>) {
    for value in 1.. {
        let (acknowledged, _) = told.setting.get();
        told.setting.set((acknowledged, value));
        let at = executor::with_rng(|prng| prng.below(PLACES as u64) as usize);
        let body = format!("{{\"leader-schedule-limit\": {value}}}");
        let answer = ask(at, "POST", "/pd/api/v1/config", &body).await;
        if answer.is_some_and(|(status, _)| status == 200) {
            told.setting.set((value, value));
        } else {
            // It may still be on its way: nothing newer may be acknowledged before it has come or gone.
            executor::sleep(Duration::from_secs(4)).await;
        }
        executor::sleep(Duration::from_millis(300)).await;
    }
}

/// Reads everything back, from whichever member leads.
pub(crate) async fn check_all(told: Rc<Told>, members: Vec<usize>) {
    let kv = Kv::new();
    let keys = told.keys.borrow().clone();
    for (key, (least, tried)) in keys {
        let found = loop {
            match kv.get(&key).await {
                Some(found) => break found,
                None => executor::sleep(Duration::from_millis(50)).await,
            }
        };
        assert!(found >= least && found <= tried, "key {key} has {found}, not {least} to {tried}");
    }
    let client = connect().await;
    let stores = loop {
        if let Ok(stores) = client.stores().await {
            break stores.iter().map(|store| store.id).collect::<BTreeSet<_>>();
        }
    };
    let lost: Vec<u64> = told.stores.borrow().difference(&stores).copied().collect();
    assert!(lost.is_empty(), "stores {lost:?} were acknowledged and are not there");
    let id = client.alloc_id().await.expect("an id");
    assert!(!told.ids.borrow().contains(&id), "id {id} was given out before");
    check_setting(&told, &members).await;
}

async fn check_setting(told: &Told, members: &[usize]) {
    let (acknowledged, tried) = told.setting.get();
    for at in members.iter().copied() {
        let found = loop {
            if let Some((200, body)) = ask(at, "GET", "/pd/api/v1/config/schedule", "").await {
                let body: serde_json::Value = serde_json::from_str(&body).expect("JSON");
                break body["leader-schedule-limit"].as_u64().expect("a number");
            }
            executor::sleep(Duration::from_millis(50)).await;
        };
        let default = pd::schedule::ScheduleConfig::default().leader_schedule_limit;
        let is_possible = (acknowledged..=tried).contains(&found) || acknowledged == 0 && found == default;
        assert!(is_possible, "the setting is {found}, not {acknowledged} to {tried}");
    }
}
