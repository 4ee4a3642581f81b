//! Streams: one end of a connection in a task's hands.

use super::EndKey;
use super::listener::Knock;
use crate::sim::config::nanos;
use crate::sim::context;
use crate::sim::timer::delay;
use crate::sim::world::World;
use std::io::{self, ErrorKind, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// First wait before a connection attempt is repeated; it doubles each time.
const CONNECT_RETRY_NS: u64 = 200_000_000;

/// A reliable byte stream, like TCP's. Dropped, it closes its end.
pub(crate) struct SimStream {
    world: Rc<World>,
    end: Option<EndKey>,
}

/// A stream on its way to another core of its node. Dropped, it closes its end.
#[derive(Debug)]
pub(crate) struct SimHandoff {
    end: Option<EndKey>,
}

impl SimStream {
    pub(super) fn new(world: &Rc<World>, end: EndKey) -> SimStream {
        SimStream { world: world.clone(), end: Some(end) }
    }

    /// Connects from the current node.
    ///
    /// # Errors
    /// `ConnectionRefused` if nobody listens there, `TimedOut` if nothing answers within the configured time,
    /// `HostUnreachable` if no node has the address.
    pub(crate) async fn connect(address: SocketAddr) -> io::Result<SimStream> {
        let core = context::current();
        let (world, node) = (&core.world, &core.node);
        let Some(to) = world.resolve(node, address) else {
            delay(world, nanos(world.config.link.latency)).await;
            return Err(ErrorKind::HostUnreachable.into());
        };
        let deadline = world.now().saturating_add(nanos(world.config.connect_timeout));
        let mut retry = CONNECT_RETRY_NS;
        loop {
            delay(world, world.way(node.index, to)).await;
            match world.knock(node, to, address)? {
                Knock::Accepted(stream) => {
                    delay(world, world.way(to, node.index)).await;
                    return Ok(stream);
                }
                Knock::Refused => {
                    delay(world, world.way(to, node.index)).await;
                    return Err(ErrorKind::ConnectionRefused.into());
                }
                Knock::Lost => {
                    let left = deadline.saturating_sub(world.now());
                    delay(world, retry.min(left)).await;
                    if retry >= left {
                        return Err(ErrorKind::TimedOut.into());
                    }
                    retry *= 2;
                }
            }
        }
    }

    fn key(&self) -> io::Result<EndKey> {
        self.end.ok_or_else(|| ErrorKind::NotConnected.into())
    }

    fn address(&self, end: EndKey) -> io::Result<SocketAddr> {
        let mut net = self.world.net.borrow_mut();
        let conn = net.conn(end).ok_or(ErrorKind::NotConnected)?;
        Ok(conn.ends[usize::from(end.side)].address)
    }

    /// The other end's address.
    pub(crate) fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.address(self.key()?.other())
    }

    /// This end's address.
    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.address(self.key()?)
    }

    /// Segments are never held back here, so there is nothing to set.
    pub(crate) fn set_nodelay(&self, _nodelay: bool) -> io::Result<()> {
        Ok(())
    }

    /// Gives the end up to be taken by another core of the same node.
    pub(crate) fn into_handoff(mut self) -> SimHandoff {
        SimHandoff { end: self.end.take() }
    }

    /// Takes what another core of this node gave up.
    pub(crate) fn from_handoff(mut handoff: SimHandoff) -> SimStream {
        SimStream { world: context::current().world.clone(), end: handoff.end.take() }
    }
}

impl World {
    fn way(&self, from: usize, to: usize) -> u64 {
        let net = self.net.borrow();
        self.latency(&net, from, to)
    }
}

impl AsyncRead for SimStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.world.read(self.key()?, cx, buf)
    }
}

impl AsyncWrite for SimStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.world.write(self.key()?, cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.world.write(self.key()?, cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.world.shut(self.key()?))
    }
}

impl Drop for SimStream {
    fn drop(&mut self) {
        if let Some(end) = self.end {
            self.world.close(end);
        }
    }
}

impl Drop for SimHandoff {
    fn drop(&mut self) {
        if let Some(end) = self.end
            && context::active()
        {
            context::current().world.close(end);
        }
    }
}
