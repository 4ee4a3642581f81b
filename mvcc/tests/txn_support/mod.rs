//! A region's data as maps, which commands run over and change.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]

use std::collections::BTreeMap;
use std::rc::Rc;

use base::Prng;
use bytes::Bytes;
use mvcc::raw::Step;
use mvcc::txn::{Lock, LockScan, MemoryLocks, Plan, Reader, TxnError};
use mvcc::{Modify, ReadError};

use crate::raw_support::View;

/// One region of everything, and what its leader remembers.
#[derive(Default)]
pub struct Region {
    families: [Rc<BTreeMap<Bytes, Bytes>>; 4],
    pub memory: MemoryLocks,
}

impl Region {
    pub fn view(&self) -> View {
        View::of_all(&self.families)
    }

    /// Runs a command that only reads, first on views that miss the cache now and then, as a leader would.
    pub fn run<T>(
        &self,
        prng: Option<&mut Prng>,
        work: impl Fn(&Reader<'_, View>) -> Result<T, TxnError>,
    ) -> Result<T, TxnError> {
        if let Some(prng) = prng {
            let cold = self.view().cold(prng.fork(), 8);
            match work(&Reader::new(&cold)) {
                Err(TxnError::Read(ReadError::NotCached)) => {}
                answered => return answered,
            }
        }
        let view = self.view();
        work(&Reader::new(&view))
    }

    pub fn apply(&mut self, plan: &Plan) {
        self.change(&plan.changes);
        self.memory.remove(plan.in_memory.iter().map(|(key, _)| key));
    }

    pub fn change(&mut self, changes: &[Modify]) {
        for change in changes {
            let family = Rc::make_mut(&mut self.families[change.cf().index()]);
            match change {
                Modify::Put { key, value, .. } => drop(family.insert(key.clone(), value.clone())),
                Modify::Delete { key, .. } => drop(family.remove(key)),
                Modify::DeleteRange { start, end, .. } => {
                    family.retain(|key, _| !base::keys::contains(start, end, key));
                }
            }
        }
    }

    /// Everything that is stored, for comparisons.
    pub fn families(&self) -> [Rc<BTreeMap<Bytes, Bytes>>; 4] {
        self.families.clone()
    }

    /// All that a search finds, in pieces.
    pub fn find(&self, mut scan: LockScan) -> Vec<(Bytes, Lock)> {
        while scan.step(&self.view(), 2).expect("readable") == Step::More {}
        scan.drain()
    }
}
