//! Our channel against our server: on sockets of every kind, plain and with mutual TLS, and in the simulator.

#[path = "common/certificates.rs"]
mod certificates;
mod common;

use bytes::Bytes;
use certificates::Files;
use common::{Seen, TestServer, kinds, server};
use executor::Class;
use executor::net::TcpListener;
use executor::sim::{Link, Sim, SimConfig, SimNode};
use net::{Channel, ChannelConfig, Health, ServerConfig, Serving};
use proto::health::{HealthCheckRequest, HealthClient};
use proto::rpc::{self, CallContext, Channel as _, Code, Metadata, RawInbound, Shape, Status};
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use test_certificates::{Authority, Wish};

const ECHO: &str = "/test.Test/Echo";
const LIMIT: Duration = Duration::from_secs(300);

fn context(pairs: &[(&str, &str)], timeout: Option<Duration>) -> CallContext {
    let mut metadata = Metadata::new();
    for (name, value) in pairs {
        metadata.push(name, *value);
    }
    CallContext { metadata, deadline: timeout.map(|timeout| executor::now() + timeout), peer: None }
}

async fn echo(channel: &Channel, message: impl Into<Bytes>) -> Result<Bytes, Status> {
    channel.unary(ECHO, context(&[], None), message.into()).await
}

async fn next(inbound: &mut Box<dyn RawInbound>) -> Result<Option<Bytes>, Status> {
    poll_fn(|cx| inbound.poll_message(cx)).await.transpose()
}

async fn send(outbound: &Rc<dyn rpc::RawOutbound>, message: impl Into<Bytes>) -> Result<(), Status> {
    let mut message = Some(message.into());
    poll_fn(|cx| outbound.poll_send(cx, &mut message)).await
}

/// All that a channel has to do while the server is there.
async fn exercise(address: String, config: ChannelConfig) {
    let channel = Channel::new(address, config);
    assert!(!channel.is_connected(), "nothing is sent before the first call");
    for size in [0, 1, 20_000, 5 << 20] {
        let message = Bytes::from(vec![3; size]);
        assert_eq!(echo(&channel, message.clone()).await, Ok(message));
    }
    assert!(channel.is_connected());

    let cx = context(&[("code", "9"), ("message", "später: 5%")], None);
    let cx = CallContext {
        metadata: {
            let mut m = Metadata::new();
            m.push("code", "9");
            m.push("message", "soon: 5%");
            m
        },
        ..cx
    };
    let failed = channel.unary("/test.Test/Fail", cx, Bytes::new()).await;
    assert_eq!(failed, Err(Status::failed_precondition("soon: 5%")));
    let unknown = channel.unary("/test.Test/None", context(&[], None), Bytes::new()).await;
    assert_eq!(unknown.map_err(|status| status.code), Err(Code::Unimplemented));

    let cx = context(&[("millis", "60000")], Some(Duration::from_millis(50)));
    let late = channel.unary("/test.Test/Sleep", cx, Bytes::new()).await;
    assert_eq!(late.map_err(|status| status.code), Err(Code::DeadlineExceeded));

    let mut cx = context(&[("twice", "a"), ("twice", "b")], Some(Duration::from_secs(9)));
    cx.metadata.push("raw-bin", vec![0, 255]);
    let text = channel.unary("/test.Test/Describe", cx, Bytes::new()).await.expect("an answer");
    assert_eq!(&text[..], b"raw-bin=[0, 255]\ntwice=[97]\ntwice=[98]\npeer=true\ndeadline=true");

    let cx = context(&[("messages", "300"), ("bytes", "10000")], None);
    let (mut inbound, outbound) = channel.stream("/test.Test/Count", cx).await.expect("a stream");
    send(&outbound, "go").await.expect("sent");
    outbound.close();
    for i in 0..300u32 {
        assert_eq!(next(&mut inbound).await, Ok(Some(Bytes::from(vec![i as u8; 10_000]))));
    }
    assert_eq!(next(&mut inbound).await, Ok(None));
    assert_eq!(next(&mut inbound).await, Ok(None));

    let (mut inbound, outbound) = channel.stream("/test.Test/Bidi", context(&[], None)).await.expect("a stream");
    for i in 0..100u8 {
        send(&outbound, vec![i; 1000]).await.expect("sent");
        assert_eq!(next(&mut inbound).await, Ok(Some(Bytes::from(vec![i; 1000]))));
    }
    drop(outbound);
    assert_eq!(next(&mut inbound).await, Ok(None), "dropping the sender is the half-close");

    let cx = context(&[("end-after", "2")], None);
    let (mut inbound, outbound) = channel.stream("/test.Test/Bidi", cx).await.expect("a stream");
    send(&outbound, "a").await.expect("sent");
    send(&outbound, "b").await.expect("sent");
    assert_eq!(next(&mut inbound).await, Ok(Some(Bytes::from("a"))));
    assert_eq!(next(&mut inbound).await, Ok(Some(Bytes::from("b"))));
    assert_eq!(next(&mut inbound).await, Err(Status::aborted("enough")));
    assert!(send(&outbound, "c").await.is_err());

    let clones: Vec<_> = (0..200u32)
        .map(|i| {
            let channel = channel.clone();
            executor::spawn_local(Class::Foreground, async move {
                assert_eq!(echo(&channel, i.to_be_bytes().to_vec()).await, Ok(Bytes::from(i.to_be_bytes().to_vec())));
            })
        })
        .collect();
    for clone in clones {
        clone.await;
    }
    assert_eq!(channel.metrics().connections_total.get(), 1);
    assert_eq!(channel.metrics().streams.get(), 0);
}

