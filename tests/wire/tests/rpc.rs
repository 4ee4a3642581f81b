//! Calls that the crate `tikv-client` does not make, or not so: a plain HTTP/2 client against real processes. What is
//! expected stands in `compat/4-store.md`.

mod common;

use std::time::Duration;

use bytes::Bytes;
use common::rpc::{Failure, code};
use common::{Node, bytes, context, split_request, with_node};
use proto::kvrpcpb::{self as kv, Context};
use proto::{errorpb, health, metapb, pdpb};

fn failure(code: u32, message: &str) -> Failure {
    Failure { code, message: message.into() }
}

/// A region error with this message and nothing else; the test adds the one field that it expects.
fn with_message(message: &str) -> errorpb::Error {
    errorpb::Error { message: message.into(), ..Default::default() }
}

async fn get_error(node: &Node, context: Context, key: &[u8]) -> errorpb::Error {
    let request = kv::RawGetRequest { context: Some(context), key: bytes(key), ..Default::default() };
    let answer: kv::RawGetResponse = node.tikv.tikv("RawGet", &request).await;
    let error = answer.region_error.clone().expect("a region error");
    let only = kv::RawGetResponse { region_error: answer.region_error.clone(), ..Default::default() };
    assert_eq!(answer, only, "a region error comes alone");
    error
}

async fn put_answer(node: &Node, context: Context, key: &[u8], value: Vec<u8>) -> kv::RawPutResponse {
    let request =
        kv::RawPutRequest { context: Some(context), key: bytes(key), value: value.into(), ..Default::default() };
    node.tikv.tikv("RawPut", &request).await
}

#[test]
fn region_errors_have_their_fields() {
    for cores in [1, 4] {
        with_node(cores, "[raftstore]\nraft-entry-max-size = \"1MiB\"\n", async |node| {
            let whole = node.region(b"").await;
            let before = context(&whole);
            who_is_not_meant(node, &whole).await;
            let regions = node.split(&before, &[b"m", b"t"]).await;
            after_a_split(node, &before, &regions).await;
            too_much(node, context(&regions[0])).await;
            assert_eq!(node.get(b"a").await, None, "none of the refused writes was done");
        });
    }
}

async fn who_is_not_meant(node: &Node, region: &metapb::Region) {
    let good = context(region);
    let peer = good.peer.expect("a peer");
    let store = node.cluster.store_id;
    // Another store's request, whether the region is ours or not: the address was reused.
    for region_id in [region.id, 987_654] {
        let other = Some(metapb::Peer { store_id: store + 70, ..peer });
        let error = get_error(node, Context { region_id, peer: other, ..good.clone() }, b"k").await;
        let not_match = errorpb::StoreNotMatch { request_store_id: store + 70, actual_store_id: store };
        assert_eq!(error.store_not_match, Some(not_match));
        assert!(!error.message.is_empty());
    }
    let error = get_error(node, Context { region_id: 987_654, ..good.clone() }, b"k").await;
    let expected = errorpb::Error {
        region_not_found: Some(errorpb::RegionNotFound { region_id: 987_654 }),
        ..with_message("region 987654 is not found")
    };
    assert_eq!(error, expected);
    let other = Some(metapb::Peer { id: peer.id + 500, ..peer });
    let error = get_error(node, Context { peer: other, ..good.clone() }, b"k").await;
    let mismatch = errorpb::MismatchPeerId { request_peer_id: peer.id + 500, store_peer_id: peer.id };
    assert_eq!(error.mismatch_peer_id, Some(mismatch));
    let error = get_error(node, Context { term: 1, ..good.clone() }, b"k").await;
    assert_eq!(
        error,
        errorpb::Error { stale_command: Some(errorpb::StaleCommand {}), ..with_message("stale command") }
    );
    // No epoch counts as version 0.
    let error = get_error(node, Context { region_epoch: None, ..good.clone() }, b"k").await;
    assert_eq!(error.epoch_not_match, Some(errorpb::EpochNotMatch { current_regions: vec![region.clone()] }));
    // conf_ver is nothing that a read or write compares.
    let epoch = good.region_epoch.map(|epoch| metapb::RegionEpoch { conf_ver: 77, ..epoch });
    let answer = put_answer(node, Context { region_epoch: epoch, ..good }, b"conf-ver", b"v".to_vec()).await;
    assert_eq!(answer, kv::RawPutResponse::default());
}

