//! Where a peer should be: as far as the labels allow from its region's other peers, then where there is most room.

use super::controller::Controller;
use super::limits::{Way, cost};
use super::operator::Kind;
use super::step::Step;
use super::view::{Cluster, StoreView, leads, peer_on, voters};
use crate::directory::Region;
use proto::metapb::{Peer, PeerRole};

/// What planners look at: the cluster, and what is being done with it already.
#[derive(Clone, Copy)]
pub struct Scene<'a> {
    /// The cluster.
    pub cluster: Cluster<'a>,
    /// The operators under way.
    pub controller: &'a Controller,
}

/// What a new place should have.
#[derive(Clone, Copy, Debug)]
pub enum Wish<'a> {
    /// As few of the other peers near as possible.
    Apart,
    /// Little load, and no more of the other peers near than this.
    Light(&'a [usize]),
}

impl<'a> Scene<'a> {
    /// Whether another operator of a kind may begin.
    pub fn has_room(&self, kind: Kind) -> bool {
        self.controller.has_room(&self.cluster, kind)
    }

    /// Whether nothing is done with a region.
    pub fn is_free(&self, region: &Region) -> bool {
        self.controller.is_free(region.meta.id, self.cluster.now)
    }

    /// Leaders that a store has and will have, by its weight.
    pub fn leader_score(&self, store: u64) -> f64 {
        self.leaders(store) as f64 / self.cluster.config.weight(store).leader.max(0.01)
    }

    /// Leaders that a store has and will have.
    pub fn leaders(&self, store: u64) -> i64 {
        let now = self.cluster.directory.tally(store).map_or(0, |tally| tally.leaders());
        i64::try_from(now).unwrap_or(i64::MAX) + self.controller.influence.leaders(store)
    }

    /// How full a store is and will be: MiB, scaled to a store of the mean capacity and the weight 1.
    pub fn region_score(&self, store: &StoreView, mean_capacity: f64) -> f64 {
        let now = self.cluster.directory.tally(store.id).map_or(0, |tally| tally.load_mib);
        let load = i64::try_from(now).unwrap_or(i64::MAX) + self.controller.influence.load_mib(store.id);
        self.scale(store, load.max(0) as f64, mean_capacity)
    }

    /// What `load_mib` adds to a store's score.
    pub fn scale(&self, store: &StoreView, load_mib: f64, mean_capacity: f64) -> f64 {
        let share = if store.capacity > 0 && mean_capacity > 0.0 { store.capacity as f64 / mean_capacity } else { 1.0 };
        load_mib / share / self.cluster.config.weight(store.id).region.max(0.01)
    }

    /// The mean capacity of the stores that are up and tell theirs; 0 if none does.
    pub fn mean_capacity(&self) -> f64 {
        let told = self.cluster.stores.values().filter(|store| store.is_up() && store.capacity > 0);
        let (sum, count) = told.fold((0.0, 0_u32), |(sum, count), store| (sum + store.capacity as f64, count + 1));
        if count == 0 { 0.0 } else { sum / f64::from(count) }
    }

    /// For each location label, how many of `others` share this store's values up to it: less is better, and the
    /// first labels count most, so that two of these compare as lists do.
    pub fn crowding(&self, store: &StoreView, others: &[u64]) -> Vec<usize> {
        let labels = &self.cluster.config.location_labels;
        let others: Vec<&StoreView> = others.iter().filter_map(|other| self.cluster.stores.get(other)).collect();
        let near = |other: &&&StoreView, depth: usize| {
            labels[..=depth].iter().all(|label| other.label(label).eq_ignore_ascii_case(store.label(label)))
        };
        (0..labels.len()).map(|depth| others.iter().filter(|other| near(other, depth)).count()).collect()
    }

    /// Whether none of the others is so near that the isolation level forbids it.
    pub fn is_isolated(&self, crowding: &[usize]) -> bool {
        let level = &self.cluster.config.isolation_level;
        let depth = self.cluster.config.location_labels.iter().position(|label| label == level);
        depth.is_none_or(|depth| crowding[depth] == 0)
    }

    /// Whether a new peer may be on a store, as far as this does not change from one minute to the next.
    pub fn may_hold(&self, region: &Region, store: &StoreView) -> bool {
        store.is_up()
            && store.is_tikv()
            && store.is_connected(self.cluster.now)
            && !store.is_low_on_space(self.cluster.config)
            && peer_on(region, store.id).is_none()
    }

    /// Whether a store has time for a new peer now.
    pub fn has_time(&self, region: &Region, store: &StoreView) -> bool {
        let config = self.cluster.config;
        let pending = self.cluster.directory.tally(store.id).map_or(0, |tally| tally.pending);
        let limits = &self.controller.limits;
        !store.is_busy
            && !store.is_slow()
            && store.snapshots <= config.max_snapshot_count
            && pending <= config.max_pending_peer_count
            && limits.has(self.cluster.now, store.id, Way::Add, config.rates(store.id), cost(region.size_mib()))
    }

