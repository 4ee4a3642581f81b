//! Ten thousand regions that are written once and then rest, and one that writes on: the shard's log stays small, a
//! restart replays no more than it ever did, and no sleeping peer loses what it has promised.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use base::{CoreId, RegionId, ShardId, StoreId};
use bytes::Bytes;
use executor::LogSync;
use executor::sim::{Sim, SimConfig, SimDisk, SimNode};
use futures_util::future::join_all;
use mvcc::{Cf, Modify};
use proto::{kvrpcpb, metapb, raft_cmdpb};
use shard::core::{Opened, Outlet, RegionReport, Shard, ShardConfig, open};
use shard::engine::twin::{TwinDisk, TwinEngine, TwinFaults};
use shard::log::{HardState, LogConfig};

const REGIONS: u64 = 10_000;
const CAP: u64 = 4 << 20;
/// Length of a hot value.
const VALUE: usize = 16 << 10;
const LOG: &str = "/data/log";
const LIMIT: Duration = Duration::from_secs(3600);

struct Alone;

impl Outlet for Alone {
    fn report(&self, _: RegionReport) {}
    fn split(&self, _: ShardId, _: bool, _: Vec<metapb::Region>, _: u64) {}
    fn split_due(&self, _: ShardId, _: metapb::Region, _: Vec<Vec<u8>>) {}
    fn failed(&self, shard: ShardId, why: String) {
        panic!("shard {shard}: {why}");
    }
}

struct Machine {
    sim: Sim,
    node: SimNode,
    disk: TwinDisk,
    engine: Option<TwinEngine>,
}

impl Machine {
    /// Opens the shard after whatever happened before.
    fn open(&mut self) -> Opened<TwinEngine> {
        let engine = TwinEngine::open(&self.disk, 1, TwinFaults::default()).expect("the disk is free");
        self.engine = Some(engine.clone());
        let config = ShardConfig { replay_cap_bytes: CAP, flush_at_bytes: CAP / 2, ..ShardConfig::default() };
        let log = LogConfig {
            segment_bytes: 256 << 10,
            replay_cap_bytes: CAP,
            sync: Some(LogSync::Fdatasync),
            ..LogConfig::default()
        };
        let opening = async move {
            let (log_dir, snap_dir) = (Path::new(LOG), Path::new("/data/snap"));
            open(ShardId(0), StoreId(1), engine, log_dir, snap_dir, config, log, Rc::new(Alone), 1).await
        };
        let opened = self.sim.block_on(self.node, opening, LIMIT).expect("in time").expect("it opens");
        assert_eq!(opened.damage, None);
        opened
    }

    fn run<T: 'static>(&self, work: impl Future<Output = T> + 'static) -> T {
        self.sim.block_on(self.node, work, LIMIT).expect("in time")
    }

    fn start(&self, opened: Opened<TwinEngine>) -> Rc<Shard<TwinEngine>> {
        let shard = self.run(async move { opened.start(&[]).await.expect("it starts") });
        let serving = shard.clone();
        self.run(async move {
            while serving.reports(RegionId(0), usize::MAX).0.len() < serving.regions()
                || regions(&serving).iter().any(|r| !serves(&serving, r))
            {
                executor::sleep(Duration::from_millis(20)).await;
            }
        });
        shard
    }

    fn lose_power(&mut self) {
        self.sim.kill(self.node);
        self.engine.take().expect("it runs").kill();
    }
}

fn context(region: &metapb::Region) -> kvrpcpb::Context {
    let peer = region.peers.first().copied();
    kvrpcpb::Context { region_id: region.id, region_epoch: region.region_epoch, peer, ..Default::default() }
}

fn serves(shard: &Shard<TwinEngine>, region: &metapb::Region) -> bool {
    shard.region(&context(region)).is_ok()
}

fn regions(shard: &Shard<TwinEngine>) -> Vec<metapb::Region> {
    let described = shard.describe(CoreId(0)).regions;
    let metas = described.iter().map(|region| shard.region_by_id(RegionId(region.id)).expect("described"));
    metas.map(|meta| (*meta).clone()).collect()
}

fn states(shard: &Shard<TwinEngine>) -> BTreeMap<u64, HardState> {
    let described = shard.describe(CoreId(0)).regions;
    described.iter().map(|r| (r.id, shard.hard_state(RegionId(r.id)).expect("described"))).collect()
}

/// What peers have promised to others: term and vote.
fn promises(states: &BTreeMap<u64, HardState>) -> BTreeMap<u64, (u64, u64)> {
    states.iter().map(|(region, state)| (*region, (state.term, state.vote))).collect()
}

fn first_region() -> metapb::Region {
    metapb::Region {
        id: 1,
        region_epoch: Some(metapb::RegionEpoch { conf_ver: 1, version: 1 }),
        peers: vec![metapb::Peer { id: 1, store_id: 1, ..Default::default() }],
        ..Default::default()
    }
}

