//! Package `eraftpb`: the messages, and the accessors by which raft-rs reaches their fields.
//!
//! The accessors follow the style of an older code generator, since raft-rs calls them by those names. A getter of an
//! enum answers the first variant for a number that it does not know; raft-rs refuses such a message as a local one.

use bytes::Bytes;
use prost::{Enumeration, Message as Prost};
use std::sync::LazyLock;

/// What an entry's data is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
#[repr(i32)]
pub enum EntryType {
    /// A command of the application; empty for the entry by which a leader begins its term.
    EntryNormal = 0,
    /// A [`ConfChange`].
    EntryConfChange = 1,
    /// A [`ConfChangeV2`].
    EntryConfChangeV2 = 2,
}

/// What a [`Message`] asks or answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
#[repr(i32)]
pub enum MessageType {
    /// Local: start an election.
    MsgHup = 0,
    /// Local: send heartbeats.
    MsgBeat = 1,
    /// Append these entries, if you lead.
    MsgPropose = 2,
    /// A leader's entries.
    MsgAppend = 3,
    /// Answer to `MsgAppend`.
    MsgAppendResponse = 4,
    /// A candidate's request.
    MsgRequestVote = 5,
    /// Answer to `MsgRequestVote`.
    MsgRequestVoteResponse = 6,
    /// A leader's snapshot.
    MsgSnapshot = 7,
    /// A leader's sign of life.
    MsgHeartbeat = 8,
    /// Answer to `MsgHeartbeat`.
    MsgHeartbeatResponse = 9,
    /// Local: a message could not be delivered.
    MsgUnreachable = 10,
    /// Local: how the sending of a snapshot ended.
    MsgSnapStatus = 11,
    /// Local: look whether a quorum still answers.
    MsgCheckQuorum = 12,
    /// Hand the leadership over.
    MsgTransferLeader = 13,
    /// Campaign at once, without asking first.
    MsgTimeoutNow = 14,
    /// Which index must I have applied to read?
    MsgReadIndex = 15,
    /// Answer to `MsgReadIndex`.
    MsgReadIndexResp = 16,
    /// Would you vote for me?
    MsgRequestPreVote = 17,
    /// Answer to `MsgRequestPreVote`.
    MsgRequestPreVoteResponse = 18,
}

/// How a [`ConfChangeV2`] goes into and out of a joint configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
#[repr(i32)]
pub enum ConfChangeTransition {
    /// Simple for one change, else as `Implicit`.
    Auto = 0,
    /// Joint, left by raft itself.
    Implicit = 1,
    /// Joint, left by an empty change that the application proposes.
    Explicit = 2,
}

/// What happens to a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
#[repr(i32)]
pub enum ConfChangeType {
    /// It becomes a voter.
    AddNode = 0,
    /// It leaves.
    RemoveNode = 1,
    /// It becomes a learner.
    AddLearnerNode = 2,
}

/// One position of a raft log.
#[derive(Clone, PartialEq, Eq, Hash, Prost)]
pub struct Entry {
    /// An [`EntryType`].
    #[prost(enumeration = "EntryType", tag = "1")]
    pub entry_type: i32,
    /// Term of the leader that appended it.
    #[prost(uint64, tag = "2")]
    pub term: u64,
    /// Its position.
    #[prost(uint64, tag = "3")]
    pub index: u64,
    /// The command.
    #[prost(bytes = "bytes", tag = "4")]
    pub data: Bytes,
    /// Not used; kept since old logs carry it.
    #[prost(bool, tag = "5")]
    pub sync_log: bool,
    /// Marks of the proposer, opaque to raft.
    #[prost(bytes = "bytes", tag = "6")]
    pub context: Bytes,
}

/// What a [`Snapshot`] stands for.
#[derive(Clone, PartialEq, Eq, Hash, Prost)]
pub struct SnapshotMetadata {
    /// Members at that index.
    #[prost(message, optional, tag = "1")]
    pub conf_state: Option<ConfState>,
    /// Last index that it covers.
    #[prost(uint64, tag = "2")]
    pub index: u64,
    /// Term of that index.
    #[prost(uint64, tag = "3")]
    pub term: u64,
}

