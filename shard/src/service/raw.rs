//! The raw commands at the core of their region: decode, check, read or write, encode.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use base::{Instant, RegionId};
use bytes::Bytes;
use executor::Class;
use mvcc::raw::{Checksum, RawMode, RawRange, RawReader, RawValue, ScanOptions, ScanState, Step, batch_ranges};
use mvcc::{Cf, Modify, ReadError};
use proto::kvrpcpb::{self as kv, Context};
use proto::shallow::tag;

use super::errors::region_error;
use super::ledger::Ledger;
use super::room::{ANSWER_BYTES_MAX, Share};
use super::walk::Walk;
use super::{TikvService, command};
use crate::core::{
    Answered, ApiMode, PlantedFault, RegionError, RegionRead, Shard, SplitError, check_store, cuts_inside, split_at,
};
use crate::engine::{Engine, RegionView, Tier};

/// Longest key, as the client sends it (`storage.max-key-size` of TiKV).
const KEY_BYTES_MAX: usize = 8 << 10;

/// How long a request waits for a merge of its region to be over. Most take some milliseconds, and a client that is refused
/// pauses for longer, or gives up: stock Rust clients do so after ten refusals.
const MERGE_WAIT: Duration = Duration::from_millis(800);

/// Entries that a scan looks at before it lets others run.
const SCAN_SLICE: usize = 256;

/// Bytes that a scan takes on a helper before it asks its core for more room.
const BYTES_PER_TRIP: u64 = 1 << 20;

/// Keys of a batch that are read at once.
const KEYS_AT_ONCE: usize = 32;

/// Slices after which a scan leaves the core: it is long, and helpers are there for that.
const SLICES_ON_CORE: usize = 16;

/// Why a command did not do what it was asked.
pub(super) enum Refusal {
    /// The region.
    Region(RegionError),
    /// The request itself; the text for its `error` field.
    Request(String),
    /// A key, for a transaction.
    Key(Box<kv::KeyError>),
}

impl From<RegionError> for Refusal {
    fn from(error: RegionError) -> Self {
        Refusal::Region(error)
    }
}

impl From<ReadError> for Refusal {
    fn from(error: ReadError) -> Self {
        Refusal::Request(error.to_string())
    }
}

/// An answer that can say no.
pub(super) trait Refuse: Default + prost::Message {
    /// An answer with only a region error.
    fn region(error: proto::errorpb::Error) -> Self;
    /// An answer with only an error text.
    fn request(error: String) -> Self;
    /// An answer with only a key error, which no raw command meets.
    fn key(error: kv::KeyError) -> Self {
        Self::request(format!("{error:?}"))
    }
}

macro_rules! refuse {
    ($($answer:ty: $text:expr;)+) => {$(
        impl Refuse for $answer {
            fn region(error: proto::errorpb::Error) -> Self {
                Self { region_error: Some(error), ..Default::default() }
            }
            fn request(error: String) -> Self {
                let fill: fn(&mut Self, String) = $text;
                let mut answer = Self::default();
                fill(&mut answer, error);
                answer
            }
        }
    )+};
}

refuse! {
    kv::RawGetResponse: |answer, error| answer.error = error;
    kv::RawBatchGetResponse: |answer, error| answer.pairs = vec![abort(error)];
    kv::RawPutResponse: |answer, error| answer.error = error;
    kv::RawBatchPutResponse: |answer, error| answer.error = error;
    kv::RawDeleteResponse: |answer, error| answer.error = error;
    kv::RawBatchDeleteResponse: |answer, error| answer.error = error;
    kv::RawScanResponse: |answer, error| answer.kvs = vec![abort(error)];
    kv::RawBatchScanResponse: |answer, error| answer.kvs = vec![abort(error)];
    kv::RawDeleteRangeResponse: |answer, error| answer.error = error;
    kv::RawGetKeyTtlResponse: |answer, error| answer.error = error;
    kv::RawCasResponse: |answer, error| answer.error = error;
    kv::RawChecksumResponse: |answer, error| answer.error = error;
    kv::RawCoprocessorResponse: |answer, error| answer.error = error;
    kv::SplitRegionResponse: |answer, error| answer.region_error = Some(message(error));
    kv::ReadIndexResponse: |answer, error| answer.region_error = Some(message(error));
}

fn abort(error: String) -> kv::KvPair {
    kv::KvPair { error: Some(kv::KeyError { abort: error, ..Default::default() }), ..Default::default() }
}

fn message(text: String) -> proto::errorpb::Error {
    proto::errorpb::Error { message: text, ..Default::default() }
}

pub(super) type Outcome<T> = Result<T, Refusal>;

/// One request at the core of its region.
pub(super) struct Request<E: Engine> {
    pub(super) service: Rc<TikvService<E>>,
    pub(super) deadline: Option<Instant>,
    pub(super) ledger: Ledger,
    /// What the answer takes while it is made.
    share: Share,
}

