//! Integration tests: they look at everything, and nobody imports them.
//!
//! [`sim`] runs whole clusters in one thread under seeded faults and checks histories. [`process`] starts real
//! processes. [`client`] is a small raw client of ours on the executor, for both.

pub mod client;
pub mod process;
pub mod sim;
