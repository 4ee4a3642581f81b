//! A node: its cores from the first file to the last answer.
//!
//! ```text
//!  core 0                                     every core
//!  identity, PD ──── Begin{shared, shards} ──▶ open shards, replay
//!  settle claims ◀── Opened{claims} ───────────┘
//!      └──────────── Serve{erase, routes} ───▶ erase, start, read mail
//!  register at PD ◀─ Started ──────────────────┘
//!  listen, heartbeats, balance
//! ```
//!
//! [`run_core`] is the main of each core, on every backend.

mod balance;
mod core_zero;
mod damage;
mod disk;
mod heartbeats;
mod ident;
mod leaderless;
mod leave;
mod letters;
mod pd_events;
mod status;
mod together;
mod traffic;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base::{CoreId, PeerId, RegionId, ShardId};
use executor::{Class, MailReceiver, MailSender};
use proto::rpc::LocalFuture;

use crate::core::directory::{Claim, Tombstones};
use crate::core::spread::SpreadConfig;
use crate::core::{
    ApiMode, Control, CoreHost, CoreMail, CoreOutlet, DiskUsage, LineFaults, Lines, NodeShared, Opened, ShardConfig,
    SnapshotConfig, core_of, reply,
};
use crate::engine::Engine;
use crate::log::LogConfig;

use core_zero::CoreZero;
pub use damage::examine_node;
pub use disk::DiskConfig;
pub use ident::{IdentError, NodeIdent};
pub use status::StatusReport;

/// Letters that a core's mailbox holds.
const MAILBOX_LETTERS: usize = 4096;

/// Everything that a node is told.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Where clients and other nodes connect; port 0 picks a free one.
    pub listen: SocketAddr,
    /// The address that clients are told, `host:port`; empty is the one that was bound.
    pub advertise: String,
    /// Where the status page is; port 0 picks a free one.
    pub status_listen: SocketAddr,
    /// PD's addresses, `host:port`.
    pub pd: Vec<String>,
    /// The cluster must be there already: the node does not make its first region.
    pub joins: bool,
    /// Everything that the node keeps.
    pub data_dir: PathBuf,
    /// How much of the disk it takes.
    pub disk: DiskConfig,
    /// Number of cores.
    pub cores: usize,
    /// Raw keys and values.
    pub api: ApiMode,
    /// `metapb.Store.labels`.
    pub labels: Vec<(String, String)>,
    /// Settings of each shard.
    pub shard: ShardConfig,
    /// What snapshots may take.
    pub snapshots: SnapshotConfig,
    /// Settings of each raft log.
    pub log: LogConfig,
    /// Settings of the gRPC server and the status port. Its certificates are also those of the connections that the node
    /// makes: to PD, and to other nodes.
    pub server: net::ServerConfig,
    /// Time between a leader's reports to PD (`raftstore.pd-heartbeat-tick-interval`).
    pub region_heartbeat: std::time::Duration,
    /// Time between the node's reports to PD (`raftstore.pd-store-heartbeat-tick-interval`).
    pub store_heartbeat: std::time::Duration,
    /// The document that the status port gives as `/config`.
    pub config_json: String,
    /// When regions change their core because of load.
    pub spread: SpreadConfig,
    /// Draws of this node: election time-outs and the like.
    pub seed: u64,
}

impl NodeConfig {
    /// Settings of the connections that the node makes.
    pub(crate) fn channels(&self) -> net::ChannelConfig {
        net::ChannelConfig { tls: self.server.tls.clone(), ..Default::default() }
    }
}

/// Opens the engine of a shard in its folder.
pub trait EngineSource: Send + Sync + 'static {
    /// What it opens.
    type Engine: Engine;
    /// Opens or creates; runs on a helper.
    ///
    /// # Errors
    /// What the engine said.
    fn open(&self, shard: ShardId, dir: &Path) -> Result<Self::Engine, String>;
    /// Told the wall clock every now and then, for values that expire.
    fn tick(&self, _unix_seconds: u64) {}
    /// Told of each peer that begins to lead, with its term: for tests, which compare them.
    fn leads(&self, _region: RegionId, _peer: PeerId, _term: u64) {}
}

/// What a running node tells whoever started it.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct NodeReady {
    /// The store id.
    pub store_id: u64,
    /// Where clients connect.
    pub address: String,
    /// Where the status page is.
    pub status: String,
    /// Cores.
    pub cores: usize,
    /// Shards.
    pub shards: u32,
    /// The I/O backend, and why it was chosen.
    pub io: String,
}

