use super::*;
use crate::sim::{SimDisk, SimLogFile, fs};
use crate::{AlignedBuf, LogSync};
use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::Path;

const LOG: &str = "/data/log";
const PAGE: usize = 4096;

fn filled(byte: u8, len: usize) -> AlignedBuf {
    let mut buf = AlignedBuf::zeroed(len);
    buf.as_mut_slice().fill(byte);
    buf
}

async fn create(sync: LogSync) -> SimLogFile {
    fs::create_dir_all(Path::new("/data")).await.expect("there is room");
    SimLogFile::create(Path::new(LOG), 16 * PAGE as u64, sync).await.expect("there is room")
}

/// Runs `work` on a new node until it stands still, fails the power, and shows the disk.
fn after_power_loss<F: Future<Output = ()> + 'static>(seed: u64, run: Duration, work: impl FnOnce() -> F) -> SimDisk {
    let (sim, nodes) = world(seed, SimConfig::default(), 1);
    sim.spawn_on(nodes[0], work());
    sim.run_for(run);
    sim.kill(nodes[0]);
    sim.disk(nodes[0])
}

fn log_after(seed: u64, sync: LogSync, synced: bool) -> Vec<u8> {
    let disk = after_power_loss(seed, SECOND, || async move {
        let file = create(sync).await;
        file.write_at(0, filled(1, PAGE * 2)).await.expect("written");
        if synced {
            file.sync().await.expect("synced");
        }
    });
    disk.bytes(LOG).expect("created files are durable")[..PAGE * 2].to_vec()
}

#[test]
fn synced_writes_survive_every_power_loss() {
    for seed in 0..50 {
        assert!(log_after(seed, LogSync::Fdatasync, true).iter().all(|byte| *byte == 1));
        assert!(log_after(seed, LogSync::Dsync, false).iter().all(|byte| *byte == 1));
    }
}

#[test]
fn unsynced_writes_are_lost_kept_or_torn() {
    let (mut lost, mut kept, mut by_sector, mut by_page) = (0, 0, 0, 0);
    for seed in 0..300 {
        let bytes = log_after(seed, LogSync::Fdatasync, false);
        let sectors: Vec<u8> = bytes.chunks(512).map(|sector| sector[0]).collect();
        assert!(bytes.chunks(512).zip(&sectors).all(|(sector, first)| sector.iter().all(|byte| byte == first)));
        let pages: Vec<BTreeSet<u8>> = sectors.chunks(8).map(|page| page.iter().copied().collect()).collect();
        match sectors.iter().filter(|sector| **sector == 1).count() {
            0 => lost += 1,
            16 => kept += 1,
            _ if pages.iter().all(|page| page.len() == 1) => by_page += 1,
            _ => by_sector += 1,
        }
    }
    assert!(lost > 50 && kept > 50 && by_sector > 10 && by_page > 10, "{lost} {kept} {by_sector} {by_page}");
}

#[test]
fn each_unsynced_write_has_its_own_fate() {
    let mut fates = BTreeSet::new();
    for seed in 0..200 {
        let disk = after_power_loss(seed, SECOND, || async {
            let file = create(LogSync::Fdatasync).await;
            for page in 0..3 {
                file.write_at(page * PAGE as u64, filled(1, PAGE)).await.expect("written");
            }
        });
        let bytes = disk.bytes(LOG).expect("it is there");
        let fate: Vec<bool> = (0..3).map(|page| bytes[page * PAGE..][..PAGE].iter().all(|byte| *byte == 1)).collect();
        fates.insert(fate);
    }
    assert_eq!(fates.len(), 8, "later writes survive without earlier ones");
}

#[test]
fn a_sync_covers_what_had_completed_when_it_was_issued() {
    let mut without = 0;
    for seed in 0..60 {
        let disk = after_power_loss(seed, SECOND, || async {
            let file = create(LogSync::Fdatasync).await;
            file.write_at(0, filled(1, PAGE)).await.expect("written");
            let late = file.write_at(PAGE as u64, filled(2, PAGE)); // begun, not complete
            file.sync().await.expect("synced");
            late.await.expect("written");
        });
        let bytes = disk.bytes(LOG).expect("it is there");
        assert!(bytes[..PAGE].iter().all(|byte| *byte == 1));
        without += u32::from(bytes[PAGE..2 * PAGE].iter().any(|byte| *byte != 2));
    }
    assert!(without > 10, "the late write is not covered");
}

