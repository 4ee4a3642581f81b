//! One core of a node: the shards it hosts, the routes to all others, and its mailbox.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use base::{ClusterId, CoreId, Instant, PeerId, RegionId, ShardId, StoreId, TokenBucket};
use bytes::Bytes;
use executor::{Class, MailReceiver, MailSender};
use futures_channel::oneshot;
use proto::rpc::LocalFuture;
use proto::{metapb, pdpb, raft_serverpb};

use super::directory::Tombstone;
use super::disk::{DiskGauge, DiskUsage};
use super::error::RegionError;
use super::lines::Lines;
use super::mail::{Answered, Control, CoreMail, PeerView, RegionReport, RemoteRequest, Route, reply};
use super::shard::{Outlet, Shard};
use crate::engine::Engine;

/// Letters that a core takes at most before it looks at its other tasks.
const LETTERS_PER_PASS: usize = 256;

/// What all cores of a node know from the start.
pub struct NodeShared {
    /// The cluster.
    pub cluster: ClusterId,
    /// The node's store id.
    pub store: StoreId,
    /// A sender to each core's mailbox, by core.
    pub mail: Vec<MailSender<CoreMail>>,
    /// How raw keys and values are written.
    pub api: ApiMode,
    /// How full the disk is.
    pub disk: DiskGauge,
    /// Shards whose logs do not answer.
    pub stalls: AtomicUsize,
    /// The bandwidth of what snapshots read from the node's disks and write to them, whatever they are of.
    pub snapshot_io: Arc<TokenBucket>,
    /// A snapshot of at most so many bytes of keys and values comes in without files.
    pub small_snapshot_bytes: u64,
}

/// `storage.api-version` with `storage.enable-ttl`: fixed at the first start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ApiMode {
    /// Raw values as they are; transactions.
    #[default]
    V1,
    /// Raw values with a time of expiry.
    V1Ttl,
    /// Keyspaces: raw keys begin with `r`, transactional ones with `x`; raw values with flags, versioned.
    V2,
}

/// Where a request went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overloaded;

/// One core's state. See the module's text.
pub struct CoreHost<E: Engine> {
    /// Which core.
    pub core: CoreId,
    /// What all cores know.
    pub node: Arc<NodeShared>,
    shards: RefCell<BTreeMap<ShardId, Rc<Shard<E>>>>,
    routes: RefCell<BTreeMap<RegionId, ShardId>>,
    waiting: RefCell<BTreeMap<u64, oneshot::Sender<Answered>>>,
    next_token: Cell<u64>,
    next_name: Cell<u64>,
    /// Rises when another core or node may have written with timestamps above those that are held here.
    clock_life: Cell<u64>,
}

impl<E: Engine> CoreHost<E> {
    /// A core without shards or routes.
    pub fn new(core: CoreId, node: Arc<NodeShared>) -> Rc<CoreHost<E>> {
        Rc::new(CoreHost {
            core,
            node,
            shards: RefCell::default(),
            routes: RefCell::default(),
            waiting: RefCell::default(),
            next_token: Cell::new(0),
            next_name: Cell::new(0),
            clock_life: Cell::new(0),
        })
    }

    /// Voids the timestamps that this core holds: a region begins to be served here, or gets a larger range, and whoever
    /// served that before may have written with higher ones.
    pub fn void_timestamps(&self) {
        self.clock_life.set(self.clock_life.get() + 1);
    }

    /// Timestamps that were fetched in another life are void.
    pub(crate) fn clock_life(&self) -> u64 {
        self.clock_life.get()
    }

    /// A name for a file that no other one of this core had since its start.
    pub(crate) fn next_name(&self) -> String {
        self.next_name.set(self.next_name.get() + 1);
        format!("{}-{}", self.core, self.next_name.get())
    }

