//! The server against an independent client, on every kind of I/O, over plain sockets and over mutual TLS.

#[path = "common/certificates.rs"]
mod certificates;
#[path = "common/client.rs"]
mod client;
mod common;

use bytes::Bytes;
use certificates::Files;
use client::{Client, block_on, with};
use common::{TestServer, kinds};
use net::ServerConfig;
use std::time::Duration;
use test_certificates::{Authority, Wish};
use tokio_stream::StreamExt;
use tonic::codec::CompressionEncoding;
use tonic::metadata::MetadataValue;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request};

/// Runs `test` twice per kind of I/O: plain, and over mutual TLS.
fn on_each(config: ServerConfig, test: impl AsyncFn(&TestServer, Client)) {
    on_plain(config.clone(), &test);
    let authority = Authority::new("test authority");
    let node = authority.sign(&Wish::default());
    let files = Files::new(&authority, &node);
    for io in kinds() {
        let config = ServerConfig { tls: Some(files.tls(&["node"])), ..config.clone() };
        let server = TestServer::start(io, config);
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&authority.pem))
            .identity(Identity::from_pem(&node.certificate, &node.key));
        let endpoint = Endpoint::from_shared(format!("https://{}", server.address)).expect("an address");
        let endpoint = endpoint.tls_config(tls).expect("certificates");
        block_on(async { test(&server, Client::over(endpoint).await).await });
        assert_eq!(server.metric("tls_handshakes_total"), 1);
    }
}

/// Runs `test` once per kind of I/O, without TLS: for tests that dial on their own.
fn on_plain(config: ServerConfig, test: impl AsyncFn(&TestServer, Client)) {
    for io in kinds() {
        let server = TestServer::start(io, config.clone());
        block_on(async {
            let client = Client::connect(server.address).await;
            test(&server, client).await;
        });
    }
}

#[test]
fn unary_calls_of_all_sizes_come_back() {
    on_each(ServerConfig::default(), async |server, client| {
        for size in [0, 1, 1000, 16_379, 16_384, 100_000, 3 << 20] {
            let message = Bytes::from(vec![size as u8; size]);
            assert_eq!(client.call("/test.Test/Echo", message.clone()).await.expect("an answer"), message);
        }
        assert_eq!(server.metric("requests_total"), 7);
        assert_eq!(server.metric("errors_total"), 0);
        server.wait_for("streams", |open| open == 0);
        server.wait_for("inbound_bytes", |bytes| bytes == 0);
        server.wait_for("outbound_bytes", |bytes| bytes == 0);
    });
}

#[test]
fn a_message_of_64_mib_goes_both_ways() {
    on_each(ServerConfig::default(), async |server, client| {
        let message = Bytes::from((0..64u32 << 20).map(|i| (i % 251) as u8).collect::<Vec<_>>());
        let back = client.call("/test.Test/Echo", message.clone()).await.expect("an answer");
        assert!(back == message);
        server.wait_for("inbound_bytes", |bytes| bytes == 0);
        server.wait_for("outbound_bytes", |bytes| bytes == 0);
    });
}

#[test]
fn a_message_over_the_limit_is_refused_and_the_connection_goes_on() {
    let config = ServerConfig { message_bytes_max: 1 << 20, ..ServerConfig::default() };
    on_each(config, async |_, client| {
        let error = client.call("/test.Test/Echo", vec![0; 5 << 20]).await.expect_err("too large");
        assert_eq!(error.code(), Code::ResourceExhausted, "{error}");
        client.call("/test.Test/Echo", vec![0; 1 << 20]).await.expect("within the limit");
    });
}

