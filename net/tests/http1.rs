//! HTTP/1.1 on the same port.

mod common;

use common::{TestServer, kinds};
use net::ServerConfig;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// Sends `request` in pieces of `step` bytes and reads to the end.
fn ask(server: &TestServer, request: &[u8], step: usize) -> String {
    let mut stream = TcpStream::connect(server.address).expect("the server accepts");
    stream.set_nodelay(true).expect("a socket");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a socket");
    for piece in request.chunks(step) {
        if stream.write_all(piece).is_err() {
            break;
        }
    }
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

fn on_each(config: ServerConfig, test: impl Fn(&TestServer)) {
    for io in kinds() {
        let server = TestServer::start(io, config.clone());
        test(&server);
        server.wait_for("connections", |open| open == 0);
    }
}

fn body_of(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").expect("a head").1
}

#[test]
fn requests_are_answered_however_they_are_cut() {
    on_each(ServerConfig::default(), |server| {
        let get = b"GET /pd/api/v1/members?a=b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        let chunked = b"POST /config HTTP/1.1\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n3\r\nabc\r\n4;x=y\r\ndefg\r\n0\r\nTrailer: z\r\n\r\n";
        let known = b"POST /config HTTP/1.1\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello";
        for step in [1, 2, 7, 1000] {
            assert_eq!(body_of(&ask(server, get, step)), "GET /pd/api/v1/members \"a=b\" ");
            assert_eq!(body_of(&ask(server, chunked, step)), "POST /config \"\" abcdefg");
            assert_eq!(body_of(&ask(server, known, step)), "POST /config \"\" hello");
        }
        let old = ask(server, b"GET / HTTP/1.0\r\n\r\n", 100);
        assert!(old.starts_with("HTTP/1.1 200 OK\r\n") && old.contains("Connection: close"), "{old}");
        let head = ask(server, b"HEAD / HTTP/1.0\r\n\r\n", 100);
        assert!(head.contains("Content-Length: 9") && body_of(&head).is_empty(), "{head}");
        let expects = b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx";
        let continued = ask(server, expects, 1000);
        assert!(continued.starts_with("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n"), "{continued}");
    });
}

#[test]
fn a_connection_serves_many_requests_pipelined_or_not() {
    on_each(ServerConfig::default(), |server| {
        let mut requests = Vec::new();
        for i in 0..100 {
            requests.extend(format!("GET /{i} HTTP/1.1\r\nHost: x\r\n\r\n").into_bytes());
        }
        requests.extend(b"GET /last HTTP/1.1\r\nConnection: close\r\n\r\n");
        let answers = ask(server, &requests, 100);
        assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 101);
        let places: Vec<_> = (0..100).map(|i| answers.find(&format!("GET /{i} ")).expect("answered")).collect();
        assert!(places.is_sorted());
        assert_eq!(server.metric("http1_requests_total"), 101);
    });
}

#[test]
fn bad_requests_get_their_status() {
    let config = ServerConfig { http1_body_bytes_max: 1000, ..ServerConfig::default() };
    on_each(config, |server| {
        let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(20_000));
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(200));
        let cases: [(&str, &[u8], &str); 11] = [
            ("no HTTP", b"hello there\r\n\r\n", "400"),
            ("long head", long.as_bytes(), "431"),
            ("many headers", many.as_bytes(), "431"),
            ("large body", b"POST / HTTP/1.1\r\nContent-Length: 1001\r\n\r\n", "413"),
            ("huge length", b"POST / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n", "400"),
            ("signed length", b"POST / HTTP/1.1\r\nContent-Length: +5\r\n\r\nhello", "400"),
            ("two lengths", b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx", "400"),
            (
                "smuggling",
                b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
                "400",
            ),
            ("large chunks", b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3e9\r\n", "413"),
            ("bad chunk", b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", "400"),
            ("bad coding", b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", "501"),
        ];
        for (name, request, status) in cases {
            let answer = ask(server, request, 100_000);
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{name}: {answer}");
        }
        assert_eq!(server.metric("http1_requests_total"), 0);
    });
}

#[test]
fn half_a_request_is_told_so_and_idle_connections_end() {
    let config = ServerConfig {
        half_sent_timeout: Duration::from_millis(200),
        http1_idle_timeout: Duration::from_millis(200),
        ..ServerConfig::default()
    };
    on_each(config, |server| {
        let half = ask(server, b"POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\nhal", 1000);
        assert!(half.starts_with("HTTP/1.1 408 "), "{half}");
        let idle = ask(server, b"GET / HTTP/1.1\r\n\r\n", 1000);
        assert!(idle.starts_with("HTTP/1.1 200 "), "{idle}");
        assert_eq!(idle.matches("HTTP/1.1").count(), 1);
    });
}
