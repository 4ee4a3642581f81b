//! Safe points and barriers of garbage collection against a naive twin: random calls of clients old and new, time that
//! passes, restarts.

use base::{ClusterId, Prng, UnixTime};
use bytes::{Bytes, BytesMut};
use pd::kv::Op;
use pd::state::{GcScope, MIN_START_TS_PREFIX, State};
use std::collections::BTreeMap;

const SECOND: u64 = 1_000_000_000;
const IDS: [&str; 4] = ["backup", "cdc", "lightning", "native_br"];

/// A timestamp and when it ends, in seconds.
type Barriers = BTreeMap<&'static str, (u64, i64)>;

/// The same in a few words: two numbers and three maps.
#[derive(Default)]
struct Twin {
    txn: u64,
    gc: u64,
    barriers: Barriers,
    global: Barriers,
    running: BTreeMap<u64, u64>,
}

impl Twin {
    fn live(&self, now: i64) -> impl Iterator<Item = u64> {
        let all = self.barriers.values().chain(self.global.values());
        all.filter(move |(_, ends)| *ends > now).map(|(ts, _)| *ts)
    }

    /// The smallest timestamp that anything holds.
    fn held(&self, now: i64) -> Option<u64> {
        self.live(now).chain(self.running.values().copied()).min()
    }

    fn advance_txn(&mut self, target: u64, now: i64) -> Option<(u64, bool)> {
        if target < self.txn {
            return None;
        }
        let stopped = self.held(now).filter(|held| *held < target);
        self.txn = self.txn.max(stopped.unwrap_or(target));
        Some((self.txn, stopped.is_some()))
    }

    fn set(&mut self, is_global: bool, id: &'static str, ts: u64, ends: i64) -> bool {
        let is_ahead = ts >= self.txn;
        if is_ahead {
            let barriers = if is_global { &mut self.global } else { &mut self.barriers };
            barriers.insert(id, (ts, ends));
        }
        is_ahead
    }
}

struct World {
    state: State,
    twin: Twin,
    journal: Vec<Bytes>,
    now: UnixTime,
    prng: Prng,
}

impl World {
    fn new(seed: u64) -> World {
        World {
            state: State::create(ClusterId(7)),
            twin: Twin::default(),
            journal: Vec::new(),
            now: UnixTime(1_000 * SECOND),
            prng: Prng::new(seed),
        }
    }

    fn seconds(&self) -> i64 {
        i64::try_from(self.now.0 / SECOND).expect("small")
    }

    fn step(&mut self) {
        let (ts, now, seconds) =
            (1 + self.prng.below(200) + self.twin.txn.saturating_sub(20), self.now, self.seconds());
        let id = IDS[self.prng.below(IDS.len() as u64) as usize];
        let ttl = if self.prng.one_in(5) { i64::MAX } else { 1 + self.prng.below(30) as i64 };
        let ends = if ttl == i64::MAX { ttl } else { seconds + ttl };
        match self.prng.below(11) {
            0 | 1 => {
                let told = self.state.advance_txn_safe_point(GcScope::CLUSTER, ts, now).ok();
                let told = told.map(|advance| (advance.new, advance.blocker.is_some()));
                assert_eq!(told, self.twin.advance_txn(ts, seconds));
            }
            2 => {
                let told = self.state.advance_gc_safe_point(GcScope::CLUSTER, ts).ok();
                let fits = (self.twin.gc..=self.twin.txn).contains(&ts);
                assert_eq!(told, fits.then_some((self.twin.gc, ts)));
                self.twin.gc = told.map_or(self.twin.gc, |(_, new)| new);
            }
            3 => {
                let told = self.state.update_gc_safe_point(GcScope::CLUSTER, ts, now).ok();
                let held = ts > self.twin.txn && self.twin.held(seconds).is_some_and(|held| held < ts);
                if ts > self.twin.gc && !held {
                    (self.twin.txn, self.twin.gc) = (self.twin.txn.max(ts), ts);
                }
                assert_eq!(told, (ts <= self.twin.gc || !held).then_some(self.twin.gc));
            }
            4 | 5 => {
                let told = self.state.set_gc_barrier(GcScope::CLUSTER, id, ts, ttl, now);
                assert_eq!(told.is_ok(), self.twin.set(false, id, ts, ends));
            }
            6 => {
                let told = self.state.set_global_gc_barrier(id, ts, ttl, now);
                assert_eq!(told.is_ok(), self.twin.set(true, id, ts, ends));
            }
            7 => {
                let told = self.state.delete_gc_barrier(GcScope::CLUSTER, id, now).expect("an id");
                let removed = self.twin.barriers.remove(id).filter(|(_, ends)| *ends > seconds);
                assert_eq!(told.map(|barrier| barrier.ts), removed.map(|(ts, _)| ts));
                drop(self.state.delete_global_gc_barrier(id, now).expect("an id"));
                self.twin.global.remove(id);
            }
            8 => self.ask_as_an_old_client(id, ttl, ends, ts),
            9 => self.run_a_transaction(ts),
            _ => self.now = UnixTime(self.now.0 + self.prng.below(10) * SECOND),
        }
    }

