//! What comes with a call besides its messages.

use std::net::SocketAddr;

/// What a handler knows of a call, and what a caller may ask for.
#[derive(Clone, Debug, Default)]
pub struct CallContext {
    /// When the caller stops waiting (`grpc-timeout`), on this core's clock. `None` = never.
    pub deadline: Option<base::Instant>,
    /// The call's custom metadata; a server sees what the client sent.
    pub metadata: Metadata,
    /// Who calls, on a server. `None` on clients and for calls that came over no socket.
    pub peer: Option<SocketAddr>,
}

impl CallContext {
    /// A caller's context that only has a deadline.
    pub fn with_deadline(deadline: base::Instant) -> CallContext {
        CallContext { deadline: Some(deadline), ..CallContext::default() }
    }
}

/// Custom metadata: pairs of a lower-case ASCII name and a value, in the order sent; names may repeat.
///
/// A name that ends in `-bin` has any bytes for a value (base64 is the transport's business), any other has
/// printable ASCII. Names that gRPC and HTTP/2 use themselves (`:path`, `te`, `grpc-…`) do not appear.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata(Vec<(String, Vec<u8>)>);

impl Metadata {
    /// Nothing yet.
    pub fn new() -> Metadata {
        Metadata::default()
    }

    /// Adds a pair; the name is made lower-case.
    pub fn push(&mut self, name: &str, value: impl Into<Vec<u8>>) {
        self.0.push((name.to_ascii_lowercase(), value.into()));
    }

    /// The first value of `name`, which must be lower-case.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.iter().find(|(at, _)| *at == name).map(|(_, value)| value)
    }

    /// The first value of `name` as text; `None` also if it is none.
    pub fn get_str(&self, name: &str) -> Option<&str> {
        std::str::from_utf8(self.get(name)?).ok()
    }

    /// All pairs in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_slice()))
    }

    /// How many pairs.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no pair.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_lower_case_and_the_first_of_equal_names_wins() {
        let mut metadata = Metadata::new();
        metadata.push("Forwarded-Host", "a:1");
        metadata.push("forwarded-host", "b:2");
        metadata.push("trace-bin", vec![0xff]);
        assert_eq!(metadata.get_str("forwarded-host"), Some("a:1"));
        assert_eq!(metadata.get("trace-bin"), Some(&[0xff][..]));
        assert_eq!(metadata.get_str("trace-bin"), None);
        assert_eq!(metadata.get("absent"), None);
        assert_eq!(metadata.len(), 3);
    }
}
