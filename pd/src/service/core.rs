//! What every service works on: the state with its line, the directory, the oracle, the open streams. It lasts as long as
//! this member leads in one term: the next leader begins with what is committed, and hears the rest from the stores.

use super::etcd_lease::LeaseGranted;
use super::heartbeat::Streams;
use super::line::Line;
use super::lost::Lost;
use super::scheduling::Scheduling;
use super::tso::Clock;
use super::vitals::Vitals;
use crate::clock::lease_now;
use crate::config::PdConfig;
use crate::directory::Directory;
use crate::metrics::PdMetrics;
use crate::raft::Right;
use crate::state::State;
use base::ClusterId;
use executor::Notify;
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
    /// The term that it leads.
    pub(crate) raft_term: u64,
}

/// What a leader's core shares with the member around it.
#[derive(Clone)]
pub(crate) struct Surroundings {
    /// Called when there is something to propose.
    pub(crate) wake: Rc<Notify>,
    /// What the leader may answer by itself.
    pub(crate) right: Rc<Cell<Right>>,
    pub(crate) metrics: Rc<PdMetrics>,
}

/// The placement driver of one term.
pub(crate) struct Core {
    pub(crate) identity: Identity,
    pub(crate) config: PdConfig,
    pub(crate) state: Rc<RefCell<State>>,
    pub(crate) directory: RefCell<Directory>,
    pub(crate) vitals: RefCell<Vitals>,
    pub(crate) line: Line,
    pub(crate) clock: Clock,
    pub(crate) streams: Streams,
    pub(crate) lost: Lost,
    pub(crate) lease_granted: LeaseGranted,
    pub(crate) scheduling: Scheduling,
    pub(crate) metrics: Rc<PdMetrics>,
    right: Rc<Cell<Right>>,
    stopping: Cell<bool>,
}

impl Core {
    /// Goes on from `state`, all of which is committed but what its outbox has.
    pub(crate) fn new(identity: Identity, config: PdConfig, mut state: State, around: Surroundings) -> Core {
        let directory = Directory::from_kept(state.regions());
        let outdated = state.regions().map(|region| region.id).filter(|id| directory.by_id(*id).is_none());
        for id in outdated.collect::<Vec<_>>() {
            state.drop_region(id);
        }
        let clock = Clock::resume(state.timestamp_bound());
        let vitals = Vitals::resume(state.min_resolved_ts());
        let scheduling = Scheduling::new(&config, executor::now());
        let state = Rc::new(RefCell::new(state));
        Core {
            identity,
            config,
            directory: RefCell::new(directory),
            vitals: RefCell::new(vitals),
            line: Line::new(Rc::clone(&state), around.wake),
            metrics: around.metrics,
            state,
            clock,
            streams: Streams::default(),
            lost: Lost::default(),
            lease_granted: LeaseGranted::default(),
            scheduling,
            right: around.right,
            stopping: Cell::new(false),
        }
    }

    /// Refuses all further calls.
    pub(crate) fn stop(&self) {
        self.stopping.set(true);
    }

    /// Whether calls are served: the member leads, and nobody else can.
    pub(crate) fn is_serving(&self) -> bool {
        !self.stopping.get() && self.line.closed().is_none() && self.right.get().holds(lease_now())
    }

    /// Refuses when nothing is served. What was looked at before it was looked at under the lease.
    pub(crate) fn check_serving(&self) -> Result<(), Status> {
        if self.is_serving() { Ok(()) } else { Err(not_leader()) }
    }

    /// The checks in front of calls without a cluster id.
    pub(crate) fn enter_any(&self, _cx: &CallContext) -> Result<(), Status> {
        self.check_serving()
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
        self.line.admit().await.map_err(|backlog| Status::resource_exhausted(backlog.to_string()))?;
        let answer = command(&mut self.state.borrow_mut());
        self.settle().await?;
        Ok(answer)
    }

    /// Looks at the state and answers when what was seen is durable. Nobody else leads while it looks.
    pub(crate) async fn read<T>(&self, look: impl FnOnce(&State) -> T) -> Result<T, Status> {
        let answer = look(&self.state.borrow());
        self.check_serving()?;
        self.settle().await?;
        Ok(answer)
    }

    /// Waits until all that has changed so far is durable.
    pub(crate) async fn settle(&self) -> Result<(), Status> {
        self.line.settle().await.map_err(|closed| Status::unavailable(closed.to_string()))
    }

    /// The state, without waiting: for what need not be durable to be told.
    pub(crate) fn peek(&self) -> Ref<'_, State> {
        self.state.borrow()
    }
}

/// What every member answers that does not lead. Clients look for the words.
pub(crate) fn not_leader() -> Status {
    Status::unavailable("not leader")
}
