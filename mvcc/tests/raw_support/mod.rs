//! A read view over maps, which says `NotCached` when it is told to, and a naive twin of raw keys with their versions.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use base::Prng;
use bytes::Bytes;
use mvcc::raw::{RawMode, RawRange, RawReader, RawValue, ScanOptions, ScanState, Step};
use mvcc::{Cf, Cursor, ReadError, ReadView};

/// Entries of each family, and how reading them goes wrong.
#[derive(Clone, Default)]
pub struct View {
    families: [Rc<BTreeMap<Bytes, Bytes>>; 4],
    faults: Option<Rc<Faults>>,
    reads: Rc<Cell<u64>>,
}

struct Faults {
    prng: RefCell<Prng>,
    one_in: u64,
}

impl View {
    pub fn of(cf: Cf, entries: impl IntoIterator<Item = (Bytes, Bytes)>) -> View {
        let mut view = View::default();
        view.families[cf.index()] = Rc::new(entries.into_iter().collect());
        view
    }

    /// All families, in the order of [`Cf::ALL`].
    pub fn of_all(families: &[Rc<BTreeMap<Bytes, Bytes>>; 4]) -> View {
        View { families: families.clone(), ..View::default() }
    }

    /// The same data, where one in `one_in` reads is `NotCached`.
    pub fn cold(&self, prng: Prng, one_in: u64) -> View {
        View { faults: Some(Rc::new(Faults { prng: RefCell::new(prng), one_in })), ..self.clone() }
    }

    /// Entries and values that were read so far.
    pub fn reads(&self) -> u64 {
        self.reads.get()
    }

    fn read(&self) -> Result<(), ReadError> {
        self.reads.set(self.reads.get() + 1);
        match &self.faults {
            Some(faults) if faults.prng.borrow_mut().one_in(faults.one_in) => Err(ReadError::NotCached),
            _ => Ok(()),
        }
    }
}

impl ReadView for View {
    type Cursor = MapCursor;

    fn get(&self, cf: Cf, key: &[u8]) -> Result<Option<Bytes>, ReadError> {
        self.read()?;
        Ok(self.families[cf.index()].get(key).cloned())
    }

    fn cursor(&self, cf: Cf, lower: &[u8], upper: &[u8]) -> Result<MapCursor, ReadError> {
        let inside = |key: &[u8]| key >= lower && (upper.is_empty() || key < upper);
        let family = self.families[cf.index()].iter().filter(|(key, _)| inside(key));
        let entries = family.map(|(key, value)| (key.clone(), value.clone())).collect();
        Ok(MapCursor { view: self.clone(), entries, place: Place::Fresh })
    }
}

/// See [`Cursor`], to the letter.
pub struct MapCursor {
    view: View,
    entries: Vec<(Bytes, Bytes)>,
    place: Place,
}

#[derive(Clone, Copy)]
enum Place {
    Fresh,
    /// At the entry with this number, not given yet.
    At(usize),
    /// On the entry with this number.
    On(usize),
    End,
    /// Only a seek helps.
    Lost,
}

impl MapCursor {
    fn go(&mut self, found: Option<usize>) -> Result<(), ReadError> {
        self.place = Place::Lost;
        self.view.read()?;
        self.place = found.map_or(Place::End, Place::At);
        Ok(())
    }

    fn give(&mut self, next: Option<usize>) -> Result<Option<(Bytes, Bytes)>, ReadError> {
        let Some(next) = next.filter(|next| *next < self.entries.len()) else {
            self.place = Place::End;
            return Ok(None);
        };
        self.place = Place::Lost;
        self.view.read()?;
        self.place = Place::On(next);
        Ok(Some(self.entries[next].clone()))
    }
}

impl Cursor for MapCursor {
    fn seek(&mut self, key: &[u8]) -> Result<(), ReadError> {
        let found = self.entries.iter().position(|(held, _)| held >= key);
        self.go(found)
    }

    fn seek_for_prev(&mut self, key: &[u8]) -> Result<(), ReadError> {
        let found = self.entries.iter().rposition(|(held, _)| held <= key);
        self.go(found)
    }

    fn next_entry(&mut self) -> Result<Option<(Bytes, Bytes)>, ReadError> {
        match self.place {
            Place::Fresh => self.give(Some(0)),
            Place::At(at) => self.give(Some(at)),
            Place::On(at) => self.give(Some(at + 1)),
            Place::End => Ok(None),
            Place::Lost => panic!("stepped on after NotCached without a seek"),
        }
    }

