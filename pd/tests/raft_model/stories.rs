//! Single stories about members, told step by step: who hears whom, whose disk is slow, who falls.

use base::Instant;
use bytes::Bytes;
use pd::raft::{
    Faults, MemberChange, MemberRecord, MemberRole, Node, NodeConfig, Output, Roster, Stage, Stored, Write,
};
use pd::state::State;
use raftstore::RaftConfig;
use raftstore::eraftpb::Message;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const TICK_MS: u64 = 50;

#[derive(Default)]
struct Disk {
    image: Option<Bytes>,
    records: Vec<Bytes>,
    /// What is written does not become durable.
    is_slow: bool,
}

struct Bench {
    nodes: BTreeMap<u64, Node>,
    disks: BTreeMap<u64, Disk>,
    letters: Vec<Message>,
    /// Who is not heard by whom: (from, to).
    cut: BTreeSet<(u64, u64)>,
    roster: Roster,
    now_ms: u64,
}

impl Bench {
    /// Members 1 to `count`, all of which vote.
    fn new(count: u64) -> Bench {
        let member = |id| MemberRecord { id, role: MemberRole::Voter, name: format!("m{id}"), url: String::new() };
        let roster = Roster::new(77, (1..=count).map(member).collect(), Vec::new());
        let disks = (1..=count).map(|id| (id, Disk::default())).collect();
        let mut bench =
            Bench { nodes: BTreeMap::new(), disks, letters: Vec::new(), cut: BTreeSet::new(), roster, now_ms: 1_000 };
        (1..=count).for_each(|id| bench.start(id));
        bench
    }

    /// With what is durable.
    fn start(&mut self, id: u64) {
        let disk = self.disks.get_mut(&id).expect("it has a disk");
        disk.is_slow = false;
        let stored = match &disk.image {
            Some(image) => Stored::read(Some(image), &disk.records).expect("whole"),
            None => Stored::first(State::blank(), id, self.roster.clone()),
        };
        assert_ne!(stored.stage, Stage::Out, "it would not start");
        let raft = RaftConfig { election_ticks: 8, election_margin_ticks: 2, ..RaftConfig::default() };
        let tick = Duration::from_millis(TICK_MS);
        let config = NodeConfig { tick, raft, keep_bytes: 300, seed: 5, faults: Faults::default() };
        self.nodes.insert(id, Node::new(config, stored).expect("sound"));
    }

    fn node(&mut self, id: u64) -> &mut Node {
        self.nodes.get_mut(&id).expect("it runs")
    }

    /// Runs for a while, or until `done`; whether that came.
    fn run(&mut self, ms: u64, done: impl Fn(&Bench) -> bool) -> bool {
        for _ in 0..ms {
            self.now_ms += 1;
            let now = Instant(self.now_ms * 1_000_000);
            for message in std::mem::take(&mut self.letters) {
                if !self.cut.contains(&(message.from, message.to)) {
                    self.deliver(now, message);
                }
            }
            for (id, node) in &mut self.nodes {
                if self.now_ms.is_multiple_of(TICK_MS) {
                    node.tick(now);
                }
                let outputs = node.poll().expect("committed changes apply");
                self.letters.extend(outputs.into_iter().filter_map(|output| match output {
                    Output::Send(message) => Some(message),
                    _ => None,
                }));
                let disk = self.disks.get_mut(id).expect("it has a disk");
                if !disk.is_slow
                    && let Some(write) = node.begin_write(|_| true)
                {
                    match write {
                        Write::Record(record) => disk.records.push(record),
                        Write::Image(image) => (disk.image, disk.records) = (Some(image), Vec::new()),
                    }
                    node.written();
                }
            }
            if done(self) {
                return true;
            }
        }
        false
    }

