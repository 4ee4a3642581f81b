//! What a client's connection runs over: a socket, or TLS on a socket.

use super::connect::Target;
use crate::tls::{Tls, TlsStream};
use executor::io::{AsyncRead, AsyncWrite, ReadBuf};
use executor::net::TcpStream;
use rustls::pki_types::ServerName;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

/// A connected stream of bytes, as a client has it.
pub struct Transport(Kind);

enum Kind {
    Plain(TcpStream),
    Tls(TlsStream<TcpStream>),
}

impl Transport {
    /// Connects to `host:port`, with or without a scheme: for clients that speak HTTP by themselves. It waits for as long
    /// as the kernel does.
    ///
    /// # Errors
    /// An address that is none, what the kernel says, or why one side does not want the other.
    pub async fn dial(address: &str, tls: Option<&Tls>) -> io::Result<Transport> {
        let target = Target::parse(address, tls.is_some());
        let target = target.map_err(|status| io::Error::new(io::ErrorKind::InvalidInput, status.message))?;
        Transport::connect(&target, tls).await
    }

    /// Connects, and shakes hands if there are certificates.
    ///
    /// # Errors
    /// What the kernel says, or why one side does not want the other. With TLS 1.3 a server's refusal comes after the
    /// handshake, when something is read for the first time.
    pub(crate) async fn connect(target: &Target, tls: Option<&Tls>) -> io::Result<Transport> {
        let stream = target.connect().await?;
        // Without it small requests wait for acknowledgements; a failure shows at the first write.
        let _ = stream.set_nodelay(true);
        let Some(tls) = tls else {
            return Ok(Transport(Kind::Plain(stream)));
        };
        let no_name =
            |_| io::Error::new(io::ErrorKind::InvalidInput, "its host is no name that a certificate can have");
        let name = ServerName::try_from(target.host.clone()).map_err(no_name)?;
        tls.refresh().await;
        let mut stream = TlsStream::client(stream, name, tls.client())?;
        stream.handshake().await.map_err(|error| io::Error::new(error.kind(), format!("TLS: {error}")))?;
        Ok(Transport(Kind::Tls(stream)))
    }
}

impl AsyncRead for Transport {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().0 {
            Kind::Plain(stream) => Pin::new(stream).poll_read(cx, out),
            Kind::Tls(stream) => Pin::new(stream).poll_read(cx, out),
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().0 {
            Kind::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Kind::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().0 {
            Kind::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Kind::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().0 {
            Kind::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Kind::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
