//! What can be set: PD's names, PD's defaults, PD's JSON.

use super::duration;
use super::limits::Rates;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Location labels that are taken at most: zone, rack, host and some more.
const LABELS_MAX: usize = 16;
/// Most replicas of a region: more than any cluster has, and few enough for a raft group.
const REPLICAS_MAX: u64 = 63;

/// Marks what was kept as only what differed from the defaults.
const ONLY_CHANGED: &str = "only-changed";

/// What the scheduling goes by. The names in PD's JSON are the fields' with dashes.
#[derive(Clone, Debug, PartialEq)]
pub struct ScheduleConfig {
    /// Voters that each region should have.
    pub max_replicas: u64,
    /// Keys of store labels, from the largest place to the smallest, such as `zone`, `rack`, `host`. Replicas go as
    /// far apart as these allow.
    pub location_labels: Vec<String>,
    /// One of the location labels, or empty: no two replicas are placed where it has the same value.
    pub isolation_level: String,
    /// A store that is silent for so long has its replicas replaced.
    pub max_store_down_time: Duration,
    /// Operators under way that move leaders.
    pub leader_schedule_limit: u64,
    /// Operators under way that balance regions.
    pub region_schedule_limit: u64,
    /// Operators under way that repair the number or the place of replicas.
    pub replica_schedule_limit: u64,
    /// Operators under way that merge regions.
    pub merge_schedule_limit: u64,
    /// Regions of at most so many MiB are merged with a neighbour; 0 turns merging off.
    pub max_merge_region_size: u64,
    /// The same in keys; 0 means 10,000 for each MiB of the size.
    pub max_merge_region_keys: u64,
    /// A region that has split is not merged for so long.
    pub split_merge_interval: Duration,
    /// A store with more snapshots under way gets no new peer.
    pub max_snapshot_count: u64,
    /// A store with more peers that wait for a snapshot gets no new one.
    pub max_pending_peer_count: u64,
    /// A store gets no new peer when more than this part of its capacity is used.
    pub low_space_ratio: f64,
    /// How often the patrol takes its next regions while it has something to look at. PD's default is 10 ms; ten
    /// times that costs a tenth, and heartbeats bring what is urgent.
    pub patrol_region_interval: Duration,
    /// Whether a voter is replaced in one step, through a joint configuration.
    pub enable_joint_consensus: bool,
    /// How many peers a store takes and gives in a minute, where it differs from `default_store_limit`.
    pub store_limit: BTreeMap<u64, Rates>,
    /// The same for all other stores.
    pub default_store_limit: Rates,
    /// How much of the leaders and of the data a store should have, where it is not 1.
    pub store_weight: BTreeMap<u64, Weight>,
    /// What runs.
    pub schedulers: Schedulers,
}

/// A store's share, relative to the others'.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Weight {
    /// Of leaders.
    pub leader: f64,
    /// Of data.
    pub region: f64,
}

impl Default for Weight {
    fn default() -> Self {
        Weight { leader: 1.0, region: 1.0 }
    }
}

/// The schedulers that run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedulers {
    /// `balance-leader-scheduler`.
    pub balance_leader: bool,
    /// `balance-region-scheduler`.
    pub balance_region: bool,
    /// Stores of `evict-leader-scheduler-{id}`.
    pub evict_leader: BTreeSet<u64>,
}

impl Default for ScheduleConfig {
    fn default() -> Self {
        ScheduleConfig {
            max_replicas: 3,
            location_labels: Vec::new(),
            isolation_level: String::new(),
            max_store_down_time: Duration::from_secs(30 * 60),
            leader_schedule_limit: 4,
            region_schedule_limit: 2048,
            replica_schedule_limit: 64,
            merge_schedule_limit: 8,
            max_merge_region_size: 54,
            max_merge_region_keys: 0,
            split_merge_interval: Duration::from_secs(3600),
            max_snapshot_count: 64,
            max_pending_peer_count: 64,
            low_space_ratio: 0.8,
            patrol_region_interval: Duration::from_millis(100),
            enable_joint_consensus: true,
            store_limit: BTreeMap::new(),
            default_store_limit: Rates::default(),
            store_weight: BTreeMap::new(),
            schedulers: Schedulers { balance_leader: true, balance_region: true, evict_leader: BTreeSet::new() },
        }
    }
}

