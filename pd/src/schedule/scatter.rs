//! Scattering: the regions of a group go to stores, and are led from stores, that have fewest of that group.

use super::operator::{Kind, Plan};
use super::placement::{Scene, new_peer};
use super::step::Step;
use super::view::{StoreView, voters};
use crate::directory::Region;
use base::Instant;
use proto::metapb::Peer;
use std::collections::BTreeMap;

/// Groups that are remembered; the one that was not used for longest goes.
const GROUPS_MAX: usize = 64;

/// Where the regions of each group went.
#[derive(Debug, Default)]
pub struct Groups(BTreeMap<String, Group>);

/// Peers and leaders of one group, by store.
#[derive(Clone, Debug, Default)]
struct Group {
    peers: BTreeMap<u64, u64>,
    leaders: BTreeMap<u64, u64>,
    used: Instant,
}

/// Where a region's peers go.
#[derive(Clone, Debug, PartialEq)]
pub struct Scattered {
    /// The steps; none if it is well where it is.
    pub plan: Option<Plan>,
    stores: Vec<u64>,
    leader: Option<u64>,
}

impl Groups {
    /// Plans where one region of a group goes. It is noted with [`Groups::note`] when that is done.
    pub fn plan(&self, scene: &Scene<'_>, region: &Region, group: &str) -> Scattered {
        let group = self.0.get(group).cloned().unwrap_or_default();
        let voters = voters(region);
        let mut pairs: Vec<(Peer, Peer)> = Vec::new();
        let mut stores: Vec<u64> = voters.iter().map(|peer| peer.store_id).collect();
        for (at, old) in voters.iter().enumerate() {
            if let Some(store) = lighter_store(scene, region, old, &stores, &group) {
                pairs.push((*old, new_peer(store.id)));
                stores[at] = store.id;
            }
        }
        let joint = scene.cluster.config.enable_joint_consensus;
        let in_order = super::merge::is_in_order(scene, region);
        let moved = if in_order && joint && !pairs.is_empty() { scene.replace_all(region, &pairs) } else { None };
        if moved.is_none() {
            pairs.clear();
            stores = voters.iter().map(|peer| peer.store_id).collect();
        }
        let at_first = region.leader.map_or(0, |leader| leader.store_id);
        let (mut steps, from) = moved.unwrap_or((Vec::new(), at_first));
        let heirs = voters.iter().map(|old| pairs.iter().find(|(o, _)| o.id == old.id).map_or(*old, |(_, new)| *new));
        let fit = |peer: &Peer| {
            let store = scene.cluster.stores.get(&peer.store_id);
            (peer.id == 0 || scene.cluster.is_healthy(region, peer))
                && !scene.cluster.is_evicted(peer.store_id)
                && store.is_some_and(StoreView::is_up)
        };
        let led = |peer: &Peer| group.leaders.get(&peer.store_id).copied().unwrap_or(0);
        // Whoever leads stays, if nobody has fewer.
        let heir = heirs.filter(fit).min_by_key(|peer| (led(peer), peer.store_id != from));
        if let Some(to) = heir.filter(|to| to.store_id != from) {
            steps.push(Step::TransferLeader { from, to });
        }
        let leader = heir.map(|peer| peer.store_id);
        let plan = (!steps.is_empty())
            .then(|| Plan { is_admin: true, ..Plan::new(region.meta.id, "scatter-region", Kind::Scatter, steps) });
        Scattered { plan, stores, leader }
    }

    /// Notes where a region of a group goes, or stays.
    pub fn note(&mut self, group: &str, scattered: &Scattered, now: Instant) {
        if self.0.len() >= GROUPS_MAX && !self.0.contains_key(group) {
            let oldest = self.0.iter().min_by_key(|(_, group)| group.used).map(|(name, _)| name.clone());
            oldest.and_then(|name| self.0.remove(&name));
        }
        let group = self.0.entry(group.to_owned()).or_default();
        group.used = now;
        scattered.stores.iter().for_each(|store| *group.peers.entry(*store).or_default() += 1);
        scattered.leader.iter().for_each(|store| *group.leaders.entry(*store).or_default() += 1);
    }
}

/// A store that has fewer peers of the group than the one that `old` is on, and is no worse a place.
fn lighter_store<'a>(
    scene: &Scene<'a>,
    region: &Region,
    old: &Peer,
    taken: &[u64],
    group: &Group,
) -> Option<&'a StoreView> {
    let count = |store: u64| group.peers.get(&store).copied().unwrap_or(0);
    let others: Vec<u64> = taken.iter().copied().filter(|store| *store != old.store_id).collect();
    let now = scene.crowding(scene.cluster.stores.get(&old.store_id)?, &others);
    let fits = |store: &&StoreView| {
        let crowding = scene.crowding(store, &others);
        scene.may_hold(region, store)
            && scene.has_time(region, store)
            && !taken.contains(&store.id)
            && crowding <= now
            && scene.is_isolated(&crowding)
            && count(store.id) < count(old.store_id)
    };
    scene.cluster.stores.values().filter(fits).min_by_key(|store| count(store.id))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{NOW, Small, beat, voter};
    use super::*;

    #[test]
    fn the_regions_of_a_group_and_their_leaders_spread() {
        let mut small = Small::new(6);
        let mut groups = Groups::default();
        for id in 1..=6 {
            let range = (format!("{id}"), format!("{}", id + 1));
            small.report(beat(id, (&range.0, &range.1), 1, &[voter(1), voter(2), voter(3)]));
            let region = small.directory.by_id(id).expect("a region");
            let scattered = groups.plan(&small.scene(), region, "g");
            groups.note("g", &scattered, NOW);
        }
        let group = &groups.0["g"];
        assert_eq!(group.peers.values().sum::<u64>(), 18);
        assert!((1..=6).all(|store| group.peers[&store] == 3), "{group:?}");
        assert!(group.leaders.values().all(|leaders| *leaders <= 2), "{group:?}");
    }

    #[test]
    fn one_replica_on_one_store_has_nowhere_to_go() {
        let mut small = Small::new(1);
        small.region(1, &[voter(1)]);
        let region = small.directory.by_id(1).expect("a region");
        assert_eq!(Groups::default().plan(&small.scene(), region, "").plan, None);
    }

    #[test]
    fn the_group_that_was_not_used_for_longest_is_forgotten() {
        let (mut groups, nowhere) = (Groups::default(), Scattered { plan: None, stores: vec![1], leader: Some(1) });
        for at in 0..=GROUPS_MAX {
            groups.note(&format!("{at}"), &nowhere, NOW + std::time::Duration::from_secs(at as u64));
        }
        assert!(groups.0.len() == GROUPS_MAX && !groups.0.contains_key("0"));
    }
}
