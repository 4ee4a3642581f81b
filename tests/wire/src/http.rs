//! One HTTP/1.1 request to a port that speaks plainly, and what stands on a page of metrics.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;

/// What a port answers.
#[derive(Clone, Debug)]
pub struct Answer {
    head: String,
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
    let body = body.to_string();
    let length = body.len();
    format!("POST {path} HTTP/1.1\r\nHost: basalt\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}")
}

/// Sends a request to `host:port` and waits for its answer.
///
/// # Panics
/// If there is none within a minute.
pub fn ask(address: &str, request: &str) -> Answer {
    try_ask(address, request).unwrap_or_else(|error| panic!("{address}: {error}"))
}

/// As [`ask`], of a process that may just be ending.
///
/// # Errors
/// Of the connection, an answer that does not come within a minute, and one that is cut off before its body.
pub fn try_ask(address: &str, request: &str) -> io::Result<Answer> {
    let mut socket = TcpStream::connect(address)?;
    socket.set_read_timeout(Some(Duration::from_secs(60)))?;
    socket.write_all(request.as_bytes())?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
    Ok(Answer { head: head.to_string(), body: body.to_string() })
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
