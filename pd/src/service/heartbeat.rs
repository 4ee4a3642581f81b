//! The stream on which a store's leaders report their regions, and on which PD asks something of them.

use super::Core;
use super::lost::Lost;
use crate::directory::Refused;
use crate::metrics::add;
use base::Instant;
use proto::pdpb::{
    ErrorType, RegionHeartbeatRequest, RegionHeartbeatResponse, ReportBucketsRequest, ReportBucketsResponse,
};
use proto::rpc::{Inbound, Outbound, Status};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::Duration;

/// A stream without news from us gets an empty message this often.
const KEEPALIVE: Duration = Duration::from_secs(60);
/// How long a store may leave its stream unread before a request to it is given up.
const SEND_TIMEOUT: Duration = Duration::from_secs(1);

/// The stores' streams. One per store: bounded by the number of stores.
#[derive(Default)]
pub(crate) struct Streams {
    by_store: RefCell<BTreeMap<u64, Stream>>,
    tokens: Cell<u64>,
}

struct Stream {
    token: u64,
    answers: Outbound<RegionHeartbeatResponse>,
}

impl Streams {
    /// Sends to a store; false if it has no stream, or does not read it.
    pub(super) async fn send(&self, store: u64, message: &RegionHeartbeatResponse) -> bool {
        let answers = self.by_store.borrow().get(&store).map(|stream| stream.answers.clone());
        match answers {
            Some(answers) => matches!(executor::timeout(SEND_TIMEOUT, answers.send(message)).await, Ok(Ok(()))),
            None => false,
        }
    }
}

/// Binds a stream to the stores whose leaders report on it, as long as it lives.
struct Binding<'a> {
    streams: &'a Streams,
    lost: &'a Lost,
    /// The store has ended the stream itself.
    is_over: bool,
    token: u64,
    store: Option<u64>,
    answers: Outbound<RegionHeartbeatResponse>,
}

impl<'a> Binding<'a> {
    fn new(core: &'a Core, answers: Outbound<RegionHeartbeatResponse>) -> Binding<'a> {
        let (streams, lost) = (&core.streams, &core.lost);
        streams.tokens.set(streams.tokens.get() + 1);
        Binding { streams, lost, is_over: false, token: streams.tokens.get(), store: None, answers }
    }

    /// The newest stream on which a store reports is the one to answer on.
    fn bind(&mut self, store: u64) {
        if self.store != Some(store) {
            self.unbind();
            self.store = Some(store);
        }
        self.lost.found(store);
        let stream = Stream { token: self.token, answers: self.answers.clone() };
        self.streams.by_store.borrow_mut().insert(store, stream);
    }

    /// Answers whose newest stream this was.
    fn unbind(&mut self) -> Option<u64> {
        let mut by_store = self.streams.by_store.borrow_mut();
        let store = self.store.take()?;
        by_store.get(&store).filter(|stream| stream.token == self.token)?;
        by_store.remove(&store);
        Some(store)
    }
}

impl Drop for Binding<'_> {
    fn drop(&mut self) {
        let store = self.unbind();
        if let Some(store) = store.filter(|_| !self.is_over) {
            self.lost.note(store);
        }
    }
}

impl Core {
    /// Takes heartbeats until the store ends the stream.
    pub(super) async fn serve_region_heartbeats(
        &self,
        mut requests: Inbound<RegionHeartbeatRequest>,
        answers: Outbound<RegionHeartbeatResponse>,
    ) -> Result<(), Status> {
        let mut binding = Binding::new(self, answers.clone());
        let mut bind_again = executor::now();
        let mut keepalive = executor::now() + KEEPALIVE;
        loop {
            let Ok(request) = executor::timeout(until(keepalive), requests.next()).await else {
                let alive = RegionHeartbeatResponse { header: self.header(), ..RegionHeartbeatResponse::default() };
                answers.send(&alive).await?;
                keepalive = executor::now() + KEEPALIVE;
                continue;
            };
            let Some(request) = request? else {
                binding.is_over = true;
                return Ok(());
            };
            self.check_cluster(request.header.as_ref().map_or(0, |header| header.cluster_id))?;
            if let Some(header) = self.unless_bootstrapped() {
                let refusal = RegionHeartbeatResponse { header: Some(header), ..RegionHeartbeatResponse::default() };
                answers.send(&refusal).await?;
                return Ok(());
            }
            let store = request.leader.as_ref().map_or(0, |leader| leader.store_id);
            let now = executor::now();
            if binding.store != Some(store) || now >= bind_again {
                if self.peek().store(store).is_none() {
                    return Err(Status::unknown(format!("invalid store ID {store}, not found")));
                }
                binding.bind(store);
                bind_again = now + KEEPALIVE;
            }
            match self.take_region(&request).await? {
                Ok(None) => {}
                Ok(Some(order)) => answers.send(&order).await?,
                Err(refused) => answers.send(&self.refusal(&request, &refused)).await?,
            }
        }
    }

    /// Takes one heartbeat into the directory. What is new in it is put in line for the journal; nobody waits for
    /// that, since the leader reports again after a restart. Returns what the leader is asked for.
    async fn take_region(
        &self,
        request: &RegionHeartbeatRequest,
    ) -> Result<Result<Option<RegionHeartbeatResponse>, Refused>, Status> {
        self.line.admit().await.map_err(|backlog| Status::resource_exhausted(backlog.to_string()))?;
        let now_s = executor::unix_time().seconds();
        let taken = self.directory.borrow_mut().heartbeat(request, now_s);
        let taken = match taken {
            Ok(taken) => taken,
            Err(refused) => {
                add(&self.metrics.region_heartbeats_refused_total, 1);
                return Ok(Err(refused));
            }
        };
        add(&self.metrics.region_heartbeats_total, 1);
        self.lost.reported();
        if taken.changed {
            let mut state = self.state.borrow_mut();
            taken.overlapped.iter().for_each(|id| state.drop_region(*id));
            if let Some(region) = &request.region {
                state.put_region(region);
            }
            drop(state);
            self.line.collect();
            self.regions_gone(&taken.overlapped);
        }
        Ok(Ok(self.order_for(request.region.as_ref().map_or(0, |region| region.id))))
    }

    fn refusal(&self, request: &RegionHeartbeatRequest, refused: &Refused) -> RegionHeartbeatResponse {
        let region_id = request.region.as_ref().map_or(0, |region| region.id);
        tracing::debug!(region = region_id, %refused, "a region's heartbeat is refused");
        RegionHeartbeatResponse {
            header: self.error(ErrorType::Unknown, refused),
            region_id,
            region_epoch: request.region.as_ref().and_then(|region| region.region_epoch),
            target_peer: request.leader,
            ..RegionHeartbeatResponse::default()
        }
    }

    /// Takes buckets until the store ends the stream.
    pub(super) async fn take_buckets(
        &self,
        mut requests: Inbound<ReportBucketsRequest>,
    ) -> Result<ReportBucketsResponse, Status> {
        while let Some(request) = requests.next().await? {
            self.check_cluster(request.header.as_ref().map_or(0, |header| header.cluster_id))?;
            if let Some(buckets) = request.buckets {
                self.directory.borrow_mut().report_buckets(buckets);
            }
        }
        Ok(ReportBucketsResponse { header: self.header() })
    }
}

fn until(deadline: Instant) -> Duration {
    deadline.since(executor::now())
}
