//! One member of the placement driver: its journal, its port, its tasks.

use crate::config::PdConfig;
use crate::member::{
    Front, GroupError, Initial, Known, Member, RunError, full, join, names, new_cluster_id, number_alone,
    number_of_old, scheme, where_they_are,
};
use crate::metrics::PdMetrics;
use crate::raft::{MemberRecord, MemberRole, Node, NodeConfig, NodeError, Roster, Stage, Stored, StoredError};
use crate::state::{LoadError, State};
use crate::storage::{FileJournal, JournalError, Opened};
use base::ClusterId;
use executor::net::{TcpListener, TcpStream};
use executor::{Class, Task};
use net::{Health, NetMetrics, Router, Server, Serving};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

/// Wait after an error of accept, which is most often a lack of descriptors.
const ACCEPT_ERROR_WAIT: Duration = Duration::from_millis(50);
/// How long calls may go on after the order to stop.
const DRAIN_TIME: Duration = Duration::from_millis(500);

/// Bytes of applied entries that stay in the log for members that lag: a quarter of what a journal's file takes.
const KEEP_BYTES: usize = 1 << 20;

/// Why a placement driver does not start, or stops by itself.
#[derive(Debug, thiserror::Error)]
pub enum PdError {
    /// The data folder is not to be had.
    #[error("cannot use the data folder {path}")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The journal cannot be read or written.
    #[error("the journal failed")]
    Journal(#[from] JournalError),
    /// The journal is whole but makes no sense.
    #[error("the journal's state cannot be used")]
    State(#[from] LoadError),
    /// The journal's log makes no sense.
    #[error("the journal's log cannot be used")]
    Stored(#[from] StoredError),
    /// The member cannot take part in its group.
    #[error("the member cannot take part in its group")]
    Node(#[from] NodeError),
    /// There is no such group, or the folder is of another one.
    #[error(transparent)]
    Group(#[from] GroupError),
    /// The group that was to be joined does not take this member, or cannot be asked.
    #[error("cannot join the group: {0}")]
    Join(proto::rpc::Status),
    /// The member was removed while it ran.
    #[error("this member was removed from its group, and serves no more")]
    Removed,
    /// The port is not to be had.
    #[error("cannot listen on {addr}")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Clients could not dial what they would be told.
    #[error("{0} is no address that clients can dial: set advertise-client-urls")]
    Advertise(String),
}

/// A running member. Dropping it ends its tasks; [`PdServer::stop`] does so in order.
#[derive(Debug)]
pub struct PdServer {
    addr: SocketAddr,
    url: String,
    inner: Inner,
}

struct Inner {
    member: Rc<Member>,
    server: Server,
    health: Rc<Health>,
    metrics: Rc<NetMetrics>,
    run: Option<Task<Result<(), RunError>>>,
    tasks: Vec<Task<()>>,
    _lock: executor::fs::DirLock,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("..")
    }
}

impl PdServer {
    /// Reads the journal, binds the port and serves on the current core. When this returns, clients can connect; a member
    /// that is alone leads then, others may still look for a leader, or, when the group is new, for the other first members:
    /// it begins when all of them are there. One that turns out to have lost its folder ends: see [`PdServer::failed`].
    ///
    /// # Errors
    /// [`PdError`] for a folder, a journal, a group or a port that is not to be had.
    pub async fn start(config: PdConfig) -> Result<PdServer, PdError> {
        let folder = |source| PdError::Folder { path: config.data_dir.clone(), source };
        executor::fs::create_dir_all(&config.data_dir).await.map_err(folder)?;
        let lock = executor::fs::lock_dir(&config.data_dir).await.map_err(folder)?;
        let (journal, opened) = FileJournal::open(&config.data_dir, config.journal.clone()).await?;

        let listen = |source| PdError::Listen { addr: config.listen, source };
        let listener = TcpListener::bind(config.listen).await.map_err(listen)?;
        let addr = listener.local_addr().map_err(listen)?;
        let url = advertised(&config, addr)?;
        let (known, stored) = load(&config, &opened, &url).await?;
        let node_config = NodeConfig {
            tick: config.raft_tick,
            raft: raftstore::RaftConfig {
                election_ticks: config.raft_election_ticks,
                election_margin_ticks: 2,
                ..Default::default()
            },
            keep_bytes: KEEP_BYTES,
            seed: executor::with_rng(base::Prng::next_u64),
            faults: config.faults,
        };
        let node = Node::new(node_config, stored)?;
        let is_alone = node.is_sole_voter();
        let server_config = config.server.clone();
        let member = Rc::new(Member::new(config, known, node, journal));

        let health = Health::new();
        let router = member.routes(Router::new().add(health.service()));
        let metrics = Rc::new(NetMetrics::default());
        let front = Rc::new(Front { member: Rc::clone(&member), net: Rc::clone(&metrics) });
        let server = Server::new(Rc::new(router), Some(front), server_config, Rc::clone(&metrics));
        let accept = executor::spawn_local(Class::Foreground, accept(listener, server.clone()));
        let run = executor::spawn_local(Class::Foreground, Rc::clone(&member).run());
        let announcing = Rc::clone(&member);
        let announce = executor::spawn_local(Class::Background, async move {
            announcing.found().await;
            announcing.announce().await;
        });
        let tasks = vec![accept, announce];
        let inner = Inner { member, server, health, metrics, run: Some(run), tasks, _lock: lock };
        let mut server = PdServer { addr, url, inner };
        if is_alone {
            server.inner.member.until_serving().await;
        }
        if server.inner.member.is_over() {
            return Err(server.failed().await);
        }
        tracing::info!(cluster_id = %server.cluster_id(), %addr, url = server.url, "the placement driver serves");
        Ok(server)
    }

    /// The address that was bound.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The URL that clients are told.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The cluster's id; 0 while the members of a new group have not agreed on one.
    pub fn cluster_id(&self) -> ClusterId {
        self.inner.member.cluster_id()
    }

    /// Whether this member leads and serves.
    pub fn is_leader(&self) -> bool {
        self.inner.member.serving().is_some()
    }

    /// Counters of the member.
    pub fn metrics(&self) -> &Rc<PdMetrics> {
        &self.inner.member.metrics
    }

    /// Counters of the port.
    pub fn net_metrics(&self) -> &Rc<NetMetrics> {
        &self.inner.metrics
    }

    /// Waits until the member cannot go on; it can serve nothing then and should stop.
    ///
    /// # Errors
    /// Always: why not.
    pub async fn failed(&mut self) -> PdError {
        self.inner.member.until_over().await;
        match self.inner.run.take() {
            Some(run) => match run.await {
                Err(error) => error.into(),
                Ok(()) => std::future::pending().await,
            },
            None => std::future::pending().await,
        }
    }

    /// Stops in order: leadership is handed over if there is somebody to take it; no new calls, those under way get a
    /// moment, what has changed becomes durable.
    ///
    /// # Errors
    /// [`PdError`] if it does not.
    pub async fn stop(mut self) -> Result<(), PdError> {
        self.inner.health.set("", Serving::No);
        self.inner.member.hand_over(None).await;
        self.inner.member.stop();
        self.inner.server.drain();
        let idle = async {
            while self.inner.metrics.connections.get() > 0 {
                executor::sleep(Duration::from_millis(5)).await;
            }
        };
        // Streams that clients keep open end with the connections' tasks below.
        let _ = executor::timeout(DRAIN_TIME, idle).await;
        for task in self.inner.tasks.drain(..) {
            task.cancel();
        }
        match self.inner.run.take() {
            Some(run) => Ok(run.await?),
            None => Ok(()),
        }
    }
}

/// Serves until the process is asked to stop, or the journal fails.
///
/// # Errors
/// [`PdError`], as [`PdServer::start`] and [`PdServer::failed`].
pub async fn run(config: PdConfig) -> Result<(), PdError> {
    run_with(config, |_| {}).await
}

/// As [`run`]; `ready` is called when clients can connect.
///
/// # Errors
/// [`PdError`], as [`PdServer::start`] and [`PdServer::failed`].
pub async fn run_with(config: PdConfig, ready: impl FnOnce(&PdServer)) -> Result<(), PdError> {
    use futures_util::future::{Either, select};
    let mut server = PdServer::start(config).await?;
    ready(&server);
    let outcome = {
        let stop = std::pin::pin!(executor::shutdown_signal());
        let failed = std::pin::pin!(server.failed());
        match select(stop, failed).await {
            Either::Left(_) => Ok(()),
            Either::Right((error, _)) => Err(error),
        }
    };
    match outcome {
        Ok(()) => server.stop().await,
        Err(error) => Err(error),
    }
}

async fn accept(listener: TcpListener, server: Server) {
    // The connections end with this task.
    let connections: RefCell<Vec<Task<()>>> = RefCell::default();
    let _abort = Abort(&connections);
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let mut connections = connections.borrow_mut();
                connections.retain(|connection| !connection.is_done());
                connections.push(executor::spawn_local(Class::Foreground, serve(server.clone(), stream)));
            }
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                executor::sleep(ACCEPT_ERROR_WAIT).await;
            }
        }
    }
}

