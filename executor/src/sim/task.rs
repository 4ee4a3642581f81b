//! Tasks: a slab of futures, and the queue of those that were woken.

use super::answer::{self, Answer};
use super::context::{self, Core};
use super::world::Note;
use crate::Class;
use crate::metrics::{add, less};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

/// A place in the slab and which of its tasks is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TaskId {
    pub(super) slot: u32,
    pub(super) generation: u32,
}

pub(super) type BoxFuture = Pin<Box<dyn Future<Output = ()>>>;

/// A task that lives.
pub(super) struct Entry {
    /// Absent while it is polled.
    pub(super) future: Option<BoxFuture>,
    pub(super) core: Rc<Core>,
    pub(super) class: Class,
    pub(super) cancelled: bool,
    wake: Arc<TaskWake>,
    waker: Waker,
    kind: &'static str,
    /// When the current window of the busy-loop detector began, and the polls in it.
    window_at: u64,
    window_polls: u32,
}

/// Ids of woken tasks, each at most once. A `Mutex`, as wakers must be `Send`; it is never contended.
#[derive(Default)]
pub(super) struct Ready(Mutex<Vec<TaskId>>);

impl Ready {
    pub(super) fn push(&self, id: TaskId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(id);
    }

    /// Takes the id at the place that `pick` chooses among that many.
    pub(super) fn take(&self, pick: impl FnOnce(u64) -> u64) -> Option<TaskId> {
        let mut ids = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if ids.is_empty() {
            return None;
        }
        let place = pick(ids.len() as u64) as usize;
        Some(ids.swap_remove(place))
    }
}

struct TaskWake {
    id: TaskId,
    queued: AtomicBool,
    ready: Arc<Ready>,
}

impl Wake for TaskWake {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::Relaxed) {
            self.ready.push(self.id);
        }
    }
}

#[derive(Default)]
struct Slot {
    generation: u32,
    entry: Option<Entry>,
}

/// All tasks of the world.
#[derive(Default)]
pub(super) struct Tasks {
    slots: Vec<Slot>,
    free: Vec<u32>,
}

/// What the loop needs in order to poll a task.
pub(super) struct Turn {
    pub(super) future: BoxFuture,
    pub(super) core: Rc<Core>,
    pub(super) waker: Waker,
    pub(super) class: Class,
    pub(super) cancelled: bool,
}

impl Tasks {
    fn add(
        &mut self,
        ready: &Arc<Ready>,
        core: &Rc<Core>,
        class: Class,
        kind: &'static str,
        future: BoxFuture,
    ) -> TaskId {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            (self.slots.len() - 1) as u32
        });
        let place = &mut self.slots[slot as usize];
        let id = TaskId { slot, generation: place.generation };
        let wake = Arc::new(TaskWake { id, queued: AtomicBool::new(true), ready: ready.clone() });
        place.entry = Some(Entry {
            future: Some(future),
            core: core.clone(),
            class,
            cancelled: false,
            waker: Waker::from(wake.clone()),
            wake,
            kind,
            window_at: 0,
            window_polls: 0,
        });
        id
    }

    pub(super) fn get(&mut self, id: TaskId) -> Option<&mut Entry> {
        let slot = &mut self.slots[id.slot as usize];
        if slot.generation == id.generation { slot.entry.as_mut() } else { None }
    }

    /// Removes a task. The caller drops it, in the task's own context.
    pub(super) fn remove(&mut self, id: TaskId) -> Option<Entry> {
        let slot = &mut self.slots[id.slot as usize];
        if slot.generation != id.generation {
            return None;
        }
        let entry = slot.entry.take()?;
        less(&entry.core.metrics.tasks);
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(id.slot);
        Some(entry)
    }

    /// Removes all tasks whose core `pick` picks, by slot. Linear: for rare occasions.
    pub(super) fn remove_all(&mut self, pick: impl Fn(&Rc<Core>) -> bool) -> Vec<Entry> {
        let picked: Vec<TaskId> = (0..)
            .zip(&self.slots)
            .filter(|(_, slot)| slot.entry.as_ref().is_some_and(|entry| pick(&entry.core)))
            .map(|(at, slot)| TaskId { slot: at, generation: slot.generation })
            .collect();
        picked.into_iter().filter_map(|id| self.remove(id)).collect()
    }

    /// Takes a woken task's future for a poll at time `now`; `None` if the task is gone, or polled right now.
    pub(super) fn begin(&mut self, id: TaskId, now: u64, busy_polls_max: u32) -> Option<Turn> {
        let entry = self.get(id)?;
        entry.wake.queued.store(false, Ordering::Relaxed);
        entry.count_poll(now, busy_polls_max);
        add(&entry.core.metrics.polls_total[entry.class.index()], 1);
        Some(Turn {
            future: entry.future.take()?,
            core: entry.core.clone(),
            waker: entry.waker.clone(),
            class: entry.class,
            cancelled: entry.cancelled,
        })
    }
}