/// Why a node could not start.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// Its identity does not fit.
    #[error(transparent)]
    Ident(#[from] IdentError),
    /// A file or socket.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// PD could not be reached.
    #[error("placement driver: {0}")]
    Pd(String),
    /// PD will not have this node.
    #[error("the placement driver refuses this node: {0}")]
    Refused(String),
    /// It was to join a cluster that is not there.
    #[error("there is no cluster yet to join: start its first node with --pd")]
    NoCluster,
    /// The folder lacks what the node has had.
    #[error("{} lacks what store {store} has had: a folder that was wiped is a new node, so remove node.json, too", dir.display())]
    Wiped {
        /// The folder.
        dir: PathBuf,
        /// The store.
        store: u64,
    },
    /// A shard could not be opened.
    #[error(transparent)]
    Open(#[from] crate::core::OpenError),
    /// Another core gave up.
    #[error("another core stopped during the start")]
    Stopped,
}

enum ToCore {
    Begin { shared: Arc<NodeShared>, shards: u32, ident: NodeIdent },
    Serve { erase: Vec<(ShardId, RegionId)>, routes: Vec<(RegionId, Option<ShardId>)> },
    Close,
}

enum FromCore {
    Opened {
        claims: Vec<Claim>,
        buried: Tombstones,
        /// Shards whose logs take no records.
        damaged: Vec<ShardId>,
    },
    Started,
    Failed,
    /// The core leads nothing any more that another node could lead, or has no time left for it.
    HandedOver(CoreId),
    /// The core has no calls under way any more, or has ended.
    Drained(CoreId),
}

/// How long calls under way may take once the node is asked to stop. Clients that go away when they are told to are gone
/// within a round trip; less than what a supervisor gives a process (`basalt dev`: 20 s).
const DRAIN_LIMIT: Duration = Duration::from_secs(5);
/// What core 0 and the others grant each other beyond that.
const DRAIN_GRACE: Duration = Duration::from_secs(1);

struct CoreStart {
    begin: MailReceiver<ToCore>,
    mail: MailReceiver<CoreMail>,
}

/// A node between its cores: what is handed to each of them once.
pub struct Node<S: EngineSource> {
    config: NodeConfig,
    source: S,
    io: executor::Io,
    mail: Vec<MailSender<CoreMail>>,
    begin: Vec<MailSender<ToCore>>,
    up: MailSender<FromCore>,
    starts: Mutex<Vec<Option<CoreStart>>>,
    from_cores: Mutex<Option<MailReceiver<FromCore>>>,
    ready: Box<dyn Fn(NodeReady) + Send + Sync>,
    failure: Mutex<Option<String>>,
    connections: Vec<net::ConnectionCounter>,
}

impl<S: EngineSource> Node<S> {
    /// A node that has not started. `ready` is called once, when clients can connect.
    pub fn new(
        config: NodeConfig,
        source: S,
        io: executor::Io,
        ready: impl Fn(NodeReady) + Send + Sync + 'static,
    ) -> Arc<Node<S>> {
        let cores = config.cores.max(1);
        let (mail, mail_in): (Vec<_>, Vec<_>) = (0..cores).map(|_| executor::mailbox(MAILBOX_LETTERS)).unzip();
        let (begin, begin_in): (Vec<_>, Vec<_>) = (0..cores).map(|_| executor::mailbox(4)).unzip();
        let (up, from_cores) = executor::mailbox(cores * 4);
        let starts = mail_in.into_iter().zip(begin_in).map(|(mail, begin)| Some(CoreStart { begin, mail })).collect();
        Arc::new(Node {
            config,
            source,
            io,
            mail,
            begin,
            up,
            starts: Mutex::new(starts),
            from_cores: Mutex::new(Some(from_cores)),
            ready: Box::new(ready),
            failure: Mutex::new(None),
            connections: (0..cores).map(|_| net::ConnectionCounter::new()).collect(),
        })
    }

    /// What stopped the node, if anything did.
    pub fn failure(&self) -> Option<String> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn fail(&self, why: String) {
        tracing::error!(%why, "node stops");
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(why);
        executor::request_shutdown();
    }

    fn take_start(&self, core: CoreId) -> Option<CoreStart> {
        self.starts.lock().unwrap_or_else(PoisonError::into_inner)[usize::from(core.0)].take()
    }
}

/// The main of core `core`: returns when the node has stopped.
pub async fn run_core<S: EngineSource>(node: Arc<Node<S>>, core: CoreId) {
    let Some(start) = node.take_start(core) else { return };
    if core != CoreId(0) {
        return serve_core(&node, core, start, None).await;
    }
    let from_cores = node.from_cores.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Some(from_cores) = from_cores else { return };
    let zero = CoreZero::new();
    let duties = executor::spawn_local(Class::Foreground, core_zero::run(node.clone(), zero.clone(), from_cores));
    serve_core(&node, core, start, Some(zero)).await;
    duties.await;
}

async fn serve_core<S: EngineSource>(
    node: &Arc<Node<S>>,
    core: CoreId,
    start: CoreStart,
    zero: Option<Rc<CoreZero<S::Engine>>>,
) {
    if let Err(error) = run_shards(node, core, start, zero).await {
        let why = error.to_string();
        // Core 0 may be gone already.
        let _ = node.up.send(FromCore::Failed).await;
        node.fail(why);
    }
    // Again, or for the first time if the core has not come so far; core 0 may be gone.
    let _ = node.up.send(FromCore::Drained(core)).await;
}

async fn run_shards<S: EngineSource>(
    node: &Arc<Node<S>>,
    core: CoreId,
    start: CoreStart,
    zero: Option<Rc<CoreZero<S::Engine>>>,
) -> Result<(), NodeError> {
    let CoreStart { mut begin, mail } = start;
    let Some(ToCore::Begin { shared, shards, ident }) = receive(&mut begin).await else {
        return Ok(());
    };
    let host: Rc<CoreHost<S::Engine>> = CoreHost::new(core, shared);
    let outlet: Rc<CoreOutlet<S::Engine>> = Rc::new(CoreOutlet {
        host: Rc::downgrade(&host),
        on_failure: {
            let node = node.clone();
            Rc::new(move |shard, why| node.fail(format!("shard {shard}: {why}")))
        },
        on_leader: {
            let node = node.clone();
            Rc::new(move |region, peer, term| node.source.leads(region, peer, term))
        },
        lines: lines(&host, node.config.channels(), node.config.shard.line_faults),
    });
    let mine = (0..shards).map(ShardId).filter(|shard| core_of(*shard, node.mail.len()) == core);
    let mut opened: Vec<Opened<S::Engine>> = Vec::new();
    for shard in mine {
        opened.push(open_shard(node, &ident, shard, outlet.clone()).await?);
    }
    let claims = opened.iter().flat_map(|opened| opened.claims.iter().cloned()).collect();
    let mut buried = Tombstones::new();
    opened.iter().for_each(|opened| crate::core::directory::bury(&mut buried, &opened.buried));
    let damaged = opened.iter().filter(|opened| opened.damage.is_some()).map(|opened| opened.shard.id).collect();
    if node.up.send(FromCore::Opened { claims, buried, damaged }).await.is_err() {
        return Err(NodeError::Stopped);
    }
    let Some(ToCore::Serve { erase, routes }) = receive(&mut begin).await else {
        return Ok(());
    };
    host.update_routes(&routes);
    for opened in opened {
        let id = opened.shard.id;
        let gone: Vec<RegionId> = erase.iter().filter(|(shard, _)| *shard == id).map(|(_, region)| *region).collect();
        host.add_shard(opened.start(&gone).await?);
    }
    let ticker = executor::spawn_local(Class::Raft, tick(node.clone(), host.clone()));
    let mailroom = letters::read(node, &host, zero.as_ref(), mail);
    if let Some(zero) = &zero {
        zero.attach(host.clone());
    }
    if node.up.send(FromCore::Started).await.is_err() {
        return Err(NodeError::Stopped);
    }
    executor::shutdown_signal().await;
    // After a failure the others elect sooner than they could be asked.
    if node.failure().is_none() {
        leave::hand_over(&host).await;
    }
    // Core 0 may be gone.
    let _ = node.up.send(FromCore::HandedOver(core)).await;
    drain(node, core, &mailroom, &mut begin).await;
    ticker.cancel();
    for shard in host.shards() {
        shard.close().await;
    }
    mailroom.reader.cancel();
    for shard in host.shards() {
        let engine = shard.engine.clone();
        if let Err(error) = executor::blocking(Class::Background, move || engine.close()).await {
            tracing::warn!(shard = shard.id.0, %error, "engine did not close");
        }
    }
    Ok(())
}

/// The lines of `host`'s core to other stores.
fn lines<E: Engine>(host: &Rc<CoreHost<E>>, channels: net::ChannelConfig, faults: Option<LineFaults>) -> Lines {
    let (resolving, losing) = (Rc::downgrade(host), Rc::downgrade(host));
    let resolve = move |store| -> LocalFuture<Option<String>> {
        let host = resolving.upgrade();
        Box::pin(async move {
            let (reply, answer) = reply();
            host?.control(CoreId(0), Control::StoreAddress { store, reply });
            answer.wait().await?.ok()
        })
    };
    let on_lost = move |region, peer| {
        if let Some(shard) = losing.upgrade().and_then(|host| host.local(region).ok()) {
            shard.unreachable(region, peer);
        }
    };
    Lines::new(Rc::new(resolve), Rc::new(on_lost), channels, faults)
}

/// Finishes the calls of this core's connections, then waits until the other cores have done so: their calls may need our
/// shards.
async fn drain<S: EngineSource>(
    node: &Node<S>,
    core: CoreId,
    mailroom: &letters::Mailroom,
    begin: &mut MailReceiver<ToCore>,
) {
    mailroom.health.stop();
    let left = mailroom.server.stop(DRAIN_LIMIT).await;
    if left > 0 {
        tracing::warn!(core = core.0, connections = left, "cut off: their calls took too long for a stop");
    }
    // Core 0 may be gone; then there is nobody to wait for.
    if node.up.send(FromCore::Drained(core)).await.is_ok() {
        let _ = executor::timeout(DRAIN_LIMIT + 2 * DRAIN_GRACE, begin.recv()).await;
    }
}

/// The next letter from core 0, or nothing if the node stops before it comes.
async fn receive(begin: &mut MailReceiver<ToCore>) -> Option<ToCore> {
    use futures_util::FutureExt as _;
    futures_util::select_biased! {
        letter = begin.recv().fuse() => letter,
        () = executor::shutdown_signal().fuse() => None,
    }
}

/// Leaders that a full node asks to go at a time, per shard and tick.
const LEADERS_TO_ROOM: usize = 16;

/// Gives the shards their sense of time, and sends leaders away while the disk is full. Where raft needs none, once a second is enough for flushes by age and for values
/// that expire, and lets an idle core sleep.
async fn tick<S: EngineSource>(node: Arc<Node<S>>, host: Rc<CoreHost<S::Engine>>) {
    const SECOND: Duration = Duration::from_secs(1);
    loop {
        node.source.tick(executor::unix_time().seconds());
        let shards = host.shards();
        let raft = shards.iter().filter(|shard| shard.needs_ticks()).map(|shard| shard.config.tick).min();
        executor::sleep(raft.unwrap_or(SECOND)).await;
        let is_full = host.node.disk.usage() > DiskUsage::Normal;
        for shard in shards {
            shard.watch_log();
            shard.tick();
            if is_full {
                shard.hand_leaders_to_room(LEADERS_TO_ROOM);
            }
        }
    }
}

async fn open_shard<S: EngineSource>(
    node: &Arc<Node<S>>,
    ident: &NodeIdent,
    shard: ShardId,
    outlet: Rc<CoreOutlet<S::Engine>>,
) -> Result<Opened<S::Engine>, NodeError> {
    let dir = shard_dir(&node.config.data_dir, shard);
    for folder in ["engine", "log", "snap"] {
        let folder = dir.join(folder);
        executor::fs::create_dir_all(&folder)
            .await
            .map_err(|source| NodeError::Io { what: format!("folder {}", folder.display()), source })?;
    }
    let engine = {
        let (node, dir) = (node.clone(), dir.join("engine"));
        executor::blocking(Class::Background, move || node.source.open(shard, &dir))
            .await
            .map_err(|why| crate::core::OpenError::Engine { shard, why })?
    };
    let seed = base::hash::fold(node.config.seed, u64::from(shard.0));
    let opened = crate::core::open(
        shard,
        ident.store_id.into(),
        engine,
        &dir.join("log"),
        &dir.join("snap"),
        node.config.shard.clone(),
        node.config.log.clone(),
        outlet,
        seed,
    )
    .await?;
    if let Some(damage) = &opened.damage {
        tracing::error!(
            shard = shard.0,
            ?damage,
            "raft log is damaged: its peers neither vote nor serve (`basalt ctl damage`)"
        );
    }
    tracing::info!(shard = shard.0, regions = opened.claims.len(), replayed = opened.replayed, "shard opened");
    Ok(opened)
}

/// The folder of a shard.
pub fn shard_dir(data_dir: &Path, shard: ShardId) -> PathBuf {
    data_dir.join(format!("shard-{:03}", shard.0))
}
