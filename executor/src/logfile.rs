//! Files for logs: preallocated, zero-filled, written around the page cache in units of [`ALIGNMENT`](crate::ALIGNMENT).

use std::fs::{File, OpenOptions};
use std::future::Future;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use crate::buf::{ALIGNMENT, AlignedBuf};
use crate::helpers::blocking;
use crate::logio::{LogThread, Op, Work};
use crate::mailbox::Full;
use crate::metrics::{add, less};
use crate::oneshot::{Filled, oneshot};
use crate::run::keep;
use crate::{Class, CoreMetrics, IoKind, LogFault, context, filesystem, fs, sim};

/// What makes a write durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogSync {
    /// [`LogFile::sync`] after the write: an `fdatasync` issued after the write has completed.
    #[default]
    Fdatasync,
    /// The write itself: the file is opened with `O_DSYNC`.
    Dsync,
}

/// A file for a log, of fixed length. Operations own their buffers and run to their end though their future is dropped.
///
/// A failed write or sync says nothing about what is on the disk. Never retry a failed sync: the kernel may have
/// forgotten what it could not write.
#[derive(Debug)]
pub struct LogFile(Kind);

enum Kind {
    Real(RealFile),
    Sim(sim::SimLogFile),
}

impl std::fmt::Debug for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Kind::Real(file) => write!(f, "{}", file.path.display()),
            Kind::Sim(_) => f.write_str("sim"),
        }
    }
}

struct RealFile {
    file: Arc<File>,
    path: PathBuf,
    len: u64,
    sync: LogSync,
}

static BUFFERED_ALLOWED: AtomicBool = AtomicBool::new(false);

impl LogFile {
    /// Whether this process may write logs through the page cache where the filesystem refuses `O_DIRECT`, as tmpfs
    /// does. Off by default. Such files are as durable, but slower, and each is noted in the log.
    pub fn allow_buffered(allowed: bool) {
        BUFFERED_ALLOWED.store(allowed, Ordering::Relaxed);
    }

    /// Whether [`LogFile::allow_buffered`] is on.
    pub(crate) fn buffered_allowed() -> bool {
        BUFFERED_ALLOWED.load(Ordering::Relaxed)
    }