/// Why a setting is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// No such name.
    #[error("config item {0} not found")]
    Unknown(String),
    /// The value does not fit.
    #[error("config item {name} cannot be {value}")]
    Value {
        /// The name.
        name: String,
        /// The value, as JSON.
        value: String,
    },
}

impl ScheduleConfig {
    /// Keys that a region may have to be merged.
    pub fn merge_keys_max(&self) -> u64 {
        match self.max_merge_region_keys {
            0 => self.max_merge_region_size.saturating_mul(10_000),
            keys => keys,
        }
    }

    /// How many peers `store` takes and gives.
    pub fn rates(&self, store: u64) -> Rates {
        self.store_limit.get(&store).copied().unwrap_or(self.default_store_limit)
    }

    /// The share of `store`.
    pub fn weight(&self, store: u64) -> Weight {
        self.store_weight.get(&store).copied().unwrap_or_default()
    }

    /// PD's section `schedule`.
    pub fn schedule_json(&self) -> Value {
        let limits: Map<String, Value> =
            self.store_limit.iter().map(|(store, rates)| (store.to_string(), rates.to_json())).collect();
        json!({
            "max-snapshot-count": self.max_snapshot_count,
            "max-pending-peer-count": self.max_pending_peer_count,
            "max-merge-region-size": self.max_merge_region_size,
            "max-merge-region-keys": self.max_merge_region_keys,
            "split-merge-interval": duration::print(self.split_merge_interval),
            "max-store-down-time": duration::print(self.max_store_down_time),
            "leader-schedule-limit": self.leader_schedule_limit,
            "region-schedule-limit": self.region_schedule_limit,
            "replica-schedule-limit": self.replica_schedule_limit,
            "merge-schedule-limit": self.merge_schedule_limit,
            "hot-region-schedule-limit": 4,
            "low-space-ratio": self.low_space_ratio,
            "patrol-region-interval": duration::print(self.patrol_region_interval),
            "enable-joint-consensus": self.enable_joint_consensus.to_string(),
            "store-limit": limits,
            "schedulers-v2": self.schedulers.to_json(),
        })
    }

    /// PD's section `replication`.
    pub fn replication_json(&self) -> Value {
        json!({
            "max-replicas": self.max_replicas,
            "location-labels": self.location_labels.join(","),
            "strictly-match-label": "false",
            "enable-placement-rules": "true",
            "isolation-level": self.isolation_level,
        })
    }

    /// What differs from `defaults`, as it is kept: what nobody has set follows the defaults of whatever version reads it.
    pub fn to_kept(&self, defaults: &ScheduleConfig) -> Value {
        let (mut kept, defaults) = (self.to_json(), defaults.to_json());
        for (section, items) in kept.as_object_mut().into_iter().flatten() {
            if let Value::Object(items) = items {
                items.retain(|name, value| defaults[section].get(name) != Some(value));
            }
        }
        kept[ONLY_CHANGED] = Value::Bool(true);
        kept
    }

    /// Everything: PD's two sections, and what PD keeps elsewhere.
    fn to_json(&self) -> Value {
        let weights: Map<String, Value> = self
            .store_weight
            .iter()
            .map(|(store, weight)| (store.to_string(), json!({ "leader": weight.leader, "region": weight.region })))
            .collect();
        json!({
            "schedule": self.schedule_json(),
            "replication": self.replication_json(),
            "default-store-limit": self.default_store_limit.to_json(),
            "store-weight": weights,
        })
    }

    /// Takes what [`ScheduleConfig::to_kept`] wrote, now or in another version: what is not understood is left out. Former
    /// versions kept all settings when one was changed, and had no merges by default.
    pub fn restore(&mut self, kept: &Value) {
        let is_old_default =
            |name: &str, value: &Value| kept[ONLY_CHANGED].is_null() && name == "merge-schedule-limit" && *value == 0;
        for section in ["schedule", "replication"] {
            for (name, value) in kept[section].as_object().into_iter().flatten() {
                if !is_old_default(name, value) {
                    let _ = self.set(name, value);
                }
            }
        }
        self.default_store_limit.restore(&kept["default-store-limit"]);
        for (store, weight) in kept["store-weight"].as_object().into_iter().flatten() {
            if let (Ok(store), Some(leader), Some(region)) =
                (store.parse(), weight["leader"].as_f64(), weight["region"].as_f64())
            {
                self.store_weight.insert(store, Weight { leader, region });
            }
        }
    }

