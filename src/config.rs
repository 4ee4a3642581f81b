//! Configuration: defaults, then a TOML file, then the environment, then flags.
//!
//! A key that means what one of TiKV's means bears TiKV's name. Other keys of TiKV are accepted with one warning, so
//! that a TiKV file starts a node; keys that neither knows are an error.

use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use shard::core::{ApiMode, ShardConfig, SnapshotConfig};
use toml::Value;

/// Any error on its way to standard error.
pub(crate) type Error = Box<dyn std::error::Error + Send + Sync>;

/// A number of bytes: an integer, or text such as `"256MiB"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bytes(pub(crate) u64);

/// A time: text such as `"10s"`, `"100ms"`, `"1m"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span(pub(crate) Duration);

impl std::str::FromStr for Bytes {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let number: u64 = text[..digits].parse().map_err(|_| format!("`{text}` is not a number of bytes"))?;
        let shift = match text[digits..].trim() {
            "" | "B" => 0,
            "K" | "KB" | "KiB" => 10,
            "M" | "MB" | "MiB" => 20,
            "G" | "GB" | "GiB" => 30,
            "T" | "TB" | "TiB" => 40,
            unit => return Err(format!("`{unit}` is no unit of bytes; try KiB, MiB or GiB")),
        };
        number.checked_mul(1 << shift).map(Bytes).ok_or_else(|| format!("`{text}` is too large"))
    }
}

impl std::str::FromStr for Span {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let number: u64 = text[..digits].parse().map_err(|_| format!("`{text}` is not a time"))?;
        let millis = match text[digits..].trim() {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            unit => return Err(format!("`{unit}` is no unit of time; try ms, s, m or h")),
        };
        number
            .checked_mul(millis)
            .map(|millis| Span(Duration::from_millis(millis)))
            .ok_or_else(|| format!("`{text}` is too long"))
    }
}

/// What a node can be told. One field per key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Config {
    /// `storage.api-version`: 1 or 2.
    pub(crate) api_version: u64,
    /// `storage.enable-ttl`.
    pub(crate) enable_ttl: bool,
    /// `coprocessor.region-max-size`.
    pub(crate) region_max_size: u64,
    /// `coprocessor.region-split-size`.
    pub(crate) region_split_size: u64,
    /// `coprocessor.region-max-keys`.
    pub(crate) region_max_keys: u64,
    /// `coprocessor.region-split-keys`.
    pub(crate) region_split_keys: u64,
    /// `coprocessor.batch-split-limit`.
    pub(crate) batch_split_limit: u64,
    /// `raftstore.region-split-check-diff`.
    pub(crate) region_split_check_diff: u64,
    /// `raftstore.raft-entry-max-size`.
    pub(crate) raft_entry_max_size: u64,
    /// `raftstore.pd-heartbeat-tick-interval`.
    pub(crate) pd_heartbeat: Duration,
    /// `raftstore.pd-store-heartbeat-tick-interval`.
    pub(crate) pd_store_heartbeat: Duration,
    /// `server.grpc-compression-type`: `none` or `gzip`.
    pub(crate) gzip: bool,
    /// `storage.block-cache.capacity`.
    pub(crate) block_cache: Option<u64>,
    /// `basalt.replay-cap`: log that a restart may have to replay, per shard.
    pub(crate) replay_cap: u64,
    /// `basalt.log-stall`: how long a log write may take before leaders are given up.
    pub(crate) log_stall: Duration,
    /// `basalt.log-sync`: `auto`, `fdatasync` or `dsync`.
    pub(crate) log_sync: String,
    /// `basalt.log-segment-size`.
    pub(crate) log_segment: u64,
    /// `server.snap-io-max-bytes-per-sec`: bytes per second, at least 1 MiB, or 0 for no bound.
    pub(crate) snapshots: SnapshotConfig,
    /// `raftstore.capacity` and `storage.reserve-space`.
    pub(crate) disk: shard::node::DiskConfig,
    /// `server.labels`.
    pub(crate) labels: Vec<(String, String)>,
    /// `security.ca-path`, `cert-path`, `key-path`, `cert-allowed-cn`.
    pub(crate) security: net::TlsConfig,
}

