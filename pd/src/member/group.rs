//! Who the members are.

use crate::config::{ANNOUNCED_VERSION, PdConfig};
use base::{ClusterId, hash};
use proto::{etcdserverpb, pdpb};

/// One member, as it is told to clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MemberInfo {
    pub(crate) id: u64,
    pub(crate) name: String,
    /// `http://host:port`, for clients and for the other members alike.
    pub(crate) url: String,
}

/// The members, this one among them.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    pub(crate) own_id: u64,
    pub(crate) members: Vec<MemberInfo>,
    /// The same for all members, and for no other group.
    pub(crate) number: u64,
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
    /// The folder is of another group.
    #[error("the data folder belongs to a group of {stored}, not of {given}")]
    OtherGroup {
        /// The members that the folder names.
        stored: String,
        /// Those that the configuration names.
        given: String,
    },
}

impl Group {
    /// The group of a member that is alone. Its id comes from the cluster's.
    pub(crate) fn alone(config: &PdConfig, cluster_id: ClusterId, url: String) -> Group {
        let id = hash::mix64(cluster_id.0) | 1;
        let members = vec![MemberInfo { id, name: config.name.clone(), url }];
        Group { own_id: id, members, number: id }
    }

    /// The group that the configuration names, each id made of the names. `url` is this member's own.
    ///
    /// # Errors
    /// [`GroupError`] if that makes no group.
    pub(crate) fn named(config: &PdConfig, url: &str) -> Result<Group, GroupError> {
        let mut names: Vec<&str> = config.initial_cluster.iter().map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(GroupError::Twice(pair[0].to_owned()));
        }
        if !matches!(names.len(), 1 | 3 | 5) {
            return Err(GroupError::Size(names.len()));
        }
        let number = names.iter().fold(0x5044_4752, |hash, name| hash::fold_bytes(hash, name.as_bytes()));
        let member = |(name, told): &(String, String)| MemberInfo {
            id: hash::fold_bytes(number, name.as_bytes()) | 1,
            name: name.clone(),
            url: if *name == config.name { url.to_owned() } else { full(told, config) },
        };
        let mut members: Vec<MemberInfo> = config.initial_cluster.iter().map(member).collect();
        members.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        let own = members.iter().find(|member| member.name == config.name);
        let own_id = own.ok_or_else(|| GroupError::NotAMember(config.name.clone()))?.id;
        Ok(Group { own_id, members, number })
    }

    /// Whether a folder that names `stored` is this member's.
    ///
    /// # Errors
    /// [`GroupError::OtherGroup`] if not.
    pub(crate) fn check(&self, own_id: u64, stored: &[(u64, String)]) -> Result<(), GroupError> {
        let list = |names: Vec<&str>| names.join(", ");
        let ids = |mut ids: Vec<u64>| {
            ids.sort_unstable();
            ids
        };
        let same = ids(stored.iter().map(|(id, _)| *id).collect()) == ids(self.members.iter().map(|m| m.id).collect());
        if same && own_id == self.own_id {
            return Ok(());
        }
        Err(GroupError::OtherGroup {
            stored: list(stored.iter().map(|(_, name)| name.as_str()).collect()),
            given: list(self.members.iter().map(|member| member.name.as_str()).collect()),
        })
    }

    pub(crate) fn own(&self) -> &MemberInfo {
        self.find(self.own_id).expect("a member is in its group")
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
            client_urls: vec![self.url.clone()],
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
            client_urls: vec![self.url.clone()],
            is_learner: false,
        }
    }
}

fn bare(url: &str) -> &str {
    url.split_once("://").map_or(url, |(_, rest)| rest).trim_end_matches('/')
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

    fn config(name: &str, members: &[&str]) -> PdConfig {
        let member = |(at, name): (usize, &&str)| ((*name).to_owned(), format!("10.0.0.{at}:2379"));
        let initial_cluster = members.iter().enumerate().map(member).collect();
        PdConfig { name: name.to_owned(), initial_cluster, ..PdConfig::default() }
    }

    #[test]
    fn every_member_comes_to_the_same_group() {
        let a = Group::named(&config("a", &["a", "b", "c"]), "http://x:1").expect("a group");
        let b = Group::named(&config("b", &["c", "a", "b"]), "http://y:1").expect("a group");
        assert_eq!(a.number, b.number);
        let ids = |group: &Group| group.members.iter().map(|member| member.id).collect::<Vec<_>>();
        assert_eq!(ids(&a), ids(&b));
        assert_eq!((a.own().name.as_str(), a.own().url.as_str()), ("a", "http://x:1"));
        assert_ne!(a.number, Group::named(&config("a", &["a", "b", "d"]), "http://x:1").expect("a group").number);
        assert_eq!(a.at("10.0.0.1:2379/").map(|member| member.name.as_str()), Some("b"));
    }

    #[test]
    fn what_is_no_group_is_refused_by_name() {
        let named = |name: &str, members: &[&str]| Group::named(&config(name, members), "http://x:1").err();
        assert_eq!(named("d", &["a", "b", "c"]), Some(GroupError::NotAMember("d".into())));
        assert_eq!(named("a", &["a", "b", "a"]), Some(GroupError::Twice("a".into())));
        assert_eq!(named("a", &["a", "b"]), Some(GroupError::Size(2)));
        let group = Group::named(&config("a", &["a", "b", "c"]), "http://x:1").expect("a group");
        let stored: Vec<_> = group.members.iter().map(|member| (member.id, member.name.clone())).collect();
        assert_eq!(group.check(group.own_id, &stored), Ok(()));
        assert!(group.check(stored[1].0, &stored).is_err() && group.check(group.own_id, &stored[..1]).is_err());
    }
}
