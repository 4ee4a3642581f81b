//! From the names of three files to rustls's settings.

use super::names::AllowedNames;
use super::reload::Tls;
use rustls::client::Resumption;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Where the certificates are: TiKV's `security.*` settings. All paths empty = no TLS.
///
/// The files are PEM. A node's certificate serves both directions: if it restricts its use (extended key usage), it
/// must allow `serverAuth` and `clientAuth`; the hosts that nodes and clients dial stand in it as subject alternative
/// names (DNS or IP), as the common name is not looked at for that. ECDSA keys cost a core much less per connection than
/// RSA's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsConfig {
    /// `ca-path`: certificates of the authorities that are trusted, in both directions.
    pub ca_path: PathBuf,
    /// `cert-path`: our certificate, then the intermediate ones.
    pub cert_path: PathBuf,
    /// `key-path`: the private key of our certificate (PKCS #8, PKCS #1 or SEC 1).
    pub key_path: PathBuf,
    /// `cert-allowed-cn`: names that clients may have. A client is admitted if the common name of its certificate, or
    /// one of its DNS names, is exactly one of these. Empty = every client with a certificate of the authority.
    pub cert_allowed_cn: Vec<String>,
}

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Some settings are there, others are not.
    #[error("ca-path, cert-path and key-path belong together, but {0} is empty")]
    Incomplete(&'static str),
    /// A file cannot be read.
    #[error("{}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A file has not what it should have.
    #[error("{}: {reason}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// What handshakes need: both sides' settings out of one reading of the files.
#[derive(Clone)]
pub(super) struct Settings {
    pub(super) server: Arc<ServerConfig>,
    pub(super) client: Arc<ClientConfig>,
}

impl TlsConfig {
    /// Whether anything is set.
    pub fn is_on(&self) -> bool {
        *self != TlsConfig::default()
    }

    /// Reads the files; `None` if nothing is set. Blocks on the files: for the start of a process, or a helper.
    ///
    /// # Errors
    /// [`TlsError`]: some settings are missing, a file cannot be read, or what it has is of no use.
    pub fn load(self) -> Result<Option<Tls>, TlsError> {
        if !self.is_on() {
            return Ok(None);
        }
        let paths = [("ca-path", &self.ca_path), ("cert-path", &self.cert_path), ("key-path", &self.key_path)];
        match paths.iter().find(|(_, path)| path.as_os_str().is_empty()) {
            Some((name, _)) => Err(TlsError::Incomplete(name)),
            None => Tls::load(self).map(Some),
        }
    }

    /// The files, in the order of the settings.
    pub(super) fn paths(&self) -> [&Path; 3] {
        [&self.ca_path, &self.cert_path, &self.key_path]
    }

    /// Reads and checks the files.
    pub(super) fn settings(&self) -> Result<Settings, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let clock: Arc<dyn TimeProvider> = Arc::new(Clock);
        let authorities = Arc::new(self.authorities()?);
        let chain = certificates(&self.cert_path)?;
        let key = PrivateKeyDer::from_pem_slice(&read(&self.key_path)?)
            .map_err(|error| unusable(&self.key_path, format!("no private key in it: {error}")))?;

        let admits = WebPkiClientVerifier::builder_with_provider(Arc::clone(&authorities), Arc::clone(&provider));
        let admits = admits.build().map_err(|error| unusable(&self.ca_path, error.to_string()))?;
        let admits: Arc<dyn ClientCertVerifier> = match self.cert_allowed_cn.as_slice() {
            [] => admits,
            names => Arc::new(AllowedNames::new(admits, names.to_vec())),
        };
        let mut server = ServerConfig::builder_with_details(Arc::clone(&provider), Arc::clone(&clock))
            .with_safe_default_protocol_versions()
            .map_err(|error| unusable(&self.cert_path, error.to_string()))?
            .with_client_cert_verifier(admits)
            .with_single_cert(chain.clone(), key.clone_key())
            .map_err(|error| self.mismatched(&error))?;
        server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;

        let mut client = ClientConfig::builder_with_details(provider, clock)
            .with_safe_default_protocol_versions()
            .map_err(|error| unusable(&self.cert_path, error.to_string()))?
            .with_root_certificates(authorities)
            .with_client_auth_cert(chain, key)
            .map_err(|error| self.mismatched(&error))?;
        client.alpn_protocols = vec![b"h2".to_vec()];
        client.resumption = Resumption::disabled();
        Ok(Settings { server: Arc::new(server), client: Arc::new(client) })
    }

    fn authorities(&self) -> Result<RootCertStore, TlsError> {
        let mut store = RootCertStore::empty();
        for certificate in certificates(&self.ca_path)? {
            store.add(certificate).map_err(|error| unusable(&self.ca_path, error.to_string()))?;
        }
        Ok(store)
    }

    fn mismatched(&self, error: &rustls::Error) -> TlsError {
        unusable(&self.cert_path, format!("not usable with the key in {}: {error}", self.key_path.display()))
    }
}

/// At least one certificate.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(path)?).collect();
    match found {
        Ok(found) if found.is_empty() => Err(unusable(path, "no certificate in it".to_owned())),
        found => found.map_err(|error| unusable(path, error.to_string())),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|error| TlsError::Read { path: path.to_owned(), error })
}

fn unusable(path: &Path, reason: String) -> TlsError {
    TlsError::Unusable { path: path.to_owned(), reason }
}

/// The executor's clock, for the dates in certificates.
#[derive(Debug)]
struct Clock;

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(executor::unix_time().seconds())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::testing::Authority;

    #[test]
    fn nothing_set_is_no_tls_and_half_of_it_is_a_mistake() {
        assert!(TlsConfig::default().load().expect("no file is needed").is_none());
        let whole = Authority::new().node("node").config(&[]);
        let lacks = |change: fn(&mut TlsConfig)| {
            let mut config = whole.clone();
            change(&mut config);
            config.load().expect_err("incomplete").to_string()
        };
        assert!(lacks(|config| config.ca_path = PathBuf::new()).contains("ca-path is empty"));
        assert!(lacks(|config| config.cert_path = PathBuf::new()).contains("cert-path is empty"));
        assert!(lacks(|config| config.key_path = PathBuf::new()).contains("key-path is empty"));
        let only_names = TlsConfig { cert_allowed_cn: vec!["tidb".to_owned()], ..TlsConfig::default() };
        assert!(only_names.load().expect_err("names without TLS").to_string().contains("ca-path is empty"));
    }

    #[test]
    fn files_of_no_use_are_named_with_the_reason() {
        let authority = Authority::new();
        let (node, other) = (authority.node("node"), authority.node("other"));
        let whole = node.config(&[]);
        let why = |config: TlsConfig| config.load().expect_err("of no use").to_string();
        let gone = TlsConfig { ca_path: "/nonexistent/ca.pem".into(), ..whole.clone() };
        assert!(why(gone).starts_with("/nonexistent/ca.pem: "), "the file that is not there");
        let swapped = TlsConfig { cert_path: whole.key_path.clone(), ..whole.clone() };
        assert!(why(swapped).contains("no certificate in it"));
        let swapped = TlsConfig { key_path: whole.ca_path.clone(), ..whole.clone() };
        assert!(why(swapped).contains("no private key in it"));
        let foreign = TlsConfig { key_path: other.config(&[]).key_path, ..whole.clone() };
        assert!(why(foreign).contains("not usable with the key in"));
        assert!(whole.load().expect("as it should be").is_some());
    }
}
