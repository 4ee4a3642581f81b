//! Faults that take several steps, each of which waits for what the one before it has brought about.
//!
//! A single blow at a random moment rarely meets the few milliseconds in which a wrong order of two steps shows. So these
//! look at who leads the first hot key, and go on at the very moment that somebody else does.

use std::time::Duration;

use executor::sim::{Link, SimNode};

use super::workload::Hush;
use super::world::World;

impl World {
    /// Lets some time pass, in percent of the shortest election.
    pub(super) fn pass_percent(&mut self, low: u64, high: u64) {
        let percent = self.prng.range(low, high) as u32;
        self.run_for(self.election() * percent / 100);
    }

    fn node_after(&self, at: usize, step: usize) -> usize {
        (at + step) % self.nodes.len()
    }

    /// All nodes but these two.
    fn nodes_without(&self, at: usize, other: usize) -> Vec<SimNode> {
        let but = [self.nodes[at].sim, self.nodes[other].sim];
        self.nodes.iter().map(|node| node.sim).filter(|node| !but.contains(node)).collect()
    }

    /// A leader that is cut off from all but one holds a lease that this one has granted, and has to remember when it is
    /// restarted: the others want to vote. Again and again, since one of them has to ask at the right moment.
    pub(super) fn restart_behind_cut(&mut self) {
        self.quieten();
        let Some(lead) = self.hot_lead() else { return self.hush.set(Hush::Nothing) };
        let (at, granting) = (lead.at, self.node_after(lead.at, 1));
        let (node, granted) = (self.nodes[at].sim, self.nodes[granting].sim);
        self.nodes_without(at, granting).into_iter().for_each(|other| self.sim.partition(node, other));
        self.pass_percent(120, 300);
        for _ in 0..self.prng.range(3, 12) {
            // The lease ends, and the next read begins one that is as good as new when this one is restarted.
            self.hush.set(Hush::All);
            self.pass_percent(80, 120);
            if !self.reads_at(at) {
                break;
            }
            self.hush.set(Hush::Writes);
            self.sim.kill_process(granted);
            self.sim.partition(node, granted);
            self.pass(0, 20);
            self.restart_node(granting);
            if self.another_leads_within(&lead, self.election() * 3 / 4) {
                break;
            }
            self.sim.heal(node, granted);
        }
        // Whoever leads takes writes, which the old leader must not read around.
        self.hush.set(Hush::Nothing);
        self.pass_percent(50, 400);
        self.sim.heal_all();
    }

    /// The leader is cut off, and all others write slowly. Once one of them is elected, those who may have voted for it lose
    /// what they have not synced, and hear only of the old leader, who knows nothing of the term and wants to be elected again.
    pub(super) fn lose_vote(&mut self) {
        self.quieten();
        let Some(lead) = self.hot_lead() else { return self.hush.set(Hush::Nothing) };
        let slow = Duration::from_millis(self.prng.range(100, 1000));
        self.cut_from_all(lead.at);
        let others: Vec<usize> = (0..self.nodes.len()).filter(|at| *at != lead.at).collect();
        others.iter().for_each(|other| self.sim.disk(self.nodes[*other].sim).slow(slow));
        if self.another_leads_within(&lead, self.election() * 4 + slow * 3)
            && let Some(elected) = self.hot_lead()
        {
            self.pass(0, 20);
            let voters: Vec<usize> = others.iter().copied().filter(|at| *at != elected.at).collect();
            for voter in &voters {
                // All of the power, since what only the process had would be there again.
                self.sim.kill(self.nodes[*voter].sim);
                self.nodes[*voter].twins.kill();
                self.sim.disk(self.nodes[*voter].sim).slow(Duration::ZERO);
            }
            self.sim.heal_all();
            self.cut_from_all(elected.at);
            self.hush.set(Hush::Nothing);
            // Until it has seen that it is alone.
            self.pass_percent(0, 150);
            voters.into_iter().for_each(|voter| self.restart_node(voter));
            self.pass_percent(200, 500);
        }
        self.hush.set(Hush::Nothing);
        others.iter().for_each(|other| self.sim.disk(self.nodes[*other].sim).slow(Duration::ZERO));
        self.sim.heal_all();
    }