async fn after_a_split(node: &Node, before: &Context, regions: &[metapb::Region]) {
    let bounds: Vec<(&[u8], &[u8])> =
        regions.iter().map(|region| (&region.start_key[..], &region.end_key[..])).collect();
    assert_eq!(bounds, [(&b""[..], &b"m"[..]), (b"m", b"t"), (b"t", b"")]);
    let old = before.region_epoch.expect("an epoch").version;
    for region in regions {
        assert_eq!(region.region_epoch.expect("an epoch").version, old + 2);
        assert_eq!(region.peers.len(), 1);
    }
    // The old id is still there, with another epoch: all regions of the split are told, ours first.
    let error = get_error(node, before.clone(), b"k").await;
    let current = error.epoch_not_match.expect("EpochNotMatch").current_regions;
    assert_eq!(current[0].id, before.region_id);
    let mut told: Vec<&metapb::Region> = current.iter().collect();
    told.sort_by(|a, b| a.start_key.cmp(&b.start_key));
    // A region that has gone to another core has taken nothing of this with it.
    assert!(told.iter().all(|region| regions.contains(*region)));
    assert!(current.len() == 3 || node.cluster.metric("basalt_shard_moves_in_total") > 0, "{current:?}");
    let error = put_answer(node, before.clone(), b"k", b"v".to_vec()).await.region_error.expect("an error");
    assert!(error.epoch_not_match.is_some_and(|error| !error.current_regions.is_empty()));
    // The epoch is right and the key is not: reads and writes alike.
    let first = context(&regions[0]);
    let expected = errorpb::KeyNotInRegion {
        key: bytes("z"),
        region_id: regions[0].id,
        start_key: Bytes::new(),
        end_key: bytes("m"),
    };
    let error = get_error(node, first.clone(), b"z").await;
    assert_eq!(error.key_not_in_region, Some(expected.clone()));
    let error = put_answer(node, first.clone(), b"z", b"v".to_vec()).await.region_error.expect("an error");
    assert_eq!(error.key_not_in_region, Some(expected));
    // Ends are exclusive.
    let error = put_answer(node, first.clone(), b"m", b"v".to_vec()).await.region_error.expect("an error");
    assert!(error.key_not_in_region.is_some());
    // Nothing inside: start keys, keys of others.
    let answer: kv::SplitRegionResponse = node.tikv.tikv("SplitRegion", &split_request(&first, &[b"", b"z"])).await;
    let error = answer.region_error.expect("an error");
    assert_eq!(error, with_message(&error.message), "only a message");
    assert!(answer.regions.is_empty());
}

async fn too_much(node: &Node, first: Context) {
    let answer = put_answer(node, first.clone(), b"a", vec![7; 2 << 20]).await;
    let error = answer.region_error.expect("an error");
    let too_large = error.raft_entry_too_large.expect("RaftEntryTooLarge");
    assert_eq!(too_large.region_id, first.region_id);
    assert!((2 << 20..(2 << 20) + 200).contains(&too_large.entry_size), "{too_large:?}");
    // One of a batch that is too large refuses the whole batch.
    let pairs = [vec![1; 10], vec![2; 2 << 20]];
    let pair = |(i, value): (usize, Vec<u8>)| kv::KvPair {
        key: bytes(format!("a{i}")),
        value: value.into(),
        ..Default::default()
    };
    let request = kv::RawBatchPutRequest {
        context: Some(first.clone()),
        pairs: pairs.into_iter().enumerate().map(pair).collect(),
        ..Default::default()
    };
    let answer: kv::RawBatchPutResponse = node.tikv.tikv("RawBatchPut", &request).await;
    assert!(answer.region_error.is_some_and(|error| error.raft_entry_too_large.is_some()));
    assert_eq!(node.get(b"a0").await, None);
    // Swaps of one key wait for the first one's durable write; those with a millisecond cannot all have it. A client
    // that is slower than the disk at the moment tries again.
    let mut late = 0;
    for round in 0..100 {
        late += late_swaps(node, &first, round).await;
        if late > 0 {
            return;
        }
    }
    panic!("a hundred times four hundred swaps, all within a millisecond");
}

/// Swaps a key at once by many; how many of them had no time.
async fn late_swaps(node: &Node, first: &Context, round: u32) -> u32 {
    let mut swaps = Vec::new();
    for i in 0..400 {
        let request = kv::RawCasRequest {
            context: Some(Context { max_execution_duration_ms: 1, ..first.clone() }),
            key: bytes(format!("key-swapped-{round}")),
            value: bytes(format!("{i}")),
            previous_not_exist: true,
            ..Default::default()
        };
        let tikv = node.tikv.clone();
        swaps.push(tokio::spawn(async move { tikv.tikv::<kv::RawCasResponse>("RawCompareAndSwap", &request).await }));
    }
    let mut late = 0;
    for swap in swaps {
        if let Some(error) = swap.await.expect("no panic").region_error {
            let busy = errorpb::ServerIsBusy { reason: "deadline is exceeded".into(), ..Default::default() };
            let expected = errorpb::Error { server_is_busy: Some(busy), ..with_message("Deadline is exceeded") };
            assert_eq!(error, expected);
            late += 1;
        }
    }
    late
}

