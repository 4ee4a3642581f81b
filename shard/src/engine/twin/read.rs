//! The twin's snapshots and iterators.

use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use mvcc::{Cf, ReadError};

use super::Shared;
use crate::engine::{EngineIter, EngineSnapshot, Entry, Tier};

/// A frozen state of a [`super::TwinEngine`].
#[derive(Clone, Debug)]
pub struct TwinSnapshot {
    open: Arc<Open>,
}

/// Keeps the versions that the snapshot sees.
#[derive(Debug)]
struct Open {
    shared: Arc<Shared>,
    sequence: u64,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.shared.lock().close_snapshot(self.sequence);
    }
}

impl TwinSnapshot {
    pub(super) fn new(shared: Arc<Shared>) -> TwinSnapshot {
        let sequence = shared.lock().open_snapshot();
        TwinSnapshot { open: Arc::new(Open { shared, sequence }) }
    }
}

impl EngineSnapshot for TwinSnapshot {
    type Iter = TwinIter;

    fn sequence(&self) -> u64 {
        self.open.sequence
    }

    fn get(&self, cf: Cf, key: &[u8], tier: Tier) -> Result<Option<Bytes>, ReadError> {
        let mut store = self.open.shared.lock();
        store.read(cf, key, self.open.sequence, tier)
    }

    fn multi_get<K: AsRef<[u8]>>(&self, cf: Cf, keys: &[K], tier: Tier) -> Vec<Result<Option<Bytes>, ReadError>> {
        let mut store = self.open.shared.lock();
        keys.iter().map(|key| store.read(cf, key.as_ref(), self.open.sequence, tier)).collect()
    }

    fn iter(&self, cf: Cf, lower: &[u8], upper: &[u8], tier: Tier, _fill_cache: bool) -> TwinIter {
        TwinIter {
            snapshot: self.clone(),
            cf,
            lower: Bytes::copy_from_slice(lower),
            upper: Bytes::copy_from_slice(upper),
            tier,
            at: Ok(None),
        }
    }
}

/// A place among the entries that a snapshot sees.
pub struct TwinIter {
    snapshot: TwinSnapshot,
    cf: Cf,
    lower: Bytes,
    upper: Bytes,
    tier: Tier,
    at: Result<Option<(Bytes, Bytes)>, ReadError>,
}

impl TwinIter {
    fn go(&mut self, from: Bound<&[u8]>, to: Bound<&[u8]>, up: bool) -> Result<Option<Entry<'_>>, ReadError> {
        let open = &self.snapshot.open;
        let mut store = open.shared.lock();
        self.at = store.find(self.cf, (from, to), up, open.sequence, self.tier);
        drop(store);
        self.here()
    }

    fn here(&self) -> Result<Option<Entry<'_>>, ReadError> {
        match &self.at {
            Ok(Some((key, value))) => Ok(Some((key, value))),
            Ok(None) => Ok(None),
            Err(error) => Err(error.clone()),
        }
    }
}

fn upper_bound(upper: &[u8]) -> Bound<&[u8]> {
    if upper.is_empty() { Bound::Unbounded } else { Bound::Excluded(upper) }
}

impl EngineIter for TwinIter {
    fn first(&mut self) -> Result<Option<Entry<'_>>, ReadError> {
        self.seek(&[])
    }

    fn last(&mut self) -> Result<Option<Entry<'_>>, ReadError> {
        let (lower, upper) = (self.lower.clone(), self.upper.clone());
        self.go(Bound::Included(&lower), upper_bound(&upper), false)
    }

    fn seek(&mut self, key: &[u8]) -> Result<Option<Entry<'_>>, ReadError> {
        let (lower, upper) = (self.lower.clone(), self.upper.clone());
        self.go(Bound::Included(key.max(&lower)), upper_bound(&upper), true)
    }

    fn seek_for_prev(&mut self, key: &[u8]) -> Result<Option<Entry<'_>>, ReadError> {
        let (lower, upper) = (self.lower.clone(), self.upper.clone());
        let to = if upper.is_empty() || key < upper.as_ref() {
            Bound::Included(key)
        } else {
            Bound::Excluded(upper.as_ref())
        };
        self.go(Bound::Included(&lower), to, false)
    }

    fn next(&mut self) -> Result<Option<Entry<'_>>, ReadError> {
        let Ok(Some((key, _))) = self.at.clone() else {
            return self.here();
        };
        let upper = self.upper.clone();
        self.go(Bound::Excluded(&key), upper_bound(&upper), true)
    }

    fn prev(&mut self) -> Result<Option<Entry<'_>>, ReadError> {
        let Ok(Some((key, _))) = self.at.clone() else {
            return self.here();
        };
        let lower = self.lower.clone();
        self.go(Bound::Included(&lower), Bound::Excluded(&key), false)
    }

    fn entry(&self) -> Option<Entry<'_>> {
        self.here().ok().flatten()
    }
}
