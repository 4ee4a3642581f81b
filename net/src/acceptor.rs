//! Placing of connections: one core accepts, the core with the fewest busy connections serves.
//!
//! Clients open one to four connections and keep them; hashing them would leave cores without any.

use executor::MailSender;
use executor::net::{StreamHandoff, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Wait after an error of accept, which is most often a lack of descriptors.
const ERROR_WAIT: Duration = Duration::from_millis(50);

/// How many connections a core has; shared between the core and the acceptor.
#[derive(Clone, Debug, Default)]
pub struct ConnectionCounter(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    open: AtomicU64,
    busy: AtomicU64,
}

impl ConnectionCounter {
    /// No connection yet.
    pub fn new() -> ConnectionCounter {
        ConnectionCounter::default()
    }

    /// Connections that are open, on their way to the core included.
    pub fn open(&self) -> u64 {
        self.0.open.load(Ordering::Relaxed)
    }

    /// Those of them that are new or had a call within the last minute or so.
    pub fn busy(&self) -> u64 {
        self.0.busy.load(Ordering::Relaxed)
    }

    /// Counts one more connection, busy at first, until the guard drops.
    fn count(&self) -> ConnectionGuard {
        self.0.open.fetch_add(1, Ordering::Relaxed);
        self.0.busy.fetch_add(1, Ordering::Relaxed);
        ConnectionGuard { counter: self.clone(), is_busy: true }
    }
}

/// One counted connection.
#[derive(Debug)]
pub(crate) struct ConnectionGuard {
    counter: ConnectionCounter,
    is_busy: bool,
}

impl ConnectionGuard {
    /// Says whether the connection has work.
    pub(crate) fn set_busy(&mut self, is_busy: bool) {
        if is_busy != self.is_busy {
            self.is_busy = is_busy;
            let busy = &self.counter.0.busy;
            if is_busy {
                busy.fetch_add(1, Ordering::Relaxed);
            } else {
                busy.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.set_busy(false);
        self.counter.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection on its way to its core: for [`Server::serve_placed`](crate::Server::serve_placed).
#[derive(Debug)]
pub struct Placed {
    pub(crate) stream: StreamHandoff,
    pub(crate) guard: ConnectionGuard,
}

/// How to send a connection to its core; gives it back if the core does not take it.
type Send = Box<dyn Fn(Placed) -> Result<(), Placed>>;

/// A core that serves connections.
pub struct Target {
    counter: ConnectionCounter,
    send: Send,
}

impl Target {
    /// A core that gets its connections by `send`, which must not wait and gives back what it cannot take.
    pub fn new(counter: ConnectionCounter, send: impl Fn(Placed) -> Result<(), Placed> + 'static) -> Target {
        Target { counter, send: Box::new(send) }
    }

    /// A core that gets its connections from a mailbox.
    pub fn mailbox(counter: ConnectionCounter, mailbox: MailSender<Placed>) -> Target {
        Target::new(counter, move |placed| mailbox.try_send(placed).map_err(|full| full.0))
    }
}

/// Accepts for several cores.
pub struct Acceptor {
    targets: Vec<Target>,
    next: usize,
}

impl Acceptor {
    /// An acceptor that places connections on `targets`, of which there is at least one.
    ///
    /// # Panics
    /// If there is none.
    pub fn new(targets: Vec<Target>) -> Acceptor {
        assert!(!targets.is_empty(), "somebody has to serve");
        Acceptor { targets, next: 0 }
    }

    /// Accepts until the future is dropped.
    pub async fn run(mut self, listener: TcpListener) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => self.place(stream),
                Err(_) => executor::sleep(ERROR_WAIT).await,
            }
        }
    }

    /// Gives a connection to the core with the fewest busy ones, then the fewest open ones, then the next in turn; if
    /// that one takes none, to another. If none does, the connection is closed.
    fn place(&mut self, stream: TcpStream) {
        // An error has closed the connection.
        let Ok(mut stream) = stream.into_handoff() else {
            return;
        };
        for index in self.order() {
            let target = &self.targets[index];
            match (target.send)(Placed { stream, guard: target.counter.count() }) {
                Ok(()) => {
                    self.next = index + 1;
                    return;
                }
                Err(back) => stream = back.stream,
            }
        }
    }

    /// The cores, best first.
    fn order(&self) -> Vec<usize> {
        let count = self.targets.len();
        let mut order: Vec<usize> = (0..count).map(|i| (self.next + i) % count).collect();
        order.sort_by_key(|index| {
            let counter = &self.targets[*index].counter;
            (counter.busy(), counter.open())
        });
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acceptor(cores: usize) -> (Acceptor, Vec<ConnectionCounter>) {
        let counters: Vec<_> = (0..cores).map(|_| ConnectionCounter::new()).collect();
        let targets = counters.iter().map(|counter| Target::new(counter.clone(), Err));
        (Acceptor::new(targets.collect()), counters)
    }

    #[test]
    fn the_core_with_the_fewest_busy_connections_comes_first() {
        let (acceptor, counters) = acceptor(3);
        let mut guards: Vec<_> = [0, 0, 1, 2, 2].iter().map(|core: &usize| counters[*core].count()).collect();
        assert_eq!(acceptor.order()[0], 1);
        guards[3].set_busy(false);
        guards[4].set_busy(false);
        assert_eq!(acceptor.order(), [2, 1, 0]);
        drop(guards);
        assert!(counters.iter().all(|counter| counter.open() == 0 && counter.busy() == 0));
    }

    #[test]
    fn equal_cores_take_turns() {
        let (mut acceptor, _) = acceptor(3);
        let mut firsts = Vec::new();
        for _ in 0..6 {
            let first = acceptor.order()[0];
            firsts.push(first);
            acceptor.next = first + 1;
        }
        assert_eq!(firsts, [0, 1, 2, 0, 1, 2]);
    }
}
