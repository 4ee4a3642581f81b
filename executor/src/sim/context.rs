//! Which node and core the running code belongs to.

use super::node::Node;
use super::world::World;
use crate::CoreMetrics;
use base::{CoreId, Prng};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// One core of one run of a node.
pub(super) struct Core {
    pub(super) world: Rc<World>,
    pub(super) node: Rc<Node>,
    /// The run of the node that this core belongs to; stale once the node was killed or ended.
    pub(super) run: u32,
    pub(super) id: CoreId,
    pub(super) cores: usize,
    pub(super) rng: RefCell<Prng>,
    pub(super) metrics: Rc<CoreMetrics>,
    /// Set when the core's main has returned: nothing starts here any more.
    pub(super) ended: Cell<bool>,
}

impl Core {
    /// False once the node was killed or ended, or this core's main returned.
    pub(super) fn is_alive(&self) -> bool {
        self.run == self.node.run.get() && !self.ended.get()
    }
}

thread_local! {
    static ACTIVE: Cell<bool> = const { Cell::new(false) };
    static CURRENT: RefCell<Option<Rc<Core>>> = const { RefCell::new(None) };
}

/// True while code of a node runs on this thread.
pub(super) fn active() -> bool {
    ACTIVE.get()
}

/// Reads the current core. `work` must not run code from outside the simulator.
pub(super) fn with<T>(work: impl FnOnce(&Rc<Core>) -> T) -> T {
    CURRENT.with_borrow(|current| work(current.as_ref().expect("called from a task of a simulated node")))
}

/// The current core.
pub(super) fn current() -> Rc<Core> {
    with(Rc::clone)
}

/// Makes `core` current until the guard is dropped.
pub(super) fn enter(core: &Rc<Core>) -> Entered {
    let before = CURRENT.replace(Some(core.clone()));
    ACTIVE.set(true);
    Entered { before }
}

/// Restores the core that was current before.
pub(super) struct Entered {
    before: Option<Rc<Core>>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        ACTIVE.set(self.before.is_some());
        drop(CURRENT.replace(self.before.take()));
    }
}