#[test]
fn a_durable_write_is_a_write_and_a_sync() {
    for seed in 0..30 {
        let disk = after_power_loss(seed, SECOND, || async {
            let file = create(LogSync::Fdatasync).await;
            file.write_durable(0, filled(1, PAGE)).await.expect("written and synced");
        });
        assert!(disk.bytes(LOG).expect("it is there")[..PAGE].iter().all(|byte| *byte == 1));
    }
}

#[test]
fn writes_complete_out_of_order_and_run_to_their_end_when_dropped() {
    let mut orders = BTreeSet::new();
    for seed in 0..30 {
        let (sim, nodes) = world(seed, SimConfig::default(), 1);
        let bytes = sim.block_on(
            nodes[0],
            async {
                let file = create(LogSync::Fdatasync).await;
                drop(file.write_at(0, filled(1, PAGE)));
                drop(file.write_at(0, filled(2, PAGE)));
                sleep(millis(50)).await;
                file.read_at(0, PAGE).await.expect("inside").as_slice()[0]
            },
            SECOND,
        );
        orders.insert(bytes.expect("it ends"));
    }
    assert_eq!(orders, BTreeSet::from([1, 2]));
}

#[test]
fn a_killed_process_keeps_what_it_has_written() {
    let mut kept = 0;
    for seed in 0..20 {
        let (sim, nodes) = world(seed, SimConfig::default(), 1);
        sim.spawn_on(nodes[0], async {
            let file = create(LogSync::Fdatasync).await;
            drop(file.write_at(0, filled(1, PAGE)));
            fs::write_atomic(Path::new("/data/id"), b"7").await.expect("written");
        });
        let disk = sim.disk(nodes[0]);
        assert!(sim.run_until(SECOND, || disk.counters().writes_total == 2));
        sim.kill_process(nodes[0]);
        assert!(disk.bytes(LOG).expect("it is there")[..PAGE].iter().all(|byte| *byte == 1));
        let id = disk.bytes("/data/id");
        kept += u32::from(id.is_some());
        assert!(id.is_none_or(|bytes| bytes == b"7"), "all or nothing");
    }
    assert!((3..20).contains(&kept), "{kept} of 20");
}

#[test]
fn a_failed_sync_makes_nothing_durable_and_neither_does_a_later_one() {
    let mut lost = 0;
    for seed in 0..40 {
        let (sim, nodes) = world(seed, SimConfig::default(), 1);
        let disk = sim.disk(nodes[0]);
        let failing = disk.clone();
        sim.spawn_on(nodes[0], async move {
            let file = create(LogSync::Fdatasync).await;
            file.write_at(0, filled(1, PAGE)).await.expect("written");
            failing.fail_syncs(true);
            assert!(file.sync().await.is_err());
            assert!(fs::write_atomic(Path::new("/data/id"), b"7").await.is_err());
            failing.fail_syncs(false);
            file.sync().await.expect("the kernel has forgotten the error");
            file.write_at(PAGE as u64, filled(2, PAGE)).await.expect("written");
            file.sync().await.expect("synced");
        });
        sim.run_for(SECOND);
        assert_eq!((disk.counters().sync_failures_total, disk.unsynced_writes(LOG)), (2, 1));
        sim.kill(nodes[0]);
        let bytes = disk.bytes(LOG).expect("it is there");
        assert!(bytes[PAGE..2 * PAGE].iter().all(|byte| *byte == 2));
        assert_eq!(disk.bytes("/data/id"), None);
        lost += u32::from(bytes[..PAGE].iter().any(|byte| *byte != 1));
    }
    assert!(lost > 10);
}

#[test]
fn a_durable_write_over_an_orphan_is_never_undone() {
    for seed in 0..40 {
        let (sim, nodes) = world(seed, SimConfig::default(), 1);
        let disk = sim.disk(nodes[0]);
        let failing = disk.clone();
        sim.spawn_on(nodes[0], async move {
            let file = create(LogSync::Fdatasync).await;
            file.write_at(0, filled(1, 2 * PAGE)).await.expect("written");
            failing.fail_syncs(true);
            assert!(file.sync().await.is_err());
            failing.fail_syncs(false);
            file.write_at(0, filled(2, PAGE)).await.expect("written");
            file.sync().await.expect("synced");
        });
        sim.run_for(SECOND);
        sim.kill(nodes[0]);
        assert!(disk.bytes(LOG).expect("it is there")[..PAGE].iter().all(|byte| *byte == 2));
    }
}

