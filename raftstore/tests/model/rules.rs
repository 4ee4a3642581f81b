//! What must hold in every run.

use super::Run;
use super::harness::node::Answer;
use bytes::Bytes;
use raftstore::eraftpb::{Message, MessageType};
use raftstore::{RejectReason, RoleKind};
use std::collections::{BTreeMap, BTreeSet};

/// What must hold, seen over the whole run.
#[derive(Default)]
pub(crate) struct Rules {
    /// Who led in a term.
    pub(crate) leaders: BTreeMap<u64, u64>,
    /// Whom a peer voted for in a term.
    pub(crate) votes: BTreeMap<(u64, u64), u64>,
    /// What was applied at an index, by whoever came first: term and data.
    pub(crate) applied: BTreeMap<u64, (u64, Bytes)>,
    /// What stands at (index, term) in any durable log, and the term before it.
    pub(crate) entries: BTreeMap<(u64, u64), (Bytes, u64)>,
    /// Index of a read, and the highest index applied anywhere when it was asked.
    pub(crate) reads: BTreeMap<u64, u64>,
}

impl Run {
    pub(crate) fn check(&mut self) {
        let ids = self.ids.clone();
        for id in ids {
            self.check_roles(id);
            self.check_sent(id);
            self.check_data(id);
            self.check_reads(id);
        }
        self.check_applied();
    }

    /// At most one leader in a term.
    fn check_roles(&mut self, id: u64) {
        for role in std::mem::take(&mut self.cluster.node(id).roles) {
            if role.kind == RoleKind::Leader {
                let leader = *self.rules.leaders.entry(role.term).or_insert(id);
                assert_eq!(leader, id, "two leaders in term {}", role.term);
                self.reached.leaders += 1;
            }
        }
    }

    /// What a message promises is durable when it leaves.
    fn check_sent(&mut self, id: u64) {
        for message in std::mem::take(&mut self.cluster.node(id).sent) {
            self.reached.hash = base::hash::fold_bytes(self.reached.hash, &encoded(&message));
            let disk = &self.cluster.nodes[&id].disk;
            match message.msg_type() {
                MessageType::MsgRequestVoteResponse if !message.reject => {
                    let kept = &disk.hard_state;
                    let same = kept.term == message.term && kept.vote == message.to;
                    assert!(
                        same || kept.term > message.term,
                        "peer {id} voted in term {} before it was durable",
                        message.term
                    );
                    let vote = *self.rules.votes.entry((id, message.term)).or_insert(message.to);
                    assert_eq!(vote, message.to, "peer {id} voted twice in term {}", message.term);
                }
                MessageType::MsgRequestVote => {
                    assert!(disk.hard_state.term >= message.term, "peer {id} campaigned before its vote was durable");
                    let vote = *self.rules.votes.entry((id, message.term)).or_insert(id);
                    assert_eq!(vote, id, "peer {id} voted twice in term {}", message.term);
                }
                MessageType::MsgAppendResponse if !message.reject => {
                    assert!(disk.last_index() >= message.index, "peer {id} acknowledged {} too early", message.index);
                }
                MessageType::MsgAppend | MessageType::MsgHeartbeat => {
                    assert!(disk.hard_state.term >= message.term, "peer {id} leads before its vote was durable");
                }
                _ => {}
            }
        }
    }

    /// Everybody applies the same at an index, and only what a majority of voters holds durably.
    fn check_data(&mut self, id: u64) {
        let node = &self.cluster.nodes[&id];
        for (index, data) in &node.data {
            if let Some((_, known)) = self.rules.applied.get(index) {
                assert_eq!(known, data, "peer {id} applied something else at {index}");
            }
        }
        for entry in std::mem::take(&mut self.cluster.node(id).handed_out) {
            let now = (entry.term, entry.data.clone());
            if let Some(known) = self.rules.applied.get(&entry.index) {
                assert_eq!(*known, now, "peer {id} commits something else at {}", entry.index);
                continue;
            }
            let voters = self.ids.iter().filter(|id| self.is_voter(**id));
            let all = voters.clone().count();
            let holders = voters.filter(|id| self.cluster.nodes[id].disk.holds(entry.index, entry.term)).count();
            assert!(2 * holders > all, "{} was committed with {holders} of {all} holding it", entry.index);
            self.rules.applied.insert(entry.index, now);
        }
    }

    fn is_voter(&self, id: u64) -> bool {
        let region = &self.cluster.nodes[&id].disk.region;
        let peer = region.peers.iter().find(|peer| peer.id == id).expect("a member");
        peer.role() == proto::metapb::PeerRole::Voter
    }

    /// A read sees everything that was applied anywhere when it was asked.
    fn check_reads(&mut self, id: u64) {
        for (read, index) in std::mem::take(&mut self.cluster.node(id).reads) {
            let newest = self.rules.reads[&read];
            assert!(index >= newest, "read {read} at {index} misses {newest}");
            self.reached.reads += 1;
        }
    }

    /// Log matching: one entry for each index and term, with one predecessor.
    pub(crate) fn check_logs(&mut self) {
        for (id, node) in &self.cluster.nodes {
            let mut before = None;
            for (index, entry) in &node.disk.log {
                let before_term = match before {
                    Some((last, term)) if last + 1 == *index => term,
                    Some((last, _)) => panic!("peer {id} has a gap after {last}"),
                    None => {
                        before = Some((*index, entry.term));
                        continue;
                    }
                };
                let now = (entry.data.clone(), before_term);
                let known = self.rules.entries.entry((*index, entry.term)).or_insert_with(|| now.clone());
                assert_eq!(*known, now, "peer {id} holds another entry at {index}/{}", entry.term);
                before = Some((*index, entry.term));
            }
        }
    }

    /// Nothing that was applied is ever lost from a majority's reach: terms of applied entries never fall.
    fn check_applied(&mut self) {
        if self.prng.one_in(50) {
            self.check_logs();
            let terms: Vec<u64> = self.rules.applied.values().map(|(term, _)| *term).collect();
            assert!(terms.is_sorted(), "terms of committed entries fall");
        }
    }

    /// What was answered as applied is there; what was answered as surely not done is not.
    pub(crate) fn check_answers(&mut self) {
        let ids: BTreeSet<u64> = self
            .rules
            .applied
            .values()
            .filter_map(|(_, data)| {
                let text = std::str::from_utf8(data).ok()?;
                text.split_once(':')?.0.parse().ok()
            })
            .collect();
        let data: Vec<_> = self.cluster.nodes.values().map(|node| &node.data).collect();
        assert!(data.windows(2).all(|pair| pair[0] == pair[1]), "the peers' data differ at rest");
        for (proposal, answer) in self.cluster.nodes.values().flat_map(|node| &node.answers) {
            if self.rules.reads.contains_key(proposal) {
                continue;
            }
            match answer {
                Answer::Applied => {
                    self.reached.applied += 1;
                    assert!(ids.contains(proposal), "proposal {proposal} was lost");
                }
                Answer::Rejected(RejectReason::Unknown) => {}
                Answer::Rejected(reason) => {
                    self.reached.stale += u64::from(*reason == RejectReason::Stale);
                    assert!(!ids.contains(proposal), "proposal {proposal} was applied though {reason:?}");
                }
            }
        }
        self.reached.fetches = self.cluster.nodes.values().map(|node| node.fetches as u64).sum();
    }
}

fn encoded(message: &Message) -> Vec<u8> {
    prost::Message::encode_to_vec(message)
}
