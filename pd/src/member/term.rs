//! What a member has while it leads: the core that answers, and the tasks around it.

use super::Member;
use crate::service::{self, Core, Identity, Surroundings};
use crate::state::State;
use base::ClusterId;
use executor::{Class, Task};
use proto::rpc::Service;
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// One term of one leader.
pub(crate) struct Term {
    pub(crate) number: u64,
    pub(crate) core: Rc<Core>,
    services: Vec<Rc<dyn Service>>,
    ready: Cell<bool>,
    tasks: RefCell<Vec<Task<()>>>,
}

impl Term {
    /// Whether what the term began with is committed.
    pub(super) fn is_ready(&self) -> bool {
        self.ready.get()
    }

    /// One of the services, by its full name.
    pub(super) fn service(&self, name: &str) -> Option<&Rc<dyn Service>> {
        self.services.iter().find(|service| service.name() == name)
    }
}

impl Member {
    /// This member leads, and its state holds all that was ever acknowledged.
    pub(super) fn begin_term(self: &Rc<Self>, number: u64) {
        let mut state = self.node.borrow().state().to_lead();
        if state.cluster_id() == ClusterId(0) {
            state = State::create(new_cluster_id());
        }
        let group = self.group();
        let own = group.own();
        let identity = Identity {
            cluster_id: state.cluster_id(),
            member_id: own.id,
            name: own.name.clone(),
            client_url: own.url.clone(),
            raft_term: number,
        };
        let around = Surroundings {
            wake: Rc::clone(&self.wake),
            right: Rc::clone(&self.right),
            metrics: Rc::clone(&self.metrics),
        };
        let core = Rc::new(Core::new(identity, self.config.clone(), state, around));
        tracing::info!(term = number, name = own.name, "this member leads");
        let term = Rc::new(Term {
            number,
            services: service::services(&core),
            core: Rc::clone(&core),
            ready: Cell::new(false),
            tasks: RefCell::default(),
        });
        let (member, begun) = (Rc::downgrade(self), Rc::downgrade(&term));
        let settling = Rc::clone(&core);
        let settle = async move {
            // A new cluster's id must be the group's before anybody is told of it.
            if settling.settle().await.is_ok()
                && let (Some(member), Some(term)) = (member.upgrade(), begun.upgrade())
            {
                term.ready.set(true);
                member.changed.raise();
            }
        };
        let tasks = vec![
            executor::spawn_local(Class::Foreground, settle),
            executor::spawn_local(Class::Background, Rc::clone(&core).end_leases()),
            executor::spawn_local(Class::Background, core.schedule()),
        ];
        *term.tasks.borrow_mut() = tasks;
        *self.term.borrow_mut() = Some(term);
    }

    /// This member leads no more: who waits is told so, and streams end.
    pub(super) fn end_term(&self) {
        let Some(term) = self.term.borrow_mut().take() else { return };
        tracing::info!(term = term.number, "this member leads no more");
        term.core.stop();
        term.core.line.close("not leader");
        term.tasks.borrow_mut().drain(..).for_each(Task::cancel);
        self.changed.raise();
    }
}

/// Seconds since the epoch and 32 random bits, as PD makes them.
pub(crate) fn new_cluster_id() -> ClusterId {
    let random = executor::with_rng(base::Prng::next_u64) & 0xFFFF_FFFF;
    ClusterId((executor::unix_time().seconds() << 32 | random).max(1))
}
