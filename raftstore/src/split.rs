//! What a split makes of a region.

use crate::epoch::epoch_of;
use proto::metapb::{Peer, Region, RegionEpoch};
use proto::raft_cmdpb::{BatchSplitRequest, SplitRequest};
use std::collections::BTreeSet;

/// A split that is not carried out. Every replica comes to the same answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SplitError {
    /// There is no split key.
    #[error("a split without keys")]
    NoKeys,
    /// A key is empty, not above its predecessor, or not inside the region (its start key is not).
    #[error("split key {0:?} is out of order or outside of the region")]
    BadKey(bytes::Bytes),
    /// A new region does not bring one id for each peer.
    #[error("{found} new peer ids for {expected} peers")]
    PeerCount {
        /// Peers of the region.
        expected: usize,
        /// Ids in the request.
        found: usize,
    },
    /// An id is 0 or stands for two things.
    #[error("id {0} is not a new id")]
    BadId(u64),
}

/// Splits `region` and answers all that come of it, in the order of their keys; the one with the old id is derived.
///
/// With `right_derive` the old id keeps the rightmost part, else the leftmost. All get the old version plus the number
/// of keys, and the old `conf_ver`. New peers are the old ones in order, with new ids.
///
/// Source: TiKV 8.5, `exec_batch_split`.
///
/// # Errors
/// [`SplitError`]; the region stays as it is.
pub fn split_region(region: &Region, request: &BatchSplitRequest) -> Result<Vec<Region>, SplitError> {
    check_keys(region, &request.requests)?;
    check_ids(region, &request.requests)?;

    let old = epoch_of(region);
    let epoch = RegionEpoch { conf_ver: old.conf_ver, version: old.version + request.requests.len() as u64 };
    let keys = request.requests.iter().map(|split| &split.split_key);
    let starts = std::iter::once(&region.start_key).chain(keys.clone());
    let ends = keys.chain(std::iter::once(&region.end_key));
    let derived_at = if request.right_derive { request.requests.len() } else { 0 };

    let mut new = request.requests.iter();
    let parts = starts.zip(ends).enumerate().map(|(at, (start, end))| {
        let mut part = if at == derived_at {
            region.clone()
        } else {
            let split = new.next().expect("one request for each part but the derived one");
            child(region, split)
        };
        part.start_key = start.clone();
        part.end_key = end.clone();
        part.region_epoch = Some(epoch);
        part
    });
    Ok(parts.collect())
}

fn child(region: &Region, split: &SplitRequest) -> Region {
    let peers = region.peers.iter().zip(&split.new_peer_ids);
    Region {
        id: split.new_region_id,
        peers: peers.map(|(peer, id)| Peer { id: *id, ..*peer }).collect(),
        ..Default::default()
    }
}

fn check_keys(region: &Region, splits: &[SplitRequest]) -> Result<(), SplitError> {
    if splits.is_empty() {
        return Err(SplitError::NoKeys);
    }
    let mut before = &region.start_key;
    for split in splits {
        let key = &split.split_key;
        let inside = region.end_key.is_empty() || *key < region.end_key;
        if key <= before || !inside {
            return Err(SplitError::BadKey(key.clone()));
        }
        before = key;
    }
    Ok(())
}

fn check_ids(region: &Region, splits: &[SplitRequest]) -> Result<(), SplitError> {
    let mut regions = BTreeSet::from([region.id]);
    let mut peers: BTreeSet<u64> = region.peers.iter().map(|peer| peer.id).collect();
    for split in splits {
        if split.new_peer_ids.len() != region.peers.len() {
            return Err(SplitError::PeerCount { expected: region.peers.len(), found: split.new_peer_ids.len() });
        }
        if split.new_region_id == 0 || !regions.insert(split.new_region_id) {
            return Err(SplitError::BadId(split.new_region_id));
        }
        for id in &split.new_peer_ids {
            if *id == 0 || !peers.insert(*id) {
                return Err(SplitError::BadId(*id));
            }
        }
    }
    Ok(())
}
