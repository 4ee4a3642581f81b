//! The thread that does one core's log I/O.
//!
//! A log write must not wait behind other blocking work, so each core has a thread of its own for it, started with the
//! first log file. It serves both runtimes: glommio 0.9 can make neither its direct files from a descriptor of ours,
//! nor its buffered ones write from aligned memory, and its own open is what design.md forbids. What that costs over a
//! write in the ring is two thread switches; a write that is synced in the same operation pays them once.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crate::buf::AlignedBuf;
use crate::mailbox::{MailReceiver, MailSender, mailbox};
use crate::run::FATAL;
use crate::{LogFault, affinity, oneshot};

/// Operations that may wait for the thread; beyond, those who ask wait.
const QUEUE_MAX: usize = 256;

/// One operation, which owns all it needs.
pub(crate) struct Op {
    pub(crate) file: Arc<File>,
    pub(crate) work: Work,
    pub(crate) fill: oneshot::Fill<io::Result<AlignedBuf>>,
}

/// What to do with the file.
pub(crate) enum Work {
    /// Write the buffer, then `fdatasync` if `sync`.
    Write {
        offset: u64,
        bytes: AlignedBuf,
        sync: bool,
    },
    Read {
        offset: u64,
        bytes: AlignedBuf,
    },
    Sync,
}

/// One core's log thread. Dropping it lets the thread end after what it was given.
#[derive(Debug)]
pub(crate) struct LogThread {
    ops: Option<MailSender<Op>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl LogThread {
    pub(crate) fn start(name: &str, cpus: affinity::CpuSet) -> io::Result<LogThread> {
        let (ops, queue) = mailbox(QUEUE_MAX);
        let fatal = FATAL.get();
        let thread = std::thread::Builder::new().name(format!("{name}-log")).spawn(move || {
            FATAL.set(fatal);
            // Started from a pinned core; a thread that may not leave it works all the same.
            let _ = cpus.apply();
            serve(queue);
        })?;
        Ok(LogThread { ops: Some(ops), thread: Some(thread) })
    }

    pub(crate) fn ops(&self) -> &MailSender<Op> {
        self.ops.as_ref().expect("taken only when dropped")
    }
}

impl Drop for LogThread {
    fn drop(&mut self) {
        self.ops = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(mut queue: MailReceiver<Op>) {
    while let Some(op) = queue.recv_blocking() {
        let is_late = LogFault::planted() == LogFault::LateSync;
        match op.work {
            Work::Write { offset, bytes, sync: true } if is_late => {
                op.fill.fill(perform(&op.file, Work::Write { offset, bytes, sync: false }));
                let _ = op.file.sync_data();
            }
            work => op.fill.fill(perform(&op.file, work)),
        }
    }
}

fn perform(file: &File, work: Work) -> io::Result<AlignedBuf> {
    if !matches!(work, Work::Read { .. }) {
        LogFault::before_write()?;
    }
    match work {
        Work::Write { offset, bytes, sync } => {
            file.write_all_at(bytes.as_slice(), offset)?;
            if sync {
                file.sync_data()?;
            }
            Ok(bytes)
        }
        Work::Read { offset, mut bytes } => {
            file.read_exact_at(bytes.as_mut_slice(), offset)?;
            Ok(bytes)
        }
        Work::Sync => file.sync_data().map(|()| AlignedBuf::empty()),
    }
}
