//! Splitting at keys that a client names: the leaders do it, asked over their heartbeat streams.

use super::Core;
use crate::schedule::Request;
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
        let scattered = self.scatter_regions(&regions_id, &request.group, request.retry_limit).await?;
        Ok(SplitAndScatterRegionsResponse {
            header: self.header(),
            split_finished_percentage,
            scatter_finished_percentage: scattered.percentage,
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
        let split = Request::Split(CheckPolicy::Usekey, keys);
        if let Err(error) = self.order(region, &split).await {
            tracing::debug!(region, %error, "a region to split cannot be asked");
        }
    }
}