/// Cuts the last region, which keeps the id 1, a hundred times at once until there are enough.
async fn split_all(shard: Rc<Shard<TwinEngine>>) {
    shard.create(first_region()).await.expect("created");
    let mut next = 2;
    while next <= REGIONS {
        let last = shard.region_by_id(RegionId(1)).expect("it is there");
        let ids = next..(next + 100).min(REGIONS + 1);
        let requests = ids.clone().map(|id| raft_cmdpb::SplitRequest {
            split_key: format!("{id:08}").into_bytes().into(),
            new_region_id: id,
            new_peer_ids: vec![id],
            ..Default::default()
        });
        match shard.split(&last, requests.collect()).await {
            Ok(_) => next = ids.end,
            // It does not lead yet.
            Err(_) => executor::sleep(Duration::from_millis(1)).await,
        }
    }
}

fn put(region: &metapb::Region, key: &[u8], value: Vec<u8>) -> Modify {
    let key = [region.start_key.as_ref(), b"\0", key].concat();
    Modify::Put { cf: Cf::Default, key: key.into(), value: value.into() }
}

async fn write_each_once(shard: Rc<Shard<TwinEngine>>) {
    for some in regions(&shard).chunks(500) {
        let writes = some.iter().map(|region| {
            let (shard, context, change) = (shard.clone(), context(region), put(region, b"k", vec![7; 20]));
            async move { shard.write(&context, vec![change], true, None).await }
        });
        for written in join_all(writes).await {
            written.expect("written");
        }
    }
}

/// Writes ten times the cap to the last region; returns the greatest length of the log's files on the way.
async fn write_hot(shard: Rc<Shard<TwinEngine>>, disk: SimDisk) -> u64 {
    let hot = shard.region_by_id(RegionId(1)).expect("it is there");
    let mut largest = 0u64;
    for round in 0..10 * CAP / VALUE as u64 / 8 {
        let writes = (0..8u8).map(|at| {
            let (shard, context) = (shard.clone(), context(&hot));
            let change = put(&hot, &[at], vec![round as u8; VALUE]);
            async move { shard.write(&context, vec![change], true, None).await }
        });
        for written in join_all(writes).await {
            written.expect("written");
        }
        let files = disk.files();
        let bytes: u64 = files.iter().filter(|(path, _)| path.starts_with(LOG)).map(|(_, bytes)| bytes).sum();
        largest = largest.max(bytes);
    }
    largest
}

#[test]
fn ten_thousand_sleeping_regions_and_a_hot_one_leave_the_log_small_and_every_promise_kept() {
    let sim = Sim::new(1, SimConfig::default());
    let node = sim.add_node("node", IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)));
    let mut machine = Machine { sim, node, disk: TwinDisk::new(), engine: None };
    let opened = machine.open();
    let shard = machine.start(opened);
    machine.run(split_all(shard.clone()));
    machine.run({
        let shard = shard.clone();
        async move {
            while regions(&shard).iter().any(|region| !serves(&shard, region)) {
                executor::sleep(Duration::from_millis(20)).await;
            }
            write_each_once(shard).await;
            executor::sleep(Duration::from_millis(50)).await;
        }
    });
    let asleep = states(&shard);
    assert_eq!(asleep.len() as u64, REGIONS);
    drop(shard);
    machine.lose_power();

    // A restart of the sleeping regions alone, for comparison.
    let opened = machine.open();
    assert_eq!(states(&opened.shard), asleep, "a restart changes no promise");
    let shard = machine.start(opened);
    let disk = machine.sim.disk(machine.node);
    let largest = machine.run(write_hot(shard.clone(), disk));
    println!("the log had {largest} bytes at most");
    assert!(largest < 3 * CAP, "{largest}");
    machine.run(async { executor::sleep(Duration::from_millis(50)).await });
    let before = states(&shard);
    drop(shard);
    machine.lose_power();

    let opened = machine.open();
    println!("{} entries were replayed", opened.replayed);
    assert!(opened.replayed * VALUE as u64 <= CAP + CAP / 4, "{} entries to replay", opened.replayed);
    let after = states(&opened.shard);
    assert_eq!(promises(&after), promises(&before), "no sleeping peer forgot its term or vote");
    // Recovery knows that what the engine has applied was committed.
    assert!(before.iter().all(|(region, state)| after[region].commit >= state.commit));
    let shard = machine.start(opened);
    machine.run(async move {
        let snapshot = shard.engine.clone();
        for region in regions(&shard) {
            let key = base::keys::data_key(&[region.start_key.as_ref(), b"\0k"].concat());
            let value = shard::engine::Engine::get(&snapshot, Cf::Default, &key, shard::engine::Tier::Disk);
            assert_eq!(value, Ok(Some(Bytes::from(vec![7; 20]))), "region {}", region.id);
        }
    });
}
