//! Keyspaces: named ranges of the key space, each with a 24-bit id.

use super::State;
use crate::kv::Op;
use base::UnixTime;
use prost::Message;
use proto::keyspacepb::{KeyspaceMeta, KeyspaceState};
use std::collections::BTreeMap;

/// The name of keyspace 0.
pub const DEFAULT_KEYSPACE_NAME: &str = "DEFAULT";
/// Ids above this one do not fit into the three bytes of a key's prefix.
const ID_MAX: u64 = 0xFF_FFFF;
/// Keyspace ids are taken in windows of this many, as PD does.
const ID_WINDOW: u64 = 100;
/// Most characters of a name.
const NAME_LEN_MAX: usize = 20;
/// Most entries of a configuration, and most bytes of one entry.
const CONFIG_MAX: usize = 128;

/// Why a keyspace's request is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyspaceError {
    /// There is none.
    #[error("keyspace does not exist")]
    NotFound,
    /// The name is taken.
    #[error("keyspace already exists")]
    Exists,
    /// The name is not one.
    #[error("illegal keyspace name {0:?}, should contain only alphanumerical and underline")]
    Name(String),
    /// The name is PD's own.
    #[error("can't modify the default keyspace")]
    Default,
    /// All ids are used.
    #[error("no keyspace id is left")]
    Full,
    /// The state machine has no such step.
    #[error("cannot change keyspace state from {from} to {to}")]
    Transition {
        /// The state it is in.
        from: &'static str,
        /// The state asked for.
        to: &'static str,
    },
    /// Too many or too long entries.
    #[error("the keyspace's configuration is too large")]
    Config,
}

impl State {
    pub(super) fn create_default_keyspace(&mut self, now: UnixTime) {
        let config = default_config(BTreeMap::new());
        self.save_new(0, DEFAULT_KEYSPACE_NAME, config, now);
    }

    /// Creates a keyspace with the next id.
    ///
    /// # Errors
    /// [`KeyspaceError`] when the name is wrong or taken, or no id is left.
    pub fn create_keyspace(
        &mut self,
        name: &str,
        config: BTreeMap<String, String>,
        now: UnixTime,
    ) -> Result<KeyspaceMeta, KeyspaceError> {
        check_name(name)?;
        if config.len() > CONFIG_MAX || config.iter().any(|(key, value)| key.len() + value.len() > 4096) {
            return Err(KeyspaceError::Config);
        }
        if self.keyspace_by_name(name).is_some() {
            return Err(KeyspaceError::Exists);
        }
        let (id, end) = self.keyspace_ids.take(1, ID_WINDOW);
        if id > ID_MAX {
            return Err(KeyspaceError::Full);
        }
        if let Some(end) = end {
            self.commit(vec![Op::put(self.keys.keyspace_alloc_id(), end.to_be_bytes().to_vec())]);
        }
        let id = u32::try_from(id).expect("checked against 24 bits");
        Ok(self.save_new(id, name, default_config(config), now))
    }

    /// A keyspace by its name; the empty name stands for the default one.
    pub fn keyspace_by_name(&self, name: &str) -> Option<KeyspaceMeta> {
        let name = if name.is_empty() { DEFAULT_KEYSPACE_NAME } else { name };
        let id = self.space.value(&self.keys.keyspace_id(name))?;
        self.keyspace(std::str::from_utf8(id).ok()?.parse().ok()?)
    }

    /// A keyspace by its id.
    pub fn keyspace(&self, id: u32) -> Option<KeyspaceMeta> {
        KeyspaceMeta::decode(self.space.value(&self.keys.keyspace(id))?.clone()).ok()
    }

    /// Keyspaces from `start` on by id, at most `limit` (0 for all).
    pub fn keyspaces(&self, start: u32, limit: u32) -> Vec<KeyspaceMeta> {
        let prefix = self.keys.keyspaces();
        let limit = if limit == 0 { usize::MAX } else { limit as usize };
        let all = self.space.prefix(&prefix).filter_map(|(_, record)| KeyspaceMeta::decode(record.value.clone()).ok());
        all.filter(|meta| meta.id >= start).take(limit).collect()
    }

