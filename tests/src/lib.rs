//! Integration tests: they look at everything, and nobody imports them.
//!
//! [`sim`] runs whole clusters in one thread under seeded faults and checks histories. [`client`] is a small raw client
//! of ours on the executor. Tests against real processes are a crate of their own, `tests/wire`.

pub mod client;
pub mod sim;
