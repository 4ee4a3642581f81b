//! The checker of replicas: a region has as many voters as it should, on stores that will stay, far enough apart.

use super::operator::{Kind, Plan};
use super::placement::{Scene, Wish, new_peer, others};
use super::step::Step;
use super::view::{is_joint, is_pending, voters};
use crate::directory::Region;
use proto::metapb::{Peer, PeerRole};

/// What is wrong with one region's replicas, and how it is repaired. At most one thing at a time.
///
/// Nothing is done for a region without a healthy majority: no order could be carried out.
pub fn check(scene: &Scene<'_>, region: &Region) -> Option<Plan> {
    if is_joint(region) {
        return Some(leave_joint(region));
    }
    let voters: Vec<Peer> = voters(region).into_iter().filter(|peer| is_ours(scene, peer)).collect();
    if !scene.cluster.has_quorum(region, &voters) {
        return None;
    }
    let learners: Vec<Peer> = region
        .meta
        .peers
        .iter()
        .filter(|peer| peer.role() == PeerRole::Learner && is_ours(scene, peer))
        .copied()
        .collect();
    lost_voter(scene, region, &voters, &learners)
        .or_else(|| missing_voter(scene, region, &voters, &learners))
        .or_else(|| surplus_learner(scene, region, &voters, &learners))
        .or_else(|| surplus_voter(scene, region, &voters))
        .or_else(|| misplaced_voter(scene, region, &voters))
}

/// An operator's joint configuration that nobody has ended.
fn leave_joint(region: &Region) -> Plan {
    let changing = |peer: &&Peer| matches!(peer.role(), PeerRole::IncomingVoter | PeerRole::DemotingVoter);
    let changes = region.meta.peers.iter().filter(changing).count() as u64;
    plan(region, "leave-joint-state", vec![Step::LeaveJoint(changes)])
}

/// Replicas of other engines are somebody else's matter.
fn is_ours(scene: &Scene<'_>, peer: &Peer) -> bool {
    scene.cluster.stores.get(&peer.store_id).is_none_or(|store| store.is_tikv())
}

/// Why a peer cannot stay where it is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Loss {
    Offline,
    Down,
}

fn loss(scene: &Scene<'_>, region: &Region, peer: &Peer) -> Option<Loss> {
    let Some(store) = scene.cluster.stores.get(&peer.store_id).filter(|store| store.is_up()) else {
        return Some(Loss::Offline);
    };
    let longest = scene.cluster.config.max_store_down_time.as_secs();
    let unheard = |down: &proto::pdpb::PeerStats| {
        down.peer.is_some_and(|down| down.id == peer.id) && down.down_seconds >= longest.max(1)
    };
    let down = store.is_down(scene.cluster.now, scene.cluster.config) || region.down_peers.iter().any(unheard);
    down.then_some(Loss::Down)
}

/// A voter whose store is leaving, gone, or silent for too long.
fn lost_voter(scene: &Scene<'_>, region: &Region, voters: &[Peer], learners: &[Peer]) -> Option<Plan> {
    let (old, loss) = voters.iter().find_map(|peer| Some((peer, loss(scene, region, peer)?)))?;
    if voters.len() as u64 > scene.cluster.config.max_replicas {
        let desc = if loss == Loss::Down { "remove-extra-down-replica" } else { "remove-extra-offline-replica" };
        return Some(plan(region, desc, scene.remove(region, old)?));
    }
    let desc = if loss == Loss::Down { "replace-down-replica" } else { "replace-offline-replica" };
    // What an operator that was given up has left is used before anything new is made.
    if let Some(learner) = usable_learner(scene, region, learners) {
        let ready = scene.cluster.is_healthy(region, learner);
        return if ready { Some(plan(region, desc, scene.replace(region, old, *learner)?)) } else { None };
    }
    let store = scene.best_store(region, Some(old), Wish::Apart)?;
    Some(plan(region, desc, scene.replace(region, old, new_peer(store.id))?))
}

/// Fewer voters than there should be, and stores enough for all of them.
fn missing_voter(scene: &Scene<'_>, region: &Region, voters: &[Peer], learners: &[Peer]) -> Option<Plan> {
    if voters.len() as u64 >= scene.cluster.config.max_replicas {
        return None;
    }
    if let Some(learner) = usable_learner(scene, region, learners) {
        let ready = scene.cluster.is_healthy(region, learner);
        return ready.then(|| plan(region, "promote-learner", vec![Step::Promote(*learner)]));
    }
    if !scene.cluster.has_stores_for_replicas() {
        return None;
    }
    let new = new_peer(scene.best_store(region, None, Wish::Apart)?.id);
    Some(plan(region, "make-up-replica", vec![Step::AddLearner(new), Step::Promote(new)]))
}