    /// Creates a file of `len_bytes` zeros, which must be a multiple of [`ALIGNMENT`](crate::ALIGNMENT). When this
    /// returns, the file, its length and its name are durable. A crash on the way may leave a shorter file.
    ///
    /// # Errors
    /// `AlreadyExists` if there is such a file; `InvalidInput` for a bad length; `Unsupported` if the filesystem has no
    /// `O_DIRECT`; and what the kernel says.
    pub async fn create(path: impl AsRef<Path>, len_bytes: u64, sync: LogSync) -> io::Result<LogFile> {
        let path = path.as_ref().to_owned();
        if len_bytes == 0 || !is_aligned(len_bytes) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{len_bytes} is not a length of a log file"),
            ));
        }
        if context::backend() == IoKind::Sim {
            return Ok(LogFile(Kind::Sim(sim::SimLogFile::create(&path, len_bytes, sync).await?)));
        }
        let created = blocking(Class::Raft, move || {
            // Filled without `O_DSYNC`: one sync at the end instead of one per chunk.
            let file = open_file(&path, LogSync::Fdatasync, true)?;
            fill(&file, len_bytes)?;
            file.sync_all()?;
            fs::sync_parent(&path)?;
            let file = if sync == LogSync::Dsync { open_file(&path, sync, false)? } else { file };
            Ok::<_, io::Error>(RealFile { file: Arc::new(file), path, len: len_bytes, sync })
        });
        Ok(LogFile(Kind::Real(created.await?)))
    }

    /// Opens an existing file. Its usable length is its size, rounded down to a multiple of
    /// [`ALIGNMENT`](crate::ALIGNMENT).
    ///
    /// # Errors
    /// `NotFound`; `Unsupported` if the filesystem has no `O_DIRECT`; and what the kernel says.
    pub async fn open(path: impl AsRef<Path>, sync: LogSync) -> io::Result<LogFile> {
        let path = path.as_ref().to_owned();
        if context::backend() == IoKind::Sim {
            return Ok(LogFile(Kind::Sim(sim::SimLogFile::open(&path, sync).await?)));
        }
        let opened = blocking(Class::Raft, move || {
            let file = open_file(&path, sync, false)?;
            let len = file.metadata()?.len() / ALIGNMENT as u64 * ALIGNMENT as u64;
            Ok::<_, io::Error>(RealFile { file: Arc::new(file), path, len, sync })
        });
        Ok(LogFile(Kind::Real(opened.await?)))
    }

    /// The length in bytes, a multiple of [`ALIGNMENT`](crate::ALIGNMENT).
    pub fn len_bytes(&self) -> u64 {
        match &self.0 {
            Kind::Real(file) => file.len,
            Kind::Sim(file) => file.len_bytes(),
        }
    }

    /// Writes the buffer at `offset` and gives it back. Begins with this call, before the future is polled, though
    /// behind what the core's log files were asked for before. Operations that were not awaited one after the other
    /// may happen in any order.
    ///
    /// # Errors
    /// `InvalidInput` if the range is not aligned or reaches beyond the file; and what the kernel says.
    pub fn write_at(&self, offset: u64, bytes: AlignedBuf) -> LogOp<AlignedBuf> {
        self.write(offset, bytes, false)
    }

    /// [`LogFile::write_at`] and then, in the same operation, what makes it durable.
    ///
    /// # Errors
    /// As [`LogFile::write_at`]; after a failed sync the node must stop.
    pub fn write_durable(&self, offset: u64, bytes: AlignedBuf) -> LogOp<AlignedBuf> {
        self.write(offset, bytes, true)
    }

    fn write(&self, offset: u64, bytes: AlignedBuf, durable: bool) -> LogOp<AlignedBuf> {
        match &self.0 {
            Kind::Real(file) => {
                if let Err(error) = file.check(offset, bytes.len()) {
                    return LogOp::failed(error);
                }
                let core = context::current();
                add(&core.metrics.log_writes_total, 1);
                add(&core.metrics.log_bytes_total, bytes.len() as u64);
                if durable || file.sync == LogSync::Dsync {
                    add(&core.metrics.log_durable_total, 1);
                }
                let sync = match LogFault::planted() {
                    LogFault::None | LogFault::Hang | LogFault::Fail => durable && file.sync == LogSync::Fdatasync,
                    LogFault::NoSync => false,
                    LogFault::LateSync => durable,
                };
                file.start(Work::Write { offset, bytes, sync }, Ok)
            }
            Kind::Sim(file) if durable => LogOp::sim(file.write_durable(offset, bytes)),
            Kind::Sim(file) => LogOp::sim(file.write_at(offset, bytes)),
        }
    }

    /// Makes all writes durable that completed before this call. Nothing to do with [`LogSync::Dsync`].
    ///
    /// # Errors
    /// What the kernel says. The node must stop then.
    pub fn sync(&self) -> LogOp<()> {
        match &self.0 {
            Kind::Real(file) if file.sync == LogSync::Dsync => LogOp::done(()),
            Kind::Real(file) => {
                add(&context::current().metrics.log_durable_total, 1);
                file.start(Work::Sync, |_| Ok(()))
            }
            Kind::Sim(file) => LogOp::sim(file.sync()),
        }
    }

    /// Reads `len` bytes, rounded up to a multiple of [`ALIGNMENT`](crate::ALIGNMENT), at `offset`.
    ///
    /// # Errors
    /// `InvalidInput` if the range is not aligned or reaches beyond the file; and what the kernel says.
    pub fn read_at(&self, offset: u64, len: usize) -> LogOp<AlignedBuf> {
        match &self.0 {
            Kind::Real(file) => {
                let bytes = AlignedBuf::zeroed(len);
                match file.check(offset, bytes.len()) {
                    Ok(()) => file.start(Work::Read { offset, bytes }, Ok),
                    Err(error) => LogOp::failed(error),
                }
            }
            Kind::Sim(file) => LogOp::sim(file.read_at(offset, len)),
        }
    }
}

impl RealFile {
    fn check(&self, offset: u64, len: usize) -> io::Result<()> {
        let end = offset.checked_add(len as u64);
        if is_aligned(offset) && end.is_some_and(|end| end <= self.len) {
            return Ok(());
        }
        let range = format!("{len} bytes at {offset} of {} of {} bytes", self.path.display(), self.len);
        Err(io::Error::new(io::ErrorKind::InvalidInput, range))
    }

    fn start<T: 'static>(&self, work: Work, finish: fn(AlignedBuf) -> io::Result<T>) -> LogOp<T> {
        let core = context::current();
        let thread = match log_thread(&core) {
            Ok(thread) => thread,
            Err(error) => return LogOp::failed(error),
        };
        let (fill, filled) = oneshot();
        let op = Op { file: Arc::clone(&self.file), work, fill };
        add(&core.metrics.log_queued, 1);
        let running = Running { filled, metrics: std::rc::Rc::clone(&core.metrics), finish };
        match thread.ops().try_send(op) {
            Ok(()) => LogOp(State::Running(running)),
            Err(Full(op)) => {
                // A task of its own carries it on, whatever becomes of the caller, and of all other tasks.
                let (ops, owner) = (thread.ops().clone(), std::rc::Rc::clone(&core));
                add(&core.log_unsent, 1);
                keep(&core, async move {
                    let sent = ops.send(op).await.is_ok();
                    assert!(sent, "the log thread lives as long as its core");
                    less(&owner.log_unsent);
                });
                LogOp(State::Running(running))
            }
        }
    }
}

