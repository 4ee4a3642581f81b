//! Counters of one core's connections.

use std::cell::Cell;

/// Counters of one core: plain cells, as no other core writes them.
#[derive(Debug, Default)]
pub struct NetMetrics {
    /// Connections accepted.
    pub connections_total: Cell<u64>,
    /// Connections open now.
    pub connections: Cell<u64>,
    /// Connections refused because the core had too many.
    pub connections_refused_total: Cell<u64>,
    /// TLS handshakes that went well, as server or as client.
    pub tls_handshakes_total: Cell<u64>,
    /// Connections refused by a server because of TLS: the handshake failed or took too long, there was none, or there
    /// was one where TLS is not configured.
    pub tls_refused_total: Cell<u64>,
    /// Calls open now.
    pub streams: Cell<u64>,
    /// gRPC calls begun.
    pub requests_total: Cell<u64>,
    /// gRPC calls that ended with a status other than OK.
    pub errors_total: Cell<u64>,
    /// Calls that the client cancelled before they were answered.
    pub cancelled_total: Cell<u64>,
    /// Calls whose deadline passed while they were handled.
    pub deadlines_total: Cell<u64>,
    /// Calls refused because a memory or count bound was reached.
    pub refused_total: Cell<u64>,
    /// HTTP/1.1 requests.
    pub http1_requests_total: Cell<u64>,
    /// Bytes read from sockets; of TLS, those that it carried.
    pub received_bytes_total: Cell<u64>,
    /// Bytes written to sockets; of TLS, those that it carried.
    pub sent_bytes_total: Cell<u64>,
    /// Reads from sockets that gave bytes.
    pub socket_reads_total: Cell<u64>,
    /// Writes to sockets.
    pub socket_writes_total: Cell<u64>,
    /// Connections closed because of a flood of resets or of frames without progress, or another abuse of HTTP/2.
    pub floods_total: Cell<u64>,
    /// Connections closed because the client did not read, or did not finish what it had begun to send.
    pub stalled_total: Cell<u64>,
    /// Bytes of requests, arrived or being handled.
    pub inbound_bytes: Cell<u64>,
    /// Bytes of answers not yet written.
    pub outbound_bytes: Cell<u64>,
}

/// Adds `by` to a counter.
pub(crate) fn add(counter: &Cell<u64>, by: u64) {
    counter.set(counter.get().wrapping_add(by));
}

/// Takes `by` off a gauge.
pub(crate) fn sub(gauge: &Cell<u64>, by: u64) {
    debug_assert!(gauge.get() >= by, "gauge below zero");
    gauge.set(gauge.get().saturating_sub(by));
}
