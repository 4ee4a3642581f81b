//! Where the certificates are, for the roles that have no configuration file. The names are those of PD and `pd-ctl`;
//! nodes have the keys `security.*` of TiKV.

use std::ffi::OsString;
use std::path::PathBuf;

/// The flags. All or none of the three files. The ids keep apart from arguments of subcommands, such as `key`.
#[derive(clap::Args, Clone, Debug, Default)]
pub(crate) struct SecurityArgs {
    /// Certificates of the authorities that are trusted (PEM). With it all connections are mutual TLS.
    #[arg(id = "security-cacert", long = "cacert", value_name = "FILE", global = true, env = "BASALT_CACERT")]
    cacert: Option<PathBuf>,
    /// Our certificate, then the intermediate ones (PEM).
    #[arg(id = "security-cert", long = "cert", value_name = "FILE", global = true, env = "BASALT_CERT")]
    cert: Option<PathBuf>,
    /// The private key of our certificate (PEM).
    #[arg(id = "security-key", long = "key", value_name = "FILE", global = true, env = "BASALT_KEY")]
    key: Option<PathBuf>,
    /// Names, separated by commas, that clients' certificates may have; without it all of the authority are let in.
    #[arg(long, global = true, value_delimiter = ',', env = "BASALT_CERT_ALLOWED_CN")]
    cert_allowed_cn: Vec<String>,
}

impl SecurityArgs {
    /// The flags in the words of `net`.
    pub(crate) fn config(self) -> net::TlsConfig {
        net::TlsConfig {
            ca_path: self.cacert.unwrap_or_default(),
            cert_path: self.cert.unwrap_or_default(),
            key_path: self.key.unwrap_or_default(),
            cert_allowed_cn: self.cert_allowed_cn,
        }
    }
}

/// The same settings as flags, for a child.
pub(crate) fn flags(config: &net::TlsConfig) -> Vec<OsString> {
    let paths = [("--cacert", &config.ca_path), ("--cert", &config.cert_path), ("--key", &config.key_path)];
    let set = paths.into_iter().filter(|(_, path)| !path.as_os_str().is_empty());
    let mut flags: Vec<OsString> = set.flat_map(|(name, path)| [name.into(), path.into()]).collect();
    if !config.cert_allowed_cn.is_empty() {
        flags.extend(["--cert-allowed-cn".into(), config.cert_allowed_cn.join(",").into()]);
    }
    flags
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        security: SecurityArgs,
    }

    #[test]
    fn a_child_is_told_what_its_parent_knows() {
        let config = net::TlsConfig {
            ca_path: "/ca.pem".into(),
            cert_path: "/cert.pem".into(),
            key_path: "/key.pem".into(),
            cert_allowed_cn: vec!["tidb".into(), "pd".into()],
        };
        let arguments = [OsString::from("basalt")].into_iter().chain(flags(&config));
        assert_eq!(Cli::parse_from(arguments).security.config(), config);
        assert!(flags(&net::TlsConfig::default()).is_empty());
    }
}
