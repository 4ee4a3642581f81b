//! Power lost at every single operation of a run that has all of them, and what a torn, cut, full or failing disk
//! does to the log.

mod log_support;

use std::pin::pin;
use std::task::{Context, Waker};

use base::{PeerId, Prng, RegionId};
use log_support::block_on;
use log_support::disk::{FaultyDisk, Survival};
use log_support::driver::{CommitNow, Driver, SHARD, entry, lifecycle, open, small_config};
use shard::log::{EngineState, HardState, LifecycleKind, LogConfig, LogEffect, LogError, Position, RaftLog, Record};

const REGION: RegionId = RegionId(1);
const PEER: PeerId = PeerId(9);

fn start(driver: &mut Driver, region: RegionId, peer: PeerId) -> Record {
    driver.last_event += 1;
    let start = LogEffect::Start {
        region,
        peer,
        hard_state: HardState { term: 5, vote: 0, commit: 5 },
        truncated: Position { index: 5, term: 5 },
        entries: Vec::new(),
    };
    Record::Lifecycle(lifecycle(driver.last_event, LifecycleKind::Created, vec![start]))
}

fn entries(first_index: u64, term: u64, sizes: &[usize]) -> Record {
    let data = |len: usize| vec![(first_index + term) as u8; len];
    Record::Entries {
        region: REGION,
        peer: PEER,
        first_index,
        entries: sizes.iter().map(|&len| entry(term, data(len))).collect(),
    }
}

fn hard_state(term: u64) -> Record {
    Record::HardState { region: REGION, peer: PEER, state: HardState { term, vote: term % 3, commit: 5 } }
}

/// Writes through several segments, with overwrites, flushes, seals and copies. False where power was lost.
fn script(driver: &mut Driver) -> bool {
    let record = start(driver, REGION, PEER);
    driver.append(record);
    let record = start(driver, RegionId(2), PeerId(20));
    driver.append(record);
    let mut next = 6;
    for round in 1..=28u64 {
        driver.append(hard_state(5 + round));
        driver.append(entries(next, 5 + round, &[100, 9000, 0]));
        next += 3;
        if round % 5 == 0 {
            next -= 2;
            driver.append(entries(next, 6 + round, &[20_000]));
            next += 1;
        }
        if round % 4 == 1 && !driver.commit(false) {
            return false;
        }
        if round % 7 == 0 {
            driver.idle();
            if !driver.commit(false) {
                return false;
            }
            driver.idle();
            let sealed = block_on(driver.log.seal()).map(drop);
            if !driver.settle(sealed) {
                return false;
            }
            let last = driver.acknowledged.peers[&REGION].last().index;
            driver.engine.peers.insert(REGION, (PEER, last));
            driver.engine.peers.insert(RegionId(2), (PeerId(20), 5));
            driver.engine.last_event = driver.last_event;
            driver.report_flush();
            if !driver.maintain() {
                return false;
            }
        }
    }
    driver.commit(true)
}

#[test]
fn power_lost_at_any_operation_loses_nothing_acknowledged() {
    let mut whole = Driver::new(0);
    let before = whole.disk.operations();
    assert!(script(&mut whole));
    let operations = whole.disk.operations() - before;
    assert!(operations > 60 && whole.reached.segments_copied > 0, "{operations}");
    for cut in 1..=operations {
        for (seed, survival) in [
            (0, Some(Survival::None)),
            (1, Some(Survival::All)),
            (2, Some(Survival::Random)),
            (3, Some(Survival::RandomUnits)),
            (4, None),
        ] {
            let mut driver = Driver::new(0);
            driver.prng = Prng::new(cut * 10 + seed);
            driver.disk.crash_after(cut);
            assert!(!script(&mut driver), "operation {cut} is reached");
            driver.restart(survival);
            // A log written after the cut, of the same shape, with other contents; then another cut.
            if !driver.newest().peers.contains_key(&REGION) {
                let record = start(&mut driver, REGION, PEER);
                driver.append(record);
            }
            let next = driver.newest().peers[&REGION].last().index + 1;
            driver.append(entries(next, 100, &[100, 9000, 1]));
            if cut % 2 == 0 {
                assert!(driver.commit(false));
                driver.append(entries(next + 3, 101, &[10]));
            } else {
                driver.disk.crash_after(1 + cut % 3);
                driver.commit(false);
            }
            driver.restart(Some(Survival::Random));
            driver.restart(Some(Survival::None));
        }
    }
}

