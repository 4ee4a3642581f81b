//! Bootstrap, ids and stores.

use super::{State, Version, be_u64, keys::CLUSTER_ID};
use crate::kv::Op;
use base::UnixTime;
use bytes::Bytes;
use prost::Message;
use proto::metapb::{self, NodeState, StoreState};

/// Ids are taken from etcd in windows of this many, as PD does.
const ID_WINDOW: u64 = 1000;
/// Values of the label `engine` that PD knows.
const ENGINES: [&str; 4] = ["", "tikv", "tiflash", "tiflash_compute"];

/// Why a cluster cannot be bootstrapped.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BootstrapError {
    /// It already is.
    #[error("cluster is already bootstrapped")]
    Already,
    /// The request is not a first store with a first region.
    #[error("{0}")]
    Invalid(String),
}

/// Why a store's request is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClusterError {
    /// There is no cluster yet.
    #[error("cluster is not bootstrapped")]
    NotBootstrapped,
    /// No such store.
    #[error("invalid store ID {0}, not found")]
    StoreNotFound(u64),
    /// The store has left for ever.
    #[error("store is tombstone")]
    Tombstone,
    /// Something in the request does not fit; it goes out as INVALID_VALUE.
    #[error("{0}")]
    InvalidValue(String),
    /// Something else in the request does not fit.
    #[error("{0}")]
    Refused(String),
}

impl State {
    /// Whether there is a cluster.
    pub fn is_bootstrapped(&self) -> bool {
        self.space.get(&self.keys.cluster()).is_some()
    }

    /// Errors unless there is a cluster.
    ///
    /// # Errors
    /// [`ClusterError::NotBootstrapped`].
    pub fn check_bootstrapped(&self) -> Result<(), ClusterError> {
        if self.is_bootstrapped() { Ok(()) } else { Err(ClusterError::NotBootstrapped) }
    }

    /// Starts the cluster with its first store and region, and the default keyspace.
    ///
    /// # Errors
    /// [`BootstrapError`] when it is done already or the request is not a proper first one.
    pub fn bootstrap(
        &mut self,
        store: Option<&metapb::Store>,
        region: Option<&metapb::Region>,
        max_peer_count: u32,
        now: UnixTime,
    ) -> Result<(), BootstrapError> {
        if self.is_bootstrapped() {
            return Err(BootstrapError::Already);
        }
        let id = self.cluster_id;
        let (store, region) = check_first(store, region, id.0).map_err(BootstrapError::Invalid)?;
        let cluster = metapb::Cluster { id: id.0, max_peer_count };
        let store = metapb::Store { node_state: NodeState::Serving.into(), ..store.clone() };
        self.commit(vec![
            Op::put(self.keys.cluster(), cluster.encode_to_vec()),
            Op::put(self.keys.bootstrap_time(), now.0.to_be_bytes().to_vec()),
            Op::put(self.keys.store(store.id), store.encode_to_vec()),
        ]);
        self.put_region(region);
        self.create_default_keyspace(now);
        Ok(())
    }

    /// `metapb.Cluster`.
    pub fn cluster(&self) -> Option<metapb::Cluster> {
        metapb::Cluster::decode(self.space.value(&self.keys.cluster())?.clone()).ok()
    }

    /// Replaces `metapb.Cluster`.
    ///
    /// # Errors
    /// [`ClusterError::NotBootstrapped`], or a foreign cluster's id.
    pub fn put_cluster(&mut self, cluster: &metapb::Cluster) -> Result<(), ClusterError> {
        self.check_bootstrapped()?;
        if cluster.id != self.cluster_id.0 {
            return Err(ClusterError::Refused(format!(
                "invalid cluster {cluster:?}, mismatch cluster id {}",
                self.cluster_id
            )));
        }
        self.commit(vec![Op::put(self.keys.cluster(), cluster.encode_to_vec())]);
        Ok(())
    }

