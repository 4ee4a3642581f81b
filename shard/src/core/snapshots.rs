//! Raft snapshots: all of a region's data on its way to a peer that has none of it, or too little.
//!
//! ```text
//!  leader's core                            connection's core                 core of the new peer
//!  engine snapshot, pieces by a helper
//!  ── SnapshotChunk: who, and where ─────▶  reserve a shard (core 0)
//!  ── SnapshotChunk: entries … ──────────▶  gather ─── a table's worth ─────▶  table file, synced
//!  ── SnapshotChunk: sums ───────────────▶  compare ── record ──────────────▶  ingest (redo), peer serves
//!  ◀── Done ────────────────────────────────────────────────────────────────
//! ```
//!
//! The first chunk's message is what TiKV's is: a `MsgSnapshot` with its metadata and `RaftSnapshotData`. The entries
//! travel as `RaftSnapshotData.data`, family by family in key order, with the family's number in front of the key. The
//! last chunk has the sums of each family (`SnapshotMeta.cf_files`). Whatever does not add up is discarded whole: tables
//! are nothing before their record. Small data makes no tables: the record has them itself.
//!
//! What bounds them, so that those who wait for answers notice little: they run in class background, whose helpers are at
//! most half of all; what is read for one, and what is written of one, is taken out of the node's bandwidth for snapshots
//! ([`NodeShared::snapshot_io`](super::NodeShared)), before it is sent and before it is written, and it is their own tasks
//! that wait; a shard sends `SENDING_MAX` at a time, a node takes in as many as its directory lets in.

use std::rc::Rc;
use std::time::Duration;

use base::{PeerId, RegionId, ShardId, StoreId, TokenBucket};
use bytes::{BufMut as _, Bytes, BytesMut};
use executor::Class;
use mvcc::Cf;
use prost::Message as _;
use proto::rpc::{CallContext, Inbound, Status};
use proto::{metapb, raft_serverpb, tikvpb};
use raftstore::eraftpb::{Message, MessageType, Snapshot, SnapshotMetadata};

use super::chain::{claimed_at, snapshot_claim};
use super::disk::DiskUsage;
use super::error::RegionError;
use super::host::CoreHost;
use super::lifecycle::region_of;
use super::mail::{Control, Reply, reply};
use super::meta::PeerMeta;
use super::moves::read_piece;
use super::peer::Phase;
use super::planted::PlantedFault;
use super::records::{ApplyingRecord, HomeRecord};
use super::shard::{Input, Shard, add};
use super::turn::Turn;
use crate::engine::{Engine, data_range};

/// How long one may take where nothing but the network holds it back. Slow ones move a region of usual size within minutes.
const SEND_LIMIT: Duration = Duration::from_secs(600);
/// The wait before the next one to the same follower: the leader hears of this one's arrival by raft.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// Keys and values of one table file.
const TABLE_BYTES: usize = 8 << 20;
/// Snapshots that a shard sends at a time; others wait for the next time that raft asks.
const SENDING_MAX: usize = 4;

/// Why a snapshot did not get through.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum SnapshotError {
    #[error("store {0} cannot be reached")]
    NoWay(StoreId),
    #[error("engine: {0}")]
    Engine(String),
    #[error(transparent)]
    Call(#[from] Status),
}

/// One that is to be sent.
struct Job<E: Engine> {
    meta: PeerMeta,
    to: metapb::Peer,
    term: u64,
    snapshot: E::Snapshot,
    /// How long it may take.
    limit: Duration,
}

/// How long a snapshot of `bytes` may take: as many others as are sent at a time may have their part of the node's
/// bandwidth, `rate` bytes per second. The receiver's is taken for the same.
fn send_limit(bytes: u64, rate: u64) -> Duration {
    let together = (SENDING_MAX * executor::cores()) as u64;
    let in_turn = bytes.saturating_mul(together).checked_div(rate).unwrap_or(0);
    SEND_LIMIT.saturating_add(Duration::from_secs(in_turn))
}

