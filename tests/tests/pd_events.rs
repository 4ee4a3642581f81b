//! A node and its placement driver over the stream of region heartbeats, in the simulator: what is told again after the
//! placement driver was away, and what it asks of regions. Periodic heartbeats are an hour apart here, so nothing of it
//! can come from them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use basalt_tests::client::{Client, Fate};
use base::ShardId;
use bytes::Bytes;
use executor::io::{AsyncReadExt as _, AsyncWriteExt as _};
use executor::sim::{Sim, SimConfig, SimNode};
use executor::{Io, IoKind};
use proto::pdpb;
use proto::rpc::CallContext;
use shard::core::{ApiMode, ShardConfig};
use shard::engine::twin::{TwinDisk, TwinEngine, TwinFaults};
use shard::node::{EngineSource, Node, NodeConfig, run_core};

const PD: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)), 2379);
const NODE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2)), 20160);
const STATUS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2)), 20180);
const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 9));
const HOUR: Duration = Duration::from_secs(3600);
/// How long anything here may take, in virtual time: much less than an hour.
const SOON: Duration = Duration::from_secs(30);

/// Engines that nobody kills.
#[derive(Clone, Default)]
struct Engines(Arc<Mutex<BTreeMap<ShardId, TwinDisk>>>);

impl EngineSource for Engines {
    type Engine = TwinEngine;
    fn open(&self, shard: ShardId, _dir: &Path) -> Result<TwinEngine, String> {
        let mut disks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let disk = disks.entry(shard).or_default();
        TwinEngine::open(disk, 1, TwinFaults::default()).map_err(|error| error.to_string())
    }
}

/// A cluster of one node, and a machine for clients.
struct Scene {
    sim: Sim,
    pd: SimNode,
    client: SimNode,
}

impl Scene {
    fn new(seed: u64, cores: usize) -> Scene {
        let sim = Sim::new(seed, SimConfig::default());
        let pd = sim.add_node("pd", PD.ip());
        let node = sim.add_node("node", NODE.ip());
        let client = sim.add_node("client", CLIENT);
        let io = Io { kind: IoKind::Sim, reason: "simulated".into(), direct_files: true };
        let running = Node::new(config(cores), Engines::default(), io, |_| {});
        sim.start(node, cores, move |core| Box::pin(run_core(running.clone(), core)));
        let scene = Scene { sim, pd, client };
        scene.start_pd();
        scene
    }

    fn start_pd(&self) {
        self.sim.start(self.pd, 1, |_| {
            Box::pin(async {
                let config = pd::PdConfig { listen: PD, data_dir: PathBuf::from("/pd"), ..Default::default() };
                pd::run(config).await.expect("the placement driver runs until it is stopped");
            })
        });
    }

    /// Runs `work` on the clients' machine.
    fn run<T: 'static>(&self, what: &str, work: impl Future<Output = T> + 'static) -> T {
        self.sim.block_on(self.client, work, SOON).unwrap_or_else(|| panic!("{what}: not within {SOON:?}"))
    }

    fn write(&self, keys: std::ops::Range<u32>) {
        self.run("writing", async move {
            let client = Client::new(&PD.to_string());
            for number in keys {
                let value = Bytes::from(vec![b'x'; 100]);
                assert_eq!(client.put(&key(number), &value).await, Fate::Done(()), "{number}");
            }
        });
    }

    fn split_at(&self, keys: &[u32]) -> Vec<Led> {
        let split_keys = keys.iter().map(|number| key(*number)).collect();
        self.run("splitting", async move {
            let (pd, header) = placement_driver().await;
            let request = pdpb::SplitRegionsRequest { header, split_keys, retry_limit: 5 };
            let answer = pd.split_regions(cx(), &request).await.expect("answer");
            assert_eq!(answer.finished_percentage, 100);
            regions().await
        })
    }

    /// Waits until each of `count` regions has a leader.
    fn until_led(&self, count: usize) -> Vec<Led> {
        self.run("leaders", async move {
            loop {
                let found = regions().await;
                if found.len() == count && found.iter().all(|region| region.leader_store != 0) {
                    return found;
                }
                executor::sleep(Duration::from_millis(20)).await;
            }
        })
    }

    fn metrics(&self) -> String {
        self.run("metrics", http(STATUS, "GET", "/metrics", String::new()))
    }
}

/// A region as the placement driver tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Led {
    id: u64,
    start: Bytes,
    leader_store: u64,
}

fn key(number: u32) -> Bytes {
    format!("key-{number:04}").into()
}

fn cx() -> CallContext {
    CallContext::with_deadline(executor::now() + Duration::from_secs(20))
}

async fn placement_driver() -> (pdpb::PdClient<net::Channel>, Option<pdpb::RequestHeader>) {
    let pd = pdpb::PdClient::new(net::Channel::new(PD.to_string(), net::ChannelConfig::default()));
    loop {
        if let Ok(members) = pd.get_members(cx(), &pdpb::GetMembersRequest::default()).await {
            let cluster_id = members.header.map_or(0, |header| header.cluster_id);
            return (pd, Some(pdpb::RequestHeader { cluster_id, sender_id: 0 }));
        }
        executor::sleep(Duration::from_millis(20)).await;
    }
}

async fn regions() -> Vec<Led> {
    let (pd, header) = placement_driver().await;
    let request = pdpb::ScanRegionsRequest { header, ..Default::default() };
    let Ok(answer) = pd.scan_regions(cx(), &request).await else { return Vec::new() };
    let led = answer.region_metas.into_iter().zip(answer.leaders);
    led.map(|(region, leader)| Led { id: region.id, start: region.start_key, leader_store: leader.store_id }).collect()
}

