//! A server on a core of its own thread, with a service that does what tests need.
#![allow(dead_code, reason = "each test file uses its part")]

use bytes::Bytes;
use executor::{Class, IoChoice, MailSender};
use net::{Health, HttpHandler, HttpRequest, HttpResponse, NetMetrics, Router, Server, ServerConfig};
use proto::rpc::{CallContext, Code, LocalFuture, RawInbound, RawOutbound, Service, Shape, Status, refuse};
use std::cell::Cell;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

/// The kinds of I/O that this machine allows.
pub(crate) fn kinds() -> Vec<IoChoice> {
    let mut kinds = vec![IoChoice::Epoll];
    match executor::preflight(IoChoice::Uring, None) {
        Ok(_) => kinds.push(IoChoice::Uring),
        Err(error) => eprintln!("io_uring is left out: {error}"),
    }
    kinds
}

/// What the handlers did, seen from outside.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Handlers that began.
    pub begun: AtomicU64,
    /// Handlers whose future was dropped before it ended.
    pub dropped: AtomicU64,
}

impl Seen {
    pub(crate) fn begun(&self) -> u64 {
        self.begun.load(Ordering::SeqCst)
    }

    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::SeqCst)
    }
}

/// Service `test.Test`.
pub(crate) struct TestService {
    pub seen: Arc<Seen>,
}

/// Counts a handler that is dropped before [`Guard::done`].
struct Guard {
    seen: Arc<Seen>,
    is_done: Cell<bool>,
}

impl Guard {
    fn new(seen: &Arc<Seen>) -> Guard {
        seen.begun.fetch_add(1, Ordering::SeqCst);
        Guard { seen: Arc::clone(seen), is_done: Cell::new(false) }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if !self.is_done.get() {
            self.seen.dropped.fetch_add(1, Ordering::SeqCst);
        }
    }
}

fn number(cx: &CallContext, name: &str) -> u64 {
    cx.metadata.get_str(name).and_then(|text| text.parse().ok()).unwrap_or(0)
}

impl Service for TestService {
    fn name(&self) -> &'static str {
        "test.Test"
    }

    fn shape(&self, method: &str) -> Option<Shape> {
        match method {
            "Echo" | "Fail" | "Sleep" | "Describe" | "Large" => Some(Shape::Unary),
            "Count" | "Context" => Some(Shape::ServerStream),
            "Sum" => Some(Shape::ClientStream),
            "Bidi" | "Ignore" => Some(Shape::Bidi),
            _ => None,
        }
    }

    fn unary(&self, method: &str, cx: CallContext, request: Bytes) -> LocalFuture<Result<Bytes, Status>> {
        let guard = Guard::new(&self.seen);
        let method = method.to_owned();
        Box::pin(async move {
            let result = match method.as_str() {
                "Echo" => Ok(request),
                "Fail" => {
                    let code = Code::from_number(number(&cx, "code") as u32);
                    Err(Status::new(code, cx.metadata.get_str("message").unwrap_or_default()))
                }
                "Sleep" => {
                    executor::sleep(Duration::from_millis(number(&cx, "millis"))).await;
                    Ok(request)
                }
                "Describe" => {
                    let mut lines: Vec<String> =
                        cx.metadata.iter().map(|(name, value)| format!("{name}={value:?}")).collect();
                    lines.sort();
                    lines.push(format!("peer={}", cx.peer.is_some()));
                    lines.push(format!("deadline={}", cx.deadline.is_some()));
                    Ok(Bytes::from(lines.join("\n")))
                }
                "Large" => Ok(Bytes::from(vec![7; number(&cx, "bytes") as usize])),
                _ => Err(Status::no_method("test.Test", &method)),
            };
            guard.is_done.set(true);
            result
        })
    }

    fn stream(
        &self,
        method: &str,
        cx: CallContext,
        mut inbound: Box<dyn RawInbound>,
        outbound: Rc<dyn RawOutbound>,
    ) -> LocalFuture<Result<(), Status>> {
        let guard = Guard::new(&self.seen);
        let method = method.to_owned();
        if self.shape(&method).is_none() {
            return refuse(Status::no_method("test.Test", &method));
        }
        Box::pin(async move {
            match method.as_str() {
                "Count" => {
                    let _ = poll_fn(|cx| inbound.poll_message(cx)).await.transpose()?;
                    let size = number(&cx, "bytes") as usize;
                    for i in 0..number(&cx, "messages") {
                        send(&outbound, Bytes::from(vec![i as u8; size])).await?;
                    }
                }
                "Context" => {
                    send(&outbound, Bytes::from(format!("deadline={}", cx.deadline.is_some()))).await?;
                }
                "Sum" => {
                    let mut sum = 0u64;
                    while let Some(message) = poll_fn(|cx| inbound.poll_message(cx)).await.transpose()? {
                        sum += message.len() as u64;
                    }
                    send(&outbound, Bytes::from(sum.to_string())).await?;
                }
                "Ignore" => std::future::pending::<()>().await,
                _ => {
                    let end = number(&cx, "end-after");
                    let mut count = 0;
                    while let Some(message) = poll_fn(|cx| inbound.poll_message(cx)).await.transpose()? {
                        send(&outbound, message).await?;
                        count += 1;
                        if count == end {
                            guard.is_done.set(true);
                            return Err(Status::aborted("enough"));
                        }
                    }
                }
            }
            guard.is_done.set(true);
            Ok(())
        })
    }
}

async fn send(outbound: &Rc<dyn RawOutbound>, message: Bytes) -> Result<(), Status> {
    let mut message = Some(message);
    poll_fn(|cx| outbound.poll_send(cx, &mut message)).await
}

