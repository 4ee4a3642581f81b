//! One core's lines to other stores: a stream of raft messages to each, and the channel for snapshots.
//!
//! Raft bears loss, so a line never makes a shard wait: what does not fit into its queue, or was under way when the
//! connection broke, is lost, and the peers that it was for are said to be unreachable.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::{Rc, Weak};
use std::time::Duration;

use base::{PeerId, RegionId, StoreId};
use executor::{Class, Notify};
use futures_util::FutureExt as _;
use proto::raft_serverpb::RaftMessage;
use proto::rpc::{CallContext, LocalFuture, Status};
use proto::tikvpb;

/// Bytes of messages that wait for one store.
const QUEUE_BYTES_MAX: usize = 64 << 20;
/// Bytes and messages that leave in one piece.
const BATCH_BYTES: usize = 1 << 20;
const BATCH_MESSAGES: usize = 1024;
/// The waits after attempts that failed: twice as long each, up to the second.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// Finds a store's address, `host:port`.
pub(crate) type Resolve = Rc<dyn Fn(StoreId) -> LocalFuture<Option<String>>>;
/// Told of peers whose messages were lost.
pub(crate) type OnLost = Rc<dyn Fn(RegionId, PeerId)>;

/// What may befall messages, each once in so many, never if 0. Streams neither lose nor reorder; raft must bear both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LineFaults {
    /// One is lost, and nobody is told.
    pub lose_one_in: u64,
    /// One is sent twice.
    pub duplicate_one_in: u64,
    /// One leaves later than those after it.
    pub delay_one_in: u64,
    /// By so much at most.
    pub delay_max: Duration,
}

/// See the module. Cheap to clone. The default one loses everything.
#[derive(Clone, Default)]
pub struct Lines(Option<Rc<Inner>>);

struct Inner {
    lines: RefCell<BTreeMap<StoreId, Rc<Line>>>,
    resolve: Resolve,
    on_lost: OnLost,
    channels: net::ChannelConfig,
    faults: Option<LineFaults>,
}

#[derive(Default)]
struct Line {
    queue: RefCell<VecDeque<RaftMessage>>,
    bytes: Cell<usize>,
    wake: Notify,
    channel: RefCell<Option<net::Channel>>,
}

impl Lines {
    /// Lines to the stores that `resolve` finds.
    pub(crate) fn new(
        resolve: Resolve,
        on_lost: OnLost,
        channels: net::ChannelConfig,
        faults: Option<LineFaults>,
    ) -> Lines {
        Lines(Some(Rc::new(Inner { lines: RefCell::default(), resolve, on_lost, channels, faults })))
    }

    /// Sends a message, or loses it.
    pub(crate) fn send(&self, to: StoreId, letter: RaftMessage) {
        let Some(inner) = &self.0 else { return };
        match inner.faults {
            None => inner.queue(to, letter),
            Some(faults) => inner.queue_faulty(to, letter, faults),
        }
    }

    /// The channel to a store.
    pub(crate) fn channel(&self, store: StoreId) -> LocalFuture<Option<net::Channel>> {
        let inner = self.0.clone();
        Box::pin(async move {
            let inner = inner?;
            let line = inner.line(store);
            inner.channel(&line, store).await
        })
    }
}

/// About what a message takes in memory.
fn size(letter: &RaftMessage) -> usize {
    letter.message.len() + 128
}

impl Inner {
    fn queue(self: &Rc<Self>, to: StoreId, letter: RaftMessage) {
        let line = self.line(to);
        if line.bytes.get() > QUEUE_BYTES_MAX {
            return self.lost([&letter]);
        }
        line.bytes.set(line.bytes.get() + size(&letter));
        line.queue.borrow_mut().push_back(letter);
        line.wake.notify();
    }

