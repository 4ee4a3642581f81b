//! What only core 0 does: identity, PD, the directory, the listener, balancing.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use base::{CoreId, PeerId, RegionId, ShardId, StoreId};
use bytes::Bytes;
use executor::{Class, MailReceiver};
use futures_util::FutureExt as _;
use proto::{metapb, pdpb, raft_serverpb};

use super::balance::{self, Balancing};
use super::heartbeats::{ask_for_reports, region_heartbeats, report_splits, store_heartbeats};
use super::ident::identify;
use super::pd_events::PdEvents;
use super::traffic::Traffic;
use super::{
    DRAIN_GRACE, DRAIN_LIMIT, EngineSource, FromCore, Node, NodeError, NodeIdent, NodeReady, ToCore, disk, leave,
    status,
};
use crate::core::directory::{Claim, Directory, MoveTicket, Occupied, Placement, Tombstones, bury};
use crate::core::{Control, CoreHost, CoreMail, NodeShared, Reply, Route, answer_absent, answer_merged, core_of};
use crate::engine::Engine;
use crate::pd_client::{PdClient, PdClientError, StoreStart};

/// Version that we announce: 8.1, so that later protocol duties are not owed (design.md, "Formats").
pub(crate) const ANNOUNCED_VERSION: &str = "8.1.0";

/// Of a cluster's first region.
const FIRST_EPOCH: metapb::RegionEpoch = metapb::RegionEpoch { conf_ver: 1, version: 1 };

/// Pause before PD is asked again at the start.
const PD_PAUSE: Duration = Duration::from_millis(500);

/// Core 0's own state, shared by its tasks.
pub(crate) struct CoreZero<E: Engine> {
    pub(super) directory: RefCell<Directory>,
    pd: OnceCell<PdClient>,
    host: OnceCell<Rc<CoreHost<E>>>,
    pub(super) traffic: Traffic,
    pub(super) balancing: Balancing,
    pub(super) wake_balancer: executor::Notify,
    /// Splits that PD has not been told of yet, in order. Bounded by the splits that one round trip to PD lets happen.
    pub(super) splits: RefCell<VecDeque<(ShardId, Vec<metapb::Region>)>>,
    /// Regions that splits have made here, with the parent of each, of which PD has not heard yet by heartbeats.
    pub(super) unannounced: RefCell<Vec<(u64, metapb::Region)>>,
    pub(super) wake_reporter: executor::Notify,
    pub(super) wake_store_heartbeat: executor::Notify,
    /// The node hands its leaders away and then stops.
    pub(super) is_leaving: Cell<bool>,
    pub(super) pd_events: PdEvents,
    /// PD has this store, and what begins the cluster is settled: only now does it hear of regions.
    pub(super) registered: Cell<bool>,
    /// The last peer of each region that ended on this node.
    pub(super) buried: RefCell<Tombstones>,
    /// Which transactions of this node wait for which.
    waits: RefCell<mvcc::txn::WaitGraph>,
    /// Regions here have members on other nodes.
    pub(super) replicates: Cell<bool>,
    /// Regions that balancing leaves where they are, and until when.
    pub(super) pinned: RefCell<BTreeMap<RegionId, base::Instant>>,
    /// Regions whose snapshots met others in their range, and until when that is not looked into again.
    pub(super) refused: RefCell<BTreeMap<RegionId, (base::Instant, u64)>>,
}

/// Core 0's part of the start, and its duties until the node stops. If they fail, the node stops.
pub(super) async fn run<S: EngineSource>(
    node: Arc<Node<S>>,
    zero: Rc<CoreZero<S::Engine>>,
    mut from_cores: MailReceiver<FromCore>,
) {
    let mut drained = BTreeSet::new();
    if let Err(error) = do_duties(&node, zero, &mut from_cores, &mut drained).await {
        node.fail(error.to_string());
    }
    let drained = all_drained(&mut from_cores, &mut drained, node.begin.len());
    // A core that takes longer is cut off by the others' closing.
    let _ = executor::timeout(DRAIN_LIMIT + DRAIN_GRACE, drained).await;
    for begin in &node.begin {
        // A core that has ended reads no mail.
        let _ = begin.send(ToCore::Close).await;
    }
}

