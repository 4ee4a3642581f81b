//! Who leads the first hot key, and how a fault waits for that to change.

use std::net::SocketAddr;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use base::{PeerId, RegionId};

use super::world::{PD_IP, PD_PORT, World};
use super::{hot, orders};

/// How long the placement driver may take to have an order carried out, and the pause after which it is asked again.
const ORDER_LIMIT: Duration = Duration::from_secs(3);
const ORDER_PAUSE: Duration = Duration::from_millis(100);

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
