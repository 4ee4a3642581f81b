//! Reads of raw keys: one key, and ranges in both directions that can stop anywhere and go on elsewhere.

use bytes::Bytes;

use super::codec::{RawMode, RawValue};
use crate::{Cf, Cursor, ReadError, ReadView};

/// What every read needs to know.
#[derive(Clone, Copy, Debug)]
pub struct RawReader {
    /// The format.
    pub mode: RawMode,
    /// The family; `default` unless the client says otherwise.
    pub cf: Cf,
    /// Unix seconds, for expiry.
    pub now: u64,
}

/// The newest value of `key`, if it is alive.
///
/// Cost: one point read; with V2, one seek.
///
/// # Errors
/// What the view said. A malformed value is [`ReadError::Failed`].
pub fn get(view: &impl ReadView, reader: RawReader, key: &[u8]) -> Result<Option<RawValue>, ReadError> {
    let RawReader { mode, cf, now } = reader;
    let stored = match mode {
        RawMode::V1 | RawMode::V1Ttl => view.get(cf, key)?,
        RawMode::V2 => {
            let prefix = mode.prefix(key);
            let mut cursor = view.cursor(cf, &prefix, &mode.after(&prefix))?;
            cursor.seek(&prefix)?;
            cursor.next_entry()?.map(|(_, value)| value)
        }
    };
    let Some(stored) = stored else { return Ok(None) };
    let value = decode(mode, &stored)?;
    Ok(value.is_alive(now).then_some(value))
}

fn decode(mode: RawMode, stored: &Bytes) -> Result<RawValue, ReadError> {
    mode.decode_value(stored).map_err(|error| ReadError::Failed(error.to_string()))
}

/// A range of raw keys as a client names it, in ascending order whatever the direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawRange {
    /// First key, inclusive.
    pub start: Bytes,
    /// Last key, exclusive; empty is the end of the region.
    pub end: Bytes,
}

/// How a range is read.
#[derive(Clone, Copy, Debug)]
pub struct ScanOptions {
    /// From the end towards the start.
    pub reverse: bool,
    /// Leave the values out.
    pub key_only: bool,
    /// Pairs at most.
    pub limit: usize,
}

/// A step ends after this many bytes of keys and values, so that whoever counts memory is asked in time.
const STEP_BYTES: u64 = 256 << 10;

/// Where a step of a scan ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing is left, or the limit is reached.
    Done,
    /// There may be more.
    More,
}

/// A scan under way. It holds no view, so that it can go on with another one of the same state: on a helper after
/// [`ReadError::NotCached`], or later.
#[derive(Clone, Debug)]
pub struct ScanState {
    reader: RawReader,
    options: ScanOptions,
    lower: Vec<u8>,
    upper: Vec<u8>,
    done: bool,
    /// Backwards, older versions come first: the newest one so far of a key that may have newer ones.
    held: Option<(Bytes, Bytes)>,
    pairs: Vec<(Bytes, RawValue)>,
    stepped: u64,
    /// Bytes of the pairs that are held.
    bytes: u64,
}

impl ScanState {
    /// A scan of `range`, which the caller's region `[region_start, region_end)` limits (engine keys without `z`).
    pub fn new(
        reader: RawReader,
        options: ScanOptions,
        range: &RawRange,
        region_start: &[u8],
        region_end: &[u8],
    ) -> ScanState {
        let mode = reader.mode;
        let lower = mode.prefix(&range.start).max(region_start.to_vec());
        let end = if range.end.is_empty() { Vec::new() } else { mode.prefix(&range.end) };
        let upper = match (end.is_empty(), region_end.is_empty()) {
            (true, _) => region_end.to_vec(),
            (false, true) => end,
            (false, false) => end.min(region_end.to_vec()),
        };
        let done = options.limit == 0 || (!upper.is_empty() && lower >= upper);
        ScanState { reader, options, lower, upper, done, held: None, pairs: Vec::new(), stepped: 0, bytes: 0 }
    }

    /// Takes at most `entries` entries of the view, one at least, old versions included; fewer if they are large.
    ///
    /// # Errors
    /// What the view said. What was found before stays, and the next call goes on behind it.
    pub fn step(&mut self, view: &impl ReadView, entries: usize) -> Result<Step, ReadError> {
        if self.done {
            return Ok(Step::Done);
        }
        let entries = entries.max(1);
        let mut cursor = view.cursor(self.reader.cf, &self.lower, &self.upper)?;
        let finished = if self.options.reverse {
            self.backward(&mut cursor, entries)?
        } else {
            self.forward(&mut cursor, entries)?
        };
        self.done = finished;
        Ok(if finished { Step::Done } else { Step::More })
    }

