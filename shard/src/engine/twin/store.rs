//! The twin's state: what is durable, and what one life of the engine holds in memory.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::PathBuf;

use base::Prng;
use bytes::Bytes;
use mvcc::{Cf, ReadError};

use super::TwinFaults;
use crate::engine::ttl::TOMBSTONE_V2;
use crate::engine::{BatchOp, EncodedBatch, EngineError, Tier, TtlFilter, Verdict};

/// Entries of one family.
type Family<V> = BTreeMap<Bytes, V>;

/// What the disk holds.
#[derive(Clone, Debug, Default)]
pub(super) struct Durable {
    pub(super) families: [Family<Bytes>; 4],
    /// The value before the durable one, or before its tombstone: what reappears when the wrong file is dropped.
    hidden: [Family<Bytes>; 4],
    /// Table files by path, for ingest.
    pub(super) tables: BTreeMap<PathBuf, Vec<(Bytes, Bytes)>>,
    /// An engine has it open.
    pub(super) in_use: bool,
}

impl Durable {
    pub(super) fn bytes_in(&self, cf: Cf, start: &[u8], end: &[u8]) -> u64 {
        self.families[cf.index()]
            .range::<[u8], _>(bounds(start, end))
            .map(|(key, value)| (key.len() + value.len()) as u64)
            .sum()
    }

    fn set(&mut self, cf: Cf, key: Bytes, value: Option<Bytes>) {
        let family = &mut self.families[cf.index()];
        let old = match value {
            Some(value) => family.insert(key.clone(), value),
            None => family.remove(&key),
        };
        if let Some(old) = old {
            self.hidden[cf.index()].insert(key, old);
        }
    }
}

/// One version of a key.
#[derive(Clone, Debug)]
struct Version {
    sequence: u64,
    /// `None` is a tombstone.
    value: Option<Bytes>,
    /// It came in a table file.
    ingested: bool,
}

/// What one life of the engine knows.
#[derive(Debug)]
pub(super) struct Store {
    pub(super) alive: bool,
    pub(super) closed: bool,
    pub(super) faults: TwinFaults,
    pub(super) sequence: u64,
    pub(super) flushed_sequence: u64,
    pub(super) memtable_bytes: u64,
    pub(super) background_errors: u64,
    /// Sequence number up to which everything is durable, by whatever flush.
    durable_sequence: u64,
    failed: Option<EngineError>,
    prng: Prng,
    /// Versions of each key, oldest first; as many as open snapshots can tell apart.
    families: [Family<Vec<Version>>; 4],
    /// The newest state of keys that were written since the last flush: the memtable.
    memtable: [Family<Option<Bytes>>; 4],
    /// Open snapshots by sequence number.
    snapshots: BTreeMap<u64, u64>,
}

impl Store {
    pub(super) fn recover(durable: &Durable, prng: Prng, faults: TwinFaults) -> Store {
        let families = std::array::from_fn(|i| {
            durable.families[i]
                .iter()
                .map(|(key, value)| (key.clone(), vec![Version::file(0, value.clone())]))
                .collect()
        });
        Store {
            alive: true,
            closed: false,
            faults,
            sequence: 0,
            flushed_sequence: 0,
            memtable_bytes: 0,
            background_errors: 0,
            durable_sequence: 0,
            failed: None,
            prng,
            families,
            memtable: Default::default(),
            snapshots: BTreeMap::new(),
        }
    }

    /// True once in `one_in` calls.
    pub(super) fn chance(&mut self, one_in: u64) -> bool {
        self.prng.one_in(one_in)
    }

    pub(super) fn check_alive(&self) -> Result<(), EngineError> {
        if self.alive { Ok(()) } else { Err(EngineError::Closed) }
    }

