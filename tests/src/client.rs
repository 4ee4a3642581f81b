//! A raw key-value client that runs on the executor, and so in the simulator. It keeps a region cache, follows region
//! errors like a stock client, and says of every write what it knows of its fate.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use proto::rpc::{CallContext, Status};
use proto::{errorpb, kvrpcpb, metapb, pdpb, tikvpb};

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate<T> {
    /// It was done, with this result.
    Done(T),
    /// It was surely not done.
    Refused(String),
    /// It may have been done, and may yet be.
    Unknown(String),
}

/// Budget of one request, all attempts together.
const LIMIT: Duration = Duration::from_secs(5);
/// Deadline of one attempt.
const ATTEMPT: Duration = Duration::from_secs(2);

#[derive(Clone)]
struct CachedRegion {
    region: metapb::Region,
    leader: metapb::Peer,
}

/// A client of one cluster.
pub struct Client {
    pd: pdpb::PdClient<net::Channel>,
    cluster_id: Cell<u64>,
    regions: RefCell<BTreeMap<Vec<u8>, CachedRegion>>,
    stores: RefCell<BTreeMap<u64, (String, tikvpb::TikvClient<net::Channel>)>>,
    /// Attempts that failed, whatever the reason.
    pub retries: Cell<u64>,
    /// Deadline of what is tried once.
    pub patience: Cell<Duration>,
}

fn call(limit: Duration) -> CallContext {
    CallContext { deadline: Some(executor::now() + limit), ..Default::default() }
}

fn channel(address: &str) -> net::Channel {
    net::Channel::new(address.to_string(), net::ChannelConfig::default())
}

impl Client {
    /// A client of the cluster whose placement driver is at `pd`.
    pub fn new(pd: &str) -> Client {
        Client {
            pd: pdpb::PdClient::new(channel(pd)),
            cluster_id: Cell::new(0),
            regions: RefCell::default(),
            stores: RefCell::default(),
            retries: Cell::new(0),
            patience: Cell::new(ATTEMPT),
        }
    }

    fn header(&self) -> Option<pdpb::RequestHeader> {
        Some(pdpb::RequestHeader { cluster_id: self.cluster_id.get(), ..Default::default() })
    }

    async fn learn_cluster(&self) -> Result<(), Status> {
        if self.cluster_id.get() == 0 {
            let members = self.pd.get_members(call(ATTEMPT), &pdpb::GetMembersRequest::default()).await?;
            self.cluster_id.set(members.header.map_or(0, |header| header.cluster_id));
        }
        Ok(())
    }

    /// Regions that the placement driver knows.
    ///
    /// # Errors
    /// What it said.
    pub async fn regions(&self) -> Result<Vec<metapb::Region>, Status> {
        self.learn_cluster().await?;
        let request = pdpb::ScanRegionsRequest { header: self.header(), limit: 0, ..Default::default() };
        let answer = self.pd.scan_regions(call(ATTEMPT), &request).await?;
        Ok(answer.regions.into_iter().filter_map(|region| region.region).collect())
    }

    /// Ids of all stores that the placement driver knows.
    ///
    /// # Errors
    /// What it said.
    pub async fn store_ids(&self) -> Result<Vec<u64>, Status> {
        self.learn_cluster().await?;
        let request = pdpb::GetAllStoresRequest { header: self.header(), ..Default::default() };
        let answer = self.pd.get_all_stores(call(ATTEMPT), &request).await?;
        Ok(answer.stores.iter().map(|store| store.id).collect())
    }

    async fn locate(&self, key: &[u8]) -> Result<CachedRegion, Status> {
        let cached = {
            let regions = self.regions.borrow();
            let before = regions.range(..=key.to_vec()).next_back();
            before.map(|(_, cached)| cached.clone()).filter(|cached| contains(&cached.region, key))
        };
        if let Some(cached) = cached {
            return Ok(cached);
        }
        self.learn_cluster().await?;
        let request =
            pdpb::GetRegionRequest { header: self.header(), region_key: key.to_vec().into(), ..Default::default() };
        let answer = self.pd.get_region(call(ATTEMPT), &request).await?;
        let (Some(region), Some(leader)) = (answer.region.clone(), answer.leader) else {
            let region = answer.region.map_or(0, |region| region.id);
            return Err(Status::unavailable(format!("no leader of region {region} yet")));
        };
        let cached = CachedRegion { region, leader };
        self.remember(cached.clone());
        Ok(cached)
    }

    fn remember(&self, cached: CachedRegion) {
        self.regions.borrow_mut().insert(cached.region.start_key.to_vec(), cached);
    }

