//! What must hold over all nodes of a run: one leader in a term, no two peers of a node that share a key, and in the
//! end replicas that are equal.

use std::collections::BTreeMap;

use base::{PeerId, RegionId, StoreId};
use proto::metapb;
use shard::core::{StoredPair, StoredPeer, stored_data, stored_peers};
use shard::engine::data_range;
use shard::engine::twin::TwinEngine;

/// All leaders that there were.
#[derive(Debug, Default)]
pub(super) struct Leaders {
    terms: BTreeMap<(RegionId, u64), PeerId>,
    /// What was wrong first.
    pub(super) wrong: Option<String>,
}

impl Leaders {
    /// `peer` leads `region` in `term`.
    pub(super) fn note(&mut self, region: RegionId, peer: PeerId, term: u64) {
        let first = *self.terms.entry((region, term)).or_insert(peer);
        if first != peer && self.wrong.is_none() {
            self.wrong = Some(format!("peers {first} and {peer} of region {region} both lead in term {term}"));
        }
    }

    /// The last leader of `region`.
    pub(super) fn last(&self, region: RegionId) -> Option<PeerId> {
        self.terms.range((region, 0)..=(region, u64::MAX)).next_back().map(|(_, peer)| *peer)
    }

    /// The terms that had a leader, by region.
    pub(super) fn terms(&self) -> BTreeMap<RegionId, Vec<u64>> {
        let mut terms: BTreeMap<RegionId, Vec<u64>> = BTreeMap::new();
        self.terms.keys().for_each(|(region, term)| terms.entry(*region).or_default().push(*term));
        terms
    }
}

/// A node that serves, for one look at it.
pub(super) struct NodeView {
    pub(super) store: StoreId,
    pub(super) engines: Vec<TwinEngine>,
}

struct Place<'a> {
    store: StoreId,
    engine: &'a TwinEngine,
    peer: StoredPeer,
}

impl NodeView {
    fn places(&self) -> Result<Vec<Place<'_>>, String> {
        let mut places = Vec::new();
        for engine in &self.engines {
            let peers = stored_peers(engine, self.store)?.into_iter();
            places.extend(peers.map(|peer| Place { store: self.store, engine, peer }));
        }
        Ok(places)
    }

    /// The regions that have a peer here.
    pub(super) fn regions(&self) -> Vec<metapb::Region> {
        self.places().map_or_else(|_| Vec::new(), |places| places.into_iter().map(|place| place.peer.region).collect())
    }

    /// The region that holds `key`, if it is here.
    pub(super) fn region_of(&self, key: &[u8]) -> Option<metapb::Region> {
        let places = self.places().ok()?.into_iter().map(|place| place.peer.region);
        places.into_iter().find(|region| base::keys::contains(&region.start_key, &region.end_key, key))
    }

    /// Two peers of different regions that share a key, or two of one region that are not a move apart.
    ///
    /// # Errors
    /// Which.
    pub(super) fn check_overlaps(&self) -> Result<(), String> {
        // An engine that was closed meanwhile tells nothing.
        let Ok(mut places) = self.places() else { return Ok(()) };
        places.sort_by(|a, b| a.peer.region.start_key.cmp(&b.peer.region.start_key));
        for (at, first) in places.iter().enumerate() {
            let a = &first.peer.region;
            let later =
                places[at + 1..].iter().take_while(|b| a.end_key.is_empty() || b.peer.region.start_key < a.end_key);
            for second in later {
                let b = &second.peer.region;
                let is_move = a.id == b.id && first.peer.move_number != second.peer.move_number;
                if !is_move && base::keys::overlaps(&a.start_key, &a.end_key, &b.start_key, &b.end_key) {
                    return Err(format!("store {} has peers of {} and {}", self.store, describe(a), describe(b)));
                }
            }
        }
        Ok(())
    }
}

fn describe(region: &metapb::Region) -> String {
    let epoch = region.region_epoch.unwrap_or_default();
    format!(
        "region {} [{:?}, {:?}) at {}:{}",
        region.id, region.start_key, region.end_key, epoch.conf_ver, epoch.version
    )
}

/// Compares all replicas of all regions, key by key; answers with the number of regions and of replicas.
///
/// # Errors
/// What is not equal, not there, or too much. It may be on its way.
pub(super) fn compare(nodes: &[NodeView]) -> Result<(u64, u64), String> {
    let mut regions: BTreeMap<u64, Vec<Place<'_>>> = BTreeMap::new();
    for node in nodes {
        for place in node.places()? {
            regions.entry(place.peer.region.id).or_default().push(place);
        }
    }
    check_cover(&regions)?;
    let mut pairs = 0;
    for places in regions.values() {
        pairs += compare_region(places)?;
    }
    let mut held = 0;
    for engine in nodes.iter().flat_map(|node| &node.engines) {
        held += stored_data(engine, base::keys::DATA_MIN, base::keys::DATA_MAX)?.len();
    }
    if held != pairs {
        return Err(format!("the nodes hold {held} pairs, of which {pairs} are in regions"));
    }
    Ok((regions.len() as u64, regions.values().map(|places| places.len() as u64).sum()))
}

/// From the first key to the last, no key in two regions or in none.
fn check_cover(regions: &BTreeMap<u64, Vec<Place<'_>>>) -> Result<(), String> {
    let mut ranges: Vec<&metapb::Region> = regions.values().map(|places| &places[0].peer.region).collect();
    ranges.sort_by(|a, b| a.start_key.cmp(&b.start_key));
    let mut at = Some(bytes::Bytes::new());
    for region in ranges {
        if at.as_ref() != Some(&region.start_key) {
            return Err(format!("{} begins where the one before it does not end, at {at:?}", describe(region)));
        }
        at = Some(region.end_key.clone()).filter(|end| !end.is_empty());
    }
    if at.is_some() { Err(format!("no region from {at:?} on")) } else { Ok(()) }
}

/// Answers with the pairs of all replicas together.
fn compare_region(places: &[Place<'_>]) -> Result<usize, String> {
    let first = &places[0];
    let region = &first.peer.region;
    if places.len() != region.peers.len() {
        return Err(format!("{} has {} members and {} peers", describe(region), region.peers.len(), places.len()));
    }
    let (start, end) = data_range(&region.start_key, &region.end_key);
    let expected = stored_data(first.engine, &start, &end)?;
    for place in &places[1..] {
        if place.peer.region != *region {
            return Err(format!("{} is {} on store {}", describe(region), describe(&place.peer.region), place.store));
        }
        if place.peer.applied_index != first.peer.applied_index {
            let (a, b) = (first.peer.applied_index, place.peer.applied_index);
            return Err(format!(
                "{} is applied up to {a} on store {}, and up to {b} on store {}",
                describe(region),
                first.store,
                place.store
            ));
        }
        let held = stored_data(place.engine, &start, &end)?;
        if held != expected {
            let key = first_difference(&expected, &held);
            return Err(format!("{} differs on stores {} and {}: {key}", describe(region), first.store, place.store));
        }
    }
    Ok(expected.len() * places.len())
}

fn first_difference(a: &[StoredPair], b: &[StoredPair]) -> String {
    let same = a.iter().zip(b).take_while(|(a, b)| a == b).count();
    let show = |pair: Option<&StoredPair>| match pair {
        Some((cf, key, value)) => format!("{cf}/{key:?} of {} bytes", value.len()),
        None => "the end".into(),
    };
    format!("{} and {}", show(a.get(same)), show(b.get(same)))
}