    /// Takes a raft message to its peer, or to core 0 if no peer of its region is known. Messages may be lost: those
    /// for a core that has no room for them are.
    pub fn deliver(&self, letter: Box<raft_serverpb::RaftMessage>) {
        let region = RegionId(letter.region_id);
        match self.local(region) {
            Ok(shard) => shard.push_raft(letter),
            Err(_) => {
                // Core 0 writes to itself: what is for nobody is answered by the one who reads its mail.
                let core = self.route(region);
                if core != self.core || core == CoreId(0) {
                    let mail = CoreMail::Control(Box::new(Control::Raft(letter)));
                    drop(self.node.mail[usize::from(core.0)].try_send(mail));
                }
            }
        }
    }

    /// The core that hosts `shard`.
    pub fn core_of(&self, shard: ShardId) -> CoreId {
        core_of(shard, self.node.mail.len())
    }

    /// Adds a shard that was started on this core.
    pub fn add_shard(&self, shard: Rc<Shard<E>>) {
        self.shards.borrow_mut().insert(shard.id, shard);
    }

    /// The shards of this core.
    pub fn shards(&self) -> Vec<Rc<Shard<E>>> {
        self.shards.borrow().values().cloned().collect()
    }

    /// A shard of this core.
    pub fn shard(&self, shard: ShardId) -> Option<Rc<Shard<E>>> {
        self.shards.borrow().get(&shard).cloned()
    }

    /// The core to ask for `region`: its own, or core 0, which knows all, if it is new to us.
    pub fn route(&self, region: RegionId) -> CoreId {
        self.routes.borrow().get(&region).map_or(CoreId(0), |shard| self.core_of(*shard))
    }

    /// The shard of `region` if it is on this core.
    ///
    /// # Errors
    /// [`RegionError::RegionNotFound`] if it is unknown here, [`RegionError::Moving`] if another core has it.
    pub fn local(&self, region: RegionId) -> Result<Rc<Shard<E>>, RegionError> {
        let shard = *self.routes.borrow().get(&region).ok_or(RegionError::RegionNotFound(region))?;
        self.shards.borrow().get(&shard).cloned().ok_or(RegionError::Moving(region))
    }

    /// All routes, for whoever shows them.
    pub fn routes(&self) -> Vec<(RegionId, ShardId)> {
        self.routes.borrow().iter().map(|(region, shard)| (*region, *shard)).collect()
    }

    /// Takes over new routes.
    pub fn update_routes(&self, news: &[Route]) {
        let mut routes = self.routes.borrow_mut();
        for (region, shard) in news {
            match shard {
                Some(shard) => routes.insert(*region, *shard),
                None => routes.remove(region),
            };
        }
    }

    /// Asks another core for the answer to one encoded request.
    ///
    /// # Errors
    /// [`Overloaded`] if the other core's mailbox is full: nothing was sent.
    pub fn ask(
        &self,
        core: CoreId,
        tag: u32,
        body: Bytes,
        arrived: Instant,
        deadline: Option<Instant>,
    ) -> Result<oneshot::Receiver<Answered>, Overloaded> {
        let (token, answer) = self.expect_answer();
        let request = RemoteRequest { token, tag, deadline, arrived, body };
        self.send_requests(core, vec![request]).map(|()| answer)
    }

    /// A token for a request that will be sent with [`CoreHost::send_requests`], and the place of its answer.
    pub fn expect_answer(&self) -> (u64, oneshot::Receiver<Answered>) {
        let token = self.next_token.get();
        self.next_token.set(token + 1);
        let (sender, receiver) = oneshot::channel();
        self.waiting.borrow_mut().insert(token, sender);
        (token, receiver)
    }

    /// Sends requests to another core in one letter.
    ///
    /// # Errors
    /// [`Overloaded`] if its mailbox is full: none was sent, and their tokens are void.
    pub fn send_requests(&self, core: CoreId, requests: Vec<RemoteRequest>) -> Result<(), Overloaded> {
        let letter = CoreMail::Requests { from: self.core, requests };
        self.node.mail[usize::from(core.0)].try_send(letter).map_err(|refused| {
            if let CoreMail::Requests { requests, .. } = refused.0 {
                let mut waiting = self.waiting.borrow_mut();
                requests.iter().for_each(|request| {
                    waiting.remove(&request.token);
                });
            }
            Overloaded
        })
    }

