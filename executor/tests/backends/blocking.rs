//! Work on helper threads.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use executor::{
    Class, CoresConfig, IoChoice, blocking, mailbox, metrics, run_cores, sleep, spawn_local, timeout, yield_now,
};

use crate::support::{available, on_both, with_both};

on_both! {
    work_runs_on_another_thread,
    work_of_a_caller_that_left_still_runs,
    more_work_than_helpers_and_queue_is_done,
    callers_that_leave_the_line_keep_nobody_out,
}

with_both! {
    a_panic_of_work_comes_back_to_the_caller,
    helpers_are_not_pinned_to_the_cpu_of_a_core,
    work_that_outlives_its_core_is_done,
}

async fn work_runs_on_another_thread() {
    let here = std::thread::current().id();
    let there = blocking(Class::Scan, || std::thread::current().id()).await;
    assert_ne!(here, there);
    assert_eq!(metrics().blocking_total[Class::Scan.index()].get(), 1);
    assert_eq!(metrics().blocking_queued[Class::Scan.index()].get(), 0);
}

async fn work_of_a_caller_that_left_still_runs() {
    let done = Arc::new(AtomicBool::new(false));
    let (go, gate) = std::sync::mpsc::channel();
    let mark = Arc::clone(&done);
    let work = blocking(Class::Background, move || {
        gate.recv().expect("sent below");
        mark.store(true, Ordering::SeqCst);
    });
    assert!(timeout(Duration::from_millis(1), work).await.is_err());
    go.send(()).expect("the work waits");
    while !done.load(Ordering::SeqCst) {
        sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(metrics().blocking_queued[Class::Background.index()].get(), 0);
}

async fn more_work_than_helpers_and_queue_is_done() {
    let tasks: Vec<_> = (0..3000u64)
        .map(|number| executor::spawn_local(Class::Foreground, blocking(Class::Foreground, move || number)))
        .collect();
    let mut sum = 0;
    for task in tasks {
        sum += task.await;
    }
    assert_eq!(sum, (0..3000).sum());
}

/// Both helpers are held, the queue is full, and every second of those who gave work or wait for room goes away.
async fn callers_that_leave_the_line_keep_nobody_out() {
    const QUEUE: usize = 1024;
    const WAITING: usize = 200;
    let (running, mut runs) = mailbox(2);
    let gates: Vec<_> = (0..2)
        .map(|_| {
            let (running, (go, gate)) = (running.clone(), std::sync::mpsc::channel::<()>());
            drop(spawn_local(
                Class::Foreground,
                blocking(Class::Foreground, move || {
                    running.try_send(()).expect("room for both");
                    gate.recv().expect("sent below");
                }),
            ));
            go
        })
        .collect();
    for _ in &gates {
        runs.recv().await.expect("the helper holds the other end");
    }
    let done = Arc::new(AtomicUsize::new(0));
    let work = || {
        let done = Arc::clone(&done);
        spawn_local(
            Class::Foreground,
            blocking(Class::Foreground, move || {
                done.fetch_add(1, Ordering::SeqCst);
            }),
        )
    };
    let mut tasks: Vec<_> = (0..QUEUE).map(|_| work()).collect();
    while metrics().blocking_total[Class::Foreground.index()].get() < 2 + QUEUE as u64 {
        sleep(Duration::from_millis(1)).await;
    }
    let polls = metrics().polls_total[Class::Foreground.index()].get();
    tasks.extend((0..WAITING).map(|_| work()));
    while metrics().polls_total[Class::Foreground.index()].get() < polls + WAITING as u64 {
        sleep(Duration::from_millis(1)).await;
    }
    let mut stay = Vec::new();
    for (number, task) in tasks.into_iter().enumerate() {
        if number % 2 == 1 { task.cancel() } else { stay.push(task) }
    }
    for gate in gates {
        gate.send(()).expect("a helper waits");
    }
    for task in stay {
        task.await;
    }
    // What was in the queue is done though nobody waits; what waited for room went away with its caller.
    let expected = QUEUE + WAITING / 2;
    while done.load(Ordering::SeqCst) < expected {
        sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(done.load(Ordering::SeqCst), expected);
}

/// The result of the work, and the wake of who waited for it, come to a core that is gone.
fn work_that_outlives_its_core_is_done(io: IoChoice) {
    if !available(io) {
        return;
    }
    for _ in 0..20 {
        let done = Arc::new(AtomicUsize::new(0));
        let (mark, (running, runs)) = (Arc::clone(&done), std::sync::mpsc::channel());
        let (go, gate) = std::sync::mpsc::channel::<()>();
        executor::run_one(io, move || async move {
            drop(spawn_local(
                Class::Foreground,
                blocking(Class::Raft, move || {
                    running.send(()).expect("received below");
                    gate.recv().expect_err("the core has ended");
                    mark.fetch_add(1, Ordering::SeqCst);
                }),
            ));
            while runs.try_recv().is_err() {
                yield_now().await;
            }
            // `go` ends with this future, and lets the helper go on while the core's end is under way.
            drop(go);
        });
        assert_eq!(done.load(Ordering::SeqCst), 1, "the helpers end after what they were given");
    }
}

fn a_panic_of_work_comes_back_to_the_caller(io: IoChoice) {
    if !available(io) {
        return;
    }
    let ended = catch_unwind(AssertUnwindSafe(|| {
        executor::run_one(io, || blocking(Class::Foreground, || panic!("on purpose")));
    }));
    let panic = ended.expect_err("the panic comes through");
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"on purpose"));
}

fn cpus_of_this_thread() -> String {
    let status = std::fs::read_to_string("/proc/thread-self/status").expect("procfs");
    let line = status.lines().find(|line| line.starts_with("Cpus_allowed_list:")).expect("a line of CPUs");
    line.split_whitespace().nth(1).expect("a list").to_owned()
}

fn helpers_are_not_pinned_to_the_cpu_of_a_core(io: IoChoice) {
    if !available(io) {
        return;
    }
    let all = cpus_of_this_thread();
    if !all.contains(['-', ',']) {
        eprintln!("skipped: one CPU only");
        return;
    }
    let config = CoresConfig { cores: 1, io, name: "pinned".to_owned(), ..CoresConfig::default() };
    run_cores(config, |_| {
        Box::pin(async {
            let core = cpus_of_this_thread();
            assert!(!core.contains(['-', ',']), "the core has one CPU, not {core}");
            let helper = blocking(Class::Background, cpus_of_this_thread).await;
            assert_ne!(helper, core, "helpers use the CPUs that serve no core");
        })
    })
    .expect("the core starts");
}
