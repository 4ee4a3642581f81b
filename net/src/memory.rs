//! What the messages of a core's connections take, and who must wait when it is too much.
//!
//! Inbound: bytes are charged to their connection and to the core as they arrive. Over either limit the stream gets
//! no more window (it *owes* a release), so the client stops sending; nothing is an error yet. Streams that owe stand in
//! one queue per core, and the one at its head goes on beyond the limits, so that there is always progress. Who makes
//! none for `memory_wait` is answered RESOURCE_EXHAUSTED by its connection.
//!
//! Outbound: answers are charged until h2 has passed them to the socket's buffer. Over a limit, handlers that stream
//! wait, and a connection takes no new calls.

use crate::config::ServerConfig;
use crate::metrics::{NetMetrics, add, sub};
use bytes::{Buf, Bytes};
use h2::FlowControl;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::IoSlice;
use std::rc::Rc;
use std::task::{Context, Waker};

use crate::grpc::message::{PREFIX_BYTES, prefix};

/// What a connection may always have waiting to be written, however full the core is.
const OUTBOUND_ALWAYS_BYTES: u64 = 256 << 10;

/// The budgets of one core.
pub(crate) struct CoreMemory {
    inbound_max: u64,
    outbound_max: u64,
    window_left: Cell<u64>,
    queue: RefCell<VecDeque<Rc<Place>>>,
    inbound_waiters: RefCell<Vec<Waker>>,
    outbound_waiters: RefCell<Vec<Waker>>,
    metrics: Rc<NetMetrics>,
}

/// A stream's place in the queue of those that owe.
struct Place {
    waker: RefCell<Option<Waker>>,
}

/// Where a stream stands in the line for memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// It does not wait for memory.
    No,
    /// Somewhere behind the head.
    Waits,
    /// At the head: it may go beyond the budgets until its message is complete.
    Head,
}

impl CoreMemory {
    pub(crate) fn new(config: &ServerConfig, metrics: Rc<NetMetrics>) -> Rc<CoreMemory> {
        Rc::new(CoreMemory {
            inbound_max: config.core_inbound_bytes,
            outbound_max: config.core_outbound_bytes,
            window_left: Cell::new(config.core_window_bytes),
            queue: RefCell::default(),
            inbound_waiters: RefCell::default(),
            outbound_waiters: RefCell::default(),
            metrics,
        })
    }

    /// The counters.
    pub(crate) fn metrics(&self) -> &NetMetrics {
        &self.metrics
    }

    fn wake_queue(&self) {
        for place in self.queue.borrow().iter() {
            if let Some(waker) = place.waker.borrow_mut().take() {
                waker.wake();
            }
        }
        self.inbound_waiters.take().into_iter().for_each(Waker::wake);
    }

    fn is_head(&self, place: &Rc<Place>) -> bool {
        self.queue.borrow().front().is_some_and(|head| Rc::ptr_eq(head, place))
    }

    fn leave(&self, place: &Rc<Place>) {
        let was_head = self.is_head(place);
        self.queue.borrow_mut().retain(|other| !Rc::ptr_eq(other, place));
        if was_head {
            self.wake_queue();
        }
    }
}

/// The budgets of one connection.
pub(crate) struct ConnectionMemory {
    core: Rc<CoreMemory>,
    inbound: Cell<u64>,
    inbound_max: u64,
    outbound: Cell<u64>,
    outbound_max: u64,
    outbound_waiters: RefCell<Vec<Waker>>,
    has_drained: Cell<bool>,
    is_closed: Cell<bool>,
    frames_sent: Cell<u64>,
    window: u32,
}

impl ConnectionMemory {
    /// Takes a connection's window from the core, or HTTP/2's 64 KiB if the core has too little left.
    pub(crate) fn new(core: &Rc<CoreMemory>, config: &ServerConfig) -> Rc<ConnectionMemory> {
        let asked = u64::from(config.connection_window_bytes);
        let is_granted = asked <= core.window_left.get();
        if is_granted {
            core.window_left.set(core.window_left.get() - asked);
        }
        Rc::new(ConnectionMemory {
            core: Rc::clone(core),
            inbound: Cell::new(0),
            inbound_max: config.connection_inbound_bytes,
            outbound: Cell::new(0),
            outbound_max: config.connection_outbound_bytes,
            outbound_waiters: RefCell::default(),
            has_drained: Cell::new(false),
            is_closed: Cell::new(false),
            frames_sent: Cell::new(0),
            window: if is_granted { config.connection_window_bytes } else { 0 },
        })
    }

