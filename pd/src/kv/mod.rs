//! An ordered map with etcd's revisions, leases and history: what the placement driver's own records live in, and
//! what stock etcd clients see of it. Pure: it does no I/O and reads no clock.
//!
//! Each [`KeySpace::commit`] takes one revision. The newest events stay in a bounded history, which serves watches
//! and reads of recent revisions; older ones count as compacted.

mod change;
mod lease;
mod range;

pub use change::{Change, MalformedChange, Record};
pub use lease::Leases;
pub use range::{RangeError, RangeQuery, RangeResult, SortBy, in_range};

use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

/// Events kept for watches and for reads of the past.
const HISTORY_EVENTS_MAX: usize = 8192;
/// Bytes of keys and values kept with them.
const HISTORY_BYTES_MAX: usize = 16 << 20;

/// One change of a key, as watches report it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The key.
    pub key: Bytes,
    /// The revision of the change.
    pub revision: i64,
    /// The key's new record; `None` when it was deleted.
    pub now: Option<Record>,
    /// What the key held before.
    pub before: Option<Record>,
}

impl Event {
    fn bytes(&self) -> usize {
        let value = |record: &Option<Record>| record.as_ref().map_or(0, |record| record.value.len());
        self.key.len() + value(&self.now) + value(&self.before)
    }
}

/// One write of a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Sets a key.
    Put {
        /// The key.
        key: Bytes,
        /// Its value.
        value: Bytes,
        /// The lease that ends it; 0 for none.
        lease: i64,
    },
    /// Removes a key, if it is there.
    Delete {
        /// The key.
        key: Bytes,
    },
}

impl Op {
    /// A put without a lease.
    pub fn put(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Op {
        Op::Put { key: key.into(), value: value.into(), lease: 0 }
    }

    /// A removal.
    pub fn delete(key: impl Into<Bytes>) -> Op {
        Op::Delete { key: key.into() }
    }
}

/// The map.
#[derive(Clone, Debug)]
pub struct KeySpace {
    map: BTreeMap<Bytes, Record>,
    /// Keys by the lease they end with.
    leased: BTreeMap<i64, BTreeSet<Bytes>>,
    revision: i64,
    /// Events at or below this revision are gone.
    compacted: i64,
    history: VecDeque<Rc<Event>>,
    history_bytes: usize,
    bytes: usize,
}

impl Default for KeySpace {
    fn default() -> Self {
        Self::new()
    }
}

impl KeySpace {
    /// An empty map at revision 1, as etcd begins.
    pub fn new() -> Self {
        KeySpace {
            map: BTreeMap::new(),
            leased: BTreeMap::new(),
            revision: 1,
            compacted: 0,
            history: VecDeque::new(),
            history_bytes: 0,
            bytes: 0,
        }
    }

    /// The newest revision.
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// Events at or below this revision are gone.
    pub fn compacted(&self) -> i64 {
        self.compacted
    }

    /// Bytes of all keys and values.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Whether there are no keys.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// The record of `key`.
    pub fn get(&self, key: &[u8]) -> Option<&Record> {
        self.map.get(key)
    }

    /// The value of `key`.
    pub fn value(&self, key: &[u8]) -> Option<&Bytes> {
        self.map.get(key).map(|record| &record.value)
    }

    /// Keys that begin with `prefix`, in order.
    pub fn prefix<'a>(&'a self, prefix: &'a [u8]) -> impl Iterator<Item = (&'a Bytes, &'a Record)> {
        self.map
            .range::<[u8], _>((std::ops::Bound::Included(prefix), std::ops::Bound::Unbounded))
            .take_while(move |(key, _)| key.starts_with(prefix))
    }