    fn prev_entry(&mut self) -> Result<Option<(Bytes, Bytes)>, ReadError> {
        match self.place {
            Place::Fresh => self.give(self.entries.len().checked_sub(1)),
            Place::At(at) => self.give(Some(at)),
            Place::On(at) => self.give(at.checked_sub(1)),
            Place::End => Ok(None),
            Place::Lost => panic!("stepped on after NotCached without a seek"),
        }
    }
}

/// Raw keys with all their versions, as maps.
#[derive(Clone, Debug, Default)]
pub struct Twin {
    keys: BTreeMap<Vec<u8>, Vec<RawValue>>,
}

impl Twin {
    pub fn put(&mut self, key: &[u8], value: &[u8], expires: u64) {
        self.push(key, RawValue { value: Bytes::copy_from_slice(value), expires, deleted: false });
    }

    pub fn delete(&mut self, key: &[u8]) {
        self.push(key, RawValue { value: Bytes::new(), expires: 0, deleted: true });
    }

    fn push(&mut self, key: &[u8], value: RawValue) {
        self.keys.entry(key.to_vec()).or_default().push(value);
    }

    /// What the engine holds of all this in `mode`: with V2 every version, else the newest one.
    pub fn view(&self, mode: RawMode, cf: Cf) -> View {
        let mut entries = Vec::new();
        for (key, versions) in &self.keys {
            for (ts, value) in versions.iter().enumerate() {
                let newest = ts + 1 == versions.len();
                let stored = match (value.deleted, mode) {
                    (true, RawMode::V2) => RawMode::tombstone(),
                    (true, _) => continue,
                    (false, _) => mode.encode_value(&value.value, value.expires),
                };
                if newest || mode == RawMode::V2 {
                    entries.push((mode.encode_key(key, 100 + ts as u64), stored));
                }
            }
        }
        View::of(cf, entries)
    }

    pub fn get(&self, mode: RawMode, now: u64, key: &[u8]) -> Option<RawValue> {
        let newest = self.keys.get(key)?.last()?;
        let expires = if mode.has_ttl() { newest.expires } else { 0 };
        let dead = newest.deleted || (expires != 0 && expires <= now);
        (!dead).then(|| RawValue { expires, ..newest.clone() })
    }

    /// Living pairs with `start <= key < end`, in order; an empty end is infinity.
    pub fn scan(
        &self,
        mode: RawMode,
        now: u64,
        start: &[u8],
        end: &[u8],
        options: ScanOptions,
    ) -> Vec<(Bytes, RawValue)> {
        let inside = |key: &&Vec<u8>| key.as_slice() >= start && (end.is_empty() || key.as_slice() < end);
        let living = self.keys.keys().filter(inside).filter_map(|key| {
            let mut value = self.get(mode, now, key)?;
            if options.key_only {
                value.value = Bytes::new();
            }
            Some((Bytes::copy_from_slice(key), value))
        });
        let mut pairs: Vec<(Bytes, RawValue)> = living.collect();
        if options.reverse {
            pairs.reverse();
        }
        pairs.truncate(options.limit);
        pairs
    }
}

/// A reader of family `default`.
pub fn reader(mode: RawMode, now: u64) -> RawReader {
    RawReader { mode, cf: Cf::Default, now }
}

pub fn range(start: &str, end: &str) -> RawRange {
    RawRange { start: Bytes::copy_from_slice(start.as_bytes()), end: Bytes::copy_from_slice(end.as_bytes()) }
}

pub const FORWARD: ScanOptions = ScanOptions { reverse: false, key_only: false, limit: usize::MAX };
pub const BACKWARD: ScanOptions = ScanOptions { reverse: true, key_only: false, limit: usize::MAX };

/// All of a scan of a whole region, in one step.
pub fn scan(view: &View, reader: RawReader, options: ScanOptions, range: &RawRange) -> Vec<(Bytes, RawValue)> {
    let mut state = ScanState::new(reader, options, range, b"", b"");
    assert_eq!(state.step(view, usize::MAX), Ok(Step::Done));
    state.into_pairs()
}

/// `key=value` of each pair.
pub fn shown(pairs: &[(Bytes, RawValue)]) -> Vec<String> {
    pairs.iter().map(|(key, value)| format!("{}={}", key.escape_ascii(), value.value.escape_ascii())).collect()
}
