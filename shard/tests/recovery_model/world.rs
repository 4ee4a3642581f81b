//! One node in the simulator, life after life: two shards on one core, and what a test does to them.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use base::{ClusterId, CoreId, Prng, RegionId, ShardId, StoreId, TokenBucket};
use executor::LogSync;
use executor::sim::{Sim, SimConfig, SimNode};
use mvcc::Cf;
use proto::kvrpcpb;
use shard::core::directory::{Claim, Directory, bury};
use shard::core::{
    ApiMode, Control, CoreHost, CoreMail, CoreOutlet, Lines, NodeShared, Opened, PlantedFault, Shard, ShardConfig,
    examine, moves, open,
};
use shard::engine::rocks::{BlockCache, RocksEngine, RocksOptions};
use shard::engine::twin::{TwinDisk, TwinEngine, TwinFaults};
use shard::engine::{Engine, EngineIter as _, EngineSnapshot as _, Tier};
use shard::log::LogConfig;

use super::killable::{Killable, Steps};
use super::model::{Model, Region};

pub(crate) const STORE: StoreId = StoreId(1);
pub(crate) const SHARDS: u32 = 2;
/// How long a region may take until it serves.
const SERVE_LIMIT: Duration = Duration::from_secs(10);
/// How long a life may take; a life that does not end in time hangs.
const LIFE_LIMIT: Duration = Duration::from_secs(120);

/// Where the engines keep what they keep.
pub(crate) trait Store: 'static {
    type Engine: Engine;
    fn open(&self, shard: ShardId, seed: u64) -> Self::Engine;
    /// The end of the process that has them open.
    fn kill(&self);
    /// Where table files lie.
    fn snap_dir(&self, shard: ShardId) -> PathBuf;
}

#[derive(Default)]
pub(crate) struct Twins {
    disks: RefCell<BTreeMap<ShardId, TwinDisk>>,
    open: RefCell<Vec<TwinEngine>>,
}

impl Store for Twins {
    type Engine = TwinEngine;

    fn open(&self, shard: ShardId, seed: u64) -> TwinEngine {
        let faults = TwinFaults { incomplete_one_in: 10, not_cached_one_in: 4, ..TwinFaults::default() };
        let mut disks = self.disks.borrow_mut();
        let engine = TwinEngine::open(disks.entry(shard).or_default(), seed, faults).expect("the disk is free");
        self.open.borrow_mut().push(engine.clone());
        engine
    }

    fn kill(&self) {
        self.open.take().iter().for_each(TwinEngine::kill);
    }

    fn snap_dir(&self, shard: ShardId) -> PathBuf {
        PathBuf::from(format!("/snap-{shard}"))
    }
}

/// RocksDB in a folder. What was not flushed is lost when its handles go, as it is when the process is killed
/// (`engine_differential` kills processes to prove it).
pub(crate) struct Rocks {
    folder: tempfile::TempDir,
    cache: BlockCache,
}

impl Rocks {
    pub(crate) fn new() -> Rocks {
        // No power is lost in this test, so memory is as good as a disk, and syncs cost nothing.
        let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a folder");
        for shard in 0..SHARDS {
            std::fs::create_dir_all(folder.path().join(format!("snap-{shard}"))).expect("a folder");
        }
        Rocks { folder, cache: BlockCache::new(1 << 20) }
    }
}

impl Store for Rocks {
    type Engine = RocksEngine;

    fn open(&self, shard: ShardId, _seed: u64) -> RocksEngine {
        let options = RocksOptions { memtable_bytes_max: 64 << 10, ..RocksOptions::default() };
        let path = self.folder.path().join(format!("engine-{shard}"));
        RocksEngine::open(&path, &self.cache, &options).expect("the database opens")
    }

    fn kill(&self) {}

    fn snap_dir(&self, shard: ShardId) -> PathBuf {
        self.folder.path().join(format!("snap-{shard}"))
    }
}

/// What a life is told.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// Things to do before it ends by itself.
    pub(crate) ops: u64,
    /// It ends before this step.
    pub(crate) end_before: u64,
    /// It ends by closing its shards, if it comes to its end.
    pub(crate) close: bool,
}

