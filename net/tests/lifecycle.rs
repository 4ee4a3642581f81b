//! From the first byte of a connection to what is left of it: greeting, placing, stopping, release.

#[path = "common/client.rs"]
mod client;
mod common;
#[path = "common/raw.rs"]
mod raw;

use bytes::Bytes;
use client::{Client, block_on, with};
use common::{Seen, TestServer, kinds, resident_bytes, server};
use executor::Class;
use executor::io::{AsyncRead, AsyncWrite, ReadBuf};
use executor::net::{TcpListener, TcpStream};
use executor::sim::{Sim, SimConfig};
use net::{Acceptor, Channel, ChannelConfig, ConnectionCounter, Placed, Router, Server, ServerConfig, Target};
use proto::rpc::{CallContext, Channel as _, LocalFuture, RawInbound, RawOutbound, Service, Shape, Status, refuse};
use raw::{
    ACK, DATA, END_HEADERS, END_STREAM, End, Frame, GOAWAY, HEADERS, PING, RST_STREAM, Raw, SETTINGS, WINDOW_UPDATE,
    call, frame, header, message,
};
use std::cell::{Cell, RefCell};
use std::io::{Read, Write};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tonic::Code;

/// Longer than anything takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// A limit that is not to be reached.
const NEVER: Duration = Duration::from_secs(300);

/// The answers to a ping after which all that was said before has come.
fn until_pong(raw: &mut Raw) -> Vec<Frame> {
    raw.send(&frame(PING, 0, 0, b"in order"));
    let mut frames = Vec::new();
    loop {
        let frame = raw.frame(PATIENCE).expect("the server answers");
        if frame.kind == PING && frame.flags & ACK != 0 {
            return frames;
        }
        frames.push(frame);
    }
}

/// What comes at the beginning of a connection, its window included: h2 may send that behind its first pong.
fn greeting(raw: &mut Raw) -> Vec<Frame> {
    let mut frames = until_pong(raw);
    frames.extend(until_pong(raw));
    frames
}

/// Reads to the end, and answers pings as decent clients do.
fn rest_politely(raw: &mut Raw) -> Vec<Frame> {
    let mut frames = Vec::new();
    loop {
        match raw.frame(PATIENCE) {
            Ok(ping) if ping.kind == PING && ping.flags & ACK == 0 => {
                raw.send(&frame(PING, ACK, 0, &ping.payload));
            }
            Ok(other) => frames.push(other),
            Err(end) => {
                assert_eq!(end, End::Closed);
                return frames;
            }
        }
    }
}

fn number(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes.try_into().expect("four bytes"))
}

/// What the server adds to the connection's window at its beginning.
fn window_of(raw: &mut Raw) -> u32 {
    let frames = greeting(raw);
    frames.iter().filter(|frame| frame.kind == WINDOW_UPDATE).map(|frame| number(&frame.payload)).sum()
}

#[test]
fn a_server_greets_with_its_windows_and_limits() {
    for io in kinds() {
        let server = TestServer::start(io, ServerConfig::default());
        let mut raw = Raw::greeted(server.address, &[]);
        let frames = greeting(&mut raw);
        let settings = frames.iter().find(|frame| frame.kind == SETTINGS && frame.flags == 0).expect("settings");
        let value = |wanted: u16| {
            let pairs = settings.payload.chunks(6);
            let found = pairs.filter(|pair| pair[..2] == wanted.to_be_bytes()).map(|pair| number(&pair[2..])).next();
            found.expect("announced")
        };
        assert_eq!(value(3), 1024, "streams");
        assert_eq!(value(4), 2 << 20, "window of a stream");
        assert_eq!(value(5), 256 << 10, "largest frame");
        assert_eq!(value(6), 32 << 10, "largest header list");
        let window: u32 = frames.iter().filter(|f| f.kind == WINDOW_UPDATE).map(|f| number(&f.payload)).sum();
        assert_eq!(window, (16 << 20) - 65_535, "window of the connection");
    }
}

