//! The bounded channel from one core to another, and between cores and threads.
//!
//! A send to a receiver that is awake is a push onto a lock-free queue and one fence: no lock, no system call. Only
//! when the receiver sleeps, the sender that finds it so wakes it, once.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use crossbeam_queue::ArrayQueue;
use futures_util::task::AtomicWaker;

use crate::remote::WakePlace;

/// A channel of at most `capacity` messages (at least 1) with many senders and one receiver.
///
/// The memory for `capacity` messages is taken at once.
pub fn mailbox<T: Send + 'static>(capacity: usize) -> (MailSender<T>, MailReceiver<T>) {
    let shared = Arc::new(Shared {
        queue: ArrayQueue::new(capacity.max(1)),
        asleep: AtomicBool::new(false),
        receiver: AtomicWaker::new(),
        closed: AtomicBool::new(false),
        senders: AtomicUsize::new(1),
        waiting: AtomicUsize::new(0),
        waiters: Mutex::new(VecDeque::new()),
        tickets: AtomicU64::new(0),
    });
    (MailSender { shared: Arc::clone(&shared) }, MailReceiver { shared, place: WakePlace::default() })
}

struct Shared<T> {
    queue: ArrayQueue<T>,
    /// Set by the receiver before it sleeps; whoever clears it wakes.
    asleep: AtomicBool,
    receiver: AtomicWaker,
    /// The receiver is gone, or the last sender is.
    closed: AtomicBool,
    senders: AtomicUsize,
    /// Length of `waiters`, so that the receiver need not lock to find nobody.
    waiting: AtomicUsize,
    /// Senders that wait for room, in the order in which they began to; bounded by the tasks that send.
    waiters: Mutex<VecDeque<(u64, Waker)>>,
    tickets: AtomicU64,
}

impl<T> Shared<T> {
    fn wake_receiver(&self) {
        // The message is visible before `asleep` is read; the receiver sets `asleep` before it looks again.
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::AcqRel) {
            self.receiver.wake();
        }
    }

    fn push(&self, message: T) -> Result<(), T> {
        if self.closed.load(Ordering::Acquire) {
            return Err(message);
        }
        self.queue.push(message)?;
        self.wake_receiver();
        if self.closed.load(Ordering::Relaxed) {
            // The receiver went away in between and may have looked before the message was there. (Not the senders:
            // one of them is pushing.) What waits for an answer to the message must hear that there will be none.
            self.drain();
        }
        Ok(())
    }

    /// Drops what nobody will receive.
    fn drain(&self) {
        while self.queue.pop().is_some() {}
    }

    fn pop(&self) -> Option<T> {
        let message = self.queue.pop()?;
        self.made_room();
        Some(message)
    }

    fn made_room(&self) {
        fence(Ordering::SeqCst);
        if self.waiting.load(Ordering::Relaxed) > 0 {
            self.wake_one_sender();
        }
    }

    fn waiters(&self) -> std::sync::MutexGuard<'_, VecDeque<(u64, Waker)>> {
        self.waiters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake_one_sender(&self) {
        let first = {
            let mut waiters = self.waiters();
            let first = waiters.pop_front();
            self.waiting.store(waiters.len(), Ordering::SeqCst);
            first
        };
        if let Some((_, waker)) = first {
            waker.wake();
        }
    }

    fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        let waiters = {
            let mut waiters = self.waiters();
            self.waiting.store(0, Ordering::SeqCst);
            std::mem::take(&mut *waiters)
        };
        for (_, waker) in waiters {
            waker.wake();
        }
        self.wake_receiver();
    }
}

/// The message that found no room, or no receiver (see [`MailSender::is_closed`]).
#[derive(Debug, PartialEq, Eq)]
pub struct Full<T>(pub T);

/// The message that will never be received, as the receiver is gone.
#[derive(Debug, PartialEq, Eq)]
pub struct Closed<T>(pub T);

/// The sending end of a [`mailbox`]. Clones send to the same receiver.
pub struct MailSender<T> {
    shared: Arc<Shared<T>>,
}

