//! What every service works on: the state with its journal, the directory, the oracle, the open streams.

use super::etcd_lease::LeaseGranted;
use super::heartbeat::Streams;
use super::scheduling::Scheduling;
use super::tso::Clock;
use super::vitals::Vitals;
use crate::config::PdConfig;
use crate::directory::Directory;
use crate::metrics::PdMetrics;
use crate::state::State;
use crate::storage::{Journal, Writer};
use base::{ClusterId, UnixTime};
use proto::pdpb::{self, ErrorType};
use proto::rpc::{CallContext, Status};
use std::cell::{Cell, Ref, RefCell};
use std::rc::Rc;

/// How this member presents itself.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) cluster_id: ClusterId,
    pub(crate) member_id: u64,
    pub(crate) name: String,
    pub(crate) client_url: String,
    pub(crate) deploy_path: String,
}

impl Identity {
    /// The member as GetMembers tells it. There is no peer port; etcd clients want the field filled.
    pub(crate) fn member(&self) -> pdpb::Member {
        pdpb::Member {
            name: self.name.clone(),
            member_id: self.member_id,
            peer_urls: vec![self.client_url.clone()],
            client_urls: vec![self.client_url.clone()],
            deploy_path: self.deploy_path.clone(),
            binary_version: crate::config::ANNOUNCED_VERSION.to_owned(),
            ..pdpb::Member::default()
        }
    }
}

/// The placement driver on its core.
pub(crate) struct Core {
    pub(crate) identity: Identity,
    pub(crate) config: PdConfig,
    pub(crate) state: Rc<RefCell<State>>,
    pub(crate) directory: RefCell<Directory>,
    pub(crate) vitals: RefCell<Vitals>,
    pub(crate) writer: Rc<Writer>,
    pub(crate) clock: Clock,
    pub(crate) streams: Streams,
    pub(crate) lease_granted: LeaseGranted,
    pub(crate) scheduling: Scheduling,
    pub(crate) started: UnixTime,
    pub(crate) metrics: Rc<PdMetrics>,
    stopping: Cell<bool>,
}

impl Core {
    pub(crate) fn new(identity: Identity, config: PdConfig, mut state: State, journal: Rc<dyn Journal>) -> Core {
        let directory = Directory::from_kept(state.regions());
        let outdated = state.regions().map(|region| region.id).filter(|id| directory.by_id(*id).is_none());
        for id in outdated.collect::<Vec<_>>() {
            state.drop_region(id);
        }
        let clock = Clock::resume(state.timestamp_bound());
        let metrics = Rc::new(PdMetrics::default());
        let vitals = Vitals::resume(state.min_resolved_ts());
        let scheduling = Scheduling::new(&config, executor::now());
        let state = Rc::new(RefCell::new(state));
        Core {
            identity,
            config,
            directory: RefCell::new(directory),
            vitals: RefCell::new(vitals),
            writer: Rc::new(Writer::new(Rc::clone(&state), journal, Rc::clone(&metrics))),
            metrics,
            state,
            clock,
            streams: Streams::default(),
            lease_granted: LeaseGranted::default(),
            scheduling,
            started: executor::unix_time(),
            stopping: Cell::new(false),
        }
    }

    /// Refuses all further calls.
    pub(crate) fn stop(&self) {
        self.stopping.set(true);
    }

    /// Whether calls are served.
    pub(crate) fn is_serving(&self) -> bool {
        !self.stopping.get() && self.writer.closed().is_none()
    }

    /// The checks in front of calls without a cluster id.
    pub(crate) fn enter_any(&self, cx: &CallContext) -> Result<(), Status> {
        if let Some(host) = cx.metadata.get_str("pd-forwarded-host")
            && !self.is_own_host(host)
        {
            return Err(Status::unavailable(format!("not leader: {host} is not a member of this cluster")));
        }
        if self.is_serving() { Ok(()) } else { Err(Status::unavailable("server not started")) }
    }

    /// The checks in front of calls with a cluster id.
    pub(crate) fn enter(&self, cx: &CallContext, header: Option<&pdpb::RequestHeader>) -> Result<(), Status> {
        self.enter_any(cx)?;
        self.check_cluster(header.map_or(0, |header| header.cluster_id))
    }

    /// Refuses another cluster's id.
    pub(crate) fn check_cluster(&self, theirs: u64) -> Result<(), Status> {
        let ours = self.identity.cluster_id.0;
        if theirs == ours {
            return Ok(());
        }
        Err(Status::failed_precondition(format!("mismatch cluster id, need {ours} but got {theirs}")))
    }

    fn is_own_host(&self, host: &str) -> bool {
        let bare = |url: &str| url.trim_start_matches("http://").trim_start_matches("https://").to_owned();
        bare(host) == bare(&self.identity.client_url)
    }

    /// The header of an answer.
    pub(crate) fn header(&self) -> Option<pdpb::ResponseHeader> {
        Some(pdpb::ResponseHeader { cluster_id: self.identity.cluster_id.0, error: None })
    }

    /// The header of an answer that carries an error.
    pub(crate) fn error(&self, kind: ErrorType, message: impl ToString) -> Option<pdpb::ResponseHeader> {
        let error = pdpb::Error { r#type: kind.into(), message: message.to_string() };
        Some(pdpb::ResponseHeader { cluster_id: self.identity.cluster_id.0, error: Some(error) })
    }

    /// The error that all calls about stores, regions and safe points give before there is a cluster.
    pub(crate) fn unless_bootstrapped(&self) -> Option<pdpb::ResponseHeader> {
        let bootstrapped = self.state.borrow().check_bootstrapped();
        bootstrapped.err().and_then(|error| self.header_of(&error))
    }

    /// Runs a command and answers when what it did is durable.
    pub(crate) async fn write<T>(&self, command: impl FnOnce(&mut State) -> T) -> Result<T, Status> {
        self.writer.admit().await.map_err(|backlog| Status::resource_exhausted(backlog.to_string()))?;
        let answer = command(&mut self.state.borrow_mut());
        self.settle().await?;
        Ok(answer)
    }

    /// Looks at the state and answers when what was seen is durable.
    pub(crate) async fn read<T>(&self, look: impl FnOnce(&State) -> T) -> Result<T, Status> {
        let answer = look(&self.state.borrow());
        self.settle().await?;
        Ok(answer)
    }

    /// Waits until all that has changed so far is durable.
    pub(crate) async fn settle(&self) -> Result<(), Status> {
        self.writer.settle().await.map_err(|closed| Status::unavailable(closed.to_string()))
    }

    /// The state, without waiting: for what need not be durable to be told.
    pub(crate) fn peek(&self) -> Ref<'_, State> {
        self.state.borrow()
    }
}
