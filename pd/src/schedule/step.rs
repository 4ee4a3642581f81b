//! The steps of which operators are made: what is asked of a region's leader, and how it shows that it was done.

use super::view::{Cluster, is_joint, is_pending, leads, peer_on, voters};
use crate::directory::Region;
use bytes::Bytes;
use proto::eraftpb::ConfChangeType;
use proto::metapb::{Peer, PeerRole};
use proto::pdpb::{self, ChangePeer, ChangePeerV2, CheckPolicy, RegionHeartbeatResponse};
use std::time::Duration;

/// How long a learner may take: a large region's snapshot comes slowly.
const LEARNER_TIME: Duration = Duration::from_secs(600);
/// How long a split may take: it is asked for once, and a store that cannot does not say so.
const SPLIT_TIME: Duration = Duration::from_secs(10);
/// How long a merge may take: its source is frozen until the target has taken it, or has changed first. PD waits as long.
const MERGE_TIME: Duration = Duration::from_secs(600);
/// How long anything else may take: entries of a raft log, more than one heartbeat long.
const STEP_TIME: Duration = Duration::from_secs(120);

/// One step.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// A new peer that does not vote yet. Its id is 0 until the operator is admitted.
    AddLearner(Peer),
    /// A learner becomes a voter.
    Promote(Peer),
    /// A peer goes.
    RemovePeer(Peer),
    /// Another peer leads.
    TransferLeader {
        /// The store that should not lead any more.
        from: u64,
        /// The peer that should.
        to: Peer,
    },
    /// Learners become voters and voters learners, by way of a joint configuration.
    EnterJoint {
        /// Learners that become voters.
        promote: Vec<Peer>,
        /// Voters that become learners.
        demote: Vec<Peer>,
    },
    /// The joint configuration ends; so many peers change their role with that.
    LeaveJoint(u64),
    /// The region goes into a neighbour.
    Merge {
        /// The neighbour.
        target: u64,
    },
    /// The region splits.
    Split {
        /// Where.
        policy: CheckPolicy,
        /// For the policy `USEKEY`: at these keys.
        keys: Vec<Bytes>,
    },
}

