//! The nodes, their disks, and what is between them.

use base::{Instant, Prng};
use bytes::{Bytes, BytesMut};
use pd::kv::{Change, Record};
use pd::raft::{
    Faults, MemberChange, MemberRecord, MemberRole, Node, NodeConfig, Output, Roster, Snapshot, Stage, Stored, Write,
};
use pd::state::State;
use raftstore::RaftConfig;
use raftstore::eraftpb::Message;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Members that the group begins with.
const MEMBERS: usize = 3;
/// All that there ever are at a time. A place whose member was removed may get a new one.
const PLACES: usize = 5;
/// The group's number.
const GROUP: u64 = 77;
/// How long the group may take to be whole again when nothing disturbs it.
const REST_MS: u64 = 8_000;

/// What survives a crash.
#[derive(Default)]
struct Disk {
    image: Option<Bytes>,
    records: Vec<Bytes>,
}

/// One member: its disk, and its node while it runs.
struct Place {
    /// The member's number; 0 while there is none.
    id: u64,
    disk: Disk,
    node: Option<Node>,
    /// The write under way, and when it ends.
    writing: Option<(u64, Write)>,
    /// When it is started again, or goes on after a pause.
    asleep_until: u64,
    tick_at: u64,
    led: Option<u64>,
}

#[allow(clippy::large_enum_variant, reason = "messages are the common case")]
enum Letter {
    Raft(Message),
    Snapshot(Snapshot),
}

/// A step of a plan.
enum Step {
    /// Cuts two members off from each other.
    Cut(usize, usize),
    /// A member is cut off from another, and starts anew in the same moment.
    Fall(usize, usize),
}

pub(crate) struct World {
    prng: Prng,
    seed: u64,
    faults: Faults,
    /// How long a tick is.
    tick_ms: u64,
    /// Whether members come and go: in every other seed.
    has_changes: bool,
    places: Vec<Place>,
    /// Numbers of members that were given out.
    ids: u64,
    /// Changes of members by the place that proposed them.
    changes: BTreeMap<(usize, u64), MemberChange>,
    changed: u64,
    /// The place whose folder is to be a new member's, and the place and number of the proposal.
    joiner: Option<(usize, usize, u64)>,
    now_ms: u64,
    /// What is on its way, by the time of its arrival.
    letters: BTreeMap<(u64, u64), (usize, usize, Letter)>,
    sent: u64,
    blocked: BTreeSet<(usize, usize)>,
    heal_at: u64,
    /// Nobody proposes before.
    quiet_until: u64,
    /// What the adversary has in mind, with its moments, the last one first. Nothing else happens meanwhile.
    plan: Vec<(u64, Step)>,
    proposals: BTreeSet<(usize, u64)>,
    proposed: u64,
    answered: BTreeSet<u64>,
    snapshots: u64,
    slow_disks: bool,
}

fn key(number: u64) -> Bytes {
    Bytes::from(format!("/k/{number}"))
}

fn change(number: u64) -> Bytes {
    let revision = i64::try_from(number).expect("small") + 1;
    let record = Record {
        value: Bytes::from_static(b"v"),
        create_revision: revision,
        mod_revision: revision,
        version: 1,
        lease: 0,
    };
    let mut bytes = BytesMut::new();
    Change::Put { key: key(number), record }.encode(&mut bytes);
    bytes.freeze()
}

impl World {
    pub(crate) fn new(seed: u64, faults: Faults) -> World {
        let mut prng = Prng::new(seed ^ 0x9D_1E57);
        let place = |at| Place {
            id: if at < MEMBERS { at as u64 + 1 } else { 0 },
            disk: Disk::default(),
            node: None,
            writing: None,
            asleep_until: 0,
            tick_at: 0,
            led: None,
        };
        World {
            places: (0..PLACES).map(place).collect(),
            slow_disks: prng.one_in(3),
            prng,
            seed,
            faults,
            tick_ms: tick_ms(seed),
            has_changes: !seed.is_multiple_of(2),
            ids: MEMBERS as u64,
            changes: BTreeMap::new(),
            changed: 0,
            joiner: None,
            now_ms: 1_000,
            letters: BTreeMap::new(),
            sent: 0,
            blocked: BTreeSet::new(),
            heal_at: 0,
            quiet_until: 0,
            plan: Vec::new(),
            proposals: BTreeSet::new(),
            proposed: 0,
            answered: BTreeSet::new(),
            snapshots: 0,
        }
    }

    pub(crate) fn counts(&self) -> Counts {
        Counts { answered: self.answered.len() as u64, snapshots: self.snapshots, changed: self.changed }
    }