#[test]
fn streams_beyond_the_limit_are_refused_in_a_way_that_is_safe_to_repeat() {
    const REFUSED_STREAM: u32 = 7;
    for io in kinds() {
        let server = TestServer::start(io, ServerConfig { streams_max: 2, ..ServerConfig::default() });
        let mut raw = Raw::greeted(server.address, &[]);
        until_pong(&mut raw);
        for stream in [1, 3, 5] {
            raw.send(&frame(HEADERS, END_HEADERS, stream, &call("/test.Test/Echo")));
        }
        let frames = until_pong(&mut raw);
        let reset: Vec<_> = frames.iter().filter(|frame| frame.kind == RST_STREAM).collect();
        assert_eq!(reset.iter().map(|f| (f.stream, number(&f.payload))).collect::<Vec<_>>(), [(5, REFUSED_STREAM)]);
        raw.send(&frame(DATA, END_STREAM, 1, &message(b"room")));
        loop {
            let frame = raw.frame(PATIENCE).expect("an answer");
            if frame.kind == HEADERS && frame.flags & END_STREAM != 0 {
                break;
            }
        }
        raw.send(&frame(HEADERS, END_HEADERS, 7, &call("/test.Test/Echo")));
        assert!(until_pong(&mut raw).iter().all(|frame| frame.kind != RST_STREAM), "room again");
    }
}

#[test]
fn content_types_of_stock_clients_are_served() {
    for io in kinds() {
        let server = TestServer::start(io, ServerConfig::default());
        let mut raw = Raw::greeted(server.address, &[]);
        let types = ["application/grpc", "application/grpc+proto", "application/grpc;charset=utf-8"];
        for (i, kind) in types.iter().enumerate() {
            let stream = 2 * i as u32 + 1;
            let mut block = call("/test.Test/Echo");
            let last = header("content-type", "application/grpc").len() + header("te", "trailers").len();
            block.truncate(block.len() - last);
            block.extend([header("content-type", kind), header("te", "trailers")].concat());
            raw.send(&frame(HEADERS, END_HEADERS, stream, &block));
            raw.send(&frame(DATA, END_STREAM, stream, &message(kind.as_bytes())));
            let answer = loop {
                let frame = raw.frame(PATIENCE).expect("an answer");
                if frame.kind == DATA {
                    break frame;
                }
            };
            assert_eq!((answer.stream, answer.payload), (stream, message(kind.as_bytes())));
        }
    }
}

#[test]
fn a_deadline_reaches_the_handlers_of_streams() {
    for io in kinds() {
        let server = TestServer::start(io, ServerConfig::default());
        block_on(async {
            let client = Client::connect(server.address).await;
            for (timeout, expected) in [(Some("100S"), "deadline=true"), (None, "deadline=false")] {
                let request = match timeout {
                    Some(timeout) => with(&[("grpc-timeout", timeout)], ""),
                    None => with(&[], ""),
                };
                let mut answers = client.server_stream("/test.Test/Context", request).await.expect("headers");
                assert_eq!(answers.message().await.expect("a message"), Some(Bytes::from(expected)));
            }
        });
    }
}

#[test]
fn a_stop_lets_calls_finish_and_ends_all_else_at_once() {
    for io in kinds() {
        let server = TestServer::start(io, ServerConfig::default());
        let mut silent = Raw::connect(server.address);
        let mut idle = Raw::greeted(server.address, &[]);
        until_pong(&mut idle);
        let mut page = std::net::TcpStream::connect(server.address).expect("the server accepts");
        page.set_read_timeout(Some(PATIENCE)).expect("a socket");
        page.write_all(b"GET /kept HTTP/1.1\r\nHost: x\r\n\r\n").expect("the server reads");
        server.wait_for("http1_requests_total", |count| count == 1);
        block_on(async {
            let client = Client::connect(server.address).await;
            let sleeping = {
                let client = client.clone();
                tokio::spawn(async move { client.unary("/test.Test/Sleep", with(&[("millis", "2000")], "x")).await })
            };
            let requests =
                tokio_stream::StreamExt::chain(tokio_stream::once(Bytes::from("answered")), tokio_stream::pending());
            let mut session = client.bidi("/test.Test/Bidi", requests).await.expect("headers");
            assert_eq!(session.message().await.expect("a message"), Some(Bytes::from("answered")));
            server.wait_for("streams", |open| open == 2);
            let stopped = server.stop(NEVER);
            let error = session.message().await.expect_err("a session has no end of its own");
            assert_eq!((error.code(), error.message()), (Code::Unavailable, "the server stops"));
            let answer = sleeping.await.expect("no panic").expect("it was begun before");
            assert_eq!(answer.into_inner(), "x");

            let frames = rest_politely(&mut idle);
            let goodbyes: Vec<_> =
                frames.iter().filter(|f| f.kind == GOAWAY).map(|f| number(&f.payload[4..8])).collect();
            assert!(goodbyes.len() >= 2, "before the ping and after it: {goodbyes:?}");
            assert!(goodbyes.iter().all(|reason| *reason == 0), "without an error: {goodbyes:?}");
            assert_eq!(stopped.recv_timeout(PATIENCE), Ok(0), "nothing was cut off");
        });
        assert_eq!(silent.rest(PATIENCE).1, End::Closed);
        let mut text = String::new();
        page.read_to_string(&mut text).expect("the end");
        assert_eq!(text.matches("HTTP/1.1 200").count(), 1, "{text}");
        assert_eq!(server.metric("connections"), 0);

        let mut late = Raw::greeted(server.address, &[]);
        let (frames, end) = late.rest(PATIENCE);
        assert_eq!((raw::go_away(&frames), end), (Some(0), End::Closed));
    }
}

