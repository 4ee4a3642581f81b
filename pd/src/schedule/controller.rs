//! The operators under way: at most one for each region, started within limits, watched until they end.
//!
//! ```text
//!   plan ──admit──▶ step 0 ──▶ step 1 ─ … ─▶ success
//!                     │ the region's heartbeat shows each step as done, or gets it as its answer
//!                     └──▶ cancelled (something else changed the region, or its leader does nothing), timed out, replaced (by a person's)
//! ```

use super::influence::Influence;
use super::limits::{Limits, Way, cost};
use super::operator::{Kind, Merging, Operator, Plan, Record};
use super::step::{Progress, Step};
use super::view::{Cluster, is_joint};
use crate::directory::Region;
use base::Instant;
use proto::pdpb::{OperatorStatus, RegionHeartbeatResponse};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// Operators under way at most, whoever wants them.
const OPERATORS_MAX: usize = 4096;
/// Operators that have ended and are remembered.
const RECORDS_MAX: usize = 1024;
/// A step is asked for again after so long without a heartbeat that shows it as done. PD waits as long.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// Operators that one look at the time takes at most.
const LOOKS_MAX: usize = 256;
/// A region whose operator failed is left alone for so long.
const REST_AFTER_CANCEL: Duration = Duration::from_secs(10);
const REST_AFTER_TIMEOUT: Duration = Duration::from_secs(60);
/// Ids that new peers may need before more are fetched.
const IDS_FETCHED: usize = 64;

/// A message for the store that leads a region.
#[derive(Clone, Debug, PartialEq)]
pub struct Order {
    /// The store.
    pub store: u64,
    /// What it is asked for; the header is missing.
    pub message: RegionHeartbeatResponse,
}

/// Why a plan is not begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The region is not known, or has no leader.
    #[error("region {0} not found, or it has no leader")]
    NoRegion(u64),
    /// Something is done with it already.
    #[error("region {0} has an operator already")]
    Busy(u64),
    /// Enough is done at the same time.
    #[error("too many operators of this kind are under way")]
    Full,
    /// A store has taken or given enough peers for this minute.
    #[error("store {0} has reached its limit")]
    StoreLimit(u64),
    /// There are no ids for new peers at the moment; they are being fetched.
    #[error("no ids for new peers at the moment")]
    NoIds,
    /// The first step cannot be done.
    #[error("it cannot be done: {0}")]
    Impossible(&'static str),
}

/// The operators.
#[derive(Debug, Default)]
pub struct Controller {
    running: BTreeMap<u64, Operator>,
    /// Regions into which others are being merged, with those.
    claimed: BTreeMap<u64, u64>,
    by_kind: BTreeMap<Kind, u64>,
    /// What the operators will have changed.
    pub influence: Influence,
    /// What stores take and give.
    pub limits: Limits,
    records: VecDeque<Record>,
    rests: BTreeMap<u64, Instant>,
    ids: VecDeque<u64>,
    wants_ids: bool,
    looked_at: u64,
    counts: BTreeMap<(&'static str, &'static str), u64>,
}

impl Controller {
    /// Whether something is done with `region`, or was in vain a moment ago.
    pub fn is_free(&self, region: u64, now: Instant) -> bool {
        !self.is_running(region) && self.rests.get(&region).is_none_or(|until| *until <= now)
    }

    /// Whether something is done with `region`.
    pub fn is_running(&self, region: u64) -> bool {
        self.running.contains_key(&region) || self.claimed.contains_key(&region)
    }

    /// Whether another operator of a kind may begin.
    pub fn has_room(&self, cluster: &Cluster<'_>, kind: Kind) -> bool {
        let config = cluster.config;
        let limit = match kind {
            Kind::Leader => config.leader_schedule_limit,
            Kind::Region => config.region_schedule_limit,
            Kind::Replica => config.replica_schedule_limit,
            Kind::Merge => config.merge_schedule_limit,
            Kind::Split | Kind::Scatter => OPERATORS_MAX as u64,
        };
        self.running.len() < OPERATORS_MAX && self.by_kind.get(&kind).copied().unwrap_or(0) < limit
    }

