//! One member's part in the group of placement drivers, as a state machine: what happened goes in, what is to be done
//! comes out. It owns no socket, file or clock.
//!
//! ```text
//!   tick, message, proposal,          poll: messages to send, proposals that are committed,
//!   write done, snapshot    ─▶ Node ─▶      members that need a snapshot
//!                                     begin_write: one record or image; nothing it promises leaves before
//! ```
//!
//! - [`Node`] holds the raft peer (crate `raftstore`), the log's tail in memory, and the state as of the applied index.
//! - [`Lease`] says how long a leader may answer without asking the others again.
//! - [`Roster`] is who the members are: changed by entries of the log, one member at a time.
//! - [`Stored`] is what all of that looks like on disk: see there for the bytes.
//!
//! A group of one is its own quorum: what it has written is committed, and it needs no lease.

mod lease;
mod log;
mod node;
mod roster;
mod stored;

pub use lease::{Lease, Right};
pub use node::{Node, NodeConfig, NodeError, Output, Snapshot, Write};
pub(crate) use roster::bare;
pub use roster::{ChangeError, MEMBERS_MAX, MemberChange, MemberRecord, MemberRole, Roster};
pub use stored::{Stage, Stored, StoredError};

/// Mistakes that a member makes on demand: tests show that they are found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Timestamps are given out below a bound that nobody has kept.
    pub bound_not_persisted: bool,
    /// What a message promises is not waited for: votes and acknowledgements leave before the write.
    pub promise_before_persist: bool,
    /// A leader serves for as long as it takes itself for one.
    pub lease_unchecked: bool,
    /// A write is answered when the leader has it, whatever the others have.
    pub answer_before_commit: bool,
    /// A member votes straight after its start, though it may have confirmed a lease before.
    pub vote_after_restart: bool,
}
