//! The cluster of one run, its faults, and its checks at the end.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base::{Prng, ShardId};
use executor::sim::{Link, Sim, SimConfig, SimNode};
use executor::{Io, IoKind};
use shard::core::{ApiMode, PlantedFault, ShardConfig};
use shard::engine::twin::{TwinDisk, TwinEngine, TwinFaults};
use shard::node::{EngineSource, Node, NodeConfig, run_core};

use super::workload::{self, History, Worker};
use super::{Plan, Report};
use crate::client::{Client, Fate};

const PD_IP: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
/// The first node; the others follow at 10.0.1.1.
const NODE_IP: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2));
const CLIENT_IP: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 9));
const PD_PORT: u16 = 2379;
const WORKERS: u64 = 4;
const CLOCKS: u64 = 2;
/// How long the cluster may take to serve again after all faults are over.
const RECOVERY_LIMIT: Duration = Duration::from_secs(60);

/// The engines' disks of one node: what survives a kill of the twin, and the engines that a kill must end.
#[derive(Clone, Default)]
struct TwinSource(Arc<Mutex<Twins>>);

#[derive(Default)]
struct Twins {
    disks: BTreeMap<ShardId, TwinDisk>,
    open: Vec<TwinEngine>,
    lives: u64,
    seed: u64,
    faults: TwinFaults,
}

impl TwinSource {
    fn new(prng: &mut Prng) -> TwinSource {
        let source = TwinSource::default();
        let faults = TwinFaults {
            // These close the shard, which ends the node: they are faults of their own below.
            flush_fails_one_in: 0,
            background_error_one_in: 0,
            ..TwinFaults::arbitrary(prng)
        };
        source.with(|twins| {
            twins.seed = prng.next_u64();
            twins.faults = faults;
        });
        source
    }

    fn with<T>(&self, work: impl FnOnce(&mut Twins) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn kill(&self) {
        let open = self.with(|twins| std::mem::take(&mut twins.open));
        open.iter().for_each(TwinEngine::kill);
    }
}

impl EngineSource for TwinSource {
    type Engine = TwinEngine;
    fn open(&self, shard: ShardId, _dir: &Path) -> Result<TwinEngine, String> {
        self.with(|twins| {
            twins.lives += 1;
            let seed = base::hash::fold(twins.seed, twins.lives);
            let disk = twins.disks.entry(shard).or_default();
            let engine = TwinEngine::open(disk, seed, twins.faults).map_err(|error| error.to_string())?;
            twins.open.push(engine.clone());
            Ok(engine)
        })
    }
}

/// One node, over all its lives.
struct Member {
    sim: SimNode,
    twins: TwinSource,
    config: NodeConfig,
}

/// One run. See the module's text.
pub struct World {
    seed: u64,
    plan: Plan,
    prng: Prng,
    sim: Sim,
    pd: SimNode,
    client: SimNode,
    nodes: Vec<Member>,
    faults: u64,
    restarts: u64,
}

impl World {
    /// The world of `seed`, nothing started yet.
    pub fn new(seed: u64, plan: Plan) -> World {
        let mut prng = Prng::new(seed);
        let sim = Sim::new(prng.next_u64(), SimConfig::arbitrary(&mut prng));
        let pd = sim.add_node("pd", PD_IP);
        let node = sim.add_node("node", NODE_IP);
        let client = sim.add_node("client", CLIENT_IP);
        let twins = TwinSource::new(&mut prng);
        let mut config = node_config(&mut prng);
        config.shard.planted = plan.planted;
        config.log.planted_no_sync = plan.planted == Some(PlantedFault::NoSync);
        let mut nodes = vec![Member { sim: node, twins, config: config.clone() }];
        for number in 1..plan.nodes {
            let ip = IpAddr::V4(Ipv4Addr::new(10, 0, 1, number as u8));
            let config = NodeConfig {
                listen: SocketAddr::new(ip, 20160),
                status_listen: SocketAddr::new(ip, 20180),
                ..config.clone()
            };
            let twins = TwinSource::new(&mut prng);
            nodes.push(Member { sim: sim.add_node(&format!("node-{number}"), ip), twins, config });
        }
        World { seed, plan, prng, sim, pd, client, nodes, faults: 0, restarts: 0 }
    }

    /// Prints what happens, step by step.
    pub fn trace(&self) {
        self.sim.trace(|line| println!("{line}"));
    }

