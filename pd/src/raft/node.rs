//! The member's raft peer with its log, its lease and the state that comes of it. See the module above for the picture.
//!
//! Of what is to be written only one piece is under way at a time, record or image. Whatever raft wants written meanwhile
//! gathers for the next one, and messages that promise something wait for the piece that contains it.
//!
//! Members change by entries ([`MemberChange`]). Raft counts the new members from when the entry is applied. Who reads of
//! its own removal serves no more, but votes on: the others may forget that it was committed, and need that vote then. It
//! is out when one of them says so that has it on its disk ([`Node::has_removed`]).
//!
//! A peer begins anew ([`raftstore::Peer::new`], as after a restart) in two cases, each with nothing being written: when a
//! snapshot takes the place of its log, and when leadership was to be handed over and was not. In the second case a call
//! to campaign may still be on its way, which the lease does not hold off; so the leader steps back, and the next term
//! makes that call void.

use super::Faults;
use super::lease::{Lease, Right};
use super::log::Log;
use super::roster::{ChangeError, MemberChange, MemberRole, Roster};
use super::stored::{self, Stage, Stored};
use crate::state::{LoadError, State};
use base::{Instant, PeerId};
use bytes::{Bytes, BytesMut};
use proto::metapb;
use raftstore::eraftpb::{ConfChangeV2, Entry, EntryType, HardState, Message, MessageType};
use raftstore::{Committed, Effect, InitError, Input, LogPosition, Peer, PeerInit, RaftConfig};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// Marks the numbers of questions, which share a space with those of proposals.
const QUESTION: u64 = 1 << 63;
/// Marks the numbers of changes of members, which do so too.
const CHANGE: u64 = 1 << 62;
/// Entries by which a learner may be behind when it is made a voter.
const BEHIND_MAX: u64 = 64;

/// What a node is told at its start.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// How long a tick is.
    pub tick: Duration,
    /// Time-outs in ticks, bounds of messages.
    pub raft: RaftConfig,
    /// Bytes of applied entries that stay in the log for members that lag. Those that lag more get a snapshot.
    pub keep_bytes: usize,
    /// Election time-outs are drawn from it.
    pub seed: u64,
    /// Planted mistakes.
    pub faults: Faults,
}

/// A state on its way to a member that lacks the log for it.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Who sent it.
    pub from: u64,
    /// The sender's term.
    pub term: u64,
    /// The last entry whose effects it holds.
    pub position: LogPosition,
    /// The members as of that entry.
    pub roster: Roster,
    /// The state, as a run of changes.
    pub data: Bytes,
}

/// What is to be done for the node.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "messages are the common case and are handed over at once")]
pub enum Output {
    /// Send this to the member `to`; it may be lost.
    Send(Message),
    /// The proposal of this number is committed, and in the state.
    Committed(u64),
    /// The proposal of this number is not taken, or will be overwritten.
    Rejected(u64),
    /// This member needs a snapshot.
    SnapshotWanted(u64),
    /// The change of members of this number is committed: it is carried out, or, by all alike, is not.
    Changed(u64, Result<(), ChangeError>),
    /// The change of members of this number was not begun, or has given way to something else.
    NotChanged(u64),
}

/// What is to be made durable; tell [`Node::written`] when it is.
#[derive(Debug)]
pub enum Write {
    /// A record behind the others.
    Record(Bytes),
    /// An image in the place of everything.
    Image(Bytes),
}

/// Why a node cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The stored state is none that a correct run leaves behind.
    #[error("the stored log makes no sense")]
    Init(#[from] InitError),
    /// A committed entry or a snapshot cannot be read: this member would differ from the others.
    #[error("a committed change cannot be applied")]
    State(#[from] LoadError),
    /// A committed change of members cannot be read: it is of a later version.
    #[error("a committed change of members cannot be read")]
    Members,
}

/// What raft wants written and is not under way yet.
#[derive(Default)]
struct Pending {
    /// The last `Persist`; 0 for none.
    number: u64,
    hard_state: bool,
    entries: Vec<Entry>,
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.number == 0
    }
}