#[test]
fn statuses_and_their_messages_arrive() {
    on_each(ServerConfig::default(), async |server, client| {
        for code in 1..=16 {
            let mut request = with(&[("code", &code.to_string())], "");
            let text = "50% größer\nzweite Zeile";
            request.metadata_mut().insert(
                "message",
                MetadataValue::try_from(text.as_bytes()).unwrap_or_else(|_| "plain".parse().expect("ASCII")),
            );
            let error = client.unary("/test.Test/Fail", request).await.expect_err("it fails");
            assert_eq!(error.code() as i32, code);
            assert!(!error.message().is_empty());
        }
        assert_eq!(server.metric("errors_total"), 16);
    });
}

#[test]
fn unknown_services_methods_and_paths_are_unimplemented() {
    on_each(ServerConfig::default(), async |_, client| {
        for path in ["/test.Test/None", "/no.Such/Echo", "/test.Test", "/"] {
            let error = client.call(path, "x").await.expect_err("nobody serves it");
            assert_eq!(error.code(), Code::Unimplemented, "{path}");
        }
        // A large body that nobody reads does not disturb the connection.
        let error = client.call("/no.Such/Echo", vec![0; 10 << 20]).await.expect_err("nobody serves it");
        assert_eq!(error.code(), Code::Unimplemented);
        client.call("/test.Test/Echo", "still here").await.expect("an answer");
    });
}

#[test]
fn metadata_peer_and_deadline_reach_the_handler() {
    on_each(ServerConfig::default(), async |_, client| {
        let mut request = with(&[("tikv-forwarded-host", "127.0.0.1:1")], "");
        request.metadata_mut().insert_bin("trace-bin", MetadataValue::from_bytes(&[0, 255, 7]));
        request.set_timeout(Duration::from_secs(5));
        let text = client.unary("/test.Test/Describe", request).await.expect("an answer").into_inner();
        let host = format!("tikv-forwarded-host={:?}", b"127.0.0.1:1");
        let expected = format!("{host}\ntrace-bin=[0, 255, 7]\npeer=true\ndeadline=true");
        assert_eq!(String::from_utf8_lossy(&text), expected);
    });
}

#[test]
fn a_deadline_ends_the_handler_and_answers() {
    on_plain(ServerConfig::default(), async |server, client| {
        // Without tonic, which has a clock of its own and may be the first to give up.
        let socket = tokio::net::TcpStream::connect(server.address).await.expect("the server accepts");
        let (mut http, connection) = h2::client::handshake(socket).await.expect("it speaks HTTP/2");
        let connection = tokio::spawn(connection);
        let request = |path: &str, timeout: &str| {
            http::Request::post(format!("http://test{path}"))
                .header("content-type", "application/grpc")
                .header("te", "trailers")
                .header("grpc-timeout", timeout)
                .header("millis", "60000")
                .body(())
                .expect("a request")
        };
        let message = Bytes::from_static(b"\0\0\0\0\x01x");
        let (answer, mut body) = http.send_request(request("/test.Test/Sleep", "1S"), false).expect("room");
        body.send_data(message.clone(), true).expect("sent");
        let answer = answer.await.expect("headers");
        assert_eq!(answer.headers()["grpc-status"], "4");
        assert_eq!(answer.headers()["grpc-message"], "the deadline passed while the call was handled");
        server.wait_for("deadlines_total", |count| count == 1);
        assert_eq!(server.seen.dropped(), 1, "the handler was dropped");

        let (answer, mut body) = http.send_request(request("/test.Test/Bidi", "2S"), false).expect("room");
        body.send_data(message.clone(), false).expect("sent");
        let mut answers = answer.await.expect("headers").into_body();
        assert_eq!(answers.data().await.expect("an answer").expect("whole"), message);
        let trailers = answers.trailers().await.expect("an end").expect("with trailers");
        assert_eq!(trailers["grpc-status"], "4");

        let (answer, mut body) = http.send_request(request("/test.Test/Sleep", "0m"), false).expect("room");
        // The server may have answered and closed the stream by then.
        let _ = body.send_data(message, true);
        assert_eq!(answer.await.expect("headers").headers()["grpc-status"], "4");
        assert_eq!(server.seen.begun(), 2, "no handler begins without time");
        connection.abort();
        drop(client);
    });
}

