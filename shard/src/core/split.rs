//! Where to cut a region that has grown too large, or that is to be halved.

use mvcc::Cf;
use proto::metapb;

use super::config::ShardConfig;
use crate::engine::{Engine, EngineIter as _, EngineSnapshot as _, Tier, data_range};

/// What a walk over a region found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Measured {
    /// Bytes of keys and values, all data families.
    pub bytes: u64,
    /// Entries, all data families.
    pub keys: u64,
    /// Where to cut, ascending; empty if the region is not too large.
    pub split_keys: Vec<Vec<u8>>,
}

struct FamilyMeasure {
    bytes: u64,
    keys: u64,
    cuts: Vec<Vec<u8>>,
}

/// Walks over the region's data. Helpers only: it reads every block of the region once.
///
/// The cuts come from the family with the most bytes, one after every `region_split_bytes` or `region_split_keys`,
/// `batch_split_limit` at most; a piece that would be less than half of that stays with its neighbour.
///
/// # Errors
/// What the engine said.
pub(crate) fn measure<E: Engine>(
    snapshot: &E::Snapshot,
    region: &metapb::Region,
    config: &ShardConfig,
) -> Result<Measured, String> {
    let mut total = Measured::default();
    let mut largest: Option<(Cf, FamilyMeasure)> = None;
    let mut transactional = false;
    for cf in Cf::DATA {
        let family = measure_family::<E>(snapshot, cf, region, config)?;
        total.bytes += family.bytes;
        total.keys += family.keys;
        transactional |= cf == Cf::Write && family.keys > 0;
        if largest.as_ref().is_none_or(|(_, held)| family.bytes > held.bytes) {
            largest = Some((cf, family));
        }
    }
    let too_large = total.bytes >= config.region_max_bytes || total.keys >= config.region_max_keys;
    if let Some((cf, family)) = largest.filter(|_| too_large) {
        let mut cuts: Vec<Vec<u8>> = family.cuts;
        if is_versioned(cf, transactional, config) {
            cuts.iter_mut().for_each(|key| key.truncate(key.len().saturating_sub(8)));
        }
        cuts.dedup();
        cuts.retain(|key| *key > region.start_key && base::keys::contains(&region.start_key, &region.end_key, key));
        cuts.truncate(config.batch_split_limit);
        total.split_keys = cuts;
    }
    Ok(total)
}

/// Whether the family's keys end in a timestamp, which a cut must not have.
fn is_versioned(cf: Cf, transactional: bool, config: &ShardConfig) -> bool {
    cf == Cf::Write || (cf == Cf::Default && (transactional || config.versioned_raw_keys))
}

/// The keys among `asked` at which `region` can be cut, ascending: its start key is none of them.
pub fn cuts_inside(region: &metapb::Region, mut asked: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    asked.sort();
    asked.dedup();
    asked.retain(|key| key[..] > region.start_key[..] && base::keys::contains(&region.start_key, &region.end_key, key));
    asked
}

/// The key that halves the region's bytes, however small it is; `None` if it has fewer than two keys. Helpers only: it
/// reads every block of the region once.
///
/// # Errors
/// What the engine said.
pub(crate) fn middle<E: Engine>(
    snapshot: &E::Snapshot,
    region: &metapb::Region,
    config: &ShardConfig,
) -> Result<Option<Vec<u8>>, String> {
    let (lower, upper) = data_range(&region.start_key, &region.end_key);
    let mut largest: Option<(Cf, Sample)> = None;
    let mut transactional = false;
    for cf in Cf::DATA {
        let mut iter = snapshot.iter(cf, &lower, &upper, Tier::Disk, false);
        let mut sample = Sample::new();
        let mut at = iter.seek(&lower).map_err(|error| error.to_string())?;
        while let Some((key, value)) = at {
            sample.take(&key[1..], (key.len() - 1 + value.len()) as u64);
            at = iter.next().map_err(|error| error.to_string())?;
        }
        transactional |= cf == Cf::Write && sample.entries > 0;
        if largest.as_ref().is_none_or(|(_, held)| sample.bytes > held.bytes) {
            largest = Some((cf, sample));
        }
    }
    let Some((cf, sample)) = largest else { return Ok(None) };
    let suffix = if is_versioned(cf, transactional, config) { 8 } else { 0 };
    Ok(sample.middle(suffix).filter(|key| !cuts_inside(region, vec![key.clone()]).is_empty()))
}

/// Keys of a walk with how many bytes lay in front of each, evenly thinned out so that they stay few.
struct Sample {
    keys: Vec<(u64, Vec<u8>)>,
    /// Every so many entries one is kept.
    every: u64,
    entries: u64,
    bytes: u64,
}

