//! Random histories of transactions over one region, with clients that die, repeat themselves and come late, against
//! what every client may rely on (`compat/6-transactions.md`, 6.17).
//!
//! The truth of the model is what clients were told: a transaction whose primary was committed, or whose async commit had
//! all its locks, has committed, for ever; one whose primary was rolled back never will.
//!
//! Besides that, each step is held against laws that are written down a second time (`txn_support/laws.rs`). They find
//! what no client of these histories can tell from luck: a protected rollback that a later one removes, a read that passes
//! a lock at the lock's own timestamps, a long value that stays after its rollback, and an async or one-phase commit that
//! does not fall back when it must. Each of the four was planted by hand, and found.

mod raw_support;
mod txn_support;

#[path = "txn_support/laws.rs"]
mod laws;

use std::collections::BTreeSet;

use base::Prng;
use bytes::Bytes;
use mvcc::Modify;
use mvcc::raw::Step;
use mvcc::txn::{Plan, Planned, ReadOptions, Reader, Scan, ScanRequest, TimeStamp, TxnError, command, get, key};
use proto::kvrpcpb as kv;
use proto::kvrpcpb::prewrite_request::PessimisticAction;
use raw_support::View;
use txn_support::Region;

const SEEDS: u64 = 3000;
const STEPS: u64 = 250;
const KEYS: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    TwoPhases,
    Async,
    OnePhase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Open,
    Committed(u64),
    RolledBack,
}

/// A transaction as its client knows it.
#[derive(Clone, Debug)]
struct Txn {
    start_ts: u64,
    /// The first one is the primary.
    writes: Vec<(Bytes, Option<Bytes>)>,
    style: Style,
    /// When a pessimistic one looked last; 0 for an optimistic one.
    for_update_ts: u64,
    /// Keys that were locked pessimistically.
    locked: BTreeSet<usize>,
    prewritten: BTreeSet<usize>,
    min_commit_ts: u64,
    /// Beyond it an async or one-phase commit is an ordinary one; 0: no bound.
    max_commit_ts: u64,
    pushable: bool,
    /// Async commit or one phase was refused: it commits as any other.
    falls_back: bool,
    commit_ts: u64,
    fate: Fate,
    /// It was rolled back by its own client where it had no lock. That leaves an unprotected record at most (TiKV's rule,
    /// scenario 27), which a commit at the same timestamp takes the place of, so that a late duplicate would do harm:
    /// there is none.
    is_unprotected: bool,
}

/// What came of a reader's trouble with a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Wait,
    /// It will commit above the reader.
    Passed,
    /// It has committed below the reader, who need not carry that out.
    Committed,
    Resolved,
}

#[derive(Default)]
struct Counts {
    committed: u64,
    async_committed: u64,
    one_phase: u64,
    rolled_back: u64,
    conflicts: u64,
    reads: u64,
    pushed: u64,
    resolved: u64,
    late: u64,
    fell_back: u64,
    at_somebodys: u64,
}

struct World {
    seed: u64,
    prng: Prng,
    now: u64,
    region: Region,
    txns: Vec<Txn>,
    /// What was read where.
    reads: Vec<(Bytes, u64, Option<Bytes>)>,
    counts: Counts,
}

impl World {
    fn new(seed: u64) -> World {
        World {
            seed,
            prng: Prng::new(seed),
            now: 10,
            region: Region::default(),
            txns: Vec::new(),
            reads: Vec::new(),
            counts: Counts::default(),
        }
    }

    fn ts(&mut self) -> u64 {
        self.now += 1 + self.prng.below(3);
        self.now
    }

