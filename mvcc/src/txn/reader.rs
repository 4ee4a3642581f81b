//! Looks into one key's lock, records and values, and counts what it steps over.

use std::cell::Cell;

use bytes::Bytes;

use super::codec::LastChange;
use super::{Lock, TimeStamp, WriteKind, WriteRecord, key};
use crate::{Cf, Cursor, ReadError, ReadView};

/// Records to step over before a seek is cheaper.
pub(super) const STEPS_BEFORE_SEEK: u64 = 8;

/// What reading took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Seeks and point reads of the engine.
    pub seeks: u64,
    /// Entries that were looked at, those of old versions and rollbacks included.
    pub stepped: u64,
    /// Bytes of keys and values of those that were answered.
    pub bytes: u64,
}

/// A view with the eyes of a transaction. Cheap to make; it holds no cursor.
pub struct Reader<'v, V> {
    view: &'v V,
    seeks: Cell<u64>,
    stepped: Cell<u64>,
    limit: u64,
}

/// What became of a transaction on a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TxnRecord {
    /// It committed at `commit_ts`.
    Committed {
        /// When.
        commit_ts: TimeStamp,
    },
    /// It was rolled back: a record of its own, or a mark in another one's.
    RolledBack,
    /// Nothing is known.
    None {
        /// The commit of another transaction at our `start_ts`, where a rollback would have to stand, and the next newer
        /// commit of data, 0 if there is none.
        overlapped: Option<(WriteRecord, TimeStamp)>,
    },
}

/// One key's records, newest first.
pub struct Versions<'r, 'v, V: ReadView> {
    reader: &'r Reader<'v, V>,
    cursor: V::Cursor,
    encoded: &'r [u8],
}

impl<'v, V: ReadView> Reader<'v, V> {
    /// A reader of `view`.
    pub fn new(view: &'v V) -> Reader<'v, V> {
        Reader::limited(view, u64::MAX)
    }

    /// A reader of `view` that says [`ReadError::NotCached`] after `limit` steps: for a place where long work must not
    /// be done though all of it is in memory.
    pub fn limited(view: &'v V, limit: u64) -> Reader<'v, V> {
        Reader { view, seeks: Cell::new(0), stepped: Cell::new(0), limit }
    }

    /// What reading took so far. Bytes are for the caller to count.
    pub fn stats(&self) -> Stats {
        Stats { seeks: self.seeks.get(), stepped: self.stepped.get(), bytes: 0 }
    }

    pub(super) fn view(&self) -> &'v V {
        self.view
    }

    pub(super) fn count_seek(&self) {
        self.seeks.set(self.seeks.get() + 1);
    }

    /// Counts an entry that is about to be looked at.
    pub(super) fn step(&self) -> Result<(), ReadError> {
        let stepped = self.stepped.get() + 1;
        self.stepped.set(stepped);
        if stepped > self.limit { Err(ReadError::NotCached) } else { Ok(()) }
    }

    /// The lock of a key. Cost: one point read.
    ///
    /// # Errors
    /// What the view said.
    pub fn lock(&self, encoded: &[u8]) -> Result<Option<Lock>, ReadError> {
        self.count_seek();
        self.view.get(Cf::Lock, encoded)?.as_ref().map(Lock::decode).transpose()
    }

    /// The records of a key. Cost: one cursor.
    ///
    /// # Errors
    /// What the view said.
    pub fn versions<'r>(&'r self, encoded: &'r [u8]) -> Result<Versions<'r, 'v, V>, ReadError> {
        let cursor = self.view.cursor(Cf::Write, encoded, &key::after(encoded))?;
        Ok(Versions { reader: self, cursor, encoded })
    }

    /// The newest record at or before `ts`. Cost: one seek.
    ///
    /// # Errors
    /// What the view said.
    pub fn newest(&self, encoded: &[u8], ts: TimeStamp) -> Result<Option<(TimeStamp, WriteRecord)>, ReadError> {
        let mut versions = self.versions(encoded)?;
        versions.seek(ts)?;
        versions.next()
    }

