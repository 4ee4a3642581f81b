//! The server against clients that mean no good, or are broken. After each, a decent client is served and the memory
//! is given back.

#[path = "common/client.rs"]
mod client;
mod common;
#[path = "common/raw.rs"]
mod raw;

use client::{Client, block_on, with};
use common::{TestServer, kinds, resident_bytes};
use net::ServerConfig;
use raw::{
    ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, End, HEADERS, PING, RST_STREAM, Raw, SETTINGS, WINDOW_UPDATE,
    call, frame, go_away, header, message,
};
use std::io::{Read, Write};
use std::time::Duration;

const ENHANCE_YOUR_CALM: u32 = 11;
/// A limit for what comes soon, on a busy machine too.
const SOON: Duration = Duration::from_secs(30);

/// Runs `test` once per kind of I/O, then checks that a decent client is served and that nothing is left behind.
fn on_each(config: ServerConfig, test: impl Fn(&TestServer)) {
    for io in kinds() {
        let server = TestServer::start(io, config.clone());
        test(&server);
        block_on(a_decent_client_is_served(&server));
        server.wait_for("connections", |open| open == 0);
        assert_eq!(server.metric("streams"), 0);
        assert_eq!(server.metric("inbound_bytes"), 0);
        assert_eq!(server.metric("outbound_bytes"), 0);
        assert_eq!(server.seen.begun(), server.seen.begun().max(server.seen.dropped()));
    }
}

/// On a busy machine a decent client may be slower than the short limits of some tests; then it comes again.
async fn a_decent_client_is_served(server: &TestServer) {
    let began = std::time::Instant::now();
    loop {
        let client = Client::connect(server.address).await;
        match client.call("/test.Test/Echo", "decent").await {
            Ok(answer) => return assert_eq!(answer, "decent"),
            Err(status) => assert!(began.elapsed() < SOON, "{status}"),
        }
    }
}

fn quick() -> ServerConfig {
    ServerConfig {
        handshake_timeout: Duration::from_millis(300),
        half_sent_timeout: Duration::from_millis(300),
        stalled_write_timeout: Duration::from_millis(500),
        memory_wait: Duration::from_millis(300),
        keepalive_interval: None,
        ..ServerConfig::default()
    }
}

/// Sends copies of what `make` gives until the server closes; what it said and how much was sent.
fn flood(raw: &mut Raw, limit: usize, mut make: impl FnMut(u32) -> Vec<u8>) -> (Option<u32>, End) {
    let mut reader = Raw(raw.0.try_clone().expect("a socket"));
    let listening = std::thread::spawn(move || reader.rest(SOON));
    let mut sent = 0;
    for i in 0.. {
        let mut bytes = Vec::new();
        for j in 0..100 {
            bytes.extend(make(i * 100 + j));
        }
        sent += 100;
        if !raw.send(&bytes) || sent >= limit {
            break;
        }
    }
    let _ = raw.0.shutdown(std::net::Shutdown::Write);
    let (frames, end) = listening.join().expect("no panic");
    (go_away(&frames), end)
}

#[test]
fn floods_of_frames_without_progress_end_the_connection() {
    let kinds: [(&str, u8, u8, u32, usize); 5] = [
        ("ping", PING, 0, 0, 8),
        ("settings", SETTINGS, 0, 0, 0),
        ("window updates", WINDOW_UPDATE, 0, 0, 4),
        ("priority", 2, 0, 1, 5),
        ("unknown", 0xEE, 0, 0, 10),
    ];
    on_each(ServerConfig::default(), |server| {
        for (name, kind, flags, stream, len) in kinds {
            let floods = server.metric("floods_total");
            let mut raw = Raw::greeted(server.address, &[]);
            let mut payload = vec![0; len];
            if let Some(last) = payload.last_mut() {
                *last = 1;
            }
            let (code, end) = flood(&mut raw, 200_000, |_| frame(kind, flags, stream, &payload));
            assert_eq!(end, End::Closed, "{name}");
            assert!(matches!(code, None | Some(ENHANCE_YOUR_CALM)), "{name}: {code:?}");
            server.wait_for("floods_total", |count| count == floods + 1);
        }
    });
}

