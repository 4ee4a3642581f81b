//! A region's view of an engine snapshot: keys without `z`, and nothing beyond the region's range.

use base::keys;
use bytes::Bytes;
use mvcc::{Cf, Cursor, ReadError, ReadView};

use super::{EngineIter, EngineSnapshot, Tier};

/// Keys up to this length are prefixed on the stack.
const STACK_KEY: usize = 256;

/// What `mvcc` reads: one region's data in an engine snapshot, down to `tier`.
///
/// `Send`, so a read that meets [`ReadError::NotCached`] takes it along to a helper and goes on from where it stopped
/// with [`RegionView::at`] and [`Tier::Disk`].
#[derive(Clone, Debug)]
pub struct RegionView<S> {
    snapshot: S,
    tier: Tier,
    start: Bytes,
    end: Bytes,
    fill_cache: bool,
}

impl<S: EngineSnapshot> RegionView<S> {
    /// A view of the region `[start, end)`, where an empty `end` is infinity. Cursors stop at these bounds; `get` trusts
    /// its caller to have checked the key.
    pub fn new(snapshot: S, tier: Tier, start: Bytes, end: Bytes) -> RegionView<S> {
        RegionView { snapshot, tier, start, end, fill_cache: true }
    }

    /// The same state read down to another tier.
    pub fn at(mut self, tier: Tier) -> RegionView<S> {
        self.tier = tier;
        self
    }

    /// Whether blocks that cursors read from disk stay in the cache; they do unless told otherwise.
    pub fn fill_cache(mut self, fill: bool) -> RegionView<S> {
        self.fill_cache = fill;
        self
    }

    /// How far down it reads.
    pub fn tier(&self) -> Tier {
        self.tier
    }

    /// The engine snapshot behind it.
    pub fn snapshot(&self) -> &S {
        &self.snapshot
    }

    /// The values of several keys, in their order. Each key has its own answer.
    pub fn get_many(&self, cf: Cf, keys: &[Bytes]) -> Vec<Result<Option<Bytes>, ReadError>> {
        let keys: Vec<Vec<u8>> = keys.iter().map(|key| keys::data_key(key)).collect();
        self.snapshot.multi_get(cf, &keys, self.tier)
    }
}

impl<S: EngineSnapshot> ReadView for RegionView<S> {
    type Cursor = RegionCursor<S::Iter>;

    fn get(&self, cf: Cf, key: &[u8]) -> Result<Option<Bytes>, ReadError> {
        with_data_key(key, |key| self.snapshot.get(cf, key, self.tier))
    }

    fn cursor(&self, cf: Cf, lower: &[u8], upper: &[u8]) -> Result<Self::Cursor, ReadError> {
        let lower = lower.max(&self.start);
        let upper = match (upper.is_empty(), self.end.is_empty()) {
            (true, _) => self.end.as_ref(),
            (false, true) => upper,
            (false, false) => upper.min(&self.end),
        };
        let (lower, mut upper) = super::data_range(lower, upper);
        if upper < lower {
            upper.clone_from(&lower);
        }
        let iter = self.snapshot.iter(cf, &lower, &upper, self.tier, self.fill_cache);
        Ok(RegionCursor { iter, place: Place::Fresh })
    }
}

/// A cursor over one family of one region. See [`Cursor`].
pub struct RegionCursor<I> {
    iter: I,
    place: Place,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Not sought yet.
    Fresh,
    /// At an entry that no step has returned yet.
    At,
    /// On the entry that was returned last.
    On,
    /// Past either end.
    End,
    /// A read failed; only a seek helps.
    Lost,
}

impl<I: EngineIter> RegionCursor<I> {
    fn arrive(&mut self, found: Result<bool, ReadError>) -> Result<(), ReadError> {
        self.place = match &found {
            Ok(true) => Place::At,
            Ok(false) => Place::End,
            Err(_) => Place::Lost,
        };
        found.map(|_| ())
    }

    fn step(&mut self, up: bool) -> Result<Option<(Bytes, Bytes)>, ReadError> {
        let found = match (self.place, up) {
            (Place::At, _) => Ok(self.iter.entry()),
            (Place::End, _) => Ok(None),
            (Place::Fresh, true) => self.iter.first(),
            (Place::Fresh, false) => self.iter.last(),
            (Place::On | Place::Lost, true) => self.iter.next(),
            (Place::On | Place::Lost, false) => self.iter.prev(),
        };
        let found = found.map(|entry| {
            entry.map(|(key, value)| {
                let key = keys::origin_key(key).expect("the bounds admit data keys only");
                (Bytes::copy_from_slice(key), Bytes::copy_from_slice(value))
            })
        });
        self.place = match &found {
            Ok(Some(_)) => Place::On,
            Ok(None) => Place::End,
            Err(_) => Place::Lost,
        };
        found
    }
}

impl<I: EngineIter> Cursor for RegionCursor<I> {
    fn seek(&mut self, key: &[u8]) -> Result<(), ReadError> {
        let iter = &mut self.iter;
        let found = with_data_key(key, |key| Ok(iter.seek(key)?.is_some()));
        self.arrive(found)
    }

    fn seek_for_prev(&mut self, key: &[u8]) -> Result<(), ReadError> {
        let iter = &mut self.iter;
        let found = with_data_key(key, |key| Ok(iter.seek_for_prev(key)?.is_some()));
        self.arrive(found)
    }

    fn next_entry(&mut self) -> Result<Option<(Bytes, Bytes)>, ReadError> {
        self.step(true)
    }

    fn prev_entry(&mut self) -> Result<Option<(Bytes, Bytes)>, ReadError> {
        self.step(false)
    }
}

/// Calls `read` with the engine's key for `key`, without an allocation for keys of common length.
fn with_data_key<T>(key: &[u8], read: impl FnOnce(&[u8]) -> Result<T, ReadError>) -> Result<T, ReadError> {
    if key.len() < STACK_KEY {
        let mut buffer = [0; STACK_KEY];
        buffer[0] = keys::DATA_PREFIX;
        buffer[1..=key.len()].copy_from_slice(key);
        read(&buffer[..=key.len()])
    } else {
        read(&keys::data_key(key))
    }
}
