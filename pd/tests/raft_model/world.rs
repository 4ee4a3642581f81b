//! The nodes, their disks, and what is between them.

use base::{Instant, Prng};
use bytes::{Bytes, BytesMut};
use pd::kv::{Change, Record};
use pd::raft::{Faults, Node, NodeConfig, Output, Snapshot, Stored, Write};
use pd::state::State;
use raftstore::RaftConfig;
use raftstore::eraftpb::Message;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const MEMBERS: usize = 3;
const TICK: Duration = Duration::from_millis(100);
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
    places: Vec<Place>,
    members: Vec<(u64, String)>,
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
        let members: Vec<_> = (1..=MEMBERS as u64).map(|id| (id, format!("m{id}"))).collect();
        let place =
            |_| Place { disk: Disk::default(), node: None, writing: None, asleep_until: 0, tick_at: 0, led: None };
        World {
            places: (0..MEMBERS).map(place).collect(),
            slow_disks: prng.one_in(3),
            prng,
            seed,
            faults,
            members,
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

    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.answered.len() as u64, self.snapshots)
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
        for at in 0..MEMBERS {
            self.live(at, disturbed);
        }
        self.check_rights();
    }

    /// The adversary's hand.
    fn disturb(&mut self) {
        if !self.prng.one_in(300) {
            return;
        }
        let victim = self.prng.below(MEMBERS as u64) as usize;
        let leader = (0..MEMBERS).find(|at| self.places[*at].led.is_some()).unwrap_or(victim);
        let other = (victim + 1) % MEMBERS;
        match self.prng.below(10) {
            0 => self.crash(victim),
            1 => self.crash(leader),
            2 => {
                // The leader is cut off, and another starts anew in the same moment.
                let others = (0..MEMBERS).filter(|at| *at != leader).collect::<Vec<_>>();
                others.iter().for_each(|at| self.block(leader, *at));
                let fallen = others[self.prng.below(2) as usize];
                self.crash(fallen);
            }
            3 => {
                self.block(victim, other);
            }
            4 => {
                self.blocked.insert((leader, victim));
                self.heal_at = self.now_ms + self.prng.range(100, 3_000);
            }
            5 => (0..MEMBERS).filter(|at| *at != leader).for_each(|at| self.block(leader, at)),
            6 => self.places[leader].asleep_until = self.now_ms + self.prng.range(50, 2_500),
            7 => (0..MEMBERS).for_each(|at| self.crash(at)),
            8 => {
                // One follower hears nothing of the leader for longer than its patience; then the other one, which has
                // held it off, forgets that it has.
                let (first, second) = ((leader + 1) % MEMBERS, (leader + 2) % MEMBERS);
                let fall = self.now_ms + self.prng.range(1_200, 2_000);
                self.plan = vec![(fall, Step::Fall(second, leader)), (self.now_ms + 300, Step::Cut(leader, first))];
                self.quiet_until = fall + 600;
            }
            _ => {
                let (now, to) = (self.now(), self.members[victim].0);
                if let Some(node) = self.places[leader].node.as_mut() {
                    node.transfer(now, (victim != leader).then_some(to));
                }
            }
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
    }

    fn start(&mut self, at: usize) {
        let place = &mut self.places[at];
        let id = self.members[at].0;
        let stored = match &place.disk.image {
            None => Stored::first(State::blank(), id, self.members.clone()),
            Some(image) => Stored::read(Some(image), &place.disk.records).expect("what was written is whole"),
        };
        let config = NodeConfig {
            tick: TICK,
            raft: RaftConfig::default(),
            keep_bytes: 300,
            seed: self.seed,
            faults: self.faults,
        };
        place.node = Some(Node::new(config, stored).expect("what was written makes sense"));
        place.tick_at = self.now_ms + self.prng.range(1, 100);
    }

    fn arrivals(&mut self, disturbed: bool) {
        while let Some(entry) = self.letters.first_entry().filter(|entry| entry.key().0 <= self.now_ms) {
            let (from, to, letter) = entry.remove();
            if self.blocked.contains(&(from, to)) {
                continue;
            }
            let now = Instant(self.now_ms * 1_000_000);
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
        let now = self.now();
        if self.places[at].writing.as_ref().is_some_and(|(until, _)| *until <= self.now_ms) {
            self.finish_write(at);
        }
        let place = &mut self.places[at];
        let node = place.node.as_mut().expect("just started");
        if place.tick_at <= self.now_ms {
            node.tick(now);
            place.tick_at = self.now_ms + 100;
        }
        if node.leads().is_some() && self.now_ms >= self.quiet_until && self.prng.one_in(25) {
            self.proposed += 1;
            self.proposals.insert((at, self.proposed));
            node.propose(self.proposed, change(self.proposed));
        }
        self.carry_out(at, disturbed);
        self.note_leader(at);
        self.begin_write(at);
    }

    fn carry_out(&mut self, at: usize, disturbed: bool) {
        let node = self.places[at].node.as_mut().expect("it lives");
        let before = node.applied();
        let outputs = node.poll().expect("committed changes apply");
        assert!(node.applied().index >= before.index, "what is applied never goes back");
        for output in outputs {
            match output {
                Output::Send(message) => {
                    let to = usize::try_from(message.to).expect("small") - 1;
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
                Output::SnapshotWanted(to) => {
                    if self.prng.one_in(3) {
                        let snapshot = self.places[at].node.as_ref().expect("it lives").snapshot();
                        let delay = self.prng.range(10, 200);
                        self.post(at, usize::try_from(to).expect("small") - 1, delay, Letter::Snapshot(snapshot));
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
        let leaders: Vec<usize> = (0..MEMBERS).filter(may).collect();
        assert!(leaders.len() < 2, "members {leaders:?} may answer at the same time");
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
        assert!(self.places.iter().any(serves), "nobody leads {REST_MS} ms after the last disturbance");
        let applied = |place: &Place| place.node.as_ref().map(|node| node.applied().index).unwrap_or(0);
        let last = self.places.iter().map(applied).max().unwrap_or(0);
        for place in &self.places {
            let node = place.node.as_ref().expect("all run");
            assert!(node.applied().index + 20 >= last, "a member is left behind");
            let lost = self.answered.iter().rev().skip(20).find(|n| node.state().space().get(&key(**n)).is_none());
            assert_eq!(lost, None, "a member lacks what was answered");
        }
    }
}