/// A learner that is there, or will be when its snapshot has come.
fn usable_learner<'a>(scene: &Scene<'_>, region: &Region, learners: &'a [Peer]) -> Option<&'a Peer> {
    learners.iter().find(|peer| {
        let heard = scene.cluster.stores.get(&peer.store_id).is_some_and(|s| s.is_connected(scene.cluster.now));
        let waits = is_pending(region, peer.id) && heard;
        loss(scene, region, peer).is_none() && (waits || scene.cluster.is_healthy(region, peer))
    })
}

/// A learner that nobody needs.
fn surplus_learner(scene: &Scene<'_>, region: &Region, voters: &[Peer], learners: &[Peer]) -> Option<Plan> {
    let full = voters.len() as u64 >= scene.cluster.config.max_replicas;
    let all_stay = voters.iter().all(|peer| loss(scene, region, peer).is_none());
    let learner = learners.iter().find(|peer| (full && all_stay) || loss(scene, region, peer).is_some())?;
    Some(plan(region, "remove-orphan-peer", vec![Step::RemovePeer(*learner)]))
}

/// More voters than there should be: the one that is nearest to the others goes, then the one on the fullest store.
fn surplus_voter(scene: &Scene<'_>, region: &Region, voters: &[Peer]) -> Option<Plan> {
    if voters.len() as u64 <= scene.cluster.config.max_replicas {
        return None;
    }
    let sick = voters.iter().find(|peer| !scene.cluster.is_healthy(region, peer));
    let worst = sick.or_else(|| worst_placed(scene, region, voters))?;
    Some(plan(region, "remove-extra-replica", scene.remove(region, worst)?))
}

fn worst_placed<'a>(scene: &Scene<'_>, region: &Region, voters: &'a [Peer]) -> Option<&'a Peer> {
    let mean = scene.mean_capacity();
    let place = |peer: &Peer| {
        let store = scene.cluster.stores.get(&peer.store_id)?;
        Some((scene.crowding(store, &others(region, Some(peer))), scene.region_score(store, mean)))
    };
    let known = voters.iter().filter_map(|peer| Some((peer, place(peer)?)));
    known.max_by(|(_, (a, a_score)), (_, (b, b_score))| a.cmp(b).then(a_score.total_cmp(b_score))).map(|(peer, _)| peer)
}

/// A voter that has a better place to go. Better means strictly farther apart, so this comes to an end.
fn misplaced_voter(scene: &Scene<'_>, region: &Region, voters: &[Peer]) -> Option<Plan> {
    if scene.cluster.config.location_labels.is_empty()
        || voters.len() as u64 != scene.cluster.config.max_replicas
        || voters.iter().any(|peer| !scene.cluster.is_healthy(region, peer))
    {
        return None;
    }
    let old = worst_placed(scene, region, voters)?;
    let now = scene.crowding(scene.cluster.stores.get(&old.store_id)?, &others(region, Some(old)));
    let store = scene.best_store(region, Some(old), Wish::Apart)?;
    if scene.crowding(store, &others(region, Some(old))) >= now {
        return None;
    }
    Some(plan(region, "move-to-better-location", scene.replace(region, old, new_peer(store.id))?))
}