#[test]
fn rapid_resets_end_the_connection_and_start_few_handlers() {
    on_each(ServerConfig::default(), |server| {
        let mut raw = Raw::greeted(server.address, &[]);
        let (code, end) = flood(&mut raw, 1_000_000, |i| {
            let stream = 2 * i + 1;
            let mut bytes = frame(HEADERS, END_HEADERS, stream, &call("/test.Test/Sleep"));
            bytes.extend(frame(DATA, END_STREAM, stream, &message(b"x")));
            bytes.extend(frame(RST_STREAM, 0, stream, &8u32.to_be_bytes()));
            bytes
        });
        assert_eq!(end, End::Closed);
        assert!(matches!(code, None | Some(ENHANCE_YOUR_CALM)), "{code:?}");
        server.wait_for("floods_total", |count| count == 1);
        assert!(server.seen.begun() < 10_000, "{} handlers began", server.seen.begun());
    });
}

#[test]
fn a_burst_of_cancelled_calls_is_no_flood() {
    on_each(ServerConfig::default(), |server| {
        let mut raw = Raw::greeted(server.address, &[]);
        for round in 0..3u32 {
            let mut bytes = Vec::new();
            for i in 0..900 {
                let stream = 2 * (round * 900 + i) + 1;
                bytes.extend(frame(HEADERS, END_HEADERS, stream, &call("/test.Test/Sleep")));
                bytes.extend(frame(RST_STREAM, 0, stream, &8u32.to_be_bytes()));
            }
            assert!(raw.send(&bytes));
        }
        raw.send(&frame(HEADERS, END_HEADERS, 99_999, &call("/test.Test/Echo")));
        raw.send(&frame(DATA, END_STREAM, 99_999, &message(b"still served")));
        let mut answered = false;
        while let Ok(frame) = raw.frame(SOON) {
            assert_ne!(frame.kind, raw::GOAWAY, "{frame:?}");
            if frame.kind == DATA {
                answered = frame.payload == message(b"still served");
                break;
            }
        }
        assert!(answered);
        assert_eq!(server.metric("floods_total"), 0);
    });
}

#[test]
fn a_flood_of_continuations_ends_the_connection() {
    on_each(ServerConfig::default(), |server| {
        let mut raw = Raw::greeted(server.address, &[]);
        raw.send(&frame(HEADERS, 0, 1, &call("/test.Test/Echo")));
        let (code, end) = flood(&mut raw, 100_000, |i| frame(CONTINUATION, 0, 1, &header("x", &i.to_string())));
        assert_eq!(end, End::Closed);
        assert!(code.is_none_or(|code| code == ENHANCE_YOUR_CALM), "{code:?}");
    });
}

#[test]
fn headers_over_the_limit_are_refused() {
    on_each(ServerConfig::default(), |server| {
        let mut raw = Raw::greeted(server.address, &[]);
        let mut block = call("/test.Test/Echo");
        block.extend(header("x", &"y".repeat(40_000)));
        let (first, rest) = block.split_at(16_000);
        raw.send(&frame(HEADERS, END_STREAM, 1, first));
        let mut rest = rest.chunks(16_000).peekable();
        while let Some(part) = rest.next() {
            let flags = if rest.peek().is_none() { END_HEADERS } else { 0 };
            raw.send(&frame(CONTINUATION, flags, 1, part));
        }
        // Either an answer of HTTP, 431, or the end of the connection.
        loop {
            let frame = raw.frame(SOON).expect("an answer");
            if (frame.kind == HEADERS && frame.stream == 1) || frame.kind == raw::GOAWAY {
                break;
            }
        }
        assert_eq!(server.seen.begun(), 0);
    });
}

#[test]
fn garbage_ends_the_connection() {
    let garbage: Vec<Vec<u8>> = vec![
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n".to_vec(),
        [raw::PREFACE, b"this is no frame at all, however long one waits for it"].concat(),
        [raw::PREFACE, &frame(DATA, 0, 0, b"data on stream 0")].concat(),
        [raw::PREFACE, &frame(HEADERS, END_HEADERS, 2, &call("/test.Test/Echo"))].concat(),
        [raw::PREFACE, &frame(SETTINGS, 0, 0, &[1, 2, 3])].concat(),
        vec![0; 5000],
    ];
    on_each(quick(), |server| {
        for bytes in &garbage {
            let mut raw = Raw::connect(server.address);
            raw.send(bytes);
            let mut answer = Vec::new();
            raw.0.set_read_timeout(Some(SOON)).expect("a socket");
            let end = raw.0.read_to_end(&mut answer);
            let is_closed = end.is_ok() || end.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset);
            assert!(is_closed, "{:?}", String::from_utf8_lossy(bytes));
        }
        assert_eq!(server.seen.begun(), 0);
    });
}