    /// The places that have a member.
    fn taken(&self) -> Vec<usize> {
        (0..PLACES).filter(|at| self.places[*at].id != 0).collect()
    }

    fn place_of(&self, id: u64) -> Option<usize> {
        (0..PLACES).find(|at| self.places[*at].id == id)
    }

    fn now(&self) -> Instant {
        Instant(self.now_ms * 1_000_000)
    }

    /// One millisecond of the world.
    pub(crate) fn millisecond(&mut self, disturbed: bool) {
        self.now_ms += 1;
        if disturbed && !self.follow_plan() {
            self.disturb();
        }
        if self.now_ms >= self.heal_at {
            self.blocked.clear();
        }
        self.arrivals(disturbed);
        if disturbed && self.has_changes && self.prng.one_in(500) {
            self.change_members();
        }
        for at in self.taken() {
            self.live(at, disturbed);
        }
        self.check_rights();
    }

    /// The adversary's hand.
    fn disturb(&mut self) {
        if !self.prng.one_in(300) {
            return;
        }
        let taken = self.taken();
        let victim = taken[self.prng.below(taken.len() as u64) as usize];
        let leader = taken.iter().copied().find(|at| self.places[*at].led.is_some()).unwrap_or(victim);
        let others: Vec<usize> = taken.iter().copied().filter(|at| *at != leader).collect();
        let other = others.get(victim % others.len().max(1)).copied().unwrap_or(victim);
        match self.prng.below(10) {
            0 => self.crash(victim),
            1 => self.crash(leader),
            2 => {
                // The leader is cut off, and another starts anew in the same moment.
                others.iter().for_each(|at| self.block(leader, *at));
                let fallen = self.prng.below(others.len().max(1) as u64) as usize;
                others.get(fallen).into_iter().for_each(|at| self.crash(*at));
            }
            3 => {
                self.block(victim, other);
            }
            4 => {
                self.blocked.insert((leader, victim));
                self.heal_at = self.now_ms + self.prng.range(100, 3_000);
            }
            5 => others.iter().for_each(|at| self.block(leader, *at)),
            6 => self.places[leader].asleep_until = self.now_ms + self.prng.range(50, 2_500),
            7 => taken.iter().for_each(|at| self.crash(*at)),
            8 if others.len() == 2 => {
                // One follower hears nothing of the leader for longer than its patience; then the other one, which has
                // held it off, forgets that it has.
                let (first, second) = (others[0], others[1]);
                let fall = self.now_ms + self.prng.range(1_200, 2_000);
                self.plan = vec![(fall, Step::Fall(second, leader)), (self.now_ms + 300, Step::Cut(leader, first))];
                self.quiet_until = fall + 600;
            }
            _ => {
                let (now, to) = (self.now(), self.places[victim].id);
                if let Some(node) = self.places[leader].node.as_mut() {
                    node.transfer(now, (victim != leader).then_some(to));
                }
            }
        }
    }

    /// Adds a member, removes one, or makes a learner a voter, at whoever leads.
    fn change_members(&mut self) {
        let Some(leader) = self.taken().into_iter().find(|at| self.places[*at].led.is_some()) else { return };
        let node = self.places[leader].node.as_ref().expect("it leads");
        if self.joiner.is_some_and(|(_, at, _)| at != leader) {
            // Nobody will be told what became of it.
            self.joiner = None;
        }
        let roster = node.roster().clone();
        let voters = roster.voters().count() as u64;
        let others: Vec<u64> =
            roster.members().iter().map(|member| member.id).filter(|id| *id != self.places[leader].id).collect();
        let change = if let Some(id) = node.ready_to_vote() {
            MemberChange::Promote { id }
        } else if self.prng.below(6) >= voters && self.joiner.is_none() {
            let Some(free) = (0..PLACES).find(|at| self.places[*at].id == 0) else { return };
            self.ids += 1;
            self.joiner = Some((free, leader, self.proposed + 1));
            let id = self.ids;
            MemberChange::Add { id, name: format!("m{id}"), url: format!("http://m{id}"), joining: true }
        } else if others.is_empty() {
            return;
        } else {
            MemberChange::Remove { id: others[self.prng.below(others.len() as u64) as usize] }
        };
        self.proposed += 1;
        self.changes.insert((leader, self.proposed), change.clone());
        self.places[leader].node.as_mut().expect("it leads").propose_change(self.proposed, &change);
    }

