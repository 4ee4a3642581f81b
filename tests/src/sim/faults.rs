//! What befalls the cluster of a run.

use std::str::FromStr;
use std::time::Duration;

use base::Prng;
use executor::sim::{Link, SimNode};

use super::Focus;
use super::world::World;

/// A fault, with how often it is drawn in each kind of run.
struct Chance {
    fault: Fault,
    any: u64,
    leaders: u64,
    crashes: u64,
    members: u64,
    /// It needs other nodes.
    is_shared: bool,
}

/// What can befall a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The power fails, or the process is killed.
    Kill,
    /// The power fails at a majority or all of the nodes at once.
    KillMany,
    /// The node is asked to stop.
    Stop,
    /// The process stands still, or its whole machine with the monotonic clock, and goes on.
    Pause,
    /// The placement driver crashes.
    PlacementDriver,
    /// A clock jumps or begins to drift.
    Clock,
    /// Each write takes long: hundreds of milliseconds, or seconds.
    SlowDisk,
    /// Nothing new fits on the disk.
    FullDisk,
    /// Syncs fail, which ends the node.
    FailingSyncs,
    /// The engine of a node fails, which ends the node.
    EngineError,
    /// A block of a node's log is damaged while it is down. See `damage.rs`.
    DamagedBlock,
    /// Clients do not reach the node.
    Unreachable,
    /// The node does not reach another one, all others or the placement driver, in one direction or both.
    CutOff,
    /// A link breaks and heals many times.
    Flapping,
    /// One or both directions of a link become slow.
    SlowLink,
    /// A node starts again on a slow disk.
    SlowRestart,
    /// Helpers of a node take long to begin what they are given: reads from the disk hang.
    SlowHelpers,
    /// What may have granted a lease is restarted at once. See `scripts.rs` for this and all that follow.
    RestartBehindCut,
    /// The leader is cut off until another one leads.
    CutUntilReplaced,
    /// All lose what they wrote slowly, and one is away.
    SlowThenLost,
    /// A crash while all write slowly.
    KillSlowly,
    /// Voters lose the vote that they have just given.
    LoseVote,
    /// A quorum's answer comes when the next leader is there.
    LateAnswers,
    /// A leader hands over, and hears late of the next one.
    HandOverBehindSlowLink,
    /// Reads hang while another one leads for a while.
    ThereAndBack,
}

/// How often a fault is drawn: for all, for [`Focus::Leaders`], [`Focus::Crashes`] and [`Focus::Members`].
const fn chance(fault: Fault, [any, leaders, crashes, members]: [u64; 4]) -> Chance {
    let is_alone = matches!(fault, Fault::Kill | Fault::Stop | Fault::Pause | Fault::PlacementDriver | Fault::Clock)
        || matches!(fault, Fault::SlowDisk | Fault::FullDisk | Fault::FailingSyncs | Fault::Unreachable)
        || matches!(fault, Fault::SlowRestart | Fault::SlowHelpers | Fault::EngineError);
    Chance { fault, any, leaders, crashes, members, is_shared: !is_alone }
}

const CHANCES: [Chance; 25] = [
    chance(Fault::Kill, [5, 1, 8, 4]),
    chance(Fault::KillMany, [2, 0, 8, 2]),
    chance(Fault::Stop, [1, 1, 1, 1]),
    chance(Fault::Pause, [1, 3, 0, 1]),
    chance(Fault::PlacementDriver, [1, 0, 3, 0]),
    chance(Fault::Clock, [1, 1, 2, 0]),
    chance(Fault::SlowDisk, [2, 1, 2, 1]),
    chance(Fault::FullDisk, [1, 0, 0, 0]),
    chance(Fault::FailingSyncs, [1, 0, 2, 0]),
    chance(Fault::EngineError, [1, 0, 2, 0]),
    chance(Fault::DamagedBlock, [1, 0, 2, 2]),
    chance(Fault::Unreachable, [1, 0, 0, 0]),
    chance(Fault::CutOff, [3, 6, 0, 4]),
    chance(Fault::Flapping, [1, 1, 0, 1]),
    chance(Fault::SlowLink, [1, 2, 0, 1]),
    chance(Fault::SlowRestart, [1, 4, 2, 0]),
    chance(Fault::SlowHelpers, [1, 1, 1, 1]),
    chance(Fault::RestartBehindCut, [1, 6, 0, 0]),
    chance(Fault::SlowThenLost, [1, 0, 6, 0]),
    chance(Fault::KillSlowly, [1, 2, 0, 0]),
    chance(Fault::LoseVote, [1, 6, 0, 0]),
    chance(Fault::LateAnswers, [1, 6, 0, 0]),
    chance(Fault::HandOverBehindSlowLink, [1, 6, 0, 0]),
    chance(Fault::ThereAndBack, [1, 6, 0, 0]),
    chance(Fault::CutUntilReplaced, [1, 3, 0, 0]),
];

