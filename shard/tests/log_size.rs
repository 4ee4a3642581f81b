//! How large the log and its index get: sleeping regions beside a hot one, and many small entries.

mod log_support;

use std::collections::BTreeMap;

use base::{PeerId, RegionId};
use log_support::block_on;
use log_support::disk::{FaultyDisk, Survival};
use log_support::driver::{CommitNow, SHARD, entry, lifecycle};
use shard::log::{EngineState, HardState, LifecycleKind, LogConfig, LogEffect, Position, RaftLog, Record};

const IDLE: u64 = 10_000;
const HOT: RegionId = RegionId(IDLE + 1);
const CAP: u64 = 8 << 20;

fn config() -> LogConfig {
    LogConfig { segment_bytes: 1 << 20, replay_cap_bytes: CAP, ..LogConfig::default() }
}

fn open(disk: &FaultyDisk, engine: &EngineState) -> (RaftLog<FaultyDisk>, shard::log::Recovered) {
    block_on(RaftLog::open_on(disk.clone(), SHARD, config(), engine)).expect("opens")
}

fn put(log: &RaftLog<FaultyDisk>, region: RegionId, first_index: u64, sizes: &[usize]) {
    let entries = sizes.iter().map(|&len| entry(7, vec![region.0 as u8; len])).collect();
    log.append(Record::Entries { region, peer: PeerId(region.0), first_index, entries }).expect("taken");
}

fn flush(log: &RaftLog<FaultyDisk>, engine: &EngineState) {
    let applied = engine.peers.iter().map(|(&region, &(peer, index))| (region, peer, index));
    log.flushed(applied, engine.last_event);
    block_on(log.maintain()).expect("maintained");
}

#[test]
fn ten_thousand_sleeping_regions_neither_pin_the_log_nor_lose_their_votes() {
    let disk = FaultyDisk::new(1);
    let mut engine = EngineState::default();
    let (log, _) = open(&disk, &engine);
    for region in (1..=IDLE).chain([HOT.0]) {
        let start = LogEffect::Start {
            region: RegionId(region),
            peer: PeerId(region),
            hard_state: HardState { term: 5, vote: 0, commit: 5 },
            truncated: Position { index: 5, term: 5 },
            entries: Vec::new(),
        };
        log.append(Record::Lifecycle(lifecycle(region, LifecycleKind::Created, vec![start]))).expect("taken");
        put(&log, RegionId(region), 6, &[100, 50]);
        log.append(Record::HardState {
            region: RegionId(region),
            peer: PeerId(region),
            state: HardState { term: 7 + region, vote: region % 5, commit: 7 },
        })
        .expect("taken");
        // Every tenth region has an entry that is never committed: it must not get lost either.
        if region % 10 == 0 {
            put(&log, RegionId(region), 8, &[30]);
        }
        if region % 100 == 0 {
            log.commit_now().expect("durable");
        }
        engine.peers.insert(RegionId(region), (PeerId(region), 7));
    }
    log.commit_now().expect("durable");
    engine.last_event = HOT.0;
    flush(&log, &engine);

    let (mut next, mut written, mut largest, mut copied) = (8, 0, 0, 0);
    while written < 10 * CAP {
        put(&log, HOT, next, &[4000; 16]);
        next += 16;
        written += 16 * 4000;
        log.commit_now().expect("durable");
        if log.unflushed_bytes() > CAP / 2 {
            engine.peers.insert(HOT, (PeerId(HOT.0), next - 1));
            let applied = engine.peers.iter().map(|(&region, &(peer, index))| (region, peer, index));
            log.flushed(applied, engine.last_event);
        }
        if log.wants_maintenance() {
            let maintained = block_on(log.maintain()).expect("maintained");
            assert!(!maintained.flush_needed);
            copied += maintained.segments_copied;
        }
        largest = largest.max(disk.bytes());
        assert_eq!(disk.bytes(), log.size_bytes());
    }
    let (_, bytes_written) = disk.written();
    println!(
        "cap {CAP}, written {written}, on disk at most {largest}, written to disk {bytes_written}, \
         segments copied {copied}"
    );
    assert!(largest < 3 * CAP, "{largest}");
    assert!(copied > 0, "the sleeping regions were copied forward");
    assert!(bytes_written < written * 3 / 2, "{bytes_written}");

    let disk = disk.after_power_loss(Survival::None, 0);
    let (log, recovered) = open(&disk, &engine);
    assert_eq!((recovered.damage, recovered.peers.len() as u64), (None, IDLE + 1));
    assert!(recovered.lifecycle.is_empty() && recovered.last_event == HOT.0);
    for region in 1..=IDLE {
        let peer = &recovered.peers[&RegionId(region)];
        let expected = HardState { term: 7 + region, vote: region % 5, commit: 7 };
        assert_eq!(peer.hard_state, Some(expected), "region {region}");
        assert_eq!(peer.entries.len(), usize::from(region % 10 == 0));
        assert_eq!(log.term(RegionId(region), 7), Some(7));
    }
    assert_eq!(log.peer(HOT).expect("there").last.index, next - 1);
    assert!(recovered.stats.bytes < 3 * CAP);
}

#[test]
fn nothing_but_a_flush_helps_when_most_of_the_log_is_live() {
    let disk = FaultyDisk::new(1);
    let (log, _) = open(&disk, &EngineState::default());
    let mut needed = false;
    for round in 0..400 {
        put(&log, HOT, 1 + round * 16, &[4000; 16]);
        log.commit_now().expect("durable");
        let before = disk.written().1;
        needed |= block_on(log.maintain()).expect("maintained").flush_needed;
        assert_eq!(disk.written().1, before, "nothing is copied in circles");
    }
    assert!(needed);
    let engine = EngineState { peers: BTreeMap::from([(HOT, (PeerId(HOT.0), 6400))]), last_event: 0 };
    flush(&log, &engine);
    assert!(log.size_bytes() <= 2 * CAP + config().segment_bytes * 2, "{}", log.size_bytes());
    assert_eq!(log.unflushed_bytes(), 0);
}

#[test]
fn the_index_costs_memory_per_run_not_per_entry() {
    let disk = FaultyDisk::new(1);
    let (log, _) = open(&disk, &EngineState::default());
    for index in 1..=2000 {
        put(&log, HOT, index, &[100]);
        log.commit_now().expect("durable");
    }
    // 4 KiB of log per commit: a run ends every MiB and at the end of each segment.
    let megabytes = log.used_bytes() >> 20;
    assert!(log.index_runs() <= 2 * megabytes, "{} runs in {megabytes} MiB", log.index_runs());
    let log_with_many = {
        let (log, _) = open(&FaultyDisk::new(2), &EngineState::default());
        for round in 0..20 {
            for region in 1..=5000 {
                put(&log, RegionId(region), 1 + round, &[10]);
            }
            log.commit_now().expect("durable");
        }
        log
    };
    assert!(log_with_many.index_runs() < 5000 * 20);
    let before = log_with_many.index_runs();
    let (low, high) = (1, 21);
    let read = block_on(log_with_many.entries(RegionId(77), low, high, usize::MAX)).expect("readable");
    assert_eq!(read.len(), 20);
    println!("5000 regions x 20 entries: {before} runs");
}
