//! Who the members are.

use crate::config::{ANNOUNCED_VERSION, PdConfig};
use crate::raft::{MemberRecord, MemberRole, Roster, bare};
use base::{ClusterId, hash};
use proto::{etcdserverpb, pdpb};
use std::collections::BTreeMap;

/// One member, as it is told to clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MemberInfo {
    pub(crate) id: u64,
    pub(crate) role: MemberRole,
    /// Empty for one that has never started.
    pub(crate) name: String,
    /// `http://host:port`, for clients and for the other members alike.
    pub(crate) url: String,
}

/// The members, this one among them unless it was removed.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    pub(crate) own_id: u64,
    own: MemberInfo,
    /// By their names.
    pub(crate) members: Vec<MemberInfo>,
    /// The same for all members, and for no other group.
    pub(crate) number: u64,
}

/// What a member knows beside the roster: itself, and what its flags say of the others.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) own_id: u64,
    pub(crate) name: String,
    pub(crate) url: String,
    /// URLs of the initial cluster by member, each with what the roster said at the start: the flags are newer than that,
    /// and older than what it says since.
    pub(crate) hints: BTreeMap<u64, (String, String)>,
}

/// Why there is no such group.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GroupError {
    /// The member does not name itself.
    #[error("the initial cluster has no member of the name {0}")]
    NotAMember(String),
    /// Names and URLs are to be told apart.
    #[error("the initial cluster names {0} twice")]
    Twice(String),
    /// Two members bear each other out in nothing that one alone does not.
    #[error("a group has 1, 3 or 5 members, not {0}")]
    Size(usize),
    /// The member was removed, and its numbers are of no use any more.
    #[error("this member was removed from its group: to join again it needs an empty data folder")]
    Removed,
    /// The folder is empty, and other members say that it was not.
    #[error(
        "this member has lost its data: its group began with it, and may rely on what it had; remove it from the group, then start it with --join"
    )]
    LostData,
    /// The folder is of another group.
    #[error("the data folder belongs to a group of {stored}, not of {given}")]
    OtherGroup {
        /// The members that the folder names.
        stored: String,
        /// Those that the configuration names.
        given: String,
    },
}

/// The group that a configuration names, before any of its members has started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Initial {
    pub(crate) own_id: u64,
    pub(crate) number: u64,
    /// Ids, names and URLs, by name.
    pub(crate) members: Vec<(u64, String, String)>,
}

impl Initial {
    /// The group that the configuration names, each id made of the names.
    ///
    /// # Errors
    /// [`GroupError`] if that makes no group.
    pub(crate) fn named(config: &PdConfig) -> Result<Initial, GroupError> {
        let mut names: Vec<&str> = config.initial_cluster.iter().map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(GroupError::Twice(pair[0].to_owned()));
        }
        if !matches!(names.len(), 1 | 3 | 5) {
            return Err(GroupError::Size(names.len()));
        }
        let number = number_of(&names);
        let id_of = |name: &str| hash::fold_bytes(number, name.as_bytes()) | 1;
        let member = |(name, url): &(String, String)| (id_of(name), name.clone(), full(url, config));
        let mut members: Vec<_> = config.initial_cluster.iter().map(member).collect();
        members.sort_unstable_by(|a, b| a.1.cmp(&b.1));
        if !names.contains(&config.name.as_str()) {
            return Err(GroupError::NotAMember(config.name.clone()));
        }
        Ok(Initial { own_id: id_of(&config.name), number, members })
    }

    /// All of them vote. Their URLs are told by each of them when there is a leader.
    pub(crate) fn roster(&self) -> Roster {
        let voter = |(id, name, _): &(u64, String, String)| MemberRecord {
            id: *id,
            role: MemberRole::Voter,
            name: name.clone(),
            url: String::new(),
        };
        Roster::new(self.number, self.members.iter().map(voter).collect(), Vec::new())
    }

    /// Refuses the folder of another group, or of another of its members.
    ///
    /// # Errors
    /// [`GroupError::OtherGroup`].
    pub(crate) fn check(&self, own_id: u64, stored: &Roster) -> Result<(), GroupError> {
        if self.number == stored.group && self.own_id == own_id {
            return Ok(());
        }
        let given = self.members.iter().map(|(_, name, _)| name.as_str()).collect::<Vec<_>>();
        Err(GroupError::OtherGroup { stored: names(stored), given: given.join(", ") })
    }
}