#[test]
fn a_full_disk_refuses_new_files_and_takes_writes_to_old_ones() {
    let (sim, nodes) = world(1, SimConfig::default(), 1);
    let disk = sim.disk(nodes[0]);
    let filling = disk.clone();
    let done = sim.block_on(
        nodes[0],
        async move {
            let file = create(LogSync::Dsync).await;
            filling.set_full(true);
            let full = Some(ErrorKind::StorageFull);
            let path = Path::new("/data/other");
            assert_eq!(SimLogFile::create(path, 4096, LogSync::Dsync).await.err().map(|e| e.kind()), full);
            assert_eq!(fs::write_atomic(path, b"x").await.err().map(|e| e.kind()), full);
            assert_eq!(fs::create_dir_all(path).await.err().map(|e| e.kind()), full);
            assert_eq!(fs::disk_space(path).await.expect("known").1, 0);
            file.write_at(0, filled(1, PAGE)).await.expect("it was allocated before");
            filling.set_full(false);
            fs::write_atomic(path, b"x").await.expect("there is room again");
        },
        SECOND,
    );
    assert_eq!(done, Some(()));
}

#[test]
fn capacity_is_counted_and_given_back() {
    let config = SimConfig { disk_capacity_bytes: 100_000, ..SimConfig::default() };
    let (sim, nodes) = world(1, config, 1);
    let done = sim.block_on(
        nodes[0],
        async {
            let file = create(LogSync::Dsync).await;
            assert_eq!(fs::disk_space(Path::new("/")).await.expect("known"), (100_000, 100_000 - 16 * 4096));
            let other = Path::new("/data/other");
            let refused = SimLogFile::create(other, 16 * 4096, LogSync::Dsync).await;
            assert_eq!(refused.err().map(|error| error.kind()), Some(ErrorKind::StorageFull));
            drop(file);
            fs::remove_file(Path::new(LOG)).await.expect("there");
            SimLogFile::create(other, 16 * 4096, LogSync::Dsync).await.expect("fits now");
        },
        SECOND,
    );
    assert_eq!(done, Some(()));
}

#[test]
fn corrupted_bytes_stay_corrupted() {
    let (sim, nodes) = world(2, SimConfig::default(), 1);
    let byte = sim.block_on(
        nodes[0],
        async {
            let file = create(LogSync::Dsync).await;
            file.write_at(0, filled(1, PAGE)).await.expect("written");
        },
        SECOND,
    );
    assert_eq!(byte, Some(()));
    let disk = sim.disk(nodes[0]);
    assert!(disk.corrupt(LOG, 4094, &[9, 9, 9]));
    assert!(!disk.corrupt("/data/none", 0, &[9]));
    sim.kill(nodes[0]);
    let bytes = disk.bytes(LOG).expect("it is there");
    assert_eq!(bytes[4092..4100], [1, 1, 9, 9, 9, 0, 0, 0]);
    assert_eq!(disk.durable_bytes(LOG).expect("it is durable"), bytes);
}