    /// Sets one item of either section.
    ///
    /// # Errors
    /// [`ConfigError`] for a name that is not known and a value that does not fit; nothing has changed then.
    pub fn set(&mut self, name: &str, value: &Value) -> Result<(), ConfigError> {
        let bad = || ConfigError::Value { name: name.to_owned(), value: value.to_string() };
        let number = || as_number(value).ok_or_else(bad);
        let time = || value.as_str().and_then(duration::parse).ok_or_else(bad);
        match name {
            "max-replicas" => {
                self.max_replicas = number().ok().filter(|n| (1..=REPLICAS_MAX).contains(n)).ok_or_else(bad)?;
            }
            "location-labels" => self.location_labels = as_labels(value).ok_or_else(bad)?,
            "isolation-level" => self.isolation_level = value.as_str().ok_or_else(bad)?.to_owned(),
            "max-store-down-time" => self.max_store_down_time = time()?,
            "leader-schedule-limit" => self.leader_schedule_limit = number()?,
            "region-schedule-limit" => self.region_schedule_limit = number()?,
            "replica-schedule-limit" => self.replica_schedule_limit = number()?,
            "merge-schedule-limit" => self.merge_schedule_limit = number()?,
            "max-merge-region-size" => self.max_merge_region_size = number()?,
            "max-merge-region-keys" => self.max_merge_region_keys = number()?,
            "split-merge-interval" => self.split_merge_interval = time()?,
            "max-snapshot-count" => self.max_snapshot_count = number()?,
            "max-pending-peer-count" => self.max_pending_peer_count = number()?,
            "low-space-ratio" => {
                self.low_space_ratio = as_float(value).filter(|n| (0.0..=1.0).contains(n)).ok_or_else(bad)?;
            }
            "patrol-region-interval" => {
                self.patrol_region_interval = time().ok().filter(|time| !time.is_zero()).ok_or_else(bad)?;
            }
            "enable-joint-consensus" => self.enable_joint_consensus = as_bool(value).ok_or_else(bad)?,
            "store-limit" => self.store_limit = as_limits(value).ok_or_else(bad)?,
            "schedulers-v2" => self.schedulers = Schedulers::from_json(value).ok_or_else(bad)?,
            // Told as they are, and not to be changed: setting them to that is no error.
            "hot-region-schedule-limit" | "strictly-match-label" | "enable-placement-rules"
                if self.schedule_json()[name] == *value || self.replication_json()[name] == *value => {}
            _ => return Err(ConfigError::Unknown(name.to_owned())),
        }
        Ok(())
    }
}

impl Schedulers {
    fn to_json(&self) -> Value {
        let one = |kind: &str, disable: bool, args: Vec<String>| json!({ "type": kind, "args": args, "disable": disable, "args-payload": "" });
        let mut list = vec![
            one("balance-leader", !self.balance_leader, vec![]),
            one("balance-region", !self.balance_region, vec![]),
        ];
        list.extend(self.evict_leader.iter().map(|store| one("evict-leader", false, vec![store.to_string()])));
        Value::from(list)
    }

    fn from_json(list: &Value) -> Option<Schedulers> {
        let mut schedulers = Schedulers { balance_leader: false, balance_region: false, evict_leader: BTreeSet::new() };
        for entry in list.as_array()? {
            let runs = entry["disable"] != Value::Bool(true);
            match entry["type"].as_str()? {
                "balance-leader" => schedulers.balance_leader = runs,
                "balance-region" => schedulers.balance_region = runs,
                "evict-leader" if runs => {
                    let stores = entry["args"].as_array()?.iter();
                    schedulers.evict_leader.extend(stores.filter_map(|store| store.as_str()?.parse::<u64>().ok()));
                }
                _ => {}
            }
        }
        Some(schedulers)
    }
}

/// A number, or the digits of one: `pd-ctl` sends either.
pub fn as_number(value: &Value) -> Option<u64> {
    let float = || value.as_f64().filter(|n| n.fract() == 0.0 && (0.0..1e15).contains(n)).map(|n| n as u64);
    value.as_u64().or_else(float).or_else(|| value.as_str()?.parse().ok())
}

