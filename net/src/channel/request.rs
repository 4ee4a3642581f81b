//! The head of a request.

use super::connect::Target;
use crate::grpc::headers::{CONTENT_TYPE_GRPC, ENCODINGS, GRPC_ACCEPT_ENCODING, GRPC_TIMEOUT, append_metadata};
use crate::grpc::timeout;
use http::header::{HeaderMap, HeaderName, HeaderValue, TE, USER_AGENT};
use http::uri::{Parts, PathAndQuery, Scheme, Uri};
use http::{Method, Request};
use proto::rpc::{CallContext, Status};

/// Method, address and headers of a call.
///
/// # Errors
/// DEADLINE_EXCEEDED if the deadline has passed, INVALID_ARGUMENT for metadata or a path that cannot be sent.
pub(crate) fn head(target: &Target, path: &'static str, cx: &CallContext) -> Result<Request<()>, Status> {
    let path = PathAndQuery::try_from(path).map_err(|_| Status::invalid_argument(format!("{path:?} is no path")))?;
    let mut uri = Parts::default();
    uri.scheme = Some(if target.is_tls { Scheme::HTTPS } else { Scheme::HTTP });
    uri.authority = Some(target.authority.clone());
    uri.path_and_query = Some(path);
    let mut request = Request::new(());
    *request.method_mut() = Method::POST;
    *request.uri_mut() = Uri::from_parts(uri).map_err(|error| Status::internal(error.to_string()))?;
    let headers = request.headers_mut();
    headers.reserve(5 + cx.metadata.len());
    fixed(headers);
    if let Some(deadline) = cx.deadline {
        let left = deadline.since(executor::now());
        if left.is_zero() {
            return Err(super::deadline_passed());
        }
        let value = HeaderValue::try_from(timeout::format(left)).expect("digits and a letter");
        headers.insert(GRPC_TIMEOUT, value);
    }
    append_metadata(headers, &cx.metadata)?;
    Ok(request)
}

fn fixed(headers: &mut HeaderMap) {
    const AGENT: HeaderValue = HeaderValue::from_static(concat!("basalt/", env!("CARGO_PKG_VERSION")));
    const CONTENT_TYPE: HeaderName = http::header::CONTENT_TYPE;
    headers.insert(CONTENT_TYPE, CONTENT_TYPE_GRPC);
    headers.insert(TE, HeaderValue::from_static("trailers"));
    headers.insert(USER_AGENT, AGENT);
    headers.insert(GRPC_ACCEPT_ENCODING, ENCODINGS);
}
