//! Settings of servers and channels. Each default says its reason.

use crate::tls::Tls;
use std::time::Duration;

/// Settings of a [`Server`](crate::Server): what one connection and one core may take.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// HTTP/2 window of a stream, in bytes. 2 MiB, as TiKV announces.
    pub stream_window_bytes: u32,
    /// HTTP/2 window of a connection, in bytes: what may be on its way to us and unread. It is taken from
    /// `core_window_bytes` while that lasts; a connection that gets none has HTTP/2's 64 KiB. 16 MiB, so that a few
    /// streams whose handlers are slow do not stop the others.
    pub connection_window_bytes: u32,
    /// Sum of the windows of a core's connections, in bytes. 512 MiB.
    pub core_window_bytes: u64,
    /// Open streams of a connection. 1024, as TiKV announces; more are refused by HTTP/2 (safe to repeat).
    pub streams_max: u32,
    /// Largest HTTP/2 frame, in bytes. 256 KiB: a large message needs few frames, and clients that look at the
    /// setting (h2, gRPC C++) use it.
    pub frame_bytes_max: u32,
    /// Largest header list of a request, in bytes, after decompression. 32 KiB; clients send under 1 KiB.
    pub header_bytes_max: u32,
    /// Largest message, in bytes, after decompression. 256 MiB, since a batch is limited by count and not by bytes.
    pub message_bytes_max: usize,
    /// Bytes of requests, arrived or being handled, over which a connection gets no more window. 64 MiB.
    pub connection_inbound_bytes: u64,
    /// The same for all connections of a core. 512 MiB. One message per core may go beyond, so that there is progress.
    pub core_inbound_bytes: u64,
    /// Bytes of answers not yet written to the socket over which a connection's new calls wait. 64 MiB.
    pub connection_outbound_bytes: u64,
    /// The same for all connections of a core. 512 MiB.
    pub core_outbound_bytes: u64,
    /// Bytes of one stream's answers not yet written over which its handler waits. 1 MiB.
    pub stream_outbound_bytes: u64,
    /// Connections of a core; one more is told to go away at once. 4096.
    pub connections_max: u64,
    /// Calls of a core in progress; one more is answered RESOURCE_EXHAUSTED. 65536.
    pub calls_max: u64,
    /// How long a client may take until its TLS handshake is done and its first bytes are there, and from then on until
    /// its first complete request line or HTTP/2 settings. 10 s.
    pub handshake_timeout: Duration,
    /// How long a started frame, header block, message or HTTP/1 request may go without a byte of progress. 30 s.
    pub half_sent_timeout: Duration,
    /// How long bytes may wait for a client that reads nothing. Then the connection is closed. 30 s.
    pub stalled_write_timeout: Duration,
    /// How long a message may wait, without progress, because the memory of `core_inbound_bytes` or
    /// `connection_inbound_bytes` is used up. Then it is answered RESOURCE_EXHAUSTED. 5 s; twice that for the one that
    /// may go beyond.
    pub memory_wait: Duration,
    /// Quiet time after which a client is pinged; one that does not answer within `keepalive_timeout` is gone. 60 s:
    /// it finds dead peers, live ones ping us sooner. `None` = never.
    pub keepalive_interval: Option<Duration>,
    /// How long a client may take to answer a ping. 20 s.
    pub keepalive_timeout: Duration,
    /// Frames without progress (pings, settings, window updates, priorities, resets of nothing) that a client may send
    /// at once; see `net/src/wire/meter.rs` for what earns new ones. 10,000.
    pub control_frames_burst: u32,
    /// Streams that a client may reset at once before they were answered; 1/4 of that again per second. 4,000: a
    /// client whose 1,024 calls time out together may do that a few times.
    pub resets_burst: u32,
    /// Whether answers of 1 KiB and more are compressed with gzip for clients that accept it. No: cores are dearer
    /// than bytes inside a data centre.
    pub gzip: bool,
    /// Largest body of an HTTP/1.1 request, in bytes. 1 MiB.
    pub http1_body_bytes_max: usize,
    /// How long an HTTP/1.1 connection may stay idle between requests. 75 s, a little above usual clients.
    pub http1_idle_timeout: Duration,
    /// The certificates. With them, all that is not mutual TLS is refused; without, all that is TLS. Without.
    pub tls: Option<Tls>,
}