fn plan(region: &Region, desc: &'static str, steps: Vec<Step>) -> Plan {
    Plan::new(region.meta.id, desc, Kind::Replica, steps)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{NOW, Small, beat, peer, voter};
    use super::*;
    use proto::metapb::StoreState;
    use std::time::Duration;

    fn found(small: &Small) -> Option<&'static str> {
        let region = small.directory.by_id(1).expect("a region");
        check(&small.scene(), region).map(|plan| plan.desc)
    }

    #[test]
    fn each_fault_has_its_repair_and_a_whole_region_has_none() {
        let three = [voter(1), voter(2), voter(3)];
        let learner = peer(4, PeerRole::Learner);
        let incoming = [voter(1), peer(2, PeerRole::IncomingVoter), peer(3, PeerRole::DemotingVoter)];
        let cases: Vec<(Vec<Peer>, Option<&str>)> = vec![
            (three.to_vec(), None),
            (vec![voter(1)], Some("make-up-replica")),
            (vec![voter(1), voter(2), learner], Some("promote-learner")),
            ([&three[..], &[learner]].concat(), Some("remove-orphan-peer")),
            ([&three[..], &[voter(4)]].concat(), Some("remove-extra-replica")),
            (incoming.to_vec(), Some("leave-joint-state")),
        ];
        for (peers, expected) in cases {
            let mut small = Small::new(4);
            small.region(1, &peers);
            assert_eq!(found(&small), expected, "{peers:?}");
        }
    }

    #[test]
    fn with_too_few_stores_or_no_quorum_nothing_is_done() {
        let mut small = Small::new(2);
        small.region(1, &[voter(1)]);
        assert_eq!(found(&small), None);
        let mut small = Small::new(4);
        small.region(1, &[voter(1), voter(2), voter(3)]);
        small.now = NOW + Duration::from_secs(7200);
        assert_eq!(found(&small), None, "every store is down: nobody could carry it out");
        small.stores.get_mut(&1).expect("a store").heard = small.now;
        assert_eq!(found(&small), None, "one of three is no majority");
    }

    #[test]
    fn a_lost_voter_is_replaced_by_the_learner_that_is_there_or_by_a_new_one() {
        let mut small = Small::new(4);
        small.region(1, &[voter(1), voter(2), voter(3)]);
        small.stores.get_mut(&3).expect("a store").state = StoreState::Offline;
        assert_eq!(found(&small), Some("replace-offline-replica"));
        small.stores.get_mut(&3).expect("a store").state = StoreState::Up;
        small.now = NOW + small.config.max_store_down_time;
        for store in [1, 2, 4] {
            small.stores.get_mut(&store).expect("a store").heard = small.now;
        }
        assert_eq!(found(&small), Some("replace-down-replica"));
        small.region(2, &[voter(1), voter(2), voter(3), peer(4, PeerRole::Learner)]);
        let region = small.directory.by_id(1).expect("a region");
        let plan = check(&small.scene(), region).expect("a plan");
        assert!(matches!(plan.steps[0], Step::EnterJoint { .. }), "nothing new comes: {plan:?}");
        // While its snapshot is under way, it is waited for.
        let mut report = beat(1, ("", ""), 2, &region.meta.peers.clone());
        report.pending_peers = vec![peer(4, PeerRole::Learner)];
        small.report(report);
        assert_eq!(found(&small), None);
    }

    #[test]
    fn the_leader_hands_over_before_it_goes() {
        let mut small = Small::new(4);
        small.region(1, &[voter(1), voter(2), voter(3)]);
        small.stores.get_mut(&1).expect("a store").state = StoreState::Offline;
        let region = small.directory.by_id(1).expect("a region");
        let steps = check(&small.scene(), region).expect("a plan").steps;
        assert!(matches!(steps[0], Step::AddLearner(new) if new.store_id == 4));
        assert!(matches!(steps[1], Step::TransferLeader { from: 1, .. }));
        assert!(matches!(steps[2], Step::EnterJoint { .. }) && matches!(steps[3], Step::LeaveJoint(2)));
        assert!(matches!(steps[4], Step::RemovePeer(old) if old.store_id == 1) && steps.len() == 5);
        small.config.enable_joint_consensus = false;
        let steps = check(&small.scene(), region).expect("a plan").steps;
        assert!(matches!(steps[1], Step::Promote(_)) && matches!(steps[2], Step::TransferLeader { .. }));
    }

    #[test]
    fn two_in_one_place_part_if_there_is_a_better_one() {
        let mut small = Small::new(4);
        small.config.location_labels = vec!["zone".into()];
        for (store, zone) in [(1, "a"), (2, "a"), (3, "b"), (4, "B")] {
            let labels = &mut small.stores.get_mut(&store).expect("a store").labels;
            labels.insert("zone".into(), zone.into());
        }
        small.region(1, &[voter(1), voter(2), voter(3)]);
        assert_eq!(found(&small), None, "the other store is in a zone that is taken, too");
        small.stores.get_mut(&4).expect("a store").labels.insert("zone".into(), "c".into());
        assert_eq!(found(&small), Some("move-to-better-location"));
        small.stores.get_mut(&4).expect("a store").labels.insert("engine".into(), "tiflash".into());
        assert_eq!(found(&small), None, "it is no place for this kind of replica");
    }
}