    /// Moves a keyspace along ENABLED ↔ DISABLED → ARCHIVED → TOMBSTONE.
    ///
    /// # Errors
    /// [`KeyspaceError`] for an unknown keyspace, the default one, or a step that there is not.
    pub fn set_keyspace_state(
        &mut self,
        id: u32,
        to: KeyspaceState,
        now: UnixTime,
    ) -> Result<KeyspaceMeta, KeyspaceError> {
        if id == 0 {
            return Err(KeyspaceError::Default);
        }
        let mut meta = self.keyspace(id).ok_or(KeyspaceError::NotFound)?;
        let from = meta.state();
        if from == to {
            return Ok(meta);
        }
        use KeyspaceState::{Archived, Disabled, Enabled, Tombstone};
        if !matches!((from, to), (Enabled, Disabled) | (Disabled, Enabled | Archived) | (Archived, Tombstone)) {
            return Err(KeyspaceError::Transition { from: from.as_str_name(), to: to.as_str_name() });
        }
        meta.set_state(to);
        meta.state_changed_at = seconds(now);
        self.commit(vec![Op::put(self.keys.keyspace(id), meta.encode_to_vec())]);
        Ok(meta)
    }

    /// Changes entries of a keyspace's configuration; `None` removes one.
    ///
    /// # Errors
    /// [`KeyspaceError`] for an unknown keyspace or too large a configuration.
    pub fn set_keyspace_config(
        &mut self,
        name: &str,
        changes: BTreeMap<String, Option<String>>,
    ) -> Result<KeyspaceMeta, KeyspaceError> {
        let mut meta = self.keyspace_by_name(name).ok_or(KeyspaceError::NotFound)?;
        for (key, value) in changes {
            match value {
                Some(value) if key.len() + value.len() > 4096 => return Err(KeyspaceError::Config),
                Some(value) => drop(meta.config.insert(key, value)),
                None => drop(meta.config.remove(&key)),
            }
        }
        if meta.config.len() > CONFIG_MAX {
            return Err(KeyspaceError::Config);
        }
        self.commit(vec![Op::put(self.keys.keyspace(meta.id), meta.encode_to_vec())]);
        Ok(meta)
    }

    fn save_new(&mut self, id: u32, name: &str, config: BTreeMap<String, String>, now: UnixTime) -> KeyspaceMeta {
        let meta = KeyspaceMeta {
            id,
            name: name.to_owned(),
            created_at: seconds(now),
            state_changed_at: seconds(now),
            config: config.into_iter().collect(),
            ..KeyspaceMeta::default()
        };
        self.commit(vec![
            Op::put(self.keys.keyspace(id), meta.encode_to_vec()),
            Op::put(self.keys.keyspace_id(name), id.to_string().into_bytes()),
        ]);
        meta
    }
}

fn default_config(mut config: BTreeMap<String, String>) -> BTreeMap<String, String> {
    config.entry("tso_keyspace_group_id".into()).or_insert_with(|| "0".into());
    config.entry("user_kind".into()).or_insert_with(|| "basic".into());
    config.entry("gc_management_type".into()).or_insert_with(|| "unified".into());
    config
}

fn check_name(name: &str) -> Result<(), KeyspaceError> {
    let legal = |letter: u8| letter.is_ascii_alphanumeric() || letter == b'_' || letter == b'-';
    if name == DEFAULT_KEYSPACE_NAME {
        return Err(KeyspaceError::Default);
    }
    if name.is_empty() || name.len() > NAME_LEN_MAX || !name.bytes().all(legal) {
        return Err(KeyspaceError::Name(name.to_owned()));
    }
    Ok(())
}

fn seconds(now: UnixTime) -> i64 {
    i64::try_from(now.seconds()).unwrap_or(i64::MAX)
}
