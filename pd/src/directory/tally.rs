//! What lies on each store, kept up with every heartbeat so that nobody has to walk over all regions to know it.

use super::{Directory, Region};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

/// One store's share of the regions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    peers: BTreeSet<u64>,
    leaders: BTreeSet<u64>,
    /// Peers on the store that still need a snapshot.
    pub pending: u64,
    /// MiB of its peers, as people are told; regions of unknown size count nothing.
    pub region_size_mib: u64,
    /// MiB of the peers that lead.
    pub leader_size_mib: u64,
    /// MiB of its peers with at least 1 for each, so that empty regions have a weight too.
    pub load_mib: u64,
}

impl Tally {
    /// Peers on the store.
    pub fn regions(&self) -> u64 {
        self.peers.len() as u64
    }

    /// Peers on the store that lead.
    pub fn leaders(&self) -> u64 {
        self.leaders.len() as u64
    }

    /// Ids of regions with a peer here, from `from` upwards and then from the smallest on.
    pub fn peers_from(&self, from: u64) -> impl Iterator<Item = u64> {
        around(&self.peers, from)
    }

    /// Ids of regions that are led from here, in the same order.
    pub fn leaders_from(&self, from: u64) -> impl Iterator<Item = u64> {
        around(&self.leaders, from)
    }

    /// The smallest and the largest id of a region with a peer here.
    pub fn bounds(&self) -> Option<(u64, u64)> {
        Some((*self.peers.first()?, *self.peers.last()?))
    }
}

fn around(ids: &BTreeSet<u64>, from: u64) -> impl Iterator<Item = u64> {
    ids.range(from..).chain(ids.range(..from)).copied()
}

/// The tallies of all stores.
#[derive(Debug, Default)]
pub(super) struct Tallies {
    by_store: BTreeMap<u64, Tally>,
    led: usize,
}

impl Tallies {
    pub(super) fn enter(&mut self, region: &Region) {
        let (id, size) = (region.meta.id, region.size_mib());
        for peer in &region.meta.peers {
            let tally = self.by_store.entry(peer.store_id).or_default();
            tally.peers.insert(id);
            tally.region_size_mib += size;
            tally.load_mib += region.load_mib();
        }
        for peer in &region.pending_peers {
            self.by_store.entry(peer.store_id).or_default().pending += 1;
        }
        if let Some(leader) = &region.leader {
            self.led += 1;
            let tally = self.by_store.entry(leader.store_id).or_default();
            tally.leaders.insert(id);
            tally.leader_size_mib += size;
        }
    }

    pub(super) fn leave(&mut self, region: &Region) {
        let (id, size) = (region.meta.id, region.size_mib());
        let mut emptied = Vec::new();
        let mut change = |store: u64, change: &dyn Fn(&mut Tally)| {
            let tally = self.by_store.entry(store).or_default();
            change(tally);
            if *tally == Tally::default() {
                emptied.push(store);
            }
        };
        for peer in &region.meta.peers {
            change(peer.store_id, &|tally| {
                tally.peers.remove(&id);
                tally.region_size_mib -= size;
                tally.load_mib -= region.load_mib();
            });
        }
        for peer in &region.pending_peers {
            change(peer.store_id, &|tally| tally.pending -= 1);
        }
        if let Some(leader) = &region.leader {
            change(leader.store_id, &|tally| {
                tally.leaders.remove(&id);
                tally.leader_size_mib -= size;
            });
            self.led -= 1;
        }
        for store in emptied {
            if self.by_store.get(&store).is_some_and(|tally| *tally == Tally::default()) {
                self.by_store.remove(&store);
            }
        }
    }
}

impl Directory {
    /// What lies on `store`.
    pub fn tally(&self, store: u64) -> Option<&Tally> {
        self.tallies.by_store.get(&store)
    }

    /// Regions whose leader has reported since the start.
    pub fn led(&self) -> usize {
        self.tallies.led
    }

    /// Whether some region has a peer on `store`.
    pub fn has_peer_on(&self, store: u64) -> bool {
        self.tally(store).is_some_and(|tally| tally.regions() > 0)
    }

    /// Regions with an id above `id`, in the order of ids.
    pub fn after_id(&self, id: u64) -> impl Iterator<Item = &std::rc::Rc<Region>> {
        self.by_id.range((Bound::Excluded(id), Bound::Unbounded)).map(|(_, region)| region)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::{metapb, pdpb};

    fn beat(id: u64, range: (&str, &str), version: u64, stores: &[u64], size: u64) -> pdpb::RegionHeartbeatRequest {
        let peers: Vec<_> = stores
            .iter()
            .map(|store| metapb::Peer { id: id * 10 + store, store_id: *store, ..Default::default() })
            .collect();
        pdpb::RegionHeartbeatRequest {
            leader: peers.first().copied(),
            pending_peers: peers.get(1).copied().into_iter().collect(),
            region: Some(metapb::Region {
                id,
                start_key: range.0.as_bytes().to_vec().into(),
                end_key: range.1.as_bytes().to_vec().into(),
                region_epoch: Some(metapb::RegionEpoch { conf_ver: version, version }),
                peers,
                ..Default::default()
            }),
            approximate_size: size << 20,
            ..Default::default()
        }
    }

    fn numbers(directory: &Directory, store: u64) -> (u64, u64, u64, u64, u64) {
        directory.tally(store).map_or((0, 0, 0, 0, 0), |tally| {
            (tally.regions(), tally.leaders(), tally.pending, tally.region_size_mib, tally.load_mib)
        })
    }

    #[test]
    fn the_tallies_follow_peers_leaders_sizes_and_ends() {
        let mut directory = Directory::default();
        directory.heartbeat(&beat(1, ("", "m"), 1, &[1, 2], 5), 0).expect("taken");
        directory.heartbeat(&beat(2, ("m", ""), 1, &[2, 1], 0), 0).expect("taken");
        assert_eq!(numbers(&directory, 1), (2, 1, 1, 5, 6));
        assert_eq!(numbers(&directory, 2), (2, 1, 1, 5, 6));
        // A leader moves, a peer moves, a size is learned.
        directory.heartbeat(&beat(1, ("", "m"), 2, &[2, 3], 7), 0).expect("taken");
        assert_eq!(numbers(&directory, 1), (1, 0, 1, 0, 1));
        assert_eq!(numbers(&directory, 2), (2, 2, 0, 7, 8));
        assert_eq!(numbers(&directory, 3), (1, 0, 1, 7, 7));
        assert_eq!(directory.led(), 2);
        // One region takes the other's range.
        directory.heartbeat(&beat(2, ("", ""), 3, &[3], 9), 0).expect("taken");
        assert_eq!(numbers(&directory, 1), (0, 0, 0, 0, 0));
        assert_eq!(numbers(&directory, 3), (1, 1, 0, 9, 9));
        assert!(directory.remove(2));
        assert!(directory.tally(3).is_none() && directory.led() == 0);
    }
}