    /// The newest commit of data at or before `ts`, a removal included, a collected version not.
    ///
    /// # Errors
    /// What the view said.
    pub fn data(&self, encoded: &[u8], ts: TimeStamp) -> Result<Option<(TimeStamp, WriteRecord)>, ReadError> {
        let mut versions = self.versions(encoded)?;
        versions.seek(ts)?;
        versions.data(ts)
    }

    /// The value that a transaction put. Cost: nothing for a short value, else one point read.
    ///
    /// # Errors
    /// What the view said; [`ReadError::Failed`] if a long value is missing.
    pub fn value(&self, encoded: &[u8], short_value: Option<&Bytes>, start_ts: TimeStamp) -> Result<Bytes, ReadError> {
        if let Some(value) = short_value {
            return Ok(value.clone());
        }
        self.count_seek();
        let value = self.view.get(Cf::Default, &key::versioned(encoded, start_ts))?;
        value.ok_or_else(|| ReadError::Failed(format!("DefaultNotFound: no value of transaction {start_ts}")))
    }

    /// What became of transaction `start_ts` on this key.
    ///
    /// Cost: a step for each record from the newest down to `start_ts`: the commit may be anywhere in between.
    ///
    /// # Errors
    /// What the view said.
    pub fn txn_record(&self, encoded: &[u8], start_ts: TimeStamp) -> Result<TxnRecord, ReadError> {
        let mut versions = self.versions(encoded)?;
        versions.seek(TimeStamp::MAX)?;
        let mut newer = TimeStamp::ZERO;
        while let Some((commit_ts, record)) = versions.next()? {
            if record.start_ts == start_ts {
                return Ok(match record.kind {
                    WriteKind::Rollback => TxnRecord::RolledBack,
                    _ => TxnRecord::Committed { commit_ts },
                });
            }
            if commit_ts == start_ts {
                return Ok(match record.has_overlapped_rollback {
                    true => TxnRecord::RolledBack,
                    false => TxnRecord::None { overlapped: Some((record, newer)) },
                });
            }
            if commit_ts < start_ts {
                break;
            }
            if record.kind.is_data() {
                newer = commit_ts;
            }
        }
        Ok(TxnRecord::None { overlapped: None })
    }
}

impl<V: ReadView> Versions<'_, '_, V> {
    /// Goes to the newest record at or before `ts`.
    pub(super) fn seek(&mut self, ts: TimeStamp) -> Result<(), ReadError> {
        self.reader.count_seek();
        self.cursor.seek(&key::versioned(self.encoded, ts))
    }

    /// The next older record, with the timestamp of its place.
    pub(super) fn next(&mut self) -> Result<Option<(TimeStamp, WriteRecord)>, ReadError> {
        self.reader.step()?;
        let Some((place, stored)) = self.cursor.next_entry()? else { return Ok(None) };
        let (_, ts) = key::split(&place)?;
        Ok(Some((ts, WriteRecord::decode(&stored)?)))
    }

    /// From here on, the first commit of data for a reader at `ts`.
    pub(super) fn data(&mut self, ts: TimeStamp) -> Result<Option<(TimeStamp, WriteRecord)>, ReadError> {
        while let Some((commit_ts, record)) = self.next()? {
            if record.kind.is_data() {
                return Ok(record.passes_fence(ts).then_some((commit_ts, record)));
            }
            match record.last_change {
                LastChange::NotExist => return Ok(None),
                LastChange::Exists { ts, versions } if versions >= STEPS_BEFORE_SEEK => self.seek(ts)?,
                LastChange::Exists { .. } | LastChange::Unknown => {}
            }
        }
        Ok(None)
    }
}

/// What a record means for [`Lock::last_change`] of a lock that is put on top of it.
pub(super) fn last_change_after(newest: Option<&(TimeStamp, WriteRecord)>) -> LastChange {
    match newest {
        None => LastChange::NotExist,
        Some((ts, record)) if record.kind.is_data() => LastChange::Exists { ts: *ts, versions: 1 },
        Some((_, record)) => match record.last_change {
            LastChange::Exists { ts, versions } => LastChange::Exists { ts, versions: versions + 1 },
            other => other,
        },
    }
}
