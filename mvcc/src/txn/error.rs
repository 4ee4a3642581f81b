//! Why a command of a transaction did not do what it was asked, and how clients are told (`compat/4-store.md`, 4.6).

use bytes::Bytes;
use proto::kvrpcpb as kv;
use proto::kvrpcpb::write_conflict::Reason;

use super::TimeStamp;
use crate::ReadError;

/// Two transactions wrote the same key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The one that lost.
    pub start_ts: TimeStamp,
    /// The other one.
    pub conflict_ts: TimeStamp,
    /// When the other one committed; 0 if it did not.
    pub conflict_commit_ts: TimeStamp,
    /// The client's key.
    pub key: Bytes,
    /// The primary of the one that lost.
    pub primary: Bytes,
    /// Which rule found it.
    pub reason: Reason,
}

/// A mutation's claim about the key did not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailedAssertion {
    /// The claim.
    pub assertion: kv::Assertion,
    /// The transaction whose data were found; 0 if there are none.
    pub existing_start_ts: TimeStamp,
    /// When it committed.
    pub existing_commit_ts: TimeStamp,
}

/// Why a command did not do what it was asked.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum TxnError {
    /// The view. [`ReadError::NotCached`] is no answer: the command runs again where it may read the disk.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Another transaction holds the key.
    #[error("KeyIsLocked by transaction {}", .0.lock_version)]
    KeyIsLocked(Box<kv::LockInfo>),
    /// Another transaction wrote the key.
    #[error(
        "WriteConflict of transaction {} with {}, committed at {}: {}",
        .0.start_ts, .0.conflict_ts, .0.conflict_commit_ts, .0.reason.as_str_name()
    )]
    WriteConflict(Box<Conflict>),
    /// The key must not exist, and does.
    #[error("AlreadyExist")]
    AlreadyExist {
        /// The client's key.
        key: Bytes,
    },
    /// A mutation's claim about the key did not hold.
    #[error("AssertionFailed: {failed:?} of transaction {start_ts}")]
    AssertionFailed {
        /// The transaction.
        start_ts: TimeStamp,
        /// The client's key.
        key: Bytes,
        /// The claim, and what was found.
        failed: FailedAssertion,
    },
    /// A commit found neither lock nor commit. Clients look for this word.
    #[error("TxnLockNotFound: transaction {start_ts} has no lock to commit at {commit_ts}")]
    TxnLockNotFound {
        /// The transaction.
        start_ts: TimeStamp,
        /// When it wanted to commit.
        commit_ts: TimeStamp,
        /// The client's key.
        key: Bytes,
    },
    /// There is nothing of the transaction on this key.
    #[error("TxnNotFound: nothing is known of transaction {start_ts}")]
    TxnNotFound {
        /// The transaction.
        start_ts: TimeStamp,
        /// The client's key.
        key: Bytes,
    },
    /// A reader has pushed the lock beyond the commit.
    #[error("CommitTsExpired: transaction {start_ts} may not commit at {commit_ts}, below {min_commit_ts}")]
    CommitTsExpired {
        /// The transaction.
        start_ts: TimeStamp,
        /// When it wanted to commit.
        commit_ts: TimeStamp,
        /// The client's key.
        key: Bytes,
        /// From when on it may.
        min_commit_ts: TimeStamp,
    },
    /// What was to be rolled back is committed.
    #[error("Committed: transaction {start_ts} is committed at {commit_ts}")]
    Committed {
        /// The transaction.
        start_ts: TimeStamp,
        /// When.
        commit_ts: TimeStamp,
    },
    /// A pessimistic transaction has lost its lock.
    #[error("PessimisticLockNotFound: transaction {start_ts} has lost its lock")]
    PessimisticLockNotFound {
        /// The transaction.
        start_ts: TimeStamp,
        /// The client's key.
        key: Bytes,
    },
    /// A pessimistic transaction wants a lock after it was rolled back.
    #[error("PessimisticLockRolledBack: transaction {start_ts} was rolled back")]
    PessimisticLockRolledBack {
        /// The transaction.
        start_ts: TimeStamp,
        /// The client's key.
        key: Bytes,
    },
    /// A pessimistic request met the transaction's optimistic lock, or the other way round.
    #[error("LockTypeNotMatch: the lock of transaction {start_ts} is of another kind: pessimistic {is_pessimistic}")]
    LockTypeNotMatch {
        /// The transaction.
        start_ts: TimeStamp,
        /// The client's key.
        key: Bytes,
        /// Whether the lock that is there is pessimistic.
        is_pessimistic: bool,
    },
    /// A commit before its own beginning.
    #[error("InvalidTxnTso: transaction {start_ts} cannot commit at {commit_ts}")]
    InvalidTxnTso {
        /// The transaction.
        start_ts: TimeStamp,
        /// When it wanted to commit.
        commit_ts: TimeStamp,
    },
    /// The key is not the primary that it was taken for.
    #[error("PrimaryMismatch of transaction {}", .0.lock_version)]
    PrimaryMismatch(Box<kv::LockInfo>),
    /// Transactions wait for each other in a circle.
    #[error("Deadlock with transaction {}", .0.lock_ts)]
    Deadlock(Box<kv::Deadlock>),
    /// The request makes no sense.
    #[error("{0}")]
    Invalid(String),
}

