//! The placement driver's durable state as a pure machine: commands in, [`Change`]s out.
//!
//! Everything is kept as PD keeps it in etcd, key for key, so that stock tools and old clients that read those keys
//! find them. Region descriptions stand beside, as PD keeps them in a store of their own: they change often, and a
//! watcher of keys has no use for them.
//!
//! A command changes the memory at once and leaves its changes in an outbox. Who runs the state takes the outbox
//! with [`State::take_changes`], makes it durable, and only then answers.

mod cluster;
mod gc;
mod ids;
mod keys;
mod keyspace;
mod starts;
mod version;

pub use cluster::{BootstrapError, ClusterError};
pub use gc::{Barrier, GcError, GcScope, GcState, MIN_START_TS_PREFIX, ServiceSafePoint, TxnAdvance};
pub use keys::Keys;
pub use keyspace::{DEFAULT_KEYSPACE_NAME, KeyspaceError};
pub use starts::{STORE_START, StoreStart};
pub use version::Version;

use crate::kv::{Change, KeySpace, Leases, MalformedChange, Op};
use base::ClusterId;
use bytes::{Bytes, BytesMut};
use prost::Message;
use proto::metapb;
use std::collections::BTreeMap;

/// The state of the placement driver.
#[derive(Debug)]
pub struct State {
    cluster_id: ClusterId,
    keys: Keys,
    space: KeySpace,
    regions: BTreeMap<u64, Bytes>,
    leases: Leases,
    ids: ids::Window,
    keyspace_ids: ids::Window,
    outbox: Vec<Change>,
}

/// Why a stored state cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A record has bytes that are not changes.
    #[error(transparent)]
    Malformed(#[from] MalformedChange),
    /// The records name no cluster.
    #[error("the stored state has no cluster id")]
    NoClusterId,
    /// A region's description does not decode.
    #[error("the stored description of region {0} does not decode")]
    Region(u64),
}

impl State {
    /// A new cluster, identified for ever by `cluster_id`.
    pub fn create(cluster_id: ClusterId) -> State {
        let mut state = State::empty(cluster_id);
        state.commit(vec![Op::put(keys::CLUSTER_ID, cluster_id.0.to_be_bytes().to_vec())]);
        state
    }

