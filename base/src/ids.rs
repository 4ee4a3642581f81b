//! Identifiers. Each is a type of its own, so that two of them cannot be swapped.

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub $inner);

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{}", self.0)
            }
        }

        impl From<$inner> for $name {
            fn from(id: $inner) -> Self {
                Self(id)
            }
        }
    };
}

id!(
    /// A cluster; never 0 once it is known (`pdpb.RequestHeader.cluster_id`).
    ClusterId(u64)
);
id!(
    /// A node in the protocol's sense (`metapb.Store.id`); 0 is invalid.
    StoreId(u64)
);
id!(
    /// A key range with its raft group (`metapb.Region.id`); 0 is invalid.
    RegionId(u64)
);
id!(
    /// A replica of a region (`metapb.Peer.id`); never reused, 0 is invalid.
    PeerId(u64)
);
id!(
    /// A unit of storage of one node: one RocksDB and one raft log. Local to its node, counted from 0.
    ShardId(u32)
);
id!(
    /// A pinned executor thread of one node, counted from 0.
    CoreId(u16)
);