/// A log whose last commit, of several blocks, was written in part: all sectors but those from `lost` on, or but one.
fn torn(seed: u64) -> Driver {
    let mut driver = Driver::new(seed);
    let record = start(&mut driver, REGION, PEER);
    driver.append(record);
    driver.append(entries(6, 5, &[100]));
    assert!(driver.commit(false));
    driver.append(entries(7, 6, &[3000; 12]));
    driver
}

#[test]
fn a_torn_tail_is_cut_silently_and_never_comes_back() {
    let (mut lost, mut cut) = (0, 0);
    for seed in 0..200 {
        let mut driver = torn(seed);
        driver.disk.crash_after(2);
        assert!(!driver.commit(false));
        let survival = [Survival::Random, Survival::RandomUnits][seed as usize % 2];
        let recovered = driver.restart(Some(survival));
        assert!(recovered.damage.is_none());
        cut += recovered.stats.blocks_cut;
        let last = driver.acknowledged.peers[&REGION].last().index;
        lost += u64::from(last < 18);
        // The new log has blocks of the same lengths in the same places, with other bytes.
        driver.append(entries(last + 1, 7, &[3000; 12]));
        if seed % 3 > 0 {
            driver.disk.crash_after(2);
            assert!(!driver.commit(false));
            driver.restart(Some(survival));
        } else {
            assert!(driver.commit(false));
            driver.restart(Some(Survival::None));
            assert_eq!(driver.acknowledged.peers[&REGION].last(), Position { index: last + 12, term: 7 });
        }
    }
    assert!(lost > 150 && cut > 150, "{lost} were torn, {cut} blocks cut");
}

#[test]
fn what_a_killed_process_left_unsynced_is_made_durable_before_it_counts() {
    let mut driver = torn(3);
    driver.disk.crash_after(2);
    assert!(!driver.commit(false) && driver.disk.crashed());
    // The whole write can be read after the kill, and so it is in the log from then on.
    driver.restart(None);
    assert_eq!(driver.acknowledged.peers[&REGION].last().index, 18);
    driver.restart(Some(Survival::None));
    assert_eq!(driver.acknowledged.peers[&REGION].last().index, 18);
}

#[test]
fn incarnations_rise_at_every_open() {
    let mut driver = Driver::new(1);
    let mut last = driver.log.incarnation();
    for round in 0..20 {
        let survival = [None, Some(Survival::None), Some(Survival::Random)][round % 3];
        let recovered = driver.restart(survival);
        assert!(recovered.incarnation > last);
        last = recovered.incarnation;
    }
}

#[test]
fn a_failed_sync_is_the_end() {
    let mut driver = torn(1);
    driver.disk.fail_next_sync();
    let error = driver.log.commit_now().expect_err("the sync fails");
    assert_eq!(error, LogError::Failed("the sync failed".to_owned()));
    assert_eq!(driver.log.append(hard_state(99)), Err(error.clone()));
    assert_eq!(driver.log.commit_now(), Err(error.clone()));
    assert_eq!(block_on(driver.log.maintain()), Err(error.clone()));
    assert_eq!(block_on(driver.log.seal()), Err(error));
    assert_eq!(driver.log.next_seal(), None);
    driver.restart(None);
}

#[test]
fn what_a_failed_sync_left_readable_is_written_again_before_the_log_goes_on() {
    for seed in 1..20 {
        let mut driver = torn(seed);
        driver.disk.fail_next_sync();
        driver.log.commit_now().expect_err("the sync fails");
        // The process ends, the machine does not: the block is read back, but no sync makes it durable any more.
        driver.restart(None);
        driver.restart(Some(Survival::None));
    }
}

#[test]
fn a_commit_that_is_dropped_half_way_fails_the_log() {
    for polls in 0..12 {
        let driver = torn(polls);
        let dropped = {
            let mut commit = pin!(driver.log.commit());
            let mut cx = Context::from_waker(Waker::noop());
            (0..polls).all(|_| commit.as_mut().poll(&mut cx).is_pending())
        };
        if !dropped {
            return;
        }
        if polls > 0 {
            driver.log.commit_now().expect_err("what is durable is unknown");
        }
    }
    panic!("the commit never ended");
}

