//! `basalt ctl`: looks into a running cluster through the same protocol as any client, and into the folder of a node
//! that does not run.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Subcommand;
use proto::{kvrpcpb, metapb, pdpb, rpc, tikvpb};

use crate::config::{Config, Error};
use crate::security::SecurityArgs;
use crate::serve::RocksSource;

#[derive(clap::Args)]
pub(crate) struct CtlArgs {
    /// Address of the placement driver.
    #[arg(long, default_value = "127.0.0.1:2379", env = "BASALT_PD")]
    pd: String,
    #[command(flatten)]
    security: SecurityArgs,
    #[command(subcommand)]
    command: CtlCommand,
}

#[derive(Subcommand)]
enum CtlCommand {
    /// List the stores.
    Stores,
    /// List the regions in key order.
    Regions {
        /// At most so many.
        #[arg(long, default_value_t = 1000)]
        limit: i32,
    },
    /// Print the value of a raw key.
    Get {
        /// The key, as text.
        key: String,
    },
    /// Set a raw key.
    Put {
        /// The key, as text.
        key: String,
        /// The value, as text.
        value: String,
    },
    /// Remove a raw key.
    Delete {
        /// The key, as text.
        key: String,
    },
    /// Print raw pairs in key order.
    Scan {
        /// First key, as text.
        #[arg(default_value = "")]
        start: String,
        /// Last key, exclusive; empty is the end.
        #[arg(default_value = "")]
        end: String,
        /// At most so many.
        #[arg(long, default_value_t = 100)]
        limit: u32,
    },
    /// Split the region of a raw key at this key.
    Split {
        /// The key, as text.
        key: String,
    },
    /// Look for damaged raft logs in the folder of a node that does not run.
    Damage(DamageArgs),
}

