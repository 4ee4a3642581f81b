//! TLS over any stream of bytes: rustls as a state machine, certificates that are read again when they change.
//!
//! ```text
//!   TlsConfig ── load ──> Tls ── server() / client(): rustls's settings, shared by all cores
//!                          │ reload_if_changed: the files are newer? read, check, swap
//!                          v
//!   TcpStream ── TlsStream (handshake, records) ── wire, http1: as if it were the socket
//! ```
//!
//! - Always mutual: both sides show a certificate that the same authority signed. A server may admit only some names
//!   ([`TlsConfig::cert_allowed_cn`]); a client checks that the server's certificate is for the host it asked for.
//! - TLS 1.2 and 1.3. No session is resumed: connections live long, and so every one of them is checked in full, by the
//!   authority, names and dates of its day.
//! - A certificate that changes is for new connections; those that are open go on.
//!
//! It never: waits, reads a clock of its own, or logs a key.

mod config;
mod names;
mod reload;
mod stream;

pub use config::{TlsConfig, TlsError};
pub use reload::{Reload, ReloadCounts, Tls};
pub(crate) use stream::TlsStream;

#[cfg(test)]
mod testing;
