//! Damaged raft logs of a node that does not run: what is wrong, and going on regardless.

use std::path::Path;
use std::sync::Arc;

use base::ShardId;
use executor::Class;

use super::{EngineSource, NodeError, NodeIdent, shard_dir};
use crate::core::{DamageReport, OpenError, examine};
use crate::engine::Engine as _;
use crate::log::LogConfig;

/// Looks for damage in every shard below `data_dir`; with `accept`, regions with one replica serve again from the next
/// start on, without what was lost. See [`examine`].
///
/// # Errors
/// [`NodeError`]; also if a node runs on this folder, or none ever has.
pub async fn examine_node<S: EngineSource>(
    data_dir: &Path,
    source: Arc<S>,
    log: &LogConfig,
    accept: bool,
) -> Result<Vec<(ShardId, DamageReport)>, NodeError> {
    let io = |what: &str| {
        let what = format!("{what} {}", data_dir.display());
        move |source| NodeError::Io { what, source }
    };
    let none = || io("no node has run on")(std::io::ErrorKind::NotFound.into());
    let ident = NodeIdent::load(data_dir).await?.ok_or_else(none)?;
    let _lock = executor::fs::lock_dir(data_dir).await.map_err(io("lock"))?;
    let mut reports = Vec::new();
    for shard in (0..ident.shards).map(ShardId) {
        let dir = shard_dir(data_dir, shard);
        let engine = {
            let (source, dir) = (source.clone(), dir.join("engine"));
            executor::blocking(Class::Background, move || source.open(shard, &dir))
                .await
                .map_err(|why| OpenError::Engine { shard, why })?
        };
        let (log_dir, snap_dir) = (dir.join("log"), dir.join("snap"));
        let report = examine(shard, ident.store_id.into(), &engine, &log_dir, &snap_dir, log.clone(), accept).await?;
        executor::blocking(Class::Background, move || engine.close())
            .await
            .map_err(|error| OpenError::Engine { shard, why: error.to_string() })?;
        reports.push((shard, report));
    }
    Ok(reports)
}
