//! What happens later: one ordered queue of events for the whole world.

use super::context::{self, Core};
use super::net::EndKey;
use super::node::Node;
use super::world::World;
use base::Instant;
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// World time in nanoseconds, then the order of insertion.
pub(super) type Key = (u64, u64);

/// What a disk operation does when it is done.
pub(super) type DiskDone = Box<dyn FnOnce(&Rc<World>)>;

/// What is to happen.
pub(super) enum Event {
    /// A sleeper wakes. The node is that whose clock it sleeps by.
    Wake { node: Option<usize>, waker: Waker },
    /// Segments that this end of a connection sent arrive at the other.
    Arrive(EndKey),
    /// This end of a connection is reset by the other.
    Reset(EndKey),
    /// This end may have waited too long for a way through; the number says for which blockade.
    Stuck(EndKey, u32),
    /// A pause ends, if it is still the numbered one.
    Resume { node: usize, pause: u64 },
    /// The node's disk has finished something.
    Disk { node: usize, done: DiskDone },
    /// Work of a core outside its tasks; dropped if the process is gone.
    Work { core: Rc<Core>, work: Box<dyn FnOnce()> },
}

impl Event {
    /// The node whose death ends the event.
    pub(super) fn owner(&self) -> Option<usize> {
        match self {
            Event::Disk { node, .. } => Some(*node),
            Event::Work { core, .. } => Some(core.node.index),
            _ => None,
        }
    }
}

/// The queue. Every operation is logarithmic in its length.
#[derive(Default)]
pub(super) struct Timers {
    queue: BTreeMap<Key, Event>,
    count: u64,
}

impl Timers {
    /// Adds an event; events of the same time happen in the order they were added.
    pub(super) fn add(&mut self, at: u64, event: Event) -> Key {
        self.count += 1;
        let key = (at, self.count);
        self.queue.insert(key, event);
        key
    }

    /// When the first event is due.
    pub(super) fn next_at(&self) -> Option<u64> {
        self.queue.first_key_value().map(|(key, _)| key.0)
    }

    /// Takes the first event that is due at `now`.
    pub(super) fn take_due(&mut self, now: u64) -> Option<(Key, Event)> {
        if self.next_at()? > now {
            return None;
        }
        self.queue.pop_first()
    }

    /// Removes an event that did not happen yet.
    pub(super) fn remove(&mut self, key: Key) -> Option<Event> {
        self.queue.remove(&key)
    }

    /// Takes all events that `pick` picks, in order. Linear: for rare occasions.
    pub(super) fn take_all(&mut self, mut pick: impl FnMut(&Event) -> bool) -> Vec<Event> {
        self.queue.extract_if(.., |_, event| pick(event)).map(|(_, event)| event).collect()
    }

    /// Points a sleeper's event at another waker and returns the old one; an error if the event has happened.
    fn rewake(&mut self, key: Key, cx: &Context<'_>) -> Result<Option<Waker>, ()> {
        match self.queue.get_mut(&key) {
            Some(Event::Wake { waker, .. }) if waker.will_wake(cx.waker()) => Ok(None),
            Some(Event::Wake { waker, .. }) => Ok(Some(std::mem::replace(waker, cx.waker().clone()))),
            _ => Err(()),
        }
    }
}

/// When a sleep ends.
enum Until {
    /// When the node's clock shows this.
    Local(Rc<Node>, Instant),
    /// At this world time.
    World(u64),
}

/// Sleeps until a point in time; dropped early it leaves nothing behind.
pub(crate) struct Sleep {
    world: Rc<World>,
    until: Until,
    key: Option<Key>,
}

/// Sleeps until the current node's monotonic clock shows `deadline`.
pub(crate) fn sleep_until(deadline: Instant) -> Sleep {
    context::with(|core| Sleep {
        world: core.world.clone(),
        until: Until::Local(core.node.clone(), deadline),
        key: None,
    })
}

/// Sleeps for so many nanoseconds of world time, however a node's clock runs.
pub(super) fn delay(world: &Rc<World>, nanos: u64) -> Sleep {
    Sleep { world: world.clone(), until: Until::World(world.now().saturating_add(nanos)), key: None }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let now = self.world.now();
        let (at, node) = match &self.until {
            Until::Local(node, deadline) if node.clock.get().now(now) >= *deadline => (now, None),
            Until::Local(node, deadline) => (node.clock.get().world_time(*deadline), Some(node.index)),
            Until::World(at) => (*at, None),
        };
        if at <= now {
            self.forget();
            return Poll::Ready(());
        }
        let world = self.world.clone();
        let mut timers = world.timers.borrow_mut();
        let armed = match self.key {
            Some(key) => timers.rewake(key, cx),
            None => Err(()),
        };
        if armed.is_err() {
            let waker = cx.waker().clone();
            self.key = Some(timers.add(at, Event::Wake { node, waker }));
        }
        drop(timers);
        drop(armed);
        Poll::Pending
    }
}

impl Sleep {
    fn forget(&mut self) {
        if let Some(key) = self.key.take() {
            let event = self.world.timers.borrow_mut().remove(key);
            drop(event); // after the borrow: it holds a waker
        }
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.forget();
    }
}
