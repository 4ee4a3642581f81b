//! Looks, before anything starts, whether this machine allows what the cores need, and says how to allow it.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use crate::{Io, IoChoice, IoKind, LogFile, filesystem};

/// glommio refuses to start with less locked memory.
const MEMLOCK_MIN: u64 = 512 << 10;

/// The operations that glommio 0.9 demands at start; it ends the process if one is missing.
const OPERATIONS: &[u8] = &[0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 21, 22, 23, 26, 27];

/// Why a process cannot start here, with what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum PreflightError {
    /// io_uring was asked for and does not work.
    #[error(
        "io_uring cannot be used: {problem}. {remedy}. Or choose epoll (--io epoll), or let basalt choose (--io auto)"
    )]
    Uring {
        /// What does not work.
        problem: String,
        /// How to make it work.
        remedy: String,
    },
    /// The data folder's filesystem cannot bypass the page cache.
    #[error(
        "the filesystem of {} ({filesystem}) has no O_DIRECT, which log files need: put the data folder on ext4 or xfs, \
         or allow buffered log files, which is meant for tests",
        folder.display()
    )]
    NoDirectIo {
        /// The data folder.
        folder: PathBuf,
        /// The name of its filesystem.
        filesystem: String,
    },
    /// The data folder cannot be written to.
    #[error("cannot create files in {}", folder.display())]
    Folder {
        /// The data folder.
        folder: PathBuf,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
}

/// Finds out how the cores will do I/O, and whether log files can be written in `data_dir`, which must exist.
///
/// Costs a few system calls and no thread; leaves nothing behind.
///
/// # Errors
/// [`PreflightError`] tells what is missing and how to allow it. With [`IoChoice::Auto`] a missing io_uring is no
/// error: [`Io::reason`] tells it then.
pub fn preflight(choice: IoChoice, data_dir: Option<&Path>) -> Result<Io, PreflightError> {
    let (kind, reason) = match choice {
        IoChoice::Epoll => (IoKind::Epoll, "epoll was asked for".to_owned()),
        IoChoice::Uring => {
            check_uring().map_err(|Missing { problem, remedy }| PreflightError::Uring { problem, remedy })?;
            (IoKind::Uring, "io_uring was asked for, and works".to_owned())
        }
        IoChoice::Auto => match check_uring() {
            Ok(()) => (IoKind::Uring, "io_uring works".to_owned()),
            Err(Missing { problem, remedy }) => {
                (IoKind::Epoll, format!("io_uring cannot be used: {problem}. {remedy}"))
            }
        },
    };
    let direct_files = data_dir.map_or(Ok(true), check_folder)?;
    Ok(Io { kind, reason, direct_files })
}

fn check_folder(folder: &Path) -> Result<bool, PreflightError> {
    match filesystem::has_direct_io(folder) {
        Ok(false) if !LogFile::buffered_allowed() => {
            Err(PreflightError::NoDirectIo { folder: folder.to_owned(), filesystem: filesystem::name(folder) })
        }
        Ok(direct) => Ok(direct),
        Err(source) => Err(PreflightError::Folder { folder: folder.to_owned(), source }),
    }
}

/// What keeps io_uring from working.
#[derive(Debug, PartialEq, Eq)]
struct Missing {
    problem: String,
    remedy: String,
}

impl Missing {
    fn new(problem: impl Into<String>, remedy: impl Into<String>) -> Missing {
        Missing { problem: problem.into(), remedy: remedy.into() }
    }
}

fn check_uring() -> Result<(), Missing> {
    check_memlock(memlock_limit())?;
    let ring = set_up_ring().map_err(|error| {
        let sysctl = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok();
        explain_setup(&error, sysctl.as_deref().map(str::trim))
    })?;
    check_operations(&ring)
}

pub(crate) fn memlock_limit() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid place for the result.
    match unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) } {
        0 => limit.rlim_cur,
        _ => 0,
    }
}

fn check_memlock(limit: u64) -> Result<(), Missing> {
    if limit >= MEMLOCK_MIN {
        return Ok(());
    }
    Err(Missing::new(
        format!("the limit of locked memory is {} KiB, and 512 KiB are needed", limit >> 10),
        "Raise it: `ulimit -l 8192`, LimitMEMLOCK=8M in a systemd unit, or --ulimit memlock=8388608 for docker",
    ))
}

