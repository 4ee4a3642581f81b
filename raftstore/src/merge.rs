//! What the steps of a merge make of the two regions: their epochs and the range.

use crate::epoch::epoch_of;
use proto::metapb::{Region, RegionEpoch};

/// A merge that is not carried out. Every replica comes to the same answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MergeError {
    /// The two do not touch.
    #[error("regions {source_id} and {target_id} do not touch")]
    NotNeighbours {
        /// The region that would end.
        source_id: u64,
        /// The region that would grow.
        target_id: u64,
    },
}

fn with_epoch(region: &Region, conf_ver: u64, version: u64) -> Region {
    Region { region_epoch: Some(RegionEpoch { conf_ver, version }), ..region.clone() }
}

/// The source after PrepareMerge: both halves of its epoch are raised, so nothing proposed before fits it any more.
pub fn prepare(source: &Region) -> Region {
    let epoch = epoch_of(source);
    with_epoch(source, epoch.conf_ver + 1, epoch.version + 1)
}

/// The source after RollbackMerge.
pub fn rollback(source: &Region) -> Region {
    let epoch = epoch_of(source);
    with_epoch(source, epoch.conf_ver, epoch.version + 1)
}

/// The target after CommitMerge: it covers both ranges, and its version is above both.
///
/// # Errors
/// [`MergeError::NotNeighbours`] if neither ends where the other begins.
pub fn commit(source: &Region, target: &Region) -> Result<Region, MergeError> {
    let version = epoch_of(source).version.max(epoch_of(target).version) + 1;
    let mut merged = with_epoch(target, epoch_of(target).conf_ver, version);
    // An empty end key is the end of all keys; nothing begins there.
    if !source.end_key.is_empty() && source.end_key == target.start_key {
        merged.start_key = source.start_key.clone();
    } else if !target.end_key.is_empty() && target.end_key == source.start_key {
        merged.end_key = source.end_key.clone();
    } else {
        return Err(MergeError::NotNeighbours { source_id: source.id, target_id: target.id });
    }
    Ok(merged)
}
