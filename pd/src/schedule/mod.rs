//! Where replicas and leaders are, and what is done about it. Pure: time and chance are arguments, what is known of
//! regions is the [`Directory`]'s, and what comes out are messages for leaders.
//!
//! ```text
//!   a region's heartbeat ─▶ controller ─ next step of its operator ─▶ the heartbeat's answer
//!            │                   ▲ admit
//!            └─▶ checkers: replica, merge ─┤      one region each; the patrol of every tick shows them the others too
//!   tick ──────▶ schedulers: evict-leader, balance-leader, balance-region
//!   people ────▶ request, scatter ─────────┘
//! ```
//!
//! - [`view`] is what is looked at, [`placement`] says where a peer should be, [`step`] and [`operator`] are what is
//!   done, [`controller`] holds one operator for each region at most, within [`limits`].
//! - No step is asked for that would leave a region without a healthy majority, and no membership changes twice at once.
//! - With fewer live stores than `max-replicas` nothing is added and nothing is balanced: a cluster of one node stays
//!   as it is.
//! - Nothing walks over all regions: a tick looks at a bounded number, and goes on there the next time.

pub mod balance;
pub mod config;
pub mod controller;
pub mod duration;
pub mod influence;
pub mod limits;
pub mod merge;
pub mod operator;
pub mod placement;
pub mod replica;
pub mod request;
pub mod scatter;
pub mod step;
#[cfg(test)]
mod testing;
pub mod view;

pub use config::ScheduleConfig;
pub use controller::{Controller, Order, Refused};
pub use operator::{Kind, Operator, Plan, Record};
pub use request::{Request, RequestError};
pub use view::StoreView;

use crate::directory::Directory;
use base::{Instant, Prng};
use merge::Splits;
use placement::Scene;
use scatter::Groups;
use std::collections::BTreeMap;
use std::time::Duration;
use view::Cluster;

/// Regions that the patrol looks at in one tick: well below a millisecond.
const PATROL: usize = 128;
/// Operators that one scheduler begins in one tick at most.
const BURST: usize = 4;
/// The shortest wait between two ticks, whatever is set: PD's default.
const PACE_MIN: Duration = Duration::from_millis(10);
/// The longest wait between two ticks, when there is nothing to do.
const IDLE: Duration = Duration::from_secs(1);
/// Balance waits for this part of the leaders to have reported after a start, in percent.
const LED_PERCENT: usize = 80;
/// And no longer than this.
const LED_WAIT: Duration = Duration::from_secs(300);

/// The names of schedulers, as `pd-ctl` knows them.
pub const BALANCE_LEADER: &str = "balance-leader-scheduler";
/// See [`BALANCE_LEADER`].
pub const BALANCE_REGION: &str = "balance-region-scheduler";
/// See [`BALANCE_LEADER`]; the store's id follows behind a dash.
pub const EVICT_LEADER: &str = "evict-leader-scheduler";

/// Decides what is done with regions.
#[derive(Debug)]
pub struct Scheduler {
    config: ScheduleConfig,
    stores: BTreeMap<u64, StoreView>,
    controller: Controller,
    splits: Splits,
    groups: Groups,
    paused: BTreeMap<String, Instant>,
    started: Instant,
    /// The last region that the patrol has looked at; 0 between two rounds.
    patrolled: u64,
    wait: Duration,
}

/// What came of a tick.
#[derive(Debug)]
pub struct Ticked {
    /// What leaders are asked for.
    pub orders: Vec<Order>,
    /// When the next tick is due.
    pub wait: Duration,
}

impl Scheduler {
    /// One that knows no store yet.
    pub fn new(config: ScheduleConfig, now: Instant) -> Scheduler {
        Scheduler {
            wait: config.patrol_region_interval,
            config,
            stores: BTreeMap::new(),
            controller: Controller::default(),
            splits: Splits::new(now),
            groups: Groups::default(),
            paused: BTreeMap::new(),
            started: now,
            patrolled: 0,
        }
    }

    /// The settings.
    pub fn config(&self) -> &ScheduleConfig {
        &self.config
    }

