//! What clients newer than release 8.5 call on `pdpb.PD`, beside the generated methods: `QueryRegion`, which today's
//! client-go uses for every region it looks up, and `AllocID` with a count.
//!
//! The messages stand here because the project's protocol is that of release 8.5. The newer calls about garbage
//! collection (`GetGCState` and its kin) are not served: clients fall back to the etcd key of the safe point.

use super::Core;
use crate::directory::Region;
use bytes::Bytes;
use proto::pdpb::PeerStats;
use proto::rpc::{CallContext, Inbound, LocalFuture, Outbound, RawInbound, RawOutbound, Service, Shape, Status};
use proto::{metapb, pdpb, rpc};
use std::collections::BTreeMap;
use std::rc::Rc;

/// Many regions at once, by key, by the key behind, or by id.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct QueryRegionRequest {
    #[prost(message, optional, tag = "1")]
    header: Option<pdpb::RequestHeader>,
    #[prost(bool, tag = "2")]
    need_buckets: bool,
    #[prost(uint64, repeated, tag = "3")]
    ids: Vec<u64>,
    #[prost(bytes = "bytes", repeated, tag = "4")]
    keys: Vec<Bytes>,
    #[prost(bytes = "bytes", repeated, tag = "5")]
    prev_keys: Vec<Bytes>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RegionResponse {
    #[prost(message, optional, tag = "1")]
    region: Option<metapb::Region>,
    #[prost(message, optional, tag = "2")]
    leader: Option<metapb::Peer>,
    #[prost(message, repeated, tag = "3")]
    down_peers: Vec<PeerStats>,
    #[prost(message, repeated, tag = "4")]
    pending_peers: Vec<metapb::Peer>,
    #[prost(message, optional, tag = "5")]
    buckets: Option<metapb::Buckets>,
}

/// Region ids in the order of the keys (0 = none), and each region once.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct QueryRegionResponse {
    #[prost(message, optional, tag = "1")]
    header: Option<pdpb::ResponseHeader>,
    #[prost(uint64, repeated, tag = "2")]
    key_id_map: Vec<u64>,
    #[prost(uint64, repeated, tag = "3")]
    prev_key_id_map: Vec<u64>,
    #[prost(btree_map = "uint64, message", tag = "4")]
    regions_by_id: BTreeMap<u64, RegionResponse>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct AllocIdRequest {
    #[prost(message, optional, tag = "1")]
    header: Option<pdpb::RequestHeader>,
    #[prost(uint32, tag = "2")]
    count: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct AllocIdResponse {
    #[prost(message, optional, tag = "1")]
    header: Option<pdpb::ResponseHeader>,
    #[prost(uint64, tag = "2")]
    id: u64,
    #[prost(uint32, tag = "3")]
    count: u32,
}

/// Most ids that one call takes.
const ALLOC_COUNT_MAX: u32 = 1 << 20;

/// `pdpb.PD` with the newer methods.
pub(super) struct PdWithExtras<S> {
    inner: S,
    core: Rc<Core>,
}

impl<S: Service> PdWithExtras<S> {
    /// Adds the newer methods to `inner`.
    pub(super) fn new(inner: S, core: Rc<Core>) -> Self {
        PdWithExtras { inner, core }
    }
}

impl<S: Service> Service for PdWithExtras<S> {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn shape(&self, method: &str) -> Option<Shape> {
        if method == "QueryRegion" { Some(Shape::Bidi) } else { self.inner.shape(method) }
    }

    fn unary(&self, method: &str, cx: CallContext, request: Bytes) -> LocalFuture<Result<Bytes, Status>> {
        if method != "AllocID" {
            return self.inner.unary(method, cx, request);
        }
        let core = Rc::clone(&self.core);
        Box::pin(async move { Ok(rpc::encode(&core.alloc_ids(&cx, rpc::decode(request)?).await?)) })
    }

    fn stream(
        &self,
        method: &str,
        cx: CallContext,
        inbound: Box<dyn RawInbound>,
        outbound: Rc<dyn RawOutbound>,
    ) -> LocalFuture<Result<(), Status>> {
        if method != "QueryRegion" {
            return self.inner.stream(method, cx, inbound, outbound);
        }
        let core = Rc::clone(&self.core);
        Box::pin(async move {
            core.enter_any(&cx)?;
            core.serve_queries(Inbound::new(inbound), Outbound::new(outbound)).await
        })
    }
}

impl Core {
    async fn alloc_ids(&self, cx: &CallContext, request: AllocIdRequest) -> Result<AllocIdResponse, Status> {
        self.enter(cx, request.header.as_ref())?;
        if request.count > ALLOC_COUNT_MAX {
            let text = format!("at most {ALLOC_COUNT_MAX} ids at once, not {}", request.count);
            return Ok(AllocIdResponse { header: self.error(pdpb::ErrorType::Unknown, text), id: 0, count: 0 });
        }
        let id = self.write(|state| state.alloc_id(request.count)).await?;
        self.ids_given_out(id);
        let count = if request.count > 1 { request.count } else { 0 };
        Ok(AllocIdResponse { header: self.header(), id, count })
    }

    async fn serve_queries(
        &self,
        mut requests: Inbound<QueryRegionRequest>,
        answers: Outbound<QueryRegionResponse>,
    ) -> Result<(), Status> {
        while let Some(request) = requests.next().await? {
            self.check_cluster(request.header.as_ref().map_or(0, |header| header.cluster_id))?;
            let answer = match self.unless_bootstrapped() {
                Some(header) => QueryRegionResponse { header: Some(header), ..QueryRegionResponse::default() },
                None => self.query(&request),
            };
            answers.send(&answer).await?;
        }
        Ok(())
    }

    fn query(&self, request: &QueryRegionRequest) -> QueryRegionResponse {
        let directory = self.directory.borrow();
        let mut answer = QueryRegionResponse { header: self.header(), ..QueryRegionResponse::default() };
        let mut note = |region: Option<&Rc<Region>>| {
            let Some(region) = region else { return 0 };
            let id = region.meta.id;
            answer.regions_by_id.entry(id).or_insert_with(|| RegionResponse {
                region: Some(region.meta.clone()),
                leader: region.leader,
                down_peers: region.down_peers.clone(),
                pending_peers: region.pending_peers.clone(),
                buckets: self.buckets_of(region, request.need_buckets),
            });
            id
        };
        let key_id_map = request.keys.iter().map(|key| note(directory.by_key(key))).collect();
        let prev_key_id_map = request.prev_keys.iter().map(|key| note(directory.before_key(key))).collect();
        request.ids.iter().for_each(|id| {
            note(directory.by_id(*id));
        });
        QueryRegionResponse { key_id_map, prev_key_id_map, ..answer }
    }
}
