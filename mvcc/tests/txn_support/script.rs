//! The commands of scripts, each as the request that a client would send.

use std::collections::BTreeMap;
use std::fmt::Write;

use bytes::Bytes;
use mvcc::raw::Step;
use mvcc::txn::command::{self, StartTsSearch};
use mvcc::txn::{
    LockScan, Plan, Planned, ReadOptions, Reader, Scan, ScanRequest, TimeStamp, TxnError, Whose, WriteKind,
    WriteRecord, get, key,
};
use mvcc::{Cf, Modify};
use proto::kvrpcpb as kv;
use proto::kvrpcpb::prewrite_request::{ForUpdateTsConstraint, PessimisticAction};

use crate::raw_support::View;
use crate::show;
use crate::txn_support::Region;

#[derive(Default)]
pub(crate) struct World {
    region: Region,
    /// Plans that are not applied yet.
    held: Vec<Plan>,
}

/// A command's words: `name a b key=value flag`.
struct Words<'a> {
    plain: Vec<&'a str>,
    named: BTreeMap<&'a str, &'a str>,
}

const FLAGS: [&str; 16] = [
    "async",
    "one_pc",
    "retry",
    "hold",
    "values",
    "existence",
    "force",
    "if_exists",
    "rollback_if_not_exist",
    "force_sync",
    "resolving_pessimistic",
    "verify_primary",
    "rc",
    "rc_check",
    "reverse",
    "keys_only",
];

impl<'a> Words<'a> {
    fn of(line: &'a str) -> Words<'a> {
        let mut words = Words { plain: Vec::new(), named: BTreeMap::new() };
        for word in line.split_whitespace() {
            match word.split_once('=') {
                Some((name, value)) => drop(words.named.insert(name, value)),
                None if FLAGS.contains(&word) => drop(words.named.insert(word, "")),
                None => words.plain.push(word),
            }
        }
        words
    }

    fn has(&self, name: &str) -> bool {
        self.named.contains_key(name)
    }

    fn ts(&self, name: &str) -> u64 {
        self.named.get(name).map_or(0, |value| ts(value))
    }

    fn list(&self, name: &str) -> Vec<&'a str> {
        self.named.get(name).map_or(Vec::new(), |value| value.split(',').collect())
    }

    fn keys(&self) -> Vec<Bytes> {
        self.plain[1..].iter().map(|key| bytes(key)).collect()
    }

    fn key(&self) -> Bytes {
        bytes(self.plain[1])
    }

    fn context(&self) -> Option<kv::Context> {
        let numbers = |name| self.list(name).into_iter().map(ts).collect();
        let mut context = kv::Context {
            is_retry_request: self.has("retry"),
            resolved_locks: numbers("resolved"),
            committed_locks: numbers("committed"),
            ..Default::default()
        };
        if self.has("rc") {
            context.set_isolation_level(kv::IsolationLevel::Rc);
        }
        if self.has("rc_check") {
            context.set_isolation_level(kv::IsolationLevel::RcCheckTs);
        }
        Some(context)
    }

    fn options(&self) -> ReadOptions {
        ReadOptions::of(&self.context().unwrap_or_default(), self.ts("ts"))
    }
}

fn ts(word: &str) -> u64 {
    if word == "max" {
        return u64::MAX;
    }
    match word.split_once("ms") {
        Some((millis, rest)) => {
            let logical = rest.strip_prefix('+').map_or(0, |rest| rest.parse().expect("a number"));
            TimeStamp::of_millis(millis.parse().expect("milliseconds")).0 + logical
        }
        None => word.parse().expect("a timestamp"),
    }
}

fn bytes(word: &str) -> Bytes {
    match word.split_once('*') {
        Some((letter, times)) => letter.repeat(times.parse().expect("a number")).into(),
        None => Bytes::copy_from_slice(word.as_bytes()),
    }
}

fn mutation(word: &str) -> kv::Mutation {
    let mut parts: Vec<&str> = word.split(':').collect();
    let mut out = kv::Mutation::default();
    match parts.last() {
        Some(&"exist") => out.set_assertion(kv::Assertion::Exist),
        Some(&"not_exist") => out.set_assertion(kv::Assertion::NotExist),
        _ => {}
    }
    if out.assertion() != kv::Assertion::None {
        parts.pop();
    }
    out.set_op(match parts[0] {
        "put" => kv::Op::Put,
        "insert" => kv::Op::Insert,
        "del" => kv::Op::Del,
        "lock" => kv::Op::Lock,
        "check" => kv::Op::CheckNotExists,
        other => panic!("{other} is no mutation"),
    });
    out.key = bytes(parts[1]);
    out.value = parts.get(2).map(|value| bytes(value)).unwrap_or_default();
    out
}

