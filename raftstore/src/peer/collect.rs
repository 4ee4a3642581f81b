//! What raft-rs has ready, turned into effects.
//!
//! The order: the new role; messages that promise nothing new; the write; messages that wait for it; what to apply.

use super::Peer;
use crate::eraftpb::{Entry, HardState, Message, MessageType};
use crate::io::{Committed, Effect, RejectReason, Role, RoleKind};
use crate::sending::split_by_promise;
use base::PeerId;
use prost::Message as _;
use raft::{Ready, StateRole};

impl Peer {
    /// Turns what raft-rs has ready into effects.
    pub(super) fn collect(&mut self) {
        for range in self.node.mut_store().take_wanted() {
            self.effects.push_back(Effect::FetchEntries {
                low: range.low,
                high: range.high,
                max_bytes: range.max_bytes,
            });
        }
        for to in self.node.mut_store().take_snapshot_wanted() {
            self.effects.push_back(Effect::SnapshotWanted { to: PeerId(to) });
        }
        while self.node.has_ready() {
            let ready = self.node.ready();
            self.collect_ready(ready);
        }
    }

    fn collect_ready(&mut self, mut ready: Ready) {
        self.collect_role();
        let number = ready.number();
        let entries = ready.take_entries();
        let committed = ready.take_committed_entries();
        let reads = ready.take_read_states();
        let mut messages = ready.take_messages();
        messages.append(&mut ready.take_persisted_messages());
        let tells =
            |message: &&Message| matches!(message.msg_type(), MessageType::MsgAppend | MessageType::MsgHeartbeat);
        let told = messages.iter().filter(tells).map(|message| message.commit).max();
        self.told_commit = self.told_commit.max(told.unwrap_or(0));

        let hard_state = self.node.raft.hard_state();
        let votes = |state: &HardState| (state.term, state.vote);
        let vote_changed = votes(&hard_state) != votes(&self.hard_state);
        let persist = vote_changed || !entries.is_empty();
        if persist {
            self.outstanding.begin(number, vote_changed);
        }

        let batches = split_by_promise(messages, &self.outstanding);
        self.send(batches.at_once, None);
        if persist {
            self.node.mut_store().append(entries.clone());
            self.effects.push_back(Effect::Persist {
                number,
                hard_state: (hard_state != self.hard_state).then_some(hard_state),
                entries,
            });
            self.hard_state = hard_state;
        }
        self.send(batches.after_vote, self.outstanding.last_vote());
        self.send(batches.after_log, self.outstanding.last());

        self.node.advance_append_async(ready);
        if let Some(number) = self.outstanding.nothing_to_wait_for(number) {
            self.node.on_persist_ready(number);
        }
        self.hand_out(committed);
        for read in reads {
            if let Some(id) = own_read(self.peer.id, &read.request_ctx) {
                self.effects.push_back(Effect::ReadReady { id, index: read.index });
            }
        }
    }

    fn send(&mut self, messages: Vec<Message>, after_persist: Option<u64>) {
        if !messages.is_empty() {
            self.effects.push_back(Effect::Send { messages, after_persist });
        }
    }

    fn collect_role(&mut self) {
        let raft = &self.node.raft;
        let role = Role {
            kind: match raft.state {
                StateRole::Follower => RoleKind::Follower,
                StateRole::PreCandidate => RoleKind::PreCandidate,
                StateRole::Candidate => RoleKind::Candidate,
                StateRole::Leader => RoleKind::Leader,
            },
            term: raft.term,
            leader: (raft.leader_id != 0).then_some(PeerId(raft.leader_id)),
        };
        if role != self.role {
            self.others_read &= role.term == self.role.term;
            self.role = role;
            self.effects.push_back(Effect::Role(role));
        }
    }

    fn hand_out(&mut self, entries: Vec<Entry>) {
        let Some(last) = entries.last().map(|entry| entry.index) else {
            return;
        };
        let mut bytes = 0;
        let mut committed = Vec::with_capacity(entries.len());
        for entry in entries {
            let effects = &mut self.effects;
            let proposal = self.proposals.applied(&entry, |id| {
                let reason = RejectReason::Stale;
                effects.push_back(Effect::Rejected { id, reason });
            });
            bytes += entry.encoded_len();
            committed.push(Committed { entry, proposal });
        }
        self.handed_out = last;
        self.applying.push_back((last, bytes));
        self.applying_bytes += bytes;
        self.effects.push_back(Effect::Apply(committed));
    }
}

/// The caller's name for a read, if its context says that it is one of this peer's. A leader that is another peer has added
/// a number of its own to it.
fn own_read(peer: u64, context: &[u8]) -> Option<u64> {
    let (owner, rest) = context.split_first_chunk::<8>()?;
    (u64::from_be_bytes(*owner) == peer).then_some(())?;
    let (id, _) = rest.split_first_chunk::<8>()?;
    Some(u64::from_be_bytes(*id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_its_own_reads_come_back() {
        let mut context = 3u64.to_be_bytes().to_vec();
        context.extend(9u64.to_be_bytes());
        assert_eq!(own_read(3, &context), Some(9));
        assert_eq!(own_read(4, &context), None);
        assert_eq!(own_read(3, &context[..12]), None);
        context.extend(1u64.to_be_bytes());
        assert_eq!(own_read(3, &context), Some(9), "with what a leader has added");
    }
}
