//! Durable blocks that are lost: reported, never cut silently, and no hard state cleared by it.

mod log_support;

use base::{PeerId, RegionId};
use log_support::block_on;
use log_support::disk::{FaultyDisk, Survival};
use log_support::driver::{CommitNow, Driver, entry, lifecycle, open};
use shard::log::{EngineState, HardState, LifecycleKind, LogEffect, LogError, Position, Record, RecoveredPeer};

/// A block on disk, read by the words of docs/formats.md alone.
#[derive(Clone, Debug)]
struct OnDisk {
    name: String,
    at: usize,
    segment: u64,
    sequence: u64,
    oldest: u64,
}

fn blocks(disk: &FaultyDisk) -> Vec<OnDisk> {
    let mut blocks = Vec::new();
    for name in disk.names() {
        let bytes = disk.content(&name);
        for at in (0..bytes.len()).step_by(4096) {
            let u64_at = |offset: usize| {
                let bytes = bytes[at + offset..at + offset + 8].try_into();
                u64::from_le_bytes(bytes.expect("8 bytes"))
            };
            if &bytes[at..at + 4] == b"BRLG" {
                blocks.push(OnDisk {
                    name: name.clone(),
                    at,
                    segment: u64_at(24),
                    sequence: u64_at(48),
                    oldest: u64_at(64),
                });
            }
        }
    }
    let oldest = blocks.iter().map(|block| block.oldest).max().unwrap_or(0);
    blocks.retain(|block| block.segment >= oldest);
    blocks.sort_by_key(|block| block.sequence);
    blocks
}

/// Three regions with a few terms each, over several segments, sealed.
fn sealed(flush: bool) -> Driver {
    let mut driver = Driver::new(7);
    for region in 1..=3 {
        driver.last_event += 1;
        let start = LogEffect::Start {
            region: RegionId(region),
            peer: PeerId(region * 10),
            hard_state: HardState { term: 5, vote: 0, commit: 5 },
            truncated: Position { index: 5, term: 5 },
            entries: Vec::new(),
        };
        let created = lifecycle(driver.last_event, LifecycleKind::Created, vec![start]);
        driver.append(Record::Lifecycle(created));
        assert!(driver.commit(false));
    }
    for round in 0..24u64 {
        let region = 1 + round % 3;
        let (region, peer) = (RegionId(region), PeerId(region * 10));
        let last = driver.newest().peers[&region].last().index;
        driver.append(Record::HardState {
            region,
            peer,
            state: HardState { term: 6 + round, vote: peer.0, commit: last },
        });
        driver.append(Record::Entries {
            region,
            peer,
            first_index: last + 1,
            entries: vec![entry(6 + round, vec![round as u8; 6000])],
        });
        assert!(driver.commit(false));
    }
    if flush {
        driver.flush();
        assert!(driver.maintain());
        // What maintenance wrote last may say which segments are free, and its loss is one: the seal stands behind it.
        let (region, peer) = (RegionId(1), PeerId(10));
        let state = driver.newest().peers[&region].hard_state.expect("written");
        driver.append(Record::HardState { region, peer, state });
        assert!(driver.commit(false));
    }
    driver.idle();
    block_on(driver.log.seal()).expect("sealed");
    driver
}

#[test]
fn any_acknowledged_block_that_is_lost_is_reported_and_terms_stay() {
    for flush in [false, true] {
        let sealed = sealed(flush);
        let all = blocks(&sealed.disk);
        let (seal, acknowledged) = all.split_last().expect("blocks");
        assert!(acknowledged.len() > 8);
        for block in acknowledged {
            let disk = sealed.disk.after_power_loss(Survival::None, 0);
            disk.corrupt(&block.name, block.at + 60, &[0xA5; 8]);
            let before = disk.written();
            let (log, recovered) = open(&disk, &sealed.engine).expect("opens");
            let damage = recovered.damage.expect("the loss is noticed");
            assert!(damage.what.iter().any(|what| what.contains("block") || what.contains("segment")));
            assert_eq!(disk.written(), before, "evidence is not written over");
            assert_eq!(log.append(hard_state(1)), Err(LogError::Damaged));
            for (region, twin) in &sealed.acknowledged.peers {
                // At most the newest of a region's hard states was in the block.
                let found = &recovered.peers[region];
                let term = found.hard_state.map_or(0, |state| state.term);
                let newest = twin.hard_state.expect("written").term;
                assert!(found.damaged);
                assert!(term + 3 >= newest || (term == 0 && newest <= 8), "{region:?}: {term} of {newest}");
            }
        }
        let disk = sealed.disk.after_power_loss(Survival::None, 0);
        disk.corrupt(&seal.name, seal.at + 20, &[0xA5; 8]);
        let (_, recovered) = open(&disk, &sealed.engine).expect("opens");
        assert_eq!(recovered.damage, None, "the seal itself holds nothing");
        assert_eq!(sealed.acknowledged.difference(&recovered, &sealed.engine), None);
    }
}

fn hard_state(term: u64) -> Record {
    Record::HardState { region: RegionId(1), peer: PeerId(10), state: HardState { term, vote: 0, commit: 0 } }
}

#[test]
fn a_missing_segment_file_is_reported() {
    let sealed = sealed(false);
    let mut names: Vec<String> = blocks(&sealed.disk).into_iter().map(|block| block.name).collect();
    names.dedup();
    assert!(names.len() > 2);
    names.pop();
    for name in names {
        let disk = sealed.disk.after_power_loss(Survival::None, 0);
        disk.delete(&name);
        let (_, recovered) = open(&disk, &sealed.engine).expect("opens");
        assert!(recovered.damage.is_some(), "{name}");
    }
}

