//! What clients do in a run, and what the cluster must then hold.
//!
//! Each worker owns its keys: it knows what it wrote last, and which writes are in doubt. Some of them lie apart, where
//! it scans and deletes whole ranges. All workers share counters that they raise by compare-and-swap. Two clocks take
//! timestamps and compare each with all that were given out before it was asked for.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use base::Prng;
use bytes::Bytes;

use super::durable::Disks;
use super::hot::Hot;
use crate::client::{Client, Fate};

const KEYS_PER_WORKER: u64 = 150;
const COUNTERS: u64 = 3;
/// Keys of a worker that lie apart from those of the others.
const APART: u64 = 60;

/// What one key may hold.
#[derive(Clone, Debug, Default)]
struct Expected {
    /// The last acknowledged state: `None` is absent.
    sure: Option<Bytes>,
    /// States of writes in doubt: any of them may be there now or appear later.
    maybe: BTreeSet<Option<Bytes>>,
}

impl Expected {
    fn allows(&self, found: &Option<Bytes>) -> bool {
        self.sure == *found || self.maybe.contains(found)
    }
}

/// What clients leave alone, so that a fault of several steps meets the cluster as it needs it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Hush {
    /// Nothing.
    #[default]
    Nothing,
    /// Whatever changes something.
    Writes,
    /// Reads, too.
    All,
}

/// What all workers know together.
#[derive(Default)]
pub(super) struct History {
    /// Operations that ended.
    pub(super) operations: Cell<u64>,
    /// Writes that were acknowledged.
    pub(super) acknowledged: Cell<u64>,
    /// Writes in doubt.
    pub(super) unknown: Cell<u64>,
    /// Orders that the placement driver took.
    pub(super) orders: Cell<u64>,
    /// Calls on the keys that everybody writes.
    pub(super) hot: Hot,
    /// Where acknowledged writes must be.
    pub(super) disks: Disks,
    /// What nobody begins for now.
    pub(super) hush: Rc<Cell<Hush>>,
    /// Workers, clocks and others that have stopped.
    pub(super) workers_done: Cell<u64>,
    /// Timestamps that were taken, and the highest of them.
    pub(super) timestamps: Cell<u64>,
    highest_timestamp: Cell<u64>,
    keys: RefCell<BTreeMap<Bytes, Expected>>,
    /// Per counter: raises that were acknowledged, and those in doubt.
    counters: RefCell<BTreeMap<Bytes, (u64, u64)>>,
}

pub(super) fn count(cell: &Cell<u64>) {
    cell.set(cell.get() + 1);
}

impl History {
    /// Nothing yet, on these disks.
    pub(super) fn on(disks: Disks, hush: Rc<Cell<Hush>>) -> History {
        History { disks, hush, ..History::default() }
    }

    /// Compares what the cluster holds with what it may hold.
    ///
    /// # Errors
    /// What is wrong.
    pub(super) fn check(&self, pairs: &[(Bytes, Bytes)]) -> Result<(), String> {
        if let Some(pair) = pairs.windows(2).find(|pair| pair[0].0 >= pair[1].0) {
            return Err(format!("a scan returned {:?} before {:?}", pair[0].0, pair[1].0));
        }
        let found: BTreeMap<&Bytes, &Bytes> = pairs.iter().map(|(key, value)| (key, value)).collect();
        for (key, expected) in self.keys.borrow().iter() {
            let held = found.get(key).map(|value| (*value).clone());
            if !expected.allows(&held) {
                return Err(format!("{key:?} is {held:?}, expected {expected:?}"));
            }
        }
        for (key, (sure, maybe)) in self.counters.borrow().iter() {
            let held = found.get(key).map_or(0, |value| number(value));
            if held < *sure || held > sure + maybe {
                return Err(format!(
                    "counter {key:?} is {held}, but {sure} raises were acknowledged and {maybe} are in doubt"
                ));
            }
        }
        let strangers = found.keys().filter(|key| {
            !Hot::is_key(key) && !self.keys.borrow().contains_key(**key) && !self.counters.borrow().contains_key(**key)
        });
        match strangers.count() {
            0 => Ok(()),
            strangers => Err(format!("{strangers} keys that nobody wrote")),
        }
    }
}

fn number(value: &Bytes) -> u64 {
    std::str::from_utf8(value).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(u64::MAX)
}

/// One client.
pub(super) struct Worker {
    number: u64,
    prng: Prng,
    history: Rc<History>,
    stop: Rc<Cell<bool>>,
    written: u64,
}

impl Worker {
    pub(super) fn new(number: u64, seed: u64, history: Rc<History>, stop: Rc<Cell<bool>>) -> Worker {
        Worker { number, prng: Prng::new(seed), history, stop, written: 0 }
    }

    pub(super) async fn run(mut self, pd: String) {
        let client = Client::new(&pd);
        while !self.stop.get() {
            if self.history.hush.get() != Hush::All {
                self.operation(&client).await;
                count(&self.history.operations);
            }
            if self.history.hush.get() != Hush::Nothing || self.prng.one_in(2) {
                executor::sleep(Duration::from_millis(self.prng.range(1, 200))).await;
            }
        }
        count(&self.history.workers_done);
    }

