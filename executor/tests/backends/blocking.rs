//! Work on helper threads.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use executor::{Class, CoresConfig, IoChoice, blocking, metrics, run_cores, sleep, timeout};

use crate::support::{available, on_both, with_both};

on_both! {
    work_runs_on_another_thread,
    work_of_a_caller_that_left_still_runs,
    more_work_than_helpers_and_queue_is_done,
}

with_both! {
    a_panic_of_work_comes_back_to_the_caller,
    helpers_are_not_pinned_to_the_cpu_of_a_core,
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