async fn http(to: SocketAddr, method: &'static str, path: &'static str, body: String) -> String {
    let mut stream = executor::net::TcpStream::connect(to).await.expect("connects");
    let length = body.len();
    let request =
        format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}");
    stream.write_all(request.as_bytes()).await.expect("writes");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.expect("reads");
    let answer = String::from_utf8(answer).expect("text");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    assert!(head.starts_with("HTTP/1.1 200"), "{answer}");
    body.to_owned()
}

fn config(cores: usize) -> NodeConfig {
    NodeConfig {
        listen: NODE,
        advertise: String::new(),
        status_listen: STATUS,
        pd: vec![PD.to_string()],
        joins: false,
        data_dir: PathBuf::from("/node"),
        disk: Default::default(),
        cores,
        api: ApiMode::V1,
        labels: Vec::new(),
        shard: ShardConfig::default(),
        snapshots: Default::default(),
        log: shard::log::LogConfig {
            segment_bytes: 64 << 10,
            sync: Some(executor::LogSync::Fdatasync),
            ..Default::default()
        },
        server: net::ServerConfig::default(),
        region_heartbeat: HOUR,
        store_heartbeat: HOUR,
        config_json: "{}".into(),
        spread: Default::default(),
        seed: 1,
    }
}

#[test]
fn a_new_cluster_knows_its_leader_at_once() {
    for seed in 1..=20 {
        let scene = Scene::new(seed, 1 + seed as usize % 3);
        let led = scene.until_led(1);
        assert_eq!((led[0].start.len(), led[0].leader_store), (0, 1), "seed {seed}");
    }
}

#[test]
fn everything_is_reported_again_when_the_placement_driver_comes_back() {
    for (seed, cores) in [(1, 1), (2, 2), (3, 4)] {
        let scene = Scene::new(seed, cores);
        scene.until_led(1);
        scene.write(0..50);
        scene.split_at(&[10, 20, 30, 40]);
        let before = scene.until_led(5);
        for power_failure in [false, true, false] {
            if power_failure {
                scene.sim.kill(scene.pd);
            } else {
                scene.sim.kill_process(scene.pd);
            }
            scene.sim.run_for(Duration::from_secs(3));
            scene.start_pd();
            assert_eq!(scene.until_led(5), before, "seed {seed}");
            // The store's numbers are kept in the placement driver's memory alone, too.
            scene.run("the store's heartbeat", async {
                let (pd, header) = placement_driver().await;
                loop {
                    let store = pd.get_store(cx(), &pdpb::GetStoreRequest { header, store_id: 1 }).await;
                    if store.is_ok_and(|store| store.stats.is_some_and(|stats| stats.region_count == 5)) {
                        return;
                    }
                    executor::sleep(Duration::from_millis(20)).await;
                }
            });
        }
        scene.write(50..60);
    }
}

#[test]
fn a_region_is_split_where_the_placement_driver_says() {
    for (seed, cores) in [(5, 1), (6, 3)] {
        let scene = Scene::new(seed, cores);
        scene.until_led(1);
        scene.write(0..30);
        let led = scene.split_at(&[10, 20]);
        let starts: Vec<Bytes> = led.iter().map(|region| region.start.clone()).collect();
        assert_eq!(starts, [Bytes::new(), key(10), key(20)]);
        assert!(led.iter().all(|region| region.leader_store == 1), "{led:?}");
        scene.write(0..30);
        let metrics = scene.metrics();
        let count = |name: &str| metrics.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
        assert!(count("basalt_pd_orders_total{core=\"0\",kind=\"split_region\"}") >= Some(1), "{metrics}");
        assert_eq!(count("basalt_pd_orders_ignored_total{core=\"0\"}"), Some(0));
        assert!(count("basalt_pd_streams_total{core=\"0\"}") >= Some(1));
    }
}

#[test]
fn a_region_is_halved_when_the_placement_driver_names_no_key() {
    for (seed, policy) in [(7, "scan"), (8, "approximate")] {
        let scene = Scene::new(seed, 2);
        let whole = scene.until_led(1)[0].id;
        scene.write(0..100);
        let order = format!(r#"{{"name":"split-region","region_id":{whole},"policy":"{policy}"}}"#);
        scene.run("the order", http(PD, "POST", "/pd/api/v1/operators", order));
        let led = scene.until_led(2);
        assert_eq!(led[1].start, key(50), "{policy}");
        scene.write(0..100);
    }
}

#[test]
fn a_region_that_cannot_be_cut_stays_whole() {
    let scene = Scene::new(9, 1);
    let whole = scene.until_led(1)[0].id;
    scene.write(0..1);
    let order = format!(r#"{{"name":"split-region","region_id":{whole},"policy":"scan"}}"#);
    scene.run("the order", http(PD, "POST", "/pd/api/v1/operators", order));
    scene.sim.run_for(Duration::from_secs(5));
    assert_eq!(scene.until_led(1).len(), 1);
    // It is not held by the order that came to nothing.
    scene.write(1..9);
    let order = format!(r#"{{"name":"split-region","region_id":{whole},"policy":"scan"}}"#);
    scene.run("the order", http(PD, "POST", "/pd/api/v1/operators", order));
    assert_eq!(scene.until_led(2)[1].start, key(4));
}
