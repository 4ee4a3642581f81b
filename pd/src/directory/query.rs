//! Looking regions up: by key, by id, by neighbour, by ranges.

use super::{Directory, Region};
use bytes::Bytes;
use std::ops::Bound;
use std::rc::Rc;

/// A range of keys; `end` empty means to the end of all keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScanRange {
    /// First key.
    pub start: Bytes,
    /// End, exclusive.
    pub end: Bytes,
}

/// Why ranges cannot be scanned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RangesError {
    /// A range begins before the one in front of it ends.
    #[error("invalid key range, ranges overlapped")]
    Overlapping,
    /// A range ends before it begins.
    #[error("invalid key range, start key > end key")]
    Inverted,
    /// A hole, and the caller wants none.
    #[error("found a hole region in the key range")]
    Hole,
}

impl Directory {
    /// The region with `id`.
    pub fn by_id(&self, id: u64) -> Option<&Rc<Region>> {
        self.by_id.get(&id)
    }

    /// The region that contains `key`.
    pub fn by_key(&self, key: &[u8]) -> Option<&Rc<Region>> {
        let (_, id) = self.by_start.range::<[u8], _>((Bound::Unbounded, Bound::Included(key))).next_back()?;
        self.by_id.get(id).filter(|region| region.contains(key))
    }

    /// The neighbour in front of the region that contains `key`: the one that ends where that one starts.
    pub fn before_key(&self, key: &[u8]) -> Option<&Rc<Region>> {
        let start = &self.by_key(key)?.meta.start_key;
        let (_, id) =
            self.by_start.range::<[u8], _>((Bound::Unbounded, Bound::Excluded(start.as_ref()))).next_back()?;
        self.by_id.get(id).filter(|region| region.meta.end_key == *start)
    }

    /// The neighbour behind `region`.
    pub fn after(&self, region: &Region) -> Option<&Rc<Region>> {
        let end = &region.meta.end_key;
        if end.is_empty() { None } else { self.by_id.get(self.by_start.get(end)?) }
    }

    /// Every region, in the order of keys.
    pub fn iter(&self) -> impl Iterator<Item = &Rc<Region>> {
        self.by_start.values().filter_map(|id| self.by_id.get(id))
    }

    /// Regions that have keys of `[start, end)`, in order; the first one may begin before `start`.
    pub fn scan<'a>(&'a self, start: &'a [u8], end: &'a [u8]) -> impl Iterator<Item = &'a Rc<Region>> {
        let first = self.by_key(start).map_or(start, |region| region.meta.start_key.as_ref());
        self.by_start
            .range::<[u8], _>((Bound::Included(first), Bound::Unbounded))
            .filter_map(|(_, id)| self.by_id.get(id))
            .take_while(move |region| end.is_empty() || region.meta.start_key < end)
    }

    /// Regions whose range overlaps `[start, end)`.
    pub(super) fn overlapping(&self, start: &[u8], end: &[u8]) -> Vec<Rc<Region>> {
        self.scan(start, end).cloned().collect()
    }

    /// Scans several ranges, sorted and apart; a region that two of them share comes once. `limit` counts regions
    /// over all ranges, 0 means all.
    ///
    /// # Errors
    /// [`RangesError`] for ranges that are not in order, or, if `whole`, for keys that no region covers.
    pub fn scan_ranges(&self, ranges: &[ScanRange], limit: usize, whole: bool) -> Result<Vec<Rc<Region>>, RangesError> {
        check_ranges(ranges)?;
        let limit = if limit == 0 { usize::MAX } else { limit };
        let mut found: Vec<Rc<Region>> = Vec::new();
        for range in ranges {
            // How far the regions reach without a hole; `None`: to the end of all keys.
            let mut covered = Some(range.start.clone());
            for region in self.scan(&range.start, &range.end) {
                let shared = found.last().is_some_and(|last| last.meta.id == region.meta.id);
                if !shared && found.len() == limit {
                    return Ok(found);
                }
                if whole && covered.as_ref().is_some_and(|covered| region.meta.start_key > *covered) {
                    return Err(RangesError::Hole);
                }
                covered = Some(region.meta.end_key.clone()).filter(|end| !end.is_empty());
                if !shared {
                    found.push(Rc::clone(region));
                }
            }
            let reached = covered.is_none_or(|covered| !range.end.is_empty() && covered >= range.end);
            if whole && !reached && found.len() < limit {
                return Err(RangesError::Hole);
            }
        }
        Ok(found)
    }
}

fn check_ranges(ranges: &[ScanRange]) -> Result<(), RangesError> {
    for (at, range) in ranges.iter().enumerate() {
        if !range.end.is_empty() && range.start > range.end {
            return Err(RangesError::Inverted);
        }
        if let Some(next) = ranges.get(at + 1)
            && (range.end.is_empty() || range.end > next.start)
        {
            return Err(RangesError::Overlapping);
        }
    }
    Ok(())
}