impl Default for ServerConfig {
    fn default() -> ServerConfig {
        ServerConfig {
            stream_window_bytes: 2 << 20,
            connection_window_bytes: 16 << 20,
            core_window_bytes: 512 << 20,
            streams_max: 1024,
            frame_bytes_max: 256 << 10,
            header_bytes_max: 32 << 10,
            message_bytes_max: 256 << 20,
            connection_inbound_bytes: 64 << 20,
            core_inbound_bytes: 512 << 20,
            connection_outbound_bytes: 64 << 20,
            core_outbound_bytes: 512 << 20,
            stream_outbound_bytes: 1 << 20,
            connections_max: 4096,
            calls_max: 65_536,
            handshake_timeout: Duration::from_secs(10),
            half_sent_timeout: Duration::from_secs(30),
            stalled_write_timeout: Duration::from_secs(30),
            memory_wait: Duration::from_secs(5),
            keepalive_interval: Some(Duration::from_secs(60)),
            keepalive_timeout: Duration::from_secs(20),
            control_frames_burst: 10_000,
            resets_burst: 4_000,
            gzip: false,
            http1_body_bytes_max: 1 << 20,
            http1_idle_timeout: Duration::from_secs(75),
            tls: None,
        }
    }
}

/// Settings of a [`Channel`](crate::Channel).
#[derive(Clone, Debug)]
pub struct ChannelConfig {
    /// HTTP/2 window of a stream, in bytes. 2 MiB.
    pub stream_window_bytes: u32,
    /// HTTP/2 window of the connection, in bytes. 16 MiB.
    pub connection_window_bytes: u32,
    /// Largest message that is received, in bytes. 256 MiB.
    pub message_bytes_max: usize,
    /// Bytes of one stream not yet written over which its sender waits. 1 MiB.
    pub stream_outbound_bytes: u64,
    /// How long connecting may take, name look-up and TLS handshake included. 3 s.
    pub connect_timeout: Duration,
    /// Wait after the first failed connect. Grows by 1.6 per failure. 100 ms. Calls made meanwhile fail at once.
    pub backoff_min: Duration,
    /// Longest such wait. 3 s.
    pub backoff_max: Duration,
    /// Quiet time, while calls are open, after which the server is pinged. `None` = never. 10 s, as clients of TiKV do.
    pub keepalive_interval: Option<Duration>,
    /// How long the server may take to answer a ping before the connection counts as dead. 3 s.
    pub keepalive_timeout: Duration,
    /// How long bytes may wait for a server that reads nothing. 30 s.
    pub stalled_write_timeout: Duration,
    /// The certificates. With them, every connection is mutual TLS, whether the address begins with `https://`,
    /// `http://` or neither: TiKV's clients do so, as the addresses that PD hands out name no scheme, or the wrong one.
    /// Without them an address that begins with `https://` cannot be reached. Without.
    pub tls: Option<Tls>,
}

impl Default for ChannelConfig {
    fn default() -> ChannelConfig {
        ChannelConfig {
            stream_window_bytes: 2 << 20,
            connection_window_bytes: 16 << 20,
            message_bytes_max: 256 << 20,
            stream_outbound_bytes: 1 << 20,
            connect_timeout: Duration::from_secs(3),
            backoff_min: Duration::from_millis(100),
            backoff_max: Duration::from_secs(3),
            keepalive_interval: Some(Duration::from_secs(10)),
            keepalive_timeout: Duration::from_secs(3),
            stalled_write_timeout: Duration::from_secs(30),
            tls: None,
        }
    }
}
