//! One question over HTTP/1.1, on a connection of its own: for tools that ask PD's REST paths and status pages.

use crate::channel::Transport;
use crate::http1::HttpResponse;
use crate::tls::Tls;
use bytes::Bytes;
use executor::io::{AsyncReadExt, AsyncWriteExt};
use std::io;
use std::time::Duration;

/// Largest answer, in bytes: `/regions` of a large cluster.
const ANSWER_BYTES_MAX: u64 = 256 << 20;
const HEADERS_MAX: usize = 64;

/// Sends `method path` with a body, which is JSON if there is one, to `address` (`host:port`, a scheme is allowed) and
/// returns the answer, whatever its status. With `tls` the connection is mutual TLS.
///
/// # Errors
/// The server cannot be reached, does not want us, does not answer within `limit`, or answers what is no HTTP/1.
pub async fn fetch(
    address: &str,
    tls: Option<&Tls>,
    (method, path): (&str, &str),
    body: &[u8],
    limit: Duration,
) -> io::Result<HttpResponse> {
    let exchange = async {
        let mut stream = Transport::dial(address, tls).await?;
        let host = address.split_once("://").map_or(address, |(_, host)| host).trim_end_matches('/');
        let mut request = format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n");
        if !body.is_empty() || method != "GET" {
            request += &format!("content-type: application/json\r\ncontent-length: {}\r\n", body.len());
        }
        stream.write_all(&[request.as_bytes(), b"\r\n", body].concat()).await?;
        stream.flush().await?;
        let mut answer = Vec::new();
        stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await?;
        io::Result::Ok(answer)
    };
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, format!("{address} does not answer"));
    let answer = executor::timeout(limit, exchange).await.map_err(late)??;
    parse(&answer).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("{address} does not speak HTTP/1")))
}

/// A whole answer, as it was read to the end of the connection.
fn parse(answer: &[u8]) -> Option<HttpResponse> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut head = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(length) = head.parse(answer).ok()? else { return None };
    let header = |name: &str| {
        let found = head.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(found.value).ok().map(str::trim)
    };
    let rest = &answer[length..];
    let body = match (header("transfer-encoding"), header("content-length")) {
        (Some(coding), _) if coding.eq_ignore_ascii_case("chunked") => joined(rest)?,
        (_, Some(length)) => rest.get(..length.parse().ok()?)?.to_vec(),
        (_, None) => rest.to_vec(),
    };
    Some(HttpResponse::new(head.code?, header("content-type").unwrap_or_default(), Bytes::from(body)))
}

/// The chunks of a body; `None` if the last one is missing.
fn joined(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let httparse::Status::Complete((start, length)) = httparse::parse_chunk_size(rest).ok()? else { return None };
        if length == 0 {
            return Some(body);
        }
        let end = start.checked_add(usize::try_from(length).ok()?)?;
        body.extend_from_slice(rest.get(start..end)?);
        rest = rest.get(end..)?.strip_prefix(b"\r\n")?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(answer: &str) -> Option<(u16, String)> {
        let answer = parse(answer.as_bytes())?;
        Some((answer.status, String::from_utf8(answer.body.to_vec()).expect("ASCII")))
    }

    #[test]
    fn bodies_of_every_form_are_read() {
        let head = "HTTP/1.1 200 OK\r\n";
        let whole = Some((200, "abcdef".to_owned()));
        assert_eq!(body(&format!("{head}Content-Length: 6\r\n\r\nabcdef")), whole);
        assert_eq!(body(&format!("{head}\r\nabcdef")), whole);
        assert_eq!(body(&format!("{head}Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n4\r\ncdef\r\n0\r\n\r\n")), whole);
        assert_eq!(body("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"), Some((404, String::new())));
    }

    #[test]
    fn answers_that_were_cut_are_none() {
        for cut in [
            "",
            "HTTP/1.1 200 OK\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nabc",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n4\r\ncd",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n",
            "\u{16}\u{3}\u{3}",
        ] {
            assert_eq!(body(cut), None, "{cut:?}");
        }
    }
}
