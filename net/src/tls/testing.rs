//! Certificates for unit tests: an authority and what it signs, in a folder that goes with it.

use super::{Tls, TlsConfig};
use std::path::Path;
use tempfile::TempDir;
use test_certificates::Wish;

/// An authority.
pub(crate) struct Authority(test_certificates::Authority);

/// The files of one node.
pub(crate) struct Node {
    folder: TempDir,
}

impl Authority {
    pub(crate) fn new() -> Authority {
        Authority(test_certificates::Authority::new("test authority"))
    }

    /// A node that is called `name` and reached at `localhost`.
    pub(crate) fn node(&self, name: &str) -> Node {
        let node = Node { folder: tempfile::tempdir().expect("a folder") };
        self.write(&node, name);
        node
    }

    /// Writes new files over those of `node`.
    pub(crate) fn write(&self, node: &Node, name: &str) {
        let identity = self.0.sign(&Wish { common: name, hosts: &["localhost"], is_expired: false });
        let write = |name: &str, text: &str| std::fs::write(node.path().join(name), text).expect("a file");
        write("ca.pem", &self.0.pem);
        write("cert.pem", &identity.certificate);
        write("key.pem", &identity.key);
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
