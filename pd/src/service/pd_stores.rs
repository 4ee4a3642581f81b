//! Bootstrap, ids, stores and their heartbeats.

use super::{Core, tso};
use crate::metrics::add;
use crate::state::{ClusterError, StoreStart};
use proto::metapb::{self, StoreState};
use proto::pdpb::*;
use proto::rpc::Status;
use std::rc::Rc;

impl Core {
    pub(super) async fn bootstrap(&self, request: BootstrapRequest) -> Result<BootstrapResponse, Status> {
        let (max_replicas, now) = (self.config.max_replicas, executor::unix_time());
        let outcome = self
            .write(|state| state.bootstrap(request.store.as_ref(), request.region.as_ref(), max_replicas, now))
            .await?;
        if outcome.is_ok()
            && let Some(region) = &request.region
        {
            let taken = self.directory.borrow_mut().report(region);
            taken.map_err(|refused| Status::unknown(refused.to_string()))?;
            tracing::info!(region = region.id, "the cluster is bootstrapped");
        }
        let (header, ()) = self.outcome(outcome);
        Ok(BootstrapResponse { header, replication_status: None })
    }

    pub(super) async fn is_bootstrapped(&self, _: IsBootstrappedRequest) -> Result<IsBootstrappedResponse, Status> {
        let bootstrapped = self.read(|state| state.is_bootstrapped()).await?;
        Ok(IsBootstrappedResponse { header: self.header(), bootstrapped })
    }

    pub(super) async fn alloc_id(&self, _: AllocIdRequest) -> Result<AllocIdResponse, Status> {
        let id = self.write(|state| state.alloc_id(1)).await?;
        self.ids_given_out(id);
        Ok(AllocIdResponse { header: self.header(), id })
    }

    pub(super) async fn get_store(&self, request: GetStoreRequest) -> Result<GetStoreResponse, Status> {
        let store = self.read(|state| state.store(request.store_id)).await?;
        let Some(store) = store else {
            let header = self.header_of(&ClusterError::StoreNotFound(request.store_id));
            return Ok(GetStoreResponse { header, ..GetStoreResponse::default() });
        };
        let stats = self.vitals.borrow().of(store.id).stats;
        Ok(GetStoreResponse { header: self.header(), store: Some(self.with_heartbeat(store)), stats: Some(stats) })
    }

    pub(super) async fn put_store(
        &self,
        request: PutStoreRequest,
        start: Option<StoreStart>,
    ) -> Result<PutStoreResponse, Status> {
        let Some(store) = request.store else {
            let header = self.error(ErrorType::Unknown, "invalid put store: no store");
            return Ok(PutStoreResponse { header, ..PutStoreResponse::default() });
        };
        let outcome = self.write(|state| state.put_store_of(&store, start)).await?;
        match &outcome {
            Ok(()) => {
                tracing::info!(store = store.id, address = store.address, version = store.version, ?start, "put store");
            }
            Err(error) => tracing::warn!(store = store.id, address = store.address, %error, "store refused"),
        }
        let (header, ()) = self.outcome(outcome);
        Ok(PutStoreResponse { header, replication_status: None })
    }

    pub(super) async fn get_all_stores(&self, request: GetAllStoresRequest) -> Result<GetAllStoresResponse, Status> {
        let mut stores = self.read(|state| state.stores()).await?;
        if request.exclude_tombstone_stores {
            stores.retain(|store| store.state() != StoreState::Tombstone);
        }
        let stores = stores.into_iter().map(|store| self.with_heartbeat(store)).collect();
        Ok(GetAllStoresResponse { header: self.header(), stores })
    }

    /// The description with the time of the last heartbeat, which is not kept on disk.
    pub(crate) fn with_heartbeat(&self, mut store: metapb::Store) -> metapb::Store {
        let heartbeat = self.vitals.borrow().of(store.id).heartbeat_ns;
        store.last_heartbeat = store.last_heartbeat.max(i64::try_from(heartbeat).unwrap_or(i64::MAX));
        store
    }

