//! The lock of a key (`compat/5-formats.md`, 5.3): a transaction's intent, durable from prewrite to commit or rollback.
//!
//! TiKV stops reading at a tag that it does not know. We refuse such a lock: we would drop the unknown part when we write
//! the lock again, as a heartbeat does. Shared locks (`H`) are younger than the release that we announce; refused too.

use base::codec::DecodeError;
use bytes::Bytes;
use proto::kvrpcpb as kv;

use super::codec::{LastChange, Parts, Writer};
use super::{TimeStamp, WriteKind};
use crate::ReadError;

/// What the transaction is about to do with the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockKind {
    /// Write a value.
    Put,
    /// Remove it.
    Delete,
    /// Only keep others from writing until it has committed.
    Lock,
    /// Nothing yet: it was locked before the transaction knows what it will write.
    Pessimistic,
}

impl LockKind {
    fn tag(self) -> u8 {
        match self {
            LockKind::Put => b'P',
            LockKind::Delete => b'D',
            LockKind::Lock => b'L',
            LockKind::Pessimistic => b'S',
        }
    }

    fn of_tag(tag: u8) -> Result<LockKind, DecodeError> {
        match tag {
            b'P' => Ok(LockKind::Put),
            b'D' => Ok(LockKind::Delete),
            b'L' => Ok(LockKind::Lock),
            b'S' => Ok(LockKind::Pessimistic),
            _ => Err(DecodeError::Malformed),
        }
    }

    /// As answers name it.
    pub fn op(self) -> kv::Op {
        match self {
            LockKind::Put => kv::Op::Put,
            LockKind::Delete => kv::Op::Del,
            LockKind::Lock => kv::Op::Lock,
            LockKind::Pessimistic => kv::Op::PessimisticLock,
        }
    }

    /// The record that a commit makes of it; a pessimistic lock leaves none.
    pub fn committed(self) -> Option<WriteKind> {
        match self {
            LockKind::Put => Some(WriteKind::Put),
            LockKind::Delete => Some(WriteKind::Delete),
            LockKind::Lock => Some(WriteKind::Lock),
            LockKind::Pessimistic => None,
        }
    }
}

/// A lock. Timestamps of 0 and empty parts are left out of its encoding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lock {
    /// What for.
    pub kind: LockKind,
    /// The client's key whose lock or record decides on the transaction.
    pub primary: Bytes,
    /// The transaction.
    pub start_ts: TimeStamp,
    /// How long it holds without a word of its owner, counted from `start_ts`.
    pub ttl_ms: u64,
    /// The value, if it is a [`LockKind::Put`] of a short one.
    pub short_value: Option<Bytes>,
    /// When a pessimistic transaction last looked at the key; 0 for an optimistic one.
    pub for_update_ts: TimeStamp,
    /// Keys of the transaction in the region, as its client counts.
    pub txn_size: u64,
    /// The commit must not be below.
    pub min_commit_ts: TimeStamp,
    /// The transaction is committed once all its locks are there.
    pub use_async_commit: bool,
    /// All other keys of the transaction, if this is its primary and it uses async commit.
    pub secondaries: Vec<Bytes>,
    /// Other transactions that were rolled back on this key, whose rollback the commit may fall on.
    pub rollback_ts: Vec<TimeStamp>,
    /// For records of kind [`WriteKind::Lock`].
    pub last_change: LastChange,
    /// Where the transaction came from, for change data capture.
    pub txn_source: u64,
    /// It was granted although a newer commit was there.
    pub is_locked_with_conflict: bool,
    /// Counts the flushes of a pipelined transaction; 0 for any other.
    pub generation: u64,
    /// It is about to become a record without ever being stored. Only in memory.
    pub is_one_pc: bool,
}

impl Lock {
    /// A lock with only its first four parts.
    pub fn new(kind: LockKind, primary: Bytes, start_ts: TimeStamp, ttl_ms: u64) -> Lock {
        Lock {
            kind,
            primary,
            start_ts,
            ttl_ms,
            short_value: None,
            for_update_ts: TimeStamp::ZERO,
            txn_size: 0,
            min_commit_ts: TimeStamp::ZERO,
            use_async_commit: false,
            secondaries: Vec::new(),
            rollback_ts: Vec::new(),
            last_change: LastChange::Unknown,
            txn_source: 0,
            is_locked_with_conflict: false,
            generation: 0,
            is_one_pc: false,
        }
    }

