//! What the messages of a core's connections take, and who must wait when it is too much.
//!
//! Inbound: bytes are charged to their connection and to the core as they arrive. Over either limit the stream gets
//! no more window (it *owes* a release), so the client stops sending; nothing is an error yet. Streams that owe stand in
//! one queue per core, and the one at its head goes on beyond the limits, so that there is always progress; it stays
//! there until its message is used up, so that no more than one message at a time is beyond them. What a compressed
//! message inflates to is charged before. Who makes no progress for `memory_wait` is answered RESOURCE_EXHAUSTED by
//! its connection.
//!
//! Outbound: answers are charged until h2 has passed them to the socket's buffer. Over a limit, handlers that stream
//! wait, and a connection takes no new calls.

mod inbound;
mod outbound;

pub(crate) use inbound::{BodyCharge, InboundCharge, Line};
pub(crate) use outbound::OutMessage;

use crate::config::ServerConfig;
use crate::metrics::{NetMetrics, sub};
use inbound::Place;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::{Rc, Weak};
use std::task::Waker;

/// What a connection may always have waiting to be written, however full the core is.
const OUTBOUND_ALWAYS_BYTES: u64 = 256 << 10;

/// The budgets of one core.
pub(crate) struct CoreMemory {
    inbound_max: u64,
    outbound_max: u64,
    window_left: Cell<u64>,
    queue: RefCell<VecDeque<Rc<Place>>>,
    inbound_waiters: RefCell<Vec<Waker>>,
    /// Connections with calls that wait for the core's room; each is there once.
    outbound_waiters: RefCell<Vec<Weak<ConnectionMemory>>>,
    metrics: Rc<NetMetrics>,
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

    fn wake_queue(&self) {
        for place in self.queue.borrow().iter() {
            if let Some(waker) = place.waker.borrow_mut().take() {
                waker.wake();
            }
        }
        self.inbound_waiters.take().into_iter().for_each(Waker::wake);
    }

    fn is_outbound_full(&self) -> bool {
        self.metrics.outbound_bytes.get() >= self.outbound_max
    }