#[test]
fn a_stop_cuts_off_what_takes_longer_than_its_limit() {
    for io in kinds() {
        let server = TestServer::start(io, ServerConfig::default());
        block_on(async {
            let client = Client::connect(server.address).await;
            let sleeping = {
                let client = client.clone();
                tokio::spawn(async move { client.unary("/test.Test/Sleep", with(&[("millis", "3600000")], "x")).await })
            };
            server.wait_for("streams", |open| open == 1);
            let began = Instant::now();
            let stopped = server.stop(Duration::from_millis(200));
            assert_eq!(stopped.recv_timeout(PATIENCE), Ok(1), "one connection was cut off");
            assert!(began.elapsed() >= Duration::from_millis(200), "not before the limit");
            sleeping.await.expect("no panic").expect_err("it never ended");
        });
        assert_eq!(server.seen.dropped(), 1, "its handler was dropped");
        for gauge in ["connections", "streams", "inbound_bytes", "outbound_bytes"] {
            assert_eq!(server.metric(gauge), 0, "{gauge}");
        }
    }
}

#[test]
fn a_connection_of_http1_that_is_kept_alive_ends_with_the_answer_under_way() {
    for io in kinds() {
        let server = TestServer::start(io, ServerConfig::default());
        let mut page = std::net::TcpStream::connect(server.address).expect("the server accepts");
        page.set_read_timeout(Some(PATIENCE)).expect("a socket");
        page.write_all(b"POST / HTTP/1.1\r\nContent-Length: 4\r\n\r\nha").expect("the server reads");
        server.wait_for("received_bytes_total", |bytes| bytes > 0);
        let mut witness = Raw::greeted(server.address, &[]);
        until_pong(&mut witness);
        let stopped = server.stop(NEVER);
        while witness.frame(PATIENCE).expect("the server says that it stops").kind != GOAWAY {}
        drop(witness);
        page.write_all(b"lf").expect("the server reads");
        let mut text = String::new();
        page.read_to_string(&mut text).expect("the end");
        assert!(text.starts_with("HTTP/1.1 200") && text.contains("Connection: close"), "{text}");
        drop(page);
        assert_eq!(stopped.recv_timeout(PATIENCE), Ok(0));
    }
}

#[test]
fn a_closed_connection_gives_its_window_back() {
    for io in kinds() {
        let config =
            ServerConfig { connection_window_bytes: 1 << 20, core_window_bytes: 2 << 20, ..ServerConfig::default() };
        let server = TestServer::start(io, config);
        for round in 0..3 {
            let mut clients: Vec<Raw> = (0..3).map(|_| Raw::greeted(server.address, &[])).collect();
            let windows: Vec<u32> = clients.iter_mut().map(window_of).collect();
            assert_eq!(windows.iter().filter(|window| **window == (1 << 20) - 65_535).count(), 2, "round {round}");
            assert_eq!(windows.iter().filter(|window| **window == 0).count(), 1, "round {round}");
            drop(clients);
            server.wait_for("connections", |open| open == 0);
        }
    }
}

