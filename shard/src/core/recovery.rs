//! Opening a shard: what the engine holds, what the log says beyond it, and peers that go on from there.
//!
//! The engine's durable state is a prefix of the shard's apply order. Recovery replays the rest: it takes the
//! lifecycle events that the engine does not contain in their order, and before each one the entries of its region
//! up to it. So a parent's split comes before its children, a peer's end before the next owner of its range, and
//! nothing of a peer is replayed past its end. What remains of the entries goes through raft like any other.
//! It may be stopped anywhere and begun again.

mod accept;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::rc::Rc;

use base::{PeerId, RegionId, ShardId, StoreId};
use mvcc::Cf;
use prost::Message as _;
use proto::raft_serverpb;
use raftstore::eraftpb::{Entry, HardState};
use raftstore::{InitError, LogPosition, PeerInit};

use super::apply::{Outcome, apply_entry, apply_split, is_commit_merge, is_split};
use super::chain::{ApplyExtra, Chain};
use super::config::ShardConfig;
use super::directory::{Claim, Placement, Tombstone, Tombstones, bury};
use super::ingest::{fill, ingest_files};
use super::lease::quiet_ticks;
use super::lifecycle::{end_event, home_meta, put_event, range_of};
use super::membership::{apply_members, removes_own};
use super::merge::{apply_merge, apply_state_of_merge, merged_away};
use super::meta::PeerMeta;
use super::peer::{PeerState, Phase};
use super::planted::PlantedFault;
use super::records::{
    ApplyingRecord, EndRecord, HomeRecord, MergeRecord, PeerExtra, SHARD_STATE_KEY, ShardState, SplitRecord,
    peer_extra_key,
};
use super::shard::{Input, Outlet, Shard, ShardMetrics};
use crate::engine::{Engine, EngineError, EngineIter as _, EngineSnapshot as _, Tier, WriteBatch as _, WriteMode};
use crate::log::{
    Damage, EngineState, Lifecycle, LifecycleKind, LogConfig, LogEffect, LogEntry, RaftLog, Recovered, RecoveredPeer,
};

pub use accept::{DamageReport, DamagedRegion, examine};

/// Why a shard could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The engine could not be read or written.
    #[error("engine of shard {shard}: {why}")]
    Engine {
        /// Which.
        shard: ShardId,
        /// What it said.
        why: String,
    },
    /// The log could not be opened.
    #[error("raft log of shard {shard}: {why}")]
    Log {
        /// Which.
        shard: ShardId,
        /// What it said.
        why: String,
    },
    /// Engine and log contradict each other.
    #[error("shard {shard} is inconsistent: {why}")]
    Inconsistent {
        /// Which.
        shard: ShardId,
        /// How.
        why: String,
    },
}

/// A shard that was opened and serves nothing yet.
pub struct Opened<E: Engine> {
    /// The shard; its peers are asleep until [`Opened::start`].
    pub shard: Rc<Shard<E>>,
    /// What it could serve, for the directory.
    pub claims: Vec<Claim>,
    /// The last peer of each region that ended here, for the directory.
    pub buried: Tombstones,
    /// What is wrong with its log, if anything.
    pub damage: Option<Damage>,
    /// Entries that were replayed.
    pub replayed: u64,
    log: RaftLog,
}

