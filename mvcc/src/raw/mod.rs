//! Raw key-value semantics over a read view: encodings, reads that can stop and go on, and plans of writes.
//!
//! "Raw" means without transactions: each key has one value, perhaps with a time of expiry. Three formats exist, fixed
//! for a cluster at its first start: see [`RawMode`].

mod checksum;
mod codec;
mod read;

pub use checksum::{Checksum, crc64};
pub use codec::{RawMode, RawValue, ValueError};
pub use read::{RawRange, RawReader, ScanOptions, ScanState, Step, batch_ranges, get};
