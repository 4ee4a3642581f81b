//! System calls of another process, counted by the kernel's own trace point (`raw_syscalls:sys_enter`), since /proc
//! knows neither `recv` nor `io_uring_enter`. Source: perf_event_open(2).
//!
//! It wants the right to trace (root, or `perf_event_paranoid` below 1 and a readable tracefs); without it there is no
//! count. While it counts, every call of the process takes a little longer, so it is not done while time is measured.

use std::fs;
use std::io::{self, Read as _};
use std::os::fd::FromRawFd as _;

/// Where tracefs may be mounted.
const IDS: [&str; 2] = [
    "/sys/kernel/tracing/events/raw_syscalls/sys_enter/id",
    "/sys/kernel/debug/tracing/events/raw_syscalls/sys_enter/id",
];

/// `PERF_TYPE_TRACEPOINT` and `PERF_FLAG_FD_CLOEXEC`.
const TYPE_TRACE_POINT: u32 = 2;
const FLAG_CLOSE_ON_EXEC: libc::c_ulong = 8;

/// The first version of `struct perf_event_attr`, which every kernel takes.
#[repr(C)]
#[derive(Default)]
struct EventAttributes {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    breakpoint_type: u32,
    config_1: u64,
}

/// Counts the calls of the threads that a process has when it is made.
pub(crate) struct SyscallCounter(Vec<fs::File>);

impl SyscallCounter {
    /// Begins to count; `None` if that is not allowed here.
    pub(crate) fn open(pid: u32) -> Option<SyscallCounter> {
        let id = IDS.iter().find_map(|path| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok())?;
        let threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten();
        let threads = threads.filter_map(|thread| thread.file_name().to_str()?.parse::<i32>().ok());
        threads.map(|thread| open_event(id, thread).ok()).collect::<Option<Vec<_>>>().map(SyscallCounter)
    }

    /// Calls since [`open`](SyscallCounter::open).
    pub(crate) fn count(&mut self) -> u64 {
        let read = |event: &mut fs::File| {
            let mut number = [0; 8];
            event.read_exact(&mut number).map_or(0, |()| u64::from_ne_bytes(number))
        };
        self.0.iter_mut().map(read).sum()
    }
}

fn open_event(id: u64, thread: i32) -> io::Result<fs::File> {
    let attributes = EventAttributes {
        kind: TYPE_TRACE_POINT,
        size: size_of::<EventAttributes>() as u32,
        config: id,
        ..EventAttributes::default()
    };
    const ANY_CPU: i32 = -1;
    const NO_GROUP: i32 = -1;
    // SAFETY: the attributes live until the call returns, and are as long as they say.
    let event = unsafe {
        libc::syscall(libc::SYS_perf_event_open, &raw const attributes, thread, ANY_CPU, NO_GROUP, FLAG_CLOSE_ON_EXEC)
    };
    let event = i32::try_from(event).map_err(io::Error::other)?;
    if event < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor, and nobody else has it.
    Ok(unsafe { fs::File::from_raw_fd(event) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_calls_of_this_process_are_counted_where_that_is_allowed() {
        let Some(mut counter) = SyscallCounter::open(std::process::id()) else {
            eprintln!("system calls cannot be counted here");
            return;
        };
        let before = counter.count();
        for _ in 0..100 {
            fs::metadata("/proc/self").expect("it is there");
        }
        assert!(counter.count() - before >= 100);
    }
}
