//! The socket as h2 sees it, with what h2 leaves to its user: one read and one write per pass, a bound on what a pass
//! reads, and a count of frames.
//!
//! h2 owns its end ([`Wire`]) and writes frame by frame; all that lands in one buffer, and the connection's task calls
//! [`WireHandle::flush`] at the end of its pass. So the answers of many streams leave in one system call.

mod filled;
mod meter;

pub(crate) use filled::Filled;
pub(crate) use meter::{Flood, Meter};

use crate::metrics::{NetMetrics, add};
use bytes::Bytes;
use executor::io::{AsyncRead, AsyncWrite, ReadBuf};
use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

/// Bytes that one pass reads before others get their turn.
const PASS_READ_BYTES: usize = 256 << 10;
/// Bytes that wait to be written; beyond them h2 is told to wait.
const WRITE_BYTES_MAX: usize = 64 << 10;
/// An empty write buffer larger than this is given back.
const WRITE_BYTES_KEPT: usize = 16 << 10;

struct State<S> {
    io: S,
    /// What was read before h2 took over.
    sniffed: Bytes,
    filled: Option<Filled>,
    /// The socket had nothing more in this pass.
    is_dry: bool,
    /// A reason to read nothing more, ever.
    flood: Option<Flood>,
    /// What this pass may still read.
    pass_left: usize,
    /// Something was left undone for the next pass: bytes to read, or h2 was refused room that it has got since.
    has_more: bool,
    /// h2 was told to wait for room.
    has_refused: bool,
    /// Bytes were read since it was last asked.
    has_read: bool,
    out: Vec<u8>,
    out_at: usize,
    /// `io` took bytes that it may not have passed on: TLS has a buffer of its own.
    is_unflushed: bool,
    /// Bytes were written since it was last asked.
    has_written: bool,
    meter: Option<Meter>,
    metrics: Rc<NetMetrics>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> State<S> {
    fn poll_read(&mut self, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.sniffed.is_empty() {
            let take = self.sniffed.len().min(out.remaining());
            let bytes = self.sniffed.split_to(take);
            self.hand_on(&bytes, out);
            return if self.flood.is_some() { Poll::Pending } else { Poll::Ready(Ok(())) };
        }
        if self.filled.is_none() {
            if self.is_dry || self.flood.is_some() {
                return Poll::Pending;
            }
            if self.pass_left == 0 {
                self.has_more = true;
                return Poll::Pending;
            }
            let mut filled = Filled::empty();
            match filled.poll_fill(&mut self.io, cx) {
                Poll::Pending => {
                    self.is_dry = true;
                    return Poll::Pending;
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Ready(Ok(0)) => return Poll::Ready(Ok(())),
                Poll::Ready(Ok(read)) => {
                    self.pass_left = self.pass_left.saturating_sub(read);
                    self.has_read = true;
                    add(&self.metrics.socket_reads_total, 1);
                    add(&self.metrics.received_bytes_total, read as u64);
                }
            }
            self.filled = Some(filled);
        }
        let mut filled = self.filled.take().expect("filled above if it was empty");
        let take = filled.rest().len().min(out.remaining());
        self.hand_on(&filled.rest()[..take], out);
        filled.advance(take);
        if !filled.rest().is_empty() {
            self.filled = Some(filled);
        }
        if self.flood.is_some() { Poll::Pending } else { Poll::Ready(Ok(())) }
    }

    /// Gives `bytes` to h2, unless the meter finds a flood in them.
    fn hand_on(&mut self, bytes: &[u8], out: &mut ReadBuf<'_>) {
        if let Some(meter) = &mut self.meter
            && let Err(flood) = meter.follow(bytes)
        {
            self.flood = Some(flood);
            return;
        }
        out.put_slice(bytes);
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.out.is_empty() && !self.is_unflushed {
            return Poll::Ready(Ok(()));
        }
        while self.out_at < self.out.len() {
            let written = ready!(Pin::new(&mut self.io).poll_write(cx, &self.out[self.out_at..]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.out_at += written;
            self.has_written = true;
            self.is_unflushed = true;
            add(&self.metrics.socket_writes_total, 1);
            add(&self.metrics.sent_bytes_total, written as u64);
        }
        self.out_at = 0;
        self.out.clear();
        if self.out.capacity() > WRITE_BYTES_KEPT {
            self.out = Vec::new();
        }
        ready!(Pin::new(&mut self.io).poll_flush(cx))?;
        self.is_unflushed = false;
        self.has_written = true;
        Poll::Ready(Ok(()))
    }

    /// Room for this many bytes, at least one, or pending.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.room() == 0
            && let Poll::Ready(Err(error)) = self.poll_flush(cx)
        {
            return Poll::Ready(Err(error));
        }
        // What was written goes before something is added: the buffer never holds more than twice its bound, however
        // seldom it runs empty.
        if self.out_at >= WRITE_BYTES_MAX {
            self.out.drain(..self.out_at);
            self.out_at = 0;
        }
        if self.room() > 0 {
            return Poll::Ready(Ok(self.room()));
        }
        self.has_refused = true;
        Poll::Pending
    }

    fn room(&self) -> usize {
        WRITE_BYTES_MAX.saturating_sub(self.out.len() - self.out_at)
    }
}

/// The end of a socket that h2 owns.
pub(crate) struct Wire<S>(Rc<RefCell<State<S>>>);

/// The end of a socket that the connection's task keeps.
pub(crate) struct WireHandle<S>(Rc<RefCell<State<S>>>);

/// What happened on a socket since it was last asked.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Activity {
    /// Bytes came.
    pub(crate) has_read: bool,
    /// Bytes went.
    pub(crate) has_written: bool,
    /// Something was left undone for the next pass: come again.
    pub(crate) has_more: bool,
    /// The peer is in the midst of a frame or header block.
    pub(crate) is_inside_frame: bool,
    /// The peer's first settings have come.
    pub(crate) has_settings: bool,
    /// Bytes wait for the socket to take them.
    pub(crate) has_unwritten: bool,
    /// The meter found a flood; nothing is read any more.
    pub(crate) flood: Option<Flood>,
}

/// Puts a wire between h2 and `io`. `sniffed` is what was read already; `meter`, if any, watches what comes in.
pub(crate) fn wire<S: AsyncRead + AsyncWrite + Unpin>(
    io: S,
    sniffed: Bytes,
    meter: Option<Meter>,
    metrics: Rc<NetMetrics>,
) -> (Wire<S>, WireHandle<S>) {
    let state = Rc::new(RefCell::new(State {
        io,
        sniffed,
        filled: None,
        is_dry: false,
        flood: None,
        pass_left: PASS_READ_BYTES,
        has_more: false,
        has_refused: false,
        has_read: false,
        out: Vec::new(),
        out_at: 0,
        is_unflushed: false,
        has_written: false,
        meter,
        metrics,
    }));
    (Wire(Rc::clone(&state)), WireHandle(state))
}

impl<S> Clone for WireHandle<S> {
    fn clone(&self) -> WireHandle<S> {
        WireHandle(Rc::clone(&self.0))
    }
}

impl<S> WireHandle<S> {
    /// The socket, if h2 and the connection's task have let go of it.
    pub(crate) fn into_io(self) -> Option<S> {
        Rc::try_unwrap(self.0).ok().map(|state| state.into_inner().io)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> WireHandle<S> {
    /// Begins a pass: the socket is asked again, and the budget is whole.
    pub(crate) fn begin_pass(&self) {
        let mut state = self.0.borrow_mut();
        state.is_dry = false;
        state.has_more = false;
        state.pass_left = PASS_READ_BYTES;
    }

    /// Writes what h2 has left in the buffer. Pending: the socket is full, and wakes when it is not.
    pub(crate) fn flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.0.borrow_mut();
        let flushed = state.poll_flush(cx);
        if flushed.is_ready() && state.has_refused {
            // The wake-up for the room may have gone to this very write.
            state.has_refused = false;
            state.has_more = true;
        }
        flushed
    }

    /// What happened since the last call.
    pub(crate) fn activity(&self) -> Activity {
        let mut state = self.0.borrow_mut();
        let state = &mut *state;
        Activity {
            has_read: std::mem::take(&mut state.has_read),
            has_written: std::mem::take(&mut state.has_written),
            has_more: state.has_more,
            is_inside_frame: state.meter.as_ref().is_some_and(Meter::is_inside),
            has_settings: state.meter.as_ref().is_some_and(Meter::has_settings),
            has_unwritten: state.out_at < state.out.len() || state.is_unflushed,
            flood: state.flood,
        }
    }

    /// Changes the meter, if there is one.
    pub(crate) fn with_meter(&self, change: impl FnOnce(&mut Meter)) {
        if let Some(meter) = &mut self.0.borrow_mut().meter {
            change(meter);
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Wire<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.0.borrow_mut().poll_read(cx, out)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Wire<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut state = self.0.borrow_mut();
        let room = ready!(state.poll_room(cx))?;
        let taken = bytes.len().min(room);
        state.out.extend_from_slice(&bytes[..taken]);
        Poll::Ready(Ok(taken))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut state = self.0.borrow_mut();
        // A client may allow frames of 16 MiB: what is in the buffer is charged to nobody, so it takes no whole frame.
        let room = ready!(state.poll_room(cx))?;
        let mut taken = 0;
        for slice in slices {
            let part = slice.len().min(room - taken);
            state.out.extend_from_slice(&slice[..part]);
            taken += part;
        }
        Poll::Ready(Ok(taken))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Nothing to do: the connection's task flushes once per pass.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.0.borrow_mut();
        ready!(state.poll_flush(cx))?;
        Pin::new(&mut state.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Waker;

    /// A socket that takes as many bytes as it is allowed.
    #[derive(Default)]
    struct Slow {
        may_take: usize,
        taken: usize,
        /// Taken and kept back, as TLS does.
        holds: bool,
    }

    impl AsyncRead for Slow {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    impl AsyncWrite for Slow {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            let take = bytes.len().min(self.may_take);
            self.may_take -= take;
            self.taken += take;
            if take == 0 { Poll::Pending } else { Poll::Ready(Ok(take)) }
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            if self.holds { Poll::Pending } else { Poll::Ready(Ok(())) }
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[test]
    fn what_the_stream_below_holds_is_flushed_again_and_counts_as_unwritten() {
        let (mut end, handle) =
            wire(Slow { may_take: 100, holds: true, ..Slow::default() }, Bytes::new(), None, Rc::default());
        let cx = &mut Context::from_waker(Waker::noop());
        assert!(Pin::new(&mut end).poll_write(cx, b"answer").is_ready());
        for _ in 0..2 {
            assert!(handle.flush(cx).is_pending());
            assert!(handle.activity().has_unwritten);
        }
        handle.0.borrow_mut().io.holds = false;
        assert!(handle.flush(cx).is_ready());
        let activity = handle.activity();
        assert!(activity.has_written && !activity.has_unwritten);
    }

    #[test]
    fn what_waits_for_a_slow_socket_is_bounded_whatever_the_size_of_a_frame() {
        let (mut end, handle) = wire(Slow::default(), Bytes::new(), None, Rc::default());
        let cx = &mut Context::from_waker(Waker::noop());
        let frame = vec![7; 1 << 20];
        let first = Pin::new(&mut end).poll_write_vectored(cx, &[IoSlice::new(&frame[..9]), IoSlice::new(&frame)]);
        assert!(matches!(first, Poll::Ready(Ok(WRITE_BYTES_MAX))), "{first:?}");
        assert!(Pin::new(&mut end).poll_write(cx, &frame).is_pending());
        // The socket takes a little, always between h2's writes, and the buffer never runs empty.
        let mut written = WRITE_BYTES_MAX;
        for _ in 0..1000 {
            handle.0.borrow_mut().io.may_take = 1000;
            assert!(handle.flush(cx).is_pending());
            while let Poll::Ready(taken) = Pin::new(&mut end).poll_write(cx, &frame) {
                written += taken.expect("no error");
            }
        }
        let state = handle.0.borrow();
        assert_eq!(written - state.io.taken, WRITE_BYTES_MAX);
        assert!(state.out.capacity() <= 4 * WRITE_BYTES_MAX, "{}", state.out.capacity());
    }
}
