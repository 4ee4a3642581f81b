//! The node's range map: which shard holds which region, and which region is on its way to another shard.
//!
//! Pure: messages in, decisions out. Core 0 owns the only instance; the other cores hold copies of the routes.
//!
//! ```text
//!   settled ──reserve──▶ moving ──arrive──▶ moving, placed at the target ──release──▶ settled
//!      ▲                   │
//!      └─────release───────┘
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use base::{PeerId, RegionId, ShardId};
use bytes::Bytes;
use proto::metapb;

/// Where a region lives and how it got there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// The shard that holds the region's peer.
    pub shard: ShardId,
    /// Counts the region's moves on this node; a copy with a lower number is stale.
    pub move_number: u64,
    /// `metapb.RegionEpoch.version` that the range belongs to.
    pub version: u64,
    /// First key, inclusive.
    pub start: Vec<u8>,
    /// Last key, exclusive; empty is infinity.
    pub end: Vec<u8>,
    /// Bytes of data, as last estimated.
    pub bytes: u64,
}

/// A reserved move. The source hands the region over and the target installs it under `move_number`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MoveTicket {
    /// What moves.
    pub region: RegionId,
    /// From here.
    pub source: ShardId,
    /// To there.
    pub target: ShardId,
    /// Number that the copy at the target will bear.
    pub move_number: u64,
}

/// Snapshots that come in at a time, as many as TiKV takes (`server.concurrent-recv-snap-limit`). Each holds a table's worth
/// of entries, so this bounds their memory, too. Whoever sends another one tries again.
const FILLING_MAX: usize = 32;

/// Why a snapshot cannot come in now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Occupied {
    /// It has a peer here that is on its way to another shard.
    #[error("it is on its way to another shard")]
    Moving,
    /// Others here have keys of its range.
    #[error("another region has keys of it")]
    Others,
    /// Another one is on its way into its range.
    #[error("another snapshot of its range is under way")]
    Snapshot,
    /// As many as a node takes in at a time are on their way.
    #[error("too many snapshots are under way")]
    TooMany,
    /// Nothing but shards that take part in no moves.
    #[error("no shard takes regions")]
    NoShard,
}

/// What one shard found when it opened: a peer that it could serve.
#[derive(Clone, Debug)]
pub struct Claim {
    /// The region.
    pub region: RegionId,
    /// Its peer there.
    pub peer: PeerId,
    /// Its placement if the claim is granted.
    pub placement: Placement,
}

/// What is left of a peer that ended here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tombstone {
    /// The peer. None of its region with its id or a lower one begins here again.
    pub peer: PeerId,
    /// Set if a neighbour took its region's range over.
    pub merged: Option<Arc<Merged>>,
}

/// How a region ended in a neighbour.
#[derive(Clone, Debug, PartialEq)]
pub struct Merged {
    /// The region's version when its peer here began to follow the log.
    pub began_version: u64,
    /// The neighbour, as it was before.
    pub target: metapb::Region,
}

impl Eq for Merged {}

impl Tombstone {
    /// Of a peer that was destroyed.
    pub fn of(peer: PeerId) -> Tombstone {
        Tombstone { peer, merged: None }
    }
}

/// The last tombstone of each region.
pub type Tombstones = BTreeMap<RegionId, Tombstone>;

/// Adds what one shard has buried to what others have.
pub fn bury(all: &mut Tombstones, more: &Tombstones) {
    for (&region, tombstone) in more {
        let last = all.entry(region).or_insert_with(|| tombstone.clone());
        let is_later = tombstone.peer > last.peer;
        if is_later || (tombstone.peer == last.peer && tombstone.merged.is_some()) {
            *last = tombstone.clone();
        }
    }
}

/// The range map. See the module's text.
#[derive(Debug)]
pub struct Directory {
    regions: BTreeMap<RegionId, Placement>,
    moving: BTreeMap<RegionId, MoveTicket>,
    /// Ranges of snapshots that are under way; bounded by what other stores send.
    filling: BTreeMap<RegionId, (Bytes, Bytes)>,
    /// Regions whose peer ended at the target before their move was over.
    ended: BTreeSet<RegionId>,
    shards: BTreeSet<ShardId>,
}

