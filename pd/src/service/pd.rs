//! `pdpb.PD`: the table of a leader's methods. What they do stands in the modules beside; GetMembers and GetClusterInfo
//! are answered by every member (`crate::member`).
//!
//! SyncRegions, SyncMaxTS, GetDCLocationInfo and WatchGCSafePointV2 are not served: the first three are between
//! members, the last one is not served by PD itself either.

use super::Core;
use crate::state::{STORE_START, StoreStart};
use proto::pdpb::*;
use proto::rpc::{CallContext, Inbound, Outbound, Status};
use std::rc::Rc;

/// Handles `pdpb.PD`.
pub(super) struct PdHandler(pub(super) Rc<Core>);

/// Methods that take a request with a header: the checks in front, then the named method of [`Core`].
macro_rules! methods {
    ($($method:ident: $request:ident => $answer:ident;)*) => {
        $(
            async fn $method(&self, cx: CallContext, request: $request) -> Result<$answer, Status> {
                self.0.enter(&cx, request.header.as_ref())?;
                self.0.$method(request).await
            }
        )*
    };
}

/// The same for those that need a cluster: before there is one they answer with an error in the header.
macro_rules! cluster_methods {
    ($($method:ident: $request:ident => $answer:ident;)*) => {
        $(
            #[allow(clippy::needless_update, reason = "some answers have nothing but the header")]
            async fn $method(&self, cx: CallContext, request: $request) -> Result<$answer, Status> {
                self.0.enter(&cx, request.header.as_ref())?;
                if let Some(header) = self.0.unless_bootstrapped() {
                    return Ok($answer { header: Some(header), ..$answer::default() });
                }
                self.0.$method(request).await
            }
        )*
    };
}

impl Pd for PdHandler {
    async fn is_snapshot_recovering(
        &self,
        cx: CallContext,
        _request: IsSnapshotRecoveringRequest,
    ) -> Result<IsSnapshotRecoveringResponse, Status> {
        self.0.enter_any(&cx)?;
        let marked = self.0.read(|state| state.is_snapshot_recovering()).await?;
        Ok(IsSnapshotRecoveringResponse { header: self.0.header(), marked })
    }

    async fn put_store(&self, cx: CallContext, request: PutStoreRequest) -> Result<PutStoreResponse, Status> {
        self.0.enter(&cx, request.header.as_ref())?;
        if let Some(header) = self.0.unless_bootstrapped() {
            return Ok(PutStoreResponse { header: Some(header), ..PutStoreResponse::default() });
        }
        self.0.put_store(request, cx.metadata.get_str(STORE_START).and_then(StoreStart::parse)).await
    }

    async fn tso(
        &self,
        cx: CallContext,
        request: Inbound<TsoRequest>,
        answers: Outbound<TsoResponse>,
    ) -> Result<(), Status> {
        self.0.enter_any(&cx)?;
        self.0.serve_tso(request, answers).await
    }

    async fn region_heartbeat(
        &self,
        cx: CallContext,
        request: Inbound<RegionHeartbeatRequest>,
        answers: Outbound<RegionHeartbeatResponse>,
    ) -> Result<(), Status> {
        self.0.enter_any(&cx)?;
        self.0.serve_region_heartbeats(request, answers).await
    }

    async fn report_buckets(
        &self,
        cx: CallContext,
        request: Inbound<ReportBucketsRequest>,
    ) -> Result<ReportBucketsResponse, Status> {
        self.0.enter_any(&cx)?;
        self.0.take_buckets(request).await
    }

    async fn store_global_config(
        &self,
        cx: CallContext,
        request: StoreGlobalConfigRequest,
    ) -> Result<StoreGlobalConfigResponse, Status> {
        self.0.enter_any(&cx)?;
        self.0.store_global_config(request).await
    }

    async fn load_global_config(
        &self,
        cx: CallContext,
        request: LoadGlobalConfigRequest,
    ) -> Result<LoadGlobalConfigResponse, Status> {
        self.0.enter_any(&cx)?;
        self.0.load_global_config(request).await
    }

    async fn watch_global_config(
        &self,
        cx: CallContext,
        request: WatchGlobalConfigRequest,
        answers: Outbound<WatchGlobalConfigResponse>,
    ) -> Result<(), Status> {
        self.0.enter_any(&cx)?;
        self.0.watch_global_config(request, answers).await
    }

    methods! {
        bootstrap: BootstrapRequest => BootstrapResponse;
        is_bootstrapped: IsBootstrappedRequest => IsBootstrappedResponse;
        alloc_id: AllocIdRequest => AllocIdResponse;
        get_min_ts: GetMinTsRequest => GetMinTsResponse;
        get_external_timestamp: GetExternalTimestampRequest => GetExternalTimestampResponse;
        set_external_timestamp: SetExternalTimestampRequest => SetExternalTimestampResponse;
    }

    cluster_methods! {
        get_store: GetStoreRequest => GetStoreResponse;
        get_all_stores: GetAllStoresRequest => GetAllStoresResponse;
        store_heartbeat: StoreHeartbeatRequest => StoreHeartbeatResponse;
        get_region: GetRegionRequest => GetRegionResponse;
        get_prev_region: GetRegionRequest => GetRegionResponse;
        get_region_by_id: GetRegionByIdRequest => GetRegionResponse;
        scan_regions: ScanRegionsRequest => ScanRegionsResponse;
        batch_scan_regions: BatchScanRegionsRequest => BatchScanRegionsResponse;
        ask_split: AskSplitRequest => AskSplitResponse;
        report_split: ReportSplitRequest => ReportSplitResponse;
        ask_batch_split: AskBatchSplitRequest => AskBatchSplitResponse;
        report_batch_split: ReportBatchSplitRequest => ReportBatchSplitResponse;
        get_cluster_config: GetClusterConfigRequest => GetClusterConfigResponse;
        put_cluster_config: PutClusterConfigRequest => PutClusterConfigResponse;
        scatter_region: ScatterRegionRequest => ScatterRegionResponse;
        split_regions: SplitRegionsRequest => SplitRegionsResponse;
        split_and_scatter_regions: SplitAndScatterRegionsRequest => SplitAndScatterRegionsResponse;
        get_operator: GetOperatorRequest => GetOperatorResponse;
        get_gc_safe_point: GetGcSafePointRequest => GetGcSafePointResponse;
        update_gc_safe_point: UpdateGcSafePointRequest => UpdateGcSafePointResponse;
        update_service_gc_safe_point: UpdateServiceGcSafePointRequest => UpdateServiceGcSafePointResponse;
        get_gc_safe_point_v2: GetGcSafePointV2Request => GetGcSafePointV2Response;
        update_gc_safe_point_v2: UpdateGcSafePointV2Request => UpdateGcSafePointV2Response;
        update_service_safe_point_v2: UpdateServiceSafePointV2Request => UpdateServiceSafePointV2Response;
        get_all_gc_safe_point_v2: GetAllGcSafePointV2Request => GetAllGcSafePointV2Response;
        report_min_resolved_ts: ReportMinResolvedTsRequest => ReportMinResolvedTsResponse;
    }
}
