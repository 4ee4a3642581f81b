//! Keys that everybody writes and reads, and the history of all calls on them, which must be linearizable.
//!
//! Every call is one attempt, so that each is in the history once. Reads ask any peer of the region, too: one that takes
//! itself for the leader answers, and must not be wrong.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use base::Prng;
use bytes::Bytes;

use super::linear::{self, Action, Call, Value, Verdict};
use super::workload::{History, Hush, count};
use crate::client::{Client, Fate};

/// They lie between the workers' keys.
pub(super) const KEYS: [&str; 4] = ["key-00020-hot", "key-00060-hot", "key-00100-hot", "key-00140-hot"];
/// Steps of the search in the history of one key.
const STEPS_MAX: usize = 300_000;

/// What is shown of a history before the place where it breaks.
const AROUND: Duration = Duration::from_millis(700);

/// The calls on all hot keys.
#[derive(Default)]
pub(super) struct Hot {
    calls: RefCell<BTreeMap<Bytes, Vec<Call>>>,
    written: Cell<u64>,
}

fn now() -> u64 {
    executor::now().0
}

/// The value of a write's number; some are long.
fn encode(number: u64) -> Bytes {
    format!("{number}:{}", "h".repeat((number * 37 % 101) as usize)).into()
}

fn decode(value: &Option<Bytes>) -> Value {
    let value = value.as_ref()?;
    let text = std::str::from_utf8(value).unwrap_or_default();
    let number = text.split(':').next().and_then(|digits| digits.parse().ok());
    let number = number.filter(|number| encode(*number) == *value);
    // No write has this number, so no order explains it.
    Some(number.unwrap_or(u64::MAX))
}

/// The calls that went on when a search got stuck, and just before: one to a line.
fn around(calls: &[Call], stuck: &[Call]) -> String {
    let Some(at) = stuck.iter().map(|call| call.start).min() else { return String::new() };
    let from = at.saturating_sub(AROUND.as_nanos() as u64);
    let ends_before = |call: &&Call| call.end.is_some_and(|end| end < from);
    let mut near: Vec<&Call> = calls.iter().filter(|call| call.start <= at + 1_000_000 && !ends_before(call)).collect();
    near.sort_by_key(|call| call.start);
    near.iter().map(|call| format!("  {:?} from {} to {:?}\n", call.action, call.start, call.end)).collect()
}

impl Hot {
    pub(super) fn is_key(key: &[u8]) -> bool {
        KEYS.iter().any(|hot| hot.as_bytes() == key)
    }

    fn note(&self, key: &Bytes, start: u64, end: Option<u64>, action: Action) {
        self.calls.borrow_mut().entry(key.clone()).or_default().push(Call { start, end, action });
    }

    fn next_number(&self) -> u64 {
        count(&self.written);
        self.written.get()
    }

    /// What was found, if there was an answer.
    async fn read(&self, client: &Client, key: &Bytes, peer: Option<usize>, is_replica: bool) -> Option<Value> {
        let start = now();
        let Fate::Done(found) = client.read_once(key, peer, is_replica).await else { return None };
        let found = decode(&found);
        self.note(key, start, Some(now()), Action::Read(found));
        Some(found)
    }

    async fn write(&self, client: &Client, key: &Bytes, is_put: bool, peer: Option<usize>, history: &History) {
        let number = is_put.then(|| self.next_number());
        let start = now();
        let fate = client.write_once(key, number.map(encode).as_ref(), peer).await;
        self.wrote(key, start, Action::Write(number), fate, history);
    }

    fn wrote<T>(&self, key: &Bytes, start: u64, action: Action, fate: Fate<T>, history: &History) {
        match fate {
            Fate::Done(_) => {
                count(&history.acknowledged);
                self.note(key, start, Some(now()), action);
            }
            Fate::Unknown(_) => {
                count(&history.unknown);
                self.note(key, start, None, action);
            }
            Fate::Refused(_) => {}
        }
    }

    async fn swap(&self, client: &Client, key: &Bytes, expected: Value, history: &History) -> Value {
        let (number, start) = (self.next_number(), now());
        let action = Action::Swap { expected, value: Some(number) };
        match client.swap(key, expected.map(encode), &encode(number)).await {
            Fate::Done((false, found)) => {
                let found = decode(&found);
                assert_ne!(found, expected, "a swap was refused though it found what it expected");
                self.note(key, start, Some(now()), Action::Read(found));
                found
            }
            fate => {
                self.wrote(key, start, action, fate, history);
                Some(number)
            }
        }
    }

