//! What commands and readers see of the data: one frozen state of one region, keys without the `z`.

use bytes::Bytes;

use crate::Cf;

/// Why a read gave no answer. Never a word about the key: a missing key is `Ok(None)`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// A block that the read needs is not in memory and the view may not touch the disk. The same read on a
    /// view of the same engine snapshot that may, on a helper, gives the answer.
    #[error("not in the cache")]
    NotCached,
    /// The engine failed: a bad checksum, an I/O error, a closed database. Asking again will not help.
    #[error("read failed: {0}")]
    Failed(String),
}

/// A place in one family's sorted entries, between the bounds it was made with.
///
/// A cursor stands *at* an entry after a seek and *on* the entry it returned last after a step. Steps are lazy: a
/// seek loads the entry it finds and nothing behind it. After [`ReadError::NotCached`] a cursor must be sought
/// anew; the caller continues from the last key that it was given, on another view.
pub trait Cursor {
    /// Goes to the first entry at or after `key`; a key below the lower bound means the bound.
    fn seek(&mut self, key: &[u8]) -> Result<(), ReadError>;

    /// Goes to the last entry at or before `key`; a key at or above the upper bound means the last entry below it.
    fn seek_for_prev(&mut self, key: &[u8]) -> Result<(), ReadError>;

    /// The entry found by the last seek, then the entries after it in ascending order; `None` past the last one,
    /// and again until the next seek. A fresh cursor begins at the lower bound.
    fn next_entry(&mut self) -> Result<Option<(Bytes, Bytes)>, ReadError>;

    /// The entry found by the last seek, then the entries before it in descending order; `None` past the first
    /// one, and again until the next seek. A fresh cursor begins below the upper bound.
    fn prev_entry(&mut self) -> Result<Option<(Bytes, Bytes)>, ReadError>;
}

/// A frozen state of the data of one region. Reading twice gives the same answer.
pub trait ReadView {
    /// The view's cursors. They outlive neither the view's snapshot nor its permission to read the disk.
    type Cursor: Cursor;

    /// The value of `key`, or `None` if there is none.
    fn get(&self, cf: Cf, key: &[u8]) -> Result<Option<Bytes>, ReadError>;

    /// A cursor over `[lower, upper)`; an empty `upper` means infinity.
    fn cursor(&self, cf: Cf, lower: &[u8], upper: &[u8]) -> Result<Self::Cursor, ReadError>;
}
