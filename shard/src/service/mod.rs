//! The service `tikvpb.Tikv` on one core: requests in, routed to the core of their region, answered.
//!
//! ```text
//!  connection's core                          region's core
//!  shallow parse ── region here ────────────▶ execute ──▶ answer
//!        └──────── elsewhere: one letter ───▶ execute ──▶ one letter back
//! ```
//!
//! A region that is on its way between shards answers "moving": then the route is looked up again after a moment.

mod batch;
mod clock;
mod command;
mod errors;
mod latches;
mod ledger;
mod memory;
mod raft;
mod raw;
mod room;
mod txn;
mod waits;
mod walk;

use std::rc::Rc;
use std::time::Duration;

use base::{CoreId, Instant, RegionId};
use bytes::Bytes;
use executor::Class;
use proto::rpc::{CallContext, LocalFuture, RawInbound, RawOutbound, Service, Shape, Status, refuse};
use proto::{kvrpcpb, shallow};

use crate::core::{Answered, Control, CoreHost, RegionError, RemoteRequest, reply};
use crate::engine::Engine;
use clock::CausalClock;
use latches::Latches;
use ledger::{Ledger, ServiceMetrics, count};
use memory::TxnMemory;
use room::AnswerRoom;
use waits::TxnWaits;

/// How long a request waits for its region to arrive somewhere, or for room in a mailbox.
const REROUTE_LIMIT: Duration = Duration::from_secs(1);

/// The text of TiKV for a request that is meant for another cluster.
const WRONG_CLUSTER: &str = "the cluster id of the request does not match the TiKV cluster";

/// The service on one core.
pub struct TikvService<E: Engine> {
    pub(crate) host: Rc<CoreHost<E>>,
    metrics: ServiceMetrics,
    latches: Latches,
    memory: TxnMemory,
    waits: Rc<TxnWaits>,
    clock: CausalClock,
    room: AnswerRoom,
}

impl<E: Engine> TikvService<E> {
    /// The service of `host`'s core.
    pub fn new(host: Rc<CoreHost<E>>) -> Rc<TikvService<E>> {
        Rc::new(TikvService {
            host,
            metrics: ServiceMetrics::default(),
            latches: Latches::default(),
            memory: TxnMemory::default(),
            waits: Rc::default(),
            clock: CausalClock::default(),
            room: AnswerRoom::default(),
        })
    }

    /// The counters as lines of the Prometheus text format.
    pub fn metrics_text(&self, core: u16, out: &mut String) {
        let held = ledger::Held {
            answer_bytes: self.room.held(),
            memory_locks: self.memory.len() as u64,
            lock_waits: self.waits.len() as u64,
        };
        self.metrics.write_text(core, &held, out);
    }

    /// Serves a request on this core.
    async fn execute(self: &Rc<Self>, tag: u32, body: Bytes, arrived: Instant, deadline: Option<Instant>) -> Answered {
        let ledger = Ledger { arrived, started: arrived, ..Default::default() };
        txn::execute(raw::Request::new(self.clone(), deadline, ledger), tag, body).await
    }

