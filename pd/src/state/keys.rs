//! Where PD keeps what in etcd.

use base::ClusterId;

/// The cluster's id, eight bytes big-endian.
pub(super) const CLUSTER_ID: &[u8] = b"/pd/cluster_id";

/// Keys of one cluster.
#[derive(Clone, Debug)]
pub struct Keys {
    root: String,
}

impl Keys {
    /// Keys of the cluster `id`.
    pub fn new(id: ClusterId) -> Keys {
        Keys { root: format!("/pd/{id}") }
    }

    fn at(&self, rest: &str) -> Vec<u8> {
        format!("{}/{rest}", self.root).into_bytes()
    }

    /// Upper bound of the ids given out.
    pub fn alloc_id(&self) -> Vec<u8> {
        self.at("alloc_id")
    }

    /// Upper bound of the timestamps given out, nanoseconds.
    pub fn timestamp(&self) -> Vec<u8> {
        self.at("timestamp")
    }

    /// The settings that were changed, JSON.
    pub fn config(&self) -> Vec<u8> {
        self.at("config")
    }

    /// `metapb.Cluster`; there once the cluster is bootstrapped.
    pub fn cluster(&self) -> Vec<u8> {
        self.at("raft")
    }

    /// When the cluster was bootstrapped, nanoseconds since the epoch.
    pub fn bootstrap_time(&self) -> Vec<u8> {
        self.at("raft/status/raft_bootstrap_time")
    }

    /// `metapb.Store` of one store.
    pub fn store(&self, id: u64) -> Vec<u8> {
        self.at(&format!("raft/s/{id:020}"))
    }

    /// What every store's key begins with.
    pub fn stores(&self) -> Vec<u8> {
        self.at("raft/s/")
    }

    /// The last start of one store, as `COUNT-NONCE`.
    pub fn store_start(&self, id: u64) -> Vec<u8> {
        self.at(&format!("basalt/start/{id:020}"))
    }

    /// What every such key begins with.
    pub fn store_starts(&self) -> Vec<u8> {
        self.at("basalt/start/")
    }

    /// The smallest resolved timestamp that all stores have reported.
    pub fn min_resolved_ts(&self) -> Vec<u8> {
        self.at("raft/min_resolved_ts")
    }

    /// The timestamp that clients may read at when they opt in.
    pub fn external_timestamp(&self) -> Vec<u8> {
        self.at("raft/external_timestamp")
    }

    /// Present while the cluster restores from snapshots.
    pub fn snapshot_recovering(&self) -> Vec<u8> {
        self.at("cluster/markers/snapshot-recovering")
    }

    /// Upper bound of the keyspace ids given out.
    pub fn keyspace_alloc_id(&self) -> Vec<u8> {
        self.at("keyspaces/alloc_id")
    }

    /// `keyspacepb.KeyspaceMeta` of one keyspace.
    pub fn keyspace(&self, id: u32) -> Vec<u8> {
        self.at(&format!("keyspaces/meta/{id:08}"))
    }

    /// What every keyspace's key begins with.
    pub fn keyspaces(&self) -> Vec<u8> {
        self.at("keyspaces/meta/")
    }

    /// The id of a keyspace by its name, decimal.
    pub fn keyspace_id(&self, name: &str) -> Vec<u8> {
        self.at(&format!("keyspaces/id/{name}"))
    }

    /// The safe point of garbage collection of the whole cluster, 16 hexadecimal digits.
    pub(super) fn gc_safe_point(&self, keyspace: Option<u32>) -> Vec<u8> {
        match keyspace {
            None => self.at("gc/safe_point"),
            Some(id) => self.at(&format!("keyspaces/gc_safe_point/{id:08}")),
        }
    }

    /// A barrier of garbage collection, JSON.
    pub(super) fn gc_barrier(&self, keyspace: Option<u32>, id: &str) -> Vec<u8> {
        let mut key = self.gc_barriers(keyspace);
        key.extend_from_slice(id.as_bytes());
        key
    }

    /// What every barrier's key begins with.
    pub(super) fn gc_barriers(&self, keyspace: Option<u32>) -> Vec<u8> {
        match keyspace {
            None => self.at("gc/safe_point/service/"),
            Some(id) => self.at(&format!("keyspaces/service_safe_point/{id:08}/")),
        }
    }

    /// A barrier that holds for all keyspaces, JSON.
    pub(super) fn global_gc_barrier(&self, id: &str) -> Vec<u8> {
        self.at(&format!("gc/global_gc_barriers/{id}"))
    }

    /// What every such barrier's key begins with.
    pub(super) fn global_gc_barriers(&self) -> Vec<u8> {
        self.at("gc/global_gc_barriers/")
    }
}
