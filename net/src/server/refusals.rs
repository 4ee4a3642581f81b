//! What the log says of connections that are refused.

use base::Instant;
use std::cell::Cell;
use std::fmt::Display;
use std::net::SocketAddr;
use std::time::Duration;

/// Time from one line to the next: whoever knocks at a port does not fill the disk.
const LINE_INTERVAL: Duration = Duration::from_secs(1);

/// One core's lines about connections that it refused.
#[derive(Default)]
pub(crate) struct RefusalLog {
    /// When the next line may be written.
    next: Cell<Instant>,
    /// Refusals since the last line.
    untold: Cell<u64>,
}

impl RefusalLog {
    /// Says who was refused and why, unless another line was written within the last second.
    pub(crate) fn say(&self, peer: Option<SocketAddr>, reason: &dyn Display) {
        let Some(untold) = self.admit(executor::now()) else {
            return;
        };
        match peer {
            Some(peer) => tracing::warn!(%peer, %reason, untold, "connection refused"),
            None => tracing::warn!(%reason, untold, "connection refused"),
        }
    }

    /// Whether a line may be written now, and how many refusals it has to make up for.
    fn admit(&self, now: Instant) -> Option<u64> {
        if now < self.next.get() {
            self.untold.set(self.untold.get() + 1);
            return None;
        }
        self.next.set(now + LINE_INTERVAL);
        Some(self.untold.take())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_second_counts_those_in_between() {
        let log = RefusalLog::default();
        let at = |millis| Instant(0) + Duration::from_millis(millis);
        assert_eq!(log.admit(at(5)), Some(0));
        assert_eq!((log.admit(at(6)), log.admit(at(1004))), (None, None));
        assert_eq!(log.admit(at(1005)), Some(2));
        assert_eq!(log.admit(at(5000)), Some(0));
    }
}
