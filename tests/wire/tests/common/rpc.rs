//! A plain HTTP/2 client that speaks gRPC: `h2`, and nothing of ours but the messages.
#![allow(dead_code, reason = "each test file uses its part")]

use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request};

/// gRPC's status codes, as far as tests name them.
pub(crate) mod code {
    pub(crate) const INVALID_ARGUMENT: u32 = 3;
    pub(crate) const DEADLINE_EXCEEDED: u32 = 4;
    pub(crate) const NOT_FOUND: u32 = 5;
    pub(crate) const RESOURCE_EXHAUSTED: u32 = 8;
    pub(crate) const FAILED_PRECONDITION: u32 = 9;
    pub(crate) const UNIMPLEMENTED: u32 = 12;
    pub(crate) const INTERNAL: u32 = 13;
}

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A call that did not end with status 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) code: u32,
    pub(crate) message: String,
}

/// One connection.
#[derive(Clone)]
pub(crate) struct Rpc {
    requests: SendRequest<Bytes>,
}

/// One open call.
pub(crate) struct Call {
    requests: SendStream<Bytes>,
    response: Option<ResponseFuture>,
    answers: Option<RecvStream>,
    received: BytesMut,
    failure: Option<Failure>,
}

async fn patiently<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("an answer within a minute")
}

/// A message behind its five bytes of gRPC.
pub(crate) fn framed(message: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(5 + message.len());
    out.put_u8(0);
    out.put_u32(u32::try_from(message.len()).expect("a message is below 4 GiB"));
    out.put_slice(message);
    out.freeze()
}

fn status(headers: &HeaderMap) -> Option<Failure> {
    let text = |name| headers.get(name).map(|value| value.to_str().expect("ASCII").to_string());
    let code = text("grpc-status")?.parse().expect("a number");
    Some(Failure { code, message: percent_decoded(&text("grpc-message").unwrap_or_default()) })
}

fn percent_decoded(text: &str) -> String {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let decoded = match byte {
            b'%' => {
                let digits = [bytes.next().expect("two digits"), bytes.next().expect("two digits")];
                u8::from_str_radix(std::str::from_utf8(&digits).expect("ASCII"), 16).expect("two digits")
            }
            other => other,
        };
        out.push(decoded);
    }
    String::from_utf8(out).expect("UTF-8")
}

impl Rpc {
    pub(crate) async fn connect(address: SocketAddr) -> Rpc {
        let socket = tokio::net::TcpStream::connect(address).await.expect("the server accepts");
        socket.set_nodelay(true).expect("a socket");
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(16 << 20).initial_connection_window_size(64 << 20);
        let (requests, connection) = patiently(builder.handshake(socket)).await.expect("a greeting");
        tokio::spawn(connection);
        Rpc { requests }
    }

    /// Opens a call of `path`, such as `/tikvpb.Tikv/RawGet`.
    pub(crate) async fn open(&self, path: &str, headers: &[(&str, &str)]) -> Call {
        let mut request = Request::post(format!("http://test{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(()).expect("a request");
        let mut ready = patiently(self.requests.clone().ready()).await.expect("the connection is open");
        let (response, requests) = ready.send_request(request, false).expect("a stream");
        Call { requests, response: Some(response), answers: None, received: BytesMut::new(), failure: None }
    }

    /// One message there, one back.
    pub(crate) async fn bytes(&self, path: &str, body: &[u8], headers: &[(&str, &str)]) -> Result<Bytes, Failure> {
        let mut call = self.open(path, headers).await;
        call.send(body, true);
        let answer = call.next().await;
        match call.end().await {
            Failure { code: 0, .. } => Ok(answer.expect("an answer before status 0")),
            failure => Err(failure),
        }
    }

    pub(crate) async fn call<A: prost::Message + Default>(
        &self,
        path: &str,
        request: &impl prost::Message,
    ) -> Result<A, Failure> {
        let answer = self.bytes(path, &request.encode_to_vec(), &[]).await?;
        Ok(A::decode(answer).expect("an answer of the right kind"))
    }

    /// A call of `tikvpb.Tikv` that must not fail.
    pub(crate) async fn tikv<A: prost::Message + Default>(&self, method: &str, request: &impl prost::Message) -> A {
        self.call(&format!("/tikvpb.Tikv/{method}"), request).await.expect("an answer")
    }

    /// A call of `pdpb.PD` that must not fail.
    pub(crate) async fn pd<A: prost::Message + Default>(&self, method: &str, request: &impl prost::Message) -> A {
        self.call(&format!("/pdpb.PD/{method}"), request).await.expect("an answer")
    }
}

impl Call {
    /// Sends a message; h2 keeps what the window does not take yet. The server may have ended the call.
    pub(crate) fn send(&mut self, body: &[u8], is_last: bool) {
        drop(self.requests.send_data(framed(body), is_last));
    }

    /// Sends bytes that need not be a message.
    pub(crate) fn send_raw(&mut self, bytes: Bytes) {
        drop(self.requests.send_data(bytes, false));
    }

    /// Closes our half.
    pub(crate) fn close(&mut self) {
        drop(self.requests.send_data(Bytes::new(), true));
    }

    /// The next message; `None` at the end of the call.
    pub(crate) async fn next(&mut self) -> Option<Bytes> {
        patiently(self.next_message()).await
    }

    async fn next_message(&mut self) -> Option<Bytes> {
        loop {
            if self.received.len() >= 5 {
                let len = u32::from_be_bytes(self.received[1..5].try_into().expect("four bytes")) as usize;
                if self.received.len() >= 5 + len {
                    assert_eq!(self.received[0], 0, "nobody asked for compression");
                    self.received.advance(5);
                    return Some(self.received.split_to(len).freeze());
                }
            }
            if !self.receive().await {
                assert!(self.received.is_empty(), "a call does not end within a message");
                return None;
            }
        }
    }

    /// Takes some more bytes; false at the end.
    async fn receive(&mut self) -> bool {
        if self.failure.is_some() {
            return false;
        }
        if let Some(response) = self.response.take() {
            match response.await {
                Ok(response) => {
                    assert_eq!(response.status(), 200);
                    self.failure = status(response.headers());
                    self.answers = Some(response.into_body());
                }
                Err(error) => self.failure = Some(broken(&error)),
            }
            return self.failure.is_none();
        }
        let answers = self.answers.as_mut().expect("there was a response");
        match answers.data().await {
            Some(Ok(data)) => {
                drop(answers.flow_control().release_capacity(data.len()));
                self.received.extend_from_slice(&data);
                true
            }
            Some(Err(error)) => {
                self.failure = Some(broken(&error));
                false
            }
            None => {
                let trailers = answers.trailers().await;
                self.failure = Some(match trailers {
                    Ok(trailers) => trailers.as_ref().and_then(status).expect("a call ends with its status"),
                    Err(error) => broken(&error),
                });
                false
            }
        }
    }

    /// How the call ended; code 0 if well.
    pub(crate) async fn end(&mut self) -> Failure {
        while self.next().await.is_some() {}
        self.failure.clone().expect("set at the end")
    }
}

/// A call that HTTP/2 ended: no gRPC code, a thousand and h2's reason.
fn broken(error: &h2::Error) -> Failure {
    let reason = error.reason().map_or(999, u32::from);
    Failure { code: 1000 + reason, message: error.to_string() }
}