    fn forward(&mut self, cursor: &mut impl Cursor, entries: usize) -> Result<bool, ReadError> {
        let mode = self.reader.mode;
        let enough = self.bytes + STEP_BYTES;
        let mut last: Option<Vec<u8>> = None;
        cursor.seek(&self.lower)?;
        for _ in 0..entries {
            let Some((key, stored)) = cursor.next_entry()? else { return Ok(true) };
            self.stepped += 1;
            let prefix = mode.version_prefix(&key);
            // The first version of a key is its newest one; the others do not count.
            if last.as_deref() == Some(prefix) {
                continue;
            }
            let Some(name) = mode.decode_key(&key) else {
                self.lower = [key.as_ref(), &[0]].concat();
                continue;
            };
            self.lower = mode.after(prefix);
            last = Some(prefix.to_vec());
            self.take(name, &stored)?;
            if self.pairs.len() >= self.options.limit {
                return Ok(true);
            }
            if self.bytes >= enough {
                return Ok(false);
            }
        }
        Ok(false)
    }

    fn backward(&mut self, cursor: &mut impl Cursor, entries: usize) -> Result<bool, ReadError> {
        let mode = self.reader.mode;
        let enough = self.bytes + STEP_BYTES;
        for _ in 0..entries {
            let entry = cursor.prev_entry()?;
            let same = match (&self.held, &entry) {
                (Some((held, _)), Some((key, _))) => mode.version_prefix(held) == mode.version_prefix(key),
                _ => false,
            };
            if !same
                && let Some((key, stored)) = self.held.take()
                && let Some(name) = mode.decode_key(&key)
            {
                self.take(name, &stored)?;
                if self.pairs.len() >= self.options.limit {
                    return Ok(true);
                }
                if self.bytes >= enough {
                    return Ok(false);
                }
            }
            let Some((key, stored)) = entry else { return Ok(true) };
            self.stepped += 1;
            if key.is_empty() {
                // Nothing is below, and as a bound it would mean infinity.
                mode.decode_key(&key).map_or(Ok(()), |name| self.take(name, &stored))?;
                return Ok(true);
            }
            self.upper = key.to_vec();
            self.held = Some((key, stored));
        }
        Ok(false)
    }

    fn take(&mut self, key: Bytes, stored: &Bytes) -> Result<(), ReadError> {
        let RawReader { mode, now, .. } = self.reader;
        let mut value = decode(mode, stored)?;
        if value.is_alive(now) {
            if self.options.key_only {
                value.value = Bytes::new();
            }
            self.bytes += (key.len() + value.value.len()) as u64;
            self.pairs.push((key, value));
        }
        Ok(())
    }

    /// Entries of the engine that were looked at, old versions and dead values included.
    pub fn stepped(&self) -> u64 {
        self.stepped
    }

    /// Bytes of keys and values that are held.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What was found, in the order of the scan.
    pub fn into_pairs(self) -> Vec<(Bytes, RawValue)> {
        self.pairs
    }

    /// What was found so far is taken out; the limit counts on.
    pub fn drain_pairs(&mut self) -> Vec<(Bytes, RawValue)> {
        let pairs = std::mem::take(&mut self.pairs);
        self.bytes = 0;
        self.options.limit = self.options.limit.saturating_sub(pairs.len());
        self.done |= self.options.limit == 0;
        pairs
    }
}

/// The ranges of a `RawBatchScan` in ascending form: an empty end takes the next range's start.
///
/// # Errors
/// `Invalid KeyRanges`, as TiKV says, if a range is empty or inverted.
pub fn batch_ranges(ranges: &[(Bytes, Bytes)], reverse: bool) -> Result<Vec<RawRange>, String> {
    let mut out = Vec::with_capacity(ranges.len());
    for (i, (start, end)) in ranges.iter().enumerate() {
        let next = ranges.get(i + 1).map(|(start, _)| start.clone()).unwrap_or_default();
        let end = if end.is_empty() { next } else { end.clone() };
        let range =
            if reverse { RawRange { start: end, end: start.clone() } } else { RawRange { start: start.clone(), end } };
        if !range.end.is_empty() && range.start >= range.end {
            return Err("Invalid KeyRanges".into());
        }
        out.push(range);
    }
    Ok(out)
}
