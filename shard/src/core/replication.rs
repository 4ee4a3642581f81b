//! Raft messages of a shard's peers: out to other stores, in from them, and what is done with those for nobody.
//!
//! A message that promises something leaves once the log write that holds the promise is durable; all others leave
//! before that write begins, so that followers write beside the leader.
//!
//! A peer that a region was just given has nothing on its store, and nobody makes it: its leader's first messages are
//! answered in its name by [`answer_absent`], whose "I have nothing" makes the leader send a snapshot, and the snapshot
//! makes the peer. It promises nothing by that: no vote, no entry, no confirmation of a read.

use std::collections::BTreeMap;
use std::rc::Rc;

use base::{PeerId, RegionId, StoreId};
use bytes::Bytes;
use prost::Message as _;
use proto::{metapb, raft_serverpb};
use raftstore::Input as RaftInput;
use raftstore::eraftpb::{Message, MessageType};

use super::disk::DiskUsage;
use super::lease::quiet_ticks;
use super::peer::{PeerState, Phase};
use super::planted::PlantedFault;
use super::shard::{Input, Shard, add};
use super::turn::Turn;
use crate::engine::Engine;
use crate::log::RaftLog;

/// Senders that are no members of the region whose stores a peer remembers, so that it can answer them.
const STRANGERS_MAX: usize = 16;

/// Entries that are read from the log for a follower.
pub(crate) struct Fetch {
    pub(crate) region: RegionId,
    pub(crate) low: u64,
    pub(crate) high: u64,
    pub(crate) max_bytes: u64,
}

/// What a peer knows of those that it talks to.
#[derive(Debug, Default)]
pub(crate) struct Contacts {
    /// Senders that the region does not list, by their ids: candidates that were removed, or members to come.
    strangers: BTreeMap<u64, metapb::Peer>,
    /// When each other member was heard of last.
    heard: BTreeMap<u64, base::Instant>,
}

impl Contacts {
    fn note(&mut self, region: &metapb::Region, from: metapb::Peer) {
        self.heard.insert(from.id, executor::now());
        self.heard.retain(|id, _| *id == from.id || region.peers.iter().any(|peer| peer.id == *id));
        if region.peers.iter().any(|peer| peer.id == from.id) {
            self.strangers.remove(&from.id);
        } else {
            if self.strangers.len() >= STRANGERS_MAX {
                self.strangers.pop_first();
            }
            self.strangers.insert(from.id, from);
        }
    }

    /// When `peer` was heard of last; if it never was, it counts from `now` on.
    pub(crate) fn heard_or(&mut self, peer: u64, now: base::Instant) -> base::Instant {
        *self.heard.entry(peer).or_insert(now)
    }

    /// Whether `peer` was heard of no longer ago than `limit`.
    pub(crate) fn heard_within(&self, peer: u64, now: base::Instant, limit: std::time::Duration) -> bool {
        self.heard.get(&peer).is_some_and(|heard| now.since(*heard) <= limit)
    }

    /// A new leader begins to count from now on.
    pub(crate) fn forget(&mut self) {
        self.heard.clear();
    }
}

impl PeerState {
    /// A letter of this peer; `None` if the receiver's store is unknown.
    pub(crate) fn letter(&self, message: &Message) -> Option<(StoreId, raft_serverpb::RaftMessage)> {
        let region = &self.meta.region;
        let member = region.peers.iter().find(|peer| peer.id == message.to);
        let to = *member.or_else(|| self.contacts.strangers.get(&message.to))?;
        let letter = raft_serverpb::RaftMessage {
            region_id: region.id,
            from_peer: Some(self.meta.peer),
            to_peer: Some(to),
            message: message.encode_to_vec().into(),
            region_epoch: region.region_epoch,
            extra_ctx: if message.msg_type() == MessageType::MsgHeartbeat { self.claim() } else { Bytes::new() },
            ..Default::default()
        };
        Some((StoreId(to.store_id), letter))
    }