/// See the module.
pub struct Node {
    config: NodeConfig,
    id: u64,
    roster: Roster,
    /// Rises with each change of the roster.
    roster_version: u64,
    /// This member has applied its own removal.
    leaving: bool,
    /// How far this member has come, and how far its disk says so.
    stage: Stage,
    durable_stage: Stage,
    /// Who was removed, as the image on disk says.
    removed: Vec<u64>,
    /// The same and the stage, as the image under way says.
    imaged: Option<(Vec<u64>, Stage)>,
    peer: Peer,
    hard_state: HardState,
    log: Log,
    applied: LogPosition,
    state: State,
    lease: Lease,
    pending: Pending,
    /// The last `Persist` of the piece that is under way.
    writing: Option<u64>,
    durable: u64,
    held: VecDeque<(u64, Vec<Message>)>,
    outputs: Vec<Output>,
    image_wanted: bool,
    incoming: Option<Snapshot>,
    /// What to tell the sender of the snapshot that is being made durable; nothing else is heard meanwhile.
    installing: Option<Message>,
    /// Leadership was to be handed over until then.
    handing_over: Option<Instant>,
    begin_anew: bool,
    questions: u64,
    heard: BTreeMap<u64, Instant>,
    /// The latest moment that it was told.
    now: Instant,
}

impl Node {
    /// A node with what its disk holds. The first piece to be written is an image, which an empty disk of a first member has to
    /// wait for: see [`Node::make_ready`].
    ///
    /// What is known to be committed is applied at once: nobody may vote, or lead alone, by a roster of before.
    ///
    /// # Errors
    /// [`NodeError::Init`] if that is nothing that a correct run leaves behind.
    pub fn new(config: NodeConfig, stored: Stored) -> Result<Node, NodeError> {
        let Stored { hard_state, roster, own_id, log, applied, state, stage } = stored;
        let quiet = if config.faults.vote_after_restart { 0 } else { config.raft.election_ticks };
        let init = init(&config, own_id, &roster, hard_state, &log, applied, quiet);
        let lease = Lease::new(Lease::longest(config.tick, config.raft.election_ticks));
        let mut node = Node {
            peer: Peer::new(init, &config.raft)?,
            id: own_id,
            roster_version: 0,
            leaving: roster.find(own_id).is_none(),
            stage,
            durable_stage: stage,
            removed: Vec::new(),
            imaged: None,
            roster,
            hard_state,
            log,
            applied,
            state,
            lease,
            pending: Pending::default(),
            writing: None,
            durable: 0,
            held: VecDeque::new(),
            outputs: Vec::new(),
            image_wanted: stage != Stage::Asking,
            incoming: None,
            installing: None,
            handing_over: None,
            begin_anew: false,
            questions: 0,
            heard: BTreeMap::new(),
            now: Instant(0),
            config,
        };
        node.collect()?;
        Ok(node)
    }

    /// This member.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Whether the member is the whole group.
    pub fn is_alone(&self) -> bool {
        self.roster.members().len() == 1 && self.is_sole_voter()
    }

    /// Whether this member is the only one that votes.
    pub fn is_sole_voter(&self) -> bool {
        self.roster.is_sole_voter(self.id)
    }

    /// The members as of the applied index.
    pub fn roster(&self) -> &Roster {
        &self.roster
    }

    /// Rises with each change of the roster.
    pub fn roster_version(&self) -> u64 {
        self.roster_version
    }

    /// Whether this member was removed, as far as it knows by itself.
    pub fn is_leaving(&self) -> bool {
        self.leaving
    }

    /// Whether this member was removed, and has nothing left to do but to end.
    pub fn is_out(&self) -> bool {
        self.stage == Stage::Out
    }

    /// How far this member has come, as it may be told to others.
    pub fn stage(&self) -> Stage {
        if self.stage == Stage::Ready { self.durable_stage } else { self.stage }
    }

    /// None of the others has begun: this first member gets a folder that says so.
    pub fn make_ready(&mut self) {
        if self.stage == Stage::Asking {
            (self.stage, self.image_wanted) = (Stage::Ready, true);
        }
    }

    /// All of the others are ready, or some of them have begun: this first member takes part from here on.
    pub fn begin(&mut self) {
        if self.stage == Stage::Ready {
            (self.stage, self.image_wanted) = (Stage::Begun, true);
        }
    }

    fn has_begun(&self) -> bool {
        matches!(self.stage, Stage::Begun | Stage::Out)
    }

    /// Whether `id` was removed, and this member will not forget it.
    pub fn has_removed(&self, id: u64) -> bool {
        self.removed.contains(&id)
    }

    /// Who was removed, as far as this member will not forget it.
    pub fn removed(&self) -> &[u64] {
        &self.removed
    }

