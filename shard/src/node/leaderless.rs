//! Core 0's part for peers that hear of no leader: those that are no members any more are ended.

use std::rc::Rc;

use base::{RegionId, ShardId};
use executor::Class;

use super::core_zero::CoreZero;
use crate::core::{Control, PeerView, reply};
use crate::engine::Engine;

impl<E: Engine> CoreZero<E> {
    /// Asks the placement driver about the region, and ends the peer if a later state of it is without the peer. What the
    /// placement driver does not know tells nothing: the peer asks again.
    pub(super) fn look_after_leaderless(self: &Rc<Self>, shard: ShardId, peer: PeerView) {
        let zero = self.clone();
        executor::spawn_local(Class::Background, async move {
            let (Ok(pd), Ok(host)) = (zero.pd(), zero.host()) else { return };
            let Ok(Some(known)) = pd.region_by_id(peer.region.id).await else { return };
            if peer.is_removed_in(&known) {
                let region = RegionId(peer.region.id);
                tracing::info!(%region, peer = peer.peer.0, "this peer was removed while it was away");
                let (reply, _) = reply();
                host.control(host.core_of(shard), Control::End { shard, region, peer: peer.peer, reply });
            }
        });
    }
}
