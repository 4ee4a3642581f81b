//! Errors as PD's clients expect them: which go into the header, and as what.

use super::Core;
use crate::state::{BootstrapError, ClusterError, KeyspaceError};
use proto::pdpb::{ErrorType, ResponseHeader};

/// An error with the type that it has in a header.
pub(super) trait HeaderError: std::fmt::Display {
    fn kind(&self) -> ErrorType;
}

impl HeaderError for ClusterError {
    fn kind(&self) -> ErrorType {
        match self {
            ClusterError::NotBootstrapped => ErrorType::NotBootstrapped,
            ClusterError::Tombstone => ErrorType::StoreTombstone,
            ClusterError::InvalidValue(_) => ErrorType::InvalidValue,
            ClusterError::StoreNotFound(_) | ClusterError::Refused(_) => ErrorType::Unknown,
        }
    }
}

impl HeaderError for BootstrapError {
    fn kind(&self) -> ErrorType {
        match self {
            BootstrapError::Already => ErrorType::AlreadyBootstrapped,
            BootstrapError::Invalid(_) => ErrorType::Unknown,
        }
    }
}

impl HeaderError for KeyspaceError {
    fn kind(&self) -> ErrorType {
        match self {
            KeyspaceError::NotFound => ErrorType::EntryNotFound,
            KeyspaceError::Exists => ErrorType::DuplicatedEntry,
            _ => ErrorType::Unknown,
        }
    }
}

impl Core {
    /// A header that carries `error`.
    pub(super) fn header_of(&self, error: &impl HeaderError) -> Option<ResponseHeader> {
        self.error(error.kind(), error)
    }

    /// The header of an outcome, and what it brought.
    pub(super) fn outcome<T: Default>(&self, outcome: Result<T, impl HeaderError>) -> (Option<ResponseHeader>, T) {
        match outcome {
            Ok(answer) => (self.header(), answer),
            Err(error) => (self.header_of(&error), T::default()),
        }
    }
}