/// State that takes the place of a log's beginning.
#[derive(Clone, PartialEq, Eq, Hash, Prost)]
pub struct Snapshot {
    /// The application's part.
    #[prost(bytes = "bytes", tag = "1")]
    pub data: Bytes,
    /// Raft's part.
    #[prost(message, optional, tag = "2")]
    pub metadata: Option<SnapshotMetadata>,
}

/// What one member says to another.
#[derive(Clone, PartialEq, Eq, Hash, Prost)]
pub struct Message {
    /// A [`MessageType`].
    #[prost(enumeration = "MessageType", tag = "1")]
    pub msg_type: i32,
    /// Peer id of the receiver.
    #[prost(uint64, tag = "2")]
    pub to: u64,
    /// Peer id of the sender.
    #[prost(uint64, tag = "3")]
    pub from: u64,
    /// Term of the sender; 0 in local messages.
    #[prost(uint64, tag = "4")]
    pub term: u64,
    /// Term of the entry at `index`.
    #[prost(uint64, tag = "5")]
    pub log_term: u64,
    /// The position that the message is about.
    #[prost(uint64, tag = "6")]
    pub index: u64,
    /// Entries from `index + 1` on.
    #[prost(message, repeated, tag = "7")]
    pub entries: Vec<Entry>,
    /// The sender's committed index.
    #[prost(uint64, tag = "8")]
    pub commit: u64,
    /// A snapshot, in `MsgSnapshot`.
    #[prost(message, optional, tag = "9")]
    pub snapshot: Option<Snapshot>,
    /// The answer is no.
    #[prost(bool, tag = "10")]
    pub reject: bool,
    /// With `reject`: where to try next.
    #[prost(uint64, tag = "11")]
    pub reject_hint: u64,
    /// Opaque; given back in the answer.
    #[prost(bytes = "bytes", tag = "12")]
    pub context: Bytes,
    /// Index from which a follower wants a snapshot; 0 for none.
    #[prost(uint64, tag = "13")]
    pub request_snapshot: u64,
    /// `priority` as older releases sent it.
    #[prost(uint64, tag = "14")]
    pub deprecated_priority: u64,
    /// Term of the entry at `commit`, in vote messages.
    #[prost(uint64, tag = "15")]
    pub commit_term: u64,
    /// The candidate's priority.
    #[prost(int64, tag = "16")]
    pub priority: i64,
}

/// What a member must not forget.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Prost)]
pub struct HardState {
    /// Highest term seen.
    #[prost(uint64, tag = "1")]
    pub term: u64,
    /// Peer voted for in that term; 0 for none.
    #[prost(uint64, tag = "2")]
    pub vote: u64,
    /// Highest index known to be committed.
    #[prost(uint64, tag = "3")]
    pub commit: u64,
}

/// The members of a group, by peer id.
#[derive(Clone, PartialEq, Eq, Hash, Prost)]
pub struct ConfState {
    /// Voters (of the incoming configuration, if joint).
    #[prost(uint64, repeated, tag = "1")]
    pub voters: Vec<u64>,
    /// Learners.
    #[prost(uint64, repeated, tag = "2")]
    pub learners: Vec<u64>,
    /// Voters of the outgoing configuration; empty if not joint.
    #[prost(uint64, repeated, tag = "3")]
    pub voters_outgoing: Vec<u64>,
    /// Outgoing voters that become learners when the joint configuration is left.
    #[prost(uint64, repeated, tag = "4")]
    pub learners_next: Vec<u64>,
    /// Raft leaves the joint configuration by itself.
    #[prost(bool, tag = "5")]
    pub auto_leave: bool,
}

/// One change of membership.
#[derive(Clone, PartialEq, Eq, Hash, Prost)]
pub struct ConfChange {
    /// Not used by raft.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// A [`ConfChangeType`].
    #[prost(enumeration = "ConfChangeType", tag = "2")]
    pub change_type: i32,
    /// The peer.
    #[prost(uint64, tag = "3")]
    pub node_id: u64,
    /// Opaque to raft.
    #[prost(bytes = "bytes", tag = "4")]
    pub context: Bytes,
}

