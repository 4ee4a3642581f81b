//! An operator: a few steps that together change one region.

use super::step::Step;
use base::Instant;
use proto::metapb::RegionEpoch;
use proto::pdpb::OperatorStatus;
use std::time::Duration;

/// How long an operator may take that only moves a leader.
const LEADER_TIME: Duration = Duration::from_secs(60);
/// How long any other may take.
const REGION_TIME: Duration = Duration::from_secs(600);

/// A step that was asked for so often, for so long, and shows nowhere in the region, is refused or not understood.
const ASKS_MAX: u32 = 6;
const VAIN_TIME: Duration = Duration::from_secs(20);

/// What an operator is for. Each kind has its bound of operators under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A leader moves.
    Leader,
    /// A peer moves, for balance.
    Region,
    /// The number or the place of peers is repaired.
    Replica,
    /// A region goes into its neighbour.
    Merge,
    /// A region splits.
    Split,
    /// A region's peers go where fewer of its group are.
    Scatter,
}

impl Kind {
    /// PD's word.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Leader => "leader",
            Kind::Region => "region",
            Kind::Replica => "replica",
            Kind::Merge => "merge",
            Kind::Split => "split",
            Kind::Scatter => "scatter",
        }
    }
}

/// What someone wants to be done with a region.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The region.
    pub region: u64,
    /// PD's name for it.
    pub desc: &'static str,
    /// What it is for.
    pub kind: Kind,
    /// Whether a person asked for it: no limit holds then.
    pub is_admin: bool,
    /// What is to be done, in order.
    pub steps: Vec<Step>,
}

impl Plan {
    /// A plan of a checker or a scheduler.
    pub fn new(region: u64, desc: &'static str, kind: Kind, steps: Vec<Step>) -> Plan {
        Plan { region, desc, kind, is_admin: false, steps }
    }

    /// The region that it ends in, for a merge.
    pub fn merge_target(&self) -> Option<u64> {
        self.steps.iter().find_map(|step| match step {
            Step::Merge { target } => Some(*target),
            _ => None,
        })
    }
}

/// How a merge stands with its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merging {
    /// It is as it was.
    NotYet,
    /// It takes nothing, and waits for its target.
    Frozen,
    /// It has split, or changed its members, or was taken back: a target that was right need not be now.
    Over,
}

/// A plan under way.
#[derive(Clone, Debug)]
pub struct Operator {
    /// What is done.
    pub plan: Plan,
    /// The region's epoch at the beginning.
    pub epoch: RegionEpoch,
    /// The region's size at the beginning, for the influence on stores.
    pub load_mib: u64,
    /// When it began.
    pub created: Instant,
    /// When it is given up.
    pub deadline: Instant,
    /// When the current step is.
    pub step_deadline: Instant,
    /// When the current step was asked for last.
    pub sent: Option<Instant>,
    /// How often it was asked for since the region last changed, and since when.
    asks: u32,
    asked_since: Instant,
    asked_of: Option<(RegionEpoch, u64)>,
    current: usize,
    explained: u64,
}

impl Operator {
    /// Begins.
    pub fn new(plan: Plan, epoch: RegionEpoch, load_mib: u64, now: Instant) -> Operator {
        let time = if plan.steps.iter().all(is_quick) { LEADER_TIME } else { REGION_TIME };
        let mut operator = Operator {
            plan,
            epoch,
            load_mib,
            created: now,
            deadline: now + time,
            step_deadline: now,
            sent: None,
            asks: 0,
            asked_since: now,
            asked_of: None,
            current: 0,
            explained: 0,
        };
        operator.begin_step(now);
        operator
    }

    /// The step that is under way; `None` when all are done.
    pub fn step(&self) -> Option<&Step> {
        self.plan.steps.get(self.current)
    }

    /// The steps that are not done.
    pub fn open_steps(&self) -> &[Step] {
        &self.plan.steps[self.current.min(self.plan.steps.len())..]
    }

    /// Goes on to the next step.
    pub fn advance(&mut self, now: Instant) {
        self.explained += self.step().map_or(0, Step::conf_changes);
        self.current += 1;
        self.begin_step(now);
    }

    fn begin_step(&mut self, now: Instant) {
        self.sent = None;
        self.asked_of = None;
        self.step_deadline = now + self.step().map_or(Duration::ZERO, Step::time);
    }

    /// Whether the region's membership has changed more than the steps so far, and the current one, account for.
    pub fn is_stale(&self, conf_ver: u64) -> bool {
        let explained = self.explained + self.step().map_or(0, Step::conf_changes);
        conf_ver > self.epoch.conf_ver + explained
    }

    /// Whether the region's epoch says that nothing has happened to it since the current step, a merge, began. Its source is
    /// frozen by an entry that raises both parts of the epoch by one, and thawed by one that raises the version again.
    pub fn merging(&self, epoch: RegionEpoch) -> Merging {
        let conf_changes = epoch.conf_ver.checked_sub(self.epoch.conf_ver + self.explained);
        match (epoch.version.checked_sub(self.epoch.version), conf_changes) {
            (Some(0), Some(0)) => Merging::NotYet,
            (Some(1), Some(1)) if self.sent.is_some() => Merging::Frozen,
            _ => Merging::Over,
        }
    }

    /// The current step is asked for, of the leader on `store` with the region at `epoch`.
    pub fn ask(&mut self, epoch: RegionEpoch, store: u64, now: Instant) {
        if self.asked_of != Some((epoch, store)) {
            (self.asked_of, self.asks, self.asked_since) = (Some((epoch, store)), 0, now);
        }
        self.asks += 1;
        self.sent = Some(now);
    }

    /// Whether the current step was asked for often enough, and the same leader has reported the same region ever since.
    /// Of what a leader does, all but handing over shows in the epoch, and handing over shows in the leader.
    pub fn is_in_vain(&self, epoch: RegionEpoch, store: u64, now: Instant) -> bool {
        let same = self.asked_of == Some((epoch, store));
        same && self.asks >= ASKS_MAX && now.since(self.asked_since) >= VAIN_TIME
    }

    /// Whether it, or its step, takes too long.
    pub fn is_late(&self, now: Instant) -> bool {
        now >= self.deadline || now >= self.step_deadline
    }

    /// As PD prints it.
    pub fn describe(&self, now: Instant) -> String {
        let steps: Vec<String> =
            self.plan.steps.iter().enumerate().map(|(at, step)| format!("{at}:{{{step}}}")).collect();
        format!(
            "{} {{{}}} (kind:{}{}, region:{}({}, {}), runs:{}, currentStep:{}, size:{}, steps:[{}])",
            self.plan.desc,
            self.plan.steps.first().map_or_else(String::new, ToString::to_string),
            self.plan.kind.name(),
            if self.plan.is_admin { ",admin" } else { "" },
            self.plan.region,
            self.epoch.version,
            self.epoch.conf_ver,
            super::duration::print(Duration::from_secs(now.since(self.created).as_secs())),
            self.current,
            self.load_mib,
            steps.join(", "),
        )
    }
}

fn is_quick(step: &Step) -> bool {
    matches!(step, Step::TransferLeader { .. })
}

/// What is remembered of an operator that has ended.
#[derive(Clone, Debug)]
pub struct Record {
    /// The region.
    pub region: u64,
    /// PD's name of the operator.
    pub desc: &'static str,
    /// What it was for.
    pub kind: Kind,
    /// How it ended.
    pub status: OperatorStatus,
    /// As PD prints it, and why it ended.
    pub text: String,
    /// When.
    pub ended: Instant,
}
