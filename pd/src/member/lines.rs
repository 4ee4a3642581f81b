//! Lines to the other members: a stream of raft messages to each, and snapshots beside it.
//!
//! Raft bears loss: what does not fit, or was under way when a stream broke, is lost.

use super::change::to_wire;
use super::group::{Group, MemberInfo};
use crate::raft::Snapshot;
use bytes::Bytes;
use executor::{Class, Notify, Task};
use futures_util::FutureExt as _;
use net::{Channel, ChannelConfig};
use prost::Message as _;
use proto::memberpb::{MembersClient, RaftBatch, SnapshotChunk, SnapshotHead};
use proto::rpc::{CallContext, Code, Status};
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
    lines: RefCell<BTreeMap<u64, Rc<Line>>>,
    snapshots: RefCell<Vec<Task<()>>>,
    tls: Option<net::Tls>,
    group: u64,
    own_id: u64,
    told: Rc<Told>,
}

/// What the lines were told by the others.
#[derive(Default)]
pub(crate) struct Told {
    /// This member was removed.
    pub(crate) removed: Cell<bool>,
    /// Something was told.
    pub(crate) wake: Rc<Notify>,
}

/// What a member answers to one that was removed.
pub(super) const REMOVED: &str = "this member was removed from the group";

struct Line {
    to: u64,
    url: String,
    channel: Channel,
    queue: RefCell<VecDeque<Bytes>>,
    bytes: Cell<usize>,
    wake: Notify,
    /// A snapshot is on its way.
    snapshot: Cell<bool>,
    task: RefCell<Option<Task<()>>>,
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
    /// No lines yet. They will have the certificates of this member's port.
    pub(crate) fn new(group: &Group, tls: Option<&net::Tls>, wake: Rc<Notify>) -> Lines {
        Lines {
            lines: RefCell::default(),
            snapshots: RefCell::default(),
            tls: tls.cloned(),
            group: group.number,
            own_id: group.own_id,
            told: Rc::new(Told { removed: Cell::new(false), wake }),
        }
    }

    /// Lines to all others of `group`, and to nobody else. Nothing is sent before the first message.
    pub(crate) fn update(&self, group: &Group) {
        let mut lines = self.lines.borrow_mut();
        lines.retain(|id, line| {
            let stays = group.find(*id).is_some_and(|member| member.url == line.url);
            if !stays {
                line.end();
            }
            stays
        });
        for member in group.others().filter(|member| !member.url.is_empty()) {
            lines.entry(member.id).or_insert_with(|| {
                let line = Rc::new(Line {
                    to: member.id,
                    url: member.url.clone(),
                    channel: channel_to(member, self.tls.as_ref()),
                    queue: RefCell::default(),
                    bytes: Cell::new(0),
                    wake: Notify::new(),
                    snapshot: Cell::new(false),
                    task: RefCell::new(None),
                });
                let run = run(Rc::clone(&line), self.group, self.own_id, Rc::clone(&self.told));
                *line.task.borrow_mut() = Some(executor::spawn_local(Class::Foreground, run));
                line
            });
        }
    }

    /// Whether another member said that this one was removed.
    pub(crate) fn told_removed(&self) -> bool {
        self.told.removed.get()
    }

    /// Another member says that this one was removed.
    pub(crate) fn tell_removed(&self) {
        self.told.removed.set(true);
        self.told.wake.notify();
    }

    /// The channel to a member; `None` to itself and to strangers.
    pub(crate) fn channel(&self, member: u64) -> Option<Channel> {
        self.lines.borrow().get(&member).map(|line| line.channel.clone())
    }

    /// Sends a message, or loses it.
    pub(crate) fn send(&self, message: &Message) {
        let lines = self.lines.borrow();
        let Some(line) = lines.get(&message.to) else { return };
        let message = Bytes::from(message.encode_to_vec());
        if line.bytes.get() + message.len() <= QUEUE_BYTES_MAX {
            line.bytes.set(line.bytes.get() + message.len());
            line.queue.borrow_mut().push_back(message);
            line.wake.notify();
        }
    }

    /// Sends a snapshot in the background, unless one is on its way. `take` makes it.
    pub(crate) fn send_snapshot(&self, to: u64, take: impl FnOnce() -> Snapshot) {
        let line = self.lines.borrow().get(&to).cloned();
        let Some(line) = line.filter(|line| !line.snapshot.replace(true)) else { return };
        let snapshot = take();
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
        let mut tasks = self.snapshots.borrow_mut();
        tasks.retain(|task| !task.is_done());
        tasks.push(task);
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.snapshots.borrow_mut().drain(..).for_each(Task::cancel);
        self.lines.borrow().values().for_each(|line| line.end());
    }
}

impl Line {
    fn end(&self) {
        self.task.borrow_mut().take().into_iter().for_each(Task::cancel);
    }

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
async fn run(line: Rc<Line>, group: u64, own_id: u64, told: Rc<Told>) {
    loop {
        if line.queue.borrow().is_empty() {
            line.wake.notified().await;
            continue;
        }
        if let Err(status) = stream(&line, group, own_id).await {
            tracing::debug!(to = line.to, %status, "raft messages are lost");
            if status.code == Code::FailedPrecondition && status.message == REMOVED {
                told.removed.set(true);
                told.wake.notify();
            }
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
        members: snapshot.roster.members().iter().map(to_wire).collect(),
        removed: snapshot.roster.removed().to_vec(),
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