impl Directory {
    /// Settles the claims of all shards: of several copies of a region the one with the highest move number wins, and a
    /// peer that any shard has buried has lost: its copy was left behind by a move before it ended. `shards` are those
    /// that may take part in moves.
    /// Returns the map and, per shard, the regions that it must erase before it serves.
    pub fn settle(
        shards: impl IntoIterator<Item = ShardId>,
        claims: Vec<Claim>,
        buried: &Tombstones,
    ) -> (Directory, Vec<(ShardId, RegionId)>) {
        let mut directory = Directory {
            regions: BTreeMap::new(),
            moving: BTreeMap::new(),
            filling: BTreeMap::new(),
            ended: BTreeSet::new(),
            shards: shards.into_iter().collect(),
        };
        let mut erase = Vec::new();
        for claim in claims {
            if buried.get(&claim.region).is_some_and(|last| last.peer >= claim.peer) {
                erase.push((claim.placement.shard, claim.region));
                continue;
            }
            match directory.regions.get(&claim.region) {
                Some(held) if held.move_number >= claim.placement.move_number => {
                    erase.push((claim.placement.shard, claim.region));
                }
                other => {
                    erase.extend(other.map(|held| (held.shard, claim.region)));
                    directory.regions.insert(claim.region, claim.placement);
                }
            }
        }
        (directory, erase)
    }

    /// Where `region` lives.
    pub fn placement(&self, region: RegionId) -> Option<&Placement> {
        self.regions.get(&region)
    }

