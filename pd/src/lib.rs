//! The placement driver: timestamps, the cluster's region directory, ids, safe points and keyspaces, on one port that
//! speaks gRPC (PD's services and the part of etcd's that stock clients call) and HTTP/1.1.
//!
//! ```text
//!     gRPC, HTTP      service, http      what callers may ask, and with which words they are refused
//!        │                │
//!        │      ┌─────────┼───────────┬────────┐
//!        │    state   directory   schedule   tso   pure: commands in, changes out
//!        │      │ changes
//!        └── storage                               one journal; nobody is answered before it is durable
//! ```
//!
//! - [`state`] is what must survive: an ordered map with etcd's revisions ([`kv`]), under PD's keys.
//! - [`directory`] is what the leaders' heartbeats tell; only region descriptions are kept, lazily.
//! - [`schedule`] says where replicas and leaders should be, and what leaders are asked for to bring them there.
//! - [`tso`] gives timestamps from memory below a bound that is durable.
//! - [`storage`] is one file journal behind the trait [`storage::Journal`], in whose place a raft group will stand.
//!
//! It never: decodes a key, reads a clock outside of the executor, or tells what is not durable.

mod config;
pub mod directory;
mod http;
pub mod kv;
mod metrics;
pub mod schedule;
mod server;
mod service;
mod signal;
pub mod state;
pub mod storage;
pub mod tso;

pub use config::{ANNOUNCED_VERSION, PdConfig};
pub use metrics::PdMetrics;
pub use server::{PdError, PdServer, run, run_with};