#[test]
fn malformed_timeouts_are_told() {
    on_each(ServerConfig::default(), async |server, client| {
        let request = with(&[("grpc-timeout", "5x")], "x");
        let error = client.unary("/test.Test/Echo", request).await.expect_err("no time");
        assert_eq!(error.code(), Code::Internal, "{error}");
        assert_eq!(server.seen.begun(), 0);
    });
}

#[test]
fn a_cancelled_call_drops_its_handler() {
    on_each(ServerConfig::default(), async |server, client| {
        let call = {
            let client = client.clone();
            tokio::spawn(async move { client.unary("/test.Test/Sleep", with(&[("millis", "3600000")], "x")).await })
        };
        server.wait_for("streams", |_| server.seen.begun() == 1);
        call.abort();
        // Its requests have ended: while they may still come, this client's library sends no reset for answers that
        // nobody reads.
        let requests = tokio_stream::once(Bytes::from("x"));
        let answers = client.bidi("/test.Test/Ignore", requests).await.expect("headers");
        drop(answers);
        server.wait_for("cancelled_total", |count| count == 2);
        assert_eq!(server.seen.dropped(), 2);
        assert_eq!(server.metric("streams"), 0);
    });
}

#[test]
fn a_lost_connection_drops_its_handlers() {
    on_plain(ServerConfig::default(), async |server, client| {
        let other = Client::connect(server.address).await;
        let call = tokio::spawn(async move {
            let _ = other.unary("/test.Test/Sleep", with(&[("millis", "60000")], "x")).await;
        });
        server.wait_for("streams", |open| open == 1);
        call.abort();
        let _ = call.await;
        server.wait_for("connections", |open| open == 1);
        assert_eq!(server.seen.dropped(), 1);
        client.call("/test.Test/Echo", "x").await.expect("an answer");
    });
}

#[test]
fn streams_of_each_shape() {
    on_each(ServerConfig::default(), async |server, client| {
        let request = with(&[("messages", "1000"), ("bytes", "3000")], "");
        let mut answers = client.server_stream("/test.Test/Count", request).await.expect("headers");
        for i in 0..1000u32 {
            let message = answers.message().await.expect("a message").expect("not the end");
            assert_eq!(message, vec![i as u8; 3000]);
        }
        assert_eq!(answers.message().await.expect("the end"), None);

        let requests: Vec<Bytes> = (0..500usize).map(|i| Bytes::from(vec![1; i])).collect();
        let sum = client.client_stream("/test.Test/Sum", Request::new(tokio_stream::iter(requests))).await;
        assert_eq!(sum.expect("an answer"), (0..500).sum::<usize>().to_string());

        let requests: Vec<Bytes> = (0..500usize).map(|i| Bytes::from(vec![2; i * 10])).collect();
        let mut answers = client.bidi("/test.Test/Bidi", tokio_stream::iter(requests.clone())).await.expect("headers");
        for request in requests {
            assert_eq!(answers.message().await.expect("a message"), Some(request));
        }
        assert_eq!(answers.message().await.expect("the end"), None);
        server.wait_for("streams", |open| open == 0);
    });
}

#[test]
fn one_request_then_half_close_gets_one_answer() {
    // How client-java asks for timestamps.
    on_each(ServerConfig::default(), async |_, client| {
        let mut answers =
            client.bidi("/basalt.Echo/Stream", tokio_stream::once(Bytes::from("tso"))).await.expect("headers");
        assert_eq!(answers.message().await.expect("a message"), Some(Bytes::from("tso")));
        assert_eq!(answers.message().await.expect("the end"), None);
    });
}

