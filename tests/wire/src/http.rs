//! One HTTP/1.1 request to a port, plainly or over TLS, and what stands on a page of metrics.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;

use crate::certificates::Certificates;

/// What a port answers.
#[derive(Clone, Debug)]
pub struct Answer {
    pub(crate) head: String,
    /// What stands after the headers.
    pub body: String,
}

impl Answer {
    /// Whether the status is 200.
    pub fn is_ok(&self) -> bool {
        self.head.starts_with("HTTP/1.1 200 ")
    }

    /// The body of an answer that must have the status 200.
    ///
    /// # Panics
    /// If it has another.
    pub fn expect_ok(self, what: &str) -> String {
        assert!(self.is_ok(), "{what}: {}", self.head);
        self.body
    }
}

/// A GET as bytes.
pub fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: basalt\r\nConnection: close\r\n\r\n")
}

/// A POST as bytes.
pub fn post(path: &str, body: &Value) -> String {
    request("POST", path, body)
}

/// A request of any method as bytes; `Null` is no body.
pub fn request(method: &str, path: &str, body: &Value) -> String {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let length = body.len();
    format!("{method} {path} HTTP/1.1\r\nHost: basalt\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}")
}

/// Sends a request to `host:port`, over TLS if there are certificates, and waits for its answer.
///
/// # Panics
/// If there is none within a minute.
pub fn ask(address: &str, certificates: Option<&Certificates>, request: &str) -> Answer {
    try_ask(address, certificates, request).unwrap_or_else(|error| panic!("{address}: {error}"))
}

/// As [`ask`], of a process that may just be ending.
///
/// # Errors
/// Of the connection, an answer that does not come within a minute, and one that is cut off before its body.
pub fn try_ask(address: &str, certificates: Option<&Certificates>, request: &str) -> io::Result<Answer> {
    let socket = TcpStream::connect(address)?;
    socket.set_read_timeout(Some(Duration::from_secs(60)))?;
    match certificates {
        None => exchange(socket, request),
        Some(certificates) => exchange(certificates.over(socket), request),
    }
}

/// One request and its answer, after which the other side closes.
pub(crate) fn exchange(mut stream: impl Read + Write, request: &str) -> io::Result<Answer> {
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    parsed(&answer)
}

/// Splits before and after the first `mark`.
fn split_at_mark<'a>(bytes: &'a [u8], mark: &[u8]) -> io::Result<(&'a [u8], &'a [u8])> {
    let at = bytes.windows(mark.len()).position(|window| window == mark).ok_or(io::ErrorKind::UnexpectedEof)?;
    Ok((&bytes[..at], &bytes[at + mark.len()..]))
}

fn text(bytes: &[u8]) -> io::Result<String> {
    String::from_utf8(bytes.to_vec()).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// An answer after which the connection was closed.
fn parsed(answer: &[u8]) -> io::Result<Answer> {
    let (head, body) = split_at_mark(answer, b"\r\n\r\n")?;
    let head = text(head)?;
    let is_chunked = head.to_ascii_lowercase().contains("\r\ntransfer-encoding: chunked");
    let body = if is_chunked { text(&joined(body)?)? } else { text(body)? };
    Ok(Answer { head, body })
}

/// The chunks of a body without their lengths (RFC 9112, section 7.1).
fn joined(mut rest: &[u8]) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let (line, after) = split_at_mark(rest, b"\r\n")?;
        let digits = std::str::from_utf8(line).unwrap_or("").split(';').next().unwrap_or("").trim();
        let length = usize::from_str_radix(digits, 16).map_err(|_| io::ErrorKind::InvalidData)?;
        if length == 0 {
            return Ok(body);
        }
        let (chunk, next) = after.split_at_checked(length).ok_or(io::ErrorKind::UnexpectedEof)?;
        body.extend_from_slice(chunk);
        rest = next.strip_prefix(b"\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
    }
}

/// A metric on a page, summed over cores, shards and other labels.
///
/// # Panics
/// If the page does not have it.
pub fn metric(page: &str, name: &str) -> u64 {
    let mut values = page
        .lines()
        .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])))
        .map(|line| line.rsplit(' ').next().and_then(|value| value.parse::<u64>().ok()).expect("a number"))
        .peekable();
    assert!(values.peek().is_some(), "there is no metric {name}");
    values.sum()
}

#[cfg(test)]
mod tests {
    use super::parsed;

    #[test]
    fn bodies_come_whole_or_in_chunks() {
        let plain = parsed(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\na\r\n1").expect("an answer");
        assert!(plain.is_ok());
        assert_eq!(plain.body, "a\r\n1");
        let head = "HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n";
        // The second chunk begins inside a character.
        let chunks = [head.as_bytes(), b"2\r\na\xc3\r\nC;x=1\r\n\xa4 twelve byt\r\n0\r\n\r\n"].concat();
        let chunked = parsed(&chunks).expect("an answer");
        assert!(!chunked.is_ok());
        assert_eq!(chunked.body, "a\u{e4} twelve byt");
        for end in head.len()..chunks.len() - 4 {
            assert!(parsed(&chunks[..end]).is_err(), "cut off after {end} bytes");
        }
    }
}
