//! The log on the executor's files: the simulator's disk, with power lost at random times, and real ones.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use base::{PeerId, Prng, RegionId, ShardId};
use bytes::Bytes;
use executor::sim::{Sim, SimConfig};
use executor::{IoChoice, LogSync};
use shard::log::{EngineState, Files, HardState, LogConfig, LogEntry, RaftLog, Record, Recovered};

const SHARD: ShardId = ShardId(0);

fn config(sync: Option<LogSync>) -> LogConfig {
    LogConfig {
        segment_bytes: 128 << 10,
        block_bytes: 8 << 10,
        replay_cap_bytes: 512 << 10,
        sync,
        ..LogConfig::default()
    }
}

fn put(log: &RaftLog, region: u64, first_index: u64, data: &[Bytes]) {
    let entries = data.iter().map(|data| LogEntry { term: 1, data: data.clone() }).collect();
    let (region, peer) = (RegionId(region), PeerId(region));
    let state = HardState { term: 1, vote: region.0, commit: 0 };
    log.append(Record::Entries { region, peer, first_index, entries }).expect("taken");
    log.append(Record::HardState { region, peer, state }).expect("taken");
}

/// What was acknowledged, per region and index, what was appended in all, and what the engine flushed.
#[derive(Default)]
struct Known {
    acknowledged: BTreeMap<u64, BTreeMap<u64, Bytes>>,
    appended: BTreeMap<u64, BTreeMap<u64, Bytes>>,
    engine: EngineState,
    segments_freed: u64,
}

impl Known {
    /// Everything acknowledged is there; the rest is what was appended.
    fn check(&mut self, recovered: &Recovered) {
        assert_eq!(recovered.damage, None);
        for (region, acknowledged) in &self.acknowledged {
            let peer = &recovered.peers[&RegionId(*region)];
            assert_eq!(peer.hard_state.expect("written").vote, *region);
            let appended = &self.appended[region];
            let found: BTreeMap<u64, Bytes> =
                (peer.first_index..).zip(&peer.entries).map(|(index, entry)| (index, entry.data.clone())).collect();
            for (index, data) in acknowledged.range(peer.first_index..) {
                assert_eq!(found.get(index), Some(data), "{region} {index}");
            }
            for (index, data) in &found {
                assert_eq!(appended.get(index), Some(data), "{region} {index}");
            }
        }
        self.acknowledged = BTreeMap::new();
        for (region, peer) in &recovered.peers {
            let kept = self.appended.entry(region.0).or_default();
            kept.split_off(&(peer.first_index + peer.entries.len() as u64));
            self.acknowledged.insert(region.0, kept.clone());
        }
        self.appended = self.acknowledged.clone();
    }
}

async fn work(dir: PathBuf, known: Rc<RefCell<Known>>, sync: Option<LogSync>, mut prng: Prng, rounds: u64) {
    let engine = known.borrow().engine.clone();
    let (log, recovered) = RaftLog::open(&dir, SHARD, config(sync), &engine).await.expect("opens");
    known.borrow_mut().check(&recovered);
    let applied = engine.peers.iter().map(|(&region, &(peer, index))| (region, peer, index));
    log.flushed(applied, 0);
    for _ in 0..rounds {
        for _ in 0..prng.range(1, 4) {
            let region = prng.range(1, 6);
            let data: Vec<Bytes> = (0..prng.range(1, 4))
                .map(|_| {
                    let mut data = vec![0; prng.below(9000) as usize];
                    prng.fill(&mut data);
                    Bytes::from(data)
                })
                .collect();
            let known = &mut *known.borrow_mut();
            let appended = known.appended.entry(region).or_default();
            let first = appended.last_key_value().map_or(1, |(index, _)| index + 1);
            appended.extend((first..).zip(data.iter().cloned()));
            put(&log, region, first, &data);
        }
        log.commit().await.expect("durable");
        {
            let known = &mut *known.borrow_mut();
            known.acknowledged = known.appended.clone();
        }
        if prng.one_in(8) {
            let known = &mut *known.borrow_mut();
            for (region, entries) in &known.acknowledged {
                let last = entries.last_key_value().map_or(0, |(&index, _)| index);
                known.engine.peers.insert(RegionId(*region), (PeerId(*region), last));
            }
            let applied = known.engine.peers.iter().map(|(&region, &(peer, index))| (region, peer, index));
            log.flushed(applied, 0);
        }
        if log.wants_maintenance() {
            let maintained = log.maintain().await.expect("maintained");
            known.borrow_mut().segments_freed += maintained.segments_freed;
        }
        if prng.one_in(10)
            && let Some(due) = log.next_seal()
        {
            executor::sleep_until(due).await;
            log.seal().await.expect("sealed");
            assert_eq!(log.next_seal(), None);
        }
    }
}

