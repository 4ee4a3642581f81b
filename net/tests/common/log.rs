//! The log of this process, as tests read it.
#![allow(dead_code, reason = "each test file uses its part")]

use std::io;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::time::Duration;

static LINES: Mutex<String> = Mutex::new(String::new());

struct Recorder;

impl io::Write for Recorder {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        lines().push_str(&String::from_utf8_lossy(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn lines() -> MutexGuard<'static, String> {
    LINES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Records from now on.
pub(crate) fn record() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| tracing_subscriber::fmt().with_ansi(false).with_writer(|| Recorder).init());
}

/// The line that names `peer`, if there is one. It is taken out: a later connection may get the same port.
pub(crate) fn find(peer: SocketAddr) -> Option<String> {
    let name = format!("peer={peer} ");
    let mut lines = lines();
    let line = lines.lines().find(|line| line.contains(&name))?.to_owned();
    *lines = lines.replacen(&line, "", 1);
    Some(line)
}

/// The line that names `peer`; waits for it for at most ten seconds.
pub(crate) fn line_about(peer: SocketAddr) -> String {
    for _ in 0..1000 {
        if let Some(line) = find(peer) {
            return line;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("the log has nothing about {peer}");
}
