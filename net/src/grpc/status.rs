//! Statuses as headers, and HTTP/2's own failures as statuses.

use super::headers::{CONTENT_TYPE_GRPC, GRPC_MESSAGE, GRPC_STATUS};
use super::percent;
use h2::Reason;
use http::StatusCode;
use http::header::{HeaderMap, HeaderValue};
use proto::rpc::{Code, Status};

/// Longest message that is sent, in bytes of UTF-8, so that its header stays below what clients take (8 KiB in gRPC
/// core, percent-encoding trebles).
const MESSAGE_BYTES_MAX: usize = 2048;

/// The trailers of a call that went well.
pub(crate) fn ok_trailers() -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert(GRPC_STATUS, HeaderValue::from_static("0"));
    trailers
}

/// The trailers of a call that ended with `status`.
pub(crate) fn trailers(status: &Status) -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(3);
    write(&mut trailers, status);
    trailers
}

/// The headers of a call that ends at once: HTTP/2 sees a header block and the end of the stream.
pub(crate) fn trailers_only(status: &Status) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(4);
    headers.insert(http::header::CONTENT_TYPE, CONTENT_TYPE_GRPC);
    write(&mut headers, status);
    headers
}

fn write(headers: &mut HeaderMap, status: &Status) {
    headers.insert(GRPC_STATUS, HeaderValue::from(status.code.number()));
    if !status.message.is_empty() {
        let value = HeaderValue::try_from(percent::encode(shortened(&status.message)));
        headers.insert(GRPC_MESSAGE, value.expect("percent-encoding leaves printable ASCII"));
    }
}

fn shortened(message: &str) -> &str {
    let mut end = message.len().min(MESSAGE_BYTES_MAX);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    &message[..end]
}

/// The status in trailers or trailers-only headers; `None` if they have none.
pub(crate) fn read(headers: &HeaderMap) -> Option<Status> {
    let code = std::str::from_utf8(headers.get(GRPC_STATUS)?.as_bytes()).ok();
    let number = code.and_then(|text| text.parse().ok()).unwrap_or(Code::Unknown.number());
    let message = headers.get(GRPC_MESSAGE).map(|value| percent::decode(value.as_bytes()));
    Some(Status::new(Code::from_number(number), message.unwrap_or_default()))
}

/// What an HTTP status without a gRPC status means, by gRPC's table.
pub(crate) fn from_http(status: StatusCode) -> Status {
    let code = match status.as_u16() {
        400 => Code::Internal,
        401 => Code::Unauthenticated,
        403 => Code::PermissionDenied,
        404 => Code::Unimplemented,
        429 | 502 | 503 | 504 => Code::Unavailable,
        _ => Code::Unknown,
    };
    Status::new(code, format!("HTTP status {status} without a gRPC status"))
}

/// What a failure of HTTP/2 means for a call.
pub(crate) fn from_h2(error: &h2::Error) -> Status {
    let code = match error.reason() {
        Some(Reason::REFUSED_STREAM) => Code::Unavailable,
        Some(Reason::CANCEL) => Code::Cancelled,
        Some(Reason::ENHANCE_YOUR_CALM) => Code::ResourceExhausted,
        Some(Reason::INADEQUATE_SECURITY) => Code::PermissionDenied,
        Some(_) if error.is_reset() => Code::Internal,
        _ => Code::Unavailable,
    };
    Status::new(code, format!("HTTP/2: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_survive_the_trailers() {
        for status in [Status::new(Code::Ok, ""), Status::unavailable("später: 100%\n"), Status::unauthenticated("no")]
        {
            assert_eq!(read(&trailers(&status)), Some(status.clone()));
            assert_eq!(read(&trailers_only(&status)), Some(status));
        }
        assert_eq!(read(&ok_trailers()), Some(Status::new(Code::Ok, "")));
        assert_eq!(read(&HeaderMap::new()), None);
    }

    #[test]
    fn an_unreadable_code_is_unknown() {
        for bad in ["", "x", "-1", "99999999999", "42"] {
            let mut headers = HeaderMap::new();
            headers.insert(GRPC_STATUS, HeaderValue::from_static(bad));
            assert_eq!(read(&headers).map(|status| status.code), Some(Code::Unknown), "{bad:?}");
        }
    }

    #[test]
    fn a_long_message_is_cut_at_a_character() {
        let long = "é".repeat(5000);
        let status = read(&trailers(&Status::internal(long))).expect("written above");
        assert_eq!(status.message, "é".repeat(1024));
    }
}
