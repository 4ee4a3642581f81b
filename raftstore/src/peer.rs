//! One region's replica: a raft-rs node, and around it what raft-rs leaves to others.
//!
//! ```text
//!            Input                                  Effect
//!   shard ──────────> handle ─> RawNode ─> collect ─────────> shard
//!                                  │  reads
//!                                  v
//!                               LogView (terms, and the bytes of the log's tail)
//! ```
//!
//! It owns no socket, file, clock or source of random numbers. raft-rs itself draws election time-outs from a
//! thread-local generator; before each tick that draw is replaced by a hash of seed, peer id and term, so the same
//! inputs always give the same effects.

mod collect;
mod view;

pub use view::PeerLoad;

use crate::config::RaftConfig;
use crate::eraftpb::{ConfChangeV2, Entry, EntryType, HardState, Message, MessageType};
use crate::init::{InitError, PeerInit, conf_state};
use crate::io::{Effect, Input, RejectReason, Role, RoleKind};
use crate::log_view::LogView;
use crate::proposals::Proposals;
use crate::screen::{self, Bounds, Refusal};
use crate::sending::Outstanding;
use base::hash;
use bytes::{BufMut, Bytes, BytesMut};
use prost::Message as _;
use proto::metapb;
use raft::RawNode;
use std::collections::VecDeque;

/// One region's replica.
///
/// Give it any number of inputs, then drain [`Peer::poll_effect`] to `None`: what the inputs call for comes out
/// together, so a turn that steps many messages of a region makes one `Persist` of them.
pub struct Peer {
    node: RawNode<LogView>,
    config: RaftConfig,
    region: metapb::Region,
    peer: metapb::Peer,
    seed: u64,
    quiet_ticks: u32,
    /// It votes and acknowledges, and never campaigns.
    is_retired: bool,
    effects: VecDeque<Effect>,
    role: Role,
    proposals: Proposals,
    outstanding: Outstanding,
    /// The hard state of the last `Persist`, or the recovered one.
    hard_state: HardState,
    /// Last index and bytes of each `Apply` that is not applied yet.
    applying: VecDeque<(u64, usize)>,
    applying_bytes: usize,
    /// Last index handed out to apply.
    handed_out: u64,
    loss_reported: bool,
    /// Questions of others that this leader has taken in.
    questions_taken: u64,
    /// One of them came in this term: others read.
    others_read: bool,
    /// Up to where others were told that the log is committed.
    told_commit: u64,
}

impl Peer {
    /// A peer with recovered state. It follows nobody yet; see [`Input::Campaign`].
    ///
    /// # Errors
    /// [`InitError`] if the state is not one that a correct run leaves behind.
    pub fn new(mut init: PeerInit, config: &RaftConfig) -> Result<Peer, InitError> {
        let recovered = init.hard_state;
        let view = init.check()?;
        let raft_config = config.to_raft(init.peer.id, init.applied.index);
        let node = RawNode::new(&raft_config, view, &crate::log_bridge::logger())
            .expect("the settings and the state are valid");
        let role = Role { kind: RoleKind::Follower, term: node.raft.term, leader: None };
        Ok(Peer {
            node,
            config: config.clone(),
            region: init.region,
            peer: init.peer,
            seed: init.seed,
            quiet_ticks: init.quiet_ticks,
            is_retired: false,
            effects: VecDeque::new(),
            role,
            proposals: Proposals::default(),
            outstanding: Outstanding::default(),
            hard_state: recovered,
            applying: VecDeque::new(),
            applying_bytes: 0,
            handed_out: init.applied.index,
            loss_reported: false,
            questions_taken: 0,
            others_read: false,
            told_commit: 0,
        })
    }

    /// Takes one input.
    pub fn handle(&mut self, input: Input) {
        match input {
            Input::Tick => self.tick(),
            Input::Step(message) => self.step(message),
            Input::Propose { id, data, context } => {
                let entry = Entry { data, context, ..Entry::default() };
                self.propose(id, entry);
            }
            Input::ProposeConfChange { id, change, context } => self.propose_conf_change(id, &change, context),
            Input::Campaign => self.campaign(),
            Input::Retire => self.is_retired = true,
            Input::Ping => self.node.ping(),
            Input::Persisted { number } => self.persisted(number),
            Input::Applied { index } => self.applied_to(index),
            Input::ConfChanged { change, region } => self.conf_changed(&change, region),
            Input::ReadIndex { id } => self.read_index(id),
            Input::TransferLeader { to } => self.node.transfer_leader(to.0),
            Input::Fetched { low, entries } => self.fetched(low, entries),
            Input::Compacted { index } => self.compacted(index),
            Input::KnownCommitted { index } => self.known_committed(index),
            Input::Unreachable { peer } => self.node.report_unreachable(peer.0),
        }
    }