    /// The window to announce, or 0 for HTTP/2's default.
    pub(crate) fn window_bytes(&self) -> u32 {
        self.window
    }

    fn has_inbound_room(&self) -> bool {
        self.inbound.get() <= self.inbound_max && self.core.metrics.inbound_bytes.get() <= self.core.inbound_max
    }

    /// Whether another answer may be queued, or another call taken.
    pub(crate) fn has_outbound_room(&self) -> bool {
        let here = self.outbound.get();
        let is_core_full = self.core.metrics.outbound_bytes.get() >= self.core.outbound_max;
        here < self.outbound_max && (!is_core_full || here < OUTBOUND_ALWAYS_BYTES)
    }

    /// Bytes of answers that are not yet in the socket's buffer.
    pub(crate) fn outbound_bytes(&self) -> u64 {
        self.outbound.get()
    }

    /// Wakes `waker` when there may be room for answers again.
    pub(crate) fn wait_for_outbound_room(&self, waker: &Waker) {
        push_waker(&mut self.outbound_waiters.borrow_mut(), waker);
        if self.core.metrics.outbound_bytes.get() >= self.core.outbound_max {
            push_waker(&mut self.core.outbound_waiters.borrow_mut(), waker);
        }
    }

    /// Has those who wait for room look again at the end of the pass.
    pub(crate) fn stir(&self) {
        self.has_drained.set(true);
    }

    /// The connection is gone: nobody may wait for it any more.
    pub(crate) fn close(&self) {
        self.is_closed.set(true);
        self.outbound_waiters.take().into_iter().for_each(Waker::wake);
    }

    /// Whether the connection is gone.
    pub(crate) fn is_closed(&self) -> bool {
        self.is_closed.get()
    }

    /// Wakes those who wait for room if answers have left since the last call. Not from inside h2: wakers run.
    /// Returns how many data frames left.
    pub(crate) fn settle_outbound(&self) -> u64 {
        if self.has_drained.take() {
            let mut waiters = self.outbound_waiters.take();
            if self.core.metrics.outbound_bytes.get() < self.core.outbound_max {
                waiters.append(&mut self.core.outbound_waiters.borrow_mut());
            }
            waiters.into_iter().for_each(Waker::wake);
        }
        self.frames_sent.take()
    }
}

impl Drop for ConnectionMemory {
    fn drop(&mut self) {
        let left = &self.core.window_left;
        left.set(left.get() + u64::from(self.window));
        sub(&self.core.metrics.inbound_bytes, self.inbound.get());
        sub(&self.core.metrics.outbound_bytes, self.outbound.get());
        let waiters = self.core.outbound_waiters.take();
        waiters.into_iter().for_each(Waker::wake);
        self.core.wake_queue();
    }
}

fn push_waker(waiters: &mut Vec<Waker>, waker: &Waker) {
    if !waiters.iter().any(|other| other.will_wake(waker)) {
        waiters.push(waker.clone());
    }
}

/// What one stream's requests take.
pub(crate) struct InboundCharge {
    memory: Rc<ConnectionMemory>,
    bytes: u64,
    owed: usize,
    place: Option<Rc<Place>>,
}

impl InboundCharge {
    pub(crate) fn new(memory: &Rc<ConnectionMemory>) -> InboundCharge {
        InboundCharge { memory: Rc::clone(memory), bytes: 0, owed: 0, place: None }
    }

    /// Charges `bytes` that arrived through the stream's window; the window is to be released for them.
    pub(crate) fn arrived(&mut self, bytes: usize) {
        self.take(bytes);
        self.owed += bytes;
    }

    /// Charges `bytes` that came by other means, as by inflating.
    pub(crate) fn take(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
        add(&self.memory.inbound, bytes as u64);
        add(&self.memory.core.metrics.inbound_bytes, bytes as u64);
    }

