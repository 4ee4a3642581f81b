//! HTTP/1.1, as much as status pages and PD's REST paths need: one request after the other, bodies of known length or
//! chunked, everything bounded.

use crate::config::ServerConfig;
use crate::memory::{BodyCharge, CoreMemory};
use crate::metrics::{NetMetrics, add};
use crate::server::{CoreShared, Phase};
use bytes::{Buf, Bytes, BytesMut};
use executor::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use proto::rpc::LocalFuture;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

/// Largest request line and headers, in bytes.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// Most headers of a request.
const HEADERS_MAX: usize = 100;
/// How long a client may take to see that we have closed, and what it may still send meanwhile.
const LINGER_TIME: Duration = Duration::from_millis(500);
const LINGER_BYTES_MAX: usize = 1 << 20;
/// Longest line that announces a chunk.
const CHUNK_LINE_BYTES_MAX: usize = 128;

/// A request, whole.
#[derive(Clone, Debug)]
pub struct HttpRequest {
    /// `GET`, `POST`, …
    pub method: String,
    /// The path without the query, as sent (not percent-decoded).
    pub path: String,
    /// What follows the `?`, or empty.
    pub query: String,
    /// Headers in order; names in lower case.
    pub headers: Vec<(String, Vec<u8>)>,
    /// The body.
    pub body: Bytes,
    /// Who asks.
    pub peer: Option<SocketAddr>,
}

impl HttpRequest {
    /// The first value of a header, by its lower-case name.
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        let found = self.headers.iter().find(|(other, _)| other == name);
        found.map(|(_, value)| value.as_slice())
    }
}

/// An answer.
#[derive(Clone, Debug)]
pub struct HttpResponse {
    /// The status, such as 200.
    pub status: u16,
    /// The value of `Content-Type`.
    pub content_type: String,
    /// The body.
    pub body: Bytes,
}

impl HttpResponse {
    /// An answer with a body.
    pub fn new(status: u16, content_type: &str, body: impl Into<Bytes>) -> HttpResponse {
        HttpResponse { status, content_type: content_type.to_owned(), body: body.into() }
    }

    /// Plain text.
    pub fn text(status: u16, text: impl Into<String>) -> HttpResponse {
        HttpResponse::new(status, "text/plain; charset=utf-8", text.into())
    }

    /// JSON that is text already.
    pub fn json(status: u16, json: impl Into<String>) -> HttpResponse {
        HttpResponse::new(status, "application/json; charset=UTF-8", json.into())
    }

    /// A page.
    pub fn html(page: impl Into<String>) -> HttpResponse {
        HttpResponse::new(200, "text/html; charset=utf-8", page.into())
    }
}

/// Answers HTTP/1.1 requests.
pub trait HttpHandler: 'static {
    /// Answers one request. `HEAD` is asked as `GET`; the body is left out for it.
    fn handle(&self, request: HttpRequest) -> LocalFuture<HttpResponse>;
}

/// Why a connection ends.
#[derive(Debug, thiserror::Error)]
enum HttpError {
    #[error("connection: {0}")]
    Io(#[from] io::Error),
    #[error("{1}")]
    Bad(u16, &'static str),
}

/// The head of a request, and what it says of its body and of the connection.
struct Head {
    request: HttpRequest,
    body: BodyLength,
    keep_alive: bool,
    expects_continue: bool,
    is_head: bool,
    /// For the body, while the request lives.
    charge: Option<BodyCharge>,
}

enum BodyLength {
    Known(usize),
    Chunked,
}

struct Http1<'a, S> {
    stream: S,
    buffer: BytesMut,
    peer: Option<SocketAddr>,
    core: &'a CoreShared,
    config: &'a ServerConfig,
    memory: &'a Rc<CoreMemory>,
    metrics: &'a NetMetrics,
}

/// Serves a connection until it ends; `first` was read from it already.
pub(crate) async fn serve<S>(
    stream: S,
    first: Bytes,
    peer: Option<SocketAddr>,
    handler: Rc<dyn HttpHandler>,
    core: &CoreShared,
) where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (config, memory, metrics) = (&core.config, &core.memory, &*core.metrics);
    let mut http = Http1 { stream, buffer: BytesMut::from(first), peer, core, config, memory, metrics };
    add(&metrics.received_bytes_total, http.buffer.len() as u64);
    if let Err(HttpError::Bad(status, why)) = http.serve(handler).await {
        let answer = HttpResponse::text(status, format!("{why}\n"));
        // The client may be gone; either way the connection ends here.
        let _ = http.answer(&answer, false, false).await;
    }
    linger(&mut http.stream, config.stalled_write_timeout).await;
}