    /// Asks the leader for a snapshot: this peer has the log, and cannot apply it.
    pub(crate) fn snapshot_request(&self) -> Option<(StoreId, raft_serverpb::RaftMessage)> {
        let leader = self.leader_peer()?;
        let last = self.raft.last_index();
        self.letter(&Message {
            msg_type: MessageType::MsgAppendResponse as i32,
            from: self.meta.peer.id,
            to: leader.id,
            term: self.term,
            index: last,
            reject: true,
            reject_hint: last,
            request_snapshot: last,
            ..Message::default()
        })
    }

    /// Tells a peer that is no member any more that it is none.
    pub(crate) fn tombstone_letter(&self, to: metapb::Peer) -> raft_serverpb::RaftMessage {
        raft_serverpb::RaftMessage {
            region_id: self.meta.region.id,
            from_peer: Some(self.meta.peer),
            to_peer: Some(to),
            region_epoch: self.meta.region.region_epoch,
            is_tombstone: true,
            ..Default::default()
        }
    }
}

impl<E: Engine> Shard<E> {
    /// Sends messages of `peer`, now or after the turn's log write.
    pub(crate) fn post(&self, peer: &PeerState, messages: &[Message], after_log: bool, turn: &mut Turn) {
        let letters = messages.iter().filter_map(|message| peer.letter(message));
        let disk_usage = self.disk_for_letters();
        for (to, letter) in letters {
            let letter = raft_serverpb::RaftMessage { disk_usage, ..letter };
            if after_log && !self.leaves_early(&letter) {
                turn.after_log.push((to, letter));
            } else {
                add(&self.metrics.raft_sent_total, 1);
                self.outlet.send_raft(to, letter);
            }
        }
    }

    /// A planted fault: a promise that leaves before it can be kept.
    fn leaves_early(&self, letter: &raft_serverpb::RaftMessage) -> bool {
        let kind = match self.config.planted {
            Some(PlantedFault::AckBeforeSync) => MessageType::MsgAppendResponse,
            Some(PlantedFault::VoteBeforePersist) => MessageType::MsgRequestVoteResponse,
            _ => return false,
        };
        Message::decode(letter.message.clone()).is_ok_and(|message| message.msg_type() == kind)
    }

    /// The turn's log write is durable: what promised its contents may leave.
    pub(crate) fn post_promises(&self, turn: &mut Turn) {
        for (to, letter) in turn.after_log.drain(..) {
            add(&self.metrics.raft_sent_total, 1);
            self.outlet.send_raft(to, letter);
        }
    }