/// See the module.
pub(crate) struct World<S: Store> {
    pub(crate) sim: Sim,
    node: SimNode,
    prng: Prng,
    inner: Rc<Inner<S>>,
}

/// What a life sees of the world.
pub(crate) struct Inner<S: Store> {
    pub(crate) store: S,
    pub(crate) model: RefCell<Model>,
    pub(crate) config: ShardConfig,
    pub(crate) log: LogConfig,
    /// What happened at all, over all lives.
    pub(crate) marks: RefCell<BTreeMap<&'static str, u64>>,
}

impl<S: Store> Inner<S> {
    pub(crate) fn mark(&self, what: &'static str) {
        *self.marks.borrow_mut().entry(what).or_default() += 1;
    }
}

impl<S: Store> World<S> {
    pub(crate) fn new(seed: u64, store: S, planted: Option<PlantedFault>) -> World<S> {
        let mut prng = Prng::new(seed);
        let sim = Sim::new(prng.next_u64(), SimConfig::arbitrary(&mut prng));
        let node = sim.add_node("node", IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)));
        let log = LogConfig {
            segment_bytes: 64 << 10,
            block_bytes: 4 << 10,
            replay_cap_bytes: 256 << 10,
            sync: Some(LogSync::Fdatasync),
            ..LogConfig::default()
        };
        let config = ShardConfig {
            flush_at_bytes: [4 << 10, 64 << 10][prng.below(2) as usize],
            replay_cap_bytes: 128 << 10,
            planted,
            ..ShardConfig::default()
        };
        let inner = Inner { store, model: RefCell::new(Model::default()), config, log, marks: RefCell::default() };
        World { sim, node, prng, inner: Rc::new(inner) }
    }

    /// A number of this world's.
    pub(crate) fn draw(&mut self, below: u64) -> u64 {
        self.prng.below(below)
    }

    pub(crate) fn marks(&self) -> BTreeMap<&'static str, u64> {
        self.inner.marks.borrow().clone()
    }

    /// Spoils the beginning of one of a log's blocks, acknowledged or not.
    pub(crate) fn spoil_a_block(&mut self) {
        let disk = self.sim.disk(self.node);
        let mut blocks = Vec::new();
        for (path, _) in disk.files().into_iter().filter(|(path, _)| path.to_string_lossy().starts_with("/log-")) {
            let bytes = disk.bytes(&path).unwrap_or_default();
            let used = bytes.chunks(4096).enumerate().filter(|(_, unit)| unit.iter().any(|byte| *byte != 0));
            blocks.extend(used.map(|(at, _)| (path.clone(), at as u64 * 4096)));
        }
        let (path, at) = &blocks[self.draw(blocks.len() as u64) as usize];
        disk.corrupt(path, at + 8, &[0xA5; 16]);
    }

    /// A life that looks for damage and accepts it; it ends before step `end_before`. Returns whether there was any,
    /// or `None` if it was cut short.
    pub(crate) fn accept(&mut self, end_before: u64) -> Result<Option<bool>, String> {
        // What a lost block promised is lost with it.
        self.inner.model.borrow_mut().forget_promises();
        let steps = Steps::new(end_before, 0, self.prng.next_u64());
        let (inner, life_steps, seed) = (self.inner.clone(), steps.clone(), self.prng.next_u64());
        let outcome = self.run(&steps, async move {
            let mut damaged = false;
            for shard in (0..SHARDS).map(ShardId) {
                let engine = Killable::new(inner.store.open(shard, seed ^ u64::from(shard.0)), life_steps.clone());
                let (log_dir, snap_dir) = (PathBuf::from(format!("/log-{shard}")), inner.store.snap_dir(shard));
                let report = examine(shard, STORE, &engine, &log_dir, &snap_dir, inner.log.clone(), true).await;
                let report = report.map_err(|error| error.to_string())?;
                damaged |= !report.is_whole();
            }
            Ok(damaged)
        });
        match outcome {
            _ if steps.over() => Ok(None),
            Some(result) => result.map(Some),
            None => Err(format!("accepting hangs after {} steps", steps.count())),
        }
    }

    /// A life in which whatever is left serves; the model goes on from there. False if it cannot: one shard has lost the
    /// end of a region in whose range the other one has another, which only the placement driver can settle.
    pub(crate) fn give_up(&mut self) -> Result<bool, String> {
        let steps = Steps::new(u64::MAX, 0, self.prng.next_u64());
        let (inner, life_steps, seed) = (self.inner.clone(), steps.clone(), self.prng.next_u64());
        let outcome = self.run(&steps, async move {
            let life = Life::start(inner.clone(), life_steps, seed).await?;
            let found = life.found()?;
            *inner.marks.borrow_mut().entry("kept").or_default() += found.len() as u64;
            inner.model.borrow_mut().give_up(&found)?;
            let overlap = |a: &Region, b: &Region| {
                let (a, b) = (&a.meta, &b.meta);
                a.id != b.id && base::keys::overlaps(&a.start_key, &a.end_key, &b.start_key, &b.end_key)
            };
            Ok(!found.values().any(|a| found.values().any(|b| overlap(a, b))))
        });
        outcome.unwrap_or_else(|| Err("a life after damage hangs".into()))
    }

    /// Runs a life until it ends or is cut short, and kills its process.
    fn run<T: 'static>(&mut self, steps: &Arc<Steps>, life: impl Future<Output = T> + 'static) -> Option<T> {
        let outcome = Rc::new(RefCell::new(None));
        let task = {
            let outcome = outcome.clone();
            async move {
                let result = life.await;
                *outcome.borrow_mut() = Some(result);
            }
        };
        self.sim.spawn_on(self.node, task);
        let disk = self.sim.disk(self.node);
        let disk_steps = || disk.counters().writes_total + disk.counters().syncs_total;
        let before = disk_steps();
        self.sim.run_until(LIFE_LIMIT, || {
            steps.note_disk(disk_steps() - before);
            steps.over() || outcome.borrow().is_some()
        });
        if self.prng.one_in(2) {
            self.sim.kill(self.node);
        } else {
            self.sim.kill_process(self.node);
        }
        steps.end();
        self.inner.store.kill();
        // What helpers had begun is dropped when it would be done; until then it may hold a database open.
        self.sim.run_for(Duration::from_millis(100));
        outcome.take()
    }

    /// One life of a node whose regions need not lead here; `story` is what happens in it.
    pub(crate) fn tell<F>(&mut self, story: impl FnOnce(Life<S>) -> F + 'static) -> Result<(), String>
    where
        F: Future<Output = Result<(), String>>,
    {
        let steps = Steps::new(u64::MAX, 0, self.prng.next_u64());
        let (inner, life_steps, seed) = (self.inner.clone(), steps.clone(), self.prng.next_u64());
        let life = async move { story(Life::begin(inner, life_steps, seed).await?).await };
        self.run(&steps, life).unwrap_or_else(|| Err("the story hangs".into()))
    }

    /// One life: everything is opened and compared with the model, then `plan` is followed. Returns its steps.
    pub(crate) fn live(&mut self, plan: Plan) -> Result<u64, String> {
        let flush_one_in = [0, 4, 30][self.prng.below(3) as usize];
        let steps = Steps::new(plan.end_before, flush_one_in, self.prng.next_u64());
        let life = super::script::live(self.inner.clone(), steps.clone(), plan, self.prng.fork());
        let outcome = self.run(&steps, life);
        match outcome {
            _ if steps.over() => Ok(steps.count()),
            Some(result) => result.map(|()| steps.count()),
            None => Err(format!("the life hangs after {} steps", steps.count())),
        }
    }
}

