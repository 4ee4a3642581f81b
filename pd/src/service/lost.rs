//! Stores whose stream has just broken, as that of a node that was killed does at once, and those who ask for regions that
//! such a store led.
//!
//! The others of the region elect within a second. A client that is told of the dead leader meanwhile tries it in vain and
//! comes back with longer and longer pauses, so that it hears of the new leader up to half a second late. Here it waits
//! for the new leader's report instead, for no longer than an election takes. The answer is then what it would have been.

use base::Instant;
use executor::Notify;
use proto::metapb;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use super::Core;
use crate::directory::{Directory, Region};

/// How long after the break of a stream lookups wait: longer than an election takes, shorter than clients do. A store
/// that lives, and that only we do not hear, costs those who look its regions up that much once.
const WAIT: Duration = Duration::from_millis(1500);

/// See the module. Bounded by the number of stores.
#[derive(Default)]
pub(crate) struct Lost {
    since: RefCell<BTreeMap<u64, Instant>>,
    /// A region was reported.
    news: Notify,
}

impl Lost {
    /// The stream of `store` broke.
    pub(super) fn note(&self, store: u64) {
        self.since.borrow_mut().insert(store, executor::now());
    }

    /// `store` has a stream again.
    pub(super) fn found(&self, store: u64) {
        self.since.borrow_mut().remove(&store);
    }

    /// A region was reported: those who wait look again.
    pub(super) fn reported(&self) {
        if !self.since.borrow().is_empty() {
            self.news.notify();
        }
    }

    /// For how long it makes sense to wait for another leader than this one.
    fn wait_for(&self, leader: Option<&metapb::Peer>) -> Option<Duration> {
        let mut since = self.since.borrow_mut();
        let store = leader?.store_id;
        let passed = executor::now().since(*since.get(&store)?);
        if passed >= WAIT {
            since.remove(&store);
            return None;
        }
        Some(WAIT - passed)
    }
}

impl Core {
    /// Looks a region up; while its leader's store has just been lost, waits for another leader.
    pub(super) async fn led_region(&self, find: impl Fn(&Directory) -> Option<Rc<Region>>) -> Option<Rc<Region>> {
        loop {
            let region = find(&self.directory.borrow());
            let leader = region.as_ref().and_then(|region| region.leader.as_ref());
            let Some(left) = self.lost.wait_for(leader) else { return region };
            // Over or not, it is looked at again.
            let _ = executor::timeout(left, self.lost.news.notified()).await;
        }
    }
}