impl Sample {
    /// Most keys that are held: the middle is found to within a 512th of the entries.
    const KEYS_MAX: usize = 1024;

    fn new() -> Sample {
        Sample { keys: Vec::new(), every: 1, entries: 0, bytes: 0 }
    }

    fn take(&mut self, key: &[u8], size: u64) {
        if self.entries.is_multiple_of(self.every) {
            if self.keys.len() == Self::KEYS_MAX {
                let mut at = 0;
                self.keys.retain(|_| {
                    at += 1;
                    at % 2 == 1
                });
                self.every *= 2;
            }
            if self.entries.is_multiple_of(self.every) {
                self.keys.push((self.bytes, key.to_vec()));
            }
        }
        self.entries += 1;
        self.bytes += size;
    }

    /// The key nearest to the middle that has others in front of it, without the last `suffix` bytes.
    fn middle(self, suffix: usize) -> Option<Vec<u8>> {
        let half = self.bytes / 2;
        let mut keys = self.keys.into_iter().map(|(before, mut key)| {
            key.truncate(key.len().saturating_sub(suffix));
            (before, key)
        });
        let (_, first) = keys.next()?;
        keys.filter(|(_, key)| *key > first).min_by_key(|(before, _)| before.abs_diff(half)).map(|(_, key)| key)
    }
}

fn measure_family<E: Engine>(
    snapshot: &E::Snapshot,
    cf: Cf,
    region: &metapb::Region,
    config: &ShardConfig,
) -> Result<FamilyMeasure, String> {
    let (lower, upper) = data_range(&region.start_key, &region.end_key);
    let mut iter = snapshot.iter(cf, &lower, &upper, Tier::Disk, false);
    let mut family = FamilyMeasure { bytes: 0, keys: 0, cuts: Vec::new() };
    let (mut piece_bytes, mut piece_keys) = (0, 0);
    let mut at = iter.seek(&lower).map_err(|error| error.to_string())?;
    while let Some((key, value)) = at {
        if piece_bytes >= config.region_split_bytes || piece_keys >= config.region_split_keys {
            family.cuts.push(key[1..].to_vec());
            (piece_bytes, piece_keys) = (0, 0);
        }
        let size = (key.len() - 1 + value.len()) as u64;
        family.bytes += size;
        family.keys += 1;
        piece_bytes += size;
        piece_keys += 1;
        at = iter.next().map_err(|error| error.to_string())?;
    }
    if piece_bytes < config.region_split_bytes / 2 && piece_keys < config.region_split_keys / 2 && family.cuts.len() > 1
    {
        family.cuts.pop();
    }
    Ok(family)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(keys: impl Iterator<Item = (Vec<u8>, u64)>) -> Sample {
        let mut sample = Sample::new();
        keys.for_each(|(key, size)| sample.take(&key, size));
        sample
    }

    #[test]
    fn the_middle_halves_bytes_and_not_keys() {
        let sizes = [10, 10, 10, 10, 1000, 10];
        let found = sample(sizes.iter().enumerate().map(|(at, size)| (vec![at as u8], *size)));
        assert_eq!(found.middle(0), Some(vec![4]), "40 bytes in front of it, 1010 behind");
        let found = sample((0..100_000_u32).map(|at| (at.to_be_bytes().to_vec(), 7)));
        assert!(found.keys.len() <= Sample::KEYS_MAX);
        let middle = found.middle(0).map(|key| u32::from_be_bytes(key.try_into().expect("four bytes")));
        assert!(middle.is_some_and(|middle| middle.abs_diff(50_000) < 200), "{middle:?}");
    }

    #[test]
    fn versions_of_one_key_stay_together() {
        let versions = |keys: &[u8]| sample(keys.iter().map(|key| (vec![*key, 0, 0, 0, 0, 0, 0, 0, 1], 10)));
        assert_eq!(versions(b"aaaaaaaaab").middle(8), Some(b"b".to_vec()));
        assert_eq!(versions(b"aaaa").middle(8), None, "one key cannot be cut");
        assert_eq!(versions(b"").middle(8), None);
    }

    #[test]
    fn a_cut_lies_inside_and_never_at_the_start() {
        let region = metapb::Region { start_key: "b".into(), end_key: "f".into(), ..Default::default() };
        let asked = ["f", "d", "b", "a", "d", "c"].map(|key| key.as_bytes().to_vec()).to_vec();
        assert_eq!(cuts_inside(&region, asked), [b"c".to_vec(), b"d".to_vec()]);
    }
}
