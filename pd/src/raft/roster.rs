//! Who the members are, as the log says it: every member that has applied the same entries has the same roster.
//!
//! ```text
//!   (none) ──add──▶ learner ──promote──▶ voter
//!                      │                   │
//!                      └──────remove───────┴──▶ removed: its number is never used again
//! ```
//!
//! Only one change at a time, and nobody votes before it has the log: a member that is added empty, or never starts, costs
//! the others nothing.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use proto::metapb::{self, PeerRole};
use proto::raft_cmdpb::ChangePeerRequest;
use raftstore::eraftpb::ConfChangeV2;

/// Most members, learners included. More would only make writes slower.
pub const MEMBERS_MAX: usize = 9;
/// Removed members that are remembered. Older ones are told nothing, and get nowhere by themselves.
const REMOVED_MAX: usize = 1024;

/// What a member is in its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberRole {
    /// It votes.
    Voter,
    /// It has the log, and does not vote.
    Learner,
    /// A learner that is to vote as soon as it has caught up.
    Joining,
}

/// One member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberRecord {
    /// Its number, never used for another one.
    pub id: u64,
    /// What it is.
    pub role: MemberRole,
    /// Its name; empty while it has never started.
    pub name: String,
    /// `http(s)://host:port`; empty while it has not said so itself.
    pub url: String,
}

/// The members of a group, and who was one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roster {
    /// The same for all members of the group over its whole life, and for no other group.
    pub group: u64,
    members: Vec<MemberRecord>,
    removed: Vec<u64>,
}

/// A change of the roster, as an entry of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemberChange {
    /// A new member, which does not vote yet.
    Add {
        /// Its number.
        id: u64,
        /// Its name; may be empty.
        name: String,
        /// Its URL.
        url: String,
        /// It is to vote when it has caught up.
        joining: bool,
    },
    /// A learner votes from now on.
    Promote {
        /// Its number.
        id: u64,
    },
    /// A member is none any more.
    Remove {
        /// Its number.
        id: u64,
    },
    /// A member's name and URL. Raft knows nothing of it.
    Describe {
        /// Its number.
        id: u64,
        /// Its name.
        name: String,
        /// Its URL.
        url: String,
    },
}

/// A change that is not carried out. Every member comes to the same answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// There is no such member.
    #[error("member not found")]
    NotAMember,
    /// The number was given to a member before.
    #[error("member {0} is, or was, in the group")]
    Known(u64),
    /// Another member has the name.
    #[error("there is a member of the name {0}")]
    Name(String),
    /// Another member has the URL.
    #[error("Peer URLs already exists")]
    Url,
    /// Only learners become voters.
    #[error("can only promote a learner member")]
    NotALearner,
    /// There are as many as there may be.
    #[error("too many learner members in cluster")]
    TooMany,
    /// Nobody would be left to vote.
    #[error("the last voter cannot be removed")]
    LastVoter,
}

/// A URL without what does not tell two members apart.
pub(crate) fn bare(url: &str) -> &str {
    url.split_once("://").map_or(url, |(_, rest)| rest).trim_end_matches('/')
}

impl Roster {
    /// A roster of these members. Their order does not matter.
    pub fn new(group: u64, mut members: Vec<MemberRecord>, removed: Vec<u64>) -> Roster {
        members.sort_unstable_by_key(|member| member.id);
        Roster { group, members, removed }
    }

    /// The members, by their numbers.
    pub fn members(&self) -> &[MemberRecord] {
        &self.members
    }

    /// Who was removed, in that order.
    pub fn removed(&self) -> &[u64] {
        &self.removed
    }

    /// A member's record.
    pub fn find(&self, id: u64) -> Option<&MemberRecord> {
        self.members.iter().find(|member| member.id == id)
    }

    /// Whether `id` was a member.
    pub fn was_removed(&self, id: u64) -> bool {
        self.removed.contains(&id)
    }

    /// The members that vote.
    pub fn voters(&self) -> impl Iterator<Item = u64> {
        self.members.iter().filter(|member| member.role == MemberRole::Voter).map(|member| member.id)
    }

    /// Whether `id` is the only one that votes.
    pub fn is_sole_voter(&self, id: u64) -> bool {
        self.voters().eq([id])
    }

    /// What raft is told: a region whose peers are the members.
    pub(super) fn region(&self) -> metapb::Region {
        let peers = self.members.iter().map(|member| peer(member.id, member.role)).collect();
        metapb::Region { peers, ..metapb::Region::default() }
    }