    fn run<T: PartialEq + std::fmt::Debug>(
        &mut self,
        work: impl Fn(&Reader<'_, View>) -> Result<Planned<T>, TxnError>,
    ) -> Result<T, TxnError> {
        let Planned { plan, answer } = self.region.run(Some(&mut self.prng), &work)?;
        self.region.apply(&plan);
        if self.prng.one_in(3) {
            // Every request may come twice.
            let before = self.region.families();
            match self.region.run(None, &work) {
                Ok(again) => self.region.apply(&again.plan),
                Err(error) => panic!("seed {}: a repeated command fails: {error}", self.seed),
            }
            assert_eq!(before, self.region.families(), "seed {}: a repeated command changes more", self.seed);
        }
        Ok(answer)
    }

    fn begin(&mut self) {
        let start_ts = self.ts();
        let mut keys = KEYS.to_vec();
        self.prng.shuffle(&mut keys);
        let many = 1 + self.prng.below(3) as usize;
        let writes = keys[..many].iter().map(|key| {
            let value = (!self.prng.one_in(5)).then(|| {
                let times = if self.prng.one_in(4) { 100 } else { 1 };
                format!("{start_ts}/{key} ").repeat(times).into()
            });
            (Bytes::from_static(key.as_bytes()), value)
        });
        let writes = writes.collect();
        let style = [Style::TwoPhases, Style::TwoPhases, Style::Async, Style::OnePhase][self.prng.below(4) as usize];
        let is_pessimistic = self.prng.one_in(2);
        self.txns.push(Txn {
            start_ts,
            writes,
            style,
            for_update_ts: if is_pessimistic { start_ts } else { 0 },
            locked: BTreeSet::new(),
            prewritten: BTreeSet::new(),
            min_commit_ts: 0,
            max_commit_ts: if self.prng.one_in(3) { start_ts + self.prng.below(30) } else { 0 },
            pushable: self.prng.one_in(2),
            falls_back: false,
            commit_ts: 0,
            fate: Fate::Open,
            is_unprotected: false,
        });
    }

    /// A pessimistic transaction locks what it has not locked yet.
    fn lock(&mut self, at: usize) {
        let txn = self.txns[at].clone();
        if txn.for_update_ts == 0 || !txn.prewritten.is_empty() || txn.fate != Fate::Open {
            return;
        }
        let for_update_ts = self.ts();
        let open: Vec<usize> = (0..txn.writes.len()).filter(|i| !txn.locked.contains(i)).collect();
        let Some(&i) = self.prng.pick(&open) else { return };
        let mut mutation = kv::Mutation { key: txn.writes[i].0.clone(), ..Default::default() };
        mutation.set_op(kv::Op::PessimisticLock);
        let mut request = kv::PessimisticLockRequest {
            mutations: vec![mutation],
            primary_lock: txn.writes[0].0.clone(),
            start_version: txn.start_ts,
            lock_ttl: 3000,
            for_update_ts,
            return_values: self.prng.one_in(2),
            ..Default::default()
        };
        if self.prng.one_in(4) {
            request.set_wake_up_mode(kv::PessimisticLockWakeUpMode::WakeUpModeForceLock);
        }
        self.region.memory.read_at(command::pessimistic_lock_reads_at(&request));
        match self.run(|reader| command::pessimistic_lock(reader, &request)) {
            Ok(answer) => {
                let conflict = answer.results.first().map_or(0, |result| result.locked_with_conflict_ts);
                let value = answer.values.first().cloned();
                let txn = &mut self.txns[at];
                txn.for_update_ts = for_update_ts.max(conflict).max(txn.for_update_ts);
                txn.locked.insert(i);
                if let Some(value) = value {
                    let expected = self.truth(&request.mutations[0].key, u64::MAX).unwrap_or_default();
                    assert_eq!(value, expected, "seed {}: a locked key's value is the newest", self.seed);
                }
            }
            Err(error) => self.refused(at, &error),
        }
    }

    fn request(&self, txn: &Txn, keys: &[usize]) -> kv::PrewriteRequest {
        let mutations = keys.iter().map(|i| {
            let (key, value) = &txn.writes[*i];
            let mut mutation =
                kv::Mutation { key: key.clone(), value: value.clone().unwrap_or_default(), ..Default::default() };
            mutation.set_op(if value.is_some() { kv::Op::Put } else { kv::Op::Del });
            mutation
        });
        let is_pessimistic = txn.for_update_ts != 0;
        let action = PessimisticAction::DoPessimisticCheck as i32;
        kv::PrewriteRequest {
            mutations: mutations.collect(),
            primary_lock: txn.writes[0].0.clone(),
            start_version: txn.start_ts,
            lock_ttl: 3000,
            for_update_ts: txn.for_update_ts,
            pessimistic_actions: if is_pessimistic { vec![action; keys.len()] } else { Vec::new() },
            min_commit_ts: if txn.pushable { txn.start_ts.max(txn.for_update_ts) + 1 } else { 0 },
            max_commit_ts: txn.max_commit_ts,
            use_async_commit: txn.style == Style::Async,
            secondaries: txn.writes[1..].iter().map(|(key, _)| key.clone()).collect(),
            try_one_pc: txn.style == Style::OnePhase && keys.len() == txn.writes.len(),
            ..Default::default()
        }
    }

    fn prewrite(&mut self, at: usize) {
        let txn = self.txns[at].clone();
        if txn.is_unprotected {
            return;
        }
        if txn.for_update_ts != 0 && txn.locked.len() < txn.writes.len() {
            return self.lock(at);
        }
        // All at once, or one; perhaps one that is there already.
        let all: Vec<usize> = (0..txn.writes.len()).collect();
        let is_whole = txn.style == Style::OnePhase || self.prng.one_in(2);
        let keys = if is_whole { all } else { vec![self.prng.below(txn.writes.len() as u64) as usize] };
        let request = self.request(&txn, &keys);
        let prewritten = self.region.run(Some(&mut self.prng), |reader| Ok(command::prewrite(reader, &request)?));
        let Planned { plan, answer } = prewritten.expect("readable").finish(self.region.memory.max_ts());
        if !answer.errors.is_empty() {
            assert_eq!(plan, Plan::default());
            if let Some(conflict) = &answer.errors[0].conflict {
                self.counts.conflicts += 1;
                assert_ne!(txn.fate, Fate::Committed(conflict.conflict_commit_ts), "it conflicts with itself");
            }
            assert!(!matches!(txn.fate, Fate::Committed(_)), "seed {}: late, and told {:?}", self.seed, answer.errors);
            let is_lock = answer.errors.iter().all(|error| error.locked.is_some());
            if !is_lock && txn.fate == Fate::Open && self.prng.one_in(5) {
                self.roll_back(at);
            }
            return;
        }
        self.region.memory.insert(&plan.in_memory);
        self.region.apply(&plan);
        if txn.fate != Fate::Open {
            self.counts.late += 1;
            self.check_late(&txn, &answer, &plan);
            return;
        }
        laws::check_promise(&self.region, &request, &plan, &answer, &format!("seed {}", self.seed));
        let count = keys.len();
        let txn = &mut self.txns[at];
        txn.prewritten.extend(keys);
        match txn.style {
            Style::TwoPhases => {}
            Style::OnePhase => match answer.one_pc_commit_ts {
                0 => txn.falls_back = true,
                ts => {
                    assert_eq!(count, txn.writes.len());
                    txn.fate = Fate::Committed(ts);
                    self.counts.one_phase += 1;
                }
            },
            Style::Async => match answer.min_commit_ts {
                0 => txn.falls_back = true,
                ts => txn.min_commit_ts = txn.min_commit_ts.max(ts),
            },
        }
        self.counts.fell_back += u64::from(txn.falls_back);
        if txn.style == Style::Async && !txn.falls_back && txn.prewritten.len() == txn.writes.len() {
            txn.fate = Fate::Committed(txn.min_commit_ts);
            self.counts.async_committed += 1;
        }
    }

    /// A prewrite of a transaction whose fate is known did no harm.
    fn check_late(&self, txn: &Txn, answer: &kv::PrewriteResponse, plan: &Plan) {
        let seed = self.seed;
        match txn.fate {
            Fate::RolledBack => {
                // A lock that nobody has removed yet may be there still.
                let primary = key::encode(&txn.writes[0].0);
                let locks_again = |change: &Modify| matches!(change, Modify::Put { key, .. } if *key == primary);
                assert!(!plan.changes.iter().any(locks_again), "seed {seed}: the primary is locked after its rollback");
            }
            Fate::Committed(ts) => {
                if plan.changes.is_empty() && txn.style == Style::OnePhase && answer.one_pc_commit_ts != 0 {
                    assert_eq!(answer.one_pc_commit_ts, ts, "seed {seed}");
                }
                assert!(answer.min_commit_ts <= ts, "seed {seed}: an async commit would be later than it was");
            }
            Fate::Open => {}
        }
    }

    fn refused(&mut self, at: usize, error: &TxnError) {
        match error {
            TxnError::KeyIsLocked(_) => {}
            TxnError::WriteConflict(_) => self.counts.conflicts += 1,
            TxnError::PessimisticLockRolledBack { .. } => {
                assert!(!matches!(self.txns[at].fate, Fate::Committed(_)), "seed {}", self.seed);
            }
            error => panic!("seed {}: {error}", self.seed),
        }
    }

    fn commit(&mut self, at: usize) {
        let txn = self.txns[at].clone();
        let is_ready = txn.prewritten.len() == txn.writes.len();
        if txn.fate == Fate::RolledBack
            || !is_ready
            || (txn.fate == Fate::Open && txn.style == Style::OnePhase && !txn.falls_back)
        {
            return;
        }
        let commit_ts = match txn.fate {
            Fate::Committed(ts) => ts,
            // Chosen, and perhaps used a good while later.
            _ if txn.commit_ts != 0 && !self.prng.one_in(5) => txn.commit_ts,
            _ => self.ts(),
        };
        self.txns[at].commit_ts = commit_ts;
        if self.prng.one_in(2) {
            return;
        }
        let is_decided = txn.fate != Fate::Open;
        let many = 1 + self.prng.below(txn.writes.len() as u64) as usize;
        let keys = if is_decided { &txn.writes[..many] } else { &txn.writes[..1] };
        let request = kv::CommitRequest {
            start_version: txn.start_ts,
            keys: keys.iter().map(|(key, _)| key.clone()).collect(),
            commit_version: commit_ts,
            ..Default::default()
        };
        match self.run(|reader| command::commit(reader, &request)) {
            Ok(answer) => {
                assert_eq!(answer.commit_version, commit_ts);
                if !is_decided {
                    self.counts.committed += 1;
                    self.txns[at].fate = Fate::Committed(commit_ts);
                }
            }
            Err(TxnError::CommitTsExpired { min_commit_ts, .. }) if !is_decided => {
                self.counts.pushed += 1;
                assert!(min_commit_ts.0 > commit_ts);
                self.txns[at].commit_ts = 0;
            }
            // Somebody rolled it back, and the model knows of it.
            Err(error) => panic!("seed {}: {txn:?}: {error}", self.seed),
        }
    }

    fn roll_back(&mut self, at: usize) {
        let txn = self.txns[at].clone();
        let keys: Vec<Bytes> = txn.writes.iter().map(|(key, _)| key.clone()).collect();
        let request = kv::BatchRollbackRequest { start_version: txn.start_ts, keys, ..Default::default() };
        let result = self.run(|reader| command::batch_rollback(reader, &request));
        match (txn.fate, result) {
            (Fate::Committed(_), Err(TxnError::Committed { .. })) => {}
            // An async commit that is not carried out yet: a client that was told of it does not do this.
            (Fate::Open, Ok(_)) => {
                self.rolled_back(at);
                let view = self.region.view();
                let info = command::mvcc_by_key(&Reader::new(&view), &txn.writes[0].0).expect("readable");
                let notes = info.writes.iter().filter(|write| write.commit_ts == txn.start_ts);
                self.txns[at].is_unprotected =
                    !notes.into_iter().any(|write| write.has_overlapped_rollback || write.short_value == "p");
            }
            (Fate::RolledBack, Ok(_)) => {}
            (fate, result) => panic!("seed {}: {fate:?} {result:?}", self.seed),
        }
    }

    fn rolled_back(&mut self, at: usize) {
        self.counts.rolled_back += 1;
        self.txns[at].fate = Fate::RolledBack;
    }

    fn find(&self, start_ts: u64) -> usize {
        self.txns.iter().position(|txn| txn.start_ts == start_ts).expect("a lock has a transaction")
    }

    /// What a reader does about a lock in its way.
    fn resolve(&mut self, info: &kv::LockInfo, caller: u64, forces: bool) -> Way {
        let at = self.find(info.lock_version);
        let known = self.txns[at].fate;
        let mut request = kv::CheckTxnStatusRequest {
            primary_key: info.primary_lock.clone(),
            lock_ts: info.lock_version,
            caller_start_ts: caller,
            current_ts: if forces { u64::MAX } else { self.now },
            rollback_if_not_exist: true,
            verify_is_primary: true,
            ..Default::default()
        };
        self.region.memory.read_at(command::check_txn_status_reads_at(&request));
        let mut status = self.run(|reader| command::check_txn_status(reader, &request)).expect("its primary");
        let mut fate = None;
        if let Some(primary) = status.lock_info.clone().filter(|primary| primary.use_async_commit && forces) {
            match self.check_secondaries(&primary) {
                Some(found) => fate = Some(found),
                None => {
                    // A secondary has fallen back to an ordinary lock.
                    request.force_sync_commit = true;
                    status = self.run(|reader| command::check_txn_status(reader, &request)).expect("its primary");
                }
            }
        }
        let fate = match (fate, status.lock_info.is_some()) {
            (Some(fate), _) => fate,
            (None, true) => {
                let is_pushed = status.action() == kv::Action::MinCommitTsPushed;
                let min_commit_ts = status.lock_info.map_or(0, |lock| lock.min_commit_ts);
                assert!(!is_pushed || caller == u64::MAX || min_commit_ts > caller, "seed {}", self.seed);
                return if is_pushed { Way::Passed } else { Way::Wait };
            }
            (None, false) if status.commit_version != 0 => Fate::Committed(status.commit_version),
            (None, false) => Fate::RolledBack,
        };
        match known {
            Fate::Open if fate == Fate::RolledBack => self.rolled_back(at),
            Fate::Open => {
                // Only an async commit is decided by its locks alone; its client has not heard of the last one.
                panic!("seed {}: {:?} is {fate:?}, of which its client knows nothing", self.seed, self.txns[at]);
            }
            known => assert_eq!(known, fate, "seed {}: {:?}", self.seed, self.txns[at]),
        }
        self.counts.resolved += 1;
        if matches!(fate, Fate::Committed(ts) if ts <= caller) && self.prng.one_in(2) {
            return Way::Committed;
        }
        let commit_version = if let Fate::Committed(ts) = fate { ts } else { 0 };
        let is_lite = self.prng.one_in(2);
        let request = kv::ResolveLockRequest {
            start_version: info.lock_version,
            commit_version,
            keys: if is_lite { vec![info.key.clone()] } else { Vec::new() },
            ..Default::default()
        };
        if is_lite {
            self.run(|reader| command::resolve_keys(reader, &request)).expect("it was just found");
        } else {
            let decisions = command::decisions(&request).expect("it commits after it began");
            let keys: Vec<Bytes> = self.txns[at].writes.iter().map(|(key, _)| key.clone()).collect();
            self.run(|reader| Ok(Planned { plan: command::resolve_found(reader, &decisions, &keys)?, answer: () }))
                .expect("decided");
        }
        Way::Resolved
    }

    /// What the locks of an async commit decide; `None` if they do not.
    fn check_secondaries(&mut self, primary: &kv::LockInfo) -> Option<Fate> {
        let request = kv::CheckSecondaryLocksRequest {
            keys: primary.secondaries.clone(),
            start_version: primary.lock_version,
            ..Default::default()
        };
        self.region.memory.read_at(TimeStamp(primary.lock_version));
        let answer = self.run(|reader| command::check_secondary_locks(reader, &request)).expect("readable");
        if answer.locks.iter().any(|lock| !lock.use_async_commit) {
            return None;
        }
        if answer.locks.len() == primary.secondaries.len() {
            let highest = answer.locks.iter().map(|lock| lock.min_commit_ts).max().unwrap_or(0);
            return Some(Fate::Committed(highest.max(primary.min_commit_ts)));
        }
        Some(match answer.commit_ts {
            0 => Fate::RolledBack,
            ts => Fate::Committed(ts),
        })
    }

    /// What a key is at `ts`, as far as clients know.
    fn truth(&self, key: &Bytes, ts: u64) -> Option<Bytes> {
        let committed = self.txns.iter().filter_map(|txn| match txn.fate {
            Fate::Committed(at) if at <= ts => {
                txn.writes.iter().find(|(name, _)| name == key).map(|(_, value)| (at, value.clone()))
            }
            _ => None,
        });
        committed.max_by_key(|(at, _)| *at).and_then(|(_, value)| value)
    }

    /// A timestamp that means something to a transaction: where rules for reads say "at or before", or do not.
    fn somebodys_ts(&mut self) -> Option<u64> {
        let at = self.prng.below(self.txns.len().max(1) as u64) as usize;
        let txn = self.txns.get(at)?;
        let encoded = key::encode(&txn.writes[0].0);
        let view = self.region.view();
        let lock = Reader::new(&view).lock(&encoded).expect("readable");
        let committed_at = if let Fate::Committed(ts) = txn.fate { ts } else { 0 };
        let all = [txn.start_ts, lock.map_or(0, |lock| lock.min_commit_ts.0), committed_at];
        let ts = all[self.prng.below(3) as usize];
        // Nobody reads in the future: a commit may still come there.
        (5..=self.now).contains(&ts).then_some(ts)
    }

    fn read(&mut self) {
        let ts = match self.prng.below(5) {
            0 => self.prng.range(5, self.now + 1),
            1 => u64::MAX,
            2 => match self.somebodys_ts() {
                None => return,
                Some(ts) => {
                    self.counts.at_somebodys += 1;
                    ts
                }
            },
            _ => self.ts(),
        };
        let key = Bytes::from_static(KEYS[self.prng.below(6) as usize].as_bytes());
        let mut options = ReadOptions { ts: TimeStamp(ts), ..ReadOptions::default() };
        for _ in 0..8 {
            self.region.memory.read_at(options.ts);
            self.region.memory.check(&key, &options).expect("nothing is on its way");
            match self.region.run(Some(&mut self.prng), |reader| get(reader, &key, &options)) {
                Ok(value) => {
                    let may_answer = laws::may_answer(&self.region, &key, &options);
                    assert!(may_answer, "seed {}: {key:?} at {ts} is locked", self.seed);
                    assert_eq!(value, self.truth(&key, ts), "seed {}: {key:?} at {ts}", self.seed);
                    if ts != u64::MAX {
                        self.reads.push((key, ts, value));
                    }
                    self.counts.reads += 1;
                    return;
                }
                Err(TxnError::KeyIsLocked(info)) => {
                    let forces = self.prng.one_in(5);
                    match self.resolve(&info, ts, forces) {
                        Way::Wait => return,
                        Way::Committed => options.committed_locks.push(info.lock_version),
                        Way::Passed => options.resolved_locks.push(info.lock_version),
                        Way::Resolved => {}
                    }
                }
                Err(error) => panic!("seed {}: {error}", self.seed),
            }
        }
        panic!("seed {}: a lock cannot be resolved", self.seed);
    }

    fn scan(&mut self) {
        let ts = self.ts();
        let reverse = self.prng.one_in(2);
        let request = ScanRequest { limit: 100, reverse, ..ScanRequest::default() };
        let options = ReadOptions { ts: TimeStamp(ts), ..ReadOptions::default() };
        self.region.memory.read_at(options.ts);
        let mut scan = Scan::new(request, options, b"", b"");
        while scan.step(&self.region.view(), self.prng.range(1, 10)).expect("readable") == Step::More {}
        let pairs = scan.into_pairs();
        if pairs.iter().any(|pair| pair.error.is_some()) {
            return;
        }
        let all = KEYS.iter().map(|key| Bytes::from_static(key.as_bytes()));
        let mut expected: Vec<(Bytes, Bytes)> =
            all.filter_map(|key| self.truth(&key, ts).map(|value| (key, value))).collect();
        if reverse {
            expected.reverse();
        }
        let got: Vec<_> = pairs.into_iter().map(|pair| (pair.key, pair.value)).collect();
        assert_eq!(got, expected, "seed {} at {ts}", self.seed);
        for key in KEYS.map(|key| Bytes::from_static(key.as_bytes())) {
            let value = self.truth(&key, ts);
            self.reads.push((key, ts, value));
        }
        self.counts.reads += 1;
    }

    fn step(&mut self) {
        let one = if self.txns.is_empty() {
            None
        } else if self.prng.one_in(5) {
            // Anybody, those that ended long ago included.
            Some(self.prng.below(self.txns.len() as u64) as usize)
        } else {
            let last = self.txns.len() as u64;
            Some(self.prng.range(last.saturating_sub(2), last) as usize)
        };
        match (self.prng.below(13), one) {
            (0, _) | (_, None) => self.begin(),
            (1..=5, Some(at)) => self.prewrite(at),
            (6..=7, Some(at)) => self.commit(at),
            (8, Some(at)) if self.prng.one_in(6) && !self.is_async_decided(at) => self.roll_back(at),
            (9, _) => self.scan(),
            _ => self.read(),
        }
    }

    /// An async commit whose client knows that it has committed, which is not carried out yet.
    fn is_async_decided(&self, at: usize) -> bool {
        let txn = &self.txns[at];
        txn.style == Style::Async && matches!(txn.fate, Fate::Committed(_))
    }

    /// Everything is resolved; then what was read is what is there.
    fn finish(mut self) -> Counts {
        let ts = self.ts();
        for key in KEYS {
            let key = Bytes::from_static(key.as_bytes());
            let mut found = None;
            for _ in 0..50 {
                let options = ReadOptions { ts: TimeStamp(ts), ..ReadOptions::default() };
                match self.region.run(None, |reader| get(reader, &key, &options)) {
                    Err(TxnError::KeyIsLocked(info)) => assert_ne!(self.resolve(&info, ts, true), Way::Wait),
                    read => {
                        found = Some(read);
                        break;
                    }
                }
            }
            assert_eq!(found, Some(Ok(self.truth(&key, ts))), "seed {}: {key:?}", self.seed);
        }
        for (key, ts, value) in &self.reads {
            assert_eq!(*value, self.truth(key, *ts), "seed {}: {key:?} at {ts} was read otherwise", self.seed);
            let options = ReadOptions { ts: TimeStamp(*ts), ..ReadOptions::default() };
            if let Ok(again) = self.region.run(None, |reader| get(reader, key, &options)) {
                assert_eq!(again, *value, "seed {}: {key:?} at {ts} reads otherwise now", self.seed);
            }
        }
        for txn in self.txns.iter().filter(|txn| txn.fate == Fate::RolledBack && !txn.is_unprotected) {
            let is_known = laws::is_rolled_back(&self.region, &txn.writes[0].0, txn.start_ts);
            assert!(is_known, "seed {}: nothing says any more that {txn:?} was rolled back", self.seed);
        }
        for key in KEYS {
            let left = laws::left_over_values(&self.region, &Bytes::from_static(key.as_bytes()));
            assert!(left.is_empty(), "seed {}: values of {left:?} on {key} are nobody's", self.seed);
        }
        self.check_lost_updates();
        self.counts
    }

    /// Of two commits on one key the later one has seen the earlier one.
    fn check_lost_updates(&self) {
        for key in KEYS {
            let key = key.as_bytes();
            let mut spans: Vec<(u64, u64)> = self
                .txns
                .iter()
                .filter_map(|txn| match txn.fate {
                    Fate::Committed(at) if txn.writes.iter().any(|(name, _)| name == key) => {
                        let seen = if txn.for_update_ts == 0 { txn.start_ts } else { txn.for_update_ts };
                        Some((at, seen))
                    }
                    _ => None,
                })
                .collect();
            spans.sort_unstable();
            for pair in spans.windows(2) {
                let ((earlier, _), (later, seen)) = (pair[0], pair[1]);
                assert!(seen >= earlier, "seed {}: {later} has not seen {earlier}", self.seed);
                assert_ne!(earlier, later, "seed {}: two commits of a key at {later}", self.seed);
            }
        }
    }
}

#[test]
fn random_histories_keep_what_clients_rely_on() {
    let mut sum = Counts::default();
    for seed in 0..SEEDS {
        let mut world = World::new(seed);
        for _ in 0..STEPS {
            world.step();
        }
        let Counts {
            committed,
            async_committed,
            one_phase,
            rolled_back,
            conflicts,
            reads,
            pushed,
            resolved,
            late,
            fell_back,
            at_somebodys,
        } = world.finish();
        sum.committed += committed;
        sum.async_committed += async_committed;
        sum.one_phase += one_phase;
        sum.rolled_back += rolled_back;
        sum.conflicts += conflicts;
        sum.reads += reads;
        sum.pushed += pushed;
        sum.resolved += resolved;
        sum.late += late;
        sum.fell_back += fell_back;
        sum.at_somebodys += at_somebodys;
    }
    let reached = [
        ("committed", sum.committed),
        ("async commits", sum.async_committed),
        ("one-phase commits", sum.one_phase),
        ("rolled back", sum.rolled_back),
        ("conflicts", sum.conflicts),
        ("reads", sum.reads),
        ("pushed", sum.pushed),
        ("resolved", sum.resolved),
        ("late", sum.late),
        ("fell back", sum.fell_back),
        ("reads at somebody's timestamp", sum.at_somebodys),
    ];
    println!("{reached:?}");
    for (what, count) in reached {
        assert!(count > 100, "{what}: only {count}");
    }
}
