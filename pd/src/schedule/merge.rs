//! The checker of small regions: two neighbours that are small together become one.

use super::operator::{Kind, Plan};
use super::placement::{Scene, new_peer, others};
use super::step::{Step, have_the_same_stores};
use super::view::{StoreView, is_joint, peer_on, voters};
use crate::directory::Region;
use base::Instant;
use proto::metapb::Peer;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Splits that are remembered. More than so many in an hour only means that some of them are merged sooner.
const SPLITS_MAX: usize = 100_000;
/// The merged region may be so many times what a small one may be. Nodes do not tell at which size they split; with their
/// default of 144 MiB and 54 MiB here that is well below it, and who sets one of the two has to look at the other.
const GROWTH: u64 = 2;
/// A region through which more goes in a second, read or written, is left alone: a merge stops it for a moment, and makes
/// what is busy larger.
const HOT_BYTES: u64 = 128 << 10;
const HOT_KEYS: u64 = 1_000;
/// What a report without an interval covers: nodes report so often.
const REPORT_S: u64 = 60;

/// When regions have split, as far as it was lately.
#[derive(Debug)]
pub struct Splits {
    by_region: BTreeMap<u64, Instant>,
    /// The same, the oldest first.
    by_time: BTreeSet<(Instant, u64)>,
    /// What happened before is not known.
    since: Instant,
}

impl Splits {
    /// Nothing is known of what was before `now`.
    pub fn new(now: Instant) -> Splits {
        Splits { by_region: BTreeMap::new(), by_time: BTreeSet::new(), since: now }
    }

    /// Notes that a region has split, or has come from a split, or is about to.
    pub fn note(&mut self, region: u64, now: Instant) {
        if let Some(before) = self.by_region.insert(region, now) {
            self.by_time.remove(&(before, region));
        }
        self.by_time.insert((now, region));
        if self.by_region.len() > SPLITS_MAX {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        if let Some((_, oldest)) = self.by_time.pop_first() {
            self.by_region.remove(&oldest);
        }
    }

    /// Forgets what is too long ago to count.
    pub fn forget_old(&mut self, interval: Duration, now: Instant) {
        let is_old = |(at, _): &(Instant, u64)| now.since(*at) >= interval;
        while self.by_region.len() > SPLITS_MAX / 2 && self.by_time.first().is_some_and(is_old) {
            self.forget_oldest();
        }
    }

    fn is_recent(&self, region: u64, interval: Duration, now: Instant) -> bool {
        let at = self.by_region.get(&region).copied().unwrap_or(self.since);
        now.since(at) < interval
    }
}

/// Whether a region goes into a neighbour: the steps of that, or one that brings a peer to the neighbour's store.
pub fn check(scene: &Scene<'_>, region: &Region, splits: &Splits) -> Option<Plan> {
    let config = scene.cluster.config;
    let small = region.approximate_size > 0
        && region.size_mib() <= config.max_merge_region_size
        && region.approximate_keys <= config.merge_keys_max();
    let rests = |region: &Region| !splits.is_recent(region.meta.id, config.split_merge_interval, scene.cluster.now);
    if !small || !scene.has_room(Kind::Merge) || !rests(region) || is_hot(region) || !is_in_order(scene, region) {
        return None;
    }
    let directory = scene.cluster.directory;
    let neighbours = [directory.after(region), directory.before_key(&region.meta.start_key)];
    let fits = |other: &&Region| {
        other.approximate_size > 0
            && region.size_mib() + other.size_mib() <= GROWTH * config.max_merge_region_size
            && region.approximate_keys + other.approximate_keys <= GROWTH * config.merge_keys_max()
            && scene.is_free(other)
            && rests(other)
            && !is_hot(other)
            && !parts_keyspaces(Ord::max(&region.meta.start_key, &other.meta.start_key))
            && is_in_order(scene, other)
    };
    let neighbours = neighbours.into_iter().flatten().map(std::rc::Rc::as_ref);
    let target = neighbours.filter(fits).min_by_key(|other| other.approximate_size)?;
    plan(scene, region, target)
}

/// Whether much went through a region, by its leader's last report.
fn is_hot(region: &Region) -> bool {
    let told = region.interval.map(|interval| interval.end_timestamp.saturating_sub(interval.start_timestamp));
    let seconds = told.unwrap_or(REPORT_S).max(1);
    let flow = &region.flow;
    (flow.bytes_read + flow.bytes_written) / seconds > HOT_BYTES
        || (flow.keys_read + flow.keys_written) / seconds > HOT_KEYS
}

/// Whether a keyspace begins at `key`, and so another one, or something else, ends there: `r` or `x` and three bytes, as
/// API V2 has them, in the form that compares as bytes. A region that holds no such key inside of it is of one keyspace.
fn parts_keyspaces(key: &[u8]) -> bool {
    matches!(key, [b'r' | b'x', _, _, _, 0, 0, 0, 0, 0xFB])
}

/// The next operator on the way of `source` into `target`.
pub fn plan(scene: &Scene<'_>, source: &Region, target: &Region) -> Option<Plan> {
    if have_the_same_stores(source, target) {
        let merge = Step::Merge { target: target.meta.id };
        return Some(Plan::new(source.meta.id, "merge-region", Kind::Merge, vec![merge]));
    }
    // One peer after the other: each move leaves the region as it should be, wherever this ends.
    let (old, goal) = next_move(scene, source, target)?;
    let steps = scene.replace(source, old, new_peer(goal.id))?;
    Some(Plan::new(source.meta.id, "move-for-merge", Kind::Merge, steps))
}

/// The peer of `source` that goes to a store of `target`, where the labels allow that as much as where it is.
fn next_move<'a>(scene: &Scene<'a>, source: &'a Region, target: &Region) -> Option<(&'a Peer, &'a StoreView)> {
    let stores = scene.cluster.stores;
    let leaving = source.meta.peers.iter().filter(|peer| peer_on(target, peer.store_id).is_none());
    let goals = target.meta.peers.iter().filter_map(|peer| stores.get(&peer.store_id));
    let goals = goals.filter(|store| scene.may_hold(source, store) && scene.has_time(source, store));
    let goals: Vec<&StoreView> = goals.collect();
    leaving.into_iter().find_map(|old| {
        let rest = others(source, Some(old));
        let now = scene.crowding(stores.get(&old.store_id)?, &rest);
        let is_as_good = |goal: &&&StoreView| {
            let there = scene.crowding(goal, &rest);
            scene.is_isolated(&there) && there <= now
        };
        goals.iter().find(is_as_good).map(|goal| (old, *goal))
    })
}

