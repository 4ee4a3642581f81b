//! TLS as a stream of bytes: rustls keeps the state, this moves its bytes.
//!
//! ```text
//!   poll_read    socket ── 64 KiB of the core ──> rustls ──> caller        one read of the socket, all its records
//!   poll_write   caller ── 64 KiB ──> rustls ── all records ──> socket     one write of the socket, if it takes them
//! ```
//! What waits in here is bounded: what one read brought, one record that is not yet whole, and the records of one
//! write. A write takes new bytes only when those of the last one have left, so it must be flushed, as TLS always must.

use crate::wire::Filled;
use bytes::{Buf, Bytes};
use executor::io::{AsyncRead, AsyncWrite, ReadBuf};
use rustls::pki_types::ServerName;
use rustls::{CertificateError, ClientConfig, ClientConnection, Connection, Error, ServerConfig, ServerConnection};
use std::future::poll_fn;
use std::io::{self, IoSlice, Read, Write};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

/// Plain bytes that one write takes.
const WRITE_BYTES_MAX: usize = 64 << 10;
/// Reads of the socket that bring nothing for the caller (records that are not whole, messages of TLS's own) before
/// others on the core get their turn.
const BARREN_READS_MAX: usize = 4;

/// One side of a TLS connection over `io`.
pub(crate) struct TlsStream<S> {
    io: S,
    session: Box<Connection>,
    /// What was read before TLS took over.
    sniffed: Bytes,
    /// What was read and is not yet decrypted.
    filled: Option<Filled>,
    /// Why nothing more can be read: the peer has broken the rules.
    broken: Option<Error>,
    has_said_goodbye: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> TlsStream<S> {
    /// The server's side; `sniffed` is what came already.
    ///
    /// # Errors
    /// Settings that rustls does not take.
    pub(crate) fn server(io: S, sniffed: Bytes, config: Arc<ServerConfig>) -> io::Result<TlsStream<S>> {
        let session = ServerConnection::new(config).map_err(io::Error::other)?;
        Ok(TlsStream::new(io, sniffed, session.into()))
    }

    /// The client's side of a connection to the server of that name.
    ///
    /// # Errors
    /// Settings that rustls does not take.
    pub(crate) fn client(io: S, name: ServerName<'static>, config: Arc<ClientConfig>) -> io::Result<TlsStream<S>> {
        let session = ClientConnection::new(config, name).map_err(io::Error::other)?;
        Ok(TlsStream::new(io, Bytes::new(), session.into()))
    }

    fn new(io: S, sniffed: Bytes, mut session: Connection) -> TlsStream<S> {
        session.set_buffer_limit(Some(WRITE_BYTES_MAX));
        let session = Box::new(session);
        TlsStream { io, session, sniffed, filled: None, broken: None, has_said_goodbye: false }
    }

    /// Greets the peer and checks who it is. Before this, nothing can be read or written.
    ///
    /// # Errors
    /// The peer is refused, which it is told, or refuses us, or breaks the rules, or goes.
    pub(crate) async fn handshake(&mut self) -> io::Result<()> {
        poll_fn(|cx| self.poll_handshake(cx)).await
    }

    /// The stream below.
    pub(crate) fn io_mut(&mut self) -> &mut S {
        &mut self.io
    }

    fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.poll_push(cx))?;
            if !self.session.is_handshaking() {
                return Pin::new(&mut self.io).poll_flush(cx);
            }
            if !self.has_input() && ready!(self.poll_fill(cx))? == 0 {
                let why = "the peer closed the connection during the TLS handshake";
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::UnexpectedEof, why)));
            }
            if let Err(error) = self.decrypt() {
                // Best effort: the peer is to learn why.
                let _ = self.poll_push(cx);
                return Poll::Ready(Err(error));
            }
        }
    }

    fn has_input(&self) -> bool {
        !self.sniffed.is_empty() || self.filled.is_some()
    }

    /// Reads the socket once. Zero: it has ended, which rustls is told.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut filled = Filled::empty();
        let read = ready!(filled.poll_fill(&mut self.io, cx))?;
        if read == 0 {
            self.session.read_tls(&mut io::empty())?;
        } else {
            self.filled = Some(filled);
        }
        Poll::Ready(Ok(read))
    }

    /// Gives rustls a part of what was read, as much as it takes at once.
    fn decrypt(&mut self) -> io::Result<()> {
        if let Some(filled) = self.filled.as_mut().filter(|_| self.sniffed.is_empty()) {
            let taken = self.session.read_tls(&mut filled.rest())?;
            filled.advance(taken);
            if filled.rest().is_empty() {
                self.filled = None;
            }
        } else {
            let taken = self.session.read_tls(&mut &self.sniffed[..])?;
            self.sniffed.advance(taken);
        }
        self.session.process_new_packets().map(drop).map_err(|error| {
            self.broken = Some(error.clone());
            self.filled = None;
            explain(error)
        })
    }

    /// Writes the records that wait.
    fn poll_push(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.session.wants_write() {
            match self.session.write_tls(&mut Sink { io: &mut self.io, cx }) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Fills `out` from what is at hand: decrypted bytes, then those that are read and not decrypted.
    ///
    /// # Errors
    /// The end of all reading, once nothing is left that came before it.
    fn drain(&mut self, out: &mut ReadBuf<'_>) -> io::Result<Drained> {
        loop {
            match self.session.reader().read(out.initialize_unfilled()) {
                Ok(0) => return Ok(Drained::Full),
                Ok(read) => out.advance(read),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if let Some(error) = &self.broken {
                        return Err(explain(error.clone()));
                    }
                    if !self.has_input() {
                        return Ok(Drained::Dry);
                    }
                    match self.decrypt() {
                        // What came before the broken record is to be read first.
                        Err(error) if self.broken.is_none() => return Err(error),
                        _ => {}
                    }
                }
                Err(_) => {
                    let why = "the connection was cut off: it ended without TLS's close_notify";
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, why));
                }
            }
        }
    }
}