    /// Begins a plan.
    ///
    /// # Errors
    /// [`Refused`]: why it is not begun.
    pub fn admit(&mut self, cluster: &Cluster<'_>, plan: Plan) -> Result<(), Refused> {
        let found = cluster.region(plan.region).filter(|region| region.leader.is_some());
        let region = found.ok_or(Refused::NoRegion(plan.region))?;
        self.make_way(cluster, &plan, region)?;
        if self.running.len() >= OPERATORS_MAX || (!plan.is_admin && !self.has_room(cluster, plan.kind)) {
            return Err(Refused::Full);
        }
        self.check_limits(cluster, &plan, region)?;
        let mut plan = plan;
        self.name_new_peers(&mut plan)?;
        if let Some(Progress::Never(why)) =
            plan.steps.first().map(|step| step.progress(cluster, region, region.version()))
        {
            return Err(Refused::Impossible(why));
        }
        if let Some(operator) = self.running.get(&plan.region) {
            let (id, text) = (operator.plan.region, "another one was wanted");
            self.end(id, OperatorStatus::Replace, text, cluster.now);
        }
        for (store, way) in plan.steps.iter().filter_map(taken_by) {
            let rates = cluster.config.rates(store);
            self.limits.take(cluster.now, store, way, rates, cost(region.size_mib()));
        }
        let (load_mib, epoch) = (region.load_mib(), region.meta.region_epoch.unwrap_or_default());
        plan.steps.iter().for_each(|step| self.influence.expect(step, load_mib));
        if let Some(target) = plan.merge_target() {
            self.claimed.insert(target, plan.region);
        }
        *self.by_kind.entry(plan.kind).or_default() += 1;
        self.count(plan.desc, "create");
        self.running.insert(plan.region, Operator::new(plan, epoch, load_mib, cluster.now));
        Ok(())
    }

    /// Whether a plan may begin beside, or in place of, what is done with its regions.
    fn make_way(&self, cluster: &Cluster<'_>, plan: &Plan, region: &Region) -> Result<(), Refused> {
        if self.claimed.contains_key(&plan.region) {
            return Err(Refused::Busy(plan.region));
        }
        if let Some(target) = plan.merge_target() {
            if self.is_running(target) {
                return Err(Refused::Busy(target));
            }
            if cluster.region(target).is_none() {
                return Err(Refused::NoRegion(target));
            }
        }
        let Some(running) = self.running.get(&plan.region) else { return Ok(()) };
        let same_split = plan.kind == Kind::Split && running.plan.kind == Kind::Split;
        let outranks = plan.is_admin && !running.plan.is_admin && !is_joint(region);
        if same_split || outranks { Ok(()) } else { Err(Refused::Busy(plan.region)) }
    }

    fn check_limits(&self, cluster: &Cluster<'_>, plan: &Plan, region: &Region) -> Result<(), Refused> {
        if plan.is_admin {
            return Ok(());
        }
        for (store, way) in plan.steps.iter().filter_map(taken_by) {
            let rates = cluster.config.rates(store);
            if !self.limits.has(cluster.now, store, way, rates, cost(region.size_mib())) {
                return Err(Refused::StoreLimit(store));
            }
        }
        Ok(())
    }

    fn name_new_peers(&mut self, plan: &mut Plan) -> Result<(), Refused> {
        let new_on = |step: &Step| match step {
            Step::AddLearner(peer) if peer.id == 0 => Some(peer.store_id),
            _ => None,
        };
        let stores: Vec<u64> = plan.steps.iter().filter_map(new_on).collect();
        if stores.len() > self.ids.len() {
            self.wants_ids = true;
            return Err(Refused::NoIds);
        }
        let ids = self.ids.drain(..stores.len());
        let names: BTreeMap<u64, u64> = stores.iter().copied().zip(ids).collect();
        plan.steps.iter_mut().for_each(|step| step.name_new_peers(|store| names.get(&store).copied()));
        Ok(())
    }