/// One step of a [`ConfChangeV2`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Prost)]
pub struct ConfChangeSingle {
    /// A [`ConfChangeType`].
    #[prost(enumeration = "ConfChangeType", tag = "1")]
    pub change_type: i32,
    /// The peer.
    #[prost(uint64, tag = "2")]
    pub node_id: u64,
}

/// Several changes of membership at once; without any, the end of a joint configuration.
#[derive(Clone, PartialEq, Eq, Hash, Prost)]
pub struct ConfChangeV2 {
    /// A [`ConfChangeTransition`].
    #[prost(enumeration = "ConfChangeTransition", tag = "1")]
    pub transition: i32,
    /// The changes, in order.
    #[prost(message, repeated, tag = "2")]
    pub changes: Vec<ConfChangeSingle>,
    /// Opaque to raft.
    #[prost(bytes = "bytes", tag = "3")]
    pub context: Bytes,
}

/// Writes accessors of one message. `copy` fields are numbers, `own` fields are taken and replaced whole, `sub` fields
/// are optional messages that read as their default, `kind` fields are enums.
macro_rules! accessors {
    ($message:ident { $($kind:ident $field:ident: $type:ty, $get:ident, $set:ident, $take:ident, $mut:ident;)* }) => {
        impl $message { $(accessors!(@$kind $field: $type, $get, $set, $take, $mut);)* }
    };
    (@copy $field:ident: $type:ty, $get:ident, $set:ident, $take:ident, $mut:ident) => {
        #[doc = concat!("Reads `", stringify!($field), "`.")]
        pub fn $get(&self) -> $type { self.$field }
        #[doc = concat!("Replaces `", stringify!($field), "`.")]
        pub fn $set(&mut self, value: $type) { self.$field = value; }
    };
    (@kind $field:ident: $type:ty, $get:ident, $set:ident, $take:ident, $mut:ident) => {
        #[doc = concat!("Reads `", stringify!($field), "`; the first variant for a number that is not known.")]
        pub fn $get(&self) -> $type { self.$field() }
    };
    (@own $field:ident: $type:ty, $get:ident, $set:ident, $take:ident, $mut:ident) => {
        #[doc = concat!("Reads `", stringify!($field), "`.")]
        pub fn $get(&self) -> &$type { &self.$field }
        #[doc = concat!("Replaces `", stringify!($field), "`.")]
        pub fn $set(&mut self, value: $type) { self.$field = value; }
        #[doc = concat!("Takes `", stringify!($field), "` out, leaving it empty.")]
        pub fn $take(&mut self) -> $type { std::mem::take(&mut self.$field) }
        #[doc = concat!("Borrows `", stringify!($field), "` to change it.")]
        pub fn $mut(&mut self) -> &mut $type { &mut self.$field }
    };
    (@sub $field:ident: $type:ty, $get:ident, $set:ident, $take:ident, $mut:ident) => {
        #[doc = concat!("Reads `", stringify!($field), "`; the default if it is absent.")]
        pub fn $get(&self) -> &$type {
            static ABSENT: LazyLock<$type> = LazyLock::new(Default::default);
            self.$field.as_ref().unwrap_or_else(|| &ABSENT)
        }
        #[doc = concat!("Replaces `", stringify!($field), "`.")]
        pub fn $set(&mut self, value: $type) { self.$field = Some(value); }
        #[doc = concat!("Takes `", stringify!($field), "` out, leaving it absent.")]
        pub fn $take(&mut self) -> $type { self.$field.take().unwrap_or_default() }
        #[doc = concat!("Borrows `", stringify!($field), "` to change it.")]
        pub fn $mut(&mut self) -> &mut $type { self.$field.get_or_insert_with(Default::default) }
    };
}

