//! Multi-raft as a state machine: inputs in, effects out. No I/O, no clock, no threads.
//!
//! - [`Peer`] is one region's replica; [`Input`] and [`Effect`] are all it has to do with the world.
//! - [`command`] is what stands in a raft entry, byte for byte as TiKV writes it.
//! - [`epoch`], [`split`], [`membership`] and [`merge`] say what a command checks and changes of a region: pure
//!   functions, since every replica must come to the same answer.
//! - [`state`] encodes what a peer keeps in family `raft`.
//!
//! raft-rs 0.7 is inside, and named nowhere else. Its messages are ours (`raft-proto` in this folder), with `Bytes` where
//! the published ones have `Vec<u8>`. So the bytes of an entry are written once by [`command::encode_write`], and from
//! then on raft-rs's log, the cache, [`Effect::Persist`], every [`Effect::Send`] and [`Effect::Apply`] share them by
//! count. They are copied where they leave: into the log's block, into each follower's frame, into the engine's batch.
//! A follower cuts them out of the frame that came in without copying (see the tests of `raft-proto`).

pub mod command;
mod config;
pub mod epoch;
mod init;
mod io;
mod log_bridge;
mod log_view;
pub mod membership;
pub mod merge;
mod peer;
mod proposals;
mod screen;
mod sending;
pub mod split;
pub mod state;

pub use config::RaftConfig;
pub use init::{
    InitError, LogPosition, PeerInit, RAFT_INIT_LOG_INDEX, RAFT_INIT_LOG_TERM, conf_state, first_hard_state,
};
pub use io::{Committed, Effect, Input, RejectReason, Role, RoleKind};
pub use peer::{Peer, PeerLoad};
/// The messages of raft-rs.
pub use raft_proto::eraftpb;