/// Takes `bytes` out of the node's bandwidth for snapshots, and waits until they are there.
async fn take_share(io: &TokenBucket, bytes: usize) {
    let wait = io.take(executor::now(), bytes as u64);
    if !wait.is_zero() {
        executor::sleep(wait).await;
    }
}

impl<E: Engine> Shard<E> {
    /// Begins the snapshots that raft asked for in this turn. All that is applied is in the engine at this point.
    pub(crate) fn begin_snapshots(self: &Rc<Self>, turn: &mut Turn) {
        for (region, to) in std::mem::take(&mut turn.snapshots) {
            let now = executor::now();
            let mut peers = self.peers.borrow_mut();
            let sending: usize = self.sending.get();
            let Some(peer) = peers.get_mut(&region).filter(|peer| peer.leads() && peer.phase == Phase::Serving) else {
                continue;
            };
            if peer.meta.merge.is_some() {
                // Its members had all of its log; who lacks the rest gets that from the target.
                continue;
            }
            let member = peer.meta.region.peers.iter().find(|member| member.id == to.0).copied();
            let Some(member) = member else { continue };
            let is_busy = peer.snapshots.get(&to.0).is_some_and(|until| now < *until);
            if is_busy || sending >= SENDING_MAX {
                continue;
            }
            let limit = send_limit(peer.meta.approximate_bytes, self.outlet.snapshot_io().rate());
            peer.snapshots.insert(to.0, now + limit);
            self.sending.set(sending + 1);
            add(&self.metrics.snapshots_sent_total, 1);
            let job =
                Job { meta: peer.meta.clone(), to: member, term: peer.term, snapshot: self.engine.snapshot(), limit };
            let shard = self.clone();
            executor::spawn_local(Class::Background, async move {
                let result = shard.send_snapshot(job).await;
                if let Err(error) = &result {
                    tracing::debug!(%region, to = member.id, %error, "a snapshot did not get through");
                }
                shard.sending.set(shard.sending.get() - 1);
                shard.push(Input::SnapshotSent { region, to });
            });
        }
    }

    /// One is over. Raft asks again if it is still needed.
    pub(crate) fn step_snapshot_sent(&self, region: RegionId, to: PeerId) {
        if let Some(peer) = self.peers.borrow_mut().get_mut(&region) {
            peer.snapshots.insert(to.0, executor::now() + RETRY_PAUSE);
        }
    }

    /// Tells the leader of `region` up to where its peer here has the log: what a raft of its own would say after a
    /// snapshot. Until then the leader takes the peer for empty.
    fn announce(&self, region: RegionId, leader: metapb::Peer, term: u64) {
        let peers = self.peers.borrow();
        let Some(peer) = peers.get(&region).filter(|peer| peer.phase != Phase::Stopped) else { return };
        let answer = Message {
            msg_type: MessageType::MsgAppendResponse as i32,
            from: peer.meta.peer.id,
            to: leader.id,
            term,
            index: peer.meta.applied_index,
            ..Message::default()
        };
        let letter = raft_serverpb::RaftMessage {
            region_id: region.0,
            from_peer: Some(peer.meta.peer),
            to_peer: Some(leader),
            message: answer.encode_to_vec().into(),
            region_epoch: peer.meta.region.region_epoch,
            ..Default::default()
        };
        self.outlet.send_raft(StoreId(leader.store_id), letter);
    }