/// How far a read has come.
enum Drained {
    /// The caller's buffer is full, or the peer has said goodbye.
    Full,
    /// Nothing is at hand any more.
    Dry,
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for TlsStream<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = out.filled().len();
        for _ in 0..BARREN_READS_MAX {
            let drained = self.drain(out);
            // TLS has answers of its own: alerts, new keys. If they do not go now, the next write takes them along;
            // its error is the one to report.
            let _ = self.poll_push(cx);
            let has_some = out.filled().len() > before;
            match drained {
                Ok(Drained::Full) => return Poll::Ready(Ok(())),
                // An error is found again by the next read.
                _ if has_some => return Poll::Ready(Ok(())),
                Ok(Drained::Dry) => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
            ready!(self.poll_fill(cx))?;
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TlsStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_push(cx))?;
        let taken = self.session.writer().write(bytes)?;
        // What the socket does not take now is for the next write or flush.
        match self.poll_push(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(taken)),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_push(cx))?;
        Pin::new(&mut self.io).poll_flush(cx)
    }

    /// Says goodbye (close_notify), then closes this direction of the stream below.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.has_said_goodbye {
            self.has_said_goodbye = true;
            self.session.send_close_notify();
        }
        ready!(self.poll_push(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// The stream below as rustls wants it: a full one is `WouldBlock`, and the task is woken when it is not.
struct Sink<'a, 'b, S> {
    io: &'a mut S,
    cx: &'a mut Context<'b>,
}

impl<S: AsyncWrite + Unpin> Write for Sink<'_, '_, S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        or_would_block(Pin::new(&mut *self.io).poll_write(self.cx, bytes))
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        or_would_block(Pin::new(&mut *self.io).poll_write_vectored(self.cx, slices))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn or_would_block<T>(polled: Poll<io::Result<T>>) -> io::Result<T> {
    match polled {
        Poll::Ready(done) => done,
        Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
    }
}

/// rustls's error in words for people: it prints what other checks of certificates say as Rust values.
fn explain(error: Error) -> io::Error {
    let text = match &error {
        Error::InvalidCertificate(CertificateError::Other(why)) => format!("invalid peer certificate: {why}"),
        _ => error.to_string(),
    };
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests;