    /// What became of a change that a place proposed.
    fn note_change(&mut self, at: usize, number: u64, is_done: bool) {
        // What a member proposed before it fell is answered by nobody.
        let Some(change) = self.changes.remove(&(at, number)) else { return };
        let roster = self.places[at].node.as_ref().expect("it lives").roster().clone();
        self.changed += u64::from(is_done);
        if let MemberChange::Add { id, .. } = change
            && let Some((free, _, _)) = self.joiner.take_if(|joiner| (joiner.1, joiner.2) == (at, number))
            && is_done
        {
            // Nobody else has heard of it yet; it has nothing.
            let stored = Stored::joining(id, roster);
            let place = &mut self.places[free];
            place.id = id;
            place.disk = Disk::default();
            place.asleep_until = self.now_ms + 10;
            place.node = Some(Node::new(config(self.seed, self.faults), stored).expect("a beginning"));
            place.tick_at = self.now_ms + 50;
        }
    }

    /// Takes the next step of the plan if it is time; false without a plan.
    fn follow_plan(&mut self) -> bool {
        let Some((at, _)) = self.plan.last() else { return self.now_ms < self.quiet_until };
        if *at <= self.now_ms
            && let Some((_, step)) = self.plan.pop()
        {
            let (Step::Cut(a, b) | Step::Fall(a, b)) = step;
            self.block(a, b);
            self.heal_at = self.now_ms + 2_500;
            if matches!(step, Step::Fall(..)) {
                self.crash(a);
                self.places[a].asleep_until = self.now_ms + 5;
            }
        }
        true
    }

    fn block(&mut self, a: usize, b: usize) {
        if a != b {
            self.blocked.extend([(a, b), (b, a)]);
            self.heal_at = self.now_ms + self.prng.range(100, 3_000);
        }
    }

    /// What was not written is gone.
    fn crash(&mut self, at: usize) {
        let wait = if self.prng.one_in(2) { self.prng.range(1, 20) } else { self.prng.range(20, 1_500) };
        let place = &mut self.places[at];
        place.node = None;
        place.writing = None;
        place.led = None;
        place.asleep_until = self.now_ms + wait;
        self.changes.retain(|(proposer, _), _| *proposer != at);
        self.joiner.take_if(|joiner| joiner.1 == at);
    }

    fn start(&mut self, at: usize) {
        let place = &mut self.places[at];
        let id = place.id;
        let stored = match &place.disk.image {
            // Whoever joined and wrote nothing asks to join again, as somebody else; here it is just gone.
            None if id > MEMBERS as u64 => return self.leave(at),
            None => Stored::first(State::blank(), id, first_roster()),
            Some(image) => Stored::read(Some(image), &place.disk.records).expect("what was written is whole"),
        };
        if stored.stage == Stage::Out {
            return self.leave(at);
        }
        place.node = Some(Node::new(config(self.seed, self.faults), stored).expect("what was written makes sense"));
        place.tick_at = self.now_ms + self.prng.range(1, self.tick_ms);
    }

    /// The place is free again.
    fn leave(&mut self, at: usize) {
        let place = &mut self.places[at];
        (place.id, place.node, place.writing, place.led) = (0, None, None, None);
        place.disk = Disk::default();
    }

    fn arrivals(&mut self, disturbed: bool) {
        while let Some(entry) = self.letters.first_entry().filter(|entry| entry.key().0 <= self.now_ms) {
            let (from, to, letter) = entry.remove();
            if self.blocked.contains(&(from, to)) {
                continue;
            }
            let now = Instant(self.now_ms * 1_000_000);
            let from_id = self.places[from].id;
            let is_notice = self.places[to].node.as_ref().is_some_and(|node| node.has_removed(from_id));
            if is_notice && self.now_ms >= self.places[to].asleep_until {
                // The receiver's refusal says why.
                if let Some(node) = self.places[from].node.as_mut().filter(|node| !node.is_out()) {
                    node.was_removed();
                }
                continue;
            }
            let place = &mut self.places[to];
            if self.now_ms < place.asleep_until {
                if place.node.is_some() {
                    // It waits in the receiver's socket.
                    self.sent += 1;
                    self.letters.insert((place.asleep_until, self.sent), (from, to, letter));
                }
                continue;
            }
            let Some(node) = place.node.as_mut() else { continue };
            match letter {
                Letter::Raft(message) => {
                    if disturbed && self.prng.one_in(50) {
                        node.step(now, message.clone());
                    }
                    node.step(now, message);
                }
                Letter::Snapshot(snapshot) => {
                    self.snapshots += u64::from(snapshot.position.index > node.applied().index);
                    node.install(snapshot);
                }
            }
        }
    }