#[test]
fn who_says_nothing_or_half_a_greeting_is_dropped() {
    on_each(quick(), |server| {
        let mut clients: Vec<Raw> = (0..6).map(|_| Raw::connect(server.address)).collect();
        clients[1].send(b"PRI * HT");
        clients[2].send(raw::PREFACE);
        clients[3].send(&[raw::PREFACE, &frame(SETTINGS, 0, 0, &[0; 6])[..10]].concat());
        clients[4].send(b"GET / HTTP/1.1\r\nHo");
        clients[5].send(b"G");
        for (i, client) in clients.iter_mut().enumerate() {
            client.0.set_read_timeout(Some(SOON)).expect("a socket");
            let end = client.0.read_to_end(&mut Vec::new());
            assert!(end.is_ok(), "client {i}: {end:?}");
        }
        assert!(server.metric("stalled_total") >= 5);
    });
}

#[test]
fn half_a_frame_and_half_a_header_block_are_dropped() {
    on_each(quick(), |server| {
        let half = frame(DATA, 0, 1, &message(&[0; 100]));
        for bytes in [
            frame(HEADERS, 0, 1, &call("/test.Test/Echo")),
            [frame(HEADERS, END_HEADERS, 1, &call("/test.Test/Echo")), half[..50].to_vec()].concat(),
            half[..4].to_vec(),
        ] {
            let mut raw = Raw::greeted(server.address, &[]);
            raw.send(&bytes);
            let (_, end) = raw.rest(SOON);
            assert_eq!(end, End::Closed);
        }
        assert_eq!(server.metric("stalled_total"), 3);
    });
}

#[test]
fn half_a_message_is_answered_and_the_connection_goes_on() {
    on_each(quick(), |server| {
        let mut raw = Raw::greeted(server.address, &[]);
        for (stream, path) in [(1, "/test.Test/Echo"), (3, "/test.Test/Bidi")] {
            raw.send(&frame(HEADERS, END_HEADERS, stream, &call(path)));
            raw.send(&frame(DATA, 0, stream, &message(&[0; 100])[..50]));
        }
        let mut ended = Vec::new();
        while ended.len() < 2 {
            let frame = raw.frame(SOON).expect("an answer");
            if frame.kind == HEADERS && frame.flags & END_STREAM != 0 {
                ended.push(frame.stream);
            }
        }
        ended.sort_unstable();
        assert_eq!(ended, [1, 3]);
        assert_eq!(server.metric("inbound_bytes"), 0);
        let whole = frame(DATA, END_STREAM, 5, &message(b"whole"));
        raw.send(&[frame(HEADERS, END_HEADERS, 5, &call("/test.Test/Echo")), whole].concat());
        while let Ok(frame) = raw.frame(SOON) {
            if frame.kind == DATA && frame.stream == 5 {
                assert_eq!(frame.payload, message(b"whole"));
                return;
            }
        }
        panic!("no answer to a whole message");
    });
}

#[test]
fn who_does_not_read_costs_bounded_memory_and_is_dropped() {
    let config = ServerConfig {
        connection_outbound_bytes: 8 << 20,
        stalled_write_timeout: Duration::from_secs(2),
        half_sent_timeout: SOON,
        ..quick()
    };
    on_each(config, |server| {
        // A window of 2 GiB, so that only the socket holds the answers back.
        let mut raw = Raw::greeted(server.address, &[(4, 0x7fff_ffff)]);
        raw.send(&frame(WINDOW_UPDATE, 0, 0, &0x7fff_0000u32.to_be_bytes()));
        let mut block = call("/test.Test/Large");
        block.extend(header("bytes", "1048576"));
        let mut requests = Vec::new();
        for i in 0..1000 {
            requests.extend(frame(HEADERS, END_HEADERS, 2 * i + 1, &block));
            requests.extend(frame(DATA, END_STREAM, 2 * i + 1, &message(b"")));
        }
        raw.send(&requests);
        let most = std::cell::Cell::new(0);
        server.wait_for("stalled_total", |count| {
            most.set(most.get().max(server.metric("outbound_bytes")));
            count == 1
        });
        assert!(most.get() >= 4 << 20, "the answers pile up: {}", most.get());
        assert!(most.get() < 12 << 20, "bounded: {}", most.get());
    });
}