fn draw(prng: &mut Prng, focus: Focus, nodes: usize) -> Fault {
    let weight = |chance: &Chance| match focus {
        _ if nodes == 1 && chance.is_shared => 0,
        Focus::Any | Focus::Quiet => chance.any,
        Focus::Leaders => chance.leaders,
        Focus::Crashes => chance.crashes,
        Focus::Members => chance.members,
    };
    let mut at = prng.below(CHANCES.iter().map(weight).sum());
    let drawn = CHANCES.iter().find(|chance| {
        let found = at < weight(chance);
        at = at.saturating_sub(weight(chance));
        found
    });
    drawn.map_or(Fault::Kill, |chance| chance.fault)
}

impl FromStr for Fault {
    type Err = String;

    /// By the name of the variant, as its `Debug` prints it.
    fn from_str(name: &str) -> Result<Fault, String> {
        let found = CHANCES.iter().map(|chance| chance.fault).find(|fault| format!("{fault:?}") == name);
        found.ok_or_else(|| format!("no fault is called {name}"))
    }
}

impl World {
    /// Draws a fault, and what follows from it.
    pub(super) fn fault(&mut self) {
        self.faults += 1;
        // One may have stopped by itself, when its engine or its log failed.
        self.restart_those_that_stopped();
        let mut at = self.any_node();
        if self.plan.focus == Focus::Leaders && !self.prng.one_in(4) {
            at = self.hot_lead().map_or(at, |lead| lead.at);
        }
        let node = self.nodes[at].sim;
        let drawn = draw(&mut self.prng, self.plan.focus, self.nodes.len());
        match self.plan.only.unwrap_or(drawn) {
            Fault::Kill => {
                self.kill(at);
                self.pass(0, 2000);
                self.restart_node(at);
            }
            Fault::KillMany => self.kill_many(),
            Fault::Stop => self.stop(at),
            Fault::Pause => {
                let long = if self.prng.one_in(4) { 20_000 } else { 5000 };
                let pause = Duration::from_millis(self.prng.range(10, long));
                if self.prng.one_in(2) { self.sim.pause(node, pause) } else { self.sim.suspend(node, pause) }
            }
            Fault::PlacementDriver => self.kill_pd(),
            Fault::Clock => self.turn_clock(node),
            Fault::SlowDisk => {
                let slow = if self.prng.one_in(4) { self.prng.range(2000, 8000) } else { self.prng.range(0, 200) };
                self.sim.disk(node).slow(Duration::from_millis(slow));
                self.pass(100, 6000);
                self.sim.disk(node).slow(Duration::ZERO);
            }
            Fault::FullDisk => {
                self.sim.disk(node).set_full(true);
                self.pass(100, 5000);
                self.sim.disk(node).set_full(false);
            }
            Fault::FailingSyncs => self.fail_syncs(at),
            Fault::EngineError => {
                self.nodes[at].twins.fail(self.prng.range(1, 50));
                self.pass(100, 3000);
                self.kill(at);
                self.restart_node(at);
            }
            Fault::DamagedBlock => self.damage_block(at),
            Fault::Unreachable => {
                self.sim.partition(self.client, node);
                self.pass(100, 5000);
                self.sim.heal(self.client, node);
            }
            Fault::CutOff => {
                self.cut(at);
                self.pass(100, if self.plan.focus == Focus::Leaders { 2500 } else { 8000 });
                self.sim.heal_all();
            }
            Fault::Flapping => {
                let other = self.other_node(at);
                for _ in 0..self.prng.range(3, 20) {
                    self.sim.partition(node, other);
                    self.pass(1, 700);
                    self.sim.heal(node, other);
                    self.pass(1, 700);
                }
            }
            Fault::SlowLink => self.slow_link(at),
            Fault::SlowRestart => self.restart_slowly(at),
            Fault::SlowHelpers => {
                let slow = Duration::from_millis(self.prng.range(1, 2000));
                self.sim.slow_helpers(node, slow);
                self.pass(100, 4000);
                self.sim.slow_helpers(node, Duration::ZERO);
            }
            Fault::RestartBehindCut => self.restart_behind_cut(),
            Fault::CutUntilReplaced => self.cut_until_replaced(),
            Fault::SlowThenLost => self.lose_slow(at),
            Fault::KillSlowly => self.kill_slowly(at),
            Fault::LoseVote => self.lose_vote(),
            Fault::LateAnswers => self.answer_late(),
            Fault::HandOverBehindSlowLink => self.hand_over_behind_slow_link(),
            Fault::ThereAndBack => self.lead_there_and_back(),
        }
    }

    fn any_node(&mut self) -> usize {
        self.prng.below(self.nodes.len() as u64) as usize
    }

    pub(super) fn other_node(&mut self, at: usize) -> SimNode {
        let step = 1 + self.prng.below(self.nodes.len() as u64 - 1) as usize;
        self.nodes[(at + step) % self.nodes.len()].sim
    }

    /// Lets some time pass, in milliseconds.
    pub(super) fn pass(&mut self, low: u64, high: u64) {
        let duration = Duration::from_millis(self.prng.range(low, high));
        self.run_for(duration);
    }