    /// Wakes the calls of all connections that wait for the core's room.
    fn wake_outbound(&self) {
        for memory in self.outbound_waiters.take().iter().filter_map(Weak::upgrade) {
            memory.waits_for_core.set(false);
            memory.outbound_waiters.take().into_iter().for_each(Waker::wake);
        }
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
    /// It stands among the core's waiters.
    waits_for_core: Cell<bool>,
    me: Weak<ConnectionMemory>,
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
        Rc::new_cyclic(|me| ConnectionMemory {
            core: Rc::clone(core),
            inbound: Cell::new(0),
            inbound_max: config.connection_inbound_bytes,
            outbound: Cell::new(0),
            outbound_max: config.connection_outbound_bytes,
            outbound_waiters: RefCell::default(),
            waits_for_core: Cell::new(false),
            me: Weak::clone(me),
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

    /// Whether `bytes` more stay within the budgets.
    fn has_inbound_room_for(&self, bytes: u64) -> bool {
        self.inbound.get() + bytes <= self.inbound_max
            && self.core.metrics.inbound_bytes.get() + bytes <= self.core.inbound_max
    }

    /// Whether another answer may be queued, or another call taken.
    pub(crate) fn has_outbound_room(&self) -> bool {
        let here = self.outbound.get();
        here < self.outbound_max && (!self.core.is_outbound_full() || here < OUTBOUND_ALWAYS_BYTES)
    }

    /// Bytes of answers that are not yet in the socket's buffer.
    pub(crate) fn outbound_bytes(&self) -> u64 {
        self.outbound.get()
    }

    /// Wakes `waker` when there may be room for answers again.
    pub(crate) fn wait_for_outbound_room(&self, waker: &Waker) {
        push_waker(&mut self.outbound_waiters.borrow_mut(), waker);
        if self.core.is_outbound_full() && !self.waits_for_core.replace(true) {
            self.core.outbound_waiters.borrow_mut().push(Weak::clone(&self.me));
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
        // What the connection leaves behind is others' room, though a handler may keep us alive for longer.
        self.core.wake_outbound();
    }

    /// Whether the connection is gone.
    pub(crate) fn is_closed(&self) -> bool {
        self.is_closed.get()
    }

    /// Wakes those who wait for room if answers have left since the last call. Not from inside h2: wakers run.
    /// Returns how many data frames left.
    pub(crate) fn settle_outbound(&self) -> u64 {
        if self.has_drained.take() {
            self.outbound_waiters.take().into_iter().for_each(Waker::wake);
            if !self.core.is_outbound_full() {
                self.core.wake_outbound();
            }
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
        self.core.wake_outbound();
        self.core.wake_queue();
    }
}

fn push_waker(waiters: &mut Vec<Waker>, waker: &Waker) {
    if !waiters.iter().any(|other| other.will_wake(waker)) {
        waiters.push(waker.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::{Buf, Bytes};
    use std::io::IoSlice;
    use std::task::Context;

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
        assert!(charge.reserve(5, &mut Context::from_waker(Waker::noop())));
        assert_eq!(core.metrics.inbound_bytes.get(), 15);
        charge.settle();
        assert_eq!(core.metrics.inbound_bytes.get(), 0);
        charge.arrived(7);
        drop(charge);
        assert_eq!(memory.inbound.get(), 0);
    }

    #[derive(Default)]
    struct Woken(std::sync::atomic::AtomicUsize);

    impl std::task::Wake for Woken {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        }
    }

    /// A waker, and how often it was woken.
    fn waker() -> (std::sync::Arc<Woken>, Waker) {
        let woken = std::sync::Arc::new(Woken::default());
        (std::sync::Arc::clone(&woken), Waker::from(woken))
    }

    #[test]
    fn one_message_at_a_time_goes_beyond_the_budget_until_it_is_used_up() {
        let config = ServerConfig { core_inbound_bytes: 100, ..ServerConfig::default() };
        let core = core(&config);
        let memories = [ConnectionMemory::new(&core, &config), ConnectionMemory::new(&core, &config)];
        let [mut first, mut second] = [InboundCharge::new(&memories[0]), InboundCharge::new(&memories[1])];
        let (woken, waker) = waker();
        let cx = &mut Context::from_waker(&waker);
        assert!(first.reserve(500, cx), "the first of the line, beyond the budget");
        assert_eq!(first.line(), Line::Head);
        assert!(!second.reserve(1, cx));
        first.completed();
        assert!(!second.reserve(1, cx), "the message is whole, but it is still there");
        assert_eq!(second.line(), Line::Waits);
        let before = woken.0.load(std::sync::atomic::Ordering::SeqCst);
        first.settle();
        assert!(woken.0.load(std::sync::atomic::Ordering::SeqCst) > before, "the next one is told");
        assert!(second.reserve(1, cx));
        assert_eq!(core.metrics.inbound_bytes.get(), 1);
    }

    #[test]
    fn who_waits_for_the_cores_room_is_woken_by_a_connection_that_is_still_over_its_own() {
        let config =
            ServerConfig { core_inbound_bytes: 1000, connection_inbound_bytes: 400, ..ServerConfig::default() };
        let core = core(&config);
        let (greedy, modest) = (ConnectionMemory::new(&core, &config), ConnectionMemory::new(&core, &config));
        let mut charges: Vec<_> = (0..3).map(|_| InboundCharge::new(&greedy)).collect();
        charges.iter_mut().for_each(|charge| charge.arrived(450));
        let (woken, waker) = waker();
        let mut waits = InboundCharge::new(&modest);
        let blocker = charges[0].line_up(&mut Context::from_waker(Waker::noop()));
        assert!(blocker, "the first of the line is another");
        assert!(!waits.reserve(10, &mut Context::from_waker(&waker)));
        charges.pop();
        assert_eq!(woken.0.load(std::sync::atomic::Ordering::SeqCst), 1, "900 of 1000, though 900 of 400");
        assert!(waits.reserve(10, &mut Context::from_waker(&waker)));
    }

    #[test]
    fn who_waits_for_the_cores_outbound_room_is_woken_by_another_connections_end() {
        let config = ServerConfig { core_outbound_bytes: 1 << 20, ..ServerConfig::default() };
        let core = core(&config);
        let (greedy, modest) = (ConnectionMemory::new(&core, &config), ConnectionMemory::new(&core, &config));
        let answer = OutMessage::new(&greedy, None, false, Bytes::from(vec![0; 1 << 20]));
        let own = OutMessage::new(&modest, None, false, Bytes::from(vec![0; OUTBOUND_ALWAYS_BYTES as usize]));
        assert!(!modest.has_outbound_room());
        let (woken, waker) = waker();
        modest.wait_for_outbound_room(&waker);
        modest.wait_for_outbound_room(&waker);
        assert_eq!(core.outbound_waiters.borrow().len(), 1, "each connection stands there once");
        drop(answer);
        assert_eq!(woken.0.load(std::sync::atomic::Ordering::SeqCst), 0);
        // A handler's task may keep `greedy` alive for longer than its connection.
        greedy.close();
        assert_eq!(woken.0.load(std::sync::atomic::Ordering::SeqCst), 1);
        assert!(modest.has_outbound_room());
        drop(own);
    }
}