    /// The state as of the applied index: what is committed, and nothing else.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Up to where the log is applied.
    pub fn applied(&self) -> LogPosition {
        self.applied
    }

    /// The present term.
    pub fn term(&self) -> u64 {
        self.peer.term()
    }

    /// Who leads, as far as this member knows.
    pub fn leader(&self) -> Option<u64> {
        self.peer.leader().map(|leader| leader.0)
    }

    /// The term that this member leads, once its state holds all that was ever acknowledged.
    pub fn leads(&self) -> Option<u64> {
        let stays = self.handing_over.is_none() && !self.begin_anew && !self.leaving;
        let leads = self.peer.is_leader_up_to_date() && stays;
        leads.then(|| self.peer.term())
    }

    /// What the member may answer as a leader.
    pub fn right(&self) -> Right {
        match (self.leads(), self.lease.until()) {
            (None, _) => Right::Never,
            (Some(_), _) if self.is_sole_voter() || self.config.faults.lease_unchecked => Right::Always,
            (Some(_), None) => Right::Never,
            (Some(_), Some(until)) => Right::Until(until),
        }
    }

    /// When a member was last heard.
    pub fn heard(&self, member: u64) -> Option<Instant> {
        self.heard.get(&member).copied()
    }

    /// The connection that a member's messages came by is closed: it counts as not heard until the next one comes.
    pub fn lost(&mut self, member: u64) {
        self.heard.remove(&member);
    }

    /// A tick has passed. Ticks that were missed are not made up for: a member's patience is in ticks that it lived.
    pub fn tick(&mut self, now: Instant) {
        self.now = self.now.max(now);
        // Who leaves disturbs nobody by standing for election.
        if !self.has_begun() || self.installing.is_some() || self.leaving && !self.peer.is_leader() {
            return;
        }
        self.peer.handle(Input::Tick);
        if !self.peer.is_leader() {
            self.handing_over = None;
        } else if self.handing_over.is_some_and(|until| now >= until) {
            self.begin_anew = true;
        } else if !self.is_sole_voter() && self.handing_over.is_none() {
            self.ask(now);
        }
    }

    /// Asks the members whether this one still leads.
    fn ask(&mut self, now: Instant) {
        self.questions += 1;
        self.lease.asked(self.questions, now);
        self.peer.handle(Input::ReadIndex { id: QUESTION | self.questions });
    }

    /// A message of a member, who may be one of whom this one has not heard yet.
    pub fn step(&mut self, now: Instant, message: Message) {
        self.now = self.now.max(now);
        if self.has_begun() && self.installing.is_none() && !self.roster.was_removed(message.from) {
            if self.roster.find(message.from).is_some() {
                self.heard.insert(message.from, now);
            }
            self.peer.handle(Input::Step(message));
        }
    }

    /// Replicate `data`. Answered by [`Output::Committed`] or [`Output::Rejected`], or by [`Node::leads`] being no longer
    /// what it was.
    pub fn propose(&mut self, number: u64, data: Bytes) {
        self.peer.handle(Input::Propose { id: number, data, context: Bytes::new() });
    }

    /// Changes the members. Answered by [`Output::Changed`] or [`Output::NotChanged`], or by [`Node::leads`] being no
    /// longer what it was. The numbers are apart from those of [`Node::propose`].
    ///
    /// Only a leader whose lease the members as they are have confirmed begins a change: see [`Lease`].
    pub fn propose_change(&mut self, number: u64, change: &MemberChange) {
        let is_settled = self.is_sole_voter() || self.lease.is_confirmed();
        if self.leads().is_none() || !is_settled {
            return self.outputs.push(Output::NotChanged(number));
        }
        let id = CHANGE | number;
        let input = match change.to_conf_change() {
            Some(change) => Input::ProposeConfChange { id, change, context: Bytes::new() },
            None => Input::Propose { id, data: Bytes::new(), context: change.encode() },
        };
        self.peer.handle(input);
    }

    /// The learner that is to become a voter, if there is one and it has caught up.
    pub fn ready_to_vote(&self) -> Option<u64> {
        let joining = self.roster.members().iter().filter(|member| member.role == MemberRole::Joining);
        joining.map(|member| member.id).find(|id| self.has_caught_up(*id))
    }

