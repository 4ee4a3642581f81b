//! A core's work: its shards, their turns, recovery, routing between cores, and moves of regions.

mod apply;
mod birth;
mod chain;
pub(crate) mod compare;
mod config;
pub(crate) mod destroy_range;
pub mod directory;
mod disk;
mod error;
mod follower;
mod host;
mod ingest;
mod inspect;
mod leaderless;
mod lease;
mod leave;
mod lifecycle;
mod lines;
mod mail;
mod membership;
mod merge;
mod meta;
pub mod moves;
pub mod orders;
mod peer;
mod planted;
pub mod records;
mod recovery;
mod removal;
mod replication;
mod shard;
pub mod snapshots;
mod split;
pub mod spread;
mod stall;
mod turn;
mod work;

pub use compare::RegionHash;
pub use config::{ShardConfig, SnapshotConfig};
pub use disk::{DiskGauge, DiskUsage};
pub use error::RegionError;
pub use host::{ApiMode, CoreHost, CoreOutlet, NodeShared, Overloaded, SplitError, core_of, split_at};
pub use inspect::{StoredPair, StoredPeer, stored_data, stored_peers};
pub use lines::{LineFaults, Lines};
pub use mail::{
    Answer, Answered, Control, CoreMail, MoveError, PeerView, RegionDescription, RegionReport, RemoteRequest, Reply,
    Route, ShardDescription, reply,
};
pub(crate) use peer::check_store;
pub use peer::{Done, hex};
pub use planted::PlantedFault;
pub use recovery::{DamageReport, DamagedRegion, OpenError, Opened, examine, open};
pub use replication::{answer_absent, answer_merged};
pub use shard::{Outlet, RegionRead, Shard, ShardMetrics};
pub use split::{Measured, cuts_inside};
pub use turn::ShardFailure;
pub use work::RegionWork;