#[test]
fn a_placement_driver_that_does_not_answer_makes_versioned_writes_wait_and_then_busy() {
    with_node(1, "[storage]\napi-version = 2\n", async |node| {
        let mut context = node.context(b"r\0\0\0k").await;
        context.api_version = kv::ApiVersion::V2 as i32;
        node.cluster.signal("STOP", node.cluster.pd_pid);
        // What the core has in hand is used up first.
        let mut refused = None;
        for i in 0..600 {
            let answer = put_answer(node, context.clone(), b"r\0\0\0k", format!("{i}").into_bytes()).await;
            refused = answer.region_error;
            if refused.is_some() {
                break;
            }
        }
        node.cluster.signal("CONT", node.cluster.pd_pid);
        let busy = refused.expect("timestamps run out").server_is_busy.expect("ServerIsBusy");
        assert!(busy.reason.starts_with("timestamps: "), "{busy:?}");
        assert!(busy.backoff_ms > 0, "a hint when to come back");
        loop {
            let answer = put_answer(node, context.clone(), b"r\0\0\0k", b"back".to_vec()).await;
            match answer.region_error {
                None => break,
                Some(error) => assert!(error.server_is_busy.is_some(), "{error:?}"),
            }
        }
    });
}

#[test]
fn statuses_of_grpc() {
    with_node(2, "", async |node| {
        let context = node.context(b"k").await;
        let get = kv::RawGetRequest { context: Some(context.clone()), key: bytes("k"), ..Default::default() };
        for path in ["/tikvpb.Tikv/KvGC", "/tikvpb.Tikv/KvImport", "/tikvpb.Tikv/NoSuch", "/no.Such/Method", "/nothing"]
        {
            let failed = node.tikv.call::<kv::RawGetResponse>(path, &get).await.expect_err("unknown");
            assert_eq!(failed.code, code::UNIMPLEMENTED, "{path}: {failed:?}");
        }
        let garbage = node.tikv.bytes("/tikvpb.Tikv/RawGet", b"\xff\xff\xff\xff\xff\xff", &[]).await;
        assert_eq!(garbage.expect_err("garbage").code, code::INTERNAL);
        // The region id can be read, what follows it cannot.
        let mut half = prost::Message::encode_to_vec(&get);
        half.extend([0x12, 0x7f]);
        assert_eq!(node.tikv.bytes("/tikvpb.Tikv/RawGet", &half, &[]).await.expect_err("cut").code, code::INTERNAL);
        let other = kv::RawGetRequest {
            context: Some(Context { cluster_id: node.cluster_id + 1, ..context.clone() }),
            ..get.clone()
        };
        let text = "the cluster id of the request does not match the TiKV cluster";
        let failed = node.tikv.call::<kv::RawGetResponse>("/tikvpb.Tikv/RawGet", &other).await;
        assert_eq!(failed, Err(failure(code::INVALID_ARGUMENT, text)));
        let same =
            kv::RawGetRequest { context: Some(Context { cluster_id: node.cluster_id, ..context }), ..get.clone() };
        let answer: kv::RawGetResponse = node.tikv.tikv("RawGet", &same).await;
        assert!(answer.not_found);
        // A deadline that has passed when the request comes.
        let body = prost::Message::encode_to_vec(&get);
        match node.tikv.bytes("/tikvpb.Tikv/RawGet", &body, &[("grpc-timeout", "1n")]).await {
            Err(late) => assert_eq!(late.code, code::DEADLINE_EXCEEDED),
            // The region was faster than the network's clock: it says the same in its own words.
            Ok(answer) => {
                let answer: kv::RawGetResponse = prost::Message::decode(answer).expect("an answer");
                assert_eq!(answer.region_error.expect("an error").message, "Deadline is exceeded");
            }
        }
        health_is_told(node).await;
        the_harmless_calls(node).await;
    });
}

async fn health_is_told(node: &Node) {
    use health::health_check_response::ServingStatus;
    let check = |service: &str| health::HealthCheckRequest { service: service.into() };
    for server in [&node.tikv, &node.pd] {
        let path = "/grpc.health.v1.Health/Check";
        let answer: health::HealthCheckResponse = server.call(path, &check("")).await.expect("an answer");
        assert_eq!(answer.status(), ServingStatus::Serving);
        let failed = server.call::<health::HealthCheckResponse>(path, &check("no.Such")).await;
        assert_eq!(failed.expect_err("unknown").code, code::NOT_FOUND);
    }
}

async fn the_harmless_calls(node: &Node) {
    let request = kv::GetHealthFeedbackRequest::default();
    let answer: kv::GetHealthFeedbackResponse = node.tikv.tikv("GetHealthFeedback", &request).await;
    let feedback = answer.health_feedback.expect("feedback");
    assert_eq!((feedback.store_id, feedback.slow_score), (node.cluster.store_id, 1));
    let answer: kv::StoreSafeTsResponse = node.tikv.tikv("GetStoreSafeTS", &kv::StoreSafeTsRequest::default()).await;
    assert_eq!(answer.safe_ts, 0);
    let context = Some(node.context(b"k").await);
    let request = kv::ReadIndexRequest { context: context.clone(), ..Default::default() };
    let answer: kv::ReadIndexResponse = node.tikv.tikv("ReadIndex", &request).await;
    assert!(answer.region_error.is_none() && answer.read_index > 0);
    let request = kv::RawCoprocessorRequest { context, copr_name: "none".into(), ..Default::default() };
    let answer: kv::RawCoprocessorResponse = node.tikv.tikv("RawCoprocessor", &request).await;
    assert!(answer.error.contains("not found"), "{answer:?}");
}