impl<E: Engine> Opened<E> {
    /// Erases the copies that the directory gave to other shards, and whatever else lies outside of all regions;
    /// then runs the shard's turn and lets its peers campaign.
    ///
    /// # Errors
    /// [`OpenError::Engine`] if the engine fails.
    pub async fn start(self, erase: &[RegionId]) -> Result<Rc<Shard<E>>, OpenError> {
        let Opened { shard, log, damage, .. } = self;
        let engine_failed = |why| OpenError::Engine { shard: shard.id, why };
        let mut batch = shard.engine.batch();
        let gone: Vec<PeerState> = erase.iter().filter_map(|region| shard.peers.borrow_mut().remove(region)).collect();
        if damage.is_some() {
            executor::spawn_local(executor::Class::Raft, shard.clone().run(log));
            return Ok(shard);
        }
        if !gone.is_empty() {
            // As at the end of a move: what the log is about to forget must be durable in the engine.
            let engine = shard.engine.clone();
            executor::blocking(executor::Class::Background, move || engine.flush())
                .await
                .map_err(|error| engine_failed(error.to_string()))?;
            for peer in &gone {
                let record = end_event(shard.next_event(), LifecycleKind::MovedAway, &peer.meta);
                log.append(record).map_err(|error| log_failed(shard.id, &error))?;
            }
            log.commit().await.map_err(|error| log_failed(shard.id, &error))?;
            put_event(&mut batch, shard.last_event.get());
        }
        gone.iter().for_each(|peer| peer.meta.erase(&mut batch));
        erase_gaps(&shard, &mut batch).map_err(engine_failed)?;
        if batch.count() > 0 {
            // Without a flush, a replay of the erased peers' entries would bring their data back.
            let engine = shard.engine.clone();
            let work = move || {
                engine.write(batch, WriteMode::Helper).map_err(|error| error.to_string())?;
                engine.flush().map_err(|error| error.to_string())
            };
            executor::blocking(executor::Class::Background, work).await.map_err(engine_failed)?;
        }
        let regions: Vec<RegionId> = shard.peers.borrow().keys().copied().collect();
        executor::spawn_local(executor::Class::Raft, shard.clone().run(log));
        for region in regions {
            shard.push(Input::Campaign(region));
        }
        Ok(shard)
    }
}

/// Deletes data outside of all regions: what a move left behind that did not complete.
fn erase_gaps<E: Engine>(shard: &Shard<E>, batch: &mut E::Batch) -> Result<(), String> {
    let peers = shard.peers.borrow();
    let mut ranges: Vec<(Vec<u8>, Vec<u8>)> = peers
        .values()
        .map(|peer| {
            let region = &peer.meta.region;
            (base::keys::data_key(&region.start_key), base::keys::data_end_key(&region.end_key))
        })
        .collect();
    ranges.sort();
    ranges.push((base::keys::DATA_MAX.to_vec(), Vec::new()));
    let snapshot = shard.engine.snapshot();
    let mut at = base::keys::DATA_MIN.to_vec();
    for (start, end) in ranges {
        if at < start {
            for cf in Cf::DATA {
                let mut iter = snapshot.iter(cf, &at, &start, Tier::Disk, false);
                if iter.seek(&at).map_err(|error| error.to_string())?.is_some() {
                    batch.delete_range(cf, &at, &start);
                }
            }
        }
        at = at.max(end);
    }
    Ok(())
}

/// A peer while its shard is being recovered: no raft yet, only what was durable.
struct Recovering {
    meta: PeerMeta,
    entries: VecDeque<Entry>,
    hard_state: HardState,
    damaged: bool,
}

impl Recovering {
    fn new(meta: PeerMeta, logged: Option<RecoveredPeer>) -> Recovering {
        let mut hard_state = HardState { term: meta.applied_term, vote: 0, commit: meta.applied_index };
        let mut entries = VecDeque::new();
        let mut damaged = false;
        if let Some(logged) = logged.filter(|logged| logged.peer == meta.peer_id()) {
            if let Some(state) = logged.hard_state {
                hard_state.term = hard_state.term.max(state.term);
                hard_state.vote = state.vote;
                hard_state.commit = hard_state.commit.max(state.commit);
            }
            damaged = logged.damaged;
            entries = decode_entries(logged.entries).filter(|entry| entry.index > meta.applied_index).collect();
        }
        if entries.front().is_some_and(|first| first.index != meta.applied_index + 1) {
            damaged = true;
            entries.clear();
        }
        Recovering { meta, entries, hard_state, damaged }
    }

    /// `index`, or the one before the first entry up to it that is an event of its own: a split or a merge whose record
    /// is not in the log, or the removal of this very peer. Those are not replayed: raft commits them again, and the turn writes
    /// the record first.
    fn before_event(&self, index: u64) -> u64 {
        let is_event = |entry: &&Entry| is_split(entry) || is_commit_merge(entry) || removes_own(&self.meta, entry);
        let event = self.entries.iter().take_while(|entry| entry.index <= index).find(is_event);
        event.map_or(index, |entry| entry.index - 1)
    }
}