    /// How many ids for new peers should be fetched now.
    pub fn ids_wanted(&self) -> usize {
        if self.wants_ids { IDS_FETCHED } else { 0 }
    }

    /// Takes ids that nobody else has.
    pub fn take_ids(&mut self, ids: impl IntoIterator<Item = u64>) {
        self.ids.extend(ids);
        self.wants_ids = false;
    }

    /// Ids up to `last` were given to others, for peers that may have come and gone since: a store that has buried one
    /// takes no peer of that region with a lower id, so lower ones are of no use any more.
    pub fn ids_given_out(&mut self, last: u64) {
        self.ids.retain(|id| *id > last);
    }

    /// Looks at a region as its leader has just reported it: what is done is done, and what is next is the answer.
    pub fn observe(&mut self, cluster: &Cluster<'_>, region: &Region) -> Option<Order> {
        let (id, now) = (region.meta.id, cluster.now);
        loop {
            let operator = self.running.get_mut(&id)?;
            let Some(step) = operator.step() else {
                self.end(id, OperatorStatus::Success, "", now);
                return None;
            };
            if operator.is_stale(region.conf_ver()) {
                self.end(id, OperatorStatus::Cancel, "its membership was changed by somebody else", now);
                return None;
            }
            let is_merge = matches!(step, Step::Merge { .. });
            let merging = operator.merging(region.meta.region_epoch.unwrap_or_default());
            if is_merge && merging == Merging::Over {
                self.end(id, OperatorStatus::Cancel, "its range has changed, or the merge was taken back", now);
                return None;
            }
            match step.progress(cluster, region, operator.epoch.version) {
                Progress::Done => {
                    self.influence.forget(step, operator.load_mib);
                    operator.advance(now);
                }
                Progress::Never(why) => {
                    self.end(id, OperatorStatus::Cancel, why, now);
                    return None;
                }
                Progress::Wait(_) => return None,
                // A split is asked for once: what does not come of it then is not wanted some time later.
                Progress::Ask if operator.sent.is_some() && matches!(step, Step::Split { .. }) => return None,
                Progress::Ask => {
                    let message = step.order(cluster, region)?;
                    let (store, epoch) = (region.leader?.store_id, region.meta.region_epoch.unwrap_or_default());
                    // A source that is frozen waits for its target, as long as the step may take.
                    let is_frozen = is_merge && merging == Merging::Frozen;
                    if !is_frozen && operator.is_in_vain(epoch, store, now) {
                        self.end(id, OperatorStatus::Cancel, "its leader does not do it", now);
                        return None;
                    }
                    operator.ask(epoch, store, now);
                    return Some(Order { store, message });
                }
            }
        }
    }

    /// Looks at the time: what takes too long is given up, and what was asked for in vain is asked for again. Takes a
    /// bounded number of operators; the next call goes on behind them.
    pub fn tick(&mut self, cluster: &Cluster<'_>) -> Vec<Order> {
        let now = cluster.now;
        self.rests.retain(|_, until| *until > now);
        let ids: Vec<u64> = self.running.range(self.looked_at..).map(|(id, _)| *id).take(LOOKS_MAX).collect();
        self.looked_at = ids.last().filter(|_| ids.len() == LOOKS_MAX).map_or(0, |last| last + 1);
        let mut orders = Vec::new();
        for id in ids {
            let Some(region) = cluster.region(id) else {
                self.region_gone(id, now);
                continue;
            };
            let Some(operator) = self.running.get(&id) else { continue };
            if operator.is_late(now) {
                self.end(id, OperatorStatus::Timeout, "it took too long", now);
            } else if operator.sent.is_none_or(|sent| now.since(sent) >= ASK_AGAIN) {
                orders.extend(self.observe(cluster, region));
            }
        }
        orders
    }