fn log_thread(core: &context::Core) -> io::Result<&LogThread> {
    if let Some(thread) = core.log_thread.get() {
        return Ok(thread);
    }
    let thread = LogThread::start(&format!("{}-{}", core.name, core.core.0), core.helper_cpus.clone())?;
    Ok(core.log_thread.get_or_init(|| thread))
}

/// A running operation on a [`LogFile`]. Dropping it does not stop the operation.
#[must_use = "only the result tells that the operation succeeded"]
pub struct LogOp<T>(State<T>);

enum State<T> {
    Done(Option<io::Result<T>>),
    Running(Running<T>),
    Boxed(Pin<Box<dyn Future<Output = io::Result<T>>>>),
}

struct Running<T> {
    filled: Filled<io::Result<AlignedBuf>>,
    metrics: std::rc::Rc<CoreMetrics>,
    finish: fn(AlignedBuf) -> io::Result<T>,
}

impl<T> Drop for Running<T> {
    fn drop(&mut self) {
        less(&self.metrics.log_queued);
    }
}

impl<T> Future for Running<T> {
    type Output = io::Result<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        let finish = self.finish;
        Pin::new(&mut self.filled).poll(cx).map(|answer| answer.and_then(finish))
    }
}

impl<T> LogOp<T> {
    fn failed(error: io::Error) -> LogOp<T> {
        LogOp(State::Done(Some(Err(error))))
    }

    fn done(value: T) -> LogOp<T> {
        LogOp(State::Done(Some(Ok(value))))
    }

    fn sim(operation: impl Future<Output = io::Result<T>> + 'static) -> LogOp<T> {
        LogOp(State::Boxed(Box::pin(operation)))
    }
}

impl<T> std::fmt::Debug for LogOp<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LogOp")
    }
}

impl<T> Unpin for LogOp<T> {}

impl<T> Future for LogOp<T> {
    type Output = io::Result<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        match &mut self.0 {
            State::Done(result) => Poll::Ready(result.take().expect("polled only until it is ready")),
            State::Running(running) => Pin::new(running).poll(cx),
            State::Boxed(operation) => operation.as_mut().poll(cx),
        }
    }
}

fn is_aligned(bytes: u64) -> bool {
    bytes.is_multiple_of(ALIGNMENT as u64)
}

/// Opens the descriptor ourselves: `O_DIRECT`, and `O_DSYNC` if asked for.
fn open_file(path: &Path, sync: LogSync, create: bool) -> io::Result<File> {
    let is_healthy = !matches!(LogFault::planted(), LogFault::NoSync | LogFault::LateSync);
    let dsync = if sync == LogSync::Dsync && is_healthy { libc::O_DSYNC } else { 0 };
    let open = |flags| OpenOptions::new().read(true).write(true).create_new(create).custom_flags(flags).open(path);
    match open(libc::O_DIRECT | dsync) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            let folder = path.parent().unwrap_or(Path::new("."));
            let refused = filesystem::NoDirectIo::new(folder);
            if create {
                // Some kernels have created the file before they refuse the flag.
                let _ = std::fs::remove_file(path);
            }
            if !LogFile::buffered_allowed() {
                return Err(io::Error::new(io::ErrorKind::Unsupported, refused.to_string()));
            }
            tracing::warn!(path = %path.display(), filesystem = refused.filesystem, "log file goes through the page cache");
            open(dsync)
        }
        opened => opened,
    }
}

/// Allocates and writes zeros: later writes then change neither the file's length nor its extents.
fn fill(file: &File, len: u64) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    const CHUNK: u64 = 1 << 20;
    let signed = i64::try_from(len).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
    // SAFETY: the descriptor is open during the call.
    let result = unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, signed) };
    if result != 0 {
        let error = io::Error::last_os_error();
        // Filesystems without preallocation get their blocks from the zeros alone.
        if error.raw_os_error() != Some(libc::EOPNOTSUPP) {
            return Err(error);
        }
    }
    let zeros = AlignedBuf::zeroed(CHUNK.min(len) as usize);
    let mut at = 0;
    while at < len {
        let chunk = CHUNK.min(len - at) as usize;
        file.write_all_at(&zeros.as_slice()[..chunk], at)?;
        at += chunk as u64;
    }
    Ok(())
}
