//! What cores of a node say to each other.

use std::time::Duration;

use base::{CoreId, PeerId, RegionId, ShardId, StoreId};
use bytes::Bytes;
use executor::{MailReceiver, MailSender};
use mvcc::Cf;
use proto::{metapb, pdpb, raft_serverpb};

use super::compare::RegionHash;
use super::directory::{MoveTicket, Tombstone};
use super::error::RegionError;
use super::orders::Order;
use super::records::{ApplyingRecord, HomeRecord};
use super::work::RegionWork;
use crate::log::LogEntry;

/// One letter in a core's mailbox.
pub enum CoreMail {
    /// A connection that this core serves from now on.
    Connection(net::Placed),
    /// Requests for regions of this core, from the core that holds the client's connection.
    Requests {
        /// Who gets the answers.
        from: CoreId,
        /// The requests.
        requests: Vec<RemoteRequest>,
    },
    /// Answers to requests that this core sent, by token.
    Replies(Vec<(u64, Answered)>),
    /// Everything that is not a client's request.
    Control(Box<Control>),
}

/// What became of a request at the core that it was sent to.
#[derive(Clone, Debug)]
pub enum Answered {
    /// The encoded answer.
    Bytes(Bytes),
    /// The region is not on that core any more, or not yet: nothing was done, ask again.
    Moving(RegionId),
    /// The request cannot be decoded.
    Malformed(String),
}

/// A request on its way to the core of its region.
#[derive(Debug)]
pub struct RemoteRequest {
    /// Names the request among those of its sender.
    pub token: u64,
    /// Which command: see [`crate::service::Command`].
    pub tag: u32,
    /// When the client stops waiting; `None` if it did not say.
    pub deadline: Option<base::Instant>,
    /// When it came in.
    pub arrived: base::Instant,
    /// The encoded request.
    pub body: Bytes,
}

/// What a peer knows of its region.
#[derive(Clone, Debug)]
pub struct PeerView {
    /// The region.
    pub region: metapb::Region,
    /// The peer's id.
    pub peer: PeerId,
    /// The region's version when this copy began to follow the log.
    pub began_version: u64,
    /// The region that it is to merge into, as it was then.
    pub merges_into: Option<metapb::Region>,
    /// Its log is damaged, or its data differ from its leader's: it applies nothing more.
    pub is_broken: bool,
}

/// Where a region is from now on; `None` if it is no longer on this node.
pub type Route = (RegionId, Option<ShardId>);

