//! Who leads the first hot key, and how a fault waits for that to change.

use std::net::SocketAddr;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use base::{PeerId, RegionId};
use bytes::Bytes;
use proto::metapb;

use super::workload::Hush;
use super::world::{PD_IP, PD_PORT, World};
use super::{hot, orders};
use crate::client::{Client, Fate};

/// How long the placement driver may take to have an order carried out, and the pause after which it is asked again.
const ORDER_LIMIT: Duration = Duration::from_secs(3);
const ORDER_PAUSE: Duration = Duration::from_millis(100);
/// How long a read that is to begin a lease may take: its question may have been lost, and is asked again after a second.
const READ_PATIENCE: Duration = Duration::from_millis(2500);
/// How often, and how many times, a region is looked at that is to have all its replicas.
const WHOLE_PAUSE: Duration = Duration::from_millis(100);
const WHOLE_LOOKS: u32 = 150;

/// Who led a region at some time.
#[derive(Clone, Copy)]
pub(super) struct Lead {
    region: RegionId,
    peer: PeerId,
    /// Its node.
    pub(super) at: usize,
}

impl World {
    /// Who led the first hot key last.
    pub(super) fn hot_lead(&self) -> Option<Lead> {
        let region = self.views().iter().find_map(|view| view.region_of(hot::KEYS[0].as_bytes()))?;
        let id = RegionId(region.id);
        let peer = self.leaders.lock().unwrap_or_else(PoisonError::into_inner).last(id)?;
        let store = region.peers.iter().find(|member| member.id == peer.0)?.store_id;
        let at = self.nodes.iter().position(|node| node.serves.load(Ordering::Relaxed) == store)?;
        Some(Lead { region: id, peer, at })
    }

    /// From here on nobody begins a write, until [`hush`](World::hush) is over. Lets time pass until the region of the first
    /// hot key has all its replicas, which vote and lack nothing, or some seconds: nobody is elected who lacks an entry.
    pub(super) fn quieten(&mut self) {
        self.hush.set(Hush::Writes);
        let is_voter = |peer: &metapb::Peer| peer.role() == metapb::PeerRole::Voter;
        let is_whole =
            |region: &metapb::Region| region.peers.len() as u64 == self.replicas && region.peers.iter().all(is_voter);
        for _ in 0..WHOLE_LOOKS {
            // The last change of members is the first to be known at its leader.
            let regions: Vec<_> =
                self.views().iter().filter_map(|view| view.region_of(hot::KEYS[0].as_bytes())).collect();
            if regions.len() as u64 >= self.replicas && regions.iter().all(is_whole) {
                break;
            }
            self.run_for(WHOLE_PAUSE);
        }
        self.pass_percent(30, 80);
    }

    /// Which of the peers of `key`'s region is on node `at`.
    pub(super) fn find_peer(&self, key: &[u8], at: usize) -> Option<usize> {
        let region = self.views().iter().find_map(|view| view.region_of(key))?;
        let store = self.nodes[at].serves.load(Ordering::Relaxed);
        region.peers.iter().position(|peer| peer.store_id == store)
    }

    /// Whether the peer on node `at` answers a read as its region's leader, which gives it a lease if it had none: tried for a
    /// while.
    pub(super) fn reads_at(&self, at: usize) -> bool {
        let key = Bytes::from(hot::KEYS[0]);
        let Some(peer) = self.find_peer(&key, at) else { return false };
        let read = async move {
            let client = Client::new(&SocketAddr::new(PD_IP, PD_PORT).to_string());
            client.patience.set(READ_PATIENCE);
            client.read_once(&key, Some(peer), false).await
        };
        matches!(self.sim.block_on(self.client, read, READ_PATIENCE), Some(Fate::Done(_)))
    }

    /// Lets time pass until another peer leads the region, at most `limit`; whether one does.
    pub(super) fn another_leads_within(&self, lead: &Lead, limit: Duration) -> bool {
        let leaders = &self.leaders;
        let last = || leaders.lock().unwrap_or_else(PoisonError::into_inner).last(lead.region);
        let changed = self.sim.run_until(limit, || last() != Some(lead.peer));
        self.look();
        changed
    }

    /// Has the placement driver order that the peer on node `to` leads; whether another one than before does soon.
    pub(super) fn hand_over(&mut self, lead: &Lead, to: usize) -> bool {
        let (region, store) = (lead.region, self.nodes[to].serves.load(Ordering::Relaxed));
        let order = format!(r#"{{"name":"transfer-leader","region_id":{region},"to_store_id":{store}}}"#);
        let mut waited = Duration::ZERO;
        while waited < ORDER_LIMIT {
            let order = order.clone();
            self.sim.spawn_on(self.client, async move {
                // One that is lost is sent again.
                drop(executor::timeout(ORDER_LIMIT, orders::post(SocketAddr::new(PD_IP, PD_PORT), &order)).await);
            });
            if self.another_leads_within(lead, ORDER_PAUSE) {
                return true;
            }
            waited += ORDER_PAUSE;
        }
        false
    }

    /// The shortest time after which a follower that hears of no leader wants to be elected. A lease lasts three quarters
    /// of it.
    pub(super) fn election(&self) -> Duration {
        let shard = &self.nodes[0].config.shard;
        shard.tick * shard.raft.election_ticks
    }
}