    /// Runs to the end.
    ///
    /// # Panics
    /// See [`super::run`].
    pub fn run(mut self) -> Report {
        self.start_pd();
        (0..self.nodes.len()).for_each(|at| self.start_node(at));
        let history = Rc::new(History::default());
        let stop = Rc::new(Cell::new(false));
        for number in 0..WORKERS {
            let worker = Worker::new(number, self.prng.next_u64(), history.clone(), stop.clone());
            self.sim.spawn_on(self.client, worker.run(format!("{PD_IP}:{PD_PORT}")));
        }
        for _ in 0..CLOCKS {
            let seed = self.prng.next_u64();
            let clock = workload::clock(format!("{PD_IP}:{PD_PORT}"), seed, history.clone(), stop.clone());
            self.sim.spawn_on(self.client, clock);
        }
        let started = self.sim.now();
        loop {
            let calm = Duration::from_millis(self.prng.range(200, 6000));
            self.sim.run_for(calm);
            let elapsed = self.sim.now().since(started);
            let enough = history.operations.get() >= self.plan.operations
                && elapsed >= self.plan.duration
                && self.faults >= self.plan.faults;
            if enough {
                break;
            }
            assert!(
                elapsed < self.plan.duration * 20,
                "seed {}: only {} operations in {elapsed:?}: the cluster is stuck",
                self.seed,
                history.operations.get()
            );
            self.fault();
        }
        stop.set(true);
        self.heal();
        let done = history.clone();
        let finished = self.sim.run_until(RECOVERY_LIMIT, || done.workers_done.get() == WORKERS + CLOCKS);
        assert!(finished, "seed {}: workers hang after all faults are over", self.seed);
        assert!(history.timestamps.get() > 0, "seed {}: no timestamp was ever given out", self.seed);
        let (regions, replicas) = self.verify(&history);
        let report = Report {
            seed: self.seed,
            event_hash: self.sim.event_hash(),
            operations: history.operations.get(),
            acknowledged: history.acknowledged.get(),
            unknown: history.unknown.get(),
            faults: self.faults,
            restarts: self.restarts,
            regions,
            replicas,
            steps: self.sim.steps(),
        };
        let World { seed, sim, nodes, .. } = self;
        drop(sim);
        for Member { twins, .. } in nodes {
            // Every life of a node holds the source of its engines. What owns itself in a circle stays.
            assert_eq!(Arc::strong_count(&twins.0), 1, "seed {seed}: nodes that are gone were never dropped");
        }
        report
    }

    /// Asks the node to stop while writes are under way, held back by a slow disk: each is answered, and the node does
    /// not take the whole time that it may.
    ///
    /// # Panics
    /// If it is not so.
    pub fn stop_with_writes_under_way(mut self) {
        const WRITES: usize = 20;
        self.calm_links();
        self.start_pd();
        self.start_node(0);
        let client = Rc::new(Client::new(&format!("{PD_IP}:{PD_PORT}")));
        let first = client.clone();
        let serving = async move { while !matches!(put(&first, 0).await, Fate::Done(())) {} };
        self.sim.block_on(self.client, serving, RECOVERY_LIMIT).expect("the cluster serves");
        let retries = client.retries.get();
        self.sim.disk(self.nodes[0].sim).slow(Duration::from_millis(300));
        let fates: Rc<RefCell<Vec<Fate<()>>>> = Rc::default();
        for number in 1..=WRITES {
            let (client, fates) = (client.clone(), fates.clone());
            self.sim.spawn_on(self.client, async move {
                let fate = put(&client, number).await;
                fates.borrow_mut().push(fate);
            });
        }
        self.sim.run_for(Duration::from_millis(50));
        assert!(fates.borrow().is_empty(), "seed {}: the writes are under way", self.seed);
        let (sim, node, seed) = (&self.sim, self.nodes[0].sim, self.seed);
        sim.stop(node);
        let answered = sim.run_until(Duration::from_secs(4), || fates.borrow().len() == WRITES);
        assert!(answered, "seed {seed}: {:?}", fates.borrow());
        assert_eq!(*fates.borrow(), vec![Fate::Done(()); WRITES], "seed {seed}");
        assert_eq!(client.retries.get(), retries, "seed {seed}: each at the first attempt");
        sim.disk(node).slow(Duration::ZERO);
        let stopped = sim.run_until(Duration::from_secs(2), || !sim.running(node));
        assert!(stopped, "seed {seed}: the node stops once all is answered");
    }