    async fn send_snapshot(&self, job: Job<E>) -> Result<(), SnapshotError> {
        let store = StoreId(job.to.store_id);
        let channel = self.outlet.channel(store).await.ok_or(SnapshotError::NoWay(store))?;
        let context = CallContext { deadline: Some(executor::now() + job.limit), ..Default::default() };
        let io = self.outlet.snapshot_io();
        let (chunks, done) = tikvpb::TikvClient::new(channel).snapshot(context).await?;
        chunks.send(&raft_serverpb::SnapshotChunk { message: Some(head(&job)), ..Default::default() }).await?;
        let region = job.meta.region.clone();
        let (lower, mut upper) = data_range(&region.start_key, &region.end_key);
        if self.config.is_planted(PlantedFault::SnapshotTooWide) {
            upper = base::keys::DATA_MAX.to_vec();
        }
        let mut sums = Vec::new();
        for cf in Cf::DATA {
            let mut sum = Sum::default();
            let mut from = Some(lower.clone());
            while let Some(at) = from {
                let (snapshot, upper) = (job.snapshot.clone(), upper.clone());
                let (entries, next) =
                    executor::blocking(Class::Background, move || read_piece::<E>(&snapshot, cf, &at, &upper))
                        .await
                        .map_err(SnapshotError::Engine)?;
                from = next;
                let mut piece = raft_serverpb::RaftSnapshotData::default();
                let bytes = entries.iter().map(|(_, key, value)| key.len() + value.len()).sum();
                take_share(&io, bytes).await;
                add(&self.metrics.snapshot_read_bytes_total, bytes as u64);
                for (cf, key, value) in entries {
                    sum.take(&key, &value);
                    piece.data.push(raft_serverpb::KeyValue { key: named(cf.index(), &key), value });
                }
                if !piece.data.is_empty() {
                    let data = piece.encode_to_vec().into();
                    chunks.send(&raft_serverpb::SnapshotChunk { data, ..Default::default() }).await?;
                }
            }
            sums.push(sum.file(cf));
        }
        let meta = raft_serverpb::SnapshotMeta { cf_files: sums, ..Default::default() };
        let last = raft_serverpb::RaftSnapshotData { meta: Some(meta), ..Default::default() };
        let data = last.encode_to_vec().into();
        chunks.send(&raft_serverpb::SnapshotChunk { data, ..Default::default() }).await?;
        chunks.close();
        done.one().await?;
        Ok(())
    }
}

fn head<E: Engine>(job: &Job<E>) -> raft_serverpb::RaftMessage {
    let region = &job.meta.region;
    let data = raft_serverpb::RaftSnapshotData { region: Some((**region).clone()), version: 2, ..Default::default() };
    let metadata = SnapshotMetadata {
        conf_state: Some(raftstore::conf_state(region)),
        index: job.meta.applied_index,
        term: job.meta.applied_term,
    };
    let message = Message {
        msg_type: MessageType::MsgSnapshot as i32,
        from: job.meta.peer.id,
        to: job.to.id,
        term: job.term,
        snapshot: Some(Snapshot { data: data.encode_to_vec().into(), metadata: Some(metadata) }),
        ..Message::default()
    };
    raft_serverpb::RaftMessage {
        region_id: region.id,
        from_peer: Some(job.meta.peer),
        to_peer: Some(job.to),
        message: message.encode_to_vec().into(),
        region_epoch: region.region_epoch,
        extra_ctx: snapshot_claim(&job.meta),
        ..Default::default()
    }
}

/// What a family's entries add up to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sum {
    bytes: u64,
    checksum: u32,
}

impl Sum {
    fn take(&mut self, key: &[u8], value: &[u8]) {
        self.bytes += (key.len() + value.len()) as u64;
        let lengths = [key.len() as u64, value.len() as u64].map(u64::to_le_bytes).concat();
        for part in [&lengths[..], key, value] {
            self.checksum = crc32c::crc32c_append(self.checksum, part);
        }
    }

    fn file(self, cf: Cf) -> raft_serverpb::SnapshotCfFile {
        raft_serverpb::SnapshotCfFile { cf: cf.name().into(), size: self.bytes, checksum: self.checksum }
    }
}

/// A range that is kept free for a region on one shard, and the files that are meant for it. Dropping it gives both
/// up, also when a connection breaks and takes its handler along.
struct Reservation<E: Engine> {
    host: Rc<CoreHost<E>>,
    region: RegionId,
    shard: ShardId,
    files: Vec<String>,
}

impl<E: Engine> Drop for Reservation<E> {
    fn drop(&mut self) {
        let (shard, files) = (self.shard, std::mem::take(&mut self.files));
        if !files.is_empty() {
            self.host.control(self.host.core_of(shard), Control::SnapshotDrop { shard, files });
        }
        self.host.control(base::CoreId(0), Control::Release { region: self.region });
    }
}