/// CRC-64 of ECMA-182, reflected, ones in and out: bit by bit, as the definition has it.
/// What TiDB shows in `DATA_LOCK_WAITS`.
#[test]
fn who_waits_for_a_lock_is_listed() {
    with_node(2, "", async |node| {
        let region = node.region(b"k").await;
        let lock = |start: u64, wait_timeout: i64| kv::PessimisticLockRequest {
            context: Some(Context { resource_group_tag: "tag".into(), ..context(&region) }),
            mutations: vec![kv::Mutation { op: kv::Op::PessimisticLock as i32, key: "k".into(), ..Default::default() }],
            primary_lock: "k".into(),
            start_version: start,
            for_update_ts: start,
            lock_ttl: 20_000,
            wait_timeout,
            ..Default::default()
        };
        let list = async || -> kv::GetLockWaitInfoResponse {
            node.tikv.tikv("GetLockWaitInfo", &kv::GetLockWaitInfoRequest::default()).await
        };
        let first: kv::PessimisticLockResponse = node.tikv.tikv("KvPessimisticLock", &lock(100, -1)).await;
        assert!(first.errors.is_empty() && first.region_error.is_none(), "{first:?}");
        assert_eq!(list().await, kv::GetLockWaitInfoResponse::default(), "nobody waits");
        let watch = async {
            let entry = loop {
                if let Some(entry) = list().await.entries.pop() {
                    break entry;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            };
            assert_eq!((entry.txn, entry.wait_for_txn), (200, 100));
            assert_eq!((&entry.key[..], &entry.resource_group_tag[..]), (&b"k"[..], &b"tag"[..]));
            assert!(entry.wait_time < 10_000, "{entry:?}");
            let rollback = kv::PessimisticRollbackRequest {
                context: Some(context(&region)),
                start_version: 100,
                for_update_ts: 100,
                keys: vec!["k".into()],
            };
            let answer: kv::PessimisticRollbackResponse = node.tikv.tikv("KVPessimisticRollback", &rollback).await;
            assert_eq!(answer, kv::PessimisticRollbackResponse::default());
        };
        let waiter = async {
            let answer: kv::PessimisticLockResponse = node.tikv.tikv("KvPessimisticLock", &lock(200, 10_000)).await;
            answer
        };
        let (second, ()) = tokio::join!(waiter, watch);
        // Woken, it is told to come again with a later timestamp.
        let conflict = second.errors.first().and_then(|error| error.conflict.clone()).expect("a conflict");
        assert_eq!((conflict.start_ts, conflict.conflict_ts), (200, 100), "{second:?}");
        assert_eq!(list().await.entries, []);
    });
}

fn crc64(bytes: &[u8]) -> u64 {
    let mut sum = u64::MAX;
    for byte in bytes {
        sum ^= u64::from(*byte);
        for _ in 0..8 {
            sum = if sum & 1 == 1 { (sum >> 1) ^ 0xc96c_5795_d787_0f42 } else { sum >> 1 };
        }
    }
    !sum
}

#[test]
fn checksums_ttls_scans_and_swaps_of_api_v1() {
    assert_eq!(crc64(b"123456789"), 0x995d_c9bb_df19_39fa, "the check value of CRC-64/XZ");
    with_node(2, "", async |node| {
        for (key, value) in [("a", "1"), ("b", "22"), ("c", ""), ("d", "4444")] {
            node.put(key.as_bytes(), value.as_bytes()).await;
        }
        checksums(node, &[("a", "1"), ("b", "22"), ("c", ""), ("d", "4444")], Context::default(), "").await;
        let context = node.context(b"a").await;
        let request = kv::RawGetKeyTtlRequest { context: Some(context.clone()), key: bytes("a"), ..Default::default() };
        let answer: kv::RawGetKeyTtlResponse = node.tikv.tikv("RawGetKeyTTL", &request).await;
        assert!(answer.error.starts_with("ttl is not enabled"), "{answer:?}");
        let request =
            kv::RawPutRequest { context: Some(context.clone()), key: bytes("t"), ttl: 5, ..Default::default() };
        let answer: kv::RawPutResponse = node.tikv.tikv("RawPut", &request).await;
        assert_eq!(answer.error, "ttl is not enabled, but get put request with ttl");
        assert_eq!(node.get(b"c").await, Some(Bytes::new()), "an empty value is a value");
        families(node, &context).await;
        batch_scans(node, &context).await;
        scans(node, &context).await;
        swaps(node, &context, "swap", 0).await;
    });
}

/// `pairs` are all that there is from `first` on to the next letter.
async fn checksums(node: &Node, pairs: &[(&str, &str)], like: Context, prefix: &str) {
    let key = |key: &str| format!("{prefix}{key}").into_bytes();
    let mut context = node.context(&in_pd(&like, &key("a"))).await;
    context.api_version = like.api_version;
    let range = |start: &str, end: &str| kv::KeyRange { start_key: key(start).into(), end_key: key(end).into() };
    type Case<'a> = (Vec<kv::KeyRange>, &'a [(&'a str, &'a str)]);
    let cases: [Case<'_>; 4] = [
        (vec![range("a", "z")], pairs),
        (vec![range("a", "b"), range("b", "z")], pairs),
        (vec![range("b", "c")], &pairs[1..2]),
        (vec![range("x", "y")], &[]),
    ];
    for (ranges, expected) in cases {
        let request = kv::RawChecksumRequest { context: Some(context.clone()), ranges, ..Default::default() };
        let answer: kv::RawChecksumResponse = node.tikv.tikv("RawChecksum", &request).await;
        let one = |(name, value): &(&str, &str)| [key(name), value.as_bytes().to_vec()].concat();
        let expected = kv::RawChecksumResponse {
            checksum: expected.iter().fold(0, |sum, pair| sum ^ crc64(&one(pair))),
            total_kvs: expected.len() as u64,
            total_bytes: expected.iter().map(|pair| one(pair).len() as u64).sum(),
            ..Default::default()
        };
        assert_eq!(answer, expected);
    }
    let request = kv::RawChecksumRequest { context: Some(context), algorithm: 9, ..Default::default() };
    let answer: kv::RawChecksumResponse = node.tikv.tikv("RawChecksum", &request).await;
    assert!(answer.error.contains("algorithm 9"), "{answer:?}");
}

