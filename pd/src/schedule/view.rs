//! What is looked at when something is decided: the stores, and the directory's regions.

use super::config::ScheduleConfig;
use crate::directory::{Directory, Region};
use base::Instant;
use proto::metapb::{Peer, PeerRole, StoreState};
use std::collections::BTreeMap;
use std::time::Duration;

/// A store that is silent for so long gets no new peers, and its peers do not count as healthy.
const DISCONNECTED_AFTER: Duration = Duration::from_secs(20);
/// From this score on a store is slow (1 is healthy, 100 the worst).
const SLOW_SCORE: u64 = 80;

/// One store, as its description and its heartbeats tell.
#[derive(Clone, Debug, Default)]
pub struct StoreView {
    /// Its id.
    pub id: u64,
    /// Up, leaving or gone.
    pub state: StoreState,
    /// Its last heartbeat, or when the placement driver started if that was later.
    pub heard: Instant,
    /// Whether it has sent a heartbeat since then.
    pub has_reported: bool,
    /// Its labels, keys in lower case.
    pub labels: BTreeMap<String, String>,
    /// Bytes it can hold; 0 when unknown.
    pub capacity: u64,
    /// Bytes that are free.
    pub available: u64,
    /// The most of its snapshots being sent, received and applied.
    pub snapshots: u64,
    /// It says that it has too much to do, or is about to stop.
    pub is_busy: bool,
    /// How slow it finds itself.
    pub slow_score: u64,
}

impl StoreView {
    /// Whether it takes part, and is not about to leave.
    pub fn is_up(&self) -> bool {
        self.state == StoreState::Up
    }

    /// Whether it was heard lately.
    pub fn is_connected(&self, now: Instant) -> bool {
        self.has_reported && self.state != StoreState::Tombstone && now.since(self.heard) < DISCONNECTED_AFTER
    }

    /// Whether it has been silent for so long that its replicas are replaced.
    pub fn is_down(&self, now: Instant, config: &ScheduleConfig) -> bool {
        now.since(self.heard) >= config.max_store_down_time.max(DISCONNECTED_AFTER)
    }

    /// The value of a label; empty when it has none.
    pub fn label(&self, key: &str) -> &str {
        self.labels.get(&key.to_lowercase()).map_or("", String::as_str)
    }

    /// Whether replicas of the ordinary kind belong here: columnar engines get theirs by other means.
    pub fn is_tikv(&self) -> bool {
        matches!(self.label("engine"), "" | "tikv")
    }

    /// Whether too much of its space is used for a new peer.
    pub fn is_low_on_space(&self, config: &ScheduleConfig) -> bool {
        self.capacity > 0 && (self.available as f64) < self.capacity as f64 * (1.0 - config.low_space_ratio)
    }

    /// Whether it finds itself slow.
    pub fn is_slow(&self) -> bool {
        self.slow_score >= SLOW_SCORE
    }
}

/// Everything that is known at one moment. Nothing in it is copied.
#[derive(Clone, Copy)]
pub struct Cluster<'a> {
    /// When.
    pub now: Instant,
    /// The settings.
    pub config: &'a ScheduleConfig,
    /// Every store, tombstones included.
    pub stores: &'a BTreeMap<u64, StoreView>,
    /// Every region.
    pub directory: &'a Directory,
}

impl<'a> Cluster<'a> {
    /// Stores that are up and have not been silent for long: those that count when it is asked how many there are.
    pub fn live_stores(&self) -> usize {
        let live = |store: &&StoreView| store.is_up() && store.is_tikv() && !store.is_down(self.now, self.config);
        self.stores.values().filter(live).count()
    }

    /// Whether there are as many live stores as a region should have voters. While there are not, nothing is placed.
    pub fn has_stores_for_replicas(&self) -> bool {
        self.live_stores() as u64 >= self.config.max_replicas
    }

    /// Whether `peer` can be counted on: its store is heard, its leader hears it, and it has what it needs.
    pub fn is_healthy(&self, region: &Region, peer: &Peer) -> bool {
        let connected = self.stores.get(&peer.store_id).is_some_and(|store| store.is_connected(self.now));
        let down = region.down_peers.iter().any(|down| down.peer.is_some_and(|down| down.id == peer.id));
        connected && !down && !is_pending(region, peer.id)
    }

    /// Whether more than half of `voters` can be counted on.
    pub fn has_quorum(&self, region: &Region, voters: &[Peer]) -> bool {
        let healthy = voters.iter().filter(|peer| self.is_healthy(region, peer)).count();
        healthy * 2 > voters.len()
    }

    /// Whether a store is being emptied of leaders.
    pub fn is_evicted(&self, store: u64) -> bool {
        self.config.schedulers.evict_leader.contains(&store)
    }

    /// The region behind `id`.
    pub fn region(&self, id: u64) -> Option<&'a Region> {
        self.directory.by_id(id).map(std::rc::Rc::as_ref)
    }
}

/// The voters of the newer configuration.
pub fn voters(region: &Region) -> Vec<Peer> {
    let votes = |peer: &&Peer| matches!(peer.role(), PeerRole::Voter | PeerRole::IncomingVoter);
    region.meta.peers.iter().filter(votes).copied().collect()
}

/// Whether the region is between two configurations.
pub fn is_joint(region: &Region) -> bool {
    region.meta.peers.iter().any(|peer| matches!(peer.role(), PeerRole::IncomingVoter | PeerRole::DemotingVoter))
}

/// Whether a peer waits for a snapshot.
pub fn is_pending(region: &Region, peer: u64) -> bool {
    region.pending_peers.iter().any(|pending| pending.id == peer)
}

/// The peer on a store.
pub fn peer_on(region: &Region, store: u64) -> Option<&Peer> {
    region.meta.peers.iter().find(|peer| peer.store_id == store)
}

/// Whether `peer` leads.
pub fn leads(region: &Region, peer: &Peer) -> bool {
    region.leader.is_some_and(|leader| leader.id == peer.id)
}