    /// Releases window for what arrived if the budgets allow. If not, and the stream is in the midst of a message, it
    /// gets in line: the first of the line may go beyond the budgets, the others are woken when that changes. Between
    /// messages it is just woken when there is room.
    pub(crate) fn release(&mut self, flow: &mut FlowControl, is_inside_message: bool, cx: &mut Context<'_>) {
        if self.owed == 0 {
            return;
        }
        let core = &self.memory.core;
        let mut may = self.memory.has_inbound_room();
        if !may && is_inside_message {
            let place = self.place.get_or_insert_with(|| {
                let place = Rc::new(Place { waker: RefCell::default() });
                core.queue.borrow_mut().push_back(Rc::clone(&place));
                place
            });
            *place.waker.borrow_mut() = Some(cx.waker().clone());
            may = core.is_head(place);
        } else if !may {
            push_waker(&mut core.inbound_waiters.borrow_mut(), cx.waker());
        }
        if may {
            // An error means that the stream is gone, and its window with it.
            let _ = flow.release_capacity(std::mem::take(&mut self.owed));
        }
    }

    /// Whether window is still to be released.
    pub(crate) fn is_owing(&self) -> bool {
        self.owed > 0
    }

    /// Where the stream stands in the line for memory.
    pub(crate) fn line(&self) -> Line {
        match &self.place {
            None => Line::No,
            Some(place) if self.memory.core.is_head(place) => Line::Head,
            Some(_) => Line::Waits,
        }
    }

    /// The message is complete: others may go beyond the limits now.
    pub(crate) fn completed(&mut self) {
        if let Some(place) = self.place.take() {
            self.memory.core.leave(&place);
        }
    }

    /// The messages so far are used up.
    pub(crate) fn settle(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        if bytes == 0 {
            return;
        }
        sub(&self.memory.inbound, bytes);
        sub(&self.memory.core.metrics.inbound_bytes, bytes);
        if self.memory.has_inbound_room() {
            self.memory.core.wake_queue();
        }
    }
}

impl Drop for InboundCharge {
    fn drop(&mut self) {
        self.settle();
        self.completed();
    }
}

/// What the body of an HTTP/1.1 request takes.
pub(crate) struct BodyCharge {
    core: Rc<CoreMemory>,
    bytes: u64,
}

impl BodyCharge {
    /// `None` if the core has no room for `bytes` more. Nothing is always room for.
    pub(crate) fn new(core: &Rc<CoreMemory>, bytes: usize) -> Option<BodyCharge> {
        let bytes = bytes as u64;
        if bytes > 0 && core.metrics.inbound_bytes.get() + bytes > core.inbound_max {
            return None;
        }
        add(&core.metrics.inbound_bytes, bytes);
        Some(BodyCharge { core: Rc::clone(core), bytes })
    }
}

impl Drop for BodyCharge {
    fn drop(&mut self) {
        sub(&self.core.metrics.inbound_bytes, self.bytes);
        self.core.wake_queue();
    }
}

/// A framed message on its way through h2 to the socket. It is charged to its connection, and to its stream if that
/// counts, until its bytes have been copied out.
pub(crate) struct OutMessage {
    prefix: [u8; PREFIX_BYTES],
    prefix_at: usize,
    body: Bytes,
    memory: Rc<ConnectionMemory>,
    stream: Option<Rc<Cell<u64>>>,
}

impl OutMessage {
    pub(crate) fn new(
        memory: &Rc<ConnectionMemory>,
        stream: Option<Rc<Cell<u64>>>,
        is_compressed: bool,
        body: Bytes,
    ) -> OutMessage {
        let message = OutMessage {
            prefix: prefix(is_compressed, body.len()),
            prefix_at: 0,
            body,
            memory: Rc::clone(memory),
            stream,
        };
        let bytes = message.remaining() as u64;
        add(&memory.outbound, bytes);
        add(&memory.core.metrics.outbound_bytes, bytes);
        if let Some(stream) = &message.stream {
            add(stream, bytes);
        }
        message
    }

    /// No message at all: what carries the end of a stream.
    pub(crate) fn end(memory: &Rc<ConnectionMemory>) -> OutMessage {
        OutMessage {
            prefix: [0; PREFIX_BYTES],
            prefix_at: PREFIX_BYTES,
            body: Bytes::new(),
            memory: Rc::clone(memory),
            stream: None,
        }
    }

    fn discharge(&self, bytes: usize) {
        let bytes = bytes as u64;
        sub(&self.memory.outbound, bytes);
        sub(&self.memory.core.metrics.outbound_bytes, bytes);
        if let Some(stream) = &self.stream {
            sub(stream, bytes);
        }
        self.memory.has_drained.set(true);
    }
}

