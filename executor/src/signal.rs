//! SIGTERM and SIGINT, as a future.

use std::future::Future;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::task::{Poll, Waker};

use crate::remote::WakePlace;
use crate::{IoKind, context, sim};

/// Waits until the process is asked to stop, by SIGTERM or SIGINT; in the simulator, until the node is stopped.
///
/// The signals are caught from the first call on, for the rest of the process's life. Every waiter is woken, and who
/// asks later is ready at once. A second SIGINT ends the process on the spot.
#[track_caller]
pub fn shutdown_signal() -> impl Future<Output = ()> {
    let sim = (context::backend() == IoKind::Sim).then(sim::shutdown_signal);
    let signals = sim.is_none().then(install);
    async move {
        match (sim, signals) {
            (Some(sim), _) => sim.await,
            (None, Some(signals)) => signals.wait().await,
            (None, None) => unreachable!("either the simulator or the kernel sends signals"),
        }
    }
}

/// Does what a signal does.
pub(crate) fn request() {
    install().stop();
}

#[derive(Default)]
struct Signals {
    stopped: AtomicBool,
    tickets: AtomicU64,
    /// Bounded by the tasks that wait.
    waiters: Mutex<Vec<(u64, Waker)>>,
}

/// The descriptor that the handler writes to; -1 before there is one.
static PIPE: AtomicI32 = AtomicI32::new(-1);
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

fn install() -> &'static Signals {
    static SIGNALS: OnceLock<Signals> = OnceLock::new();
    static STARTED: OnceLock<()> = OnceLock::new();
    let signals = SIGNALS.get_or_init(Signals::default);
    STARTED.get_or_init(|| {
        if let Err(error) = start(signals) {
            tracing::error!(%error, "cannot catch SIGTERM and SIGINT: they end the process at once");
        }
    });
    signals
}

fn start(signals: &'static Signals) -> io::Result<()> {
    // SAFETY: no pointer is involved.
    let counter = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
    if counter < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
    let counter = unsafe { OwnedFd::from_raw_fd(counter) };
    PIPE.store(counter.as_raw_fd(), Ordering::SeqCst);
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        let mut count = 0u64;
        // SAFETY: an eventfd is read into eight bytes, which `count` is.
        while unsafe { libc::read(counter.as_raw_fd(), (&raw mut count).cast(), 8) } == 8 {
            signals.stop();
        }
    })?;
    for signal in [libc::SIGTERM, libc::SIGINT] {
        // SAFETY: all-zero is a valid value: no flags, an empty mask.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = on_signal as extern "C" fn(libc::c_int) as usize;
        action.sa_flags = libc::SA_RESTART;
        // SAFETY: `action` is initialized, and the handler only does what a handler may.
        if unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Only atomics, `write` and `_exit` here, which a signal handler may call.
extern "C" fn on_signal(signal: libc::c_int) {
    if signal == libc::SIGINT && INTERRUPTED.swap(true, Ordering::SeqCst) {
        // SAFETY: ends the process; allowed in a handler.
        unsafe { libc::_exit(128 + signal) };
    }
    let one = 1u64;
    // SAFETY: the location of this thread's error number is always valid.
    let before = unsafe { *libc::__errno_location() };
    // SAFETY: the descriptor is open for the rest of the process's life, and eight bytes are read from `one`.
    unsafe { libc::write(PIPE.load(Ordering::SeqCst), (&raw const one).cast(), 8) };
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = before };
}

impl Signals {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(u64, Waker)>> {
        self.waiters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        let waiters = std::mem::take(&mut *self.lock());
        for (_, waiter) in waiters {
            waiter.wake();
        }
    }

    async fn wait(&'static self) {
        let mut line =
            Line { signals: self, ticket: self.tickets.fetch_add(1, Ordering::Relaxed), place: WakePlace::default() };
        std::future::poll_fn(|cx| {
            let waker = line.place.waker(cx);
            {
                let mut waiters = line.signals.lock();
                waiters.retain(|(ticket, _)| *ticket != line.ticket);
                waiters.push((line.ticket, waker));
            }
            // Looked at after the entry: a signal in between wakes us, one before is seen here.
            if line.signals.stopped.load(Ordering::SeqCst) { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

/// A waiter's entry.
struct Line {
    signals: &'static Signals,
    ticket: u64,
    place: WakePlace,
}

impl Drop for Line {
    fn drop(&mut self) {
        self.signals.lock().retain(|(ticket, _)| *ticket != self.ticket);
    }
}