/// The names of a roster's members.
pub(crate) fn names(roster: &Roster) -> String {
    let mut names: Vec<&str> = roster.members().iter().map(|member| member.name.as_str()).collect();
    names.sort_unstable();
    names.join(", ")
}

/// The number of a group that began with these names.
fn number_of(sorted_names: &[&str]) -> u64 {
    sorted_names.iter().fold(0x5044_4752, |hash, name| hash::fold_bytes(hash, name.as_bytes()))
}

/// The number of a group that began with one member, which is also that member's id. It comes from the cluster's.
pub(crate) fn number_alone(cluster_id: ClusterId) -> u64 {
    hash::mix64(cluster_id.0) | 1
}

/// The number of a group whose folder is of before members could change.
pub(crate) fn number_of_old(roster: &Roster, cluster_id: ClusterId) -> u64 {
    if roster.members().len() == 1 {
        return number_alone(cluster_id);
    }
    let mut names: Vec<&str> = roster.members().iter().map(|member| member.name.as_str()).collect();
    names.sort_unstable();
    number_of(&names)
}

impl Known {
    /// The group as the roster and this member's own knowledge make it.
    pub(crate) fn group(&self, roster: &Roster) -> Group {
        let url = |record: &MemberRecord| match self.hints.get(&record.id) {
            Some((hint, then)) if *then == record.url => hint.clone(),
            _ => record.url.clone(),
        };
        let info = |record: &MemberRecord| {
            let is_own = record.id == self.own_id;
            let name = if is_own { self.name.clone() } else { record.name.clone() };
            let url = if is_own { self.url.clone() } else { url(record) };
            MemberInfo { id: record.id, role: record.role, name, url }
        };
        let mut members: Vec<MemberInfo> = roster.members().iter().map(info).collect();
        members.sort_by(|a, b| (&a.name, a.id).cmp(&(&b.name, b.id)));
        let own = members.iter().find(|member| member.id == self.own_id).cloned();
        let out = || {
            let (name, url) = (self.name.clone(), self.url.clone());
            MemberInfo { id: self.own_id, role: MemberRole::Learner, name, url }
        };
        Group { own_id: self.own_id, own: own.unwrap_or_else(out), members, number: roster.group }
    }
}

impl Group {
    pub(crate) fn own(&self) -> &MemberInfo {
        &self.own
    }

    pub(crate) fn find(&self, id: u64) -> Option<&MemberInfo> {
        self.members.iter().find(|member| member.id == id)
    }

    /// The member that a URL, with or without a scheme, belongs to.
    pub(crate) fn at(&self, url: &str) -> Option<&MemberInfo> {
        self.members.iter().find(|member| bare(&member.url) == bare(url))
    }

    pub(crate) fn others(&self) -> impl Iterator<Item = &MemberInfo> {
        self.members.iter().filter(|member| member.id != self.own_id)
    }
}

impl MemberInfo {
    /// As GetMembers tells it. There is no peer port; etcd clients want the field filled.
    pub(crate) fn to_pd(&self) -> pdpb::Member {
        pdpb::Member {
            name: self.name.clone(),
            member_id: self.id,
            peer_urls: vec![self.url.clone()],
            client_urls: self.client_urls(),
            binary_version: ANNOUNCED_VERSION.to_owned(),
            ..pdpb::Member::default()
        }
    }

    /// As etcd's MemberList tells it.
    pub(crate) fn to_etcd(&self) -> etcdserverpb::Member {
        etcdserverpb::Member {
            id: self.id,
            name: self.name.clone(),
            peer_urls: vec![self.url.clone()],
            client_urls: self.client_urls(),
            is_learner: self.role != MemberRole::Voter,
        }
    }

    /// Nobody may be sent to a member that has never started.
    pub(crate) fn client_urls(&self) -> Vec<String> {
        if self.name.is_empty() { Vec::new() } else { vec![self.url.clone()] }
    }
}