    fn live(&mut self, at: usize, disturbed: bool) {
        if self.now_ms < self.places[at].asleep_until {
            return;
        }
        if self.places[at].node.is_none() {
            self.start(at);
        }
        if self.places[at].id == 0 {
            return;
        }
        let now = self.now();
        if self.places[at].writing.as_ref().is_some_and(|(until, _)| *until <= self.now_ms) {
            self.finish_write(at);
        }
        let place = &mut self.places[at];
        let node = place.node.as_mut().expect("just started");
        if node.is_sole_voter() && node.leads().is_none() && !node.has_write() {
            node.campaign();
        }
        if place.tick_at <= self.now_ms {
            node.tick(now);
            if !disturbed && let Some(id) = node.ready_to_vote() {
                node.propose_change(0, &MemberChange::Promote { id });
            }
            place.tick_at = self.now_ms + self.tick_ms;
            self.ask_around(at);
        }
        let node = self.places[at].node.as_mut().expect("just started");
        if node.leads().is_some() && self.now_ms >= self.quiet_until && self.prng.one_in(25) {
            self.proposed += 1;
            self.proposals.insert((at, self.proposed));
            node.propose(self.proposed, change(self.proposed));
        }
        self.carry_out(at, disturbed);
        self.note_leader(at);
        self.begin_write(at);
        let place = &self.places[at];
        let node = place.node.as_ref().expect("it lives");
        if node.is_out() && place.writing.is_none() && !node.has_write() {
            self.leave(at);
        }
    }

    /// Who has not heard of a leader for a while asks another member whether it is one.
    fn ask_around(&mut self, at: usize) {
        let now = self.now();
        let node = self.places[at].node.as_ref().expect("it lives");
        let is_heard = |id| node.heard(id).is_some_and(|heard| now.since(heard) < Duration::from_secs(2));
        if !node.is_leaving() && (node.leads().is_some() || node.leader().is_some_and(is_heard)) {
            return;
        }
        let (id, other) = (self.places[at].id, self.prng.below(PLACES as u64) as usize);
        let is_cut = self.blocked.contains(&(at, other)) || self.blocked.contains(&(other, at));
        let knows = self.places[other].node.as_ref().is_some_and(|node| node.has_removed(id));
        if knows && !is_cut {
            self.places[at].node.as_mut().expect("it lives").was_removed();
        }
    }

    fn carry_out(&mut self, at: usize, disturbed: bool) {
        let node = self.places[at].node.as_mut().expect("it lives");
        let before = node.applied();
        let outputs = node.poll().expect("committed changes apply");
        assert!(node.applied().index >= before.index, "what is applied never goes back");
        for output in outputs {
            match output {
                Output::Send(message) => {
                    let Some(to) = self.place_of(message.to) else { continue };
                    let loss = if disturbed { 40 } else { 0 };
                    if !self.prng.one_in(loss) {
                        let delay =
                            if self.prng.one_in(20) { self.prng.range(20, 300) } else { self.prng.range(1, 10) };
                        self.post(at, to, delay, Letter::Raft(message));
                    }
                }
                Output::Committed(number) => {
                    assert!(self.proposals.contains(&(at, number)), "an answer to what was asked here");
                    self.answered.insert(number);
                }
                Output::Rejected(_) => self.places[at].node.as_mut().expect("it lives").step_back(),
                Output::Changed(0, _) | Output::NotChanged(0) => {}
                Output::Changed(number, outcome) => self.note_change(at, number, outcome.is_ok()),
                Output::NotChanged(number) => self.note_change(at, number, false),
                Output::SnapshotWanted(to) => {
                    let Some(to) = self.place_of(to) else { continue };
                    if self.prng.one_in(3) {
                        let snapshot = self.places[at].node.as_ref().expect("it lives").snapshot();
                        let delay = self.prng.range(10, 200);
                        self.post(at, to, delay, Letter::Snapshot(snapshot));
                    }
                }
            }
        }
    }

    fn post(&mut self, from: usize, to: usize, delay: u64, letter: Letter) {
        self.sent += 1;
        self.letters.insert((self.now_ms + delay, self.sent), (from, to, letter));
    }

    /// Whoever begins to lead knows all that was answered before.
    fn note_leader(&mut self, at: usize) {
        let place = &mut self.places[at];
        let node = place.node.as_ref().expect("it lives");
        let leads = node.leads();
        if leads.is_some() && leads != place.led {
            let lost = self.answered.iter().find(|number| node.state().space().get(&key(**number)).is_none());
            assert_eq!(lost, None, "member {at} leads term {leads:?} without what was answered");
        }
        place.led = leads;
    }

