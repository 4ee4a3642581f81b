//! How a call ended.

use std::fmt;

/// gRPC's status codes, with their numbers on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Code {
    /// It worked.
    Ok = 0,
    /// The caller gave up.
    Cancelled = 1,
    /// Nobody knows; also what PD's clients expect of many refusals.
    Unknown = 2,
    /// The request makes no sense, whatever the state.
    InvalidArgument = 3,
    /// The deadline passed first; the work may have been done.
    DeadlineExceeded = 4,
    /// Something named in the request is not there.
    NotFound = 5,
    /// Something to be created is there already.
    AlreadyExists = 6,
    /// The caller may not do this.
    PermissionDenied = 7,
    /// A bound was reached: memory, message size, quota.
    ResourceExhausted = 8,
    /// The state does not allow it; repeating is of no use until somebody changes the state.
    FailedPrecondition = 9,
    /// A conflict; repeat the whole sequence.
    Aborted = 10,
    /// A position beyond what exists.
    OutOfRange = 11,
    /// No such method, or one that is not served.
    Unimplemented = 12,
    /// An invariant broke, or bytes that are no message.
    Internal = 13,
    /// Not now; repeating may help.
    Unavailable = 14,
    /// Lost for good.
    DataLoss = 15,
    /// The caller did not say who it is.
    Unauthenticated = 16,
}

impl Code {
    /// The number on the wire.
    pub fn number(self) -> u32 {
        self as u32
    }

    /// The code for a number from the wire; UNKNOWN for one that gRPC does not define, as its specification asks.
    pub fn from_number(number: u32) -> Code {
        match number {
            0 => Code::Ok,
            1 => Code::Cancelled,
            3 => Code::InvalidArgument,
            4 => Code::DeadlineExceeded,
            5 => Code::NotFound,
            6 => Code::AlreadyExists,
            7 => Code::PermissionDenied,
            8 => Code::ResourceExhausted,
            9 => Code::FailedPrecondition,
            10 => Code::Aborted,
            11 => Code::OutOfRange,
            12 => Code::Unimplemented,
            13 => Code::Internal,
            14 => Code::Unavailable,
            15 => Code::DataLoss,
            16 => Code::Unauthenticated,
            _ => Code::Unknown,
        }
    }
}

/// Why a call failed: `grpc-status` and `grpc-message`.
///
/// The message is plain Unicode text of any content; percent-encoding is the transport's business.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// What kind of failure.
    pub code: Code,
    /// What happened, for people; a few clients match on its text.
    pub message: String,
}

macro_rules! constructors {
    ($($(#[$doc:meta])* $name:ident => $code:ident;)*) => {
        $($(#[$doc])* pub fn $name(message: impl Into<String>) -> Status { Status::new(Code::$code, message) })*
    };
}

impl Status {
    /// A status of any code.
    pub fn new(code: Code, message: impl Into<String>) -> Status {
        Status { code, message: message.into() }
    }

    /// UNIMPLEMENTED, with the text for a method that a service lacks.
    pub fn no_method(service: &str, method: &str) -> Status {
        Status::unimplemented(format!("method {method} of service {service} is not implemented"))
    }

    constructors! {
        /// CANCELLED: the caller gave up.
        cancelled => Cancelled;
        /// UNKNOWN: what Go servers answer for a plain error.
        unknown => Unknown;
        /// INVALID_ARGUMENT: the request makes no sense, whatever the state.
        invalid_argument => InvalidArgument;
        /// DEADLINE_EXCEEDED: the deadline passed first.
        deadline_exceeded => DeadlineExceeded;
        /// NOT_FOUND: something named in the request is not there.
        not_found => NotFound;
        /// ALREADY_EXISTS: something to be created is there already.
        already_exists => AlreadyExists;
        /// PERMISSION_DENIED: the caller may not do this.
        permission_denied => PermissionDenied;
        /// RESOURCE_EXHAUSTED: a bound was reached.
        resource_exhausted => ResourceExhausted;
        /// FAILED_PRECONDITION: the state does not allow it.
        failed_precondition => FailedPrecondition;
        /// ABORTED: a conflict.
        aborted => Aborted;
        /// OUT_OF_RANGE: a position beyond what exists.
        out_of_range => OutOfRange;
        /// UNIMPLEMENTED: no such method.
        unimplemented => Unimplemented;
        /// INTERNAL: an invariant broke, or bytes that are no message.
        internal => Internal;
        /// UNAVAILABLE: not now; repeating may help.
        unavailable => Unavailable;
        /// DATA_LOSS: lost for good.
        data_loss => DataLoss;
        /// UNAUTHENTICATED: the caller did not say who it is.
        unauthenticated => Unauthenticated;
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.code, self.message)
    }
}

impl std::error::Error for Status {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_keep_their_numbers_and_unknown_numbers_are_unknown() {
        for number in 0..=16 {
            assert_eq!(Code::from_number(number).number(), number);
        }
        assert_eq!(Code::from_number(17), Code::Unknown);
        assert_eq!(Code::from_number(u32::MAX), Code::Unknown);
        assert_eq!(Code::Unauthenticated.number(), 16);
    }

    #[test]
    fn constructors_set_their_code() {
        assert_eq!(Status::unavailable("later"), Status { code: Code::Unavailable, message: "later".into() });
        assert_eq!(Status::out_of_range("x").code, Code::OutOfRange);
        assert_eq!(Status::not_found("no such lease").to_string(), "NotFound: no such lease");
    }
}
