//! Random work on a log, its twin beside it, with power losses and kills at any operation.

use std::collections::BTreeMap;
use std::time::Duration;

use base::{PeerId, Prng, RegionId, ShardId};
use bytes::Bytes;
use shard::log::{
    EngineState, HardState, Lifecycle, LifecycleKind, LogConfig, LogEffect, LogEntry, LogError, Maintained, Position,
    RaftLog, Record, Recovered, Scope,
};

use super::disk::{FaultyDisk, Survival};
use super::twin::Twin;
use super::{block_on, block_on_both};

pub const SHARD: ShardId = ShardId(4);

/// A log small enough that all of its corners are met in a few hundred records.
pub fn small_config() -> LogConfig {
    LogConfig {
        segment_bytes: 64 << 10,
        block_bytes: 5000,
        replay_cap_bytes: 160 << 10,
        spare_segments: 2,
        index_runs_max: 40,
        ..LogConfig::default()
    }
}

pub fn entry(term: u64, data: Vec<u8>) -> LogEntry {
    LogEntry { term, data: Bytes::from(data) }
}

pub fn lifecycle(event: u64, kind: LifecycleKind, effects: Vec<LogEffect>) -> Lifecycle {
    Lifecycle {
        event,
        kind,
        region: RegionId(0),
        peer: PeerId(0),
        scope: Scope::default(),
        effects,
        payload: Bytes::from(vec![event as u8; 40]),
    }
}

/// See the module.
pub struct Driver {
    pub disk: FaultyDisk,
    pub log: RaftLog<FaultyDisk>,
    pub engine: EngineState,
    /// What is durable for sure, and what was appended after it.
    pub acknowledged: Twin,
    pub appended: Vec<Record>,
    pub prng: Prng,
    pub last_event: u64,
    /// Rare branches that were reached.
    pub reached: Reached,
    next_peer: u64,
}

/// How often rare branches were reached.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reached {
    pub restarts: u64,
    pub segments_freed: u64,
    pub segments_copied: u64,
    pub blocks_cut: u64,
    pub unacknowledged_lost: u64,
    pub unacknowledged_kept: u64,
}

impl Reached {
    pub fn add(&mut self, other: Reached) {
        self.restarts += other.restarts;
        self.segments_freed += other.segments_freed;
        self.segments_copied += other.segments_copied;
        self.blocks_cut += other.blocks_cut;
        self.unacknowledged_lost += other.unacknowledged_lost;
        self.unacknowledged_kept += other.unacknowledged_kept;
    }
}

impl Driver {
    pub fn new(seed: u64) -> Driver {
        let disk = FaultyDisk::new(seed);
        let engine = EngineState::default();
        let (log, recovered) = open(&disk, &engine).expect("an empty disk");
        assert!(recovered.peers.is_empty() && recovered.damage.is_none());
        Driver {
            disk,
            log,
            engine,
            acknowledged: Twin::default(),
            appended: Vec::new(),
            prng: Prng::new(seed),
            last_event: 0,
            reached: Reached::default(),
            next_peer: 1,
        }
    }

    /// The twin with everything that was appended.
    pub fn newest(&self) -> Twin {
        let mut twin = self.acknowledged.clone();
        self.appended.iter().for_each(|record| twin.apply(record));
        twin
    }

    pub fn append(&mut self, record: Record) {
        self.log.append(record.clone()).expect("a good record");
        self.appended.push(record);
    }

    /// A record that raft could write now.
    pub fn random_record(&mut self) -> Record {
        let newest = self.newest();
        let regions: Vec<RegionId> = newest.peers.keys().copied().collect();
        let existing = self.prng.pick(&regions).copied();
        let Some(region) = existing.filter(|_| !self.prng.one_in(12)) else {
            return self.random_event(&newest);
        };
        let twin = &newest.peers[&region];
        let applied = self.applied(region, twin.peer);
        let peer = twin.peer;
        match self.prng.below(10) {
            0..6 => {
                let low = applied.max(twin.truncated.index) + 1;
                let next = twin.last().index + 1;
                let first_index = if self.prng.one_in(4) { self.prng.range(low, next + 1).min(next) } else { next };
                let term = twin.last().term.max(1) + u64::from(first_index != next);
                let entries = self.random_entries(term);
                Record::Entries { region, peer, first_index, entries }
            }
            6..9 => {
                let old = twin.hard_state.unwrap_or_default();
                let state = HardState {
                    term: old.term + self.prng.below(2),
                    vote: peer.0,
                    commit: old.commit.max(self.prng.range(applied, twin.last().index + 1)),
                };
                Record::HardState { region, peer, state }
            }
            _ => {
                let index = self.prng.range(0, applied + 1).max(twin.truncated.index);
                let term = twin.entries.get(&index).map_or(twin.truncated.term, |e| e.term);
                let index = if twin.entries.contains_key(&index) { index } else { twin.truncated.index };
                let at = Position { index, term };
                Record::Truncated { region, peer, at }
            }
        }
    }