    pub(super) fn check_writable(&self) -> Result<(), EngineError> {
        match &self.failed {
            _ if !self.alive || self.closed => Err(EngineError::Closed),
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }

    pub(super) fn fail(&mut self, what: &str) -> EngineError {
        let error = EngineError::Failed(what.into());
        self.background_errors += 1;
        self.failed = Some(error.clone());
        error
    }

    /// A flush that was asked for has failed: now and then the engine can go on.
    pub(super) fn flush_failed(&mut self) -> EngineError {
        if self.chance(2) {
            return self.fail("a flush failed");
        }
        self.background_errors += 1;
        EngineError::NoSpace("a flush failed".into())
    }

    pub(super) fn die(&mut self) {
        self.alive = false;
        self.families = Default::default();
        self.memtable = Default::default();
    }

    pub(super) fn apply(&mut self, batch: &EncodedBatch) {
        for op in batch.ops() {
            self.sequence += 1;
            match op {
                BatchOp::Put(cf, key, value) => {
                    self.set(cf, Bytes::copy_from_slice(key), Some(Bytes::copy_from_slice(value)));
                }
                BatchOp::Delete(cf, key) => self.set(cf, Bytes::copy_from_slice(key), None),
                BatchOp::DeleteRange(cf, start, end) => {
                    let keys: Vec<Bytes> = self.families[cf.index()]
                        .range::<[u8], _>(bounds(start, end))
                        .map(|(key, _)| key.clone())
                        .collect();
                    for key in keys {
                        self.set(cf, key, None);
                    }
                }
            }
        }
    }

    fn set(&mut self, cf: Cf, key: Bytes, value: Option<Bytes>) {
        let bytes = key.len() + value.as_ref().map_or(0, Bytes::len);
        self.memtable_bytes += bytes as u64;
        self.memtable[cf.index()].insert(key.clone(), value.clone());
        let version = Version { sequence: self.sequence, value, ingested: false };
        self.push(cf, key, version);
    }

    /// Adds a version and forgets those that no snapshot can see any more.
    fn push(&mut self, cf: Cf, key: Bytes, version: Version) {
        let oldest = self.snapshots.keys().next().copied().unwrap_or(u64::MAX);
        let family = &mut self.families[cf.index()];
        let versions = family.entry(key.clone()).or_default();
        versions.push(version);
        let seen_by_oldest = versions.iter().rposition(|v| v.sequence <= oldest);
        versions.drain(..seen_by_oldest.unwrap_or(0));
        if versions.len() == 1 && versions[0].value.is_none() {
            family.remove(&key);
        }
    }

    /// All of the memtable goes to the disk, every family at once.
    pub(super) fn make_durable(&mut self, disk: &mut Durable) {
        for cf in Cf::ALL {
            for (key, value) in std::mem::take(&mut self.memtable[cf.index()]) {
                disk.set(cf, key, value);
            }
        }
        self.memtable_bytes = 0;
        self.durable_sequence = self.sequence;
    }

    pub(super) fn overlaps_memtable(&self, cf: Cf, table: &[(Bytes, Bytes)]) -> bool {
        let (Some((first, _)), Some((last, _))) = (table.first(), table.last()) else {
            return false;
        };
        self.memtable[cf.index()].range(first.clone()..=last.clone()).next().is_some()
    }

    /// Durable at once, whatever the memtable holds of other keys.
    pub(super) fn ingest(&mut self, cf: Cf, table: Vec<(Bytes, Bytes)>, disk: &mut Durable) {
        self.sequence += 1;
        for (key, value) in table {
            disk.set(cf, key.clone(), Some(value.clone()));
            self.push(cf, key, Version::file(self.sequence, value));
        }
    }

    /// Drops the files of some part of the range: what is in them is gone for snapshots too, and older values that a
    /// dropped tombstone hid may reappear.
    pub(super) fn drop_files(&mut self, cf: Cf, start: &[u8], end: &[u8], disk: &mut Durable) {
        let mut keys: Vec<Bytes> =
            self.families[cf.index()].range::<[u8], _>(bounds(start, end)).map(|(key, _)| key.clone()).collect();
        let from = self.prng.below(keys.len() as u64 + 1) as usize;
        let to = self.prng.range(from as u64, keys.len() as u64 + 1) as usize;
        for key in keys.drain(from..to) {
            let versions = self.families[cf.index()].entry(key.clone()).or_default();
            versions.retain(|v| !v.ingested && v.sequence > self.durable_sequence);
            if versions.is_empty() {
                self.families[cf.index()].remove(&key);
            }
            disk.families[cf.index()].remove(&key);
        }
        let hidden: Vec<(Bytes, Bytes)> = disk.hidden[cf.index()]
            .range::<[u8], _>(bounds(start, end))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        for (key, value) in hidden {
            let unknown =
                !self.families[cf.index()].contains_key(&key) && !self.memtable[cf.index()].contains_key(&key);
            if unknown && self.chance(self.faults.resurface_one_in) {
                disk.families[cf.index()].insert(key.clone(), value.clone());
                self.families[cf.index()].insert(key, vec![Version::file(0, value)]);
            }
        }
    }

    pub(super) fn compact(&mut self, cf: Cf, start: &[u8], end: &[u8], ttl: Option<&TtlFilter>, disk: &mut Durable) {
        let range = || bounds(start, end);
        let hidden: Vec<Bytes> =
            disk.hidden[cf.index()].range::<[u8], _>(range()).map(|(key, _)| key.clone()).collect();
        for key in hidden {
            disk.hidden[cf.index()].remove(&key);
        }
        let Some(ttl) = ttl.filter(|_| cf == Cf::Default) else {
            return;
        };
        let family = &mut disk.families[cf.index()];
        let expired: Vec<(Bytes, Verdict)> = family
            .range::<[u8], _>(range())
            .map(|(key, value)| (key.clone(), ttl.judge(key, value)))
            .filter(|(_, verdict)| *verdict != Verdict::Keep)
            .collect();
        for (key, verdict) in expired {
            if verdict == Verdict::Remove {
                family.remove(&key);
                self.families[cf.index()].remove(&key);
            } else {
                let value = Bytes::from_static(TOMBSTONE_V2);
                family.insert(key.clone(), value.clone());
                self.families[cf.index()].insert(key, vec![Version::file(0, value)]);
            }
        }
    }

    /// The newest value of `key` at or before `sequence`.
    pub(super) fn read(&mut self, cf: Cf, key: &[u8], sequence: u64, tier: Tier) -> Result<Option<Bytes>, ReadError> {
        self.check_readable(tier)?;
        let versions = self.families[cf.index()].get(key);
        Ok(versions.and_then(|versions| visible(versions, sequence)))
    }

    /// The first entry that `sequence` sees in a range, from its lower or from its upper end.
    pub(super) fn find(
        &mut self,
        cf: Cf,
        range: (Bound<&[u8]>, Bound<&[u8]>),
        up: bool,
        sequence: u64,
        tier: Tier,
    ) -> Result<Option<(Bytes, Bytes)>, ReadError> {
        self.check_readable(tier)?;
        if !is_range(range) {
            return Ok(None);
        }
        let mut entries = self.families[cf.index()].range::<[u8], _>(range);
        let see =
            |(key, versions): (&Bytes, &Vec<Version>)| visible(versions, sequence).map(|value| (key.clone(), value));
        Ok(if up { entries.find_map(see) } else { entries.rev().find_map(see) })
    }

    pub(super) fn open_snapshot(&mut self) -> u64 {
        *self.snapshots.entry(self.sequence).or_default() += 1;
        self.sequence
    }

    pub(super) fn close_snapshot(&mut self, sequence: u64) {
        let open = self.snapshots.get_mut(&sequence).expect("a snapshot closes once");
        *open -= 1;
        if *open == 0 {
            self.snapshots.remove(&sequence);
        }
    }

    pub(super) fn open_snapshots(&self) -> u64 {
        self.snapshots.values().sum()
    }

    fn check_readable(&mut self, tier: Tier) -> Result<(), ReadError> {
        self.check_alive().map_err(|error| ReadError::Failed(error.to_string()))?;
        if tier == Tier::Cache && self.chance(self.faults.not_cached_one_in) {
            return Err(ReadError::NotCached);
        }
        Ok(())
    }
}

impl Version {
    fn file(sequence: u64, value: Bytes) -> Version {
        Version { sequence, value: Some(value), ingested: true }
    }
}

fn visible(versions: &[Version], sequence: u64) -> Option<Bytes> {
    let seen = versions.iter().rev().find(|v| v.sequence <= sequence)?;
    seen.value.clone()
}

/// `[start, end)`, where an empty bound is none.
pub(super) fn bounds<'a>(start: &'a [u8], end: &'a [u8]) -> (Bound<&'a [u8]>, Bound<&'a [u8]>) {
    let upper = if end.is_empty() { Bound::Unbounded } else { Bound::Excluded(end.max(start)) };
    (Bound::Included(start), upper)
}

/// False for ranges that a `BTreeMap` would panic over.
fn is_range(range: (Bound<&[u8]>, Bound<&[u8]>)) -> bool {
    match range {
        (Bound::Unbounded, _) | (_, Bound::Unbounded) => true,
        (Bound::Excluded(a), Bound::Excluded(b)) => a < b,
        (Bound::Included(a) | Bound::Excluded(a), Bound::Included(b) | Bound::Excluded(b)) => a <= b,
    }
}
