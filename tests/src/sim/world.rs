//! The cluster of one run, and its checks.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base::{Prng, RegionId, StoreId};
use executor::sim::{Link, Sim, SimConfig, SimNode};
use executor::{Io, IoKind};
use shard::core::spread::SpreadConfig;
use shard::core::{ApiMode, LineFaults, PlantedFault, ShardConfig, SnapshotConfig};
use shard::node::{DiskConfig, Node, NodeConfig, NodeReady, run_core};

use super::durable::{Disks, NodeDisks};
use super::hot::{self, Habit};
use super::twins::TwinSource;
use super::watch::{self, Leaders, NodeView};
use super::workload::{self, History, Hush, Worker};
use super::{Fault, Focus, Plan, Report, orders};
use crate::client::{Client, Fate};

pub(super) const PD_IP: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
/// The first node; the others follow at 10.0.1.1.
const NODE_IP: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2));
const CLIENT_IP: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 9));
pub(super) const PD_PORT: u16 = 2379;
const WORKERS: u64 = 4;
const CLOCKS: u64 = 2;
/// How long the cluster may take to serve again after all faults are over.
pub(super) const RECOVERY_LIMIT: Duration = Duration::from_secs(60);
/// How long replicas may take to become equal after that.
const EQUAL_LIMIT: Duration = Duration::from_secs(300);
/// How often the run is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// One node, over all its lives.
pub(super) struct Member {
    pub(super) sim: SimNode,
    pub(super) twins: TwinSource,
    pub(super) config: NodeConfig,
    /// Its store's id while it serves, else 0.
    pub(super) serves: Arc<AtomicU64>,
}

/// One run. See the module's text.
pub struct World {
    pub(super) seed: u64,
    pub(super) plan: Plan,
    pub(super) prng: Prng,
    pub(super) sim: Sim,
    pub(super) pd: SimNode,
    pub(super) client: SimNode,
    pub(super) nodes: Vec<Member>,
    pub(super) leaders: Arc<Mutex<Leaders>>,
    pub(super) replicas: u64,
    /// See [`History::hush`].
    pub(super) hush: Rc<Cell<Hush>>,
    pub(super) faults: u64,
    restarts: u64,
    /// A block was damaged, on one disk.
    pub(super) disks_are_damaged: Rc<Cell<bool>>,
    /// Replicas that must be replaced for it.
    pub(super) damaged: u64,
}