/// Serves one encoded request on this core.
pub(super) async fn execute<E: Engine>(mut request: Request<E>, number: u32, body: Bytes) -> Answered {
    use command as own;
    let request = &mut request;
    match number {
        tag::RAW_GET => request.serve(number, body, async |r, m: kv::RawGetRequest| r.get(m).await).await,
        tag::RAW_BATCH_GET => request.serve(number, body, async |r, m| r.batch_get(m).await).await,
        tag::RAW_PUT => request.serve(number, body, async |r, m| r.put(m).await).await,
        tag::RAW_BATCH_PUT => request.serve(number, body, async |r, m| r.batch_put(m).await).await,
        tag::RAW_DELETE => request.serve(number, body, async |r, m| r.delete(m).await).await,
        tag::RAW_BATCH_DELETE => request.serve(number, body, async |r, m| r.batch_delete(m).await).await,
        tag::RAW_SCAN => request.serve(number, body, async |r, m| r.scan(m).await).await,
        tag::RAW_BATCH_SCAN => request.serve(number, body, async |r, m| r.batch_scan(m).await).await,
        tag::RAW_DELETE_RANGE => request.serve(number, body, async |r, m| r.delete_range(m).await).await,
        tag::RAW_COPROCESSOR => request.serve(number, body, async |r, m| r.coprocessor(m).await).await,
        own::RAW_GET_KEY_TTL => request.serve(number, body, async |r, m| r.ttl(m).await).await,
        own::RAW_COMPARE_AND_SWAP => request.serve(number, body, async |r, m| r.compare_and_swap(m).await).await,
        own::RAW_CHECKSUM => request.serve(number, body, async |r, m| r.checksum(m).await).await,
        own::SPLIT_REGION => request.serve(number, body, async |r, m| r.split_region(m).await).await,
        own::READ_INDEX => request.serve(number, body, async |r, m| r.read_index(m).await).await,
        other => Answered::Malformed(format!("command {other} is not served")),
    }
}

impl<E: Engine> Request<E> {
    pub(super) fn new(service: Rc<TikvService<E>>, deadline: Option<Instant>, ledger: Ledger) -> Request<E> {
        Request { service, deadline, ledger, share: Share::default() }
    }

    pub(super) async fn serve<M, A>(
        &mut self,
        number: u32,
        body: Bytes,
        handler: impl AsyncFnOnce(&mut Request<E>, M) -> Outcome<A>,
    ) -> Answered
    where
        M: prost::Message + Default,
        A: Refuse,
    {
        let message = match M::decode(body) {
            Ok(message) => message,
            Err(error) => return Answered::Malformed(error.to_string()),
        };
        self.ledger.started = executor::now();
        let answer = match handler(self, message).await {
            Ok(answer) => answer,
            Err(Refusal::Region(RegionError::Moving(region))) => return Answered::Moving(region),
            Err(Refusal::Region(RegionError::Merging(region)))
                if executor::now().since(self.ledger.arrived) < MERGE_WAIT =>
            {
                return Answered::Moving(region);
            }
            // It has left for another core since it was looked up here; nothing was proposed.
            Err(Refusal::Region(RegionError::RegionNotFound(region)))
                if self.service.host.route(region) != self.service.host.core =>
            {
                return Answered::Moving(region);
            }
            Err(Refusal::Region(error)) => {
                super::ledger::count(&self.service.metrics.region_errors);
                A::region(region_error(error))
            }
            Err(Refusal::Request(error)) => A::request(error),
            Err(Refusal::Key(error)) => A::key(*error),
        };
        self.service.metrics.done(number, &self.ledger, executor::now());
        Answered::Bytes(self.service.room.answer(answer.encode_to_vec()))
    }

    pub(super) fn shard(&self, context: &Context) -> Result<Rc<Shard<E>>, RegionError> {
        let longest = context.max_execution_duration_ms;
        let now = executor::now();
        let own = (longest > 0).then(|| self.ledger.arrived + Duration::from_millis(longest));
        if [self.deadline, own].into_iter().flatten().any(|deadline| now >= deadline) {
            return Err(RegionError::DeadlineExceeded);
        }
        // Before the look-up: a region that this store never had is of no interest to a client that means another.
        check_store(self.service.host.node.store, context)?;
        self.service.host.local(RegionId(context.region_id))
    }

    fn mode(&self) -> RawMode {
        match self.service.host.node.api {
            ApiMode::V1 => RawMode::V1,
            ApiMode::V1Ttl => RawMode::V1Ttl,
            ApiMode::V2 => RawMode::V2,
        }
    }