    pub(super) async fn store_heartbeat(
        &self,
        request: StoreHeartbeatRequest,
    ) -> Result<StoreHeartbeatResponse, Status> {
        let Some(stats) = request.stats else {
            return Err(Status::unknown("invalid store heartbeat command, but no store stats"));
        };
        let store = stats.store_id;
        let leaving = self.peek().store(store).is_some_and(|store| store.state() == StoreState::Offline);
        if leaving && stats.region_count == 0 && !self.directory.borrow().has_peer_on(store) {
            self.write(|state| state.bury_store(store)).await?;
        }
        let (version, alive) = self.write(|state| (state.cluster_version(), state.store_is_alive(store))).await?;
        let store = match alive {
            Ok(store) => store,
            Err(error) => {
                let header = self.header_of(&error);
                return Ok(StoreHeartbeatResponse { header, ..StoreHeartbeatResponse::default() });
            }
        };
        self.vitals.borrow_mut().heartbeat(stats, executor::unix_time().0, executor::now());
        add(&self.metrics.store_heartbeats_total, 1);
        Ok(StoreHeartbeatResponse {
            header: self.header(),
            cluster_version: version.map(|version| version.to_string()).unwrap_or_default(),
            state: store.node_state,
            ..StoreHeartbeatResponse::default()
        })
    }

    pub(super) async fn get_cluster_config(
        &self,
        _: GetClusterConfigRequest,
    ) -> Result<GetClusterConfigResponse, Status> {
        let cluster = self.read(|state| state.cluster()).await?;
        Ok(GetClusterConfigResponse { header: self.header(), cluster })
    }

    pub(super) async fn put_cluster_config(
        &self,
        request: PutClusterConfigRequest,
    ) -> Result<PutClusterConfigResponse, Status> {
        let cluster = request.cluster.unwrap_or_default();
        let (header, ()) = self.outcome(self.write(|state| state.put_cluster(&cluster)).await?);
        Ok(PutClusterConfigResponse { header })
    }

    pub(super) async fn report_min_resolved_ts(
        &self,
        request: ReportMinResolvedTsRequest,
    ) -> Result<ReportMinResolvedTsResponse, Status> {
        let id = request.store_id;
        if self.peek().store(id).is_none() {
            let header = self.header_of(&ClusterError::StoreNotFound(id));
            return Ok(ReportMinResolvedTsResponse { header });
        }
        self.vitals.borrow_mut().resolved(id, request.min_resolved_ts);
        Ok(ReportMinResolvedTsResponse { header: self.header() })
    }

    /// The smallest resolved timestamp over the stores that count; `None` while it is unknown.
    pub(crate) fn min_resolved_ts(&self) -> Option<u64> {
        let stores = self.peek().stores();
        let counted = stores.iter().filter(|store| store.state() != StoreState::Tombstone).map(|store| store.id);
        self.vitals.borrow_mut().min_resolved(counted)
    }

    pub(super) async fn get_min_ts(self: &Rc<Self>, _: GetMinTsRequest) -> Result<GetMinTsResponse, Status> {
        let timestamp = self.timestamps(1).await?;
        Ok(GetMinTsResponse { header: self.header(), timestamp: Some(tso::to_wire(timestamp)) })
    }

    pub(super) async fn get_external_timestamp(
        &self,
        _: GetExternalTimestampRequest,
    ) -> Result<GetExternalTimestampResponse, Status> {
        let timestamp = self.read(|state| state.external_timestamp()).await?;
        Ok(GetExternalTimestampResponse { header: self.header(), timestamp })
    }

    pub(super) async fn set_external_timestamp(
        self: &Rc<Self>,
        request: SetExternalTimestampRequest,
    ) -> Result<SetExternalTimestampResponse, Status> {
        let newest = self.fresh_timestamp().await?;
        let outcome = self.write(|state| state.set_external_timestamp(request.timestamp, newest)).await?;
        let (header, ()) = self.outcome(outcome);
        Ok(SetExternalTimestampResponse { header })
    }
}
