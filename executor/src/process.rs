//! What a process does to itself and to others that it started.

use std::io;

use crate::{IoKind, context, signal, sim};

/// Asks this process to stop, as SIGTERM does: every [`shutdown_signal`](crate::shutdown_signal) resolves. In the
/// simulator, the node of the calling task.
pub fn request_shutdown() {
    if context::backend() == IoKind::Sim {
        sim::request_shutdown();
    } else {
        signal::request();
    }
}

/// Makes the kernel end this process (SIGTERM) when the one that started it ends, however that happens.
///
/// # Errors
/// What the kernel says; also if the other process has ended already.
pub fn die_with_parent() -> io::Result<()> {
    // SAFETY: no pointer is involved.
    let parent = unsafe { libc::getppid() };
    // SAFETY: the option takes a number.
    if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM as libc::c_ulong, 0, 0, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: no pointer is involved.
    if unsafe { libc::getppid() } != parent || parent == 1 {
        return Err(io::Error::other("the process that started this one has ended"));
    }
    Ok(())
}

/// Asks another process to stop. One that is gone needs no asking.
pub fn terminate(pid: u32) {
    if let Ok(pid) = libc::pid_t::try_from(pid) {
        // SAFETY: no pointer is involved.
        unsafe { libc::kill(pid, libc::SIGTERM) };
    }
}

/// Memory that this process may use: the machine's, or its cgroup's limit if that is less.
pub fn memory_bytes() -> u64 {
    // SAFETY: no pointer is involved.
    let (pages, page) = unsafe { (libc::sysconf(libc::_SC_PHYS_PAGES), libc::sysconf(libc::_SC_PAGESIZE)) };
    let machine = u64::try_from(pages).unwrap_or(0).saturating_mul(u64::try_from(page).unwrap_or(0));
    let limit = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok().and_then(|text| text.trim().parse().ok());
    machine.min(limit.unwrap_or(u64::MAX))
}

/// Raises the number of files that this process may have open to what the system allows it, and returns that.
pub fn open_files_max() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid place for the result.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return 1024;
    }
    let raised = libc::rlimit { rlim_cur: limit.rlim_max, ..limit };
    // SAFETY: `raised` is a valid limit, no higher than the process may set.
    match unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) } {
        0 => raised.rlim_cur,
        _ => limit.rlim_cur,
    }
}

/// CPUs that this process may use: its affinity mask, which a cgroup's cpuset limits. At least 1.
pub fn allowed_cpus() -> usize {
    crate::affinity::CpuSet::allowed().cpus().len().max(1)
}