impl Entry {
    fn count_poll(&mut self, now: u64, busy_polls_max: u32) {
        const WINDOW: u64 = 100_000_000;
        if now - self.window_at > WINDOW {
            (self.window_at, self.window_polls) = (now, 0);
        }
        self.window_polls += 1;
        assert!(
            self.window_polls <= busy_polls_max,
            "busy loop: node {:?}, core {}, a task of class {:?} was polled {} times within {} virtual microseconds \
             (limit {busy_polls_max} in 100 ms); it wakes itself without waiting for time to pass: {}",
            self.core.node.name,
            self.core.id,
            self.class,
            self.window_polls,
            (now - self.window_at) / 1_000,
            self.kind,
        );
    }
}

/// A spawned task. Awaiting it gives its result; dropping it lets it run on.
pub(crate) struct SimTask<T> {
    id: TaskId,
    core: Rc<Core>,
    answer: Answer<T>,
}

/// Starts a task on the current core. On a core that has ended the future is dropped instead, and never answers.
pub(crate) fn spawn_local<T: 'static>(class: Class, future: impl Future<Output = T> + 'static) -> SimTask<T> {
    spawn_on(&context::current(), class, future)
}

/// Starts a task on `core`.
pub(super) fn spawn_on<T, F>(core: &Rc<Core>, class: Class, future: F) -> SimTask<T>
where
    T: 'static,
    F: Future<Output = T> + 'static,
{
    let world = &core.world;
    let (promise, answer) = answer::promise();
    if !core.is_alive() {
        let _entered = context::enter(core);
        drop(future);
        let id = TaskId { slot: 0, generation: u32::MAX };
        return SimTask { id, core: core.clone(), answer };
    }
    let boxed: BoxFuture = Box::pin(async move { promise.keep(future.await) });
    let id = world.tasks.borrow_mut().add(&world.ready, core, class, std::any::type_name::<F>(), boxed);
    add(&core.metrics.tasks, 1);
    add(&core.metrics.tasks_spawned_total, 1);
    world.note(Note::Spawn, u64::from(id.slot));
    world.ready.push(id);
    SimTask { id, core: core.clone(), answer }
}

impl<T> SimTask<T> {
    /// True once the result is there, taken or not.
    pub(crate) fn is_done(&self) -> bool {
        self.answer.is_kept()
    }

    /// Ends the task: its future is dropped soon, by the loop and not within this call.
    pub(crate) fn cancel(self) {
        let waker = match self.core.world.tasks.borrow_mut().get(self.id) {
            Some(entry) => {
                entry.cancelled = true;
                entry.waker.clone()
            }
            None => return,
        };
        waker.wake();
    }
}

impl<T> Future for SimTask<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        Pin::new(&mut self.answer).poll(cx)
    }
}

/// Lets others run first: by the seed, some of them, none of them, or all.
pub(crate) fn yield_now() -> impl Future<Output = ()> {
    let mut yielded = false;
    std::future::poll_fn(move |cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
}