impl<T> Clone for MailSender<T> {
    fn clone(&self) -> MailSender<T> {
        self.shared.senders.fetch_add(1, Ordering::Relaxed);
        MailSender { shared: Arc::clone(&self.shared) }
    }
}

impl<T> Drop for MailSender<T> {
    fn drop(&mut self) {
        if self.shared.senders.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.shared.close();
        }
    }
}

impl<T> std::fmt::Debug for MailSender<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MailSender({} of {})", self.len(), self.capacity())
    }
}

impl<T: Send + 'static> MailSender<T> {
    /// Sends without waiting, from any thread.
    ///
    /// # Errors
    /// [`Full`] gives the message back if there is no room, or if the receiver is gone.
    pub fn try_send(&self, message: T) -> Result<(), Full<T>> {
        self.shared.push(message).map_err(Full)
    }

    /// Sends as soon as there is room. Those who wait are served in turn, though a `try_send` may overtake them.
    ///
    /// # Errors
    /// [`Closed`] gives the message back if the receiver is gone.
    pub async fn send(&self, message: T) -> Result<(), Closed<T>> {
        let mut wait = Room { shared: &self.shared, ticket: None, place: WakePlace::default() };
        let mut message = Some(message);
        poll_fn(|cx| {
            let unsent = message.take().expect("polled only until it is ready");
            match wait.poll_push(cx, unsent) {
                Ok(result) => Poll::Ready(result),
                Err(unsent) => {
                    message = Some(unsent);
                    Poll::Pending
                }
            }
        })
        .await
    }
}

impl<T> MailSender<T> {
    /// True once the receiver is gone: nothing will be received any more.
    pub fn is_closed(&self) -> bool {
        self.shared.closed.load(Ordering::Acquire)
    }

    /// Messages that wait for the receiver, for gauges.
    pub fn len(&self) -> usize {
        self.shared.queue.len()
    }

    /// True if nothing waits for the receiver.
    pub fn is_empty(&self) -> bool {
        self.shared.queue.is_empty()
    }

    /// The most messages that may wait.
    pub fn capacity(&self) -> usize {
        self.shared.queue.capacity()
    }
}

/// A sender in wait for room.
struct Room<'a, T> {
    shared: &'a Shared<T>,
    ticket: Option<u64>,
    place: WakePlace,
}

impl<T> Room<'_, T> {
    /// `Err` gives the message back and means: registered, poll again when woken.
    fn poll_push(&mut self, cx: &Context<'_>, message: T) -> Result<Result<(), Closed<T>>, T> {
        let message = match self.attempt(message) {
            Ok(done) => return Ok(done),
            Err(message) => message,
        };
        self.queue_up(cx);
        // Room may have come between the attempt and the queueing.
        self.attempt(message)
    }

    fn attempt(&mut self, message: T) -> Result<Result<(), Closed<T>>, T> {
        match self.shared.push(message) {
            Ok(()) => {
                self.leave();
                Ok(Ok(()))
            }
            Err(message) if self.shared.closed.load(Ordering::Acquire) => Ok(Err(Closed(message))),
            Err(message) => Err(message),
        }
    }

    fn queue_up(&mut self, cx: &Context<'_>) {
        let waker = self.place.waker(cx);
        let ticket = *self.ticket.get_or_insert_with(|| self.shared.tickets.fetch_add(1, Ordering::Relaxed));
        let mut waiters = self.shared.waiters();
        match waiters.iter_mut().find(|(at, _)| *at == ticket) {
            Some((_, old)) => *old = waker,
            None => waiters.push_back((ticket, waker)),
        }
        self.shared.waiting.store(waiters.len(), Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// Leaves the line after a send. True if it was still in it, so that it has used up nobody's wake.
    fn leave(&mut self) -> bool {
        let Some(ticket) = self.ticket.take() else {
            return true;
        };
        let mut waiters = self.shared.waiters();
        let before = waiters.len();
        waiters.retain(|(at, _)| *at != ticket);
        self.shared.waiting.store(waiters.len(), Ordering::SeqCst);
        waiters.len() != before
    }
}

impl<T> Drop for Room<'_, T> {
    fn drop(&mut self) {
        // Dropped in wait, after it was woken: the room it was woken for is the next one's.
        if self.ticket.is_some() && !self.leave() && !self.shared.queue.is_full() {
            self.shared.wake_one_sender();
        }
    }
}