/// A URL with a scheme: its own, or that of `config`'s port.
pub(crate) fn full(url: &str, config: &PdConfig) -> String {
    if url.contains("://") { url.trim_end_matches('/').to_owned() } else { format!("{}://{url}", scheme(config)) }
}

/// Stock clients dial by the scheme, and those that do not mind it take either.
pub(crate) fn scheme(config: &PdConfig) -> &'static str {
    if config.server.tls.is_some() { "https" } else { "http" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::MemberChange;

    fn config(name: &str, members: &[&str]) -> PdConfig {
        let member = |(at, name): (usize, &&str)| ((*name).to_owned(), format!("10.0.0.{at}:2379"));
        let initial_cluster = members.iter().enumerate().map(member).collect();
        PdConfig { name: name.to_owned(), initial_cluster, ..PdConfig::default() }
    }

    fn known(initial: &Initial, name: &str, url: &str) -> Known {
        let hints = initial.members.iter().map(|(id, _, url)| (*id, (url.clone(), String::new()))).collect();
        Known { own_id: initial.own_id, name: name.into(), url: url.into(), hints }
    }

    #[test]
    fn every_member_comes_to_the_same_group() {
        let a = Initial::named(&config("a", &["a", "b", "c"])).expect("a group");
        let b = Initial::named(&config("b", &["c", "a", "b"])).expect("a group");
        assert_eq!((a.number, a.roster()), (b.number, b.roster()));
        let group = known(&a, "a", "http://x:1").group(&a.roster());
        assert_eq!((group.own().name.as_str(), group.own().url.as_str()), ("a", "http://x:1"));
        assert_ne!(a.number, Initial::named(&config("a", &["a", "b", "d"])).expect("a group").number);
        assert_eq!(group.at("10.0.0.1:2379/").map(|member| member.name.as_str()), Some("b"));
    }

    #[test]
    fn what_the_log_says_after_the_start_is_newer_than_the_flags() {
        let initial = Initial::named(&config("a", &["a", "b", "c"])).expect("a group");
        let (known, mut roster) = (known(&initial, "a", "http://x:1"), initial.roster());
        let id = initial.members[1].0;
        let url = |roster: &Roster| known.group(roster).find(id).map(|member| member.url.clone());
        assert_eq!(url(&roster).as_deref(), Some("http://10.0.0.1:2379"));
        let moved = MemberChange::Describe { id, name: "b".into(), url: "http://10.0.0.9:2379".into() };
        roster.apply(&moved).expect("a member");
        assert_eq!(url(&roster).as_deref(), Some("http://10.0.0.9:2379"));
    }

    #[test]
    fn what_is_no_group_is_refused_by_name() {
        let named = |name: &str, members: &[&str]| Initial::named(&config(name, members)).err();
        assert_eq!(named("d", &["a", "b", "c"]), Some(GroupError::NotAMember("d".into())));
        assert_eq!(named("a", &["a", "b", "a"]), Some(GroupError::Twice("a".into())));
        assert_eq!(named("a", &["a", "b"]), Some(GroupError::Size(2)));
        let group = Initial::named(&config("a", &["a", "b", "c"])).expect("a group");
        let other = Initial::named(&config("a", &["a", "b", "d"])).expect("a group");
        assert_eq!(group.check(group.own_id, &group.roster()), Ok(()));
        assert!(group.check(group.members[1].0, &group.roster()).is_err());
        assert!(group.check(group.own_id, &other.roster()).is_err());
    }

    #[test]
    fn folders_of_before_members_could_change_keep_their_group() {
        let initial = Initial::named(&config("a", &["a", "b", "c"])).expect("a group");
        let mut roster = initial.roster();
        roster.group = 0;
        assert_eq!(number_of_old(&roster, ClusterId(5)), initial.number);
        let alone = MemberRecord { id: 3, role: MemberRole::Voter, name: "pd".into(), url: String::new() };
        let roster = Roster::new(0, vec![alone], Vec::new());
        assert_eq!(number_of_old(&roster, ClusterId(5)), number_alone(ClusterId(5)));
    }
}
