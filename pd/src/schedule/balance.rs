//! The schedulers: leaders and data spread evenly, and stores emptied of leaders before they restart.
//!
//! Each call plans at most one operator and looks at a bounded number of regions. A plan makes two stores more equal
//! than they were, even after it is carried out; so the sum of squares falls with each, and this comes to an end.

use super::merge::is_in_order;
use super::operator::{Kind, Plan};
use super::placement::{Scene, Wish, new_peer, others};
use super::step::Step;
use super::view::{StoreView, peer_on, voters};
use crate::directory::{Region, Tally};
use base::Prng;

/// Regions of one store that are looked at in one call.
const PICKS: usize = 8;
/// Stores are even when they differ by less than the mean over this.
const TOLERANCE: f64 = 50.0;

/// Takes a leader from a store that has more than others.
pub fn balance_leader(scene: &Scene<'_>, prng: &mut Prng) -> Option<Plan> {
    let stores = by_score(scene, |store| scene.leader_score(store.id));
    let mean = mean(&stores);
    for (score, source) in stores.iter().filter(|(score, _)| *score >= mean) {
        let weight = scene.cluster.config.weight(source.id).leader.max(0.01);
        let enough = score - (1.0 + (mean / TOLERANCE).floor()) / weight;
        let fits = |region: &Region| {
            let to = scene.heir(region, &[source.id])?;
            let target = scene.cluster.stores.get(&to.store_id).filter(|store| is_target(scene, store))?;
            let share = 1.0 / scene.cluster.config.weight(target.id).leader.max(0.01);
            (scene.leader_score(target.id) + share <= enough).then_some(to)
        };
        let tally = scene.cluster.directory.tally(source.id);
        if let Some(plan) = pick(scene, tally, Tally::leaders_from, prng, |region| {
            let steps = vec![Step::TransferLeader { from: source.id, to: fits(region)? }];
            Some(Plan::new(region.meta.id, "balance-leader", Kind::Leader, steps))
        }) {
            return Some(plan);
        }
    }
    None
}

/// Takes a peer from a store that holds more than others.
pub fn balance_region(scene: &Scene<'_>, prng: &mut Prng) -> Option<Plan> {
    if !scene.cluster.has_stores_for_replicas() {
        return None;
    }
    let capacity = scene.mean_capacity();
    let stores = by_score(scene, |store| scene.region_score(store, capacity));
    let mean = mean(&stores);
    for (score, source) in stores.iter().filter(|(score, _)| *score >= mean) {
        let tally = scene.cluster.directory.tally(source.id);
        if let Some(plan) = pick(scene, tally, Tally::peers_from, prng, |region| {
            let old = peer_on(region, source.id).filter(|_| is_in_order(scene, region))?;
            let limit = scene.crowding(source, &others(region, Some(old)));
            let target = scene.best_store(region, Some(old), Wish::Light(&limit))?;
            let load = region.load_mib() as f64;
            let (less, more) = (scene.scale(source, load, capacity), scene.scale(target, load, capacity));
            let gap = score - less - scene.region_score(target, capacity) - more;
            if gap < (mean / TOLERANCE).max(less.min(more)) {
                return None;
            }
            let steps = scene.replace(region, old, new_peer(target.id))?;
            Some(Plan::new(region.meta.id, "balance-region", Kind::Region, steps))
        }) {
            return Some(plan);
        }
    }
    None
}

/// Takes a leader from a store that shall have none.
pub fn evict_leader(scene: &Scene<'_>, store: u64, prng: &mut Prng) -> Option<Plan> {
    pick(scene, scene.cluster.directory.tally(store), Tally::leaders_from, prng, |region| {
        let to = scene.heir(region, &[store]).filter(|to| !scene.cluster.is_evicted(to.store_id))?;
        let steps = vec![Step::TransferLeader { from: store, to }];
        Some(Plan::new(region.meta.id, "evict-leader", Kind::Leader, steps))
    })
}

fn is_target(scene: &Scene<'_>, store: &StoreView) -> bool {
    store.is_up() && !store.is_busy && !store.is_slow() && !scene.cluster.is_evicted(store.id)
}

/// Stores that take part, those with the highest score first.
fn by_score<'a>(scene: &Scene<'a>, score: impl Fn(&StoreView) -> f64) -> Vec<(f64, &'a StoreView)> {
    let takes_part = |store: &&StoreView| store.is_up() && store.is_tikv() && store.is_connected(scene.cluster.now);
    let mut stores: Vec<_> =
        scene.cluster.stores.values().filter(takes_part).map(|store| (score(store), store)).collect();
    stores.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    stores
}

fn mean(stores: &[(f64, &StoreView)]) -> f64 {
    let sum: f64 = stores.iter().map(|(score, _)| score).sum();
    if stores.is_empty() { 0.0 } else { sum / stores.len() as f64 }
}

/// Tries some of a store's regions, from a random one on.
fn pick<'a, I: Iterator<Item = u64> + 'a>(
    scene: &Scene<'a>,
    tally: Option<&'a Tally>,
    from: impl Fn(&'a Tally, u64) -> I,
    prng: &mut Prng,
    plan: impl Fn(&Region) -> Option<Plan>,
) -> Option<Plan> {
    let tally = tally?;
    let (first, last) = tally.bounds()?;
    let regions = from(tally, prng.range(first, last + 1)).take(PICKS);
    regions
        .filter_map(|id| scene.cluster.region(id))
        .filter(|region| scene.is_free(region) && scene.cluster.has_quorum(region, &voters(region)))
        .find_map(plan)
}
