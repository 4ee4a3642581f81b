//! Log files and the small file calls.

use std::io::ErrorKind;

use executor::{ALIGNMENT, AlignedBuf, IoChoice, LogFile, LogSync, fs, metrics};

use crate::support::{available, on_both, with_both};

on_both! {
    what_was_written_is_read_after_a_reopen,
    a_new_log_file_is_all_zeros_and_there_once,
    writes_outside_of_the_file_or_between_units_are_refused,
    an_operation_that_nobody_awaits_is_done,
    many_operations_at_once_are_all_done,
    durable_operations_are_counted,
    an_atomic_write_replaces_the_whole_file,
    folders_are_made_listed_and_removed,
    a_folder_is_locked_once,
    the_disk_has_room,
}

with_both! { what_was_begun_is_done_though_its_core_ends }

/// A buffer of `units` units, each filled with its own number from `first` on.
fn filled(first: u8, units: usize) -> AlignedBuf {
    let mut bytes = AlignedBuf::zeroed(units * ALIGNMENT);
    for (number, unit) in bytes.as_mut_slice().chunks_mut(ALIGNMENT).enumerate() {
        unit.fill(first + number as u8);
    }
    bytes
}

async fn what_was_written_is_read_after_a_reopen() {
    let folder = tempfile::tempdir().expect("folder");
    for sync in [LogSync::Fdatasync, LogSync::Dsync] {
        let path = folder.path().join(format!("{sync:?}"));
        let file = LogFile::create(&path, 16 * 4096, sync).await.expect("create");
        assert_eq!(file.len_bytes(), 16 * 4096);
        let bytes = file.write_at(4096, filled(1, 3)).await.expect("write");
        assert_eq!(bytes.as_slice()[0], 1, "the buffer comes back as it was");
        file.sync().await.expect("sync");
        file.write_durable(4 * 4096, filled(4, 1)).await.expect("write");
        drop(file);
        let file = LogFile::open(&path, sync).await.expect("open");
        assert_eq!(file.len_bytes(), 16 * 4096);
        let bytes = file.read_at(0, 6 * 4096).await.expect("read");
        let firsts: Vec<u8> = bytes.as_slice().chunks(4096).map(|unit| unit[4095]).collect();
        assert_eq!(firsts, [0, 1, 2, 3, 4, 0]);
    }
}

async fn a_new_log_file_is_all_zeros_and_there_once() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("log");
    let len = (3 << 20) + 4096;
    LogFile::create(&path, len, LogSync::Fdatasync).await.expect("create");
    let bytes = fs::read(&path).await.expect("read");
    assert_eq!(bytes.len() as u64, len);
    assert!(bytes.iter().all(|byte| *byte == 0));
    let again = LogFile::create(&path, len, LogSync::Fdatasync).await.expect_err("there already");
    assert_eq!(again.kind(), ErrorKind::AlreadyExists);
    let missing = LogFile::open(folder.path().join("none"), LogSync::Fdatasync).await.expect_err("not there");
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    for len in [0, 100, 4097] {
        let odd = LogFile::create(folder.path().join("odd"), len, LogSync::Fdatasync).await.expect_err("odd");
        assert_eq!(odd.kind(), ErrorKind::InvalidInput);
    }
}

async fn writes_outside_of_the_file_or_between_units_are_refused() {
    let folder = tempfile::tempdir().expect("folder");
    let file = LogFile::create(folder.path().join("log"), 2 * 4096, LogSync::Fdatasync).await.expect("create");
    for (offset, units) in [(0, 3), (4096, 2), (8192, 1), (512, 1), (u64::MAX - 4095, 1)] {
        let refused = file.write_at(offset, filled(0, units)).await.expect_err("out of range");
        assert_eq!(refused.kind(), ErrorKind::InvalidInput);
        let refused = file.read_at(offset, units * 4096).await.expect_err("out of range");
        assert_eq!(refused.kind(), ErrorKind::InvalidInput);
    }
}

async fn an_operation_that_nobody_awaits_is_done() {
    let folder = tempfile::tempdir().expect("folder");
    let file = LogFile::create(folder.path().join("log"), 4096, LogSync::Fdatasync).await.expect("create");
    drop(file.write_at(0, filled(9, 1)));
    // The core's log files share one thread, so this read comes after the write.
    assert_eq!(file.read_at(0, 4096).await.expect("read").as_slice()[0], 9);
    assert_eq!(metrics().log_queued.get(), 0);
}