impl World {
    /// The world of `seed`, nothing started yet.
    pub fn new(seed: u64, plan: Plan) -> World {
        let mut prng = Prng::new(seed);
        let is_quiet = plan.focus == Focus::Quiet;
        let seed_of_sim = prng.next_u64();
        let sim = if is_quiet { SimConfig::default() } else { SimConfig::arbitrary(&mut prng) };
        let sim = Sim::new(seed_of_sim, sim);
        let pd = sim.add_node("pd", PD_IP);
        let node = sim.add_node("node", NODE_IP);
        let client = sim.add_node("client", CLIENT_IP);
        let leaders = Arc::default();
        let misses = plan.focus == Focus::Leaders;
        let twins = TwinSource::new(&mut prng, &leaders, misses);
        let mut config = node_config(&mut prng);
        config.shard.line_faults = config.shard.line_faults.filter(|_| !is_quiet);
        if plan.focus == Focus::Leaders {
            config.shard.line_faults = config.shard.line_faults.map(|_| LATE);
            // Entries are applied beside the turn if they are larger: a leader whose helpers hang would stand still.
            config.shard.entry_cut_bytes = 32 << 10;
        }
        if !is_quiet {
            odd_timing(&mut config, plan.focus, &mut prng);
            config.snapshots = odd_snapshots(seed);
        }
        if plan.only == Some(Fault::RestartBehindCut) {
            // A start takes the same time whatever the ticks are: longer ones leave a lease the time to outlive it. Messages
            // that come late let the moment pass.
            config.shard.line_faults = None;
            config.shard.tick = Duration::from_millis(150);
            config.shard.raft.election_ticks = 12;
        }
        config.shard.raft.halts_on_loss = true;
        config.shard.leader_missing = Duration::from_millis(prng.range(2000, 20_000));
        config.shard.planted = plan.planted;
        config.shard.merges = plan.merges;
        if !is_quiet && prng.one_in(2) {
            config.spread = odd_spread(&mut prng);
        }
        config.log.planted_no_sync = plan.planted == Some(PlantedFault::NoSync);
        let mut nodes = vec![Member { sim: node, twins, config: config.clone(), serves: Arc::default() }];
        for number in 1..plan.nodes {
            let ip = IpAddr::V4(Ipv4Addr::new(10, 0, 1, number as u8));
            let config = NodeConfig {
                listen: SocketAddr::new(ip, 20160),
                status_listen: SocketAddr::new(ip, 20180),
                ..config.clone()
            };
            let (twins, sim) =
                (TwinSource::new(&mut prng, &leaders, misses), sim.add_node(&format!("node-{number}"), ip));
            nodes.push(Member { sim, twins, config, serves: Arc::default() });
        }
        let replicas = if plan.nodes > 3 && prng.one_in(2) { 5 } else { 3 };
        World {
            seed,
            plan,
            prng,
            sim,
            pd,
            client,
            nodes,
            leaders,
            replicas,
            hush: Rc::default(),
            faults: 0,
            restarts: 0,
            disks_are_damaged: Rc::default(),
            damaged: 0,
        }
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
        let history = self.history();
        let stop = Rc::new(Cell::new(false));
        let clients = self.start_clients(&history, &stop);
        let started = self.sim.now();
        loop {
            let calm = match self.plan.focus {
                Focus::Any => self.prng.range(200, 6000),
                _ => self.prng.range(200, 2000),
            };
            self.run_for(Duration::from_millis(calm));
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
        let finished = self.sim.run_until(RECOVERY_LIMIT, || history.workers_done.get() == clients);
        assert!(finished, "seed {}: workers hang after all faults are over", self.seed);
        assert!(history.timestamps.get() > 0, "seed {}: no timestamp was ever given out", self.seed);
        self.verify(history)
    }

    /// Runs for `duration` without a fault, after half a minute in which replicas are made: whoever led before leads in the
    /// same term afterwards, and whoever was born meanwhile leads in its first one.
    ///
    /// # Panics
    /// If there was an election without a cause, or as [`super::run`].
    pub fn run_quietly(mut self, duration: Duration) -> Report {
        self.calm_links();
        self.start_pd();
        (0..self.nodes.len()).for_each(|at| self.start_node(at));
        let history = self.history();
        let stop = Rc::new(Cell::new(false));
        let clients = self.start_clients(&history, &stop);
        self.run_for(Duration::from_secs(30));
        let before = self.terms();
        self.run_for(duration);
        for (region, terms) in self.terms() {
            let known = before.get(&region).map_or(1, Vec::len);
            assert!(terms.len() <= known, "seed {}: region {region} had leaders in terms {terms:?}", self.seed);
        }
        stop.set(true);
        let finished = self.sim.run_until(RECOVERY_LIMIT, || history.workers_done.get() == clients);
        assert!(finished, "seed {}: workers hang", self.seed);
        assert_eq!(history.unknown.get(), 0, "seed {}: writes in doubt", self.seed);
        self.verify(history)
    }

    fn history(&self) -> Rc<History> {
        let disks = |node: &Member| NodeDisks {
            disk: self.sim.disk(node.sim),
            twins: node.twins.clone(),
            serves: node.serves.clone(),
        };
        let disks = Disks::new(self.nodes.iter().map(disks).collect(), self.disks_are_damaged.clone());
        Rc::new(History::on(disks, self.hush.clone()))
    }

    fn terms(&self) -> BTreeMap<RegionId, Vec<u64>> {
        self.leaders.lock().unwrap_or_else(PoisonError::into_inner).terms()
    }

    /// Starts those who use the cluster; answers with their number.
    fn start_clients(&mut self, history: &Rc<History>, stop: &Rc<Cell<bool>>) -> u64 {
        let (history, stop) = (|| history.clone(), || stop.clone());
        let pd = SocketAddr::new(PD_IP, PD_PORT);
        for number in 0..WORKERS {
            let worker = Worker::new(number, self.prng.next_u64(), history(), stop());
            self.sim.spawn_on(self.client, worker.run(pd.to_string()));
        }
        for _ in 0..CLOCKS {
            let clock = workload::clock(pd.to_string(), self.prng.next_u64(), history(), stop());
            self.sim.spawn_on(self.client, clock);
        }
        let all = Habit::All(Duration::from_millis(self.prng.range(10, 300)));
        let habits: &[Habit] = match self.plan.focus {
            Focus::Leaders => &[
                all,
                Habit::Read,
                Habit::Read,
                Habit::Read,
                Habit::Write,
                Habit::Write,
                Habit::Write,
                Habit::Swap,
                Habit::Swap,
                Habit::Swap,
            ],
            _ => &[all, all],
        };
        for habit in habits {
            self.sim.spawn_on(self.client, hot::run(pd.to_string(), self.prng.next_u64(), history(), stop(), *habit));
        }
        let readers = habits.len() as u64;
        let pause = match self.plan.focus {
            Focus::Quiet => return WORKERS + CLOCKS + readers,
            Focus::Any if self.prng.one_in(4) => return WORKERS + CLOCKS + readers,
            Focus::Members => 500,
            Focus::Leaders => 2000,
            _ => self.prng.range(200, 10_000),
        };
        let orders = orders::run(pd, self.prng.next_u64(), history(), stop(), Duration::from_millis(pause));
        self.sim.spawn_on(self.client, orders);
        WORKERS + CLOCKS + readers + 1
    }

    /// Lets time pass, and looks at the cluster now and then.
    pub(super) fn run_for(&self, duration: Duration) {
        let mut left = duration;
        while !left.is_zero() {
            let step = left.min(LOOK_EVERY);
            self.sim.run_for(step);
            left -= step;
            self.look();
        }
    }

    /// What must hold at any time.
    pub(super) fn look(&self) {
        let seed = self.seed;
        if let Some(wrong) = &self.leaders.lock().unwrap_or_else(PoisonError::into_inner).wrong {
            panic!("seed {seed}: {wrong}");
        }
        for view in self.views() {
            if let Err(wrong) = view.check_overlaps() {
                panic!("seed {seed}: {wrong}");
            }
        }
    }

    /// The node that led the region of `key` last.
    pub(super) fn leader_of(&self, key: &[u8]) -> Option<usize> {
        let region = self.views().iter().find_map(|view| view.region_of(key))?;
        let leader = self.leaders.lock().unwrap_or_else(PoisonError::into_inner).last(RegionId(region.id))?;
        let store = region.peers.iter().find(|peer| peer.id == leader.0)?.store_id;
        self.nodes.iter().position(|node| node.serves.load(Ordering::Relaxed) == store)
    }

    /// The nodes that serve.
    pub(super) fn views(&self) -> Vec<NodeView> {
        let serving = self.nodes.iter().filter(|node| self.sim.running(node.sim));
        let views = serving.filter_map(|node| match node.serves.load(Ordering::Relaxed) {
            0 => None,
            store => Some(NodeView { store: StoreId(store), engines: node.twins.engines() }),
        });
        views.collect()
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

    pub(super) fn start_pd(&self) {
        let usual = pd::schedule::ScheduleConfig::default();
        let balancing = if self.plan.focus == Focus::Quiet { 0 } else { usual.leader_schedule_limit };
        let config = pd::PdConfig {
            listen: SocketAddr::new(PD_IP, PD_PORT),
            data_dir: PathBuf::from("/pd"),
            max_replicas: self.replicas as u32,
            faults: pd::raft::Faults {
                bound_not_persisted: self.plan.planted == Some(PlantedFault::TimestampsFromClock),
                ..Default::default()
            },
            schedule: pd::schedule::ScheduleConfig {
                merge_schedule_limit: if self.plan.merges { 8 } else { 0 },
                split_merge_interval: Duration::from_secs(5),
                max_merge_region_keys: 60,
                max_replicas: self.replicas,
                leader_schedule_limit: balancing,
                region_schedule_limit: balancing,
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

    pub(super) fn start_node(&mut self, at: usize) {
        let mut config = self.nodes[at].config.clone();
        if self.plan.focus != Focus::Quiet {
            config.cores = self.prng.range(1, 5) as usize;
        }
        let cores = config.cores;
        config.seed = self.prng.next_u64();
        let io = Io { kind: IoKind::Sim, reason: "simulated".into(), direct_files: true };
        let serves = self.nodes[at].serves.clone();
        serves.store(0, Ordering::Relaxed);
        let ready = move |ready: NodeReady| serves.store(ready.store_id, Ordering::Relaxed);
        let node = Node::new(config, self.nodes[at].twins.clone(), io, ready);
        self.sim.start(self.nodes[at].sim, cores, move |core| Box::pin(run_core(node.clone(), core)));
    }

    pub(super) fn restart_node(&mut self, at: usize) {
        self.nodes[at].twins.kill();
        self.restarts += 1;
        self.start_node(at);
    }

    pub(super) fn restart_those_that_stopped(&mut self) {
        for at in 0..self.nodes.len() {
            if !self.sim.running(self.nodes[at].sim) {
                self.restart_node(at);
            }
        }
    }

    fn heal(&mut self) {
        self.sim.heal_all();
        for node in &self.nodes {
            self.sim.disk(node.sim).slow(Duration::ZERO);
            self.sim.disk(node.sim).set_full(false);
            self.sim.slow_helpers(node.sim, Duration::ZERO);
        }
        self.calm_links();
        self.restart_those_that_stopped();
    }

    pub(super) fn calm_links(&self) {
        let ends = [self.client, self.pd].into_iter().chain(self.nodes.iter().map(|node| node.sim));
        let ends: Vec<SimNode> = ends.collect();
        for (at, a) in ends.iter().enumerate() {
            for b in &ends[at + 1..] {
                self.sim.set_link(*a, *b, Link { reset_rate: 0.0, ..calm_link() });
            }
        }
    }

    /// Reads everything back, restarts every node once more, reads everything again, and compares all replicas.
    fn verify(mut self, history: Rc<History>) -> Report {
        self.check_all(&history, "at the end");
        // Without another start, which might hide that somebody is stuck.
        self.check_equal();
        self.nodes.iter().for_each(|node| self.sim.kill(node.sim));
        (0..self.nodes.len()).for_each(|at| self.restart_node(at));
        self.check_all(&history, "after one more crash");
        let undecided = match history.hot.check() {
            Ok(undecided) => undecided,
            Err(wrong) => panic!("seed {}: {wrong}", self.seed),
        };
        let (regions, replicas) = self.check_equal();
        self.look();
        let report = Report {
            seed: self.seed,
            event_hash: self.sim.event_hash(),
            operations: history.operations.get(),
            acknowledged: history.acknowledged.get(),
            unknown: history.unknown.get(),
            orders: history.orders.get(),
            faults: self.faults,
            restarts: self.restarts,
            regions,
            replicas,
            merged: self.merged(),
            looked_for: history.disks.looked_for.get(),
            damaged: self.damaged,
            undecided,
            steps: self.sim.steps(),
        };
        let World { seed, sim, nodes, .. } = self;
        drop((sim, history));
        for Member { twins, .. } in nodes {
            // Every life of a node holds the source of its engines. What owns itself in a circle stays.
            assert_eq!(twins.owners(), 1, "seed {seed}: nodes that are gone were never dropped");
        }
        report
    }

    /// Regions that had a leader and are gone.
    fn merged(&self) -> u64 {
        let views = self.views();
        let here: BTreeSet<u64> = views.iter().flat_map(|view| view.regions()).map(|region| region.id).collect();
        self.terms().keys().filter(|region| !here.contains(&region.0)).count() as u64
    }

    /// Waits until all replicas are equal; answers with the number of regions and of replicas.
    fn check_equal(&self) -> (u64, u64) {
        let (mut waited, mut wrong) = (Duration::ZERO, String::new());
        while waited < EQUAL_LIMIT {
            self.run_for(LOOK_EVERY);
            waited += LOOK_EVERY;
            let views = self.views();
            if views.len() < self.nodes.len() {
                wrong = format!("only {} nodes serve", views.len());
                continue;
            }
            match watch::compare(&views) {
                Ok(sums) => return sums,
                Err(difference) => wrong = difference,
            }
        }
        panic!("seed {}: after {EQUAL_LIMIT:?} without a fault: {wrong}", self.seed);
    }

    /// Reads all keys.
    fn check_all(&self, history: &Rc<History>, when: &str) {
        let history = history.clone();
        let read = async move {
            let client = Client::new(&format!("{PD_IP}:{PD_PORT}"));
            let mut tries = 0;
            loop {
                let start = executor::now().0;
                match client.scan_all(&bytes::Bytes::new()).await {
                    Fate::Done(pairs) => {
                        history.hot.note_last(start, &pairs);
                        return history.check(&pairs);
                    }
                    Fate::Refused(why) | Fate::Unknown(why) => {
                        tries += 1;
                        assert!(tries < 10, "cannot read everything back: {why}");
                    }
                }
            }
        };
        match self.sim.block_on(self.client, read, RECOVERY_LIMIT) {
            Some(Ok(())) => {}
            Some(Err(wrong)) => panic!("seed {}: {when}: {wrong}", self.seed),
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
        // A reserve file takes memory here: the stories about full disks ask for it.
        disk: DiskConfig { reserve_bytes: Some(0), ..DiskConfig::default() },
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
            line_faults: line_faults(prng),
            ..Default::default()
        },
        snapshots: SnapshotConfig::default(),
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
        spread: Default::default(),
        seed: 0,
    }
}

/// Elections that take from half to twice the usual time, and reports to the placement driver, whose answers are its orders,
/// up to ten times as often.
fn odd_timing(config: &mut NodeConfig, focus: Focus, prng: &mut Prng) {
    let longest = if focus == Focus::Leaders { 1000 } else { 10_000 };
    config.region_heartbeat = Duration::from_millis(prng.range(200, longest));
    if prng.one_in(2) {
        config.shard.tick = Duration::from_millis([50, 100, 150][prng.below(3) as usize]);
        config.shard.raft.election_ticks = [6, 8, 12][prng.below(3) as usize];
    }
}

/// Snapshots that come as files however small they are, or some of them, and wait for their bandwidth. Drawn apart from
/// the rest, which stays as it was.
fn odd_snapshots(seed: u64) -> SnapshotConfig {
    let mut prng = Prng::new(base::hash::fold(seed, 0x5AA5));
    let bytes_per_second = match prng.below(3) {
        0 => prng.range(10_000, 200_000),
        _ => SnapshotConfig::default().bytes_per_second,
    };
    let small_bytes = [0, prng.range(1, 4000), SnapshotConfig::default().small_bytes][prng.below(3) as usize];
    SnapshotConfig { bytes_per_second, small_bytes }
}

/// Regions that change their cores often.
fn odd_spread(prng: &mut Prng) -> SpreadConfig {
    SpreadConfig {
        beat: Duration::from_millis(prng.range(100, 2000)),
        beats: prng.range(1, 4) as u32,
        above_percent: prng.range(101, 140),
        work_min: prng.range(1, 100),
        rest: Duration::from_millis(prng.range(500, 20_000)),
    }
}

/// Messages that come late: what they say may not be true any more.
const LATE: LineFaults =
    LineFaults { lose_one_in: 100, duplicate_one_in: 100, delay_one_in: 3, delay_max: Duration::from_millis(1500) };

/// In half of the runs raft messages are lost, doubled and late, more than connections that break make them.
fn line_faults(prng: &mut Prng) -> Option<LineFaults> {
    let mut rate = || [0, 10, 100, 1000][prng.below(4) as usize];
    let (lose_one_in, duplicate_one_in, delay_one_in) = (rate(), rate(), rate());
    let delay_max = Duration::from_millis(prng.range(1, 2000));
    prng.one_in(2).then_some(LineFaults { lose_one_in, duplicate_one_in, delay_one_in, delay_max })
}
