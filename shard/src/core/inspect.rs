//! What an engine holds, for those who compare replicas: read only, and blocking as an engine is. Helpers and tests only.

use base::StoreId;
use bytes::Bytes;
use mvcc::Cf;
use proto::metapb;

use super::recovery::load;
use crate::engine::{Engine, EngineIter as _, EngineSnapshot as _, Tier};

/// A peer as its engine holds it.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredPeer {
    /// Its region.
    pub region: metapb::Region,
    /// Index of the last entry whose effects are in the engine.
    pub applied_index: u64,
    /// Number of its last move between shards.
    pub move_number: u64,
}

/// A key with its value, both as the engine has them, and the family's number.
pub type StoredPair = (usize, Bytes, Bytes);

/// The peers of `store` in this engine, by region.
///
/// # Errors
/// What the engine says.
pub fn stored_peers<E: Engine>(engine: &E, store: StoreId) -> Result<Vec<StoredPeer>, String> {
    let metas = load(engine, store)?.metas.into_iter();
    let stored = metas.map(|meta| StoredPeer {
        region: (*meta.region).clone(),
        applied_index: meta.applied_index,
        move_number: meta.move_number,
    });
    Ok(stored.collect())
}

/// All pairs of the data families in this engine from `start` to below `end`, family by family in key order.
///
/// # Errors
/// What the engine says.
pub fn stored_data<E: Engine>(engine: &E, start: &[u8], end: &[u8]) -> Result<Vec<StoredPair>, String> {
    let snapshot = engine.snapshot();
    let mut pairs = Vec::new();
    for cf in Cf::DATA {
        let mut iter = snapshot.iter(cf, start, end, Tier::Disk, false);
        let mut at = iter.first().map_err(|error| error.to_string())?;
        while let Some((key, value)) = at {
            pairs.push((cf.index(), Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
            at = iter.next().map_err(|error| error.to_string())?;
        }
    }
    Ok(pairs)
}
