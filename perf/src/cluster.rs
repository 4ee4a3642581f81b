//! A cluster of one node as a child, and where its keys are.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use proto::{kvrpcpb, pdpb, rpc, tikvpb};

use crate::cell::Target;
use crate::child::Child;
use crate::template::key;

/// Attempts until a new cluster has told its placement driver about its first region.
const ATTEMPTS: u32 = 500;
const PAUSE: Duration = Duration::from_millis(2);

/// A placement driver and one node.
pub(crate) struct Cluster {
    child: Child,
    pub(crate) target: Target,
}

/// What a cluster is started with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ClusterConfig<'a> {
    pub(crate) io: &'a str,
    pub(crate) cores: usize,
    pub(crate) folder: &'a Path,
    pub(crate) allow_buffered: bool,
    /// The certificates of the cluster, and of whoever talks to it.
    pub(crate) security: &'a net::TlsConfig,
}

impl Cluster {
    /// Starts it; returns when the first request was answered.
    ///
    /// # Errors
    /// Why it does not answer.
    pub(crate) async fn start(config: ClusterConfig<'_>) -> Result<Cluster, String> {
        let cores = config.cores.to_string();
        let folder = config.folder.display().to_string();
        let mut arguments = vec!["dev", "--die-with-parent", "--nodes", "1", "--pd-port", "0"];
        arguments.extend(["--cores", &cores, "--io", config.io, "--data-dir", &folder]);
        if config.allow_buffered {
            arguments.push("--allow-buffered");
        }
        let settings = config.folder.with_extension("toml");
        let settings_path = settings.display().to_string();
        if config.security.is_on() {
            let written = std::fs::write(&settings, security_table(config.security));
            written.map_err(|error| format!("{settings_path}: {error}"))?;
            arguments.extend(["--config", &settings_path]);
        }
        let tls = config.security.clone().load().map_err(|error| error.to_string())?;
        let log = config.folder.with_extension("log");
        let child = Child::start(&arguments, &log).await?;
        let node = &child.ready["nodes"][0];
        let target = Target {
            address: address(&node["address"])?,
            status: address(&node["status"])?,
            pid: u32::try_from(node["pid"].as_u64().unwrap_or(0)).unwrap_or(0),
            context: locate(child.ready["pd"].as_str().unwrap_or_default(), tls.as_ref()).await?,
            tls,
        };
        first_answer(&target).await?;
        Ok(Cluster { child, target })
    }

    /// Stops it and waits for that.
    pub(crate) async fn stop(self) {
        self.child.stop().await;
    }
}

/// An address in a ready line.
///
/// # Errors
/// If it is none.
pub(crate) fn address(value: &serde_json::Value) -> Result<SocketAddr, String> {
    let text = value.as_str().unwrap_or_default();
    let text = text.split_once("://").map_or(text, |(_, address)| address);
    text.parse().map_err(|_| format!("{value} is no address"))
}

fn call() -> rpc::CallContext {
    rpc::CallContext::with_deadline(executor::now() + Duration::from_secs(5))
}

fn channel(address: &str, tls: Option<&net::Tls>) -> net::Channel {
    net::Channel::new(address.to_owned(), net::ChannelConfig { tls: tls.cloned(), ..Default::default() })
}

/// The certificates as a node's configuration file.
fn security_table(security: &net::TlsConfig) -> String {
    let quoted = |path: &Path| serde_json::Value::from(path.display().to_string());
    format!(
        "[security]\nca-path = {}\ncert-path = {}\nkey-path = {}\ncert-allowed-cn = {}\n",
        quoted(&security.ca_path),
        quoted(&security.cert_path),
        quoted(&security.key_path),
        serde_json::Value::from(security.cert_allowed_cn.clone()),
    )
}

/// Asks the placement driver for the region of the keys: what a request's context says.
async fn locate(pd: &str, tls: Option<&net::Tls>) -> Result<kvrpcpb::Context, String> {
    let pd = pdpb::PdClient::new(channel(pd, tls));
    let members = pd.get_members(call(), &pdpb::GetMembersRequest::default()).await;
    let cluster_id =
        members.map_err(|status| format!("placement driver: {status}"))?.header.map_or(0, |header| header.cluster_id);
    let request = pdpb::GetRegionRequest {
        header: Some(pdpb::RequestHeader { cluster_id, ..Default::default() }),
        region_key: Bytes::copy_from_slice(&key(0)),
        ..Default::default()
    };
    for _ in 0..ATTEMPTS {
        let answer = pd.get_region(call(), &request).await;
        let answer = answer.map_err(|status| format!("placement driver: {status}"))?;
        if let (Some(region), Some(leader)) = (answer.region, answer.leader) {
            return Ok(kvrpcpb::Context {
                region_id: region.id,
                region_epoch: region.region_epoch,
                peer: Some(leader),
                ..Default::default()
            });
        }
        executor::sleep(PAUSE).await;
    }
    Err("the placement driver knows no leader for the first key".into())
}

async fn first_answer(target: &Target) -> Result<(), String> {
    let client = tikvpb::TikvClient::new(channel(&target.address.to_string(), target.tls.as_ref()));
    let request = kvrpcpb::RawGetRequest {
        context: Some(target.context.clone()),
        key: Bytes::copy_from_slice(&key(0)),
        ..Default::default()
    };
    let mut last = String::new();
    for _ in 0..ATTEMPTS {
        match client.raw_get(call(), &request).await {
            Ok(answer) if answer.region_error.is_none() && answer.error.is_empty() => return Ok(()),
            Ok(answer) => last = format!("{answer:?}"),
            Err(status) => last = status.to_string(),
        }
        executor::sleep(PAUSE).await;
    }
    Err(format!("the node does not answer: {last}"))
}