    /// `UpdateServiceGCSafePoint`: it is never refused, and says where the txn safe point is.
    fn ask_as_an_old_client(&mut self, id: &'static str, ttl: i64, ends: i64, ts: u64) {
        let ttl = if self.prng.one_in(4) { 0 } else { ttl };
        let told = self.state.update_service_safe_point(GcScope::CLUSTER, id, ttl, ts, self.now).expect("an answer");
        let is_global = id == "native_br";
        if ttl > 0 {
            self.twin.set(is_global, id, ts, ends);
        } else if is_global {
            self.twin.global.remove(id);
        } else {
            self.twin.barriers.remove(id);
        }
        assert_eq!(told.min_safe_point, self.twin.txn);
    }

    /// A TiDB server says when its oldest transaction began, or that it has none.
    fn run_a_transaction(&mut self, ts: u64) {
        let server = self.prng.below(3);
        let key = [MIN_START_TS_PREFIX, server.to_string().as_bytes()].concat();
        if self.twin.running.contains_key(&server) && self.prng.one_in(2) {
            self.twin.running.remove(&server);
            self.state.commit(vec![Op::delete(Bytes::from(key))]);
        } else {
            self.twin.running.insert(server, ts);
            self.state.commit(vec![Op::put(key, ts.to_string().into_bytes())]);
        }
    }

    /// What the state has changed is all that a restart finds.
    fn restart(&mut self) {
        let mut run = BytesMut::new();
        self.state.take_changes().iter().for_each(|change| change.encode(&mut run));
        self.journal.push(run.freeze());
        if self.prng.one_in(4) {
            self.state = State::load(&self.journal).expect("what was written is whole");
        }
    }

    fn check(&self, before: (u64, u64)) {
        let state = self.state.gc_state(GcScope::CLUSTER, self.now);
        assert_eq!((state.txn_safe_point, state.gc_safe_point), (self.twin.txn, self.twin.gc));
        assert!(state.gc_safe_point <= state.txn_safe_point);
        assert!(before.0 <= state.txn_safe_point && before.1 <= state.gc_safe_point, "a safe point has fallen");
        let global = self.state.global_gc_barriers(self.now);
        let held: Vec<u64> = state.barriers.iter().chain(&global).map(|barrier| barrier.ts).collect();
        assert!(held.iter().all(|ts| *ts >= state.txn_safe_point), "{held:?} are behind {}", state.txn_safe_point);
        assert_eq!(held.len(), self.twin.live(self.seconds()).count());
    }
}

#[test]
fn safe_points_never_fall_and_never_pass_what_holds_them() {
    let mut advanced = 0;
    for seed in 0..200 {
        let mut world = World::new(seed);
        for _ in 0..300 {
            let before = (world.twin.txn, world.twin.gc);
            world.step();
            world.check(before);
            world.restart();
            advanced += u64::from(world.twin.gc > before.1);
        }
    }
    println!("the gc safe point has advanced {advanced} times");
    assert!(advanced > 1_000, "the gc safe point has advanced {advanced} times only");
}

/// Servers say when their oldest transaction began: those without a keyspace, those of one that shares the cluster's garbage
/// collection, and those of one that has its own.
#[test]
fn transactions_of_a_keyspace_hold_the_safe_point_that_is_theirs() {
    let now = UnixTime(1_000 * SECOND);
    let mut state = State::create(ClusterId(7));
    let keyspace = |state: &mut State, name: &str, own: bool| {
        let config = own.then(|| ("gc_management_type".to_owned(), "keyspace_level".to_owned()));
        state.create_keyspace(name, config.into_iter().collect(), now).expect("a new one").id
    };
    let (shared, own) = (keyspace(&mut state, "shared", false), keyspace(&mut state, "own", true));
    let scope_of_own = state.gc_scope(Some(own)).expect("known");
    assert_ne!(scope_of_own, GcScope::CLUSTER);
    let starts =
        [(String::new(), "50"), (format!("/keyspaces/tidb/{shared}"), "40"), (format!("/keyspaces/tidb/{own}"), "30")];
    for (keyspace, ts) in &starts {
        state.commit(vec![Op::put(
            format!("{keyspace}/tidb/server/minstartts/s1").into_bytes(),
            ts.as_bytes().to_vec(),
        )]);
    }
    let mut advance = |scope| state.advance_txn_safe_point(scope, 100, now).expect("ahead");
    let (cluster, alone) = (advance(GcScope::CLUSTER), advance(scope_of_own));
    assert_eq!((cluster.new, alone.new), (40, 30));
    let blocker = alone.blocker.expect("a transaction").0;
    assert_eq!(blocker, format!("tidb_min_start_ts_/keyspaces/tidb/{own}/tidb/server/minstartts/s1"));
    // What cannot be read may be anything.
    let key = format!("/keyspaces/tidb/{own}/tidb/server/minstartts/s2");
    state.commit(vec![Op::put(key.clone().into_bytes(), "soon".as_bytes().to_vec())]);
    state.commit(vec![Op::delete(Bytes::from(format!("/keyspaces/tidb/{own}/tidb/server/minstartts/s1")))]);
    let held = state.advance_txn_safe_point(scope_of_own, 100, now).expect("ahead");
    assert!(held.new == 30 && held.blocker.is_some_and(|(name, text)| name.ends_with("/s2") && text.contains("soon")));
    assert!(state.update_gc_safe_point(scope_of_own, 90, now).is_err());
    state.commit(vec![Op::delete(Bytes::from(key))]);
    assert_eq!(state.advance_txn_safe_point(scope_of_own, 100, now).expect("ahead").new, 100);
}
