//! Header maps of gRPC: custom metadata, content types and encodings.

use super::base64;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use proto::rpc::{Metadata, Status};

pub(crate) const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
pub(crate) const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
pub(crate) const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
pub(crate) const GRPC_ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
pub(crate) const GRPC_ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");
pub(crate) const CONTENT_TYPE_GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
pub(crate) const ENCODINGS: HeaderValue = HeaderValue::from_static("identity,gzip");
pub(crate) const GZIP: HeaderValue = HeaderValue::from_static("gzip");

/// Whether a request or answer with this content type is gRPC: `application/grpc`, alone or with `+proto` or
/// parameters.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(http::header::CONTENT_TYPE) else {
        return false;
    };
    match value.as_bytes().strip_prefix(b"application/grpc") {
        Some([]) => true,
        Some([b';', ..]) => true,
        Some(rest) => rest == b"+proto" || rest.starts_with(b"+proto;"),
        None => false,
    }
}

/// How the messages of the other side are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    Identity,
    Gzip,
}

/// Reads `grpc-encoding`; the error is the name of an encoding that we do not know.
pub(crate) fn encoding(headers: &HeaderMap) -> Result<Encoding, String> {
    match headers.get(GRPC_ENCODING).map(HeaderValue::as_bytes) {
        None | Some(b"identity") => Ok(Encoding::Identity),
        Some(b"gzip") => Ok(Encoding::Gzip),
        Some(other) => Err(String::from_utf8_lossy(other).into_owned()),
    }
}

/// Whether the other side's `grpc-accept-encoding` names gzip.
pub(crate) fn accepts_gzip(headers: &HeaderMap) -> bool {
    headers
        .get_all(GRPC_ACCEPT_ENCODING)
        .iter()
        .any(|value| value.as_bytes().split(|byte| *byte == b',').any(|name| name.trim_ascii() == b"gzip"))
}

/// The custom metadata among `headers`. Values of `-bin` names that are no base64 are left out.
pub(crate) fn metadata(headers: &HeaderMap) -> Metadata {
    let mut metadata = Metadata::new();
    for (name, value) in headers {
        let name = name.as_str();
        if is_reserved(name) {
            continue;
        }
        if !name.ends_with("-bin") {
            metadata.push(name, value.as_bytes());
            continue;
        }
        for part in value.as_bytes().split(|byte| *byte == b',') {
            if let Some(bytes) = base64::decode(part.trim_ascii()) {
                metadata.push(name, bytes);
            }
        }
    }
    metadata
}

/// Adds custom metadata to `headers`.
///
/// # Errors
/// INVALID_ARGUMENT for a name or value that HTTP/2 cannot carry, or a name that is not the caller's to set.
pub(crate) fn append_metadata(headers: &mut HeaderMap, metadata: &Metadata) -> Result<(), Status> {
    for (name, value) in metadata.iter() {
        let bad = |what: &str| Status::invalid_argument(format!("metadata {name:?} {what}"));
        if is_reserved(name) {
            return Err(bad("is a name that gRPC uses itself"));
        }
        let header = HeaderName::from_bytes(name.as_bytes()).map_err(|_| bad("is no header name"))?;
        let value = if name.ends_with("-bin") {
            HeaderValue::try_from(base64::encode(value))
        } else {
            HeaderValue::from_bytes(value)
        };
        headers
            .try_append(header, value.map_err(|_| bad("has a value that is no header value"))?)
            .map_err(|_| bad("is one too many"))?;
    }
    Ok(())
}

/// Names that belong to HTTP/2 and gRPC and are not custom metadata.
fn is_reserved(name: &str) -> bool {
    name.starts_with("grpc-")
        || matches!(
            name,
            "content-type"
                | "te"
                | "user-agent"
                | "content-length"
                | "accept-encoding"
                | "connection"
                | "host"
                | "date"
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(name: &'static str, value: &'static str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(name, HeaderValue::from_static(value));
        headers
    }

    #[test]
    fn content_types_of_stock_clients_are_grpc_and_others_are_not() {
        for good in ["application/grpc", "application/grpc+proto", "application/grpc;charset=utf-8"] {
            assert!(is_grpc(&with("content-type", good)), "{good}");
        }
        for bad in ["application/grpc-web", "application/grpc+json", "application/json", "text/plain", ""] {
            assert!(!is_grpc(&with("content-type", bad)), "{bad}");
        }
        assert!(!is_grpc(&HeaderMap::new()));
    }

    #[test]
    fn encodings_are_told_apart() {
        assert_eq!(encoding(&HeaderMap::new()), Ok(Encoding::Identity));
        assert_eq!(encoding(&with("grpc-encoding", "gzip")), Ok(Encoding::Gzip));
        assert_eq!(encoding(&with("grpc-encoding", "snappy")), Err("snappy".to_string()));
        assert!(accepts_gzip(&with("grpc-accept-encoding", "identity, deflate, gzip")));
        assert!(!accepts_gzip(&with("grpc-accept-encoding", "identity,xgzip")));
    }

    #[test]
    fn metadata_survives_the_headers() {
        let mut metadata = Metadata::new();
        metadata.push("tikv-forwarded-host", "127.0.0.1:20160");
        metadata.push("trace-bin", vec![0, 255, 10]);
        metadata.push("twice", "a");
        metadata.push("twice", "b");
        let mut headers = with("content-type", "application/grpc");
        headers.insert("grpc-timeout", HeaderValue::from_static("1S"));
        append_metadata(&mut headers, &metadata).expect("all are valid");
        let back = super::metadata(&headers);
        let sorted = |metadata: &Metadata| {
            let mut pairs: Vec<_> = metadata.iter().map(|(n, v)| (n.to_string(), v.to_vec())).collect();
            pairs.sort();
            pairs
        };
        assert_eq!(sorted(&back), sorted(&metadata));
    }

    #[test]
    fn metadata_that_cannot_be_sent_is_refused() {
        for (name, value) in [("grpc-timeout", "1S"), ("te", "x"), ("with space", "x"), ("line", "a\nb")] {
            let mut metadata = Metadata::new();
            metadata.push(name, value);
            assert!(append_metadata(&mut HeaderMap::new(), &metadata).is_err(), "{name}");
        }
    }
}
