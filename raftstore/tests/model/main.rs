//! Random clusters against the rules of Raft: messages are dropped, doubled and reordered, writes become durable late or
//! never, peers restart from what was durable.
//!
//! `SEED=n` runs one seed. Every failure prints its seed.

#[path = "../harness/mod.rs"]
mod harness;
mod rules;

use base::{PeerId, Prng};
use bytes::Bytes;
use harness::node::Answer;
use harness::{Cluster, region};
use raftstore::{Input, RaftConfig};
use rules::Rules;

const SEEDS: u64 = 200;
const STEPS: usize = 3000;

#[test]
fn no_run_breaks_a_rule_of_raft() {
    if let Some(seed) = std::env::var_os("SEED") {
        let seed = seed.to_str().and_then(|text| text.parse().ok()).expect("SEED is a number");
        println!("{:?}", Run::new(seed).go());
        return;
    }
    let mut sum = Reached::default();
    for seed in 0..SEEDS {
        let caught = std::panic::catch_unwind(|| Run::new(seed).go());
        match caught {
            Ok(reached) => sum.add(&reached),
            Err(panic) => {
                println!("failed with SEED={seed}");
                std::panic::resume_unwind(panic);
            }
        }
    }
    println!("{SEEDS} seeds: {sum:?}");
    // A run that reaches nothing proves nothing.
    assert!(sum.applied > 20 * SEEDS && sum.crashes > SEEDS && sum.leaders > 2 * SEEDS, "{sum:?}");
    assert!(sum.stale > 0 && sum.fetches > 0 && sum.reads > 0 && sum.compactions > 0, "{sum:?}");
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in 1000..1010 {
        let (a, b) = (Run::new(seed).go(), Run::new(seed).go());
        assert_eq!(a, b, "seed {seed}");
    }
}

/// What happened in a run.
#[derive(Debug, Default, PartialEq, Eq)]
struct Reached {
    applied: u64,
    stale: u64,
    crashes: u64,
    leaders: u64,
    fetches: u64,
    reads: u64,
    compactions: u64,
    /// Over all messages sent, in order.
    hash: u64,
}

impl Reached {
    fn add(&mut self, other: &Reached) {
        self.applied += other.applied;
        self.stale += other.stale;
        self.crashes += other.crashes;
        self.leaders += other.leaders;
        self.fetches += other.fetches;
        self.reads += other.reads;
        self.compactions += other.compactions;
        self.hash = base::hash::fold(self.hash, other.hash);
    }
}

struct Run {
    prng: Prng,
    cluster: Cluster,
    ids: Vec<u64>,
    next_proposal: u64,
    rules: Rules,
    reached: Reached,
}

impl Run {
    fn new(seed: u64) -> Run {
        let mut prng = Prng::new(seed);
        let voters: Vec<u64> = (1..=*prng.pick(&[1, 3, 3, 5]).expect("not empty")).collect();
        let learners = if prng.one_in(4) { vec![voters.len() as u64 + 1] } else { vec![] };
        let config = if prng.one_in(2) { RaftConfig::arbitrary(&mut prng) } else { RaftConfig::default() };
        let region = region(&voters, &learners);
        Run {
            cluster: Cluster::new(&region, &config, seed),
            ids: voters.into_iter().chain(learners).collect(),
            prng,
            next_proposal: 1,
            rules: Rules::default(),
            reached: Reached::default(),
        }
    }

    fn go(mut self) -> Reached {
        let faults = self.prng.below(4);
        for _ in 0..STEPS {
            self.step(faults);
            self.check();
        }
        self.come_to_rest();
        self.reached
    }

    fn any(&mut self) -> u64 {
        *self.prng.pick(&self.ids).expect("a cluster has peers")
    }

    fn step(&mut self, faults: u64) {
        let id = self.any();
        match self.prng.below(100) {
            0..=14 => self.cluster.input(id, Input::Tick),
            15..=59 => self.deliver(faults),
            60..=74 => {
                let count = 1 + self.prng.below(3) as usize;
                self.cluster.persist(id, count);
            }
            75..=84 => drop(self.cluster.apply(id)),
            85..=93 => self.propose(),
            94 => self.read(id),
            95 => self.cluster.node(id).flush(),
            96 => self.compact(),
            _ if self.prng.below(4) >= faults => self.cluster.input(id, Input::Tick),
            97 => self.crash_or_restart(id),
            98 => self.isolate_or_heal(id),
            _ => {
                let to = PeerId(self.any());
                self.cluster.input(id, Input::TransferLeader { to });
            }
        }
    }

