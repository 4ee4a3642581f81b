//! Peers that come with all their data: the redo of a raft snapshot. See the drawing in `lifecycle.rs`.

use std::path::Path;

use base::RegionId;
use bytes::Bytes;
use executor::Class;
use mvcc::Cf;
use proto::raft_serverpb;
use raftstore::LogPosition;

use super::error::RegionError;
use super::lifecycle::{
    EventReply, busy, first_state, home_meta, home_state, lifecycle, put_event, range_of, region_of, start_effect_with,
};
use super::meta::{PeerMeta, erase_range};
use super::peer::{PeerState, Phase};
use super::planted::PlantedFault;
use super::records::{ApplyingRecord, HomeRecord};
use super::shard::{Input, Shard, add};
use super::turn::{AfterFlush, ShardFailure, TAIL_BYTES_MAX, Turn, log_failed};
use crate::engine::{Engine, WriteBatch, WriteError, WriteMode};
use crate::log::{LifecycleKind, LogEntry, RaftLog};

impl<E: Engine> Shard<E> {
    /// Checks that the data may come in and stops the peer that it replaces, if any. What comes without files to a new
    /// peer is done at once; the rest waits for the next flush.
    pub(crate) async fn step_ingest(
        &self,
        record: Box<ApplyingRecord>,
        reply: EventReply,
        turn: &mut Turn,
        log: &RaftLog,
    ) -> Result<(), ShardFailure> {
        let Some(meta) = record.home.as_ref().and_then(|home| home_meta(home, self.store)) else {
            drop(reply.send(Err(RegionError::StaleCommand)));
            return Ok(());
        };
        let is_new = !self.peers.borrow().contains_key(&meta.region_id());
        let is_damaged = |peer: &PeerState| peer.phase == Phase::Damaged;
        let keeps_log = !self.peers.borrow().get(&meta.region_id()).is_some_and(is_damaged);
        let accepted = if turn.waiting_for_flush().any(|next| next.overlaps(&meta.region)) {
            Err(busy("the range is being filled"))
        } else if self.may_begin(&meta) || self.may_replace(&meta) {
            self.stop_peer(meta.region_id())
        } else {
            Err(RegionError::StaleCommand)
        };
        match accepted {
            Ok(()) if is_new && record.files.is_empty() => {
                return self.ingest_pairs(record, Vec::new(), reply, log).await;
            }
            Ok(()) => turn.after_flush.push(AfterFlush::Ingest { record, reply, keeps_log }),
            Err(error) => drop(reply.send(Err(error))),
        }
        Ok(())
    }

    /// Whether `meta` is a later state of a peer that is here. Other regions with keys of its range must be gone.
    fn may_replace(&self, meta: &PeerMeta) -> bool {
        let peers = self.peers.borrow();
        let region = &meta.region;
        peers.get(&meta.region_id()).is_some_and(|held| {
            held.meta.peer_id() == meta.peer_id()
                && meta.applied_index > held.meta.applied_index
                && meta.version() >= held.meta.version()
        }) && !peers.values().any(|peer| {
            let other = &peer.meta.region;
            other.id != region.id
                && base::keys::overlaps(&other.start_key, &other.end_key, &region.start_key, &region.end_key)
        })
    }

    /// The peer that `record` makes. The sender of the data knows nothing of moves between our shards, so it takes their
    /// number from the peer that it replaces.
    fn arriving(&self, record: &mut ApplyingRecord) -> (HomeRecord, PeerMeta) {
        let home = record.home.as_mut().expect("checked when it was taken up");
        if let Some(replaced) = self.peers.borrow().get(&region_of(home)) {
            home.move_number = replaced.meta.move_number;
        }
        let meta = home_meta(home, self.store).expect("checked when it was taken up");
        (home.clone(), meta)
    }

    /// The ranges that are to be emptied for `meta`.
    fn emptied(&self, meta: &PeerMeta) -> Vec<(Bytes, Bytes)> {
        let peers = self.peers.borrow();
        peers.get(&meta.region_id()).map(|replaced| &replaced.meta).into_iter().chain([meta]).map(range_of).collect()
    }