/// A raw key as PD knows it in the API of `like`.
fn in_pd(like: &Context, key: &[u8]) -> Vec<u8> {
    if like.api_version == kv::ApiVersion::V2 as i32 { base::codec::memcomparable(key) } else { key.to_vec() }
}

async fn families(node: &Node, context: &Context) {
    let put = |cf: &str| kv::RawPutRequest {
        context: Some(context.clone()),
        key: bytes("family"),
        value: bytes(cf),
        cf: cf.into(),
        ..Default::default()
    };
    for cf in ["", "lock", "write"] {
        let answer: kv::RawPutResponse = node.tikv.tikv("RawPut", &put(cf)).await;
        assert_eq!(answer, kv::RawPutResponse::default());
    }
    for (cf, value) in [("default", ""), ("lock", "lock"), ("write", "write")] {
        let request = kv::RawGetRequest { key: bytes("family"), cf: cf.into(), context: Some(context.clone()) };
        let answer: kv::RawGetResponse = node.tikv.tikv("RawGet", &request).await;
        assert_eq!(answer.value, value, "{cf}");
    }
    for cf in ["raft", "DEFAULT", "nonsense"] {
        let answer: kv::RawPutResponse = node.tikv.tikv("RawPut", &put(cf)).await;
        assert_eq!(answer.error, format!("invalid cf name: {cf}"));
    }
}

fn names(pairs: &[kv::KvPair]) -> Vec<String> {
    assert!(pairs.iter().all(|pair| pair.error.is_none()), "{pairs:?}");
    pairs.iter().map(|pair| String::from_utf8_lossy(&pair.key).into_owned()).collect()
}

