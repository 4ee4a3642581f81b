//! TCP. The streams implement tokio's I/O traits, which h2 wants.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{IoKind, context, epoll, sim, uring};

/// Connections that the kernel holds for an acceptor that is late.
const BACKLOG: i32 = 1024;

/// A listening socket of one core.
#[derive(Debug)]
pub struct TcpListener(Listener);

enum Listener {
    Uring(uring::Listener),
    Epoll(epoll::Listener),
    Sim(sim::SimListener),
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("..")
    }
}

impl TcpListener {
    /// Listens at `address`; port 0 takes a free one. A port that was in use a moment ago can be taken again
    /// (`SO_REUSEADDR`), one that is in use cannot.
    ///
    /// # Errors
    /// What the kernel says: the address is in use, or not of this machine.
    pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
        Ok(TcpListener(match context::backend() {
            IoKind::Uring => Listener::Uring(uring::Listener::bind(address)?),
            IoKind::Epoll => Listener::Epoll(epoll::Listener::bind(address)?),
            IoKind::Sim => Listener::Sim(sim::SimListener::bind(address).await?),
        }))
    }

    /// The address it listens at, with the port that was taken.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        match &self.0 {
            Listener::Uring(listener) => listener.local_addr(),
            Listener::Epoll(listener) => listener.local_addr(),
            Listener::Sim(listener) => listener.local_addr(),
        }
    }

    /// The next connection and its peer. Called by one task at a time; cancel-safe: no connection is lost.
    ///
    /// # Errors
    /// What the kernel says. Most errors concern one connection or a passing lack of descriptors: go on accepting,
    /// after a short sleep.
    pub async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        Ok(match &self.0 {
            Listener::Uring(listener) => {
                let (stream, peer) = listener.accept().await?;
                (TcpStream(Stream::Uring(stream)), peer)
            }
            Listener::Epoll(listener) => {
                let (stream, peer) = listener.accept().await?;
                (TcpStream(Stream::Epoll(stream)), peer)
            }
            Listener::Sim(listener) => {
                let (stream, peer) = listener.accept().await?;
                (TcpStream(Stream::Sim(stream)), peer)
            }
        })
    }
}

/// One TCP connection, bound to its core; see [`TcpStream::into_handoff`].
#[derive(Debug)]
pub struct TcpStream(Stream);

enum Stream {
    Uring(uring::Stream),
    Epoll(epoll::Stream),
    Sim(sim::SimStream),
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("..")
    }
}

impl TcpStream {
    /// Connects to `address`.
    ///
    /// # Errors
    /// What the kernel says; without an answer it takes minutes, so put a [`timeout`](crate::timeout) around it.
    pub async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
        Ok(TcpStream(match context::backend() {
            IoKind::Uring => Stream::Uring(uring::connect(address).await?),
            IoKind::Epoll => Stream::Epoll(epoll::connect(address).await?),
            IoKind::Sim => Stream::Sim(sim::SimStream::connect(address).await?),
        }))
    }

    /// Whether small segments are sent at once (`TCP_NODELAY`).
    ///
    /// # Errors
    /// What the kernel says.
    pub fn set_nodelay(&self, on: bool) -> io::Result<()> {
        match &self.0 {
            Stream::Uring(stream) => stream.set_nodelay(on),
            Stream::Epoll(stream) => stream.set_nodelay(on),
            Stream::Sim(stream) => stream.set_nodelay(on),
        }
    }

    /// The other end's address.
    ///
    /// # Errors
    /// What the kernel says: there is none once the peer has reset the connection.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        match &self.0 {
            Stream::Uring(stream) => stream.peer_addr(),
            Stream::Epoll(stream) => stream.peer_addr(),
            Stream::Sim(stream) => stream.peer_addr(),
        }
    }

    /// This end's address.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        match &self.0 {
            Stream::Uring(stream) => stream.local_addr(),
            Stream::Epoll(stream) => stream.local_addr(),
            Stream::Sim(stream) => stream.local_addr(),
        }
    }

    /// Takes the connection off its core, so that another core can serve it. What was read is gone from it.
    ///
    /// # Errors
    /// What the kernel says (no descriptor free); the connection is closed then.
    pub fn into_handoff(self) -> io::Result<StreamHandoff> {
        Ok(StreamHandoff(match self.0 {
            Stream::Uring(stream) => Handoff::Socket(uring::into_fd(stream)?),
            Stream::Epoll(stream) => Handoff::Socket(epoll::into_fd(stream)?),
            Stream::Sim(stream) => Handoff::Sim(stream.into_handoff()),
        }))
    }

    /// Puts a connection on this core.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn from_handoff(handoff: StreamHandoff) -> io::Result<TcpStream> {
        Ok(TcpStream(match handoff.0 {
            Handoff::Socket(socket) => match context::backend() {
                IoKind::Uring => Stream::Uring(uring::from_fd(socket)?),
                IoKind::Epoll => Stream::Epoll(epoll::from_fd(socket)?),
                IoKind::Sim => unreachable!("the simulator has no sockets"),
            },
            Handoff::Sim(handoff) => Stream::Sim(sim::SimStream::from_handoff(handoff)),
        }))
    }
}

/// A connection between two cores. Dropping it closes the connection.
#[derive(Debug)]
pub struct StreamHandoff(Handoff);

enum Handoff {
    Socket(OwnedFd),
    Sim(sim::SimHandoff),
}

impl std::fmt::Debug for Handoff {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("..")
    }
}

impl AsyncRead for TcpStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Stream::Uring(stream) => stream.poll_read(cx, into),
            Stream::Epoll(stream) => Pin::new(stream).poll_read(cx, into),
            Stream::Sim(stream) => Pin::new(stream).poll_read(cx, into),
        }
    }
}

impl AsyncWrite for TcpStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.0 {
            Stream::Uring(stream) => stream.poll_write(cx, bytes),
            Stream::Epoll(stream) => Pin::new(stream).poll_write(cx, bytes),
            Stream::Sim(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.0 {
            Stream::Uring(stream) => stream.poll_write_vectored(cx, slices),
            Stream::Epoll(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Stream::Sim(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.0 {
            Stream::Uring(_) => true,
            Stream::Epoll(stream) => stream.is_write_vectored(),
            Stream::Sim(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Stream::Uring(_) => Poll::Ready(Ok(())),
            Stream::Epoll(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Sim(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Stream::Uring(stream) => stream.poll_shutdown(cx),
            Stream::Epoll(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Sim(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// A listening socket that blocks.
pub(crate) fn bound_listener(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let listener = std::net::TcpListener::bind(address)?;
    // A second `listen` only changes the backlog.
    // SAFETY: the descriptor is a listening socket, open during the call.
    if unsafe { libc::listen(listener.as_raw_fd(), BACKLOG) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(listener)
}

/// Sends what the socket takes without waiting.
pub(crate) fn try_write_vectored(socket: RawFd, slices: &[io::IoSlice<'_>]) -> io::Result<usize> {
    const SLICES_MAX: usize = 1024;
    let slices = &slices[..slices.len().min(SLICES_MAX)];
    // SAFETY: all-zero is a valid message header: no name, no control data, no flags.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = slices.as_ptr().cast::<libc::iovec>().cast_mut();
    header.msg_iovlen = slices.len() as _;
    // SAFETY: `IoSlice` has the layout of `iovec`; the slices live through the call, which only reads them.
    let sent = unsafe { libc::sendmsg(socket, &raw const header, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(sent as usize) }
}
