//! `MvccGetByKey` and `MvccGetByStartTs`: all that is stored of a key, for people who look for mistakes.

use bytes::Bytes;
use proto::kvrpcpb as kv;

use crate::raw::Step;
use crate::txn::scan::Peeked;
use crate::txn::{Lock, Reader, TimeStamp, WriteRecord, key};
use crate::{Cf, Cursor, ReadError, ReadView};

/// The lock, all records and all long values of a key, newest first.
///
/// Cost: a step for each.
///
/// # Errors
/// What the view said.
pub fn mvcc_by_key<V: ReadView>(reader: &Reader<'_, V>, user_key: &Bytes) -> Result<kv::MvccInfo, ReadError> {
    let encoded = key::encode(user_key);
    let mut info = kv::MvccInfo { lock: reader.lock(&encoded)?.map(|lock| show_lock(&lock)), ..Default::default() };
    let mut versions = reader.versions(&encoded)?;
    versions.seek(TimeStamp::MAX)?;
    while let Some((commit_ts, record)) = versions.next()? {
        info.writes.push(show_record(commit_ts, record));
    }
    let mut cursor = reader.view().cursor(Cf::Default, &encoded, &key::after(&encoded))?;
    reader.count_seek();
    while let Some((place, value)) = cursor.next_entry()? {
        reader.step()?;
        info.values.push(kv::MvccValue { start_ts: key::split(&place)?.1.0, value });
    }
    Ok(info)
}

fn show_lock(lock: &Lock) -> kv::MvccLock {
    let (last_change_ts, versions_to_last_change) = lock.last_change.to_parts();
    kv::MvccLock {
        r#type: lock.kind.op() as i32,
        start_ts: lock.start_ts.0,
        primary: lock.primary.clone(),
        short_value: lock.short_value.clone().unwrap_or_default(),
        ttl: lock.ttl_ms,
        for_update_ts: lock.for_update_ts.0,
        txn_size: lock.txn_size,
        use_async_commit: lock.use_async_commit,
        secondaries: lock.secondaries.clone(),
        rollback_ts: lock.rollback_ts.iter().map(|ts| ts.0).collect(),
        last_change_ts,
        versions_to_last_change,
    }
}

fn show_record(commit_ts: TimeStamp, record: WriteRecord) -> kv::MvccWrite {
    let (last_change_ts, versions_to_last_change) = record.last_change.to_parts();
    kv::MvccWrite {
        r#type: record.kind.op() as i32,
        start_ts: record.start_ts.0,
        commit_ts: commit_ts.0,
        short_value: record.short_value.unwrap_or_default(),
        has_overlapped_rollback: record.has_overlapped_rollback,
        has_gc_fence: record.gc_fence.is_some(),
        gc_fence: record.gc_fence.unwrap_or_default().0,
        last_change_ts,
        versions_to_last_change,
    }
}

/// A search of a region for a key that a transaction has touched. It holds no view.
#[derive(Clone, Debug)]
pub struct StartTsSearch {
    start_ts: TimeStamp,
    cf: Cf,
    lower: Vec<u8>,
    region: (Vec<u8>, Vec<u8>),
    found: Option<Bytes>,
}

impl StartTsSearch {
    /// A search of the region with these encoded bounds.
    pub fn new(start_ts: TimeStamp, region_start: &[u8], region_end: &[u8]) -> StartTsSearch {
        let region = (region_start.to_vec(), region_end.to_vec());
        StartTsSearch { start_ts, cf: Cf::Lock, lower: region.0.clone(), region, found: None }
    }

    /// Looks at `entries` locks or records at most, one at least.
    ///
    /// # Errors
    /// What the view said. The next call goes on.
    pub fn step(&mut self, view: &impl ReadView, entries: u64) -> Result<Step, ReadError> {
        if self.found.is_some() || self.cf == Cf::Default {
            return Ok(Step::Done);
        }
        let reader = Reader::new(view);
        let mut cursor = Peeked::new(view.cursor(self.cf, &self.lower, &self.region.1)?);
        cursor.seek(&reader, &self.lower)?;
        for _ in 0..entries.max(1) {
            let Some((place, stored)) = cursor.entry.take() else {
                self.lower.clone_from(&self.region.0);
                self.cf = if self.cf == Cf::Lock { Cf::Write } else { Cf::Default };
                return Ok(if self.cf == Cf::Default { Step::Done } else { Step::More });
            };
            let (encoded, start_ts) = match self.cf {
                Cf::Lock => (&place[..], Lock::decode(&stored)?.start_ts),
                _ => (key::split(&place)?.0, WriteRecord::decode(&stored)?.start_ts),
            };
            if start_ts == self.start_ts {
                self.found = Some(key::decode(encoded)?);
                return Ok(Step::Done);
            }
            self.lower = [&place[..], &[0]].concat();
            cursor.advance(&reader)?;
        }
        Ok(Step::More)
    }

    /// The client's key.
    pub fn into_key(self) -> Option<Bytes> {
        self.found
    }
}
