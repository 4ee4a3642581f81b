//! Certificates of all kinds, good and bad, made anew for each test.
#![allow(dead_code, reason = "each test file uses its part")]

use net::{Tls, TlsConfig};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use std::path::Path;
use std::sync::Arc;
use tempfile::TempDir;

/// Who signs.
pub(crate) struct Authority {
    pub pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// What a certificate is to say.
pub(crate) struct Wish<'a> {
    pub common: &'a str,
    pub hosts: &'a [&'a str],
    pub is_expired: bool,
}

impl Default for Wish<'_> {
    fn default() -> Self {
        Wish { common: "node", hosts: &["localhost", "127.0.0.1"], is_expired: false }
    }
}

/// A certificate with its key, as PEM.
pub(crate) struct Identity {
    pub certificate: String,
    pub key: String,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Authority {
        let mut params = CertificateParams::new([]).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        let pem = params.self_signed(&key).expect("a certificate").pem();
        Authority { pem, issuer: Issuer::new(params, key) }
    }

    pub(crate) fn sign(&self, wish: &Wish<'_>) -> Identity {
        let hosts: Vec<_> = wish.hosts.iter().map(|&host| host.to_owned()).collect();
        let mut params = CertificateParams::new(hosts).expect("names");
        params.distinguished_name.push(DnType::CommonName, wish.common);
        if wish.is_expired {
            (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1));
        }
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate").pem();
        Identity { certificate, key: key.serialize_pem() }
    }

    /// The files of a node that trusts this authority and is `identity`.
    pub(crate) fn files(&self, identity: &Identity) -> Files {
        let files = Files(tempfile::tempdir().expect("a folder"));
        files.write("ca.pem", &self.pem);
        files.replace(identity);
        files
    }

    /// The settings of an independent client that trusts this authority and is `identity`, or nobody.
    pub(crate) fn client(
        &self,
        identity: Option<&Identity>,
        version: &'static SupportedProtocolVersion,
    ) -> Arc<ClientConfig> {
        let mut trusted = RootCertStore::empty();
        trusted.add(CertificateDer::from_pem_slice(self.pem.as_bytes()).expect("PEM")).expect("an authority");
        let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&[version])
            .expect("a version")
            .with_root_certificates(trusted);
        Arc::new(match identity {
            None => builder.with_no_client_auth(),
            Some(identity) => {
                let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).expect("PEM");
                builder.with_client_auth_cert(vec![identity.der()], key).expect("they belong together")
            }
        })
    }
}

impl Identity {
    pub(crate) fn der(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(self.certificate.as_bytes()).expect("PEM")
    }
}

/// Files in a folder that goes with them.
pub(crate) struct Files(TempDir);

impl Files {
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