async fn batch_scans(node: &Node, context: &Context) {
    let request = |ranges: &[(&str, &str)], reverse: bool, each_limit: u32| kv::RawBatchScanRequest {
        context: Some(context.clone()),
        ranges: ranges
            .iter()
            .map(|(start, end)| kv::KeyRange { start_key: bytes(start), end_key: bytes(end) })
            .collect(),
        each_limit,
        reverse,
        ..Default::default()
    };
    type Case = (&'static [(&'static str, &'static str)], bool, u32, &'static [&'static str]);
    let cases: [Case; 6] = [
        (&[("a", "c"), ("c", "e")], false, 9, &["a", "b", "c", "d"]),
        (&[("a", "c"), ("c", "e")], false, 1, &["a", "c"]),
        // No end: that of the next range's start.
        (&[("a", ""), ("c", "d")], false, 9, &["a", "b", "c"]),
        (&[("d", "b"), ("b", "a")], true, 9, &["c", "b", "a"]),
        (&[("a", "c")], false, 0, &[]),
        (&[], false, 9, &[]),
    ];
    for (ranges, reverse, limit, expected) in cases {
        let answer: kv::RawBatchScanResponse = node.tikv.tikv("RawBatchScan", &request(ranges, reverse, limit)).await;
        assert_eq!(names(&answer.kvs), expected, "{ranges:?} {reverse} {limit}");
    }
    let wrong: [(&[(&str, &str)], bool); 4] =
        [(&[("c", "a")], false), (&[("a", "a")], false), (&[("a", "c")], true), (&[("c", ""), ("a", "b")], false)];
    for (ranges, reverse) in wrong {
        let answer: kv::RawBatchScanResponse = node.tikv.tikv("RawBatchScan", &request(ranges, reverse, 9)).await;
        let error = kv::KeyError { abort: "Invalid KeyRanges".into(), ..Default::default() };
        let expected = vec![kv::KvPair { error: Some(error), ..Default::default() }];
        assert_eq!(answer, kv::RawBatchScanResponse { kvs: expected, ..Default::default() }, "{ranges:?} {reverse}");
    }
    let keys_only = kv::RawBatchScanRequest { key_only: true, ..request(&[("a", "z")], false, 2) };
    let answer: kv::RawBatchScanResponse = node.tikv.tikv("RawBatchScan", &keys_only).await;
    assert!(answer.kvs.len() == 2 && answer.kvs.iter().all(|pair| pair.value.is_empty()));
}

async fn scans(node: &Node, context: &Context) {
    let request = |start: &str, end: &str, limit: u32, reverse: bool| kv::RawScanRequest {
        context: Some(context.clone()),
        start_key: bytes(start),
        end_key: bytes(end),
        limit,
        reverse,
        ..Default::default()
    };
    let cases = [
        (request("b", "d", 9, false), vec!["b", "c"]),
        (request("", "d", 2, false), vec!["a", "b"]),
        (request("b", "b", 9, false), vec![]),
        (request("d", "b", 9, false), vec![]),
        (request("", "", 0, false), vec![]),
        // Downwards: the start is exclusive, the end inclusive.
        (request("d", "b", 9, true), vec!["c", "b"]),
        (request("d", "", 2, true), vec!["c", "b"]),
        (request("b", "d", 9, true), vec![]),
    ];
    for (request, expected) in cases {
        let answer: kv::RawScanResponse = node.tikv.tikv("RawScan", &request).await;
        assert_eq!(names(&answer.kvs), expected, "{request:?}");
    }
    // Over everything there is: the last key comes first.
    let answer: kv::RawScanResponse = node.tikv.tikv("RawScan", &request("", "", 1, true)).await;
    assert_eq!(names(&answer.kvs), ["family"]);
}

/// Compare-and-swap from nothing to several values; the key must not be there.
async fn swaps(node: &Node, context: &Context, key: &str, ttl: u64) {
    let swap = async |expected: Option<&str>, value: &str| {
        let request = kv::RawCasRequest {
            context: Some(context.clone()),
            key: bytes(key),
            value: bytes(value),
            previous_not_exist: expected.is_none(),
            previous_value: bytes(expected.unwrap_or_default()),
            ttl,
            ..Default::default()
        };
        let answer: kv::RawCasResponse = node.tikv.tikv("RawCompareAndSwap", &request).await;
        assert_eq!((answer.region_error, answer.error), (None, String::new()));
        assert!(!answer.previous_not_exist || answer.previous_value.is_empty());
        let found = (!answer.previous_not_exist).then(|| String::from_utf8_lossy(&answer.previous_value).into_owned());
        (answer.succeed, found)
    };
    assert_eq!(swap(Some(""), "x").await, (false, None), "absent is not empty");
    assert_eq!(swap(Some("x"), "x").await, (false, None));
    assert_eq!(swap(None, "").await, (true, None));
    assert_eq!(swap(None, "x").await, (false, Some(String::new())), "empty is not absent");
    assert_eq!(swap(Some(""), "one").await, (true, Some(String::new())));
    assert_eq!(swap(Some("on"), "two").await, (false, Some("one".into())));
    assert_eq!(swap(Some("one"), "one").await, (true, Some("one".into())), "a swap for the same value");
    // Many at once, each from the value that it saw: as many steps as successes.
    let counter = format!("{key}-counter");
    let mut tasks = Vec::new();
    for _ in 0..8 {
        let (tikv, context, counter) = (node.tikv.clone(), context.clone(), counter.clone());
        tasks.push(tokio::spawn(async move {
            let (mut seen, mut done): (Option<u64>, _) = (None, 0);
            while done < 20 {
                let request = kv::RawCasRequest {
                    context: Some(context.clone()),
                    key: bytes(&counter),
                    value: bytes((seen.unwrap_or(0) + 1).to_string()),
                    previous_not_exist: seen.is_none(),
                    previous_value: bytes(seen.map(|seen| seen.to_string()).unwrap_or_default()),
                    ..Default::default()
                };
                let answer: kv::RawCasResponse = tikv.tikv("RawCompareAndSwap", &request).await;
                assert_eq!((&answer.region_error, answer.error.as_str()), (&None, ""));
                if answer.succeed {
                    done += 1;
                    seen = Some(seen.unwrap_or(0) + 1);
                } else {
                    let text = std::str::from_utf8(&answer.previous_value).expect("a number");
                    seen = (!answer.previous_not_exist).then(|| text.parse().expect("a number"));
                }
            }
        }));
    }
    for task in tasks {
        task.await.expect("no panic");
    }
    let request = kv::RawGetRequest { context: Some(context.clone()), key: bytes(&counter), ..Default::default() };
    let answer: kv::RawGetResponse = node.tikv.tikv("RawGet", &request).await;
    assert_eq!(answer.value, "160");
}

#[test]
fn values_of_api_v1ttl_expire_in_every_read() {
    with_node(2, "[storage]\nenable-ttl = true\n", async |node| {
        let context = node.context(b"a").await;
        let pairs = ["a", "b", "c"].map(|key| kv::KvPair { key: bytes(key), value: bytes("v"), ..Default::default() });
        let batch = |ttls: &[u64]| kv::RawBatchPutRequest {
            context: Some(context.clone()),
            pairs: pairs.to_vec(),
            ttls: ttls.to_vec(),
            ..Default::default()
        };
        let answer: kv::RawBatchPutResponse = node.tikv.tikv("RawBatchPut", &batch(&[1, 2])).await;
        assert_eq!(answer.error, "The length of ttls does not equal to the length of pairs");
        for ttls in [&[][..], &[500], &[0, 1000, 1]] {
            let answer: kv::RawBatchPutResponse = node.tikv.tikv("RawBatchPut", &batch(ttls)).await;
            assert_eq!(answer, kv::RawBatchPutResponse::default());
        }
        let ttl = async |key: &str| {
            let request =
                kv::RawGetKeyTtlRequest { context: Some(context.clone()), key: bytes(key), ..Default::default() };
            let answer: kv::RawGetKeyTtlResponse = node.tikv.tikv("RawGetKeyTTL", &request).await;
            assert_eq!((answer.region_error, answer.error), (None, String::new()));
            (!answer.not_found).then_some(answer.ttl)
        };
        assert_eq!(ttl("a").await, Some(0), "no time to live");
        assert!(ttl("b").await.is_some_and(|left| (900..=1000).contains(&left)));
        assert_eq!(ttl("absent").await, None);
        while node.get(b"c").await.is_some() {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        assert_eq!(ttl("c").await, None);
        let scan = kv::RawScanRequest { context: Some(context.clone()), limit: 9, ..Default::default() };
        let answer: kv::RawScanResponse = node.tikv.tikv("RawScan", &scan).await;
        assert_eq!(names(&answer.kvs), ["a", "b"]);
        let request = kv::RawBatchGetRequest {
            context: Some(context.clone()),
            keys: ["a", "b", "c"].iter().map(bytes).collect(),
            ..Default::default()
        };
        let answer: kv::RawBatchGetResponse = node.tikv.tikv("RawBatchGet", &request).await;
        assert_eq!(names(&answer.pairs), ["a", "b"]);
        checksums(node, &[("a", "v"), ("b", "v")], Context::default(), "").await;
        // An expired value is absent to a swap.
        swaps(node, &context, "c", 1000).await;
        assert!(ttl("c").await.is_some_and(|left| (900..=1000).contains(&left)));
    });
}

#[test]
fn api_versions_do_not_mix() {
    let refused = |storage: &str, asked: &str| {
        format!("api version does not match, command: raw, storage_api_version: {storage}, req_api_version: {asked}")
    };
    for (config, storage) in
        [("", "V1"), ("[storage]\nenable-ttl = true\n", "V1ttl"), ("[storage]\napi-version = 2\n", "V2")]
    {
        with_node(1, config, async |node| {
            let good = if storage == "V2" { kv::ApiVersion::V2 } else { kv::ApiVersion::V1 };
            let context = Context { api_version: good as i32, ..node.context(b"").await };
            let put = |version: i32, key: &str| kv::RawPutRequest {
                context: Some(Context { api_version: version, ..context.clone() }),
                key: bytes(key),
                value: bytes("v"),
                ..Default::default()
            };
            let put_error = async |request: kv::RawPutRequest| {
                let answer: kv::RawPutResponse = node.tikv.tikv("RawPut", &request).await;
                assert_eq!(answer.region_error, None);
                answer.error
            };
            for (version, name) in [(0, "V1"), (1, "V1TTL"), (2, "V2"), (3, "unknown")] {
                let error = put_error(put(version, "r\0\0\0k")).await;
                let expected = if version == good as i32 { String::new() } else { refused(storage, name) };
                assert_eq!(error, expected, "{storage} {version}");
            }
            if storage == "V2" {
                version_2(node, context.clone(), &put_error).await;
            } else {
                assert_eq!(put_error(put(0, "any key")).await, "");
            }
            let answer: kv::RawScanResponse =
                node.tikv.tikv("RawScan", &kv::RawScanRequest { limit: 1, ..Default::default() }).await;
            assert!(answer.region_error.is_some() || answer.kvs[0].error.is_some());
        });
    }
}

async fn version_2(node: &Node, context: Context, put_error: &impl AsyncFn(kv::RawPutRequest) -> String) {
    let put = |key: &str, cf: &str| kv::RawPutRequest {
        context: Some(context.clone()),
        key: bytes(key),
        value: bytes("1"),
        cf: cf.into(),
        ..Default::default()
    };
    assert_eq!(
        put_error(put("x\0\0\0k", "")).await,
        "invalid key mode, command: raw, storage_api_version: V2, key: 780000006B"
    );
    assert_eq!(put_error(put("r\0\0\0k", "default")).await, "cf is deprecated in API V2, cf name: default");
    for (name, value) in [("a", "1"), ("b", "22"), ("c", ""), ("d", "4444")] {
        let request = kv::RawPutRequest { value: bytes(value), ..put(&format!("r\0\0\x07{name}"), "") };
        assert_eq!(put_error(request).await, "");
    }
    checksums(node, &[("a", "1"), ("b", "22"), ("c", ""), ("d", "4444")], context.clone(), "r\0\0\x07").await;
    let scan = |start: &str, end: &str| kv::RawScanRequest {
        context: Some(context.clone()),
        start_key: bytes(start),
        end_key: bytes(end),
        limit: 9,
        ..Default::default()
    };
    for (start, end) in [("", ""), ("r", ""), ("", "s"), ("r\0\0\0", "x"), ("x", "y")] {
        let answer: kv::RawScanResponse = node.tikv.tikv("RawScan", &scan(start, end)).await;
        let error = answer.kvs[0].error.clone().expect("an error");
        assert!(error.abort.starts_with("invalid key range mode, command: raw, storage_api_version: V2"), "{error:?}");
    }
    let answer: kv::RawScanResponse = node.tikv.tikv("RawScan", &scan("r\0\0\x07", "s")).await;
    assert_eq!(names(&answer.kvs), ["r\0\0\x07a", "r\0\0\x07b", "r\0\0\x07c", "r\0\0\x07d"]);
    swaps(node, &context, "r\0\0\x07swap", 0).await;
    // Split keys are encoded, and the parts serve.
    let answer: kv::SplitRegionResponse =
        node.tikv.tikv("SplitRegion", &split_request(&context, &[b"r\0\0\x07b"])).await;
    assert_eq!(answer.region_error, None);
    assert_eq!(answer.regions[1].start_key, base::codec::memcomparable(b"r\0\0\x07b"));
    for (region, key, value) in [(0, "a", "1"), (1, "b", "22"), (1, "d", "4444")] {
        let own = Context { api_version: context.api_version, ..common::context(&answer.regions[region]) };
        let request =
            kv::RawGetRequest { context: Some(own), key: bytes(format!("r\0\0\x07{key}")), ..Default::default() };
        let answer: kv::RawGetResponse = node.tikv.tikv("RawGet", &request).await;
        assert_eq!(answer.value, value, "{key}: {answer:?}");
    }
}

#[test]
fn the_placement_driver_tells_strangers_so() {
    with_node(1, "", async |node| {
        let foreign = Some(pdpb::RequestHeader { cluster_id: node.cluster_id + 1, ..Default::default() });
        let request = pdpb::GetRegionRequest { header: foreign, ..Default::default() };
        let failed = node.pd.call::<pdpb::GetRegionResponse>("/pdpb.PD/GetRegion", &request).await;
        let (ours, theirs) = (node.cluster_id, node.cluster_id + 1);
        let text = format!("mismatch cluster id, need {ours} but got {theirs}");
        assert_eq!(failed, Err(failure(code::FAILED_PRECONDITION, &text)));
        let request = pdpb::GetStoreRequest { header: node.header(), store_id: 424_242 };
        let answer: pdpb::GetStoreResponse = node.pd.pd("GetStore", &request).await;
        let error = answer.header.and_then(|header| header.error).expect("an error");
        assert!(error.message.contains("invalid store ID 424242, not found"), "{error:?}");
        let unknown = node.pd.call::<pdpb::GetStoreResponse>("/pdpb.PD/NoSuch", &request).await;
        assert_eq!(unknown.expect_err("unknown").code, code::UNIMPLEMENTED);
        // Timestamps: none of nothing, and never for another cluster.
        for (header, count, expected) in [(node.header(), 0, 2), (foreign, 1, code::FAILED_PRECONDITION)] {
            let mut stream = node.pd.open("/pdpb.PD/Tso", &[]).await;
            let request = pdpb::TsoRequest { header, count, ..Default::default() };
            stream.send(&prost::Message::encode_to_vec(&request), false);
            assert_eq!(stream.end().await.code, expected);
        }
    });
}
