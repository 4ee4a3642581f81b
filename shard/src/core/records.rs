//! Payloads of lifecycle records, and the engine's records of a peer that are ours alone. See docs/formats.md.

use base::RegionId;
use bytes::Bytes;
use proto::{metapb, raft_serverpb};

pub use super::chain::ChainRecord;

/// Payload of `Home`: all that a shard needs to take a peer over, once the data is durable in its engine.
#[derive(Clone, PartialEq, prost::Message)]
pub struct HomeRecord {
    /// The region as it was when its writes were stopped.
    #[prost(message, optional, tag = "1")]
    pub region: Option<metapb::Region>,
    /// Our peer's id.
    #[prost(uint64, tag = "2")]
    pub peer_id: u64,
    /// Number of this move; the copy with the highest wins.
    #[prost(uint64, tag = "3")]
    pub move_number: u64,
    /// Raft's term at the source.
    #[prost(uint64, tag = "4")]
    pub term: u64,
    /// Raft's vote in that term.
    #[prost(uint64, tag = "5")]
    pub vote: u64,
    /// Index of the last entry that is applied. Those after it are in the record's log effect.
    #[prost(uint64, tag = "6")]
    pub applied_index: u64,
    /// Term of that entry.
    #[prost(uint64, tag = "7")]
    pub applied_term: u64,
    /// Estimated size in bytes.
    #[prost(uint64, tag = "8")]
    pub approximate_bytes: u64,
    /// Estimated number of keys.
    #[prost(uint64, tag = "9")]
    pub approximate_keys: u64,
    /// The region's version when this copy began to follow the log; 0 if it begins with this record.
    #[prost(uint64, tag = "10")]
    pub began_version: u64,
    /// Set if the region has prepared to merge.
    #[prost(message, optional, tag = "11")]
    pub merge: Option<raft_serverpb::MergeState>,
    /// The consistency chain at that entry; unknown if there is none.
    #[prost(message, optional, tag = "12")]
    pub chain: Option<ChainRecord>,
}

/// Payload of `Split`: the entry that made the children, so that a replay makes them before anything of theirs.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SplitRecord {
    /// Index of the parent's entry.
    #[prost(uint64, tag = "1")]
    pub index: u64,
    /// The regions that the split made, the parent's remainder included.
    #[prost(message, repeated, tag = "2")]
    pub regions: Vec<metapb::Region>,
}

/// Payload of `CommitMerge`: the entry by which a region took over a neighbour's range, whose peer on this shard ended.
#[derive(Clone, PartialEq, prost::Message)]
pub struct MergeRecord {
    /// Index of the target's entry.
    #[prost(uint64, tag = "1")]
    pub index: u64,
    /// Its term.
    #[prost(uint64, tag = "2")]
    pub term: u64,
    /// The region that ended.
    #[prost(uint64, tag = "3")]
    pub source: u64,
    /// Our peer of it.
    #[prost(uint64, tag = "4")]
    pub source_peer: u64,
    /// The target with its new range.
    #[prost(message, optional, tag = "5")]
    pub region: Option<metapb::Region>,
    /// Index of the source's last entry that counts, its PrepareMerge.
    #[prost(uint64, tag = "6")]
    pub commit: u64,
}

/// Payload of `MovedAway` and `Destroyed`: the peer's last applied entry and the range to erase.
#[derive(Clone, PartialEq, prost::Message)]
pub struct EndRecord {
    /// Entries up to here were applied before the end.
    #[prost(uint64, tag = "1")]
    pub applied_index: u64,
    /// First key of the range, inclusive.
    #[prost(bytes = "bytes", tag = "2")]
    pub start: Bytes,
    /// Last key, exclusive; empty is infinity.
    #[prost(bytes = "bytes", tag = "3")]
    pub end: Bytes,
    /// The move number of the copy that ends here.
    #[prost(uint64, tag = "4")]
    pub move_number: u64,
}

/// Payload of `DestroyRange`: a store-wide removal that is no raft entry.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DestroyRangeRecord {
    /// First key, inclusive.
    #[prost(bytes = "bytes", tag = "1")]
    pub start: Bytes,
    /// Last key, exclusive; empty is infinity.
    #[prost(bytes = "bytes", tag = "2")]
    pub end: Bytes,
}

/// Payload of `Applying`: a region's data that comes at once instead of in entries, to be applied as a redo: as files, or,
/// if there are none, in the record.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ApplyingRecord {
    /// What the peer is once the files are in.
    #[prost(message, optional, tag = "1")]
    pub home: Option<HomeRecord>,
    /// File names below the shard's `snap` folder, whose extensions name their families; in key order within a family.
    #[prost(string, repeated, tag = "2")]
    pub files: Vec<String>,
    /// All data of the region, if it comes without files: engine keys, each behind the number of its family.
    #[prost(message, repeated, tag = "3")]
    pub pairs: Vec<raft_serverpb::KeyValue>,
}

/// Engine record of a peer beside TiKV's two: what only Basalt keeps. Key: [`peer_extra_key`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct PeerExtra {
    /// Number of the last move between shards.
    #[prost(uint64, tag = "1")]
    pub move_number: u64,
    /// Estimated size in bytes when the record was written.
    #[prost(uint64, tag = "2")]
    pub approximate_bytes: u64,
    /// Estimated number of keys when the record was written.
    #[prost(uint64, tag = "3")]
    pub approximate_keys: u64,
    /// The region's version when this copy began to follow the log.
    #[prost(uint64, tag = "4")]
    pub began_version: u64,
}

/// Engine record of the shard: the last lifecycle event whose effects are in the engine. Key: [`SHARD_STATE_KEY`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct ShardState {
    /// Event number.
    #[prost(uint64, tag = "1")]
    pub last_event: u64,
}

/// Key of [`ShardState`], in family `raft`.
pub const SHARD_STATE_KEY: &[u8] = &[0x01, 0x04];

/// Key of a region's [`PeerExtra`], in family `raft`.
pub fn peer_extra_key(region: RegionId) -> [u8; 11] {
    let mut key = base::keys::region_state(region);
    key[1] = 0x05;
    key
}

/// The apply state of a peer that has applied the entry (`index`, `term`) and keeps no entry below it.
pub fn apply_state(index: u64, term: u64) -> raft_serverpb::RaftApplyState {
    raft_serverpb::RaftApplyState {
        applied_index: index,
        commit_index: index,
        commit_term: term,
        truncated_state: Some(raft_serverpb::RaftTruncatedState { index, term }),
        ..Default::default()
    }
}
