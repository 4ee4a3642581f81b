//! Cores, tasks, clock, sockets, files, mailboxes and blocking helpers: the one crate that names a runtime.
//!
//! Upper crates call plain functions and types; which of three backends serves them is looked up in the thread, and no
//! type of a runtime leaks out.
//!
//! ```text
//!   run_cores ── one thread per core ── live: dispatcher, main, its tasks      (run, task, context)
//!      │            │  uring  glommio, one task queue per class                (uring)
//!      │            │  epoll  tokio current-thread and LocalSet                (epoll)
//!      │            └─ a log thread, from the first LogFile on                 (logio)
//!      └── helper threads: blocking work, a queue per class and core           (helpers)
//!   sim::Sim ── the same functions for a whole cluster in one thread           (sim)
//! ```
//!
//! What other threads may wake goes through `remote`: wakers of a runtime never leave their thread.
//!
//! It never: decides what a task does, retries an operation, or hides a failed sync.

mod affinity;
mod buf;
mod config;
mod context;
mod epoll;
mod fault;
mod filesystem;
pub mod fs;
mod helpers;
mod logfile;
mod logio;
mod mailbox;
mod metrics;
pub mod net;
mod notify;
mod oneshot;
mod preflight;
mod process;
mod remote;
mod rounds;
mod run;
mod signal;
pub mod sim;
mod task;
mod time;
mod uring;
mod watchdog;

pub use buf::{ALIGNMENT, AlignedBuf};
pub use config::{Class, CoresConfig, Io, IoChoice, IoKind, UnknownIo};
pub use context::{core, cores, io_kind, metrics, with_rng};
pub use fault::LogFault;
pub use helpers::blocking;
pub use logfile::{LogFile, LogOp, LogSync};
pub use mailbox::{Closed, Full, MailReceiver, MailSender, mailbox};
pub use metrics::CoreMetrics;
pub use notify::{Notified, Notify};
pub use preflight::{PreflightError, preflight};
pub use process::{allowed_cpus, die_with_parent, memory_bytes, open_files_max, request_shutdown, terminate};
pub use run::{StartError, run_cores, run_one};
pub use signal::shutdown_signal;
pub use task::{Task, spawn_local, yield_now};
pub use time::{Clocks, Elapsed, Sleep, clocks, now, sleep, sleep_until, timeout, unix_time};
pub use watchdog::STALL;

/// A boxed future that stays on its core.
pub type LocalFuture<T> = std::pin::Pin<Box<dyn Future<Output = T>>>;

/// The I/O traits that [`net::TcpStream`] implements: tokio's, as h2 wants them.
pub mod io {
    pub use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
}
