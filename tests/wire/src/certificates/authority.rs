//! Who signs certificates, good and bad, and a client that shows them.

use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConnection, DEFAULT_VERSIONS, StreamOwned};
use serde_json::Value;
use test_certificates::{Identity, Wish};

use super::Certificates;
use crate::http;

/// Who signs.
pub struct Authority(test_certificates::Authority);

/// TLS over `socket` as a client that trusts `ca` (PEM) and is `identity`, or nobody.
pub(super) fn over(
    ca: &str,
    identity: Option<&Identity>,
    socket: TcpStream,
) -> StreamOwned<ClientConnection, TcpStream> {
    let config = test_certificates::client(ca, identity, DEFAULT_VERSIONS);
    let name = ServerName::try_from("127.0.0.1").expect("a name");
    StreamOwned::new(ClientConnection::new(config, name).expect("settings"), socket)
}

impl Authority {
    /// One that nobody knows yet.
    ///
    /// # Panics
    /// If it cannot be made.
    pub fn new(name: &str) -> Authority {
        Authority(test_certificates::Authority::new(name))
    }

    /// A certificate for 127.0.0.1 with this common name.
    ///
    /// # Panics
    /// If it cannot be made.
    pub fn sign(&self, name: &str, is_expired: bool) -> Identity {
        self.0.sign(&Wish { common: name, hosts: &["127.0.0.1"], is_expired })
    }

    /// Files of `identity` in `dir`, over those that are there.
    ///
    /// # Panics
    /// If they cannot be written.
    pub fn write(&self, dir: &Path, identity: &Identity, allowed: &[&str]) -> Certificates {
        std::fs::create_dir_all(dir).expect("a folder");
        let write = |name: &str, text: &str| {
            std::fs::write(dir.join(name), text).expect("a file");
            dir.join(name)
        };
        Certificates {
            ca: write("ca.pem", &self.0.pem),
            cert: write("cert.pem", &identity.certificate),
            key: write("key.pem", &identity.key),
            allowed: allowed.iter().map(|name| (*name).to_string()).collect(),
        }
    }

    /// Connects as `identity`, or nobody. Nothing is said yet.
    ///
    /// # Panics
    /// If the port does not accept.
    pub fn dial(&self, address: &str, identity: Option<&Identity>) -> StreamOwned<ClientConnection, TcpStream> {
        let socket = TcpStream::connect(address).expect("the port accepts");
        socket.set_read_timeout(Some(Duration::from_secs(30))).expect("a socket");
        over(&self.0.pem, identity, socket)
    }

    /// One HTTP/1.1 request; the body of its answer.
    ///
    /// # Errors
    /// What went wrong, or the head of a refusal.
    pub fn ask(&self, address: &str, identity: &Identity, request: &str) -> Result<String, String> {
        let answer = http::exchange(self.dial(address, Some(identity)), request).map_err(|error| error.to_string())?;
        if answer.is_ok() { Ok(answer.body) } else { Err(answer.head) }
    }

    /// What a port answers to a GET.
    ///
    /// # Panics
    /// If it does not answer with 200.
    pub fn page(&self, address: &str, identity: &Identity, path: &str) -> String {
        self.ask(address, identity, &http::get(path)).unwrap_or_else(|error| panic!("{address}{path}: {error}"))
    }

    /// As [`Authority::page`], JSON.
    ///
    /// # Panics
    /// As there, and if it is none.
    pub fn json(&self, address: &str, identity: &Identity, path: &str) -> Value {
        serde_json::from_str(&self.page(address, identity, path)).expect("JSON")
    }
}