    /// Carries a change out.
    ///
    /// # Errors
    /// [`ChangeError`]; the roster stays as it is.
    pub fn apply(&mut self, change: &MemberChange) -> Result<(), ChangeError> {
        match change {
            MemberChange::Add { id, name, url, joining } => {
                if *id == 0 || self.find(*id).is_some() || self.was_removed(*id) {
                    return Err(ChangeError::Known(*id));
                }
                if self.members.len() >= MEMBERS_MAX {
                    return Err(ChangeError::TooMany);
                }
                self.check_free(*id, name, url)?;
                let role = if *joining { MemberRole::Joining } else { MemberRole::Learner };
                self.members.push(MemberRecord { id: *id, role, name: name.clone(), url: url.clone() });
                self.members.sort_unstable_by_key(|member| member.id);
            }
            MemberChange::Promote { id } => {
                let member = self.member(*id)?;
                if member.role == MemberRole::Voter {
                    return Err(ChangeError::NotALearner);
                }
                member.role = MemberRole::Voter;
            }
            MemberChange::Remove { id } => {
                self.member(*id)?;
                if self.is_sole_voter(*id) {
                    return Err(ChangeError::LastVoter);
                }
                self.members.retain(|member| member.id != *id);
                self.note_removed(*id);
            }
            MemberChange::Describe { id, name, url } => {
                self.member(*id)?;
                self.check_free(*id, name, url)?;
                let member = self.member(*id)?;
                (member.name, member.url) = (name.clone(), url.clone());
            }
        }
        Ok(())
    }

    fn note_removed(&mut self, id: u64) {
        if self.removed.len() >= REMOVED_MAX {
            self.removed.remove(0);
        }
        self.removed.push(id);
    }

    fn member(&mut self, id: u64) -> Result<&mut MemberRecord, ChangeError> {
        self.members.iter_mut().find(|member| member.id == id).ok_or(ChangeError::NotAMember)
    }

    fn check_free(&self, id: u64, name: &str, url: &str) -> Result<(), ChangeError> {
        let mut others = self.members.iter().filter(|member| member.id != id);
        if !name.is_empty() && others.clone().any(|member| member.name == name) {
            return Err(ChangeError::Name(name.to_owned()));
        }
        if !url.is_empty() && others.any(|member| bare(&member.url) == bare(url)) {
            return Err(ChangeError::Url);
        }
        Ok(())
    }
}

fn peer(id: u64, role: MemberRole) -> metapb::Peer {
    let role = if role == MemberRole::Voter { PeerRole::Voter } else { PeerRole::Learner };
    let mut peer = metapb::Peer { id, store_id: id, ..metapb::Peer::default() };
    peer.set_role(role);
    peer
}

impl MemberChange {
    /// What raft has to do for it, if anything; the change rides in it.
    pub(super) fn to_conf_change(&self) -> Option<ConfChangeV2> {
        use proto::eraftpb::ConfChangeType;
        let (kind, id, role) = match self {
            MemberChange::Add { id, .. } => (ConfChangeType::AddLearnerNode, *id, MemberRole::Learner),
            MemberChange::Promote { id } => (ConfChangeType::AddNode, *id, MemberRole::Voter),
            MemberChange::Remove { id } => (ConfChangeType::RemoveNode, *id, MemberRole::Voter),
            MemberChange::Describe { .. } => return None,
        };
        let mut request = ChangePeerRequest { peer: Some(peer(id, role)), ..ChangePeerRequest::default() };
        request.set_change_type(kind);
        Some(raftstore::membership::to_conf_change(&[request], self.encode()))
    }

    /// `tag:u8 id:u64`, then by tag 1 (add) `joining:u8 name url`, 2 (promote) and 3 (remove) nothing, 4 (describe)
    /// `name url`. Integers are little-endian, texts have a 32-bit length in front.
    pub(super) fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        let mut head = |tag: u8, id: u64| {
            out.put_u8(tag);
            out.put_u64_le(id);
        };
        match self {
            MemberChange::Add { id, name, url, joining } => {
                head(1, *id);
                out.put_u8(u8::from(*joining));
                put_text(&mut out, name);
                put_text(&mut out, url);
            }
            MemberChange::Promote { id } => head(2, *id),
            MemberChange::Remove { id } => head(3, *id),
            MemberChange::Describe { id, name, url } => {
                head(4, *id);
                put_text(&mut out, name);
                put_text(&mut out, url);
            }
        }
        out.freeze()
    }

    /// Reads what [`MemberChange::encode`] writes; `None` for anything else.
    pub(super) fn decode(bytes: &Bytes) -> Option<MemberChange> {
        let mut rest = bytes.clone();
        let tag = rest.try_get_u8().ok()?;
        let id = rest.try_get_u64_le().ok()?;
        let change = match tag {
            1 => {
                let joining = rest.try_get_u8().ok()? != 0;
                MemberChange::Add { id, joining, name: take_text(&mut rest)?, url: take_text(&mut rest)? }
            }
            2 => MemberChange::Promote { id },
            3 => MemberChange::Remove { id },
            4 => MemberChange::Describe { id, name: take_text(&mut rest)?, url: take_text(&mut rest)? },
            _ => return None,
        };
        (!rest.has_remaining()).then_some(change)
    }
}