/// How a step stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It was done.
    Done,
    /// It should be asked for, again if need be.
    Ask,
    /// Nothing is to be asked at the moment; why.
    Wait(&'static str),
    /// It will never be done; why.
    Never(&'static str),
}

impl Step {
    /// How much it raises `conf_ver` at most.
    pub fn conf_changes(&self) -> u64 {
        match self {
            // A merge freezes its source with a change of the configuration's version.
            Step::AddLearner(_) | Step::Promote(_) | Step::RemovePeer(_) | Step::Merge { .. } => 1,
            Step::EnterJoint { promote, demote } => (promote.len() + demote.len()) as u64,
            Step::LeaveJoint(changes) => *changes,
            Step::TransferLeader { .. } | Step::Split { .. } => 0,
        }
    }

    /// How long it may take.
    pub fn time(&self) -> Duration {
        match self {
            Step::AddLearner(_) => LEARNER_TIME,
            Step::Split { .. } => SPLIT_TIME,
            Step::Merge { .. } => MERGE_TIME,
            _ => STEP_TIME,
        }
    }

    /// How it stands with the region as its leader has reported it. `version` is the region's when the operator began.
    ///
    /// No step is asked for that would leave the region without a healthy majority.
    pub fn progress(&self, cluster: &Cluster<'_>, region: &Region, version: u64) -> Progress {
        match self {
            Step::AddLearner(peer) => add_learner(cluster, region, peer),
            Step::Promote(peer) => promote(cluster, region, peer),
            Step::RemovePeer(peer) => remove_peer(cluster, region, peer),
            Step::TransferLeader { from, to } => transfer_leader(cluster, region, *from, to),
            Step::EnterJoint { promote, demote } => enter_joint(cluster, region, promote, demote),
            Step::LeaveJoint(_) if is_joint(region) => Progress::Ask,
            Step::LeaveJoint(_) => Progress::Done,
            Step::Merge { target } => merge(cluster, region, *target),
            Step::Split { .. } if region.version() > version => Progress::Done,
            Step::Split { .. } => Progress::Ask,
        }
    }

    /// The message that asks for it, without header; `None` if the region has no leader to be asked.
    pub fn order(&self, cluster: &Cluster<'_>, region: &Region) -> Option<RegionHeartbeatResponse> {
        let mut order = RegionHeartbeatResponse {
            region_id: region.meta.id,
            region_epoch: region.meta.region_epoch,
            target_peer: Some(region.leader?),
            ..RegionHeartbeatResponse::default()
        };
        match self {
            Step::AddLearner(peer) => order.change_peer_v2 = changes([(*peer, ConfChangeType::AddLearnerNode)]),
            Step::Promote(peer) => order.change_peer_v2 = changes([(*peer, ConfChangeType::AddNode)]),
            Step::RemovePeer(peer) => order.change_peer_v2 = changes([(*peer, ConfChangeType::RemoveNode)]),
            Step::TransferLeader { to, .. } => order.transfer_leader = transfer(to),
            Step::EnterJoint { promote, demote } => {
                let promote = promote.iter().map(|peer| (*peer, ConfChangeType::AddNode));
                let demote = demote.iter().map(|peer| (*peer, ConfChangeType::AddLearnerNode));
                order.change_peer_v2 = changes(promote.chain(demote));
            }
            Step::LeaveJoint(_) => match heir_of_a_demoted_leader(cluster, region) {
                Some(heir) => order.transfer_leader = transfer(&heir),
                None => order.change_peer_v2 = changes([]),
            },
            Step::Merge { target } => {
                let target = cluster.region(*target)?.meta.clone();
                order.merge = Some(pdpb::Merge { target: Some(target) });
            }
            Step::Split { policy, keys } => {
                order.split_region = Some(pdpb::SplitRegion { policy: (*policy).into(), keys: keys.clone() });
            }
        }
        Some(order)
    }

    /// Fills in the ids of new peers, of which `id_on` tells that on a store.
    pub fn name_new_peers(&mut self, id_on: impl Fn(u64) -> Option<u64>) {
        let name = |peer: &mut Peer| {
            if peer.id == 0 {
                peer.id = id_on(peer.store_id).unwrap_or(0);
            }
        };
        match self {
            Step::AddLearner(peer)
            | Step::Promote(peer)
            | Step::RemovePeer(peer)
            | Step::TransferLeader { to: peer, .. } => name(peer),
            Step::EnterJoint { promote, demote } => promote.iter_mut().chain(demote).for_each(name),
            Step::LeaveJoint(_) | Step::Merge { .. } | Step::Split { .. } => {}
        }
    }
}

fn changes(changes: impl IntoIterator<Item = (Peer, ConfChangeType)>) -> Option<ChangePeerV2> {
    let change = |(peer, change): (Peer, ConfChangeType)| {
        let role = if change == ConfChangeType::AddNode { PeerRole::Voter } else { PeerRole::Learner };
        let peer = if change == ConfChangeType::RemoveNode { peer } else { Peer { role: role.into(), ..peer } };
        ChangePeer { peer: Some(peer), change_type: change.into() }
    };
    Some(ChangePeerV2 { changes: changes.into_iter().map(change).collect() })
}

fn transfer(to: &Peer) -> Option<pdpb::TransferLeader> {
    Some(pdpb::TransferLeader { peer: Some(*to), peers: vec![*to] })
}

/// A leader that is to lose its vote cannot end the joint configuration itself: who shall.
fn heir_of_a_demoted_leader(cluster: &Cluster<'_>, region: &Region) -> Option<Peer> {
    let leader = region.meta.peers.iter().find(|peer| leads(region, peer))?;
    if leader.role() != PeerRole::DemotingVoter {
        return None;
    }
    voters(region).into_iter().find(|peer| cluster.is_healthy(region, peer))
}

fn known<'a>(region: &'a Region, peer: &Peer) -> Option<&'a Peer> {
    region.meta.peers.iter().find(|known| known.id == peer.id)
}

fn add_learner(cluster: &Cluster<'_>, region: &Region, peer: &Peer) -> Progress {
    let store = cluster.stores.get(&peer.store_id);
    let takes_peers = store.is_some_and(|store| store.is_connected(cluster.now) && store.is_up());
    match peer_on(region, peer.store_id) {
        Some(known) if known.id != peer.id => Progress::Never("another peer is on the store"),
        Some(_) if !is_pending(region, peer.id) => Progress::Done,
        _ if !takes_peers => Progress::Never("the store does not take peers any more"),
        Some(_) => Progress::Wait("the learner has no snapshot yet"),
        None => Progress::Ask,
    }
}

fn promote(cluster: &Cluster<'_>, region: &Region, peer: &Peer) -> Progress {
    match known(region, peer).map(Peer::role) {
        Some(PeerRole::Voter) => Progress::Done,
        Some(PeerRole::Learner) => {
            let mut after = voters(region);
            after.push(*peer);
            if cluster.is_healthy(region, peer) && cluster.has_quorum(region, &after) {
                Progress::Ask
            } else {
                Progress::Wait("too few voters would be healthy")
            }
        }
        _ => Progress::Never("the learner is gone"),
    }
}

