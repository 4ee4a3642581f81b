//! The io_uring backend: one glommio executor per core, one task queue per class.
//!
//! Workarounds for glommio 0.9, each where it is made:
//! - its wakers stay on their thread (`remote`), since a task that ends while another thread drops a waker of it may be
//!   freed too early;
//! - its placement reads CPUs from /sys instead of the affinity mask, so threads pin themselves first (`affinity`), and
//!   placement only repeats that;
//! - its blocking pool and its file types are not used: files go through our helpers and our log thread;
//! - its listener binds with `SO_REUSEPORT`, which would let a second process share the port, so ours is bound here;
//! - when its preemption flag is up before a turn has begun, it sleeps though tasks are runnable (`rounds`);
//! - what its task handles do on drop does not matter: they are dropped right after the start, when that is a no-op.

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::io::{AsyncRead, AsyncWrite};
use glommio::{Latency, LocalExecutorBuilder, Placement, Shares, TaskQueueHandle};

use crate::context::Core;
use crate::net::{bound_listener, try_write_vectored};
use crate::preflight::memlock_limit;
use crate::{Class, context, time};

/// glommio's task queue of each class, and one for the core's own tasks.
///
/// What begins the turns must be in a queue of its own: glommio stays with a queue for as long as that has something to
/// run, so in a queue with others those would have each turn to themselves, and the other classes none.
#[derive(Debug)]
pub(crate) struct Queues {
    classes: [TaskQueueHandle; Class::COUNT],
    own: TaskQueueHandle,
}

/// Shares of the core's own tasks, which are few and short: they are never the ones that wait.
const OWN_SHARES: usize = 1000;

/// A timer of the runtime.
pub(crate) type Timer = glommio::timer::Timer;

pub(crate) fn timer(duration: Duration) -> Timer {
    Timer::new(duration)
}

/// Ready once glommio has run all that was runnable, and looked at its rings and timers.
///
/// A timer of no length would not do: glommio's are ready at their first poll if they are due by then. We saw cores that
/// waited for one in a loop never do anything else. So this is the shortest that is not due yet, and its end is waited
/// for on the spot: glommio then finds it due, and does not sleep (46 µs a round against 151, virtual machine, 2026-11).
#[derive(Default)]
pub(crate) struct Looked(Option<Timer>);

/// The length to begin with.
const LOOKED_AFTER: Duration = Duration::from_micros(1);

impl Future for Looked {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(timer) = &mut self.0 {
            return Pin::new(timer).poll(cx).map(|_| ());
        }
        let mut after = LOOKED_AFTER;
        loop {
            let mut timer = timer(after);
            let due = time::monotonic_nanos() + after.as_nanos() as u64;
            if Pin::new(&mut timer).poll(cx).is_pending() {
                while time::monotonic_nanos() < due {
                    std::hint::spin_loop();
                }
                self.0 = Some(timer);
                return Poll::Pending;
            }
            // The thread lost its CPU in between.
            after *= 2;
        }
    }
}

/// Registered buffers per executor. We do no I/O through them, so this is small; glommio's default is 10 MiB.
const IO_MEMORY: usize = 1 << 20;

/// Whether glommio can register its buffers on every core. It asks twice per core, and goes on without when it cannot.
pub(crate) fn locked_memory_suffices(cores: usize) -> bool {
    let unlimited = {
        const CAP_IPC_LOCK: u32 = 14;
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
        let effective = effective.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).unwrap_or(0);
        effective >> CAP_IPC_LOCK & 1 == 1
    };
    unlimited || memlock_limit() >= (2 * IO_MEMORY * cores) as u64
}

/// glommio's own limit of a turn, out of reach: when it runs out before the first task of a turn has begun, glommio
/// goes to sleep on runnable tasks. `rounds` limits turns instead.
const PREEMPT: Duration = Duration::from_secs(10);

/// The most bytes of one read: what is read into is zeroed before.
const READ_MAX: usize = 64 << 10;

/// How a core's executor is made.
pub(crate) struct Settings {
    /// The CPU that the thread has been pinned to.
    pub(crate) cpu: Option<usize>,
    pub(crate) idle_spin: Duration,
}

/// Makes the executor of this thread, then runs `main` on it if `ready` says so.
pub(crate) fn run<T>(
    settings: &Settings,
    ready: impl FnOnce(io::Result<()>) -> bool,
    main: impl Future<Output = T>,
) -> Option<T> {
    let builder = |placement| {
        let builder = LocalExecutorBuilder::new(placement).io_memory(IO_MEMORY).preempt_timer(PREEMPT);
        if settings.idle_spin.is_zero() { builder } else { builder.spin_before_park(settings.idle_spin) }
    };
    // glommio spins only when it does the pinning itself. If it does not find our CPU in /sys, it does without.
    let pinned = settings.cpu.filter(|_| !settings.idle_spin.is_zero());
    let made = match pinned.map(|cpu| builder(Placement::Fixed(cpu)).make()) {
        Some(Ok(executor)) => Ok(executor),
        _ => builder(Placement::Unbound).make(),
    };
    let executor = match made {
        Ok(executor) => executor,
        Err(error) => {
            ready(Err(io::Error::other(error.to_string())));
            return None;
        }
    };
    if !ready(Ok(())) {
        return None;
    }
    Some(executor.run(async {
        let queue = |class: Class| {
            let shares = Shares::Static(class.shares() as usize);
            glommio::executor().create_task_queue(shares, Latency::NotImportant, class.name())
        };
        let own = Shares::Static(OWN_SHARES);
        let own = glommio::executor().create_task_queue(own, Latency::NotImportant, "core");
        let queues = Queues { classes: Class::ALL.map(queue), own };
        context::current().queues.set(queues).expect("a core starts once");
        main.await
    }))
}