async fn serve(server: Server, stream: TcpStream) {
    server.serve(stream).await;
}

/// Ends the tasks when it is dropped.
struct Abort<'a>(&'a RefCell<Vec<Task<()>>>);

impl Drop for Abort<'_> {
    fn drop(&mut self) {
        self.0.borrow_mut().drain(..).for_each(Task::cancel);
    }
}

impl From<RunError> for PdError {
    fn from(error: RunError) -> PdError {
        match error {
            RunError::Journal(error) => PdError::Journal(error),
            RunError::Node(error) => PdError::Node(error),
            RunError::Removed => PdError::Removed,
            RunError::LostData => GroupError::LostData.into(),
        }
    }
}

/// What the folder keeps, or a new member begins with, and what the configuration says beside.
async fn load(config: &PdConfig, opened: &Opened, url: &str) -> Result<(Known, Stored), PdError> {
    if let Some((path, offset)) = &opened.cut {
        tracing::warn!(path = %path.display(), offset, "the journal's last record was torn; nobody was told of it");
    }
    let initial = (config.initial_cluster.len() > 1).then(|| Initial::named(config)).transpose()?;
    let is_new = opened.image.is_none() && opened.records.is_empty();
    let stored = if is_new && !config.join.is_empty() {
        join(config, url).await.map_err(PdError::Join)?
    } else if is_new || opened.is_first_version {
        begin(config, opened, url, initial.as_ref())?
    } else {
        resume(opened, initial.as_ref())?
    };
    let at_start = |id: u64| stored.roster.find(id).map(|member| member.url.clone()).unwrap_or_default();
    let told = initial.iter().flat_map(|initial| &initial.members);
    let mut hints: BTreeMap<u64, (String, String)> =
        told.map(|(id, _, url)| (*id, (url.clone(), at_start(*id)))).collect();
    // The log may not have come to where the first members say where they are, neither here nor in the snapshot that comes.
    let is_silent = |member: &MemberRecord| member.id != stored.own_id && member.url.is_empty();
    let heard = if stored.roster.members().iter().any(is_silent) {
        where_they_are(config, url, &stored.roster).await
    } else {
        stored.roster.members().iter().map(|member| (member.id, member.url.clone())).collect()
    };
    for (id, url) in heard.into_iter().filter(|(_, url)| !url.is_empty()) {
        hints.entry(id).or_insert((url, String::new()));
    }
    let known = Known { own_id: stored.own_id, name: config.name.clone(), url: url.to_owned(), hints };
    Ok((known, stored))
}