type Answer<T> = Result<Planned<T>, TxnError>;

impl script_runner::World for World {
    fn command(&mut self, line: &str, out: &mut String) {
        let words = &Words::of(line);
        match words.plain[0] {
            "prewrite" => self.prewrite(words, out),
            "applied" => self.held.drain(..).for_each(|plan| self.region.apply(&plan)),
            "commit" => self.run(
                out,
                |reader| command::commit(reader, &commit(words)),
                |answer| format!("committed at {}", show::ts(answer.commit_version)),
            ),
            "rollback" => {
                let request = kv::BatchRollbackRequest {
                    start_version: words.ts("ts"),
                    keys: words.keys(),
                    ..Default::default()
                };
                self.run(out, |reader| command::batch_rollback(reader, &request), |_| "rolled back".into());
            }
            "cleanup" => {
                let request = kv::CleanupRequest {
                    key: words.key(),
                    start_version: words.ts("ts"),
                    current_ts: words.ts("now"),
                    ..Default::default()
                };
                self.run(
                    out,
                    |reader| command::cleanup(reader, &request),
                    |answer| match answer.commit_version {
                        0 => "rolled back".into(),
                        ts => format!("committed at {}", show::ts(ts)),
                    },
                );
            }
            "lock" => self.pessimistic_lock(words, out),
            "unlock" => {
                let request = kv::PessimisticRollbackRequest {
                    start_version: words.ts("ts"),
                    for_update_ts: words.ts("for_update"),
                    keys: words.keys(),
                    ..Default::default()
                };
                self.run(out, |reader| command::pessimistic_rollback(reader, &request), |_| "unlocked".into());
            }
            "heartbeat" => {
                let request = kv::TxnHeartBeatRequest {
                    primary_lock: words.key(),
                    start_version: words.ts("ts"),
                    advise_lock_ttl: words.ts("ttl"),
                    min_commit_ts: words.ts("min_commit"),
                    ..Default::default()
                };
                self.run(
                    out,
                    |reader| command::heart_beat(reader, &request),
                    |answer| format!("ttl {}", answer.lock_ttl),
                );
            }
            "status" => self.status(words, out),
            "secondaries" => {
                let request = kv::CheckSecondaryLocksRequest {
                    keys: words.keys(),
                    start_version: words.ts("ts"),
                    ..Default::default()
                };
                self.run(
                    out,
                    |reader| command::check_secondary_locks(reader, &request),
                    |answer| {
                        let locks: Vec<_> =
                            answer.locks.iter().map(|info| format!("locked {}", show::lock_info(info))).collect();
                        match (locks.is_empty(), answer.commit_ts) {
                            (false, 0) => locks.join("\n"),
                            (true, 0) => "rolled back".into(),
                            (_, ts) => format!("committed at {}", show::ts(ts)),
                        }
                    },
                );
            }
            "resolve" => self.resolve(words, out),
            "delete_range" => {
                let end = words.plain.get(2).map(|end| bytes(end)).unwrap_or_default();
                let request = kv::DeleteRangeRequest { start_key: words.key(), end_key: end, ..Default::default() };
                self.region.change(&command::delete_range(&request));
            }
            "record" => self.record(words),
            "delete_value" => {
                let place = key::versioned(&key::encode(&words.key()), TimeStamp(words.ts("ts")));
                self.region.change(&[Modify::Delete { cf: Cf::Default, key: place }]);
            }
            "read_at" => self.region.memory.read_at(TimeStamp(ts(words.plain[1]))),
            "get" => self.get(words, out),
            "scan" => self.scan(words, out),
            "scan_lock" => self.scan_lock(words, out),
            "by_key" => {
                let view = self.region.view();
                let info = command::mvcc_by_key(&Reader::new(&view), &words.key()).expect("readable");
                show::info(&info).iter().for_each(|line| print(out, line));
            }
            "by_start_ts" => {
                let view = self.region.view();
                let mut search = StartTsSearch::new(TimeStamp(ts(words.plain[1])), b"", b"");
                while search.step(&view, 1).expect("readable") == Step::More {}
                match search.into_key() {
                    Some(key) => print(out, &show::text(&key)),
                    None => print(out, "no key"),
                }
            }
            "show" => self.show(words.plain[1], out),
            other => panic!("{other} is no command"),
        }
    }
}

