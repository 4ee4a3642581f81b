//! Every fault that the simulator offers, and that a seed replays.

mod disk;
mod facade;
mod kill;
mod network;
mod replay;
mod time;

use super::{Sim, SimConfig, SimNode, sleep_until};
use base::Instant;
use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

fn millis(count: u64) -> Duration {
    Duration::from_millis(count)
}

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

async fn sleep(duration: Duration) {
    sleep_until(super::now() + duration).await;
}

/// A world of `count` nodes: 10.0.0.1 and so on.
fn world(seed: u64, config: SimConfig, count: u8) -> (Sim, Vec<SimNode>) {
    let sim = Sim::new(seed, config);
    let nodes = (1..=count).map(|id| sim.add_node(&format!("n{id}"), [10, 0, 0, id].into())).collect();
    (sim, nodes)
}

/// A counter that a test and its tasks share.
fn counter() -> (Rc<Cell<u64>>, Rc<Cell<u64>>) {
    let counter = Rc::new(Cell::new(0));
    (counter.clone(), counter)
}

fn bump(counter: &Cell<u64>) {
    counter.set(counter.get() + 1);
}

/// Calls its function when dropped.
struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

fn elapsed(since: Instant) -> Duration {
    super::now().since(since)
}
