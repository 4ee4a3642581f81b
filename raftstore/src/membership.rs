//! What a change of membership makes of a region.
//!
//! ```text
//!             simple                          joint                    leave
//!   (none) ──────────> Learner       (none) ────────> IncomingVoter ──────────> Voter
//!   (none) ──────────> Voter        Learner ────────> IncomingVoter ──────────> Voter
//!  Learner ──────────> Voter          Voter ────────> DemotingVoter ──────────> Learner
//!    Voter ──────────> Learner       (none) ────────> Learner
//!    any   ──────────> (none)       Learner ────────> (none)
//! ```

use crate::epoch::epoch_of;
use crate::eraftpb::{self, ConfChangeTransition, ConfChangeV2};
use bytes::Bytes;
use proto::eraftpb::ConfChangeType;
use proto::metapb::{Peer, PeerRole, Region, RegionEpoch};
use proto::raft_cmdpb::ChangePeerRequest;
use std::collections::BTreeSet;

/// A membership change that is not carried out. Every replica comes to the same answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// The region is in a joint configuration, which must be left first.
    #[error("region {0} is in a joint configuration")]
    Joint(u64),
    /// An empty change, but the region is not in a joint configuration.
    #[error("region {0} is not in a joint configuration")]
    NotJoint(u64),
    /// The peer is that already, or cannot become it in one step.
    #[error("peer {peer} with role {role:?} cannot take change {change:?}")]
    Role {
        /// The peer.
        peer: u64,
        /// What it is.
        role: PeerRole,
        /// What was asked.
        change: ConfChangeType,
    },
    /// A peer that is to leave is not there.
    #[error("peer {0} is not a member")]
    NotAMember(u64),
    /// The store already has another peer of the region, or the peer is named with another store.
    #[error("peer {peer} does not go with store {store}")]
    Store {
        /// The peer.
        peer: u64,
        /// The store.
        store: u64,
    },
    /// A peer is named twice, without an id, or not at all.
    #[error("bad peer id {0}")]
    BadPeer(u64),
    /// No voter would be left.
    #[error("region {0} would have no voter")]
    NoVoter(u64),
}

/// The region after `changes`: one is simple, several enter a joint configuration, none leaves it.
///
/// `conf_ver` rises by the number of peers whose role changes.
///
/// Source: TiKV 8.5, `exec_change_peer_v2`.
///
/// # Errors
/// [`ChangeError`]; the region stays as it is.
pub fn change_peers(region: &Region, changes: &[ChangePeerRequest]) -> Result<Region, ChangeError> {
    let joint = region.peers.iter().any(|peer| is_joint(peer.role()));
    let mut next = region.clone();
    let steps = match (joint, changes) {
        (true, []) => leave_joint(&mut next),
        (false, []) => return Err(ChangeError::NotJoint(region.id)),
        (true, _) => return Err(ChangeError::Joint(region.id)),
        (false, _) => {
            enter(&mut next, changes)?;
            changes.len() as u64
        }
    };
    let voters = |peer: &Peer| matches!(peer.role(), PeerRole::Voter | PeerRole::IncomingVoter);
    if !next.peers.iter().any(voters) {
        return Err(ChangeError::NoVoter(region.id));
    }
    let epoch = epoch_of(region);
    next.region_epoch = Some(RegionEpoch { conf_ver: epoch.conf_ver + steps, version: epoch.version });
    Ok(next)
}

/// What raft does for `changes`; `command` is the encoded request, which rides in the entry.
pub fn to_conf_change(changes: &[ChangePeerRequest], command: Bytes) -> ConfChangeV2 {
    let single = |change: &ChangePeerRequest| {
        let kind = match change.change_type() {
            ConfChangeType::AddNode => eraftpb::ConfChangeType::AddNode,
            ConfChangeType::RemoveNode => eraftpb::ConfChangeType::RemoveNode,
            ConfChangeType::AddLearnerNode => eraftpb::ConfChangeType::AddLearnerNode,
        };
        raft_proto::new_conf_change_single(change.peer.as_ref().map_or(0, |peer| peer.id), kind)
    };
    let transition = if changes.len() > 1 { ConfChangeTransition::Explicit } else { ConfChangeTransition::Auto };
    ConfChangeV2 { transition: transition as i32, changes: changes.iter().map(single).collect(), context: command }
}

fn is_joint(role: PeerRole) -> bool {
    matches!(role, PeerRole::IncomingVoter | PeerRole::DemotingVoter)
}

fn leave_joint(region: &mut Region) -> u64 {
    let mut steps = 0;
    for peer in &mut region.peers {
        let role = match peer.role() {
            PeerRole::IncomingVoter => PeerRole::Voter,
            PeerRole::DemotingVoter => PeerRole::Learner,
            PeerRole::Voter | PeerRole::Learner => continue,
        };
        peer.set_role(role);
        steps += 1;
    }
    steps
}

fn enter(region: &mut Region, changes: &[ChangePeerRequest]) -> Result<(), ChangeError> {
    let joint = changes.len() > 1;
    let mut seen = BTreeSet::new();
    for change in changes {
        let peer = change.peer.as_ref().ok_or(ChangeError::BadPeer(0))?;
        if peer.id == 0 || !seen.insert(peer.id) {
            return Err(ChangeError::BadPeer(peer.id));
        }
        apply_one(region, change.change_type(), peer, joint)?;
    }
    Ok(())
}

fn apply_one(region: &mut Region, change: ConfChangeType, peer: &Peer, joint: bool) -> Result<(), ChangeError> {
    let at = region.peers.iter().position(|member| member.id == peer.id);
    let store_taken = region.peers.iter().any(|member| (member.store_id == peer.store_id) != (member.id == peer.id));
    if store_taken && change != ConfChangeType::RemoveNode {
        return Err(ChangeError::Store { peer: peer.id, store: peer.store_id });
    }
    let role = at.map(|at| region.peers[at].role());
    let next = next_role(role, change, joint).ok_or(match role {
        None => ChangeError::NotAMember(peer.id),
        Some(role) => ChangeError::Role { peer: peer.id, role, change },
    })?;
    match (at, next) {
        (Some(at), None) => drop(region.peers.remove(at)),
        (Some(at), Some(role)) => region.peers[at].set_role(role),
        (None, Some(role)) => {
            let mut peer = *peer;
            peer.set_role(role);
            region.peers.push(peer);
        }
        (None, None) => unreachable!("next_role refuses to remove what is not there"),
    }
    Ok(())
}

/// What a peer becomes, where `None` inside means that it leaves; `None` outside if it cannot.
fn next_role(role: Option<PeerRole>, change: ConfChangeType, joint: bool) -> Option<Option<PeerRole>> {
    use ConfChangeType::*;
    use PeerRole::*;
    match (role, change, joint) {
        (None | Some(Learner), AddNode, false) => Some(Some(Voter)),
        (None | Some(Learner), AddNode, true) => Some(Some(IncomingVoter)),
        (None, AddLearnerNode, _) => Some(Some(Learner)),
        (Some(Voter), AddLearnerNode, false) => Some(Some(Learner)),
        (Some(Voter), AddLearnerNode, true) => Some(Some(DemotingVoter)),
        (Some(Learner), RemoveNode, _) | (Some(Voter), RemoveNode, false) => Some(None),
        _ => None,
    }
}