#[test]
fn names_become_durable_in_order_and_atomic_writes_are_old_or_new() {
    let mut outcomes = BTreeSet::new();
    for seed in 0..200 {
        let (sim, nodes) = world(seed, SimConfig::default(), 1);
        let disk = sim.disk(nodes[0]);
        sim.spawn_on(nodes[0], async {
            fs::create_dir_all(Path::new("/data/a")).await.expect("room");
            fs::write_atomic(Path::new("/data/a/id"), b"old").await.expect("room");
            fs::create_dir_all(Path::new("/data/b")).await.expect("room");
            fs::remove_file(Path::new("/data/a/id")).await.expect("there");
            fs::create_dir_all(Path::new("/data/c")).await.expect("room");
            fs::write_atomic(Path::new("/data/a/new"), b"new").await.expect("room");
        });
        let stop = Duration::from_micros(200 + seed * 15);
        sim.run_for(stop);
        sim.kill(nodes[0]);
        let files: Vec<String> = disk.files().iter().map(|(path, _)| path.display().to_string()).collect();
        if let Some(new) = disk.bytes("/data/a/new") {
            assert_eq!(new, b"new");
        }
        if let Some(old) = disk.bytes("/data/a/id") {
            assert_eq!(old, b"old");
        }
        outcomes.insert(files);
    }
    let has = |names: &[&str]| outcomes.contains(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
    assert!(has(&[]) && has(&["/data/a/id"]) && has(&["/data/a/new"]), "{outcomes:?}");
    assert!(has(&["/data/a/id.tmp"]), "a temporary file may be left: {outcomes:?}");
}

#[test]
fn a_name_that_shows_is_durable_only_when_its_operation_has_returned() {
    let mut back = 0;
    for seed in 0..60 {
        let (sim, nodes) = world(seed, SimConfig::default(), 1);
        let disk = sim.disk(nodes[0]);
        let (returned, bumped) = counter();
        sim.spawn_on(nodes[0], async move {
            fs::write_atomic(Path::new("/id"), b"old").await.expect("room");
            fs::remove_file(Path::new("/id")).await.expect("there");
            bump(&bumped);
        });
        assert!(sim.run_until(SECOND, || disk.durable_bytes("/id").is_some()));
        assert!(sim.run_until(SECOND, || disk.bytes("/id").is_none()));
        if seed % 2 == 0 {
            assert!(sim.run_until(SECOND, || returned.get() == 1));
        }
        sim.kill(nodes[0]);
        assert!(seed % 2 == 1 || disk.bytes("/id").is_none());
        back += u32::from(disk.bytes("/id").is_some());
    }
    assert!((5..30).contains(&back), "{back} of 30");
}

#[test]
fn a_log_file_that_was_being_created_may_be_missing_short_or_whole() {
    let mut lens = BTreeSet::new();
    for seed in 0..100 {
        let disk = after_power_loss(seed, Duration::from_micros(400 + 20 * seed), || async {
            fs::write_atomic(Path::new("/first"), b"").await.expect("room");
            SimLogFile::create(Path::new("/log"), 8 * 4096, LogSync::Fdatasync).await.expect("room");
        });
        lens.insert(disk.bytes("/log").map(|bytes| bytes.len()));
    }
    assert!(lens.contains(&None) && lens.contains(&Some(8 * 4096)) && lens.len() > 4, "{lens:?}");
}

#[test]
fn folders_list_lock_and_go() {
    let (sim, nodes) = world(3, SimConfig::default(), 1);
    let done = sim.block_on(
        nodes[0],
        async {
            let root = Path::new("/data");
            for name in ["/data/b/x", "/data/a", "/data/b-c"] {
                fs::create_dir_all(Path::new(name)).await.expect("room");
            }
            fs::write_atomic(Path::new("/data/b/f"), b"1").await.expect("room");
            assert_eq!(fs::read_dir(root).await.expect("there"), ["a", "b", "b-c"]);
            assert_eq!(fs::read_dir(Path::new("/data/b")).await.expect("there"), ["f", "x"]);
            assert!(fs::exists(Path::new("/data/./b/../a")).await.expect("known"));
            let lock = fs::lock_dir(Path::new("/data/a")).await.expect("free");
            let again = fs::lock_dir(Path::new("/data/a")).await;
            assert_eq!(again.err().map(|error| error.kind()), Some(ErrorKind::WouldBlock));
            drop(lock);
            drop(fs::lock_dir(Path::new("/data/a")).await.expect("free again"));
            fs::remove_dir_all(Path::new("/data/b")).await.expect("there");
            assert_eq!(fs::read_dir(root).await.expect("there"), ["a", "b-c"]);
            let gone = fs::read(Path::new("/data/b/f")).await;
            assert_eq!(gone.err().map(|error| error.kind()), Some(ErrorKind::NotFound));
            let twice = SimLogFile::create(Path::new("/data/l"), 4096, LogSync::Dsync).await.expect("room");
            let again = SimLogFile::create(Path::new("/data/l"), 4096, LogSync::Dsync).await;
            assert_eq!(again.err().map(|error| error.kind()), Some(ErrorKind::AlreadyExists));
            for (offset, len) in [(1, 4096), (4096, 4096), (0, 8192), (u64::MAX, 1)] {
                let refused = twice.write_at(offset, AlignedBuf::zeroed(len)).await;
                assert_eq!(refused.err().map(|error| error.kind()), Some(ErrorKind::InvalidInput));
            }
        },
        SECOND,
    );
    assert_eq!(done, Some(()));
}

#[test]
fn locks_end_with_their_process() {
    let (sim, nodes) = world(4, SimConfig::default(), 1);
    for kill in [false, true, false] {
        sim.spawn_on(nodes[0], async {
            let _lock = fs::lock_dir(Path::new("/")).await.expect("free");
            std::future::pending::<()>().await;
        });
        sim.run_for(SECOND);
        if kill { sim.kill(nodes[0]) } else { sim.kill_process(nodes[0]) }
    }
}

#[test]
fn a_slow_disk_is_slow() {
    let (sim, nodes) = world(5, SimConfig::default(), 1);
    sim.disk(nodes[0]).slow(SECOND);
    let took = sim.block_on(
        nodes[0],
        async {
            let begin = crate::sim::now();
            fs::create_dir_all(Path::new("/a")).await.expect("room");
            elapsed(begin)
        },
        Duration::from_secs(5),
    );
    assert!(took.expect("it ends") >= SECOND);
}