    fn key(&mut self) -> Bytes {
        // Workers' keys are interleaved, so that every region sees all workers.
        match self.prng.one_in(4) {
            true => self.apart(),
            false => format!("key-{:05}-{}", self.prng.below(KEYS_PER_WORKER), self.number).into(),
        }
    }

    fn apart(&mut self) -> Bytes {
        format!("own-{}-{:03}", self.number, self.prng.below(APART)).into()
    }

    fn value(&mut self) -> Bytes {
        self.written += 1;
        let length = if self.prng.one_in(20) { self.prng.below(20_000) } else { self.prng.below(200) };
        format!("{}:{}:{}", self.number, self.written, "x".repeat(length as usize)).into()
    }

    async fn operation(&mut self, client: &Client) {
        match self.prng.below(30) {
            0..=20 | 22 if self.history.hush.get() != Hush::Nothing => self.read(client).await,
            0..=14 => {
                let (key, value) = (self.key(), self.value());
                let fate = client.put(&key, &value).await;
                self.wrote(key, Some(value), fate);
            }
            15..=17 => {
                let key = self.key();
                let fate = client.delete(&key).await;
                self.wrote(key, None, fate);
            }
            18..=20 => self.raise(client).await,
            21 => self.scan(client).await,
            22 if self.prng.one_in(4) => self.delete_range(client).await,
            _ => self.read(client).await,
        }
    }

    fn wrote(&mut self, key: Bytes, value: Option<Bytes>, fate: Fate<()>) {
        let mut keys = self.history.keys.borrow_mut();
        let expected = keys.entry(key.clone()).or_default();
        match fate {
            Fate::Done(()) => {
                count(&self.history.acknowledged);
                if let Some(value) = &value {
                    self.history.disks.acknowledged(&key, value);
                }
                expected.sure = value;
            }
            Fate::Unknown(_) => {
                count(&self.history.unknown);
                expected.maybe.insert(value);
            }
            Fate::Refused(_) => {}
        }
    }

    async fn read(&mut self, client: &Client) {
        let key = self.key();
        // What a worker wrote it must find at every peer.
        let replica = self.prng.one_in(3).then(|| self.prng.next_u64());
        if let Fate::Done(found) = client.get(&key, replica).await {
            let expected = self.history.keys.borrow().get(&key).cloned().unwrap_or_default();
            assert!(
                expected.allows(&found),
                "{key:?} reads as {found:?} (replica: {replica:?}), expected {expected:?}"
            );
        }
    }

    fn range(&mut self) -> (Bytes, Bytes) {
        let (a, b) = (self.apart(), self.apart());
        if a <= b { (a, b) } else { (b, a) }
    }

    async fn scan(&mut self, client: &Client) {
        let (start, end) = self.range();
        if start == end {
            return;
        }
        let Fate::Done(pairs) = client.scan(&start, &end).await else { return };
        assert!(pairs.windows(2).all(|pair| pair[0].0 < pair[1].0), "a scan is in order: {pairs:?}");
        let mut found: BTreeMap<Bytes, Bytes> = pairs.into_iter().collect();
        for (key, expected) in self.history.keys.borrow().range(start.clone()..end.clone()) {
            let held = found.remove(key);
            assert!(expected.allows(&held), "{key:?} scans as {held:?}, expected {expected:?}");
        }
        assert!(found.is_empty(), "keys from {start:?} to {end:?} that nobody wrote: {found:?}");
    }

    async fn delete_range(&mut self, client: &Client) {
        let (start, end) = self.range();
        let fate = client.delete_range(&start, &end).await;
        for number in 0..APART {
            let key: Bytes = format!("own-{}-{number:03}", self.number).into();
            if start <= key && key < end {
                self.wrote(key, None, fate.clone());
            }
        }
    }

    /// Raises a shared counter by one.
    async fn raise(&mut self, client: &Client) {
        let key: Bytes = format!("key-{:05}-counter", self.prng.below(COUNTERS) * 50).into();
        let mut expected = None;
        for _ in 0..20 {
            let next = expected.as_ref().map_or(0, number) + 1;
            let fate = client.swap(&key, expected.clone(), &next.to_string().into()).await;
            let mut counters = self.history.counters.borrow_mut();
            let counter = counters.entry(key.clone()).or_default();
            match fate {
                Fate::Done((true, _)) => {
                    counter.0 += 1;
                    count(&self.history.acknowledged);
                    return;
                }
                Fate::Done((false, found)) => expected = found,
                Fate::Unknown(_) => {
                    counter.1 += 1;
                    count(&self.history.unknown);
                    return;
                }
                Fate::Refused(_) => return,
            }
        }
    }
}

/// Takes timestamps, each of which must be above all that were given out before it was asked for.
pub(super) async fn clock(pd: String, seed: u64, history: Rc<History>, stop: Rc<Cell<bool>>) {
    let (client, mut prng) = (Client::new(&pd), Prng::new(seed));
    while !stop.get() {
        let before = history.highest_timestamp.get();
        if let Ok(timestamp) = client.timestamp().await {
            assert!(timestamp > before, "timestamp {timestamp} was given out after {before}");
            history.highest_timestamp.set(timestamp.max(history.highest_timestamp.get()));
            count(&history.timestamps);
        }
        executor::sleep(Duration::from_millis(prng.range(1, 200))).await;
    }
    count(&history.workers_done);
}
