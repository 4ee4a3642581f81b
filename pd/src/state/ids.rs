//! Unique numbers, given out from a durable window.

/// Numbers up to `end` are durable as taken; `last` was given out.
#[derive(Debug)]
pub(super) struct Window {
    last: u64,
    end: u64,
}

impl Window {
    /// Goes on behind a durable `end`: what was left of the former window is skipped.
    pub(super) fn resume(end: u64) -> Window {
        Window { last: end, end }
    }

    /// Takes `count` numbers in a row. Returns the last one, and the new end if the window had to grow by `step`s.
    pub(super) fn take(&mut self, count: u64, step: u64) -> (u64, Option<u64>) {
        self.last = self.last.checked_add(count).expect("2^64 ids are never used up");
        let missing = self.last.saturating_sub(self.end);
        if missing == 0 {
            return (self.last, None);
        }
        self.end = self.end.checked_add(missing.div_ceil(step) * step).expect("2^64 ids are never used up");
        (self.last, Some(self.end))
    }
}