    /// When the cluster was bootstrapped.
    pub fn bootstrap_time(&self) -> Option<UnixTime> {
        self.space.value(&self.keys.bootstrap_time()).and_then(|value| be_u64(value)).map(UnixTime)
    }

    /// Takes `count` ids in a row (0 means 1) and returns the last.
    pub fn alloc_id(&mut self, count: u32) -> u64 {
        let (last, end) = self.ids.take(u64::from(count.max(1)), ID_WINDOW);
        if let Some(end) = end {
            self.commit(vec![Op::put(self.keys.alloc_id(), end.to_be_bytes().to_vec())]);
        }
        last
    }

    /// A store's description.
    pub fn store(&self, id: u64) -> Option<metapb::Store> {
        metapb::Store::decode(self.space.value(&self.keys.store(id))?.clone()).ok()
    }

    /// Every store, tombstones included, by id.
    pub fn stores(&self) -> Vec<metapb::Store> {
        let prefix = self.keys.stores();
        self.space.prefix(&prefix).filter_map(|(_, record)| metapb::Store::decode(record.value.clone()).ok()).collect()
    }

    /// The version that all stores have at least: what features the cluster may use.
    pub fn cluster_version(&self) -> Option<Version> {
        let up = self.stores().into_iter().filter(|store| store.state() != StoreState::Tombstone);
        up.filter_map(|store| Version::parse(&store.version)).min()
    }

    /// Adds a store, or renews what is known of it. Labels are merged into those it had.
    ///
    /// # Errors
    /// [`ClusterError`] by PD's rules: a tombstone, an unknown engine, an address in use, a version too old.
    pub fn put_store(&mut self, store: &metapb::Store) -> Result<(), ClusterError> {
        self.check_bootstrapped()?;
        if store.id == 0 {
            return Err(ClusterError::Refused("invalid put store: id is 0".into()));
        }
        let known = self.store(store.id);
        if known.as_ref().is_some_and(|known| known.state() == StoreState::Tombstone) {
            return Err(ClusterError::Tombstone);
        }
        check_engine(store)?;
        self.check_address(store)?;
        self.check_version(store)?;
        let mut merged = store.clone();
        match known {
            None => {
                merged.set_state(StoreState::Up);
                merged.set_node_state(NodeState::Preparing);
            }
            Some(known) => {
                merged.state = known.state;
                merged.node_state = known.node_state;
                merged.last_heartbeat = known.last_heartbeat;
                merged.labels = merge_labels(known.labels, &store.labels);
            }
        }
        self.save_store(&merged);
        Ok(())
    }

    /// Changes a store's labels: merged into those it has, or in their place when `force`.
    ///
    /// # Errors
    /// [`ClusterError::StoreNotFound`].
    pub fn set_labels(&mut self, id: u64, labels: &[metapb::StoreLabel], force: bool) -> Result<(), ClusterError> {
        let mut store = self.store(id).ok_or(ClusterError::StoreNotFound(id))?;
        store.labels = if force { labels.to_vec() } else { merge_labels(store.labels, labels) };
        check_engine(&store)?;
        self.save_store(&store);
        Ok(())
    }

    /// Moves a store from preparing to serving. There is nothing to be prepared: it gets its share bit by bit.
    ///
    /// # Errors
    /// [`ClusterError`] for an unknown store or a tombstone.
    pub fn store_is_alive(&mut self, id: u64) -> Result<metapb::Store, ClusterError> {
        let mut store = self.store(id).ok_or_else(|| ClusterError::Refused(format!("store {id} not found")))?;
        if store.state() == StoreState::Tombstone {
            return Err(ClusterError::Tombstone);
        }
        if store.node_state() == NodeState::Preparing {
            store.set_node_state(NodeState::Serving);
            self.save_store(&store);
        }
        Ok(store)
    }

