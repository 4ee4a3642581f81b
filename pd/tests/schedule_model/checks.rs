//! What must hold when a run is over.

use crate::world::{Checked, World};
use proto::metapb::PeerRole;
use std::collections::{BTreeMap, BTreeSet};

/// Each region has `replicas` voters, and no other peers.
pub(crate) fn replicas_are(world: &World, replicas: usize) -> Checked {
    for (id, region) in &world.regions {
        let voters = region.meta.peers.iter().filter(|peer| peer.role() == PeerRole::Voter).count();
        if (voters, region.meta.peers.len()) != (replicas, replicas) {
            return Err(format!("region {id} has not {replicas} voters: {:?}", region.meta.peers));
        }
    }
    Ok(())
}

/// No store leads more than a tenth more or less than the mean of `stores`, or one leader if that is more.
pub(crate) fn leaders_are_even(world: &World, stores: &[u64]) -> Checked {
    let mut leaders: BTreeMap<u64, usize> = stores.iter().map(|store| (*store, 0)).collect();
    for region in world.regions.values() {
        let leader = region.meta.peers.iter().find(|peer| Some(peer.id) == region.leader);
        if let Some(leader) = leader {
            *leaders.entry(leader.store_id).or_default() += 1;
        }
    }
    let mean = world.regions.len() as f64 / stores.len() as f64;
    let uneven = |count: usize| (count as f64 - mean).abs() > (mean / 10.0).max(1.0);
    if leaders.len() > stores.len() || leaders.values().any(|count| uneven(*count)) {
        return Err(format!("the leaders are not even: {leaders:?}"));
    }
    Ok(())
}

/// No peer is on `store`.
pub(crate) fn is_empty(world: &World, store: u64) -> Checked {
    let here = world.regions.values().filter(|region| region.meta.peers.iter().any(|peer| peer.store_id == store));
    match here.count() {
        0 => Ok(()),
        count => Err(format!("{count} regions are still on store {store}")),
    }
}

/// No two peers of a region are in one zone.
pub(crate) fn zones_differ(world: &World) -> Checked {
    for (id, region) in &world.regions {
        let zones: BTreeSet<u64> = region.meta.peers.iter().map(|peer| world.stores[&peer.store_id].zone).collect();
        if zones.len() < region.meta.peers.len() {
            return Err(format!("region {id} has two peers in one zone: {:?}", region.meta.peers));
        }
    }
    Ok(())
}

/// The data of the stores differ by less than `most` MiB.
pub(crate) fn data_are_even(world: &World, stores: &[u64], most: u64) -> Checked {
    let load = |store: &u64| -> u64 {
        let here = world.regions.values().filter(|r| r.meta.peers.iter().any(|peer| peer.store_id == *store));
        here.map(|region| region.size_mib).sum()
    };
    let loads: Vec<u64> = stores.iter().map(load).collect();
    let (least, largest) = (loads.iter().min().copied(), loads.iter().max().copied());
    if largest.unwrap_or(0) - least.unwrap_or(0) > most {
        return Err(format!("the data are not even: {loads:?}"));
    }
    Ok(())
}

/// No more than `most` operators were needed.
pub(crate) fn operators_are_at_most(world: &World, most: u64) -> Checked {
    match world.created("") {
        count if count <= most => Ok(()),
        count => Err(format!("{count} operators, more than {most}: {:?}", world.scheduler.controller().counts())),
    }
}