    fn forget(&self, key: &[u8]) {
        let mut regions = self.regions.borrow_mut();
        let start = regions.range(..=key.to_vec()).next_back().map(|(start, _)| start.clone());
        if let Some(start) = start {
            regions.remove(&start);
        }
    }

    async fn store(&self, id: u64) -> Result<tikvpb::TikvClient<net::Channel>, Status> {
        if let Some((_, client)) = self.stores.borrow().get(&id) {
            return Ok(tikvpb::TikvClient::new(client.channel().clone()));
        }
        let request = pdpb::GetStoreRequest { header: self.header(), store_id: id };
        let answer = self.pd.get_store(call(ATTEMPT), &request).await?;
        let address = answer.store.map(|store| store.address).unwrap_or_default();
        let channel = channel(&address);
        self.stores.borrow_mut().insert(id, (address, tikvpb::TikvClient::new(channel.clone())));
        Ok(tikvpb::TikvClient::new(channel))
    }

    /// Takes what a region error teaches; true if the request may still have been done.
    fn learn(&self, key: &[u8], place: &CachedRegion, error: &errorpb::Error) -> bool {
        self.forget(key);
        if let Some(mismatch) = &error.epoch_not_match {
            for region in &mismatch.current_regions {
                let leader = region.peers.iter().find(|peer| peer.store_id == place.leader.store_id);
                if let Some(leader) = leader {
                    self.remember(CachedRegion { region: region.clone(), leader: *leader });
                }
            }
        }
        if error.store_not_match.is_some() {
            self.stores.borrow_mut().clear();
        }
        error.stale_command.is_some()
    }

    /// Tries until it is done or the budget ends.
    async fn attempt<T, F>(
        &self,
        key: &[u8],
        send: impl Fn(tikvpb::TikvClient<net::Channel>, kvrpcpb::Context, metapb::Region) -> F,
    ) -> Fate<T>
    where
        F: Future<Output = Result<(Option<errorpb::Error>, T), Status>>,
    {
        self.attempt_at(key, None, LIMIT, send).await
    }