    /// The checks of `compat/4-store.md` 4.2: API version, family, and the mode byte of every key.
    fn reader<'a>(&self, context: &Context, cf: &str, keys: impl IntoIterator<Item = &'a Bytes>) -> Outcome<RawReader> {
        let mode = self.mode();
        self.check_api(context)?;
        let cf = match (mode, cf) {
            (RawMode::V2, "") => Cf::Default,
            (RawMode::V2, other) => {
                return Err(Refusal::Request(format!("cf is deprecated in API V2, cf name: {other}")));
            }
            (_, name) => match Cf::from_name(name) {
                Some(Cf::Raft) | None => return Err(Refusal::Request(format!("invalid cf name: {name}"))),
                Some(cf) => cf,
            },
        };
        for key in keys {
            if mode == RawMode::V2 && key.first() != Some(&b'r') {
                let (storage, key) = (self.storage_version(), crate::core::hex(key));
                return Err(Refusal::Request(format!(
                    "invalid key mode, command: raw, storage_api_version: {storage}, key: {key}"
                )));
            }
            if key.len() > KEY_BYTES_MAX {
                return Err(Refusal::Request(format!(
                    "max key size exceeded, size: {}, limit: {KEY_BYTES_MAX}",
                    key.len()
                )));
            }
        }
        Ok(RawReader { mode, cf, now: executor::unix_time().seconds() })
    }

    pub(super) fn storage_version(&self) -> &'static str {
        match self.service.host.node.api {
            ApiMode::V1 => "V1",
            ApiMode::V1Ttl => "V1ttl",
            ApiMode::V2 => "V2",
        }
    }

    fn check_api(&self, context: &Context) -> Outcome<()> {
        let expected = match self.service.host.node.api {
            ApiMode::V1 | ApiMode::V1Ttl => kv::ApiVersion::V1,
            ApiMode::V2 => kv::ApiVersion::V2,
        };
        if context.api_version == expected as i32 {
            return Ok(());
        }
        let asked = kv::ApiVersion::try_from(context.api_version).map_or("unknown", |version| version.as_str_name());
        let storage = self.storage_version();
        Err(Refusal::Request(format!(
            "api version does not match, command: raw, storage_api_version: {storage}, req_api_version: {asked}"
        )))
    }

    /// A range of API V2 must lie within the raw keys of one keyspace byte.
    fn check_range(&self, start: &[u8], end: &[u8]) -> Outcome<()> {
        let raw = |key: &[u8]| key.first() == Some(&b'r');
        if self.mode() != RawMode::V2 || (raw(start) && (raw(end) || end == b"s")) {
            return Ok(());
        }
        Err(Refusal::Request(format!(
            "invalid key range mode, command: raw, storage_api_version: V2, range: ({}, {})",
            crate::core::hex(start),
            crate::core::hex(end)
        )))
    }

    /// A client's keys as the region's bounds know them.
    fn check_keys<'a>(&self, read: &RegionRead<E>, keys: impl IntoIterator<Item = &'a Bytes>) -> Outcome<()> {
        let mode = self.mode();
        for key in keys {
            let (start, end) = (&read.region.start_key, &read.region.end_key);
            let inside = match mode {
                RawMode::V2 => base::keys::contains(start, end, &mode.prefix(key)),
                _ => base::keys::contains(start, end, key),
            };
            if !inside {
                let (key, region) = (key.to_vec(), Box::new((*read.region).clone()));
                return Err(RegionError::KeyNotInRegion { key, region }.into());
            }
        }
        Ok(())
    }

    /// A view for a read, which any peer may serve if the client says so.
    async fn view(&mut self, context: &Context) -> Result<(Rc<Shard<E>>, RegionRead<E>), RegionError> {
        if !context.replica_read && !context.stale_read {
            return self.view_of_leader(context).await;
        }
        let shard = self.shard(context)?;
        let read = shard.read_at_any_peer(context).await?;
        self.ledger.snapshot = executor::now();
        Ok((shard, read))
    }

    /// A view for what only a leader does.
    pub(super) async fn view_of_leader(
        &mut self,
        context: &Context,
    ) -> Result<(Rc<Shard<E>>, RegionRead<E>), RegionError> {
        let shard = self.shard(context)?;
        shard.lease(RegionId(context.region_id)).await?;
        let read = shard.read(context)?;
        self.ledger.snapshot = executor::now();
        Ok((shard, read))
    }

    /// Reads on the core, from memory; if that does not suffice, once more on a helper, on the same snapshot. What is
    /// found without there being room for it (`bytes` tells its size) is given up and read again later.
    pub(super) async fn look<T: Send + 'static>(
        &mut self,
        read: &RegionRead<E>,
        bytes: fn(&T) -> usize,
        work: impl Fn(&RegionView<E::Snapshot>) -> Result<T, ReadError> + Send + Sync + 'static,
    ) -> Outcome<T> {
        let view = region_view::<E>(read, Tier::Cache);
        // What it will take, if that is known and there was no room for it.
        let mut wanted = 0;
        match work(&view) {
            Err(ReadError::NotCached) => self.missed(),
            Ok(found) if !self.service.room.has_room(bytes(&found)) => wanted = bytes(&found),
            other => return Ok(other?),
        }
        let (work, view) = (Arc::new(work), view.at(Tier::Disk));
        loop {
            if wanted > 0 {
                self.room().await?;
                // Counted ahead: when there is room again, many wake at once.
                self.service.room.count(&mut self.share, wanted as u64);
            }
            let (again, view) = (work.clone(), view.clone());
            let found = executor::blocking(Class::Foreground, move || again(&view)).await?;
            // The snapshot is the same, and so is what is found: the second time it is counted.
            if wanted > 0 || self.service.room.has_room(bytes(&found)) {
                return Ok(found);
            }
            wanted = bytes(&found);
        }
    }

    fn missed(&mut self) {
        self.ledger.cache_misses += 1;
        super::ledger::count(&self.service.metrics.cache_misses);
    }

    fn found(&mut self, shard: &Shard<E>, read: &RegionRead<E>, keys: u64, bytes: u64) {
        self.ledger.keys += keys;
        self.ledger.bytes += bytes;
        shard.note_read(RegionId(read.region.id), keys, bytes);
    }

    async fn get(&mut self, message: kv::RawGetRequest) -> Outcome<kv::RawGetResponse> {
        let context = message.context.unwrap_or_default();
        let reader = self.reader(&context, &message.cf, [&message.key])?;
        let (shard, read) = self.view(&context).await?;
        self.check_keys(&read, [&message.key])?;
        let key = message.key;
        let found = self.look(&read, value_bytes, move |view| mvcc::raw::get(view, reader, &key)).await?;
        Ok(match found {
            Some(value) => {
                self.found(&shard, &read, 1, value.value.len() as u64);
                kv::RawGetResponse { value: value.value, ..Default::default() }
            }
            None => kv::RawGetResponse { not_found: true, ..Default::default() },
        })
    }

    async fn batch_get(&mut self, message: kv::RawBatchGetRequest) -> Outcome<kv::RawBatchGetResponse> {
        let context = message.context.unwrap_or_default();
        let reader = self.reader(&context, &message.cf, &message.keys)?;
        let (shard, read) = self.view(&context).await?;
        self.check_keys(&read, &message.keys)?;
        let keys = message.keys;
        let found = self.look(&read, pairs_bytes, move |view| get_many(view, reader, &keys)).await?;
        let mut pairs = Vec::with_capacity(found.len());
        for (key, value) in found {
            self.found(&shard, &read, 1, (key.len() + value.value.len()) as u64);
            pairs.push(kv::KvPair { key, value: value.value, ..Default::default() });
        }
        Ok(kv::RawBatchGetResponse { pairs, ..Default::default() })
    }

    async fn ttl(&mut self, message: kv::RawGetKeyTtlRequest) -> Outcome<kv::RawGetKeyTtlResponse> {
        let context = message.context.unwrap_or_default();
        let reader = self.reader(&context, &message.cf, [&message.key])?;
        if !reader.mode.has_ttl() {
            return Err(Refusal::Request("ttl is not enabled, but get ttl request".into()));
        }
        let (_, read) = self.view(&context).await?;
        self.check_keys(&read, [&message.key])?;
        let key = message.key;
        let found = self.look(&read, |_| 0, move |view| mvcc::raw::get(view, reader, &key)).await?;
        Ok(match found {
            Some(value) => {
                let ttl = value.expires.saturating_sub(reader.now);
                kv::RawGetKeyTtlResponse { ttl, ..Default::default() }
            }
            None => kv::RawGetKeyTtlResponse { not_found: true, ..Default::default() },
        })
    }

    /// Walks over a range in slices: on the core while it is short and in memory, else on a helper.
    ///
    /// `before` are the bytes of the answer that were gathered by earlier scans of the same request.
    pub(super) async fn walk<W: Walk>(&mut self, read: &RegionRead<E>, mut scan: W, before: u64) -> Outcome<W> {
        // Whoever must wait does so with empty hands.
        self.room().await?;
        let view = region_view::<E>(read, Tier::Cache);
        for _ in 0..SLICES_ON_CORE {
            match scan.step(&view, SCAN_SLICE) {
                Ok(Step::Done) => {
                    self.hold(before + scan.bytes())?;
                    self.ledger.stepped += scan.stepped();
                    return Ok(scan);
                }
                Ok(Step::More) => {
                    self.hold(before + scan.bytes())?;
                    self.room().await?;
                    executor::yield_now().await;
                }
                Err(ReadError::NotCached) => {
                    self.missed();
                    break;
                }
                Err(error) => return Err(error.into()),
            }
        }
        let view = view.at(Tier::Disk).fill_cache(false);
        loop {
            self.room().await?;
            // Counted ahead: many may stand in line for the helpers.
            self.hold(before + scan.bytes() + BYTES_PER_TRIP)?;
            let view = view.clone();
            let work = move || {
                let enough = scan.bytes() + BYTES_PER_TRIP;
                loop {
                    let step = scan.step(&view, SCAN_SLICE)?;
                    if step == Step::Done || scan.bytes() >= enough {
                        return Ok::<_, ReadError>((scan, step));
                    }
                }
            };
            let step;
            (scan, step) = executor::blocking(Class::Scan, work).await?;
            if step == Step::Done {
                self.ledger.stepped += scan.stepped();
                return Ok(scan);
            }
        }
    }

    /// Waits until there is room for more of the answer.
    async fn room(&mut self) -> Outcome<()> {
        Ok(self.service.room.wait(&mut self.share).await?)
    }

    /// Counts what the answer takes so far.
    fn hold(&mut self, bytes: u64) -> Outcome<()> {
        if bytes > ANSWER_BYTES_MAX {
            return Err(Refusal::Request(format!("the answer is larger than {} MiB", ANSWER_BYTES_MAX >> 20)));
        }
        self.service.room.count(&mut self.share, bytes);
        Ok(())
    }

    async fn scan(&mut self, message: kv::RawScanRequest) -> Outcome<kv::RawScanResponse> {
        let context = message.context.unwrap_or_default();
        let reader = self.reader(&context, &message.cf, [])?;
        let range = if message.reverse {
            RawRange { start: message.end_key, end: message.start_key }
        } else {
            RawRange { start: message.start_key, end: message.end_key }
        };
        self.check_range(&range.start, &range.end)?;
        let options =
            ScanOptions { reverse: message.reverse, key_only: message.key_only, limit: message.limit as usize };
        let (shard, read) = self.view(&context).await?;
        let scan = ScanState::new(reader, options, &range, &read.region.start_key, &read.region.end_key);
        let pairs = self.walk(&read, scan, 0).await?.into_pairs();
        Ok(kv::RawScanResponse { kvs: self.pairs(&shard, &read, pairs), ..Default::default() })
    }

    fn pairs(&mut self, shard: &Shard<E>, read: &RegionRead<E>, pairs: Vec<(Bytes, RawValue)>) -> Vec<kv::KvPair> {
        let bytes = pairs.iter().map(|(key, value)| (key.len() + value.value.len()) as u64).sum();
        self.found(shard, read, pairs.len() as u64, bytes);
        pairs.into_iter().map(|(key, value)| kv::KvPair { key, value: value.value, ..Default::default() }).collect()
    }

    async fn batch_scan(&mut self, message: kv::RawBatchScanRequest) -> Outcome<kv::RawBatchScanResponse> {
        let context = message.context.unwrap_or_default();
        let reader = self.reader(&context, &message.cf, [])?;
        let asked: Vec<(Bytes, Bytes)> =
            message.ranges.into_iter().map(|range| (range.start_key, range.end_key)).collect();
        let ranges = batch_ranges(&asked, message.reverse).map_err(Refusal::Request)?;
        for range in &ranges {
            self.check_range(&range.start, &range.end)?;
        }
        let options =
            ScanOptions { reverse: message.reverse, key_only: message.key_only, limit: message.each_limit as usize };
        let (shard, read) = self.view(&context).await?;
        let mut kvs = Vec::new();
        let mut bytes = 0;
        for range in &ranges {
            let scan = ScanState::new(reader, options, range, &read.region.start_key, &read.region.end_key);
            let scan = self.walk(&read, scan, bytes).await?;
            bytes += scan.bytes();
            let pairs = scan.into_pairs();
            kvs.extend(self.pairs(&shard, &read, pairs));
        }
        Ok(kv::RawBatchScanResponse { kvs, ..Default::default() })
    }

    async fn checksum(&mut self, message: kv::RawChecksumRequest) -> Outcome<kv::RawChecksumResponse> {
        let context = message.context.unwrap_or_default();
        let reader = self.reader(&context, "", [])?;
        if message.algorithm != kv::ChecksumAlgorithm::Crc64Xor as i32 {
            return Err(Refusal::Request(format!("unknown checksum algorithm {}", message.algorithm)));
        }
        let (_, read) = self.view(&context).await?;
        let mut sum = Checksum::default();
        for range in message.ranges {
            self.check_range(&range.start_key, &range.end_key)?;
            let range = RawRange { start: range.start_key, end: range.end_key };
            let options = ScanOptions { reverse: false, key_only: false, limit: usize::MAX };
            let mut scan = ScanState::new(reader, options, &range, &read.region.start_key, &read.region.end_key);
            let view = region_view::<E>(&read, Tier::Disk).fill_cache(false);
            let work = move || {
                let mut sum = Checksum::default();
                loop {
                    let step = scan.step(&view, SCAN_SLICE)?;
                    for (key, value) in scan.drain_pairs() {
                        sum.add(&key, &value.value);
                    }
                    if step == Step::Done {
                        return Ok::<_, ReadError>(sum);
                    }
                }
            };
            let part = executor::blocking(Class::Scan, work).await?;
            sum.checksum ^= part.checksum;
            sum.pairs += part.pairs;
            sum.bytes += part.bytes;
        }
        let Checksum { checksum, pairs, bytes } = sum;
        Ok(kv::RawChecksumResponse { checksum, total_kvs: pairs, total_bytes: bytes, ..Default::default() })
    }

    /// Seconds from now on as the time of expiry.
    fn expires(&self, reader: RawReader, ttl: u64) -> Outcome<u64> {
        match ttl {
            0 => Ok(0),
            _ if !reader.mode.has_ttl() => {
                Err(Refusal::Request("ttl is not enabled, but get put request with ttl".into()))
            }
            ttl => Ok(reader.now.saturating_add(ttl)),
        }
    }

    async fn timestamp(&self, reader: RawReader) -> Outcome<u64> {
        match reader.mode {
            RawMode::V2 => Ok(self.service.clock.next(&self.service.host).await?),
            _ => Ok(0),
        }
    }

    async fn write(&mut self, context: &Context, changes: Vec<Modify>) -> Outcome<()> {
        self.write_in(None, context, changes).await
    }

    /// Writes if the region is led as it was in `term`.
    async fn write_in(&mut self, term: Option<u64>, context: &Context, changes: Vec<Modify>) -> Outcome<()> {
        let shard = self.shard(context)?;
        let done = shard.write_in(term, context, changes, false, self.deadline).await?;
        self.ledger.wrote(&done);
        Ok(())
    }

    async fn put(&mut self, message: kv::RawPutRequest) -> Outcome<kv::RawPutResponse> {
        let context = message.context.unwrap_or_default();
        let reader = self.reader(&context, &message.cf, [&message.key])?;
        let expires = self.expires(reader, message.ttl)?;
        let keys = vec![message.key.clone()];
        let change = move |ts| vec![put_change(reader, &message.key, &message.value, expires, ts)];
        self.write_changes(context, reader, keys, message.for_cas, change).await?;
        Ok(kv::RawPutResponse::default())
    }

    async fn batch_put(&mut self, message: kv::RawBatchPutRequest) -> Outcome<kv::RawBatchPutResponse> {
        let context = message.context.unwrap_or_default();
        let reader = self.reader(&context, &message.cf, message.pairs.iter().map(|pair| &pair.key))?;
        let ttl = |i: usize| match message.ttls.as_slice() {
            [] => Ok(0),
            [one] => Ok(*one),
            many if many.len() == message.pairs.len() => Ok(many[i]),
            _ => Err(Refusal::Request("The length of ttls does not equal to the length of pairs".into())),
        };
        let mut expires = Vec::with_capacity(message.pairs.len());
        for i in 0..message.pairs.len() {
            expires.push(self.expires(reader, ttl(i)?)?);
        }
        let keys = message.pairs.iter().map(|pair| pair.key.clone()).collect();
        let pairs = message.pairs;
        let changes = move |ts| {
            let put = |(pair, expires): (&kv::KvPair, &u64)| put_change(reader, &pair.key, &pair.value, *expires, ts);
            pairs.iter().zip(&expires).map(put).collect()
        };
        self.write_changes(context, reader, keys, message.for_cas, changes).await?;
        Ok(kv::RawBatchPutResponse::default())
    }

    async fn delete(&mut self, message: kv::RawDeleteRequest) -> Outcome<kv::RawDeleteResponse> {
        let context = frees(message.context);
        let reader = self.reader(&context, &message.cf, [&message.key])?;
        let key = message.key.clone();
        let change = move |ts| vec![delete_change(reader, &key, ts)];
        self.write_changes(context, reader, vec![message.key], message.for_cas, change).await?;
        Ok(kv::RawDeleteResponse::default())
    }

    async fn batch_delete(&mut self, message: kv::RawBatchDeleteRequest) -> Outcome<kv::RawBatchDeleteResponse> {
        let context = frees(message.context);
        let reader = self.reader(&context, &message.cf, &message.keys)?;
        let keys = message.keys.clone();
        let changes = move |ts| keys.iter().map(|key| delete_change(reader, key, ts)).collect();
        self.write_changes(context, reader, message.keys, message.for_cas, changes).await?;
        Ok(kv::RawBatchDeleteResponse::default())
    }

    /// Writes what `changes` makes of a timestamp; under the keys' latches if it must not cross a compare-and-swap.
    ///
    /// The timestamp is taken under the latch: one from before it would hide this write behind the swap that it waited
    /// for.
    async fn write_changes(
        &mut self,
        context: Context,
        reader: RawReader,
        keys: Vec<Bytes>,
        latched: bool,
        changes: impl FnOnce(u64) -> Vec<Modify> + 'static,
    ) -> Outcome<()> {
        if keys.is_empty() {
            // Nothing to replicate; the region is checked all the same.
            self.view_of_leader(&context).await?;
            return Ok(());
        }
        if !latched {
            let ts = self.timestamp(reader).await?;
            return self.write(&context, changes(ts)).await;
        }
        let mut inner = Request::new(self.service.clone(), self.deadline, self.ledger);
        // A task of its own: a client that hangs up must not free the latches before the write has ended.
        let (result, ledger) = executor::spawn_local(Class::Foreground, async move {
            let service = inner.service.clone();
            let _latched = service.latches.lock(keys.iter().map(|key| &key[..])).await;
            let result = match inner.timestamp(reader).await {
                Ok(ts) => inner.write(&context, changes(ts)).await,
                Err(refusal) => Err(refusal),
            };
            (result, inner.ledger)
        })
        .await;
        self.ledger = ledger;
        result
    }

    async fn delete_range(&mut self, message: kv::RawDeleteRangeRequest) -> Outcome<kv::RawDeleteRangeResponse> {
        let context = frees(message.context);
        let reader = self.reader(&context, &message.cf, [])?;
        self.check_range(&message.start_key, &message.end_key)?;
        for key in [&message.start_key, &message.end_key] {
            if key.len() > KEY_BYTES_MAX {
                let size = key.len();
                return Err(Refusal::Request(format!("max key size exceeded, size: {size}, limit: {KEY_BYTES_MAX}")));
            }
        }
        if !message.end_key.is_empty() && message.start_key >= message.end_key {
            self.view_of_leader(&context).await?;
            return Ok(kv::RawDeleteRangeResponse::default());
        }
        let end = if message.end_key.is_empty() { Vec::new() } else { reader.mode.prefix(&message.end_key) };
        let change = Modify::DeleteRange {
            cf: reader.cf,
            start: reader.mode.prefix(&message.start_key).into(),
            end: end.into(),
        };
        self.write(&context, vec![change]).await?;
        Ok(kv::RawDeleteRangeResponse::default())
    }

    async fn compare_and_swap(&mut self, message: kv::RawCasRequest) -> Outcome<kv::RawCasResponse> {
        let context = message.context.clone().unwrap_or_default();
        let reader = self.reader(&context, &message.cf, [&message.key])?;
        let expires = self.expires(reader, message.ttl)?;
        let mut inner = Request::new(self.service.clone(), self.deadline, self.ledger);
        // A task of its own: a client that hangs up must not free the latch between the read and the write.
        let (result, ledger) = executor::spawn_local(Class::Foreground, async move {
            let result = inner.swap(context, reader, expires, message).await;
            (result, inner.ledger)
        })
        .await;
        self.ledger = ledger;
        result
    }

    async fn swap(
        &mut self,
        context: Context,
        reader: RawReader,
        expires: u64,
        message: kv::RawCasRequest,
    ) -> Outcome<kv::RawCasResponse> {
        let service = self.service.clone();
        let unlatched = self.shard(&context)?.config.is_planted(PlantedFault::NoLatches);
        let latched = (!unlatched).then_some(&message.key[..]);
        let _latched = service.latches.lock(latched).await;
        let (_, read) = self.view_of_leader(&context).await?;
        self.check_keys(&read, [&message.key])?;
        let key = message.key.clone();
        let found = self.look(&read, value_bytes, move |view| mvcc::raw::get(view, reader, &key)).await?;
        let expected = match &found {
            None => message.previous_not_exist,
            Some(value) => !message.previous_not_exist && value.value == message.previous_value,
        };
        if expected {
            let ts = self.timestamp(reader).await?;
            let change = put_change(reader, &message.key, &message.value, expires, ts);
            // Another leader may have written between two terms of this one.
            let is_blind = self.shard(&context)?.config.is_planted(PlantedFault::SwapAcrossTerms);
            let term = (!is_blind).then_some(read.term);
            self.write_in(term, &context, vec![change]).await?;
        }
        Ok(kv::RawCasResponse {
            succeed: expected,
            previous_not_exist: found.is_none(),
            previous_value: found.map(|value| value.value).unwrap_or_default(),
            ..Default::default()
        })
    }

    async fn coprocessor(&mut self, message: kv::RawCoprocessorRequest) -> Outcome<kv::RawCoprocessorResponse> {
        Err(Refusal::Request(format!("Coprocessor plugin '{}' not found", message.copr_name)))
    }

    async fn read_index(&mut self, message: kv::ReadIndexRequest) -> Outcome<kv::ReadIndexResponse> {
        let context = message.context.unwrap_or_default();
        let (_, read) = self.view_of_leader(&context).await?;
        Ok(kv::ReadIndexResponse { read_index: read.applied_index, ..Default::default() })
    }

    async fn split_region(&mut self, message: kv::SplitRegionRequest) -> Outcome<kv::SplitRegionResponse> {
        let context = message.context.unwrap_or_default();
        let (shard, read) = self.view_of_leader(&context).await?;
        #[allow(deprecated, reason = "old clients send one key in its own field")]
        let asked = if message.split_keys.is_empty() { vec![message.split_key] } else { message.split_keys };
        let encoded = !message.is_raw_kv || self.mode() == RawMode::V2;
        let key = |key: &Bytes| if encoded { base::codec::memcomparable(key) } else { key.to_vec() };
        let keys = cuts_inside(&read.region, asked.iter().map(key).collect());
        if keys.is_empty() {
            return Err(Refusal::Request("no split key lies inside the region".into()));
        }
        let region = (*read.region).clone();
        let regions = split_at(&self.service.host, shard.id, region, keys).await.map_err(|error| match error {
            SplitError::Region(error) => Refusal::Region(error),
            SplitError::Pd(why) => Refusal::Request(why),
        })?;
        let (left, right) = match regions.as_slice() {
            [left, right] => (Some(left.clone()), Some(right.clone())),
            _ => (None, None),
        };
        #[allow(deprecated, reason = "client-java reads left and right")]
        Ok(kv::SplitRegionResponse { left, right, regions, ..Default::default() })
    }
}

