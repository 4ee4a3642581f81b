//! Clocks and timers.

use std::cell::RefCell;
use std::future::pending;
use std::rc::Rc;
use std::time::Duration;

use executor::{Class, Elapsed, clocks, now, sleep, sleep_until, spawn_local, timeout, unix_time, yield_now};

use crate::support::on_both;

on_both! {
    timers_fire_in_order_and_never_early,
    a_deadline_that_has_passed_is_ready,
    a_timeout_ends_what_is_not_ready,
    what_is_ready_wins_over_its_timeout,
    clocks_run_on,
    timers_fire_beside_tasks_that_never_rest,
}

async fn timers_fire_in_order_and_never_early() {
    let fired = Rc::new(RefCell::new(Vec::new()));
    let tasks = [60u64, 1, 30].map(|millis| {
        let fired = Rc::clone(&fired);
        let deadline = now() + Duration::from_millis(millis);
        spawn_local(Class::Foreground, async move {
            sleep_until(deadline).await;
            assert!(now() >= deadline);
            fired.borrow_mut().push(millis);
        })
    });
    for task in tasks {
        task.await;
    }
    assert_eq!(*fired.borrow(), [1, 30, 60]);
}

async fn a_deadline_that_has_passed_is_ready() {
    sleep_until(now() - Duration::from_secs(1)).await;
    sleep(Duration::ZERO).await;
}

async fn a_timeout_ends_what_is_not_ready() {
    assert_eq!(timeout(Duration::from_millis(2), pending::<()>()).await, Err(Elapsed));
}

async fn what_is_ready_wins_over_its_timeout() {
    assert_eq!(timeout(Duration::ZERO, async { 1 }).await, Ok(1));
    drop(sleep(Duration::from_secs(1)));
    let before = now();
    assert_eq!(timeout(Duration::from_secs(3600), sleep(Duration::from_millis(2))).await, Ok(()));
    assert!(now().since(before) >= Duration::from_millis(2));
}

async fn clocks_run_on() {
    let (before, clocks_before) = (now(), clocks());
    sleep(Duration::from_millis(2)).await;
    let clocks_after = clocks();
    assert!(now() > before);
    assert!(clocks_after.boottime > clocks_before.boottime);
    assert!(clocks_after.monotonic_raw > clocks_before.monotonic_raw);
    assert!(unix_time().seconds() > 1_700_000_000);
}

/// A core with something to run at any time looks at its timers and sockets all the same.
async fn timers_fire_beside_tasks_that_never_rest() {
    for class in Class::ALL {
        drop(spawn_local(class, async {
            loop {
                yield_now().await;
            }
        }));
    }
    let began = now();
    for _ in 0..20 {
        sleep(Duration::from_millis(1)).await;
    }
    // Milliseconds; glommio's own limit of a turn, ten seconds, was what each took when turns did not end.
    assert!(now().since(began) < Duration::from_secs(60), "20 timers took {:?}", now().since(began));
}
