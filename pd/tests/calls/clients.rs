//! What tikv-client, client-go and client-java ask at their start and in operation, with their habits.

use crate::common::{cx, error_of, peer, region, with_pd};
use proto::health::{HealthCheckRequest, HealthClient, health_check_response::ServingStatus};
use proto::meta_storagepb as meta;
use proto::pdpb::*;
use proto::rpc::{CallContext, Channel, Code, Metadata};
use proto::{etcdserverpb, keyspacepb};
use std::time::Duration;

fn largest(answer: &TsoResponse) -> u64 {
    let timestamp = answer.timestamp.expect("a timestamp");
    (timestamp.physical << 18 | timestamp.logical).unsigned_abs()
}

#[test]
fn tikv_client_finds_the_leader_its_regions_and_its_stores() {
    with_pd(|pd| async move {
        pd.bootstrap().await;
        pd.report(&[region(2, "", "b", 2), region(3, "b", "", 2)]).await;
        // It knows no cluster id yet, and sends no header at all.
        let members = pd.pd.get_members(cx(), &GetMembersRequest::default()).await.expect("members");
        let cluster_id = members.header.expect("a header").cluster_id;
        let url = members.leader.expect("a leader").client_urls.remove(0);
        assert!(url.starts_with("http://"), "{url}");
        let header = Some(RequestHeader { cluster_id, sender_id: 0 });
        let request = GetRegionRequest { header, region_key: "c".into(), need_buckets: false };
        let found = pd.pd.get_region(cx(), &request).await.expect("answer");
        assert_eq!((found.region.map(|region| region.id), found.leader), (Some(3), Some(peer(30, 1))));
        let stores = GetAllStoresRequest { header, exclude_tombstone_stores: false };
        let stores = pd.pd.get_all_stores(cx(), &stores).await.expect("answer");
        assert_eq!(error_of(&stores.header), None);
        let addresses: Vec<_> = stores.stores.iter().map(|store| store.address.as_str()).collect();
        assert_eq!(addresses, ["127.0.0.1:20161"], "host and port, without a scheme");
        let store = pd.pd.get_store(cx(), &GetStoreRequest { header, store_id: 1 }).await.expect("answer");
        assert_eq!(store.store.map(|store| store.id), Some(1));
    });
}

#[test]
fn requests_for_timestamps_may_be_sent_without_waiting() {
    with_pd(|pd| async move {
        let (requests, mut answers) = pd.pd.tso(cx()).await.expect("the stream opens");
        for count in 1..=64 {
            let request = TsoRequest { header: pd.header(), count, dc_location: "global".into() };
            requests.send(&request).await.expect("sent");
        }
        let mut last = 0;
        for count in 1..=64 {
            let answer = answers.next().await.expect("no error").expect("an answer");
            assert_eq!((answer.count, error_of(&answer.header)), (count, None), "answers come in order");
            assert!(largest(&answer) - u64::from(count) >= last);
            last = largest(&answer);
        }
    });
}

#[test]
fn timestamps_of_two_streams_never_meet() {
    with_pd(|pd| async move {
        let request = |count| TsoRequest { header: pd.header(), count, dc_location: String::new() };
        let (first, mut to_first) = pd.pd.tso(cx()).await.expect("the stream opens");
        let (second, mut to_second) = pd.pd.tso(cx()).await.expect("the stream opens");
        let mut given = Vec::new();
        for round in 1..=50 {
            first.send(&request(round)).await.expect("sent");
            second.send(&request(2 * round)).await.expect("sent");
            let (one, other) = (to_first.next().await, to_second.next().await);
            for answer in [one, other] {
                let answer = answer.expect("no error").expect("an answer");
                given.push((largest(&answer) - u64::from(answer.count) + 1, largest(&answer)));
            }
        }
        given.sort_unstable();
        assert!(given.windows(2).all(|pair| pair[0].1 < pair[1].0), "{given:?}");
        let min = pd.pd.get_min_ts(cx(), &GetMinTsRequest { header: pd.header() }).await;
        let min = min.expect("answer").timestamp.expect("a timestamp");
        assert!((min.physical << 18 | min.logical).unsigned_abs() > given[99].1);
    });
}

#[test]
fn timestamps_follow_the_clock() {
    with_pd(|pd| async move {
        let (requests, mut answers) = pd.pd.tso(cx()).await.expect("the stream opens");
        for _ in 0..3 {
            let before = executor::unix_time().millis();
            let request = TsoRequest { header: pd.header(), count: 1, dc_location: String::new() };
            requests.send(&request).await.expect("sent");
            let answer = answers.next().await.expect("no error").expect("an answer");
            let physical = answer.timestamp.expect("a timestamp").physical.unsigned_abs();
            // Physical follows every 50 ms; the tests' clock is the same as the member's.
            assert!(
                physical + 60 >= before && physical <= executor::unix_time().millis() + 60,
                "{physical} at {before}"
            );
            executor::sleep(Duration::from_millis(70)).await;
        }
    });
}

#[test]
fn client_java_takes_a_timestamp_as_if_the_call_were_unary() {
    with_pd(|pd| async move {
        let (requests, mut answers) = pd.pd.tso(cx()).await.expect("the stream opens");
        let request = TsoRequest { header: pd.header(), count: 1, dc_location: String::new() };
        requests.send(&request).await.expect("sent");
        // It half-closes before it has read anything, and wants one answer and OK.
        requests.close();
        assert!(answers.next().await.expect("no error").is_some());
        assert_eq!(answers.next().await, Ok(None));
    });
}

