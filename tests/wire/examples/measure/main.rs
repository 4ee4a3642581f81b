//! Measurements on real processes of this machine: `measure kills [N]`, `measure disk [N]`, `measure balance [REGIONS]`,
//! `measure scale [REGIONS]`. What they found is in docs/performance.md.

mod balance;
mod scale;

use std::time::Duration;

use basalt_wire::fleet::Fleet;
use basalt_wire::kills::{CONFIG, kill_again_and_again};
use basalt_wire::probe::quantiles;
use basalt_wire::trouble::{Trouble, Troubled};

fn on_a_runtime<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(work)
}

fn kills(count: u32) {
    let mut fleet = Fleet::replicated(3, 1, CONFIG);
    on_a_runtime(kill_again_and_again(&mut fleet, count));
}

fn disk(rounds: u32) {
    for trouble in [Trouble::Hang, Trouble::Fail] {
        let mut troubled = Troubled::start(trouble);
        let gaps = on_a_runtime(troubled.run(rounds, Duration::from_secs(10)));
        println!("{trouble:?}, {rounds} times: a key could not be written for {}", quantiles(&gaps));
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let what = arguments.next().unwrap_or_default();
    let number = arguments.next().and_then(|number| number.parse::<u32>().ok());
    match what.as_str() {
        "kills" => kills(number.unwrap_or(30)),
        "disk" => disk(number.unwrap_or(10)),
        "balance" => balance::run(number.unwrap_or(60)),
        "scale" => scale::run(number.unwrap_or(5000)),
        _ => {
            eprintln!("usage: measure kills|disk|balance|scale [NUMBER]");
            std::process::exit(2);
        }
    }
}
