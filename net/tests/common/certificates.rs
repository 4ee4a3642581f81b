//! The files of nodes with certificates of [`test_certificates`].
#![allow(dead_code, reason = "each test file uses its part")]

use net::{Tls, TlsConfig};
use std::path::Path;
use tempfile::TempDir;
use test_certificates::{Authority, Identity};

/// Files in a folder that goes with them.
pub(crate) struct Files(TempDir);

impl Files {
    /// The files of a node that trusts `authority` and is `identity`.
    pub(crate) fn new(authority: &Authority, identity: &Identity) -> Files {
        let files = Files(tempfile::tempdir().expect("a folder"));
        files.write("ca.pem", &authority.pem);
        files.replace(identity);
        files
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path().join(name), text).expect("a file");
    }

    /// Writes another identity over the one that is there.
    pub(crate) fn replace(&self, identity: &Identity) {
        self.write("cert.pem", &identity.certificate);
        self.write("key.pem", &identity.key);
    }

    pub(crate) fn tls(&self, allowed: &[&str]) -> Tls {
        let config = TlsConfig {
            ca_path: self.path().join("ca.pem"),
            cert_path: self.path().join("cert.pem"),
            key_path: self.path().join("key.pem"),
            cert_allowed_cn: allowed.iter().map(|&name| name.to_owned()).collect(),
        };
        config.load().expect("good files").expect("TLS is on")
    }
}