    fn deliver(&mut self, faults: u64) {
        let waiting = self.cluster.net.len() as u64;
        if waiting == 0 {
            return;
        }
        // Far back in the queue now and then, else among the oldest.
        let at = if self.prng.one_in(20) { self.prng.below(waiting) } else { self.prng.below(waiting.min(4)) };
        if faults > 0 && self.prng.one_in(10) {
            self.cluster.net.remove(at as usize);
        } else if faults > 0 && self.prng.one_in(20) {
            let message = self.cluster.net[at as usize].clone();
            self.cluster.hand_over(message);
        } else {
            self.cluster.deliver(at as usize);
        }
    }

    /// To the leader mostly, to anybody now and then.
    fn propose(&mut self) {
        let id = match self.cluster.leader() {
            Some(leader) if !self.prng.one_in(10) => leader,
            _ => self.any(),
        };
        if self.cluster.nodes[&id].peer.is_none() {
            return;
        }
        let size = self.prng.below(200) as usize;
        let data = format!("{}:{}", self.next_proposal, "x".repeat(size));
        let input = Input::Propose { id: self.next_proposal, data: data.into(), context: Bytes::new() };
        self.next_proposal += 1;
        self.cluster.input(id, input);
    }

    fn read(&mut self, id: u64) {
        if self.cluster.nodes[&id].peer.is_some() {
            let newest = self.rules.applied.last_key_value().map_or(0, |(index, _)| *index);
            self.rules.reads.insert(self.next_proposal, newest);
            let read = self.next_proposal;
            self.next_proposal += 1;
            self.cluster.input(id, Input::ReadIndex { id: read });
        }
    }

    /// Drops what every peer has flushed, since nobody sends snapshots here.
    fn compact(&mut self) {
        let everywhere = self.cluster.nodes.values().map(|node| node.disk.flushed.index).min();
        let index = everywhere.expect("a cluster has peers");
        let id = self.any();
        let before = self.cluster.nodes[&id].disk.truncated;
        self.cluster.node(id).compact(index);
        self.cluster.post(id);
        self.reached.compactions += u64::from(self.cluster.nodes[&id].disk.truncated != before);
    }

    fn crash_or_restart(&mut self, id: u64) {
        let durable = self.prng.below(3) as usize;
        let node = self.cluster.node(id);
        if node.peer.is_some() {
            node.crash(durable);
            self.reached.crashes += 1;
        } else {
            let quiet = self.prng.below(3) as u32;
            self.cluster.node(id).restart(quiet);
            self.cluster.post(id);
            if self.prng.one_in(2) {
                self.cluster.input(id, Input::Campaign);
            }
        }
    }

    fn isolate_or_heal(&mut self, id: u64) {
        if !self.cluster.isolated.remove(&id) {
            self.cluster.isolated.insert(id);
        }
    }

    /// Without faults the group finds a leader, takes a proposal, and everybody ends with the same data.
    fn come_to_rest(&mut self) {
        self.cluster.isolated.clear();
        for id in self.ids.clone() {
            if self.cluster.nodes[&id].peer.is_none() {
                self.cluster.node(id).restart(0);
                self.cluster.post(id);
            }
        }
        let mut proposed = None;
        for round in 0..2000 {
            self.settle_checked();
            for id in self.ids.clone() {
                self.cluster.input(id, Input::Tick);
            }
            if round % 20 == 19 && proposed.is_none_or(|id: u64| self.answer(id) != Some(Answer::Applied)) {
                proposed = self.propose_last();
            }
            if self.at_rest() && proposed.is_some_and(|id| self.answer(id) == Some(Answer::Applied)) {
                return self.check_answers();
            }
        }
        let states: Vec<String> =
            self.cluster.nodes.iter().map(|(id, node)| harness::text::state(*id, node.peer.as_ref())).collect();
        panic!("the group does not come to rest: {states:#?}");
    }

    /// Proposes once more to whoever leads.
    fn propose_last(&mut self) -> Option<u64> {
        let leader = self.cluster.leader()?;
        self.next_proposal += 1;
        let input = Input::Propose {
            id: self.next_proposal,
            data: Bytes::from(format!("{}:last", self.next_proposal)),
            context: Bytes::new(),
        };
        self.cluster.input(leader, input);
        Some(self.next_proposal)
    }

    fn settle_checked(&mut self) {
        self.cluster.settle();
        self.check();
        self.check_logs();
    }

    fn answer(&self, proposal: u64) -> Option<Answer> {
        self.cluster.nodes.values().find_map(|node| node.answers.get(&proposal).copied())
    }

    fn at_rest(&self) -> bool {
        let mut applied = self.cluster.nodes.values().map(|node| node.applied);
        let first = applied.next().expect("a cluster has peers");
        self.rules.applied.last_key_value().is_some_and(|(index, _)| *index == first.index)
            && applied.all(|position| position == first)
    }
}
