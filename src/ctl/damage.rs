//! Damaged raft logs in the folder of a node that does not run.

use std::path::PathBuf;
use std::sync::Arc;

use crate::config::{Config, Error};
use crate::serve::RocksSource;

#[derive(clap::Args)]
pub(super) struct DamageArgs {
    /// The node's folder.
    #[arg(long, env = "BASALT_DATA_DIR")]
    data_dir: PathBuf,
    /// Let regions without another replica serve again, without the writes that were lost.
    #[arg(long)]
    accept: bool,
    /// The node's configuration file.
    #[arg(long)]
    config: Option<PathBuf>,
}

/// Prints what is damaged, and with `accept` lets it serve again.
///
/// # Errors
/// The folder cannot be read.
pub(super) async fn damage(args: DamageArgs) -> Result<(), Error> {
    let config = Config::load(args.config.as_deref())?;
    // The node that runs here is the one to insist on O_DIRECT.
    executor::LogFile::allow_buffered(true);
    let source = Arc::new(RocksSource::new(&config));
    let reports = shard::node::examine_node(&args.data_dir, source, &config.log()?, args.accept).await?;
    for (shard, report) in reports {
        let state = if report.is_whole() { "whole" } else { "damaged" };
        println!("shard {shard}: {state}");
        report.evidence.iter().for_each(|what| println!("  {what}"));
        for region in report.regions {
            let state = if region.is_accepted { "serves from the next start on" } else { "closed" };
            println!(
                "  region {} (peer {}): entries applied up to {}, known to be committed up to {}; {state}",
                region.region, region.peer, region.applied, region.committed
            );
        }
    }
    Ok(())
}
