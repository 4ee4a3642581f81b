//! Looking regions up, and ids for their splits.

use super::Core;
use crate::directory::{RangesError, Region, ScanRange};
use proto::metapb;
use proto::pdpb::*;
use proto::rpc::Status;
use std::rc::Rc;

/// Most regions that one split may make: what keys of 8 KiB in one raft entry allow, and far more than any store asks.
const SPLIT_COUNT_MAX: u32 = 1024;

impl Core {
    pub(super) async fn get_region(&self, request: GetRegionRequest) -> Result<GetRegionResponse, Status> {
        let region = self.led_region(|directory| directory.by_key(&request.region_key).cloned()).await;
        self.check_serving()?;
        Ok(self.region_answer(region, request.need_buckets))
    }

    pub(super) async fn get_prev_region(&self, request: GetRegionRequest) -> Result<GetRegionResponse, Status> {
        let region = self.led_region(|directory| directory.before_key(&request.region_key).cloned()).await;
        self.check_serving()?;
        Ok(self.region_answer(region, request.need_buckets))
    }

    pub(super) async fn get_region_by_id(&self, request: GetRegionByIdRequest) -> Result<GetRegionResponse, Status> {
        let region = self.led_region(|directory| directory.by_id(request.region_id).cloned()).await;
        self.check_serving()?;
        Ok(self.region_answer(region, request.need_buckets))
    }

    fn region_answer(&self, region: Option<Rc<Region>>, need_buckets: bool) -> GetRegionResponse {
        let header = self.header();
        let Some(region) = region else {
            return GetRegionResponse { header, ..GetRegionResponse::default() };
        };
        GetRegionResponse {
            header,
            region: Some(region.meta.clone()),
            leader: region.leader,
            down_peers: region.down_peers.clone(),
            pending_peers: region.pending_peers.clone(),
            buckets: self.buckets_of(&region, need_buckets),
        }
    }

    /// A region's buckets, if they are asked for and known.
    pub(super) fn buckets_of(&self, region: &Region, wanted: bool) -> Option<metapb::Buckets> {
        if !wanted {
            return None;
        }
        self.directory.borrow().buckets(region.meta.id).map(|buckets| metapb::Buckets::clone(buckets))
    }

    pub(super) async fn scan_regions(&self, request: ScanRegionsRequest) -> Result<ScanRegionsResponse, Status> {
        let limit = usize::try_from(request.limit).ok().filter(|limit| *limit > 0).unwrap_or(usize::MAX);
        let mut answer = ScanRegionsResponse { header: self.header(), ..ScanRegionsResponse::default() };
        let directory = self.directory.borrow();
        for region in directory.scan(&request.start_key, &request.end_key).take(limit) {
            answer.region_metas.push(region.meta.clone());
            answer.leaders.push(region.leader.unwrap_or_default());
            answer.regions.push(region.to_list_entry(None));
        }
        Ok(answer)
    }

    pub(super) async fn batch_scan_regions(
        &self,
        request: BatchScanRegionsRequest,
    ) -> Result<BatchScanRegionsResponse, Status> {
        let range = |range: KeyRange| ScanRange { start: range.start_key, end: range.end_key };
        let ranges: Vec<_> = request.ranges.into_iter().map(range).collect();
        let limit = usize::try_from(request.limit).unwrap_or(0);
        let found = self.directory.borrow().scan_ranges(&ranges, limit, request.contain_all_key_range);
        Ok(match found {
            Ok(regions) => {
                let entry = |region: &Rc<Region>| region.to_list_entry(self.buckets_of(region, request.need_buckets));
                BatchScanRegionsResponse { header: self.header(), regions: regions.iter().map(entry).collect() }
            }
            Err(error) => {
                let kind = match error {
                    RangesError::Hole => ErrorType::RegionsNotContainAllKeyRange,
                    RangesError::Inverted | RangesError::Overlapping => ErrorType::Unknown,
                };
                BatchScanRegionsResponse { header: self.error(kind, error), regions: Vec::new() }
            }
        })
    }

    pub(super) async fn ask_split(&self, request: AskSplitRequest) -> Result<AskSplitResponse, Status> {
        match self.split_ids(request.region.as_ref(), 1).await? {
            Ok(mut ids) => {
                let SplitId { new_region_id, new_peer_ids } = ids.pop().expect("one split was asked for");
                Ok(AskSplitResponse { header: self.header(), new_region_id, new_peer_ids })
            }
            Err(text) => {
                let header = self.error(ErrorType::Unknown, text);
                Ok(AskSplitResponse { header, ..AskSplitResponse::default() })
            }
        }
    }

    pub(super) async fn ask_batch_split(&self, request: AskBatchSplitRequest) -> Result<AskBatchSplitResponse, Status> {
        Ok(match self.split_ids(request.region.as_ref(), request.split_count).await? {
            Ok(ids) => AskBatchSplitResponse { header: self.header(), ids },
            Err(text) => AskBatchSplitResponse { header: self.error(ErrorType::Unknown, text), ids: Vec::new() },
        })
    }