struct Replay<'a, E: Engine> {
    shard: ShardId,
    store: StoreId,
    engine: &'a E,
    snap_dir: &'a Path,
    peers: BTreeMap<RegionId, Recovering>,
    tombstones: Tombstones,
    logged: BTreeMap<RegionId, RecoveredPeer>,
    /// The last event that begins each region's log anew. What the log holds of the region is of the peer that began
    /// there, not of one before it.
    begins: BTreeMap<RegionId, u64>,
    /// The last event whose effects are in the engine.
    last_event: u64,
    replayed: u64,
    batch: E::Batch,
    /// Durable records are missing.
    damaged: bool,
    /// Everything that can be read is to be taken, and the rest to be given up. See [`accept`].
    accepting: bool,
    planted: Option<PlantedFault>,
}

/// Opens shard `id` of `store` on `engine`, its log in `log_dir` and files of snapshots in `snap_dir`.
///
/// Nothing of a shard whose log is damaged changes: its peers are what the engine holds, and serve nobody. See
/// [`examine`].
///
/// # Errors
/// See [`OpenError`].
#[allow(clippy::too_many_arguments, reason = "everything that a shard is made of, once")]
pub async fn open<E: Engine>(
    id: ShardId,
    store: StoreId,
    engine: E,
    log_dir: &Path,
    snap_dir: &Path,
    config: ShardConfig,
    log_config: LogConfig,
    outlet: Rc<dyn Outlet>,
    seed: u64,
) -> Result<Opened<E>, OpenError> {
    let Found { log, mut replay, lifecycle, last_logged, damage } =
        find(id, store, &engine, log_dir, snap_dir, log_config, config.planted).await?;
    if damage.is_none() {
        replay.run(lifecycle).await?;
        remove_tables(id, &engine, snap_dir).await?;
    }
    let Replay { peers, tombstones, last_event, replayed, .. } = replay;
    let claims = peers.values().map(|peer| claim(id, &peer.meta)).collect();
    let mut revived = BTreeMap::new();
    for (region, peer) in peers {
        let peer = Recovering { damaged: peer.damaged || damage.is_some(), ..peer };
        let peer = revive(peer, &config, seed)
            .map_err(|error| OpenError::Inconsistent { shard: id, why: format!("region {region}: {error}") })?;
        revived.insert(region, peer);
    }
    let shard = Rc::new(Shard {
        id,
        store,
        engine,
        config,
        snap_dir: snap_dir.to_owned(),
        metrics: ShardMetrics::default(),
        peers: RefCell::new(revived),
        tombstones: RefCell::new(tombstones.clone()),
        full_stores: RefCell::default(),
        tick_waits: Cell::default(),
        log_busy_since: Cell::default(),
        stalled: Cell::default(),
        inbox: RefCell::new(VecDeque::new()),
        inbox_bytes: Cell::new(0),
        wake: executor::Notify::new(),
        outlet,
        last_event: Cell::new(last_event.max(last_logged)),
        is_damaged: damage.is_some(),
        sending: Cell::new(0),
        closing: Cell::new(false),
        finished: Cell::new(false),
        seed,
    });
    Ok(Opened { shard, claims, buried: tombstones, damage, replayed, log })
}

/// What there is of a shard before anything is replayed.
struct Found<'a, E: Engine> {
    log: RaftLog,
    replay: Replay<'a, E>,
    /// The events that the log knows and the engine may not contain.
    lifecycle: Vec<Lifecycle>,
    /// The highest event number in the log.
    last_logged: u64,
    damage: Option<Damage>,
}

