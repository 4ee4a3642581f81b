//! Answers and errors as lines of a script, all fields that say something.

use mvcc::txn::{Lock, TimeStamp, WriteRecord};
use proto::kvrpcpb as kv;

/// `50ms` for timestamps with a time.
pub(crate) fn ts(ts: u64) -> String {
    match (ts, TimeStamp(ts).millis()) {
        (u64::MAX, _) => "max".into(),
        (ts, 0) => ts.to_string(),
        (ts, millis) if ts == TimeStamp::of_millis(millis).0 => format!("{millis}ms"),
        (ts, millis) => format!("{millis}ms+{}", ts - TimeStamp::of_millis(millis).0),
    }
}

pub(crate) fn text(bytes: &[u8]) -> String {
    match bytes {
        [first, .., last] if bytes.len() > 16 && first == last => format!("{}*{}", *first as char, bytes.len()),
        [] => "\"\"".into(),
        _ => bytes.escape_ascii().to_string(),
    }
}

/// ` name=value` unless it is nothing.
fn part(name: &str, value: u64) -> String {
    if value == 0 { String::new() } else { format!(" {name}={}", ts(value)) }
}

fn texts(name: &str, values: &[bytes::Bytes]) -> String {
    match values {
        [] => String::new(),
        some => format!(" {name}={}", some.iter().map(|one| text(one)).collect::<Vec<_>>().join(",")),
    }
}

fn flag(name: &str, on: bool) -> String {
    if on { format!(" {name}") } else { String::new() }
}

pub(crate) fn lock_info(info: &kv::LockInfo) -> String {
    format!(
        "{} {} primary={} start_ts={} ttl={}{}{}{}{}{}",
        text(&info.key),
        info.lock_type().as_str_name(),
        text(&info.primary_lock),
        ts(info.lock_version),
        info.lock_ttl,
        part("txn_size", info.txn_size),
        part("for_update_ts", info.lock_for_update_ts),
        part("min_commit_ts", info.min_commit_ts),
        flag("async", info.use_async_commit),
        texts("secondaries", &info.secondaries),
    )
}

pub(crate) fn key_error(error: &kv::KeyError) -> String {
    let mut out = Vec::new();
    if let Some(info) = &error.locked {
        out.push(format!("locked {}", lock_info(info)));
    }
    if let Some(it) = &error.conflict {
        assert!(error.retryable.contains("WriteConflict"), "clients that know no conflicts retry for the text");
        out.push(format!(
            "write_conflict {} start_ts={} conflict_ts={} conflict_commit_ts={} reason={} primary={}",
            text(&it.key),
            ts(it.start_ts),
            ts(it.conflict_ts),
            ts(it.conflict_commit_ts),
            it.reason().as_str_name(),
            text(&it.primary)
        ));
    } else if !error.retryable.is_empty() {
        out.push(format!("retryable {:?}", error.retryable));
    }
    if !error.abort.is_empty() {
        out.push(format!("abort {:?}", error.abort));
    }
    if let Some(it) = &error.already_exist {
        out.push(format!("already_exist {}", text(&it.key)));
    }
    if let Some(it) = &error.commit_ts_expired {
        let (start, attempted, min) = (ts(it.start_ts), ts(it.attempted_commit_ts), ts(it.min_commit_ts));
        out.push(format!("commit_ts_expired {} start_ts={start} attempted={attempted} min={min}", text(&it.key)));
    }
    if let Some(it) = &error.txn_not_found {
        out.push(format!("txn_not_found {} start_ts={}", text(&it.primary_key), ts(it.start_ts)));
    }
    if let Some(it) = &error.assertion_failed {
        let claim = it.assertion().as_str_name();
        let (start, existing, commit) = (ts(it.start_ts), ts(it.existing_start_ts), ts(it.existing_commit_ts));
        let key = text(&it.key);
        out.push(format!("assertion_failed {key} {claim} start_ts={start} existing={existing}..{commit}"));
    }
    if let Some(it) = &error.primary_mismatch {
        out.push(format!("primary_mismatch {}", it.lock_info.as_ref().map(lock_info).unwrap_or_default()));
    }
    assert_eq!(out.len(), 1, "an error says one thing: {error:?}");
    out.concat()
}

pub(crate) fn lock(key: &str, lock: &Lock) -> String {
    let short = lock.short_value.as_ref().map(|value| format!(" value={}", text(value))).unwrap_or_default();
    let rollbacks: Vec<String> = lock.rollback_ts.iter().map(|at| ts(at.0)).collect();
    let rollbacks = if rollbacks.is_empty() { String::new() } else { format!(" rollbacks={}", rollbacks.join(",")) };
    format!(
        "lock {}{short}{rollbacks}{}{}",
        lock_info(&lock.info(&bytes::Bytes::copy_from_slice(key.as_bytes()))),
        flag("with_conflict", lock.is_locked_with_conflict),
        last_change(lock.last_change.to_parts()),
    )
}

fn last_change((at, versions): (u64, u64)) -> String {
    match (at, versions) {
        (0, 0) => String::new(),
        (0, _) => " no_change_before".into(),
        (at, versions) => format!(" last_change={}/{versions}", ts(at)),
    }
}

pub(crate) fn record(commit_ts: u64, record: &WriteRecord) -> String {
    let short = match (&record.short_value, record.is_protected()) {
        (_, true) => " protected".into(),
        (Some(value), _) => format!(" value={}", text(value)),
        (None, _) => String::new(),
    };
    format!(
        "write {} {} start_ts={}{short}{}{}{}",
        ts(commit_ts),
        record.kind.op().as_str_name(),
        ts(record.start_ts.0),
        flag("overlapped_rollback", record.has_overlapped_rollback),
        record.gc_fence.map(|fence| format!(" fence={}", ts(fence.0))).unwrap_or_default(),
        last_change(record.last_change.to_parts()),
    )
}

pub(crate) fn info(info: &kv::MvccInfo) -> Vec<String> {
    let mut out = Vec::new();
    if let Some(lock) = &info.lock {
        out.push(format!(
            "lock {} primary={} start_ts={} ttl={} value={}{}{}",
            lock.r#type().as_str_name(),
            text(&lock.primary),
            ts(lock.start_ts),
            lock.ttl,
            text(&lock.short_value),
            flag("async", lock.use_async_commit),
            texts("secondaries", &lock.secondaries),
        ));
    }
    for write in &info.writes {
        out.push(format!(
            "write {} {} start_ts={} value={}{}{}",
            ts(write.commit_ts),
            write.r#type().as_str_name(),
            ts(write.start_ts),
            text(&write.short_value),
            flag("overlapped_rollback", write.has_overlapped_rollback),
            if write.has_gc_fence { format!(" fence={}", ts(write.gc_fence)) } else { String::new() },
        ));
    }
    out.extend(info.values.iter().map(|value| format!("value {} {}", ts(value.start_ts), text(&value.value))));
    out
}