#[derive(clap::Args)]
struct DamageArgs {
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

/// A cluster as seen through its placement driver.
struct Cluster {
    pd: pdpb::PdClient<net::Channel>,
    cluster_id: u64,
    channels: net::ChannelConfig,
}

struct Located {
    context: kvrpcpb::Context,
    region: metapb::Region,
    client: tikvpb::TikvClient<net::Channel>,
}

/// Attempts before a region error or a lost connection is reported.
const ATTEMPTS: u32 = 10;

pub(crate) fn run(args: CtlArgs) -> Result<(), Error> {
    executor::run_one(executor::IoChoice::Epoll, move || async move {
        if let CtlCommand::Damage(args) = args.command {
            return damage(args).await;
        }
        let cluster = Cluster::connect(&args.pd, args.security.config().load()?).await?;
        match args.command {
            CtlCommand::Damage(_) => unreachable!("done above, without a cluster"),
            CtlCommand::Stores => cluster.stores().await,
            CtlCommand::Regions { limit } => cluster.regions(limit).await,
            CtlCommand::Get { key } => cluster.get(key.as_bytes()).await,
            CtlCommand::Put { key, value } => cluster.put(key.as_bytes(), value.into_bytes()).await,
            CtlCommand::Delete { key } => cluster.delete(key.as_bytes()).await,
            CtlCommand::Scan { start, end, limit } => cluster.scan(start.into_bytes(), end.as_bytes(), limit).await,
            CtlCommand::Split { key } => cluster.split(key.as_bytes()).await,
        }
    })
}

async fn damage(args: DamageArgs) -> Result<(), Error> {
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

fn call() -> rpc::CallContext {
    rpc::CallContext { deadline: Some(executor::now() + std::time::Duration::from_secs(5)), ..Default::default() }
}

impl Cluster {
    async fn connect(address: &str, tls: Option<net::Tls>) -> Result<Cluster, Error> {
        let channels = net::ChannelConfig { tls, ..Default::default() };
        let channel = |address: &str| net::Channel::new(address.to_string(), channels.clone());
        let first = pdpb::PdClient::new(channel(address));
        let members = first.get_members(call(), &pdpb::GetMembersRequest::default()).await?;
        let cluster_id = members.header.map_or(0, |header| header.cluster_id);
        let leader = members.leader.and_then(|leader| leader.client_urls.first().cloned());
        let pd = leader.map_or(first, |url| pdpb::PdClient::new(channel(&url)));
        Ok(Cluster { pd, cluster_id, channels })
    }

    fn header(&self) -> Option<pdpb::RequestHeader> {
        Some(pdpb::RequestHeader { cluster_id: self.cluster_id, ..Default::default() })
    }

    async fn stores(&self) -> Result<(), Error> {
        let request = pdpb::GetAllStoresRequest { header: self.header(), ..Default::default() };
        let answer = self.pd.get_all_stores(call(), &request).await?;
        println!("{:>8}  {:<22} {:<22} {:<10} state", "id", "address", "status", "version");
        for store in answer.stores {
            let state = metapb::StoreState::try_from(store.state).map_or("unknown", |state| state.as_str_name());
            println!(
                "{:>8}  {:<22} {:<22} {:<10} {state}",
                store.id, store.address, store.status_address, store.version
            );
        }
        Ok(())
    }

    async fn regions(&self, limit: i32) -> Result<(), Error> {
        let request = pdpb::ScanRegionsRequest { header: self.header(), limit, ..Default::default() };
        let answer = self.pd.scan_regions(call(), &request).await?;
        println!("{:>8} {:>8} {:>8}  epoch   start .. end", "region", "peer", "store");
        for region in answer.regions {
            let leader = region.leader.unwrap_or_default();
            let meta = region.region.unwrap_or_default();
            let epoch = meta.region_epoch.unwrap_or_default();
            println!(
                "{:>8} {:>8} {:>8}  {}:{}     {} .. {}",
                meta.id,
                leader.id,
                leader.store_id,
                epoch.conf_ver,
                epoch.version,
                printable(&meta.start_key),
                printable(&meta.end_key)
            );
        }
        Ok(())
    }

    async fn locate(&self, key: &[u8]) -> Result<Located, Error> {
        let request =
            pdpb::GetRegionRequest { header: self.header(), region_key: key.to_vec().into(), ..Default::default() };
        let answer = self.pd.get_region(call(), &request).await?;
        let region = answer.region.ok_or("the placement driver knows no region for this key yet")?;
        let leader = answer.leader.ok_or("the region has no leader yet")?;
        let request = pdpb::GetStoreRequest { header: self.header(), store_id: leader.store_id };
        let store = self.pd.get_store(call(), &request).await?.store.ok_or("the leader's store is unknown")?;
        let context = kvrpcpb::Context {
            region_id: region.id,
            region_epoch: region.region_epoch,
            peer: Some(leader),
            ..Default::default()
        };
        let channel = net::Channel::new(store.address, self.channels.clone());
        Ok(Located { context, region, client: tikvpb::TikvClient::new(channel) })
    }

    /// Calls `attempt` with the place of `key` until it answers something else than a region error.
    async fn retry<T, F>(&self, key: &[u8], attempt: impl Fn(Located) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<Result<T, proto::errorpb::Error>, rpc::Status>>,
    {
        let mut last: Error = "no attempt".into();
        for number in 0..ATTEMPTS {
            if number > 0 {
                executor::sleep(std::time::Duration::from_millis(20 << number.min(5))).await;
            }
            match self.locate(key).await {
                Err(error) => last = error,
                Ok(place) => match attempt(place).await {
                    Ok(Ok(answer)) => return Ok(answer),
                    Ok(Err(region_error)) => last = region_error.message.into(),
                    Err(status) => last = status.into(),
                },
            }
        }
        Err(last)
    }

    async fn get(&self, key: &[u8]) -> Result<(), Error> {
        let answer = self
            .retry(key, |place| async move {
                let request = kvrpcpb::RawGetRequest {
                    context: Some(place.context),
                    key: key.to_vec().into(),
                    ..Default::default()
                };
                let answer = place.client.raw_get(call(), &request).await?;
                Ok(answer.region_error.clone().map_or(Ok(answer), Err))
            })
            .await?;
        refuse(answer.error)?;
        if answer.not_found {
            return Err("not found".into());
        }
        println!("{}", printable(&answer.value));
        Ok(())
    }

    async fn put(&self, key: &[u8], value: Vec<u8>) -> Result<(), Error> {
        let value = bytes::Bytes::from(value);
        let answer = self
            .retry(key, |place| {
                let value = value.clone();
                async move {
                    let request = kvrpcpb::RawPutRequest {
                        context: Some(place.context),
                        key: key.to_vec().into(),
                        value,
                        ..Default::default()
                    };
                    let answer = place.client.raw_put(call(), &request).await?;
                    Ok(answer.region_error.clone().map_or(Ok(answer), Err))
                }
            })
            .await?;
        refuse(answer.error)
    }

    async fn delete(&self, key: &[u8]) -> Result<(), Error> {
        let answer = self
            .retry(key, |place| async move {
                let request = kvrpcpb::RawDeleteRequest {
                    context: Some(place.context),
                    key: key.to_vec().into(),
                    ..Default::default()
                };
                let answer = place.client.raw_delete(call(), &request).await?;
                Ok(answer.region_error.clone().map_or(Ok(answer), Err))
            })
            .await?;
        refuse(answer.error)
    }

    async fn scan(&self, mut start: Vec<u8>, end: &[u8], limit: u32) -> Result<(), Error> {
        let mut left = limit;
        while left > 0 {
            let from = start.clone();
            let (pairs, region_end) = self
                .retry(&start, |place| {
                    let from = from.clone();
                    async move {
                        let request = kvrpcpb::RawScanRequest {
                            context: Some(place.context),
                            start_key: from.into(),
                            end_key: end.to_vec().into(),
                            limit: left,
                            ..Default::default()
                        };
                        let answer = place.client.raw_scan(call(), &request).await?;
                        Ok(answer.region_error.clone().map_or(Ok((answer.kvs, place.region.end_key)), Err))
                    }
                })
                .await?;
            for pair in pairs {
                println!("{}\t{}", printable(&pair.key), printable(&pair.value));
                left = left.saturating_sub(1);
            }
            if region_end.is_empty() || (!end.is_empty() && &region_end[..] >= end) {
                break;
            }
            start = region_end.to_vec();
        }
        Ok(())
    }

    async fn split(&self, key: &[u8]) -> Result<(), Error> {
        let regions = self
            .retry(key, |place| async move {
                let request = kvrpcpb::SplitRegionRequest {
                    context: Some(place.context),
                    split_keys: vec![key.to_vec().into()],
                    is_raw_kv: true,
                    ..Default::default()
                };
                let answer = place.client.split_region(call(), &request).await?;
                Ok(answer.region_error.map_or(Ok(answer.regions), Err))
            })
            .await?;
        for region in regions {
            println!("{}  {} .. {}", region.id, printable(&region.start_key), printable(&region.end_key));
        }
        Ok(())
    }
}

fn refuse(error: String) -> Result<(), Error> {
    if error.is_empty() { Ok(()) } else { Err(error.into()) }
}

/// Bytes as people read them: text as it is, all else escaped.
fn printable(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}
