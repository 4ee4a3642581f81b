//! Who signs certificates, good and bad, and a client that shows them.

use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::Value;

use super::Certificates;
use crate::http;

/// Who signs.
pub struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate with its key, as PEM.
pub struct Identity {
    certificate: String,
    key: String,
}

/// TLS over `socket` as a client that trusts `ca` and shows a certificate with its key, or none. All are PEM.
pub(super) fn over(
    ca: &[u8],
    identity: Option<(&[u8], &[u8])>,
    socket: TcpStream,
) -> StreamOwned<ClientConnection, TcpStream> {
    let mut trusted = RootCertStore::empty();
    trusted.add(CertificateDer::from_pem_slice(ca).expect("PEM")).expect("an authority");
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(trusted);
    let config = match identity {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let certificate = CertificateDer::from_pem_slice(certificate).expect("PEM");
            let key = PrivateKeyDer::from_pem_slice(key).expect("PEM");
            builder.with_client_auth_cert(vec![certificate], key).expect("they belong together")
        }
    };
    let name = ServerName::try_from("127.0.0.1").expect("a name");
    StreamOwned::new(ClientConnection::new(Arc::new(config), name).expect("settings"), socket)
}

impl Authority {
    /// One that nobody knows yet.
    ///
    /// # Panics
    /// If it cannot be made.
    pub fn new(name: &str) -> Authority {
        let mut params = CertificateParams::new([]).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        let pem = params.self_signed(&key).expect("a certificate").pem();
        Authority { pem, issuer: Issuer::new(params, key) }
    }

    /// A certificate for 127.0.0.1 with this common name.
    ///
    /// # Panics
    /// If it cannot be made.
    pub fn sign(&self, name: &str, is_expired: bool) -> Identity {
        let mut params = CertificateParams::new(["127.0.0.1".to_string()]).expect("an address");
        params.distinguished_name.push(DnType::CommonName, name);
        if is_expired {
            (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1));
        }
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate").pem();
        Identity { certificate, key: key.serialize_pem() }
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
            ca: write("ca.pem", &self.pem),
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
        let identity = identity.map(|identity| (identity.certificate.as_bytes(), identity.key.as_bytes()));
        over(self.pem.as_bytes(), identity, socket)
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

impl Identity {
    /// The certificate as it is shown.
    ///
    /// # Panics
    /// If it is none.
    pub fn der(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(self.certificate.as_bytes()).expect("PEM")
    }
}