/// Waits until each of `cores` leads nothing any more, or has ended; notes those that have.
async fn all_handed_over(from_cores: &mut MailReceiver<FromCore>, drained: &mut BTreeSet<CoreId>, cores: usize) {
    let mut handed_over = BTreeSet::new();
    while handed_over.len() < cores {
        match from_cores.recv().await {
            Some(FromCore::HandedOver(core)) => drop(handed_over.insert(core)),
            Some(FromCore::Drained(core)) => {
                handed_over.insert(core);
                drained.insert(core);
            }
            Some(_) => {}
            None => return,
        }
    }
}

/// Waits until each of `cores` has said that it has no calls under way.
async fn all_drained(from_cores: &mut MailReceiver<FromCore>, drained: &mut BTreeSet<CoreId>, cores: usize) {
    while drained.len() < cores {
        match from_cores.recv().await {
            Some(FromCore::Drained(core)) => drop(drained.insert(core)),
            Some(_) => {}
            None => return,
        }
    }
}

async fn do_duties<S: EngineSource>(
    node: &Arc<Node<S>>,
    zero: Rc<CoreZero<S::Engine>>,
    from_cores: &mut MailReceiver<FromCore>,
    drained: &mut BTreeSet<CoreId>,
) -> Result<(), NodeError> {
    let started = executor::unix_time();
    let data_dir = &node.config.data_dir;
    let io = |what: &str| {
        let what = format!("{what} {}", data_dir.display());
        move |source| NodeError::Io { what, source }
    };
    executor::fs::create_dir_all(data_dir).await.map_err(io("create"))?;
    // Two processes on one folder would be two stores with one id.
    let _lock = executor::fs::lock_dir(data_dir).await.map_err(io("lock"))?;
    disk::make_room_to_start(&node.config).await;
    let starting = start(node, &zero, from_cores);
    let (ident, start) = futures_util::select_biased! {
        started = starting.fuse() => started?,
        () = executor::shutdown_signal().fuse() => return Ok(()),
    };
    let listener = listen(node.config.listen, "listen").await?;
    let status_listener = listen(node.config.status_listen, "status port").await?;
    let address = advertised(&node.config.advertise, &listener)?;
    let status_address = advertised("", &status_listener)?;
    let store = metapb::Store {
        id: ident.store_id,
        address: address.clone(),
        status_address: status_address.clone(),
        version: ANNOUNCED_VERSION.into(),
        start_timestamp: i64::try_from(started.seconds()).unwrap_or(0),
        deploy_path: node.config.data_dir.display().to_string(),
        labels: node
            .config
            .labels
            .iter()
            .map(|(key, value)| metapb::StoreLabel { key: key.clone(), value: value.clone() })
            .collect(),
        ..Default::default()
    };
    let registered = patiently(async || {
        zero.bootstrap(&store, node.config.joins).await?;
        zero.pd()?.put_store(store.clone(), start.as_ref()).await.map_err(pd_error)
    });
    futures_util::select_biased! {
        done = registered.fuse() => done?,
        () = executor::shutdown_signal().fuse() => return Ok(()),
    }
    let host = zero.host()?;
    zero.registered.set(true);
    ask_for_reports(&host);
    zero.listen_to_pd()?;
    let tasks = [
        executor::spawn_local(Class::Foreground, accept(node, &host).run(listener)),
        executor::spawn_local(
            Class::Background,
            status::serve(node.clone(), host.clone(), ident.clone(), status_listener),
        ),
        executor::spawn_local(Class::Background, balance::carry_out_moves(zero.clone())),
        executor::spawn_local(Class::Background, balance::watch_load(zero.clone(), node.config.spread.beat)),
        executor::spawn_local(Class::Background, report_splits(zero.clone())),
        executor::spawn_local(Class::Background, disk::watch(node.clone(), zero.clone())),
        executor::spawn_local(Class::Background, store_heartbeats(node.clone(), zero.clone(), started)),
        executor::spawn_local(Class::Background, region_heartbeats(node.clone(), host.clone())),
    ];
    (node.ready)(NodeReady {
        store_id: ident.store_id,
        address,
        status: format!("{}://{status_address}", if node.config.server.tls.is_some() { "https" } else { "http" }),
        cores: node.mail.len(),
        shards: ident.shards,
        io: format!("{:?}: {}", node.io.kind, node.io.reason),
    });
    executor::shutdown_signal().await;
    // Clients and other nodes connect as before until all leaders are away.
    zero.say_goodbye();
    let handed_over = all_handed_over(from_cores, drained, node.begin.len());
    let _ = executor::timeout(leave::LIMIT + DRAIN_GRACE, handed_over).await;
    for task in tasks {
        task.cancel();
    }
    Ok(())
}