#[test]
fn calls_of_all_shapes_over_sockets() {
    let authority = Authority::new("test authority");
    let files = Files::new(&authority, &authority.sign(&Wish::default()));
    let ways = kinds().into_iter().flat_map(|io| [(io, None), (io, Some(files.tls(&["node"])))]);
    for (io, tls) in ways {
        let server = TestServer::start(io, ServerConfig { tls: tls.clone(), ..ServerConfig::default() });
        let address = server.address.to_string();
        executor::run_one(io, move || exercise(address, ChannelConfig { tls, ..ChannelConfig::default() }));
        server.wait_for("connections", |open| open == 0);
        assert_eq!(server.metric("connections_total"), 1);
        assert_eq!(server.metric("inbound_bytes"), 0);
    }
}

#[test]
fn streams_push_back_on_a_sender_whose_server_does_not_read() {
    for io in kinds() {
        let server = TestServer::start(io, ServerConfig::default());
        let address = format!("http://{}", server.address);
        executor::run_one(io, move || async move {
            let channel = Channel::new(address, ChannelConfig::default());
            let (inbound, outbound) = channel.stream("/test.Test/Ignore", context(&[], None)).await.expect("a stream");
            let mut sent = 0u64;
            while sent <= 2 << 20 {
                let more = executor::timeout(Duration::from_secs(30), send(&outbound, vec![0; 100_000])).await;
                more.expect("a window's worth").expect("sent");
                sent += 100_000;
            }
            while executor::timeout(Duration::from_millis(300), send(&outbound, vec![0; 100_000])).await.is_ok() {
                sent += 100_000;
                assert!(sent < 16 << 20, "no push-back");
            }
            // Others are not held up.
            assert_eq!(echo(&channel, "x").await, Ok(Bytes::from("x")));
            drop(inbound);
            assert!(send(&outbound, "late").await.is_err(), "the call is cancelled");
            // The reset goes out before it; the connection ends with the core.
            assert_eq!(echo(&channel, "y").await, Ok(Bytes::from("y")));
        });
        server.wait_for("cancelled_total", |count| count == 1);
        assert_eq!(server.seen.dropped(), 1);
    }
}

#[test]
fn an_address_that_nobody_serves_is_unavailable_at_once_and_then_by_memory() {
    for io in kinds() {
        executor::run_one(io, || async {
            let any = "127.0.0.1:0".parse().expect("an address");
            let listener = TcpListener::bind(any).await.expect("a free port");
            let address = listener.local_addr().expect("bound");
            drop(listener);
            let channel = Channel::new(address.to_string(), ChannelConfig::default());
            for _ in 0..50 {
                assert_eq!(echo(&channel, "x").await.map_err(|status| status.code), Err(Code::Unavailable));
            }
            for bad in ["nonsense", "https://127.0.0.1:1", "no-such-host.invalid:80"] {
                let channel = Channel::new(bad.to_owned(), ChannelConfig::default());
                assert_eq!(echo(&channel, "x").await.map_err(|status| status.code), Err(Code::Unavailable), "{bad}");
            }
        });
    }
}

