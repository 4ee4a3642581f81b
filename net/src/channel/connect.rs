//! From an address to a connection, and what is known about it.

use super::driver::Driver;
use super::{Channel, Connected, Transport};
use crate::config::{ChannelConfig, ServerConfig};
use crate::memory::{ConnectionMemory, CoreMemory};
use crate::metrics::{NetMetrics, add, sub};
use crate::wire::wire;
use base::Instant;
use bytes::Bytes;
use executor::Class;
use executor::Notify;
use executor::net::TcpStream;
use http::uri::Authority;
use proto::rpc::Status;
use std::cell::Cell;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::rc::{Rc, Weak};
use std::time::Duration;

/// An address, read once.
pub(crate) struct Target {
    pub(crate) authority: Authority,
    /// Whether it is spoken to over TLS.
    pub(crate) is_tls: bool,
    pub(super) host: String,
    port: u16,
}

impl Target {
    /// Reads `host:port`, `http://host:port` or `https://host:port`. The scheme decides nothing: with certificates
    /// (`is_tls`) it is TLS in any case, and without them `https` cannot be.
    ///
    /// # Errors
    /// UNAVAILABLE if it is none of these, or `https` without certificates.
    pub(crate) fn parse(address: &str, is_tls: bool) -> Result<Target, Status> {
        let bad = |why: &str| Status::unavailable(format!("address {address:?}: {why}"));
        if address.starts_with("https://") && !is_tls {
            return Err(bad("no certificates are configured for TLS"));
        }
        let plain = address.strip_prefix("http://").or_else(|| address.strip_prefix("https://")).unwrap_or(address);
        let plain = plain.strip_suffix('/').unwrap_or(plain);
        let authority: Authority = plain.parse().map_err(|_| bad("neither host:port nor http(s)://host:port"))?;
        let port = authority.port_u16().ok_or_else(|| bad("it has no port"))?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Target { authority, is_tls, host, port })
    }

    /// The socket addresses, in the order to be tried.
    async fn resolve(&self) -> io::Result<Vec<SocketAddr>> {
        if let Ok(ip) = self.host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(ip, self.port)]);
        }
        if self.host == "localhost" {
            let ips: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
            return Ok(ips.map(|ip| SocketAddr::new(ip, self.port)).to_vec());
        }
        let (host, port) = (self.host.clone(), self.port);
        let look_up = move || (host.as_str(), port).to_socket_addrs().map(Iterator::collect);
        executor::blocking(Class::Foreground, look_up).await
    }

    pub(super) async fn connect(&self) -> io::Result<TcpStream> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for address in self.resolve().await? {
            match TcpStream::connect(address).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

/// The state of a channel's connection.
#[derive(Default)]
pub(crate) struct Link {
    state: State,
    /// Attempts that failed since the last that did not.
    failures: u32,
    /// The number of the newest connection.
    number: u64,
}

#[derive(Default)]
enum State {
    #[default]
    Idle,
    Connecting(Rc<Notify>),
    Up(Connected),
    Down {
        until: Instant,
        status: Status,
    },
}

impl Link {
    pub(crate) fn is_up(&self) -> bool {
        matches!(self.state, State::Up(_))
    }

    /// The connection of this number is of no use any more.
    pub(crate) fn broke(&mut self, number: u64) {
        if matches!(&self.state, State::Up(connected) if connected.number == number) {
            self.state = State::Idle;
        }
    }

    /// An attempt failed: none is made until some time has passed, and the longer the more have failed.
    fn failed(&mut self, status: Status, config: &ChannelConfig) {
        let wait = backoff(self.failures, config, executor::with_rng(|rng| rng.unit()));
        self.failures = self.failures.saturating_add(1);
        self.state = State::Down { until: executor::now() + wait, status };
    }
}

/// The wait after `failures` failures before this one: 1.6 times longer each, and up to a fifth more or less.
fn backoff(failures: u32, config: &ChannelConfig, chance: f64) -> Duration {
    let grown = config.backoff_min.as_secs_f64() * 1.6f64.powi(failures.min(64) as i32);
    let wait = grown.min(config.backoff_max.as_secs_f64());
    Duration::from_secs_f64(wait * (0.8 + 0.4 * chance))
}

impl Channel {
    /// The connection, made if there is none.
    ///
    /// # Errors
    /// UNAVAILABLE if it cannot be made, or could not a moment ago.
    pub(super) async fn connected(&self) -> Result<Connected, Status> {
        loop {
            let connecting = {
                let mut link = self.0.link.borrow_mut();
                match &link.state {
                    State::Up(connected) => return Ok(connected.clone()),
                    State::Down { until, status } if executor::now() < *until => {
                        return Err(status.clone());
                    }
                    State::Connecting(done) => Rc::clone(done),
                    State::Idle | State::Down { .. } => {
                        let done = Rc::new(Notify::new());
                        link.state = State::Connecting(Rc::clone(&done));
                        // A task of its own: the call that began it may be dropped, others may wait for it.
                        executor::spawn_local(Class::Foreground, connect(Rc::downgrade(&self.0), Rc::clone(&done)));
                        done
                    }
                }
            };
            connecting.notified().await;
            let link = self.0.link.borrow();
            if let State::Down { status, .. } = &link.state {
                return Err(status.clone());
            }
        }
    }
}

/// Connects, tells those who wait, and drives the connection to its end.
async fn connect(channel: Weak<super::Inner>, done: Rc<Notify>) {
    let driver = match channel.upgrade() {
        Some(channel) => {
            let driver = handshake(&channel).await;
            done.notify();
            driver
        }
        None => None,
    };
    let Some((driver, number)) = driver else {
        return;
    };
    let began = executor::now();
    let ended = driver.await;
    if let Some(channel) = channel.upgrade() {
        let mut link = channel.link.borrow_mut();
        let is_current = matches!(&link.state, State::Up(connected) if connected.number == number);
        let was_useless = !ended.has_read && executor::now().since(began) < channel.config.backoff_max;
        if is_current && was_useless {
            let why = ended.error.map(|error| format!(": {error}")).unwrap_or_default();
            let status = Status::unavailable(format!("the server closed the connection at once{why}"));
            link.failed(status, &channel.config);
        } else if is_current {
            link.state = State::Idle;
        }
    }
}

async fn handshake(channel: &Rc<super::Inner>) -> Option<(Driver<Transport>, u64)> {
    let result = attempt(channel).await;
    let mut link = channel.link.borrow_mut();
    match result {
        Ok((send, mut driver)) => {
            link.number += 1;
            link.failures = 0;
            let number = link.number;
            add(&channel.metrics.connections_total, 1);
            driver.counted = Some(Counted::begin(&channel.metrics));
            let open: Rc<Cell<u64>> = Rc::default();
            driver.open = Rc::clone(&open);
            let memory = Rc::clone(&driver.memory);
            link.state = State::Up(Connected { send, memory, open, number });
            Some((driver, number))
        }
        Err(status) => {
            link.failed(status, &channel.config);
            None
        }
    }
}

/// Counts a connection as open while it lives, which may be longer than its channel.
pub(crate) struct Counted(Rc<NetMetrics>);

impl Counted {
    fn begin(metrics: &Rc<NetMetrics>) -> Counted {
        add(&metrics.connections, 1);
        Counted(Rc::clone(metrics))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        sub(&self.0.connections, 1);
    }
}

type Ready = (h2::client::SendRequest<crate::memory::OutMessage>, Driver<Transport>);

async fn attempt(channel: &super::Inner) -> Result<Ready, Status> {
    let config = &channel.config;
    let target = channel.target.as_ref().map_err(Clone::clone)?;
    let cannot = |why: String| Status::unavailable(format!("cannot connect to {}:{}: {why}", target.host, target.port));
    let stream = executor::timeout(config.connect_timeout, Transport::connect(target, config.tls.as_ref()))
        .await
        .map_err(|_| cannot("no answer in time".to_owned()))?
        .map_err(|error| cannot(error.to_string()))?;
    if target.is_tls {
        add(&channel.metrics.tls_handshakes_total, 1);
    }
    let budgets = ServerConfig { core_window_bytes: 0, ..ServerConfig::default() };
    let core = CoreMemory::new(&budgets, Rc::clone(&channel.metrics));
    let memory = ConnectionMemory::new(&core, &budgets);
    let (end, handle) = wire(stream, Bytes::new(), None, Rc::clone(&channel.metrics));
    let (send, mut h2) = h2::client::Builder::new()
        .enable_push(false)
        .initial_window_size(config.stream_window_bytes)
        .initial_connection_window_size(config.connection_window_bytes)
        .max_header_list_size(64 << 10)
        .max_frame_size(256 << 10)
        .max_concurrent_reset_streams(1024)
        .reset_stream_duration(Duration::from_secs(30))
        .max_local_error_reset_streams(None)
        .handshake(end)
        .await
        .map_err(|error| cannot(error.to_string()))?;
    let pings = h2.ping_pong();
    Ok((send, Driver::new(h2, handle, memory, pings, config.clone())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_with_and_without_scheme() {
        for good in ["127.0.0.1:20160", "http://127.0.0.1:20160", "http://127.0.0.1:20160/", "https://127.0.0.1:20160"]
        {
            let target = Target::parse(good, true).expect(good);
            assert_eq!((target.host.as_str(), target.port, target.is_tls), ("127.0.0.1", 20160, true));
            assert_eq!(Target::parse(good, false).is_ok_and(|target| !target.is_tls), !good.starts_with("https"));
        }
        let target = Target::parse("[::1]:2379", false).expect("IPv6");
        assert_eq!((target.host.as_str(), target.port), ("::1", 2379));
        for bad in ["", "host", "https://host:1", "http://host", "a b:1", "host:x", "host:1/path"] {
            assert!(Target::parse(bad, false).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_wait_grows_to_its_bound_and_is_scattered() {
        let config = ChannelConfig::default();
        let waits: Vec<_> = (0..10).map(|n| backoff(n, &config, 0.5).as_millis()).collect();
        assert_eq!(waits[..4], [100, 160, 256, 409]);
        assert_eq!(waits[9], 3000);
        assert_eq!(backoff(0, &config, 0.0), Duration::from_millis(80));
        assert_eq!(backoff(u32::MAX, &config, 1.0).as_millis(), 3600);
    }
}
