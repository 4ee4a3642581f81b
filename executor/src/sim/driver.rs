//! What a test holds in its hands: nodes, faults, and the crank that turns the world.

use super::clock::Clock;
use super::config::{Link, SimConfig, nanos};
use super::context::Core;
use super::disk::SimDisk;
use super::node::Node;
use super::process::Ending;
use super::task;
use super::world::World;
use crate::{Class, LocalFuture};
use base::{CoreId, Instant, UnixTime};
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

/// A simulated cluster. Nothing happens in it but while one of the `run` methods, or `block_on`, is called.
///
/// Dropping it drops every task, each in its own context. A panic of a task leaves `run` as it is: the simulation
/// can no longer be used then, only dropped.
///
/// ```
/// use executor::sim::{Sim, SimConfig};
/// use std::time::Duration;
///
/// let sim = Sim::new(42, SimConfig::default());
/// let node = sim.add_node("n1", "10.0.0.1".parse().expect("an address"));
/// let answer = sim.block_on(node, async { 6 * 7 }, Duration::from_secs(1));
/// assert_eq!(answer, Some(42));
/// ```
pub struct Sim {
    world: Rc<World>,
}

/// A node of a [`Sim`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SimNode(usize);

impl Sim {
    /// An empty world. All that happens in it is determined by `seed`, `config` and what the driver does.
    pub fn new(seed: u64, config: SimConfig) -> Sim {
        Sim { world: World::new(seed, config) }
    }

    /// Adds a machine without a process. Its address is a mere name; no real network is touched.
    pub fn add_node(&self, name: &str, ip: IpAddr) -> SimNode {
        let world = &self.world;
        let mut nodes = world.nodes.borrow_mut();
        assert!(nodes.iter().all(|node| node.ip != ip), "two nodes with address {ip}");
        assert!(!ip.is_loopback() && !ip.is_unspecified(), "a node needs an address of its own");
        let (local, unix) = {
            let mut prng = world.chance.node.borrow_mut();
            let offset = nanos(world.config.clock_offset);
            let unix = world.config.unix_start.0 + prng.below(2 * offset + 1) - offset;
            (prng.range(1_000_000_000, 1_000_000_000_000), unix + world.now())
        };
        let index = nodes.len();
        nodes.push(Rc::new(Node {
            index,
            name: name.to_owned(),
            ip,
            clock: Cell::new(Clock::new(world.now(), local, unix)),
            disk: RefCell::default(),
            run: Cell::new(0),
            process: RefCell::new(None),
            paused: Cell::new(false),
            pauses: Cell::new(0),
            parked: RefCell::default(),
            next_port: Cell::new(0),
            slow_helpers: Cell::new(0),
        }));
        SimNode(index)
    }

    /// Starts a process of `cores` cores, each of which runs `main`. A core ends when its main returns, the process
    /// when all have. Panics if the node runs already.
    pub fn start(&self, node: SimNode, cores: usize, main: impl Fn(CoreId) -> LocalFuture<()> + 'static) {
        assert!(cores > 0, "a process has at least one core");
        self.world.start(&self.node(node), cores, Some(&main));
    }

    /// Fails the node's power: its tasks are dropped, its connections reset, its bytes that are not durable are lost,
    /// kept or torn by the seed. A node without a process loses the bytes all the same.
    pub fn kill(&self, node: SimNode) {
        self.world.end_process(&self.node(node), Ending::PowerLoss);
    }

    /// Kills the process only, as SIGKILL does: what it has written to log files stays, even what it had just begun to
    /// write. A file that it was creating or replacing may be left half done.
    pub fn kill_process(&self, node: SimNode) {
        self.world.end_process(&self.node(node), Ending::Killed);
    }

    /// Asks the process to end, as SIGTERM does: its `shutdown_signal` resolves.
    pub fn stop(&self, node: SimNode) {
        self.node(node).stop();
    }

    /// True while the node has a process.
    pub fn running(&self, node: SimNode) -> bool {
        self.node(node).is_running()
    }

    /// Starts a task on the node's core 0. On a node without a process, an idle one of one core is started for it,
    /// which lives until it is killed.
    pub fn spawn_on(&self, node: SimNode, future: impl Future<Output = ()> + 'static) {
        drop(task::spawn_on(&self.first_core(node), Class::Foreground, future));
    }

