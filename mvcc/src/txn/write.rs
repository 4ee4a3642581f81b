//! The records of a key's commits and rollbacks (`compat/5-formats.md`, 5.4).

use base::codec::DecodeError;
use bytes::Bytes;
use proto::kvrpcpb as kv;

use super::TimeStamp;
use super::codec::{LastChange, Parts, Writer};
use crate::ReadError;

/// What stands in the short value of a rollback that no later one may remove.
const PROTECTED: &[u8] = b"p";

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteKind {
    /// A value was committed.
    Put,
    /// A removal was committed.
    Delete,
    /// A commit that left the data alone.
    Lock,
    /// The transaction was rolled back; its place is its `start_ts`.
    Rollback,
}

impl WriteKind {
    fn tag(self) -> u8 {
        match self {
            WriteKind::Put => b'P',
            WriteKind::Delete => b'D',
            WriteKind::Lock => b'L',
            WriteKind::Rollback => b'R',
        }
    }

    fn of_tag(tag: u8) -> Result<WriteKind, DecodeError> {
        match tag {
            b'P' => Ok(WriteKind::Put),
            b'D' => Ok(WriteKind::Delete),
            b'L' => Ok(WriteKind::Lock),
            b'R' => Ok(WriteKind::Rollback),
            _ => Err(DecodeError::Malformed),
        }
    }

    /// As answers name it.
    pub fn op(self) -> kv::Op {
        match self {
            WriteKind::Put => kv::Op::Put,
            WriteKind::Delete => kv::Op::Del,
            WriteKind::Lock => kv::Op::Lock,
            WriteKind::Rollback => kv::Op::Rollback,
        }
    }

    /// Whether the data are different after it.
    pub fn is_data(self) -> bool {
        matches!(self, WriteKind::Put | WriteKind::Delete)
    }
}

/// A record. Its commit timestamp is in its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WriteRecord {
    /// What it says.
    pub kind: WriteKind,
    /// The transaction.
    pub start_ts: TimeStamp,
    /// The value, if it is short; a mark in protected rollbacks.
    pub short_value: Option<Bytes>,
    /// The transaction whose `start_ts` is this record's timestamp was rolled back.
    pub has_overlapped_rollback: bool,
    /// Set when the rollback was noted in a record that had a place already: the commit of the next newer version, or 0
    /// if there was none. A reader at or after it takes the record for collected garbage.
    pub gc_fence: Option<TimeStamp>,
    /// For [`WriteKind::Lock`] and [`WriteKind::Rollback`].
    pub last_change: LastChange,
    /// Where the transaction came from, for change data capture.
    pub txn_source: u64,
}

impl WriteRecord {
    /// A record with only its first parts.
    pub fn new(kind: WriteKind, start_ts: TimeStamp, short_value: Option<Bytes>) -> WriteRecord {
        WriteRecord {
            kind,
            start_ts,
            short_value,
            has_overlapped_rollback: false,
            gc_fence: None,
            last_change: LastChange::Unknown,
            txn_source: 0,
        }
    }

    /// A rollback, which a later one may remove unless it is `protected`.
    pub fn rollback(start_ts: TimeStamp, protected: bool) -> WriteRecord {
        WriteRecord::new(WriteKind::Rollback, start_ts, protected.then(|| Bytes::from_static(PROTECTED)))
    }

    /// Whether no later rollback may remove it.
    pub fn is_protected(&self) -> bool {
        self.kind == WriteKind::Rollback && self.short_value.as_deref() == Some(PROTECTED)
    }

    /// Whether it says, standing at `commit_ts`, that transaction `start_ts` was rolled back: as the rollback's own
    /// record, or in another transaction's that has its place.
    pub(super) fn rolls_back(&self, commit_ts: TimeStamp, start_ts: TimeStamp) -> bool {
        commit_ts == start_ts && (self.kind == WriteKind::Rollback || self.has_overlapped_rollback)
    }

    /// Whether a read at `read_ts` that finds this as the newest data may take it: the next newer version has not been
    /// collected below `read_ts`.
    pub fn passes_fence(&self, read_ts: TimeStamp) -> bool {
        self.gc_fence.is_none_or(|fence| fence.is_zero() || fence > read_ts)
    }

    /// Its stored form.
    pub fn encode(&self) -> Bytes {
        let mut out = Writer(Vec::with_capacity(16 + self.short_value.as_ref().map_or(0, Bytes::len)));
        out.byte(self.kind.tag()).varint(self.start_ts.0);
        if let Some(value) = &self.short_value {
            out.short_value(value);
        }
        if self.has_overlapped_rollback {
            out.byte(b'R');
        }
        if let Some(fence) = self.gc_fence {
            out.byte(b'F').fixed(fence.0);
        }
        out.last_change(self.last_change);
        if self.txn_source != 0 {
            out.byte(b'S').varint(self.txn_source);
        }
        out.finish()
    }

    /// The record behind its stored form.
    ///
    /// # Errors
    /// [`ReadError::Failed`] for what [`encode`](Self::encode) does not write, unknown parts included.
    pub fn decode(stored: &Bytes) -> Result<WriteRecord, ReadError> {
        let error = |error| ReadError::Failed(format!("a write record of {} bytes: {error}", stored.len()));
        decode(Parts(stored.clone())).map_err(error)
    }
}

fn decode(mut parts: Parts) -> Result<WriteRecord, DecodeError> {
    let kind = WriteKind::of_tag(parts.byte()?)?;
    let mut record = WriteRecord::new(kind, TimeStamp(parts.varint()?), None);
    while !parts.is_empty() {
        match parts.byte()? {
            b'v' => record.short_value = Some(parts.short_value()?),
            b'R' => record.has_overlapped_rollback = true,
            b'F' => record.gc_fence = Some(parts.ts()?),
            b'l' => record.last_change = parts.last_change()?,
            b'S' => record.txn_source = parts.varint()?,
            _ => return Err(DecodeError::Malformed),
        }
    }
    Ok(record)
}
