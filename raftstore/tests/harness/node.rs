//! One peer with its disk.

use super::text;
use bytes::Bytes;
use proto::metapb::{Peer as PeerMeta, Region};
use raftstore::command::Command;
use raftstore::eraftpb::{Entry, EntryType, HardState, Message};
use raftstore::membership::change_peers;
use raftstore::{
    Committed, Effect, Input, LogPosition, Peer, PeerInit, RaftConfig, RejectReason, Role, first_hard_state,
};
use std::collections::{BTreeMap, VecDeque};

/// What survives a crash.
#[derive(Clone)]
pub(crate) struct Disk {
    pub(crate) region: Region,
    pub(crate) hard_state: HardState,
    pub(crate) log: BTreeMap<u64, Entry>,
    pub(crate) truncated: LogPosition,
    /// Up to where the engine was flushed, and what it held then.
    pub(crate) flushed: LogPosition,
    pub(crate) flushed_region: Region,
    pub(crate) flushed_data: Vec<(u64, Bytes)>,
}

/// What became of a proposal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Applied,
    Rejected(RejectReason),
}

struct Persist {
    number: u64,
    hard_state: Option<HardState>,
    entries: Vec<Entry>,
}

/// One peer with its disk, its engine, and what it has begun.
pub(crate) struct Node {
    pub(crate) peer: Option<Peer>,
    pub(crate) disk: Disk,
    pub(crate) persists: VecDeque<PersistView>,
    waiting: VecDeque<(u64, Vec<Message>)>,
    pub(crate) outbox: Vec<Message>,
    pub(crate) applies: VecDeque<Vec<Committed>>,
    /// Entries handed out to apply since the last look.
    pub(crate) handed_out: Vec<Entry>,
    /// The engine's content: index and data of each applied entry.
    pub(crate) data: Vec<(u64, Bytes)>,
    pub(crate) applied: LogPosition,
    pub(crate) answers: BTreeMap<u64, Answer>,
    pub(crate) reads: Vec<(u64, u64)>,
    pub(crate) roles: Vec<Role>,
    pub(crate) sent: Vec<Message>,
    pub(crate) fetches: usize,
    pub(crate) snapshots_wanted: usize,
    /// Effects since the last look, as text.
    pub(crate) log: Vec<String>,
    meta: PeerMeta,
    config: RaftConfig,
    seed: u64,
}

/// A write that is not durable yet.
pub(crate) struct PersistView(Persist);

impl Node {
    pub(crate) fn first(region: &Region, meta: &PeerMeta, config: &RaftConfig, seed: u64) -> Node {
        let init = PeerInit::first(region.clone(), *meta);
        let disk = Disk {
            region: region.clone(),
            hard_state: first_hard_state(),
            log: BTreeMap::new(),
            truncated: init.truncated,
            flushed: init.applied,
            flushed_region: region.clone(),
            flushed_data: Vec::new(),
        };
        let mut node = Node {
            peer: None,
            disk,
            persists: VecDeque::new(),
            waiting: VecDeque::new(),
            outbox: Vec::new(),
            applies: VecDeque::new(),
            handed_out: Vec::new(),
            data: Vec::new(),
            applied: init.applied,
            answers: BTreeMap::new(),
            reads: Vec::new(),
            roles: Vec::new(),
            sent: Vec::new(),
            fetches: 0,
            snapshots_wanted: 0,
            log: Vec::new(),
            meta: *meta,
            config: config.clone(),
            seed,
        };
        node.peer = Some(Peer::new(PeerInit { seed, ..init }, config).expect("a new region's state is sound"));
        node
    }

    pub(crate) fn input(&mut self, input: Input) {
        self.inputs([input]);
    }

    /// Gives several inputs before the effects are drained, as a turn does.
    pub(crate) fn inputs(&mut self, inputs: impl IntoIterator<Item = Input>) {
        let Some(peer) = &mut self.peer else { return };
        inputs.into_iter().for_each(|input| peer.handle(input));
        self.drain();
    }

    /// Carries out effects. A `Persist` and an `Apply` are only begun.
    fn drain(&mut self) {
        while let Some(effect) = self.peer.as_mut().and_then(Peer::poll_effect) {
            self.log.push(text::effect(self.meta.id, &effect));
            match effect {
                Effect::Persist { number, hard_state, entries } => {
                    self.persists.push_back(PersistView(Persist { number, hard_state, entries }))
                }
                Effect::Send { messages, after_persist: Some(number) } => {
                    assert!(
                        self.persists.iter().any(|write| write.0.number == number),
                        "a message waits for write {number}, which was not begun or is done"
                    );
                    self.waiting.push_back((number, messages));
                }
                Effect::Send { messages, .. } => self.send(messages),
                Effect::Apply(entries) => {
                    let all = entries.iter().map(|committed| committed.entry.clone());
                    self.handed_out.extend(all);
                    self.applies.push_back(entries);
                }
                Effect::Rejected { id, reason } => {
                    let before = self.answers.insert(id, Answer::Rejected(reason));
                    assert_eq!(before, None, "proposal {id} was answered twice");
                }
                Effect::Role(role) => self.roles.push(role),
                Effect::FetchEntries { low, high, .. } => {
                    self.fetches += 1;
                    let entries = self.disk.log.range(low..high).map(|(_, entry)| entry.clone()).collect();
                    self.peer.as_mut().expect("running").handle(Input::Fetched { low, entries });
                }
                Effect::ReadReady { id, index } => self.reads.push((id, index)),
                Effect::SnapshotWanted { .. } => self.snapshots_wanted += 1,
            }
        }
    }

