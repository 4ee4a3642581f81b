//! What gRPC puts on top of HTTP/2: message framing, time-outs, metadata, statuses, compression. Pure.

pub(crate) mod base64;
pub(crate) mod gzip;
pub(crate) mod headers;
pub(crate) mod message;
pub(crate) mod percent;
pub(crate) mod status;
pub(crate) mod timeout;
