//! One connection: two ends, and a pipe in each direction.
//!
//! A pipe keeps all bytes that were written but not read in one ring. The first `arrived` of them may be read; the
//! segments say when the others arrive. A blocked link holds the pipe at its first segment. What moves them is in `traffic`.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::task::Waker;

pub(super) struct Conn {
    pub(super) ends: [End; 2],
    /// `pipes[side]` carries what `ends[side]` writes.
    pub(super) pipes: [Pipe; 2],
}

pub(super) struct End {
    pub(super) node: usize,
    pub(super) address: SocketAddr,
    /// A stream, a backlog or a handoff holds this end.
    pub(super) open: bool,
    pub(super) error: Option<ErrorKind>,
}

#[derive(Default)]
pub(super) struct Pipe {
    pub(super) ring: VecDeque<u8>,
    pub(super) arrived: usize,
    pub(super) segments: VecDeque<Segment>,
    /// When the newest segment arrives; the next one does not overtake it.
    pub(super) last_at: u64,
    /// An `Arrive` event is under way.
    pub(super) armed: bool,
    /// The first segment found the link blocked.
    pub(super) held: bool,
    pub(super) closed: bool,
    pub(super) end_arrived: bool,
    /// The sender waits for a way through, since the numbered blockade.
    pub(super) stuck: bool,
    pub(super) blockade: u32,
    pub(super) reader: Option<Waker>,
    pub(super) writer: Option<Waker>,
}

pub(super) struct Segment {
    at: u64,
    len: usize,
    is_last: bool,
}

impl End {
    pub(super) fn new(node: usize, address: SocketAddr) -> End {
        End { node, address, open: true, error: None }
    }

    pub(super) fn is_gone(&self) -> bool {
        !self.open || self.error.is_some()
    }
}

impl Conn {
    pub(super) fn new(ends: [End; 2]) -> Conn {
        Conn { ends, pipes: Default::default() }
    }

    pub(super) fn end(&mut self, side: u8) -> &mut End {
        &mut self.ends[usize::from(side)]
    }

    pub(super) fn pipe(&mut self, side: u8) -> &mut Pipe {
        &mut self.pipes[usize::from(side)]
    }

    /// The nodes from and to which this side sends.
    pub(super) fn way(&self, side: u8) -> (usize, usize) {
        let side = usize::from(side);
        (self.ends[side].node, self.ends[1 - side].node)
    }

    pub(super) fn has_unsent(&mut self, side: u8) -> bool {
        !self.pipe(side).segments.is_empty()
    }

    /// Marks this side as waiting for a way through; `None` if it waits already or is gone.
    pub(super) fn begin_stuck(&mut self, side: u8) -> Option<u32> {
        let gone = !self.end(side).open && !self.has_unsent(side);
        let pipe = self.pipe(side);
        if gone || std::mem::replace(&mut pipe.stuck, true) {
            return None;
        }
        Some(pipe.blockade)
    }

    /// The way is open both ways: nobody gives up.
    pub(super) fn way_is_open(&mut self, side: u8) {
        let pipe = self.pipe(side);
        pipe.stuck = false;
        pipe.blockade = pipe.blockade.wrapping_add(1);
    }

    /// True if this side must send again: it was held, or its peer went away unheard.
    pub(super) fn release_held(&mut self, side: u8) -> bool {
        let peer_gone = self.end(1 - side).is_gone();
        let pipe = self.pipe(side);
        let held = std::mem::take(&mut pipe.held) || (peer_gone && !pipe.ring.is_empty());
        if held && !pipe.armed {
            pipe.armed = true;
            return true;
        }
        false
    }

    /// This side hears no more: what is under way to it is lost, and so is what it sent.
    pub(super) fn fail(&mut self, side: u8, error: ErrorKind) -> [Option<Waker>; 2] {
        self.end(side).error.get_or_insert(error);
        let outgoing = self.pipe(side);
        outgoing.drop_segments(0);
        let writer = outgoing.writer.take();
        let incoming = self.pipe(1 - side);
        incoming.drop_segments(0);
        [writer, incoming.reader.take()]
    }
}

impl Pipe {
    pub(super) fn push(&mut self, at: u64, len: usize, is_last: bool) {
        self.last_at = self.last_at.max(at);
        let at = self.last_at;
        self.segments.push_back(Segment { at, len, is_last });
    }

    /// Loses the segments under way but for the first `keep`.
    pub(super) fn drop_segments(&mut self, keep: usize) {
        for segment in self.segments.drain(keep..) {
            self.ring.truncate(self.ring.len() - segment.len);
        }
    }

    /// The time for which an `Arrive` event is wanted, if none is under way.
    pub(super) fn arm(&mut self) -> Option<u64> {
        if self.armed || self.held {
            return None;
        }
        let at = self.segments.front()?.at;
        self.armed = true;
        Some(at)
    }

    pub(super) fn arrive(&mut self, now: u64) -> usize {
        let before = self.arrived;
        while let Some(segment) = self.segments.pop_front_if(|segment| segment.at <= now) {
            self.arrived += segment.len;
            self.end_arrived |= segment.is_last;
        }
        self.arrived - before
    }
}
