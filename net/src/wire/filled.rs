//! Read buffers, lent by the core.

use executor::io::{AsyncRead, ReadBuf};
use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

/// Bytes asked of the socket at once.
const READ_BYTES: usize = 64 << 10;
/// Idle buffers that a core keeps.
const BUFFERS_KEPT: usize = 4;

thread_local! {
    /// Read buffers of this core's connections. A pass empties what it fills, so one or two serve all.
    static BUFFERS: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// A buffer of 64 KiB with what is not yet handed on. It goes back to its core when it is dropped.
pub(crate) struct Filled {
    buffer: Box<[u8]>,
    at: usize,
    len: usize,
}

impl Filled {
    /// A buffer of the core, or a new one.
    pub(crate) fn empty() -> Filled {
        let buffer = BUFFERS.with_borrow_mut(Vec::pop);
        Filled { buffer: buffer.unwrap_or_else(|| vec![0; READ_BYTES].into_boxed_slice()), at: 0, len: 0 }
    }

    /// Reads once, in place of what it held. Zero: the stream has ended.
    pub(crate) fn poll_fill(
        &mut self,
        io: &mut (impl AsyncRead + Unpin),
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let mut buffer = ReadBuf::new(&mut self.buffer);
        ready!(Pin::new(io).poll_read(cx, &mut buffer))?;
        (self.at, self.len) = (0, buffer.filled().len());
        Poll::Ready(Ok(self.len))
    }

    /// What is not yet handed on.
    pub(crate) fn rest(&self) -> &[u8] {
        &self.buffer[self.at..self.len]
    }

    /// `count` bytes more are handed on.
    pub(crate) fn advance(&mut self, count: usize) {
        self.at += count;
        debug_assert!(self.at <= self.len, "more is handed on than there was");
    }
}

impl Drop for Filled {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.buffer);
        BUFFERS.with_borrow_mut(|buffers| {
            if buffers.len() < BUFFERS_KEPT {
                buffers.push(buffer);
            }
        });
    }
}
