//! Lines to the other members: a stream of raft messages to each, and snapshots beside it.
//!
//! Raft bears loss: what does not fit, or was under way when a stream broke, is lost.

use super::group::{Group, MemberInfo};
use crate::raft::Snapshot;
use bytes::Bytes;
use executor::{Class, Notify, Task};
use futures_util::FutureExt as _;
use net::{Channel, ChannelConfig};
use prost::Message as _;
use proto::memberpb::{MembersClient, RaftBatch, SnapshotChunk, SnapshotHead};
use proto::rpc::{CallContext, Status};
use raftstore::eraftpb::Message;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

/// Bytes of messages that wait for one member.
const QUEUE_BYTES_MAX: usize = 16 << 20;
/// Bytes that leave in one piece, unless a single message has more.
const BATCH_BYTES: usize = 1 << 20;
/// The wait before a stream is opened again.
const PAUSE: Duration = Duration::from_millis(50);
/// Bytes of a snapshot in one chunk.
const CHUNK_BYTES: usize = 256 << 10;
/// How long a snapshot may take.
const SNAPSHOT_LIMIT: Duration = Duration::from_secs(120);
/// The wait before the next one to the same member: the leader hears of this one's arrival by raft.
const SNAPSHOT_PAUSE: Duration = Duration::from_secs(1);

/// The lines of one member. Dropping them ends their streams.
pub(crate) struct Lines {
    lines: BTreeMap<u64, Rc<Line>>,
    tasks: RefCell<Vec<Task<()>>>,
    group: u64,
    own_id: u64,
}

struct Line {
    to: u64,
    channel: Channel,
    queue: RefCell<VecDeque<Bytes>>,
    bytes: Cell<usize>,
    wake: Notify,
    /// A snapshot is on its way.
    snapshot: Cell<bool>,
}

/// A channel to a member. A broken connection is found within two seconds, though nobody says that it broke.
fn channel_to(member: &MemberInfo, tls: Option<&net::Tls>) -> Channel {
    let config = ChannelConfig {
        tls: tls.cloned(),
        connect_timeout: Duration::from_secs(1),
        backoff_min: Duration::from_millis(50),
        backoff_max: Duration::from_millis(500),
        keepalive_interval: Some(Duration::from_secs(1)),
        keepalive_timeout: Duration::from_secs(1),
        ..ChannelConfig::default()
    };
    Channel::new(member.url.clone(), config)
}

impl Lines {
    /// Lines to all others of `group`, with the certificates of this member's port. Nothing is sent before the first message.
    pub(crate) fn new(group: &Group, tls: Option<&net::Tls>) -> Lines {
        let mut lines = BTreeMap::new();
        let mut tasks = Vec::new();
        for member in group.others() {
            let line = Rc::new(Line {
                to: member.id,
                channel: channel_to(member, tls),
                queue: RefCell::default(),
                bytes: Cell::new(0),
                wake: Notify::new(),
                snapshot: Cell::new(false),
            });
            lines.insert(member.id, Rc::clone(&line));
            let run = run(line, group.number, group.own_id);
            tasks.push(executor::spawn_local(Class::Foreground, run));
        }
        Lines { lines, tasks: RefCell::new(tasks), group: group.number, own_id: group.own_id }
    }

    /// The channel to a member; `None` to itself and to strangers.
    pub(crate) fn channel(&self, member: u64) -> Option<Channel> {
        self.lines.get(&member).map(|line| line.channel.clone())
    }

    /// Sends a message, or loses it.
    pub(crate) fn send(&self, message: &Message) {
        let Some(line) = self.lines.get(&message.to) else { return };
        let message = Bytes::from(message.encode_to_vec());
        if line.bytes.get() + message.len() <= QUEUE_BYTES_MAX {
            line.bytes.set(line.bytes.get() + message.len());
            line.queue.borrow_mut().push_back(message);
            line.wake.notify();
        }
    }

    /// Sends a snapshot in the background, unless one is on its way. `take` makes it.
    pub(crate) fn send_snapshot(&self, to: u64, take: impl FnOnce() -> Snapshot) {
        let Some(line) = self.lines.get(&to).filter(|line| !line.snapshot.replace(true)) else { return };
        let (line, snapshot) = (Rc::clone(line), take());
        let (group, own_id) = (self.group, self.own_id);
        let task = executor::spawn_local(Class::Background, async move {
            let index = snapshot.position.index;
            let sent = executor::timeout(SNAPSHOT_LIMIT, send_snapshot(&line, group, own_id, snapshot)).await;
            match sent {
                Ok(Ok(())) => tracing::info!(to, index, "a snapshot has been sent"),
                Ok(Err(status)) => tracing::info!(to, index, %status, "a snapshot did not get through"),
                Err(_) => tracing::info!(to, index, "a snapshot took too long"),
            }
            executor::sleep(SNAPSHOT_PAUSE).await;
            line.snapshot.set(false);
        });
        let mut tasks = self.tasks.borrow_mut();
        tasks.retain(|task| !task.is_done());
        tasks.push(task);
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.tasks.borrow_mut().drain(..).for_each(Task::cancel);
    }
}

impl Line {
    fn take(&self) -> Vec<Bytes> {
        let mut queue = self.queue.borrow_mut();
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while bytes < BATCH_BYTES
            && let Some(message) = queue.pop_front()
        {
            bytes += message.len();
            batch.push(message);
        }
        self.bytes.set(self.bytes.get() - bytes);
        batch
    }
}

/// Keeps a stream to the member while there is something to send.
async fn run(line: Rc<Line>, group: u64, own_id: u64) {
    loop {
        if line.queue.borrow().is_empty() {
            line.wake.notified().await;
            continue;
        }
        if let Err(status) = stream(&line, group, own_id).await {
            tracing::debug!(to = line.to, %status, "raft messages are lost");
        }
        line.queue.borrow_mut().clear();
        line.bytes.set(0);
        executor::sleep(PAUSE).await;
    }
}

/// Sends until the stream breaks.
async fn stream(line: &Line, group: u64, own_id: u64) -> Result<(), Status> {
    let (out, mut done) = MembersClient::new(line.channel.clone()).raft(CallContext::default()).await?;
    loop {
        let messages = line.take();
        if messages.is_empty() {
            futures_util::select_biased! {
                () = line.wake.notified().fuse() => continue,
                ended = done.next().fuse() => return ended.map(drop),
            }
        }
        let batch = RaftBatch { group, from: own_id, to: line.to, messages };
        futures_util::select_biased! {
            sent = out.send(&batch).fuse() => sent?,
            ended = done.next().fuse() => return ended.map(drop),
        }
    }
}

async fn send_snapshot(line: &Line, group: u64, own_id: u64, snapshot: Snapshot) -> Result<(), Status> {
    let head = SnapshotHead {
        group,
        from: own_id,
        to: line.to,
        term: snapshot.term,
        index: snapshot.position.index,
        log_term: snapshot.position.term,
        length: snapshot.data.len() as u64,
        crc32c: crc32c::crc32c(&snapshot.data),
    };
    let (out, answers) = MembersClient::new(line.channel.clone()).snapshot(CallContext::default()).await?;
    let mut chunk = SnapshotChunk { head: Some(head), data: Bytes::new() };
    let mut rest = snapshot.data;
    loop {
        chunk.data = rest.split_to(rest.len().min(CHUNK_BYTES));
        out.send(&chunk).await?;
        if rest.is_empty() {
            break;
        }
        chunk = SnapshotChunk::default();
    }
    out.close();
    answers.one().await.map(drop)
}
