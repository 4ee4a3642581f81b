//! Tells TLS, HTTP/2 and HTTP/1.1 apart by the first bytes.

use bytes::{Bytes, BytesMut};
use executor::io::{AsyncRead, AsyncReadExt};
use std::io;

/// What a client of HTTP/2 sends first (RFC 9113, section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How a TLS record with a ClientHello begins (RFC 8446, section 5.1). No request of HTTP/1.1 does.
const TLS_HANDSHAKE: u8 = 0x16;

/// What a connection speaks, with the bytes read so far.
pub(crate) enum Sniffed {
    Tls(Bytes),
    Http2(Bytes),
    Http1(Bytes),
    /// It ended before it said anything.
    Nothing,
}

/// Reads until the first bytes are those of TLS, or the preface of HTTP/2, or cannot become it.
pub(crate) async fn sniff(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Sniffed> {
    let mut bytes = BytesMut::with_capacity(1024);
    loop {
        if stream.read_buf(&mut bytes).await? == 0 {
            return Ok(if bytes.is_empty() { Sniffed::Nothing } else { Sniffed::Http1(bytes.freeze()) });
        }
        if bytes[0] == TLS_HANDSHAKE {
            return Ok(Sniffed::Tls(bytes.freeze()));
        }
        let common = bytes.len().min(PREFACE.len());
        if bytes[..common] != PREFACE[..common] {
            return Ok(Sniffed::Http1(bytes.freeze()));
        }
        if common == PREFACE.len() {
            return Ok(Sniffed::Http2(bytes.freeze()));
        }
    }
}