impl Default for Config {
    fn default() -> Self {
        let shard = ShardConfig::default();
        Config {
            api_version: 1,
            enable_ttl: false,
            region_max_size: shard.region_max_bytes,
            region_split_size: shard.region_split_bytes,
            region_max_keys: shard.region_max_keys,
            region_split_keys: shard.region_split_keys,
            batch_split_limit: shard.batch_split_limit as u64,
            region_split_check_diff: shard.split_check_diff_bytes,
            raft_entry_max_size: shard.entry_max_bytes,
            pd_heartbeat: Duration::from_secs(60),
            pd_store_heartbeat: Duration::from_secs(10),
            gzip: false,
            block_cache: None,
            replay_cap: shard.replay_cap_bytes,
            log_stall: shard.log_stall,
            log_sync: "auto".into(),
            log_segment: 16 << 20,
            snapshots: SnapshotConfig::default(),
            disk: shard::node::DiskConfig::default(),
            labels: Vec::new(),
            security: net::TlsConfig::default(),
        }
    }
}

/// Sections of TiKV's configuration. A key in one of them that Basalt has no use for is accepted with a warning.
const TIKV_SECTIONS: [&str; 26] = [
    "backup",
    "backup-stream",
    "causal-ts",
    "cdc",
    "coprocessor",
    "coprocessor-v2",
    "gc",
    "import",
    "in-memory-engine",
    "log",
    "log-backup",
    "memory",
    "pd",
    "pessimistic-txn",
    "quota",
    "raft-engine",
    "raftdb",
    "raftstore",
    "readpool",
    "resolved-ts",
    "resource-control",
    "resource-metering",
    "rocksdb",
    "security",
    "server",
    "storage",
];

impl Config {
    /// Defaults, then `file`, then variables named like `BASALT_COPROCESSOR__REGION_MAX_KEYS`.
    pub(crate) fn load(file: Option<&Path>) -> Result<Config, Error> {
        let mut config = Config::default();
        let mut unused = Vec::new();
        if let Some(file) = file {
            let text = std::fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
            let table: toml::Table = text.parse().map_err(|error| format!("{}: {error}", file.display()))?;
            config.take_table("", &table, &mut unused).map_err(|error| format!("{}: {error}", file.display()))?;
        }
        for (name, value) in std::env::vars() {
            let Some(path) = name.strip_prefix("BASALT_").filter(|path| path.contains("__")) else { continue };
            let key = path.to_lowercase().replace("__", ".").replace('_', "-");
            if !config.take(&key, &Value::String(value)).map_err(|error| format!("{name}: {error}"))? {
                return Err(format!("{name}: there is no key `{key}`").into());
            }
        }
        if !unused.is_empty() {
            tracing::warn!(keys = unused.join(" "), "keys of TiKV that Basalt does not need");
        }
        config.check()?;
        Ok(config)
    }

    fn take_table(&mut self, prefix: &str, table: &toml::Table, unused: &mut Vec<String>) -> Result<(), String> {
        for (name, value) in table {
            let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
            if self.take(&key, value)? {
                continue;
            }
            match value {
                Value::Table(inner) => self.take_table(&key, inner, unused)?,
                _ if known_to_tikv(&key) => unused.push(key),
                _ => return Err(format!("there is no key `{key}`")),
            }
        }
        Ok(())
    }

