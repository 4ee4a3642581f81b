//! What the operators under way will have changed on the stores, so that nobody decides as if they were not there.

use super::step::Step;
use std::collections::BTreeMap;

/// Changes to come, by store.
#[derive(Debug, Default)]
pub struct Influence(BTreeMap<u64, Change>);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Change {
    leaders: i64,
    load_mib: i64,
}

impl Influence {
    /// Leaders that a store will have more.
    pub fn leaders(&self, store: u64) -> i64 {
        self.0.get(&store).map_or(0, |change| change.leaders)
    }

    /// MiB that a store will have more.
    pub fn load_mib(&self, store: u64) -> i64 {
        self.0.get(&store).map_or(0, |change| change.load_mib)
    }

    /// Expects a step of an operator on a region of `load_mib`.
    pub fn expect(&mut self, step: &Step, load_mib: u64) {
        self.change(step, load_mib, 1);
    }

    /// Does not expect it any more: it was done, or never will be.
    pub fn forget(&mut self, step: &Step, load_mib: u64) {
        self.change(step, load_mib, -1);
    }

    fn change(&mut self, step: &Step, load_mib: u64, sign: i64) {
        let load = i64::try_from(load_mib).unwrap_or(i64::MAX) * sign;
        match step {
            Step::AddLearner(peer) => self.add(peer.store_id, 0, load),
            Step::RemovePeer(peer) => self.add(peer.store_id, 0, -load),
            Step::TransferLeader { from, to } => {
                self.add(*from, -sign, 0);
                self.add(to.store_id, sign, 0);
            }
            _ => {}
        }
    }

    fn add(&mut self, store: u64, leaders: i64, load_mib: i64) {
        let change = self.0.entry(store).or_default();
        change.leaders += leaders;
        change.load_mib += load_mib;
        if *change == Change::default() {
            self.0.remove(&store);
        }
    }

    /// Whether nothing is expected.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
