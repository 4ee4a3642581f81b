//! Who a node is: the file `node.json`, written once, and read before anything else at every start.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::NodeError;
use crate::core::ApiMode;

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