impl World {
    fn run<T>(&mut self, out: &mut String, work: impl Fn(&Reader<'_, View>) -> Answer<T>, shown: impl Fn(T) -> String) {
        match self.region.run(None, work) {
            Ok(Planned { plan, answer }) => {
                self.region.apply(&plan);
                print(out, &shown(answer));
            }
            Err(error) => print(out, &show::key_error(&error.key_error())),
        }
    }

    fn prewrite(&mut self, words: &Words<'_>, out: &mut String) {
        let mutations: Vec<kv::Mutation> = words.plain[1..].iter().map(|word| mutation(word)).collect();
        let actions = words.list("actions").into_iter().map(|action| match action {
            "skip" => PessimisticAction::SkipPessimisticCheck as i32,
            "lock" => PessimisticAction::DoPessimisticCheck as i32,
            "constraint" => PessimisticAction::DoConstraintCheck as i32,
            other => panic!("{other} is no action"),
        });
        let expected = words
            .list("expect")
            .into_iter()
            .enumerate()
            .map(|(i, at)| ForUpdateTsConstraint { index: i as u32, expected_for_update_ts: ts(at) });
        let primary = words.named.get("primary").map_or_else(|| mutations[0].key.clone(), |key| bytes(key));
        let ttl = if words.has("ttl") { words.ts("ttl") } else { 3000 };
        let mut request = kv::PrewriteRequest {
            context: words.context(),
            primary_lock: primary,
            start_version: words.ts("ts"),
            lock_ttl: ttl,
            pessimistic_actions: actions.collect(),
            txn_size: words.ts("size"),
            for_update_ts: words.ts("for_update"),
            min_commit_ts: words.ts("min_commit"),
            max_commit_ts: words.ts("max_commit"),
            use_async_commit: words.has("async"),
            secondaries: words.list("secondaries").into_iter().map(bytes).collect(),
            try_one_pc: words.has("one_pc"),
            for_update_ts_constraints: expected.collect(),
            mutations,
            ..Default::default()
        };
        request.set_assertion_level(match words.named.get("level") {
            None => kv::AssertionLevel::Off,
            Some(&"fast") => kv::AssertionLevel::Fast,
            Some(_) => kv::AssertionLevel::Strict,
        });
        self.region.memory.read_at(command::prewrite_reads_at(&request));
        let checked = self.region.run(None, |reader| Ok(command::prewrite(reader, &request)?)).expect("readable");
        let Planned { plan, answer } = checked.finish(self.region.memory.max_ts());
        for error in &answer.errors {
            print(out, &show::key_error(error));
        }
        if !answer.errors.is_empty() {
            assert!(plan.changes.is_empty(), "an error changes nothing");
            return;
        }
        self.region.memory.insert(&plan.in_memory);
        let mut line = if plan.changes.is_empty() { "ok, nothing written".to_string() } else { "ok".into() };
        if answer.min_commit_ts > 0 {
            let _ = write!(line, " min_commit_ts={}", show::ts(answer.min_commit_ts));
        }
        if answer.one_pc_commit_ts > 0 {
            let _ = write!(line, " one_pc_commit_ts={}", show::ts(answer.one_pc_commit_ts));
        }
        print(out, &line);
        if words.has("hold") { self.held.push(plan) } else { self.region.apply(&plan) }
    }

    fn pessimistic_lock(&mut self, words: &Words<'_>, out: &mut String) {
        let mutations: Vec<kv::Mutation> = words.plain[1..]
            .iter()
            .map(|word| {
                let mut out = kv::Mutation::default();
                let (key, claim) = word.split_once(':').unwrap_or((word, ""));
                out.key = bytes(key);
                out.set_op(kv::Op::PessimisticLock);
                if claim == "not_exist" {
                    out.set_assertion(kv::Assertion::NotExist);
                }
                out
            })
            .collect();
        let mut request = kv::PessimisticLockRequest {
            primary_lock: words.named.get("primary").map_or_else(|| mutations[0].key.clone(), |key| bytes(key)),
            mutations,
            start_version: words.ts("ts"),
            lock_ttl: if words.has("ttl") { words.ts("ttl") } else { 3000 },
            for_update_ts: words.ts("for_update"),
            min_commit_ts: words.ts("min_commit"),
            return_values: words.has("values"),
            check_existence: words.has("existence"),
            lock_only_if_exists: words.has("if_exists"),
            ..Default::default()
        };
        if words.has("force") {
            request.set_wake_up_mode(kv::PessimisticLockWakeUpMode::WakeUpModeForceLock);
        }
        self.region.memory.read_at(command::pessimistic_lock_reads_at(&request));
        self.run(
            out,
            |reader| command::pessimistic_lock(reader, &request),
            |answer| {
                let mut line = "locked".to_string();
                for value in &answer.values {
                    let _ = write!(line, " value={}", show::text(value));
                }
                for not_found in &answer.not_founds {
                    let _ = write!(line, " not_found={not_found}");
                }
                for result in &answer.results {
                    let _ = write!(
                        line,
                        " {} value={} exists={} conflict_ts={}",
                        result.r#type().as_str_name(),
                        show::text(&result.value),
                        result.existence,
                        show::ts(result.locked_with_conflict_ts)
                    );
                }
                line
            },
        );
    }

    fn status(&mut self, words: &Words<'_>, out: &mut String) {
        let request = kv::CheckTxnStatusRequest {
            primary_key: words.key(),
            lock_ts: words.ts("ts"),
            caller_start_ts: words.ts("caller"),
            current_ts: words.ts("now"),
            rollback_if_not_exist: words.has("rollback_if_not_exist"),
            force_sync_commit: words.has("force_sync"),
            resolving_pessimistic_lock: words.has("resolving_pessimistic"),
            verify_is_primary: words.has("verify_primary"),
            ..Default::default()
        };
        self.region.memory.read_at(command::check_txn_status_reads_at(&request));
        self.run(
            out,
            |reader| command::check_txn_status(reader, &request),
            |answer| {
                let mut line = answer.action().as_str_name().to_string();
                if answer.lock_ttl > 0 {
                    let _ = write!(line, " ttl={}", answer.lock_ttl);
                }
                if answer.commit_version > 0 {
                    let _ = write!(line, " committed at {}", show::ts(answer.commit_version));
                }
                if let Some(info) = &answer.lock_info {
                    let _ = write!(line, " {}", show::lock_info(info));
                }
                line
            },
        );
    }

    fn resolve(&mut self, words: &Words<'_>, out: &mut String) {
        let infos = words.list("txns").into_iter().map(|word| {
            let (txn, status) = word.split_once(':').expect("txn:status");
            kv::TxnInfo { txn: ts(txn), status: ts(status), ..Default::default() }
        });
        let request = kv::ResolveLockRequest {
            start_version: words.ts("ts"),
            commit_version: words.ts("at"),
            txn_infos: infos.collect(),
            keys: words.keys(),
            ..Default::default()
        };
        if !request.keys.is_empty() {
            return self.run(out, |reader| command::resolve_keys(reader, &request), |_| "resolved".into());
        }
        let decisions = match command::decisions(&request) {
            Ok(decisions) => decisions,
            Err(error) => return print(out, &show::key_error(&error.key_error())),
        };
        let whose = Whose::Of(decisions.keys().copied().collect());
        let found = self.region.find(LockScan::new(whose, b"", b"", b"", b"", 0));
        let keys: Vec<Bytes> = found.into_iter().map(|(key, _)| key).collect();
        let planned = |reader: &Reader<'_, View>| {
            let plan = command::resolve_found(reader, &decisions, &keys)?;
            Ok(Planned { plan, answer: keys.len() })
        };
        self.run(out, planned, |count| format!("resolved {count}"));
    }