    /// Sends a request to the core of its region until it is answered.
    async fn call(
        self: &Rc<Self>,
        tag: u32,
        body: Bytes,
        arrived: Instant,
        deadline: Option<Instant>,
    ) -> Result<Bytes, Status> {
        let region = region_of(&body)?;
        let mut pause = Duration::from_millis(1);
        loop {
            let core = self.host.route(region);
            let mut is_full = false;
            let answered = if core == self.host.core {
                self.execute(tag, body.clone(), arrived, deadline).await
            } else {
                count(&self.metrics.hops);
                match self.host.ask(core, tag, body.clone(), arrived, deadline) {
                    // A core that is gone answers nothing more.
                    Ok(answer) => answer.await.map_err(|_| Status::unavailable("TiKV is Closing"))?,
                    Err(_full) => {
                        is_full = true;
                        Answered::Moving(region)
                    }
                }
            };
            match answered {
                Answered::Bytes(answer) => return Ok(answer),
                Answered::Malformed(why) => return Err(Status::internal(format!("request: {why}"))),
                Answered::Moving(_) => {}
            }
            let now = executor::now();
            let late = deadline.is_some_and(|deadline| now + pause >= deadline);
            if late || now.since(arrived) >= REROUTE_LIMIT {
                let error = if late {
                    RegionError::DeadlineExceeded
                } else if self.host.node.mail[usize::from(core.0)].is_closed() {
                    RegionError::RegionNotFound(region)
                } else if is_full {
                    RegionError::ServerIsBusy { reason: "raftstore is busy".into(), backoff_ms: 50 }
                } else {
                    // Clients come again on this one; of a busy server some would tell their user.
                    RegionError::NotLeader { region, leader: None }
                };
                return Ok(refusal(&errors::region_error(error)));
            }
            count(&self.metrics.retries);
            executor::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    /// Removes the versions of all keys of `[start, end)` from this store, and locks on them. Keys as clients name them.
    ///
    /// # Errors
    /// What is wrong with the range, or with an engine. Some of it may be gone then.
    async fn destroy_range(&self, start: &[u8], end: &[u8]) -> Result<(), String> {
        if end.is_empty() {
            // A client that left it out would lose all that follows.
            return Err("the range has no end".into());
        }
        if start >= end {
            return Ok(());
        }
        let (start, end) = (mvcc::txn::key::encode(start), mvcc::txn::key::encode(end));
        let ask = |core| {
            let (reply, answer) = reply();
            let (start, end) = (start.clone(), end.clone());
            self.host.control(CoreId(core), Control::DestroyRange { start, end, reply });
            answer
        };
        let answers: Vec<_> = (0..self.host.node.mail.len()).map(|core| ask(core as u16)).collect();
        for answer in answers {
            answer.wait().await.ok_or("TiKV is Closing")??;
        }
        Ok(())
    }

    /// Refuses a request that bears another cluster's id.
    fn check_cluster(&self, body: &Bytes) -> Result<(), Status> {
        match cluster_of(body) {
            0 => Ok(()),
            id if id == self.host.node.cluster.0 => Ok(()),
            _ => Err(Status::invalid_argument(WRONG_CLUSTER)),
        }
    }
}

/// The region that a request names.
fn region_of(body: &Bytes) -> Result<RegionId, Status> {
    shallow::region_id(body).map(RegionId).map_err(|error| Status::internal(format!("request: {error}")))
}

/// `Context.cluster_id` of a request; 0 if it has none. Requests that cannot be read are refused elsewhere.
fn cluster_of(body: &Bytes) -> u64 {
    shallow::cluster_id(body).unwrap_or(0)
}

/// An answer with only a region error: field 1 of every answer of a region's command.
fn refusal(error: &proto::errorpb::Error) -> Bytes {
    use prost::Message as _;
    kvrpcpb::RawPutResponse { region_error: Some(error.clone()), ..Default::default() }.encode_to_vec().into()
}

impl<E: Engine> Service for ServiceHandle<E> {
    fn name(&self) -> &'static str {
        "tikvpb.Tikv"
    }

    fn shape(&self, method: &str) -> Option<Shape> {
        match method {
            "BatchCommands" => Some(Shape::Bidi),
            "Raft" | "BatchRaft" | "Snapshot" => Some(Shape::ClientStream),
            "GetStoreSafeTS" | "GetHealthFeedback" | "GetLockWaitInfo" | "UnsafeDestroyRange" => Some(Shape::Unary),
            _ => command::by_name(method).map(|_| Shape::Unary),
        }
    }

    fn unary(&self, method: &str, cx: CallContext, request: Bytes) -> LocalFuture<Result<Bytes, Status>> {
        use prost::Message as _;
        let service = self.0.clone();
        match method {
            // Nothing is resolved yet without transactions: 0 says "nothing is known".
            "GetStoreSafeTS" => Box::pin(async { Ok(kvrpcpb::StoreSafeTsResponse::default().encode_to_vec().into()) }),
            "GetLockWaitInfo" => Box::pin(async move {
                service.check_cluster(&request)?;
                let (entries, error) = match waits::all(&service.host).await {
                    Ok(entries) => (entries, String::new()),
                    Err(error) => (Vec::new(), error),
                };
                let answer = kvrpcpb::GetLockWaitInfoResponse { entries, error, ..Default::default() };
                Ok(answer.encode_to_vec().into())
            }),
            "UnsafeDestroyRange" => Box::pin(async move {
                service.check_cluster(&request)?;
                let request = kvrpcpb::UnsafeDestroyRangeRequest::decode(request)
                    .map_err(|error| Status::internal(format!("request: {error}")))?;
                let error = service.destroy_range(&request.start_key, &request.end_key).await.err().unwrap_or_default();
                Ok(kvrpcpb::UnsafeDestroyRangeResponse { error, ..Default::default() }.encode_to_vec().into())
            }),
            "GetHealthFeedback" => Box::pin(async move {
                let health = Some(batch::health(&service));
                let answer = kvrpcpb::GetHealthFeedbackResponse { health_feedback: health, ..Default::default() };
                Ok(answer.encode_to_vec().into())
            }),
            _ => {
                let Some(tag) = command::by_name(method) else {
                    return refuse(Status::no_method("tikvpb.Tikv", method));
                };
                let arrived = executor::now();
                Box::pin(async move {
                    service.check_cluster(&request)?;
                    service.call(tag, request, arrived, cx.deadline).await
                })
            }
        }
    }

    fn stream(
        &self,
        method: &str,
        _cx: CallContext,
        inbound: Box<dyn RawInbound>,
        outbound: Rc<dyn RawOutbound>,
    ) -> LocalFuture<Result<(), Status>> {
        match method {
            "BatchCommands" => Box::pin(batch::serve(self.0.clone(), inbound, outbound)),
            "Raft" | "BatchRaft" | "Snapshot" => {
                Box::pin(raft::serve(self.0.host.clone(), method.to_owned(), inbound, outbound))
            }
            _ => refuse(Status::no_method("tikvpb.Tikv", method)),
        }
    }
}

/// The service as `net` takes it.
pub struct ServiceHandle<E: Engine>(pub Rc<TikvService<E>>);

/// Serves requests that another core sent. Those that end at once are answered in one letter.
pub fn serve_remote<E: Engine>(service: &Rc<TikvService<E>>, from: CoreId, requests: Vec<RemoteRequest>) {
    use futures_util::FutureExt as _;
    let mut ready = Vec::new();
    for request in requests {
        let RemoteRequest { token, tag, deadline, arrived, body } = request;
        let owned = service.clone();
        let mut work = Box::pin(async move { owned.execute(tag, body, arrived, deadline).await });
        match (&mut work).now_or_never() {
            Some(answer) => ready.push((token, answer)),
            None => {
                let service = service.clone();
                executor::spawn_local(Class::Foreground, async move {
                    let answer = work.await;
                    service.host.reply(from, vec![(token, answer)]);
                });
            }
        }
    }
    if !ready.is_empty() {
        service.host.reply(from, ready);
    }
}
