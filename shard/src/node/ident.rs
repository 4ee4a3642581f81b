//! Who a node is: the file `node.json`, read before anything else and written at every start.

use std::path::Path;

use base::ShardId;
use serde::{Deserialize, Serialize};

use super::core_zero::pd_error;
use super::{EngineSource, Node, NodeConfig, NodeError, shard_dir};
use crate::core::ApiMode;
use crate::pd_client::{PdClient, PdClientError, StoreStart};

/// Contents of `node.json`. See docs/formats.md.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeIdent {
    /// Version of this file's format; 1.
    pub format: u32,
    /// The cluster that the node belongs to.
    pub cluster_id: u64,
    /// The node's id in it.
    pub store_id: u64,
    /// `V1`, `V1TTL` or `V2`.
    pub api: String,
    /// Number of shard folders. It only grows.
    pub shards: u32,
    /// Starts so far. PD refuses a folder that knows of fewer than have happened: it is a stale copy.
    #[serde(default)]
    pub starts: u64,
}

/// Why an identity does not fit.
#[derive(Debug, thiserror::Error)]
pub enum IdentError {
    /// The file is not one of ours, or from a later version.
    #[error("node.json cannot be read: {0}")]
    Unreadable(String),
    /// The data belongs to another cluster.
    #[error("cluster ID mismatch: the data is of cluster {ours}, PD is of cluster {theirs}")]
    Cluster {
        /// In the file.
        ours: u64,
        /// PD's.
        theirs: u64,
    },
    /// The data was written in another API mode.
    #[error("storage.api-version: the data was written as {stored}, the configuration says {configured}")]
    Api {
        /// In the file.
        stored: String,
        /// In the configuration.
        configured: String,
    },
}

/// The name of an API mode in `node.json`.
pub(crate) fn api_name(api: ApiMode) -> &'static str {
    match api {
        ApiMode::V1 => "V1",
        ApiMode::V1Ttl => "V1TTL",
        ApiMode::V2 => "V2",
    }
}

impl NodeIdent {
    /// Reads the file in `data_dir`; `None` if there is none, which means a first start.
    ///
    /// # Errors
    /// [`NodeError`] if it cannot be read or is of a format that we do not know.
    pub async fn load(data_dir: &Path) -> Result<Option<NodeIdent>, NodeError> {
        let path = data_dir.join("node.json");
        let text = match executor::fs::read(&path).await {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(NodeError::Io { what: format!("read {}", path.display()), source }),
        };
        let ident: NodeIdent =
            serde_json::from_slice(&text).map_err(|error| IdentError::Unreadable(error.to_string()))?;
        if ident.format != 1 {
            return Err(IdentError::Unreadable(format!("format {} is not known", ident.format)).into());
        }
        Ok(Some(ident))
    }

    /// Writes the file, durable when this returns.
    ///
    /// # Errors
    /// [`NodeError::Io`].
    pub async fn store(&self, data_dir: &Path) -> Result<(), NodeError> {
        let path = data_dir.join("node.json");
        let text = serde_json::to_vec_pretty(self).map_err(|error| IdentError::Unreadable(error.to_string()))?;
        executor::fs::write_atomic(&path, &text)
            .await
            .map_err(|source| NodeError::Io { what: format!("write {}", path.display()), source })
    }

    /// Checks the identity against PD's cluster and the configuration.
    ///
    /// # Errors
    /// [`IdentError`].
    pub fn check(&self, cluster_id: u64, api: ApiMode) -> Result<(), IdentError> {
        if self.cluster_id != cluster_id {
            return Err(IdentError::Cluster { ours: self.cluster_id, theirs: cluster_id });
        }
        if self.api != api_name(api) {
            return Err(IdentError::Api { stored: self.api.clone(), configured: api_name(api).into() });
        }
        Ok(())
    }
}

/// Reads who we are, or becomes somebody: a store id from PD, written down before anything is done under it. Each start
/// is counted; without room on the disk for that, PD is not told of it.
pub(super) async fn identify<S: EngineSource>(
    node: &Node<S>,
    pd: &PdClient,
) -> Result<(NodeIdent, Option<StoreStart>), NodeError> {
    let config = &node.config;
    let cores = u32::try_from(node.mail.len()).unwrap_or(1);
    let mut ident = match NodeIdent::load(&config.data_dir).await? {
        Some(ident) => {
            ident.check(pd.cluster_id(), config.api)?;
            refuse_if_wiped(&ident, config, pd).await?;
            ident
        }
        None => NodeIdent {
            format: 1,
            cluster_id: pd.cluster_id(),
            store_id: pd.alloc_id().await.map_err(pd_error)?,
            api: api_name(config.api).into(),
            shards: 0,
            starts: 0,
        },
    };
    let grows = ident.shards < cores;
    ident.shards = ident.shards.max(cores);
    ident.starts += 1;
    match ident.store(&config.data_dir).await {
        Ok(()) => {
            let nonce = executor::with_rng(base::Prng::next_u64);
            let start = StoreStart { count: ident.starts, nonce };
            Ok((ident, Some(start)))
        }
        Err(error) if grows => Err(error),
        // A full disk is no reason not to start.
        Err(error) => {
            tracing::warn!(%error, "this start is not counted");
            Ok((ident, None))
        }
    }
}

/// An identity whose shards are gone, though PD has seen them, is not taken: its peers would have forgotten their votes.
async fn refuse_if_wiped(ident: &NodeIdent, config: &NodeConfig, pd: &PdClient) -> Result<(), NodeError> {
    if executor::fs::exists(&shard_dir(&config.data_dir, ShardId(0)).join("log")).await.unwrap_or(true) {
        return Ok(());
    }
    match pd.store(ident.store_id).await {
        Ok(_) => Err(NodeError::Wiped { dir: config.data_dir.clone(), store: ident.store_id }),
        // It never got so far as to be known.
        Err(PdClientError::Refused { .. }) => Ok(()),
        Err(error) => Err(pd_error(error)),
    }
}
