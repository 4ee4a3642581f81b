//! The log against a naive twin: random records, flushes, maintenance, kills and power losses at any operation.

mod log_support;

use log_support::block_on;
use log_support::disk::Survival;
use log_support::driver::{Driver, Reached};

/// One step of random work. False if power was lost in it.
fn step(driver: &mut Driver) -> bool {
    match driver.prng.below(20) {
        0..13 => {
            let record = driver.random_record();
            driver.append(record);
            true
        }
        13..16 => {
            let maintain = driver.prng.one_in(3);
            driver.commit(maintain)
        }
        16 => {
            driver.flush();
            true
        }
        17 => driver.maintain(),
        18 => {
            driver.idle();
            if driver.log.next_seal().is_none() {
                return true;
            }
            let done = block_on(driver.log.seal()).map(drop);
            driver.settle(done)
        }
        _ => {
            driver.newest().check_reads(&driver.log);
            true
        }
    }
}

fn run(seed: u64, steps: u64) -> Reached {
    let mut driver = Driver::new(seed);
    for _ in 0..steps {
        if driver.prng.one_in(20) {
            let after = driver.prng.range(1, 12);
            driver.disk.crash_after(after);
        }
        let alive = step(&mut driver);
        if !alive || driver.prng.one_in(60) {
            let survival = match driver.prng.below(5) {
                0 => Some(Survival::None),
                1 => Some(Survival::All),
                2 => Some(Survival::Random),
                3 => Some(Survival::RandomUnits),
                _ => None,
            };
            driver.restart(survival);
        }
    }
    assert!(driver.commit(true) || driver.disk.crashed());
    driver.reached
}

#[test]
fn random_work_with_crashes_agrees_with_the_twin() {
    let mut all = Reached::default();
    for seed in 0..120 {
        all.add(run(seed, 400));
    }
    println!("{all:?}");
    assert!(all.restarts > 1000);
    assert!(all.segments_freed > 500 && all.segments_copied > 10);
    assert!(all.blocks_cut > 20 && all.unacknowledged_lost > 500 && all.unacknowledged_kept > 500);
}