/// The node of one life.
pub(crate) struct Life<S: Store> {
    pub(crate) world: Rc<Inner<S>>,
    pub(crate) host: Rc<CoreHost<Killable<S::Engine>>>,
    failure: Rc<RefCell<Option<String>>>,
}

impl<S: Store> Life<S> {
    /// Starts, and compares with the model.
    pub(crate) async fn open(world: Rc<Inner<S>>, steps: Arc<Steps>, seed: u64) -> Result<Life<S>, String> {
        let life = Life::start(world, steps, seed).await?;
        life.check()?;
        Ok(life)
    }

    /// Opens all shards, settles who has what, starts them, and waits until every region serves.
    pub(crate) async fn start(world: Rc<Inner<S>>, steps: Arc<Steps>, seed: u64) -> Result<Life<S>, String> {
        let life = Life::begin(world, steps, seed).await?;
        life.serve().await?;
        Ok(life)
    }

    /// Opens all shards, settles who has what, and starts them.
    async fn begin(world: Rc<Inner<S>>, steps: Arc<Steps>, seed: u64) -> Result<Life<S>, String> {
        let (sender, mail) = executor::mailbox(1024);
        let shared = NodeShared {
            cluster: ClusterId(1),
            store: STORE,
            mail: vec![sender],
            api: ApiMode::V1,
            disk: Default::default(),
            stalls: Default::default(),
            snapshot_io: Arc::new(TokenBucket::unbounded()),
            small_snapshot_bytes: 0,
        };
        let host = CoreHost::new(CoreId(0), Arc::new(shared));
        let failure: Rc<RefCell<Option<String>>> = Rc::default();
        let outlet = {
            let failure = failure.clone();
            let on_failure = Rc::new(move |shard: ShardId, why: String| {
                failure.borrow_mut().get_or_insert(format!("shard {shard}: {why}"));
            });
            Rc::new(CoreOutlet {
                host: Rc::downgrade(&host),
                on_failure,
                on_leader: Rc::new(|_, _, _| {}),
                lines: Lines::default(),
            })
        };
        let mut opened = Vec::new();
        for shard in (0..SHARDS).map(ShardId) {
            let engine = Killable::new(world.store.open(shard, seed ^ u64::from(shard.0)), steps.clone());
            let (log_dir, snap_dir) = (PathBuf::from(format!("/log-{shard}")), world.store.snap_dir(shard));
            let (config, log) = (world.config.clone(), world.log.clone());
            let result =
                open(shard, STORE, engine.clone(), &log_dir, &snap_dir, config, log, outlet.clone(), seed).await;
            let shard = result.map_err(|error| error.to_string())?;
            if let Some(damage) = &shard.damage {
                return Err(format!("damage: {damage:?}"));
            }
            let left = engine.tables(&snap_dir).map_err(|error| error.to_string())?;
            if !left.is_empty() {
                return Err(format!("{left:?} were left behind"));
            }
            opened.push(shard);
        }
        let claims: Vec<Claim> = opened.iter().flat_map(|shard| shard.claims.iter().cloned()).collect();
        let mut buried = BTreeMap::new();
        opened.iter().for_each(|shard| bury(&mut buried, &shard.buried));
        let (_, erase) = Directory::settle((0..SHARDS).map(ShardId), claims, &buried);
        check_promises(&world, &opened, &erase)?;
        let handler = {
            let host = host.clone();
            move |letter| {
                if let CoreMail::Control(control) = letter {
                    handle(&host, *control);
                }
            }
        };
        executor::spawn_local(executor::Class::Foreground, host.clone().read_mail(mail, handler));
        for shard in opened {
            let id = shard.shard.id;
            let gone: Vec<RegionId> = erase.iter().filter(|(on, _)| *on == id).map(|(_, region)| *region).collect();
            host.add_shard(shard.start(&gone).await.map_err(|error| error.to_string())?);
        }
        Ok(Life { world, host, failure })
    }

