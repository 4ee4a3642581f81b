use super::*;
use crate::Class;
use crate::sim::{SimTask, blocking, cores, now, shutdown_signal, spawn_local};
use base::CoreId;
use std::cell::RefCell;

#[test]
fn a_kill_drops_tasks_in_their_context_and_runs_nothing_of_the_node_again() {
    let (sim, nodes) = world(1, SimConfig::default(), 2);
    let (ticks, bumped) = counter();
    let seen = Rc::new(RefCell::new(Vec::new()));
    let drops = seen.clone();
    sim.start(nodes[0], 2, move |core| {
        let (bumped, drops) = (bumped.clone(), drops.clone());
        Box::pin(async move {
            let _guard = OnDrop(move || {
                assert!(now() > Instant(0), "the clock can be read");
                drops.borrow_mut().push((core, crate::sim::core()));
                drop(spawn_local(Class::Raft, async { unreachable!("nothing starts on a dead node") }));
                drop(blocking(Class::Scan, || unreachable!("nor on its helpers")));
            });
            loop {
                sleep(millis(1)).await;
                bump(&bumped);
            }
        })
    });
    sim.run_for(millis(50));
    assert!(ticks.get() >= 90);
    assert!(!crate::sim::active());
    sim.kill(nodes[0]);
    assert!(!crate::sim::active());
    assert!(!sim.running(nodes[0]));
    assert_eq!(*seen.borrow(), [(CoreId(0), CoreId(0)), (CoreId(1), CoreId(1))]);
    let before = ticks.get();
    sim.run_for(SECOND);
    assert_eq!(ticks.get(), before);
}

#[test]
fn a_killed_node_starts_again_with_another_clock_and_other_numbers() {
    let (sim, nodes) = world(2, SimConfig::default(), 1);
    let seen = Rc::new(RefCell::new(Vec::new()));
    for _ in 0..2 {
        let seen = seen.clone();
        sim.start(nodes[0], 3, move |core| {
            let seen = seen.clone();
            Box::pin(async move {
                assert_eq!(cores(), 3);
                if core == CoreId(0) {
                    let number = crate::sim::with_rng(base::Prng::next_u64);
                    seen.borrow_mut().push((now(), number));
                }
                std::future::pending().await
            })
        });
        sim.run_for(millis(10));
        sim.kill(nodes[0]);
    }
    let seen = seen.borrow();
    assert!(seen[0].0.since(seen[1].0) > SECOND || seen[1].0.since(seen[0].0) > SECOND);
    assert_ne!(seen[0].1, seen[1].1);
}

#[test]
fn a_task_gives_its_result_runs_on_when_dropped_and_ends_when_cancelled() {
    let (sim, nodes) = world(3, SimConfig::default(), 1);
    let (ran, bumped) = counter();
    let (ended, drops) = counter();
    let sum = sim.block_on(
        nodes[0],
        async move {
            let four = spawn_local(Class::Foreground, async { 4 });
            drop(spawn_local(Class::Foreground, async move { bump(&bumped) }));
            let endless: SimTask<()> = spawn_local(Class::Scan, async move {
                let _guard = OnDrop(move || bump(&drops));
                std::future::pending().await
            });
            sleep(millis(1)).await;
            assert!(four.is_done() && !endless.is_done());
            assert_eq!(crate::sim::metrics().tasks.get(), 2);
            endless.cancel();
            let three = spawn_local(Class::Raft, async { 3 });
            four.await + three.await
        },
        SECOND,
    );
    assert_eq!(sum, Some(7));
    sim.run_for(millis(1));
    assert_eq!((ran.get(), ended.get()), (1, 1));
}

#[test]
fn stop_resolves_the_shutdown_signal_and_the_process_ends_with_its_last_main() {
    let (sim, nodes) = world(4, SimConfig::default(), 1);
    let (left, dropped) = counter();
    sim.start(nodes[0], 2, move |core| {
        let dropped = dropped.clone();
        Box::pin(async move {
            drop(spawn_local(Class::Background, async move {
                let _guard = OnDrop(move || bump(&dropped));
                std::future::pending::<()>().await
            }));
            shutdown_signal().await;
            sleep(millis(10 * u64::from(core.0))).await;
        })
    });
    sim.run_for(millis(100));
    assert!(sim.running(nodes[0]));
    sim.stop(nodes[0]);
    sim.run_for(millis(5));
    assert_eq!(left.get(), 1, "core 0 has ended, with its tasks");
    assert!(sim.running(nodes[0]));
    assert!(sim.run_until(millis(20), || !sim.running(nodes[0])));
    assert_eq!(left.get(), 2);
}

#[test]
fn blocking_work_of_a_killed_node_is_dropped_unrun() {
    let (sim, nodes) = world(5, SimConfig::default(), 1);
    let (ran, bumped) = counter();
    let (dropped, drops) = counter();
    sim.spawn_on(nodes[0], async move {
        let guard = OnDrop(move || {
            assert!(crate::sim::active());
            bump(&drops);
        });
        blocking(Class::Scan, move || {
            bump(&bumped);
            drop(guard);
        })
        .await;
    });
    sim.run_for(Duration::from_micros(5));
    sim.kill(nodes[0]);
    assert_eq!((ran.get(), dropped.get()), (0, 1));
    sim.run_for(SECOND);
    assert_eq!(ran.get(), 0);
}

#[test]
fn dropping_the_world_drops_every_task() {
    let (sim, nodes) = world(6, SimConfig::default(), 2);
    let (dropped, drops) = counter();
    for node in nodes {
        let drops = drops.clone();
        sim.spawn_on(node, async move {
            let _guard = OnDrop(move || bump(&drops));
            sleep(Duration::from_secs(10)).await;
        });
    }
    sim.run_for(millis(1));
    drop(sim);
    assert_eq!(dropped.get(), 2);
}

#[test]
#[should_panic(expected = "the simulation is run from within itself")]
fn the_loop_is_not_entered_twice() {
    let (sim, nodes) = world(7, SimConfig::default(), 1);
    let sim = Rc::new(sim);
    let again = sim.clone();
    sim.spawn_on(nodes[0], async move { again.run_for(SECOND) });
    sim.run_for(SECOND);
}
