//! Reads what routing needs from encoded messages, without decoding them.
//!
//! A connection's core must know to which region a request belongs, and which commands a batch holds; the region's
//! core decodes the rest. These functions walk over the fields of one or two levels and skip all others by length.
//!
//! They agree with a full decoder where that succeeds: of a repeated scalar the last one counts, repeated occurrences
//! of a message are merged, unknown fields are skipped (groups too). What they do not look into may still be
//! malformed, so success here promises nothing about a later decode. No input makes them panic.

mod batch;
mod wire;

/// The commands of a batch: their numbers in `BatchCommandsRequest.Request.cmd`, which their answers share.
pub mod tag {
    include!(concat!(env!("OUT_DIR"), "/commands.rs"));
}

pub use batch::{
    BATCH_COMMANDS_MAX, Command, batch_answers, batch_commands, encode_batch_request, encode_batch_response,
};

use crate::rpc::Status;
use std::fmt;
use wire::Fields;

/// Reads `Context.region_id` (field 1) from a request whose field 1 is its `kvrpcpb.Context`; 0 if it is absent.
///
/// This holds for `coprocessor.Request` and for every request of `kvrpcpb` that goes to a region. It does not hold
/// for `BatchCommandsEmptyRequest` ([`tag::EMPTY`]), whose field 1 is a number.
///
/// Cost: a few nanoseconds per top-level field; all are visited, since a second `Context` would override the first.
///
/// # Errors
/// [`ShallowError`] if the bytes are no message, or field 1 is none.
pub fn region_id(request: &[u8]) -> Result<u64, ShallowError> {
    const CONTEXT: u32 = 1;
    const REGION_ID: u32 = 1;
    let mut region_id = 0;
    for field in Fields::of(request) {
        let (CONTEXT, value) = field? else { continue };
        for field in Fields::of(value.message(CONTEXT)?) {
            if let (REGION_ID, value) = field? {
                region_id = value.varint(REGION_ID)?;
            }
        }
    }
    Ok(region_id)
}

/// Reads `Context.cluster_id` (field 35) like [`region_id`]; 0 if it is absent.
///
/// # Errors
/// [`ShallowError`] if the bytes are no message, or field 1 is none.
pub fn cluster_id(request: &[u8]) -> Result<u64, ShallowError> {
    const CONTEXT: u32 = 1;
    const CLUSTER_ID: u32 = 35;
    let mut cluster_id = 0;
    for field in Fields::of(request) {
        let (CONTEXT, value) = field? else { continue };
        for field in Fields::of(value.message(CONTEXT)?) {
            if let (CLUSTER_ID, value) = field? {
                cluster_id = value.varint(CLUSTER_ID)?;
            }
        }
    }
    Ok(cluster_id)
}

/// Why bytes are not the message that they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShallowError {
    /// A field goes beyond the end of its message.
    Truncated,
    /// A variable-length integer does not fit into 64 bits.
    VarintTooLong,
    /// A field's number is 0 or above 2^29-1, or its wire type does not exist.
    BadKey(u64),
    /// A field is encoded as another type than it has.
    WrongType {
        /// The field's number.
        field: u32,
    },
    /// A group ends that did not begin, does not end, or is nested over 100 deep.
    BadGroup,
    /// A batch has another number of ids than of commands.
    IdsDoNotMatch {
        /// How many commands.
        commands: usize,
        /// How many ids.
        ids: usize,
    },
    /// A batch holds more than [`BATCH_COMMANDS_MAX`] commands or ids.
    TooMany,
}

impl fmt::Display for ShallowError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ShallowError::Truncated => f.write_str("a field goes beyond the end of its message"),
            ShallowError::VarintTooLong => f.write_str("an integer does not fit into 64 bits"),
            ShallowError::BadKey(key) => write!(f, "{key} is no field key"),
            ShallowError::WrongType { field } => write!(f, "field {field} has another type"),
            ShallowError::BadGroup => f.write_str("a group is unbalanced or nested too deep"),
            ShallowError::IdsDoNotMatch { commands, ids } => {
                write!(f, "the batch has {commands} commands but {ids} ids")
            }
            ShallowError::TooMany => {
                write!(f, "the batch has more than {BATCH_COMMANDS_MAX} commands")
            }
        }
    }
}

impl std::error::Error for ShallowError {}

/// INTERNAL as for every message that cannot be decoded; RESOURCE_EXHAUSTED for too large a batch.
impl From<ShallowError> for Status {
    fn from(error: ShallowError) -> Status {
        match error {
            ShallowError::TooMany => Status::resource_exhausted(error.to_string()),
            _ => Status::internal(format!("malformed message: {error}")),
        }
    }
}