pub(crate) fn spawn(core: &Core, class: Class, future: impl Future<Output = ()> + 'static) {
    spawn_into(core, future, |queues| queues.classes[class.index()]);
}

/// Starts one of the core's own tasks.
pub(crate) fn spawn_own(core: &Core, future: impl Future<Output = ()> + 'static) {
    spawn_into(core, future, |queues| queues.own);
}

fn spawn_into(core: &Core, future: impl Future<Output = ()> + 'static, pick: impl Fn(&Queues) -> TaskQueueHandle) {
    let queues = core.queues.get().expect("set before the first task");
    let task = glommio::spawn_local_into(future, pick(queues)).expect("the queues live as long as the core");
    drop(task.detach());
}

/// Accepts connections.
///
/// An accept that was asked for runs on when its caller goes away, and its connection is the next caller's: dropping
/// glommio's future in flight could lose a connection that the kernel has handed out already.
pub(crate) struct Listener {
    listener: Rc<glommio::net::TcpListener>,
    address: SocketAddr,
    pending: RefCell<Option<crate::Task<io::Result<Stream>>>>,
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Listener({})", self.address)
    }
}

impl Listener {
    pub(crate) fn bind(address: SocketAddr) -> io::Result<Listener> {
        let listener = bound_listener(address)?;
        let address = listener.local_addr()?;
        // SAFETY: the descriptor is a listening socket, and glommio's listener becomes its one owner.
        let listener = unsafe { glommio::net::TcpListener::from_raw_fd(listener.into_raw_fd()) };
        Ok(Listener { listener: Rc::new(listener), address, pending: RefCell::new(None) })
    }

    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }

    pub(crate) async fn accept(&self) -> io::Result<(Stream, SocketAddr)> {
        loop {
            let stream = self.next().await?;
            // A peer that has reset the connection already has no address; the next one may.
            if let Ok(peer) = stream.peer_addr() {
                return Ok((stream, peer));
            }
        }
    }

    async fn next(&self) -> io::Result<Stream> {
        std::future::poll_fn(|cx| {
            let mut pending = self.pending.borrow_mut();
            let task = pending.get_or_insert_with(|| {
                let listener = Rc::clone(&self.listener);
                crate::spawn_local(Class::Foreground, async move { accept(&listener).await })
            });
            let accepted = ready!(Pin::new(task).poll(cx));
            *pending = None;
            Poll::Ready(accepted)
        })
        .await
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(task) = self.pending.borrow_mut().take() {
            task.cancel();
        }
    }
}

async fn accept(listener: &glommio::net::TcpListener) -> io::Result<Stream> {
    let stream = listener.accept().await.map_err(io::Error::from)?;
    // glommio accepts without `SOCK_CLOEXEC`.
    // SAFETY: the stream keeps its descriptor open during the call.
    if unsafe { libc::fcntl(stream.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Stream(stream))
}

/// One TCP connection.
#[derive(Debug)]
pub(crate) struct Stream(glommio::net::TcpStream);

pub(crate) async fn connect(address: SocketAddr) -> io::Result<Stream> {
    Ok(Stream(glommio::net::TcpStream::connect(address).await.map_err(io::Error::from)?))
}

/// A second descriptor of the same socket, closed on exec; the stream closes its own.
fn duplicate(stream: &glommio::net::TcpStream) -> io::Result<OwnedFd> {
    // SAFETY: the stream keeps its descriptor open during the call.
    unsafe { BorrowedFd::borrow_raw(stream.as_raw_fd()) }.try_clone_to_owned()
}

pub(crate) fn into_fd(stream: Stream) -> io::Result<OwnedFd> {
    duplicate(&stream.0)
}

pub(crate) fn from_fd(fd: OwnedFd) -> io::Result<Stream> {
    // SAFETY: the descriptor is a connected socket, and glommio's stream becomes its one owner.
    Ok(Stream(unsafe { glommio::net::TcpStream::from_raw_fd(fd.into_raw_fd()) }))
}

impl Stream {
    pub(crate) fn set_nodelay(&self, on: bool) -> io::Result<()> {
        self.0.set_nodelay(on).map_err(io::Error::from)
    }

    pub(crate) fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.0.peer_addr().map_err(io::Error::from)
    }

    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr().map_err(io::Error::from)
    }

    pub(crate) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        into: &mut tokio::io::ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let most = into.remaining().min(READ_MAX);
        let read = ready!(Pin::new(&mut self.0).poll_read(cx, into.initialize_unfilled_to(most)))?;
        into.advance(read);
        Poll::Ready(Ok(()))
    }

    pub(crate) fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    pub(crate) fn poll_write_vectored(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match try_write_vectored(self.0.as_raw_fd(), slices) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                // Waits for room with the first bytes that there are.
                let first = slices.iter().find(|slice| !slice.is_empty()).map_or(&[][..], |slice| slice);
                self.poll_write(cx, first)
            }
            done => Poll::Ready(done),
        }
    }

    pub(crate) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_close(cx)
    }
}
