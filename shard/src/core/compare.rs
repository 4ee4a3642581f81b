//! A full comparison of a region's replicas: what the chain (`chain.rs`) cannot see, since it hashes what was applied and
//! not what the engine has kept.
//!
//! The leader proposes TiKV's `ComputeHash`. Each replica that applies it takes an engine snapshot of exactly that
//! state, and hashes all keys and values of the region on helpers. What it finds is shown with the region on the status
//! page: replicas with the same index must have the same hash.

use std::rc::Rc;

use base::{RegionId, hash};
use executor::Class;
use mvcc::Cf;
use proto::{metapb, raft_cmdpb};
use raftstore::command;

use super::error::RegionError;
use super::host::CoreHost;
use super::mail::Reply;
use super::moves::read_piece;
use super::peer::PeerState;
use super::shard::{Body, Shard, header};
use crate::engine::{Engine, data_range};

/// All of a region's data at one index.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct RegionHash {
    /// The entry up to which the data were applied.
    pub index: u64,
    /// Over families, keys and values in their order; hexadecimal.
    pub hash: String,
    /// Keys of all families.
    pub keys: u64,
    /// Bytes of keys and values.
    pub bytes: u64,
}

impl<E: Engine> Shard<E> {
    /// Has all replicas of a region that leads here hash their data; answers with the index at which they do.
    ///
    /// # Errors
    /// What a write can meet.
    pub async fn compute_hash(&self, region: RegionId) -> Result<u64, RegionError> {
        let data = {
            let peers = self.peers.borrow();
            let peer = peers.get(&region).ok_or(RegionError::RegionNotFound(region))?;
            if !peer.leads() || !peer.readable {
                return Err(RegionError::NotLeader { region, leader: peer.leader_peer() });
            }
            self.check_writable(peer)?;
            let admin = raft_cmdpb::AdminRequest {
                cmd_type: raft_cmdpb::AdminCmdType::ComputeHash as i32,
                compute_hash: Some(raft_cmdpb::ComputeHashRequest::default()),
                ..Default::default()
            };
            command::encode_admin(&header(peer), admin)
        };
        let done = self.propose(region, Body::Admin(data)).await.map_err(|_| RegionError::Undetermined)??;
        Ok(done.index)
    }

    /// The entry at `index` asks for the hash, and is the last one that the engine holds.
    pub(crate) fn begin_hash(self: &Rc<Self>, peer: &mut PeerState, index: u64) {
        peer.hashing = Some(index);
        let (shard, snapshot) = (self.clone(), self.engine.snapshot());
        let (region, id, meta) = (peer.meta.region_id(), peer.meta.peer_id(), peer.meta.region.clone());
        executor::spawn_local(Class::Background, async move {
            let found = hash_all::<E>(snapshot, &meta, index).await;
            let mut peers = shard.peers.borrow_mut();
            let Some(peer) = peers.get_mut(&region).filter(|peer| peer.meta.peer_id() == id) else { return };
            peer.hashing.take_if(|hashing| *hashing == index);
            match found {
                Ok(found) => peer.hashed = Some(Box::new(found)),
                Err(error) => tracing::warn!(%region, %error, "region could not be hashed"),
            }
        });
    }
}

async fn hash_all<E: Engine>(snapshot: E::Snapshot, region: &metapb::Region, index: u64) -> Result<RegionHash, String> {
    let (lower, upper) = data_range(&region.start_key, &region.end_key);
    let mut found = RegionHash { index, ..RegionHash::default() };
    let mut sum = 0;
    for cf in Cf::DATA {
        sum = hash::fold(sum, cf.index() as u64);
        let mut from = Some(lower.clone());
        while let Some(at) = from {
            let (snapshot, upper) = (snapshot.clone(), upper.clone());
            let read = move || read_piece::<E>(&snapshot, cf, &at, &upper);
            let (entries, next) = executor::blocking(Class::Background, read).await?;
            for (_, key, value) in &entries {
                sum = hash::fold_bytes(hash::fold_bytes(sum, key), value);
                found.bytes += (key.len() + value.len()) as u64;
            }
            found.keys += entries.len() as u64;
            from = next;
        }
    }
    found.hash = format!("{sum:016x}");
    Ok(found)
}

/// At the core of a region: what the status port asks for.
pub(crate) fn begin<E: Engine>(host: &Rc<CoreHost<E>>, region: RegionId, reply: Reply<Result<u64, String>>) {
    let host = host.clone();
    executor::spawn_local(Class::Background, async move {
        let result = match host.local(region) {
            Ok(shard) => shard.compute_hash(region).await,
            Err(error) => Err(error),
        };
        reply.send(result.map_err(|error| error.to_string()));
    });
}