/// Reads engine and log.
async fn find<'a, E: Engine>(
    id: ShardId,
    store: StoreId,
    engine: &'a E,
    log_dir: &Path,
    snap_dir: &'a Path,
    log_config: LogConfig,
    planted: Option<PlantedFault>,
) -> Result<Found<'a, E>, OpenError> {
    let Stored { metas, tombstones, last_event } = {
        let engine = engine.clone();
        executor::blocking(executor::Class::Background, move || load(&engine, store))
            .await
            .map_err(|why| OpenError::Engine { shard: id, why })?
    };
    let state = EngineState {
        peers: metas.iter().map(|meta| (meta.region_id(), (meta.peer_id(), meta.applied_index))).collect(),
        last_event,
    };
    let (log, recovered) =
        RaftLog::open(log_dir, id, log_config, &state).await.map_err(|error| log_failed(id, &error))?;
    let Recovered { peers: mut logged, lifecycle, last_event: last_logged, damage, .. } = recovered;
    if planted == Some(PlantedFault::ForgetTail) {
        for peer in logged.values_mut() {
            peer.entries.pop();
            let last = peer.first_index + peer.entries.len() as u64 - 1;
            peer.hard_state.iter_mut().for_each(|state| state.commit = state.commit.min(last));
        }
    }
    let mut replay = Replay {
        shard: id,
        store,
        engine,
        snap_dir,
        peers: BTreeMap::new(),
        tombstones,
        logged,
        begins: begins(&lifecycle),
        last_event,
        replayed: 0,
        batch: engine.batch(),
        damaged: damage.is_some(),
        accepting: false,
        planted,
    };
    for meta in metas {
        let recovering = replay.recovering(meta, 0);
        replay.peers.insert(recovering.meta.region_id(), recovering);
    }
    Ok(Found { log, replay, lifecycle, last_logged, damage })
}

fn log_failed(shard: ShardId, error: &dyn std::fmt::Display) -> OpenError {
    OpenError::Log { shard, why: error.to_string() }
}

/// The last event of each region that begins its log anew.
fn begins(lifecycle: &[Lifecycle]) -> BTreeMap<RegionId, u64> {
    let effects = lifecycle.iter().flat_map(|event| event.effects.iter().map(|effect| (event.event, effect)));
    effects
        .filter_map(|(event, effect)| match effect {
            LogEffect::Start { region, .. } => Some((*region, event)),
            LogEffect::End { .. } => None,
        })
        .collect()
}

/// Files that were to be ingested: what needed them is durable in the engine by now, and nothing else knows of them.
async fn remove_tables<E: Engine>(shard: ShardId, engine: &E, folder: &Path) -> Result<(), OpenError> {
    let (engine, folder) = (engine.clone(), folder.to_owned());
    let work = move || engine.tables(&folder)?.iter().try_for_each(|table| engine.remove_table(table));
    executor::blocking(executor::Class::Background, work)
        .await
        .map_err(|error: EngineError| OpenError::Engine { shard, why: error.to_string() })
}

fn claim(shard: ShardId, meta: &PeerMeta) -> Claim {
    Claim {
        region: meta.region_id(),
        peer: meta.peer_id(),
        placement: Placement {
            shard,
            move_number: meta.move_number,
            version: meta.version(),
            start: meta.region.start_key.to_vec(),
            end: meta.region.end_key.to_vec(),
            bytes: meta.approximate_bytes,
        },
    }
}

/// Gives a recovered peer its raft. Entries that were not replayed are committed again by raft itself.
fn revive(recovering: Recovering, config: &ShardConfig, seed: u64) -> Result<PeerState, InitError> {
    let Recovering { meta, entries, hard_state, damaged } = recovering;
    let applied = LogPosition { index: meta.applied_index, term: meta.applied_term };
    let mut init = PeerInit {
        seed,
        hard_state,
        truncated: applied,
        applied,
        entries: entries.into(),
        quiet_ticks: quiet_ticks(config),
        ..PeerInit::first((*meta.region).clone(), meta.peer)
    };
    if damaged {
        // What it keeps is its term and vote. It does nothing with them.
        init.entries.clear();
        init.hard_state.commit = meta.applied_index;
    }
    let raft = raftstore::Peer::new(init, &config.raft)?;
    Ok(PeerState::new(meta, raft, if damaged { Phase::Damaged } else { Phase::Serving }))
}

/// The entries of a log record, as raft takes them.
pub(crate) fn decode_entries(logged: Vec<LogEntry>) -> impl Iterator<Item = Entry> {
    logged.into_iter().map(|entry| Entry::decode(entry.data).expect("a record whose checksum is right holds an entry"))
}

/// What the engine holds.
pub(crate) struct Stored {
    pub(crate) metas: Vec<PeerMeta>,
    tombstones: Tombstones,
    last_event: u64,
}