/// From nothing to shards that run on every core.
async fn start<S: EngineSource>(
    node: &Arc<Node<S>>,
    zero: &Rc<CoreZero<S::Engine>>,
    from_cores: &mut MailReceiver<FromCore>,
) -> Result<(NodeIdent, Option<StoreStart>), NodeError> {
    let pd =
        patiently(async || PdClient::connect(&node.config.pd, node.config.channels()).await.map_err(pd_error)).await?;
    let (ident, start) = patiently(async || identify(node, &pd).await).await?;
    // Core 0 sets this once.
    let _ = zero.pd.set(pd);
    let shared = Arc::new(NodeShared {
        cluster: ident.cluster_id.into(),
        store: ident.store_id.into(),
        mail: node.mail.clone(),
        api: node.config.api,
        disk: Default::default(),
        stalls: Default::default(),
        snapshot_io: Arc::new(node.config.snapshots.bucket()),
        small_snapshot_bytes: node.config.snapshots.small_bytes,
    });
    tell_cores(node, || ToCore::Begin { shared: shared.clone(), shards: ident.shards, ident: ident.clone() }).await?;
    let mut claims: Vec<Claim> = Vec::new();
    let mut all_buried = Tombstones::new();
    let mut shards: BTreeSet<ShardId> = (0..ident.shards).map(ShardId).collect();
    for _ in &node.begin {
        match from_cores.recv().await {
            Some(FromCore::Opened { claims: more, buried, damaged }) => {
                claims.extend(more);
                bury(&mut all_buried, &buried);
                shards.retain(|shard| !damaged.contains(shard));
            }
            _ => return Err(NodeError::Stopped),
        }
    }
    zero.balancing.begin(node.config.spread, shards.iter().map(|shard| (*shard, core_of(*shard, node.mail.len()))));
    let (directory, erase) = Directory::settle(shards, claims, &all_buried);
    let routes: Vec<Route> = directory.routes().map(|(region, shard)| (region, Some(shard))).collect();
    *zero.directory.borrow_mut() = directory;
    *zero.buried.borrow_mut() = all_buried;
    tell_cores(node, || ToCore::Serve { erase: erase.clone(), routes: routes.clone() }).await?;
    for _ in &node.begin {
        match from_cores.recv().await {
            Some(FromCore::Started) => {}
            _ => return Err(NodeError::Stopped),
        }
    }
    Ok((ident, start))
}

async fn tell_cores<S: EngineSource>(node: &Node<S>, letter: impl Fn() -> ToCore) -> Result<(), NodeError> {
    for begin in &node.begin {
        begin.send(letter()).await.map_err(|_| NodeError::Stopped)?;
    }
    Ok(())
}

async fn listen(address: std::net::SocketAddr, what: &str) -> Result<executor::net::TcpListener, NodeError> {
    let io = |source| NodeError::Io { what: format!("{what} {address}"), source };
    executor::net::TcpListener::bind(address).await.map_err(io)
}

fn advertised(configured: &str, listener: &executor::net::TcpListener) -> Result<String, NodeError> {
    if !configured.is_empty() {
        return Ok(configured.into());
    }
    let io = |source| NodeError::Io { what: "address of a listener".into(), source };
    Ok(listener.local_addr().map_err(io)?.to_string())
}

pub(super) fn pd_error(error: PdClientError) -> NodeError {
    match error {
        PdClientError::Refused { .. } => NodeError::Refused(error.to_string()),
        _ => NodeError::Pd(error.to_string()),
    }
}

