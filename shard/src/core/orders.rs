//! What the placement driver asks of a region that leads on this core.
//!
//! An order may come late, twice, or for a region that has left: then nothing happens, and the placement driver, which
//! looks at the region's next report, asks again if it still wants to.

use std::rc::Rc;
use std::sync::Arc;

use base::{PeerId, RegionId};
use bytes::Bytes;
use executor::Class;
use proto::{metapb, pdpb, raft_cmdpb};

use super::apply::epoch_not_match;
use super::error::RegionError;
use super::host::{CoreHost, SplitError, split_at};
use super::shard::Shard;
use super::split::{cuts_inside, middle};
use crate::engine::Engine;

/// What the placement driver can ask of a region.
#[derive(Clone, Debug)]
pub enum Order {
    /// Split it.
    Split(SplitOrder),
    /// Change its members.
    Peers {
        /// Which.
        region: RegionId,
        /// The epoch that the placement driver knew; with other members the order is void.
        epoch: metapb::RegionEpoch,
        /// One is a simple change, several go through a joint configuration, none leaves it.
        changes: Vec<raft_cmdpb::ChangePeerRequest>,
    },
    /// Merge it into a neighbour.
    Merge {
        /// Which.
        region: RegionId,
        /// The epoch that the placement driver knew; with another one the order is void.
        epoch: metapb::RegionEpoch,
        /// The neighbour, as the placement driver knew it.
        target: Box<metapb::Region>,
    },
    /// Hand its leadership over.
    Transfer {
        /// Which.
        region: RegionId,
        /// To the best of these peers.
        to: Vec<PeerId>,
    },
}

/// An order to split a region.
#[derive(Clone, Debug)]
pub struct SplitOrder {
    /// Which.
    pub region: RegionId,
    /// The epoch that the placement driver knew; with another version the order is void.
    pub epoch: metapb::RegionEpoch,
    /// At the keys that it names, or in the middle. Both ways of finding the middle read the region: a size that is
    /// only estimated would not be cheaper here.
    pub policy: pdpb::CheckPolicy,
    /// The keys, encoded as in the region's bounds.
    pub keys: Vec<Bytes>,
}

/// Why an order was not carried out.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum OrderError {
    /// The region does not take it.
    #[error(transparent)]
    Region(#[from] RegionError),
    /// The split did not come about.
    #[error(transparent)]
    Split(#[from] SplitError),
    /// The region cannot be cut where it was asked to be, or has too few keys to be cut at all.
    #[error("region {0} has no key to split at")]
    NoKey(RegionId),
    /// The region is being measured already.
    #[error("region {0} is being measured")]
    Measuring(RegionId),
    /// The engine could not be read.
    #[error("region {0} cannot be measured: {1}")]
    Engine(RegionId, String),
}

/// Carries an order out in the background.
pub fn begin<E: Engine>(host: &Rc<CoreHost<E>>, order: Order) {
    let host = host.clone();
    executor::spawn_local(Class::Background, async move {
        match order {
            Order::Split(order) => {
                let region = order.region;
                match split(&host, order).await {
                    Ok(regions) => tracing::debug!(%region, into = regions.len(), "region was split as ordered"),
                    Err(error) => tracing::debug!(%region, %error, "region was not split as ordered"),
                }
            }
            Order::Peers { region, epoch, changes } => {
                let result = match host.local(region) {
                    Ok(shard) => shard.change_peers(region, &epoch, changes).await,
                    Err(error) => Err(error),
                };
                if let Err(error) = result {
                    tracing::debug!(%region, %error, "members were not changed as ordered");
                }
            }
            Order::Merge { region, epoch, target } => {
                let result = match host.local(region) {
                    Ok(shard) => shard.prepare_merge(region, &epoch, *target).await,
                    Err(error) => Err(error),
                };
                if let Err(error) = result {
                    tracing::debug!(%region, %error, "region was not merged as ordered");
                }
            }
            Order::Transfer { region, to } => {
                if let Ok(shard) = host.local(region)
                    && let Some(to) = shard.best_heir(region, &to)
                {
                    shard.transfer(region, to);
                }
            }
        }
    });
}

/// Splits a region as ordered, on the same way as a client's request does.
///
/// # Errors
/// See [`OrderError`]; nothing happened then, except that a [`RegionError::Undetermined`] leaves it open.
pub async fn split<E: Engine>(host: &Rc<CoreHost<E>>, order: SplitOrder) -> Result<Vec<metapb::Region>, OrderError> {
    let shard = host.local(order.region)?;
    let region = shard.leading(order.region, &order.epoch)?;
    let keys = match order.policy {
        pdpb::CheckPolicy::Usekey => cuts_inside(&region, order.keys.iter().map(|key| key.to_vec()).collect()),
        pdpb::CheckPolicy::Scan | pdpb::CheckPolicy::Approximate => {
            shard.measure_middle(&region).await?.into_iter().collect()
        }
    };
    if keys.is_empty() {
        return Err(OrderError::NoKey(order.region));
    }
    Ok(split_at(host, shard.id, (*region).clone(), keys).await?)
}

impl<E: Engine> Shard<E> {
    /// A region that leads here, if its version is that of `epoch`.
    fn leading(&self, region: RegionId, epoch: &metapb::RegionEpoch) -> Result<Arc<metapb::Region>, RegionError> {
        let peers = self.peers.borrow();
        let peer = peers.get(&region).ok_or(RegionError::RegionNotFound(region))?;
        if !peer.leads() {
            return Err(RegionError::NotLeader { region, leader: peer.leader_peer() });
        }
        if peer.meta.version() != epoch.version {
            return Err(epoch_not_match(&peer.meta, Vec::new()));
        }
        Ok(peer.meta.region.clone())
    }

    /// Who among `candidates` could lead a region that leads here at once, with the most of its log; among equals the first.
    fn best_heir(&self, region: RegionId, candidates: &[PeerId]) -> Option<PeerId> {
        let peers = self.peers.borrow();
        let raft = &peers.get(&region)?.raft;
        let followers = raft.followers();
        let matched = |to: &PeerId| followers.iter().find(|(id, _)| id == to).map(|(_, matched)| *matched);
        // Of several greatest ones `max_by_key` takes the last.
        candidates.iter().rev().filter(|to| raft.can_take_over(**to)).max_by_key(|to| matched(to)).copied()
    }

    /// Finds the middle of a region on a helper; at most one walk over a region goes on at a time.
    async fn measure_middle(&self, region: &Arc<metapb::Region>) -> Result<Option<Vec<u8>>, OrderError> {
        let id = RegionId(region.id);
        match self.peers.borrow_mut().get_mut(&id) {
            None => return Err(RegionError::RegionNotFound(id).into()),
            Some(peer) if peer.measuring => return Err(OrderError::Measuring(id)),
            Some(peer) => peer.measuring = true,
        }
        let (snapshot, config, region) = (self.engine.snapshot(), self.config.clone(), region.clone());
        let found = executor::blocking(Class::Background, move || middle::<E>(&snapshot, &region, &config)).await;
        if let Some(peer) = self.peers.borrow_mut().get_mut(&id) {
            peer.measuring = false;
        }
        found.map_err(|why| OrderError::Engine(id, why))
    }
}