#[test]
fn a_full_disk_refuses_and_lets_go_on_later() {
    let mut driver = Driver::new(5);
    let record = start(&mut driver, REGION, PEER);
    driver.append(record);
    assert!(driver.maintain() && driver.commit(false));
    driver.disk.set_capacity(Some(driver.disk.bytes()));
    let mut next = 6;
    let refused = loop {
        driver.append(entries(next, 5, &[9000, 9000]));
        next += 2;
        match driver.log.commit_now() {
            Ok(()) => assert!(driver.settle(Ok(()))),
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, LogError::DiskFull(_)));
    assert!(matches!(driver.log.commit_now(), Err(LogError::DiskFull(_))));
    assert!(block_on(driver.log.maintain()).expect("no failure").disk_full);
    // A restart needs no room, whatever was not written by then.
    driver.restart(Some(Survival::Random));
    let last = driver.acknowledged.peers[&REGION].last().index;
    // A flush makes room by itself.
    driver.engine.peers.insert(REGION, (PEER, last));
    driver.engine.last_event = driver.last_event;
    driver.report_flush();
    assert!(driver.maintain());
    assert!(driver.reached.segments_freed > 0);
    driver.append(entries(last + 1, 5, &[9000; 4]));
    assert!(driver.commit(false));
    driver.disk.set_capacity(None);
    driver.append(entries(last + 5, 5, &[9000; 40]));
    assert!(driver.commit(true));
    driver.restart(Some(Survival::None));
}

#[test]
fn records_longer_than_a_segment_get_one_of_their_own() {
    let mut driver = Driver::new(2);
    let record = start(&mut driver, REGION, PEER);
    driver.append(record);
    driver.append(entries(6, 5, &[300_000]));
    driver.append(entries(7, 5, &[10, 8 << 20, 300_000, 1]));
    assert!(driver.commit(false));
    driver.append(entries(11, 5, &[10]));
    assert!(driver.commit(true));
    driver.restart(Some(Survival::None));
    assert_eq!(driver.acknowledged.peers[&REGION].last().index, 11);
    assert_eq!(driver.log.append(entries(12, 5, &[16 << 20])), Err(LogError::TooLarge(16 << 20)));
    // The long segments are removed, not kept as spares.
    driver.engine.peers.insert(REGION, (PEER, 11));
    driver.engine.last_event = driver.last_event;
    driver.report_flush();
    driver.append(entries(12, 5, &[70_000]));
    assert!(driver.commit(false));
    driver.append(entries(13, 5, &[10]));
    assert!(driver.commit(false) && driver.maintain());
    assert!(driver.disk.bytes() < 1 << 20, "{}", driver.disk.bytes());
    driver.restart(Some(Survival::None));
}

#[test]
fn records_that_do_not_follow_are_refused() {
    let mut driver = torn(1);
    assert_eq!(
        driver.log.append(entries(20, 6, &[1])),
        Err(LogError::Gap { region: REGION, first_index: 20, last_index: 18 })
    );
    let old = Record::Truncated { region: REGION, peer: PeerId(8), at: Position::default() };
    let stale = LogError::StalePeer { region: REGION, peer: PeerId(8) };
    assert_eq!(driver.log.append(old), Err(stale));
    assert!(driver.commit(false));
    driver.restart(None);
}

#[test]
fn a_seal_is_due_after_idling_and_once() {
    let driver = torn(1);
    assert_eq!(driver.log.next_seal(), None, "something is pending");
    driver.log.commit_now().expect("committed");
    let due = driver.log.next_seal().expect("sealed after a while");
    assert_eq!(due.0, 1_000_000 + 10_000_000);
    block_on(driver.log.seal()).expect("sealed");
    assert_eq!(driver.log.next_seal(), None);
    let (writes, _) = driver.disk.written();
    block_on(driver.log.seal()).expect("nothing to do");
    assert_eq!(driver.disk.written().0, writes);
}

#[test]
fn one_commit_of_many_regions_is_one_durable_write() {
    let disk = FaultyDisk::new(1);
    let config = LogConfig { segment_bytes: 4 << 20, ..small_config() };
    let engine = EngineState::default();
    let opened = RaftLog::open_on(disk.clone(), SHARD, config, &engine);
    let (log, _) = block_on(opened).expect("opens");
    let (before, _) = disk.written();
    for region in 1..=500 {
        log.append(Record::Entries {
            region: RegionId(region),
            peer: PEER,
            first_index: 1,
            entries: vec![entry(1, vec![1; 2000])],
        })
        .expect("taken");
    }
    let done = block_on(log.commit()).expect("durable");
    assert_eq!((done.writes, disk.written().0 - before), (1, 1));
    let (_, recovered) = open(&disk.after_power_loss(Survival::None, 0), &EngineState::default()).expect("opens");
    assert_eq!(recovered.peers.len(), 500);
}
