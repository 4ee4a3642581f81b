//! Certificates of all kinds, good and bad, made anew for each test, and a client that shows them. It is rustls by itself
//! and knows nothing of `net`.

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};

/// Who signs.
pub struct Authority {
    /// Its certificate.
    pub pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// What a certificate is to say.
#[derive(Clone, Copy, Debug)]
pub struct Wish<'a> {
    /// Its common name.
    pub common: &'a str,
    /// Names and addresses that it is for.
    pub hosts: &'a [&'a str],
    /// It ended years ago.
    pub is_expired: bool,
}

impl Default for Wish<'_> {
    fn default() -> Self {
        Wish { common: "node", hosts: &["localhost", "127.0.0.1"], is_expired: false }
    }
}

/// A certificate with its key, as PEM.
pub struct Identity {
    /// The certificate.
    pub certificate: String,
    /// Its key.
    pub key: String,
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

    /// A certificate as wished.
    ///
    /// # Panics
    /// If it cannot be made.
    pub fn sign(&self, wish: &Wish<'_>) -> Identity {
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

    /// As [`client`], of one that trusts this authority.
    ///
    /// # Panics
    /// As there.
    pub fn client(
        &self,
        identity: Option<&Identity>,
        versions: &[&'static SupportedProtocolVersion],
    ) -> Arc<ClientConfig> {
        client(&self.pem, identity, versions)
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

/// The settings of a client that trusts `ca` (PEM) and is `identity`, or nobody.
///
/// # Panics
/// If they are no certificates, or the key is another one's.
pub fn client(
    ca: &str,
    identity: Option<&Identity>,
    versions: &[&'static SupportedProtocolVersion],
) -> Arc<ClientConfig> {
    let mut trusted = RootCertStore::empty();
    trusted.add(CertificateDer::from_pem_slice(ca.as_bytes()).expect("PEM")).expect("an authority");
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(versions)
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