/// Tries until PD answers: a node may be started before its PD, and PD may be away for a while.
async fn patiently<T>(attempt: impl AsyncFn() -> Result<T, NodeError>) -> Result<T, NodeError> {
    loop {
        match attempt().await {
            Err(NodeError::Pd(why)) => {
                tracing::warn!(%why, "waiting for the placement driver");
                executor::sleep(PD_PAUSE).await;
            }
            done => return done,
        }
    }
}

impl<E: Engine> CoreZero<E> {
    pub(super) fn new() -> Rc<CoreZero<E>> {
        let (directory, _) = Directory::settle([], Vec::new(), &BTreeMap::new());
        Rc::new(CoreZero {
            directory: RefCell::new(directory),
            pd: OnceCell::new(),
            host: OnceCell::new(),
            traffic: Traffic::default(),
            balancing: Balancing::default(),
            wake_balancer: executor::Notify::new(),
            splits: RefCell::default(),
            unannounced: RefCell::default(),
            buried: RefCell::default(),
            waits: RefCell::new(mvcc::txn::WaitGraph::new(WAIT_LASTS)),
            replicates: Cell::new(false),
            pinned: RefCell::default(),
            refused: RefCell::default(),
            wake_reporter: executor::Notify::new(),
            wake_store_heartbeat: executor::Notify::new(),
            is_leaving: Cell::new(false),
            pd_events: PdEvents::default(),
            registered: Cell::new(false),
        })
    }

    /// Gives core 0's duties the core's shards and routes.
    pub(super) fn attach(&self, host: Rc<CoreHost<E>>) {
        // Once per start.
        let _ = self.host.set(host);
    }

    pub(super) fn host(&self) -> Result<Rc<CoreHost<E>>, NodeError> {
        self.host.get().cloned().ok_or(NodeError::Stopped)
    }

    pub(super) fn pd(&self) -> Result<PdClient, NodeError> {
        self.pd.get().cloned().ok_or(NodeError::Stopped)
    }

    /// Makes the cluster's first region, if this is its first node. The region is durable here before PD hears of it,
    /// so a crash in between finds it and goes on.
    async fn bootstrap(&self, store: &metapb::Store, joins: bool) -> Result<(), NodeError> {
        let pd = self.pd()?;
        if pd.is_bootstrapped().await.map_err(pd_error)? {
            return self.drop_the_losing_region().await;
        }
        if joins {
            return Err(NodeError::NoCluster);
        }
        let host = self.host()?;
        let shard = host.shard(ShardId(0)).ok_or(NodeError::Stopped)?;
        let held = self.directory.borrow().routes().next();
        let region = match held {
            Some((region, _)) => shard.region_by_id(region).map(|region| (*region).clone()),
            None => None,
        };
        let region = match region {
            Some(region) => region,
            None => {
                let region = metapb::Region {
                    id: pd.alloc_id().await.map_err(pd_error)?,
                    region_epoch: Some(FIRST_EPOCH),
                    peers: vec![metapb::Peer {
                        id: pd.alloc_id().await.map_err(pd_error)?,
                        store_id: store.id,
                        ..Default::default()
                    }],
                    ..Default::default()
                };
                shard.create(region.clone()).await.map_err(|error| NodeError::Refused(error.to_string()))?;
                self.born(ShardId(0), &region, 0);
                region
            }
        };
        match pd.bootstrap(store.clone(), region).await {
            // An earlier try got through, and its answer was lost; or another node was first.
            Err(PdClientError::Refused { kind: pdpb::ErrorType::AlreadyBootstrapped, .. }) => {
                self.drop_the_losing_region().await
            }
            done => done.map_err(pd_error),
        }
    }

    /// Nodes that start together each make a first region, and one of them wins. The others end theirs here, before
    /// anybody hears of it: a region that has everything, and was never changed, though the cluster has another one.
    async fn drop_the_losing_region(&self) -> Result<(), NodeError> {
        let Some((region, shard)) = self.directory.borrow().routes().next() else { return Ok(()) };
        let Some(shard) = self.host()?.shard(shard) else { return Ok(()) };
        let Some(held) = shard.region_by_id(region) else { return Ok(()) };
        let is_first = held.region_epoch == Some(FIRST_EPOCH) && held.start_key.is_empty() && held.end_key.is_empty();
        let [peer] = held.peers[..] else { return Ok(()) };
        if !is_first {
            return Ok(());
        }
        let known = self.pd()?.region(Bytes::new()).await.map_err(pd_error)?;
        if known.is_some_and(|(known, _)| known.id != region.0) {
            tracing::info!(%region, "another node has made the cluster's first region");
            shard.destroy(region, PeerId(peer.id)).await.map_err(|error| NodeError::Pd(error.to_string()))?;
        }
        Ok(())
    }

