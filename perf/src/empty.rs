//! What a node costs that has nothing to do, and how soon it answers.

use std::path::Path;
use std::time::Duration;

use crate::cluster::{Cluster, ClusterConfig};
use crate::procfs::ProcSample;

const CORES: usize = 4;
/// Until the work of starting has ebbed away.
const SETTLE_TIME: Duration = Duration::from_secs(3);

/// An empty node.
#[derive(Clone, Debug, serde::Serialize)]
pub(crate) struct EmptyNode {
    pub(crate) cores: usize,
    /// From the start of the process that starts all others to the first answer, on an empty folder: the placement
    /// driver and the bootstrap of the cluster are in it.
    pub(crate) first_start_millis: f64,
    /// The same on the folder of the first.
    pub(crate) second_start_millis: f64,
    /// Of the node alone, as the next ones.
    pub(crate) resident_bytes: u64,
    pub(crate) threads: u64,
    /// CPUs kept busy; 0.01 is one percent of one.
    pub(crate) cpus: f64,
    pub(crate) switches_per_second: f64,
    /// How long it was watched.
    pub(crate) seconds: f64,
}

/// Starts a node of four cores twice, and watches it idle for `watch` the second time.
///
/// # Errors
/// Why it does not start.
pub(crate) async fn measure(
    folder: &Path,
    allow_buffered: bool,
    security: &net::TlsConfig,
    watch: Duration,
) -> Result<EmptyNode, String> {
    let config = ClusterConfig { io: "auto", cores: CORES, folder, allow_buffered, security };
    let (cluster, first_start_millis) = start(config).await?;
    cluster.stop().await;
    let (cluster, second_start_millis) = start(config).await?;
    executor::sleep(SETTLE_TIME).await;
    let (before, begin) = (ProcSample::read(cluster.target.pid)?, executor::now());
    executor::sleep(watch).await;
    let (after, end) = (ProcSample::read(cluster.target.pid)?, executor::now());
    cluster.stop().await;
    let spent = after.since(&before);
    let seconds = end.since(begin).as_secs_f64();
    Ok(EmptyNode {
        cores: CORES,
        first_start_millis,
        second_start_millis,
        resident_bytes: after.resident_bytes,
        threads: after.threads,
        cpus: spent.cpu_nanos() as f64 / 1e9 / seconds,
        switches_per_second: (spent.switches_voluntary + spent.switches_forced) as f64 / seconds,
        seconds,
    })
}

async fn start(config: ClusterConfig<'_>) -> Result<(Cluster, f64), String> {
    let begin = executor::now();
    let cluster = Cluster::start(config).await?;
    let millis = executor::now().since(begin).as_secs_f64() * 1000.0;
    Ok((cluster, millis))
}
