//! What moves the bytes of connections: reads and writes of their ends, arrivals, ends of streams, and resets.
//!
//! Bytes that arrive at an end that is gone are answered with a reset, as a kernel does.

use super::conn::Conn;
use super::{EndKey, Net};
use crate::sim::answer::set_waker;
use crate::sim::timer::Event;
use crate::sim::world::{Note, World};
use std::io::{self, ErrorKind, IoSlice};
use std::task::{Context, Poll, Waker};
use tokio::io::ReadBuf;

fn wake(wakers: impl IntoIterator<Item = Option<Waker>>) {
    wakers.into_iter().flatten().for_each(Waker::wake);
}

impl World {
    /// Writes what fits into the window, or a part of it by the seed.
    pub(super) fn write(&self, end: EndKey, cx: &Context<'_>, parts: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let mut net = self.net.borrow_mut();
        let Some(conn) = net.conn(end) else {
            return Poll::Ready(Err(ErrorKind::NotConnected.into()));
        };
        if let Some(error) = conn.end(end.side).error {
            return Poll::Ready(Err(error.into()));
        }
        let (from, to) = conn.way(end.side);
        let pipe = conn.pipe(end.side);
        if pipe.closed {
            return Poll::Ready(Err(ErrorKind::BrokenPipe.into()));
        }
        let wanted = parts.iter().map(|part| part.len()).sum::<usize>();
        let space = self.config.window_bytes.saturating_sub(pipe.ring.len());
        let len = self.short(wanted.min(space));
        if wanted == 0 {
            return Poll::Ready(Ok(0));
        }
        if len == 0 {
            let old = set_waker(&mut pipe.writer, cx);
            if net.is_cut(from, to) {
                self.expect_way(&mut net, end);
            }
            drop(net);
            drop(old);
            return Poll::Pending;
        }
        self.note(Note::Send, end.mark() << 24 | len as u64 & 0xFF_FFFF);
        let mut left = len;
        for part in parts {
            let take = part.len().min(left);
            pipe.ring.extend(&part[..take]);
            self.note_bytes(&part[..take]);
            left -= take;
        }
        self.send(&mut net, end, len, false);
        Poll::Ready(Ok(len))
    }

    /// Puts a segment on its way, or the end of the stream.
    fn send(&self, net: &mut Net, end: EndKey, len: usize, is_last: bool) {
        let Some((from, to)) = net.conn(end).map(|conn| conn.way(end.side)) else {
            return;
        };
        let at = self.now() + self.latency(net, from, to);
        let rate = self.link(net, from, to).reset_rate;
        let resets = rate > 0.0 && self.chance.net.borrow_mut().unit() < rate;
        if let Some(conn) = net.conn(end) {
            conn.pipe(end.side).push(at, len, is_last);
            self.arm(conn, end);
        }
        if resets {
            let mut timers = self.timers.borrow_mut();
            timers.add(at, Event::Reset(end));
            timers.add(at, Event::Reset(end.other()));
        }
        if net.is_cut(from, to) {
            self.expect_way(net, end);
        }
    }

    fn arm(&self, conn: &mut Conn, end: EndKey) {
        if let Some(at) = conn.pipe(end.side).arm() {
            self.timers.borrow_mut().add(at, Event::Arrive(end));
        }
    }

    /// A length that a read or write of up to `len` bytes takes.
    fn short(&self, len: usize) -> usize {
        let mut prng = self.chance.net.borrow_mut();
        if len > 1 && prng.one_in(self.config.short_io_one_in) { prng.range(1, len as u64) as usize } else { len }
    }

    /// Reads what arrived, or a part of it by the seed.
    pub(super) fn read(&self, end: EndKey, cx: &Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut net = self.net.borrow_mut();
        let Some(conn) = net.conn(end) else {
            return Poll::Ready(Err(ErrorKind::NotConnected.into()));
        };
        let error = conn.end(end.side).error;
        let pipe = conn.pipe(1 - end.side);
        let len = self.short(pipe.arrived.min(buf.remaining()));
        if len == 0 {
            return match error {
                _ if buf.remaining() == 0 => Poll::Ready(Ok(())),
                Some(error) => Poll::Ready(Err(error.into())),
                None if pipe.end_arrived => Poll::Ready(Ok(())),
                None => {
                    let old = set_waker(&mut pipe.reader, cx);
                    drop(net);
                    drop(old);
                    Poll::Pending
                }
            };
        }
        let (first, second) = pipe.ring.as_slices();
        let take = first.len().min(len);
        buf.put_slice(&first[..take]);
        buf.put_slice(&second[..len - take]);
        pipe.ring.drain(..len);
        pipe.arrived -= len;
        let writer = pipe.writer.take();
        drop(net);
        self.note(Note::Receive, end.mark() << 24 | len as u64 & 0xFF_FFFF);
        wake([writer]);
        Poll::Ready(Ok(()))
    }

