//! Scans at a timestamp that can stop anywhere and go on with another view of the same state.
//!
//! ```text
//!  lock   ──●────────●──▶      the next key is the first one of either family;
//!  write  ●●●●──●●●●●●●●▶      its older and newer versions are stepped over, many of them by a seek
//! ```

use bytes::Bytes;
use proto::kvrpcpb as kv;

use super::read::{Meeting, committed};
use super::reader::{STEPS_BEFORE_SEEK, Stats};
use super::{Isolation, Lock, LockKind, ReadOptions, Reader, TimeStamp, TxnError, WriteKind, WriteRecord, key};
use crate::raw::Step;
use crate::{Cf, Cursor, ReadError, ReadView};

/// A step ends after this many bytes of keys and values, so that whoever counts memory is asked in time.
const STEP_BYTES: u64 = 256 << 10;

/// What a scan wants.
#[derive(Clone, Debug, Default)]
pub struct ScanRequest {
    /// First client's key, inclusive.
    pub start: Bytes,
    /// Last client's key, exclusive; empty is the end of the region.
    pub end: Bytes,
    /// From the end towards the start.
    pub reverse: bool,
    /// Leave the values out.
    pub key_only: bool,
    /// Pairs at most; a locked key counts as one.
    pub limit: usize,
    /// Only every n-th pair; 0 and 1 are all.
    pub sample_step: usize,
}

/// A scan under way. It holds no view.
#[derive(Clone, Debug)]
pub struct Scan {
    request: ScanRequest,
    options: ReadOptions,
    /// Encoded bounds of what is left.
    lower: Vec<u8>,
    upper: Vec<u8>,
    done: bool,
    found: usize,
    pairs: Vec<kv::KvPair>,
    stats: Stats,
}

impl Scan {
    /// A scan that the region `[region_start, region_end)` (encoded keys) limits.
    pub fn new(request: ScanRequest, options: ReadOptions, region_start: &[u8], region_end: &[u8]) -> Scan {
        let (lower, upper) = clip(&request.start, &request.end, region_start, region_end);
        let done = request.limit == 0 || (!upper.is_empty() && lower >= upper);
        Scan { request, options, lower, upper, done, found: 0, pairs: Vec::new(), stats: Stats::default() }
    }

    /// The encoded range that is left, for the locks in memory.
    pub fn bounds(&self) -> (&[u8], &[u8]) {
        (&self.lower, &self.upper)
    }

    /// Goes on until `entries` entries of the engine were looked at, or a few more: a key is read to its end.
    ///
    /// # Errors
    /// What the view said: what was found before stays, and the next call goes on behind it. Other errors than of the
    /// view end the scan. A locked key is no error, but a pair.
    pub fn step(&mut self, view: &impl ReadView, entries: u64) -> Result<Step, TxnError> {
        if self.done {
            return Ok(Step::Done);
        }
        let reader = Reader::new(view);
        let stop = Stop { stepped: entries.max(1), bytes: self.stats.bytes + STEP_BYTES };
        let result = if self.request.reverse { self.backward(&reader, stop) } else { self.forward(&reader, stop) };
        let took = reader.stats();
        self.stats.seeks += took.seeks;
        self.stats.stepped += took.stepped;
        self.done = result?;
        Ok(if self.done { Step::Done } else { Step::More })
    }

    fn forward<V: ReadView>(&mut self, reader: &Reader<'_, V>, stop: Stop) -> Result<bool, TxnError> {
        let mut locks = self.locks(reader)?;
        let mut writes = Peeked::new(reader.view().cursor(Cf::Write, &self.lower, &self.upper)?);
        if let Some(locks) = &mut locks {
            locks.seek(reader, &self.lower)?;
        }
        writes.seek(reader, &self.lower)?;
        loop {
            let Some(next) = self.next(reader, &mut locks, writes.entry.as_ref())? else { return Ok(true) };
            let found = match self.locked(reader, &next) {
                Ok(None) if next.has_records => self.newest(reader, &mut writes, &next),
                other => other.map(Option::flatten),
            };
            let Next { encoded, user_key, has_records, .. } = next;
            self.take(user_key, found)?;
            // From here on the key is done, whatever a step to the next one meets.
            self.lower = key::after(&encoded);
            if self.is_full() {
                return Ok(true);
            }
            if has_records {
                skip(reader, &mut writes, &encoded)?;
            }
            if stop.is_reached(reader, self.stats.bytes) {
                return Ok(false);
            }
        }
    }