    /// The peer takes the place of what was here, and keeps `tail` of its log.
    fn settle_in(
        &self,
        home: &HomeRecord,
        meta: PeerMeta,
        tail: Vec<LogEntry>,
        log: &RaftLog,
    ) -> Result<(), ShardFailure> {
        let region = meta.region_id();
        // The log knows what this peer promised before, which may be more than the record says.
        let state = log.peer(region).and_then(|peer| peer.hard_state).unwrap_or(home_state(home));
        let peer = self.sleeping_peer(meta, state, tail)?;
        self.peers.borrow_mut().insert(region, peer);
        add(&self.metrics.ingests_total, 1);
        Ok(())
    }

    /// The record with `tail` of the replaced peer's log, then its data and the peer's state in one batch; the peer serves.
    async fn ingest_pairs(
        &self,
        mut record: Box<ApplyingRecord>,
        tail: Vec<LogEntry>,
        reply: EventReply,
        log: &RaftLog,
    ) -> Result<(), ShardFailure> {
        let (home, meta) = self.arriving(&mut record);
        let event = self.next_event();
        let starts = vec![start_effect_with(&meta, home_state(&home), &tail)];
        let applying = lifecycle(event, LifecycleKind::Applying, &meta, starts, &*record);
        if self.config.is_planted(PlantedFault::SnapshotHalfApplied) {
            record.pairs.pop();
        }
        let mut batch = self.engine.batch();
        fill(&mut batch, &self.emptied(&meta), &record.pairs).map_err(ShardFailure::Engine)?;
        meta.put_all(&mut batch);
        put_event(&mut batch, event);
        self.carry_out_event(applying, batch, log).await?;
        let region = meta.region_id();
        self.settle_in(&home, meta, tail, log)?;
        self.push(Input::Campaign(region));
        // Whoever asked may be gone.
        let _ = reply.send(Ok(()));
        Ok(())
    }

    /// The record, and all up to the state that waits for the last flush.
    pub(crate) async fn ingest_flushed(
        &self,
        mut record: Box<ApplyingRecord>,
        reply: EventReply,
        keeps_log: bool,
        turn: &mut Turn,
        log: &RaftLog,
    ) -> Result<(), ShardFailure> {
        let (home, meta) = self.arriving(&mut record);
        let region = meta.region_id();
        let from = LogPosition { index: home.applied_index, term: home.applied_term };
        let tail = if keeps_log { self.tail_behind(region, from, log).await } else { Some(Vec::new()) };
        let Some(tail) = tail else {
            self.reopen(region, log).await?;
            // A later snapshot leaves less of the log behind it.
            drop(reply.send(Err(busy("the log behind the snapshot is too long"))));
            return Ok(());
        };
        if record.files.is_empty() {
            return self.ingest_pairs(record, tail, reply, log).await;
        }
        let event = self.next_event();
        let starts = vec![start_effect_with(&meta, home_state(&home), &tail)];
        log.append(lifecycle(event, LifecycleKind::Applying, &meta, starts, &*record)).map_err(log_failed)?;
        self.commit(log).await?;
        let ranges = self.emptied(&meta);
        self.peers.borrow_mut().remove(&meta.region_id());
        let (engine, folder, mut files) = (self.engine.clone(), self.snap_dir.clone(), record.files.clone());
        if self.config.is_planted(PlantedFault::SnapshotHalfApplied) {
            files.pop();
        }
        executor::blocking(Class::Background, move || ingest_files(&engine, &folder, &files, &ranges))
            .await
            .map_err(ShardFailure::Engine)?;
        let mut batch = self.engine.batch();
        meta.put_all(&mut batch);
        put_event(&mut batch, event);
        self.write_engine(batch).await?;
        self.settle_in(&home, meta, tail, log)?;
        turn.after_flush.push(AfterFlush::Ingested { record, reply });
        Ok(())
    }

    /// What the log of `region`'s stopped peer holds behind `from`, where a snapshot ends: the peer has acknowledged it. If
    /// the snapshot is of another history, or past the log's end, nothing of it counts. `None` if it cannot be kept.
    async fn tail_behind(&self, region: RegionId, from: LogPosition, log: &RaftLog) -> Option<Vec<LogEntry>> {
        let last = {
            let peers = self.peers.borrow();
            let held = peers.get(&region).filter(|held| held.raft.holds(from));
            held.map_or(from.index, |held| held.raft.last_index())
        };
        if last <= from.index {
            return Some(Vec::new());
        }
        let tail = log.entries(region, from.index + 1, last + 1, TAIL_BYTES_MAX).await.ok()?;
        (tail.len() as u64 == last - from.index).then_some(tail)
    }

