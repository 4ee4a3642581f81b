//! Which region covers which keys, as the leaders' heartbeats tell it. Pure.
//!
//! Keys are compared as they stand in `metapb.Region` (encoded keys for transactions, raw ones otherwise): PD never
//! decodes them. What is known after a restart are the kept descriptions, without leaders.

mod query;
mod region;
mod tally;

pub use query::{RangesError, ScanRange};
pub use region::{Flow, Region};
pub use tally::Tally;

use proto::{metapb, pdpb};
use std::collections::BTreeMap;
use std::rc::Rc;

use bytes::Bytes;

/// Most regions that are kept: a hundred times what one small cluster has; a million cost about half a gigabyte.
const REGIONS_MAX: usize = 1_000_000;

/// The map of regions.
#[derive(Debug, Default)]
pub struct Directory {
    by_id: BTreeMap<u64, Rc<Region>>,
    /// Region ids by start key. The ranges never overlap; there may be holes.
    by_start: BTreeMap<Bytes, u64>,
    buckets: BTreeMap<u64, Rc<metapb::Buckets>>,
    tallies: tally::Tallies,
}

/// Why a region's news are not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The message lacks something.
    #[error("{0}")]
    Invalid(String),
    /// Something newer is known.
    #[error("region is stale: region {given} origin {known}")]
    Stale {
        /// What came in.
        given: String,
        /// What is known.
        known: String,
    },
    /// The map is full.
    #[error("pd keeps at most {REGIONS_MAX} regions")]
    Full,
}

/// What taking a heartbeat changed.
#[derive(Debug, Default)]
pub struct Taken {
    /// The description is new and should be kept.
    pub changed: bool,
    /// Regions that the new one has replaced.
    pub overlapped: Vec<u64>,
}

impl Directory {
    /// A map of descriptions that were kept, for the time until their leaders report.
    pub fn from_kept(regions: impl Iterator<Item = metapb::Region>) -> Directory {
        let mut directory = Directory::default();
        for meta in regions {
            // Kept descriptions may overlap if the last process died between two writes: the newer one stays.
            let _ = directory.take(Region::kept(meta));
        }
        directory
    }

    /// Number of regions.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether no region is known.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// Takes a leader's heartbeat.
    ///
    /// # Errors
    /// [`Refused`] when it lacks something or is older than what is known of the region or of its range.
    pub fn heartbeat(&mut self, request: &pdpb::RegionHeartbeatRequest, now_s: u64) -> Result<Taken, Refused> {
        let invalid = |text: &str| Refused::Invalid(text.to_owned());
        let meta = request.region.as_ref().ok_or_else(|| invalid("invalid region heartbeat: no region"))?;
        if meta.id == 0 || meta.peers.is_empty() {
            return Err(invalid("invalid region, zero region peer count"));
        }
        if meta.region_epoch.is_none() {
            return Err(invalid("invalid region, no region epoch"));
        }
        if !meta.end_key.is_empty() && meta.start_key >= meta.end_key {
            return Err(invalid("invalid region, start key is not below end key"));
        }
        let known = self.by_id.get(&meta.id);
        self.take(Region::reported(request, known.map(Rc::as_ref), now_s))
    }

    /// Takes a region's description without what its leader knows, such as after a split.
    ///
    /// # Errors
    /// [`Refused`] when it is older than what is known.
    pub fn report(&mut self, meta: &metapb::Region) -> Result<Taken, Refused> {
        let known = self.by_id.get(&meta.id);
        if known.is_some_and(|known| known.meta == *meta) {
            return Ok(Taken::default());
        }
        self.take(Region::described(meta.clone(), known.map(Rc::as_ref)))
    }

    fn take(&mut self, mut region: Region) -> Result<Taken, Refused> {
        let overlapped = self.overlapping(&region.meta.start_key, &region.meta.end_key);
        for other in overlapped.iter().filter(|other| other.meta.id != region.meta.id) {
            if region.version() < other.version() {
                return Err(stale(&region, other));
            }
        }
        let known = self.by_id.get(&region.meta.id).cloned();
        if let Some(known) = &known {
            let term_behind = region.term > 0 && region.term < known.term;
            if term_behind || region.version() < known.version() || region.conf_ver() < known.conf_ver() {
                return Err(stale(&region, known));
            }
        } else if self.by_id.len() >= REGIONS_MAX {
            return Err(Refused::Full);
        }
        let changed = known.as_ref().is_none_or(|known| known.meta != region.meta);
        let overlapped: Vec<u64> =
            overlapped.iter().map(|other| other.meta.id).filter(|id| *id != region.meta.id).collect();
        for id in &overlapped {
            self.remove(*id);
        }
        if changed {
            self.remove_range(region.meta.id);
            // The keys may be slices of a much larger receive buffer.
            region.meta.start_key = Bytes::copy_from_slice(&region.meta.start_key);
            region.meta.end_key = Bytes::copy_from_slice(&region.meta.end_key);
            self.by_start.insert(region.meta.start_key.clone(), region.meta.id);
        }
        if let Some(known) = known.filter(|_| !changed) {
            region.meta.clone_from(&known.meta);
        }
        let id = region.meta.id;
        let before = self.by_id.insert(region.meta.id, Rc::new(region));
        self.recount(before, id);
        Ok(Taken { changed, overlapped })
    }

    /// Forgets a region; false if it was not known.
    pub fn remove(&mut self, id: u64) -> bool {
        self.remove_range(id);
        self.buckets.remove(&id);
        let removed = self.by_id.remove(&id);
        if let Some(region) = &removed {
            self.tallies.leave(region);
        }
        removed.is_some()
    }

    /// Brings the stores' tallies up to what is known of `id`; `before` is what was.
    fn recount(&mut self, before: Option<Rc<Region>>, id: u64) {
        let Some(now) = self.by_id.get(&id) else { return };
        match before {
            Some(before) if before.weighs_like(now) => {}
            before => {
                before.iter().for_each(|before| self.tallies.leave(before));
                self.tallies.enter(now);
            }
        }
    }

    fn remove_range(&mut self, id: u64) {
        if let Some(region) = self.by_id.get(&id)
            && self.by_start.get(&region.meta.start_key) == Some(&id)
        {
            self.by_start.remove(&region.meta.start_key);
        }
    }

    /// Takes a region's buckets, unless newer ones are known.
    pub fn report_buckets(&mut self, buckets: metapb::Buckets) {
        let known = self.buckets.get(&buckets.region_id);
        if self.by_id.contains_key(&buckets.region_id) && known.is_none_or(|known| known.version < buckets.version) {
            self.buckets.insert(buckets.region_id, Rc::new(buckets));
        }
    }

    /// A region's buckets.
    pub fn buckets(&self, id: u64) -> Option<&Rc<metapb::Buckets>> {
        self.buckets.get(&id)
    }
}

fn stale(given: &Region, known: &Region) -> Refused {
    Refused::Stale { given: given.describe(), known: known.describe() }
}
