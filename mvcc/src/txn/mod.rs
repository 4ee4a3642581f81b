//! Percolator transactions over a read view: encodings, reads at a timestamp, and what each command changes.
//!
//! ```text
//!                       ┌────────── commit ──▶ write: commit_ts ─▶ start_ts, value
//!  prewrite ──▶ lock ───┤
//!     ▲                 └── rollback ────────▶ write: start_ts ─▶ rolled back
//!  pessimistic lock
//! ```
//!
//! A transaction's fate hangs on one of its keys, the primary: once that has a commit record, the transaction has
//! committed; once it has a rollback record, it never will. Source: Percolator (OSDI 2010), and TiKV's additions to it
//! (`compat/6-transactions.md`).

mod codec;
pub mod command;
mod deadlock;
mod error;
pub mod key;
mod lock;
mod lock_scan;
mod memory;
mod plan;
mod read;
mod reader;
mod rollback;
mod scan;
mod ts;
mod waits;
mod write;

pub use codec::{LastChange, SHORT_VALUE_BYTES_MAX};
pub use deadlock::{Wait, WaitGraph};
pub use error::{Conflict, FailedAssertion, TxnError};
pub use lock::{Lock, LockKind};
pub use lock_scan::{LockScan, Whose};
pub use memory::MemoryLocks;
pub use plan::{Plan, Planned, Released};
pub use read::{Isolation, ReadOptions, get};
pub use reader::{Reader, Stats, TxnRecord, Versions};
pub use scan::{Scan, ScanRequest};
pub use ts::TimeStamp;
pub use waits::{LockWaits, WAKE_UP_DELAY, Waiter, WaiterId, WaitsFull, Woken};
pub use write::{WriteKind, WriteRecord};