    /// The keys come in descending order, but the versions of each from the oldest to the newest.
    /// PERF: two seeks a key; stepping back over a few versions would be cheaper for keys with few.
    fn backward<V: ReadView>(&mut self, reader: &Reader<'_, V>, stop: Stop) -> Result<bool, TxnError> {
        let mut locks = self.locks(reader)?;
        if let Some(locks) = &mut locks {
            locks.back(reader)?;
        }
        loop {
            let mut last = reader.view().cursor(Cf::Write, &self.lower, &self.upper)?;
            reader.count_seek();
            let oldest = last.prev_entry()?;
            reader.step()?;
            let Some(next) = self.next(reader, &mut locks, oldest.as_ref())? else { return Ok(true) };
            let found = match self.locked(reader, &next) {
                Ok(None) => committed(reader, &next.user_key, &next.encoded, &self.options),
                other => other.map(Option::flatten),
            };
            self.take(next.user_key, found)?;
            self.upper = next.encoded.to_vec();
            if self.is_full() {
                return Ok(true);
            }
            if stop.is_reached(reader, self.stats.bytes) {
                return Ok(false);
            }
        }
    }

    /// The key that comes next in the scan's direction, and its lock, which `locks` then goes past. `record` is one of
    /// the next key that has any.
    fn next<V: ReadView>(
        &self,
        reader: &Reader<'_, V>,
        locks: &mut Option<Peeked<V::Cursor>>,
        record: Option<&(Bytes, Bytes)>,
    ) -> Result<Option<Next>, TxnError> {
        let written = match record {
            Some((place, _)) => Some(place.slice_ref(key::split(place)?.0)),
            None => None,
        };
        let locked = locks.as_ref().and_then(|locks| locks.entry.as_ref()).map(|(key, _)| key.clone());
        let encoded = match (&locked, &written) {
            (None, None) => return Ok(None),
            (Some(locked), Some(written)) if self.request.reverse => locked.max(written).clone(),
            (Some(locked), Some(written)) => locked.min(written).clone(),
            (Some(key), None) | (None, Some(key)) => key.clone(),
        };
        let user_key = key::decode(&encoded)?;
        let mut lock = None;
        if locked.as_ref() == Some(&encoded)
            && let Some(locks) = locks
        {
            lock = locks.entry.as_ref().map(|(_, stored)| Lock::decode(stored)).transpose()?;
            if self.request.reverse { locks.back(reader)? } else { locks.advance(reader)? }
        }
        let has_records = written.as_ref() == Some(&encoded);
        Ok(Some(Next { encoded, user_key, lock, has_records }))
    }

    fn locks<V: ReadView>(&self, reader: &Reader<'_, V>) -> Result<Option<Peeked<V::Cursor>>, ReadError> {
        if self.options.isolation == Isolation::ReadCommitted {
            return Ok(None);
        }
        Ok(Some(Peeked::new(reader.view().cursor(Cf::Lock, &self.lower, &self.upper)?)))
    }

    /// What the lock says the value is; `None`: the records say.
    fn locked<V: ReadView>(&self, reader: &Reader<'_, V>, next: &Next) -> Result<Option<Option<Bytes>>, TxnError> {
        let Some(lock) = &next.lock else { return Ok(None) };
        match self.options.meet(lock, &next.user_key)? {
            Meeting::PassedBy => Ok(None),
            Meeting::ReadThrough if lock.kind != LockKind::Put => Ok(Some(None)),
            Meeting::ReadThrough => {
                self.value(reader, &next.encoded, lock.short_value.as_ref(), lock.start_ts).map(Some)
            }
        }
    }

    fn value<V: ReadView>(
        &self,
        reader: &Reader<'_, V>,
        encoded: &[u8],
        short: Option<&Bytes>,
        start_ts: TimeStamp,
    ) -> Result<Option<Bytes>, TxnError> {
        if self.request.key_only {
            return Ok(Some(Bytes::new()));
        }
        Ok(Some(reader.value(encoded, short, start_ts)?))
    }

    /// The value of the key whose newest record `writes` stands at.
    fn newest<V: ReadView>(
        &self,
        reader: &Reader<'_, V>,
        writes: &mut Peeked<V::Cursor>,
        next: &Next,
    ) -> Result<Option<Bytes>, TxnError> {
        let Next { encoded, user_key, .. } = next;
        let mut steps = 0;
        while let Some((commit_ts, record)) = writes.record_of(encoded)? {
            if commit_ts > self.options.ts {
                if self.options.checks_newer() && record.kind != WriteKind::Rollback {
                    return Err(self.options.newer(user_key, record.start_ts, commit_ts));
                }
            } else if record.kind == WriteKind::Put && record.passes_fence(self.options.ts) {
                return self.value(reader, encoded, record.short_value.as_ref(), record.start_ts);
            } else if record.kind.is_data() {
                return Ok(None);
            }
            steps += 1;
            if steps >= STEPS_BEFORE_SEEK {
                // Many versions: a seek for this key alone, which also knows how to pass over rollbacks.
                return match self.request.key_only {
                    true => Ok(committed(reader, user_key, encoded, &self.options)?.map(|_| Bytes::new())),
                    false => committed(reader, user_key, encoded, &self.options),
                };
            }
            writes.advance(reader)?;
        }
        Ok(None)
    }