    /// All regions with their shards, in order of region id.
    pub fn routes(&self) -> impl Iterator<Item = (RegionId, ShardId)> + '_ {
        self.regions.iter().map(|(region, placement)| (*region, placement.shard))
    }

    /// Records a region's new range, or a region born on `placement.shard`. Older versions are ignored.
    /// A region that is being moved keeps its source until the move completes.
    pub fn update(&mut self, region: RegionId, placement: Placement) {
        self.ended.remove(&region);
        match self.regions.get_mut(&region) {
            Some(held) if held.version > placement.version || held.move_number > placement.move_number => {}
            Some(held) => *held = placement,
            None => {
                self.regions.insert(region, placement);
            }
        }
    }

    /// Forgets a region whose peer has ended. One that is moving is forgotten when its move is over.
    pub fn remove(&mut self, region: RegionId) {
        if self.moving.contains_key(&region) {
            self.ended.insert(region);
        } else {
            self.regions.remove(&region);
        }
    }

    /// Notes the size of a region, for balancing.
    pub fn note(&mut self, region: RegionId, bytes: u64) {
        if let Some(held) = self.regions.get_mut(&region) {
            held.bytes = bytes;
        }
    }

    /// Whether `region` is on its way to another shard.
    pub fn is_moving(&self, region: RegionId) -> bool {
        self.moving.contains_key(&region)
    }

    /// Regions other than `region` that have keys of `[start, end)`.
    pub fn overlaps(&self, region: RegionId, start: &[u8], end: &[u8]) -> bool {
        self.regions.iter().any(|(id, held)| *id != region && base::keys::overlaps(&held.start, &held.end, start, end))
    }

    /// Regions other than `region` that have keys of `[start, end)`, with their shards.
    pub fn within(&self, region: RegionId, start: &[u8], end: &[u8]) -> Vec<(RegionId, ShardId)> {
        let others = self.regions.iter().filter(|(id, _)| **id != region);
        let overlapping = others.filter(|(_, held)| base::keys::overlaps(&held.start, &held.end, start, end));
        overlapping.map(|(id, held)| (*id, held.shard)).collect()
    }

    /// Whether a region other than `region` has keys of `target`'s range, and a version up to `target`'s: its log may yet
    /// give birth to `target`.
    pub fn may_bear(&self, region: RegionId, target: &metapb::Region) -> bool {
        let version = target.region_epoch.as_ref().map_or(0, |epoch| epoch.version);
        self.within(region, &target.start_key, &target.end_key).iter().any(|(id, _)| {
            id.0 != target.id && self.regions.get(id).is_some_and(|placement| placement.version <= version)
        })
    }

    /// The shard with the fewest regions, among those that take part in moves.
    pub fn emptiest(&self) -> Option<ShardId> {
        let loads = self.loads();
        let open = loads.iter().filter(|(shard, _)| self.shards.contains(shard));
        open.min_by_key(|(shard, count)| (**count, **shard)).map(|(shard, _)| *shard)
    }

    /// Takes a snapshot of `region` in: the shard that it is for. Until it is over the region does not move, and no other
    /// snapshot of a key of its range is taken in: of two copies on two shards both would be whole, and each would go on.
    ///
    /// # Errors
    /// [`Occupied`].
    pub fn begin_snapshot(&mut self, region: &metapb::Region) -> Result<ShardId, Occupied> {
        let id = RegionId(region.id);
        if self.is_moving(id) {
            return Err(Occupied::Moving);
        }
        if self.overlaps(id, &region.start_key, &region.end_key) {
            return Err(Occupied::Others);
        }
        let is_taken = |(other, range): (&RegionId, &(Bytes, Bytes))| {
            *other == id || base::keys::overlaps(&range.0, &range.1, &region.start_key, &region.end_key)
        };
        if self.filling.iter().any(is_taken) {
            return Err(Occupied::Snapshot);
        }
        if self.filling.len() >= FILLING_MAX {
            return Err(Occupied::TooMany);
        }
        let held = self.placement(id).map(|held| held.shard);
        let shard = held.or_else(|| self.emptiest()).ok_or(Occupied::NoShard)?;
        self.filling.insert(id, (region.start_key.clone(), region.end_key.clone()));
        Ok(shard)
    }

    /// The snapshot of `region` has come in, or was given up.
    pub fn end_snapshot(&mut self, region: RegionId) {
        self.filling.remove(&region);
    }

    /// Number of snapshots on their way here.
    pub fn snapshots_under_way(&self) -> usize {
        self.filling.len()
    }

    /// Whether `region` stays where it is until a move or a snapshot is over.
    fn is_bound(&self, region: RegionId) -> bool {
        self.moving.contains_key(&region) || self.filling.contains_key(&region)
    }

    /// Reserves the move of `region` to `target`. `None` if it is unknown, already there or already moving, or if a
    /// snapshot of it is under way.
    pub fn reserve(&mut self, region: RegionId, target: ShardId) -> Option<MoveTicket> {
        let held = self.regions.get(&region)?;
        if held.shard == target || self.is_bound(region) || !self.shards.contains(&target) {
            return None;
        }
        let ticket = MoveTicket { region, source: held.shard, target, move_number: held.move_number + 1 };
        self.moving.insert(region, ticket.clone());
        Some(ticket)
    }

    /// The target holds the region durably: from now on it lives there. It cannot move again before the release.
    pub fn arrive(&mut self, ticket: &MoveTicket) {
        if self.moving.get(&ticket.region) == Some(ticket)
            && let Some(held) = self.regions.get_mut(&ticket.region)
        {
            held.shard = ticket.target;
            held.move_number = ticket.move_number;
        }
    }

    /// The move is over: the source has erased its copy durably, or the region stays where it was.
    pub fn release(&mut self, ticket: &MoveTicket) {
        if self.moving.get(&ticket.region) == Some(ticket) {
            self.moving.remove(&ticket.region);
            if self.ended.remove(&ticket.region) {
                self.regions.remove(&ticket.region);
            }
        }
    }

    /// Bytes of all regions, as last estimated.
    pub fn total_bytes(&self) -> u64 {
        self.regions.values().map(|placement| placement.bytes).sum()
    }

    /// Number of moves under way.
    pub fn moves_under_way(&self) -> usize {
        self.moving.len()
    }

    /// Number of regions on each shard, moves counted at their target.
    pub fn loads(&self) -> BTreeMap<ShardId, usize> {
        let mut loads: BTreeMap<ShardId, usize> = self.shards.iter().map(|shard| (*shard, 0)).collect();
        for (region, placement) in &self.regions {
            let shard = self.moving.get(region).map_or(placement.shard, |ticket| ticket.target);
            *loads.entry(shard).or_default() += 1;
        }
        loads
    }

    /// The next move that evens out the number of regions: from the fullest shard to the emptiest, if they differ by
    /// two or more. Of the regions that have a `price` there, which is what they would bring the shard to do, it takes the
    /// one with the lowest, and of several the smallest, since that one is the cheapest to copy.
    pub fn next_balancing_move(&mut self, price: impl Fn(RegionId, ShardId) -> Option<u64>) -> Option<MoveTicket> {
        let mut loads = self.loads();
        // What lies on a shard that takes part in no moves stays there.
        loads.retain(|shard, _| self.shards.contains(shard));
        let (&emptiest, &low) = loads.iter().min_by_key(|(shard, count)| (**count, **shard))?;
        let (&fullest, &high) = loads.iter().max_by_key(|(shard, count)| (**count, std::cmp::Reverse(**shard)))?;
        if high < low + 2 {
            return None;
        }
        let here =
            self.regions.iter().filter(|(region, placement)| placement.shard == fullest && !self.is_bound(**region));
        let priced = here
            .filter_map(|(region, placement)| price(*region, emptiest).map(|price| (price, placement.bytes, *region)));
        let (_, _, region) = priced.min()?;
        self.reserve(region, emptiest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placement(shard: u32, move_number: u64) -> Placement {
        Placement { shard: ShardId(shard), move_number, version: 1, start: vec![], end: vec![], bytes: 0 }
    }

    fn claim(region: u64, shard: u32, move_number: u64) -> Claim {
        Claim { region: RegionId(region), peer: PeerId(region + 100), placement: placement(shard, move_number) }
    }

    #[test]
    fn the_copy_with_the_highest_move_number_wins_whatever_the_order() {
        for claims in [[claim(1, 0, 1), claim(1, 1, 2)], [claim(1, 1, 2), claim(1, 0, 1)]] {
            let (directory, erase) = Directory::settle([ShardId(0), ShardId(1)], claims.to_vec(), &BTreeMap::new());
            assert_eq!(directory.placement(RegionId(1)), Some(&placement(1, 2)));
            assert_eq!(erase, vec![(ShardId(0), RegionId(1))]);
        }
    }

    #[test]
    fn a_copy_that_a_move_left_behind_does_not_outlive_its_peer() {
        let shards = [ShardId(0), ShardId(1)];
        // Region 1 moved from shard 0 to shard 1, and ended there before shard 0 had erased its copy.
        let claims = || vec![claim(1, 0, 1), claim(2, 0, 0)];
        let ended = Tombstone::of(PeerId(101));
        let buried = BTreeMap::from([(RegionId(1), ended.clone()), (RegionId(2), ended)]);
        let (directory, erase) = Directory::settle(shards, claims(), &buried);
        assert_eq!(directory.routes().collect::<Vec<_>>(), [(RegionId(2), ShardId(0))], "a later peer of region 2");
        assert_eq!(erase, [(ShardId(0), RegionId(1))]);
    }

    #[test]
    fn a_region_moves_once_at_a_time_and_lives_at_the_source_until_it_has_arrived() {
        let (mut directory, _) = Directory::settle([ShardId(0), ShardId(1)], vec![claim(1, 0, 0)], &BTreeMap::new());
        let ticket = directory.reserve(RegionId(1), ShardId(1)).expect("free to move");
        assert_eq!(directory.reserve(RegionId(1), ShardId(1)), None);
        assert_eq!(directory.placement(RegionId(1)).map(|p| p.shard), Some(ShardId(0)));
        directory.arrive(&ticket);
        assert_eq!(directory.placement(RegionId(1)).map(|p| (p.shard, p.move_number)), Some((ShardId(1), 1)));
        assert_eq!(directory.reserve(RegionId(1), ShardId(0)), None, "the source still has to erase its copy");
        directory.release(&ticket);
        assert_eq!(directory.moves_under_way(), 0);
    }

    #[test]
    fn a_region_does_not_move_while_a_snapshot_of_it_comes_in() {
        let (mut directory, _) = Directory::settle([ShardId(0), ShardId(1)], vec![claim(1, 0, 0)], &BTreeMap::new());
        let region = |id: u64| metapb::Region { id, ..Default::default() };
        assert_eq!(directory.begin_snapshot(&region(2)), Err(Occupied::Others));
        assert_eq!(directory.begin_snapshot(&region(1)), Ok(ShardId(0)), "where its peer is");
        assert_eq!(directory.begin_snapshot(&region(1)), Err(Occupied::Snapshot));
        assert_eq!(directory.reserve(RegionId(1), ShardId(1)), None);
        directory.end_snapshot(RegionId(1));
        assert!(directory.reserve(RegionId(1), ShardId(1)).is_some());
        assert_eq!(directory.begin_snapshot(&region(1)), Err(Occupied::Moving));
    }

    #[test]
    fn so_many_snapshots_come_in_at_a_time() {
        let (mut directory, _) = Directory::settle([ShardId(0)], Vec::new(), &BTreeMap::new());
        let region = |id: u64| metapb::Region {
            id,
            start_key: id.to_be_bytes().to_vec().into(),
            end_key: (id + 1).to_be_bytes().to_vec().into(),
            ..Default::default()
        };
        let most = FILLING_MAX as u64;
        assert!((0..most).all(|id| directory.begin_snapshot(&region(id)).is_ok()));
        assert_eq!(directory.begin_snapshot(&region(most)), Err(Occupied::TooMany));
        directory.end_snapshot(RegionId(0));
        assert_eq!(directory.begin_snapshot(&region(most)), Ok(ShardId(0)));
    }

    #[test]
    fn a_region_that_ends_as_soon_as_it_has_arrived_is_forgotten_with_its_move() {
        let (mut directory, _) = Directory::settle([ShardId(0), ShardId(1)], vec![claim(1, 0, 0)], &BTreeMap::new());
        let ticket = directory.reserve(RegionId(1), ShardId(1)).expect("free to move");
        directory.arrive(&ticket);
        directory.remove(RegionId(1));
        directory.release(&ticket);
        assert_eq!(directory.placement(RegionId(1)), None);
    }

    #[test]
    fn balancing_ends_when_no_shard_has_two_regions_more_than_another() {
        let claims = (1..=10).map(|region| claim(region, 0, 0)).collect();
        let (mut directory, _) = Directory::settle([ShardId(0), ShardId(1), ShardId(2)], claims, &BTreeMap::new());
        let mut moves = 0;
        while let Some(ticket) = directory.next_balancing_move(|_, _| Some(0)) {
            directory.arrive(&ticket);
            directory.release(&ticket);
            moves += 1;
            assert!(moves <= 10, "balancing must end");
        }
        let loads: Vec<usize> = directory.loads().into_values().collect();
        assert_eq!(loads.iter().sum::<usize>(), 10);
        assert!(loads.iter().max().zip(loads.iter().min()).is_some_and(|(high, low)| high - low < 2));
    }

    #[test]
    fn a_shard_that_takes_part_in_no_moves_keeps_what_it_has() {
        let claims = (1..=10).map(|region| claim(region, u32::from(region > 2), 0)).chain([claim(11, 2, 0)]).collect();
        let (mut directory, _) = Directory::settle([ShardId(0), ShardId(2)], claims, &BTreeMap::new());
        assert_eq!(directory.reserve(RegionId(1), ShardId(1)), None);
        assert_eq!(
            directory.next_balancing_move(|_, _| Some(0)),
            None,
            "2 and 1 are even; the 8 of shard 1 are nobody's"
        );
        assert_eq!(directory.placement(RegionId(5)).map(|p| p.shard), Some(ShardId(1)));
    }

    #[test]
    fn a_stale_update_changes_nothing() {
        let (mut directory, _) = Directory::settle([ShardId(0)], vec![claim(1, 0, 3)], &BTreeMap::new());
        directory.update(RegionId(1), placement(0, 2));
        assert_eq!(directory.placement(RegionId(1)).map(|p| p.move_number), Some(3));
    }
}
