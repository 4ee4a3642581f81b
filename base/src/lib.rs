//! Words that every crate shares: identifiers, time, seeded random numbers, shares of a bandwidth, and the byte encodings
//! of keys.
//!
//! Nothing in here does I/O, reads a clock or depends on another crate.

mod bucket;
pub mod codec;
pub mod hash;
mod ids;
pub mod keys;
mod prng;
mod time;

pub use bucket::TokenBucket;
pub use ids::{ClusterId, CoreId, PeerId, RegionId, ShardId, StoreId};
pub use prng::Prng;
pub use time::{Instant, UnixTime};