#[test]
fn without_a_seal_the_engine_is_the_witness_of_the_last_block() {
    let mut driver = sealed(false);
    let (region, peer) = (RegionId(1), PeerId(10));
    let last = driver.acknowledged.peers[&region].last();
    driver.append(Record::Entries {
        region,
        peer,
        first_index: last.index + 1,
        entries: vec![entry(last.term, vec![1; 10])],
    });
    assert!(driver.commit(false));
    let newest = blocks(&driver.disk).pop().expect("blocks");
    let lose = || {
        let disk = driver.disk.after_power_loss(Survival::None, 0);
        disk.corrupt(&newest.name, newest.at + 60, &[0xA5; 8]);
        disk
    };
    // Nobody knows that it was durable: the one loss that cannot be told from a torn tail.
    let (_, recovered) = open(&lose(), &driver.engine).expect("opens");
    assert_eq!(recovered.damage, None);
    let mut engine = EngineState::default();
    engine.peers.insert(region, (peer, last.index + 1));
    let (_, recovered) = open(&lose(), &engine).expect("opens");
    assert!(recovered.damage.is_some() && recovered.peers[&region].damaged);
    // A whole peer that the log does not know.
    engine.peers.insert(region, (peer, last.index));
    engine.peers.insert(RegionId(77), (PeerId(770), 8));
    let (_, recovered) = open(&lose(), &engine).expect("opens");
    let damage = recovered.damage.expect("reported");
    assert_eq!(damage.peers.len(), 4);
    let lost = &recovered.peers[&RegionId(77)];
    assert_eq!((lost.peer, lost.hard_state, lost.damaged), (PeerId(770), None, true));
}

#[test]
fn an_accepted_damage_leaves_marked_peers_and_a_log_that_works() {
    let sealed = sealed(true);
    let all = blocks(&sealed.disk);
    let mut cut_short = 0;
    for (i, block) in all[..all.len() - 1].iter().enumerate() {
        let mut disk = sealed.disk.after_power_loss(Survival::None, 0);
        disk.corrupt(&block.name, block.at + 60, &[0xA5; 8]);
        // Power may be lost while the damage is accepted: it is found again.
        disk.crash_after(1 + i as u64 % 7);
        let (log, recovered) = open(&disk, &sealed.engine).expect("opens");
        let damage = recovered.damage.expect("reported");
        if block_on(log.accept_damage(&damage)).is_err() {
            cut_short += 1;
        }
        drop(log);
        disk = disk.after_power_loss(Survival::Random, i as u64);
        let (log, recovered) = open(&disk, &sealed.engine).expect("opens");
        if let Some(damage) = &recovered.damage {
            block_on(log.accept_damage(damage)).expect("accepted");
            log.commit_now().expect("works");
        }
        drop(log);
        let disk = disk.after_power_loss(Survival::None, 0);
        let (log, recovered) = open(&disk, &sealed.engine).expect("opens");
        assert_eq!(recovered.damage, None);
        assert!(recovered.peers.values().all(|peer| peer.damaged));
        assert_eq!(recovered.peers.len(), 3);
        live_on(&log, &recovered.peers[&RegionId(1)]);
        let disk = disk.after_power_loss(Survival::None, 0);
        let (_, recovered) = open(&disk, &sealed.engine).expect("opens");
        assert_eq!(recovered.damage, None);
        let terms: Vec<_> = recovered.peers.values().map(|peer| (peer.peer, peer.damaged)).collect();
        assert_eq!(terms, [(PeerId(11), false), (PeerId(20), false), (PeerId(30), true)]);
    }
    assert!(cut_short > 3);
}

/// The damaged peer of region 1 is replaced by a new one, an operator accepts region 2.
fn live_on(log: &shard::log::RaftLog<FaultyDisk>, old: &RecoveredPeer) {
    let region = RegionId(1);
    let end = LogEffect::End { region, peer: old.peer };
    let start = LogEffect::Start {
        region,
        peer: PeerId(11),
        hard_state: HardState { term: 90, vote: 0, commit: 50 },
        truncated: Position { index: 50, term: 90 },
        entries: vec![entry(90, vec![1; 100])],
    };
    let replaced = lifecycle(1000, LifecycleKind::Applying, vec![end, start]);
    log.append(Record::Lifecycle(replaced)).expect("taken");
    log.append(Record::Damaged { region: RegionId(2), peer: PeerId(20), damaged: false }).expect("taken");
    log.commit_now().expect("durable");
}

#[test]
fn a_stale_copy_of_a_block_elsewhere_is_never_taken() {
    let sealed = sealed(false);
    let all = blocks(&sealed.disk);
    for (i, block) in all.iter().enumerate().take(all.len() - 1) {
        // A misdirected write: the next block lands where another one belongs.
        let disk = sealed.disk.after_power_loss(Survival::None, 0);
        let from = &all[i + 1];
        let bytes = disk.content(&from.name)[from.at..from.at + 4096].to_vec();
        disk.corrupt(&block.name, block.at, &bytes);
        let (_, recovered) = open(&disk, &sealed.engine).expect("opens");
        assert!(recovered.damage.is_some(), "block {}", block.sequence);
    }
}
