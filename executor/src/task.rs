//! Tasks: the same life on every runtime.
//!
//! The runtimes' own join handles are dropped at once. A task's result, its cancellation and its place in the core's
//! register are ours, so that all backends agree on them: dropping a [`Task`] lets it run on, cancelling drops its
//! future at its next turn, and a core that ends drops all tasks that are left while its I/O still works.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use crate::context::{self, Core};
use crate::metrics::{add, less};
use crate::{Class, IoKind, epoll, sim, uring, watchdog};

/// Starts a task on the running task's core. It first runs after the caller has yielded.
///
/// Dropping the [`Task`] lets it run on. A task ends at the latest when the core's `main` returns.
#[track_caller]
pub fn spawn_local<T: 'static>(class: Class, future: impl Future<Output = T> + 'static) -> Task<T> {
    match context::backend() {
        IoKind::Sim => Task(Handle::Sim(sim::spawn_local(class, future))),
        IoKind::Uring | IoKind::Epoll => Task(Handle::Core(start(&context::current(), class, future))),
    }
}

/// A running task: a future of its result.
#[derive(Debug)]
pub struct Task<T>(Handle<T>);

enum Handle<T> {
    Core(Rc<Shared<T>>),
    Sim(sim::SimTask<T>),
}

impl<T> std::fmt::Debug for Handle<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("..")
    }
}

impl<T: 'static> Task<T> {
    /// Ends the task: its future is dropped at its next turn, not within this call. No effect on a task that is done.
    pub fn cancel(self) {
        match self.0 {
            Handle::Core(shared) => shared.control.cancel(),
            Handle::Sim(task) => task.cancel(),
        }
    }

    /// True once the result is there.
    pub fn is_done(&self) -> bool {
        match &self.0 {
            Handle::Core(shared) => shared.control.done.get(),
            Handle::Sim(task) => task.is_done(),
        }
    }
}

impl<T> Future for Task<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        match &mut self.0 {
            Handle::Core(shared) => match shared.output.take() {
                Some(output) => Poll::Ready(output),
                None => {
                    shared.waiter.set(Some(cx.waker().clone()));
                    Poll::Pending
                }
            },
            Handle::Sim(task) => Pin::new(task).poll(cx),
        }
    }
}

impl<T> Unpin for Task<T> {}

/// What a task shares with its handle.
struct Shared<T> {
    output: Cell<Option<T>>,
    waiter: Cell<Option<Waker>>,
    control: Rc<Control>,
}

/// What a core's register knows of a task.
#[derive(Default)]
struct Control {
    cancelled: Cell<bool>,
    done: Cell<bool>,
    /// The task's own waker, from its first poll on; taken when it ends.
    waker: Cell<Option<Waker>>,
}

impl Control {
    fn cancel(&self) {
        self.cancelled.set(true);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// The live tasks of a core.
#[derive(Default)]
pub(crate) struct Registry {
    places: RefCell<Vec<Option<Rc<Control>>>>,
    free: RefCell<Vec<usize>>,
}

impl Registry {
    fn add(&self, control: &Rc<Control>) -> usize {
        let mut places = self.places.borrow_mut();
        match self.free.borrow_mut().pop() {
            Some(place) => {
                places[place] = Some(Rc::clone(control));
                place
            }
            None => {
                places.push(Some(Rc::clone(control)));
                places.len() - 1
            }
        }
    }

    fn remove(&self, place: usize) {
        self.places.borrow_mut()[place] = None;
        self.free.borrow_mut().push(place);
    }

    /// Cancels all tasks that live now; returns how many.
    pub(crate) fn cancel_all(&self) -> usize {
        let live: Vec<Rc<Control>> = self.places.borrow().iter().flatten().map(Rc::clone).collect();
        for control in &live {
            control.cancel();
        }
        live.len()
    }
}

fn start<T: 'static>(core: &Rc<Core>, class: Class, future: impl Future<Output = T> + 'static) -> Rc<Shared<T>> {
    let control = Rc::new(Control::default());
    let shared = Rc::new(Shared { output: Cell::new(None), waiter: Cell::new(None), control: Rc::clone(&control) });
    add(&core.metrics.tasks, 1);
    add(&core.metrics.tasks_spawned_total, 1);
    let place = core.tasks.add(&control);
    let runner = Runner { future: Some(future), shared: Rc::clone(&shared), core: Rc::clone(core), class, place };
    match core.kind {
        IoKind::Uring => uring::spawn(core, class, runner),
        IoKind::Epoll => epoll::spawn(runner),
        IoKind::Sim => unreachable!("the simulator starts its own tasks"),
    }
    shared
}

/// The future that the runtime polls: the task's own, measured, cancellable, and kept from unwinding the core.
struct Runner<F: Future> {
    future: Option<F>,
    shared: Rc<Shared<F::Output>>,
    core: Rc<Core>,
    class: Class,
    place: usize,
}

impl<F: Future> Runner<F> {
    fn finish(&self) {
        let control = &self.shared.control;
        if !control.done.replace(true) {
            control.waker.take();
            self.core.tasks.remove(self.place);
            less(&self.core.metrics.tasks);
        }
    }
}

impl<F: Future> Future for Runner<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        // SAFETY: `future` is pinned with the runner: it is only polled in place or dropped in place, never moved.
        let this = unsafe { self.get_unchecked_mut() };
        if this.core.kind == IoKind::Uring && this.core.rounds.is_over(this.class, cx) {
            return Poll::Pending;
        }
        let control = &this.shared.control;
        let began = watchdog::begin();
        let polled = catch_unwind(AssertUnwindSafe(|| {
            let polled = if control.cancelled.get() {
                Poll::Ready(None)
            } else {
                let future = this.future.as_mut().expect("a task is not polled after its end");
                // SAFETY: as above.
                unsafe { Pin::new_unchecked(future) }.poll(cx).map(Some)
            };
            if polled.is_ready() {
                // Within what is timed and guarded: its drop may take long, or panic, as its polls may.
                this.future = None;
            }
            polled
        }));
        this.core.rounds.spend(this.class, watchdog::end(&this.core, this.class, began));
        match polled {
            Ok(Poll::Pending) => {
                let waker = control.waker.take().unwrap_or_else(|| cx.waker().clone());
                if control.cancelled.get() {
                    // Cancelled by itself or by what it called: one more turn.
                    waker.wake_by_ref();
                }
                control.waker.set(Some(waker));
                return Poll::Pending;
            }
            Ok(Poll::Ready(Some(output))) => this.shared.output.set(Some(output)),
            Ok(Poll::Ready(None)) => {}
            Err(payload) => {
                // In `run_cores` the process has ended already; here the core ends with the panic.
                this.future = None;
                this.core.fail(payload);
            }
        }
        this.finish();
        if let Some(waiter) = this.shared.waiter.take() {
            waiter.wake();
        }
        Poll::Ready(())
    }
}

impl<F: Future> Drop for Runner<F> {
    fn drop(&mut self) {
        // The future goes first: what it drops may look at the core's counters.
        self.future = None;
        self.finish();
    }
}

/// Lets the other runnable tasks of the core run first. With io_uring those of other classes get their share.
pub async fn yield_now() {
    if context::backend() == IoKind::Sim {
        return sim::yield_now().await;
    }
    let mut yielded = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