    /// Answers requests of another core.
    pub fn reply(&self, to: CoreId, replies: Vec<(u64, Answered)>) {
        if let Err(refused) = self.node.mail[usize::from(to.0)].try_send(CoreMail::Replies(replies)) {
            self.send_later(to, refused.0);
        }
    }

    fn take_replies(&self, replies: Vec<(u64, Answered)>) {
        let mut waiting = self.waiting.borrow_mut();
        for (token, body) in replies {
            if let Some(sender) = waiting.remove(&token) {
                // A receiver that is gone gave up waiting.
                let _ = sender.send(body);
            }
        }
    }

    /// Sends a control message, waiting for room in the background if there is none. Their number is bounded by that
    /// of the regions and moves.
    pub fn control(&self, core: CoreId, control: Control) {
        let letter = CoreMail::Control(Box::new(control));
        if let Err(refused) = self.node.mail[usize::from(core.0)].try_send(letter) {
            self.send_later(core, refused.0);
        }
    }

    fn send_later(&self, core: CoreId, letter: CoreMail) {
        let mail = self.node.mail[usize::from(core.0)].clone();
        executor::spawn_local(Class::Foreground, async move {
            // A core that is gone takes no more mail.
            let _ = mail.send(letter).await;
        });
    }

    /// Reads the mailbox until it closes; every letter goes to `handler`, replies to those who wait for them.
    pub async fn read_mail(self: Rc<Self>, mut mail: MailReceiver<CoreMail>, handler: impl Fn(CoreMail)) {
        let mut letters = Vec::new();
        loop {
            if mail.recv_many(&mut letters, LETTERS_PER_PASS).await == 0 {
                return;
            }
            for letter in letters.drain(..) {
                match letter {
                    CoreMail::Replies(replies) => self.take_replies(replies),
                    CoreMail::Control(control) => match *control {
                        Control::Routes(news) => self.update_routes(&news),
                        other => handler(CoreMail::Control(Box::new(other))),
                    },
                    other => handler(other),
                }
            }
        }
    }
}

/// The core among `cores` that hosts `shard`.
pub fn core_of(shard: ShardId, cores: usize) -> CoreId {
    CoreId((shard.0 as usize % cores.max(1)) as u16)
}

/// A shard's way to its core and to core 0.
pub struct CoreOutlet<E: Engine> {
    /// The core. It owns the shards that own this, and is kept by the core's tasks.
    pub host: Weak<CoreHost<E>>,
    /// Called when a shard cannot go on.
    pub on_failure: Rc<dyn Fn(ShardId, String)>,
    /// Called when a peer begins to lead, with its term.
    pub on_leader: Rc<dyn Fn(RegionId, PeerId, u64)>,
    /// The ways to other stores.
    pub lines: Lines,
}

impl<E: Engine> Outlet for CoreOutlet<E> {
    fn report(&self, report: RegionReport) {
        if let Some(host) = self.host.upgrade() {
            host.control(CoreId(0), Control::Heartbeats(vec![report]));
        }
    }

    fn split(&self, shard: ShardId, leads: bool, regions: Vec<metapb::Region>, bytes: u64) {
        let Some(host) = self.host.upgrade() else { return };
        let routes: Vec<Route> = regions.iter().map(|region| (RegionId(region.id), Some(shard))).collect();
        host.update_routes(&routes);
        host.control(CoreId(0), Control::SplitDone { shard, leads, regions, bytes });
    }

    fn split_due(&self, shard: ShardId, region: metapb::Region, keys: Vec<Vec<u8>>) {
        let Some(host) = self.host.upgrade() else { return };
        executor::spawn_local(Class::Background, async move {
            let id = region.id;
            if let Err(error) = split_at(&host, shard, region, keys).await {
                tracing::debug!(region = id, %error, "split did not happen");
            }
        });
    }

    fn failed(&self, shard: ShardId, why: String) {
        (self.on_failure)(shard, why);
    }

    fn leads(&self, region: RegionId, peer: PeerId, term: u64) {
        (self.on_leader)(region, peer, term);
    }