/// The receiving end of a [`mailbox`]. It may move to another core, and is used by one task at a time.
pub struct MailReceiver<T> {
    shared: Arc<Shared<T>>,
    place: WakePlace,
}

impl<T> Drop for MailReceiver<T> {
    fn drop(&mut self) {
        self.shared.close();
        drop(self.shared.receiver.take());
        // A sender that has not seen the close by now sees it after its push, and drops the message itself.
        fence(Ordering::SeqCst);
        self.shared.drain();
    }
}

impl<T> std::fmt::Debug for MailReceiver<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MailReceiver({} of {})", self.shared.queue.len(), self.shared.queue.capacity())
    }
}

impl<T: Send + 'static> MailReceiver<T> {
    /// The next message; `None` when all senders are gone and nothing is left. Cancel-safe: a dropped `recv` has taken
    /// nothing.
    pub async fn recv(&mut self) -> Option<T> {
        let awake = Awake { receiver: self };
        poll_fn(|cx| awake.receiver.poll_recv(cx)).await
    }

    /// The next message if there is one.
    pub fn try_recv(&mut self) -> Option<T> {
        self.shared.pop()
    }

    /// Waits for a message, then adds up to `limit` of those that are there to `into`. Returns how many; 0 means that
    /// all senders are gone. Cancel-safe.
    pub async fn recv_many(&mut self, into: &mut Vec<T>, limit: usize) -> usize {
        let Some(first) = self.recv().await else {
            return 0;
        };
        into.push(first);
        1 + self.try_recv_many(into, limit.saturating_sub(1))
    }

    /// Adds up to `limit` of the messages that are there to `into` without waiting; returns how many.
    pub fn try_recv_many(&mut self, into: &mut Vec<T>, limit: usize) -> usize {
        let mut taken = 0;
        while taken < limit
            && let Some(message) = self.shared.pop()
        {
            into.push(message);
            taken += 1;
        }
        taken
    }

    /// [`MailReceiver::recv`] for hand-written futures. A task that got `Pending` is woken at most until it polls
    /// something else of this receiver.
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<T>> {
        if let Some(message) = self.shared.pop() {
            return Poll::Ready(Some(message));
        }
        let waker = self.place.waker(cx);
        self.shared.receiver.register(&waker);
        self.shared.asleep.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        // A sender that saw us awake has pushed before this look.
        let closed = self.shared.closed.load(Ordering::SeqCst);
        match self.shared.pop() {
            None if !closed => Poll::Pending,
            found => {
                self.awake();
                Poll::Ready(found)
            }
        }
    }

    /// Messages that wait, for gauges.
    pub fn len(&self) -> usize {
        self.shared.queue.len()
    }

    /// True if no message waits.
    pub fn is_empty(&self) -> bool {
        self.shared.queue.is_empty()
    }
}

impl<T> MailReceiver<T> {
    fn awake(&mut self) {
        self.shared.asleep.store(false, Ordering::Relaxed);
        self.place.clear();
    }
}

/// Takes the receiver's waker back when a `recv` is dropped.
struct Awake<'a, T> {
    receiver: &'a mut MailReceiver<T>,
}

impl<T> Drop for Awake<'_, T> {
    fn drop(&mut self) {
        if self.receiver.shared.asleep.load(Ordering::Relaxed) {
            self.receiver.awake();
        } else {
            self.receiver.place.clear();
        }
    }
}

impl<T: Send + 'static> MailReceiver<T> {
    /// [`MailReceiver::recv`] for a thread that is no core: parks the thread while there is nothing.
    pub(crate) fn recv_blocking(&mut self) -> Option<T> {
        struct Unpark(std::thread::Thread);
        impl std::task::Wake for Unpark {
            fn wake(self: Arc<Self>) {
                self.0.unpark();
            }
        }
        let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
        let mut cx = Context::from_waker(&waker);
        loop {
            match self.poll_recv(&mut cx) {
                Poll::Ready(message) => return message,
                Poll::Pending => std::thread::park(),
            }
        }
    }
}