    /// Takes a message in. What is not for the peer that is here is dropped, or says that one of both is gone.
    pub(crate) fn step_raft(&self, letter: &raft_serverpb::RaftMessage, turn: &mut Turn) {
        let region = RegionId(letter.region_id);
        let (Some(from), Some(to)) = (letter.from_peer, letter.to_peer) else { return };
        let mut peers = self.peers.borrow_mut();
        let Some(peer) = peers.get_mut(&region) else { return };
        let own = peer.meta.peer;
        let conf_ver = letter.region_epoch.as_ref().map_or(0, |epoch| epoch.conf_ver);
        // A shard whose log takes no records cannot end a peer either; one whose damage was accepted can.
        if to.store_id != self.store.0 || (peer.phase == Phase::Damaged && self.is_damaged) {
            return;
        }
        if let Some(target) = &letter.merge_target {
            if to.id == own.id {
                self.outlet.left_behind(self.id, region, PeerId(own.id), target.clone());
            }
            return;
        }
        // The others know a later peer of this store, or know that this one has left. Either took a change of members,
        // which a sole voter would have had to agree to.
        let is_named = to.id > own.id || (letter.is_tombstone && to.id == own.id);
        if is_named && self.config.is_planted(PlantedFault::StalePeerStays) {
            return;
        }
        if is_named && conf_ver > peer.meta.conf_ver() && !peer.raft.is_sole_voter() {
            tracing::info!(%region, peer = own.id, "this peer is no member any more");
            self.push(Input::Leave { region, peer: PeerId(own.id) });
            return;
        }
        if to.id != own.id || letter.is_tombstone {
            return;
        }
        let Ok(message) = Message::decode(letter.message.clone()) else {
            tracing::warn!(%region, "a raft message cannot be read");
            return;
        };
        let is_vote = matches!(message.msg_type(), MessageType::MsgRequestVote | MessageType::MsgRequestPreVote);
        let is_member = peer.meta.region.peers.iter().any(|member| member.id == from.id);
        if is_vote && !is_member && conf_ver < peer.meta.conf_ver() {
            if peer.members_durable {
                self.outlet.send_raft(StoreId(from.store_id), peer.tombstone_letter(from));
            }
            return;
        }
        // A frozen peer's entries are on their way to another shard; an ended one has none. Who is alone in its region
        // hears from nobody: a stray message of a higher term would end a leadership that no tick brings back.
        if peer.phase != Phase::Serving || message.from != from.id || peer.meta.region.peers.len() == 1 {
            return;
        }
        let is_leaders = matches!(message.msg_type(), MessageType::MsgHeartbeat | MessageType::MsgAppend);
        if is_leaders && message.term >= peer.term {
            peer.led_at = executor::now();
        }
        add(&self.metrics.raft_received_total, 1);
        self.note_disk(StoreId(from.store_id), letter.disk_usage());
        if message.msg_type() == MessageType::MsgAppend
            && !message.entries.is_empty()
            && self.outlet.disk() == DiskUsage::Exhausted
        {
            // As if it were lost: the leader sends it again, and goes on with those that have room.
            add(&self.metrics.disk_refused_total, 1);
            return;
        }
        peer.contacts.note(&peer.meta.region, from);
        if message.request_snapshot > 0 {
            turn.snapshots.push((region, PeerId(from.id)));
            return;
        }
        if message.msg_type() == MessageType::MsgTransferLeader {
            // Its lease is to end first.
            self.push(Input::Transfer { region, to: PeerId(from.id) });
            return;
        }
        if message.msg_type() == MessageType::MsgHeartbeat && !self.agrees(peer, from.id, &letter.extra_ctx) {
            return;
        }
        peer.raft.handle(RaftInput::Step(message));
        turn.dirty.insert(region);
    }

    /// A peer that led before it moved here is to ask for that back once it may vote again.
    pub(crate) fn step_reclaim(&self, region: RegionId) {
        if let Some(peer) = self.peers.borrow_mut().get_mut(&region).filter(|peer| !peer.raft.is_sole_voter()) {
            peer.reclaims_in = quiet_ticks(&self.config) + 2;
        }
    }

    /// A tick of a peer that counts down to ask its leader for the leadership.
    pub(crate) fn reclaim(&self, peer: &mut PeerState) {
        peer.reclaims_in -= 1;
        let leader = peer.leader_peer().filter(|leader| leader.id != peer.meta.peer.id);
        let (Some(leader), 0) = (leader, peer.reclaims_in) else { return };
        let message = Message {
            msg_type: MessageType::MsgTransferLeader as i32,
            from: peer.meta.peer.id,
            to: leader.id,
            term: peer.term,
            ..Message::default()
        };
        if let Some((to, letter)) = peer.letter(&message) {
            self.outlet.send_raft(to, letter);
        }
    }

    /// Reads what followers need from the log, beside the turns.
    pub(crate) fn fetch(self: &Rc<Self>, turn: &mut Turn, log: &Rc<RaftLog>) {
        for fetch in turn.fetches.drain(..) {
            let (shard, log) = (self.clone(), log.clone());
            executor::spawn_local(executor::Class::Raft, async move {
                let Fetch { region, low, high, max_bytes } = fetch;
                let max_bytes = usize::try_from(max_bytes).unwrap_or(usize::MAX);
                let found = log.entries(region, low, high, max_bytes).await;
                shard.push(Input::Fetched { region, low, entries: found.ok() });
            });
        }
    }