#[test]
fn health_can_be_watched() {
    executor::run_one(executor::IoChoice::Epoll, || async {
        let any = "127.0.0.1:0".parse().expect("an address");
        let listener = TcpListener::bind(any).await.expect("a free port");
        let address = listener.local_addr().expect("bound").to_string();
        let health = Health::new();
        let router = net::Router::new().add(health.service());
        let server = net::Server::new(Rc::new(router), None, ServerConfig::default(), Rc::default());
        executor::spawn_local(Class::Foreground, async move {
            while let Ok((stream, _)) = listener.accept().await {
                let server = server.clone();
                executor::spawn_local(Class::Foreground, async move { server.serve(stream).await });
            }
        });
        let client = HealthClient::new(Channel::new(address, ChannelConfig::default()));
        let request = HealthCheckRequest { service: "tikv".to_owned() };
        let mut watch = client.watch(CallContext::default(), &request).await.expect("a stream");
        let mut seen = vec![watch.next().await.expect("a message").expect("not the end").status];
        for serving in [Serving::Yes, Serving::Yes, Serving::No, Serving::Unknown] {
            health.set("tikv", serving);
            if serving != Serving::Yes || seen.len() == 1 {
                seen.push(watch.next().await.expect("a message").expect("not the end").status);
            }
        }
        assert_eq!(seen, [3, 1, 2, 0], "unknown service, serving, not serving, unknown");
        let checked = client.check(CallContext::default(), &HealthCheckRequest::default()).await.expect("an answer");
        assert_eq!(checked.status, 1);
        health.stop();
        assert_eq!(watch.next().await.expect("a message").expect("not the end").status, 2, "not serving");
        assert_eq!(watch.next().await.map_err(|status| status.code), Err(Code::Unavailable), "let go");
        let checked = client.check(CallContext::default(), &HealthCheckRequest::default()).await.expect("an answer");
        assert_eq!(checked.status, 2);
    });
}

#[test]
fn a_channel_that_is_dropped_closes_its_connection_and_is_not_counted_any_more() {
    for io in kinds() {
        let server = TestServer::start(io, ServerConfig::default());
        let address = server.address.to_string();
        executor::run_one(io, move || async move {
            let metrics: Rc<net::NetMetrics> = Rc::default();
            let new = || Channel::with_metrics(address.clone(), ChannelConfig::default(), Rc::clone(&metrics));
            let (first, second) = (new(), new());
            for channel in [&first, &second] {
                echo(channel, "x").await.expect("an answer");
            }
            assert_eq!(metrics.connections.get(), 2);
            drop(first);
            let closed = async {
                while metrics.connections.get() != 1 {
                    executor::sleep(Duration::from_millis(1)).await;
                }
            };
            executor::timeout(Duration::from_secs(30), closed).await.expect("closed");
            echo(&second, "x").await.expect("the other one goes on");
        });
        server.wait_for("connections", |open| open == 0);
    }
}

/// A cluster of a server and a client.
struct World {
    sim: Sim,
    server: SimNode,
    client: SimNode,
}

const ADDRESS: &str = "10.0.0.1:7000";

impl World {
    fn new(seed: u64) -> World {
        let sim = Sim::new(seed, SimConfig::default());
        let server = sim.add_node("server", "10.0.0.1".parse().expect("an address"));
        let client = sim.add_node("client", "10.0.0.2".parse().expect("an address"));
        let world = World { sim, server, client };
        world.serve(ServerConfig::default());
        world
    }

    fn serve(&self, config: ServerConfig) {
        self.sim.start(self.server, 1, move |_| {
            let config = config.clone();
            Box::pin(async move {
                let listener = TcpListener::bind(ADDRESS.parse().expect("an address")).await.expect("a free port");
                let server = server(Arc::new(Seen::default()), config, Rc::default());
                loop {
                    if let Ok((stream, _)) = listener.accept().await {
                        let server = server.clone();
                        executor::spawn_local(Class::Foreground, async move { server.serve(stream).await });
                    }
                }
            })
        });
    }

    fn run<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> T {
        self.sim.block_on(self.client, future, LIMIT).expect("done within the limit")
    }
}

#[test]
fn calls_of_all_shapes_in_the_simulator_are_the_same_run_for_the_same_seed() {
    let hash = |seed| {
        let world = World::new(seed);
        world.run(exercise(ADDRESS.to_owned(), ChannelConfig::default()));
        world.sim.event_hash()
    };
    for seed in 0..5 {
        assert_eq!(hash(seed), hash(seed), "seed {seed}");
    }
    assert_ne!(hash(1), hash(2));
}