/// What a failed `io_uring_setup` means. `sysctl` is the value of kernel.io_uring_disabled, if the kernel has it.
fn explain_setup(error: &io::Error, sysctl: Option<&str>) -> Missing {
    match (error.raw_os_error(), sysctl) {
        (Some(libc::ENOSYS), _) => Missing::new(
            "the kernel has no io_uring",
            "Use Linux 5.8 or newer, built with CONFIG_IO_URING; some sandboxes hide it",
        ),
        (Some(libc::EPERM), Some("2")) => Missing::new(
            "the sysctl kernel.io_uring_disabled is 2, which forbids it to everyone",
            "Allow it: `sysctl -w kernel.io_uring_disabled=0`",
        ),
        (Some(libc::EPERM), Some("1")) => Missing::new(
            "the sysctl kernel.io_uring_disabled is 1, which forbids it to processes outside of the group of \
             kernel.io_uring_group",
            "Allow it: `sysctl -w kernel.io_uring_disabled=0`, or add the user to that group",
        ),
        (Some(libc::EPERM | libc::EACCES), _) => Missing::new(
            "the kernel forbids it (EPERM), most likely by a seccomp filter, as Docker's default one does",
            "Allow io_uring_setup, io_uring_enter and io_uring_register in the filter (docker: --security-opt \
             seccomp=FILE, or seccomp=unconfined to try)",
        ),
        (Some(libc::ENOMEM), _) => Missing::new(
            "the kernel has no memory for a ring (ENOMEM), most likely by the limit of locked memory",
            "Raise it: `ulimit -l 8192` or more",
        ),
        (Some(libc::EMFILE | libc::ENFILE), _) => {
            Missing::new("no file descriptor is left", "Raise the limit: `ulimit -n 65536`")
        }
        _ => Missing::new(format!("io_uring_setup failed: {error}"), "Look for a security module that forbids it"),
    }
}

/// Size of the kernel's `struct io_uring_params`, all of it zero for a plain ring.
const PARAMS_LEN: usize = 120;

fn set_up_ring() -> io::Result<OwnedFd> {
    let mut params = [0u64; PARAMS_LEN / 8];
    // SAFETY: `params` is as large as the kernel's struct, which it fills.
    let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, 8, params.as_mut_ptr()) };
    if ring < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(ring as i32) })
}

fn check_operations(ring: &OwnedFd) -> Result<(), Missing> {
    const REGISTER_PROBE: libc::c_uint = 8;
    const SUPPORTED: u16 = 1;
    // struct io_uring_probe: a head of 16 bytes, then 8 bytes for each operation, flags in bytes 2 and 3.
    let mut probe = [0u8; 16 + 8 * 256];
    // SAFETY: `probe` has room for 256 operations, as the last argument says.
    let result = unsafe {
        libc::syscall(libc::SYS_io_uring_register, ring.as_raw_fd(), REGISTER_PROBE, probe.as_mut_ptr(), 256)
    };
    let remedy = "Use Linux 5.8 or newer";
    if result < 0 {
        let error = io::Error::last_os_error();
        return Err(match error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => explain_setup(&error, None),
            _ => Missing::new(format!("the kernel cannot list its operations: {error}"), remedy),
        });
    }
    let supported = |operation: u8| {
        let at = 16 + 8 * usize::from(operation);
        u16::from_le_bytes([probe[at + 2], probe[at + 3]]) & SUPPORTED != 0
    };
    match OPERATIONS.iter().find(|operation| !supported(**operation)) {
        Some(missing) => Err(Missing::new(format!("the kernel lacks operation {missing}"), remedy)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn explained(errno: i32, sysctl: Option<&str>) -> String {
        let Missing { problem, remedy } = explain_setup(&io::Error::from_raw_os_error(errno), sysctl);
        format!("{problem}. {remedy}")
    }

    #[test]
    fn each_refusal_of_io_uring_has_its_remedy() {
        let by_sysctl = explained(libc::EPERM, Some("2"));
        assert!(by_sysctl.contains("kernel.io_uring_disabled is 2") && by_sysctl.contains("sysctl -w"), "{by_sysctl}");
        let by_group = explained(libc::EPERM, Some("1"));
        assert!(by_group.contains("kernel.io_uring_group"), "{by_group}");
        let by_filter = explained(libc::EPERM, Some("0"));
        assert!(by_filter.contains("seccomp") && by_filter.contains("docker"), "{by_filter}");
        assert_eq!(by_filter, explained(libc::EPERM, None));
        assert!(explained(libc::ENOSYS, None).contains("5.8"));
        assert!(explained(libc::ENOMEM, None).contains("ulimit -l"));
        assert!(explained(libc::EMFILE, None).contains("ulimit -n"));
        assert!(explained(libc::EIO, None).contains("io_uring_setup failed"));
    }

    #[test]
    fn locked_memory_of_512_kib_suffices() {
        assert_eq!(check_memlock(512 << 10), Ok(()));
        let Missing { problem, remedy } = check_memlock((512 << 10) - 1).expect_err("too little");
        assert!(problem.contains("511 KiB") && remedy.contains("LimitMEMLOCK"), "{problem}: {remedy}");
    }

    #[test]
    fn a_folder_that_is_not_there_is_an_error() {
        let error = preflight(IoChoice::Epoll, Some(Path::new("/nonexistent/folder"))).expect_err("no folder");
        assert!(error.to_string().contains("/nonexistent/folder"));
    }

    #[test]
    fn a_filesystem_without_direct_io_is_named() {
        let refused = filesystem::NoDirectIo { folder: "/data".into(), filesystem: "tmpfs".to_owned() };
        assert!(refused.to_string().contains("/data (tmpfs) has no O_DIRECT"));
        let proc = filesystem::name(Path::new("/proc"));
        assert!(proc.contains("type 0x9fa0"), "{proc}");
    }
}