    /// A region is not there any more, as after a merge.
    pub fn region_gone(&mut self, id: u64, now: Instant) {
        if let Some(operator) = self.running.get(&id) {
            match operator.step() {
                Some(Step::Merge { .. }) => self.end(id, OperatorStatus::Success, "", now),
                _ => self.end(id, OperatorStatus::Cancel, "the region is gone", now),
            }
        }
        if let Some(source) = self.claimed.get(&id).copied() {
            self.end(source, OperatorStatus::Cancel, "the target is gone", now);
        }
    }

    /// Gives an operator up because a person wants it; false if there is none.
    pub fn cancel(&mut self, region: u64, now: Instant) -> bool {
        let found = self.running.contains_key(&region);
        self.end(region, OperatorStatus::Cancel, "a person wanted it", now);
        found
    }

    fn end(&mut self, id: u64, status: OperatorStatus, why: &str, now: Instant) {
        let Some(operator) = self.running.remove(&id) else { return };
        operator.open_steps().iter().for_each(|step| self.influence.forget(step, operator.load_mib));
        if let Some(target) = operator.plan.merge_target() {
            self.claimed.remove(&target);
        }
        if let Some(count) = self.by_kind.get_mut(&operator.plan.kind) {
            *count -= 1;
        }
        let event = match status {
            OperatorStatus::Success => "finish",
            OperatorStatus::Timeout => "timeout",
            OperatorStatus::Replace => "replace",
            _ => "cancel",
        };
        self.count(operator.plan.desc, event);
        match status {
            OperatorStatus::Timeout => drop(self.rests.insert(id, now + REST_AFTER_TIMEOUT)),
            OperatorStatus::Cancel => drop(self.rests.insert(id, now + REST_AFTER_CANCEL)),
            _ => {}
        }
        let mut text = operator.describe(now);
        if !why.is_empty() {
            text = format!("{text} {event}: {why}");
        }
        let Operator { plan: Plan { desc, kind, .. }, .. } = operator;
        if self.records.len() >= RECORDS_MAX {
            self.records.pop_front();
        }
        self.records.push_back(Record { region: id, desc, kind, status, text, ended: now });
    }

    fn count(&mut self, desc: &'static str, event: &'static str) {
        *self.counts.entry((desc, event)).or_default() += 1;
    }

    /// The operator on a region.
    pub fn operator(&self, region: u64) -> Option<&Operator> {
        self.running.get(&region)
    }

    /// Every operator, by region.
    pub fn operators(&self) -> impl Iterator<Item = &Operator> {
        self.running.values()
    }

    /// Operators that have ended, the oldest first.
    pub fn records(&self) -> impl DoubleEndedIterator<Item = &Record> {
        self.records.iter()
    }

    /// How many operators of a name were created and have ended, by event.
    pub fn counts(&self) -> &BTreeMap<(&'static str, &'static str), u64> {
        &self.counts
    }
}

