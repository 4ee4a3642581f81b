//! Which region is to change its core so that the cores of a node have about the same to do.
//!
//! ```text
//!  every beat: units of work of each region ─▶ half of what was known, half of what is new
//!  one core above the bound, the same for several beats
//!     └▶ the region whose move to the idlest core lowers the higher one of both most; then it rests
//! ```
//!
//! Pure: it is told what was counted and what time it is. It never asks for two moves at once, nor for one that gains
//! less than a tenth, so a region that is hot by itself stays where it is.
//!
//! The directory evens out the *number* of regions by itself. What it may take for that is asked here, too
//! ([`Spread::price`]): what costs least, and nothing that would bring a core above the bound, so that neither undoes what
//! the other one did.

use std::collections::BTreeMap;
use std::time::Duration;

use base::{CoreId, Instant, RegionId, ShardId};

use super::work::RegionWork;

/// How long a region is left alone that could not move. An election is over by then.
const STAYS_FOR: Duration = Duration::from_secs(2);

/// When regions move because of load. See [`Spread`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpreadConfig {
    /// Time between two looks; zero: never. Two seconds: each costs a walk over the regions of every core.
    pub beat: Duration,
    /// For so many looks in a row the same core must have too much: a burst is over before a move is.
    pub beats: u32,
    /// What is too much, in percent of the cores' mean. Clients are answered late by a full core, not by an uneven one: less
    /// than a third more is not worth a copy.
    pub above_percent: u64,
    /// Units of the whole node in one beat below which everything stays: about 1,000 requests a second.
    pub work_min: u64,
    /// A region that has moved stays for so long.
    pub rest: Duration,
}

impl Default for SpreadConfig {
    fn default() -> SpreadConfig {
        SpreadConfig {
            beat: Duration::from_secs(2),
            beats: 5,
            above_percent: 130,
            work_min: 2000,
            rest: Duration::from_secs(60),
        }
    }
}

/// A region that is to move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wish {
    /// Which.
    pub region: RegionId,
    /// Where to.
    pub target: ShardId,
}

/// What is known of the load of a node's cores.
#[derive(Debug, Default)]
pub struct Spread {
    config: SpreadConfig,
    /// The shards that take part in moves, and their cores.
    homes: BTreeMap<ShardId, CoreId>,
    regions: BTreeMap<RegionId, (ShardId, u64)>,
    /// Their sums, and the sum of these.
    loads: BTreeMap<CoreId, u64>,
    total: u64,
    /// The core that has too much, and for how many beats.
    above: Option<(CoreId, u32)>,
    /// Regions that have moved, and until when they stay.
    rests: BTreeMap<RegionId, Instant>,
}

impl Spread {
    /// Nothing is known yet. `homes` are the shards that take part in moves, with their cores.
    pub fn new(config: SpreadConfig, homes: impl IntoIterator<Item = (ShardId, CoreId)>) -> Spread {
        Spread { config, homes: homes.into_iter().collect(), ..Spread::default() }
    }

    /// Takes what was counted since the last beat, and says which region is to move, if one is. `may_move` is false for
    /// those that something else binds to their place.
    ///
    /// Cost: a step for each region that has had work lately, on core 0.
    pub fn beat(&mut self, now: Instant, counted: &[RegionWork], may_move: impl Fn(RegionId) -> bool) -> Option<Wish> {
        self.learn(counted);
        self.rests.retain(|_, until| now < *until);
        let Some(core) = self.core_above() else {
            self.above = None;
            return None;
        };
        let beats = self.above.filter(|(before, _)| *before == core).map_or(1, |(_, beats)| beats + 1);
        self.above = Some((core, beats));
        if beats < self.config.beats {
            return None;
        }
        let wish = self.best_move(core, may_move)?;
        self.above = None;
        self.moves(now, wish.region);
        Some(wish)
    }

    /// `region` moves now, whatever for: it is left alone for a while.
    pub fn moves(&mut self, now: Instant, region: RegionId) {
        self.rests_for(now, region, self.config.rest);
    }

