//! Scattering regions, and telling how an operator stands.

use super::Core;
use crate::schedule::Refused;
use proto::pdpb::*;
use proto::rpc::Status;
use std::time::Duration;

/// Regions that one call scatters at most.
const REGIONS_MAX: usize = 100_000;
/// Rounds when the caller names no number, and at most.
const ROUNDS: u64 = 5;
const ROUNDS_MAX: u64 = 20;
/// The wait between two rounds, for regions with which something else is done.
const ROUND_WAIT: Duration = Duration::from_millis(100);
/// Regions after which other tasks get their turn.
const SLICE: usize = 32;

/// What came of scattering.
pub(crate) struct Scattered {
    /// Percent of the regions that are on their way, or are well where they are.
    pub(crate) percentage: u64,
    /// The others.
    pub(crate) failed: Vec<u64>,
}

impl Core {
    pub(super) async fn scatter_region(&self, request: ScatterRegionRequest) -> Result<ScatterRegionResponse, Status> {
        let mut ids = request.regions_id;
        if ids.is_empty() {
            #[allow(deprecated, reason = "old clients scatter one region by this field")]
            let single = request.region.map_or(request.region_id, |region| region.id);
            if self.directory.borrow().by_id(single).is_none() {
                let header = self.error(ErrorType::RegionNotFound, format!("region {single} not found"));
                return Ok(ScatterRegionResponse { header, ..ScatterRegionResponse::default() });
            }
            ids.push(single);
        }
        let Scattered { percentage, failed } = self.scatter_regions(&ids, &request.group, request.retry_limit).await?;
        let (header, finished_percentage) = (self.header(), percentage);
        Ok(ScatterRegionResponse { header, finished_percentage, failed_regions_id: failed })
    }

    /// Scatters regions of a group. Those that something else is done with are tried again.
    pub(crate) async fn scatter_regions(&self, ids: &[u64], group: &str, rounds: u64) -> Result<Scattered, Status> {
        if ids.len() > REGIONS_MAX {
            return Err(Status::resource_exhausted(format!("at most {REGIONS_MAX} regions are scattered at once")));
        }
        let rounds = if rounds == 0 { ROUNDS } else { rounds.min(ROUNDS_MAX) };
        let mut open: Vec<u64> = ids.to_vec();
        let mut failed = Vec::new();
        for round in 0..rounds {
            if round > 0 {
                executor::sleep(ROUND_WAIT).await;
            }
            let mut busy = Vec::new();
            for (at, id) in open.into_iter().enumerate() {
                match self.scatter_one(id, group).await {
                    Ok(()) => {}
                    Err(Refused::NoRegion(_)) if self.directory.borrow().by_id(id).is_none() => failed.push(id),
                    Err(_) => busy.push(id),
                }
                if at % SLICE == SLICE - 1 {
                    executor::yield_now().await;
                }
            }
            open = busy;
            if open.is_empty() {
                break;
            }
        }
        failed.extend(open);
        let done = ids.len() - failed.len();
        Ok(Scattered { percentage: (done * 100).checked_div(ids.len()).unwrap_or(100) as u64, failed })
    }

    pub(super) async fn get_operator(&self, request: GetOperatorRequest) -> Result<GetOperatorResponse, Status> {
        let id = request.region_id;
        let scheduler = self.scheduler();
        let running = scheduler.controller().operator(id);
        let running = running.map(|operator| (operator.plan.desc, operator.plan.kind, OperatorStatus::Running));
        let ended = || {
            let record = scheduler.controller().records().rev().find(|record| record.region == id)?;
            Some((record.desc, record.kind, record.status))
        };
        let Some((desc, kind, status)) = running.or_else(ended) else {
            let header = self.error(ErrorType::RegionNotFound, "Not Found");
            return Ok(GetOperatorResponse { header, region_id: id, ..GetOperatorResponse::default() });
        };
        Ok(GetOperatorResponse {
            header: self.header(),
            region_id: id,
            desc: desc.into(),
            status: status.into(),
            kind: kind.name().into(),
        })
    }
}