    fn record(&mut self, words: &Words<'_>) {
        let value = words.named.get("value").map(|value| bytes(value));
        let kind = if value.is_some() { WriteKind::Put } else { WriteKind::Delete };
        let mut record = WriteRecord::new(kind, TimeStamp(words.ts("ts")), value);
        if words.has("fence") {
            record.has_overlapped_rollback = true;
            record.gc_fence = Some(TimeStamp(words.ts("fence")));
        }
        let place = key::versioned(&key::encode(&words.key()), TimeStamp(words.ts("at")));
        self.region.change(&[Modify::Put { cf: Cf::Write, key: place, value: record.encode() }]);
    }

    fn get(&mut self, words: &Words<'_>, out: &mut String) {
        let options = words.options();
        self.region.memory.read_at(options.ts);
        for key in words.keys() {
            let found = self
                .region
                .memory
                .check(&key, &options)
                .and_then(|()| self.region.run(None, |reader| get(reader, &key, &options)));
            match found {
                Ok(Some(value)) => print(out, &show::text(&value)),
                Ok(None) => print(out, "not found"),
                Err(error) => print(out, &show::key_error(&error.key_error())),
            }
        }
    }

    fn scan(&mut self, words: &Words<'_>, out: &mut String) {
        let bound = |name| words.named.get(name).map(|key| bytes(key)).unwrap_or_default();
        let limit = if words.has("limit") { words.ts("limit") as usize } else { usize::MAX };
        let request = ScanRequest {
            start: bound("from"),
            end: bound("to"),
            reverse: words.has("reverse"),
            key_only: words.has("keys_only"),
            limit,
            sample_step: words.ts("sample") as usize,
        };
        let options = words.options();
        self.region.memory.read_at(options.ts);
        let mut scan = Scan::new(request, options.clone(), b"", b"");
        let (start, end) = scan.bounds();
        let checked = self.region.memory.check_range(start, end, &options);
        let view = self.region.view();
        let result = checked.and_then(|()| {
            while scan.step(&view, 1)? == Step::More {}
            Ok(())
        });
        if let Err(error) = result {
            return print(out, &show::key_error(&error.key_error()));
        }
        if words.has("stats") {
            print(out, &format!("{} seeks, {} stepped", scan.stats().seeks, scan.stats().stepped));
        }
        let pairs = scan.into_pairs();
        if pairs.is_empty() {
            print(out, "nothing");
        }
        for pair in pairs {
            match &pair.error {
                Some(error) => print(out, &show::key_error(error)),
                None => print(out, &format!("{}={}", show::text(&pair.key), show::text(&pair.value))),
            }
        }
    }

