//! What drives the scheduler: its ticks, its ids, its messages, and the settings that are kept.

use super::Core;
use crate::config::PdConfig;
use crate::schedule::{Order, Plan, Refused, Request, RequestError, ScheduleConfig, Scheduler, StoreView};
use base::Instant;
use bytes::Bytes;
use proto::metapb::{self, StoreState};
use proto::pdpb::RegionHeartbeatResponse;
use proto::rpc::Status;
use std::cell::{Ref, RefCell, RefMut};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

/// How often it is looked whether there is a cluster yet.
const UNTIL_BOOTSTRAP: Duration = Duration::from_secs(1);
/// A store that is leaving, holds nothing and is silent for so long is buried without its own word.
const SILENT: Duration = Duration::from_secs(20);

/// The scheduler and the settings that it was given last.
pub(crate) struct Scheduling {
    scheduler: RefCell<Scheduler>,
    defaults: ScheduleConfig,
    kept: RefCell<Option<Bytes>>,
    started: Instant,
}

impl Scheduling {
    pub(super) fn new(config: &PdConfig, now: Instant) -> Scheduling {
        let defaults = ScheduleConfig { max_replicas: u64::from(config.max_replicas), ..config.schedule.clone() };
        let scheduler = RefCell::new(Scheduler::new(defaults.clone(), now));
        Scheduling { scheduler, defaults, kept: RefCell::default(), started: now }
    }
}

/// Why a region's leader cannot be asked for something.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum OrderError {
    /// It makes no sense.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// It is not begun now.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The leader's store has no stream of heartbeats, or does not read it.
    #[error("store {store}, which leads region {region}, has no heartbeat stream")]
    NoStream {
        /// The region.
        region: u64,
        /// The store of its leader.
        store: u64,
    },
}

impl Core {
    /// Ticks as long as the member lives.
    pub(crate) async fn schedule(self: Rc<Self>) {
        let mut wait = UNTIL_BOOTSTRAP.min(self.scheduling.defaults.patrol_region_interval);
        loop {
            executor::sleep(wait).await;
            if !self.is_serving() || !self.peek().is_bootstrapped() {
                wait = UNTIL_BOOTSTRAP;
                continue;
            }
            self.refresh_stores();
            let now = executor::now();
            let ticked = executor::with_rng(|prng| {
                let directory = self.directory.borrow();
                self.scheduler_mut().tick(now, &directory, prng)
            });
            wait = ticked.wait;
            self.push_all(ticked.orders).await;
            // A journal that is behind is no reason to stop: the next tick tries again.
            let _ = self.fetch_ids().await;
            let _ = self.bury_silent_stores().await;
        }
    }