#[test]
fn who_gives_no_window_is_dropped() {
    on_each(quick(), |server| {
        let mut raw = Raw::greeted(server.address, &[(4, 0)]);
        for i in 0..10 {
            raw.send(&frame(HEADERS, END_HEADERS, 2 * i + 1, &call("/test.Test/Echo")));
            raw.send(&frame(DATA, END_STREAM, 2 * i + 1, &message(b"never to be seen")));
        }
        let (frames, end) = raw.rest(SOON);
        assert_eq!(end, End::Closed);
        assert!(frames.iter().all(|frame| frame.kind != DATA));
        assert_eq!(server.metric("stalled_total"), 1);
    });
}

#[test]
fn a_handler_that_streams_waits_for_a_slow_reader() {
    on_each(ServerConfig { keepalive_interval: None, ..ServerConfig::default() }, |server| {
        block_on(async {
            let client = Client::connect(server.address).await;
            let request = with(&[("messages", "20000"), ("bytes", "10000")], "");
            let mut answers = client.server_stream("/test.Test/Count", request).await.expect("headers");
            tokio::time::sleep(Duration::from_millis(200)).await;
            assert!(server.metric("outbound_bytes") < 2 << 20, "{}", server.metric("outbound_bytes"));
            let mut count = 0;
            while answers.message().await.expect("a message").is_some() {
                count += 1;
            }
            assert_eq!(count, 20_000);
        });
    });
}

#[test]
fn requests_beyond_the_memory_wait_and_then_are_refused() {
    let config = ServerConfig {
        connection_inbound_bytes: 4 << 20,
        core_inbound_bytes: 4 << 20,
        connection_window_bytes: 4 << 20,
        stream_window_bytes: 1 << 20,
        half_sent_timeout: Duration::from_secs(60),
        ..quick()
    };
    on_each(config, |server| {
        // Half-sent messages of 8 MiB on many streams, as much as the windows allow.
        let mut raw = Raw::greeted(server.address, &[]);
        let part = message(&vec![0; 8 << 20])[..16_000].to_vec();
        let mut sent = 0usize;
        for i in 0..20u32 {
            raw.send(&frame(HEADERS, END_HEADERS, 2 * i + 1, &call("/test.Test/Echo")));
        }
        let mut reader = Raw(raw.0.try_clone().expect("a socket"));
        let listening = std::thread::spawn(move || reader.rest(Duration::from_secs(2)));
        // Within the first windows of streams and connection: 20 streams of 16,000 bytes, 12 times.
        for round in 0..12 {
            for i in 0..20u32 {
                let bytes = if round == 0 { &part[..] } else { &[0; 16_000] };
                raw.send(&frame(DATA, 0, 2 * i + 1, bytes));
                sent += bytes.len();
            }
        }
        assert!(sent < 4 << 20);
        let most = server.metric("inbound_bytes");
        assert!(most < 9 << 20, "budget and window: {most}");
        // Now beyond the budget: a decent client's large message still goes through, since one message may.
        block_on(async {
            let client = Client::connect(server.address).await;
            let large = vec![1; 6 << 20];
            let answer = client.call("/test.Test/Echo", large.clone()).await;
            match answer {
                Ok(back) => assert_eq!(back, large),
                Err(status) => {
                    assert_eq!(status.code(), tonic::Code::ResourceExhausted, "{status}")
                }
            }
        });
        drop(raw);
        let _ = listening.join().expect("no panic");
    });
}

#[test]
fn memory_stays_bounded_through_all_of_it() {
    // Many connections at once, each with half-sent messages within its windows.
    let config = ServerConfig {
        core_inbound_bytes: 16 << 20,
        connection_inbound_bytes: 4 << 20,
        core_window_bytes: 32 << 20,
        connection_window_bytes: 1 << 20,
        ..quick()
    };
    on_each(config, |server| {
        let before = resident_bytes();
        let mut clients: Vec<Raw> = (0..200).map(|_| Raw::greeted(server.address, &[])).collect();
        for raw in &mut clients {
            raw.send(&frame(HEADERS, END_HEADERS, 1, &call("/test.Test/Echo")));
            let whole = message(&vec![0; 4 << 20]);
            // HTTP/2's first window of a connection: 65,535 bytes.
            for part in whole[..64_000].chunks(16_000) {
                raw.send(&frame(DATA, 0, 1, part));
            }
        }
        server.wait_for("streams", |open| open == 0);
        let grown = resident_bytes().saturating_sub(before);
        assert!(grown < 256 << 20, "{grown} bytes");
        drop(clients);
    });
}