accessors!(Entry {
    kind entry_type: EntryType, get_entry_type, _set, _take, _mut;
    copy term: u64, get_term, set_term, _take, _mut;
    copy index: u64, get_index, set_index, _take, _mut;
    own data: Bytes, get_data, set_data, take_data, mut_data;
    own context: Bytes, get_context, set_context, take_context, mut_context;
});

accessors!(SnapshotMetadata {
    sub conf_state: ConfState, get_conf_state, set_conf_state, take_conf_state, mut_conf_state;
    copy index: u64, get_index, set_index, _take, _mut;
    copy term: u64, get_term, set_term, _take, _mut;
});

accessors!(Snapshot {
    own data: Bytes, get_data, set_data, take_data, mut_data;
    sub metadata: SnapshotMetadata, get_metadata, set_metadata, take_metadata, mut_metadata;
});

accessors!(Message {
    kind msg_type: MessageType, get_msg_type, _set, _take, _mut;
    copy index: u64, get_index, set_index, _take, _mut;
    copy commit: u64, get_commit, set_commit, _take, _mut;
    own entries: Vec<Entry>, get_entries, set_entries, take_entries, mut_entries;
    own context: Bytes, get_context, set_context, take_context, mut_context;
    sub snapshot: Snapshot, get_snapshot, set_snapshot, take_snapshot, mut_snapshot;
});

accessors!(ConfState {
    own voters: Vec<u64>, get_voters, set_voters, take_voters, mut_voters;
    own learners: Vec<u64>, get_learners, set_learners, take_learners, mut_learners;
    own voters_outgoing: Vec<u64>, get_voters_outgoing, set_voters_outgoing, take_voters_outgoing, mut_voters_outgoing;
    own learners_next: Vec<u64>, get_learners_next, set_learners_next, take_learners_next, mut_learners_next;
});

accessors!(ConfChange {
    kind change_type: ConfChangeType, get_change_type, _set, _take, _mut;
    own context: Bytes, get_context, set_context, take_context, mut_context;
});

accessors!(ConfChangeSingle {
    kind change_type: ConfChangeType, get_change_type, _set, _take, _mut;
});

accessors!(ConfChangeV2 {
    kind transition: ConfChangeTransition, get_transition, _set, _take, _mut;
    own changes: Vec<ConfChangeSingle>, get_changes, set_changes, take_changes, mut_changes;
    own context: Bytes, get_context, set_context, take_context, mut_context;
});

impl Snapshot {
    /// True if it stands for nothing.
    pub fn is_empty(&self) -> bool {
        self.get_metadata().index == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Field numbers, spelled out by hand: key byte = number * 8 + wire type.
    #[test]
    fn a_message_has_the_bytes_that_tikv_sends() {
        let message = Message {
            msg_type: MessageType::MsgAppend as i32,
            to: 2,
            term: 6,
            entries: vec![Entry { term: 6, index: 7, data: Bytes::from_static(b"d"), ..Default::default() }],
            commit_term: 5,
            priority: 1,
            ..Default::default()
        };
        let bytes = message.encode_to_vec();
        assert_eq!(bytes, [8, 3, 16, 2, 32, 6, 58, 7, 16, 6, 24, 7, 34, 1, b'd', 120, 5, 0x80, 1, 1]);
        assert_eq!(Message::decode(&bytes[..]).expect("its own bytes"), message);
    }

    #[test]
    fn an_entry_s_data_is_a_slice_of_the_message_that_came_in() {
        let entry = Entry { data: Bytes::from(vec![7; 4096]), ..Default::default() };
        let message = Message { entries: vec![entry], ..Default::default() };
        let bytes = Bytes::from(message.encode_to_vec());
        let message = Message::decode(bytes.clone()).expect("its own bytes");
        let (outer, inner) = (bytes.as_ptr_range(), message.entries[0].data.as_ptr_range());
        assert!(outer.start <= inner.start && inner.end <= outer.end, "the data was copied");
    }

    #[test]
    fn an_unknown_message_type_reads_as_a_local_message() {
        let message = Message { msg_type: 77, ..Default::default() };
        assert_eq!(message.get_msg_type(), MessageType::MsgHup);
    }
}