/// Answers what it was asked.
struct Pages;

impl HttpHandler for Pages {
    fn handle(&self, request: HttpRequest) -> LocalFuture<HttpResponse> {
        let text = format!(
            "{} {} {:?} {}",
            request.method,
            request.path,
            request.query,
            String::from_utf8_lossy(&request.body)
        );
        Box::pin(std::future::ready(HttpResponse::text(200, text)))
    }
}

enum Ask {
    Metrics(Sender<Vec<(&'static str, u64)>>),
    Drain,
    Halt(Duration, Sender<u64>),
    Stop,
}

/// A server on a thread of its own; it ends with this handle.
pub(crate) struct TestServer {
    pub address: SocketAddr,
    pub seen: Arc<Seen>,
    ask: MailSender<Ask>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl TestServer {
    pub(crate) fn start(io: IoChoice, config: ServerConfig) -> TestServer {
        let seen = Arc::new(Seen::default());
        let for_server = Arc::clone(&seen);
        let (ask, mut asked) = executor::mailbox(16);
        let (bound, address) = channel();
        let thread = std::thread::spawn(move || {
            executor::run_one(io, move || async move {
                let any = "127.0.0.1:0".parse().expect("an address");
                let listener = executor::net::TcpListener::bind(any).await.expect("a free port");
                bound.send(listener.local_addr().expect("bound")).expect("the test waits");
                let metrics: Rc<NetMetrics> = Rc::default();
                let server = server(for_server, config, Rc::clone(&metrics));
                let accepting = server.clone();
                executor::spawn_local(Class::Foreground, async move {
                    loop {
                        if let Ok((stream, _)) = listener.accept().await {
                            let server = accepting.clone();
                            executor::spawn_local(Class::Foreground, async move { server.serve(stream).await });
                        }
                    }
                });
                while let Some(ask) = asked.recv().await {
                    match ask {
                        Ask::Metrics(answer) => drop(answer.send(snapshot(&metrics))),
                        Ask::Drain => server.drain(),
                        Ask::Halt(limit, answer) => {
                            let server = server.clone();
                            executor::spawn_local(Class::Foreground, async move {
                                // The test may have gone on.
                                let _ = answer.send(server.stop(limit).await);
                            });
                        }
                        Ask::Stop => break,
                    }
                }
            });
        });
        let address = address.recv().expect("the server starts");
        TestServer { address, seen, ask, thread: Some(thread) }
    }

    /// One counter or gauge.
    pub(crate) fn metric(&self, name: &str) -> u64 {
        let (send, receive) = channel();
        let sent = self.ask.try_send(Ask::Metrics(send));
        assert!(sent.is_ok(), "the server runs");
        let all = receive.recv().expect("the server answers");
        all.iter().find(|(other, _)| *other == name).expect("a metric").1
    }

    /// Waits until a counter or gauge is as wanted; for at most thirty seconds.
    pub(crate) fn wait_for(&self, name: &str, is_good: impl Fn(u64) -> bool) -> u64 {
        for _ in 0..3000 {
            let value = self.metric(name);
            if is_good(value) {
                return value;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("{name} stays at {}", self.metric(name));
    }

    /// Begins to stop the server; gives the number of connections that are cut off at the limit.
    pub(crate) fn stop(&self, limit: Duration) -> Receiver<u64> {
        let (send, receive) = channel();
        assert!(self.ask.try_send(Ask::Halt(limit, send)).is_ok());
        receive
    }

    pub(crate) fn drain(&self) {
        assert!(self.ask.try_send(Ask::Drain).is_ok());
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        drop(self.ask.try_send(Ask::Stop));
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !std::thread::panicking()
        {
            panic!("the server panicked");
        }
    }
}

/// The server that all tests talk to.
pub(crate) fn server(seen: Arc<Seen>, config: ServerConfig, metrics: Rc<NetMetrics>) -> Server {
    let health = Health::new();
    let router = Router::new().add(Rc::new(TestService { seen })).add(Rc::new(net::echo::Echo)).add(health.service());
    Server::new(Rc::new(router), Some(Rc::new(Pages)), config, metrics)
}

fn snapshot(metrics: &NetMetrics) -> Vec<(&'static str, u64)> {
    vec![
        ("connections_total", metrics.connections_total.get()),
        ("connections", metrics.connections.get()),
        ("connections_refused_total", metrics.connections_refused_total.get()),
        ("tls_handshakes_total", metrics.tls_handshakes_total.get()),
        ("tls_refused_total", metrics.tls_refused_total.get()),
        ("streams", metrics.streams.get()),
        ("requests_total", metrics.requests_total.get()),
        ("errors_total", metrics.errors_total.get()),
        ("cancelled_total", metrics.cancelled_total.get()),
        ("deadlines_total", metrics.deadlines_total.get()),
        ("refused_total", metrics.refused_total.get()),
        ("http1_requests_total", metrics.http1_requests_total.get()),
        ("socket_reads_total", metrics.socket_reads_total.get()),
        ("socket_writes_total", metrics.socket_writes_total.get()),
        ("received_bytes_total", metrics.received_bytes_total.get()),
        ("sent_bytes_total", metrics.sent_bytes_total.get()),
        ("floods_total", metrics.floods_total.get()),
        ("stalled_total", metrics.stalled_total.get()),
        ("inbound_bytes", metrics.inbound_bytes.get()),
        ("outbound_bytes", metrics.outbound_bytes.get()),
    ]
}

/// Resident memory of this process, in bytes.
pub(crate) fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages: u64 = statm.split(' ').nth(1).and_then(|text| text.parse().ok()).expect("a number");
    pages * 4096
}
