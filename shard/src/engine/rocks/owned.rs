//! Owned forms of what the binding only lends: family handles, snapshots, iterators, pinned values.
//!
//! The binding ties each of them to a borrow of the database. Here each one carries an `Arc` of the database instead,
//! so it can wait in a task or go to a helper. This is the only file of the engine with unsafe code, and it has one
//! rule: whatever is made from [`Handle::forever`] lives in a struct that drops it before the `Arc`. Rust drops fields
//! in the order of their declaration.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use mvcc::{Cf, ReadError};
use rocksdb::{ColumnFamily, DB, DBPinnableSlice, DBRawIterator, ReadOptions, ReadTier, Snapshot};

use super::read_error;
use crate::engine::{EngineIter, EngineSnapshot, Entry, Tier};

/// Shorter values are copied out of the cache; longer ones pin their block.
const COPY_BELOW: usize = 4096;
/// Entries (old versions, tombstones) that a cache-tier iterator steps over for one result before it says that the
/// rest is for a helper: some 100 ns each, so a core is held for well under a millisecond.
const SKIP_MAX: u64 = 4096;

/// The open database with its families.
pub(super) struct Handle {
    families: [&'static ColumnFamily; 4],
    cache_reads: ReadOptions,
    disk_reads: ReadOptions,
    db: Arc<DB>,
}

impl Handle {
    /// `None` if a family is missing.
    pub(super) fn new(db: DB) -> Option<Arc<Handle>> {
        let db = Arc::new(db);
        let mut families = Vec::with_capacity(4);
        for cf in Cf::ALL {
            families.push(forever(&db).cf_handle(cf.name())?);
        }
        Some(Arc::new(Handle {
            families: families.try_into().ok()?,
            cache_reads: read_options(Tier::Cache, None),
            disk_reads: read_options(Tier::Disk, None),
            db,
        }))
    }

    pub(super) fn db(&self) -> &DB {
        &self.db
    }

    pub(super) fn family(&self, cf: Cf) -> &ColumnFamily {
        self.families[cf.index()]
    }

    pub(super) fn families(&self) -> [&ColumnFamily; 4] {
        self.families
    }

    /// The newest value of `key`.
    pub(super) fn get(self: &Arc<Handle>, cf: Cf, key: &[u8], tier: Tier) -> Result<Option<Bytes>, ReadError> {
        let options = match tier {
            Tier::Cache => &self.cache_reads,
            Tier::Disk => &self.disk_reads,
        };
        self.get_with(cf, key, options)
    }

    /// The newest values of `keys`.
    pub(super) fn multi_get<K: AsRef<[u8]>>(
        self: &Arc<Handle>,
        cf: Cf,
        keys: &[K],
        tier: Tier,
    ) -> Vec<Result<Option<Bytes>, ReadError>> {
        let options = match tier {
            Tier::Cache => &self.cache_reads,
            Tier::Disk => &self.disk_reads,
        };
        self.multi_get_with(cf, keys, options)
    }

    fn get_with(self: &Arc<Handle>, cf: Cf, key: &[u8], options: &ReadOptions) -> Result<Option<Bytes>, ReadError> {
        forever(&self.db)
            .get_pinned_cf_opt(self.families[cf.index()], key, options)
            .map(|value| value.map(|value| self.own(value)))
            .map_err(read_error)
    }

    fn multi_get_with<K: AsRef<[u8]>>(
        self: &Arc<Handle>,
        cf: Cf,
        keys: &[K],
        options: &ReadOptions,
    ) -> Vec<Result<Option<Bytes>, ReadError>> {
        let keys = keys.iter().map(AsRef::as_ref);
        forever(&self.db)
            .batched_multi_get_cf_opt::<[u8], _>(self.families[cf.index()], keys, false, options)
            .into_iter()
            .map(|value| value.map(|value| value.map(|value| self.own(value))).map_err(read_error))
            .collect()
    }

    fn own(self: &Arc<Handle>, value: DBPinnableSlice<'static>) -> Bytes {
        if value.len() < COPY_BELOW {
            Bytes::copy_from_slice(&value)
        } else {
            Bytes::from_owner(Pinned { value, _handle: self.clone() })
        }
    }
}

/// The database behind `db` for as long as anybody holds that `Arc`: see the rule above.
fn forever(db: &Arc<DB>) -> &'static DB {
    // SAFETY: the `DB` stays where it is while an `Arc` of it lives. Callers in this file either use the reference at
    // once, or keep what they made of it in a struct whose last field is such an `Arc` (or one of a struct that is so
    // built). Nothing of it is handed out of this file. Its families are never created or dropped after opening, which
    // in this mode of the binding would take `&mut DB`, so the handles in its map stay as well.
    unsafe { &*Arc::as_ptr(db) }
}