async fn many_operations_at_once_are_all_done() {
    const UNITS: u64 = 600;
    let folder = tempfile::tempdir().expect("folder");
    let file = LogFile::create(folder.path().join("log"), UNITS * 4096, LogSync::Fdatasync).await.expect("create");
    let writes: Vec<_> = (0..UNITS).map(|at| file.write_at(at * 4096, filled((at % 200) as u8, 1))).collect();
    for write in writes {
        write.await.expect("write");
    }
    let bytes = file.read_at(0, UNITS as usize * 4096).await.expect("read");
    for (at, unit) in bytes.as_slice().chunks(4096).enumerate() {
        assert_eq!(unit[7], (at % 200) as u8);
    }
}

async fn durable_operations_are_counted() {
    let folder = tempfile::tempdir().expect("folder");
    let file = LogFile::create(folder.path().join("a"), 8192, LogSync::Fdatasync).await.expect("create");
    file.write_at(0, filled(0, 2)).await.expect("write");
    assert_eq!(metrics().log_durable_total.get(), 0);
    file.sync().await.expect("sync");
    assert_eq!(metrics().log_durable_total.get(), 1);
    let file = LogFile::create(folder.path().join("b"), 8192, LogSync::Dsync).await.expect("create");
    file.write_at(0, filled(0, 1)).await.expect("write");
    file.sync().await.expect("nothing to do");
    assert_eq!(metrics().log_durable_total.get(), 2);
    file.write_durable(0, filled(0, 1)).await.expect("write");
    assert_eq!(metrics().log_durable_total.get(), 3);
    assert_eq!(metrics().log_writes_total.get(), 3);
    assert_eq!(metrics().log_bytes_total.get(), 4 * 4096);
}

async fn an_atomic_write_replaces_the_whole_file() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("identity");
    fs::write_atomic(&path, b"a long first content").await.expect("write");
    fs::write_atomic(&path, b"second").await.expect("write");
    assert_eq!(fs::read(&path).await.expect("read"), b"second");
    assert_eq!(fs::read_dir(folder.path()).await.expect("list"), ["identity"]);
}

async fn folders_are_made_listed_and_removed() {
    let folder = tempfile::tempdir().expect("folder");
    let deep = folder.path().join("a/b/c");
    fs::create_dir_all(&deep).await.expect("create");
    fs::create_dir_all(&deep).await.expect("there already");
    for name in ["2", "10", "1"] {
        fs::write_atomic(deep.join(name), b"").await.expect("write");
    }
    assert_eq!(fs::read_dir(&deep).await.expect("list"), ["1", "10", "2"]);
    fs::remove_file(deep.join("10")).await.expect("remove");
    assert!(!fs::exists(deep.join("10")).await.expect("look"));
    assert!(fs::exists(&deep).await.expect("look"));
    fs::remove_dir_all(folder.path().join("a")).await.expect("remove");
    assert!(!fs::exists(&deep).await.expect("look"));
    assert_eq!(fs::read(&deep).await.expect_err("gone").kind(), ErrorKind::NotFound);
    assert_eq!(fs::remove_file(&deep).await.expect_err("gone").kind(), ErrorKind::NotFound);
}

async fn a_folder_is_locked_once() {
    let folder = tempfile::tempdir().expect("folder");
    let lock = fs::lock_dir(folder.path()).await.expect("lock");
    assert_eq!(fs::lock_dir(folder.path()).await.expect_err("locked").kind(), ErrorKind::WouldBlock);
    drop(lock);
    fs::lock_dir(folder.path()).await.expect("free again");
}

async fn the_disk_has_room() {
    let (capacity, available) = fs::disk_space(std::env::temp_dir()).await.expect("space");
    assert!(capacity > 0 && available <= capacity);
}

/// More operations than the log thread's queue holds, and nobody waits for any of them.
fn what_was_begun_is_done_though_its_core_ends(io: IoChoice) {
    const UNITS: u64 = 600;
    if !available(io) {
        return;
    }
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("log");
    let file = path.clone();
    executor::run_one(io, move || async move {
        let file = LogFile::create(&file, UNITS * 4096, LogSync::Fdatasync).await.expect("create");
        for at in 0..UNITS {
            drop(file.write_at(at * 4096, filled((at % 200) as u8 + 1, 1)));
        }
    });
    let bytes = std::fs::read(&path).expect("read");
    let missing = bytes.chunks(ALIGNMENT).zip(0..UNITS).filter(|(unit, at)| unit[9] != (at % 200) as u8 + 1).count();
    assert_eq!(missing, 0, "of {UNITS} writes");
}
