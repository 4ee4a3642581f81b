//! The one form in which a command asks for changes.

use bytes::Bytes;

use crate::Cf;

/// One change of one region's data, keys without the `z`. A command's changes are replicated and applied together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Modify {
    /// Sets `key` to `value`.
    Put {
        /// Where.
        cf: Cf,
        /// The encoded key.
        key: Bytes,
        /// The encoded value.
        value: Bytes,
    },
    /// Removes `key`, if it is there.
    Delete {
        /// Where.
        cf: Cf,
        /// The encoded key.
        key: Bytes,
    },
    /// Removes every key in `[start, end)`. An empty `end` means the end of the region.
    DeleteRange {
        /// Where.
        cf: Cf,
        /// First key to remove.
        start: Bytes,
        /// First key to leave.
        end: Bytes,
    },
}

impl Modify {
    /// The family that changes.
    pub fn cf(&self) -> Cf {
        match self {
            Modify::Put { cf, .. } | Modify::Delete { cf, .. } | Modify::DeleteRange { cf, .. } => *cf,
        }
    }

    /// Bytes of keys and values, for budgets and statistics.
    pub fn data_bytes(&self) -> usize {
        match self {
            Modify::Put { key, value, .. } => key.len() + value.len(),
            Modify::Delete { key, .. } => key.len(),
            Modify::DeleteRange { start, end, .. } => start.len() + end.len(),
        }
    }
}