    fn random_entries(&mut self, term: u64) -> Vec<LogEntry> {
        let count = self.prng.below(4);
        (0..count)
            .map(|i| {
                let len = match self.prng.below(20) {
                    0 => self.prng.range(4000, 30_000),
                    1 => 0,
                    _ => self.prng.below(600),
                };
                let mut data = vec![0; len as usize];
                self.prng.fill(&mut data);
                entry(term + i / 3, data)
            })
            .collect()
    }

    fn random_event(&mut self, newest: &Twin) -> Record {
        self.last_event += 1;
        let region = RegionId(self.prng.range(1, 6));
        let kinds = LifecycleKind::ALL;
        let kind = *self.prng.pick(kinds).expect("there are kinds");
        let effects = match newest.peers.get(&region) {
            None => vec![self.random_start(region, HardState::default(), 0)],
            Some(twin) => match self.prng.below(4) {
                0 => vec![LogEffect::End { region, peer: twin.peer }],
                1 => {
                    // A raft snapshot for the same peer.
                    let hard_state = twin.hard_state.unwrap_or_default();
                    let mut start = self.random_start(region, hard_state, twin.last().index);
                    if let LogEffect::Start { peer, .. } = &mut start {
                        *peer = twin.peer;
                    }
                    vec![start]
                }
                2 => {
                    vec![LogEffect::End { region, peer: twin.peer }, self.random_start(region, HardState::default(), 0)]
                }
                _ => Vec::new(),
            },
        };
        Record::Lifecycle(lifecycle(self.last_event, kind, effects))
    }

    fn random_start(&mut self, region: RegionId, old: HardState, above: u64) -> LogEffect {
        let peer = PeerId(self.next_peer);
        self.next_peer += 1;
        let truncated = Position { index: above + 5 + self.prng.below(5), term: old.term + 5 };
        LogEffect::Start {
            region,
            peer,
            hard_state: HardState { term: truncated.term, vote: 0, commit: truncated.index },
            truncated,
            entries: self.random_entries(truncated.term),
        }
    }

    fn applied(&self, region: RegionId, peer: PeerId) -> u64 {
        let engine = self.engine.peers.get(&region);
        engine.filter(|(owner, _)| *owner == peer).map_or(0, |e| e.1)
    }

    /// The engine flushes some prefix of what is durable in the log.
    pub fn flush(&mut self) {
        let mut peers = BTreeMap::new();
        for (&region, twin) in &self.acknowledged.peers {
            let low = self.applied(region, twin.peer).max(twin.truncated.index);
            // What later records replace was not committed, so it was not applied either.
            let safe = self.safe_index(region, twin.peer, twin.last().index);
            let applied = self.prng.range(low, safe.max(low) + 1);
            peers.insert(region, (twin.peer, applied));
        }
        let last_event = self.acknowledged.lifecycle.last_key_value();
        self.engine = EngineState { peers, last_event: last_event.map_or(self.engine.last_event, |(&event, _)| event) };
        self.report_flush();
    }

    fn safe_index(&self, region: RegionId, peer: PeerId, last: u64) -> u64 {
        let replaced = self.appended.iter().filter_map(|record| match record {
            Record::Entries { region: r, peer: p, first_index, .. } if (*r, *p) == (region, peer) => {
                Some(first_index - 1)
            }
            _ => None,
        });
        replaced.fold(last, u64::min)
    }