impl MemberRecord {
    /// `id:u64 role:u8 name url`, as in [`MemberChange::encode`]; roles are 0 voter, 1 learner, 2 joining.
    pub(super) fn encode(&self, out: &mut BytesMut) {
        out.put_u64_le(self.id);
        out.put_u8(self.role.to_number());
        put_text(out, &self.name);
        put_text(out, &self.url);
    }

    pub(super) fn decode(rest: &mut Bytes) -> Option<MemberRecord> {
        let (id, role) = (rest.try_get_u64_le().ok()?, rest.try_get_u8().ok()?);
        let role = MemberRole::from_number(role)?;
        Some(MemberRecord { id, role, name: take_text(rest)?, url: take_text(rest)? })
    }
}

impl MemberRole {
    /// As it is written.
    pub fn to_number(self) -> u8 {
        match self {
            MemberRole::Voter => 0,
            MemberRole::Learner => 1,
            MemberRole::Joining => 2,
        }
    }

    /// As it is read.
    pub fn from_number(number: u8) -> Option<MemberRole> {
        Some(match number {
            0 => MemberRole::Voter,
            1 => MemberRole::Learner,
            2 => MemberRole::Joining,
            _ => return None,
        })
    }
}

fn put_text(out: &mut BytesMut, text: &str) {
    out.put_u32_le(u32::try_from(text.len()).expect("names are short"));
    out.extend_from_slice(text.as_bytes());
}

fn take_text(rest: &mut Bytes) -> Option<String> {
    let len = rest.try_get_u32_le().ok()? as usize;
    let bytes = (rest.len() >= len).then(|| rest.split_to(len))?;
    String::from_utf8(bytes.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roster() -> Roster {
        let member = |id: u64| MemberRecord {
            id,
            role: MemberRole::Voter,
            name: format!("m{id}"),
            url: format!("http://10.0.0.{id}:1"),
        };
        Roster::new(7, vec![member(2), member(1)], Vec::new())
    }

    fn add(id: u64, name: &str, url: &str) -> MemberChange {
        MemberChange::Add { id, name: name.into(), url: url.into(), joining: true }
    }

    #[test]
    fn a_member_comes_as_a_learner_and_its_number_is_never_used_again() {
        let mut roster = roster();
        roster.apply(&add(3, "m3", "http://10.0.0.3:1")).expect("new");
        assert_eq!(roster.voters().collect::<Vec<_>>(), [1, 2]);
        roster.apply(&MemberChange::Promote { id: 3 }).expect("a learner");
        assert_eq!(roster.voters().count(), 3);
        roster.apply(&MemberChange::Remove { id: 3 }).expect("a member");
        assert!(roster.was_removed(3) && roster.find(3).is_none());
        assert_eq!(roster.apply(&add(3, "", "")), Err(ChangeError::Known(3)));
    }

    #[test]
    fn what_makes_no_sense_changes_nothing() {
        let before = roster();
        for (change, error) in [
            (add(1, "", ""), ChangeError::Known(1)),
            (add(3, "m1", ""), ChangeError::Name("m1".into())),
            (add(3, "", "https://10.0.0.1:1/"), ChangeError::Url),
            (MemberChange::Promote { id: 1 }, ChangeError::NotALearner),
            (MemberChange::Promote { id: 9 }, ChangeError::NotAMember),
            (MemberChange::Remove { id: 9 }, ChangeError::NotAMember),
            (MemberChange::Describe { id: 1, name: "m2".into(), url: String::new() }, ChangeError::Name("m2".into())),
        ] {
            let mut roster = before.clone();
            assert_eq!(roster.apply(&change), Err(error), "{change:?}");
            assert_eq!(roster, before);
        }
        let mut alone = before;
        alone.apply(&MemberChange::Remove { id: 2 }).expect("a member");
        assert_eq!(alone.apply(&MemberChange::Remove { id: 1 }), Err(ChangeError::LastVoter));
    }

    #[test]
    fn changes_come_back_as_they_were_written() {
        let describe = MemberChange::Describe { id: 4, name: "n".into(), url: "u".into() };
        for change in [add(3, "a", "b"), MemberChange::Promote { id: 1 }, MemberChange::Remove { id: 2 }, describe] {
            let bytes = change.encode();
            assert_eq!(MemberChange::decode(&bytes), Some(change));
            (0..bytes.len()).for_each(|len| assert_eq!(MemberChange::decode(&bytes.slice(..len)), None));
        }
    }
}
