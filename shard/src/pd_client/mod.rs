//! The node's way to the placement driver: which member leads, calls that are repeated where that is safe, batched
//! timestamps, and the stream of region heartbeats.
//!
//! One client serves a core and stays on it; clones share everything. Every call here may be repeated: what a lost
//! answer leaves behind is an unused id at worst.

mod heartbeat;
mod tso;

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use executor::{Class, Task};
use net::{Channel, ChannelConfig};
use proto::metapb;
use proto::pdpb::{self, ErrorType};
use proto::rpc::{CallContext, Code, Status};

pub use heartbeat::PdEvent;

type Stub = pdpb::PdClient<Channel>;

/// How long one try of a call may take: as TiKV's stores wait.
const CALL_TIMEOUT: Duration = Duration::from_secs(2);
/// The same where there are other members to turn to.
const CALL_TIMEOUT_OF_MANY: Duration = Duration::from_secs(1);
/// How long one of several members may take to say who leads.
const FIND_TIMEOUT: Duration = Duration::from_millis(300);
/// Tries of a call before its error goes to the caller: about four seconds, three elections' time.
const TRIES: u32 = 8;
/// Wait before the second try; it doubles up to [`BACKOFF_MAX`].
const BACKOFF_MIN: Duration = Duration::from_millis(50);
/// Longest wait between tries.
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// Rounds over all addresses before [`PdClient::connect`] gives up: about half a minute.
const CONNECT_ROUNDS: u32 = 32;

/// Metadata of `PutStore`: which start of the store this is.
const STORE_START: &str = "basalt-store-start";

/// One start of a store: tells two processes on copies of one data folder from each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreStart {
    /// How many there have been, this one included.
    pub count: u64,
    /// Drawn at this start.
    pub nonce: u64,
}

impl std::fmt::Display for StoreStart {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{:016x}", self.count, self.nonce)
    }
}

/// Why a call to the placement driver failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PdClientError {
    /// The placement driver refuses; repeating does not help.
    #[error("the placement driver answers {kind:?}: {message}")]
    Refused {
        /// What kind of refusal.
        kind: ErrorType,
        /// Its text.
        message: String,
    },
    /// The call did not get through.
    #[error("the placement driver cannot be asked: {0}")]
    Call(#[from] Status),
    /// No member that leads could be found.
    #[error("no placement driver leads among {}", .0.join(", "))]
    NoLeader(Vec<String>),
    /// The members are of another cluster than the one that this client belongs to.
    #[error("the placement driver at {address} belongs to cluster {theirs}, not to {ours}")]
    OtherCluster {
        /// Who answered.
        address: String,
        /// Its cluster.
        theirs: u64,
        /// Ours.
        ours: u64,
    },
    /// Too many callers wait for timestamps.
    #[error("too many callers wait for timestamps")]
    Busy,
}

/// The placement driver's client.
#[derive(Clone)]
pub struct PdClient(Rc<Handle>);

/// What the clones share. With the last of them the client's tasks end.
struct Handle {
    inner: Rc<Inner>,
    tasks: Vec<Task<()>>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.tasks.drain(..).for_each(Task::cancel);
    }
}

impl std::ops::Deref for Handle {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.inner
    }
}

struct Inner {
    /// Addresses to look for members at: the configured ones, then those that members have told.
    addresses: RefCell<Vec<String>>,
    leader: RefCell<Option<Leader>>,
    /// Who was the leader last, and calls for those who hold streams to it when it is another.
    last_leader: RefCell<String>,
    moved: executor::Notify,
    cluster_id: Cell<u64>,
    channels: ChannelConfig,
    tso: tso::Queue,
    heartbeats: heartbeat::Outbox,
}

#[derive(Clone)]
struct Leader {
    address: String,
    stub: Stub,
}

/// Answers that carry a header.
trait Headed {
    fn header(&self) -> Option<&pdpb::ResponseHeader>;
}

macro_rules! headed {
    ($($answer:ident),* $(,)?) => {
        $(impl Headed for pdpb::$answer {
            fn header(&self) -> Option<&pdpb::ResponseHeader> {
                self.header.as_ref()
            }
        })*
    };
}

