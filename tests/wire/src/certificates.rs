//! Certificates of a fleet, as files.

use std::path::PathBuf;

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
}