    /// `region` could not move: others go first.
    pub fn stays(&mut self, now: Instant, region: RegionId) {
        self.rests_for(now, region, STAYS_FOR);
    }

    fn rests_for(&mut self, now: Instant, region: RegionId, rest: Duration) {
        self.rests.retain(|_, until| now < *until);
        self.rests.insert(region, now + rest);
    }

    /// What the move of `region` to `target` would bring there; nothing if it is to stay, since it has just moved or would
    /// be too much.
    pub fn price(&self, now: Instant, region: RegionId, target: ShardId) -> Option<u64> {
        if self.rests.get(&region).is_some_and(|until| now < *until) {
            return None;
        }
        let work = self.regions.get(&region).map_or(0, |(_, work)| *work);
        let is_idle = work == 0 || self.total < self.config.work_min;
        let Some(load) = self.homes.get(&target).and_then(|core| self.loads.get(core)).filter(|_| !is_idle) else {
            return Some(work);
        };
        (!self.is_above(load + work)).then_some(work)
    }

    /// Half of what was known and half of what is new; all of what is new of a region of which nothing was.
    fn learn(&mut self, counted: &[RegionWork]) {
        let mut sums: BTreeMap<RegionId, (ShardId, u64)> = BTreeMap::new();
        for counted in counted {
            // One that moved meanwhile is counted on both sides.
            let sum = sums.entry(counted.region).or_default();
            *sum = (counted.shard, sum.1 + counted.work);
        }
        let known = std::mem::take(&mut self.regions);
        for (region, (shard, before)) in &known {
            let (shard, new) = sums.get(region).copied().unwrap_or((*shard, 0));
            sums.insert(*region, (shard, (before + new) / 2));
        }
        sums.retain(|_, (_, work)| *work > 0);
        self.regions = sums;
        self.loads = self.homes.values().map(|core| (*core, 0)).collect();
        for (shard, work) in self.regions.values() {
            if let Some(load) = self.homes.get(shard).and_then(|core| self.loads.get_mut(core)) {
                *load += work;
            }
        }
        self.total = self.loads.values().sum();
    }

    fn is_above(&self, load: u64) -> bool {
        let (load, total, cores) = (u128::from(load), u128::from(self.total), self.loads.len() as u128);
        load * cores * 100 > total * u128::from(self.config.above_percent)
    }

    /// The busiest core, if it has too much.
    fn core_above(&self) -> Option<CoreId> {
        let (core, load) = self.loads.iter().max_by_key(|(core, load)| (**load, std::cmp::Reverse(**core)))?;
        (self.total >= self.config.work_min && self.is_above(*load)).then_some(*core)
    }

    fn best_move(&self, from: CoreId, may_move: impl Fn(RegionId) -> bool) -> Option<Wish> {
        let (to, low) = self.loads.iter().min_by_key(|(core, load)| (**load, **core))?;
        let high = self.loads.get(&from)?;
        let after = |work: u64| (high - work).max(low + work);
        let here = self.regions.iter().filter(|(region, (shard, work))| {
            *work > 0 && self.homes.get(shard) == Some(&from) && !self.rests.contains_key(region) && may_move(**region)
        });
        let (region, (_, work)) = here.min_by_key(|(region, (_, work))| (after(*work), **region))?;
        if after(*work) * 10 > high * 9 {
            return None;
        }
        Some(Wish { region: *region, target: self.idlest_shard(*to)? })
    }

    /// The shard of a core that has the least to do.
    fn idlest_shard(&self, core: CoreId) -> Option<ShardId> {
        let work_of = |home: ShardId| -> u64 {
            self.regions.values().filter(|(shard, _)| *shard == home).map(|(_, work)| work).sum()
        };
        let shards = self.homes.iter().filter(|(_, home)| **home == core).map(|(shard, _)| *shard);
        shards.min_by_key(|shard| (work_of(*shard), *shard))
    }
}