/// Closes without losing what was written: a socket that is closed over unread bytes resets the connection, and the
/// client never sees its answer.
pub(crate) async fn linger(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), patience: Duration) {
    let end = executor::timeout(patience.min(LINGER_TIME), async {
        stream.shutdown().await?;
        let mut bytes = vec![0u8; 4096];
        let mut left = LINGER_BYTES_MAX;
        while left > 0 {
            match stream.read(&mut bytes).await? {
                0 => break,
                read => left = left.saturating_sub(read),
            }
        }
        Ok::<_, io::Error>(())
    });
    // However it went, the connection ends now.
    drop(end.await);
}

impl<S: AsyncRead + AsyncWrite + Unpin> Http1<'_, S> {
    async fn serve(&mut self, handler: Rc<dyn HttpHandler>) -> Result<(), HttpError> {
        loop {
            // The first byte may take as long as a connection may be idle, the rest may not. A server that stops does
            // not wait for it.
            if self.buffer.is_empty() {
                let (lifecycle, patience) = (&self.core.lifecycle, self.config.http1_idle_timeout);
                match executor::timeout(patience, lifecycle.unless(Phase::Draining, self.read())).await {
                    Ok(Some(Ok(0)) | None) | Err(_) => return Ok(()),
                    Ok(Some(read)) => read?,
                };
            }
            let whole = executor::timeout(self.config.half_sent_timeout, self.request());
            let Ok(head) = whole.await else {
                add(&self.metrics.stalled_total, 1);
                return Err(HttpError::Bad(408, "the request did not come in time"));
            };
            let head = head?;
            add(&self.metrics.http1_requests_total, 1);
            let (keep_alive, is_head, _charge) = (head.keep_alive, head.is_head, head.charge);
            let answer = handler.handle(head.request).await;
            let keep_alive = keep_alive && !self.core.is_draining();
            self.answer(&answer, keep_alive, is_head).await?;
            if !keep_alive {
                return Ok(());
            }
        }
    }

    /// Reads a request with its body.
    async fn request(&mut self) -> Result<Head, HttpError> {
        let mut head = loop {
            if let Some((head, len)) = parse_head(&self.buffer, self.peer)? {
                self.buffer.advance(len);
                break head;
            }
            if self.buffer.len() >= HEAD_BYTES_MAX {
                return Err(HttpError::Bad(431, "the request's head is too large"));
            }
            self.read_some().await?;
        };
        let body_bytes_max = match head.body {
            BodyLength::Known(len) => len.min(self.config.http1_body_bytes_max),
            BodyLength::Chunked => self.config.http1_body_bytes_max,
        };
        let charge = BodyCharge::new(self.memory, body_bytes_max);
        head.charge = Some(charge.ok_or(HttpError::Bad(503, "the server's memory for requests is used up"))?);
        if head.expects_continue {
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        head.request.body = match head.body {
            BodyLength::Known(len) if len > self.config.http1_body_bytes_max => {
                return Err(too_large());
            }
            BodyLength::Known(len) => self.take(len).await?,
            BodyLength::Chunked => self.chunked().await?,
        };
        Ok(head)
    }

    async fn chunked(&mut self) -> Result<Bytes, HttpError> {
        let mut body = BytesMut::new();
        loop {
            let line = self.line().await?;
            let digits = line.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
            let size = std::str::from_utf8(digits).ok().and_then(|text| usize::from_str_radix(text, 16).ok());
            let size = size.ok_or(HttpError::Bad(400, "a chunk has no size"))?;
            if size > self.config.http1_body_bytes_max - body.len() {
                return Err(too_large());
            }
            if size == 0 {
                break;
            }
            body.extend_from_slice(&self.take(size).await?);
            if !self.line().await?.is_empty() {
                return Err(HttpError::Bad(400, "a chunk is longer than it says"));
            }
        }
        for _ in 0..HEADERS_MAX {
            if self.line().await?.is_empty() {
                return Ok(body.freeze());
            }
        }
        Err(HttpError::Bad(431, "too many trailers"))
    }

    /// The next line, without its end.
    async fn line(&mut self) -> Result<Bytes, HttpError> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(end + 1).freeze();
                let line = &line[..end];
                return Ok(Bytes::copy_from_slice(line.strip_suffix(b"\r").unwrap_or(line)));
            }
            if self.buffer.len() > CHUNK_LINE_BYTES_MAX {
                return Err(HttpError::Bad(400, "a chunk's head is too long"));
            }
            self.read_some().await?;
        }
    }

    async fn take(&mut self, len: usize) -> Result<Bytes, HttpError> {
        while self.buffer.len() < len {
            self.read_some().await?;
        }
        Ok(self.buffer.split_to(len).freeze())
    }

    async fn read_some(&mut self) -> Result<(), HttpError> {
        match self.read().await? {
            0 => Err(HttpError::Io(io::ErrorKind::UnexpectedEof.into())),
            _ => Ok(()),
        }
    }

    async fn read(&mut self) -> io::Result<usize> {
        self.buffer.reserve(4096);
        let read = self.stream.read_buf(&mut self.buffer).await?;
        add(&self.metrics.received_bytes_total, read as u64);
        Ok(read)
    }

    async fn answer(&mut self, answer: &HttpResponse, keep_alive: bool, is_head: bool) -> Result<(), HttpError> {
        let mut out = format!(
            "HTTP/1.1 {} {}\r\nContent-Type: {}\r\nContent-Length: {}\r\nConnection: {}\r\n\r\n",
            answer.status,
            reason(answer.status),
            answer.content_type.replace(['\r', '\n'], " "),
            answer.body.len(),
            if keep_alive { "keep-alive" } else { "close" },
        )
        .into_bytes();
        if !is_head {
            out.extend_from_slice(&answer.body);
        }
        self.write(&out).await
    }

    /// Writes `bytes`; each part that the client takes gives it the whole time again.
    async fn write(&mut self, mut bytes: &[u8]) -> Result<(), HttpError> {
        let patience = self.config.stalled_write_timeout;
        let stalled = || {
            add(&self.metrics.stalled_total, 1);
            HttpError::Io(io::ErrorKind::TimedOut.into())
        };
        while !bytes.is_empty() {
            let written = executor::timeout(patience, self.stream.write(bytes)).await.map_err(|_| stalled())??;
            if written == 0 {
                return Err(HttpError::Io(io::ErrorKind::WriteZero.into()));
            }
            add(&self.metrics.socket_writes_total, 1);
            add(&self.metrics.sent_bytes_total, written as u64);
            bytes = &bytes[written..];
        }
        // TLS may hold what it took.
        executor::timeout(patience, self.stream.flush()).await.map_err(|_| stalled())?.map_err(HttpError::Io)
    }
}