    fn begin_write(&mut self, at: usize) {
        let image = self.prng.one_in(30);
        let delay = if self.slow_disks { self.prng.range(1, 60) } else { self.prng.range(1, 4) };
        let place = &mut self.places[at];
        if place.writing.is_none()
            && let Some(write) = place.node.as_mut().expect("it lives").begin_write(|_| !image)
        {
            place.writing = Some((self.now_ms + delay, write));
        }
    }

    fn finish_write(&mut self, at: usize) {
        let place = &mut self.places[at];
        let (_, write) = place.writing.take().expect("the caller looked");
        match write {
            Write::Record(record) => place.disk.records.push(record),
            Write::Image(image) => {
                place.disk.image = Some(image);
                place.disk.records.clear();
            }
        }
        let node = place.node.as_mut().expect("it lives");
        node.written();
    }

    /// Nobody may answer beside another.
    fn check_rights(&self) {
        let now = self.now();
        let may = |at: &usize| {
            // A member that is paused answers nothing; it may think what it likes.
            let place = &self.places[*at];
            self.now_ms >= place.asleep_until && place.node.as_ref().is_some_and(|node| node.right().holds(now))
        };
        let leaders: Vec<usize> = (0..PLACES).filter(may).collect();
        assert!(leaders.len() < 2, "members {leaders:?} may answer at the same time");
    }

    /// What each member thinks.
    fn describe(&self) -> String {
        let line = |place: &Place| match &place.node {
            None => format!("member {} does not run\n", place.id),
            Some(node) => {
                let voters: Vec<u64> = node.roster().voters().collect();
                let (term, leader, applied) = (node.term(), node.leader(), node.applied().index);
                let (right, out) = (node.right(), node.is_out());
                format!(
                    "member {} term {term} leader {leader:?} applied {applied} voters {voters:?} of {} right {right:?} out {out}\n",
                    place.id,
                    node.roster().members().len(),
                )
            }
        };
        self.places.iter().filter(|place| place.id != 0).map(line).collect()
    }

    /// The adversary rests: a leader comes, and all come to one state.
    pub(crate) fn rest(&mut self) {
        (self.heal_at, self.quiet_until) = (0, 0);
        self.places.iter_mut().for_each(|place| place.asleep_until = place.asleep_until.min(self.now_ms + 10));
        for _ in 0..REST_MS {
            self.millisecond(false);
        }
        let now = self.now();
        let serves = |place: &Place| place.node.as_ref().is_some_and(|node| node.right().holds(now));
        assert!(
            self.places.iter().any(serves),
            "nobody leads {REST_MS} ms after the last disturbance:\n{}",
            self.describe()
        );
        let leader = self.places.iter().find(|place| serves(place)).and_then(|place| place.node.as_ref());
        let roster = leader.expect("just seen").roster().clone();
        let members = self.taken();
        let applied = |at: &usize| self.places[*at].node.as_ref().map(|node| node.applied().index).unwrap_or(0);
        let last = members.iter().map(applied).max().unwrap_or(0);
        for at in &members {
            let place = &self.places[*at];
            let node = place.node.as_ref().expect("all run");
            assert!(roster.find(place.id).is_some(), "member {} was removed, and goes on", place.id);
            assert_eq!(node.roster().voters().collect::<Vec<_>>(), roster.voters().collect::<Vec<_>>());
            assert!(node.applied().index + 20 >= last, "member {} is left behind", place.id);
            let lost = self.answered.iter().rev().skip(20).find(|n| node.state().space().get(&key(**n)).is_none());
            assert_eq!(lost, None, "a member lacks what was answered");
        }
    }
}

/// What came of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Proposals that were answered.
    pub(crate) answered: u64,
    /// Snapshots that were taken over.
    pub(crate) snapshots: u64,
    /// Changes of members that were carried out and told.
    pub(crate) changed: u64,
}

fn config(seed: u64, faults: Faults) -> NodeConfig {
    // In every other seed as the server has it: see there.
    let raft = match seed % 2 {
        0 => RaftConfig::default(),
        _ => RaftConfig { election_ticks: 8, election_margin_ticks: 2, ..RaftConfig::default() },
    };
    NodeConfig { tick: Duration::from_millis(tick_ms(seed)), raft, keep_bytes: 300, seed, faults }
}

fn tick_ms(seed: u64) -> u64 {
    if seed.is_multiple_of(2) { 100 } else { 50 }
}

/// Those that the group begins with.
fn first_roster() -> Roster {
    let member = |id| MemberRecord { id, role: MemberRole::Voter, name: format!("m{id}"), url: String::new() };
    Roster::new(GROUP, (1..=MEMBERS as u64).map(member).collect(), Vec::new())
}