/// Messages that keep the node together. Each `reply` is answered once, or dropped when the other side is closing.
pub enum Control {
    /// To every core: new routes.
    Routes(Vec<Route>),
    /// To core 0: leaders' reports for PD.
    Heartbeats(Vec<RegionReport>),
    /// To core 0: estimated bytes of regions that do not lead.
    Sizes(Vec<(RegionId, u64)>),
    /// To core 0: ids for `count` new regions.
    AskSplit {
        /// The region as its leader knows it.
        region: metapb::Region,
        /// How many new regions.
        count: u32,
        /// The ids, or why there are none.
        reply: Reply<Result<Vec<pdpb::SplitId>, String>>,
    },
    /// To core 0: a split was applied on `shard`.
    SplitDone {
        /// Where.
        shard: ShardId,
        /// Whether the parent leads here.
        leads: bool,
        /// All resulting regions in key order.
        regions: Vec<metapb::Region>,
        /// Estimated bytes of each.
        bytes: u64,
    },
    /// To the core of a region's leader: have all replicas hash their data.
    ComputeHash {
        /// The region.
        region: RegionId,
        /// The index at which they do, or why they do not.
        reply: Reply<Result<u64, String>>,
    },
    /// To the core of the source: hand `ticket.region` over.
    Move {
        /// What goes where.
        ticket: MoveTicket,
        /// It goes without a leader of its group, too.
        at_once: bool,
        /// Whether it arrived.
        reply: Reply<Result<(), MoveError>>,
    },
    /// To the core of the target: make room for a region's range.
    MovePrepare {
        /// Where.
        shard: ShardId,
        /// First key, inclusive.
        start: Bytes,
        /// Last key, exclusive; empty is infinity.
        end: Bytes,
        /// Done.
        reply: Reply<Result<(), MoveError>>,
    },
    /// To the core of the target: part of the region's data, engine keys.
    MoveData {
        /// Where.
        shard: ShardId,
        /// Family, key, value.
        entries: Vec<(Cf, Bytes, Bytes)>,
        /// Done.
        reply: Reply<Result<(), MoveError>>,
    },
    /// To the core of the target: all data is there, take the peer over, asleep.
    MoveInstall {
        /// Where.
        shard: ShardId,
        /// The peer.
        home: Box<HomeRecord>,
        /// The entries of its log that it has not applied.
        tail: Vec<LogEntry>,
        /// Done: the record is durable.
        reply: Reply<Result<(), MoveError>>,
    },
    /// To the core of the target: the source has let go, serve.
    MoveActivate {
        /// Where.
        shard: ShardId,
        /// Which.
        region: RegionId,
        /// Whether it led its group there.
        led: bool,
    },
    /// To core 0: the region of `ticket` has left its source and is durable at its target.
    Arrived {
        /// What went where.
        ticket: MoveTicket,
    },
    /// To core 0: the next `count` timestamps of the cluster; answers with the last one.
    Timestamps {
        /// How many.
        count: u32,
        /// The last one, or why there is none.
        reply: Reply<Result<u64, String>>,
    },
    /// To core 0: a transaction begins to wait for another one's lock.
    Wait {
        /// Who for whom.
        wait: mvcc::txn::Wait,
        /// The waits that lead back from the one to the other, if there are any: then it must not wait.
        reply: Reply<Option<Vec<mvcc::txn::Wait>>>,
    },
    /// To core 0: it waits no more.
    WaitEnded(mvcc::txn::Wait),
    /// To every core: report all leaders to core 0.
    Report,
    /// To the core of a region: PD wants something of it.
    Order(Order),
    /// To the core of a region, or to core 0 if it is not here: a raft message.
    Raft(Box<raft_serverpb::RaftMessage>),
    /// To core 0: where is that store?
    StoreAddress {
        /// Which.
        store: StoreId,
        /// Its address, or why it is unknown.
        reply: Reply<Result<String, String>>,
    },
    /// To core 0: a snapshot of `region` comes in for its peer of this id; which shard is to take it?
    Reserve {
        /// As the snapshot has it.
        region: metapb::Region,
        /// Our peer.
        peer: PeerId,
        /// The shard, or why it must not come.
        reply: Reply<Result<ShardId, String>>,
    },
    /// To core 0: what was reserved for a snapshot of `region` is free again, or taken by its peer.
    Release {
        /// Which.
        region: RegionId,
    },
    /// To the core of a shard: part of a snapshot, engine keys that ascend.
    SnapshotTable {
        /// Where.
        shard: ShardId,
        /// Of which family.
        cf: Cf,
        /// The name that the file gets.
        name: String,
        /// Key, value.
        entries: Vec<(Bytes, Bytes)>,
        /// Done: the file is durable.
        reply: Reply<Result<(), String>>,
    },
    /// To the core of a shard: all of a snapshot is there.
    SnapshotInstall {
        /// Where.
        shard: ShardId,
        /// The peer and its files.
        record: Box<ApplyingRecord>,
        /// Who sent it.
        leader: metapb::Peer,
        /// In which term.
        term: u64,
        /// Done: the peer serves.
        reply: Reply<Result<(), String>>,
    },
    /// To the core of a shard: nothing comes of a snapshot.
    SnapshotDrop {
        /// Where.
        shard: ShardId,
        /// Its files so far.
        files: Vec<String>,
    },
    /// To core 0: a peer came with a snapshot.
    Born {
        /// Where it lives.
        shard: ShardId,
        /// Its region.
        region: metapb::Region,
        /// Estimated bytes.
        bytes: u64,
    },
    /// To core 0: a source and its target are to be on one shard.
    BringTogether {
        /// The region that ends.
        source: RegionId,
        /// The neighbour that takes its range over.
        target: RegionId,
        /// The target's version when the merge was prepared.
        version: u64,
    },
    /// To core 0: another node tells that a region has merged into a neighbour.
    LeftBehind {
        /// The shard of the peer that is still here.
        shard: ShardId,
        /// Its region.
        region: RegionId,
        /// Which peer.
        peer: PeerId,
        /// The neighbour, as it was before.
        target: Box<metapb::Region>,
    },
    /// To the core of `shard`: the source that a target waits for ended on this node without it.
    SourceEnded {
        /// The shard of the target.
        shard: ShardId,
        /// The target.
        region: RegionId,
        /// The source.
        source: RegionId,
        /// Its last peer here.
        peer: PeerId,
    },
    /// To the core of `shard`: the target of a prepared merge ended on this node, and did not take the source over.
    VoidMerge {
        /// The shard of the source.
        shard: ShardId,
        /// The source.
        region: RegionId,
        /// The target.
        target: RegionId,
    },
    /// To core 0: a merge, or a step of one, gave a region another range or version.
    Reranged {
        /// Where.
        shard: ShardId,
        /// The region with its new range.
        region: metapb::Region,
        /// Its estimated size.
        bytes: u64,
    },
    /// To the core of `shard`: what its peer of a region knows of it.
    WhoIs {
        /// Where.
        shard: ShardId,
        /// Which.
        region: RegionId,
        /// Nothing if it is not there.
        reply: Reply<Option<PeerView>>,
    },
    /// To the core of `shard`: end a peer whose group is gone.
    End {
        /// Where.
        shard: ShardId,
        /// Its region.
        region: RegionId,
        /// Which.
        peer: PeerId,
        /// When it has ended.
        reply: Reply<()>,
    },
    /// To core 0: a peer has heard of no leader for long; is it a member still?
    Leaderless {
        /// Where.
        shard: ShardId,
        /// The peer.
        peer: Box<PeerView>,
    },
    /// To core 0: a peer ended, durably.
    Ended {
        /// Its region.
        region: RegionId,
        /// What is left of it.
        tombstone: Tombstone,
    },
    /// To core 0: who waits for locks on this node.
    Waits {
        /// Each wait, and how long it has lasted.
        reply: Reply<Vec<(mvcc::txn::Wait, Duration)>>,
    },
    /// To every core: remove all data of a range from your shards.
    DestroyRange {
        /// Where it begins, as the engine orders keys.
        start: Bytes,
        /// Where it ends; not empty.
        end: Bytes,
        /// Sent when it is durably gone.
        reply: Reply<Result<(), String>>,
    },
    /// To every core: your counters as lines of the Prometheus text format.
    Metrics {
        /// The lines.
        reply: Reply<String>,
    },
    /// To every core: what your regions have cost since you were asked last, those left out that cost nothing.
    TakeWork {
        /// Over all shards of the core.
        reply: Reply<Vec<RegionWork>>,
    },
    /// To every core: describe your shards, for the status page.
    Describe {
        /// One entry per shard of the core.
        reply: Reply<Vec<ShardDescription>>,
    },
}