    /// Whether a member has nearly all of the log of this leader, and answers.
    pub fn has_caught_up(&self, member: u64) -> bool {
        let patience = self.config.tick * self.config.raft.election_ticks;
        let is_heard = self.heard(member).is_some_and(|heard| self.now.since(heard) < patience);
        // Nothing that it has acknowledged is nothing on its disk, however short the log is.
        let has_most = |matched: u64| matched > 0 && matched + BEHIND_MAX >= self.peer.last_index();
        let of = |(id, matched): &(PeerId, u64)| id.0 == member && has_most(*matched);
        is_heard && self.leads().is_some() && self.peer.followers().iter().any(of)
    }

    /// Another member, which will not forget it, says that this one was removed.
    pub fn was_removed(&mut self) {
        (self.leaving, self.stage, self.image_wanted) = (true, Stage::Out, true);
    }

    /// Try to lead now, without waiting for a time-out: for a member that votes alone.
    pub fn campaign(&mut self) {
        self.peer.handle(Input::Campaign);
    }

    /// Hands leadership to `to`, or to whoever has most of the log. From here on this member does not lead. False if there
    /// is nobody to hand it to, or nothing to hand over.
    pub fn transfer(&mut self, now: Instant, to: Option<u64>) -> bool {
        if self.leads().is_none() {
            return false;
        }
        let mut others = self.peer.followers();
        others.retain(|(member, _)| self.roster.voters().any(|voter| voter == member.0));
        let best = others.iter().max_by_key(|(member, matched)| (*matched, self.heard(member.0)));
        let Some(to) = to.map(PeerId).or(best.map(|(member, _)| *member)) else { return false };
        if !others.iter().any(|(member, _)| *member == to) {
            return false;
        }
        self.lease.end();
        self.handing_over = Some(now + self.config.tick * 2 * self.config.raft.election_ticks);
        self.peer.handle(Input::TransferLeader { to });
        true
    }

    /// Steps back without a successor: what was proposed here will not be answered.
    pub fn step_back(&mut self) {
        self.begin_anew |= self.peer.is_leader();
    }

    /// A message to that member was lost.
    pub fn unreachable(&mut self, member: u64) {
        self.peer.handle(Input::Unreachable { peer: PeerId(member) });
    }