    fn send_raft(&self, to: StoreId, letter: raft_serverpb::RaftMessage) {
        self.lines.send(to, letter);
    }

    fn channel(&self, store: StoreId) -> LocalFuture<Option<net::Channel>> {
        self.lines.channel(store)
    }

    fn stalled(&self, is_stalled: bool) {
        let Some(host) = self.host.upgrade() else { return };
        match is_stalled {
            true => host.node.stalls.fetch_add(1, Ordering::Relaxed),
            false => host.node.stalls.fetch_sub(1, Ordering::Relaxed),
        };
    }

    fn snapshot_io(&self) -> Arc<TokenBucket> {
        self.host.upgrade().map_or_else(|| Arc::new(TokenBucket::unbounded()), |host| host.node.snapshot_io.clone())
    }

    fn disk(&self) -> DiskUsage {
        self.host.upgrade().map_or(DiskUsage::Normal, |host| host.node.disk.usage())
    }

    fn leaderless(&self, shard: ShardId, peer: PeerView) {
        if let Some(host) = self.host.upgrade() {
            host.control(CoreId(0), Control::Leaderless { shard, peer: Box::new(peer) });
        }
    }

    fn bring_together(&self, source: RegionId, target: RegionId, version: u64) {
        if let Some(host) = self.host.upgrade() {
            host.control(CoreId(0), Control::BringTogether { source, target, version });
        }
    }

    fn left_behind(&self, shard: ShardId, region: RegionId, peer: PeerId, target: metapb::Region) {
        if let Some(host) = self.host.upgrade() {
            let target = Box::new(target);
            host.control(CoreId(0), Control::LeftBehind { shard, region, peer, target });
        }
    }

    fn begins_to_lead(&self) {
        if let Some(host) = self.host.upgrade() {
            host.void_timestamps();
        }
    }

    fn reranged(&self, shard: ShardId, region: metapb::Region, bytes: u64) {
        if let Some(host) = self.host.upgrade() {
            host.void_timestamps();
            host.control(CoreId(0), Control::Reranged { shard, region, bytes });
        }
    }

    fn ended(&self, _shard: ShardId, region: RegionId, tombstone: Tombstone) {
        if let Some(host) = self.host.upgrade() {
            host.update_routes(&[(region, None)]);
            host.control(CoreId(0), Control::Ended { region, tombstone });
        }
    }
}

/// Why a split did not happen.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SplitError {
    /// PD gave no ids.
    #[error("placement driver: {0}")]
    Pd(String),
    /// The region refused.
    #[error(transparent)]
    Region(#[from] RegionError),
}

/// Splits `region`, which lives on `shard` of this core, at `keys`: ids from PD by way of core 0, then one raft entry.
/// Answers with all resulting regions in key order.
///
/// # Errors
/// See [`SplitError`].
pub async fn split_at<E: Engine>(
    host: &Rc<CoreHost<E>>,
    shard: ShardId,
    region: metapb::Region,
    keys: Vec<Vec<u8>>,
) -> Result<Vec<metapb::Region>, SplitError> {
    let (reply, answer) = reply();
    let count = u32::try_from(keys.len()).unwrap_or(u32::MAX);
    host.control(CoreId(0), Control::AskSplit { region: region.clone(), count, reply });
    let ids: Vec<pdpb::SplitId> =
        answer.wait().await.ok_or_else(|| SplitError::Pd("core 0 is closing".into()))?.map_err(SplitError::Pd)?;
    if ids.len() != keys.len() {
        return Err(SplitError::Pd(format!("{} ids for {} keys", ids.len(), keys.len())));
    }
    let requests = keys
        .into_iter()
        .zip(ids)
        .map(|(key, id)| proto::raft_cmdpb::SplitRequest {
            split_key: key.into(),
            new_region_id: id.new_region_id,
            new_peer_ids: id.new_peer_ids,
            ..Default::default()
        })
        .collect();
    let shard = host.shard(shard).ok_or(RegionError::RegionNotFound(RegionId(region.id)))?;
    Ok(shard.split(&region, requests).await?)
}