/// One that is being received.
struct Receiving<E: Engine> {
    place: Reservation<E>,
    /// Who sends it, and in which term.
    leader: metapb::Peer,
    term: u64,
    home: HomeRecord,
    prefix: String,
    /// Where it is: the family, and its entries that are in no table yet.
    cf: usize,
    table: Vec<(Bytes, Bytes)>,
    table_bytes: usize,
    /// Entries of families that are complete, as long as all of it may be small.
    small: Vec<(usize, Vec<(Bytes, Bytes)>)>,
    sums: [Sum; 3],
    last_key: Bytes,
}

/// Receives a snapshot on the core of its connection; when this returns, the peer serves.
///
/// # Errors
/// What was wrong with it, or why it cannot be taken now. Nothing of it stays then.
pub async fn receive<E: Engine>(
    host: &Rc<CoreHost<E>>,
    mut chunks: Inbound<raft_serverpb::SnapshotChunk>,
) -> Result<raft_serverpb::Done, Status> {
    let first = chunks.next().await?.and_then(|chunk| chunk.message);
    let first = first.ok_or_else(|| Status::invalid_argument("a snapshot without its message"))?;
    let mut receiving = begin(host, &first).await?;
    take_all(host, &mut receiving, &mut chunks).await?;
    // A task of its own: once the peer begins, the directory must hear of it, even if the sender is gone by then.
    executor::spawn_local(Class::Background, install(host.clone(), receiving)).await?;
    Ok(raft_serverpb::Done::default())
}

async fn install<E: Engine>(host: Rc<CoreHost<E>>, mut receiving: Receiving<E>) -> Result<(), Status> {
    let (shard, leader, term) = (receiving.place.shard, receiving.leader, receiving.term);
    // From here on they are the shard's: if it closes now, its log may have a record that needs them at the next start.
    let files = std::mem::take(&mut receiving.place.files);
    let pairs = std::mem::take(&mut receiving.small).into_iter().flat_map(|(cf, entries)| {
        entries.into_iter().map(move |(key, value)| raft_serverpb::KeyValue { key: named(cf, &key), value })
    });
    let record = Box::new(ApplyingRecord { home: Some(receiving.home.clone()), files, pairs: pairs.collect() });
    ask(&host, shard, |reply| Control::SnapshotInstall { shard, record, leader, term, reply }).await?;
    let region = receiving.home.region.clone().unwrap_or_default();
    let bytes = receiving.sums.iter().map(|sum| sum.bytes).sum();
    host.update_routes(&[(RegionId(region.id), Some(shard))]);
    host.control(base::CoreId(0), Control::Born { shard, region, bytes });
    Ok(())
}

async fn begin<E: Engine>(host: &Rc<CoreHost<E>>, letter: &raft_serverpb::RaftMessage) -> Result<Receiving<E>, Status> {
    let bad = || Status::invalid_argument("not a snapshot");
    if host.node.disk.usage() == DiskUsage::Exhausted {
        return Err(Status::unavailable("the disk is full"));
    }
    let message = Message::decode(letter.message.clone()).map_err(|_| bad())?;
    let snapshot = message.snapshot.ok_or_else(bad)?;
    let metadata = snapshot.metadata.ok_or_else(bad)?;
    let data = raft_serverpb::RaftSnapshotData::decode(snapshot.data).map_err(|_| bad())?;
    let region = data.region.ok_or_else(bad)?;
    let to = letter.to_peer.ok_or_else(bad)?;
    let is_member = region.peers.iter().any(|peer| peer.id == to.id && peer.store_id == host.node.store.0);
    if !is_member || region.id != letter.region_id || metadata.index == 0 || metadata.term == 0 {
        return Err(bad());
    }
    // A task of its own: if the connection breaks meanwhile, the place is given back when its answer has come.
    let place = executor::spawn_local(Class::Background, reserve(host.clone(), region.clone(), PeerId(to.id))).await?;
    let home = HomeRecord {
        region: Some(region),
        peer_id: to.id,
        term: message.term,
        applied_index: metadata.index,
        applied_term: metadata.term,
        chain: claimed_at(&letter.extra_ctx, metadata.index),
        ..Default::default()
    };
    Ok(Receiving {
        place,
        leader: letter.from_peer.ok_or_else(bad)?,
        term: message.term,
        prefix: format!("{}-{}-{}-{}", letter.region_id, to.id, metadata.index, host.next_name()),
        home,
        cf: 0,
        table: Vec::new(),
        table_bytes: 0,
        small: Vec::new(),
        sums: Default::default(),
        last_key: Bytes::new(),
    })
}

