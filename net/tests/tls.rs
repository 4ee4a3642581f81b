//! Mutual TLS: who comes in, who does not and what the log says of it, and certificates that change.

#[path = "common/certificates.rs"]
mod certificates;
mod common;
#[path = "common/log.rs"]
mod log;
#[path = "common/raw.rs"]
mod raw;

use bytes::Bytes;
use certificates::Files;
use common::{Seen, TestServer, kinds, server};
use executor::Class;
use executor::net::TcpListener;
use executor::sim::{Sim, SimConfig};
use net::{Channel, ChannelConfig, Reload, ServerConfig, Tls};
use proto::rpc::{CallContext, Channel as _, Code, Metadata, Status};
use rustls::pki_types::ServerName;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use test_certificates::{Authority, Identity, Wish};

const GET: &[u8] = b"GET /page HTTP/1.1\r\nHost: x\r\n\r\n";
const PAGE: &str = "GET /page \"\" ";
const LIMIT: Duration = Duration::from_secs(300);

type Client = StreamOwned<ClientConnection, TcpStream>;

/// An authority, a node that it has signed, and the node's files.
struct World {
    authority: Authority,
    node: Identity,
    files: Files,
}

impl World {
    fn new() -> World {
        let authority = Authority::new("test authority");
        let node = authority.sign(&Wish::default());
        let files = Files::new(&authority, &node);
        World { authority, node, files }
    }

    /// A server with the node's certificate that admits `allowed`, or everybody whom the authority knows.
    fn serve(&self, io: executor::IoChoice, allowed: &[&str]) -> TestServer {
        log::record();
        TestServer::start(io, secured(self.files.tls(allowed)))
    }
}

fn secured(tls: Tls) -> ServerConfig {
    ServerConfig { tls: Some(tls), handshake_timeout: Duration::from_secs(20), ..ServerConfig::default() }
}

/// An independent client's connection; nothing is said yet.
fn dial(address: SocketAddr, config: &Arc<ClientConfig>) -> Client {
    let socket = TcpStream::connect(address).expect("the server accepts");
    socket.set_read_timeout(Some(Duration::from_secs(30))).expect("a socket");
    let name = ServerName::try_from("localhost").expect("a name");
    StreamOwned::new(ClientConnection::new(Arc::clone(config), name).expect("settings"), socket)
}

/// Asks for a page and reads as much as its answer has; or why there is none.
fn page(client: &mut Client) -> Result<String, String> {
    client.write_all(GET).map_err(|error| error.to_string())?;
    let mut answer = Vec::new();
    while !answer.ends_with(PAGE.as_bytes()) {
        let mut bytes = [0; 1000];
        match client.read(&mut bytes).map_err(|error| error.to_string())? {
            0 => return Err("the end".to_owned()),
            read => answer.extend_from_slice(&bytes[..read]),
        }
    }
    Ok(String::from_utf8(answer).expect("ASCII"))
}

fn secure_channel(address: &str, tls: Tls) -> Channel {
    Channel::new(address.to_owned(), ChannelConfig { tls: Some(tls), ..ChannelConfig::default() })
}

async fn echo(channel: &Channel, message: impl Into<Bytes>) -> Result<Bytes, Status> {
    let cx = CallContext { metadata: Metadata::new(), deadline: None, peer: None };
    channel.unary("/test.Test/Echo", cx, message.into()).await
}

/// The error of a call that must fail.
fn failed(io: executor::IoChoice, channel: impl FnOnce() -> Channel + Send + 'static) -> Status {
    executor::run_one(io, || async move { echo(&channel(), "x").await.expect_err("they do not want each other") })
}

#[test]
fn our_channel_calls_by_every_form_of_address() {
    let world = World::new();
    for io in kinds() {
        let server = world.serve(io, &["node"]);
        let (port, tls) = (server.address.port(), world.files.tls(&[]));
        executor::run_one(io, move || async move {
            for form in ["localhost:", "127.0.0.1:", "http://localhost:", "https://127.0.0.1:"] {
                let channel = secure_channel(&format!("{form}{port}"), tls.clone());
                for size in [0, 1, 16_384, 100_000, 16 << 20] {
                    let message = Bytes::from((0..size).map(|i| (i % 251) as u8).collect::<Vec<_>>());
                    assert!(echo(&channel, message.clone()).await == Ok(message), "{form} {size}");
                }
                assert_eq!(channel.metrics().tls_handshakes_total.get(), 1);
            }
        });
        assert_eq!(server.metric("tls_handshakes_total"), 4);
        assert_eq!(server.metric("tls_refused_total"), 0);
        server.wait_for("connections", |open| open == 0);
    }
}