    fn start_pd(&self) {
        let config = pd::PdConfig {
            listen: SocketAddr::new(PD_IP, PD_PORT),
            data_dir: PathBuf::from("/pd"),
            schedule: pd::schedule::ScheduleConfig {
                merge_schedule_limit: if self.plan.merges { 8 } else { 0 },
                split_merge_interval: Duration::from_secs(5),
                max_merge_region_keys: 60,
                ..Default::default()
            },
            ..Default::default()
        };
        self.sim.start(self.pd, 1, move |_| {
            let config = config.clone();
            Box::pin(async move {
                match pd::PdServer::start(config).await {
                    Ok(server) => {
                        executor::shutdown_signal().await;
                        // A stop that fails is a crash, which is allowed at any time.
                        drop(server.stop().await);
                    }
                    Err(error) => panic!("the placement driver does not start: {error}"),
                }
            })
        });
    }

    fn start_node(&mut self, at: usize) {
        let cores = self.prng.range(1, 5) as usize;
        let mut config = self.nodes[at].config.clone();
        config.cores = cores;
        config.seed = self.prng.next_u64();
        let io = Io { kind: IoKind::Sim, reason: "simulated".into(), direct_files: true };
        let node = Node::new(config, self.nodes[at].twins.clone(), io, |_| {});
        self.sim.start(self.nodes[at].sim, cores, move |core| Box::pin(run_core(node.clone(), core)));
    }

    fn restart_node(&mut self, at: usize) {
        self.nodes[at].twins.kill();
        self.restarts += 1;
        self.start_node(at);
    }

    fn restart_those_that_stopped(&mut self) {
        for at in 0..self.nodes.len() {
            if !self.sim.running(self.nodes[at].sim) {
                self.restart_node(at);
            }
        }
    }

    fn fault(&mut self) {
        self.faults += 1;
        // One may have stopped by itself, when its engine or its log failed.
        self.restart_those_that_stopped();
        let at = if self.nodes.len() == 1 { 0 } else { self.prng.below(self.nodes.len() as u64) as usize };
        let node = self.nodes[at].sim;
        if self.nodes.len() > 1 && self.prng.one_in(4) {
            return self.cut_off(at);
        }
        match self.prng.below(11) {
            0..=2 => {
                self.sim.kill(node);
                self.down_for_a_while();
                self.restart_node(at);
            }
            3 => {
                self.sim.kill_process(node);
                self.down_for_a_while();
                self.restart_node(at);
            }
            4 => {
                self.sim.stop(node);
                let sim = &self.sim;
                let stopped = sim.run_until(Duration::from_secs(60), || !sim.running(node));
                assert!(stopped, "seed {}: the node does not stop when it is asked to", self.seed);
                self.restart_node(at);
            }
            5 => {
                let pause = Duration::from_millis(self.prng.range(10, 5000));
                self.sim.pause(node, pause);
            }
            6 => {
                match self.prng.below(3) {
                    0 => self.sim.kill(self.pd),
                    1 => self.sim.kill_process(self.pd),
                    _ => {
                        self.sim.disk(self.pd).fail_syncs(true);
                        self.sim.run_for(Duration::from_millis(self.prng.range(100, 3000)));
                        self.sim.disk(self.pd).fail_syncs(false);
                        self.sim.kill(self.pd);
                    }
                }
                self.down_for_a_while();
                self.start_pd();
            }
            7 => {
                let nanos = self.prng.range(0, 20_000_000_000) as i64 - 10_000_000_000;
                let node = if self.prng.one_in(2) { node } else { self.pd };
                self.sim.step_clock(node, nanos);
            }
            8 => {
                let slow = Duration::from_millis(self.prng.range(0, 200));
                self.sim.disk(node).slow(slow);
                self.sim.run_for(Duration::from_millis(self.prng.range(100, 3000)));
                self.sim.disk(node).slow(Duration::ZERO);
            }
            9 => {
                // A failed sync ends the node; what it had not acknowledged may be gone. Half of the time only the
                // process ends: then what was written can be read again, and is still not durable.
                self.sim.disk(node).fail_syncs(true);
                self.sim.run_for(Duration::from_millis(self.prng.range(100, 3000)));
                self.sim.disk(node).fail_syncs(false);
                if self.prng.one_in(2) {
                    self.sim.kill(node)
                } else {
                    self.sim.kill_process(node)
                }
                self.restart_node(at);
            }
            _ => {
                self.sim.partition(self.client, node);
                self.sim.run_for(Duration::from_millis(self.prng.range(100, 5000)));
                self.sim.heal(self.client, node);
            }
        }
    }

