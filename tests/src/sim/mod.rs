//! A whole cluster in the simulator: one placement driver, one node or several on the engine's twin, clients, and faults.
//!
//! A run is a function of its seed. It ends after at least [`Plan::operations`] operations and [`Plan::duration`] of
//! virtual time, with a check of every key, of the histories of all hot keys, and of all replicas. Panics name what is wrong; the seed replays it.

mod damage;
mod durable;
mod faults;
mod hot;
mod lead;
mod linear;
mod orders;
pub mod planted;
mod scripts;
mod spread;
mod trouble;
mod twins;
mod watch;
mod workload;
mod world;

use std::time::Duration;

use shard::core::PlantedFault;

pub use faults::Fault;
pub use world::World;

/// What a run is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Focus {
    /// Everything.
    Any,
    /// Leaders that are cut off, stopped for a while or handed over, while clients read from all who take themselves for one.
    Leaders,
    /// Crashes of one node, a majority or all, one soon after the other.
    Crashes,
    /// Members that come and go, while nodes crash and are cut off.
    Members,
    /// Nothing: no fault, no order, and nobody who balances. See [`World::run_quietly`].
    Quiet,
}

/// How long and how hard a run is.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Client operations at least.
    pub operations: u64,
    /// Virtual time at least.
    pub duration: Duration,
    /// Faults at least.
    pub faults: u64,
    /// Nodes.
    pub nodes: usize,
    /// The placement driver merges small regions.
    pub merges: bool,
    /// Which faults are drawn, and what clients do most.
    pub focus: Focus,
    /// Nothing but this fault, if there is one.
    pub only: Option<Fault>,
    /// A mistake that the node makes on purpose, which the run must find.
    pub planted: Option<PlantedFault>,
}

impl Default for Plan {
    fn default() -> Self {
        Plan {
            operations: 2000,
            duration: Duration::from_secs(60),
            faults: 3,
            nodes: 1,
            merges: false,
            focus: Focus::Any,
            only: None,
            planted: None,
        }
    }
}

/// What a run did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// Hash over every scheduling decision, message and disk operation.
    pub event_hash: u64,
    /// Client operations.
    pub operations: u64,
    /// Writes that were acknowledged.
    pub acknowledged: u64,
    /// Writes whose fate the client does not know.
    pub unknown: u64,
    /// Orders that the placement driver took.
    pub orders: u64,
    /// Faults that were injected.
    pub faults: u64,
    /// Times that the node was killed or stopped and started again.
    pub restarts: u64,
    /// Regions at the end.
    pub regions: u64,
    /// Their replicas.
    pub replicas: u64,
    /// Regions that had a leader and are gone: they have merged into others.
    pub merged: u64,
    /// Acknowledged writes that were looked for on the disks.
    pub looked_for: u64,
    /// Replicas whose log was damaged.
    pub damaged: u64,
    /// Keys whose history was too hard to judge.
    pub undecided: u64,
    /// Steps of the simulator.
    pub steps: u64,
}

/// Runs one seed.
///
/// # Panics
/// If an acknowledged write is lost, a read returns what was never written, the calls on a key have no order that explains
/// their answers, two peers lead in one term or share keys of a node, replicas stay different, or the cluster does not come
/// back.
pub fn run(seed: u64, plan: Plan) -> Report {
    World::new(seed, plan).run()
}