/// Asks core 0 for a place.
async fn reserve<E: Engine>(
    host: Rc<CoreHost<E>>,
    region: metapb::Region,
    peer: PeerId,
) -> Result<Reservation<E>, Status> {
    let id = RegionId(region.id);
    let (reply, answer) = reply();
    host.control(base::CoreId(0), Control::Reserve { region, peer, reply });
    let closing = || Status::unavailable("the node is closing");
    let shard = answer.wait().await.ok_or_else(closing)?.map_err(Status::failed_precondition)?;
    Ok(Reservation { host, region: id, shard, files: Vec::new() })
}

async fn take_all<E: Engine>(
    host: &Rc<CoreHost<E>>,
    receiving: &mut Receiving<E>,
    chunks: &mut Inbound<raft_serverpb::SnapshotChunk>,
) -> Result<(), Status> {
    let mut last = None;
    while let Some(chunk) = chunks.next().await? {
        let bad = |_| Status::invalid_argument("a chunk cannot be read");
        let data = raft_serverpb::RaftSnapshotData::decode(chunk.data).map_err(bad)?;
        for pair in data.data {
            receiving.take(host, pair).await?;
        }
        last = data.meta;
    }
    receiving.finish_family(host).await?;
    let sums = Cf::DATA.into_iter().zip(receiving.sums).map(|(cf, sum)| sum.file(cf)).collect::<Vec<_>>();
    if last.is_none_or(|meta| meta.cf_files != sums) {
        return Err(Status::data_loss("the snapshot does not add up"));
    }
    // What is in tables has had its share.
    let small = receiving.small.iter().flat_map(|(_, entries)| entries);
    take_share(&host.node.snapshot_io, small.map(|(key, value)| key.len() + value.len()).sum()).await;
    Ok(())
}

impl<E: Engine> Receiving<E> {
    async fn take(&mut self, host: &Rc<CoreHost<E>>, pair: raft_serverpb::KeyValue) -> Result<(), Status> {
        let bad = || Status::invalid_argument("a pair of no family, out of order, or of another region");
        let (&cf, _) = pair.key.split_first().ok_or_else(bad)?;
        let (cf, key) = (usize::from(cf), pair.key.slice(1..));
        // What lies outside of the region belongs to others, who are here.
        let region = self.home.region.as_ref().ok_or_else(bad)?;
        let (lower, mut upper) = data_range(&region.start_key, &region.end_key);
        let shards = host.shards();
        if shards.iter().any(|shard| shard.config.is_planted(PlantedFault::SnapshotTooWide)) {
            upper = base::keys::DATA_MAX.to_vec();
        }
        if key[..] < lower[..]
            || key[..] >= upper[..]
            || cf >= self.sums.len()
            || cf < self.cf
            || (cf == self.cf && key <= self.last_key)
        {
            return Err(bad());
        }
        if cf != self.cf {
            self.finish_family(host).await?;
            self.cf = cf;
        } else if self.table_bytes >= TABLE_BYTES {
            self.build_all(host).await?;
        }
        self.sums[cf].take(&key, &pair.value);
        self.table_bytes += key.len() + pair.value.len();
        self.last_key = key.clone();
        self.table.push((key, pair.value));
        Ok(())
    }

