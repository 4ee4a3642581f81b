//! `basalt ctl consistency`: have all replicas of a region hash their data at the same entry, and compare.

use std::collections::VecDeque;
use std::time::Duration;

use proto::{metapb, pdpb};
use serde_json::Value;

use super::cluster::{Cluster, call};
use crate::config::Error;

/// For one question to a status port.
const CALL_LIMIT: Duration = Duration::from_secs(10);
/// For the hashes of one region: a node reads some hundred MiB within it.
const HASH_LIMIT: Duration = Duration::from_secs(120);
/// Regions that are asked for at a time.
const REGIONS_PER_CALL: i32 = 1000;
/// Times that all peers are asked whether they lead.
const ROUNDS: u32 = 20;

/// What came of one region.
enum Verdict {
    Same {
        index: u64,
        keys: u64,
        bytes: u64,
    },
    Different(Vec<(u64, Value)>),
    /// Perhaps its leader moved, or a node is down.
    Unknown(String),
}

impl Cluster {
    /// Compares one region, or all, and prints each.
    ///
    /// # Errors
    /// If replicas differ, or some region could not be compared.
    pub(super) async fn consistency(&self, region: Option<u64>) -> Result<(), Error> {
        let request = pdpb::GetAllStoresRequest { header: self.header(), ..Default::default() };
        let stores = self.pd.get_all_stores(call(), &request).await?.stores;
        let (mut same, mut different, mut unknown) = (0, 0, 0);
        let is_asked = |meta: &metapb::Region| region.is_none_or(|region| region == meta.id);
        let found = self.all_regions().await?.into_iter().filter_map(|found| found.region);
        let mut left: VecDeque<metapb::Region> = found.filter(is_asked).collect();
        while let Some(meta) = left.pop_front() {
            let verdict = compare(&stores, &meta, self.channels.tls.as_ref()).await;
            if let Verdict::Unknown(_) = verdict
                && let Some(heir) = self.heir(&meta).await?
            {
                println!("region {}: has merged into region {}", meta.id, heir.id);
                if left.iter().all(|next| next.id != heir.id) {
                    left.push_back(heir);
                }
                continue;
            }
            println!("region {}: {}", meta.id, describe(&verdict));
            match verdict {
                Verdict::Same { .. } => same += 1,
                Verdict::Different(_) => different += 1,
                Verdict::Unknown(_) => unknown += 1,
            }
        }
        match (different, unknown) {
            (0, 0) if same == 0 => Err("there is no such region".into()),
            (0, 0) => Ok(()),
            (0, unknown) => Err(format!("{unknown} regions could not be compared").into()),
            (different, _) => Err(format!("replicas of {different} regions differ").into()),
        }
    }

    /// The region that has the keys of `gone`, if that is there no more.
    async fn heir(&self, gone: &metapb::Region) -> Result<Option<metapb::Region>, Error> {
        let request = pdpb::GetRegionByIdRequest { header: self.header(), region_id: gone.id, ..Default::default() };
        if self.pd.get_region_by_id(call(), &request).await?.region.is_some() {
            return Ok(None);
        }
        let request =
            pdpb::GetRegionRequest { header: self.header(), region_key: gone.start_key.clone(), ..Default::default() };
        Ok(self.pd.get_region(call(), &request).await?.region)
    }

    async fn all_regions(&self) -> Result<Vec<pdpb::Region>, Error> {
        let mut regions: Vec<pdpb::Region> = Vec::new();
        let mut start_key = bytes::Bytes::new();
        loop {
            let request = pdpb::ScanRegionsRequest {
                header: self.header(),
                start_key,
                limit: REGIONS_PER_CALL,
                ..Default::default()
            };
            regions.extend(self.pd.scan_regions(call(), &request).await?.regions);
            let end = regions.last().and_then(|last| last.region.as_ref()).map(|region| region.end_key.clone());
            match end {
                Some(end) if !end.is_empty() && end > request.start_key => start_key = end,
                _ => return Ok(regions),
            }
        }
    }
}

fn describe(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Same { index, keys, bytes } => format!("the same at entry {index}: {keys} keys, {bytes} bytes"),
        Verdict::Different(hashes) => {
            let each = hashes.iter().map(|(store, hash)| format!("store {store}: {hash}"));
            format!("DIFFERENT: {}", each.collect::<Vec<_>>().join(", "))
        }
        Verdict::Unknown(why) => format!("not compared: {why}"),
    }
}

async fn compare(stores: &[metapb::Store], region: &metapb::Region, tls: Option<&net::Tls>) -> Verdict {
    match hashes(stores, region, tls).await {
        Err(why) => Verdict::Unknown(why.to_string()),
        Ok((index, hashes)) => {
            let first = &hashes[0].1;
            if hashes.iter().any(|(_, hash)| hash != first) {
                return Verdict::Different(hashes);
            }
            let number = |name: &str| first[name].as_u64().unwrap_or(0);
            Verdict::Same { index, keys: number("keys"), bytes: number("bytes") }
        }
    }
}

/// Has the region's leader, whoever that is, order the hashes; answers with the index at which they are made.
async fn order(addresses: &[(u64, String)], region: u64, tls: Option<&net::Tls>) -> Result<u64, Error> {
    let mut last: Error = "the region has no peers".into();
    for round in 0..ROUNDS {
        if round > 0 {
            // Leaders move.
            executor::sleep(Duration::from_millis(250)).await;
        }
        for (_, address) in addresses {
            match get(address, &format!("/consistency?region={region}"), tls).await {
                Ok(answer) => return answer["index"].as_u64().ok_or_else(|| "an answer without an index".into()),
                Err(why) => last = why,
            }
        }
    }
    Err(last)
}

/// What each replica found at the entry of that index, with its store.
async fn hashes(
    stores: &[metapb::Store],
    region: &metapb::Region,
    tls: Option<&net::Tls>,
) -> Result<(u64, Vec<(u64, Value)>), Error> {
    let limit = executor::now() + HASH_LIMIT;
    let mut addresses = Vec::new();
    for peer in &region.peers {
        let store = stores.iter().find(|store| store.id == peer.store_id);
        let store = store.ok_or_else(|| format!("store {} is unknown", peer.store_id))?;
        addresses.push((store.id, store.status_address.clone()));
    }
    'again: loop {
        let index = order(&addresses, region.id, tls).await?;
        let mut found = Vec::new();
        for (store, address) in &addresses {
            loop {
                let peer = get(address, &format!("/region?region={}", region.id), tls).await?;
                if peer["hashed"]["index"].as_u64() == Some(index) {
                    found.push((*store, peer["hashed"].clone()));
                    break;
                }
                if executor::now() > limit {
                    return Err(format!("store {store} does not say what it found at entry {index}").into());
                }
                executor::sleep(Duration::from_millis(50)).await;
                // It went to another shard, or came to be by a snapshot.
                let is_past = peer["applied_index"].as_u64() >= Some(index);
                if is_past && peer["hashing"].as_u64() != Some(index) {
                    continue 'again;
                }
            }
        }
        return Ok((index, found));
    }
}

/// A document of a status port.
async fn get(address: &str, path: &str, tls: Option<&net::Tls>) -> Result<Value, Error> {
    let answer = net::fetch(address, tls, ("GET", path), b"", CALL_LIMIT).await?;
    let net::HttpResponse { status, body, .. } = answer;
    if status != 200 {
        return Err(format!("{address}: {}", String::from_utf8_lossy(&body).trim()).into());
    }
    Ok(serde_json::from_slice(&body)?)
}