    /// Begins to take a store out (`physically_destroyed`: it will never come back).
    ///
    /// # Errors
    /// [`ClusterError`] for an unknown store or a tombstone.
    pub fn remove_store(&mut self, id: u64, physically_destroyed: bool) -> Result<(), ClusterError> {
        let mut store = self.store(id).ok_or(ClusterError::StoreNotFound(id))?;
        if store.state() == StoreState::Tombstone {
            return Err(ClusterError::Tombstone);
        }
        store.set_state(StoreState::Offline);
        store.set_node_state(NodeState::Removing);
        store.physically_destroyed |= physically_destroyed;
        self.save_store(&store);
        Ok(())
    }

    /// Buries a store that is being taken out and holds no peer any more.
    pub fn bury_store(&mut self, id: u64) {
        let Some(mut store) = self.store(id).filter(|store| store.state() == StoreState::Offline) else {
            return;
        };
        store.set_state(StoreState::Tombstone);
        store.set_node_state(NodeState::Removed);
        self.save_store(&store);
    }

    /// Takes a store that is being taken out back in.
    ///
    /// # Errors
    /// [`ClusterError`] for an unknown store, a tombstone, or one that is physically destroyed.
    pub fn recall_store(&mut self, id: u64) -> Result<(), ClusterError> {
        let mut store = self.store(id).ok_or(ClusterError::StoreNotFound(id))?;
        match store.state() {
            StoreState::Tombstone => return Err(ClusterError::Tombstone),
            _ if store.physically_destroyed => {
                return Err(ClusterError::Refused(format!("store {id} has been physically destroyed")));
            }
            _ => {}
        }
        store.set_state(StoreState::Up);
        store.set_node_state(NodeState::Serving);
        self.save_store(&store);
        Ok(())
    }

    /// The timestamp that clients may read at when they opt in; 0 at first.
    pub fn external_timestamp(&self) -> u64 {
        self.space.value(&self.keys.external_timestamp()).and_then(|value| be_u64(value)).unwrap_or(0)
    }

    /// Sets it; `newest` is a fresh timestamp.
    ///
    /// # Errors
    /// [`ClusterError::Refused`] when it lies in the future or does not advance.
    pub fn set_external_timestamp(&mut self, timestamp: u64, newest: u64) -> Result<(), ClusterError> {
        if timestamp > newest {
            return Err(ClusterError::Refused("the external timestamp should not be larger than global ts".into()));
        }
        if timestamp <= self.external_timestamp() {
            return Err(ClusterError::Refused("the external timestamp should be larger than now".into()));
        }
        self.commit(vec![Op::put(self.keys.external_timestamp(), timestamp.to_be_bytes().to_vec())]);
        Ok(())
    }

    /// The smallest resolved timestamp that was kept; `None` if it was never known.
    pub fn min_resolved_ts(&self) -> Option<u64> {
        self.space.value(&self.keys.min_resolved_ts()).and_then(|value| be_u64(value))
    }

    /// Keeps the smallest resolved timestamp, which never falls.
    pub fn set_min_resolved_ts(&mut self, ts: u64) {
        if self.min_resolved_ts().is_none_or(|kept| kept < ts) {
            self.commit(vec![Op::put(self.keys.min_resolved_ts(), ts.to_be_bytes().to_vec())]);
        }
    }

    /// The settings that were kept, JSON; `None` if none was ever changed.
    pub fn settings(&self) -> Option<&Bytes> {
        self.space.value(&self.keys.config())
    }

    /// Keeps the settings.
    pub fn put_settings(&mut self, json: Vec<u8>) {
        self.commit(vec![Op::put(self.keys.config(), json)]);
    }

    /// Whether the cluster restores from snapshots.
    pub fn is_snapshot_recovering(&self) -> bool {
        self.space.get(&self.keys.snapshot_recovering()).is_some()
    }

