//! What a node refuses as its disk fills, so that what makes room again always has some.
//!
//! ```text
//!   reserve ───────── reserve / 2 ───────── reserve / 8 ───────── 0 bytes free
//!  Normal │ AlmostFull      │ AlreadyFull         │ Exhausted
//!         │ writes of clients are refused; leaders go to stores with room
//!         │ what frees room goes on ──────────────┤
//!         │ entries of other leaders are taken ───┤ nothing is taken
//! ```
//!
//! A leader refuses by its own store, and by those of the others if too few are left for a quorum: `disk_usage` in raft
//! messages tells it. With a quorum of stores that have room it goes on, and a full follower takes what it can.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, Ordering};

use base::StoreId;
use proto::kvrpcpb::DiskFullOpt;
use proto::{disk_usage, kvrpcpb, metapb};

use super::error::RegionError;
use super::peer::PeerState;
use super::shard::Shard;
use crate::engine::Engine;

/// How full a store's disk is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum DiskUsage {
    /// There is room.
    #[default]
    Normal,
    /// Less than the reserve is free.
    AlmostFull,
    /// Less than half of the reserve is free.
    AlreadyFull,
    /// Less than an eighth of the reserve is free: what is left is for flushes and compactions.
    Exhausted,
}

impl DiskUsage {
    /// How full a disk is with `available` bytes free of which `reserve` are to stay free. A store that was fuller
    /// `before` needs an eighth more to count as less full, so that it does not go to and fro.
    pub fn of(available: u64, reserve: u64, before: DiskUsage) -> DiskUsage {
        let level = |bytes: u64| match bytes {
            _ if bytes >= reserve => DiskUsage::Normal,
            _ if bytes >= reserve / 2 => DiskUsage::AlmostFull,
            _ if bytes >= reserve / 8 => DiskUsage::AlreadyFull,
            _ => DiskUsage::Exhausted,
        };
        let (now, cautious) = (level(available), level(available - available / 9));
        if now >= before { now } else { cautious.min(before) }
    }

    fn to_wire(self) -> disk_usage::DiskUsage {
        match self {
            DiskUsage::Normal => disk_usage::DiskUsage::Normal,
            DiskUsage::AlmostFull => disk_usage::DiskUsage::AlmostFull,
            DiskUsage::AlreadyFull | DiskUsage::Exhausted => disk_usage::DiskUsage::AlreadyFull,
        }
    }

    fn from_wire(wire: disk_usage::DiskUsage) -> DiskUsage {
        match wire {
            disk_usage::DiskUsage::Normal => DiskUsage::Normal,
            disk_usage::DiskUsage::AlmostFull => DiskUsage::AlmostFull,
            disk_usage::DiskUsage::AlreadyFull => DiskUsage::AlreadyFull,
        }
    }

    /// The fullest store that a request may be written to.
    fn allowed(context: &kvrpcpb::Context) -> DiskUsage {
        match context.disk_full_opt() {
            DiskFullOpt::NotAllowedOnFull => DiskUsage::Normal,
            DiskFullOpt::AllowedOnAlmostFull => DiskUsage::AlmostFull,
            DiskFullOpt::AllowedOnAlreadyFull => DiskUsage::Exhausted,
        }
    }
}

/// How full the node's disk is, for all of its cores: core 0 looks, the others read.
#[derive(Debug, Default)]
pub struct DiskGauge(AtomicU8);

impl DiskGauge {
    /// What core 0 saw last.
    pub fn usage(&self) -> DiskUsage {
        match self.0.load(Ordering::Relaxed) {
            0 => DiskUsage::Normal,
            1 => DiskUsage::AlmostFull,
            2 => DiskUsage::AlreadyFull,
            _ => DiskUsage::Exhausted,
        }
    }

    /// What core 0 has seen.
    pub fn set(&self, usage: DiskUsage) {
        self.0.store(usage as u8, Ordering::Relaxed);
    }
}

