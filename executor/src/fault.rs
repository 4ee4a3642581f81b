//! Faults that are planted on purpose, to prove that a test would notice them. They are switches of the running process
//! and not features of the build: what is tested is the binary that ships.

use std::io;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

/// Names the file during whose existence [`LogFault::Hang`] and [`LogFault::Fail`] happen.
const SWITCH: &str = "BASALT_PLANT_WHILE";
/// How often a log write that hangs looks whether it is to go on.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// What a process may do wrong on purpose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum LogFault {
    /// Nothing.
    #[default]
    None,
    /// Log writes are called durable, and counted so, without any sync: power loss takes acknowledged writes.
    NoSync,
    /// Log writes are answered when they are written, and synced a moment later.
    LateSync,
    /// Log writes and syncs hang while there is a file of the name that the variable `BASALT_PLANT_WHILE` holds.
    Hang,
    /// They fail meanwhile.
    Fail,
}

static PLANTED: AtomicU8 = AtomicU8::new(LogFault::None as u8);

fn switch() -> Option<&'static PathBuf> {
    static FILE: OnceLock<Option<PathBuf>> = OnceLock::new();
    FILE.get_or_init(|| std::env::var_os(SWITCH).map(PathBuf::from)).as_ref()
}

impl LogFault {
    /// Plants this fault in the process. Each log write looks at it, but a log file that was opened with `O_DSYNC` before
    /// goes on to sync by itself. Not for the simulator, whose disk has its own faults.
    pub fn plant(self) {
        match self {
            LogFault::None => {}
            LogFault::NoSync | LogFault::LateSync => {
                tracing::error!(fault = ?self, "a fault is planted: this process loses acknowledged writes on purpose");
            }
            LogFault::Hang | LogFault::Fail => {
                tracing::error!(fault = ?self, file = ?switch(), "a fault is planted: its log fails on purpose");
            }
        }
        PLANTED.store(self as u8, Ordering::Relaxed);
    }

    pub(crate) fn planted() -> LogFault {
        match PLANTED.load(Ordering::Relaxed) {
            fault if fault == LogFault::NoSync as u8 => LogFault::NoSync,
            fault if fault == LogFault::LateSync as u8 => LogFault::LateSync,
            fault if fault == LogFault::Hang as u8 => LogFault::Hang,
            fault if fault == LogFault::Fail as u8 => LogFault::Fail,
            _ => LogFault::None,
        }
    }

    /// What a disk in trouble does to a write or sync before it is begun, on the log's own thread.
    ///
    /// # Errors
    /// That of a disk that fails.
    pub(crate) fn before_write() -> io::Result<()> {
        let is_on = || switch().is_some_and(|file| file.exists());
        match LogFault::planted() {
            LogFault::Hang => {
                while is_on() {
                    std::thread::sleep(LOOK_EVERY);
                }
                Ok(())
            }
            LogFault::Fail if is_on() => Err(io::Error::other("a planted failure of the disk")),
            _ => Ok(()),
        }
    }
}

impl std::str::FromStr for LogFault {
    type Err = String;

    fn from_str(text: &str) -> Result<LogFault, String> {
        match text {
            "none" => Ok(LogFault::None),
            "no-sync" => Ok(LogFault::NoSync),
            "late-sync" => Ok(LogFault::LateSync),
            "hang" => Ok(LogFault::Hang),
            "fail" => Ok(LogFault::Fail),
            other => Err(format!("`{other}` is none of the faults none, no-sync, late-sync, hang and fail")),
        }
    }
}