    fn deliver(&mut self, now: Instant, message: Message) {
        let (from, to) = (message.from, message.to);
        let Some(node) = self.nodes.get_mut(&to) else { return };
        if !node.has_removed(from) {
            return node.step(now, message);
        }
        // As the refusal of a stream says.
        self.nodes.get_mut(&from).into_iter().for_each(Node::was_removed);
    }

    fn leader(&self) -> Option<u64> {
        self.nodes.iter().find(|(_, node)| node.leads().is_some()).map(|(id, _)| *id)
    }

    /// The leader, once it may change the members, and the others.
    fn settle(&mut self) -> (u64, Vec<u64>) {
        assert!(self.run(10_000, |bench| bench.leader().is_some()), "nobody leads");
        self.run(500, |_| false);
        let leader = self.leader().expect("it stays");
        (leader, self.nodes.keys().copied().filter(|id| *id != leader).collect())
    }
}

/// Of four, one is removed. All but the leader have that on disk; the leader tells nobody but the removed one that it is
/// committed, and is gone for good: the other two need the removed one's vote, or its log.
#[test]
fn the_vote_of_a_removed_member_is_there_when_it_is_needed() {
    for (restarts, has_more) in [(false, false), (true, false), (false, true), (true, true)] {
        let mut bench = Bench::new(4);
        let (leader, others) = bench.settle();
        let (removed, left) = (others[0], [others[1], others[2]]);
        bench.disks.get_mut(&leader).expect("it has a disk").is_slow = true;
        bench.node(leader).propose_change(1, &MemberChange::Remove { id: removed });
        bench.run(2, |_| false);
        bench.cut.extend(left.map(|id| (leader, id)));
        if has_more {
            bench.node(leader).propose(2, Bytes::new());
        }
        let is_leaving = bench.run(200, |bench| bench.nodes[&removed].is_leaving());
        assert!(is_leaving, "the removed one hears that it is committed");
        assert!(left.iter().all(|id| bench.nodes[id].roster().find(removed).is_some()), "the others do not");
        bench.nodes.remove(&leader);
        if restarts {
            bench.start(removed);
        }
        assert!(
            bench.run(10_000, |bench| left.contains(&bench.leader().unwrap_or(0)) && bench.nodes[&removed].is_out()),
            "restarts {restarts}, has more {has_more}: nobody leads for ever"
        );
        let now = bench.leader().expect("just seen");
        assert_eq!(bench.node(now).roster().removed(), [removed]);
    }
}

/// Of two, the leader removes the other one and loses power before it has that on disk: it needs the other one again, which
/// may have more of the log.
#[test]
fn the_last_but_one_votes_until_the_last_one_knows() {
    for has_more in [false, true] {
        let mut bench = Bench::new(2);
        let (leader, others) = bench.settle();
        let removed = others[0];
        bench.node(leader).propose_change(1, &MemberChange::Remove { id: removed });
        bench.run(2, |_| false);
        bench.disks.get_mut(&leader).expect("it has a disk").is_slow = true;
        if has_more {
            bench.node(leader).propose(2, Bytes::new());
        }
        assert!(bench.run(200, |bench| bench.nodes[&removed].is_leaving()), "it hears of its removal");
        [leader, removed].into_iter().for_each(|id| bench.start(id));
        let is_over = |bench: &Bench| bench.leader() == Some(leader) && bench.nodes[&removed].is_out();
        assert!(bench.run(10_000, is_over), "has more {has_more}: nobody leads for ever");
    }
}

/// Anybody may claim any number.
#[test]
fn strangers_are_not_remembered() {
    let mut bench = Bench::new(3);
    let (leader, _) = bench.settle();
    let term = bench.node(leader).term();
    for stranger in 100..200 {
        let message = Message { msg_type: 8, from: stranger, to: leader, term, ..Message::default() };
        let now = Instant(bench.now_ms * 1_000_000);
        bench.node(leader).step(now, message);
        assert_eq!(bench.node(leader).heard(stranger), None);
    }
    assert!(bench.run(500, |bench| bench.leader() == Some(leader)), "it goes on");
}