/// Stores of other nodes that have said that they are full. Bounded by the stores that peers here have heard of.
pub(crate) type FullStores = BTreeMap<StoreId, DiskUsage>;

impl<E: Engine> Shard<E> {
    /// What a letter says of its sender's store.
    pub(crate) fn note_disk(&self, store: StoreId, wire: disk_usage::DiskUsage) {
        let mut full = self.full_stores.borrow_mut();
        match DiskUsage::from_wire(wire) {
            DiskUsage::Normal if full.is_empty() => {}
            DiskUsage::Normal => drop(full.remove(&store)),
            usage => drop(full.insert(store, usage)),
        }
    }

    /// What a letter says of our store.
    pub(crate) fn disk_for_letters(&self) -> i32 {
        self.outlet.disk().to_wire() as i32
    }

    /// Whether a peer's store has room, as far as is known here.
    pub(crate) fn has_room(&self, peer: &metapb::Peer) -> bool {
        !self.full_stores.borrow().contains_key(&StoreId(peer.store_id))
    }

    /// Whether a client's write may be proposed.
    ///
    /// # Errors
    /// [`RegionError::DiskFull`] with the stores that have too little room.
    pub(crate) fn check_disk(&self, peer: &PeerState, context: &kvrpcpb::Context) -> Result<(), RegionError> {
        let (own, allowed) = (self.outlet.disk(), DiskUsage::allowed(context));
        if own > allowed {
            return Err(RegionError::DiskFull { stores: vec![self.store] });
        }
        let full = self.full_stores.borrow();
        let is_full = |store: u64| full.get(&StoreId(store)).is_some_and(|usage| *usage > allowed);
        if full.is_empty() || has_quorum(&peer.meta.region, is_full) {
            return Ok(());
        }
        let stores = peer.meta.region.peers.iter().map(|member| member.store_id).filter(|store| is_full(*store));
        Err(RegionError::DiskFull { stores: stores.map(StoreId).collect() })
    }
}

/// Whether a majority of each of the region's sets of voters is on stores that are not full.
fn has_quorum(region: &metapb::Region, is_full: impl Fn(u64) -> bool) -> bool {
    let members = raftstore::conf_state(region);
    let has_room =
        |id: &&u64| region.peers.iter().find(|peer| peer.id == **id).is_some_and(|peer| !is_full(peer.store_id));
    let is_quorum = |voters: &[u64]| voters.is_empty() || 2 * voters.iter().filter(has_room).count() > voters.len();
    is_quorum(&members.voters) && is_quorum(&members.voters_outgoing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_fills_in_steps_and_is_not_called_empty_too_soon() {
        let mut usage = DiskUsage::Normal;
        let mut seen = Vec::new();
        for available in [900, 800, 799, 820, 898, 900, 399, 430, 460, 99, 105, 120, 2000, 0] {
            usage = DiskUsage::of(available, 800, usage);
            seen.push(usage);
        }
        use DiskUsage::{AlmostFull, AlreadyFull, Exhausted, Normal};
        let expected = [
            Normal,
            Normal,
            AlmostFull,
            AlmostFull,
            AlmostFull,
            Normal,
            AlreadyFull,
            AlreadyFull,
            AlmostFull,
            Exhausted,
            Exhausted,
            AlreadyFull,
            Normal,
            Exhausted,
        ];
        assert_eq!(seen, expected);
        assert_eq!(DiskUsage::of(0, 0, Normal), Normal, "nothing is reserved");
    }

    #[test]
    fn a_quorum_needs_stores_with_room() {
        let peer = |id| metapb::Peer { id, store_id: id * 10, ..Default::default() };
        let region = metapb::Region { peers: [1, 2, 3].map(peer).into(), ..Default::default() };
        assert!(has_quorum(&region, |store| store == 20));
        assert!(!has_quorum(&region, |store| store != 20));
    }
}