    /// As [`attempt`](Self::attempt), at the leader or, with a `replica`, at the peer of that number modulo their count,
    /// and the next one at each further attempt; until `limit` is over, once if that is zero.
    async fn attempt_at<T, F>(
        &self,
        key: &[u8],
        replica: Option<u64>,
        limit: Duration,
        send: impl Fn(tikvpb::TikvClient<net::Channel>, kvrpcpb::Context, metapb::Region) -> F,
    ) -> Fate<T>
    where
        F: Future<Output = Result<(Option<errorpb::Error>, T), Status>>,
    {
        let started = executor::now();
        let mut maybe = None;
        let mut pause = Duration::from_millis(2);
        let mut attempts = 0;
        loop {
            let located = self.locate(key).await.map(|place| {
                let peers = &place.region.peers;
                let at = replica.map(|replica| replica.wrapping_add(attempts) % peers.len() as u64);
                let peer = at.map_or(place.leader, |at| peers[at as usize]);
                (place, peer)
            });
            attempts += 1;
            let last = match located {
                Err(status) => status.message,
                Ok((place, peer)) => match self.store(peer.store_id).await {
                    Err(status) => status.message,
                    Ok(client) => {
                        let context = kvrpcpb::Context {
                            region_id: place.region.id,
                            region_epoch: place.region.region_epoch,
                            peer: Some(peer),
                            replica_read: replica.is_some(),
                            ..Default::default()
                        };
                        match send(client, context, place.region.clone()).await {
                            Ok((None, answer)) => return Fate::Done(answer),
                            Ok((Some(error), _)) => {
                                if self.learn(key, &place, &error) {
                                    maybe = Some(error.message.clone());
                                }
                                error.message
                            }
                            Err(status) => {
                                self.forget(key);
                                self.stores.borrow_mut().clear();
                                maybe = Some(status.message.clone());
                                status.message
                            }
                        }
                    }
                },
            };
            self.retries.set(self.retries.get() + 1);
            if executor::now().since(started) >= limit {
                return match maybe {
                    Some(why) => Fate::Unknown(why),
                    None => Fate::Refused(last),
                };
            }
            executor::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(200));
        }
    }

    /// Sets `key`, or removes it if there is no value, in one attempt; not in the middle of a compare-and-swap. It asks
    /// the region's peer with this number instead of its leader if there is one.
    pub async fn write_once(&self, key: &Bytes, value: Option<&Bytes>, peer: Option<usize>) -> Fate<()> {
        let limit = self.patience.get();
        self.attempt_at(key, None, Duration::ZERO, |client, mut context, region| {
            let (key, value) = (key.clone(), value.cloned());
            async move {
                let client = self.ask(client, &mut context, &region, peer).await?;
                let context = Some(context);
                let region_error = match value {
                    Some(value) => {
                        let request =
                            kvrpcpb::RawPutRequest { context, key, value, for_cas: true, ..Default::default() };
                        client.raw_put(call(limit), &request).await?.region_error
                    }
                    None => {
                        let request = kvrpcpb::RawDeleteRequest { context, key, for_cas: true, ..Default::default() };
                        client.raw_delete(call(limit), &request).await?.region_error
                    }
                };
                Ok((region_error, ()))
            }
        })
        .await
    }

    /// The client of the region's peer with this number, to whom `context` is then addressed, or the leader's.
    async fn ask(
        &self,
        leader: tikvpb::TikvClient<net::Channel>,
        context: &mut kvrpcpb::Context,
        region: &metapb::Region,
        peer: Option<usize>,
    ) -> Result<tikvpb::TikvClient<net::Channel>, Status> {
        let Some(peer) = peer.map(|peer| region.peers[peer % region.peers.len()]) else { return Ok(leader) };
        context.peer = Some(peer);
        self.store(peer.store_id).await
    }

    /// Reads `key` in one attempt, from the region's peer with this number instead of its leader if there is one: a peer
    /// that takes itself for the leader answers, with `is_replica` any other one as well.
    pub async fn read_once(&self, key: &Bytes, peer: Option<usize>, is_replica: bool) -> Fate<Option<Bytes>> {
        self.attempt_at(key, None, Duration::ZERO, |client, mut context, region| async move {
            let client = self.ask(client, &mut context, &region, peer).await?;
            context.replica_read = is_replica;
            let request = kvrpcpb::RawGetRequest { context: Some(context), key: key.clone(), ..Default::default() };
            let answer = client.raw_get(call(self.patience.get()), &request).await?;
            Ok((answer.region_error, (!answer.not_found).then_some(answer.value)))
        })
        .await
    }

    /// Sets `key`. A write of which an earlier attempt is in doubt is reported as done once a later one is.
    pub async fn put(&self, key: &Bytes, value: &Bytes) -> Fate<()> {
        self.attempt(key, |client, context, _| {
            let request = kvrpcpb::RawPutRequest {
                context: Some(context),
                key: key.clone(),
                value: value.clone(),
                ..Default::default()
            };
            async move {
                let answer = client.raw_put(call(ATTEMPT), &request).await?;
                assert_eq!(answer.error, "", "a valid put has no error of its own");
                Ok((answer.region_error, ()))
            }
        })
        .await
    }

    /// Removes `key`.
    pub async fn delete(&self, key: &Bytes) -> Fate<()> {
        self.attempt(key, |client, context, _| {
            let request = kvrpcpb::RawDeleteRequest { context: Some(context), key: key.clone(), ..Default::default() };
            async move {
                let answer = client.raw_delete(call(ATTEMPT), &request).await?;
                assert_eq!(answer.error, "", "a valid delete has no error of its own");
                Ok((answer.region_error, ()))
            }
        })
        .await
    }

    /// Reads `key`, at the leader of its region or at any of its peers.
    pub async fn get(&self, key: &Bytes, replica: Option<u64>) -> Fate<Option<Bytes>> {
        self.attempt_at(key, replica, LIMIT, |client, context, _| {
            let request = kvrpcpb::RawGetRequest { context: Some(context), key: key.clone(), ..Default::default() };
            async move {
                let answer = client.raw_get(call(ATTEMPT), &request).await?;
                assert_eq!(answer.error, "", "a valid get has no error of its own");
                Ok((answer.region_error, (!answer.not_found).then_some(answer.value)))
            }
        })
        .await
    }

    /// Sets `key` to `value` if it is `expected`; answers whether it was, and what was found. One attempt only: a
    /// second one could not tell its own first from somebody else's.
    pub async fn swap(&self, key: &Bytes, expected: Option<Bytes>, value: &Bytes) -> Fate<(bool, Option<Bytes>)> {
        let place = match self.locate(key).await {
            Ok(place) => place,
            Err(status) => return Fate::Refused(status.message),
        };
        let client = match self.store(place.leader.store_id).await {
            Ok(client) => client,
            Err(status) => return Fate::Refused(status.message),
        };
        let request = kvrpcpb::RawCasRequest {
            context: Some(kvrpcpb::Context {
                region_id: place.region.id,
                region_epoch: place.region.region_epoch,
                peer: Some(place.leader),
                ..Default::default()
            }),
            key: key.clone(),
            value: value.clone(),
            previous_not_exist: expected.is_none(),
            previous_value: expected.unwrap_or_default(),
            ..Default::default()
        };
        match client.raw_compare_and_swap(call(self.patience.get()), &request).await {
            Err(status) => {
                self.forget(key);
                self.stores.borrow_mut().clear();
                Fate::Unknown(status.message)
            }
            Ok(answer) => match answer.region_error {
                Some(error) if self.learn(key, &place, &error) => Fate::Unknown(error.message),
                Some(error) => Fate::Refused(error.message),
                None => Fate::Done((answer.succeed, (!answer.previous_not_exist).then_some(answer.previous_value))),
            },
        }
    }

    /// All pairs from `start` on, over all regions.
    pub async fn scan_all(&self, start: &Bytes) -> Fate<Vec<(Bytes, Bytes)>> {
        self.scan(start, &Bytes::new()).await
    }

    /// All pairs from `start` to below `end`; no end if that is empty.
    pub async fn scan(&self, start: &Bytes, end: &Bytes) -> Fate<Vec<(Bytes, Bytes)>> {
        const LIMIT: usize = 1000;
        let mut at = start.clone();
        let mut pairs = Vec::new();
        loop {
            let found = self
                .attempt(&at.clone(), |client, context, region| {
                    let upper = lower_end(&region.end_key, end);
                    let request = kvrpcpb::RawScanRequest {
                        context: Some(context),
                        start_key: at.clone(),
                        end_key: upper.clone(),
                        limit: LIMIT as u32,
                        ..Default::default()
                    };
                    async move {
                        let answer = client.raw_scan(call(ATTEMPT), &request).await?;
                        Ok((answer.region_error, (answer.kvs, upper)))
                    }
                })
                .await;
            let (found, upper) = match found {
                Fate::Done(found) => found,
                Fate::Refused(why) => return Fate::Refused(why),
                Fate::Unknown(why) => return Fate::Unknown(why),
            };
            let full = found.len() == LIMIT;
            pairs.extend(found.into_iter().map(|pair| (pair.key, pair.value)));
            if full {
                let mut after = pairs.last().map(|(key, _)| key.to_vec()).unwrap_or_default();
                after.push(0);
                at = after.into();
            } else if upper == *end {
                return Fate::Done(pairs);
            } else {
                at = upper;
            }
        }
    }

    /// Removes what is from `start` to below `end`, region by region. Unknown if only a part was surely done.
    pub async fn delete_range(&self, start: &Bytes, end: &Bytes) -> Fate<()> {
        let mut at = start.clone();
        while at < *end {
            let done = self
                .attempt(&at.clone(), |client, context, region| {
                    let upper = lower_end(&region.end_key, end);
                    let request = kvrpcpb::RawDeleteRangeRequest {
                        context: Some(context),
                        start_key: at.clone(),
                        end_key: upper.clone(),
                        ..Default::default()
                    };
                    async move {
                        let answer = client.raw_delete_range(call(ATTEMPT), &request).await?;
                        assert_eq!(answer.error, "", "a valid range has no error of its own");
                        Ok((answer.region_error, upper))
                    }
                })
                .await;
            match done {
                Fate::Done(upper) => at = upper,
                Fate::Refused(why) if at == *start => return Fate::Refused(why),
                Fate::Refused(why) | Fate::Unknown(why) => return Fate::Unknown(why),
            }
        }
        Fate::Done(())
    }

    /// A timestamp of the placement driver: milliseconds since the epoch, shifted by 18 bits, and a counter.
    ///
    /// # Errors
    /// What it said, or that it said nothing.
    pub async fn timestamp(&self) -> Result<u64, Status> {
        self.learn_cluster().await?;
        let (requests, mut answers) = self.pd.tso(call(ATTEMPT)).await?;
        requests.send(&pdpb::TsoRequest { header: self.header(), count: 1, ..Default::default() }).await?;
        let answer = answers.next().await?.and_then(|answer| answer.timestamp);
        let timestamp = answer.ok_or_else(|| Status::unavailable("no timestamp"))?;
        Ok((timestamp.physical as u64) << 18 | timestamp.logical as u64)
    }
}

/// The lower one of two ends of ranges, of which an empty one is no end.
fn lower_end(a: &Bytes, b: &Bytes) -> Bytes {
    match (a.is_empty(), b.is_empty()) {
        (true, _) => b.clone(),
        (_, true) => a.clone(),
        _ => a.min(b).clone(),
    }
}

fn contains(region: &metapb::Region, key: &[u8]) -> bool {
    base::keys::contains(&region.start_key, &region.end_key, key)
}