    /// The family's entries are complete. They become tables unless all of the snapshot may be small.
    async fn finish_family(&mut self, host: &Rc<CoreHost<E>>) -> Result<(), Status> {
        let bytes: u64 = self.sums.iter().map(|sum| sum.bytes).sum();
        if !self.place.files.is_empty() || bytes > host.node.small_snapshot_bytes {
            return self.build_all(host).await;
        }
        self.small.push((self.cf, std::mem::take(&mut self.table)));
        self.table_bytes = 0;
        Ok(())
    }

    /// Builds tables of all entries that are here.
    async fn build_all(&mut self, host: &Rc<CoreHost<E>>) -> Result<(), Status> {
        let mut families = std::mem::take(&mut self.small);
        families.push((self.cf, std::mem::take(&mut self.table)));
        self.table_bytes = 0;
        for (cf, entries) in families.into_iter().filter(|(_, entries)| !entries.is_empty()) {
            take_share(&host.node.snapshot_io, entries.iter().map(|(key, value)| key.len() + value.len()).sum()).await;
            let cf = Cf::DATA[cf];
            let name = format!("{}-{}.{}", self.prefix, self.place.files.len(), cf.name());
            self.place.files.push(name.clone());
            let shard = self.place.shard;
            ask(host, shard, |reply| Control::SnapshotTable { shard, cf, name, entries, reply }).await?;
        }
        Ok(())
    }
}

/// A key as it travels: behind the number of its family.
fn named(cf: usize, key: &[u8]) -> Bytes {
    let mut named = BytesMut::with_capacity(key.len() + 1);
    named.put_u8(cf as u8);
    named.extend_from_slice(key);
    named.freeze()
}

async fn ask<E: Engine>(
    host: &Rc<CoreHost<E>>,
    shard: ShardId,
    letter: impl FnOnce(Reply<Result<(), String>>) -> Control,
) -> Result<(), Status> {
    let (reply, answer) = reply();
    host.control(host.core_of(shard), letter(reply));
    let closing = || Status::unavailable("the node is closing");
    answer.wait().await.ok_or_else(closing)?.map_err(Status::failed_precondition)
}

/// Removes files that no record names.
async fn remove_files<E: Engine>(shard: &Shard<E>, files: Vec<String>) {
    let (engine, folder) = (shard.engine.clone(), shard.snap_dir.clone());
    let remove = move || files.iter().try_for_each(|name| engine.remove_table(&folder.join(name)));
    if let Err(error) = executor::blocking(Class::Background, remove).await {
        tracing::warn!(%error, "files of a snapshot stay until the next start");
    }
}

/// At the core of the new peer: what the receiving core asks for.
pub fn handle<E: Engine>(host: &Rc<CoreHost<E>>, control: Control) {
    let host = host.clone();
    executor::spawn_local(Class::Background, async move {
        let find = |shard| host.shard(shard).ok_or_else(|| format!("shard {shard} is not on this core"));
        match control {
            Control::SnapshotTable { shard, cf, name, entries, reply } => {
                let result = match find(shard) {
                    Err(why) => Err(why),
                    Ok(shard) => {
                        let (engine, path) = (shard.engine.clone(), shard.snap_dir.join(name));
                        let build = move || engine.build_table(cf, &path, entries).map(drop);
                        executor::blocking(Class::Background, build).await.map_err(|error| error.to_string())
                    }
                };
                reply.send(result);
            }
            Control::SnapshotInstall { shard, record, leader, term, reply } => {
                let result = match find(shard) {
                    Err(why) => Err(why),
                    Ok(shard) => {
                        let region = record.home.as_ref().map_or(RegionId(0), region_of);
                        let files = record.files.clone();
                        let result = shard.ingest(*record).await;
                        if result.as_ref().is_err_and(|error| *error != RegionError::Closing) {
                            remove_files(&shard, files).await;
                        }
                        let result = result.map_err(|error| error.to_string());
                        // Also if it has come before: then the leader did not hear of it.
                        shard.announce(region, leader, term);
                        result
                    }
                };
                reply.send(result);
            }
            Control::SnapshotDrop { shard, files } => {
                if let Ok(shard) = find(shard) {
                    remove_files(&shard, files).await;
                }
            }
            _ => {}
        }
    });
}