    /// Notes whether regions have members on other nodes.
    pub(super) fn note_members(&self, region: &metapb::Region) {
        self.replicates.set(self.replicates.get() || region.peers.len() > 1);
    }

    /// Notes a region's range on `shard` and tells every core where it is.
    pub(super) fn born(&self, shard: ShardId, region: &metapb::Region, bytes: u64) {
        let id = RegionId(region.id);
        self.note_members(region);
        let mut directory = self.directory.borrow_mut();
        let move_number = directory.placement(id).map_or(0, |held| held.move_number);
        let placement = Placement {
            shard,
            move_number,
            version: region.region_epoch.as_ref().map_or(0, |epoch| epoch.version),
            start: region.start_key.to_vec(),
            end: region.end_key.to_vec(),
            bytes,
        };
        directory.update(id, placement);
        drop(directory);
        self.broadcast(&[(id, Some(shard))]);
    }

    fn broadcast(&self, news: &[Route]) {
        let Ok(host) = self.host() else { return };
        host.update_routes(news);
        for core in 1..host.node.mail.len() {
            host.control(CoreId(core as u16), Control::Routes(news.to_vec()));
        }
    }

    /// A letter that is for core 0 alone.
    pub(super) fn handle(self: &Rc<Self>, control: Control) {
        match control {
            Control::Heartbeats(reports) => reports.into_iter().for_each(|report| self.heartbeat(report)),
            Control::Sizes(sizes) => {
                let mut directory = self.directory.borrow_mut();
                sizes.into_iter().for_each(|(region, bytes)| directory.note(region, bytes));
            }
            Control::AskSplit { region, count, reply } => {
                let zero = self.clone();
                executor::spawn_local(Class::Background, async move {
                    reply.send(zero.ask_split(region, count).await.map_err(|error| error.to_string()));
                });
            }
            Control::SplitDone { shard, leads, regions, bytes } => self.split_done(shard, leads, regions, bytes),
            Control::Arrived { ticket } => self.arrived(&ticket),
            Control::Timestamps { count, reply } => self.timestamps(count, reply),
            Control::Wait { wait, reply } => reply.send(self.waits.borrow_mut().wait(executor::now(), wait)),
            Control::Waits { reply } => reply.send(self.waits.borrow().list(executor::now())),
            Control::WaitEnded(wait) => self.waits.borrow_mut().end_wait(wait.txn, wait.holder, &wait.key),
            Control::Raft(letter) => self.answer_for_absent(&letter),
            Control::StoreAddress { store, reply } => {
                let zero = self.clone();
                executor::spawn_local(Class::Background, async move {
                    reply.send(zero.store_address(store).await.map_err(|error| error.to_string()));
                });
            }
            Control::Reserve { region, peer, reply } => reply.send(self.begin_snapshot(&region, peer)),
            Control::Release { region } => self.directory.borrow_mut().end_snapshot(region),
            Control::Born { shard, region, bytes } => self.born(shard, &region, bytes),
            Control::BringTogether { source, target, version } => self.bring_together(source, target, version),
            Control::Leaderless { shard, peer } => self.look_after_leaderless(shard, *peer),
            Control::LeftBehind { shard, region, peer, target } => {
                let zero = self.clone();
                executor::spawn_local(Class::Background, async move {
                    zero.end_if_merged_elsewhere(shard, region, peer, &target).await;
                });
            }
            Control::Reranged { shard, region, bytes } => self.reranged(shard, &region, bytes),
            Control::Ended { region, tombstone } => {
                bury(&mut self.buried.borrow_mut(), &Tombstones::from([(region, tombstone)]));
                self.directory.borrow_mut().remove(region);
                self.broadcast(&[(region, None)]);
            }
            _ => {}
        }
    }