impl Buf for OutMessage {
    fn remaining(&self) -> usize {
        PREFIX_BYTES - self.prefix_at + self.body.len()
    }

    fn chunk(&self) -> &[u8] {
        if self.prefix_at < PREFIX_BYTES { &self.prefix[self.prefix_at..] } else { &self.body }
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let parts = [&self.prefix[self.prefix_at..], &self.body[..]];
        let filled = parts.into_iter().filter(|part| !part.is_empty());
        slices.iter_mut().zip(filled).map(|(slice, part)| *slice = IoSlice::new(part)).count()
    }

    fn advance(&mut self, count: usize) {
        let of_prefix = count.min(PREFIX_BYTES - self.prefix_at);
        self.prefix_at += of_prefix;
        self.body.advance(count - of_prefix);
        self.discharge(count);
        self.memory.frames_sent.set(self.memory.frames_sent.get() + 1);
    }
}

impl Drop for OutMessage {
    fn drop(&mut self) {
        self.discharge(self.remaining());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn core(config: &ServerConfig) -> Rc<CoreMemory> {
        CoreMemory::new(config, Rc::default())
    }

    #[test]
    fn windows_are_granted_while_the_core_has_some() {
        let config = ServerConfig { connection_window_bytes: 100, core_window_bytes: 250, ..ServerConfig::default() };
        let core = core(&config);
        let connections: Vec<_> = (0..3).map(|_| ConnectionMemory::new(&core, &config)).collect();
        let windows: Vec<_> = connections.iter().map(|memory| memory.window_bytes()).collect();
        assert_eq!(windows, [100, 100, 0]);
        drop(connections);
        assert_eq!(ConnectionMemory::new(&core, &config).window_bytes(), 100);
        assert_eq!(core.window_left.get(), 250);
    }

    #[test]
    fn an_answer_is_charged_until_its_last_byte_is_copied() {
        let config = ServerConfig { connection_outbound_bytes: 100, ..ServerConfig::default() };
        let core = core(&config);
        let memory = ConnectionMemory::new(&core, &config);
        let stream = Rc::new(Cell::new(0));
        let mut message = OutMessage::new(&memory, Some(Rc::clone(&stream)), false, Bytes::from(vec![7; 100]));
        assert_eq!((memory.outbound_bytes(), stream.get()), (105, 105));
        assert!(!memory.has_outbound_room());
        let mut copied = vec![0; 3];
        message.copy_to_slice(&mut copied);
        assert_eq!(copied, [0, 0, 0]);
        message.advance(10);
        assert_eq!(memory.outbound_bytes(), 92);
        let mut slices = [IoSlice::new(&[]); 4];
        assert_eq!(message.chunks_vectored(&mut slices), 1);
        assert_eq!(slices[0].len(), 92);
        drop(message);
        assert_eq!((memory.outbound_bytes(), stream.get()), (0, 0));
        assert_eq!(core.metrics.outbound_bytes.get(), 0);
    }

    #[test]
    fn one_connection_keeps_little_when_the_core_is_full() {
        let config = ServerConfig { core_outbound_bytes: 1 << 20, ..ServerConfig::default() };
        let core = core(&config);
        let (greedy, modest) = (ConnectionMemory::new(&core, &config), ConnectionMemory::new(&core, &config));
        let answers: Vec<_> =
            (0..2).map(|_| OutMessage::new(&greedy, None, false, Bytes::from(vec![0; 1 << 20]))).collect();
        assert!(!greedy.has_outbound_room());
        assert!(modest.has_outbound_room());
        drop(answers);
        assert!(greedy.has_outbound_room());
    }

    #[test]
    fn a_charge_ends_with_its_stream() {
        let config = ServerConfig::default();
        let core = core(&config);
        let memory = ConnectionMemory::new(&core, &config);
        let mut charge = InboundCharge::new(&memory);
        charge.arrived(10);
        charge.take(5);
        assert_eq!(core.metrics.inbound_bytes.get(), 15);
        charge.settle();
        assert_eq!(core.metrics.inbound_bytes.get(), 0);
        charge.arrived(7);
        drop(charge);
        assert_eq!(memory.inbound.get(), 0);
    }
}