#[test]
fn connections_that_come_and_go_leave_nothing() {
    for io in kinds() {
        let server = TestServer::start(io, ServerConfig::default());
        let churn = |count: u32| {
            for i in 0..count {
                let mut raw = Raw::greeted(server.address, &[]);
                raw.send(&frame(HEADERS, END_HEADERS, 1, &call("/test.Test/Echo")));
                // In turn: answered, in the midst of a message, reset.
                match i % 3 {
                    0 => drop(raw.send(&frame(DATA, END_STREAM, 1, &message(&[1; 10_000])))),
                    1 => drop(raw.send(&frame(DATA, 0, 1, &message(&[1; 10_000])[..5000]))),
                    _ => drop(raw.send(&frame(RST_STREAM, 0, 1, &8u32.to_be_bytes()))),
                }
                until_pong(&mut raw);
            }
            server.wait_for("connections", |open| open == 0);
        };
        churn(300);
        let before = resident_bytes();
        churn(1500);
        let grown = resident_bytes().saturating_sub(before);
        // A connection that stayed would hold 20 KiB and more.
        assert!(grown < 16 << 20, "{grown} bytes");
        for gauge in ["streams", "inbound_bytes", "outbound_bytes"] {
            assert_eq!(server.metric(gauge), 0, "{gauge}");
        }
    }
}

/// Waits at a gate, twice.
struct Gated {
    gate: Rc<executor::Notify>,
    /// How many have come, have passed once, have passed twice.
    passed: Rc<[Cell<usize>; 3]>,
}

impl Service for Gated {
    fn name(&self) -> &'static str {
        "test.Gated"
    }

    fn shape(&self, method: &str) -> Option<Shape> {
        (method == "Call").then_some(Shape::Unary)
    }

    fn unary(&self, _: &str, _: CallContext, request: Bytes) -> LocalFuture<Result<Bytes, Status>> {
        let (gate, passed) = (Rc::clone(&self.gate), Rc::clone(&self.passed));
        Box::pin(async move {
            passed[0].set(passed[0].get() + 1);
            for count in &passed[1..] {
                gate.notified().await;
                count.set(count.get() + 1);
            }
            Ok(request)
        })
    }

    fn stream(
        &self,
        method: &str,
        _: CallContext,
        _: Box<dyn RawInbound>,
        _: Rc<dyn RawOutbound>,
    ) -> LocalFuture<Result<(), Status>> {
        refuse(Status::no_method(self.name(), method))
    }
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    let waiting = async {
        while !is_so() {
            executor::sleep(Duration::from_millis(1)).await;
        }
    };
    executor::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("{what} never comes"));
}

#[test]
fn calls_that_become_ready_together_are_all_polled() {
    const CALLS: usize = 300;
    for io in kinds() {
        executor::run_one(io, || async {
            let listener = TcpListener::bind("127.0.0.1:0".parse().expect("an address")).await.expect("a free port");
            let address = listener.local_addr().expect("bound").to_string();
            let (gate, passed): (Rc<executor::Notify>, Rc<[Cell<usize>; 3]>) = Default::default();
            let service = Gated { gate: Rc::clone(&gate), passed: Rc::clone(&passed) };
            let router = Rc::new(Router::new().add(Rc::new(service)));
            let server = Server::new(router, None, ServerConfig::default(), Rc::default());
            executor::spawn_local(Class::Foreground, async move {
                let (stream, _) = listener.accept().await.expect("a client");
                server.serve(stream).await;
            });
            let channel = Channel::new(address, ChannelConfig::default());
            let calls: Vec<_> = (0..CALLS)
                .map(|_| {
                    let call = channel.unary("/test.Gated/Call", CallContext::default(), Bytes::new());
                    executor::spawn_local(Class::Foreground, call)
                })
                .collect();
            until("the last call", || passed[0].get() == CALLS).await;
            // Once they have passed, the calls wait again: nothing but the gate wakes the connection.
            gate.notify();
            until("the last call's first passage", || passed[1].get() == CALLS).await;
            gate.notify();
            for call in calls {
                call.await.expect("an answer");
            }
            assert_eq!(passed[2].get(), CALLS);
        });
    }
}

