//! Peers that hear of no leader.
//!
//! A voter that was removed while it was away is told so once it campaigns. A learner never campaigns, nor does a peer whose
//! log is damaged: nobody knows that they are there. So whoever has heard of no leader for long has the node ask the placement
//! driver, again and again until there is one. Whose log is damaged asks the other members, too: if the region has merged into
//! another, they tell.

use base::{PeerId, RegionId};
use proto::metapb;

use super::mail::PeerView;
use super::peer::{PeerState, Phase};
use super::planted::PlantedFault;
use super::shard::Shard;
use crate::engine::Engine;

impl<E: Engine> Shard<E> {
    /// A tick of a peer: has the node look after it if it has heard of no leader for long.
    pub(crate) fn miss_leader(&self, peer: &mut PeerState) {
        let now = executor::now();
        let may_end = peer.phase == Phase::Serving || peer.is_broken();
        if peer.leads() || peer.raft.is_sole_voter() || !may_end {
            peer.led_at = now;
        }
        let is_missed = now.since(peer.led_at) > self.config.leader_missing;
        if is_missed && !self.config.is_planted(PlantedFault::StalePeerStays) {
            peer.led_at = now;
            self.outlet.leaderless(self.id, peer.view());
            if peer.is_broken() {
                // The placement driver does not know a region that has merged into another.
                self.ask_members(peer);
            }
        }
    }
}

impl PeerState {
    /// Whether it does nothing any more, and waits to be replaced; or would, but that nobody leads its group any more.
    pub(crate) fn is_broken(&self) -> bool {
        matches!(self.phase, Phase::Damaged | Phase::Diverged) || (self.merging.is_stranded && self.leader.is_none())
    }

    /// What it knows of its region.
    pub(crate) fn view(&self) -> PeerView {
        PeerView {
            region: (*self.meta.region).clone(),
            peer: self.meta.peer_id(),
            began_version: self.meta.began_version,
            merges_into: self.meta.merge.as_ref().and_then(|merge| merge.target.clone()),
            is_broken: self.is_broken(),
        }
    }
}

impl PeerView {
    /// Whether `known`, a later state of the region, shows that the peer is no member any more. Members change one entry
    /// after the other, and ids of peers never come twice: what left by then never comes back.
    pub fn is_removed_in(&self, known: &metapb::Region) -> bool {
        let conf_ver = |region: &metapb::Region| region.region_epoch.map_or(0, |epoch| epoch.conf_ver);
        let is_same = RegionId(known.id) == RegionId(self.region.id);
        is_same
            && conf_ver(known) > conf_ver(&self.region)
            && known.peers.iter().all(|member| PeerId(member.id) != self.peer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(id: u64, conf_ver: u64, peers: &[u64]) -> metapb::Region {
        metapb::Region {
            id,
            region_epoch: Some(metapb::RegionEpoch { conf_ver, version: 1 }),
            peers: peers.iter().map(|id| metapb::Peer { id: *id, store_id: *id, ..Default::default() }).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn only_a_later_state_without_it_removes_a_peer() {
        let view = PeerView {
            region: region(1, 5, &[1, 2, 3]),
            peer: PeerId(3),
            began_version: 1,
            merges_into: None,
            is_broken: false,
        };
        assert!(view.is_removed_in(&region(1, 6, &[1, 2])));
        assert!(!view.is_removed_in(&region(1, 6, &[1, 2, 3])), "it is there");
        assert!(!view.is_removed_in(&region(1, 5, &[1, 2])), "of the same time: one of both is wrong");
        assert!(!view.is_removed_in(&region(1, 4, &[1, 2])), "before it was added");
        assert!(!view.is_removed_in(&region(2, 6, &[1, 2])), "another region");
    }
}