    pub(crate) fn shard(&self, shard: u32) -> Rc<Shard<Killable<S::Engine>>> {
        self.host.shard(ShardId(shard)).expect("all shards are here")
    }

    /// Waits until every region that is here serves.
    pub(crate) async fn serve(&self) -> Result<(), String> {
        let started = executor::now();
        loop {
            if let Some(why) = self.failure.borrow().clone() {
                return Err(why);
            }
            let refusal = self.host.shards().iter().find_map(|shard| {
                let regions = shard.describe(CoreId(0)).regions;
                regions.iter().find_map(|region| {
                    let meta = shard.region_by_id(RegionId(region.id))?;
                    shard.region(&context(&meta)).err().map(|error| format!("region {}: {error}", region.id))
                })
            });
            let Some(refusal) = refusal else { return Ok(()) };
            if executor::now().since(started) > SERVE_LIMIT {
                return Err(refusal);
            }
            executor::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Compares what is here with the model.
    pub(crate) fn check(&self) -> Result<(), String> {
        self.world.model.borrow_mut().check(&self.found()?)?;
        self.note_promises()
    }

    /// The regions that are here.
    pub(crate) fn found(&self) -> Result<BTreeMap<u64, Region>, String> {
        let mut found = BTreeMap::new();
        for shard in self.host.shards() {
            for region in regions_of(&shard)? {
                if let Some(twice) = found.insert(region.id(), region) {
                    return Err(format!("two copies of {twice:?}"));
                }
            }
        }
        Ok(found)
    }

    /// Checks that no peer has taken anything back, and notes what they promise now. All regions serve.
    pub(crate) fn note_promises(&self) -> Result<(), String> {
        let mut model = self.world.model.borrow_mut();
        for shard in self.host.shards() {
            for region in shard.describe(CoreId(0)).regions {
                let state = shard.hard_state(RegionId(region.id)).ok_or("a region without a state")?;
                model.keeps(region.id, region.peer, state, true)?;
                model.promise(region.id, region.peer, state);
            }
        }
        Ok(())
    }
}

fn check_promises<S: Store, E: Engine>(
    world: &Inner<S>,
    opened: &[Opened<E>],
    erase: &[(ShardId, RegionId)],
) -> Result<(), String> {
    let model = world.model.borrow();
    for shard in opened {
        let shard = &shard.shard;
        for region in shard.describe(CoreId(0)).regions {
            if erase.contains(&(shard.id, RegionId(region.id))) {
                continue;
            }
            let state = shard.hard_state(RegionId(region.id)).ok_or("a region without a state")?;
            model.keeps(region.id, region.peer, state, false)?;
        }
    }
    Ok(())
}

/// The request context of a client that knows `region` well.
pub(crate) fn context(region: &proto::metapb::Region) -> kvrpcpb::Context {
    kvrpcpb::Context {
        region_id: region.id,
        region_epoch: region.region_epoch,
        peer: region.peers.first().copied(),
        ..Default::default()
    }
}

fn handle<E: Engine>(host: &Rc<CoreHost<E>>, control: Control) {
    if let Control::MovePrepare { .. }
    | Control::MoveData { .. }
    | Control::MoveInstall { .. }
    | Control::MoveActivate { .. } = control
    {
        moves::handle(host, control);
    }
}

/// All regions of a shard with their data; an error if there is data of none of them.
fn regions_of<E: Engine>(shard: &Shard<E>) -> Result<Vec<Region>, String> {
    let mut regions = Vec::new();
    for description in shard.describe(CoreId(0)).regions {
        let meta = shard.region_by_id(RegionId(description.id)).ok_or("a region without a meta")?;
        regions.push(Region {
            meta: (*meta).clone(),
            shard: shard.id.0,
            move_number: description.moves,
            data: Default::default(),
        });
    }
    let snapshot = shard.engine.snapshot();
    for cf in Cf::DATA {
        let mut iter = snapshot.iter(cf, b"", b"", Tier::Disk, false);
        let mut at = iter.first().map_err(|error| error.to_string())?;
        while let Some((key, value)) = at {
            let key = base::keys::origin_key(key).ok_or("a key of no region")?;
            let owner = regions.iter_mut().find(|region| region.contains(key));
            let owner = owner.ok_or_else(|| format!("{} of shard {} is in no region", key.escape_ascii(), shard.id))?;
            owner.data[cf.index()].insert(key.to_vec(), value.to_vec());
            at = iter.next().map_err(|error| error.to_string())?;
        }
    }
    Ok(regions)
}
