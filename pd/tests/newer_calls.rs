//! What clients newer than release 8.5 call on `pdpb.PD`.

mod common;

use common::{cx, region, with_pd};
use prost::Message;
use proto::pdpb::{RegionHeartbeatRequest, RequestHeader};
use proto::rpc::{Channel, call};
use std::collections::BTreeMap;

#[derive(Clone, PartialEq, Message)]
struct Query {
    #[prost(message, optional, tag = "1")]
    header: Option<RequestHeader>,
    #[prost(uint64, repeated, tag = "3")]
    ids: Vec<u64>,
    #[prost(string, repeated, tag = "4")]
    keys: Vec<String>,
    #[prost(string, repeated, tag = "5")]
    prev_keys: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct Found {
    #[prost(uint64, repeated, tag = "2")]
    key_id_map: Vec<u64>,
    #[prost(uint64, repeated, tag = "3")]
    prev_key_id_map: Vec<u64>,
    #[prost(btree_map = "uint64, message", tag = "4")]
    regions_by_id: BTreeMap<u64, FoundRegion>,
}

#[derive(Clone, PartialEq, Message)]
struct FoundRegion {
    #[prost(message, optional, tag = "1")]
    region: Option<proto::metapb::Region>,
    #[prost(message, optional, tag = "2")]
    leader: Option<proto::metapb::Peer>,
}

#[derive(Clone, PartialEq, Message)]
struct Ids {
    #[prost(message, optional, tag = "1")]
    header: Option<RequestHeader>,
    #[prost(uint64, tag = "2")]
    second: u64,
    #[prost(uint32, tag = "3")]
    third: u32,
}

#[test]
fn many_regions_are_queried_on_one_stream() {
    with_pd(|pd| async move {
        pd.bootstrap().await;
        let (requests, mut answers) = pd.pd.region_heartbeat(cx()).await.expect("the stream opens");
        for region in [region(2, "", "b", 2), region(3, "b", "", 2)] {
            let leader = region.peers.first().cloned();
            let beat =
                RegionHeartbeatRequest { header: pd.header(), region: Some(region), leader, ..Default::default() };
            requests.send(&beat).await.expect("sent");
        }
        requests.close();
        answers.next().await.expect("taken");

        let (requests, mut answers) =
            call::stream::<Query, Found>(&pd.channel, "/pdpb.PD/QueryRegion", cx()).await.expect("the stream opens");
        for _ in 0..2 {
            let query = Query {
                header: pd.header(),
                ids: vec![3, 0, 99],
                keys: vec!["a".into(), "c".into(), "".into()],
                prev_keys: vec!["a".into(), "c".into()],
            };
            requests.send(&query).await.expect("sent");
            let found = answers.next().await.expect("no error").expect("an answer");
            assert_eq!((found.key_id_map, found.prev_key_id_map), (vec![2, 3, 2], vec![0, 2]));
            assert_eq!(found.regions_by_id.keys().copied().collect::<Vec<_>>(), [2, 3]);
            assert!(found.regions_by_id[&3].region.is_some() && found.regions_by_id[&3].leader.is_some());
        }
        requests.send(&Query::default()).await.expect("sent");
        assert!(answers.next().await.expect_err("no cluster id").message.starts_with("mismatch cluster id"));
    });
}

#[test]
fn ids_are_given_in_runs() {
    with_pd(|pd| async move {
        for (count, last, told) in [(0, 1, 0), (5, 6, 5), (3_000, 3_006, 3_000), (1, 3_007, 0)] {
            let request = Ids { header: pd.header(), second: count, third: 0 };
            let answer = pd.channel.unary("/pdpb.PD/AllocID", cx(), request.encode_to_vec().into()).await.expect("ids");
            let answer = Ids::decode(answer).expect("decodes");
            assert_eq!((answer.second, answer.third), (last, told));
        }
    });
}
