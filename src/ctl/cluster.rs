//! A cluster as seen through its placement driver.

use std::time::Duration;

use net::HttpResponse;
use proto::{kvrpcpb, metapb, pdpb, rpc, tikvpb};
use serde_json::Value;

use super::ask::Ask;
use crate::config::Error;

/// Attempts before a region error or a lost connection is reported.
const ATTEMPTS: u32 = 10;
/// How long one call may take.
const CALL_TIME: Duration = Duration::from_secs(5);

pub(super) struct Cluster {
    pub(super) pd: pdpb::PdClient<net::Channel>,
    /// The member that leads, `http(s)://host:port`.
    pd_url: String,
    cluster_id: u64,
    pub(super) channels: net::ChannelConfig,
}

/// Where a key is.
pub(super) struct Located {
    pub(super) context: kvrpcpb::Context,
    pub(super) region: metapb::Region,
    pub(super) client: tikvpb::TikvClient<net::Channel>,
}

pub(super) fn call() -> rpc::CallContext {
    rpc::CallContext::with_deadline(executor::now() + CALL_TIME)
}

/// Bytes as people read them: text as it is, all else escaped.
pub(super) fn printable(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

impl Cluster {
    /// Finds the member that leads, through the first of `addresses` that answers.
    pub(super) async fn connect(addresses: &[String], tls: Option<net::Tls>) -> Result<Cluster, Error> {
        let channels = net::ChannelConfig { tls, ..Default::default() };
        let mut last: Error = "no address of a placement driver".into();
        for address in addresses {
            let first = pdpb::PdClient::new(net::Channel::new(address.clone(), channels.clone()));
            let members = match first.get_members(call(), &pdpb::GetMembersRequest::default()).await {
                Ok(members) => members,
                Err(status) => {
                    last = status.into();
                    continue;
                }
            };
            let cluster_id = members.header.map_or(0, |header| header.cluster_id);
            let leader = members.leader.and_then(|leader| leader.client_urls.first().cloned());
            let (pd, pd_url) = match leader {
                Some(url) => (pdpb::PdClient::new(net::Channel::new(url.clone(), channels.clone())), url),
                None => (first, address.clone()),
            };
            return Ok(Cluster { pd, pd_url, cluster_id, channels });
        }
        Err(last)
    }

    pub(super) fn header(&self) -> Option<pdpb::RequestHeader> {
        Some(pdpb::RequestHeader { cluster_id: self.cluster_id, ..Default::default() })
    }

    /// Asks one of the placement driver's REST paths.
    ///
    /// # Errors
    /// The placement driver's own words, if it refuses.
    pub(super) async fn ask(&self, ask: &Ask) -> Result<Value, Error> {
        let body = ask.body.as_ref().map(Value::to_string).unwrap_or_default();
        let path = format!("/pd/api/v1{}", ask.path);
        let asked = (ask.method, path.as_str());
        let answer = net::fetch(&self.pd_url, self.channels.tls.as_ref(), asked, body.as_bytes(), CALL_TIME).await?;
        let HttpResponse { status, body, .. } = answer;
        let value = serde_json::from_slice(&body).unwrap_or_else(|_| String::from_utf8_lossy(&body).trim().into());
        if status == 200 {
            return Ok(value);
        }
        let words = value.as_str().map_or_else(|| value.to_string(), str::to_string);
        Err(if words.is_empty() { format!("the placement driver answers {status}").into() } else { words.into() })
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
    pub(super) async fn retry<T, F>(&self, key: &[u8], attempt: impl Fn(Located) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<Result<T, proto::errorpb::Error>, rpc::Status>>,
    {
        let mut last: Error = "no attempt".into();
        for number in 0..ATTEMPTS {
            if number > 0 {
                executor::sleep(Duration::from_millis(20 << number.min(5))).await;
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
}
