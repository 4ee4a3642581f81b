//! Range reads as etcd defines them: filters, order, limit, and recent revisions.

use super::{KeySpace, Record};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::ops::Bound;

/// What a range read sorts by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SortBy {
    /// The key.
    #[default]
    Key,
    /// The number of changes.
    Version,
    /// The revision of creation.
    Create,
    /// The revision of the last change.
    Mod,
    /// The value.
    Value,
}

/// A range read. `end` empty means the key alone, `[0]` everything from `key` on.
#[derive(Clone, Debug, Default)]
pub struct RangeQuery {
    /// First key.
    pub key: Bytes,
    /// End of the range, exclusive.
    pub end: Bytes,
    /// Most records to return; 0 or less for all.
    pub limit: i64,
    /// The revision to read at; 0 or less for the newest.
    pub revision: i64,
    /// What to sort by.
    pub sort_by: SortBy,
    /// Highest first.
    pub descending: bool,
    /// Bounds of the revision of the last change, inclusive; 0 for none.
    pub mod_revisions: (i64, i64),
    /// Bounds of the revision of creation, inclusive; 0 for none.
    pub create_revisions: (i64, i64),
    /// Return no records, only how many there are.
    pub count_only: bool,
}

/// What a range read found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeResult {
    /// The records, in the asked order.
    pub records: Vec<(Bytes, Record)>,
    /// Keys in the range before filters and limit.
    pub count: i64,
    /// Whether the limit left some out.
    pub more: bool,
}

/// Why a range cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// The revision is older than the history.
    #[error("etcdserver: mvcc: required revision has been compacted")]
    Compacted,
    /// The revision has not been yet.
    #[error("etcdserver: mvcc: required revision is a future revision")]
    Future,
}

/// Whether `key` is in `[start, end)` by etcd's rules.
pub fn in_range(key: &[u8], start: &[u8], end: &[u8]) -> bool {
    match end {
        [] => key == start,
        [0] => key >= start,
        end => key >= start && key < end,
    }
}

impl KeySpace {
    /// Reads a range.
    ///
    /// # Errors
    /// [`RangeError`] when the asked revision is not at hand.
    pub fn range(&self, query: &RangeQuery) -> Result<RangeResult, RangeError> {
        if query.revision > self.revision() {
            return Err(RangeError::Future);
        }
        let mut found = self.slice(&query.key, &query.end);
        if query.revision > 0 && query.revision < self.revision() {
            self.rewind(query, &mut found)?;
        }
        let count = i64::try_from(found.len()).unwrap_or(i64::MAX);
        if query.count_only {
            return Ok(RangeResult { count, ..RangeResult::default() });
        }
        let within = |value: i64, (low, high): (i64, i64)| (low == 0 || value >= low) && (high == 0 || value <= high);
        let mut records: Vec<_> = found
            .into_iter()
            .filter(|(_, record)| {
                within(record.mod_revision, query.mod_revisions)
                    && within(record.create_revision, query.create_revisions)
            })
            .collect();
        sort(&mut records, query.sort_by);
        if query.descending {
            records.reverse();
        }
        let limit = usize::try_from(query.limit).ok().filter(|limit| *limit > 0).unwrap_or(usize::MAX);
        let more = records.len() > limit;
        records.truncate(limit);
        Ok(RangeResult { records, count, more })
    }

    /// The keys of `[start, end)` by etcd's rules.
    pub fn slice(&self, start: &[u8], end: &[u8]) -> BTreeMap<Bytes, Record> {
        if end.is_empty() {
            return self.get(start).map(|record| (Bytes::copy_from_slice(start), record.clone())).into_iter().collect();
        }
        let upper = if end == [0] { Bound::Unbounded } else { Bound::Excluded(end) };
        if end != [0] && end <= start {
            return BTreeMap::new();
        }
        self.map
            .range::<[u8], _>((Bound::Included(start), upper))
            .map(|(key, record)| (key.clone(), record.clone()))
            .collect()
    }

    /// Undoes in `found` what happened after the asked revision.
    fn rewind(&self, query: &RangeQuery, found: &mut BTreeMap<Bytes, Record>) -> Result<(), RangeError> {
        let events: Vec<_> = self.events(query.revision, i64::MAX).ok_or(RangeError::Compacted)?.collect();
        for event in events.into_iter().rev() {
            if in_range(&event.key, &query.key, &query.end) {
                match &event.before {
                    Some(record) => found.insert(event.key.clone(), record.clone()),
                    None => found.remove(&event.key),
                };
            }
        }
        Ok(())
    }
}

fn sort(records: &mut [(Bytes, Record)], by: SortBy) {
    match by {
        SortBy::Key => {}
        SortBy::Version => records.sort_by_key(|(_, record)| record.version),
        SortBy::Create => records.sort_by_key(|(_, record)| record.create_revision),
        SortBy::Mod => records.sort_by_key(|(_, record)| record.mod_revision),
        SortBy::Value => records.sort_by(|(_, left), (_, right)| left.value.cmp(&right.value)),
    }
}