    /// Cuts the way between a node and another one, or all others and the placement driver, in one direction or both.
    fn cut_off(&mut self, at: usize) {
        let node = self.nodes[at].sim;
        let others: Vec<SimNode> = self.nodes.iter().map(|other| other.sim).filter(|other| *other != node).collect();
        let other = others[self.prng.below(others.len() as u64) as usize];
        match self.prng.below(3) {
            0 => self.sim.partition(node, other),
            1 => self.sim.partition_one_way(node, other),
            _ => {
                others.iter().for_each(|other| self.sim.partition(node, *other));
                if self.prng.one_in(2) {
                    self.sim.partition(node, self.pd);
                }
            }
        }
        self.sim.run_for(Duration::from_millis(self.prng.range(100, 8000)));
        self.sim.heal_all();
    }

    fn down_for_a_while(&mut self) {
        let down = Duration::from_millis(self.prng.range(0, 2000));
        self.sim.run_for(down);
    }

    fn heal(&mut self) {
        self.sim.heal_all();
        for node in &self.nodes {
            self.sim.disk(node.sim).slow(Duration::ZERO);
        }
        self.calm_links();
        self.restart_those_that_stopped();
    }

    fn calm_links(&self) {
        let ends = [self.client, self.pd].into_iter().chain(self.nodes.iter().map(|node| node.sim));
        let ends: Vec<SimNode> = ends.collect();
        for (at, a) in ends.iter().enumerate() {
            for b in &ends[at + 1..] {
                self.sim.set_link(*a, *b, Link { reset_rate: 0.0, ..calm_link() });
            }
        }
    }

    /// Reads everything back, restarts every node once more, and reads everything again.
    fn verify(&mut self, history: &Rc<History>) -> (u64, u64) {
        self.check_all(history, "at the end");
        for at in 0..self.nodes.len() {
            self.sim.kill(self.nodes[at].sim);
            self.restart_node(at);
        }
        self.check_all(history, "after one more crash")
    }

    /// Reads all keys; answers with the number of regions and of their replicas.
    fn check_all(&self, history: &Rc<History>, when: &str) -> (u64, u64) {
        let history = history.clone();
        let read = async move {
            let client = Client::new(&format!("{PD_IP}:{PD_PORT}"));
            let mut tries = 0;
            loop {
                match client.scan_all(&bytes::Bytes::new()).await {
                    Fate::Done(pairs) => {
                        let regions = client.regions().await.unwrap_or_default();
                        let replicas = regions.iter().map(|region| region.peers.len() as u64).sum();
                        return (history.check(&pairs), (regions.len() as u64, replicas));
                    }
                    Fate::Refused(why) | Fate::Unknown(why) => {
                        tries += 1;
                        assert!(tries < 10, "cannot read everything back: {why}");
                    }
                }
            }
        };
        match self.sim.block_on(self.client, read, RECOVERY_LIMIT) {
            Some((Ok(()), regions)) => regions,
            Some((Err(wrong), _)) => panic!("seed {}: {when}: {wrong}", self.seed),
            None => panic!("seed {}: {when}: the cluster does not serve", self.seed),
        }
    }
}

async fn put(client: &Client, number: usize) -> Fate<()> {
    client.put(&format!("stop-{number}").into(), &"value".into()).await
}

fn calm_link() -> Link {
    Link { latency: Duration::from_micros(100), jitter: Duration::from_micros(100), reset_rate: 0.0 }
}

/// Odd settings, so that everything happens often: small regions, a small log, early flushes.
fn node_config(prng: &mut Prng) -> NodeConfig {
    let split_keys = prng.range(10, 100);
    let replay_cap = prng.range(256 << 10, 2 << 20);
    NodeConfig {
        listen: SocketAddr::new(NODE_IP, 20160),
        advertise: String::new(),
        status_listen: SocketAddr::new(NODE_IP, 20180),
        pd: vec![format!("{PD_IP}:{PD_PORT}")],
        joins: false,
        data_dir: PathBuf::from("/node"),
        cores: 1,
        api: ApiMode::V1,
        labels: Vec::new(),
        shard: ShardConfig {
            region_max_keys: split_keys * 2,
            region_split_keys: split_keys,
            split_check_diff_bytes: prng.range(100, 10_000),
            replay_cap_bytes: replay_cap,
            flush_at_bytes: replay_cap / 2,
            flush_age: Duration::from_millis(prng.range(500, 60_000)),
            entry_cut_bytes: prng.range(100, 4096) as usize,
            halts_on_divergence: true,
            ..Default::default()
        },
        log: shard::log::LogConfig {
            segment_bytes: 64 << 10,
            sync: Some(executor::LogSync::Fdatasync),
            replay_cap_bytes: replay_cap,
            ..Default::default()
        },
        server: net::ServerConfig::default(),
        region_heartbeat: Duration::from_secs(5),
        store_heartbeat: Duration::from_secs(10),
        config_json: "{}".into(),
        seed: 0,
    }
}
