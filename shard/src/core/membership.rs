//! Changes of a region's members: proposed by its leader, and applied by every peer.

use base::{PeerId, RegionId};
use proto::{metapb, raft_cmdpb};
use raftstore::command::{self, Command};
use raftstore::epoch::{CommandKind, check_epoch};
use raftstore::eraftpb::{Entry, EntryType};
use raftstore::membership::{change_peers, to_conf_change};

use super::apply::epoch_not_match;
use super::error::RegionError;
use super::meta::PeerMeta;
use super::peer::{HEARD_LATELY, PeerState};
use super::shard::{Body, Shard, header};
use crate::engine::{Engine, WriteBatch};

/// The changes that an admin command asks for; `None` if it is about something else.
pub(crate) fn changes_of(request: &raft_cmdpb::AdminRequest) -> Option<Vec<raft_cmdpb::ChangePeerRequest>> {
    match request.cmd_type() {
        raft_cmdpb::AdminCmdType::ChangePeer => Some(request.change_peer.iter().cloned().collect()),
        raft_cmdpb::AdminCmdType::ChangePeerV2 => {
            Some(request.change_peer_v2.as_ref().map(|change| change.changes.clone()).unwrap_or_default())
        }
        _ => None,
    }
}

/// Whether `entry` removes `meta`'s own peer. Such an entry is not applied: the peer ends instead.
///
/// # Panics
/// As [`super::apply::apply_entry`].
pub(crate) fn removes_own(meta: &PeerMeta, entry: &Entry) -> bool {
    if entry.entry_type == EntryType::EntryNormal as i32 {
        return false;
    }
    let command = Command::decode(entry).expect("a committed entry is a command that a peer proposed");
    let Command::Admin(admin) = command else { return false };
    let kind = CommandKind::Admin(admin.request.cmd_type());
    let Some(changes) = changes_of(&admin.request) else { return false };
    check_epoch(&admin.header.epoch, &meta.region, kind).is_ok()
        && change_peers(&meta.region, &changes)
            .is_ok_and(|region| !region.peers.iter().any(|peer| peer.id == meta.peer.id))
}

/// `meta` takes its region's new members.
pub(crate) fn apply_members(meta: &mut PeerMeta, region: metapb::Region, batch: &mut impl WriteBatch) {
    let own = region.peers.iter().find(|peer| peer.id == meta.peer.id);
    meta.peer = *own.expect("an entry that removes the peer itself is not applied");
    meta.region = std::sync::Arc::new(region);
    meta.put_all(batch);
}

/// Whether a peer has a vote in `next`, be it only until a joint configuration is left.
fn stays_voter(next: &metapb::Region, peer: u64) -> bool {
    next.peers.iter().any(|member| member.id == peer && member.role() != metapb::PeerRole::Learner)
}

/// Whether a majority of each of the voters of `next` has the log, as the leader `peer` knows, and was heard of lately: who
/// is away may come back without its log.
fn has_quorum(peer: &PeerState, next: &metapb::Region) -> bool {
    let (raft, now) = (&peer.raft, executor::now());
    let followers = raft.followers();
    let has_log = |id: &u64| {
        let keeps_up = |(peer, matched): &(PeerId, u64)| peer.0 == *id && *matched > 0 && *matched >= raft.truncated();
        *id == raft.id().0 || (followers.iter().any(keeps_up) && peer.contacts.heard_within(*id, now, HEARD_LATELY))
    };
    let members = raftstore::conf_state(next);
    let is_quorum =
        |voters: &[u64]| voters.is_empty() || 2 * voters.iter().filter(|id| has_log(id)).count() > voters.len();
    is_quorum(&members.voters) && is_quorum(&members.voters_outgoing)
}

impl<E: Engine> Shard<E> {
    /// Proposes `changes` to the members of a region that leads here: one is a simple change, several go through a joint
    /// configuration, none leaves it. Answers with the region as it is then.
    ///
    /// # Errors
    /// [`RegionError::EpochNotMatch`] if the members are others than those of `epoch`, [`RegionError::StaleCommand`]
    /// if they do not allow the change, or another change is under way; else what a write can meet.
    pub async fn change_peers(
        &self,
        region: RegionId,
        epoch: &metapb::RegionEpoch,
        changes: Vec<raft_cmdpb::ChangePeerRequest>,
    ) -> Result<metapb::Region, RegionError> {
        let (change, next) = {
            let peers = self.peers.borrow();
            let peer = peers.get(&region).ok_or(RegionError::RegionNotFound(region))?;
            if !peer.leads() || !peer.readable {
                return Err(RegionError::NotLeader { region, leader: peer.leader_peer() });
            }
            self.check_writable(peer)?;
            if peer.meta.conf_ver() != epoch.conf_ver {
                return Err(epoch_not_match(&peer.meta, vec![(*peer.meta.region).clone()]));
            }
            let next = change_peers(&peer.meta.region, &changes).map_err(|error| {
                tracing::info!(%region, %error, "a change of members is refused");
                RegionError::StaleCommand
            })?;
            if !stays_voter(&next, peer.meta.peer.id) || !has_quorum(peer, &next) {
                // A leader hands over first, and a voter must have the log: without it, it can neither acknowledge nor
                // vote, and if its vote were needed, nobody could ever send it a snapshot.
                tracing::info!(%region, "a change of members would leave no leader, or no quorum with a log that answers");
                return Err(RegionError::StaleCommand);
            }
            let admin = raft_cmdpb::AdminRequest {
                cmd_type: raft_cmdpb::AdminCmdType::ChangePeerV2 as i32,
                change_peer_v2: Some(raft_cmdpb::ChangePeerV2Request { changes: changes.clone() }),
                ..Default::default()
            };
            (to_conf_change(&changes, command::encode_admin(&header(peer), admin)), next)
        };
        let done = self.propose(region, Body::ConfChange(change)).await.map_err(|_| RegionError::Undetermined)??;
        tracing::info!(%region, index = done.index, peers = ?next.peers.iter().map(|peer| (PeerId(peer.id), peer.store_id)).collect::<Vec<_>>(), "members changed");
        Ok(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::metapb::PeerRole;

    #[test]
    fn a_leader_may_be_demoted_only_as_long_as_the_joint_configuration_lasts() {
        let with = |role: PeerRole| metapb::Region {
            peers: vec![metapb::Peer { id: 7, role: role as i32, ..Default::default() }],
            ..Default::default()
        };
        for role in [PeerRole::Voter, PeerRole::IncomingVoter, PeerRole::DemotingVoter] {
            assert!(stays_voter(&with(role), 7), "{role:?}");
            assert!(!stays_voter(&with(role), 8), "it is not a member");
        }
        assert!(!stays_voter(&with(PeerRole::Learner), 7));
    }
}