fn too_large() -> HttpError {
    HttpError::Bad(413, "the request's body is too large")
}

/// The head at the beginning of `bytes` and its length, if it is complete.
fn parse_head(bytes: &[u8], peer: Option<SocketAddr>) -> Result<Option<(Head, usize)>, HttpError> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut parsed = httparse::Request::new(&mut headers);
    let len = match parsed.parse(bytes) {
        Ok(httparse::Status::Partial) => return Ok(None),
        Ok(httparse::Status::Complete(len)) => len,
        Err(httparse::Error::TooManyHeaders) => {
            return Err(HttpError::Bad(431, "too many headers"));
        }
        Err(_) => return Err(HttpError::Bad(400, "this is no HTTP request")),
    };
    if len > HEAD_BYTES_MAX {
        return Err(HttpError::Bad(431, "the request's head is too large"));
    }
    let method = parsed.method.unwrap_or_default();
    let target = parsed.path.unwrap_or_default();
    let mut head = Head {
        request: HttpRequest {
            method: if method == "HEAD" { "GET" } else { method }.to_owned(),
            path: String::new(),
            query: String::new(),
            headers: Vec::with_capacity(parsed.headers.len()),
            body: Bytes::new(),
            peer,
        },
        body: BodyLength::Known(0),
        keep_alive: parsed.version == Some(1),
        expects_continue: false,
        is_head: method == "HEAD",
        charge: None,
    };
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    (head.request.path, head.request.query) = (path.to_owned(), query.to_owned());
    let mut length = None;
    let mut is_chunked = false;
    for header in parsed.headers.iter() {
        let name = header.name.to_ascii_lowercase();
        let has = |token: &str| {
            header
                .value
                .split(|byte| *byte == b',')
                .any(|part| part.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
        };
        match name.as_str() {
            "content-length" => {
                let text = std::str::from_utf8(header.value).unwrap_or_default();
                let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
                let value = text.parse::<usize>().ok().filter(|_| is_number);
                let value = value.ok_or(HttpError::Bad(400, "Content-Length is no number"))?;
                if length.is_some_and(|other| other != value) {
                    return Err(HttpError::Bad(400, "two values of Content-Length"));
                }
                length = Some(value);
            }
            "transfer-encoding" => {
                if !header.value.trim_ascii().eq_ignore_ascii_case(b"chunked") {
                    return Err(HttpError::Bad(501, "only the transfer encoding chunked is known"));
                }
                is_chunked = true;
            }
            "connection" if has("close") => head.keep_alive = false,
            "connection" if has("keep-alive") => head.keep_alive = true,
            "expect" => head.expects_continue = has("100-continue"),
            _ => {}
        }
        head.request.headers.push((name, header.value.to_vec()));
    }
    head.body = match (is_chunked, length) {
        // Both together are how requests are smuggled past proxies (RFC 9112, section 6.3).
        (true, Some(_)) => {
            return Err(HttpError::Bad(400, "both Content-Length and Transfer-Encoding"));
        }
        (true, None) => BodyLength::Chunked,
        (false, length) => BodyLength::Known(length.unwrap_or(0)),
    };
    Ok(Some((head, len)))
}

fn reason(status: u16) -> &'static str {
    let known = http::StatusCode::from_u16(status).ok();
    known.and_then(|status| status.canonical_reason()).unwrap_or("Status")
}
