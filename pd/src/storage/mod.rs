//! Where the state becomes durable: a journal of changes, rewritten as one image when it has grown.
//!
//! [`Journal`] is the seam behind which a raft group of placement drivers will stand; today it is [`FileJournal`].

mod block;
mod file;
mod writer;

pub use file::{FileJournal, JournalConfig, Opened};
pub(crate) use writer::Writer;

use bytes::Bytes;
use proto::rpc::LocalFuture;
use std::path::PathBuf;

/// Carries records to where they survive a crash.
///
/// One caller, one call at a time. After an error nothing more may be written: what the last call did is unknown.
pub trait Journal: 'static {
    /// Makes `record` durable, behind those before it.
    fn append(&self, record: Bytes) -> LocalFuture<Result<(), JournalError>>;

    /// Puts `image` in the place of everything so far, durably.
    fn replace(&self, image: Bytes) -> LocalFuture<Result<(), JournalError>>;

    /// Whether a record of `len` bytes still fits, or [`Journal::replace`] must come first.
    fn has_room(&self, len: usize) -> bool;

    /// Tells that no record will follow soon: the place to note, cheaply, that all of them were acknowledged.
    fn rest(&self) -> LocalFuture<Result<(), JournalError>>;
}

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