    /// The next effect of all inputs so far; `None` when there are no more.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        if self.effects.is_empty() {
            self.collect();
        }
        self.effects.pop_front()
    }

    fn known_committed(&mut self, index: u64) {
        let log = &mut self.node.raft.raft_log;
        if index > log.committed && index <= log.last_index() {
            log.commit_to(index);
        }
    }

    fn tick(&mut self) {
        self.quiet_ticks = self.quiet_ticks.saturating_sub(1);
        if !self.may_campaign() {
            return;
        }
        if self.is_retired && !self.is_leader() {
            // It is to see the last leader's lease end, since it votes; raft's own tick would campaign then.
            self.node.raft.election_elapsed = self.node.raft.election_elapsed.saturating_add(1);
            return;
        }
        self.node.raft.set_randomized_election_timeout(self.election_timeout());
        self.node.tick();
    }

    /// Ticks of silence after which this peer campaigns.
    ///
    /// Who loses its leader waits by its rank among the other voters, the same for all of them: one after the other
    /// campaigns, two ticks apart, so that none takes the other's votes, and the first does so a tick after all others
    /// have become free to vote. Who has campaigned in vain, or knows of no leader, draws.
    fn election_timeout(&self) -> usize {
        let (low, high) = self.config.patience_ticks();
        let raft = &self.node.raft;
        if raft.leader_id == raft::INVALID_ID {
            let draw = hash::fold(hash::fold(self.seed, self.peer.id), raft.term);
            return low + (draw % (high - low) as u64) as usize;
        }
        // Not by id alone: one store would be the first in all regions.
        let order = |id: u64| hash::fold(self.region.id, id);
        let is_before = |id: &u64| *id != raft.leader_id && order(*id) < order(self.peer.id);
        let rank = raft.prs().conf().voters().ids().iter().filter(is_before).count();
        (low + 1 + 2 * rank).min(high - 1)
    }

    /// False while a sole voter's log is not durable: it would elect itself before its own vote's ground is firm.
    fn may_campaign(&self) -> bool {
        let log = &self.node.raft.raft_log;
        self.is_leader() || !self.is_sole_voter() || log.persisted == log.last_index()
    }

    fn campaign(&mut self) {
        let quiet = self.quiet_ticks > 0 && !self.is_sole_voter();
        if !self.is_leader() && !quiet && !self.is_retired && self.may_campaign() && self.node.raft.promotable() {
            self.node.campaign().expect("MsgHup is always taken");
        }
    }

    fn step(&mut self, mut message: Message) {
        let bounds = Bounds { id: self.peer.id, last_index: self.node.raft.raft_log.last_index() };
        if let Err(refusal) = screen::check(&message, bounds) {
            return self.refused(&message, refusal);
        }
        match message.msg_type() {
            // Whoever led has given its lease up before it orders a transfer.
            MessageType::MsgRequestVote | MessageType::MsgRequestPreVote
                if self.quiet_ticks > 0 && !self.is_sole_voter() && message.context != raft::CAMPAIGN_TRANSFER =>
            {
                return;
            }
            // A follower's read counts like one of our own; it asks again.
            MessageType::MsgReadIndex
                if self.is_leader() && self.node.raft.pending_read_count() >= self.config.reads_max =>
            {
                return;
            }
            MessageType::MsgReadIndex if self.is_leader() => self.rename_question(&mut message),
            MessageType::MsgAppend if self.applying_bytes > self.config.applying_bytes_max => {
                // The leader sees what matches, and tries again after its next heartbeat.
                message.entries.clear();
            }
            _ => {}
        }
        // Errors say that the sender is no member, or that the message is not for a peer; there is nobody to tell.
        let _ = self.node.step(message);
    }

    /// A question comes again under its old name when its asker has waited for long, or since the network doubled it, and
    /// may do so after it was answered. raft-rs would take what members have said to the first one for a word on the second,
    /// and on every question of this leader that came between the two: it would read by a lease that nobody has granted. So
    /// each gets a name of its own; the asker looks at the beginning alone.
    fn rename_question(&mut self, message: &mut Message) {
        self.questions_taken += 1;
        self.others_read = true;
        if let Some(question) = message.entries.first_mut() {
            let mut name = BytesMut::from(&question.data[..]);
            name.put_u64(self.questions_taken);
            question.data = name.freeze();
        }
    }

    /// Nobody may fill the log with such lines, so only what says that data was lost is loud, and once.
    fn refused(&mut self, message: &Message, refusal: Refusal) {
        let (region, peer, from) = (self.region.id, self.peer.id, message.from);
        if refusal == Refusal::Lost && !self.loss_reported {
            self.loss_reported = true;
            assert!(
                !self.config.halts_on_loss,
                "region {region}: peer {peer} acknowledged up to {} to its leader {from} and no longer has it",
                message.commit
            );
            tracing::error!(region, peer, from, "the leader commits what this peer acknowledged and no longer has");
        }
        tracing::debug!(region, peer, from, %refusal, "message dropped");
    }

    fn propose(&mut self, id: u64, entry: Entry) {
        if let Err(reason) = self.may_propose() {
            return self.reject(id, reason);
        }
        let message = Message {
            msg_type: MessageType::MsgPropose as i32,
            from: self.peer.id,
            entries: vec![entry],
            ..Message::default()
        };
        match self.node.raft.step(message) {
            Ok(()) => {
                let raft = &self.node.raft;
                self.proposals.push(id, raft.raft_log.last_index(), raft.term);
            }
            Err(_) => self.reject(id, RejectReason::Busy),
        }
    }

    fn may_propose(&self) -> Result<(), RejectReason> {
        if !self.is_leader() {
            Err(RejectReason::NotLeader { leader: self.leader() })
        } else if self.node.raft.lead_transferee.is_some() {
            Err(RejectReason::Transferring)
        } else if self.proposals.len() >= self.config.proposals_max
            || self.applying_bytes > self.config.applying_bytes_max
        {
            Err(RejectReason::Busy)
        } else {
            Ok(())
        }
    }

    /// raft-rs turns a change that it refuses into an empty entry, so its conditions are looked at first.
    fn propose_conf_change(&mut self, id: u64, change: &ConfChangeV2, context: Bytes) {
        let joint = !self.node.raft.prs().conf().to_conf_state().voters_outgoing.is_empty();
        if self.is_leader() && (self.node.raft.has_pending_conf() || joint != change.changes.is_empty()) {
            return self.reject(id, RejectReason::ConfChangeRefused);
        }
        let entry = Entry {
            entry_type: EntryType::EntryConfChangeV2 as i32,
            data: change.encode_to_vec().into(),
            context,
            ..Entry::default()
        };
        self.propose(id, entry);
    }

    fn persisted(&mut self, number: u64) {
        if let Some(number) = self.outstanding.persisted(number) {
            self.node.on_persist_ready(number);
        }
    }

    fn applied_to(&mut self, index: u64) {
        assert!(index <= self.handed_out, "applied up to {index}, but only {} was handed out", self.handed_out);
        if index <= self.applied() {
            return;
        }
        while self.applying.front().is_some_and(|(last, _)| *last <= index) {
            let (_, bytes) = self.applying.pop_front().expect("just seen");
            self.applying_bytes -= bytes;
        }
        self.node.advance_apply_to(index);
        self.trim(self.cache_bytes());
    }

    fn cache_bytes(&self) -> usize {
        if self.node.raft.prs().iter().len() > 1 { self.config.cache_bytes } else { 0 }
    }

    fn conf_changed(&mut self, change: &ConfChangeV2, region: metapb::Region) {
        let members =
            self.node.apply_conf_change(change).expect("the application checked the change against the region");
        assert!(
            raft_proto::conf_state_eq(&members, &conf_state(&region)),
            "raft counts {members:?}, region {} has {:?}",
            region.id,
            region.peers
        );
        self.region = region;
    }

    fn read_index(&mut self, id: u64) {
        let raft = &self.node.raft;
        let refused = if raft.leader_id == 0 {
            Some(RejectReason::NotLeader { leader: None })
        } else if self.is_leader() && !raft.commit_to_current_term() {
            Some(RejectReason::NotReady)
        } else if raft.pending_read_count() >= self.config.reads_max {
            Some(RejectReason::Busy)
        } else {
            None
        };
        match refused {
            Some(reason) => self.reject(id, reason),
            None => {
                let mut name = BytesMut::with_capacity(16);
                name.put_u64(self.peer.id);
                name.put_u64(id);
                self.node.read_index(name.into());
            }
        }
    }

    fn fetched(&mut self, low: u64, entries: Vec<Entry>) {
        for waiter in self.node.mut_store().fetched(low, entries) {
            self.node.on_entries_fetched(waiter);
        }
        self.node.mut_store().drop_fetched();
    }

    fn compacted(&mut self, index: u64) {
        assert!(index <= self.applied(), "compacting up to {index}, applied is {}", self.applied());
        self.node.mut_store().truncate(index);
    }

    fn reject(&mut self, id: u64, reason: RejectReason) {
        self.effects.push_back(Effect::Rejected { id, reason });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A shard at rest is handed from core to core whole.
    #[test]
    fn a_peer_may_change_its_core() {
        fn plain<T: Send>() {}
        plain::<Peer>();
    }
}