#[test]
fn power_lost_at_random_times_in_the_simulator_loses_nothing_acknowledged() {
    let mut freed = 0;
    for seed in 0..12 {
        println!("seed {seed}");
        let sim = Sim::new(seed, SimConfig::default());
        let node = sim.add_node("a", IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)));
        let known = Rc::new(RefCell::new(Known::default()));
        let mut prng = Prng::new(seed);
        let sync = [Some(LogSync::Fdatasync), Some(LogSync::Dsync), None][seed as usize % 3];
        for _ in 0..12 {
            sim.spawn_on(node, work("/data/raft".into(), known.clone(), sync, prng.fork(), u64::MAX));
            sim.run_for(Duration::from_micros(prng.range(1, 120_000)));
            if prng.one_in(3) {
                sim.kill_process(node);
            } else {
                sim.kill(node);
            }
        }
        freed += known.borrow().segments_freed;
        let last = work("/data/raft".into(), known.clone(), sync, prng, 3);
        sim.block_on(node, last, Duration::from_secs(60)).expect("ends");
    }
    assert!(freed > 100, "only {freed} segments were freed");
}

/// A folder on a filesystem with `O_DIRECT`, which temporary folders may lack.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in(Path::new(env!("CARGO_TARGET_TMPDIR"))).expect("a folder")
}

#[test]
fn real_files_are_written_and_read_again_in_every_way() {
    for io in [IoChoice::Auto, IoChoice::Epoll] {
        let folder = folder();
        let dir = folder.path().to_owned();
        executor::run_one(io, move || async move {
            for (number, sync) in [Some(LogSync::Fdatasync), Some(LogSync::Dsync), None].into_iter().enumerate() {
                let dir = dir.join(number.to_string());
                let known = Rc::new(RefCell::new(Known::default()));
                for round in 0..3 {
                    work(dir.clone(), known.clone(), sync, Prng::new(round), 10).await;
                }
                let probe = Files::probe(&dir).await.expect("probed");
                assert!(probe.fdatasync > Duration::ZERO && probe.dsync > Duration::ZERO);
                assert!(!dir.join("probe.tmp").exists());
            }
        });
    }
}

#[test]
fn a_full_disk_in_the_simulator_is_told_apart_from_a_failing_one() {
    let sim = Sim::new(1, SimConfig::default());
    let node = sim.add_node("a", IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)));
    let run = {
        let disk = sim.disk(node);
        async move {
            let sync = Some(LogSync::Fdatasync);
            let dir = Path::new("/data/raft");
            let (log, _) = RaftLog::open(dir, SHARD, config(sync), &EngineState::default()).await.expect("opens");
            log.maintain().await.expect("spares");
            disk.set_full(true);
            let mut next = 1;
            let error = loop {
                put(&log, 1, next, &[Bytes::from(vec![1; 8000])]);
                next += 1;
                if let Err(error) = log.commit().await {
                    break error;
                }
            };
            assert!(matches!(error, shard::log::LogError::DiskFull(_)), "{error}");
            disk.set_full(false);
            log.commit().await.expect("there is room again");
            disk.fail_syncs(true);
            put(&log, 1, next, &[Bytes::from(vec![1; 8000])]);
            let error = log.commit().await.expect_err("the sync fails");
            assert!(matches!(error, shard::log::LogError::Failed(_)), "{error}");
            disk.fail_syncs(false);
            log.commit().await.expect_err("for ever");
        }
    };
    sim.block_on(node, run, Duration::from_secs(60)).expect("ends");
}