#[test]
fn client_go_and_pds_own_client_start() {
    with_pd(|pd| async move {
        pd.bootstrap().await;
        // Every second, of every member, whatever its role.
        let health = HealthClient::new(pd.channel.clone());
        let alive = health.check(cx(), &HealthCheckRequest::default()).await.expect("answer");
        assert_eq!(alive.status(), ServingStatus::Serving);
        // Services of a member are looked for before the cluster's id is known; there are none.
        let cluster_id = pd.server.cluster_id().0;
        for id in [0, cluster_id] {
            let prefix = format!("/ms/{cluster_id}/router/registry/");
            let get = meta::GetRequest {
                header: Some(meta::RequestHeader { cluster_id: id, source: String::new() }),
                key: prefix.clone().into(),
                range_end: prefix.replace("registry/", "registry0").into(),
                ..Default::default()
            };
            let found = pd.meta.get(cx(), &get).await.expect("answer");
            assert!(found.kvs.is_empty() && found.header.is_some_and(|header| header.revision > 0));
        }
        let get = meta::GetRequest {
            header: Some(meta::RequestHeader { cluster_id: 7, source: String::new() }),
            ..Default::default()
        };
        let status = pd.meta.get(cx(), &get).await.expect_err("another cluster's");
        assert_eq!(status.code, Code::FailedPrecondition);
        // The etcd client goes where the member list says; the safe point is not there before it was set.
        let cluster = etcdserverpb::ClusterClient::new(pd.channel.clone());
        let list = cluster.member_list(cx(), &etcdserverpb::MemberListRequest::default()).await.expect("members");
        assert_eq!(list.members[0].client_urls, [pd.server.url().to_owned()]);
        let key = "/tidb/store/gcworker/saved_safe_point".into();
        let range = etcdserverpb::RangeRequest { key, ..Default::default() };
        let found = pd.kv.range(cx(), &range).await.expect("answer");
        assert_eq!((found.count, found.kvs.len()), (0, 0));
        let keyspace = keyspacepb::LoadKeyspaceRequest { header: pd.header(), name: "DEFAULT".into() };
        let keyspace = pd.keyspaces.load_keyspace(cx(), &keyspace).await.expect("answer").keyspace;
        assert_eq!(keyspace.map(|meta| meta.name), Some("DEFAULT".to_owned()));
    });
}

/// Clients fall back on an older way only if the newer one is UNIMPLEMENTED, and for nothing else.
#[test]
fn newer_calls_that_are_not_served_say_so() {
    with_pd(|pd| async move {
        for path in [
            "/pdpb.PD/GetGCState",
            "/pdpb.PD/AdvanceTxnSafePoint",
            "/pdpb.PD/WatchGCSafePointV2",
            "/pdpb.PD/NoSuchMethod",
            "/resource_manager.ResourceManager/ListResourceGroups",
            "/no.such.Service/Method",
        ] {
            let status = pd.channel.unary(path, cx(), bytes::Bytes::new()).await.expect_err(path);
            assert_eq!(status.code, Code::Unimplemented, "{path}: {status}");
        }
    });
}

#[test]
fn calls_without_a_cluster_id_are_served_whatever_it_is() {
    with_pd(|pd| async move {
        let foreign = Some(RequestHeader { cluster_id: 7, sender_id: 0 });
        let members = pd.pd.get_members(cx(), &GetMembersRequest { header: foreign }).await.expect("members");
        assert_eq!(members.members.len(), 1);
        pd.pd.is_snapshot_recovering(cx(), &IsSnapshotRecoveringRequest { header: foreign }).await.expect("answer");
        // Every other service checks it: keyspaces too.
        let load = keyspacepb::LoadKeyspaceRequest { header: foreign, name: "DEFAULT".into() };
        let status = pd.keyspaces.load_keyspace(cx(), &load).await.expect_err("refused");
        assert_eq!(status.code, Code::FailedPrecondition);
        let all = keyspacepb::GetAllKeyspacesRequest { header: foreign, ..Default::default() };
        assert!(pd.keyspaces.get_all_keyspaces(cx(), &all).await.is_err());
    });
}

#[test]
fn a_call_forwarded_to_this_member_is_served() {
    with_pd(|pd| async move {
        for host in [pd.server.url().to_owned(), pd.server.addr().to_string()] {
            let mut metadata = Metadata::new();
            metadata.push("pd-forwarded-host", host.as_str());
            metadata.push("pd-allow-follower-handle", "");
            let here = CallContext { metadata, ..CallContext::default() };
            let members = pd.pd.get_members(here, &GetMembersRequest::default()).await.expect(&host);
            assert_eq!(members.members.len(), 1);
        }
    });
}

#[test]
fn keyspaces_are_watched_from_those_that_exist() {
    with_pd(|pd| async move {
        pd.bootstrap().await;
        let watch = keyspacepb::WatchKeyspacesRequest { header: pd.header() };
        let mut seen = pd.keyspaces.watch_keyspaces(cx(), &watch).await.expect("the stream opens");
        let names = |answer: Option<keyspacepb::WatchKeyspacesResponse>| -> Vec<String> {
            answer.expect("an answer").keyspaces.into_iter().map(|meta| meta.name).collect()
        };
        assert_eq!(names(seen.next().await.expect("no error")), ["DEFAULT"]);
        assert_eq!(pd.http("POST", "/pd/api/v2/keyspaces", r#"{"name":"one"}"#).await.0, 200);
        assert_eq!(names(seen.next().await.expect("no error")), ["one"]);
    });
}