#[test]
fn connections_are_placed_evenly_and_their_places_given_back() {
    const CORES: usize = 3;
    let address = "10.0.0.1:7000";
    let sim = Sim::new(11, SimConfig::default());
    let [node, clients] = ["10.0.0.1", "10.0.0.2"].map(|ip| sim.add_node(ip, ip.parse().expect("an address")));
    let counters: Vec<_> = (0..CORES).map(|_| ConnectionCounter::new()).collect();
    let (senders, receivers): (Vec<_>, Vec<_>) = (0..CORES).map(|_| executor::mailbox::<Placed>(64)).unzip();
    let receivers = Rc::new(RefCell::new(receivers.into_iter().map(Some).collect::<Vec<_>>()));
    let places = counters.clone();
    sim.start(node, CORES, move |core| {
        let core = usize::from(core.0);
        let mut mail = receivers.borrow_mut()[core].take().expect("a core starts once");
        let targets: Vec<_> = places.iter().zip(&senders).map(|(c, s)| Target::mailbox(c.clone(), s.clone())).collect();
        Box::pin(async move {
            if core == 0 {
                let listener = TcpListener::bind(address.parse().expect("an address")).await.expect("a free port");
                executor::spawn_local(Class::Foreground, Acceptor::new(targets).run(listener));
            }
            let server = server(Arc::new(Seen::default()), ServerConfig::default(), Rc::default());
            while let Some(placed) = mail.recv().await {
                let server = server.clone();
                executor::spawn_local(Class::Foreground, async move { server.serve_placed(placed).await });
            }
        })
    });
    let open = || counters.iter().map(ConnectionCounter::open).collect::<Vec<_>>();
    let connect = |count: usize| {
        let connecting = async move {
            let mut channels = Vec::new();
            for _ in 0..count {
                let channel = Channel::new(address.to_owned(), ChannelConfig::default());
                channel.unary("/test.Test/Echo", CallContext::default(), Bytes::new()).await.expect("an answer");
                channels.push(channel);
            }
            channels
        };
        sim.block_on(clients, connecting, PATIENCE).expect("done within the limit")
    };
    let channels = connect(2 * CORES);
    assert_eq!(open(), [2; CORES]);
    sim.block_on(clients, async move { drop(channels) }, PATIENCE).expect("done within the limit");
    sim.run_for(Duration::from_secs(1));
    assert_eq!(open(), [0; CORES], "closed");
    assert!(counters.iter().all(|counter| counter.busy() == 0));
    let kept = connect(CORES);
    assert_eq!(open(), [1; CORES], "their places are taken again");
    sim.run_for(Duration::from_secs(200));
    assert!(counters.iter().all(|counter| (counter.open(), counter.busy()) == (1, 0)), "idle, but there");
    drop(kept);
}

/// A stream of bytes over another: as TLS would be, if it were this simple.
struct Cipher(TcpStream);

const KEY: u8 = 0x5A;

impl AsyncRead for Cipher {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let before = into.filled().len();
        let read = Pin::new(&mut self.0).poll_read(cx, into);
        into.filled_mut()[before..].iter_mut().for_each(|byte| *byte ^= KEY);
        read
    }
}

impl AsyncWrite for Cipher {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        let hidden: Vec<u8> = bytes.iter().map(|byte| byte ^ KEY).collect();
        Pin::new(&mut self.0).poll_write(cx, &hidden)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[test]
fn a_server_serves_over_any_stream_of_bytes() {
    executor::run_one(executor::IoChoice::Epoll, || async {
        let listener = TcpListener::bind("127.0.0.1:0".parse().expect("an address")).await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let client = std::thread::spawn(move || {
            let hide = |bytes: &[u8]| bytes.iter().map(|byte| byte ^ KEY).collect::<Vec<u8>>();
            let mut stream = std::net::TcpStream::connect(address).expect("the server accepts");
            stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
            let request = [
                raw::PREFACE.to_vec(),
                frame(SETTINGS, 0, 0, &[]),
                frame(HEADERS, END_HEADERS, 1, &call("/test.Test/Echo")),
                frame(DATA, END_STREAM, 1, &message(b"hidden")),
            ];
            stream.write_all(&hide(&request.concat())).expect("the server reads");
            let mut said = Vec::new();
            let expected = frame(DATA, 0, 1, &message(b"hidden"));
            while !said.windows(expected.len()).any(|window| window == expected) {
                let mut bytes = [0; 1000];
                let read = stream.read(&mut bytes).expect("an answer");
                assert_ne!(read, 0, "the answer comes before the end");
                said.extend(hide(&bytes[..read]));
            }
        });
        let (stream, peer) = listener.accept().await.expect("a client");
        let server = server(Arc::new(Seen::default()), ServerConfig::default(), Rc::default());
        server.serve_stream(Cipher(stream), Some(peer)).await;
        client.join().expect("the client is content");
    });
}
