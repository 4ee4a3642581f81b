//! What a region costs its core, counted where it is spent.

use std::cell::Cell;

use base::{RegionId, ShardId};

/// Keys of an answer or an entry that cost about what one more request does.
const KEYS_OF_ONE: u64 = 16;
/// Bytes that do.
const BYTES_OF_ONE: u64 = 4096;

/// What a peer has done since it was asked last, in units: a read that began, an entry that was applied, and what they
/// carried. Followers count as leaders do: they apply the same.
#[derive(Debug, Default)]
pub(crate) struct Work(Cell<u64>);

impl Work {
    /// A read begins, or an entry is applied.
    pub(crate) fn begin(&self) {
        self.add(1);
    }

    /// It carried so much.
    pub(crate) fn carry(&self, keys: u64, bytes: u64) {
        self.add(keys / KEYS_OF_ONE + bytes / BYTES_OF_ONE);
    }

    /// The units since the last call.
    pub(crate) fn take(&self) -> u64 {
        self.0.take()
    }

    fn add(&self, units: u64) {
        self.0.set(self.0.get().saturating_add(units));
    }
}

/// The work of one region within one beat of [`Spread`](super::spread::Spread).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionWork {
    /// Where it was done.
    pub shard: ShardId,
    /// For which region.
    pub region: RegionId,
    /// Units.
    pub work: u64,
}
