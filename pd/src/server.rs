//! One member of the placement driver: its journal, its port, its tasks.

use crate::config::PdConfig;
use crate::http::Rest;
use crate::metrics::PdMetrics;
use crate::service::{self, Core, Identity};
use crate::state::{LoadError, State};
use crate::storage::{FileJournal, JournalError, Opened};
use base::ClusterId;
use executor::net::{TcpListener, TcpStream};
use executor::{Class, Task};
use net::{Health, NetMetrics, Router, Server, Serving};
use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

/// Wait after an error of accept, which is most often a lack of descriptors.
const ACCEPT_ERROR_WAIT: Duration = Duration::from_millis(50);
/// How long calls may go on after the order to stop.
const DRAIN_TIME: Duration = Duration::from_millis(500);

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
    cluster_id: ClusterId,
    inner: Inner,
}

struct Inner {
    core: Rc<Core>,
    server: Server,
    health: Rc<Health>,
    metrics: Rc<NetMetrics>,
    writer: Option<Task<Result<(), JournalError>>>,
    tasks: Vec<Task<()>>,
    _lock: executor::fs::DirLock,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("..")
    }
}

impl PdServer {
    /// Reads the journal, binds the port and serves on the current core. When this returns, clients can connect.
    ///
    /// # Errors
    /// [`PdError`] for a folder, a journal or a port that is not to be had.
    pub async fn start(config: PdConfig) -> Result<PdServer, PdError> {
        let folder = |source| PdError::Folder { path: config.data_dir.clone(), source };
        executor::fs::create_dir_all(&config.data_dir).await.map_err(folder)?;
        let lock = executor::fs::lock_dir(&config.data_dir).await.map_err(folder)?;
        let (journal, opened) = FileJournal::open(&config.data_dir, config.journal.clone()).await?;
        let state = load(&opened)?;

        let listen = |source| PdError::Listen { addr: config.listen, source };
        let listener = TcpListener::bind(config.listen).await.map_err(listen)?;
        let addr = listener.local_addr().map_err(listen)?;
        let client_url = advertised(&config, addr)?;

        let cluster_id = state.cluster_id();
        let identity = Identity {
            cluster_id,
            member_id: base::hash::mix64(cluster_id.0) | 1,
            name: config.name.clone(),
            client_url: client_url.clone(),
            deploy_path: config.data_dir.display().to_string(),
        };
        let server_config = config.server.clone();
        let core = Rc::new(Core::new(identity, config, state, Rc::new(journal)));

        let writer = Rc::clone(&core.writer);
        let mut writer = executor::spawn_local(Class::Foreground, async move { writer.run().await });
        // The first image: what was torn is behind us, and a new cluster has its id.
        if core.settle().await.is_err() {
            (&mut writer).await?;
        }

        let health = Health::new();
        let router = service::routes(Router::new().add(health.service()), &core);
        let metrics = Rc::new(NetMetrics::default());
        let rest = Rest { core: Rc::clone(&core), net: Rc::clone(&metrics) };
        let server = Server::new(Rc::new(router), Some(Rc::new(rest)), server_config, Rc::clone(&metrics));
        let accept = executor::spawn_local(Class::Foreground, accept(listener, server.clone()));
        let leases = executor::spawn_local(Class::Background, Rc::clone(&core).end_leases());
        tracing::info!(%cluster_id, %addr, url = client_url, "the placement driver serves");
        let schedule = executor::spawn_local(Class::Background, Rc::clone(&core).schedule());
        let tasks = vec![accept, leases, schedule];
        let inner = Inner { core, server, health, metrics, writer: Some(writer), tasks, _lock: lock };
        Ok(PdServer { addr, url: client_url, cluster_id, inner })
    }

    /// The address that was bound.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The URL that clients are told.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The cluster's id.
    pub fn cluster_id(&self) -> ClusterId {
        self.cluster_id
    }

    /// Counters of the member.
    pub fn metrics(&self) -> &Rc<PdMetrics> {
        &self.inner.core.metrics
    }

    /// Counters of the port.
    pub fn net_metrics(&self) -> &Rc<NetMetrics> {
        &self.inner.metrics
    }

    /// Waits until the journal fails; without it the member can serve nothing and should stop.
    ///
    /// # Errors
    /// Always: why the journal failed.
    pub async fn failed(&mut self) -> PdError {
        self.inner.core.writer.until_closed().await;
        match self.inner.writer.take() {
            Some(writer) => match writer.await {
                Err(error) => PdError::Journal(error),
                Ok(()) => std::future::pending().await,
            },
            None => std::future::pending().await,
        }
    }

    /// Stops in order: no new calls, those under way get a moment, what has changed becomes durable.
    ///
    /// # Errors
    /// [`PdError::Journal`] if it does not.
    pub async fn stop(mut self) -> Result<(), PdError> {
        self.inner.health.set("", Serving::No);
        self.inner.core.stop();
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
        self.inner.core.writer.stop();
        if let Some(writer) = self.inner.writer.take() {
            writer.await?;
        }
        Ok(())
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

/// The state that was kept, or a new cluster's.
fn load(opened: &Opened) -> Result<State, LoadError> {
    if let Some((path, offset)) = &opened.cut {
        tracing::warn!(path = %path.display(), offset, "the journal's last record was torn; nobody was told of it");
    }
    if opened.image.is_none() && opened.records.is_empty() {
        let random = executor::with_rng(base::Prng::next_u64) & 0xFFFF_FFFF;
        let id = executor::unix_time().seconds() << 32 | random;
        return Ok(State::create(ClusterId(id.max(1))));
    }
    State::load(opened.image.iter().chain(&opened.records))
}

fn advertised(config: &PdConfig, addr: SocketAddr) -> Result<String, PdError> {
    // Stock clients dial by the scheme, and those that do not mind it take either.
    let scheme = if config.server.tls.is_some() { "https" } else { "http" };
    let url = match &config.advertise_url {
        Some(url) if url.contains("://") => url.trim_end_matches('/').to_owned(),
        Some(host) => format!("{scheme}://{host}"),
        None => format!("{scheme}://{addr}"),
    };
    let host = url.split("://").nth(1).unwrap_or_default();
    if host.is_empty() || host.starts_with("0.0.0.0") || host.starts_with("[::]") {
        return Err(PdError::Advertise(url));
    }
    Ok(url)
}