    /// Sets one key; false if it is none of ours.
    fn take(&mut self, key: &str, value: &Value) -> Result<bool, String> {
        match key {
            "storage.api-version" => self.api_version = number(key, value)?,
            "storage.enable-ttl" => self.enable_ttl = flag(key, value)?,
            "storage.reserve-space" => self.disk.reserve_bytes = Some(bytes(key, value)?),
            "raftstore.capacity" => self.disk.capacity_bytes = bytes(key, value)?,
            "storage.block-cache.capacity" => self.block_cache = Some(bytes(key, value)?),
            "coprocessor.region-max-size" => self.region_max_size = bytes(key, value)?,
            "coprocessor.region-split-size" => self.region_split_size = bytes(key, value)?,
            "coprocessor.region-max-keys" => self.region_max_keys = number(key, value)?,
            "coprocessor.region-split-keys" => self.region_split_keys = number(key, value)?,
            "coprocessor.batch-split-limit" => self.batch_split_limit = number(key, value)?,
            "raftstore.region-split-check-diff" => self.region_split_check_diff = bytes(key, value)?,
            "raftstore.raft-entry-max-size" => self.raft_entry_max_size = bytes(key, value)?,
            "raftstore.pd-heartbeat-tick-interval" => self.pd_heartbeat = span(key, value)?,
            "raftstore.pd-store-heartbeat-tick-interval" => self.pd_store_heartbeat = span(key, value)?,
            "server.grpc-compression-type" => self.gzip = compression(key, value)?,
            "server.snap-io-max-bytes-per-sec" => self.snapshots.bytes_per_second = bytes(key, value)?,
            "server.labels" => self.labels = labels(key, value)?,
            "security.ca-path" => self.security.ca_path = text(key, value)?.into(),
            "security.cert-path" => self.security.cert_path = text(key, value)?.into(),
            "security.key-path" => self.security.key_path = text(key, value)?.into(),
            "security.cert-allowed-cn" => self.security.cert_allowed_cn = names(key, value)?,
            "basalt.replay-cap" => self.replay_cap = bytes(key, value)?,
            "basalt.log-stall" => self.log_stall = span(key, value)?,
            "basalt.log-sync" => self.log_sync = text(key, value)?,
            "basalt.log-segment-size" => self.log_segment = bytes(key, value)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn check(&self) -> Result<(), String> {
        if !matches!(self.api_version, 1 | 2) {
            return Err(format!("storage.api-version is {}; it is 1 or 2", self.api_version));
        }
        if self.region_split_size == 0 || self.region_split_keys == 0 {
            return Err("coprocessor.region-split-size and region-split-keys must not be 0".into());
        }
        if self.region_max_size < self.region_split_size || self.region_max_keys < self.region_split_keys {
            return Err("coprocessor: a region's maximum must not be below the size that it is split into".into());
        }
        if self.batch_split_limit == 0 {
            return Err("coprocessor.batch-split-limit must not be 0".into());
        }
        if self.replay_cap < 4 * self.log_segment {
            return Err("basalt.replay-cap must be at least four times basalt.log-segment-size".into());
        }
        if (1..1 << 20).contains(&self.snapshots.bytes_per_second) {
            return Err("server.snap-io-max-bytes-per-sec must be at least 1MiB, or 0 for no bound".into());
        }
        if self.log_stall.is_zero() {
            return Err("basalt.log-stall must not be 0".into());
        }
        self.sync().map(drop)
    }

    /// How raw keys and values are written.
    pub(crate) fn api(&self) -> ApiMode {
        match (self.api_version, self.enable_ttl) {
            (2, _) => ApiMode::V2,
            (_, true) => ApiMode::V1Ttl,
            (_, false) => ApiMode::V1,
        }
    }

    /// How log writes are made durable; `None` lets a probe choose.
    fn sync(&self) -> Result<Option<executor::LogSync>, String> {
        match self.log_sync.as_str() {
            "auto" => Ok(None),
            "fdatasync" => Ok(Some(executor::LogSync::Fdatasync)),
            "dsync" => Ok(Some(executor::LogSync::Dsync)),
            other => Err(format!("basalt.log-sync is `{other}`; it is auto, fdatasync or dsync")),
        }
    }

    /// Settings of a raft log.
    ///
    /// # Errors
    /// What is wrong with `basalt.log-sync`.
    pub(crate) fn log(&self) -> Result<shard::log::LogConfig, String> {
        Ok(shard::log::LogConfig {
            segment_bytes: self.log_segment,
            sync: self.sync()?,
            replay_cap_bytes: self.replay_cap,
            ..Default::default()
        })
    }

    /// Settings of a shard.
    pub(crate) fn shard(&self) -> ShardConfig {
        ShardConfig {
            region_max_bytes: self.region_max_size,
            region_split_bytes: self.region_split_size,
            region_max_keys: self.region_max_keys,
            region_split_keys: self.region_split_keys,
            split_check_diff_bytes: self.region_split_check_diff,
            batch_split_limit: usize::try_from(self.batch_split_limit).unwrap_or(usize::MAX),
            replay_cap_bytes: self.replay_cap,
            flush_at_bytes: self.replay_cap / 2,
            entry_max_bytes: self.raft_entry_max_size,
            log_stall: self.log_stall,
            versioned_raw_keys: self.api() == ApiMode::V2,
            ..Default::default()
        }
    }

    /// The document that PD, TiDB and client tests read from the status port.
    pub(crate) fn to_json(&self) -> String {
        let mib = |bytes: u64| {
            if bytes.is_multiple_of(1 << 20) { format!("{}MiB", bytes >> 20) } else { format!("{bytes}B") }
        };
        let document = serde_json::json!({
            "storage": {
                "engine": "raft-kv",
                "api-version": self.api_version,
                "enable-ttl": self.enable_ttl || self.api_version == 2,
            },
            "coprocessor": {
                "region-max-size": mib(self.region_max_size),
                "region-split-size": mib(self.region_split_size),
                "region-max-keys": self.region_max_keys,
                "region-split-keys": self.region_split_keys,
                "batch-split-limit": self.batch_split_limit,
                "enable-region-bucket": false,
                "region-bucket-size": "50MiB",
            },
            "raftstore": {
                "region-split-check-diff": mib(self.region_split_check_diff),
                "raft-entry-max-size": mib(self.raft_entry_max_size),
            },
            "security": {
                "ca-path": self.security.ca_path,
                "cert-path": self.security.cert_path,
                "key-path": self.security.key_path,
                "cert-allowed-cn": self.security.cert_allowed_cn,
            },
            "server": {
                "grpc-compression-type": if self.gzip { "gzip" } else { "none" },
                "snap-io-max-bytes-per-sec": mib(self.snapshots.bytes_per_second),
            },
            "basalt": {
                "replay-cap": mib(self.replay_cap),
                "log-sync": self.log_sync,
                "log-segment-size": mib(self.log_segment),
            },
        });
        document.to_string()
    }
}

fn known_to_tikv(key: &str) -> bool {
    let section = key.split('.').next().unwrap_or_default();
    TIKV_SECTIONS.contains(&section)
        || (!key.contains('.') && ["slow-log-threshold", "memory-usage-limit"].contains(&key))
}

fn number(key: &str, value: &Value) -> Result<u64, String> {
    let number = match value {
        Value::Integer(number) => u64::try_from(*number).ok(),
        Value::String(text) => text.parse().ok(),
        _ => None,
    };
    number.ok_or_else(|| format!("{key} must be a whole number, not {value}"))
}

fn bytes(key: &str, value: &Value) -> Result<u64, String> {
    match value {
        Value::String(text) => text.parse().map(|Bytes(bytes)| bytes).map_err(|error| format!("{key}: {error}")),
        other => number(key, other),
    }
}

fn span(key: &str, value: &Value) -> Result<Duration, String> {
    let text = text(key, value)?;
    text.parse().map(|Span(span)| span).map_err(|error| format!("{key}: {error}"))
}

fn flag(key: &str, value: &Value) -> Result<bool, String> {
    match value {
        Value::Boolean(flag) => Ok(*flag),
        Value::String(text) => text.parse().map_err(|_| format!("{key} must be true or false, not `{text}`")),
        other => Err(format!("{key} must be true or false, not {other}")),
    }
}

fn text(key: &str, value: &Value) -> Result<String, String> {
    value.as_str().map(str::to_string).ok_or_else(|| format!("{key} must be text, not {value}"))
}

/// A list; from the environment, with commas.
fn names(key: &str, value: &Value) -> Result<Vec<String>, String> {
    match value {
        Value::Array(names) => names.iter().map(|name| text(key, name)).collect(),
        Value::String(names) => Ok(names.split(',').map(|name| name.trim().into()).collect()),
        other => Err(format!("{key} must be a list of names, not {other}")),
    }
}

fn compression(key: &str, value: &Value) -> Result<bool, String> {
    match text(key, value)?.as_str() {
        "none" => Ok(false),
        "gzip" => Ok(true),
        other => Err(format!("{key} is `{other}`; Basalt knows none and gzip")),
    }
}

fn labels(key: &str, value: &Value) -> Result<Vec<(String, String)>, String> {
    let table = value.as_table().ok_or_else(|| format!("{key} must be a table"))?;
    table.iter().map(|(name, value)| Ok((name.clone(), text(name, value)?))).collect()
}

/// The line that a starting process prints when it is ready.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct NodeLine {
    /// Store id.
    pub(crate) store_id: u64,
    /// Where clients connect.
    pub(crate) address: String,
    /// The status page.
    pub(crate) status: String,
    /// Process id.
    pub(crate) pid: u32,
    /// Cores.
    pub(crate) cores: usize,
    /// The I/O backend and why.
    pub(crate) io: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<(Config, Vec<String>), String> {
        let table: toml::Table = text.parse().expect("toml");
        let (mut config, mut unused) = (Config::default(), Vec::new());
        config.take_table("", &table, &mut unused)?;
        config.check().map(|()| (config, unused))
    }

    #[test]
    fn tikvs_names_set_what_they_mean() {
        let (config, unused) = load(
            "[storage]\napi-version = 2\n[coprocessor]\nregion-max-keys = 100\nregion-split-keys = 50\n\
             region-max-size = \"2MiB\"\nregion-split-size = 1048576\n[raftstore]\nregion-split-check-diff = \"4KiB\"",
        )
        .expect("valid");
        assert_eq!(config.api(), ApiMode::V2);
        assert_eq!((config.region_max_keys, config.region_split_keys), (100, 50));
        assert_eq!((config.region_max_size, config.region_split_size), (2 << 20, 1 << 20));
        assert_eq!(config.shard().split_check_diff_bytes, 4096);
        assert!(unused.is_empty());
    }

    #[test]
    fn certificates_have_tikvs_keys() {
        let (config, unused) = load(
            "[security]\nca-path = \"/ca.pem\"\ncert-path = \"/cert.pem\"\nkey-path = \"/key.pem\"\n\
             cert-allowed-cn = [\"tidb\", \"pd\"]\nredact-info-log = false",
        )
        .expect("valid");
        let security = &config.security;
        assert_eq!(
            [&security.ca_path, &security.cert_path, &security.key_path].map(|path| path.display().to_string()),
            ["/ca.pem", "/cert.pem", "/key.pem"]
        );
        assert_eq!(security.cert_allowed_cn, ["tidb", "pd"]);
        assert_eq!(unused, ["security.redact-info-log"]);
        let mut config = Config::default();
        config.take("security.cert-allowed-cn", &Value::String("tidb, pd".into())).expect("from the environment");
        assert_eq!(config.security.cert_allowed_cn, ["tidb", "pd"]);
        assert!(load("[security]\ncert-allowed-cn = 5").is_err());
    }

    #[test]
    fn other_keys_of_tikv_are_accepted_and_unknown_ones_are_not() {
        let (_, unused) =
            load("[readpool.unified]\nmax-thread-count = 8\n[rocksdb]\nmax-open-files = 5").expect("valid");
        assert_eq!(unused, ["readpool.unified.max-thread-count", "rocksdb.max-open-files"]);
        assert!(load("[nonsense]\nkey = 1").is_err());
    }

    #[test]
    fn snapshots_have_a_bandwidth_or_no_bound() {
        let rate = |text: &str| load(text).map(|(config, _)| config.snapshots.bytes_per_second);
        assert_eq!(rate(""), Ok(100 << 20));
        assert_eq!(rate("[server]\nsnap-io-max-bytes-per-sec = \"1MiB\""), Ok(1 << 20));
        assert_eq!(rate("[server]\nsnap-io-max-bytes-per-sec = 0"), Ok(0));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for text in [
            "[storage]\napi-version = 3",
            "[coprocessor]\nregion-split-keys = 0",
            "[coprocessor]\nregion-max-keys = 5",
            "[coprocessor]\nregion-max-size = \"1parsec\"",
            "[basalt]\nlog-sync = \"never\"",
            "[server]\nsnap-io-max-bytes-per-sec = \"1023KiB\"",
        ] {
            assert!(load(text).is_err(), "{text}");
        }
    }
}
