//! `eraftpb`, the messages that raft-rs speaks, as our own prost types.
//!
//! raft-rs 0.7 names a crate `raft-proto` for its messages. The published one runs `protoc` at build time, brings an
//! old prost, a regex engine and a parser of Rust along, and has `Vec<u8>` in its entries. This crate takes its place
//! through `[patch.crates-io]`: the same names, the same bytes on the wire, `bytes::Bytes` in the fields, so that an
//! entry is cloned by counting a reference.
//!
//! What is here is what raft-rs 0.7 and `raftstore` call, not all that a code generator would write.
//!
//! The field numbers are those of the release of `eraftpb.proto` that TiKV is built with. It has `commit_term = 15` and
//! `priority = 16` in `Message`, where the copy in kvproto still says `priority = 15`; nodes talk by the former.

mod confchange;
mod confstate;
pub mod eraftpb;
mod legacy;

pub use confchange::{ConfChangeI, new_conf_change_single, parse_conf_change, stringify_conf_change};
pub use confstate::conf_state_eq;

/// Everything that raft-rs re-exports in its own prelude.
pub mod prelude {
    pub use crate::eraftpb::{
        ConfChange, ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState, Entry, EntryType,
        HardState, Message, MessageType, Snapshot, SnapshotMetadata,
    };
}