#[test]
fn what_messages_inflate_to_is_within_the_budget() {
    const BUDGET: u64 = 8 << 20;
    const MESSAGE: usize = 4 << 20;
    let config = ServerConfig {
        connection_inbound_bytes: BUDGET,
        core_inbound_bytes: BUDGET,
        memory_wait: Duration::from_secs(300),
        ..ServerConfig::default()
    };
    on_each(config, |server| {
        block_on(async {
            let mut client = Client::connect(server.address).await;
            client.0 = client.0.send_compressed(tonic::codec::CompressionEncoding::Gzip);
            let calls: Vec<_> = (0..30)
                .map(|_| {
                    let client = client.clone();
                    let request = with(&[("millis", "20")], vec![0; MESSAGE]);
                    tokio::spawn(async move { client.unary("/test.Test/Sleep", request).await })
                })
                .collect();
            let mut most = 0;
            while !calls.iter().all(tokio::task::JoinHandle::is_finished) {
                most = most.max(server.metric("inbound_bytes"));
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            for call in calls {
                assert_eq!(call.await.expect("no panic").expect("an answer").into_inner().len(), MESSAGE);
            }
            // One message may go beyond, and there are the compressed bytes.
            assert!(most <= BUDGET + MESSAGE as u64 + (1 << 20), "{most}");
        });
    });
}

#[test]
fn large_headers_are_charged_while_their_call_lives() {
    on_each(ServerConfig { core_inbound_bytes: 50_000, ..ServerConfig::default() }, |server| {
        block_on(async {
            let client = Client::connect(server.address).await;
            let long = "y".repeat(20_000);
            let sleeping: Vec<_> = (0..2)
                .map(|_| {
                    let (client, request) = (client.clone(), with(&[("millis", "3600000"), ("x", &long)], ""));
                    tokio::spawn(async move { client.unary("/test.Test/Sleep", request).await })
                })
                .collect();
            server.wait_for("streams", |open| open == 2);
            let charged = server.metric("inbound_bytes");
            assert!((40_000..50_000).contains(&charged), "{charged}");
            let error = client.unary("/test.Test/Echo", with(&[("x", &long)], "")).await.expect_err("no room");
            assert_eq!(error.code(), tonic::Code::ResourceExhausted);
            client.call("/test.Test/Echo", "small").await.expect("stock headers are no matter");
            for call in &sleeping {
                call.abort();
            }
            server.wait_for("inbound_bytes", |bytes| bytes == 0);
            client.unary("/test.Test/Echo", with(&[("x", &long)], "")).await.expect("room again");
        });
    });
}

#[test]
fn requests_that_are_not_grpc_are_told_so() {
    on_each(ServerConfig::default(), |server| {
        let mut raw = Raw::greeted(server.address, &[]);
        let plain = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "test")];
        let block: Vec<u8> = plain.iter().flat_map(|(name, value)| header(name, value)).collect();
        raw.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &block));
        let mut json = call("/test.Test/Echo");
        json.truncate(json.len() - header("content-type", "application/grpc").len() - header("te", "trailers").len());
        json.extend(header("content-type", "application/json"));
        raw.send(&frame(HEADERS, END_HEADERS, 3, &json));
        raw.send(&frame(DATA, END_STREAM, 3, b"{}"));
        let mut answers = Vec::new();
        while answers.len() < 2 {
            let frame = raw.frame(SOON).expect("an answer");
            if frame.kind == HEADERS {
                assert_ne!(frame.flags & END_STREAM, 0);
                answers.push(String::from_utf8_lossy(&frame.payload).into_owned());
            }
        }
        assert_eq!(server.seen.begun(), 0);
    });
}

#[test]
fn a_client_that_closes_in_the_midst_leaves_nothing() {
    on_each(ServerConfig::default(), |server| {
        for cut in [10, 30, 40, 60, 100, 150] {
            let mut raw = Raw::connect(server.address);
            let whole = [
                raw::PREFACE.to_vec(),
                frame(SETTINGS, 0, 0, &[]),
                frame(SETTINGS, ACK, 0, &[]),
                frame(HEADERS, END_HEADERS, 1, &call("/test.Test/Sleep")),
                frame(DATA, END_STREAM, 1, &message(b"x")),
            ]
            .concat();
            raw.0.write_all(&whole[..cut.min(whole.len())]).expect("the server reads");
        }
        server.wait_for("connections_total", |count| count == 6);
    });
}
