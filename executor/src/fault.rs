//! Faults that are planted on purpose, to prove that a test would notice them. They are switches of the running process
//! and not features of the build: what is tested is the binary that ships.

use std::sync::atomic::{AtomicU8, Ordering};

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
}

static PLANTED: AtomicU8 = AtomicU8::new(LogFault::None as u8);

impl LogFault {
    /// Plants this fault in the process, for the log files that are opened from now on. Not for the simulator, whose
    /// disk has its own faults.
    pub fn plant(self) {
        if self != LogFault::None {
            tracing::error!(fault = ?self, "a fault is planted: this process loses acknowledged writes on purpose");
        }
        PLANTED.store(self as u8, Ordering::Relaxed);
    }

    pub(crate) fn planted() -> LogFault {
        match PLANTED.load(Ordering::Relaxed) {
            fault if fault == LogFault::NoSync as u8 => LogFault::NoSync,
            fault if fault == LogFault::LateSync as u8 => LogFault::LateSync,
            _ => LogFault::None,
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
            other => Err(format!("`{other}` is none of the faults none, no-sync and late-sync")),
        }
    }
}