fn remove_peer(cluster: &Cluster<'_>, region: &Region, peer: &Peer) -> Progress {
    let Some(known) = known(region, peer) else { return Progress::Done };
    if leads(region, known) {
        return Progress::Never("it leads");
    }
    if known.role() == PeerRole::Learner {
        return Progress::Ask;
    }
    let after: Vec<Peer> = voters(region).into_iter().filter(|voter| voter.id != peer.id).collect();
    if cluster.has_quorum(region, &after) { Progress::Ask } else { Progress::Wait("too few voters would be healthy") }
}

fn transfer_leader(cluster: &Cluster<'_>, region: &Region, from: u64, to: &Peer) -> Progress {
    if region.leader.is_none_or(|leader| leader.store_id != from) {
        return Progress::Done;
    }
    match known(region, to).map(Peer::role) {
        Some(PeerRole::Voter | PeerRole::IncomingVoter) if cluster.is_healthy(region, to) => Progress::Ask,
        Some(PeerRole::Voter | PeerRole::IncomingVoter) => Progress::Wait("the new leader is not healthy"),
        _ => Progress::Never("the new leader has no vote"),
    }
}

fn enter_joint(cluster: &Cluster<'_>, region: &Region, promote: &[Peer], demote: &[Peer]) -> Progress {
    let role = |peer: &Peer| known(region, peer).map(Peer::role);
    if promote.iter().chain(demote).any(|peer| role(peer).is_none()) {
        return Progress::Never("a peer is gone");
    }
    let promoted = |peer: &Peer| matches!(role(peer), Some(PeerRole::IncomingVoter | PeerRole::Voter));
    let demoted = |peer: &Peer| matches!(role(peer), Some(PeerRole::DemotingVoter | PeerRole::Learner));
    if promote.iter().all(promoted) && demote.iter().all(demoted) {
        return Progress::Done;
    }
    if promote.iter().any(promoted) || demote.iter().any(demoted) || is_joint(region) {
        return Progress::Never("the roles have changed");
    }
    if demote.iter().any(|peer| leads(region, peer)) {
        return Progress::Never("the peer to demote leads");
    }
    let before = voters(region);
    let stays = |peer: &&Peer| !demote.iter().any(|demoted| demoted.id == peer.id);
    let after: Vec<Peer> = before.iter().filter(stays).chain(promote).copied().collect();
    let ready = promote.iter().all(|peer| cluster.is_healthy(region, peer));
    if ready && cluster.has_quorum(region, &before) && cluster.has_quorum(region, &after) {
        Progress::Ask
    } else {
        Progress::Wait("too few voters would be healthy")
    }
}

fn merge(cluster: &Cluster<'_>, region: &Region, target: u64) -> Progress {
    let Some(target) = cluster.region(target) else { return Progress::Never("the target is gone") };
    if !are_neighbours(region, target) {
        return Progress::Never("the target is no neighbour any more");
    }
    if is_joint(region) || is_joint(target) || !have_the_same_stores(region, target) {
        return Progress::Never("the peers are not on the same stores any more");
    }
    if target.leader.is_none() { Progress::Wait("nobody leads the target") } else { Progress::Ask }
}

/// Whether one begins where the other ends.
pub fn are_neighbours(one: &Region, other: &Region) -> bool {
    let joins =
        |left: &Region, right: &Region| !left.meta.end_key.is_empty() && left.meta.end_key == right.meta.start_key;
    joins(one, other) || joins(other, one)
}

/// Whether two regions have their peers, of the same roles, on the same stores.
pub fn have_the_same_stores(one: &Region, other: &Region) -> bool {
    let twin = |peer: &Peer| peer_on(other, peer.store_id).is_some_and(|twin| twin.role() == peer.role());
    one.meta.peers.len() == other.meta.peers.len() && one.meta.peers.iter().all(twin)
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Step::AddLearner(peer) => write!(f, "add learner peer {} on store {}", peer.id, peer.store_id),
            Step::Promote(peer) => write!(f, "promote learner peer {} on store {} to voter", peer.id, peer.store_id),
            Step::RemovePeer(peer) => write!(f, "remove peer on store {}", peer.store_id),
            Step::TransferLeader { from, to } => {
                write!(f, "transfer leader from store {from} to store {}", to.store_id)
            }
            Step::EnterJoint { promote, demote } => {
                f.write_str("use joint consensus")?;
                for peer in promote {
                    write!(f, ", promote learner peer {} on store {} to voter", peer.id, peer.store_id)?;
                }
                demote.iter().try_for_each(|peer| {
                    write!(f, ", demote voter peer {} on store {} to learner", peer.id, peer.store_id)
                })
            }
            Step::LeaveJoint(_) => f.write_str("leave joint state"),
            Step::Merge { target } => write!(f, "merge into region {target}"),
            Step::Split { policy, .. } => write!(f, "split region with policy {}", policy.as_str_name()),
        }
    }
}