impl TxnError {
    /// The error as clients are told.
    pub fn key_error(&self) -> kv::KeyError {
        let mut out = kv::KeyError::default();
        match self {
            TxnError::KeyIsLocked(info) => out.locked = Some((**info).clone()),
            TxnError::WriteConflict(conflict) => {
                out.retryable = self.to_string();
                out.conflict = Some(kv::WriteConflict {
                    start_ts: conflict.start_ts.0,
                    conflict_ts: conflict.conflict_ts.0,
                    key: conflict.key.clone(),
                    primary: conflict.primary.clone(),
                    conflict_commit_ts: conflict.conflict_commit_ts.0,
                    reason: conflict.reason as i32,
                });
            }
            TxnError::AlreadyExist { key } => out.already_exist = Some(kv::AlreadyExist { key: key.clone() }),
            TxnError::AssertionFailed { start_ts, key, failed } => {
                out.assertion_failed = Some(kv::AssertionFailed {
                    start_ts: start_ts.0,
                    key: key.clone(),
                    assertion: failed.assertion as i32,
                    existing_start_ts: failed.existing_start_ts.0,
                    existing_commit_ts: failed.existing_commit_ts.0,
                });
            }
            TxnError::TxnLockNotFound { .. } => out.retryable = self.to_string(),
            TxnError::TxnNotFound { start_ts, key } => {
                out.txn_not_found = Some(kv::TxnNotFound { start_ts: start_ts.0, primary_key: key.clone() });
            }
            TxnError::CommitTsExpired { start_ts, commit_ts, key, min_commit_ts } => {
                out.commit_ts_expired = Some(kv::CommitTsExpired {
                    start_ts: start_ts.0,
                    attempted_commit_ts: commit_ts.0,
                    key: key.clone(),
                    min_commit_ts: min_commit_ts.0,
                });
            }
            TxnError::PrimaryMismatch(info) => {
                out.primary_mismatch = Some(kv::PrimaryMismatch { lock_info: Some((**info).clone()) });
            }
            TxnError::Deadlock(deadlock) => out.deadlock = Some((**deadlock).clone()),
            TxnError::Read(_)
            | TxnError::Committed { .. }
            | TxnError::PessimisticLockNotFound { .. }
            | TxnError::PessimisticLockRolledBack { .. }
            | TxnError::LockTypeNotMatch { .. }
            | TxnError::InvalidTxnTso { .. }
            | TxnError::Invalid(_) => out.abort = self.to_string(),
        }
        out
    }
}