    pub fn report_flush(&mut self) {
        let applied = self.engine.peers.iter().map(|(&region, &(peer, index))| (region, peer, index));
        self.log.flushed(applied, self.engine.last_event);
    }

    /// Runs something that commits, and maintenance at the same time if `maintain`. False if power was lost.
    pub fn commit(&mut self, maintain: bool) -> bool {
        let log = &self.log;
        let done = if maintain {
            let (commit, maintained) = block_on_both(log.commit(), log.maintain());
            commit.and(maintained)
        } else {
            block_on(log.commit()).map(|_| Maintained::default())
        };
        let done = done.map(|maintained| self.note(maintained));
        self.settle(done)
    }

    /// Maintenance alone. False if power was lost.
    pub fn maintain(&mut self) -> bool {
        match block_on(self.log.maintain()) {
            Ok(maintained) => {
                self.note(maintained);
                true
            }
            Err(error) => self.settle(Err(error)),
        }
    }

    fn note(&mut self, maintained: Maintained) {
        self.reached.segments_freed += maintained.segments_freed;
        self.reached.segments_copied += maintained.segments_copied;
    }

    pub fn settle(&mut self, done: Result<(), LogError>) -> bool {
        match done {
            Ok(()) => {
                self.acknowledged = self.newest();
                self.appended.clear();
                true
            }
            Err(LogError::Failed(_)) if self.disk.crashed() => {
                assert!(self.log.commit_now().is_err(), "a failed log stays failed");
                false
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// Power is lost, or the process is killed, and the log is opened again. All acknowledged records must be there,
    /// the others up to some point.
    pub fn restart(&mut self, survival: Option<Survival>) -> Recovered {
        let seed = self.prng.next_u64();
        self.disk = match survival {
            Some(survival) => self.disk.after_power_loss(survival, seed),
            None => self.disk.after_kill(),
        };
        let (log, recovered) = open(&self.disk, &self.engine).expect("the log opens");
        assert_eq!(recovered.damage, None, "{survival:?}");
        self.log = log;
        self.follow(&recovered);
        self.report_flush();
        self.reached.restarts += 1;
        self.reached.blocks_cut += recovered.stats.blocks_cut;
        recovered
    }

    /// Makes the twin what was recovered, which must be the acknowledged records and a prefix of the others.
    fn follow(&mut self, recovered: &Recovered) {
        let mut differences = Vec::new();
        let appended = std::mem::take(&mut self.appended);
        let mut twin = self.acknowledged.clone();
        // Many entries become several records, so a part of them may be there.
        let pieces: Vec<Record> = appended.iter().flat_map(one_by_one).collect();
        let mut next = pieces.iter();
        loop {
            match twin.difference(recovered, &self.engine) {
                None => break,
                Some(difference) => differences.push(difference),
            }
            let Some(record) = next.next() else {
                panic!("neither what was acknowledged nor a prefix of the rest: {differences:#?}");
            };
            twin.apply(record);
            self.reached.unacknowledged_kept += 1;
        }
        self.reached.unacknowledged_lost += next.len() as u64;
        self.acknowledged = twin;
        self.acknowledged.check_reads(&self.log);
        self.last_event = self.last_event.max(recovered.last_event);
    }

    pub fn idle(&mut self) {
        self.disk.advance(Duration::from_millis(10));
    }
}

fn one_by_one(record: &Record) -> Vec<Record> {
    match record {
        Record::Entries { region, peer, first_index, entries } if !entries.is_empty() => (*first_index..)
            .zip(entries)
            .map(|(first_index, entry)| Record::Entries {
                region: *region,
                peer: *peer,
                first_index,
                entries: vec![entry.clone()],
            })
            .collect(),
        _ => vec![record.clone()],
    }
}

pub fn open(
    disk: &FaultyDisk,
    engine: &EngineState,
) -> Result<(RaftLog<FaultyDisk>, Recovered), shard::log::OpenError> {
    block_on(RaftLog::open_on(disk.clone(), SHARD, small_config(), engine))
}

/// A commit that is expected to need no waiting.
pub trait CommitNow {
    fn commit_now(&self) -> Result<(), LogError>;
}

impl CommitNow for RaftLog<FaultyDisk> {
    fn commit_now(&self) -> Result<(), LogError> {
        block_on(self.commit()).map(drop)
    }
}