#[test]
fn calls_go_over_tls_in_the_simulator() {
    const ADDRESS: &str = "10.0.0.1:7000";
    let world = World::new();
    let authority = &world.authority;
    let files = Files::new(authority, &authority.sign(&Wish { hosts: &["10.0.0.1"], ..Wish::default() }));
    for seed in 0..5 {
        let sim = Sim::new(seed, SimConfig::default());
        let node = sim.add_node("server", "10.0.0.1".parse().expect("an address"));
        let client = sim.add_node("client", "10.0.0.2".parse().expect("an address"));
        let config = secured(files.tls(&[]));
        sim.start(node, 1, move |_| {
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
        let tls = files.tls(&[]);
        let calls = async move {
            let channel = secure_channel(ADDRESS, tls);
            for size in [1, 1000, 300_000] {
                let message = Bytes::from(vec![7; size]);
                assert_eq!(echo(&channel, message.clone()).await, Ok(message));
            }
        };
        sim.block_on(client, calls, LIMIT).expect("done within the limit");
    }
}

#[test]
fn pages_come_over_both_versions_and_the_connection_stays() {
    let world = World::new();
    for io in kinds() {
        let server = world.serve(io, &[]);
        for version in [&TLS12, &TLS13] {
            let mut client = dial(server.address, &world.authority.client(Some(&world.node), &[version]));
            for _ in 0..3 {
                let answer = page(&mut client).expect("a page");
                assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
            }
            assert_eq!(client.conn.protocol_version(), Some(version.version));
            client.conn.send_close_notify();
            let mut rest = Vec::new();
            client.read_to_end(&mut rest).expect("the server says goodbye, too");
            assert!(rest.is_empty());
        }
        server.wait_for("connections", |open| open == 0);
    }
}

#[test]
fn clients_that_may_not_come_in_are_refused_and_the_log_has_the_reason() {
    let world = World::new();
    let (ours, stranger) = (&world.authority, Authority::new("stranger"));
    let foreign = stranger.sign(&Wish::default());
    let expired = ours.sign(&Wish { is_expired: true, ..Wish::default() });
    let unnamed = ours.sign(&Wish { common: "guest", hosts: &["guest.example"], ..Wish::default() });
    let by_host = ours.sign(&Wish { common: "guest", hosts: &["tidb.example"], ..Wish::default() });
    let cases: [(&str, Option<&Identity>, Option<&str>); 6] = [
        ("no certificate", None, Some("no certificates")),
        ("wrong authority", Some(&foreign), Some("UnknownIssuer")),
        ("expired", Some(&expired), Some("expired")),
        ("name not allowed", Some(&unnamed), Some(r#"["guest", "guest.example"] are not among the allowed"#)),
        ("name allowed by its host", Some(&by_host), None),
        ("name allowed", Some(&world.node), None),
    ];
    for io in kinds() {
        for version in [&TLS12, &TLS13] {
            for (name, identity, reason) in &cases {
                let server = world.serve(io, &["node", "tidb.example"]);
                let mut client = dial(server.address, &ours.client(*identity, &[version]));
                let peer = client.sock.local_addr().expect("connected");
                let answer = page(&mut client);
                assert_eq!(answer.is_ok(), reason.is_none(), "{name}: {answer:?}");
                assert_eq!(server.metric("tls_refused_total"), u64::from(reason.is_some()), "{name}");
                let Some(reason) = reason else { continue };
                let told = answer.expect_err("checked above");
                assert!(told.contains("fatal alert"), "{name}: the client is told: {told}");
                let line = log::line_about(peer);
                assert!(line.contains("WARN") && line.contains(reason), "{name}: {line}");
                assert_eq!(server.metric("http1_requests_total"), 0, "{name}");
                // Others are not disturbed.
                let good = ours.client(Some(&world.node), &[version]);
                page(&mut dial(server.address, &good)).expect("a page");
            }
        }
    }
}

#[test]
fn what_is_not_tls_is_refused_and_the_log_has_the_reason() {
    let world = World::new();
    let mut hello = Vec::new();
    let name = ServerName::try_from("localhost").expect("a name");
    let mut session = ClientConnection::new(world.authority.client(None, &[&TLS13]), name).expect("settings");
    session.write_tls(&mut hello).expect("memory takes it");
    let half = &hello[..hello.len() / 2];
    let garbage = [&hello[..], &[0xff; 3000]].concat();
    let plain = "it does not speak TLS";
    let cases: [(&str, &[u8], &str); 6] = [
        ("HTTP/2", raw::PREFACE, plain),
        ("HTTP/1", GET, plain),
        ("noise", &[0; 100], plain),
        ("garbage after the ClientHello", &garbage, "corrupt message"),
        ("half a ClientHello, then silence", half, "not done in time"),
        ("a ClientHello, then silence", &hello, "not done in time"),
    ];
    for io in kinds() {
        for (name, bytes, reason) in cases {
            log::record();
            let config =
                ServerConfig { handshake_timeout: Duration::from_millis(500), ..secured(world.files.tls(&[])) };
            let server = TestServer::start(io, config);
            let mut socket = TcpStream::connect(server.address).expect("the server accepts");
            let peer = socket.local_addr().expect("connected");
            socket.set_read_timeout(Some(Duration::from_secs(30))).expect("a socket");
            socket.write_all(bytes).expect("sent");
            let mut answer = Vec::new();
            // A reset is an end, too.
            let end = socket.read_to_end(&mut answer);
            let is_open = end.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
            assert!(!is_open, "{name}: the connection stays open");
            let line = log::line_about(peer);
            assert!(line.contains("WARN") && line.contains(reason), "{name}: {line}");
            assert_eq!(server.metric("tls_refused_total"), 1, "{name}");
            assert_eq!(server.metric("tls_handshakes_total"), 0, "{name}");
            server.wait_for("connections", |open| open == 0);
        }
    }
}

#[test]
fn tls_to_a_port_without_certificates_is_refused_and_plain_bytes_are_not() {
    log::record();
    let world = World::new();
    for io in kinds() {
        let server = TestServer::start(io, ServerConfig::default());
        let mut client = dial(server.address, &world.authority.client(Some(&world.node), &[&TLS13]));
        let peer = client.sock.local_addr().expect("connected");
        page(&mut client).expect_err("nobody shakes hands");
        let line = log::line_about(peer);
        assert!(line.contains("no certificates are configured"), "{line}");
        assert_eq!(server.metric("tls_refused_total"), 1);
        let mut socket = TcpStream::connect(server.address).expect("the server accepts");
        socket.write_all(b"GET /page HTTP/1.1\r\nConnection: close\r\n\r\n").expect("sent");
        let mut answer = String::new();
        socket.read_to_string(&mut answer).expect("an answer");
        assert!(answer.ends_with(PAGE), "{answer}");
    }
}

#[test]
fn the_log_has_one_line_a_second_and_counts_the_others() {
    let world = World::new();
    let server = world.serve(executor::IoChoice::Epoll, &[]);
    let knock = || {
        let mut socket = TcpStream::connect(server.address).expect("the server accepts");
        socket.write_all(GET).expect("sent");
        let _ = socket.read(&mut [0; 10]);
        socket.local_addr().expect("connected")
    };
    let first = knock();
    let others: Vec<_> = (0..20).map(|_| knock()).collect();
    server.wait_for("tls_refused_total", |refused| refused == 21);
    std::thread::sleep(Duration::from_millis(1100));
    let last = knock();
    log::line_about(first);
    let told = others.iter().filter(|&&peer| log::find(peer).is_some()).count();
    assert!(told <= 1, "{told} of 20 within about a second");
    let untold = log::line_about(last);
    assert!(told == 1 || untold.contains("untold=20"), "{untold}");
}

#[test]
fn our_channel_refuses_servers_it_should_not_trust() {
    let world = World::new();
    let (ours, stranger) = (&world.authority, Authority::new("stranger"));
    let foreign = Files::new(&stranger, &stranger.sign(&Wish::default()));
    let expired = Files::new(ours, &ours.sign(&Wish { is_expired: true, ..Wish::default() }));
    let elsewhere = Files::new(ours, &ours.sign(&Wish { hosts: &["elsewhere.example"], ..Wish::default() }));
    let cases = [
        ("wrong authority", &foreign, "UnknownIssuer"),
        ("expired", &expired, "expired"),
        ("another host's certificate", &elsewhere, "not valid for name"),
    ];
    for io in kinds() {
        for (name, files, reason) in cases {
            let server = TestServer::start(io, secured(files.tls(&[])));
            let (address, tls) = (server.address.to_string(), world.files.tls(&[]));
            let status = failed(io, move || secure_channel(&address, tls));
            assert_eq!(status.code, Code::Unavailable, "{name}: {status}");
            assert!(status.message.contains("TLS: ") && status.message.contains(reason), "{name}: {status}");
            server.wait_for("tls_refused_total", |refused| refused == 1);
        }
    }
}

#[test]
fn our_channel_says_why_a_server_does_not_want_it() {
    let world = World::new();
    let guest = Files::new(&world.authority, &world.authority.sign(&Wish { common: "guest", ..Wish::default() }));
    for io in kinds() {
        let server = world.serve(io, &["tidb"]);
        let (address, tls) = (server.address.to_string(), guest.tls(&[]));
        let status = failed(io, move || secure_channel(&address, tls));
        assert_eq!(status.code, Code::Unavailable, "{status}");
        assert!(status.message.contains("fatal alert: CertificateUnknown"), "{status}");

        let address = server.address.to_string();
        let status = failed(io, move || Channel::new(address, ChannelConfig::default()));
        assert_eq!(status.code, Code::Unavailable, "plaintext to a TLS port: {status}");

        let plain = TestServer::start(io, ServerConfig::default());
        let (address, tls) = (plain.address.to_string(), world.files.tls(&[]));
        let status = failed(io, move || secure_channel(&address, tls));
        assert_eq!(status.code, Code::Unavailable, "TLS to a plain port: {status}");
        assert!(status.message.contains("TLS handshake"), "{status}");

        let address = format!("https://{}", plain.address);
        let status = failed(io, move || Channel::new(address, ChannelConfig::default()));
        assert!(status.message.contains("no certificates are configured"), "{status}");
    }
}

#[test]
fn one_connection_too_many_is_told_in_tls() {
    let world = World::new();
    for io in kinds() {
        let server = TestServer::start(io, ServerConfig { connections_max: 1, ..secured(world.files.tls(&[])) });
        let config = world.authority.client(Some(&world.node), &[&TLS13]);
        let mut first = dial(server.address, &config);
        page(&mut first).expect("a page");
        let told = page(&mut dial(server.address, &config)).expect_err("there is no room");
        assert!(told.contains("InternalError"), "{told}");
        page(&mut first).expect("a page");
    }
}

#[test]
fn new_connections_see_new_certificates_and_old_ones_stay() {
    let world = World::new();
    let config = world.authority.client(Some(&world.node), &[&TLS13]);
    for io in kinds() {
        let files = Files::new(&world.authority, &world.node);
        let tls = files.tls(&[]);
        let server = TestServer::start(io, secured(tls.clone()));
        let seen_by = |client: &Client| client.conn.peer_certificates().expect("it shows one")[0].clone().into_owned();
        let mut old = dial(server.address, &config);
        page(&mut old).expect("a page");
        assert_eq!(seen_by(&old), world.node.der());

        let second = world.authority.sign(&Wish::default());
        files.replace(&second);
        // The server has looked at the files for the first connection, so it may have done so again by now.
        assert!(matches!(tls.reload_if_changed(), Reload::Swapped | Reload::Unchanged));
        page(&mut old).expect("it goes on");
        let mut new = dial(server.address, &config);
        page(&mut new).expect("a page");
        assert_eq!(seen_by(&new), second.der());

        files.write("key.pem", "-----BEGIN NONSENSE-----\n");
        std::thread::sleep(Duration::from_millis(1100));
        let mut third = dial(server.address, &config);
        page(&mut third).expect("broken files change nothing");
        assert_eq!(seen_by(&third), second.der());
        assert_eq!(tls.reload_if_changed(), Reload::Unchanged, "the third connection has looked at them");

        // Without anybody's doing, within a second or so.
        let last = world.authority.sign(&Wish::default());
        files.replace(&last);
        std::thread::sleep(Duration::from_millis(1100));
        let mut newest = dial(server.address, &config);
        page(&mut newest).expect("a page");
        assert_eq!(seen_by(&newest), last.der());
        for client in [&mut old, &mut new, &mut third] {
            page(client).expect("it goes on");
        }
    }
}

#[test]
fn who_reads_nothing_over_tls_is_dropped() {
    let world = World::new();
    let config = world.authority.client(Some(&world.node), &[&TLS13]);
    for io in kinds() {
        let patience = Duration::from_secs(1);
        let limits = ServerConfig { stalled_write_timeout: patience, ..secured(world.files.tls(&[])) };
        let server = TestServer::start(io, limits);
        let mut client = dial(server.address, &config);
        let window = 0x7fff_ffffu32;
        let settings = [&4u16.to_be_bytes()[..], &window.to_be_bytes()].concat();
        let mut block = raw::call("/test.Test/Large");
        block.extend(raw::header("bytes", "16777216"));
        let request = [
            raw::PREFACE.to_vec(),
            raw::frame(raw::SETTINGS, 0, 0, &settings),
            raw::frame(raw::WINDOW_UPDATE, 0, 0, &0x7fff_0000u32.to_be_bytes()),
            raw::frame(raw::HEADERS, raw::END_HEADERS, 1, &block),
            raw::frame(raw::DATA, raw::END_STREAM, 1, &raw::message(b"")),
        ];
        client.write_all(&request.concat()).expect("sent");
        server.wait_for("stalled_total", |count| count == 1);
        server.wait_for("connections", |open| open == 0);
        server.wait_for("outbound_bytes", |bytes| bytes == 0);
    }
}