/// A region as its leader reports it to PD.
#[derive(Clone, Debug, Default)]
pub struct RegionReport {
    /// The shard that holds it.
    pub shard: ShardId,
    /// The region.
    pub region: metapb::Region,
    /// Our peer, which leads.
    pub leader: metapb::Peer,
    /// Raft's term.
    pub term: u64,
    /// Followers that have nothing yet.
    pub pending: Vec<metapb::Peer>,
    /// Followers that were not heard of for long, with the seconds since.
    pub down: Vec<(metapb::Peer, u64)>,
    /// Estimated size; 1 stands for known empty.
    pub approximate_bytes: u64,
    /// Estimated keys.
    pub approximate_keys: u64,
    /// Bytes of keys and values written since the last report.
    pub bytes_written: u64,
    /// Keys written since the last report.
    pub keys_written: u64,
    /// Bytes read since the last report.
    pub bytes_read: u64,
    /// Keys read since the last report.
    pub keys_read: u64,
    /// When the counts began, in seconds since the epoch.
    pub counted_since: u64,
}

/// A shard as the status page shows it.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct ShardDescription {
    /// Which.
    pub shard: u32,
    /// The core that hosts it.
    pub core: u16,
    /// Regions on it.
    pub regions: Vec<RegionDescription>,
    /// Bytes of raft log on disk.
    pub log_bytes: u64,
    /// Bytes of raft log that a restart would replay.
    pub log_bytes_unflushed: u64,
    /// Bytes in memtables.
    pub memtable_bytes: u64,
}

/// A region as the status page shows it.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct RegionDescription {
    /// Region id.
    pub id: u64,
    /// First key in hexadecimal.
    pub start_key: String,
    /// Last key in hexadecimal; empty is infinity.
    pub end_key: String,
    /// Epoch as `conf_ver:version`.
    pub epoch: String,
    /// Our peer's id.
    pub peer: u64,
    /// True if it leads.
    pub leader: bool,
    /// Raft's term.
    pub term: u64,
    /// Index of the last entry applied.
    pub applied_index: u64,
    /// The consistency chain at that index, the same on every replica.
    pub chain: String,
    /// The replica was found to differ from its leader's, and is closed.
    pub diverged: bool,
    /// What the last full comparison found here.
    pub hashed: Option<RegionHash>,
    /// The index of the comparison that goes on.
    pub hashing: Option<u64>,
    /// Estimated size.
    pub approximate_bytes: u64,
    /// Estimated keys.
    pub approximate_keys: u64,
    /// Times that it was moved between shards.
    pub moves: u64,
}

/// Why a region stayed where it was.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum MoveError {
    /// The source cannot let go of it now.
    #[error(transparent)]
    Region(#[from] RegionError),
    /// The engine or the log of one side failed.
    #[error("move failed: {0}")]
    Failed(String),
    /// The other side is closing.
    #[error("the other core is closing")]
    Closing,
}

/// The place where one answer from another core is put.
pub struct Reply<T>(MailSender<T>);

/// The place where it is awaited.
pub struct Answer<T>(MailReceiver<T>);

/// A place for one answer across cores.
pub fn reply<T: Send + 'static>() -> (Reply<T>, Answer<T>) {
    let (sender, receiver) = executor::mailbox(1);
    (Reply(sender), Answer(receiver))
}

impl<T: Send + 'static> Reply<T> {
    /// Answers. Whoever asked may have given up.
    pub fn send(self, answer: T) {
        drop(self.0.try_send(answer));
    }
}

impl<T: Send + 'static> Answer<T> {
    /// The answer, or `None` if the other side is gone.
    pub async fn wait(mut self) -> Option<T> {
        self.0.recv().await
    }
}