    /// The state that `runs` of changes, oldest first, add up to.
    ///
    /// # Errors
    /// [`LoadError`] when they cannot be read, or name no cluster.
    pub fn load<'a>(runs: impl IntoIterator<Item = &'a Bytes>) -> Result<State, LoadError> {
        let mut state = State::blank();
        for run in runs {
            state.replay(run)?;
        }
        if state.cluster_id == ClusterId(0) {
            return Err(LoadError::NoClusterId);
        }
        let revision = state.space.revision();
        state.space.compact(revision);
        Ok(state.to_lead())
    }

    /// The state of a group that has no cluster yet. It is for [`State::replay`] alone.
    pub fn blank() -> State {
        State::empty(ClusterId(0))
    }

    /// Does again what a run of changes says.
    ///
    /// # Errors
    /// [`LoadError`] when it cannot be read; then a part of it may be done.
    pub fn replay(&mut self, run: &Bytes) -> Result<(), LoadError> {
        for change in Change::decode_all(run)? {
            if let Change::PutRegion { id, meta } = &change {
                metapb::Region::decode(meta.clone()).map_err(|_| LoadError::Region(*id))?;
            }
            self.apply(&change);
        }
        if self.cluster_id == ClusterId(0) {
            let stored = self.space.value(keys::CLUSTER_ID).and_then(|value| be_u64(value));
            self.cluster_id = ClusterId(stored.unwrap_or(0));
            self.keys = Keys::new(self.cluster_id);
        }
        Ok(())
    }

    /// A copy that takes commands: it goes on behind the windows of numbers that were taken before.
    ///
    /// Cost: a copy of the map; keys and values are shared.
    pub fn to_lead(&self) -> State {
        let window =
            |key: &[u8]| ids::Window::resume(self.space.value(key).and_then(|value| be_u64(value)).unwrap_or(0));
        State {
            cluster_id: self.cluster_id,
            keys: self.keys.clone(),
            space: self.space.clone(),
            regions: self.regions.clone(),
            leases: self.leases.to_begin_anew(),
            ids: window(&self.keys.alloc_id()),
            keyspace_ids: window(&self.keys.keyspace_alloc_id()),
            outbox: Vec::new(),
        }
    }

    fn empty(cluster_id: ClusterId) -> State {
        State {
            cluster_id,
            keys: Keys::new(cluster_id),
            space: KeySpace::new(),
            regions: BTreeMap::new(),
            leases: Leases::default(),
            ids: ids::Window::resume(0),
            keyspace_ids: ids::Window::resume(0),
            outbox: Vec::new(),
        }
    }

    /// The whole state as one run of changes.
    ///
    /// Cost: one copy of everything that is kept.
    pub fn image(&self) -> Bytes {
        let mut image = BytesMut::with_capacity(self.space.bytes() + 64 * self.space.len());
        Change::Revision(self.space.revision()).encode(&mut image);
        for (id, ttl) in self.leases.iter() {
            Change::PutLease { id, ttl }.encode(&mut image);
        }
        for (key, record) in self.space.iter() {
            Change::Put { key: key.clone(), record: record.clone() }.encode(&mut image);
        }
        for (id, meta) in &self.regions {
            Change::PutRegion { id: *id, meta: meta.clone() }.encode(&mut image);
        }
        image.freeze()
    }

    /// Takes what has changed since the last call, in order.
    pub fn take_changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.outbox)
    }

    /// The cluster's id.
    pub fn cluster_id(&self) -> ClusterId {
        self.cluster_id
    }

    /// Where things are kept.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// The keys that etcd clients see.
    pub fn space(&self) -> &KeySpace {
        &self.space
    }

    /// Leases with their deadlines.
    pub fn leases(&mut self) -> &mut Leases {
        &mut self.leases
    }

    /// Forgets the history of keys at or below `revision`.
    pub fn compact(&mut self, revision: i64) {
        self.space.compact(revision);
    }

    /// Writes keys at one new revision.
    pub fn commit(&mut self, ops: Vec<Op>) {
        let changes = self.space.commit(ops);
        self.outbox.extend(changes);
    }

    /// Writes keys at `revision`: the next one, or the newest if the same command has begun it.
    pub fn commit_at(&mut self, revision: i64, ops: Vec<Op>) {
        let changes = self.space.commit_at(revision, ops);
        self.outbox.extend(changes);
    }

    /// Grants a lease.
    pub fn grant_lease(&mut self, id: i64, ttl: i64) {
        self.record(Change::PutLease { id, ttl });
    }

    /// Ends a lease and deletes its keys; false if there is none.
    pub fn end_lease(&mut self, id: i64) -> bool {
        if !self.leases.contains(id) {
            return false;
        }
        let ops = self.space.keys_of_lease(id).cloned().map(Op::delete).collect();
        self.commit(ops);
        self.record(Change::DropLease { id });
        true
    }

    /// Keeps a region's description.
    pub fn put_region(&mut self, meta: &metapb::Region) {
        let (id, meta) = (meta.id, Bytes::from(meta.encode_to_vec()));
        if self.regions.get(&id) != Some(&meta) {
            self.record(Change::PutRegion { id, meta });
        }
    }

    /// Forgets a region's description.
    pub fn drop_region(&mut self, id: u64) {
        if self.regions.contains_key(&id) {
            self.record(Change::DropRegion { id });
        }
    }

    /// The descriptions that are kept.
    pub fn regions(&self) -> impl Iterator<Item = metapb::Region> {
        self.regions.values().map(|meta| {
            metapb::Region::decode(meta.clone())
                .expect("descriptions are checked when loaded and encoded here otherwise")
        })
    }

    /// The durable upper bound of timestamps, in milliseconds since the epoch; 0 in a new cluster.
    pub fn timestamp_bound(&self) -> u64 {
        let stored = self.space.value(&self.keys.timestamp()).and_then(|value| be_u64(value)).unwrap_or(0);
        stored.div_ceil(1_000_000)
    }

    /// Raises the upper bound of timestamps.
    pub fn set_timestamp_bound(&mut self, physical_ms: u64) {
        assert!(physical_ms >= self.timestamp_bound(), "the bound of timestamps never falls");
        let nanos = physical_ms.saturating_mul(1_000_000);
        self.commit(vec![Op::put(self.keys.timestamp(), nanos.to_be_bytes().to_vec())]);
    }

    fn record(&mut self, change: Change) {
        self.apply(&change);
        self.outbox.push(change);
    }

    fn apply(&mut self, change: &Change) {
        match change {
            Change::PutRegion { id, meta } => {
                self.regions.insert(*id, meta.clone());
            }
            Change::DropRegion { id } => {
                self.regions.remove(id);
            }
            Change::PutLease { id, ttl } => self.leases.insert(*id, *ttl),
            Change::DropLease { id } => {
                self.leases.remove(*id);
            }
            Change::Put { .. } | Change::Delete { .. } | Change::Revision(_) => self.space.apply(change),
        }
    }
}

/// Eight big-endian bytes as PD stores its numbers.
fn be_u64(value: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(value.try_into().ok()?))
}