    fn send(&mut self, messages: Vec<Message>) {
        self.sent.extend(messages.iter().cloned());
        self.outbox.extend(messages);
    }

    /// Makes the oldest `count` writes durable, and says so once.
    pub(crate) fn persist(&mut self, count: usize) {
        let mut last = None;
        for _ in 0..count.min(self.persists.len()) {
            let write = self.persists.pop_front().expect("counted").0;
            last = Some(write.number);
            self.disk.write(write);
        }
        let Some(number) = last else { return };
        self.log.push(format!("{} durable #{number}", self.meta.id));
        while self.waiting.front().is_some_and(|(wanted, _)| *wanted <= number) {
            let (_, messages) = self.waiting.pop_front().expect("just seen");
            self.send(messages);
        }
        self.input(Input::Persisted { number });
    }

    /// Applies the oldest batch; false if there is none.
    pub(crate) fn apply(&mut self) -> bool {
        let Some(batch) = self.applies.pop_front() else {
            return false;
        };
        for committed in batch {
            let entry = committed.entry;
            assert_eq!(entry.index, self.applied.index + 1, "entries are applied in order");
            self.applied = LogPosition { index: entry.index, term: entry.term };
            if entry.entry_type() == EntryType::EntryConfChangeV2 {
                self.apply_conf_change(&entry);
            }
            if !entry.data.is_empty() && entry.entry_type() == EntryType::EntryNormal {
                self.data.push((entry.index, entry.data));
            }
            if let Some(id) = committed.proposal {
                let before = self.answers.insert(id, Answer::Applied);
                assert_eq!(before, None, "proposal {id} was answered twice");
            }
        }
        let index = self.applied.index;
        self.input(Input::Applied { index });
        true
    }

    fn apply_conf_change(&mut self, entry: &Entry) {
        let Ok(Command::Admin(admin)) = Command::decode(entry) else {
            panic!("a membership entry holds an admin command");
        };
        let changes = &admin.request.change_peer_v2.as_ref().expect("of that kind").changes;
        let Ok(region) = change_peers(&self.disk.region, changes) else {
            return;
        };
        self.disk.region = region.clone();
        let change = admin.conf_change.expect("decoded from such an entry");
        self.peer.as_mut().expect("running").handle(Input::ConfChanged { change, region });
    }

    /// Makes the engine's content durable.
    pub(crate) fn flush(&mut self) {
        self.disk.flushed = self.applied;
        self.disk.flushed_region = self.disk.region.clone();
        self.disk.flushed_data = self.data.clone();
    }

    /// Drops flushed entries from the log up to `index`.
    pub(crate) fn compact(&mut self, index: u64) {
        let index = index.min(self.disk.flushed.index);
        let Some(position) = self.peer.as_ref().and_then(|peer| peer.position(index)) else {
            return;
        };
        if index > self.disk.truncated.index {
            self.disk.log = self.disk.log.split_off(&(index + 1));
            self.disk.truncated = position;
            self.input(Input::Compacted { index });
        }
    }

    /// Loses everything that is not durable, except that the oldest `durable` writes had just become so.
    pub(crate) fn crash(&mut self, durable: usize) {
        if let Some(peer) = self.peer.take() {
            for effect in peer.close() {
                if let Effect::Rejected { id, reason } = effect {
                    self.answers.insert(id, Answer::Rejected(reason));
                }
            }
        }
        for _ in 0..durable.min(self.persists.len()) {
            let write = self.persists.pop_front().expect("counted").0;
            self.disk.write(write);
        }
        // Handed out, but the answer was lost: the proposer cannot know.
        for committed in self.applies.drain(..).flatten() {
            if let Some(id) = committed.proposal {
                self.answers.insert(id, Answer::Rejected(RejectReason::Unknown));
            }
        }
        self.persists.clear();
        self.waiting.clear();
        self.outbox.clear();
        self.disk.region = self.disk.flushed_region.clone();
        self.data = self.disk.flushed_data.clone();
        self.applied = self.disk.flushed;
    }

    /// Starts again from what is durable.
    pub(crate) fn restart(&mut self, quiet_ticks: u32) {
        assert!(self.peer.is_none(), "it runs");
        let init = PeerInit {
            region: self.disk.region.clone(),
            peer: self.meta,
            hard_state: self.disk.hard_state,
            truncated: self.disk.truncated,
            applied: self.disk.flushed,
            entries: self.disk.log.values().cloned().collect(),
            quiet_ticks,
            seed: self.seed,
        };
        self.peer = Some(Peer::new(init, &self.config).expect("what was durable is sound"));
        self.drain();
    }

    /// Starts again with a log that was purged up to the flushed index.
    pub(crate) fn purge(&mut self) {
        assert!(self.peer.is_none(), "it runs");
        self.disk.log = self.disk.log.split_off(&(self.disk.flushed.index + 1));
    }
}

impl Disk {
    fn write(&mut self, write: Persist) {
        if let Some(state) = write.hard_state {
            assert!(state.term >= self.hard_state.term, "a durable term went back");
            self.hard_state = state;
        }
        if let Some(first) = write.entries.first() {
            self.log.split_off(&first.index);
            self.log.extend(write.entries.into_iter().map(|entry| (entry.index, entry)));
        }
    }

    pub(crate) fn last_index(&self) -> u64 {
        self.log.last_key_value().map_or(self.truncated.index, |(index, _)| *index)
    }

    /// True if the entry at that place is, or was before it was applied and dropped, durable here.
    pub(crate) fn holds(&self, index: u64, term: u64) -> bool {
        match self.log.get(&index) {
            Some(entry) => entry.term == term,
            None => index <= self.flushed.index,
        }
    }
}