    /// What the log had for a follower. What it no longer has is compacted for raft, too, and calls for a snapshot.
    pub(crate) fn step_fetched(
        &self,
        region: RegionId,
        low: u64,
        entries: Option<Vec<crate::log::LogEntry>>,
        turn: &mut Turn,
    ) {
        let mut peers = self.peers.borrow_mut();
        let Some(peer) = peers.get_mut(&region).filter(|peer| peer.phase == Phase::Serving) else { return };
        let entries = match entries {
            Some(entries) => super::recovery::decode_entries(entries).collect(),
            None => {
                peer.raft.handle(RaftInput::Compacted { index: peer.raft.applied() });
                Vec::new()
            }
        };
        peer.raft.handle(RaftInput::Fetched { low, entries });
        turn.dirty.insert(region);
    }
}

/// The answer to a member of a region that has ended here in `target`, as that was before: it is told so.
pub fn answer_merged(letter: &raft_serverpb::RaftMessage, target: &metapb::Region) -> raft_serverpb::RaftMessage {
    raft_serverpb::RaftMessage {
        region_id: letter.region_id,
        from_peer: letter.to_peer,
        to_peer: letter.from_peer,
        region_epoch: letter.region_epoch,
        merge_target: Some(target.clone()),
        ..Default::default()
    }
}

/// The answer in the name of a peer that is not here yet: "I have nothing". `None` if the message asks for none, or for
/// something that such a peer must not give.
pub fn answer_absent(letter: &raft_serverpb::RaftMessage, store: StoreId) -> Option<raft_serverpb::RaftMessage> {
    let (from, to) = (letter.from_peer?, letter.to_peer?);
    if to.store_id != store.0 || letter.is_tombstone {
        return None;
    }
    let asked = Message::decode(letter.message.clone()).ok()?;
    let kind = match asked.msg_type() {
        MessageType::MsgAppend => MessageType::MsgAppendResponse,
        // Without its context: that would confirm that the sender leads, which a peer may say that keeps its votes.
        MessageType::MsgHeartbeat => MessageType::MsgHeartbeatResponse,
        _ => return None,
    };
    let answer = Message {
        msg_type: kind as i32,
        from: to.id,
        to: from.id,
        term: asked.term,
        index: if kind == MessageType::MsgAppendResponse { asked.index } else { 0 },
        reject: kind == MessageType::MsgAppendResponse,
        ..Message::default()
    };
    Some(raft_serverpb::RaftMessage {
        region_id: letter.region_id,
        from_peer: Some(to),
        to_peer: Some(from),
        message: answer.encode_to_vec().into(),
        region_epoch: letter.region_epoch,
        ..Default::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter(kind: MessageType) -> raft_serverpb::RaftMessage {
        let message = Message {
            msg_type: kind as i32,
            from: 11,
            to: 21,
            term: 8,
            index: 40,
            log_term: 7,
            context: "read".into(),
            ..Message::default()
        };
        raft_serverpb::RaftMessage {
            region_id: 1,
            from_peer: Some(metapb::Peer { id: 11, store_id: 1, ..Default::default() }),
            to_peer: Some(metapb::Peer { id: 21, store_id: 2, ..Default::default() }),
            message: message.encode_to_vec().into(),
            ..Default::default()
        }
    }

    fn answer(kind: MessageType) -> Option<Message> {
        let letter = answer_absent(&letter(kind), StoreId(2))?;
        assert_eq!((letter.from_peer.map(|peer| peer.id), letter.to_peer.map(|peer| peer.id)), (Some(21), Some(11)));
        Message::decode(letter.message).ok()
    }

    #[test]
    fn an_absent_peer_has_nothing_and_promises_nothing() {
        let append = answer(MessageType::MsgAppend).expect("an answer");
        assert!(append.reject);
        assert_eq!((append.msg_type(), append.index, append.reject_hint), (MessageType::MsgAppendResponse, 40, 0));
        let heartbeat = answer(MessageType::MsgHeartbeat).expect("an answer");
        assert!(heartbeat.context.is_empty(), "it confirms no read");
        for kind in [MessageType::MsgRequestVote, MessageType::MsgRequestPreVote, MessageType::MsgTimeoutNow] {
            assert_eq!(answer(kind), None);
        }
        assert_eq!(answer_absent(&letter(MessageType::MsgAppend), StoreId(3)), None);
    }
}