headed!(
    AllocIdResponse,
    AskBatchSplitResponse,
    BootstrapResponse,
    GetAllStoresResponse,
    GetGcSafePointResponse,
    GetMembersResponse,
    GetRegionResponse,
    GetStoreResponse,
    IsBootstrappedResponse,
    PutStoreResponse,
    ReportBatchSplitResponse,
    ReportMinResolvedTsResponse,
    StoreHeartbeatResponse,
);

/// The error in an answer's header.
fn check(header: Option<&pdpb::ResponseHeader>) -> Result<(), PdClientError> {
    match header.and_then(|header| header.error.as_ref()) {
        Some(error) if error.r#type() != ErrorType::Ok => {
            Err(PdClientError::Refused { kind: error.r#type(), message: error.message.clone() })
        }
        _ => Ok(()),
    }
}

/// Calls a method until it gets through.
macro_rules! call {
    ($client:ident, $method:ident, $request:ident) => {
        $client.0.call(|stub: Stub, cx| {
            let request = $request.clone();
            async move { stub.$method(cx, &request).await }
        })
    };
}

/// Calls a method once.
macro_rules! call_once {
    ($client:ident, $method:ident, $request:ident) => {
        $client.0.call_once(&|stub: Stub, cx| {
            let request = $request.clone();
            async move { stub.$method(cx, &request).await }
        })
    };
}

impl PdClient {
    /// Finds the member that leads, asking each of `addresses` (`host:port`, a scheme is allowed) in turn. All
    /// connections are made as `channels` says.
    ///
    /// # Errors
    /// [`PdClientError::NoLeader`] if none is found within half a minute.
    pub async fn connect(addresses: &[String], channels: ChannelConfig) -> Result<PdClient, PdClientError> {
        let inner = Inner {
            addresses: RefCell::new(addresses.to_vec()),
            leader: RefCell::new(None),
            last_leader: RefCell::default(),
            moved: executor::Notify::new(),
            cluster_id: Cell::new(0),
            channels: watchful(channels),
            tso: tso::Queue::default(),
            heartbeats: heartbeat::Outbox::default(),
        };
        let inner = Rc::new(inner);
        let mut wait = BACKOFF_MIN;
        for _ in 0..CONNECT_ROUNDS {
            match inner.find_leader().await {
                Ok(_) => {
                    let tasks = vec![
                        executor::spawn_local(Class::Foreground, tso::run(Rc::clone(&inner))),
                        executor::spawn_local(Class::Background, heartbeat::run(Rc::clone(&inner))),
                    ];
                    return Ok(PdClient(Rc::new(Handle { inner, tasks })));
                }
                Err(error @ PdClientError::OtherCluster { .. }) => return Err(error),
                Err(_) => {}
            }
            executor::sleep(wait).await;
            wait = (wait * 2).min(BACKOFF_MAX);
        }
        Err(PdClientError::NoLeader(addresses.to_vec()))
    }

    /// The cluster that the members belong to.
    pub fn cluster_id(&self) -> u64 {
        self.0.cluster_id.get()
    }

    /// Takes an id that nobody else has or will get.
    ///
    /// # Errors
    /// [`PdClientError`], as all calls.
    pub async fn alloc_id(&self) -> Result<u64, PdClientError> {
        let request = pdpb::AllocIdRequest { header: self.0.header() };
        let answer = call!(self, alloc_id, request).await?;
        Ok(answer.id)
    }

    /// Whether the cluster has its first store and region.
    ///
    /// # Errors
    /// [`PdClientError`], as all calls.
    pub async fn is_bootstrapped(&self) -> Result<bool, PdClientError> {
        let request = pdpb::IsBootstrappedRequest { header: self.0.header() };
        let answer = call!(self, is_bootstrapped, request).await?;
        Ok(answer.bootstrapped)
    }

    /// Starts the cluster with its first store and region.
    ///
    /// # Errors
    /// [`PdClientError::Refused`] with `AlreadyBootstrapped` if another store was first, or if an earlier try of this
    /// call got through and its answer was lost.
    pub async fn bootstrap(&self, store: metapb::Store, region: metapb::Region) -> Result<(), PdClientError> {
        let request = pdpb::BootstrapRequest { header: self.0.header(), store: Some(store), region: Some(region) };
        call!(self, bootstrap, request).await.map(drop)
    }

    /// Registers this store, at every start. `start` travels as metadata, which a stock PD does not look at.
    ///
    /// # Errors
    /// [`PdClientError::Refused`] for a tombstone, an address in use, a version too old, and by our PD for a start that
    /// is not newer than the last one.
    pub async fn put_store(&self, store: metapb::Store, start: Option<&StoreStart>) -> Result<(), PdClientError> {
        let request = pdpb::PutStoreRequest { header: self.0.header(), store: Some(store) };
        let answer = self.0.call(|stub: Stub, mut cx: CallContext| {
            let request = request.clone();
            if let Some(start) = start {
                cx.metadata.push(STORE_START, start.to_string());
            }
            async move { stub.put_store(cx, &request).await }
        });
        answer.await.map(drop)
    }

    /// A store's description.
    ///
    /// # Errors
    /// [`PdClientError::Refused`] for an unknown store.
    pub async fn store(&self, store_id: u64) -> Result<metapb::Store, PdClientError> {
        let request = pdpb::GetStoreRequest { header: self.0.header(), store_id };
        let answer = call!(self, get_store, request).await?;
        Ok(answer.store.unwrap_or_default())
    }

    /// Every store, tombstones included.
    ///
    /// # Errors
    /// [`PdClientError`], as all calls.
    pub async fn stores(&self) -> Result<Vec<metapb::Store>, PdClientError> {
        let request = pdpb::GetAllStoresRequest { header: self.0.header(), exclude_tombstone_stores: false };
        let answer = call!(self, get_all_stores, request).await?;
        Ok(answer.stores)
    }

    /// The region that contains an encoded key, with its leader if that is known.
    ///
    /// # Errors
    /// [`PdClientError`], as all calls.
    pub async fn region(
        &self,
        key: bytes::Bytes,
    ) -> Result<Option<(metapb::Region, Option<metapb::Peer>)>, PdClientError> {
        let request = pdpb::GetRegionRequest { header: self.0.header(), region_key: key, need_buckets: false };
        let answer = call!(self, get_region, request).await?;
        Ok(answer.region.map(|region| (region, answer.leader)))
    }

    /// The region of this id, if the placement driver knows one.
    ///
    /// # Errors
    /// [`PdClientError`], as all calls.
    pub async fn region_by_id(&self, region_id: u64) -> Result<Option<metapb::Region>, PdClientError> {
        let request = pdpb::GetRegionByIdRequest { header: self.0.header(), region_id, need_buckets: false };
        let answer = call!(self, get_region_by_id, request).await?;
        Ok(answer.region)
    }

    /// Reports the store's numbers, every ten seconds.
    ///
    /// # Errors
    /// [`PdClientError`], as all calls. It is tried once: the next report replaces it.
    pub async fn store_heartbeat(
        &self,
        stats: pdpb::StoreStats,
    ) -> Result<pdpb::StoreHeartbeatResponse, PdClientError> {
        let request = pdpb::StoreHeartbeatRequest { header: self.0.header(), stats: Some(stats), ..Default::default() };
        call_once!(self, store_heartbeat, request).await
    }

    /// Ids for `count` new regions with as many peers each as `region` has.
    ///
    /// # Errors
    /// [`PdClientError::Refused`] when `region` is older than what the placement driver knows.
    pub async fn ask_batch_split(
        &self,
        region: metapb::Region,
        count: u32,
    ) -> Result<Vec<pdpb::SplitId>, PdClientError> {
        let request = pdpb::AskBatchSplitRequest {
            header: self.0.header(),
            region: Some(region),
            split_count: count,
            ..Default::default()
        };
        let answer = call!(self, ask_batch_split, request).await?;
        Ok(answer.ids)
    }

    /// Tells what a split has made, in the order of keys.
    ///
    /// # Errors
    /// [`PdClientError`], as all calls.
    pub async fn report_batch_split(&self, regions: Vec<metapb::Region>) -> Result<(), PdClientError> {
        let request = pdpb::ReportBatchSplitRequest { header: self.0.header(), regions };
        call!(self, report_batch_split, request).await.map(drop)
    }

    /// The cluster's safe point of garbage collection.
    ///
    /// # Errors
    /// [`PdClientError`], as all calls.
    pub async fn gc_safe_point(&self) -> Result<u64, PdClientError> {
        let request = pdpb::GetGcSafePointRequest { header: self.0.header() };
        let answer = call!(self, get_gc_safe_point, request).await?;
        Ok(answer.safe_point)
    }

    /// Reports up to where the store's timestamps are resolved.
    ///
    /// # Errors
    /// [`PdClientError`], as all calls. It is tried once: the next report replaces it.
    pub async fn report_min_resolved_ts(&self, store_id: u64, ts: u64) -> Result<(), PdClientError> {
        let header = self.0.header();
        let request = pdpb::ReportMinResolvedTsRequest { header, store_id, min_resolved_ts: ts };
        call_once!(self, report_min_resolved_ts, request).await.map(drop)
    }

    /// Takes `count` timestamps in a row (at least one) and returns the largest: `count` values up to it, itself
    /// included, are the caller's. Callers that wait together share one request.
    ///
    /// # Errors
    /// [`PdClientError`] when none can be had, [`PdClientError::Busy`] when too many wait.
    pub async fn timestamps(&self, count: u32) -> Result<u64, PdClientError> {
        self.0.tso.take(count.max(1)).await
    }

    /// Sends a leader's report of its region. It does not wait: of each region the newest report goes out as soon as
    /// the stream takes it, with the traffic of those that it replaces.
    pub fn region_heartbeat(&self, report: pdpb::RegionHeartbeatRequest) {
        self.0.heartbeats.put(report);
    }

    /// Sets who hears what the placement driver asks of this store's regions, and that the stream is new; if it is
    /// open already, that is told at once.
    pub fn listen(&self, handler: impl Fn(PdEvent) + 'static) {
        self.0.heartbeats.listen(Rc::new(handler));
    }
}

impl Inner {
    fn header(&self) -> Option<pdpb::RequestHeader> {
        Some(pdpb::RequestHeader { cluster_id: self.cluster_id.get(), sender_id: 0 })
    }

    /// Calls until an answer comes, a refusal, or the tries are used up.
    async fn call<Answer: Headed, F>(&self, one: impl Fn(Stub, CallContext) -> F) -> Result<Answer, PdClientError>
    where
        F: Future<Output = Result<Answer, Status>>,
    {
        let mut wait = BACKOFF_MIN;
        for _ in 1..TRIES {
            match self.call_once(&one).await {
                Err(PdClientError::Call(status)) if may_pass(&status) => {}
                Err(PdClientError::NoLeader(_)) => {}
                done => return done,
            }
            executor::sleep(wait).await;
            wait = (wait * 2).min(BACKOFF_MAX);
        }
        self.call_once(&one).await
    }

    async fn call_once<Answer: Headed, F>(&self, one: &impl Fn(Stub, CallContext) -> F) -> Result<Answer, PdClientError>
    where
        F: Future<Output = Result<Answer, Status>>,
    {
        let leader = self.leader().await?;
        let limit = self.call_timeout();
        let cx = CallContext::with_deadline(executor::now() + limit);
        let answer = match executor::timeout(limit, one(leader.stub.clone(), cx)).await {
            Ok(answer) => answer,
            Err(_) => Err(Status::deadline_exceeded(format!("{} does not answer", leader.address))),
        };
        let answer = answer.inspect_err(|_| self.leader_failed(&leader))?;
        check(answer.header())?;
        Ok(answer)
    }

    fn is_one_of_many(&self) -> bool {
        self.addresses.borrow().len() > 1
    }

    /// How long one try may take.
    fn call_timeout(&self) -> Duration {
        if self.is_one_of_many() { CALL_TIMEOUT_OF_MANY } else { CALL_TIMEOUT }
    }

    /// The member that leads, looked for if it is not known.
    async fn leader(&self) -> Result<Leader, PdClientError> {
        let known = self.leader.borrow().clone();
        match known {
            Some(leader) => Ok(leader),
            None => self.find_leader().await,
        }
    }

    /// Has the leader looked for again, unless that has happened meanwhile.
    fn leader_failed(&self, failed: &Leader) {
        let mut leader = self.leader.borrow_mut();
        // A channel reconnects by itself; only who answers "not leader" or nothing at all is doubted.
        if leader.as_ref().is_some_and(|leader| leader.address == failed.address) {
            *leader = None;
        }
    }

    /// Asks every address for the members, and goes to the one that leads. Who does not know is asked last next time.
    async fn find_leader(&self) -> Result<Leader, PdClientError> {
        let addresses = self.addresses.borrow().clone();
        for address in &addresses {
            let stub = Stub::new(Channel::new(address.clone(), self.channels.clone()));
            let limit = if self.is_one_of_many() { FIND_TIMEOUT } else { CALL_TIMEOUT };
            let cx = CallContext::with_deadline(executor::now() + limit);
            let request = pdpb::GetMembersRequest::default();
            let Ok(Ok(answer)) = executor::timeout(limit, stub.get_members(cx, &request)).await else {
                self.ask_last(address);
                continue;
            };
            let theirs = answer.header().map_or(0, |header| header.cluster_id);
            let Some(url) = answer.leader.as_ref().and_then(|leader| leader.client_urls.first()) else {
                self.ask_last(address);
                continue;
            };
            if theirs == 0 {
                continue;
            }
            let ours = self.cluster_id.get();
            if ours != 0 && ours != theirs {
                return Err(PdClientError::OtherCluster { address: address.clone(), theirs, ours });
            }
            self.cluster_id.set(theirs);
            self.learn(&answer.members);
            let same = bare(url) == bare(address);
            let stub = if same { stub } else { Stub::new(Channel::new(url.clone(), self.channels.clone())) };
            let leader = Leader { address: url.clone(), stub };
            *self.leader.borrow_mut() = Some(leader.clone());
            if self.last_leader.replace(url.clone()) != *url {
                self.moved.notify();
            }
            return Ok(leader);
        }
        Err(PdClientError::NoLeader(addresses))
    }

    fn ask_last(&self, address: &str) {
        let mut addresses = self.addresses.borrow_mut();
        if let Some(at) = addresses.iter().position(|other| other == address) {
            let address = addresses.remove(at);
            addresses.push(address);
        }
    }

    /// Adds the members' addresses to those that are asked. Bounded by the members, of whom there are a handful.
    fn learn(&self, members: &[pdpb::Member]) {
        let mut addresses = self.addresses.borrow_mut();
        for url in members.iter().flat_map(|member| &member.client_urls) {
            if !addresses.iter().any(|known| bare(known) == bare(url)) {
                addresses.push(url.clone());
            }
        }
    }
}

impl std::fmt::Debug for PdClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PdClient({:?})", self.0.addresses.borrow())
    }
}

/// A member that is cut off says nothing: its connection counts as broken after three seconds.
fn watchful(channels: ChannelConfig) -> ChannelConfig {
    ChannelConfig {
        connect_timeout: Duration::from_secs(1),
        backoff_max: Duration::from_secs(1),
        keepalive_interval: Some(Duration::from_secs(1)),
        keepalive_timeout: Duration::from_secs(2),
        ..channels
    }
}

/// Whether repeating may help: the member is away, slow, or does not lead.
fn may_pass(status: &Status) -> bool {
    matches!(status.code, Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::ResourceExhausted)
}

fn bare(url: &str) -> &str {
    url.split_once("://").map_or(url, |(_, rest)| rest).trim_end_matches('/')
}
