//! Safe points of garbage collection, in the calls of release 8.5.

use super::Core;
use crate::state::{GcError, GcScope, State};
use proto::pdpb::*;
use proto::rpc::Status;

impl Core {
    pub(super) async fn get_gc_safe_point(&self, _: GetGcSafePointRequest) -> Result<GetGcSafePointResponse, Status> {
        let safe_point = self.read(|state| state.gc_safe_point(GcScope::CLUSTER)).await?;
        Ok(GetGcSafePointResponse { header: self.header(), safe_point })
    }

    pub(super) async fn update_gc_safe_point(
        &self,
        request: UpdateGcSafePointRequest,
    ) -> Result<UpdateGcSafePointResponse, Status> {
        let new_safe_point = self.advance(None, request.safe_point).await?;
        Ok(UpdateGcSafePointResponse { header: self.header(), new_safe_point })
    }

    pub(super) async fn update_service_gc_safe_point(
        &self,
        request: UpdateServiceGcSafePointRequest,
    ) -> Result<UpdateServiceGcSafePointResponse, Status> {
        let (service_id, ttl, min_safe_point) =
            self.hold_back(None, &request.service_id, request.ttl, request.safe_point).await?;
        Ok(UpdateServiceGcSafePointResponse {
            header: self.header(),
            service_id: service_id.into(),
            ttl,
            min_safe_point,
        })
    }

    pub(super) async fn get_gc_safe_point_v2(
        &self,
        request: GetGcSafePointV2Request,
    ) -> Result<GetGcSafePointV2Response, Status> {
        let look = |state: &State| Ok(state.gc_safe_point(state.gc_scope(Some(request.keyspace_id))?));
        let safe_point = self.read(look).await?.map_err(|error: GcError| Status::unknown(error.to_string()))?;
        Ok(GetGcSafePointV2Response { header: self.header(), safe_point })
    }

    pub(super) async fn update_gc_safe_point_v2(
        &self,
        request: UpdateGcSafePointV2Request,
    ) -> Result<UpdateGcSafePointV2Response, Status> {
        let new_safe_point = self.advance(Some(request.keyspace_id), request.safe_point).await?;
        Ok(UpdateGcSafePointV2Response { header: self.header(), new_safe_point })
    }

    pub(super) async fn update_service_safe_point_v2(
        &self,
        request: UpdateServiceSafePointV2Request,
    ) -> Result<UpdateServiceSafePointV2Response, Status> {
        let keyspace = Some(request.keyspace_id);
        let (service_id, ttl, min_safe_point) =
            self.hold_back(keyspace, &request.service_id, request.ttl, request.safe_point).await?;
        Ok(UpdateServiceSafePointV2Response {
            header: self.header(),
            service_id: service_id.into(),
            ttl,
            min_safe_point,
        })
    }

    pub(super) async fn get_all_gc_safe_point_v2(
        &self,
        _: GetAllGcSafePointV2Request,
    ) -> Result<GetAllGcSafePointV2Response, Status> {
        let look = |state: &State| {
            let own = state.gc_scopes().filter_map(|scope| {
                Some(GcSafePointV2 { keyspace_id: scope.keyspace()?, gc_safe_point: state.gc_safe_point(scope) })
            });
            (own.collect(), state.space().revision())
        };
        let (gc_safe_points, revision) = self.read(look).await?;
        Ok(GetAllGcSafePointV2Response { header: self.header(), gc_safe_points, revision })
    }

    async fn advance(&self, keyspace: Option<u32>, target: u64) -> Result<u64, Status> {
        let now = executor::unix_time();
        let command = |state: &mut State| {
            let scope = state.gc_scope(keyspace)?;
            state.update_gc_safe_point(scope, target, now)
        };
        self.write(command).await?.map_err(|error| Status::unknown(error.to_string()))
    }

    async fn hold_back(
        &self,
        keyspace: Option<u32>,
        service: &[u8],
        ttl: i64,
        safe_point: u64,
    ) -> Result<(String, i64, u64), Status> {
        let now = executor::unix_time();
        let service = String::from_utf8_lossy(service);
        let command = |state: &mut State| {
            let scope = state.gc_scope(keyspace)?;
            state.update_service_safe_point(scope, &service, ttl, safe_point, now)
        };
        let held = self.write(command).await?.map_err(|error: GcError| Status::unknown(error.to_string()))?;
        Ok((held.service_id, held.ttl, held.min_safe_point))
    }
}
