//! Where a member's raft log and state become durable: a journal of records, rewritten as one image when it has grown.
//! What stands in records and images is [`crate::raft::Stored`]'s.

mod block;
mod file;

pub use file::{FileJournal, JournalConfig, Opened};

use std::path::PathBuf;

/// Why the journal cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// A file operation failed. A failed sync is never tried again.
    #[error("{action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// An acknowledged record is unreadable.
    #[error(
        "{path} is damaged at byte {offset}: {what}; the records behind it were acknowledged, so it is no torn tail"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where.
        offset: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// A file is of another kind or version.
    #[error("{path} is not a journal of this version: {what}")]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: &'static str,
    },
    /// A record does not fit into a journal at all.
    #[error("a record of {len} bytes is larger than the journal")]
    TooLarge {
        /// Its size.
        len: usize,
    },
}