    /// The scheduler, with the settings as they are now.
    pub(crate) fn scheduler(&self) -> Ref<'_, Scheduler> {
        self.refresh_settings();
        self.scheduling.scheduler.borrow()
    }

    /// The same, to be changed.
    pub(crate) fn scheduler_mut(&self) -> RefMut<'_, Scheduler> {
        self.refresh_settings();
        self.scheduling.scheduler.borrow_mut()
    }

    /// The state is where settings live: whoever changed them there, this takes them over.
    fn refresh_settings(&self) {
        let state = self.peek();
        let kept = state.settings();
        if *self.scheduling.kept.borrow() == kept.cloned() {
            return;
        }
        let mut config = self.scheduling.defaults.clone();
        if let Some(json) = kept {
            match serde_json::from_slice(json) {
                Ok(json) => config.restore(&json),
                Err(error) => tracing::warn!(%error, "the settings that were kept are no JSON"),
            }
        }
        self.scheduling.scheduler.borrow_mut().set_config(config);
        *self.scheduling.kept.borrow_mut() = kept.cloned();
    }

    /// Changes settings, and answers when that is durable.
    pub(crate) async fn change_settings<E>(
        &self,
        change: impl FnOnce(&mut ScheduleConfig) -> Result<(), E>,
    ) -> Result<Result<(), E>, Status> {
        let mut config = self.scheduler().config().clone();
        if let Err(error) = change(&mut config) {
            return Ok(Err(error));
        }
        let json = config.to_kept(&self.scheduling.defaults).to_string().into_bytes();
        self.write(|state| state.put_settings(json)).await?;
        Ok(Ok(()))
    }

    /// Tells the scheduler what is known of the stores.
    fn refresh_stores(&self) {
        let vitals = self.vitals.borrow();
        let view = |store: metapb::Store| {
            let vitals = vitals.of(store.id);
            let stats = &vitals.stats;
            let labels = store.labels.iter().map(|label| (label.key.to_lowercase(), label.value.clone())).collect();
            let view = StoreView {
                id: store.id,
                state: store.state(),
                heard: vitals.heard.unwrap_or(self.scheduling.started),
                has_reported: vitals.heard.is_some(),
                labels,
                capacity: stats.capacity,
                available: stats.available,
                snapshots: u64::from(
                    stats.sending_snap_count.max(stats.receiving_snap_count).max(stats.applying_snap_count),
                ),
                is_busy: stats.is_busy || stats.is_stopping,
                slow_score: stats.slow_score,
            };
            (store.id, view)
        };
        let stores: BTreeMap<u64, StoreView> = self.peek().stores().into_iter().map(view).collect();
        self.scheduler_mut().set_stores(stores);
    }

    /// What the leader of a region that has just reported is asked for.
    pub(super) fn order_for(&self, region: u64) -> Option<RegionHeartbeatResponse> {
        let directory = self.directory.borrow();
        let order = self.scheduler_mut().heartbeat(executor::now(), &directory, region)?;
        Some(RegionHeartbeatResponse { header: self.header(), ..order.message })
    }

    /// Regions have gone into others.
    pub(super) fn regions_gone(&self, ids: &[u64]) {
        let (mut scheduler, now) = (self.scheduler_mut(), executor::now());
        ids.iter().for_each(|id| scheduler.region_gone(now, *id));
    }

    /// Regions have come from a split.
    pub(super) fn regions_split(&self, ids: impl IntoIterator<Item = u64>) {
        self.scheduler_mut().regions_split(executor::now(), ids);
    }

    /// Sends orders. What does not arrive is asked for again: by the region's next heartbeat, or after some seconds.
    async fn push_all(&self, orders: Vec<Order>) {
        let mut deaf = BTreeSet::new();
        for order in orders {
            if !deaf.contains(&order.store) && !self.push(&order).await {
                deaf.insert(order.store);
            }
        }
    }

    async fn push(&self, order: &Order) -> bool {
        let message = RegionHeartbeatResponse { header: self.header(), ..order.message.clone() };
        self.streams.send(order.store, &message).await
    }

    /// Fetches ids for new peers if they are wanted.
    async fn fetch_ids(&self) -> Result<(), Status> {
        let wanted = self.scheduler().controller().ids_wanted();
        if wanted > 0 {
            let count = u32::try_from(wanted).unwrap_or(1);
            let last = self.write(|state| state.alloc_id(count)).await?;
            self.scheduler_mut().controller_mut().take_ids(last + 1 - u64::from(count)..=last);
        }
        Ok(())
    }

    /// Nodes were given ids up to `last`: new peers need higher ones.
    pub(super) fn ids_given_out(&self, last: u64) {
        self.scheduler_mut().controller_mut().ids_given_out(last);
    }

    async fn bury_silent_stores(&self) -> Result<(), Status> {
        let now = executor::now();
        let empty: Vec<u64> = {
            let (scheduler, directory) = (self.scheduler(), self.directory.borrow());
            let leaving = scheduler.stores().values().filter(|store| store.state == StoreState::Offline);
            let silent = leaving.filter(|store| now.since(store.heard) >= SILENT);
            silent.map(|store| store.id).filter(|id| !directory.has_peer_on(*id)).collect()
        };
        for store in empty {
            tracing::info!(store, "a store that was leaving and is silent holds nothing any more");
            self.write(|state| state.bury_store(store)).await?;
        }
        Ok(())
    }

    /// Has something done that a person asked for, and asks the region's leader at once.
    ///
    /// # Errors
    /// [`OrderError`] when it makes no sense or is not begun. A split whose leader cannot be asked is given up; others
    /// wait for the leader's next heartbeat.
    pub(crate) async fn order(&self, region: u64, request: &Request) -> Result<(), OrderError> {
        self.refresh_stores();
        let plan = self.scheduler().request(executor::now(), &self.directory.borrow(), region, request)?;
        let Some(order) = self.begin(plan).await? else { return Ok(()) };
        if !self.push(&order).await && matches!(request, Request::Split(..)) {
            self.scheduler_mut().controller_mut().cancel(region, executor::now());
            return Err(OrderError::NoStream { region, store: order.store });
        }
        Ok(())
    }

    /// Begins a plan, after fetching ids for its new peers if there are none.
    async fn begin(&self, plan: Plan) -> Result<Option<Order>, Refused> {
        let begin = |plan| self.scheduler_mut().begin(executor::now(), &self.directory.borrow(), plan);
        match begin(plan.clone()) {
            Err(Refused::NoIds) => {
                let _ = self.fetch_ids().await;
                begin(plan)
            }
            other => other,
        }
    }

    /// Scatters one region of a group, in the same way.
    ///
    /// # Errors
    /// [`Refused`]: why nothing is done.
    pub(crate) async fn scatter_one(&self, region: u64, group: &str) -> Result<(), Refused> {
        let scatter = || self.scheduler_mut().scatter(executor::now(), &self.directory.borrow(), region, group);
        let mut outcome = scatter();
        if outcome == Err(Refused::NoIds) {
            let _ = self.fetch_ids().await;
            outcome = scatter();
        }
        if let Some(order) = outcome? {
            self.push(&order).await;
        }
        Ok(())
    }
}