    /// What the cluster holds in the end, read between `start` and now.
    pub(super) fn note_last(&self, start: u64, pairs: &[(Bytes, Bytes)]) {
        for key in KEYS {
            let found = pairs.iter().find(|(name, _)| name == key).map(|(_, value)| value.clone());
            self.note(&key.into(), start, Some(now()), Action::Read(decode(&found)));
        }
    }

    /// Looks for an order of the calls on each key; answers with the number of keys whose search was given up.
    ///
    /// # Errors
    /// A key whose history no order explains.
    pub(super) fn check(&self) -> Result<u64, String> {
        let mut undecided = 0;
        for (key, calls) in self.calls.borrow().iter() {
            match linear::check(calls, STEPS_MAX) {
                Verdict::Linearizable => {}
                Verdict::Undecided => undecided += 1,
                Verdict::Broken(stuck) => {
                    let around = around(calls, &stuck);
                    let calls = calls.len();
                    return Err(format!(
                        "{calls} calls on {key:?} have no order; it is stuck before {stuck:?}; around it:\n{around}"
                    ));
                }
            }
        }
        Ok(undecided)
    }
}

/// What a client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Habit {
    /// Everything, with pauses of up to so long.
    All(Duration),
    /// It asks any peer of the first key, one after the other, and waits for nobody: whoever leads and whoever led just now
    /// hear of it at the same time. Now and then it asks for what a follower may answer, too.
    Read,
    /// The same with writes.
    Write,
    /// It swaps what it finds at the first key's leader.
    Swap,
}

/// A client that does nothing but this.
pub(super) async fn run(pd: String, seed: u64, history: Rc<History>, stop: Rc<Cell<bool>>, habit: Habit) {
    let Habit::All(pause) = habit else { return probe(pd, seed, history, stop, habit).await };
    let (client, mut prng, hot) = (Client::new(&pd), Prng::new(seed), &history.hot);
    let mut seen: [Value; KEYS.len()] = Default::default();
    while !stop.get() {
        let at = prng.below(KEYS.len() as u64) as usize;
        let key = Bytes::from(KEYS[at]);
        match prng.below(12) {
            _ if history.hush.get() == Hush::All => {}
            at if at <= 6 || history.hush.get() == Hush::Writes => {
                let peer = prng.one_in(2).then(|| prng.below(60) as usize);
                hot.read(&client, &key, peer, false).await;
            }
            7 | 8 => hot.write(&client, &key, true, None, &history).await,
            9 if prng.one_in(4) => hot.write(&client, &key, false, None, &history).await,
            _ => {
                // Again with what was found: most first ones come too late.
                for _ in 0..2 {
                    seen[at] = hot.swap(&client, &key, seen[at], &history).await;
                }
            }
        }
        count(&history.operations);
        executor::sleep(Duration::from_nanos(prng.below(pause.as_nanos() as u64 + 1))).await;
    }
    count(&history.workers_done);
}

async fn probe(pd: String, seed: u64, history: Rc<History>, stop: Rc<Cell<bool>>, habit: Habit) {
    let (client, mut prng, hot) = (Client::new(&pd), Prng::new(seed), &history.hot);
    client.patience.set(Duration::from_millis(100));
    // A swap that hangs on its way is to go on once it can: the node gives up what is past its deadline.
    let patient = Client::new(&pd);
    patient.patience.set(Duration::from_secs(6));
    while !stop.get() {
        let (key, peer) = (Bytes::from(KEYS[0]), Some(prng.below(60) as usize));
        match habit {
            _ if history.hush.get() == Hush::All => {}
            Habit::Write | Habit::Swap if history.hush.get() == Hush::Writes => {}
            Habit::Write => hot.write(&client, &key, true, peer, &history).await,
            Habit::Swap => {
                if let Some(found) = hot.read(&client, &key, None, false).await {
                    hot.swap(&patient, &key, found, &history).await;
                }
            }
            _ => {
                let is_replica = prng.one_in(4);
                hot.read(&client, &key, peer, is_replica).await;
            }
        }
        count(&history.operations);
        executor::sleep(Duration::from_millis(prng.range(1, 40))).await;
    }
    count(&history.workers_done);
}