    fn queue_faulty(self: &Rc<Self>, to: StoreId, letter: RaftMessage, faults: LineFaults) {
        let happens = |one_in| one_in > 0 && executor::with_rng(|rng| rng.one_in(one_in));
        if happens(faults.lose_one_in) {
            return;
        }
        if happens(faults.duplicate_one_in) {
            self.queue(to, letter.clone());
        }
        if happens(faults.delay_one_in) {
            let nanos = executor::with_rng(|rng| rng.below(faults.delay_max.as_nanos() as u64 + 1));
            let inner = Rc::downgrade(self);
            executor::spawn_local(Class::Raft, async move {
                executor::sleep(Duration::from_nanos(nanos)).await;
                if let Some(inner) = inner.upgrade() {
                    inner.queue(to, letter);
                }
            });
            return;
        }
        self.queue(to, letter);
    }

    fn line(self: &Rc<Self>, to: StoreId) -> Rc<Line> {
        let mut lines = self.lines.borrow_mut();
        let line = lines.entry(to).or_insert_with(|| {
            let line = Rc::<Line>::default();
            executor::spawn_local(Class::Raft, run(Rc::downgrade(self), line.clone(), to));
            line
        });
        line.clone()
    }

    async fn channel(&self, line: &Line, store: StoreId) -> Option<net::Channel> {
        if let Some(channel) = &*line.channel.borrow() {
            return Some(channel.clone());
        }
        let address = (self.resolve)(store).await?;
        let channel = net::Channel::new(address, self.channels.clone());
        *line.channel.borrow_mut() = Some(channel.clone());
        Some(channel)
    }

    fn lost<'a>(&self, letters: impl IntoIterator<Item = &'a RaftMessage>) {
        let peers = letters.into_iter().map(|letter| (letter.region_id, letter.to_peer.map_or(0, |peer| peer.id)));
        for (region, peer) in peers.collect::<BTreeSet<_>>() {
            (self.on_lost)(RegionId(region), PeerId(peer));
        }
    }
}

impl Line {
    fn take(&self) -> Vec<RaftMessage> {
        let mut queue = self.queue.borrow_mut();
        let mut letters = Vec::new();
        let mut bytes = 0;
        while bytes < BATCH_BYTES
            && letters.len() < BATCH_MESSAGES
            && let Some(letter) = queue.pop_front()
        {
            bytes += size(&letter);
            letters.push(letter);
        }
        self.bytes.set(self.bytes.get() - bytes);
        letters
    }
}

/// Keeps a stream to `store` while there is something to send, and loses what cannot be sent.
async fn run(inner: Weak<Inner>, line: Rc<Line>, store: StoreId) {
    let mut pause = PAUSES.0;
    loop {
        if line.queue.borrow().is_empty() {
            line.wake.notified().await;
            continue;
        }
        let Some(owner) = inner.upgrade() else { return };
        let channel = owner.channel(&line, store).await;
        drop(owner);
        let result = match channel {
            Some(channel) => stream(&inner, &line, channel, &mut pause).await,
            None => Err(Status::unavailable("the store's address is unknown")),
        };
        let Some(owner) = inner.upgrade() else { return };
        if let Err(status) = result {
            tracing::debug!(%store, %status, "raft messages are lost");
        }
        // The store may have another address by now.
        *line.channel.borrow_mut() = None;
        let letters: Vec<RaftMessage> = line.queue.take().into();
        line.bytes.set(0);
        owner.lost(&letters);
        drop(owner);
        executor::sleep(pause).await;
        pause = (pause * 2).min(PAUSES.1);
    }
}

/// Sends until the stream breaks.
async fn stream(inner: &Weak<Inner>, line: &Line, channel: net::Channel, pause: &mut Duration) -> Result<(), Status> {
    let (out, mut done) = tikvpb::TikvClient::new(channel).batch_raft(CallContext::default()).await?;
    loop {
        let msgs = line.take();
        if msgs.is_empty() {
            futures_util::select_biased! {
                () = line.wake.notified().fuse() => continue,
                ended = done.next().fuse() => return ended.map(drop),
            }
        }
        let batch = tikvpb::BatchRaftMessage { msgs };
        if let Err(status) = out.send(&batch).await {
            if let Some(inner) = inner.upgrade() {
                inner.lost(&batch.msgs);
            }
            return Err(status);
        }
        *pause = PAUSES.0;
    }
}