    /// Sends the end of the stream; nothing may be written afterwards.
    pub(super) fn shut(&self, end: EndKey) -> io::Result<()> {
        let mut net = self.net.borrow_mut();
        let conn = net.conn(end).ok_or(ErrorKind::NotConnected)?;
        if let Some(error) = conn.end(end.side).error {
            return Err(error.into());
        }
        if !std::mem::replace(&mut conn.pipe(end.side).closed, true) {
            self.note(Note::Close, end.mark());
            self.send(&mut net, end, 0, true);
        }
        Ok(())
    }

    /// Nobody holds this end any more. With unread bytes the peer is reset, else it reads the end of the stream.
    pub(super) fn close(&self, end: EndKey) {
        let mut net = self.net.borrow_mut();
        let Some(conn) = net.conn(end).filter(|conn| conn.ends[usize::from(end.side)].open) else {
            return;
        };
        conn.end(end.side).open = false;
        let unread = conn.pipe(1 - end.side).arrived > 0;
        let failed = conn.end(end.side).error.is_some();
        let closed = std::mem::replace(&mut conn.pipe(end.side).closed, true);
        let wakers = [conn.pipe(end.side).writer.take(), conn.pipe(1 - end.side).reader.take()];
        self.note(Note::Close, 1 << 40 | end.mark());
        if unread && !failed {
            self.send_reset(&mut net, end);
        } else if !closed && !failed {
            self.send(&mut net, end, 0, true);
        }
        net.release(end);
        drop(net);
        drop(wakers);
    }

    /// Resets the peer of `end`, behind what `end` has sent.
    fn send_reset(&self, net: &mut Net, end: EndKey) {
        let Some((from, to)) = net.conn(end).map(|conn| conn.way(end.side)) else {
            return;
        };
        let at = self.now() + self.latency(net, from, to);
        if let Some(conn) = net.conn(end) {
            let at = at.max(conn.pipe(end.side).last_at);
            self.timers.borrow_mut().add(at, Event::Reset(end.other()));
        }
    }

    /// Segments that `end` sent arrive, or find the link blocked or nobody there.
    pub(in crate::sim) fn segments_arrive(&self, end: EndKey) {
        let mut net = self.net.borrow_mut();
        let Some((from, to)) = net.conn(end).map(|conn| conn.way(end.side)) else {
            return;
        };
        let blocked = net.is_blocked(from, to);
        let Some(conn) = net.conn(end) else { return };
        conn.pipe(end.side).armed = false;
        if blocked {
            conn.pipe(end.side).held = true;
            return;
        }
        if conn.end(1 - end.side).is_gone() {
            conn.pipe(end.side).drop_segments(0);
            self.send_reset(&mut net, end.other());
            return;
        }
        let len = conn.pipe(end.side).arrive(self.now());
        self.note(Note::Arrive, end.mark() << 24 | len as u64 & 0xFF_FFFF);
        self.arm(conn, end);
        let reader = conn.pipe(end.side).reader.take();
        drop(net);
        wake([reader]);
    }

    /// `end` is told that its peer has reset the connection, if the way is open.
    pub(in crate::sim) fn reset_arrives(&self, end: EndKey) {
        let mut net = self.net.borrow_mut();
        let Some((from, to)) = net.conn(end).map(|conn| conn.way(1 - end.side)) else {
            return;
        };
        if net.is_blocked(from, to) {
            return;
        }
        self.note(Note::Reset, end.mark());
        if let Some(conn) = net.conn(end) {
            conn.pipe(1 - end.side).arrive(self.now()); // what is due came before the reset
        }
        let wakers = net.conn(end).map(|conn| conn.fail(end.side, ErrorKind::ConnectionReset));
        drop(net);
        wake(wakers.into_iter().flatten());
    }

    /// `end` gives its connection up if it still waits for the end of that blockade. The peer may not hear of it.
    pub(in crate::sim) fn stuck_too_long(&self, end: EndKey, blockade: u32) {
        let mut net = self.net.borrow_mut();
        let Some(conn) = net.conn(end) else { return };
        let pipe = conn.pipe(end.side);
        if !pipe.stuck || pipe.blockade != blockade {
            return;
        }
        self.note(Note::Reset, 1 << 40 | end.mark());
        let wakers = conn.fail(end.side, ErrorKind::TimedOut);
        self.send_reset(&mut net, end);
        drop(net);
        wake(wakers);
    }

    /// Resets all connections of a node that died, and forgets its listeners. Of what was under way a part arrives.
    pub(in crate::sim) fn abort_sockets(&self, node: usize) {
        let mut net = self.net.borrow_mut();
        let mut wakers = Vec::new();
        for (end, _) in net.open_ends().into_iter().filter(|(_, at)| *at == node) {
            let Some(conn) = net.conn(end) else { continue };
            conn.end(end.side).open = false;
            let pipe = conn.pipe(end.side);
            let under_way = pipe.segments.len() as u64;
            pipe.drop_segments(self.chance.net.borrow_mut().below(under_way + 1) as usize);
            wakers.extend([pipe.writer.take(), conn.pipe(1 - end.side).reader.take()]);
            self.send_reset(&mut net, end);
            net.release(end);
        }
        let gone = net.take_listeners(node);
        drop(net);
        drop((wakers, gone));
    }
}
