//! The placement driver: timestamps, the cluster's region directory, ids, safe points and keyspaces, on one port that
//! speaks gRPC (PD's services and the part of etcd's that stock clients call) and HTTP/1.1.
//!
//! ```text
//!     gRPC, HTTP       member            who answers: this member, its leader's core, or another member
//!        │                │
//!        │          service, http         what callers may ask a leader, and with which words they are refused
//!        │      ┌─────────┼───────────┬────────┐
//!        │    state   directory   schedule   tso   pure: commands in, changes out
//!        │      │ changes
//!        │     raft                                pure: one member's part in the group of 1, 3 or 5
//!        └── storage                               one journal; nobody is answered before a majority has it
//! ```
//!
//! - [`raft`] makes one log of the changes of all leaders, and says who may answer.
//! - [`state`] is what must survive: an ordered map with etcd's revisions ([`kv`]), under PD's keys.
//! - [`directory`] is what the leaders' heartbeats tell; only region descriptions are kept, lazily.
//! - [`schedule`] says where replicas and leaders should be, and what leaders are asked for to bring them there.
//! - [`tso`] gives timestamps from memory below a bound that is durable.
//! - [`storage`] is the file journal of a member's log and state.
//!
//! What leads is made anew with each term: a core begins with what the group has committed, and is gone with its term. So
//! nothing that was not committed can be seen later, and regions and stores are heard of again.
//!
//! It never: decodes a key, reads a clock outside of the executor, or tells what is not durable.

mod clock;
mod config;
pub mod directory;
mod http;
pub mod kv;
mod member;
mod metrics;
pub mod raft;
pub mod schedule;
mod server;
mod service;
mod signal;
pub mod state;
pub mod storage;
pub mod tso;

pub use config::{ANNOUNCED_VERSION, PdConfig};
pub use member::GroupError;
pub use metrics::PdMetrics;
pub use server::{PdError, PdServer, run, run_with};