fn region_view<E: Engine>(read: &RegionRead<E>, tier: Tier) -> RegionView<E::Snapshot> {
    RegionView::new(read.snapshot.clone(), tier, read.region.start_key.clone(), read.region.end_key.clone())
}

/// Gets of one region in one pass: one call of the engine where keys have one version.
fn get_many<S: crate::engine::EngineSnapshot>(
    view: &RegionView<S>,
    reader: RawReader,
    keys: &[Bytes],
) -> Result<Vec<(Bytes, RawValue)>, ReadError> {
    let mut out = Vec::with_capacity(keys.len());
    let mut bytes = 0;
    if reader.mode == RawMode::V2 {
        for key in keys {
            if let Some(value) = mvcc::raw::get(view, reader, key)? {
                bytes += key.len() + value.value.len();
                check_answer(bytes)?;
                out.push((key.clone(), value));
            }
        }
        return Ok(out);
    }
    for keys in keys.chunks(KEYS_AT_ONCE) {
        for (key, stored) in keys.iter().zip(view.get_many(reader.cf, keys)) {
            let Some(stored) = stored? else { continue };
            let value = reader.mode.decode_value(&stored).map_err(|error| ReadError::Failed(error.to_string()))?;
            if value.is_alive(reader.now) {
                bytes += key.len() + value.value.len();
                out.push((key.clone(), value));
            }
        }
        check_answer(bytes)?;
    }
    Ok(out)
}

