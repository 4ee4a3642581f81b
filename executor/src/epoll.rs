//! The epoll backend: one tokio current-thread runtime and one `LocalSet` per core.
//!
//! Classes share a core in turn here: tokio has one queue per core. Files go through the helpers.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::time::Duration;

use crate::net::bound_listener;

/// A timer of the runtime.
pub(crate) type Timer = Pin<Box<tokio::time::Sleep>>;

pub(crate) fn timer(duration: Duration) -> Timer {
    Box::pin(tokio::time::sleep(duration))
}

/// Makes the runtime of this thread, then runs `main` on it if `ready` says so.
pub(crate) fn run<T>(ready: impl FnOnce(io::Result<()>) -> bool, main: impl Future<Output = T>) -> Option<T> {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            ready(Err(error));
            return None;
        }
    };
    if !ready(Ok(())) {
        return None;
    }
    let tasks = tokio::task::LocalSet::new();
    Some(runtime.block_on(tasks.run_until(main)))
}

pub(crate) fn spawn(future: impl Future<Output = ()> + 'static) {
    drop(tokio::task::spawn_local(future));
}

#[derive(Debug)]
pub(crate) struct Listener(tokio::net::TcpListener);

pub(crate) use tokio::net::TcpStream as Stream;

impl Listener {
    pub(crate) fn bind(address: SocketAddr) -> io::Result<Listener> {
        let listener = bound_listener(address)?;
        listener.set_nonblocking(true)?;
        Ok(Listener(tokio::net::TcpListener::from_std(listener)?))
    }

    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    pub(crate) async fn accept(&self) -> io::Result<(Stream, SocketAddr)> {
        self.0.accept().await
    }
}

pub(crate) async fn connect(address: SocketAddr) -> io::Result<Stream> {
    Stream::connect(address).await
}

pub(crate) fn into_fd(stream: Stream) -> io::Result<OwnedFd> {
    Ok(OwnedFd::from(stream.into_std()?))
}

pub(crate) fn from_fd(fd: OwnedFd) -> io::Result<Stream> {
    let stream = std::net::TcpStream::from(fd);
    stream.set_nonblocking(true)?;
    Stream::from_std(stream)
}
