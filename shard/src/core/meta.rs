//! What a shard knows of one of its peers apart from raft: the region, what was applied, how large it is.

use std::sync::Arc;

use base::{PeerId, RegionId, StoreId};
use mvcc::Cf;
use prost::Message as _;
use proto::raft_serverpb::MergeState;
use proto::{metapb, raft_serverpb};

use super::chain::{ApplyExtra, Chain};
use super::merge::local_state;
use super::records::{PeerExtra, apply_state, peer_extra_key};
use crate::engine::WriteBatch;

/// Index and term of the first entry that a new region could have (compat: `RAFT_INIT_LOG_INDEX`).
pub(crate) const INITIAL_INDEX: u64 = 5;

/// A peer's durable state beside the raft log, as the engine's family `raft` holds it.
#[derive(Clone, Debug)]
pub(crate) struct PeerMeta {
    /// The region; shared with the reads that are under way.
    pub(crate) region: Arc<metapb::Region>,
    /// Our peer of it.
    pub(crate) peer: metapb::Peer,
    /// Index of the last entry whose effects are in the engine.
    pub(crate) applied_index: u64,
    /// Term of that entry.
    pub(crate) applied_term: u64,
    /// Set once the region has prepared to merge into a neighbour: from then on it takes nothing.
    pub(crate) merge: Option<MergeState>,
    /// The region's version when this copy began; since then it has followed the log without a gap.
    pub(crate) began_version: u64,
    /// What the entries up to there did.
    pub(crate) chain: Chain,
    /// Number of the last move between shards.
    pub(crate) move_number: u64,
    /// Estimated bytes of keys and values.
    pub(crate) approximate_bytes: u64,
    /// Estimated number of keys.
    pub(crate) approximate_keys: u64,
}

impl PeerMeta {
    /// The peer of `store` in a region that was just made. `None` if the region has no peer there.
    pub(crate) fn first(region: metapb::Region, store: StoreId) -> Option<PeerMeta> {
        let peer = *region.peers.iter().find(|peer| peer.store_id == store.0)?;
        let began_version = raftstore::epoch::epoch_of(&region).version;
        Some(PeerMeta {
            chain: Chain::born(RegionId(region.id)),
            region: Arc::new(region),
            peer,
            applied_index: INITIAL_INDEX,
            applied_term: INITIAL_INDEX,
            merge: None,
            began_version,
            move_number: 0,
            approximate_bytes: 0,
            approximate_keys: 0,
        })
    }

    pub(crate) fn region_id(&self) -> RegionId {
        RegionId(self.region.id)
    }

    pub(crate) fn peer_id(&self) -> PeerId {
        PeerId(self.peer.id)
    }

    pub(crate) fn version(&self) -> u64 {
        self.region.region_epoch.as_ref().map_or(0, |epoch| epoch.version)
    }

    pub(crate) fn conf_ver(&self) -> u64 {
        self.region.region_epoch.as_ref().map_or(0, |epoch| epoch.conf_ver)
    }

    /// Puts what was applied into `batch`, which holds the effects of the entries up to there.
    pub(crate) fn put_applied(&self, batch: &mut impl WriteBatch) {
        let mut state = apply_state(self.applied_index, self.applied_term).encode_to_vec();
        let extra = ApplyExtra { chain: self.chain.record() };
        // The fields of both follow each other: to each reader those of the other are unknown ones.
        extra.encode(&mut state).expect("a vector grows");
        batch.put(Cf::Raft, &base::keys::apply_state(self.region_id()), &state);
    }

    /// Puts the region, what was applied and our own record into `batch`.
    pub(crate) fn put_all(&self, batch: &mut impl WriteBatch) {
        let state = raftstore::state::encode_region_state(local_state(self), &self.region, self.merge.clone());
        batch.put(Cf::Raft, &base::keys::region_state(self.region_id()), &state);
        self.put_extra(batch);
        self.put_applied(batch);
    }

    fn put_extra(&self, batch: &mut impl WriteBatch) {
        let extra = PeerExtra {
            move_number: self.move_number,
            approximate_bytes: self.approximate_bytes,
            approximate_keys: self.approximate_keys,
            began_version: self.began_version,
        };
        batch.put(Cf::Raft, &peer_extra_key(self.region_id()), &extra.encode_to_vec());
    }

    /// Deletes the region's data and the records of the peer, but for a tombstone.
    pub(crate) fn bury(&self, batch: &mut impl WriteBatch) {
        erase_range(batch, &self.region.start_key, &self.region.end_key);
        self.entomb(None, batch);
    }

    /// Deletes the records of the peer, but for a tombstone that says since when it had followed its log, and which
    /// region `target`, as it was before, its data have gone over to.
    pub(crate) fn retire(&self, target: &metapb::Region, commit: u64, batch: &mut impl WriteBatch) {
        let merge = MergeState { min_index: commit, target: Some(target.clone()), commit };
        self.entomb(Some(merge), batch);
        self.put_extra(batch);
    }

    fn entomb(&self, merge: Option<MergeState>, batch: &mut impl WriteBatch) {
        self.erase_records(batch);
        let state = raft_serverpb::PeerState::Tombstone;
        let tombstone = raftstore::state::encode_region_state(state, &self.region, merge);
        batch.put(Cf::Raft, &base::keys::region_state(self.region_id()), &tombstone);
    }

    /// Deletes the region's data and all records of the peer.
    pub(crate) fn erase(&self, batch: &mut impl WriteBatch) {
        erase_range(batch, &self.region.start_key, &self.region.end_key);
        self.erase_records(batch);
    }

    fn erase_records(&self, batch: &mut impl WriteBatch) {
        let id = self.region_id();
        batch.delete(Cf::Raft, &base::keys::region_state(id));
        batch.delete(Cf::Raft, &base::keys::apply_state(id));
        batch.delete(Cf::Raft, &peer_extra_key(id));
    }
}

/// Deletes `[start, end)` from the data families; an empty `end` is infinity. Keys without the `z`.
pub(crate) fn erase_range(batch: &mut impl WriteBatch, start: &[u8], end: &[u8]) {
    let (start, end) = (base::keys::data_key(start), base::keys::data_end_key(end));
    for cf in Cf::DATA {
        batch.delete_range(cf, &start, &end);
    }
}
