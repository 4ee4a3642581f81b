//! Raw keys, through the protocol of any client.

use proto::kvrpcpb;

use super::cluster::{Cluster, call, printable};
use crate::config::Error;

impl Cluster {
    pub(super) async fn get(&self, key: &[u8]) -> Result<(), Error> {
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

    pub(super) async fn put(&self, key: &[u8], value: Vec<u8>) -> Result<(), Error> {
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

    pub(super) async fn delete(&self, key: &[u8]) -> Result<(), Error> {
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

    pub(super) async fn scan(&self, mut start: Vec<u8>, end: &[u8], limit: u32) -> Result<(), Error> {
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

    pub(super) async fn split(&self, key: &[u8]) -> Result<(), Error> {
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