/// Reads all peers, tombstones and the last event out of family `raft`.
pub(crate) fn load<E: Engine>(engine: &E, store: StoreId) -> Result<Stored, String> {
    let snapshot = engine.snapshot();
    let get = |key: &[u8]| snapshot.get(Cf::Raft, key, Tier::Disk).map_err(|error| error.to_string());
    let last_event = match get(SHARD_STATE_KEY)? {
        Some(bytes) => ShardState::decode(bytes).map_err(|error| error.to_string())?.last_event,
        None => 0,
    };
    let mut metas = Vec::new();
    let mut tombstones = Tombstones::new();
    let mut iter = snapshot.iter(Cf::Raft, &[0x01, 0x03], &[0x01, 0x04], Tier::Disk, false);
    let mut at = iter.seek(&[0x01, 0x03]).map_err(|error| error.to_string())?;
    while let Some((key, value)) = at {
        if let Some(region) = base::keys::decode_region_state(key) {
            let state = raft_serverpb::RegionLocalState::decode(value).map_err(|error| error.to_string())?;
            if state.state() == raft_serverpb::PeerState::Tombstone {
                let buried = state.region.and_then(|region| PeerMeta::first(region, store));
                let peer = buried.ok_or("a tombstone names no peer on this store")?.peer_id();
                let extra = get(&peer_extra_key(region))?.map(PeerExtra::decode);
                let extra = extra.transpose().map_err(|error| error.to_string())?;
                let target = state.merge_state.and_then(|merge| merge.target);
                let merged = extra.zip(target).map(|(extra, target)| merged_away(extra.began_version, &target));
                tombstones.insert(region, Tombstone { peer, merged });
                at = iter.next().map_err(|error| error.to_string())?;
                continue;
            }
            let applied = get(&base::keys::apply_state(region))?.ok_or("a region has no apply state")?;
            let extra = get(&peer_extra_key(region))?.unwrap_or_default();
            metas.push(load_meta(state, &applied, &extra, store)?);
        }
        at = iter.next().map_err(|error| error.to_string())?;
    }
    Ok(Stored { metas, tombstones, last_event })
}

fn load_meta(
    state: raft_serverpb::RegionLocalState,
    applied: &[u8],
    extra: &[u8],
    store: StoreId,
) -> Result<PeerMeta, String> {
    let region = state.region.ok_or("a region state names no region")?;
    let merge = state.merge_state;
    let chain = ApplyExtra::decode(applied).map_err(|error| error.to_string())?.chain;
    let applied = raft_serverpb::RaftApplyState::decode(applied).map_err(|error| error.to_string())?;
    let extra = PeerExtra::decode(extra).map_err(|error| error.to_string())?;
    let mut meta = PeerMeta::first(region, store).ok_or("a region has no peer on this store")?;
    meta.applied_index = applied.applied_index;
    meta.applied_term = applied.commit_term;
    meta.chain = Chain::of_record(chain, meta.region_id(), applied.applied_index);
    meta.move_number = extra.move_number;
    meta.approximate_bytes = extra.approximate_bytes;
    meta.approximate_keys = extra.approximate_keys;
    meta.merge = merge;
    if extra.began_version > 0 {
        meta.began_version = extra.began_version;
    }
    Ok(meta)
}

