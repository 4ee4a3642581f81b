//! Opening a log: scan all files, link the blocks, replay the records, begin a new incarnation.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::rc::Rc;

use base::{PeerId, RegionId, ShardId};
use bytes::Bytes;
use executor::AlignedBuf;

use super::block::{self, Flags, Header, Parsed, UNIT};
use super::disk::file_number;
use super::record::{self, HardState, Lifecycle, LogEffect, LogEntry, Position, Record};
use super::recover::{self, Linked, Seen};
use super::runs::At;
use super::write::{Gate, Reserve, Segment, State, Tail};
use super::{Disk, DiskFile, Files, Index, LogConfig, LogError, RaftLog};

/// Bytes of files kept in memory between the scan and the replay, so that a short log is read once.
const KEEP_BYTES: u64 = 64 << 20;

/// What the shard's engine has made durable. It is a witness, and says which entries need no replay.
#[derive(Clone, Debug, Default)]
pub struct EngineState {
    /// Each region that the engine holds: its peer and the index that is applied. Ended peers are left out.
    pub peers: BTreeMap<RegionId, (PeerId, u64)>,
    /// The last lifecycle event whose effects are in the engine.
    pub last_event: u64,
}

/// What the log held when it was opened.
#[derive(Debug, Default)]
pub struct Recovered {
    /// Every peer that has not ended.
    pub peers: BTreeMap<RegionId, RecoveredPeer>,
    /// The lifecycle records after [`EngineState::last_event`], in event order.
    pub lifecycle: Vec<Lifecycle>,
    /// The highest event number ever used.
    pub last_event: u64,
    /// Number of this opening.
    pub incarnation: u64,
    /// Durable records are missing. Nothing was written; the log takes no records before
    /// [`RaftLog::accept_damage`].
    pub damage: Option<Damage>,
    /// What was read.
    pub stats: RecoveryStats,
}

/// A peer's raft state after a restart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveredPeer {
    /// The region's replica here.
    pub peer: PeerId,
    /// Its newest hard state, with `commit` not below what the engine has applied and not above the last entry.
    pub hard_state: Option<HardState>,
    /// The entry before the first one that [`RaftLog::entries`] can read.
    pub truncated: Position,
    /// Index of the first of `entries`: above what is truncated and what the engine has applied.
    pub first_index: u64,
    /// The entries to replay.
    pub entries: Vec<LogEntry>,
    /// Durable records of it may be missing: it keeps its term, and must neither vote nor campaign.
    pub damaged: bool,
}

/// Why durable records are known to be missing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Damage {
    /// The evidence, for people.
    pub what: Vec<String>,
    /// Peers whose records may be missing. Which ones a lost block held is unknown, so these are all of the shard.
    pub peers: Vec<(RegionId, PeerId)>,
}

/// What recovery read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecoveryStats {
    /// Segment files.
    pub files: u64,
    /// Blocks of the log.
    pub blocks: u64,
    /// Bytes of these blocks.
    pub bytes: u64,
    /// Whole blocks that are no part of the log any more, in segments that are.
    pub blocks_cut: u64,
}