    fn take(&mut self, user_key: Bytes, found: Result<Option<Bytes>, TxnError>) -> Result<(), TxnError> {
        let pair = match found {
            Ok(None) => return Ok(()),
            Ok(Some(value)) => {
                let value = if self.request.key_only { Bytes::new() } else { value };
                self.found += 1;
                if self.request.sample_step > 1 && !(self.found - 1).is_multiple_of(self.request.sample_step) {
                    return Ok(());
                }
                kv::KvPair { key: user_key, value, ..Default::default() }
            }
            Err(error @ TxnError::KeyIsLocked(_)) => {
                kv::KvPair { error: Some(error.key_error()), ..Default::default() }
            }
            Err(error) => return Err(error),
        };
        self.stats.bytes += (pair.key.len() + pair.value.len()) as u64;
        self.pairs.push(pair);
        Ok(())
    }

    fn is_full(&self) -> bool {
        self.pairs.len() >= self.request.limit
    }

    /// What it took so far.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// What was found, in the order of the scan.
    pub fn into_pairs(self) -> Vec<kv::KvPair> {
        self.pairs
    }
}

/// The encoded range of client's keys within a region of encoded bounds.
pub(super) fn clip(start: &[u8], end: &[u8], region_start: &[u8], region_end: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let lower = if start.is_empty() { Vec::new() } else { key::encode(start).to_vec() };
    let lower = lower.max(region_start.to_vec());
    let upper = match (end.is_empty(), region_end.is_empty()) {
        (true, _) => region_end.to_vec(),
        (false, true) => key::encode(end).to_vec(),
        (false, false) => key::encode(end).to_vec().min(region_end.to_vec()),
    };
    (lower, upper)
}

/// Goes past the records of a key that are left.
fn skip<V: ReadView>(reader: &Reader<'_, V>, writes: &mut Peeked<V::Cursor>, encoded: &[u8]) -> Result<(), ReadError> {
    for _ in 0..STEPS_BEFORE_SEEK {
        if !writes.is_at(encoded) {
            return Ok(());
        }
        writes.advance(reader)?;
    }
    if writes.is_at(encoded) {
        writes.seek(reader, &key::after(encoded))?;
    }
    Ok(())
}

/// The next key of a scan.
struct Next {
    encoded: Bytes,
    user_key: Bytes,
    lock: Option<Lock>,
    has_records: bool,
}

/// When a step ends.
#[derive(Clone, Copy)]
struct Stop {
    stepped: u64,
    bytes: u64,
}

impl Stop {
    fn is_reached<V: ReadView>(self, reader: &Reader<'_, V>, bytes: u64) -> bool {
        reader.stats().stepped >= self.stepped || bytes >= self.bytes
    }
}

/// A cursor and the entry that it stands on.
pub(super) struct Peeked<C> {
    cursor: C,
    pub(super) entry: Option<(Bytes, Bytes)>,
}

impl<C: Cursor> Peeked<C> {
    pub(super) fn new(cursor: C) -> Peeked<C> {
        Peeked { cursor, entry: None }
    }

    pub(super) fn seek<V: ReadView>(&mut self, reader: &Reader<'_, V>, place: &[u8]) -> Result<(), ReadError> {
        reader.count_seek();
        self.cursor.seek(place)?;
        self.advance(reader)
    }

    pub(super) fn advance<V: ReadView>(&mut self, reader: &Reader<'_, V>) -> Result<(), ReadError> {
        reader.step()?;
        self.entry = self.cursor.next_entry()?;
        Ok(())
    }

    fn back<V: ReadView>(&mut self, reader: &Reader<'_, V>) -> Result<(), ReadError> {
        reader.step()?;
        self.entry = self.cursor.prev_entry()?;
        Ok(())
    }

    fn is_at(&self, encoded: &[u8]) -> bool {
        // An encoded key is no prefix of another one.
        self.entry.as_ref().is_some_and(|(place, _)| place.starts_with(encoded))
    }

    fn record_of(&self, encoded: &[u8]) -> Result<Option<(TimeStamp, WriteRecord)>, ReadError> {
        match &self.entry {
            Some((place, stored)) if place.starts_with(encoded) => {
                Ok(Some((key::split(place)?.1, WriteRecord::decode(stored)?)))
            }
            _ => Ok(None),
        }
    }
}