    /// Has a stopped peer go on as after a restart: from what is applied and what its log holds.
    async fn reopen(&self, region: RegionId, log: &RaftLog) -> Result<(), ShardFailure> {
        let (meta, last) = {
            let peers = self.peers.borrow();
            let peer = peers.get(&region).expect("a stopped peer stays until its end");
            (peer.meta.clone(), peer.raft.last_index())
        };
        let low = meta.applied_index + 1;
        let entries = log.entries(region, low, last + 1, usize::MAX).await;
        let entries = entries.map_err(|error| ShardFailure::Log(error.to_string()))?;
        let state = log.peer(region).and_then(|peer| peer.hard_state).unwrap_or(first_state());
        let peer = self.sleeping_peer(meta, state, entries)?;
        self.peers.borrow_mut().insert(region, peer);
        self.push(Input::Campaign(region));
        Ok(())
    }

    /// The engine holds the files' data and the peer's state durably: the files may go, and the peer serves.
    pub(crate) async fn ingest_done(
        &self,
        record: Box<ApplyingRecord>,
        reply: EventReply,
        log: &RaftLog,
    ) -> Result<(), ShardFailure> {
        let meta = record.home.as_ref().and_then(|home| home_meta(home, self.store));
        let meta = meta.expect("checked when it was taken up");
        let event = self.next_event();
        log.append(lifecycle(event, LifecycleKind::Applied, &meta, Vec::new(), &())).map_err(log_failed)?;
        self.commit(log).await?;
        let (engine, folder) = (self.engine.clone(), self.snap_dir.clone());
        let files: Vec<_> = record.files.iter().filter(|name| !name.is_empty()).map(|name| folder.join(name)).collect();
        executor::blocking(Class::Background, move || {
            files.iter().try_for_each(|file| engine.remove_table(file)).map_err(|error| error.to_string())
        })
        .await
        .map_err(ShardFailure::Engine)?;
        self.push(Input::Campaign(meta.region_id()));
        // Whoever asked may be gone.
        let _ = reply.send(Ok(()));
        Ok(())
    }
}

/// Empties `ranges` and puts `pairs` there, each a key behind the number of its family.
///
/// # Errors
/// What is wrong with a pair.
pub(crate) fn fill(
    batch: &mut impl WriteBatch,
    ranges: &[(Bytes, Bytes)],
    pairs: &[raft_serverpb::KeyValue],
) -> Result<(), String> {
    for (start, end) in ranges {
        erase_range(batch, start, end);
    }
    for pair in pairs {
        let (&number, key) = pair.key.split_first().ok_or("a pair without a key")?;
        let cf = Cf::DATA.get(usize::from(number)).ok_or_else(|| format!("family {number} has no data"))?;
        batch.put(*cf, key, &pair.value);
    }
    Ok(())
}

/// Empties `ranges` and brings the files in, one per family. May be done again from the start at any time before the
/// files are removed. Helpers only.
pub(crate) fn ingest_files<E: Engine>(
    engine: &E,
    folder: &Path,
    files: &[String],
    ranges: &[(Bytes, Bytes)],
) -> Result<(), String> {
    let mut batch = engine.batch();
    for (start, end) in ranges {
        erase_range(&mut batch, start, end);
    }
    // Ingest is durable ahead of what is only in memory.
    engine.flush().map_err(|error| error.to_string())?;
    engine.write(batch, WriteMode::Helper).map_err(|error: WriteError<E::Batch>| error.to_string())?;
    for cf in Cf::DATA {
        let is_of = |name: &&String| Path::new(name).extension().is_some_and(|family| family == cf.name());
        let tables: Vec<_> = files.iter().filter(is_of).map(|name| folder.join(name)).collect();
        if !tables.is_empty() {
            engine.ingest(cf, &tables).map_err(|error| error.to_string())?;
        }
    }
    Ok(())
}