    async fn ask_split(&self, region: metapb::Region, count: u32) -> Result<Vec<pdpb::SplitId>, NodeError> {
        self.pd()?.ask_batch_split(region, count).await.map_err(pd_error)
    }

    fn split_done(self: &Rc<Self>, shard: ShardId, leads: bool, regions: Vec<metapb::Region>, bytes: u64) {
        for region in &regions {
            self.born(shard, region, bytes);
        }
        if leads {
            self.splits.borrow_mut().push_back((shard, regions));
            self.wake_reporter.notify();
        }
        self.wake_balancer.notify();
    }

    /// A raft message for a region that is not on this node.
    fn answer_for_absent(&self, letter: &raft_serverpb::RaftMessage) {
        let Ok(host) = self.host() else { return };
        let (region, to) = (RegionId(letter.region_id), letter.to_peer.map_or(0, |peer| peer.id));
        let tombstone = self.buried.borrow().get(&region).cloned();
        if let Some(merged) = tombstone.as_ref().and_then(|tombstone| tombstone.merged.as_ref())
            && let (None, Some(from), Some(shard)) = (&letter.merge_target, letter.from_peer, host.shards().first())
        {
            shard.outlet.send_raft(from.store_id.into(), answer_merged(letter, &merged.target));
            return;
        }
        let is_buried = tombstone.is_some_and(|last| last.peer.0 >= to);
        // A letter on its way between cores may find its region come or gone.
        if is_buried || self.directory.borrow().placement(region).is_some() {
            return;
        }
        if let (Some(answer), Some(shard)) = (answer_absent(letter, host.node.store), host.shards().first()) {
            let to = answer.to_peer.map_or(0, |peer| peer.store_id);
            shard.outlet.send_raft(to.into(), answer);
        }
    }

    async fn store_address(&self, store: StoreId) -> Result<String, NodeError> {
        Ok(self.pd()?.store(store.0).await.map_err(pd_error)?.address)
    }

    /// Where a snapshot is to go.
    fn begin_snapshot(&self, region: &metapb::Region, peer: PeerId) -> Result<ShardId, String> {
        let id = RegionId(region.id);
        if self.buried.borrow().get(&id).is_some_and(|last| last.peer >= peer) {
            return Err(format!("peer {peer} of region {id} has ended here"));
        }
        let begun = self.directory.borrow_mut().begin_snapshot(region);
        if begun == Err(Occupied::Others) {
            self.note_refused(region);
        }
        begun.map_err(|why| format!("no snapshot of region {id}: {why}"))
    }

    /// Snapshots that are on their way here.
    pub(super) fn snapshots_under_way(&self) -> u32 {
        u32::try_from(self.directory.borrow().snapshots_under_way()).unwrap_or(u32::MAX)
    }

    fn arrived(&self, ticket: &MoveTicket) {
        self.directory.borrow_mut().arrive(ticket);
        self.broadcast(&[(ticket.region, Some(ticket.target))]);
    }

    fn timestamps(self: &Rc<Self>, count: u32, reply: Reply<Result<u64, String>>) {
        let zero = self.clone();
        executor::spawn_local(Class::Foreground, async move {
            let answer = match zero.pd() {
                Ok(pd) => pd.timestamps(count).await.map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            };
            reply.send(answer);
        });
    }
}

/// No request waits longer for a lock (`pessimistic-txn.wait-for-lock-timeout`, and some for the way of the letters).
const WAIT_LASTS: Duration = Duration::from_millis(1500);

/// Hands each connection to the core with the fewest.
fn accept<S: EngineSource>(node: &Node<S>, host: &CoreHost<S::Engine>) -> net::Acceptor {
    let targets = host.node.mail.iter().zip(&node.connections).map(|(mail, counter)| {
        let mail = mail.clone();
        net::Target::new(counter.clone(), move |placed| {
            mail.try_send(CoreMail::Connection(placed)).map_err(|full| match full.0 {
                CoreMail::Connection(placed) => placed,
                _ => unreachable!("a refused letter comes back as it was"),
            })
        })
    });
    net::Acceptor::new(targets.collect())
}
