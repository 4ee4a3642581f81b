//! The seam between services and transports: what a handler is called with, and what a stub calls.
//!
//! ```text
//!   PdClient ──> Channel  ~~~ transport ~~~  Service <── PdService ──> Pd (handlers)
//!        messages      bytes              bytes              messages
//! ```
//!
//! The generated code on both sides speaks messages, the transport (`net`, or a test) moves [`Bytes`] and never looks
//! into them. Everything belongs to one core: futures and handles are `!Send`, and no runtime is named.

pub mod call;
mod context;
mod service;
mod status;
mod stream;

pub use context::{CallContext, Metadata};
pub use service::{Channel, LocalFuture, Service, Shape, Streams, refuse};
pub use status::{Code, Status};
pub use stream::{Inbound, Outbound, RawInbound, RawOutbound};

use bytes::Bytes;

/// Decodes a message. Its bytes fields share memory with `message`.
///
/// # Errors
/// INTERNAL, as gRPC asks of a message that cannot be decoded, if `message` is malformed or nested over 100 deep.
pub fn decode<M: prost::Message + Default>(message: Bytes) -> Result<M, Status> {
    M::decode(message).map_err(|error| Status::internal(format!("malformed message: {error}")))
}

/// Encodes a message.
pub fn encode<M: prost::Message>(message: &M) -> Bytes {
    Bytes::from(message.encode_to_vec())
}