#[test]
fn a_stream_may_end_with_an_error_after_answers() {
    on_each(ServerConfig::default(), async |_, client| {
        let requests = tokio_stream::iter((0..3).map(|_| Bytes::from("x"))).chain(tokio_stream::pending());
        let mut request = Request::new(requests);
        request.metadata_mut().insert("end-after", "3".parse().expect("ASCII"));
        let mut answers = client.bidi("/test.Test/Bidi", request).await.expect("headers");
        for _ in 0..3 {
            answers.message().await.expect("a message").expect("not the end");
        }
        let error = answers.message().await.expect_err("the handler gave up");
        assert_eq!((error.code(), error.message()), (Code::Aborted, "enough"));
    });
}

#[test]
fn gzip_is_read_always_and_written_if_asked() {
    for gzip in [false, true] {
        on_each(ServerConfig { gzip, ..ServerConfig::default() }, async |server, client| {
            let plain = client.clone();
            let mut packed = client;
            packed.0 = packed.0.send_compressed(CompressionEncoding::Gzip).accept_compressed(CompressionEncoding::Gzip);
            for size in [10, 5_000, 5 << 20] {
                let message = Bytes::from((0..size).map(|i| (i % 13) as u8).collect::<Vec<_>>());
                let before = server.metric("sent_bytes_total");
                assert_eq!(packed.call("/test.Test/Echo", message.clone()).await.expect("an answer"), message);
                let sent = server.metric("sent_bytes_total") - before;
                assert_eq!(sent < size as u64 / 2, gzip && size > 1000, "{sent} bytes sent for {size}");
                assert_eq!(plain.call("/test.Test/Echo", message.clone()).await.expect("an answer"), message);
            }
        });
    }
}

#[test]
fn a_gzip_bomb_is_stopped_and_an_unknown_encoding_refused() {
    let config = ServerConfig { message_bytes_max: 1 << 20, ..ServerConfig::default() };
    on_each(config, async |server, mut client| {
        let error =
            client.unary("/test.Test/Echo", with(&[("grpc-encoding", "snappy")], "x")).await.expect_err("unknown");
        assert_eq!(error.code(), Code::Unimplemented);
        let offered = error.metadata().get("grpc-accept-encoding").map(|value| value.as_bytes().to_vec());
        assert_eq!(offered.as_deref(), Some(&b"identity,gzip"[..]));
        client.0 = client.0.send_compressed(CompressionEncoding::Gzip);
        let error = client.call("/test.Test/Echo", vec![0; 64 << 20]).await.expect_err("too large");
        assert_eq!(error.code(), Code::ResourceExhausted, "{error}");
        server.wait_for("inbound_bytes", |bytes| bytes == 0);
    });
}

#[test]
fn a_thousand_calls_at_once_share_socket_writes() {
    on_each(ServerConfig::default(), async |server, client| {
        let before = server.metric("socket_writes_total");
        let calls: Vec<_> = (0..5000u32)
            .map(|i| {
                let client = client.clone();
                tokio::spawn(async move { client.call("/test.Test/Echo", i.to_be_bytes().to_vec()).await })
            })
            .collect();
        for (i, call) in calls.into_iter().enumerate() {
            let answer = call.await.expect("no panic").expect("an answer");
            assert_eq!(answer, (i as u32).to_be_bytes().to_vec());
        }
        let writes = server.metric("socket_writes_total") - before;
        assert!(writes < 2500, "{writes} writes for 5000 answers");
        server.wait_for("streams", |open| open == 0);
    });
}

#[test]
fn sleeping_calls_do_not_hold_up_others() {
    on_each(ServerConfig::default(), async |server, client| {
        let sleeping: Vec<_> = (0..200)
            .map(|_| {
                let client = client.clone();
                tokio::spawn(async move { client.unary("/test.Test/Sleep", with(&[("millis", "3600000")], "x")).await })
            })
            .collect();
        server.wait_for("streams", |open| open == 200);
        client.call("/test.Test/Echo", "x").await.expect("an answer");
        assert_eq!(server.metric("streams"), 200, "the others sleep on");
        sleeping.iter().for_each(tokio::task::JoinHandle::abort);
        server.wait_for("streams", |open| open == 0);
    });
}