    /// Half of the time only the process ends: then what was written can be read again, and is still not durable.
    pub(super) fn kill(&mut self, at: usize) {
        let node = &self.nodes[at];
        if self.prng.one_in(3) {
            self.sim.kill_process(node.sim)
        } else {
            self.sim.kill(node.sim)
        }
        node.twins.kill();
    }

    fn kill_many(&mut self) {
        let majority = self.nodes.len() / 2 + 1;
        let count = if self.prng.one_in(2) { majority } else { self.nodes.len() };
        let first = self.any_node();
        let hit: Vec<usize> = (0..count).map(|step| (first + step) % self.nodes.len()).collect();
        for at in &hit {
            self.sim.kill(self.nodes[*at].sim);
            self.nodes[*at].twins.kill();
        }
        for at in hit {
            self.pass(0, 500);
            self.restart_node(at);
        }
    }

    fn stop(&mut self, at: usize) {
        let node = self.nodes[at].sim;
        self.sim.stop(node);
        let sim = &self.sim;
        let stopped = sim.run_until(Duration::from_secs(60), || !sim.running(node));
        assert!(stopped, "seed {}: the node does not stop when it is asked to", self.seed);
        self.restart_node(at);
    }

    fn kill_pd(&mut self) {
        match self.prng.below(3) {
            0 => self.sim.kill(self.pd),
            1 => self.sim.kill_process(self.pd),
            _ => {
                self.sim.disk(self.pd).fail_syncs(true);
                self.pass(100, 3000);
                self.sim.disk(self.pd).fail_syncs(false);
                self.sim.kill(self.pd);
            }
        }
        if self.prng.one_in(2) {
            let back = self.prng.range(0, 60_000_000_000) as i64;
            self.sim.step_clock(self.pd, -back);
        }
        self.pass(0, 2000);
        self.start_pd();
    }

    fn turn_clock(&mut self, node: SimNode) {
        let node = if self.prng.one_in(2) { node } else { self.pd };
        if self.prng.one_in(2) {
            let nanos = self.prng.range(0, 20_000_000_000) as i64 - 10_000_000_000;
            self.sim.step_clock(node, nanos);
        } else {
            let ppm = self.prng.range(0, 1000) as i64 - 500;
            self.sim.set_clock_drift(node, ppm);
        }
    }

    /// A failed sync ends the node; what it had not acknowledged may be gone.
    fn fail_syncs(&mut self, at: usize) {
        let node = self.nodes[at].sim;
        self.sim.disk(node).fail_syncs(true);
        self.pass(100, 3000);
        self.sim.disk(node).fail_syncs(false);
        self.kill(at);
        self.restart_node(at);
    }

    fn cut(&mut self, at: usize) {
        let (node, other) = (self.nodes[at].sim, self.other_node(at));
        let kinds = if self.plan.focus == Focus::Leaders { 3..7 } else { 0..7 };
        match self.prng.range(kinds.start, kinds.end) {
            0 => self.sim.partition(node, other),
            1 => self.sim.partition_one_way(node, other),
            2 => self.sim.partition(node, self.pd),
            3 => {
                let others = self.nodes.iter().map(|other| other.sim).filter(|other| *other != node);
                others.for_each(|other| self.sim.partition_one_way(node, other));
            }
            _ => {
                self.cut_from_all(at);
                if self.prng.one_in(2) {
                    self.sim.partition(node, self.pd);
                }
            }
        }
    }

    fn slow_link(&mut self, at: usize) {
        let (node, other) = (self.nodes[at].sim, self.other_node(at));
        let link = self.draw_slow(10, 1500);
        let is_both = self.prng.one_in(2);
        self.sim.set_link_one_way(node, other, Some(link));
        if is_both {
            self.sim.set_link_one_way(other, node, Some(link));
        }
        self.pass(200, 6000);
        self.sim.set_link_one_way(node, other, None);
        self.sim.set_link_one_way(other, node, None);
    }

    /// A link that takes from `low` to twice `high` milliseconds.
    pub(super) fn draw_slow(&mut self, low: u64, high: u64) -> Link {
        let latency = Duration::from_millis(self.prng.range(low, high));
        Link { latency, jitter: if self.prng.one_in(2) { latency } else { Duration::ZERO }, reset_rate: 0.0 }
    }

    pub(super) fn cut_from_all(&self, at: usize) {
        let node = self.nodes[at].sim;
        let others = self.nodes.iter().map(|other| other.sim).filter(|other| *other != node);
        others.for_each(|other| self.sim.partition(node, other));
    }

    fn restart_slowly(&mut self, at: usize) {
        let node = self.nodes[at].sim;
        let slow = Duration::from_millis(self.prng.range(1, 80));
        self.kill(at);
        self.sim.disk(node).slow(slow);
        self.restart_node(at);
        self.pass(500, 4000);
        self.sim.disk(node).slow(Duration::ZERO);
    }
}
