//! Where to cut a region that has grown too large.

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
        let versioned = cf == Cf::Write || (cf == Cf::Default && (transactional || config.versioned_raw_keys));
        let mut cuts: Vec<Vec<u8>> = family.cuts;
        if versioned {
            cuts.iter_mut().for_each(|key| key.truncate(key.len().saturating_sub(8)));
        }
        cuts.dedup();
        cuts.retain(|key| *key > region.start_key && base::keys::contains(&region.start_key, &region.end_key, key));
        cuts.truncate(config.batch_split_limit);
        total.split_keys = cuts;
    }
    Ok(total)
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
