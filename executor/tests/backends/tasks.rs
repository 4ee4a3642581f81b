//! The life of a task.

use std::cell::{Cell, RefCell};
use std::future::{pending, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use executor::{Class, IoChoice, Notify, Task, metrics, now, spawn_local, yield_now};

use crate::support::{available, on_both, with_both};

on_both! {
    a_task_gives_its_result,
    a_dropped_handle_lets_the_task_run,
    a_cancelled_task_is_dropped_and_never_polled_again,
    a_task_may_cancel_itself,
    cancelling_a_finished_task_does_nothing,
    tasks_take_turns,
    handles_dropped_at_any_moment_leak_nothing,
    a_call_is_kept_for_the_next_waiter,
    a_call_reaches_all_waiters,
    a_call_to_a_waiter_that_left_is_kept,
    a_long_poll_is_a_stall_of_its_class,
    a_long_drop_is_a_stall_too,
    a_stall_is_logged_with_its_class_and_length,
    random_numbers_differ_from_draw_to_draw,
}

with_both! {
    the_end_of_main_drops_what_is_left,
    tasks_started_by_dropped_tasks_end_too,
    a_panic_of_a_task_ends_the_core,
    a_panic_of_a_drop_ends_the_core,
}

/// Counts the live values of a test.
#[derive(Clone)]
struct Alive(Rc<Cell<usize>>);

impl Alive {
    fn new(count: &Rc<Cell<usize>>) -> Alive {
        count.set(count.get() + 1);
        Alive(Rc::clone(count))
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

async fn until(mut condition: impl FnMut() -> bool) {
    while !condition() {
        yield_now().await;
    }
}

async fn a_task_gives_its_result() {
    for class in Class::ALL {
        let task = spawn_local(class, async move {
            yield_now().await;
            class.name()
        });
        assert_eq!(task.await, class.name());
    }
}

async fn a_dropped_handle_lets_the_task_run() {
    let ran = Rc::new(Cell::new(false));
    let mark = Rc::clone(&ran);
    drop(spawn_local(Class::Scan, async move {
        yield_now().await;
        mark.set(true);
    }));
    until(|| ran.get()).await;
}

async fn a_cancelled_task_is_dropped_and_never_polled_again() {
    let alive = Rc::new(Cell::new(0));
    let polls = Rc::new(Cell::new(0));
    let (guard, count) = (Alive::new(&alive), Rc::clone(&polls));
    let task: Task<()> = spawn_local(Class::Raft, async move {
        let _guard = guard;
        poll_fn(|cx| {
            count.set(count.get() + 1);
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await
    });
    until(|| polls.get() > 2).await;
    task.cancel();
    let before = polls.get();
    until(|| alive.get() == 0).await;
    assert_eq!(polls.get(), before);

    let guard = Alive::new(&alive);
    let never_polled = spawn_local(Class::Raft, async move {
        let _guard = guard;
        unreachable!("cancelled before its first turn")
    });
    never_polled.cancel();
    until(|| alive.get() == 0).await;
}

async fn a_task_may_cancel_itself() {
    let alive = Rc::new(Cell::new(0));
    let own: Rc<RefCell<Option<Task<()>>>> = Rc::default();
    let (guard, handle) = (Alive::new(&alive), Rc::clone(&own));
    let task = spawn_local(Class::Foreground, async move {
        let _guard = guard;
        handle.borrow_mut().take().expect("set below").cancel();
        pending().await
    });
    *own.borrow_mut() = Some(task);
    until(|| alive.get() == 0).await;
}

async fn cancelling_a_finished_task_does_nothing() {
    let task = spawn_local(Class::Foreground, async { 7 });
    until(|| task.is_done()).await;
    task.cancel();
    yield_now().await;
}

async fn tasks_take_turns() {
    let seen = Rc::new(RefCell::new(Vec::new()));
    let run = |name: char| {
        let seen = Rc::clone(&seen);
        spawn_local(Class::Foreground, async move {
            for _ in 0..3 {
                seen.borrow_mut().push(name);
                yield_now().await;
            }
        })
    };
    let (a, b) = (run('a'), run('b'));
    a.await;
    b.await;
    assert_eq!(*seen.borrow(), ['a', 'b', 'a', 'b', 'a', 'b']);
}

/// Tasks that end before, while and after their handle is dropped, is awaited, is cancelled; woken by their own core
/// and by helpers (glommio's issues 636 and 671).
async fn handles_dropped_at_any_moment_leak_nothing() {
    let alive = Rc::new(Cell::new(0));
    let before = metrics().tasks.get();
    for round in 0..2000u64 {
        let (guard, result) = (Alive::new(&alive), Alive::new(&alive));
        let task = spawn_local(Class::ALL[(round % 4) as usize], async move {
            let _guard = guard;
            for _ in 0..round % 3 {
                yield_now().await;
            }
            if round % 5 == 0 {
                executor::blocking(Class::Foreground, || ()).await;
            }
            result
        });
        for _ in 0..round % 4 {
            yield_now().await;
        }
        match round % 7 {
            0 => drop(task.await),
            1 | 2 => task.cancel(),
            3 => {
                until(|| task.is_done()).await;
                drop(task);
            }
            _ => drop(task),
        }
    }
    until(|| metrics().tasks.get() == before && alive.get() == 0).await;
}

async fn a_call_is_kept_for_the_next_waiter() {
    let notify = Notify::new();
    notify.notify();
    notify.notify();
    notify.notified().await;
    let mut second = std::pin::pin!(notify.notified());
    assert!(poll_once(second.as_mut()).await.is_pending(), "two calls are kept as one");
    notify.notify();
    second.await;
}

async fn a_call_reaches_all_waiters() {
    let notify = Rc::new(Notify::new());
    let tasks = [(); 3].map(|()| {
        let notify = Rc::clone(&notify);
        spawn_local(Class::Foreground, async move { notify.notified().await })
    });
    yield_now().await;
    yield_now().await;
    notify.notify();
    for task in tasks {
        task.await;
    }
}

async fn a_call_to_a_waiter_that_left_is_kept() {
    let notify = Notify::new();
    {
        let mut waiter = std::pin::pin!(notify.notified());
        assert!(poll_once(waiter.as_mut()).await.is_pending());
        notify.notify();
    }
    notify.notified().await;
    {
        let mut waiter = std::pin::pin!(notify.notified());
        assert!(poll_once(waiter.as_mut()).await.is_pending());
    }
    notify.notify();
    notify.notified().await;
}

async fn poll_once<F: Future>(mut future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
    poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await
}

/// Holds the core until it is noticed.
fn hold() {
    let began = now();
    while now().since(began) < executor::STALL + Duration::from_millis(1) {
        std::hint::spin_loop();
    }
}

async fn a_long_poll_is_a_stall_of_its_class() {
    spawn_local(Class::Scan, async { hold() }).await;
    let metrics = metrics();
    assert!(metrics.stalls_total[Class::Scan.index()].get() >= 1);
    assert!(metrics.stall_nanos_max[Class::Scan.index()].get() >= executor::STALL.as_nanos() as u64);
    assert!(metrics.busy_nanos_total[Class::Scan.index()].get() >= executor::STALL.as_nanos() as u64);
    assert_eq!(metrics.stalls_total[Class::Background.index()].get(), 0, "nothing ran in this class");
}

struct HoldsWhenDropped;

impl Drop for HoldsWhenDropped {
    fn drop(&mut self) {
        hold();
    }
}

async fn a_long_drop_is_a_stall_too() {
    let held = HoldsWhenDropped;
    let task = spawn_local(Class::Scan, async move {
        let _held = held;
        pending::<()>().await;
    });
    yield_now().await;
    yield_now().await;
    let stalls = || metrics().stalls_total[Class::Scan.index()].get();
    let before = stalls();
    task.cancel();
    executor::timeout(Duration::from_secs(60), until(|| stalls() > before)).await.expect("the drop is counted");
}

async fn a_stall_is_logged_with_its_class_and_length() {
    let log = Log::default();
    let guard = tracing::subscriber::set_default(log.clone());
    for class in [Class::Raft, Class::Background] {
        spawn_local(class, async { hold() }).await;
    }
    drop(guard);
    let lines = log.0.lock().expect("no panic").clone();
    for class in [Class::Raft, Class::Background] {
        let line = lines.iter().find(|line| line.contains(class.name())).expect("a line for each class");
        assert!(line.contains("WARN") && line.contains("a task held its core") && line.contains("core=0"), "{line}");
        let held = line.split_once("held_ms=").expect("its length").1.split(' ').next().expect("a number");
        assert!(held.parse::<u64>().expect("a number") >= 10, "{line}");
    }
}

/// Keeps the events of one thread as lines.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

impl tracing::Subscriber for Log {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        struct Fields(String);
        impl tracing::field::Visit for Fields {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                self.0 += &format!(" {field}={value:?}");
            }
        }
        let mut line = Fields(event.metadata().level().to_string());
        event.record(&mut line);
        self.0.lock().expect("no panic").push(line.0 + " ");
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

async fn random_numbers_differ_from_draw_to_draw() {
    let draw = || executor::with_rng(|rng| rng.next_u64());
    assert_ne!(draw(), draw());
}

struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

fn the_end_of_main_drops_what_is_left(io: IoChoice) {
    if !available(io) {
        return;
    }
    let dropped = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&dropped);
    executor::run_one(io, move || async move {
        for class in Class::ALL {
            let (waits, sleeps) = (Counted(Arc::clone(&count)), Counted(Arc::clone(&count)));
            drop(spawn_local(class, async move {
                let _guard = waits;
                pending::<()>().await;
            }));
            drop(spawn_local(class, async move {
                let _guard = sleeps;
                executor::sleep(Duration::from_secs(3600)).await;
            }));
        }
        yield_now().await;
    });
    assert_eq!(dropped.load(Ordering::SeqCst), 8);
}

fn tasks_started_by_dropped_tasks_end_too(io: IoChoice) {
    struct Starts(Arc<AtomicUsize>);
    impl Drop for Starts {
        fn drop(&mut self) {
            let guard = Counted(Arc::clone(&self.0));
            drop(spawn_local(Class::Background, async move {
                let _guard = guard;
                pending::<()>().await;
            }));
        }
    }
    if !available(io) {
        return;
    }
    let dropped = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&dropped);
    executor::run_one(io, move || async move {
        let starts = Starts(count);
        drop(spawn_local(Class::Foreground, async move {
            let _starts = starts;
            pending::<()>().await;
        }));
        yield_now().await;
    });
    assert_eq!(dropped.load(Ordering::SeqCst), 1);
}

fn a_panic_of_a_task_ends_the_core(io: IoChoice) {
    if !available(io) {
        return;
    }
    let ended = catch_unwind(AssertUnwindSafe(|| {
        executor::run_one(io, || async {
            drop(spawn_local(Class::Raft, async { panic!("on purpose") }));
            pending::<()>().await;
        });
    }));
    let panic = ended.expect_err("the panic comes through");
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"on purpose"));
}

fn a_panic_of_a_drop_ends_the_core(io: IoChoice) {
    struct Panics;
    impl Drop for Panics {
        fn drop(&mut self) {
            panic!("on purpose");
        }
    }
    if !available(io) {
        return;
    }
    let ended = catch_unwind(AssertUnwindSafe(|| {
        executor::run_one(io, || async {
            let panics = Panics;
            spawn_local(Class::Raft, async move {
                let _panics = panics;
                pending::<()>().await
            })
            .cancel();
            pending::<()>().await;
        });
    }));
    let panic = ended.expect_err("the panic comes through");
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"on purpose"));
}