/// Whether a region has all of its voters, healthy, and nothing else.
pub fn is_in_order(scene: &Scene<'_>, region: &Region) -> bool {
    let voters = voters(region);
    voters.len() == region.meta.peers.len()
        && voters.len() as u64 == scene.cluster.config.max_replicas
        && region.leader.is_some()
        && !is_joint(region)
        && voters.iter().all(|peer| scene.cluster.is_healthy(region, peer))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{NOW, Small, beat, voter};
    use super::*;

    /// Regions 1, 2 and 3 side by side; 2 is on other stores than 3, and 1 is large.
    fn three_regions() -> Small {
        let mut small = Small::new(4);
        small.config.split_merge_interval = Duration::ZERO;
        let (here, there) = ([voter(1), voter(2), voter(3)], [voter(1), voter(2), voter(4)]);
        let mut large = beat(1, ("", "b"), 1, &here);
        large.approximate_size = 200 << 20;
        small.report(large);
        small.report(beat(2, ("b", "d"), 1, &here));
        small.report(beat(3, ("d", ""), 1, &there));
        small
    }

    fn found(small: &Small, id: u64, splits: &Splits) -> Option<Plan> {
        check(&small.scene(), small.directory.by_id(id).expect("a region"), splits)
    }

    #[test]
    fn peers_come_together_before_their_regions_do() {
        let mut small = three_regions();
        let splits = Splits::new(NOW);
        let plan = found(&small, 2, &splits).expect("a plan");
        assert!(matches!(plan.steps[0], Step::AddLearner(new) if new.store_id == 4), "{plan:?}");
        assert_eq!((plan.desc, plan.merge_target()), ("move-for-merge", None));
        assert_eq!(found(&small, 1, &splits), None, "it is large, and so would be what comes of it");
        small.report(beat(2, ("b", "d"), 4, &[voter(1), voter(2), voter(4)]));
        assert_eq!(found(&small, 2, &splits).and_then(|plan| plan.merge_target()), Some(3));
    }

    #[test]
    fn peers_come_together_without_crowding_a_zone() {
        let mut small = Small::new(6);
        small.config.split_merge_interval = Duration::ZERO;
        small.config.location_labels = vec!["zone".into()];
        small.config.isolation_level = "zone".into();
        for store in 1_u64..=6 {
            let labels = &mut small.stores.get_mut(&store).expect("a store").labels;
            labels.insert("zone".into(), format!("z{}", store.div_ceil(2)));
        }
        let there = [voter(4), voter(2), voter(6)];
        small.report(beat(2, ("m", ""), 1, &there));
        let mut here = vec![1, 3, 5];
        for moved in 0..3 {
            let peers: Vec<_> = here.iter().map(|store| voter(*store)).collect();
            small.report(beat(1, ("", "m"), 1 + moved, &peers));
            let scene = small.scene();
            let (source, target) = (scene.cluster.region(1).expect("it"), scene.cluster.region(2).expect("it"));
            let (old, goal) = next_move(&scene, source, target).expect("a move");
            assert_eq!((goal.id, here.contains(&old.store_id)), (old.store_id + 1, true), "within its zone");
            here.retain(|store| *store != old.store_id);
            here.push(goal.id);
        }
        // What could only be had with two in a zone is left.
        small.report(beat(1, ("", "m"), 9, &[voter(1), voter(3), voter(5)]));
        small.report(beat(2, ("m", ""), 9, &[voter(1), voter(3), voter(4)]));
        assert_eq!(found(&small, 1, &Splits::new(NOW)), None);
    }

    #[test]
    fn what_is_busy_or_of_another_keyspace_stays() {
        let splits = Splits::new(NOW);
        let flows: [fn(&mut proto::pdpb::RegionHeartbeatRequest); 3] = [
            |report| report.bytes_written = 60 * (129 << 10),
            |report| report.keys_read = 61_000,
            |report| {
                report.bytes_read = 2 << 20;
                report.interval = Some(proto::pdpb::TimeInterval { start_timestamp: 100, end_timestamp: 110 });
            },
        ];
        for (flow, id) in flows.into_iter().flat_map(|flow| [(flow, 2), (flow, 3)]) {
            let mut small = three_regions();
            assert!(found(&small, 2, &splits).is_some());
            let stores = if id == 2 { [1, 2, 3] } else { [1, 2, 4] };
            let range = if id == 2 { ("b", "d") } else { ("d", "") };
            let mut busy = beat(id, range, 1, &stores.map(voter));
            flow(&mut busy);
            small.report(busy);
            assert_eq!(found(&small, 2, &splits), None, "region {id} is busy");
        }
        let border = |key: &'static [u8]| {
            let mut small = three_regions();
            for (id, range) in [(2, (&b"b"[..], key)), (3, (key, &b""[..]))] {
                let mut report = beat(id, ("", ""), 2, &[voter(1), voter(2), voter(3)]);
                let meta = report.region.as_mut().expect("a region");
                (meta.start_key, meta.end_key) = (range.0.into(), range.1.into());
                meta.region_epoch.as_mut().expect("an epoch").version = 2;
                small.report(report);
            }
            found(&small, 3, &splits).is_some()
        };
        assert!(border(b"x\0\0\x01k\0\0\0\xfc") && border(b"x\0\0\x01"));
        assert!(!border(b"x\0\0\x01\0\0\0\0\xfb") && !border(b"r\0\0\x07\0\0\0\0\xfb"));
    }

    #[test]
    fn the_oldest_splits_make_room() {
        let mut splits = Splits::new(NOW);
        let (hour, at) = (Duration::from_secs(3600), |n: usize| NOW + Duration::from_secs(7200 + n as u64));
        (0..SPLITS_MAX + 10).for_each(|n| splits.note(n as u64, at(n)));
        let now = at(SPLITS_MAX + 10);
        assert!(splits.is_recent(SPLITS_MAX as u64 + 9, hour, now), "the newest is known");
        assert_eq!((splits.by_region.len(), splits.by_time.len()), (SPLITS_MAX, SPLITS_MAX));
        assert!(!splits.by_region.contains_key(&9) && splits.by_region.contains_key(&10));
        splits.note(10, now);
        splits.forget_old(hour, now);
        assert_eq!((splits.by_region.len(), splits.by_time.len()), (SPLITS_MAX / 2, SPLITS_MAX / 2));
        assert!(splits.is_recent(10, hour, now), "it has split again");
    }

    #[test]
    fn what_has_split_or_is_not_whole_or_unknown_stays() {
        let mut small = three_regions();
        let mut splits = Splits::new(NOW);
        assert!(found(&small, 3, &splits).is_some());
        small.config.split_merge_interval = Duration::from_secs(60);
        small.now = NOW + Duration::from_secs(19);
        assert_eq!(found(&small, 3, &splits), None, "what was before the start is not known");
        small.config.split_merge_interval = Duration::from_secs(10);
        assert!(found(&small, 3, &splits).is_some());
        splits.note(2, small.now);
        assert_eq!(found(&small, 3, &splits), None, "its neighbour has just split");
        let splits = Splits::new(NOW);
        small.report(beat(2, ("b", "d"), 1, &[voter(1), voter(2), voter(3)]));
        small.report(beat(3, ("d", ""), 2, &[voter(1), voter(2)]));
        assert_eq!(found(&small, 2, &splits), None, "its neighbour lacks a voter");
        small.config.max_merge_region_size = 0;
        assert_eq!(found(&small, 2, &splits), None, "merging is off");
    }
}