    /// The leader is cut off from all others until another one leads, and for a while more.
    pub(super) fn cut_until_replaced(&mut self) {
        self.quieten();
        let Some(lead) = self.hot_lead() else { return self.hush.set(Hush::Nothing) };
        // Long enough for any lease to end: the next one is as good as new.
        self.hush.set(Hush::All);
        self.pass_percent(210, 230);
        self.reads_at(lead.at);
        self.hush.set(Hush::Writes);
        self.cut_from_all(lead.at);
        self.another_leads_within(&lead, self.election() * 4);
        self.hush.set(Hush::Nothing);
        self.pass_percent(20, 150);
        self.sim.heal_all();
    }

    /// One node alone answers the leader, and its answers take long. They are still on their way when the leader is cut off,
    /// and while the others elect the next one.
    pub(super) fn answer_late(&mut self) {
        self.quieten();
        let Some(lead) = self.hot_lead() else { return self.hush.set(Hush::Nothing) };
        let (at, granting) = (lead.at, self.node_after(lead.at, 1));
        let (node, granted) = (self.nodes[at].sim, self.nodes[granting].sim);
        let others = self.nodes_without(at, granting);
        others.iter().for_each(|other| self.sim.partition(node, *other));
        // Below the time after which a leader forgets its question.
        let latency = Duration::from_millis(self.prng.range(400, 980));
        self.sim.set_link_one_way(granted, node, Some(Link { latency, jitter: Duration::ZERO, reset_rate: 0.0 }));
        self.run_for(latency);
        self.pass_percent(0, 200);
        self.sim.partition_one_way(node, granted);
        let is_replaced = self.another_leads_within(&lead, self.election() * 3);
        self.hush.set(Hush::Nothing);
        if is_replaced {
            self.pass_percent(50, 200);
        }
        self.sim.set_link_one_way(granted, node, None);
        self.sim.heal_all();
    }

    /// A leader hands over, and hears late of who leads now.
    pub(super) fn hand_over_behind_slow_link(&mut self) {
        let Some(lead) = self.hot_lead() else { return };
        let link = self.draw_slow(20, 300);
        let node = self.nodes[lead.at].sim;
        let others: Vec<SimNode> = self.nodes.iter().map(|other| other.sim).filter(|other| *other != node).collect();
        others.iter().for_each(|other| self.sim.set_link_one_way(*other, node, Some(link)));
        self.run_for(link.latency * 2);
        let step = 1 + self.prng.below(others.len() as u64) as usize;
        self.hand_over(&lead, self.node_after(lead.at, step));
        self.run_for(link.latency * 3);
        others.iter().for_each(|other| self.sim.set_link_one_way(*other, node, None));
    }

    /// A leader's reads hang while another one leads, and until it leads again itself.
    pub(super) fn lead_there_and_back(&mut self) {
        let Some(lead) = self.hot_lead() else { return };
        let node = self.nodes[lead.at].sim;
        let hang = Duration::from_millis(self.prng.range(1000, 4000));
        self.sim.slow_helpers(node, hang);
        self.pass(10, 300);
        let step = 1 + self.prng.below(self.nodes.len() as u64 - 1) as usize;
        if self.hand_over(&lead, self.node_after(lead.at, step)) {
            self.pass(20, 200);
            if let Some(other) = self.hot_lead() {
                self.hand_over(&other, lead.at);
            }
        }
        self.sim.slow_helpers(node, Duration::ZERO);
        self.run_for(hang);
    }

    /// A node crashes while all write slowly: who leads next takes long until it knows what was committed.
    pub(super) fn kill_slowly(&mut self, at: usize) {
        let slow = Duration::from_millis(self.prng.range(10, 150));
        self.nodes.iter().for_each(|node| self.sim.disk(node.sim).slow(slow));
        self.pass(200, 1000);
        self.kill(at);
        self.sim.disk(self.nodes[at].sim).slow(Duration::ZERO);
        self.pass(800, 2500);
        self.restart_node(at);
        self.nodes.iter().for_each(|node| self.sim.disk(node.sim).slow(Duration::ZERO));
    }

    /// All nodes but one write slowly, and then lose what they have not synced, while that one is away.
    pub(super) fn lose_slow(&mut self, at: usize) {
        let others: Vec<usize> = (0..self.nodes.len()).filter(|other| *other != at).collect();
        let slow = Duration::from_millis(self.prng.range(200, 1000));
        others.iter().for_each(|other| self.sim.disk(self.nodes[*other].sim).slow(slow));
        self.pass(100, 1500);
        for node in &self.nodes {
            self.sim.kill(node.sim);
            node.twins.kill();
            self.sim.disk(node.sim).slow(Duration::ZERO);
        }
        others.iter().for_each(|other| self.restart_node(*other));
        self.pass(1500, 4000);
        self.restart_node(at);
    }
}
