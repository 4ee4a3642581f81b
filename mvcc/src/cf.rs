//! The four column families that every shard has.

/// A column family of the engine, with TiKV's names and TiKV's division of labour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cf {
    /// Raw values, and transactional values too long to stand in a write record.
    Default,
    /// Percolator locks: one per locked key.
    Lock,
    /// Percolator write records: commits and rollbacks, newest first within a key.
    Write,
    /// The node's own records of each peer (apply state, region state). Never data of a client.
    Raft,
}

impl Cf {
    /// All families, in the order in which databases open them and snapshots carry them.
    pub const ALL: [Cf; 4] = [Cf::Default, Cf::Lock, Cf::Write, Cf::Raft];
    /// The families that hold data of clients, in the order of a raft snapshot's files.
    pub const DATA: [Cf; 3] = [Cf::Default, Cf::Lock, Cf::Write];

    /// The family's name on disk and on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Cf::Default => "default",
            Cf::Lock => "lock",
            Cf::Write => "write",
            Cf::Raft => "raft",
        }
    }

    /// The family with this name; empty means `default`, as in `raft_cmdpb.PutRequest.cf`.
    pub fn from_name(name: &str) -> Option<Cf> {
        match name {
            "" | "default" => Some(Cf::Default),
            "lock" => Some(Cf::Lock),
            "write" => Some(Cf::Write),
            "raft" => Some(Cf::Raft),
            _ => None,
        }
    }

    /// A number below 4, for tables with one row per family.
    pub const fn index(self) -> usize {
        self as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back_to_their_family() {
        for (i, cf) in Cf::ALL.into_iter().enumerate() {
            assert_eq!(Cf::from_name(cf.name()), Some(cf));
            assert_eq!(cf.index(), i);
        }
        assert_eq!(Cf::from_name(""), Some(Cf::Default));
        assert_eq!(Cf::from_name("Default"), None);
    }
}