fn read_options(tier: Tier, snapshot: Option<&Snapshot<'_>>) -> ReadOptions {
    let mut options = ReadOptions::default();
    if tier == Tier::Cache {
        options.set_read_tier(ReadTier::BlockCache);
    }
    if let Some(snapshot) = snapshot {
        options.set_snapshot(snapshot);
    }
    options
}

/// A value where the block cache has it.
struct Pinned {
    value: DBPinnableSlice<'static>,
    _handle: Arc<Handle>,
}

impl AsRef<[u8]> for Pinned {
    fn as_ref(&self) -> &[u8] {
        &self.value
    }
}

/// A frozen state of a [`super::RocksEngine`].
#[derive(Clone)]
pub struct RocksSnapshot {
    inner: Arc<OpenSnapshot>,
}

struct OpenSnapshot {
    cache_reads: OnceLock<ReadOptions>,
    disk_reads: OnceLock<ReadOptions>,
    snapshot: Snapshot<'static>,
    handle: Arc<Handle>,
}

impl RocksSnapshot {
    pub(super) fn new(handle: Arc<Handle>) -> RocksSnapshot {
        RocksSnapshot {
            inner: Arc::new(OpenSnapshot {
                cache_reads: OnceLock::new(),
                disk_reads: OnceLock::new(),
                snapshot: forever(&handle.db).snapshot(),
                handle,
            }),
        }
    }

    fn reads(&self, tier: Tier) -> &ReadOptions {
        let inner = &*self.inner;
        let options = match tier {
            Tier::Cache => &inner.cache_reads,
            Tier::Disk => &inner.disk_reads,
        };
        options.get_or_init(|| read_options(tier, Some(&inner.snapshot)))
    }
}

impl EngineSnapshot for RocksSnapshot {
    type Iter = RocksIter;

    fn sequence(&self) -> u64 {
        self.inner.snapshot.sequence_number()
    }

    fn get(&self, cf: Cf, key: &[u8], tier: Tier) -> Result<Option<Bytes>, ReadError> {
        self.inner.handle.get_with(cf, key, self.reads(tier))
    }

    fn multi_get<K: AsRef<[u8]>>(&self, cf: Cf, keys: &[K], tier: Tier) -> Vec<Result<Option<Bytes>, ReadError>> {
        self.inner.handle.multi_get_with(cf, keys, self.reads(tier))
    }

    fn iter(&self, cf: Cf, lower: &[u8], upper: &[u8], tier: Tier, fill_cache: bool) -> RocksIter {
        let mut options = read_options(tier, Some(&self.inner.snapshot));
        if !lower.is_empty() {
            options.set_iterate_lower_bound(lower);
        }
        if !upper.is_empty() {
            options.set_iterate_upper_bound(upper);
        }
        options.fill_cache(fill_cache);
        if tier == Tier::Cache {
            options.set_max_skippable_internal_keys(SKIP_MAX);
        }
        let handle = &self.inner.handle;
        RocksIter {
            iter: forever(&handle.db).raw_iterator_cf_opt(handle.families[cf.index()], options),
            _snapshot: self.clone(),
        }
    }
}

/// A place among the entries that a snapshot sees.
pub struct RocksIter {
    iter: DBRawIterator<'static>,
    _snapshot: RocksSnapshot,
}

impl RocksIter {
    /// Where the last move arrived. An iterator that is not valid has come to the end only if its status says so.
    fn here(&self) -> Result<Option<Entry<'_>>, ReadError> {
        match self.iter.item() {
            Some(entry) => Ok(Some(entry)),
            None => self.iter.status().map(|()| None).map_err(read_error),
        }
    }
}

impl EngineIter for RocksIter {
    fn first(&mut self) -> Result<Option<Entry<'_>>, ReadError> {
        self.iter.seek_to_first();
        self.here()
    }

    fn last(&mut self) -> Result<Option<Entry<'_>>, ReadError> {
        self.iter.seek_to_last();
        self.here()
    }

    fn seek(&mut self, key: &[u8]) -> Result<Option<Entry<'_>>, ReadError> {
        self.iter.seek(key);
        self.here()
    }

    fn seek_for_prev(&mut self, key: &[u8]) -> Result<Option<Entry<'_>>, ReadError> {
        self.iter.seek_for_prev(key);
        self.here()
    }

    fn next(&mut self) -> Result<Option<Entry<'_>>, ReadError> {
        self.iter.next();
        self.here()
    }

    fn prev(&mut self) -> Result<Option<Entry<'_>>, ReadError> {
        self.iter.prev();
        self.here()
    }

    fn entry(&self) -> Option<Entry<'_>> {
        self.iter.item()
    }
}
