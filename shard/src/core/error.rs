//! Why a request could not be served by a region's peer. `service::errors` turns these into `errorpb.Error`.

use base::{PeerId, RegionId, StoreId};
use proto::metapb;

/// What stands between a request and its region, in the words of `errorpb.Error`.
///
/// Every variant but [`RegionError::Undetermined`] says that nothing was and nothing will be done.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum RegionError {
    /// The request was sent to another store's address.
    #[error("request is for store {request}, this is store {actual}")]
    StoreNotMatch {
        /// Whom the client meant.
        request: StoreId,
        /// Who we are.
        actual: StoreId,
    },
    /// No peer of the region is here.
    #[error("region {0} is not found")]
    RegionNotFound(RegionId),
    /// Our peer of the region has another id.
    #[error("request is for peer {request} of region {region}, this is peer {actual}")]
    MismatchPeerId {
        /// The region.
        region: RegionId,
        /// Whom the client meant.
        request: PeerId,
        /// Who we are.
        actual: PeerId,
    },
    /// Our peer does not lead, or not yet.
    #[error("peer is not leader of region {region}")]
    NotLeader {
        /// The region.
        region: RegionId,
        /// Who leads, if known.
        leader: Option<metapb::Peer>,
    },
    /// A read of the past, of which a follower does not know how far back it would have to be.
    #[error("data of region {region} is not ready at peer {peer}")]
    DataIsNotReady {
        /// The region.
        region: RegionId,
        /// Our peer.
        peer: PeerId,
    },
    /// The client's term is too old, or leadership changed before the command was proposed.
    #[error("stale command")]
    StaleCommand,
    /// The region was split or merged since the client learned of it.
    #[error("epoch of region {region} is {version}:{conf_ver}, the request has another")]
    EpochNotMatch {
        /// The region.
        region: RegionId,
        /// Our `version`.
        version: u64,
        /// Our `conf_ver`.
        conf_ver: u64,
        /// The region as it is now, then those that were split off here.
        current: Vec<metapb::Region>,
    },
    /// A key is outside the region although the epoch matches.
    #[error("key is not in region {}", region.id)]
    KeyNotInRegion {
        /// The key.
        key: Vec<u8>,
        /// The region.
        region: Box<metapb::Region>,
    },
    /// A bounded wait for room ended.
    #[error("server is busy: {reason}")]
    ServerIsBusy {
        /// What is full.
        reason: String,
        /// When to come back, in milliseconds.
        backoff_ms: u64,
    },
    /// The request's deadline passed before it was proposed.
    #[error("deadline is exceeded")]
    DeadlineExceeded,
    /// The command would make a raft entry above the limit.
    #[error("raft entry of {entry_bytes} bytes is too large")]
    EntryTooLarge {
        /// The region.
        region: RegionId,
        /// What it would take.
        entry_bytes: u64,
    },
    /// Disks have no room for writes of clients.
    #[error("the disks of stores {stores:?} are full")]
    DiskFull {
        /// Whose: the leader's own, or those without which there is no quorum.
        stores: Vec<StoreId>,
    },
    /// The region is about to merge into a neighbour, and takes no requests.
    #[error("region {0} is merging")]
    Merging(RegionId),
    /// The region is on its way to another shard of this node, or another member takes its lead over: ask the directory again
    /// in a moment. Never leaves the node.
    #[error("region {0} changes hands")]
    Moving(RegionId),
    /// The peer's part of the raft log is damaged: it neither votes nor serves.
    #[error("raft log of region {0} is damaged")]
    Damaged(RegionId),
    /// The peer's data differ from its leader's: it neither votes nor serves.
    #[error("replica of region {0} differs from its leader's")]
    Diverged(RegionId),
    /// A transaction wants to pick its commit timestamp, and it is not known yet at which timestamps the region was read
    /// before it was served here.
    #[error("max timestamp of region {0} is not synced")]
    MaxTimestampNotSynced(RegionId),
    /// A client's timestamp is far ahead of the placement driver's. Clients look for the text.
    #[error("invalid max_ts update: {0}")]
    InvalidMaxTs(u64),
    /// The shard is closing, after a failure or at the end of the process.
    #[error("TiKV is Closing")]
    Closing,
    /// The command was proposed, and its fate is unknown.
    #[error("the result of the command is not known")]
    Undetermined,
}
