use super::*;
use crate::Class;
use crate::sim::{spawn_local, yield_now};

#[test]
fn a_sleep_lasts_as_long_as_it_says_and_costs_no_real_time() {
    let (sim, nodes) = world(1, SimConfig::default(), 1);
    let took = sim.block_on(
        nodes[0],
        async {
            let begin = crate::sim::now();
            sleep(Duration::from_secs(86_400)).await;
            elapsed(begin)
        },
        Duration::from_secs(100_000),
    );
    let took = took.expect("the sleep ends");
    assert!(took >= Duration::from_secs(86_400) && took < Duration::from_secs(86_401), "{took:?}");
}

#[test]
fn a_dropped_sleep_leaves_no_timer() {
    let (sim, nodes) = world(1, SimConfig::default(), 1);
    sim.block_on(
        nodes[0],
        async {
            let task = spawn_local(Class::Scan, sleep(Duration::from_secs(50)));
            sleep(millis(1)).await;
            task.cancel();
        },
        SECOND,
    );
    let steps = sim.steps();
    sim.run_for(Duration::from_secs(100));
    assert!(sim.steps() <= steps + 2, "only the cancelled task's last turn");
}

#[test]
fn stepping_the_clock_moves_the_wall_clock_only() {
    let (sim, nodes) = world(2, SimConfig::default(), 2);
    let woken = counter();
    let bumped = woken.1;
    sim.spawn_on(nodes[0], async move {
        sleep(SECOND).await;
        bump(&bumped);
    });
    let before = sim.unix_time(nodes[0]);
    let other = sim.unix_time(nodes[1]);
    sim.step_clock(nodes[0], -5_000_000_000);
    assert_eq!(sim.unix_time(nodes[0]).0, before.0 - 5_000_000_000);
    assert_eq!(sim.unix_time(nodes[1]), other);
    sim.run_for(millis(990));
    assert_eq!(woken.0.get(), 0);
    sim.run_for(millis(20));
    assert_eq!(woken.0.get(), 1);
}

#[test]
fn a_fast_clock_ends_sleeps_early_and_a_slow_one_late() {
    for (ppm, expected) in [(1_000_000, 5_000), (0, 10_000), (-500_000, 20_000)] {
        let (sim, nodes) = world(3, SimConfig::default(), 1);
        let woken = counter();
        let bumped = woken.1;
        sim.spawn_on(nodes[0], async move {
            sleep(Duration::from_secs(10)).await;
            bump(&bumped);
        });
        sim.run_for(millis(1));
        sim.set_clock_drift(nodes[0], ppm);
        assert!(sim.run_until(Duration::from_secs(60), || woken.0.get() == 1));
        let took = sim.now().0 / 1_000_000;
        assert!(took.abs_diff(expected) < 5, "{ppm} ppm: {took} ms");
    }
}

#[test]
fn a_paused_node_executes_nothing_while_its_clock_runs() {
    let (sim, nodes) = world(4, SimConfig::default(), 2);
    let ticks = counter();
    let shown = Rc::new(Cell::new(Instant(0)));
    let (bumped, show) = (ticks.1, shown.clone());
    sim.spawn_on(nodes[0], async move {
        loop {
            sleep(millis(10)).await;
            bump(&bumped);
            show.set(crate::sim::now());
        }
    });
    sim.run_for(millis(105));
    assert_eq!(ticks.0.get(), 10);
    let before = shown.get();
    sim.pause(nodes[0], SECOND);
    sim.run_for(millis(990));
    assert_eq!(ticks.0.get(), 10, "nothing runs");
    sim.run_for(millis(20));
    assert!((11..=13).contains(&ticks.0.get()), "runs again, with one late tick: {}", ticks.0.get());
    assert!(shown.get().since(before) >= millis(990), "its clock went on");
}

#[test]
fn helpers_of_a_paused_node_pause_too() {
    let (sim, nodes) = world(4, SimConfig::default(), 1);
    let (ran, bumped) = counter();
    sim.spawn_on(nodes[0], async move { crate::sim::blocking(Class::Scan, move || bump(&bumped)).await });
    sim.run_for(Duration::from_micros(5));
    sim.pause(nodes[0], SECOND);
    sim.run_for(millis(900));
    assert_eq!(ran.get(), 0);
    sim.run_for(millis(200));
    assert_eq!(ran.get(), 1);
}