/// A batch may name a large value a thousand times.
pub(super) fn check_answer(bytes: usize) -> Result<(), ReadError> {
    if bytes as u64 <= ANSWER_BYTES_MAX {
        return Ok(());
    }
    Err(ReadError::Failed(format!("the answer is larger than {} MiB", ANSWER_BYTES_MAX >> 20)))
}

fn value_bytes(found: &Option<RawValue>) -> usize {
    found.as_ref().map_or(0, |value| value.value.len())
}

#[allow(clippy::ptr_arg, reason = "what a look gives is a vector, and this is what measures it")]
fn pairs_bytes(found: &Vec<(Bytes, RawValue)>) -> usize {
    found.iter().map(|(key, value)| key.len() + value.value.len()).sum()
}

fn put_change(reader: RawReader, key: &Bytes, value: &Bytes, expires: u64, ts: u64) -> Modify {
    let RawReader { mode, cf, .. } = reader;
    Modify::Put { cf, key: stored_key(mode, key, ts), value: mode.encode_value(value, expires) }
}

/// The context of a request that makes room in the end: it is taken though the disk is full.
pub(super) fn frees(context: Option<Context>) -> Context {
    let mut context = context.unwrap_or_default();
    context.set_disk_full_opt(kv::DiskFullOpt::AllowedOnAlreadyFull);
    context
}

fn delete_change(reader: RawReader, key: &Bytes, ts: u64) -> Modify {
    let RawReader { mode, cf, .. } = reader;
    match mode {
        RawMode::V2 => Modify::Put { cf, key: mode.encode_key(key, ts), value: RawMode::tombstone() },
        _ => Modify::Delete { cf, key: key.clone() },
    }
}

fn stored_key(mode: RawMode, key: &Bytes, ts: u64) -> Bytes {
    match mode {
        RawMode::V2 => mode.encode_key(key, ts),
        _ => key.clone(),
    }
}
