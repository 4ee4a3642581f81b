//! Words that every crate shares: identifiers, time, seeded random numbers, and the byte encodings of keys.
//!
//! Nothing in here does I/O, reads a clock or depends on another crate.

pub mod codec;
pub mod hash;
mod ids;
pub mod keys;
mod prng;
mod time;

pub use ids::{ClusterId, CoreId, PeerId, RegionId, ShardId, StoreId};
pub use prng::Prng;
pub use time::{Instant, UnixTime};
