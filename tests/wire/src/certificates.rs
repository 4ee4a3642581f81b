//! Certificates of a fleet, as files, and the switch that has whole suites run over mutual TLS.
//!
//! With `BASALT_TLS=1` in the environment every process that the harness starts speaks mutual TLS on all its ports, and the
//! harness with it: the suites are the same. Their certificate is for 127.0.0.1 only.

mod authority;

use std::ffi::OsString;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustls::{ClientConnection, StreamOwned};
use tikv_client::Config;

use crate::process::binary;

pub use authority::Authority;
pub use test_certificates::Identity;

/// Names of the certificates that everything runs with under `BASALT_TLS=1`.
const SHARED_NAME: &str = "basalt";

/// See the module.
#[derive(Clone, Debug)]
pub struct Certificates {
    /// Of the authority.
    pub ca: PathBuf,
    /// Of every process.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Names that are let in; empty lets in all that the authority knows.
    pub allowed: Vec<String>,
}

impl Certificates {
    /// The flags of `basalt pd`, `ctl` and `perf`.
    pub fn flags(&self) -> Vec<String> {
        let files = [("--cacert", &self.ca), ("--cert", &self.cert), ("--key", &self.key)];
        let mut flags: Vec<String> =
            files.iter().flat_map(|(name, path)| [(*name).to_string(), path.display().to_string()]).collect();
        if !self.allowed.is_empty() {
            flags.extend(["--cert-allowed-cn".to_string(), self.allowed.join(",")]);
        }
        flags
    }

    /// The section of a node's configuration.
    pub(crate) fn section(&self) -> String {
        format!(
            "[security]\nca-path = {:?}\ncert-path = {:?}\nkey-path = {:?}\ncert-allowed-cn = {:?}\n",
            self.ca, self.cert, self.key, self.allowed
        )
    }

    /// The environment that says the same to every role: nodes read keys of their configuration, the others what their
    /// flags are called.
    pub(crate) fn environment(&self) -> Vec<(&'static str, OsString)> {
        let allowed = OsString::from(self.allowed.join(","));
        vec![
            ("BASALT_SECURITY__CA_PATH", self.ca.clone().into()),
            ("BASALT_SECURITY__CERT_PATH", self.cert.clone().into()),
            ("BASALT_SECURITY__KEY_PATH", self.key.clone().into()),
            ("BASALT_SECURITY__CERT_ALLOWED_CN", allowed.clone()),
            ("BASALT_CACERT", self.ca.clone().into()),
            ("BASALT_CERT", self.cert.clone().into()),
            ("BASALT_KEY", self.key.clone().into()),
            ("BASALT_CERT_ALLOWED_CN", allowed),
        ]
    }

    /// TLS over `socket`, with these certificates as they are now. Nothing is said yet.
    ///
    /// # Panics
    /// If they cannot be read.
    pub fn over(&self, socket: TcpStream) -> StreamOwned<ClientConnection, TcpStream> {
        let read = |path: &Path| std::fs::read_to_string(path).expect("a file of the harness");
        let identity = Identity { certificate: read(&self.cert), key: read(&self.key) };
        authority::over(&read(&self.ca), Some(&identity), socket)
    }
}

/// The certificates that everything runs with under `BASALT_TLS=1`; `None` without it.
pub fn shared() -> Option<&'static Certificates> {
    static SHARED: OnceLock<Option<Certificates>> = OnceLock::new();
    let is_on = || std::env::var("BASALT_TLS").is_ok_and(|value| value == "1");
    SHARED.get_or_init(|| is_on().then(shared_files)).as_ref()
}

/// Files beside the binary, made once for all test programs.
fn shared_files() -> Certificates {
    let dir = binary().with_file_name("test-certificates");
    if !dir.exists() {
        let authority = Authority::new("authority of the tests");
        let fresh = dir.with_file_name(format!("test-certificates.{}", std::process::id()));
        authority.write(&fresh, &authority.sign(SHARED_NAME, false), &[]);
        // Another program may have been faster: then its files are as good.
        if std::fs::rename(&fresh, &dir).is_err() {
            std::fs::remove_dir_all(&fresh).expect("our own folder");
        }
    }
    Certificates {
        ca: dir.join("ca.pem"),
        cert: dir.join("cert.pem"),
        key: dir.join("key.pem"),
        allowed: vec![SHARED_NAME.to_string()],
    }
}

/// `http` or `https`, as the ports speak.
pub fn scheme() -> &'static str {
    if shared().is_some() { "https" } else { "http" }
}

/// Settings of the third-party client, with the shared certificates if there are any.
pub fn secured(config: Config) -> Config {
    match shared() {
        Some(files) => config.with_security(&files.ca, &files.cert, &files.key),
        None => config,
    }
}