/// Why a log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A file cannot be read or written.
    #[error("the raft log's files cannot be used")]
    Io(#[from] io::Error),
    /// A newer version of the program wrote the log.
    #[error("{file} has format version {version}, and this program knows versions up to {known}")]
    NewerFormat {
        /// The segment file.
        file: String,
        /// Its format version.
        version: u16,
        /// The newest version that can be read.
        known: u16,
    },
    /// A block is whole, but holds what no version 1 writes.
    #[error("the block in segment {segment} unit {unit} holds a record of an unknown kind or form")]
    Malformed {
        /// Number of the segment.
        segment: u64,
        /// Unit of the block.
        unit: u32,
    },
    /// The new incarnation could not be written.
    #[error(transparent)]
    Log(#[from] LogError),
}

impl RaftLog<Files> {
    /// Opens the log of `shard` in the folder `dir`, which is made if it is missing.
    ///
    /// # Errors
    /// [`OpenError`]. Damage is not an error but part of [`Recovered`].
    pub async fn open(
        dir: &Path,
        shard: ShardId,
        config: LogConfig,
        engine: &EngineState,
    ) -> Result<(RaftLog<Files>, Recovered), OpenError> {
        let sync = match config.sync {
            Some(sync) => sync,
            None => Files::probe(dir).await?.choice(),
        };
        let files = Files::new(dir, sync, config.planted_no_sync).await?;
        RaftLog::open_on(files, shard, config, engine).await
    }
}

impl<D: Disk> RaftLog<D> {
    /// Opens the log of `shard` on `disk`.
    ///
    /// # Errors
    /// As [`open`](RaftLog::open).
    pub async fn open_on(
        disk: D,
        shard: ShardId,
        config: LogConfig,
        engine: &EngineState,
    ) -> Result<(RaftLog<D>, Recovered), OpenError> {
        let mut scanned = scan(&disk, shard).await?;
        let linked = recover::link(&scanned.blocks);
        let mut replay = Replay::new(engine);
        for seen in linked.chain.iter().chain(&linked.salvage) {
            scanned.replay(shard, seen, &mut replay).await?;
        }
        let mut recovered = replay.finish(&linked);
        recovered.stats.files = scanned.files.len() as u64;
        let mut state = State::new(&config);
        state.index = replay.index;
        state.index.last_event = state.index.last_event.max(recovered.last_event);
        scanned.hand_over(&linked, &mut state);
        let log = RaftLog {
            disk,
            config,
            shard,
            state: RefCell::new(state),
            gate: Gate::default(),
            maintaining: Cell::new(false),
        };
        if recovered.damage.is_some() {
            log.state.borrow_mut().refusal = Some(LogError::Damaged);
        } else {
            log.begin(&linked).await?;
        }
        recovered.incarnation = log.incarnation();
        Ok((log, recovered))
    }

    /// Continues a whole log: what can be read and has no witness is made durable, then the new incarnation's first
    /// block.
    async fn begin(&self, linked: &Linked) -> Result<(), OpenError> {
        for seen in linked.chain.iter().filter(|seen| seen.header.sequence > linked.last_durable) {
            self.write_again(&seen.header).await?;
        }
        {
            let mut state = self.state.borrow_mut();
            if let Some(last) = linked.chain.last() {
                let header = &last.header;
                let bytes = state.segments[&header.segment].file.len_bytes();
                state.tail = Tail {
                    segment: header.segment,
                    unit: header.unit + header.units(),
                    units: u32::try_from(bytes / UNIT as u64).unwrap_or(u32::MAX),
                };
                (state.sequence, state.previous) = (header.sequence, header.crc);
                (state.durable, state.durable_segment) = (header.sequence, header.segment);
            }
        }
        self.write_out(Some(Flags::OPEN), Reserve::Take).await?;
        Ok(())
    }

    /// Writes a block once more where it is. A sync would not do: if the process before us had one fail, the kernel took
    /// the pages for clean from then on, and a later sync succeeds without them (Rebello et al., "Can applications
    /// recover from fsync failures?", ATC 2020).
    async fn write_again(&self, header: &Header) -> Result<(), OpenError> {
        let file = Rc::clone(&self.state.borrow().segments[&header.segment].file);
        let offset = u64::from(header.unit) * UNIT as u64;
        let bytes = file.read_at(offset, header.units() as usize * UNIT).await?;
        file.write_durable(offset, bytes).await?;
        Ok(())
    }

    /// Makes a damaged log usable again: every peer in it is marked as damaged, durably, and what was found is copied
    /// to new segments. For a shard whose peers have other replicas; with one replica only on an operator's word.
    /// An operator's word that a peer is to be used as it is is a [`Record::Damaged`] with `false`.
    ///
    /// # Errors
    /// As [`commit`](Self::commit). The log stays damaged then, and opening it again finds what this opening found.
    pub async fn accept_damage(&self, damage: &Damage) -> Result<(), LogError> {
        {
            let mut state = self.state.borrow_mut();
            if state.refusal != Some(LogError::Damaged) {
                return state.check();
            }
            state.refusal = None;
            // Nothing is placed behind the gap: a new segment begins, and takes over when all is in it.
            state.tail = Tail::default();
            for &(region, peer) in &damage.peers {
                state.append(Record::Damaged { region, peer, damaged: true }, false)?;
            }
        }
        let done = self.copy_all().await;
        if done.is_err() {
            let mut state = self.state.borrow_mut();
            state.refusal.get_or_insert(LogError::Damaged);
        }
        done
    }
}

/// The files of a log, and the blocks in them.
struct Scanned<F> {
    files: Vec<Scan<F>>,
    blocks: Vec<Seen>,
}

struct Scan<F> {
    segment: Segment<F>,
    bytes: Option<AlignedBuf>,
}

async fn scan<D: Disk>(disk: &D, shard: ShardId) -> Result<Scanned<D::File>, OpenError> {
    let mut scanned = Scanned { files: Vec::new(), blocks: Vec::new() };
    let mut kept = 0;
    for name in disk.list().await? {
        if file_number(&name).is_none() {
            continue;
        }
        let file = Rc::new(disk.open(&name).await?);
        let bytes = read_all(&*file).await?;
        let at = scanned.files.len();
        let found = |header: Header| scanned.blocks.push(Seen { file: at, header });
        block::scan(shard, bytes.as_slice(), found).map_err(|version| OpenError::NewerFormat {
            file: name.clone(),
            version,
            known: block::VERSION,
        })?;
        kept += bytes.len() as u64;
        let bytes = (kept <= KEEP_BYTES).then_some(bytes);
        let segment = Segment { name, file };
        scanned.files.push(Scan { segment, bytes });
    }
    Ok(scanned)
}

async fn read_all<F: DiskFile>(file: &F) -> io::Result<AlignedBuf> {
    let units = usize::try_from(file.len_bytes()).map_err(io::Error::other)? / UNIT;
    if units == 0 {
        return Ok(AlignedBuf::zeroed(UNIT));
    }
    file.read_at(0, units * UNIT).await
}

impl<F: DiskFile> Scanned<F> {
    /// Replays the records of one block.
    async fn replay(&mut self, shard: ShardId, seen: &Seen, replay: &mut Replay<'_>) -> Result<(), OpenError> {
        let header = &seen.header;
        if self.files[seen.file].bytes.is_none() {
            // One at a time: the blocks of a file come one after the other.
            let kept = self.files.iter().filter_map(|scan| scan.bytes.as_ref());
            if kept.map(|bytes| bytes.len() as u64).sum::<u64>() > KEEP_BYTES {
                self.files.iter_mut().for_each(|scan| scan.bytes = None);
            }
            let bytes = read_all(&*self.files[seen.file].segment.file).await?;
            self.files[seen.file].bytes = Some(bytes);
        }
        let scan = &self.files[seen.file];
        let bytes = scan.bytes.as_ref().expect("read above").as_slice();
        let start = header.unit as usize * UNIT;
        let bytes = &bytes[start..start + header.units() as usize * UNIT];
        let malformed = || OpenError::Malformed { segment: header.segment, unit: header.unit };
        // Read a second time if the log is long: so it is checked a second time, too.
        let same = block::parse(shard, header.unit, bytes) == Parsed::Block(*header);
        let records = block::records(header, bytes).filter(|_| same);
        let at = At { segment: header.segment, unit: header.unit };
        for framed in record::decode_all(records.ok_or_else(malformed)?) {
            replay.take(framed.map_err(|_| malformed())?, at);
        }
        replay.stats.blocks += 1;
        replay.stats.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Gives the files to the log: in use or free, and what numbers come next.
    fn hand_over(self, linked: &Linked, state: &mut State<F>) {
        let mut in_use: BTreeMap<usize, u64> = BTreeMap::new();
        for seen in linked.chain.iter().chain(&linked.salvage) {
            in_use.entry(seen.file).or_insert(seen.header.segment);
        }
        for (at, scan) in self.files.into_iter().enumerate() {
            let number = file_number(&scan.segment.name).unwrap_or(0);
            state.next_name = state.next_name.max(number + 1);
            match in_use.get(&at) {
                Some(&segment) => drop(state.segments.insert(segment, scan.segment)),
                None => state.put_aside(scan.segment),
            }
        }
        state.next_segment = linked.last_segment + 1;
        state.sequence = linked.last_sequence;
        state.durable = linked.last_durable;
        state.incarnation = linked.last_incarnation + 1;
        state.oldest = linked.oldest.max(1);
    }
}

/// Builds the index and gathers what the core has to replay.
struct Replay<'a> {
    engine: &'a EngineState,
    index: Index,
    entries: BTreeMap<RegionId, BTreeMap<u64, LogEntry>>,
    lifecycle: BTreeMap<u64, Lifecycle>,
    stats: RecoveryStats,
}

impl<'a> Replay<'a> {
    fn new(engine: &'a EngineState) -> Replay<'a> {
        Replay {
            engine,
            index: Index::default(),
            entries: BTreeMap::new(),
            lifecycle: BTreeMap::new(),
            stats: RecoveryStats::default(),
        }
    }

    fn take(&mut self, framed: record::Framed, at: At) {
        let record::Framed { record, copied, len } = framed;
        match &record {
            Record::HardState { region, peer, .. } | Record::Damaged { region, peer, .. } => {
                self.meet(*region, *peer);
            }
            Record::Entries { region, peer, first_index, entries } => {
                self.gather(*region, *peer, *first_index, entries, !copied)
            }
            Record::Truncated { region, peer, at } => {
                if self.meet(*region, *peer)
                    && let Some(kept) = self.entries.get_mut(region)
                {
                    *kept = kept.split_off(&(at.index + 1));
                }
            }
            Record::Lifecycle(lifecycle) => self.take_lifecycle(lifecycle, copied),
        }
        self.index.apply(&record, copied, len, at);
    }

    /// Forgets the entries of an older peer; false if `peer` itself is the older one.
    fn meet(&mut self, region: RegionId, peer: PeerId) -> bool {
        let known = self.index.peers.get(&region).map(|log| log.peer);
        if known.is_some_and(|known| known < peer) {
            self.entries.remove(&region);
        }
        known.is_none_or(|known| known <= peer)
    }

    fn gather(&mut self, region: RegionId, peer: PeerId, first: u64, entries: &[LogEntry], cut: bool) {
        if !self.meet(region, peer) {
            return;
        }
        let engine = self.engine.peers.get(&region);
        let applied = engine.filter(|(owner, _)| *owner == peer).map_or(0, |&(_, applied)| applied);
        let kept = self.entries.entry(region).or_default();
        if cut {
            kept.split_off(&first);
        }
        for (index, entry) in (first..).zip(entries) {
            if index > applied {
                // A copy of its own: a slice would keep its whole block in memory.
                let data = Bytes::copy_from_slice(&entry.data);
                kept.insert(index, LogEntry { data, term: entry.term });
            }
        }
    }

    fn take_lifecycle(&mut self, lifecycle: &Lifecycle, copied: bool) {
        if !copied {
            for effect in &lifecycle.effects {
                match effect {
                    LogEffect::Start { region, peer, truncated, entries, .. } => {
                        if self.meet(*region, *peer) {
                            self.entries.remove(region);
                            self.gather(*region, *peer, truncated.index + 1, entries, true);
                        }
                    }
                    LogEffect::End { region, peer } => {
                        if !self.index.is_stale(*region, *peer) {
                            self.entries.remove(region);
                        }
                    }
                }
            }
        }
        if lifecycle.event > self.engine.last_event {
            let mut lifecycle = lifecycle.clone();
            lifecycle.payload = Bytes::copy_from_slice(&lifecycle.payload);
            self.lifecycle.insert(lifecycle.event, lifecycle);
        }
    }

    /// What the core gets. Leaves the index ready for use.
    fn finish(&mut self, linked: &Linked) -> Recovered {
        let engine = self.engine;
        let applied = engine.peers.iter();
        let applied = applied.map(|(&region, &(peer, index))| (region, peer, index));
        self.index.flushed(applied, engine.last_event);
        let mut what: Vec<String> = linked.damage.iter().cloned().collect();
        let regions: Vec<RegionId> = self.index.peers.keys().copied().collect();
        for &region in &regions {
            if self.index.close_gaps(region) {
                what.push(format!("entries of {region:?} are missing between others"));
            }
        }
        self.ask_the_engine(&mut what);
        self.stats.blocks_cut = linked.cut;
        let mut peers: BTreeMap<RegionId, RecoveredPeer> =
            regions.into_iter().map(|region| (region, self.recovered_peer(region))).collect();
        let damage = (!what.is_empty()).then(|| {
            for (&region, &(peer, _)) in &engine.peers {
                if !self.ended(region, peer) {
                    let lost = || RecoveredPeer { peer, ..RecoveredPeer::default() };
                    peers.entry(region).or_insert_with(lost);
                }
            }
            peers.values_mut().for_each(|peer| peer.damaged = true);
            Damage { what, peers: peers.iter().map(|(&region, peer)| (region, peer.peer)).collect() }
        });
        let lifecycle: Vec<Lifecycle> = std::mem::take(&mut self.lifecycle).into_values().collect();
        Recovered {
            peers,
            lifecycle,
            last_event: self.index.last_event.max(linked.last_event).max(engine.last_event),
            incarnation: 0,
            damage,
            stats: self.stats,
        }
    }

    /// Whether an event that the engine has not seen ended this peer.
    fn ended(&self, region: RegionId, peer: PeerId) -> bool {
        self.lifecycle.values().any(|lifecycle| {
            lifecycle
                .effects
                .iter()
                .any(|effect| matches!(effect, LogEffect::End { region: r, peer: p } if *r == region && *p >= peer))
        })
    }

    /// The engine as a witness: what it applied was durable in the log before.
    fn ask_the_engine(&self, what: &mut Vec<String>) {
        for (&region, &(peer, applied)) in &self.engine.peers {
            let log = self.index.peers.get(&region);
            match log.filter(|log| log.peer >= peer) {
                // Known since the damage was accepted.
                Some(log) if log.damaged() => {}
                Some(log) if log.peer == peer && log.last().index < applied => what.push(format!(
                    "the engine applied entry {applied} of {region:?}, but its log ends at {}",
                    log.last().index
                )),
                None if !self.ended(region, peer) => {
                    what.push(format!("the engine holds {peer:?} of {region:?}, but the log does not"))
                }
                _ => {}
            }
        }
    }

    fn recovered_peer(&mut self, region: RegionId) -> RecoveredPeer {
        let log = &self.index.peers[&region];
        let last = log.last().index;
        let first_index = log.released() + 1;
        let mut kept = self.entries.remove(&region).unwrap_or_default();
        let mut kept = kept.split_off(&first_index);
        kept.split_off(&(last + 1));
        assert_eq!(
            kept.len() as u64,
            (last + 1).saturating_sub(first_index),
            "index and entries are built from the same records"
        );
        let hard_state = log
            .hard_state
            .map(|state| HardState { commit: state.commit.max(log.flushed).min(last.max(log.flushed)), ..state });
        RecoveredPeer {
            peer: log.peer,
            hard_state,
            truncated: log.truncated,
            first_index,
            entries: kept.into_values().collect(),
            damaged: log.damaged(),
        }
    }
}
