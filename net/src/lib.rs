//! gRPC over HTTP/2, and a little HTTP/1.1, on the executor.
//!
//! ```text
//!   Acceptor ── a connection to the core with the fewest ──> Server::serve
//!                                                               │ sniff, and tls if the server has certificates
//!                       HTTP/1.1 <── http1 ─────────────────────┴── server::connection (h2)
//!                                                                        │ wire: one read, one write per pass
//!                                                                        └ calls ──> Router ──> rpc::Service
//!   stubs ──> Channel ── channel::driver (h2, the same wire) ──> another process
//! ```
//!
//! - [`Server`] dispatches to [`proto::rpc::Service`]s; [`Channel`] is a [`proto::rpc::Channel`]. h2 does the framing of
//!   HTTP/2, `grpc` (pure) that of gRPC.
//! - All handlers of a connection run inside of its one task, until they wait. Their answers leave in one write per pass.
//! - Everything is bounded, per connection and per core: see [`ServerConfig`] and the module `memory`.
//!
//! It never: names a service of ours other than the two below, retries a call, or starts a thread.

mod acceptor;
mod channel;
mod config;
pub mod echo;
mod fetch;
mod grpc;
mod health;
mod http1;
mod memory;
mod metrics;
mod server;
mod tls;
mod wire;

pub use acceptor::{Acceptor, ConnectionCounter, Placed, Target};
pub use channel::{Channel, Transport};
pub use config::{ChannelConfig, ServerConfig};
pub use fetch::fetch;
pub use health::{Health, Serving};
pub use http1::{HttpHandler, HttpRequest, HttpResponse};
pub use metrics::NetMetrics;
pub use server::{Router, Server};
pub use tls::{Reload, ReloadCounts, Tls, TlsConfig, TlsError};