    /// Every key, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&Bytes, &Record)> {
        self.map.iter()
    }

    /// Keys that end with `lease`.
    pub fn keys_of_lease(&self, lease: i64) -> impl Iterator<Item = &Bytes> {
        self.leased.get(&lease).into_iter().flatten()
    }

    /// Carries out `ops` at one new revision and returns what changed. Without effect it takes no revision.
    pub fn commit(&mut self, ops: Vec<Op>) -> Vec<Change> {
        self.commit_at(self.revision + 1, ops)
    }

    /// Carries out more `ops` of the commit that takes `revision`: the next one, or the newest if it has begun.
    pub fn commit_at(&mut self, revision: i64, ops: Vec<Op>) -> Vec<Change> {
        assert!(revision == self.revision || revision == self.revision + 1, "revisions follow each other");
        let mut changes = Vec::with_capacity(ops.len());
        for op in ops {
            match op {
                Op::Put { key, value, lease } => {
                    let (create_revision, version) = match self.map.get(&key) {
                        Some(old) => (old.create_revision, old.version + 1),
                        None => (revision, 1),
                    };
                    let record = Record { value, create_revision, mod_revision: revision, version, lease };
                    changes.push(Change::Put { key, record });
                }
                Op::Delete { key } if self.map.contains_key(&key) => {
                    changes.push(Change::Delete { key, revision });
                }
                Op::Delete { .. } => continue,
            }
            self.apply(changes.last().expect("an op was just turned into a change"));
        }
        changes
    }

    /// Applies one change of keys; those of regions and leases are not for this map.
    pub fn apply(&mut self, change: &Change) {
        match change {
            Change::Put { key, record } => {
                let before = self.map.insert(key.clone(), record.clone());
                self.bytes += key.len() + record.value.len();
                self.unlink(key, before.as_ref());
                if record.lease != 0 {
                    self.leased.entry(record.lease).or_default().insert(key.clone());
                }
                self.remember(Event {
                    key: key.clone(),
                    revision: record.mod_revision,
                    now: Some(record.clone()),
                    before,
                });
            }
            Change::Delete { key, revision } => {
                let before = self.map.remove(key);
                self.unlink(key, before.as_ref());
                self.remember(Event { key: key.clone(), revision: *revision, now: None, before });
            }
            Change::Revision(revision) => self.revision = self.revision.max(*revision),
            Change::PutRegion { .. }
            | Change::DropRegion { .. }
            | Change::PutLease { .. }
            | Change::DropLease { .. } => {}
        }
    }

    /// Takes a replaced or removed record out of the counters and the lease index.
    fn unlink(&mut self, key: &Bytes, before: Option<&Record>) {
        let Some(before) = before else { return };
        self.bytes -= key.len() + before.value.len();
        let still = self.map.get(key).map_or(0, |record| record.lease);
        if before.lease != 0
            && before.lease != still
            && let Some(keys) = self.leased.get_mut(&before.lease)
        {
            keys.remove(key);
            if keys.is_empty() {
                self.leased.remove(&before.lease);
            }
        }
    }

    fn remember(&mut self, event: Event) {
        self.revision = self.revision.max(event.revision);
        self.history_bytes += event.bytes();
        self.history.push_back(Rc::new(event));
        while self.history.len() > HISTORY_EVENTS_MAX || self.history_bytes > HISTORY_BYTES_MAX {
            let Some(oldest) = self.history.front() else {
                break;
            };
            // A revision leaves as a whole: half of one would be reported as all of it.
            self.compact(oldest.revision);
        }
    }

    /// Forgets the events at or below `revision`.
    pub fn compact(&mut self, revision: i64) {
        self.compacted = self.compacted.max(revision);
        while let Some(event) = self.history.front()
            && event.revision <= self.compacted
        {
            self.history_bytes -= event.bytes();
            self.history.pop_front();
        }
    }

    /// Events after revision `after` and up to `until`, oldest first; `None` if some of them are compacted.
    pub fn events(&self, after: i64, until: i64) -> Option<impl Iterator<Item = &Rc<Event>>> {
        (after >= self.compacted).then(|| {
            let from = self.history.partition_point(|event| event.revision <= after);
            self.history.range(from..).take_while(move |event| event.revision <= until)
        })
    }
}