    /// Ids for the regions and peers of a split, unless PD knows better what the region looks like.
    async fn split_ids(
        &self,
        region: Option<&metapb::Region>,
        count: u32,
    ) -> Result<Result<Vec<SplitId>, String>, Status> {
        let Some(region) = region else {
            return Ok(Err("missing region for split".into()));
        };
        if count > SPLIT_COUNT_MAX {
            return Ok(Err(format!("cannot split into {count} regions at once, at most {SPLIT_COUNT_MAX}")));
        }
        if let Err(text) = self.check_split(region) {
            return Ok(Err(text));
        }
        let peers = u32::try_from(region.peers.len()).unwrap_or(u32::MAX);
        let split = self.write(|state| {
            let one = |_| {
                let new_region_id = state.alloc_id(1);
                let new_peer_ids = (0..peers).map(|_| state.alloc_id(1)).collect();
                SplitId { new_region_id, new_peer_ids }
            };
            (0..count).map(one).collect()
        });
        let split: Vec<SplitId> = split.await?;
        let last = split.iter().flat_map(|one| &one.new_peer_ids).max();
        self.ids_given_out(last.copied().unwrap_or_default());
        // The report of what became of it may be lost, and is not repeated.
        self.regions_split(split.iter().map(|one| one.new_region_id).chain([region.id]));
        Ok(Ok(split))
    }

    fn check_split(&self, region: &metapb::Region) -> Result<(), String> {
        let directory = self.directory.borrow();
        let known = directory
            .by_key(&region.start_key)
            .ok_or_else(|| format!("region not found, request region: {}", region.id))?;
        let epoch = region.region_epoch.unwrap_or_default();
        if epoch.version < known.version() || epoch.conf_ver < known.conf_ver() {
            return Err(format!(
                "invalid region epoch, request: version {} conf_ver {}, current: version {} conf_ver {}",
                epoch.version,
                epoch.conf_ver,
                known.version(),
                known.conf_ver()
            ));
        }
        Ok(())
    }

    pub(super) async fn report_split(&self, request: ReportSplitRequest) -> Result<ReportSplitResponse, Status> {
        let regions: Vec<_> = request.left.into_iter().chain(request.right).collect();
        Ok(ReportSplitResponse { header: self.take_split(&regions) })
    }

    pub(super) async fn report_batch_split(
        &self,
        request: ReportBatchSplitRequest,
    ) -> Result<ReportBatchSplitResponse, Status> {
        let header = self.take_split(&request.regions);
        if header.as_ref().is_some_and(|header| header.error.is_none()) {
            self.take_split_regions(&request.regions).await?;
        }
        Ok(ReportBatchSplitResponse { header })
    }

    /// Takes what a split has made into the directory, all regions in one step: heartbeats would come one by one, and
    /// between the first and the last of them a client would find no region for some keys. The children are led from
    /// where the parent was. What is older than the directory is left out; its leader's next heartbeat tells.
    async fn take_split_regions(&self, regions: &[metapb::Region]) -> Result<(), Status> {
        self.line.admit().await.map_err(|backlog| Status::resource_exhausted(backlog.to_string()))?;
        let now_s = executor::unix_time().seconds();
        let mut directory = self.directory.borrow_mut();
        let parent = regions.iter().find_map(|region| directory.by_id(region.id));
        let store = parent.and_then(|parent| parent.leader.as_ref().map(|leader| leader.store_id));
        let mut gone = Vec::new();
        let mut state = self.state.borrow_mut();
        for region in regions {
            let leader = region.peers.iter().find(|peer| Some(peer.store_id) == store).cloned();
            let report = RegionHeartbeatRequest { region: Some(region.clone()), leader, ..Default::default() };
            if let Ok(taken) = directory.heartbeat(&report, now_s)
                && taken.changed
            {
                taken.overlapped.iter().for_each(|id| state.drop_region(*id));
                state.put_region(region);
                gone.extend(taken.overlapped);
            }
        }
        drop((state, directory));
        self.regions_gone(&gone);
        self.regions_split(regions.iter().map(|region| region.id));
        self.line.collect();
        Ok(())
    }

    /// Checks what a split has made.
    fn take_split(&self, regions: &[metapb::Region]) -> Option<ResponseHeader> {
        let joined = |pair: &[metapb::Region]| pair[0].end_key == pair[1].start_key && !pair[0].end_key.is_empty();
        if regions.len() < 2 {
            return self.error(ErrorType::Unknown, "invalid split region: fewer than two regions");
        }
        if !regions.windows(2).all(joined) {
            return self.error(ErrorType::Unknown, "invalid split region: the regions do not join");
        }
        let ids: Vec<_> = regions.iter().map(|region| region.id).collect();
        tracing::info!(regions = ?ids, "a region has split");
        self.header()
    }
}