    /// Replaces the settings.
    pub fn set_config(&mut self, config: ScheduleConfig) {
        self.config = config;
    }

    /// The stores as they were told last.
    pub fn stores(&self) -> &BTreeMap<u64, StoreView> {
        &self.stores
    }

    /// Replaces what is known of the stores.
    pub fn set_stores(&mut self, stores: BTreeMap<u64, StoreView>) {
        if stores.len() < self.stores.len() {
            self.controller.limits.retain(|store| stores.contains_key(&store));
        }
        self.stores = stores;
    }

    /// The operators.
    pub fn controller(&self) -> &Controller {
        &self.controller
    }

    /// The operators, to be given up or fed with ids.
    pub fn controller_mut(&mut self) -> &mut Controller {
        &mut self.controller
    }

    /// Looks at a region whose leader has just reported it: what the answer asks for.
    pub fn heartbeat(&mut self, now: Instant, directory: &Directory, id: u64) -> Option<Order> {
        let cluster = Cluster { now, config: &self.config, stores: &self.stores, directory };
        let region = cluster.region(id)?;
        let order = self.controller.observe(&cluster, region);
        if order.is_some() { order } else { self.check(now, directory, id) }
    }

    /// A region is not there any more.
    pub fn region_gone(&mut self, now: Instant, id: u64) {
        self.controller.region_gone(id, now);
    }

    /// Regions have come from a split.
    pub fn regions_split(&mut self, now: Instant, ids: impl IntoIterator<Item = u64>) {
        ids.into_iter().for_each(|id| self.splits.note(id, now));
    }

    /// Looks at the time, at the next regions of the patrol, and at the balance of the stores.
    pub fn tick(&mut self, now: Instant, directory: &Directory, prng: &mut Prng) -> Ticked {
        let cluster = Cluster { now, config: &self.config, stores: &self.stores, directory };
        let mut orders = self.controller.tick(&cluster);
        self.splits.forget_old(self.config.split_merge_interval, now);
        self.paused.retain(|_, until| *until > now);
        let ids: Vec<u64> = directory.after_id(self.patrolled).map(|region| region.meta.id).take(PATROL).collect();
        self.patrolled = ids.last().filter(|_| ids.len() == PATROL).copied().unwrap_or(0);
        orders.extend(ids.into_iter().filter_map(|id| self.check(now, directory, id)));
        orders.extend(self.schedule(now, directory, prng));
        let busy = !orders.is_empty()
            || self.patrolled != 0
            || self.controller.ids_wanted() > 0
            || self.controller.operators().next().is_some();
        let pace = self.config.patrol_region_interval.clamp(PACE_MIN, IDLE);
        self.wait = if busy { pace } else { (self.wait * 2).clamp(pace, IDLE) };
        Ticked { orders, wait: self.wait }
    }

    /// What is wrong with one region, and the first step of what is done about it.
    fn check(&mut self, now: Instant, directory: &Directory, id: u64) -> Option<Order> {
        let cluster = Cluster { now, config: &self.config, stores: &self.stores, directory };
        let scene = Scene { cluster, controller: &self.controller };
        let region = cluster.region(id).filter(|region| region.leader.is_some() && scene.is_free(region))?;
        let repair = if scene.has_room(Kind::Replica) { replica::check(&scene, region) } else { None };
        let prepared = self.is_prepared(now, directory);
        let merge = || if prepared { merge::check(&scene, region, &self.splits) } else { None };
        let plan = repair.or_else(merge)?;
        self.begin(now, directory, plan).ok().flatten()
    }

    fn schedule(&mut self, now: Instant, directory: &Directory, prng: &mut Prng) -> Vec<Order> {
        let mut orders = Vec::new();
        let evicted: Vec<u64> = self.config.schedulers.evict_leader.iter().copied().collect();
        for store in evicted {
            if !self.is_paused(&format!("{EVICT_LEADER}-{store}"), now) {
                let evict = |scene: &Scene<'_>, prng: &mut Prng| balance::evict_leader(scene, store, prng);
                orders.extend(self.burst(now, directory, Kind::Leader, prng, evict));
            }
        }
        if !self.is_prepared(now, directory) {
            return orders;
        }
        if self.config.schedulers.balance_leader && !self.is_paused(BALANCE_LEADER, now) {
            orders.extend(self.burst(now, directory, Kind::Leader, prng, balance::balance_leader));
        }
        if self.config.schedulers.balance_region && !self.is_paused(BALANCE_REGION, now) {
            orders.extend(self.burst(now, directory, Kind::Region, prng, balance::balance_region));
        }
        orders
    }

