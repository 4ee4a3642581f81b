//! Splitting at keys that a client names: the leaders do it, asked over their heartbeat streams.

use super::Core;
use bytes::Bytes;
use proto::pdpb::*;
use proto::rpc::Status;
use std::collections::BTreeMap;
use std::time::Duration;

/// Rounds of asking when the client names no number, and at most.
const ROUNDS: u64 = 5;
const ROUNDS_MAX: u64 = 20;
/// How often it is looked whether the splits have come, and how often per round.
const LOOK: Duration = Duration::from_millis(50);
const LOOKS: usize = 20;

impl Core {
    pub(super) async fn split_regions(&self, request: SplitRegionsRequest) -> Result<SplitRegionsResponse, Status> {
        let (finished_percentage, regions_id) = self.split_at(&request.split_keys, request.retry_limit).await;
        Ok(SplitRegionsResponse { header: self.header(), finished_percentage, regions_id })
    }

    pub(super) async fn split_and_scatter_regions(
        &self,
        request: SplitAndScatterRegionsRequest,
    ) -> Result<SplitAndScatterRegionsResponse, Status> {
        let (split_finished_percentage, regions_id) = self.split_at(&request.split_keys, request.retry_limit).await;
        Ok(SplitAndScatterRegionsResponse {
            header: self.header(),
            split_finished_percentage,
            scatter_finished_percentage: 100,
            regions_id,
        })
    }

    /// Has regions split until each key begins one, or the rounds are over. Returns how many percent of the keys do,
    /// and the regions that begin there.
    pub(crate) async fn split_at(&self, keys: &[Bytes], retry_limit: u64) -> (u64, Vec<u64>) {
        let rounds = if retry_limit == 0 { ROUNDS } else { retry_limit.min(ROUNDS_MAX) };
        'rounds: for _ in 0..rounds {
            let missing = self.not_yet_split(keys);
            for (region, keys) in missing {
                self.ask_to_split(region, keys).await;
            }
            for _ in 0..LOOKS {
                if self.not_yet_split(keys).is_empty() {
                    break 'rounds;
                }
                executor::sleep(LOOK).await;
            }
        }
        let directory = self.directory.borrow();
        let beginning = |key: &Bytes| directory.by_key(key).filter(|region| region.meta.start_key == *key);
        let done: Vec<u64> = keys.iter().filter_map(beginning).map(|region| region.meta.id).collect();
        let percentage = if keys.is_empty() { 100 } else { done.len() * 100 / keys.len() };
        (percentage as u64, done)
    }

    /// The keys that begin no region, by the region that they lie in.
    fn not_yet_split(&self, keys: &[Bytes]) -> BTreeMap<u64, Vec<Bytes>> {
        let directory = self.directory.borrow();
        let mut missing: BTreeMap<u64, Vec<Bytes>> = BTreeMap::new();
        for key in keys {
            if let Some(region) = directory.by_key(key).filter(|region| region.meta.start_key != *key) {
                missing.entry(region.meta.id).or_default().push(key.clone());
            }
        }
        missing
    }

    async fn ask_to_split(&self, region: u64, mut keys: Vec<Bytes>) {
        keys.sort();
        keys.dedup();
        if let Err(error) = self.order_split(region, CheckPolicy::Usekey, keys).await {
            tracing::debug!(region, %error, "a region to split cannot be asked");
        }
    }

    /// Asks a region's leader to split it: at `keys`, or in the middle for another policy than `USEKEY`.
    pub(crate) async fn order_split(
        &self,
        region: u64,
        policy: CheckPolicy,
        keys: Vec<Bytes>,
    ) -> Result<(), OrderError> {
        let known = self.directory.borrow().by_id(region).cloned().ok_or(OrderError::Unknown(region))?;
        let leader = known.leader.ok_or(OrderError::NoLeader(region))?;
        let order = RegionHeartbeatResponse {
            header: self.header(),
            region_id: region,
            region_epoch: known.meta.region_epoch,
            target_peer: Some(leader),
            split_region: Some(SplitRegion { policy: policy.into(), keys }),
            ..RegionHeartbeatResponse::default()
        };
        if self.streams.send(leader.store_id, &order).await {
            Ok(())
        } else {
            Err(OrderError::NoStream { region, store: leader.store_id })
        }
    }
}

/// Why a region's leader cannot be asked for something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum OrderError {
    /// No such region.
    #[error("region {0} not found")]
    Unknown(u64),
    /// Its leader has not reported.
    #[error("region {0} has no leader")]
    NoLeader(u64),
    /// The leader's store has no stream of heartbeats, or does not read it.
    #[error("store {store}, which leads region {region}, has no heartbeat stream")]
    NoStream {
        /// The region.
        region: u64,
        /// The store of its leader.
        store: u64,
    },
}