    /// Whether nothing is known yet of what it will write.
    pub fn is_pessimistic(&self) -> bool {
        self.kind == LockKind::Pessimistic
    }

    /// Whether its owner was not heard of for its time to live. [`TimeStamp::MAX`] is later than any.
    pub fn has_expired(&self, now: TimeStamp) -> bool {
        self.start_ts.millis().saturating_add(self.ttl_ms) < now.millis() || now.is_max()
    }

    /// Its stored form.
    pub fn encode(&self) -> Bytes {
        let mut out = Writer(Vec::with_capacity(64 + self.primary.len()));
        out.byte(self.kind.tag()).compact(&self.primary).varint(self.start_ts.0).varint(self.ttl_ms);
        if let Some(value) = &self.short_value {
            out.short_value(value);
        }
        if !self.for_update_ts.is_zero() {
            out.byte(b'f').fixed(self.for_update_ts.0);
        }
        if self.txn_size > 0 {
            out.byte(b't').fixed(self.txn_size);
        }
        if !self.min_commit_ts.is_zero() {
            out.byte(b'c').fixed(self.min_commit_ts.0);
        }
        if self.use_async_commit {
            out.byte(b'a').varint(self.secondaries.len() as u64);
            for secondary in &self.secondaries {
                out.compact(secondary);
            }
        }
        if !self.rollback_ts.is_empty() {
            out.byte(b'r').varint(self.rollback_ts.len() as u64);
            for ts in &self.rollback_ts {
                out.fixed(ts.0);
            }
        }
        out.last_change(self.last_change);
        if self.txn_source != 0 {
            out.byte(b's').varint(self.txn_source);
        }
        if self.is_locked_with_conflict {
            out.byte(b'F');
        }
        if self.generation > 0 {
            out.byte(b'g').fixed(self.generation);
        }
        out.finish()
    }

    /// The lock behind its stored form.
    ///
    /// # Errors
    /// [`ReadError::Failed`] for what [`encode`](Self::encode) does not write, unknown parts included.
    pub fn decode(stored: &Bytes) -> Result<Lock, ReadError> {
        let error = |error| ReadError::Failed(format!("a lock of {} bytes: {error}", stored.len()));
        decode(Parts(stored.clone())).map_err(error)
    }

    /// What a client is told of it.
    pub fn info(&self, user_key: &Bytes) -> kv::LockInfo {
        kv::LockInfo {
            primary_lock: self.primary.clone(),
            lock_version: self.start_ts.0,
            key: user_key.clone(),
            lock_ttl: self.ttl_ms,
            txn_size: self.txn_size,
            lock_type: self.kind.op() as i32,
            lock_for_update_ts: self.for_update_ts.0,
            use_async_commit: self.use_async_commit,
            min_commit_ts: self.min_commit_ts.0,
            secondaries: self.secondaries.clone(),
            ..Default::default()
        }
    }
}

fn decode(mut parts: Parts) -> Result<Lock, DecodeError> {
    let kind = LockKind::of_tag(parts.byte()?)?;
    let primary = parts.compact()?;
    let start_ts = TimeStamp(parts.varint()?);
    // Very old locks have none.
    let ttl_ms = if parts.is_empty() { 0 } else { parts.varint()? };
    let mut lock = Lock::new(kind, primary, start_ts, ttl_ms);
    while !parts.is_empty() {
        match parts.byte()? {
            b'v' => lock.short_value = Some(parts.short_value()?),
            b'f' => lock.for_update_ts = parts.ts()?,
            b't' => lock.txn_size = parts.fixed()?,
            b'c' => lock.min_commit_ts = parts.ts()?,
            b'a' => {
                lock.use_async_commit = true;
                lock.secondaries = parts.list(Parts::compact)?;
            }
            b'r' => lock.rollback_ts = parts.list(Parts::ts)?,
            b'l' => lock.last_change = parts.last_change()?,
            b's' => lock.txn_source = parts.varint()?,
            b'F' => lock.is_locked_with_conflict = true,
            b'g' => lock.generation = parts.fixed()?,
            _ => return Err(DecodeError::Malformed),
        }
    }
    Ok(lock)
}
