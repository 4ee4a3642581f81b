//! Certificates for unit tests: an authority and what it signs, in a folder that goes with it.

use super::{Tls, TlsConfig};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use std::path::Path;
use tempfile::TempDir;

/// An authority.
pub(crate) struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// The files of one node.
pub(crate) struct Node {
    folder: TempDir,
}

impl Authority {
    pub(crate) fn new() -> Authority {
        let mut params = CertificateParams::new([]).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "test authority");
        let key = KeyPair::generate().expect("a key");
        let pem = params.self_signed(&key).expect("a certificate").pem();
        Authority { pem, issuer: Issuer::new(params, key) }
    }

    /// A node that is called `name` and reached at `localhost`.
    pub(crate) fn node(&self, name: &str) -> Node {
        let node = Node { folder: tempfile::tempdir().expect("a folder") };
        self.write(&node, name);
        node
    }

    /// Writes new files over those of `node`.
    pub(crate) fn write(&self, node: &Node, name: &str) {
        let mut params = CertificateParams::new(["localhost".to_owned()]).expect("a name");
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let write = |name: &str, text: &str| std::fs::write(node.path().join(name), text).expect("a file");
        write("ca.pem", &self.pem);
        write("cert.pem", &certificate.pem());
        write("key.pem", &key.serialize_pem());
    }
}

impl Node {
    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn config(&self, allowed: &[&str]) -> TlsConfig {
        TlsConfig {
            ca_path: self.path().join("ca.pem"),
            cert_path: self.path().join("cert.pem"),
            key_path: self.path().join("key.pem"),
            cert_allowed_cn: allowed.iter().map(|&name| name.to_owned()).collect(),
        }
    }

    pub(crate) fn tls(&self) -> Tls {
        self.config(&[]).load().expect("good files").expect("TLS is on")
    }
}
