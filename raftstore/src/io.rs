//! What goes into a [`Peer`](crate::Peer) and what comes out.

use crate::eraftpb::{ConfChangeV2, Entry, HardState, Message};
use base::PeerId;
use bytes::Bytes;
use proto::metapb;

/// One thing that happened to a peer.
#[derive(Clone, Debug)]
pub enum Input {
    /// A tick of the clock passed.
    Tick,
    /// A message of another peer of the group came in. What no honest peer sends is dropped.
    Step(Message),
    /// Replicate `data`. Answered by a [`Committed`] that bears `id`, or by [`Effect::Rejected`].
    Propose {
        /// The caller's name for it; unique among those not answered.
        id: u64,
        /// The command, see [`command`](crate::command).
        data: Bytes,
        /// Marks of the proposer, see [`ProposalContext`](crate::command::ProposalContext).
        context: Bytes,
    },
    /// Replicate a change of membership. Answered like `Propose`.
    ProposeConfChange {
        /// The caller's name for it; unique among those not answered.
        id: u64,
        /// What raft does; its context is the command.
        change: ConfChangeV2,
        /// Marks of the proposer.
        context: Bytes,
    },
    /// Try to become leader now: after the start of a group with one voter, or for the child of a region that this node
    /// leads.
    Campaign,
    /// A committed change removes this peer: from now on it votes and acknowledges as ever, and never campaigns.
    Retire,
    /// If this peer leads, send its followers a heartbeat at once, which tells them what is committed.
    Ping,
    /// All [`Effect::Persist`] up to this number are durable.
    Persisted {
        /// The number of the last of them.
        number: u64,
    },
    /// The engine holds the effects of all entries up to `index`; they were handed out by [`Effect::Apply`].
    Applied {
        /// The last of them.
        index: u64,
    },
    /// An entry that changes the membership is being applied. Comes before the `Applied` that covers the entry, and
    /// not at all for an entry that the application refused.
    ConfChanged {
        /// The change, as it stood in the entry.
        change: ConfChangeV2,
        /// The region with its new peers.
        region: metapb::Region,
    },
    /// From which index on may this peer read? Answered by [`Effect::ReadReady`] or [`Effect::Rejected`]; not at all if
    /// a message is lost.
    ReadIndex {
        /// The caller's name for it.
        id: u64,
    },
    /// Hand leadership to that peer, if it can be brought up to date within an election time-out.
    TransferLeader {
        /// A voter of the group.
        to: PeerId,
    },
    /// Answer to [`Effect::FetchEntries`]: the entries from `low` on, as many as there are within its limits.
    Fetched {
        /// As it was asked.
        low: u64,
        /// Empty if the log does not hold them any more; a `Compacted` must have come before.
        entries: Vec<Entry>,
    },
    /// The log no longer holds entries up to and including `index`. All of them are applied.
    Compacted {
        /// The last of them.
        index: u64,
    },
    /// The log up to `index` is known from elsewhere to be committed, as far as it is here. The caller answers for that:
    /// every member had these entries in its log when one that follows them was proposed, and that one is committed.
    KnownCommitted {
        /// The last index that is.
        index: u64,
    },
    /// A message to that peer could not be sent.
    Unreachable {
        /// The receiver.
        peer: PeerId,
    },
}

/// One thing that the owner of a peer must do. They are to be begun in the order in which they come out.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Make this durable, then say [`Input::Persisted`]. Numbers rise; a later `Persist` may be made durable together
    /// with an earlier one, never before it.
    Persist {
        /// Its number.
        number: u64,
        /// The newest hard state, if it is not the one last persisted.
        hard_state: Option<HardState>,
        /// Entries to append, following each other. What the log held from the first one's index on is void.
        entries: Vec<Entry>,
    },
    /// Send these to other peers. They may be lost, doubled and reordered on their way.
    Send {
        /// The messages; `to` is a peer id.
        messages: Vec<Message>,
        /// They promise what the `Persist` of this number, or an earlier one, contains: wait for it. `None`: at once,
        /// in parallel with any write.
        after_persist: Option<u64>,
    },
    /// Apply these, in this order, then say [`Input::Applied`]. They are committed, and durable here.
    Apply(Vec<Committed>),
    /// A proposal or a read ends without success.
    Rejected {
        /// The caller's name for it.
        id: u64,
        /// Why.
        reason: RejectReason,
    },
    /// The peer's part in the group, its term or its leader changed.
    Role(Role),
    /// Read entries from the log for a follower, then say [`Input::Fetched`].
    FetchEntries {
        /// First index, inclusive.
        low: u64,
        /// Last index, exclusive.
        high: u64,
        /// What goes beyond this sum of entry sizes is of no use now, except for the first entry.
        max_bytes: u64,
    },
    /// A read may be served once everything up to `index` is applied.
    ReadReady {
        /// As it was asked.
        id: u64,
        /// The index.
        index: u64,
    },
    /// A follower needs entries that the log no longer holds.
    SnapshotWanted {
        /// The follower.
        to: PeerId,
    },
}

/// A committed entry, and the proposal of this peer that it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Committed {
    /// The entry.
    pub entry: Entry,
    /// The `id` of [`Input::Propose`], if this peer proposed it since it started.
    pub proposal: Option<u64>,
}

/// Why a proposal or a read was not done. All but `Unknown` mean that it surely never will be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RejectReason {
    /// This peer does not lead the group.
    NotLeader {
        /// Who does, if it is known.
        leader: Option<PeerId>,
    },
    /// The peer lost leadership before the entry was committed, and another entry took its place.
    Stale,
    /// A bound is reached; try again later.
    Busy,
    /// Leadership is being handed over; try again soon, elsewhere.
    Transferring,
    /// The leader has not committed an entry of its term yet; try again soon.
    NotReady,
    /// Another membership change is not applied yet, or this one does not fit the present (joint or simple) state.
    ConfChangeRefused,
    /// The peer was shut down or removed while the proposal was pending.
    Unknown,
}

/// A peer's part in its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Role {
    /// What it is.
    pub kind: RoleKind,
    /// Its term.
    pub term: u64,
    /// Who leads in that term, if it is known.
    pub leader: Option<PeerId>,
}

/// What a peer is in its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoleKind {
    /// It follows a leader, or waits for one.
    Follower,
    /// It asks whether it would be elected.
    PreCandidate,
    /// It asks to be elected.
    Candidate,
    /// It leads.
    Leader,
}