/// Which of a store's limits a step counts against.
fn taken_by(step: &Step) -> Option<(u64, Way)> {
    match step {
        Step::AddLearner(peer) => Some((peer.store_id, Way::Add)),
        Step::RemovePeer(peer) => Some((peer.store_id, Way::Remove)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::placement::new_peer;
    use super::super::testing::{NOW, Small, beat, peer, voter};
    use super::*;
    use proto::metapb::{Peer, PeerRole};

    fn make_up(store: u64) -> Plan {
        let new = new_peer(store);
        Plan::new(1, "make-up-replica", Kind::Replica, vec![Step::AddLearner(new), Step::Promote(new)])
    }

    fn observe(small: &mut Small) -> Option<Order> {
        small.with(|controller, cluster| controller.observe(cluster, cluster.region(1).expect("a region")))
    }

    fn last(small: &Small) -> OperatorStatus {
        small.controller.records().next_back().expect("a record").status
    }

    #[test]
    fn a_new_peer_has_a_higher_id_than_any_that_was_given_out_before() {
        let mut small = Small::new(3);
        small.region(1, &[voter(1)]);
        small.controller.ids_given_out(1_050);
        small.with(|controller, cluster| controller.admit(cluster, make_up(2))).expect("admitted");
        let order = observe(&mut small).expect("an order");
        let new = order.message.change_peer_v2.expect("a change").changes[0].peer.expect("a peer");
        assert_eq!(new.id, 1_051);
    }

    #[test]
    fn steps_are_asked_for_until_the_region_shows_them() {
        let mut small = Small::new(3);
        small.region(1, &[voter(1)]);
        small.with(|controller, cluster| controller.admit(cluster, make_up(2))).expect("admitted");
        assert_eq!(small.controller.influence.load_mib(2), 5);
        let order = observe(&mut small).expect("an order");
        assert_eq!(observe(&mut small), Some(order.clone()), "again, since nothing has happened");
        let new = order.message.change_peer_v2.expect("a change").changes[0].peer.expect("a peer");
        assert_eq!((new.id, new.store_id, new.role()), (1_000, 2, PeerRole::Learner));
        let mut waiting = beat(1, ("", ""), 2, &[voter(1), new]);
        waiting.pending_peers = vec![new];
        small.report(waiting);
        assert_eq!(observe(&mut small), None, "its snapshot is on the way");
        small.region(2, &[voter(1), new]);
        let order = observe(&mut small).expect("the promotion");
        assert_eq!(order.message.region_epoch.map(|epoch| epoch.conf_ver), Some(2));
        small.region(3, &[voter(1), Peer { role: PeerRole::Voter.into(), ..new }]);
        assert_eq!(observe(&mut small), None);
        assert!(last(&small) == OperatorStatus::Success && small.controller.influence.is_empty());
    }

    #[test]
    fn a_split_is_asked_for_once_and_given_up_soon() {
        let mut small = Small::new(1);
        small.region(1, &[voter(1)]);
        let split = || Step::Split { policy: proto::pdpb::CheckPolicy::Scan, keys: Vec::new() };
        let plan = || Plan { is_admin: true, ..Plan::new(1, "split", Kind::Split, vec![split()]) };
        small.with(|controller, cluster| controller.admit(cluster, plan())).expect("admitted");
        assert!(observe(&mut small).is_some_and(|order| order.message.split_region.is_some()));
        assert_eq!(observe(&mut small), None);
        small.with(|controller, cluster| controller.admit(cluster, plan())).expect("another takes its place");
        assert!(observe(&mut small).is_some());
        small.now = NOW + Duration::from_secs(10);
        assert_eq!(small.with(|controller, cluster| controller.tick(cluster)), []);
        assert_eq!(last(&small), OperatorStatus::Timeout);
    }

    #[test]
    fn a_change_that_no_step_explains_ends_an_operator() {
        let mut small = Small::new(4);
        small.region(1, &[voter(1)]);
        small.with(|controller, cluster| controller.admit(cluster, make_up(2))).expect("admitted");
        small.region(3, &[voter(1), voter(4)]);
        assert_eq!(observe(&mut small), None);
        assert_eq!(last(&small), OperatorStatus::Cancel);
        assert!(!small.controller.is_free(1, NOW), "it rests a while");
        assert!(small.controller.is_free(1, NOW + REST_AFTER_CANCEL));
    }

    #[test]
    fn time_ends_an_operator_and_silence_asks_again() {
        let mut small = Small::new(3);
        small.region(1, &[voter(1)]);
        small.with(|controller, cluster| controller.admit(cluster, make_up(2))).expect("admitted");
        assert!(observe(&mut small).is_some());
        let mut tick = |after: u64| {
            small.now = NOW + Duration::from_secs(after);
            small.stores.values_mut().for_each(|store| store.heard = small.now);
            small.with(|controller, cluster| controller.tick(cluster)).len()
        };
        assert_eq!([tick(4), tick(5), tick(6), tick(10), tick(600)], [0, 1, 0, 1, 0]);
        assert!(last(&small) == OperatorStatus::Timeout && small.controller.influence.is_empty());
    }

    #[test]
    fn what_a_leader_does_not_do_is_given_up_early() {
        let mut small = Small::new(3);
        small.region(1, &[voter(1)]);
        small.with(|controller, cluster| controller.admit(cluster, make_up(2))).expect("admitted");
        let ask = |small: &mut Small, after: u64| {
            small.now = NOW + Duration::from_secs(after);
            small.stores.values_mut().for_each(|store| store.heard = small.now);
            observe(small).is_some()
        };
        assert!((0..=5).all(|time| ask(&mut small, time)), "often, but for a short time");
        // The region has changed: what was refused may be done now.
        small.region(2, &[voter(1)]);
        assert!((0..=5).all(|time| ask(&mut small, 20 + time)));
        assert!(ask(&mut small, 39));
        assert!(!ask(&mut small, 40));
        assert_eq!(last(&small), OperatorStatus::Cancel);
        let text = &small.controller.records().next_back().expect("a record").text;
        assert!(text.contains("its leader does not do it"), "{text}");
        assert!(!small.controller.is_free(1, small.now), "it rests a while");
    }

    fn voters() -> [proto::metapb::Peer; 3] {
        [voter(1), voter(2), voter(3)]
    }

    /// Regions 1 and 2 side by side, and an operator that is to merge the first into the second.
    fn about_to_merge() -> Small {
        let mut small = Small::new(3);
        small.report(beat(1, ("", "m"), 1, &voters()));
        small.report(beat(2, ("m", ""), 1, &voters()));
        let merge = Plan::new(1, "merge", Kind::Merge, vec![Step::Merge { target: 2 }]);
        small.with(|controller, cluster| controller.admit(cluster, merge)).expect("admitted");
        small
    }

    #[test]
    fn a_merge_that_was_not_asked_for_yet_ends_with_its_range() {
        let mut small = about_to_merge();
        let mut split = beat(1, ("k", "m"), 1, &voters());
        let epoch = proto::metapb::RegionEpoch { conf_ver: 1, version: 2 };
        split.region.as_mut().expect("a region").region_epoch = Some(epoch);
        small.report(split);
        assert_eq!(observe(&mut small), None);
        assert_eq!(last(&small), OperatorStatus::Cancel);
    }

    /// What becomes of a merge whose source reports these epochs (`conf_ver`, `version`), each some seconds after its start.
    fn merge_through(reports: &[(u64, (u64, u64))]) -> Vec<bool> {
        let mut small = about_to_merge();
        assert!(observe(&mut small).is_some());
        let step = |(after, (conf_ver, version)): &(u64, (u64, u64))| {
            small.now = NOW + Duration::from_secs(*after);
            small.stores.values_mut().for_each(|store| store.heard = small.now);
            let mut report = beat(1, ("", "m"), *conf_ver, &voters());
            let epoch = proto::metapb::RegionEpoch { conf_ver: *conf_ver, version: *version };
            report.region.as_mut().expect("a region").region_epoch = Some(epoch);
            small.report(report);
            small.with(|controller, cluster| controller.tick(cluster));
            observe(&mut small);
            small.controller.operator(1).is_some()
        };
        reports.iter().map(step).collect()
    }

    #[test]
    fn a_frozen_source_waits_and_any_other_change_ends_its_merge() {
        let frozen: Vec<_> = (1..60).map(|n| (n * 10, (2, 2))).collect();
        assert_eq!(merge_through(&frozen), [true; 59], "it is asked as long as it is frozen");
        assert_eq!(merge_through(&[(10, (2, 2)), (600, (2, 2))]), [true, false], "but not for ever");
        assert_eq!(merge_through(&[(10, (2, 2)), (20, (2, 3))]), [true, false], "it was taken back");
        assert_eq!(merge_through(&[(10, (1, 2))]), [false], "it has split instead");
        assert_eq!(merge_through(&[(10, (2, 1))]), [false], "its members have changed instead");
    }

    #[test]
    fn one_operator_a_region_within_limits_unless_a_person_wants_it() {
        let mut small = Small::new(4);
        small.region(1, &[voter(1), voter(2), voter(3)]);
        let transfer = |to, is_admin| Plan {
            is_admin,
            ..Plan::new(1, "move", Kind::Leader, vec![Step::TransferLeader { from: 1, to: voter(to) }])
        };
        let mut admit = |plan| small.with(|controller, cluster| controller.admit(cluster, plan));
        assert_eq!(admit(Plan { region: 9, ..transfer(2, false) }), Err(Refused::NoRegion(9)));
        assert_eq!(admit(transfer(4, false)), Err(Refused::Impossible("the new leader has no vote")));
        assert_eq!(admit(transfer(2, false)), Ok(()));
        assert_eq!(admit(transfer(3, false)), Err(Refused::Busy(1)));
        assert_eq!(admit(transfer(3, true)), Ok(()), "a person goes first");
        assert_eq!(admit(transfer(2, true)), Err(Refused::Busy(1)), "but not in front of another");
        assert_eq!(last(&small), OperatorStatus::Replace);
        small.controller.cancel(1, NOW);
        small.config.leader_schedule_limit = 0;
        small.config.default_store_limit.add_peer = 0.0;
        let mut admit = |plan| small.with(|controller, cluster| controller.admit(cluster, plan));
        assert_eq!(admit(transfer(2, false)), Err(Refused::Full));
        assert_eq!(admit(make_up(4)), Err(Refused::StoreLimit(4)));
        assert_eq!(admit(transfer(2, true)), Ok(()), "limits are not for people");
    }

    #[test]
    fn a_merge_holds_both_regions_and_ends_with_its_source() {
        let mut small = Small::new(3);
        let peers = [voter(1), voter(2), voter(3)];
        small.report(beat(1, ("", "m"), 1, &peers));
        small.report(beat(2, ("m", ""), 1, &peers));
        let merge = |region, target| Plan::new(region, "merge", Kind::Merge, vec![Step::Merge { target }]);
        let mut admit = |plan| small.with(|controller, cluster| controller.admit(cluster, plan));
        assert_eq!(admit(merge(1, 2)), Ok(()));
        assert_eq!(admit(merge(2, 1)), Err(Refused::Busy(2)));
        let target = observe(&mut small).and_then(|order| order.message.merge).and_then(|merge| merge.target);
        assert_eq!(target.map(|target| target.id), Some(2));
        small.controller.region_gone(1, NOW);
        assert_eq!(last(&small), OperatorStatus::Success);
        assert!(small.controller.is_free(2, NOW));
    }

    #[test]
    fn no_step_costs_a_healthy_majority() {
        let mut small = Small::new(4);
        small.region(1, &[voter(1), voter(2), voter(3), peer(4, PeerRole::Learner)]);
        small.stores.get_mut(&3).expect("a store").has_reported = false;
        let learner = peer(4, PeerRole::Learner);
        let progress = |small: &Small, step: Step| {
            let cluster = small.cluster();
            step.progress(&cluster, cluster.region(1).expect("a region"), 1)
        };
        let is_asked = |small: &Small, step| progress(small, step) == Progress::Ask;
        let swap = |old| Step::EnterJoint { promote: vec![learner], demote: vec![voter(old)] };
        assert!(is_asked(&small, swap(3)) && is_asked(&small, swap(2)), "two of three are healthy either way");
        assert!(!is_asked(&small, Step::RemovePeer(voter(2))), "one of two would be left");
        assert!(is_asked(&small, Step::RemovePeer(voter(3))));
        assert_eq!(progress(&small, Step::RemovePeer(voter(1))), Progress::Never("it leads"));
        assert_eq!(progress(&small, swap(1)), Progress::Never("the peer to demote leads"));
        small.stores.get_mut(&4).expect("a store").has_reported = false;
        assert!(!is_asked(&small, swap(3)) && !is_asked(&small, Step::Promote(learner)));
    }
}