    fn scan_lock(&mut self, words: &Words<'_>, out: &mut String) {
        let bound = |name| words.named.get(name).map(|key| bytes(key)).unwrap_or_default();
        let max = TimeStamp(words.ts("max"));
        self.region.memory.read_at(max);
        let limit = words.ts("limit") as usize;
        let scan = LockScan::new(Whose::UpTo(max), &bound("from"), &bound("to"), b"", b"", limit);
        let (start, end) = scan.bounds();
        if let Err(error) = self.region.memory.check_scan_lock(start, end, max) {
            return print(out, &show::key_error(&error.key_error()));
        }
        let locks = self.region.find(scan);
        if locks.is_empty() {
            print(out, "nothing");
        }
        for (key, lock) in locks {
            print(out, &format!("locked {}", show::lock_info(&lock.info(&key))));
        }
    }

    fn show(&self, name: &str, out: &mut String) {
        let encoded = key::encode(name.as_bytes());
        let view = self.region.view();
        let reader = Reader::new(&view);
        let mut any = false;
        if let Some(lock) = reader.lock(&encoded).expect("readable") {
            any = true;
            print(out, &show::lock(name, &lock));
        }
        let places = self.region.families();
        for (place, stored) in places[Cf::Write.index()].range(encoded.clone()..Bytes::from(key::after(&encoded))) {
            any = true;
            let (_, at) = key::split(place).expect("a place");
            print(out, &show::record(at.0, &WriteRecord::decode(stored).expect("a record")));
        }
        for (place, value) in places[Cf::Default.index()].range(encoded.clone()..Bytes::from(key::after(&encoded))) {
            any = true;
            print(out, &format!("value {} {}", show::ts(key::split(place).expect("a place").1.0), show::text(value)));
        }
        if !any {
            print(out, "nothing");
        }
    }
}

fn commit(words: &Words<'_>) -> kv::CommitRequest {
    kv::CommitRequest {
        start_version: words.ts("ts"),
        keys: words.keys(),
        commit_version: words.ts("at"),
        ..Default::default()
    }
}

fn print(out: &mut String, line: &str) {
    out.push_str(line);
    out.push('\n');
}