#[test]
fn a_longer_pause_replaces_a_shorter_one() {
    let (sim, nodes) = world(4, SimConfig::default(), 1);
    let done = counter();
    let bumped = done.1;
    sim.spawn_on(nodes[0], async move { bump(&bumped) });
    sim.pause(nodes[0], millis(10));
    sim.pause(nodes[0], millis(100));
    sim.run_for(millis(99));
    assert_eq!(done.0.get(), 0);
    sim.run_for(millis(2));
    assert_eq!(done.0.get(), 1);
}

#[test]
fn yielding_lets_time_pass() {
    let (sim, nodes) = world(5, SimConfig::default(), 1);
    let took = sim.block_on(
        nodes[0],
        async {
            let begin = crate::sim::now();
            for _ in 0..1000 {
                yield_now().await;
            }
            elapsed(begin)
        },
        SECOND,
    );
    assert!(took.expect("it ends") > Duration::from_micros(60));
}

#[test]
#[should_panic(expected = "busy loop: node \"n1\", core 0")]
fn a_busy_loop_is_found() {
    let (sim, nodes) = world(6, SimConfig::default(), 1);
    sim.spawn_on(nodes[0], async {
        loop {
            yield_now().await;
        }
    });
    sim.run_for(SECOND);
}

#[test]
#[should_panic(expected = "busy loop")]
fn a_busy_loop_is_found_though_polls_take_no_time() {
    let config = SimConfig { poll_ns: (0, 0), ..SimConfig::default() };
    let (sim, nodes) = world(6, config, 1);
    sim.spawn_on(nodes[0], async {
        loop {
            yield_now().await;
        }
    });
    sim.run_for(SECOND);
}

#[test]
fn tasks_are_picked_in_an_order_of_the_seed() {
    let order = |seed| {
        let (sim, nodes) = world(seed, SimConfig::default(), 1);
        let seen = Rc::new(std::cell::RefCell::new(Vec::new()));
        for id in 0..6 {
            let seen = seen.clone();
            sim.spawn_on(nodes[0], async move { seen.borrow_mut().push(id) });
        }
        sim.run_for(millis(1));
        seen.take()
    };
    let orders: std::collections::BTreeSet<Vec<u32>> = (0..20).map(order).collect();
    assert!(orders.len() > 10, "{orders:?}");
    assert_eq!(order(9), order(9));
}

#[test]
fn slow_helpers_begin_later() {
    let (sim, nodes) = world(7, SimConfig::default(), 2);
    sim.slow_helpers(nodes[0], millis(500));
    let took = |node| {
        let work = async {
            let begin = crate::sim::now();
            crate::sim::blocking(Class::Scan, || ()).await;
            elapsed(begin)
        };
        sim.block_on(node, work, SECOND).expect("it ends")
    };
    assert!(took(nodes[0]) >= millis(500));
    assert!(took(nodes[1]) < millis(50), "the other node's are as fast as ever");
    sim.slow_helpers(nodes[0], Duration::ZERO);
    assert!(took(nodes[0]) < millis(50));
}

#[test]
fn blocking_work_takes_time_and_answers_later() {
    let (sim, nodes) = world(7, SimConfig::default(), 1);
    let ran = counter();
    let (bumped, dropped) = (ran.1.clone(), ran.1);
    let answer = sim.block_on(
        nodes[0],
        async move {
            let begin = crate::sim::now();
            drop(crate::sim::blocking(Class::Scan, move || bump(&dropped)));
            let value = crate::sim::blocking(Class::Scan, move || {
                bump(&bumped);
                crate::sim::core()
            });
            (value.await, elapsed(begin))
        },
        SECOND,
    );
    let (core, took) = answer.expect("it answers");
    assert_eq!(core, base::CoreId(0));
    assert!(took >= Duration::from_micros(12));
    sim.run_for(millis(20));
    assert_eq!(ran.0.get(), 2, "it runs though nobody waits");
}