    /// The best store for a new peer of `region`, in place of `leaving` if there is one. A store that is best but has
    /// no time now is waited for: a worse place would have to be left again.
    pub fn best_store(&self, region: &Region, leaving: Option<&Peer>, wish: Wish<'_>) -> Option<&'a StoreView> {
        let others = others(region, leaving);
        let mean = self.mean_capacity();
        let stores = self.cluster.stores.values().filter(|store| self.may_hold(region, store));
        let mut places: Vec<(Vec<usize>, &StoreView)> =
            stores.map(|store| (self.crowding(store, &others), store)).collect();
        places.retain(|(crowding, _)| self.is_isolated(crowding));
        match wish {
            Wish::Light(limit) => places.retain(|(crowding, _)| crowding.as_slice() <= limit),
            Wish::Apart => {
                let best = places.iter().map(|(crowding, _)| crowding).min()?.clone();
                places.retain(|(crowding, _)| *crowding == best);
            }
        }
        let ready = places.into_iter().map(|(_, store)| store).filter(|store| self.has_time(region, store));
        ready.min_by(|a, b| self.region_score(a, mean).total_cmp(&self.region_score(b, mean)))
    }

    /// The voter that should lead when those on `without` do not: healthy, and where fewest leaders are.
    pub fn heir(&self, region: &Region, without: &[u64]) -> Option<Peer> {
        let fit = |peer: &Peer| !without.contains(&peer.store_id) && self.cluster.is_healthy(region, peer);
        let willing = |peer: &Peer| {
            let store = self.cluster.stores.get(&peer.store_id);
            store.is_some_and(|store| store.is_up() && !store.is_slow() && !store.is_busy)
                && !self.cluster.is_evicted(peer.store_id)
        };
        let score = |peer: &Peer| (!willing(peer), self.leader_score(peer.store_id));
        voters(region).into_iter().filter(fit).min_by(|a, b| {
            let ((a_unwilling, a), (b_unwilling, b)) = (score(a), score(b));
            a_unwilling.cmp(&b_unwilling).then(a.total_cmp(&b))
        })
    }

    /// The steps that put `new` in the place of `old`: the id of `new` is 0 if it is not there yet.
    pub fn replace(&self, region: &Region, old: &Peer, new: Peer) -> Option<Vec<Step>> {
        let heir = self.heir(region, &[old.store_id]);
        if self.cluster.config.enable_joint_consensus && (heir.is_some() || !leads(region, old)) {
            return self.replace_all(region, &[(*old, new)]).map(|(steps, _)| steps);
        }
        let mut steps = new_learners(&[(*old, new)]);
        steps.push(Step::Promote(new));
        if leads(region, old) {
            steps.push(Step::TransferLeader { from: old.store_id, to: heir.unwrap_or(new) });
        }
        steps.push(Step::RemovePeer(*old));
        Some(steps)
    }

    /// The same for several at once, by a joint configuration; also the store that leads in the end. `None` when
    /// nobody is left to lead meanwhile.
    pub fn replace_all(&self, region: &Region, pairs: &[(Peer, Peer)]) -> Option<(Vec<Step>, u64)> {
        let leader = region.leader?.store_id;
        let leaving: Vec<u64> = pairs.iter().map(|(old, _)| old.store_id).collect();
        if !leaving.contains(&leader) {
            return Some((swap(pairs, None), leader));
        }
        if let Some(heir) = self.heir(region, &leaving) {
            return Some((swap(pairs, Some((leader, heir))), heir.store_id));
        }
        // All of them go: the leader last, when one of the new ones can lead.
        let (last, first): (Vec<_>, Vec<_>) = pairs.iter().partition(|(old, _)| old.store_id == leader);
        let (_, heir) = *first.first()?;
        let mut steps = swap(&first, None);
        steps.extend(swap(&last, Some((leader, heir))));
        Some((steps, heir.store_id))
    }

    /// The steps that take a peer away; `None` when it leads and nobody else can.
    pub fn remove(&self, region: &Region, peer: &Peer) -> Option<Vec<Step>> {
        let mut steps = Vec::new();
        if leads(region, peer) {
            steps.push(Step::TransferLeader { from: peer.store_id, to: self.heir(region, &[peer.store_id])? });
        }
        steps.push(Step::RemovePeer(*peer));
        Some(steps)
    }
}

/// Stores of a region's peers, without `leaving`.
pub fn others(region: &Region, leaving: Option<&Peer>) -> Vec<u64> {
    let stays = |peer: &&Peer| leaving.is_none_or(|leaving| leaving.id != peer.id);
    region.meta.peers.iter().filter(stays).map(|peer| peer.store_id).collect()
}

/// A peer that is not there yet.
pub fn new_peer(store: u64) -> Peer {
    Peer { id: 0, store_id: store, role: PeerRole::Learner.into(), is_witness: false }
}

/// New peers in the places of old ones, by one joint configuration; who leads is changed before that.
fn swap(pairs: &[(Peer, Peer)], transfer: Option<(u64, Peer)>) -> Vec<Step> {
    let (demote, promote): (Vec<Peer>, Vec<Peer>) = pairs.iter().copied().unzip();
    let mut steps = new_learners(pairs);
    steps.extend(transfer.map(|(from, to)| Step::TransferLeader { from, to }));
    steps.push(Step::EnterJoint { promote, demote });
    steps.push(Step::LeaveJoint(2 * pairs.len() as u64));
    steps.extend(pairs.iter().map(|(old, _)| Step::RemovePeer(*old)));
    steps
}

fn new_learners(pairs: &[(Peer, Peer)]) -> Vec<Step> {
    pairs.iter().filter(|(_, new)| new.id == 0).map(|(_, new)| Step::AddLearner(*new)).collect()
}
