//! The naive model: what a node holds, as maps, and what it may hold after a kill.

use std::collections::{BTreeMap, BTreeSet};

use mvcc::Modify;
use proto::metapb;
use shard::log::HardState;

/// A region's data by family.
pub(crate) type Data = [BTreeMap<Vec<u8>, Vec<u8>>; 3];

/// A region as the node holds it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Region {
    pub(crate) meta: metapb::Region,
    pub(crate) shard: u32,
    pub(crate) move_number: u64,
    pub(crate) data: Data,
}

impl Region {
    pub(crate) fn id(&self) -> u64 {
        self.meta.id
    }

    pub(crate) fn peer(&self) -> u64 {
        self.meta.peers[0].id
    }

    pub(crate) fn contains(&self, key: &[u8]) -> bool {
        base::keys::contains(&self.meta.start_key, &self.meta.end_key, key)
    }

    /// This region after one more write.
    pub(crate) fn after(&self, changes: &[Modify]) -> Region {
        let mut region = self.clone();
        for change in changes {
            let family = &mut region.data[change.cf().index()];
            match change {
                Modify::Put { key, value, .. } => drop(family.insert(key.to_vec(), value.to_vec())),
                Modify::Delete { key, .. } => drop(family.remove(key.as_ref())),
                Modify::DeleteRange { start, end, .. } => family.retain(|key, _| key < start || key >= end),
            }
        }
        region
    }

    /// The part of this region's data in `[start, end)`.
    pub(crate) fn part(&self, start: &[u8], end: &[u8]) -> Data {
        let mut data = self.data.clone();
        data.iter_mut().for_each(|family| family.retain(|key, _| base::keys::contains(start, end, key)));
        data
    }
}

/// Something that was asked for and not answered: the regions that it touches are in one of several states.
#[derive(Clone, Debug)]
struct Pending {
    regions: BTreeSet<u64>,
    states: Vec<Vec<Region>>,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Model {
    pub(crate) regions: BTreeMap<u64, Region>,
    /// Regions that ended, and perhaps began again.
    ended: BTreeSet<u64>,
    /// What each peer of a region was seen to have promised.
    promises: BTreeMap<(u64, u64), HardState>,
    pending: BTreeMap<u64, Pending>,
    last_id: u64,
    /// Every value that a key was ever given, by family.
    given: BTreeSet<(usize, Vec<u8>, Vec<u8>)>,
}

impl Model {
    /// A number that no region, peer or file had.
    pub(crate) fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    /// Regions that ended and did not begin again.
    pub(crate) fn graves(&self) -> impl Iterator<Item = u64> + '_ {
        self.ended.iter().copied().filter(|id| !self.regions.contains_key(id))
    }

    /// Something begins that leads through `states`, from what is to what shall be; each is all of the regions with
    /// one of the ids in any of them. Regions of what goes on at once are not the same. Returns its number.
    pub(crate) fn begin(&mut self, states: Vec<Vec<Region>>) -> u64 {
        let regions: BTreeSet<u64> = states.iter().flatten().map(Region::id).collect();
        assert!(self.pending.values().all(|other| other.regions.is_disjoint(&regions)));
        for region in states.iter().flatten() {
            let pairs = region.data.iter().enumerate().flat_map(|(cf, data)| data.iter().map(move |pair| (cf, pair)));
            self.given.extend(pairs.map(|(cf, (key, value))| (cf, key.clone(), value.clone())));
        }
        let number = self.next_id();
        self.pending.insert(number, Pending { regions, states });
        number
    }

    /// Goes on from what is left after a damage that was accepted: every value must be one that its key had. What
    /// ended, was promised or asked for before is forgotten.
    pub(crate) fn give_up(&mut self, found: &BTreeMap<u64, Region>) -> Result<(), String> {
        for region in found.values() {
            for (cf, data) in region.data.iter().enumerate() {
                let wrong =
                    data.iter().find(|(key, value)| !self.given.contains(&(cf, (*key).clone(), (*value).clone())));
                if let Some((key, _)) = wrong {
                    return Err(format!("{} of region {} was never so", key.escape_ascii(), region.id()));
                }
            }
        }
        self.regions.clone_from(found);
        self.pending.clear();
        self.ended.clear();
        Ok(())
    }

    /// The next state is acknowledged. After the last one it is over.
    pub(crate) fn advance(&mut self, number: u64) {
        let pending = self.pending.get_mut(&number).expect("it was begun");
        pending.states.remove(0);
        let now = pending.states[0].clone();
        let regions = pending.regions.clone();
        if pending.states.len() == 1 {
            self.pending.remove(&number);
        }
        self.set(&regions, now);
    }

    fn set(&mut self, regions: &BTreeSet<u64>, now: Vec<Region>) {
        let before: Vec<u64> = regions.iter().filter(|id| self.regions.remove(id).is_some()).copied().collect();
        self.ended.extend(before);
        self.regions.extend(now.into_iter().map(|region| (region.id(), region)));
    }

    /// Compares what a restart found with what it may find, and goes on from there.
    pub(crate) fn check(&mut self, found: &BTreeMap<u64, Region>) -> Result<(), String> {
        for mut pending in std::mem::take(&mut self.pending).into_values() {
            let part: Vec<Region> = pending.regions.iter().filter_map(|id| found.get(id).cloned()).collect();
            pending.states.iter_mut().for_each(|state| state.sort_by_key(Region::id));
            if !pending.states.contains(&part) {
                return Err(format!("found {part:#?}, which is none of {:#?}", pending.states));
            }
            self.set(&pending.regions, part);
        }
        for id in self.regions.keys().chain(found.keys()) {
            let (expected, found) = (self.regions.get(id), found.get(id));
            if expected != found {
                return Err(format!("region {id}: expected {expected:#?}, found {found:#?}"));
            }
        }
        Ok(())
    }

    /// Whatever was promised is void.
    pub(crate) fn forget_promises(&mut self) {
        self.promises.clear();
    }

    /// Notes what a peer that serves has promised.
    pub(crate) fn promise(&mut self, region: u64, peer: u64, state: HardState) {
        self.promises.insert((region, peer), state);
    }

    /// Whether a peer keeps what it promised. `served` says that it has applied all that it knew.
    pub(crate) fn keeps(&self, region: u64, peer: u64, now: HardState, served: bool) -> Result<(), String> {
        let Some(before) = self.promises.get(&(region, peer)) else { return Ok(()) };
        let kept = now.term > before.term || (now.term == before.term && (now.vote == before.vote || before.vote == 0));
        if kept && (!served || now.commit >= before.commit) {
            return Ok(());
        }
        Err(format!("peer {peer} of region {region} had promised {before:?} and now says {now:?}"))
    }
}
