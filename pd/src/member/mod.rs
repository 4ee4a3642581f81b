//! One member: its part in the group, and around it the disk, the other members, and those who call.
//!
//! ```text
//!   gate, front     who answers: this member, its leader's core, another member
//!      │
//!    Term           services and core of the term that this member leads; gone with it
//!      │ line of changes
//!    run            the loop: what comes in goes to the node, what the node wants is carried out
//!      ├── journal  one write under way at a time
//!      └── lines, handlers    messages to and from the other members
//!   change, join    who the members are
//!   founding        how the first ones begin
//! ```

mod answers;
mod change;
mod founding;
mod front;
mod gate;
mod group;
mod handlers;
mod join;
mod lines;
mod run;
mod term;

pub(crate) use front::Front;
pub use group::GroupError;
pub(crate) use group::{Group, Initial, Known, full, names, number_alone, number_of_old, scheme};
pub(crate) use join::{join, where_they_are};
pub(crate) use run::RunError;
pub(crate) use term::new_cluster_id;

use crate::clock::lease_now;
use crate::config::PdConfig;
use crate::metrics::PdMetrics;
use crate::raft::{Node, Right, Snapshot};
use crate::signal::Signal;
use crate::storage::FileJournal;
use base::{ClusterId, UnixTime};
use change::Changes;
use executor::Notify;
use lines::Lines;
use net::Router;
use proto::etcdserverpb::{ClusterService, MaintenanceService};
use proto::memberpb::MembersService;
use raftstore::eraftpb::Message;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;
use term::Term;

/// Bytes of messages that have come and were not looked at. More are lost.
const INBOX_BYTES_MAX: usize = 64 << 20;
/// How long a leader that was asked to hand over is waited for.
const TRANSFER_WAIT: Duration = Duration::from_secs(2);

/// See the module.
pub(crate) struct Member {
    pub(crate) config: PdConfig,
    /// What it knows beside the roster.
    known: Known,
    /// The members, and of which version of the roster that is.
    group: RefCell<(u64, Rc<Group>)>,
    changes: RefCell<Changes>,
    pub(crate) metrics: Rc<PdMetrics>,
    pub(crate) started: UnixTime,
    node: RefCell<Node>,
    journal: FileJournal,
    lines: Lines,
    inbox: RefCell<VecDeque<Message>>,
    inbox_bytes: Cell<usize>,
    snapshot: RefCell<Option<Snapshot>>,
    /// The term that this member leads.
    term: RefCell<Option<Rc<Term>>>,
    right: Rc<Cell<Right>>,
    wake: Rc<Notify>,
    stopping: Cell<bool>,
    over: Cell<bool>,
    /// The others know this member from before, and its folder is empty.
    lost_data: Cell<bool>,
    /// This member begins or ceases to serve.
    changed: Signal,
}

impl Member {
    /// A member over what its folder holds. Nothing happens before [`Member::run`].
    pub(crate) fn new(config: PdConfig, known: Known, node: Node, journal: FileJournal) -> Member {
        let wake = Rc::new(Notify::new());
        let group = known.group(node.roster());
        let lines = Lines::new(&group, config.server.tls.as_ref(), Rc::clone(&wake));
        lines.update(&group);
        Member {
            metrics: Rc::new(PdMetrics::default()),
            started: executor::unix_time(),
            lines,
            config,
            known,
            group: RefCell::new((node.roster_version(), Rc::new(group))),
            changes: RefCell::default(),
            node: RefCell::new(node),
            journal,
            inbox: RefCell::default(),
            inbox_bytes: Cell::new(0),
            snapshot: RefCell::new(None),
            term: RefCell::new(None),
            right: Rc::new(Cell::new(Right::Never)),
            wake,
            stopping: Cell::new(false),
            over: Cell::new(false),
            lost_data: Cell::new(false),
            changed: Signal::default(),
        }
    }

    /// Adds every service to `router`.
    pub(crate) fn routes(self: &Rc<Self>, router: Router) -> Router {
        let etcd = Rc::new(answers::EtcdStatus(Rc::clone(self)));
        let members = Rc::new(handlers::MembersHandler(Rc::clone(self)));
        let router = gate::gates(self).into_iter().fold(router, Router::add);
        router
            .add(Rc::new(ClusterService::new(Rc::clone(&etcd))))
            .add(Rc::new(MaintenanceService::new(etcd)))
            .add(Rc::new(MembersService::new(members)))
    }

    /// This member's number.
    pub(crate) fn own_id(&self) -> u64 {
        self.known.own_id
    }

    /// Who the members are.
    pub(crate) fn group(&self) -> Rc<Group> {
        Rc::clone(&self.group.borrow().1)
    }

    /// The roster may have changed.
    fn follow_roster(&self) {
        let node = self.node.borrow();
        if node.roster_version() == self.group.borrow().0 {
            return;
        }
        let group = Rc::new(self.known.group(node.roster()));
        self.lines.update(&group);
        *self.group.borrow_mut() = (node.roster_version(), group);
        drop(node);
        self.changed.raise();
    }

    /// The cluster's id; 0 while the group has not agreed on one.
    pub(crate) fn cluster_id(&self) -> ClusterId {
        self.node.borrow().state().cluster_id()
    }

    /// The term that this member leads, if it may serve right now.
    pub(crate) fn serving(&self) -> Option<Rc<Term>> {
        let term = self.term.borrow().clone()?;
        (term.is_ready() && term.core.is_serving()).then_some(term)
    }

    /// Waits until this member serves, or never will.
    pub(crate) async fn until_serving(&self) {
        self.changed.wait(|| (self.serving().is_some() || self.is_over()).then_some(())).await;
    }

    /// Whether the member has ended, or is about to.
    pub(crate) fn is_over(&self) -> bool {
        self.over.get() || self.stopping.get()
    }

    /// Waits until [`Member::run`] has ended.
    pub(crate) async fn until_over(&self) {
        self.changed.wait(|| self.over.get().then_some(())).await;
    }

    /// A message of another member.
    fn arrived(&self, message: Message, bytes: usize) {
        if self.inbox_bytes.get() + bytes <= INBOX_BYTES_MAX {
            self.inbox_bytes.set(self.inbox_bytes.get() + bytes);
            self.inbox.borrow_mut().push_back(message);
            self.wake.notify();
        }
    }

    /// A snapshot has come, whole. The newest is kept.
    fn snapshot_arrived(&self, snapshot: Snapshot) {
        *self.snapshot.borrow_mut() = Some(snapshot);
        self.wake.notify();
    }

    /// Hands leadership to the member of that id, or to any other, and waits until this one leads no more. False if it
    /// does not lead, or there is nobody to lead instead.
    pub(crate) async fn hand_over(&self, to: Option<u64>) -> bool {
        let begun = self.node.borrow_mut().transfer(lease_now(), to);
        if begun {
            self.right.set(Right::Never);
            self.end_term();
            self.wake.notify();
            let own = self.own_id();
            let other = || self.node.borrow().leader().is_some_and(|leader| leader != own).then_some(());
            // Whoever does not come to lead is heard of by the group's next leader.
            let _ = executor::timeout(TRANSFER_WAIT, self.changed.wait(other)).await;
        }
        begun
    }

    /// Lets [`Member::run`] return when what has changed is durable.
    pub(crate) fn stop(&self) {
        self.stopping.set(true);
        if let Some(term) = &*self.term.borrow() {
            term.core.stop();
        }
        self.wake.notify();
    }
}