    /// Runs the world until `future`, a task on the node's core 0, is done; `None` if it is not within `limit`, and
    /// then it runs on. See [`Sim::spawn_on`].
    pub fn block_on<T: 'static>(
        &self,
        node: SimNode,
        future: impl Future<Output = T> + 'static,
        limit: Duration,
    ) -> Option<T> {
        let result = Rc::new(Cell::new(None));
        let (given, done) = (result.clone(), Rc::new(Cell::new(false)));
        let is_done = done.clone();
        self.spawn_on(node, async move {
            given.set(Some(future.await));
            done.set(true);
        });
        self.run_until(limit, || is_done.get());
        result.take()
    }

    /// Runs the world for so long.
    pub fn run_for(&self, duration: Duration) {
        self.run_until(duration, || false);
    }

    /// Runs the world until `is_done`, which is asked before every step, or until `limit` has passed; tells whether
    /// it was done.
    pub fn run_until(&self, limit: Duration, mut is_done: impl FnMut() -> bool) -> bool {
        let until = self.world.now().saturating_add(nanos(limit));
        let _running = self.world.begin();
        loop {
            if is_done() {
                return true;
            }
            if self.world.now() >= until || !self.world.step(until) {
                return is_done();
            }
        }
    }

    /// Blocks both directions between two nodes. Segments wait; senders give up after the configured time.
    pub fn partition(&self, a: SimNode, b: SimNode) {
        self.partition_one_way(a, b);
        self.partition_one_way(b, a);
    }

    /// Blocks what `from` sends to `to`, acknowledgements included.
    pub fn partition_one_way(&self, from: SimNode, to: SimNode) {
        assert!(from != to, "a node is never cut from itself");
        self.world.block(from.0, to.0);
    }

    /// Blocks both directions between a node and every other.
    pub fn isolate(&self, node: SimNode) {
        let count = self.world.nodes.borrow().len();
        (0..count).filter(|other| *other != node.0).for_each(|other| self.partition(node, SimNode(other)));
    }

    /// Opens both directions between two nodes.
    pub fn heal(&self, a: SimNode, b: SimNode) {
        self.world.unblock(a.0, b.0);
        self.world.unblock(b.0, a.0);
    }

    /// Opens every direction.
    pub fn heal_all(&self) {
        let count = self.world.nodes.borrow().len();
        for (a, b) in (0..count).flat_map(|a| (0..count).map(move |b| (a, b))) {
            self.world.unblock(a, b);
        }
    }

    /// Sets both directions between two nodes.
    pub fn set_link(&self, a: SimNode, b: SimNode, link: Link) {
        self.world.set_link(a.0, b.0, Some(link));
        self.world.set_link(b.0, a.0, Some(link));
    }

    /// Treats one direction between two nodes otherwise from now on, `link` from `from` to `to`, or as configured again
    /// with `None`. What is under way arrives as it would have.
    pub fn set_link_one_way(&self, from: SimNode, to: SimNode, link: Option<Link>) {
        self.world.set_link(from.0, to.0, link);
    }

    /// Adds so much to the start of everything that helpers of the node do, as a disk does whose reads hang. Log files
    /// are not slower for it.
    pub fn slow_helpers(&self, node: SimNode, by: Duration) {
        self.node(node).slow_helpers.set(nanos(by));
    }

    /// Stops the node for so long, as SIGSTOP does: its tasks are not polled, while its clock, its disk and its
    /// peers go on. A second call replaces the first one's end.
    pub fn pause(&self, node: SimNode, duration: Duration) {
        self.world.pause(&self.node(node), nanos(duration));
    }

    /// Suspends the machine for so long: as [`Sim::pause`], but its monotonic clock stands still meanwhile, and only
    /// [`crate::Clocks::boottime`] and the wall clock show that time has passed.
    pub fn suspend(&self, node: SimNode, duration: Duration) {
        self.pause(node, duration);
        let node = self.node(node);
        let mut clock = node.clock.get();
        clock.suspend(self.world.now(), nanos(duration));
        node.clock.set(clock);
        self.world.clock_changed(node.index);
    }

    /// Steps the node's wall clock by so many nanoseconds.
    pub fn step_clock(&self, node: SimNode, nanos: i64) {
        let node = self.node(node);
        let mut clock = node.clock.get();
        clock.step(nanos);
        node.clock.set(clock);
        self.world.clock_changed(node.index);
    }

    /// Lets the node's clocks run fast by so many parts per million, or slow if negative; from half to double speed.
    pub fn set_clock_drift(&self, node: SimNode, ppm: i64) {
        let node = self.node(node);
        let mut clock = node.clock.get();
        clock.set_drift(self.world.now(), ppm);
        node.clock.set(clock);
        self.world.clock_changed(node.index);
    }

    /// World time since the start. Nodes have their own clocks.
    pub fn now(&self) -> Instant {
        Instant(self.world.now())
    }

    /// The node's wall clock.
    pub fn unix_time(&self, node: SimNode) -> UnixTime {
        self.node(node).unix_time(&self.world)
    }

    /// The node's disk.
    pub fn disk(&self, node: SimNode) -> SimDisk {
        SimDisk::new(&self.world, self.node(node))
    }

    /// The node's name.
    pub fn name(&self, node: SimNode) -> String {
        self.node(node).name.clone()
    }

    /// A hash over every scheduling decision, timer, message and disk operation so far. Equal for equal runs, in any
    /// process.
    pub fn event_hash(&self) -> u64 {
        self.world.event_hash()
    }

    /// From now on tells `sink` of every event in a line: world time, kind and detail. To find where two runs of one
    /// seed part.
    pub fn trace(&self, sink: impl FnMut(&str) + 'static) {
        self.world.set_tracer(Box::new(sink));
    }

    /// Polls and events so far.
    pub fn steps(&self) -> u64 {
        self.world.steps()
    }

    fn node(&self, node: SimNode) -> Rc<Node> {
        self.world.node(node.0)
    }

    fn first_core(&self, node: SimNode) -> Rc<Core> {
        let node = self.node(node);
        if !node.is_running() {
            self.world.start(&node, 1, None);
        }
        let process = node.process.borrow();
        let core = process.as_ref().and_then(|process| process.cores.first());
        core.expect("it was started above").clone()
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        self.world.end();
    }
}