    /// Whether `key` is the cluster's own: no client writes it.
    pub fn is_reserved(&self, key: &[u8]) -> bool {
        let own = [
            CLUSTER_ID.to_vec(),
            self.keys.alloc_id(),
            self.keys.timestamp(),
            self.keys.cluster(),
            self.keys.config(),
            self.keys.keyspace_alloc_id(),
        ];
        own.iter().any(|own| own == key)
            || key.starts_with(&self.keys.stores())
            || key.starts_with(&self.keys.store_starts())
            || key.starts_with(&self.keys.keyspaces())
    }

    fn save_store(&mut self, store: &metapb::Store) {
        self.commit(vec![Op::put(self.keys.store(store.id), store.encode_to_vec())]);
    }

    fn check_address(&self, store: &metapb::Store) -> Result<(), ClusterError> {
        let others = self.stores().into_iter().filter(|other| {
            other.id != store.id && other.state() != StoreState::Tombstone && !other.physically_destroyed
        });
        for other in others {
            let same_peer_address = !store.peer_address.is_empty() && other.peer_address == store.peer_address;
            if other.address == store.address || same_peer_address {
                return Err(ClusterError::Refused(format!(
                    "duplicated store address: id:{} address:{:?} , already registered by id:{} address:{:?}",
                    store.id, store.address, other.id, other.address
                )));
            }
        }
        Ok(())
    }

    fn check_version(&self, store: &metapb::Store) -> Result<(), ClusterError> {
        let version = Version::parse(&store.version)
            .ok_or_else(|| ClusterError::Refused(format!("invalid put store: version {:?}", store.version)))?;
        match self.cluster_version() {
            Some(cluster) if !version.joins(&cluster) => {
                Err(ClusterError::Refused(format!("version should compatible with version  {cluster}, got {version}")))
            }
            _ => Ok(()),
        }
    }
}

fn check_engine(store: &metapb::Store) -> Result<(), ClusterError> {
    let engine = store.labels.iter().find(|label| label.key == "engine").map_or("", |label| label.value.as_str());
    if ENGINES.contains(&engine) {
        Ok(())
    } else {
        Err(ClusterError::InvalidValue(format!("unsupported value {engine:?} of the store label \"engine\"")))
    }
}

fn merge_labels(mut labels: Vec<metapb::StoreLabel>, newer: &[metapb::StoreLabel]) -> Vec<metapb::StoreLabel> {
    for label in newer {
        match labels.iter_mut().find(|known| known.key.eq_ignore_ascii_case(&label.key)) {
            Some(known) => known.value.clone_from(&label.value),
            None => labels.push(label.clone()),
        }
    }
    labels.retain(|label| !label.value.is_empty());
    labels
}

fn check_first<'a>(
    store: Option<&'a metapb::Store>,
    region: Option<&'a metapb::Region>,
    cluster_id: u64,
) -> Result<(&'a metapb::Store, &'a metapb::Region), String> {
    let store = store.ok_or_else(|| format!("missing store meta for bootstrap {cluster_id}"))?;
    if store.id == 0 {
        return Err(String::from("invalid zero store id"));
    }
    let region = region.ok_or_else(|| format!("missing region meta for bootstrap {cluster_id}"))?;
    if !region.start_key.is_empty() || !region.end_key.is_empty() {
        return Err(format!("invalid first region key range, must all be empty for bootstrap {cluster_id}"));
    }
    if region.id == 0 {
        return Err(String::from("invalid zero region id"));
    }
    let [peer] = region.peers.as_slice() else {
        return Err(format!(
            "invalid first region peer count {}, must be 1 for bootstrap {cluster_id}",
            region.peers.len()
        ));
    };
    if peer.store_id != store.id {
        return Err(format!("invalid peer store id {} != {} for bootstrap {cluster_id}", peer.store_id, store.id));
    }
    if peer.id == 0 {
        return Err(String::from("invalid zero peer id"));
    }
    Ok((store, region))
}
