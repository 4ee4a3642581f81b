//! What a command wants to have changed.

use bytes::Bytes;

use super::{Lock, TimeStamp, WriteRecord, key};
use crate::{Cf, Modify};

/// A lock that a command removes, for those who wait for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Released {
    /// The encoded key.
    pub key: Bytes,
    /// Whose it was.
    pub start_ts: TimeStamp,
    /// When that committed; 0 if it did not.
    pub commit_ts: TimeStamp,
}

/// Changes of one command, to be replicated as one entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The changes. Empty: there is nothing to replicate.
    pub changes: Vec<Modify>,
    /// Locks that are gone once the changes are applied.
    pub released: Vec<Released>,
    /// Locks that readers must meet from now until the changes are applied, by encoded key.
    pub in_memory: Vec<(Bytes, Lock)>,
}

/// A command that can be carried out: its changes, and its answer once they are applied.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Planned<A> {
    /// The changes.
    pub plan: Plan,
    /// The answer, without a region error.
    pub answer: A,
}

impl Plan {
    pub(super) fn put_lock(&mut self, encoded: &Bytes, lock: &Lock) {
        self.changes.push(Modify::Put { cf: Cf::Lock, key: encoded.clone(), value: lock.encode() });
    }

    pub(super) fn unlock(&mut self, encoded: &Bytes, start_ts: TimeStamp, commit_ts: TimeStamp) {
        self.changes.push(Modify::Delete { cf: Cf::Lock, key: encoded.clone() });
        self.released.push(Released { key: encoded.clone(), start_ts, commit_ts });
    }

    pub(super) fn put_value(&mut self, encoded: &[u8], start_ts: TimeStamp, value: Bytes) {
        self.changes.push(Modify::Put { cf: Cf::Default, key: key::versioned(encoded, start_ts), value });
    }

    pub(super) fn delete_value(&mut self, encoded: &[u8], start_ts: TimeStamp) {
        self.changes.push(Modify::Delete { cf: Cf::Default, key: key::versioned(encoded, start_ts) });
    }

    pub(super) fn put_record(&mut self, encoded: &[u8], commit_ts: TimeStamp, record: &WriteRecord) {
        let key = key::versioned(encoded, commit_ts);
        self.changes.push(Modify::Put { cf: Cf::Write, key, value: record.encode() });
    }

    pub(super) fn delete_record(&mut self, encoded: &[u8], commit_ts: TimeStamp) {
        self.changes.push(Modify::Delete { cf: Cf::Write, key: key::versioned(encoded, commit_ts) });
    }
}