#[test]
fn more_calls_than_the_core_takes_are_refused() {
    let config = ServerConfig { calls_max: 10, ..ServerConfig::default() };
    on_each(config, async |server, client| {
        let sleeping: Vec<_> = (0..10)
            .map(|_| {
                let client = client.clone();
                tokio::spawn(async move { client.unary("/test.Test/Sleep", with(&[("millis", "3600000")], "x")).await })
            })
            .collect();
        server.wait_for("streams", |open| open == 10);
        let error = client.call("/test.Test/Echo", "x").await.expect_err("one too many");
        assert_eq!(error.code(), Code::ResourceExhausted);
        sleeping.iter().for_each(tokio::task::JoinHandle::abort);
        server.wait_for("streams", |open| open == 0);
        client.call("/test.Test/Echo", "x").await.expect("room again");
    });
}

#[test]
fn more_connections_than_the_core_takes_are_told_to_go_away() {
    let config = ServerConfig { connections_max: 1, ..ServerConfig::default() };
    on_plain(config, async |server, client| {
        client.call("/test.Test/Echo", "x").await.expect("an answer");
        let endpoint = Endpoint::from_shared(format!("http://{}", server.address)).expect("an address");
        let channel = endpoint.connect_lazy();
        let other = Client(tonic::client::Grpc::new(channel));
        let error = other.call("/test.Test/Echo", "x").await.expect_err("one too many");
        assert!(matches!(error.code(), Code::Unavailable | Code::Unknown | Code::ResourceExhausted), "{error}");
        assert!(server.metric("connections_refused_total") >= 1);
        client.call("/test.Test/Echo", "x").await.expect("the first goes on");
    });
}

#[test]
fn a_draining_server_finishes_what_it_has() {
    on_each(ServerConfig::default(), async |server, client| {
        let sleeping = {
            let client = client.clone();
            tokio::spawn(async move { client.unary("/test.Test/Sleep", with(&[("millis", "2000")], "x")).await })
        };
        server.wait_for("streams", |open| open == 1);
        server.drain();
        sleeping.await.expect("no panic").expect("it was begun before");
        server.wait_for("connections", |open| open == 0);
    });
}

#[test]
fn health_is_answered() {
    on_each(ServerConfig::default(), async |_, client| {
        // HealthCheckResponse { status: SERVING }
        let answer = client.call("/grpc.health.v1.Health/Check", "").await.expect("an answer");
        assert_eq!(answer, vec![8, 1]);
        let unknown = client.call("/grpc.health.v1.Health/Check", vec![10, 1, b'x']).await.expect_err("unknown");
        assert_eq!(unknown.code(), Code::NotFound);
        let mut watch =
            client.server_stream("/grpc.health.v1.Health/Watch", Request::new(Bytes::new())).await.expect("headers");
        assert_eq!(watch.message().await.expect("a message"), Some(Bytes::from(vec![8, 1])));
    });
}

#[test]
fn idle_clients_may_ping_as_they_like() {
    on_plain(ServerConfig::default(), async |server, _| {
        let endpoint = Endpoint::from_shared(format!("http://{}", server.address)).expect("an address");
        let endpoint = endpoint
            .http2_keep_alive_interval(Duration::from_millis(5))
            .keep_alive_timeout(Duration::from_secs(30))
            .keep_alive_while_idle(true);
        let client = Client::over(endpoint).await;
        client.call("/test.Test/Echo", "x").await.expect("an answer");
        tokio::time::sleep(Duration::from_millis(500)).await;
        client.call("/test.Test/Echo", "x").await.expect("an answer");
        assert_eq!(server.metric("connections_total"), 2);
        assert_eq!(server.metric("floods_total"), 0);
    });
}
