//! What happens on a core: the storage engine, the raft log, the turn that joins them, and the service in front.

pub mod core;
pub mod engine;
pub mod log;
pub mod node;
pub mod pd_client;
pub mod service;