/// A finite number that is not negative, or its text.
pub fn as_float(value: &Value) -> Option<f64> {
    value.as_f64().or_else(|| value.as_str()?.parse().ok()).filter(|n| n.is_finite() && *n >= 0.0)
}

fn as_bool(value: &Value) -> Option<bool> {
    value.as_bool().or_else(|| value.as_str()?.parse().ok())
}

fn as_labels(value: &Value) -> Option<Vec<String>> {
    let labels: Vec<String> = match value {
        Value::String(text) => text.split(',').map(|label| label.trim().to_owned()).collect(),
        Value::Array(list) => list.iter().map(|label| label.as_str().map(str::to_owned)).collect::<Option<_>>()?,
        _ => return None,
    };
    let labels: Vec<String> = labels.into_iter().filter(|label| !label.is_empty()).collect();
    Some(labels).filter(|labels| labels.len() <= LABELS_MAX)
}

fn as_limits(value: &Value) -> Option<BTreeMap<u64, Rates>> {
    value.as_object()?.iter().map(|(store, rates)| Some((store.parse().ok()?, Rates::from_json(rates)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_comes_back_and_what_is_bad_changes_nothing() {
        let mut config = ScheduleConfig::default();
        for (name, value) in [
            ("max-replicas", json!(5)),
            ("location-labels", json!("zone, host")),
            ("isolation-level", json!("zone")),
            ("max-store-down-time", json!("10m")),
            ("leader-schedule-limit", json!("8")),
            ("low-space-ratio", json!(0.9)),
            ("enable-joint-consensus", json!("false")),
            ("store-limit", json!({ "4": { "add-peer": 30, "remove-peer": 1.5 } })),
            ("enable-placement-rules", json!("true")),
        ] {
            assert_eq!(config.set(name, &value), Ok(()), "{name}");
        }
        config.schedulers.evict_leader.insert(7);
        config.schedulers.balance_region = false;
        config.store_weight.insert(2, Weight { leader: 0.5, region: 2.0 });
        config.default_store_limit.add_peer = 99.0;
        assert_eq!((config.location_labels.len(), config.leader_schedule_limit), (2, 8));
        let mut again = ScheduleConfig::default();
        again.restore(&config.to_kept(&ScheduleConfig::default()));
        assert_eq!(again, config);
        for (name, value) in [
            ("max-replicas", json!(0)),
            ("max-replicas", json!(-1)),
            ("max-replicas", json!(1.5)),
            ("location-labels", json!(3)),
            ("max-store-down-time", json!("soon")),
            ("low-space-ratio", json!(2)),
            ("patrol-region-interval", json!("0s")),
            ("store-limit", json!({ "x": {} })),
            ("enable-placement-rules", json!("false")),
            ("no-such-thing", json!(1)),
        ] {
            assert!(config.set(name, &value).is_err(), "{name}");
        }
        assert_eq!(again, config);
    }

    #[test]
    fn what_nobody_has_set_follows_the_defaults() {
        let old = ScheduleConfig { merge_schedule_limit: 0, ..ScheduleConfig::default() };
        let mut config = old.clone();
        config.set("leader-schedule-limit", &json!(17)).expect("a setting");
        let kept = config.to_kept(&old);
        assert_eq!(kept["schedule"], json!({ "leader-schedule-limit": 17 }));
        // A former version kept everything.
        for kept in [kept, config.to_json()] {
            let mut restored = ScheduleConfig::default();
            restored.restore(&kept);
            assert_eq!((restored.leader_schedule_limit, restored.merge_schedule_limit), (17, 8), "{kept}");
        }
        let mut restored = ScheduleConfig::default();
        restored.restore(&old.to_kept(&ScheduleConfig::default()));
        assert_eq!(restored.merge_schedule_limit, 0, "somebody has set it");
        restored.default_store_limit.remove_peer = 3.0;
        let mut again = ScheduleConfig::default();
        again.restore(&restored.to_kept(&ScheduleConfig::default()));
        assert_eq!(again, restored);
    }

    #[test]
    fn merging_counts_keys_by_the_size_unless_they_are_set() {
        let mut config = ScheduleConfig::default();
        assert_eq!(config.merge_keys_max(), 540_000);
        config.max_merge_region_keys = 7;
        assert_eq!(config.merge_keys_max(), 7);
    }
}