/// A new group, or that of a folder of the first version, which had no group.
fn begin(config: &PdConfig, opened: &Opened, url: &str, initial: Option<&Initial>) -> Result<Stored, PdError> {
    let is_new = opened.image.is_none() && opened.records.is_empty();
    let load = || State::load(opened.image.iter().chain(&opened.records));
    let alone = |cluster_id: ClusterId| {
        let id = number_alone(cluster_id);
        let (name, url) = (config.name.clone(), url.to_owned());
        Roster::new(id, vec![MemberRecord { id, role: MemberRole::Voter, name, url }], Vec::new())
    };
    if let Some(initial) = initial {
        if !is_new {
            initial.check(0, &alone(load()?.cluster_id()))?;
        }
        return Ok(Stored::founding(initial.own_id, initial.roster()));
    }
    let state = if is_new { State::create(new_cluster_id()) } else { load()? };
    let roster = alone(state.cluster_id());
    Ok(Stored::first(state, roster.group, roster))
}

/// What a folder keeps. The flags of a first start say the same at every later one, whoever the members are by then.
fn resume(opened: &Opened, initial: Option<&Initial>) -> Result<Stored, PdError> {
    let mut stored = Stored::read(opened.image.as_ref(), &opened.records)?;
    if stored.roster.group == 0 {
        stored.roster.group = number_of_old(&stored.roster, stored.state.cluster_id());
    }
    if let Some(initial) = initial {
        initial.check(stored.own_id, &stored.roster)?;
    }
    if stored.stage == Stage::Out {
        return Err(GroupError::Removed.into());
    }
    let is_known = |member: &MemberRecord| member.id == stored.own_id || !member.url.is_empty();
    if initial.is_none() && !stored.roster.members().iter().all(is_known) {
        let members = names(&stored.roster);
        tracing::warn!(members, "the folder does not say where all members are: initial-cluster may have to be set");
    }
    Ok(stored)
}

fn advertised(config: &PdConfig, addr: SocketAddr) -> Result<String, PdError> {
    let named = config.initial_cluster.iter().find(|(name, _)| *name == config.name).map(|(_, url)| url);
    let url = match config.advertise_url.as_ref().or(named) {
        Some(url) => full(url, config),
        None => format!("{}://{addr}", scheme(config)),
    };
    let host = url.split("://").nth(1).unwrap_or_default();
    if host.is_empty() || host.starts_with("0.0.0.0") || host.starts_with("[::]") {
        return Err(PdError::Advertise(url));
    }
    Ok(url)
}