    fn burst(
        &mut self,
        now: Instant,
        directory: &Directory,
        kind: Kind,
        prng: &mut Prng,
        plan: impl Fn(&Scene<'_>, &mut Prng) -> Option<Plan>,
    ) -> Vec<Order> {
        let mut orders = Vec::new();
        for _ in 0..BURST {
            let cluster = Cluster { now, config: &self.config, stores: &self.stores, directory };
            let scene = Scene { cluster, controller: &self.controller };
            if !scene.has_room(kind) {
                break;
            }
            let Some(plan) = plan(&scene, prng) else { break };
            match self.begin(now, directory, plan) {
                Ok(order) => orders.extend(order),
                Err(_) => break,
            }
        }
        orders
    }

    /// Whether enough leaders have reported for their numbers to mean something.
    fn is_prepared(&self, now: Instant, directory: &Directory) -> bool {
        directory.led() * 100 >= directory.len() * LED_PERCENT || now.since(self.started) >= LED_WAIT
    }

    /// Begins a plan; its first step, if it is to be asked for at once.
    ///
    /// # Errors
    /// [`Refused`]: why it is not begun.
    pub fn begin(&mut self, now: Instant, directory: &Directory, plan: Plan) -> Result<Option<Order>, Refused> {
        let cluster = Cluster { now, config: &self.config, stores: &self.stores, directory };
        let id = plan.region;
        self.controller.admit(&cluster, plan)?;
        Ok(cluster.region(id).and_then(|region| self.controller.observe(&cluster, region)))
    }

    /// The plan for what a person wants.
    ///
    /// # Errors
    /// [`RequestError`] when it cannot be had.
    pub fn request(
        &self,
        now: Instant,
        directory: &Directory,
        id: u64,
        request: &Request,
    ) -> Result<Plan, RequestError> {
        let cluster = Cluster { now, config: &self.config, stores: &self.stores, directory };
        request::plan(&Scene { cluster, controller: &self.controller }, id, request)
    }

    /// Scatters one region of a group; the first step, if there is anything to do.
    ///
    /// # Errors
    /// [`Refused`]: why nothing is done.
    pub fn scatter(
        &mut self,
        now: Instant,
        directory: &Directory,
        id: u64,
        group: &str,
    ) -> Result<Option<Order>, Refused> {
        let cluster = Cluster { now, config: &self.config, stores: &self.stores, directory };
        let region = cluster.region(id).ok_or(Refused::NoRegion(id))?;
        if self.controller.is_running(id) {
            return Err(Refused::Busy(id));
        }
        let scattered = self.groups.plan(&Scene { cluster, controller: &self.controller }, region, group);
        let order = match &scattered.plan {
            Some(plan) => self.begin(now, directory, plan.clone())?,
            None => None,
        };
        self.groups.note(group, &scattered, now);
        Ok(order)
    }

    /// The schedulers that run, by name.
    pub fn schedulers(&self) -> Vec<String> {
        let running = &self.config.schedulers;
        let balance = [(running.balance_leader, BALANCE_LEADER), (running.balance_region, BALANCE_REGION)];
        let balance = balance.into_iter().filter(|(runs, _)| *runs).map(|(_, name)| name.to_owned());
        balance.chain(running.evict_leader.iter().map(|store| format!("{EVICT_LEADER}-{store}"))).collect()
    }

    /// Lets a scheduler do nothing until then.
    pub fn pause(&mut self, name: &str, until: Instant) {
        self.paused.insert(name.to_owned(), until);
    }

    /// Whether a scheduler does nothing at the moment.
    pub fn is_paused(&self, name: &str, now: Instant) -> bool {
        self.paused.get(name).is_some_and(|until| *until > now)
    }
}