    /// The state as of the applied index, for a member that needs it.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            from: self.id,
            term: self.peer.term(),
            position: self.applied,
            roster: self.roster.clone(),
            data: self.state.image(),
        }
    }

    /// A snapshot has come. One that tells nothing new is forgotten.
    pub fn install(&mut self, snapshot: Snapshot) {
        let is_newer = |other: &Snapshot| other.position.index < snapshot.position.index;
        if self.is_news(&snapshot) && self.incoming.as_ref().is_none_or(is_newer) {
            self.incoming = Some(snapshot);
        }
    }

    /// If the log holds the snapshot's last entry, what follows it may have been acknowledged, and must stay. One that does
    /// not know this member is of before it was added, or of after its removal.
    fn is_news(&self, snapshot: &Snapshot) -> bool {
        let position = snapshot.position;
        let is_known = snapshot.roster.find(self.id).is_some();
        is_known
            && self.has_begun()
            && !self.leaving
            && position.index > self.peer.committed()
            && self.log.term(position.index) != Some(position.term)
    }

    /// What is to be done by now. To be asked after each round of inputs.
    ///
    /// # Errors
    /// [`NodeError`]: the member must stop.
    pub fn poll(&mut self) -> Result<Vec<Output>, NodeError> {
        self.collect()?;
        if self.leads().is_some() && !self.is_sole_voter() && self.lease.until().is_none() && !self.lease.is_asked() {
            // A new leader does not wait for its next tick. The moment it was told last is before this one: the lease is
            // the shorter for it.
            self.ask(self.now);
            self.collect()?;
        }
        if self.writing.is_none() {
            if let Some(snapshot) = self.incoming.take().filter(|snapshot| self.is_news(snapshot)) {
                self.take_over(snapshot)?;
                self.collect()?;
            } else if self.begin_anew && self.pending.is_empty() {
                self.begin_anew()?;
                self.collect()?;
            }
        }
        if !self.peer.is_leader() {
            self.lease.end();
        }
        Ok(std::mem::take(&mut self.outputs))
    }

    fn collect(&mut self) -> Result<(), NodeError> {
        while let Some(effect) = self.peer.poll_effect() {
            match effect {
                Effect::Persist { number, hard_state, entries } => self.persist(number, hard_state, entries),
                Effect::Send { messages, after_persist } => self.send(messages, after_persist),
                Effect::Apply(committed) => self.apply(committed)?,
                Effect::Rejected { id, .. } if id & QUESTION != 0 => {}
                Effect::Rejected { id, .. } if id & CHANGE != 0 => self.outputs.push(Output::NotChanged(id & !CHANGE)),
                Effect::Rejected { id, .. } => self.outputs.push(Output::Rejected(id)),
                Effect::FetchEntries { low, high, max_bytes } => {
                    let entries = self.log.range(low, high, max_bytes);
                    self.peer.handle(Input::Fetched { low, entries });
                }
                Effect::ReadReady { id, .. } if self.handing_over.is_none() => self.lease.answered(id & !QUESTION),
                Effect::SnapshotWanted { to } => self.outputs.push(Output::SnapshotWanted(to.0)),
                Effect::ReadReady { .. } | Effect::Role(_) => {}
            }
        }
        Ok(())
    }

    fn persist(&mut self, number: u64, hard_state: Option<HardState>, entries: Vec<Entry>) {
        self.pending.number = number;
        if let Some(hard_state) = hard_state {
            self.hard_state = hard_state;
            self.pending.hard_state = true;
        }
        for entry in &entries {
            assert!(self.log.append(entry.clone()), "raft's entries join the log");
        }
        self.pending.entries.extend(entries);
    }

    fn send(&mut self, messages: Vec<Message>, after: Option<u64>) {
        match after.filter(|number| *number > self.durable && !self.config.faults.promise_before_persist) {
            Some(number) => self.held.push_back((number, messages)),
            None => self.outputs.extend(messages.into_iter().map(Output::Send)),
        }
    }

    fn apply(&mut self, committed: Vec<Committed>) -> Result<(), NodeError> {
        for Committed { entry, proposal } in committed {
            self.applied = LogPosition { index: entry.index, term: entry.term };
            let conf_change = match entry.entry_type() {
                EntryType::EntryNormal => None,
                EntryType::EntryConfChange => return Err(NodeError::Members),
                EntryType::EntryConfChangeV2 => {
                    Some(<ConfChangeV2 as prost::Message>::decode(entry.data.clone()).map_err(|_| NodeError::Members)?)
                }
            };
            if conf_change.is_none() && entry.context.is_empty() {
                self.state.replay(&entry.data)?;
                self.outputs.extend(proposal.map(Output::Committed));
                continue;
            }
            let bytes = conf_change.as_ref().map_or(&entry.context, |change| &change.context);
            let change = MemberChange::decode(bytes).ok_or(NodeError::Members)?;
            let outcome = self.change_members(&change, conf_change);
            self.outputs.extend(proposal.map(|number| Output::Changed(number & !CHANGE, outcome)));
        }
        self.peer.handle(Input::Applied { index: self.applied.index });
        Ok(())
    }

    /// Carries out a change of members that is committed. One that makes no sense any more is refused here, and raft is
    /// told nothing of it.
    fn change_members(&mut self, change: &MemberChange, conf_change: Option<ConfChangeV2>) -> Result<(), ChangeError> {
        let mut next = self.roster.clone();
        next.apply(change)?;
        let (alone_before, voters_before) = (self.is_sole_voter(), self.roster.voters().count());
        self.leaving |= next.find(self.id).is_none();
        if let Some(change) = conf_change
            && !self.leaving
        {
            self.peer.handle(Input::ConfChanged { change, region: next.region() });
        }
        self.roster = next;
        self.roster_version += 1;
        if let MemberChange::Remove { id } = change {
            self.heard.remove(id);
        }
        // Who was removed is told so when this is on disk: until then its vote may be needed once more. And a start by the
        // folder alone needs the URLs before anybody says what is committed.
        self.image_wanted |= matches!(change, MemberChange::Remove { .. } | MemberChange::Describe { .. });
        if self.roster.voters().count() != voters_before {
            self.lease.members_changed();
            if alone_before && self.peer.is_leader() {
                self.lease.no_longer_alone(self.now);
                self.ask(self.now);
            }
        }
        Ok(())
    }

    /// Whether something waits to be written.
    pub fn has_write(&self) -> bool {
        self.writing.is_none() && (self.image_wanted || !self.pending.is_empty())
    }

    /// Begins the next piece to be written: a record if `fits` says that there is room for so many bytes.
    pub fn begin_write(&mut self, fits: impl Fn(usize) -> bool) -> Option<Write> {
        if !self.has_write() {
            return None;
        }
        let pending = std::mem::take(&mut self.pending);
        self.writing = Some(pending.number);
        if !self.image_wanted {
            let mut record = BytesMut::new();
            if pending.hard_state {
                stored::put_hard_state(&mut record, self.hard_state);
            }
            pending.entries.iter().for_each(|entry| stored::put_entry(&mut record, entry));
            if record.is_empty() {
                stored::put_hard_state(&mut record, self.hard_state);
            }
            if fits(record.len()) {
                return Some(Write::Record(record.freeze()));
            }
        }
        self.image_wanted = false;
        self.imaged = Some((self.roster.removed().to_vec(), self.stage));
        Some(Write::Image(self.image()))
    }

    fn image(&mut self) -> Bytes {
        let keep = if self.is_alone() { 0 } else { self.config.keep_bytes };
        let to = self.log.place_to_truncate(self.applied.index, keep);
        self.log.truncate(to);
        self.peer.handle(Input::Compacted { index: to.index });
        let commit = self.peer.committed().min(self.log.last_index());
        let hard_state = HardState { commit, ..self.hard_state };
        Stored::image(hard_state, &self.roster, self.id, &self.log, self.applied, &self.state, self.stage)
    }

    /// The piece that [`Node::begin_write`] began is durable.
    pub fn written(&mut self) {
        let number = self.writing.take().expect("a piece was begun");
        if let Some((removed, stage)) = self.imaged.take() {
            (self.removed, self.durable_stage) = (removed, stage);
        }
        if number > 0 {
            self.durable = number;
            self.peer.handle(Input::Persisted { number });
        }
        while self.held.front().is_some_and(|(after, _)| *after <= self.durable) {
            let (_, messages) = self.held.pop_front().expect("just seen");
            self.outputs.extend(messages.into_iter().map(Output::Send));
        }
        self.outputs.extend(self.installing.take().map(Output::Send));
    }

    /// A snapshot takes the place of the log and of the state.
    fn take_over(&mut self, snapshot: Snapshot) -> Result<(), NodeError> {
        self.state = stored::from_image(&snapshot.data)?;
        self.roster = snapshot.roster;
        self.roster_version += 1;
        self.applied = snapshot.position;
        self.log = Log::new(snapshot.position);
        let voted = if snapshot.term > self.hard_state.term { 0 } else { self.hard_state.vote };
        let term = self.hard_state.term.max(snapshot.term);
        self.hard_state = HardState { term, vote: voted, commit: snapshot.position.index };
        self.begin_anew()?;
        self.image_wanted = true;
        self.installing = Some(Message {
            msg_type: MessageType::MsgAppendResponse as i32,
            from: self.id,
            to: snapshot.from,
            term,
            index: snapshot.position.index,
            ..Message::default()
        });
        Ok(())
    }

    /// As after a restart: a follower of nobody, with the log and the state that it has.
    fn begin_anew(&mut self) -> Result<(), NodeError> {
        let commit = self.peer.committed().min(self.log.last_index()).max(self.applied.index);
        let hard_state = HardState { commit, ..self.hard_state };
        let quiet = self.config.raft.election_ticks;
        let init = init(&self.config, self.id, &self.roster, hard_state, &self.log, self.applied, quiet);
        self.peer = Peer::new(init, &self.config.raft)?;
        self.pending = Pending::default();
        self.held.clear();
        self.durable = 0;
        self.lease.end();
        (self.handing_over, self.begin_anew) = (None, false);
        Ok(())
    }
}

fn init(
    config: &NodeConfig,
    id: u64,
    roster: &Roster,
    hard_state: HardState,
    log: &Log,
    applied: LogPosition,
    quiet_ticks: u32,
) -> PeerInit {
    let own = metapb::Peer { id, store_id: id, ..metapb::Peer::default() };
    let mut region = roster.region();
    if roster.find(id).is_none() {
        // It was removed: it stands for nothing, and votes for others as long as they ask.
        region.peers.push(metapb::Peer { role: metapb::PeerRole::Learner.into(), ..own });
    }
    PeerInit {
        region,
        peer: own,
        hard_state,
        truncated: log.truncated(),
        applied,
        entries: log.entries().cloned().collect(),
        quiet_ticks,
        seed: config.seed,
    }
}
