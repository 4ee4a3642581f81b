//! What the kernel sees of a node's log: its log threads are traced (ptrace), every durable write is counted when it
//! has returned, and can be held back before it begins. No counter of ours has a say in it.
//!
//! A durable write is an `fdatasync` of a log file that was written before, or a write to a log file that is open with
//! O_DSYNC.

use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

/// The kernel's view of one node's log, until the node ends.
pub(crate) struct Syncs {
    shared: Arc<Shared>,
    tracers: Vec<std::thread::JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    done: AtomicU64,
    hold: AtomicBool,
    held: AtomicBool,
}

#[derive(Clone, Copy)]
enum Operation {
    Sync(u64),
    DurableWrite,
    Write(u64),
}

impl Syncs {
    /// Follows the log threads of a process that this one has started.
    pub(crate) fn follow(pid: u32) -> Syncs {
        let shared = Arc::new(Shared::default());
        let (attached, is_attached) = mpsc::channel();
        let mut tracers = Vec::new();
        for thread in log_threads(pid) {
            let (shared, attached) = (shared.clone(), attached.clone());
            // A thread is traced by the thread that asked for it, and by no other.
            tracers.push(std::thread::spawn(move || trace(pid, thread, &shared, &attached)));
        }
        assert!(!tracers.is_empty(), "a node has log threads");
        for _ in &tracers {
            is_attached.recv_timeout(Duration::from_secs(60)).expect("the thread is traced");
        }
        Syncs { shared, tracers }
    }

    /// Durable writes that have returned.
    pub(crate) fn done(&self) -> u64 {
        self.shared.done.load(Ordering::SeqCst)
    }

    /// Holds the next durable write back before the kernel sees it.
    pub(crate) fn hold(&self) {
        self.shared.held.store(false, Ordering::SeqCst);
        self.shared.hold.store(true, Ordering::SeqCst);
    }

    /// True if a durable write is held back.
    pub(crate) fn is_holding(&self) -> bool {
        self.shared.held.load(Ordering::SeqCst)
    }

    /// Lets it go.
    pub(crate) fn release(&self) {
        self.shared.hold.store(false, Ordering::SeqCst);
    }

    /// To be called when the process has ended.
    pub(crate) fn end(self) {
        for tracer in self.tracers {
            tracer.join().expect("no panic");
        }
    }
}

fn log_threads(pid: u32) -> Vec<libc::pid_t> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("the node runs");
    let mut threads = Vec::new();
    for task in tasks {
        let task = task.expect("a thread").path();
        if std::fs::read_to_string(task.join("comm")).is_ok_and(|name| name.trim().ends_with("-log")) {
            let id = task.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
            threads.push(id.expect("a thread's number"));
        }
    }
    threads
}

fn ptrace(request: libc::c_uint, thread: libc::pid_t, address: usize, data: usize) -> io::Result<libc::c_long> {
    // SAFETY: none of the requests below writes to our memory, but for GET_SYSCALL_INFO, whose caller gives the place
    // in `data` and its size in `address`.
    match unsafe { libc::ptrace(request, thread, address, data) } {
        -1 => Err(io::Error::last_os_error()),
        value => Ok(value),
    }
}

/// Follows one thread to its end.
fn trace(pid: u32, thread: libc::pid_t, shared: &Shared, attached: &mpsc::Sender<()>) {
    const SYSCALL_STOP: i32 = libc::SIGTRAP | 0x80;
    const EVENT_STOP: i32 = 128;
    ptrace(libc::PTRACE_SEIZE, thread, 0, libc::PTRACE_O_TRACESYSGOOD as usize)
        .expect("a process may trace those that it started (docker: --cap-add SYS_PTRACE)");
    ptrace(libc::PTRACE_INTERRUPT, thread, 0, 0).expect("the thread runs");
    let mut unsynced = BTreeSet::new();
    let mut running = None;
    let mut is_first = true;
    loop {
        let mut status = 0;
        // SAFETY: `status` is a valid place for the result.
        if unsafe { libc::waitpid(thread, &raw mut status, libc::__WALL) } != thread || !libc::WIFSTOPPED(status) {
            // It has ended.
            shared.held.store(false, Ordering::SeqCst);
            return;
        }
        if std::mem::take(&mut is_first) {
            attached.send(()).expect("the test waits");
        }
        let mut signal = 0;
        match libc::WSTOPSIG(status) {
            SYSCALL_STOP => look(pid, thread, shared, &mut running, &mut unsynced),
            _ if status >> 16 == EVENT_STOP => {}
            other => signal = other,
        }
        // A thread that was killed meanwhile is told by the next wait.
        let _ = ptrace(libc::PTRACE_SYSCALL, thread, 0, signal as usize);
    }
}

/// The thread stands at the beginning or the end of a system call.
fn look(pid: u32, thread: libc::pid_t, shared: &Shared, running: &mut Option<Operation>, unsynced: &mut BTreeSet<u64>) {
    let mut info = std::mem::MaybeUninit::<libc::ptrace_syscall_info>::zeroed();
    let size = size_of::<libc::ptrace_syscall_info>();
    if ptrace(libc::PTRACE_GET_SYSCALL_INFO, thread, size, info.as_mut_ptr() as usize).is_err() {
        return;
    }
    // SAFETY: all zeros are a valid value, and the kernel has filled it.
    let info = unsafe { info.assume_init() };
    match info.op {
        libc::PTRACE_SYSCALL_INFO_ENTRY => {
            // SAFETY: the operation says which member is valid.
            let entry = unsafe { info.u.entry };
            *running = operation(pid, entry.nr as libc::c_long, entry.args[0]);
            if matches!(running, Some(Operation::Sync(_) | Operation::DurableWrite)) {
                wait_if_held(shared);
            }
        }
        libc::PTRACE_SYSCALL_INFO_EXIT => {
            // SAFETY: the operation says which member is valid.
            let failed = unsafe { info.u.exit }.is_error != 0;
            match running.take().filter(|_| !failed) {
                Some(Operation::Write(file)) => {
                    unsynced.insert(file);
                }
                Some(Operation::Sync(file)) if unsynced.remove(&file) => {
                    shared.done.fetch_add(1, Ordering::SeqCst);
                }
                Some(Operation::DurableWrite) => {
                    shared.done.fetch_add(1, Ordering::SeqCst);
                }
                _ => {}
            }
        }
        _ => {}
    }
}

fn operation(pid: u32, call: libc::c_long, file: u64) -> Option<Operation> {
    if ![libc::SYS_fdatasync, libc::SYS_fsync, libc::SYS_pwrite64, libc::SYS_write].contains(&call) {
        return None;
    }
    let path = std::fs::read_link(format!("/proc/{pid}/fd/{file}")).ok()?;
    if path.extension()? != "raftlog" {
        return None;
    }
    if call == libc::SYS_fdatasync || call == libc::SYS_fsync {
        return Some(Operation::Sync(file));
    }
    let info = std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{file}")).ok()?;
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"))?;
    let flags = i32::from_str_radix(flags.trim(), 8).ok()?;
    Some(if flags & libc::O_DSYNC != 0 { Operation::DurableWrite } else { Operation::Write(file) })
}

fn wait_if_held(shared: &Shared) {
    while shared.hold.load(Ordering::SeqCst) {
        shared.held.store(true, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(1));
    }
    shared.held.store(false, Ordering::SeqCst);
}
