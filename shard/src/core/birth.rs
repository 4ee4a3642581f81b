//! How a region that a split has just made gets its first leader.
//!
//! Its peer beside the parent's leader campaigns at once. But a follower has no peer that could vote before it has applied the
//! split, of which it hears with the parent's next heartbeat: a first campaign that comes sooner is lost, and the next one by
//! raft's own clock would come after an election timeout. So the peer asks again for a while.

use std::rc::Rc;
use std::time::Duration;

use base::RegionId;
use executor::Class;

use super::peer::{PeerState, Phase};
use super::shard::{Input, Shard};
use crate::engine::Engine;

/// Waits before each further campaign. The followers' logs are synced meanwhile; after the last wait raft's own clock goes on.
const WAITS_MS: [u64; 5] = [10, 20, 40, 80, 160];

impl<E: Engine> Shard<E> {
    /// Has `child`, which is about to campaign for the first time, campaign again until there is a leader, or an election.
    pub(crate) fn campaign_again(self: &Rc<Self>, child: &PeerState) {
        let (region, term, shard) = (RegionId(child.meta.region.id), child.raft.term(), Rc::downgrade(self));
        executor::spawn_local(Class::Foreground, async move {
            for wait in WAITS_MS {
                executor::sleep(Duration::from_millis(wait)).await;
                let Some(shard) = shard.upgrade() else { return };
                // An election that has begun has another term than the question whether to begin one.
                if !shard.peers.borrow().get(&region).is_some_and(|peer| is_waiting(peer, term)) {
                    return;
                }
                shard.push(Input::Lead(region));
            }
            tracing::debug!(%region, "has no leader after its first campaigns");
        });
    }
}

fn is_waiting(peer: &PeerState, term: u64) -> bool {
    peer.phase == Phase::Serving && peer.leader.is_none() && peer.raft.term() == term
}
