//! Listeners: a port of a node, and the connections that wait there.

use super::conn::{Conn, End};
use super::stream::SimStream;
use super::{EndKey, Net};
use crate::sim::context;
use crate::sim::node::Node;
use crate::sim::world::{Note, World};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::task::{Poll, Waker};

/// First port that a bind to port 0, or an outgoing connection, may get.
const FIRST_FREE_PORT: u16 = 32_768;

pub(super) struct Listener {
    ip: IpAddr,
    backlog: VecDeque<EndKey>,
    wakers: Vec<Waker>,
}

/// A bound port. Dropped, it resets the connections that nobody took.
pub(crate) struct SimListener {
    world: Rc<World>,
    node: usize,
    run: u32,
    address: SocketAddr,
}

/// What became of a connection attempt that reached its node.
pub(super) enum Knock {
    /// No answer: the link is blocked, or the backlog full.
    Lost,
    /// Nobody listens.
    Refused,
    /// The client's end; the other waits in the backlog.
    Accepted(SimStream),
}

impl Node {
    /// A port that nothing of this node uses.
    fn free_port(&self, net: &Net) -> io::Result<u16> {
        for _ in FIRST_FREE_PORT..=u16::MAX {
            let port = self.next_port.get().max(FIRST_FREE_PORT);
            self.next_port.set(port.wrapping_add(1));
            if !net.listeners.contains_key(&(self.index, port)) {
                return Ok(port);
            }
        }
        Err(ErrorKind::AddrInUse.into())
    }
}

impl Net {
    /// Removes all listeners of a node.
    pub(super) fn take_listeners(&mut self, node: usize) -> Vec<Listener> {
        self.listeners.extract_if((node, 0)..=(node, u16::MAX), |_, _| true).map(|(_, listener)| listener).collect()
    }
}

impl SimListener {
    /// Binds to an address of the current node, the unspecified or a loopback one; port 0 picks a free one.
    ///
    /// # Errors
    /// `AddrInUse`, or `AddrNotAvailable` for an address of another node.
    pub(crate) async fn bind(address: SocketAddr) -> io::Result<SimListener> {
        let core = context::current();
        let (world, node) = (&core.world, &core.node);
        let ip = address.ip();
        if ip != node.ip && !ip.is_unspecified() && !ip.is_loopback() {
            return Err(ErrorKind::AddrNotAvailable.into());
        }
        let mut net = world.net.borrow_mut();
        let port = match address.port() {
            0 => node.free_port(&net)?,
            port => port,
        };
        if net.listeners.contains_key(&(node.index, port)) {
            return Err(ErrorKind::AddrInUse.into());
        }
        world.note(Note::Bind, (node.index as u64) << 16 | u64::from(port));
        let listener = Listener { ip, backlog: VecDeque::new(), wakers: Vec::new() };
        net.listeners.insert((node.index, port), listener);
        Ok(SimListener { world: world.clone(), node: node.index, run: core.run, address: SocketAddr::new(ip, port) })
    }

    /// Where it listens, with the port that was picked.
    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }

    /// Waits for a connection. Several may wait at once.
    ///
    /// # Errors
    /// None so far; real sockets have some.
    pub(crate) async fn accept(&self) -> io::Result<(SimStream, SocketAddr)> {
        let end = poll_fn(|cx| {
            let mut net = self.world.net.borrow_mut();
            let Some(listener) = net.listeners.get_mut(&(self.node, self.address.port())) else {
                return Poll::Pending; // the node is dead
            };
            match listener.backlog.pop_front() {
                Some(end) => Poll::Ready(end),
                None => {
                    if !listener.wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
                        listener.wakers.push(cx.waker().clone());
                    }
                    Poll::Pending
                }
            }
        })
        .await;
        self.world.note(Note::Accept, end.mark());
        let stream = SimStream::new(&self.world, end);
        let peer = stream.peer_addr()?;
        Ok((stream, peer))
    }
}

impl Drop for SimListener {
    fn drop(&mut self) {
        if self.world.node(self.node).run.get() != self.run {
            return; // the node's death took the listener; the port may belong to its next run
        }
        let key = (self.node, self.address.port());
        let listener = self.world.net.borrow_mut().listeners.remove(&key);
        for end in listener.iter().flat_map(|listener| &listener.backlog) {
            self.world.close(*end);
        }
    }
}

impl World {
    /// The node that `address` means for a client on node `from`.
    pub(super) fn resolve(&self, from: &Node, address: SocketAddr) -> Option<usize> {
        if address.ip().is_loopback() || address.ip() == from.ip {
            return Some(from.index);
        }
        let nodes = self.nodes.borrow();
        nodes.iter().find(|node| node.ip == address.ip()).map(|node| node.index)
    }

    /// A connection attempt from `from` reaches the node `to`.
    pub(super) fn knock(self: &Rc<Self>, from: &Node, to: usize, address: SocketAddr) -> io::Result<Knock> {
        let mut net = self.net.borrow_mut();
        if net.is_cut(from.index, to) {
            return Ok(Knock::Lost);
        }
        let reaches = |bound: IpAddr| bound.is_unspecified() || bound == address.ip();
        match net.listeners.get(&(to, address.port())) {
            Some(listener) if reaches(listener.ip) => {
                if listener.backlog.len() >= self.config.backlog {
                    return Ok(Knock::Lost);
                }
            }
            _ => return Ok(Knock::Refused),
        }
        let ip = if address.ip().is_loopback() { address.ip() } else { from.ip };
        let local = SocketAddr::new(ip, from.free_port(&net)?);
        let end = net.add(Conn::new([End::new(from.index, local), End::new(to, address)]));
        let mut wakers = Vec::new();
        if let Some(listener) = net.listeners.get_mut(&(to, address.port())) {
            listener.backlog.push_back(end.other());
            wakers.append(&mut listener.wakers);
        }
        self.note(Note::Connect, end.mark());
        drop(net);
        wakers.into_iter().for_each(Waker::wake);
        Ok(Knock::Accepted(SimStream::new(self, end)))
    }
}
