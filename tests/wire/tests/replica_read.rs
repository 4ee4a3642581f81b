//! Reads at followers of three nodes (real processes) through plain gRPC: what a leader has acknowledged is there at
//! every peer, at once and always.

mod common;

use basalt_wire::fleet::Fleet;
use bytes::Bytes;
use common::clients::{Clients, Place};
use common::{bytes, on_a_runtime, split_request};
use proto::kvrpcpb::{self as kv, Context};

const ROUNDS: u64 = 300;

fn number(round: u64) -> Bytes {
    bytes(round.to_string())
}

#[test]
fn each_follower_returns_what_the_leader_has_just_acknowledged() {
    // With more cores, regions and with them their leaders move meanwhile, which is for other tests.
    let nodes = Fleet::replicated(3, 1, "");
    on_a_runtime(async {
        let clients = Clients::connect(&nodes).await;
        let mut refused = 0;
        for round in 0..ROUNDS {
            let place = clients.put(b"counter", &number(round)).await;
            assert_eq!(place.followers().count(), 2);
            let followers: Vec<_> = place.followers().map(|peer| place.context(peer)).collect();
            let [one, other] = [0, 1].map(|at| clients.get(&followers[at], b"counter"));
            let (one, other) = tokio::join!(one, other);
            for (found, refusals) in [one, other] {
                assert_eq!(found, Some(number(round)), "round {round}");
                refused += refusals;
            }
        }
        assert!(refused < ROUNDS / 10, "{refused} refusals in {ROUNDS} rounds without any trouble");
        let asked: u64 = (0..3).map(|number| nodes.metric(number, "basalt_shard_read_index_total")).sum();
        assert!(asked >= 2 * ROUNDS, "{asked} questions for {} reads at followers, one after the other", 2 * ROUNDS);
        every_read_is_served(&clients).await;
        what_a_follower_refuses(&clients).await;
        through_a_split(&clients).await;
    });
}

/// All raw reads, at a follower.
async fn every_read_is_served(clients: &Clients) {
    clients.put(b"read-a", b"1").await;
    let place = clients.put(b"read-b", b"2").await;
    for peer in place.followers() {
        let (context, store) = (Some(place.context(peer)), clients.store(peer));
        let keys = vec![bytes("read-a"), bytes("read-b"), bytes("read-c")];
        let request = kv::RawBatchGetRequest { context: context.clone(), keys, ..Default::default() };
        let answer: kv::RawBatchGetResponse = store.tikv("RawBatchGet", &request).await;
        assert_eq!((answer.region_error, answer.pairs.len()), (None, 2));
        let (start_key, end_key) = (bytes("read-"), bytes("read-z"));
        let request =
            kv::RawScanRequest { context: context.clone(), start_key, end_key, limit: 10, ..Default::default() };
        let answer: kv::RawScanResponse = store.tikv("RawScan", &request).await;
        let values: Vec<_> = answer.kvs.iter().map(|pair| pair.value.clone()).collect();
        assert_eq!((answer.region_error, values), (None, vec![bytes("1"), bytes("2")]));
        let ranges = vec![kv::KeyRange { start_key: bytes("read-"), end_key: bytes("read-z") }];
        let request = kv::RawBatchScanRequest {
            context: context.clone(),
            ranges: ranges.clone(),
            each_limit: 1,
            ..Default::default()
        };
        let answer: kv::RawBatchScanResponse = store.tikv("RawBatchScan", &request).await;
        assert_eq!((answer.region_error, answer.kvs.len()), (None, 1));
        let request = kv::RawChecksumRequest { context, algorithm: kv::ChecksumAlgorithm::Crc64Xor as i32, ranges };
        let answer: kv::RawChecksumResponse = store.tikv("RawChecksum", &request).await;
        assert_eq!((answer.region_error, answer.total_kvs), (None, 2));
    }
}

async fn what_a_follower_refuses(clients: &Clients) {
    let place = clients.put(b"refused", b"1").await;
    let follower = place.followers().next().expect("a follower");
    let (replica, store) = (place.context(follower), clients.store(follower));
    let get = async |context: Context| {
        let request = kv::RawGetRequest { context: Some(context), key: bytes("refused"), ..Default::default() };
        let answer: kv::RawGetResponse = store.tikv("RawGet", &request).await;
        answer.region_error.expect("a region error")
    };
    let plain = get(Context { replica_read: false, ..replica.clone() }).await;
    assert_eq!(plain.not_leader.and_then(|error| error.leader), Some(place.leader));
    let stale = get(Context { stale_read: true, ..replica.clone() }).await;
    let not_ready = stale.data_is_not_ready.expect("no timestamp is known to be safe");
    assert_eq!((not_ready.region_id, not_ready.peer_id, not_ready.safe_ts), (place.region.id, follower.id, 0));
    let mut old = replica.clone();
    old.region_epoch.as_mut().expect("an epoch").version -= 1;
    let old = get(old).await;
    assert_eq!(old.epoch_not_match.map(|error| error.current_regions), Some(vec![place.region.clone()]));
    // A follower writes for nobody, whatever the context says of reads.
    let request = kv::RawPutRequest {
        context: Some(replica.clone()),
        key: bytes("refused"),
        value: bytes("2"),
        ..Default::default()
    };
    let answer: kv::RawPutResponse = store.tikv("RawPut", &request).await;
    assert!(answer.region_error.is_some_and(|error| error.not_leader.is_some()));
    let request = kv::RawCasRequest {
        context: Some(replica),
        key: bytes("refused"),
        value: bytes("2"),
        previous_value: bytes("1"),
        ..Default::default()
    };
    let answer: kv::RawCasResponse = store.tikv("RawCompareAndSwap", &request).await;
    assert!(answer.region_error.is_some_and(|error| error.not_leader.is_some()));
    // A leader takes a stale read for a fresh one.
    let stale = Context { stale_read: true, ..place.context(place.leader) };
    assert_eq!(clients.get(&stale, b"refused").await.0, Some(bytes("1")));
}

/// A follower that has not applied a split yet waits for it, instead of disputing the epoch that the client learned.
async fn through_a_split(clients: &Clients) {
    for round in 0..20 {
        let key = format!("split-{round:02}");
        let place = clients.put(key.as_bytes(), b"1").await;
        let request = split_request(&place.context(place.leader), &[key.as_bytes()]);
        let answer: kv::SplitRegionResponse = clients.store(place.leader).tikv("SplitRegion", &request).await;
        assert_eq!(answer.region_error, None);
        // The right one keeps its id, and its leader.
        let region = answer.regions.into_iter().find(|region| region.id == place.region.id).expect("it is one of them");
        assert!(base::keys::contains(&region.start_key, &region.end_key, key.as_bytes()));
        let place = Place { region, ..place };
        for peer in place.followers() {
            let found = clients.get(&place.context(peer), key.as_bytes()).await.0;
            assert_eq!(found, Some(bytes("1")));
        }
    }
}