impl<E: Engine> Replay<'_, E> {
    async fn run(&mut self, lifecycle: Vec<Lifecycle>) -> Result<(), OpenError> {
        for event in lifecycle {
            if event.event <= self.last_event {
                continue;
            }
            if self.planted == Some(PlantedFault::ForgetSplit) && event.kind == LifecycleKind::Split {
                continue;
            }
            self.replay_event(event).await?;
        }
        if self.accepting {
            self.take_what_is_there().await?;
        }
        let regions: Vec<RegionId> = self.peers.keys().copied().collect();
        for region in regions {
            let committed = self.peers.get(&region).map_or(0, |peer| peer.before_event(peer.hard_state.commit));
            self.replay_through(region, committed, 0).await?;
        }
        self.write().await
    }

    /// A peer as `event` finds it, 0 being the engine: with what the log holds of it, unless that is of a later one.
    fn recovering(&mut self, meta: PeerMeta, event: u64) -> Recovering {
        let region = meta.region_id();
        let later = self.begins.get(&region).is_some_and(|last| *last > event);
        let logged = if later { None } else { self.logged.remove(&region) };
        Recovering::new(meta, logged)
    }

    async fn replay_event(&mut self, event: Lifecycle) -> Result<(), OpenError> {
        let Lifecycle { event: number, region, peer, kind, payload, .. } = event;
        match kind {
            LifecycleKind::Split => {
                let record: SplitRecord = self.decode(payload)?;
                self.replay_through(region, record.index, number).await?;
                if self.accepting {
                    self.jump_to(region, record, number);
                }
            }
            LifecycleKind::MovedAway | LifecycleKind::Destroyed => {
                let record: EndRecord = self.decode(payload)?;
                self.replay_through(region, record.applied_index, 0).await?;
                self.end(region, peer, kind);
            }
            LifecycleKind::Home => {
                let record: HomeRecord = self.decode(payload)?;
                self.settle_home(&record, region, peer, number)?;
            }
            LifecycleKind::Created => {
                let record: HomeRecord = self.decode(payload)?;
                if let Some(region) = &record.region {
                    super::meta::erase_range(&mut self.batch, &region.start_key, &region.end_key);
                }
                self.settle_home(&record, region, peer, number)?;
            }
            LifecycleKind::Applying => {
                let record: ApplyingRecord = self.decode(payload)?;
                let home = record.home.clone().ok_or_else(|| self.inconsistent("a snapshot names no peer"))?;
                self.redo_ingest(&record, &home).await?;
                self.settle_home(&home, region, peer, number)?;
                put_event(&mut self.batch, number);
                self.write().await?;
                if !record.files.is_empty() {
                    // They are about to go.
                    self.flush().await?;
                }
            }
            LifecycleKind::Applied => {}
            LifecycleKind::CommitMerge => {
                let record: MergeRecord = self.decode(payload)?;
                self.merge(region, &record).await?;
            }
            other => return Err(self.inconsistent(&format!("events of kind {other:?} come with a later version"))),
        }
        self.last_event = self.last_event.max(number);
        put_event(&mut self.batch, self.last_event);
        self.write().await
    }

    /// The engine was flushed before the record: it has source and target up to the merge.
    async fn merge(&mut self, target: RegionId, record: &MergeRecord) -> Result<(), OpenError> {
        self.replay_through(target, record.index.saturating_sub(1), 0).await?;
        let source = RegionId(record.source);
        let gone = self.peers.remove(&source).filter(|gone| gone.meta.peer.id == record.source_peer);
        let mut ended = Tombstone::of(PeerId(record.source_peer));
        let Some(mut peer) = self.peers.remove(&target) else {
            bury(&mut self.tombstones, &Tombstones::from([(source, ended)]));
            return Ok(());
        };
        ended.merged = gone.as_ref().map(|gone| merged_away(gone.meta.began_version, &peer.meta.region));
        bury(&mut self.tombstones, &Tombstones::from([(source, ended)]));
        peer.entries.retain(|entry| entry.index > record.index);
        apply_merge(&mut peer.meta, gone.as_ref().map(|gone| &gone.meta), record, &mut self.batch)
            .map_err(|why| self.inconsistent(&why))?;
        peer.hard_state.commit = peer.hard_state.commit.max(record.index);
        self.peers.insert(target, peer);
        Ok(())
    }

    /// Erases what is left of a peer that ended.
    fn end(&mut self, region: RegionId, peer: PeerId, kind: LifecycleKind) {
        if self.planted == Some(PlantedFault::ReplayPastEnd) {
            return;
        }
        let gone = self.peers.remove(&region);
        if self.planted == Some(PlantedFault::EndKeepsData) {
            return;
        }
        if kind == LifecycleKind::Destroyed {
            if let Some(gone) = gone {
                gone.meta.bury(&mut self.batch);
            }
            self.tombstones.insert(region, Tombstone::of(peer));
        } else if let Some(gone) = gone {
            gone.meta.erase(&mut self.batch);
        }
    }

    fn settle_home(&mut self, home: &HomeRecord, region: RegionId, peer: PeerId, event: u64) -> Result<(), OpenError> {
        let meta =
            home_meta(home, self.store).ok_or_else(|| self.inconsistent("a home record names no peer of ours"))?;
        if meta.peer_id() != peer || meta.region_id() != region {
            return Err(self.inconsistent("a home record names another peer than its event"));
        }
        if self.accepting {
            self.make_room(region, &meta.region.start_key, &meta.region.end_key);
        }
        meta.put_all(&mut self.batch);
        let recovering = self.recovering(meta, event);
        self.peers.insert(region, recovering);
        Ok(())
    }

    /// Redoes what an `Applying` record began: the range is emptied and the data comes in again.
    async fn redo_ingest(&mut self, record: &ApplyingRecord, home: &HomeRecord) -> Result<(), OpenError> {
        self.write().await?;
        if self.planted == Some(PlantedFault::NoRedo) {
            return Ok(());
        }
        let region = home.region.clone().unwrap_or_default();
        let replaced = self.peers.get(&RegionId(region.id)).map(|peer| range_of(&peer.meta));
        let ranges: Vec<_> = replaced.into_iter().chain([(region.start_key, region.end_key)]).collect();
        if record.files.is_empty() {
            return fill(&mut self.batch, &ranges, &record.pairs).map_err(|why| self.inconsistent(&why));
        }
        let (engine, folder, files) = (self.engine.clone(), self.snap_dir.to_owned(), record.files.clone());
        executor::blocking(executor::Class::Background, move || ingest_files(&engine, &folder, &files, &ranges))
            .await
            .map_err(|why| self.engine_failed(why))
    }

    /// Applies the entries of `region` up to `index` that the engine does not contain. A split among them is the one of
    /// `event`: those of earlier events were replayed with them, and one without a record is left to raft.
    async fn replay_through(&mut self, region: RegionId, index: u64, event: u64) -> Result<(), OpenError> {
        while let Some(peer) = self.peers.get_mut(&region) {
            if peer.meta.applied_index >= index {
                break;
            }
            let Some(entry) = peer.entries.pop_front() else {
                if self.damaged || peer.damaged {
                    peer.damaged = true;
                    break;
                }
                return Err(self.inconsistent(&format!("entry before {index} of region {region} is missing")));
            };
            let meta = &mut peer.meta;
            let effect = apply_entry(meta, &entry, &mut self.batch);
            meta.approximate_bytes += effect.bytes;
            meta.approximate_keys += effect.keys;
            self.replayed += 1;
            match effect.outcome {
                Outcome::Split(regions) => {
                    let children = apply_split(meta, regions, self.store, &mut self.batch);
                    self.bear(children, event);
                }
                Outcome::Members { region, .. } => apply_members(meta, region, &mut self.batch),
                Outcome::Merging { region, merge } => apply_state_of_merge(meta, region, merge, &mut self.batch),
                Outcome::Done | Outcome::Hash | Outcome::Refused(_) => meta.put_applied(&mut self.batch),
            }
            if self.batch.data_bytes() > 1 << 20 {
                self.write().await?;
            }
        }
        Ok(())
    }

    /// The children of a split, as `event` finds them.
    fn bear(&mut self, children: Vec<PeerMeta>, event: u64) {
        for child in children {
            let child = self.recovering(child, event);
            self.peers.insert(child.meta.region_id(), child);
        }
    }

    async fn write(&mut self) -> Result<(), OpenError> {
        let batch = std::mem::replace(&mut self.batch, self.engine.batch());
        if batch.count() == 0 {
            return Ok(());
        }
        let engine = self.engine.clone();
        executor::blocking(executor::Class::Background, move || engine.write(batch, WriteMode::Helper))
            .await
            .map_err(|error| self.engine_failed(error.to_string()))
    }

    async fn flush(&mut self) -> Result<(), OpenError> {
        let engine = self.engine.clone();
        executor::blocking(executor::Class::Background, move || engine.flush())
            .await
            .map_err(|error| self.engine_failed(error.to_string()))
    }

    fn decode<M: prost::Message + Default>(&self, payload: bytes::Bytes) -> Result<M, OpenError> {
        M::decode(payload).map_err(|error| self.inconsistent(&format!("lifecycle record: {error}")))
    }

    fn inconsistent(&self, why: &str) -> OpenError {
        OpenError::Inconsistent { shard: self.shard, why: why.into() }
    }

    fn engine_failed(&self, why: String) -> OpenError {
        OpenError::Engine { shard: self.shard, why }
    }
}