#[test]
fn a_channel_outlives_restarts_and_partitions_of_its_server() {
    for seed in 0..20 {
        let world = World::new(seed);
        let channel: Rc<RefCell<Option<Channel>>> = Rc::default();
        let made = Rc::clone(&channel);
        world.run(async move {
            let new = Channel::new(ADDRESS.to_owned(), ChannelConfig::default());
            echo(&new, "first").await.expect("an answer");
            *made.borrow_mut() = Some(new);
        });
        let channel = channel.borrow().clone().expect("made above");
        world.sim.kill(world.server);
        let down = channel.clone();
        world.run(async move {
            let failed = echo(&down, "x").await.expect_err("nobody is there");
            assert_eq!(failed.code, Code::Unavailable, "{failed}");
        });
        world.serve(ServerConfig::default());
        let up = channel.clone();
        world.run(async move {
            let mut attempts = 0;
            while echo(&up, "x").await.is_err() {
                attempts += 1;
                assert!(attempts < 100, "it never comes back");
                executor::sleep(Duration::from_millis(100)).await;
            }
        });
        // A server that is silent is found dead by pings, in about 13 s, though the call has no deadline.
        world.sim.partition(world.server, world.client);
        let silent = channel.clone();
        world.run(async move {
            let began = executor::now();
            let failed = echo(&silent, "x").await.expect_err("no answer comes");
            assert_eq!(failed.code, Code::Unavailable, "{failed}");
            let took = executor::now().since(began);
            assert!(took > Duration::from_secs(12) && took < Duration::from_secs(15), "{took:?}");
        });
        world.sim.heal(world.server, world.client);
        world.run(async move {
            let mut attempts = 0;
            while echo(&channel, "x").await.is_err() {
                attempts += 1;
                assert!(attempts < 100, "it never comes back");
                executor::sleep(Duration::from_millis(100)).await;
            }
        });
    }
}

#[test]
fn no_call_is_lost_or_answered_with_another_ones_answer_over_a_bad_link() {
    for seed in 0..20 {
        let world = World::new(seed);
        let bad = Link { latency: Duration::from_micros(50), jitter: Duration::from_millis(20), reset_rate: 0.002 };
        world.sim.set_link(world.client, world.server, bad);
        world.sim.set_link(world.server, world.client, bad);
        let (good, failed) = world.run(async {
            let channel = Channel::new(ADDRESS.to_owned(), ChannelConfig::default());
            let (good, failed) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
            let tasks: Vec<_> = (0..20u32)
                .map(|task| {
                    let (channel, good, failed) = (channel.clone(), Rc::clone(&good), Rc::clone(&failed));
                    executor::spawn_local(Class::Foreground, async move {
                        for call in 0..50u32 {
                            let message = Bytes::from([task.to_be_bytes(), call.to_be_bytes()].concat());
                            match echo(&channel, message.clone()).await {
                                Ok(back) => {
                                    assert_eq!(back, message);
                                    good.set(good.get() + 1);
                                }
                                Err(status) => {
                                    assert_eq!(status.code, Code::Unavailable, "{status}");
                                    failed.set(failed.get() + 1);
                                    executor::sleep(Duration::from_millis(50)).await;
                                }
                            }
                        }
                    })
                })
                .collect();
            for task in tasks {
                task.await;
            }
            (good.get(), failed.get())
        });
        assert_eq!(good + failed, 1000);
        assert!(good > 200, "seed {seed}: {good} of 1000");
    }
}

#[test]
fn the_server_pings_a_silent_client_and_forgets_it() {
    let world = World::new(7);
    world.sim.kill(world.server);
    let left = Rc::new(Cell::new(false));
    let config = ServerConfig {
        keepalive_interval: Some(Duration::from_secs(2)),
        keepalive_timeout: Duration::from_secs(1),
        ..ServerConfig::default()
    };
    let seen = Rc::clone(&left);
    world.sim.start(world.server, 1, move |_| {
        let (config, seen) = (config.clone(), Rc::clone(&seen));
        Box::pin(async move {
            let listener = TcpListener::bind(ADDRESS.parse().expect("an address")).await.expect("a free port");
            let server = server(Arc::new(Seen::default()), config, Rc::default());
            let (stream, _) = listener.accept().await.expect("a client");
            server.serve(stream).await;
            seen.set(true);
            std::future::pending::<()>().await;
        })
    });
    let kept = world.run(async {
        let channel = Channel::new(ADDRESS.to_owned(), ChannelConfig::default());
        echo(&channel, "x").await.expect("an answer");
        channel
    });
    world.sim.run_for(Duration::from_secs(20));
    assert!(!left.get(), "an idle client that answers pings stays");
    world.sim.partition(world.server, world.client);
    world.sim.run_for(Duration::from_secs(5));
    assert!(left.get(), "one that does not is forgotten");
    drop(kept);
}

#[test]
fn shapes_of_the_echo_service() {
    use proto::rpc::Service;
    assert_eq!(net::echo::Echo.shape("Call"), Some(Shape::Unary));
    assert_eq!(net::echo::Echo.shape("Stream"), Some(Shape::Bidi));
    assert_eq!(net::echo::Echo.shape("call"), None);
}
