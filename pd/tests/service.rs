//! The member over its port, as stock clients call it.

mod common;

use common::{Pd, cx, error_of, on_core, peer, region, start, store, with_pd};
use pd::ANNOUNCED_VERSION;
use proto::pdpb::*;
use proto::rpc::{CallContext, Code, Metadata};
use proto::{keyspacepb, metapb};
use std::time::Duration;

async fn split_in_three(pd: &Pd) {
    pd.report(&[region(2, "", "b", 3), region(3, "b", "d", 3), region(4, "d", "", 3)]).await;
}

fn id_of(answer: &GetRegionResponse) -> Option<u64> {
    assert_eq!(error_of(&answer.header), None);
    answer.region.as_ref().map(|region| region.id)
}

#[test]
fn members_are_told_to_everybody() {
    with_pd(|pd| async move {
        let answer = pd.pd.get_members(cx(), &GetMembersRequest::default()).await.expect("members");
        assert_eq!(answer.header.as_ref().map(|header| header.cluster_id), Some(pd.server.cluster_id().0));
        let leader = answer.leader.expect("somebody leads");
        assert_eq!(leader.client_urls, [format!("http://{}", pd.server.addr())]);
        assert_eq!((leader.member_id == 0, leader.binary_version.as_str()), (false, ANNOUNCED_VERSION));
        assert_eq!(answer.members, std::slice::from_ref(&leader));
        assert_eq!(answer.etcd_leader, Some(leader));
        let info = pd.pd.get_cluster_info(cx(), &GetClusterInfoRequest::default()).await.expect("info");
        assert_eq!(info.service_modes, [i32::from(ServiceMode::PdSvcMode)]);
    });
}

#[test]
fn a_foreign_cluster_id_is_refused_with_the_text_that_clients_match() {
    with_pd(|pd| async move {
        let ours = pd.server.cluster_id().0;
        let header = Some(RequestHeader { cluster_id: 7, sender_id: 0 });
        let request = GetRegionRequest { header, ..GetRegionRequest::default() };
        let status = pd.pd.get_region(cx(), &request).await.expect_err("refused");
        assert_eq!(status.code, Code::FailedPrecondition);
        assert_eq!(status.message, format!("mismatch cluster id, need {ours} but got 7"));
        let status = pd.pd.alloc_id(cx(), &AllocIdRequest::default()).await.expect_err("no header");
        assert_eq!(status.message, format!("mismatch cluster id, need {ours} but got 0"));
        // Calls for another member are not answered from here.
        let mut metadata = Metadata::new();
        metadata.push("pd-forwarded-host", "http://10.0.0.1:2379");
        let elsewhere = CallContext { metadata, ..CallContext::default() };
        let status = pd.pd.get_members(elsewhere, &GetMembersRequest::default()).await.expect_err("refused");
        assert_eq!(status.code, Code::Unavailable);
    });
}

#[test]
fn before_bootstrap_the_error_is_in_the_header() {
    with_pd(|pd| async move {
        let expected = Some((ErrorType::NotBootstrapped, "cluster is not bootstrapped".to_owned()));
        let header = pd.header();
        let answer = pd.pd.get_region(cx(), &GetRegionRequest { header, ..Default::default() }).await.expect("answer");
        assert_eq!(error_of(&answer.header), expected);
        let answer = pd.pd.put_store(cx(), &PutStoreRequest { header: pd.header(), store: Some(store(1)) }).await;
        assert_eq!(error_of(&answer.expect("answer").header), expected);
        let answer = pd.pd.get_gc_safe_point(cx(), &GetGcSafePointRequest { header: pd.header() }).await;
        assert_eq!(error_of(&answer.expect("answer").header), expected);
        let is = pd.pd.is_bootstrapped(cx(), &IsBootstrappedRequest { header: pd.header() }).await.expect("answer");
        assert!(!is.bootstrapped);
        pd.bootstrap().await;
        let is = pd.pd.is_bootstrapped(cx(), &IsBootstrappedRequest { header: pd.header() }).await.expect("answer");
        assert!(is.bootstrapped);
        let again = BootstrapRequest { header: pd.header(), store: Some(store(1)), region: Some(region(2, "", "", 1)) };
        let answer = pd.pd.bootstrap(cx(), &again).await.expect("answer");
        let already = (ErrorType::AlreadyBootstrapped, "cluster is already bootstrapped".to_owned());
        assert_eq!(error_of(&answer.header), Some(already));
    });
}

#[test]
fn timestamps_rise_and_the_last_of_the_batch_is_told() {
    with_pd(|pd| async move {
        let (requests, mut answers) = pd.pd.tso(cx()).await.expect("the stream opens");
        let mut last = 0;
        for count in [1, 2, 100, 10_000, 200_000, 200_000, 1] {
            let request = TsoRequest { header: pd.header(), count, dc_location: String::new() };
            requests.send(&request).await.expect("sent");
            let answer = answers.next().await.expect("no error").expect("an answer");
            assert_eq!(answer.count, count);
            let timestamp = answer.timestamp.expect("a timestamp");
            assert!(timestamp.logical < 1 << 18 && timestamp.logical >= i64::from(count));
            let largest = timestamp.physical << 18 | timestamp.logical;
            assert!(largest - i64::from(count) >= last, "{largest} of {count} after {last}");
            last = largest;
        }
        // A client that half-closes after one request gets one answer and an OK.
        requests.close();
        assert_eq!(answers.next().await, Ok(None));
    });
}

#[test]
fn bad_requests_for_timestamps_end_the_stream() {
    with_pd(|pd| async move {
        for (header, count, code, text) in [
            (pd.header(), 0, Code::Unknown, "tso count should be positive"),
            (None, 1, Code::FailedPrecondition, "mismatch cluster id"),
            (pd.header(), 1 << 18, Code::Unknown, "generate tso maximum number of retries exceeded"),
        ] {
            let (requests, mut answers) = pd.pd.tso(cx()).await.expect("the stream opens");
            requests.send(&TsoRequest { header, count, dc_location: String::new() }).await.expect("sent");
            let status = answers.next().await.expect_err("refused");
            assert_eq!(status.code, code);
            assert!(status.message.contains(text), "{status}");
        }
    });
}

#[test]
fn ids_are_told_by_their_last_and_never_twice() {
    on_core(|path| async move {
        let pd = start(&path).await;
        let mut last = 0;
        for _ in 0..1_500 {
            let answer = pd.pd.alloc_id(cx(), &AllocIdRequest { header: pd.header() }).await.expect("an id");
            assert_eq!(answer.id, last + 1);
            last = answer.id;
        }
        pd.server.stop().await.expect("stops");
        let pd = start(&path).await;
        let answer = pd.pd.alloc_id(cx(), &AllocIdRequest { header: pd.header() }).await.expect("an id");
        assert_eq!(answer.id, 2_001, "the rest of the window is skipped");
    });
}

#[test]
fn stores_register_and_leave_by_pds_rules() {
    with_pd(|pd| async move {
        pd.bootstrap().await;
        let get = async |id| {
            let request = GetStoreRequest { header: pd.header(), store_id: id };
            pd.pd.get_store(cx(), &request).await.expect("answer")
        };
        let put = async |store| {
            let request = PutStoreRequest { header: pd.header(), store: Some(store) };
            error_of(&pd.pd.put_store(cx(), &request).await.expect("answer").header)
        };
        assert_eq!(get(1).await.store.expect("a store").node_state(), metapb::NodeState::Serving);
        let unknown = (ErrorType::Unknown, "invalid store ID 9, not found".to_owned());
        assert_eq!(error_of(&get(9).await.header), Some(unknown));
        assert_eq!(put(store(1)).await, None);
        let twin = metapb::Store { address: store(1).address, ..store(3) };
        let (kind, text) = put(twin).await.expect("refused");
        assert_eq!(kind, ErrorType::Unknown);
        assert!(text.starts_with("duplicated store address"), "{text}");
        let (kind, _) = put(metapb::Store { version: "7.5.0".into(), ..store(3) }).await.expect("refused");
        assert_eq!(kind, ErrorType::Unknown);
        let odd = metapb::StoreLabel { key: "engine".into(), value: "rocket".into() };
        let (kind, _) = put(metapb::Store { labels: vec![odd], ..store(3) }).await.expect("refused");
        assert_eq!(kind, ErrorType::InvalidValue);
        assert_eq!(put(store(3)).await, None);
        assert_eq!(get(3).await.store.expect("a store").node_state(), metapb::NodeState::Preparing);

        let beat = async |store_id| {
            let stats = StoreStats { store_id, capacity: 1 << 40, available: 1 << 39, ..StoreStats::default() };
            let request = StoreHeartbeatRequest { header: pd.header(), stats: Some(stats), ..Default::default() };
            pd.pd.store_heartbeat(cx(), &request).await.expect("answer")
        };
        let alive = beat(3).await;
        assert_eq!((alive.cluster_version.as_str(), alive.state()), ("8.1.0", metapb::NodeState::Serving));
        assert_eq!(error_of(&beat(9).await.header), Some((ErrorType::Unknown, "store 9 not found".to_owned())));

        // A store that is taken out and holds nothing becomes a tombstone, and stays one.
        assert_eq!(pd.http("DELETE", "/pd/api/v1/store/3", "").await.0, 200);
        let (kind, text) = error_of(&beat(3).await.header).expect("refused");
        assert_eq!((kind, text.as_str()), (ErrorType::StoreTombstone, "store is tombstone"));
        assert_eq!(put(store(3)).await, Some((ErrorType::StoreTombstone, "store is tombstone".to_owned())));
        let all = |exclude| GetAllStoresRequest { header: pd.header(), exclude_tombstone_stores: exclude };
        assert_eq!(pd.pd.get_all_stores(cx(), &all(false)).await.expect("stores").stores.len(), 2);
        assert_eq!(pd.pd.get_all_stores(cx(), &all(true)).await.expect("stores").stores.len(), 1);
    });
}

#[test]
fn regions_are_found_by_key_id_neighbour_and_range() {
    with_pd(|pd| async move {
        pd.bootstrap().await;
        split_in_three(&pd).await;
        let by_key =
            |key: &'static str| GetRegionRequest { header: pd.header(), region_key: key.into(), need_buckets: false };
        for (key, id, previous) in
            [("", 2, None), ("a", 2, None), ("b", 3, Some(2)), ("c", 3, Some(2)), ("z", 4, Some(3))]
        {
            let found = pd.pd.get_region(cx(), &by_key(key)).await.expect("answer");
            assert_eq!((id_of(&found), found.leader), (Some(id), Some(peer(id * 10, 1))), "{key}");
            let found = pd.pd.get_prev_region(cx(), &by_key(key)).await.expect("answer");
            assert_eq!(id_of(&found), previous, "in front of {key}");
        }
        let by_id = |region_id| GetRegionByIdRequest { header: pd.header(), region_id, need_buckets: false };
        assert_eq!(id_of(&pd.pd.get_region_by_id(cx(), &by_id(3)).await.expect("answer")), Some(3));
        assert_eq!(id_of(&pd.pd.get_region_by_id(cx(), &by_id(99)).await.expect("answer")), None);

        let scan = ScanRegionsRequest { header: pd.header(), start_key: "c".into(), ..Default::default() };
        let found = pd.pd.scan_regions(cx(), &scan).await.expect("answer");
        assert_eq!((found.regions.len(), found.region_metas.len(), found.leaders.len()), (2, 2, 2));
        assert_eq!(found.region_metas[0].id, 3);

        let range = |start: &'static str, end: &'static str| KeyRange { start_key: start.into(), end_key: end.into() };
        let scan = async |ranges: Vec<KeyRange>, limit| {
            let header = pd.header();
            let request =
                BatchScanRegionsRequest { header, ranges, limit, contain_all_key_range: true, ..Default::default() };
            let answer = pd.pd.batch_scan_regions(cx(), &request).await.expect("answer");
            let ids: Vec<u64> = answer.regions.iter().filter_map(|region| Some(region.region.as_ref()?.id)).collect();
            (ids, error_of(&answer.header).map(|(kind, _)| kind))
        };
        assert_eq!(scan(vec![range("a", "b1"), range("c", "d1")], 0).await, (vec![2, 3, 4], None));
        assert_eq!(scan(vec![range("a", "b1"), range("c", "d1")], 2).await, (vec![2, 3], None));
        assert_eq!(scan(vec![range("c", "a")], 0).await.1, Some(ErrorType::Unknown));
        assert_eq!(scan(vec![range("a", "c"), range("b", "d")], 0).await.1, Some(ErrorType::Unknown));
    });
}

#[test]
fn a_lookup_waits_for_the_heir_of_a_store_whose_stream_broke() {
    with_pd(|pd| async move {
        pd.bootstrap().await;
        assert_eq!(pd.put_store(store(2)).await, None);
        let mut both = region(2, "", "", 1);
        both.peers.push(peer(30, 2));
        both.region_epoch = Some(metapb::RegionEpoch { conf_ver: 2, version: 1 });
        let report = |at: usize, term| RegionHeartbeatRequest {
            header: pd.header(),
            leader: Some(both.peers[at]),
            region: Some(both.clone()),
            term,
            ..Default::default()
        };
        let (requests, answers) = pd.pd.region_heartbeat(cx()).await.expect("the stream opens");
        requests.send(&report(0, 6)).await.expect("the heartbeat goes out");
        pd.leader_is(2, 1).await;
        // A call that is cut off, not one that ends.
        drop((requests, answers));
        let (heir, _answers) = pd.pd.region_heartbeat(cx()).await.expect("the stream opens");
        let report = report(1, 7);
        let elected = executor::spawn_local(executor::Class::Foreground, async move {
            executor::sleep(Duration::from_millis(300)).await;
            heir.send(&report).await.expect("the heartbeat goes out");
            // It stays open.
            executor::sleep(Duration::from_secs(5)).await;
        });
        // The break is noticed soon, but not before this.
        executor::sleep(Duration::from_millis(100)).await;
        let request = GetRegionRequest { header: pd.header(), region_key: "a".into(), ..Default::default() };
        let answer = pd.pd.get_region(cx(), &request).await.expect("an answer");
        assert_eq!(answer.leader.map(|leader| leader.store_id), Some(2), "at once when the heir reports");
        elected.cancel();
    });
}

#[test]
fn ids_for_splits_are_refused_to_a_stale_region() {
    with_pd(|pd| async move {
        pd.bootstrap().await;
        split_in_three(&pd).await;
        let ask = async |region| {
            let request = AskBatchSplitRequest {
                header: pd.header(),
                region: Some(region),
                split_count: 2,
                ..Default::default()
            };
            pd.pd.ask_batch_split(cx(), &request).await.expect("answer")
        };
        let answer = ask(region(3, "b", "d", 3)).await;
        assert_eq!(error_of(&answer.header), None);
        assert_eq!(answer.ids.len(), 2);
        assert!(answer.ids.iter().all(|id| id.new_region_id > 0 && id.new_peer_ids.len() == 1));
        let (kind, text) = error_of(&ask(region(3, "b", "", 2)).await.header).expect("refused");
        assert_eq!(kind, ErrorType::Unknown);
        assert!(text.starts_with("invalid region epoch"), "{text}");

        let report = async |regions| {
            let request = ReportBatchSplitRequest { header: pd.header(), regions };
            error_of(&pd.pd.report_batch_split(cx(), &request).await.expect("answer").header)
        };
        assert_eq!(report(vec![region(5, "b", "c", 4), region(3, "c", "d", 4)]).await, None);
        assert!(report(vec![region(5, "b", "c", 4), region(3, "c1", "d", 4)]).await.is_some());
    });
}

#[test]
fn a_stale_heartbeat_is_refused_on_the_stream_and_an_unknown_store_ends_it() {
    with_pd(|pd| async move {
        pd.bootstrap().await;
        split_in_three(&pd).await;
        let beat = |region: metapb::Region, term| RegionHeartbeatRequest {
            header: pd.header(),
            leader: region.peers.first().cloned(),
            region: Some(region),
            term,
            ..RegionHeartbeatRequest::default()
        };
        let (requests, mut answers) = pd.pd.region_heartbeat(cx()).await.expect("the stream opens");
        for stale in [beat(region(2, "", "", 1), 9), beat(region(3, "b", "d", 3), 5), beat(region(9, "a", "c", 2), 9)] {
            requests.send(&stale).await.expect("sent");
            let answer = answers.next().await.expect("no error").expect("an answer");
            let (kind, text) = error_of(&answer.header).expect("refused");
            assert_eq!(kind, ErrorType::Unknown);
            assert!(text.starts_with("region is stale"), "{text}");
        }
        let stranger = metapb::Region { peers: vec![peer(90, 77)], ..region(3, "b", "d", 4) };
        requests.send(&beat(stranger, 9)).await.expect("sent");
        let status = answers.next().await.expect_err("the stream ends");
        assert_eq!((status.code, status.message.as_str()), (Code::Unknown, "invalid store ID 77, not found"));
    });
}

#[test]
fn splits_at_keys_are_asked_of_the_leader() {
    with_pd(|pd| async move {
        pd.bootstrap().await;
        let (requests, mut answers) = pd.pd.region_heartbeat(cx()).await.expect("the stream opens");
        let beat = |region: metapb::Region| RegionHeartbeatRequest {
            header: pd.header(),
            leader: Some(peer(20, 1)),
            region: Some(region),
            ..RegionHeartbeatRequest::default()
        };
        requests.send(&beat(region(2, "", "", 1))).await.expect("sent");
        let leader = async {
            let order = answers.next().await.expect("no error").expect("an order");
            let split = order.split_region.expect("a split");
            assert_eq!((order.region_id, order.target_peer), (2, Some(peer(20, 1))));
            assert_eq!((split.policy(), split.keys.len()), (CheckPolicy::Usekey, 2));
            for region in [region(2, "", "k", 3), region(7, "k", "p", 3), region(8, "p", "", 3)] {
                requests.send(&beat(region)).await.expect("sent");
            }
        };
        let client = async {
            let split_keys = vec!["p".into(), "k".into()];
            let request = SplitRegionsRequest { header: pd.header(), split_keys, retry_limit: 3 };
            pd.pd.split_regions(cx(), &request).await.expect("answer")
        };
        let (answer, ()) = futures_util::future::join(client, leader).await;
        assert_eq!((answer.finished_percentage, answer.regions_id), (100, vec![8, 7]));
        let scatter = ScatterRegionRequest { header: pd.header(), regions_id: vec![2, 7, 99], ..Default::default() };
        let answer = pd.pd.scatter_region(cx(), &scatter).await.expect("answer");
        assert_eq!((answer.finished_percentage, answer.failed_regions_id), (66, vec![99]));
        let get = async |region_id| {
            let operator = GetOperatorRequest { header: pd.header(), region_id };
            pd.pd.get_operator(cx(), &operator).await.expect("answer")
        };
        assert_eq!(get(2).await.desc, "admin-split-region");
        let not_found = Some((ErrorType::RegionNotFound, "Not Found".to_owned()));
        assert_eq!(error_of(&get(7).await.header), not_found);
    });
}

#[test]
fn safe_points_serve_old_clients() {
    with_pd(|pd| async move {
        pd.bootstrap().await;
        let update = async |safe_point| {
            let request = UpdateGcSafePointRequest { header: pd.header(), safe_point };
            pd.pd.update_gc_safe_point(cx(), &request).await.map(|answer| answer.new_safe_point)
        };
        let hold = async |service: &'static str, ttl, safe_point| {
            let service_id = service.into();
            let request = UpdateServiceGcSafePointRequest { header: pd.header(), service_id, ttl, safe_point };
            let answer = pd.pd.update_service_gc_safe_point(cx(), &request).await?;
            Ok::<_, proto::rpc::Status>((answer.service_id, answer.min_safe_point))
        };
        assert_eq!(update(10).await, Ok(10));
        assert_eq!(update(7).await, Ok(10), "a smaller one is ignored");
        assert_eq!(hold("br", 1_000, 20).await, Ok(("gc_worker".into(), 10)));
        let status = update(30).await.expect_err("a barrier is in the way");
        assert!(status.message.contains("PD:gc:ErrGCSafePointExceedsTxnSafePoint"), "{status}");
        assert_eq!(hold("gc_worker", i64::MAX, 30).await, Ok(("br".into(), 20)));
        assert!(hold("gc_worker", 60, 30).await.is_err());
        assert_eq!(hold("br", 0, 0).await, Ok(("gc_worker".into(), 20)));
        assert_eq!(hold("late", 1_000, 5).await, Ok(("gc_worker".into(), 20)), "the caller sees that it is too late");
        assert_eq!(update(30).await, Ok(30));
        // What clients without these calls read from etcd.
        let key = "/tidb/store/gcworker/saved_safe_point".into();
        let range = proto::etcdserverpb::RangeRequest { key, ..Default::default() };
        let found = pd.kv.range(cx(), &range).await.expect("answer");
        assert_eq!(found.kvs.iter().map(|kv| &kv.value[..]).collect::<Vec<_>>(), [b"30"]);
    });
}

#[test]
fn keyspaces_are_created_over_http_and_loaded_over_grpc() {
    with_pd(|pd| async move {
        pd.bootstrap().await;
        let load = async |name: &str| {
            let request = keyspacepb::LoadKeyspaceRequest { header: pd.header(), name: name.into() };
            pd.keyspaces.load_keyspace(cx(), &request).await.expect("answer")
        };
        let default = load("DEFAULT").await.keyspace.expect("the default keyspace");
        assert_eq!((default.id, default.state()), (0, keyspacepb::KeyspaceState::Enabled));
        assert_eq!(error_of(&load("mine").await.header).map(|(kind, _)| kind), Some(ErrorType::EntryNotFound));
        let (status, body) = pd.http("POST", "/pd/api/v2/keyspaces", r#"{"name":"mine","config":{"a":"b"}}"#).await;
        assert_eq!(status, 200, "{body}");
        let mine = load("mine").await.keyspace.expect("created");
        assert_eq!((mine.id, mine.config.get("a").map(String::as_str)), (1, Some("b")));
        assert_eq!(pd.http("POST", "/pd/api/v2/keyspaces", r#"{"name":"mine"}"#).await.0, 409);
        assert_eq!(pd.http("POST", "/pd/api/v2/keyspaces", r#"{"name":"not a name"}"#).await.0, 400);
        let state = keyspacepb::KeyspaceState::Disabled.into();
        let request = keyspacepb::UpdateKeyspaceStateRequest { header: pd.header(), id: 1, state };
        let answer = pd.keyspaces.update_keyspace_state(cx(), &request).await.expect("answer");
        assert_eq!(answer.keyspace.map(|meta| meta.state), Some(state));
        let request = keyspacepb::GetAllKeyspacesRequest { header: pd.header(), start_id: 0, limit: 0 };
        let all = pd.keyspaces.get_all_keyspaces(cx(), &request).await.expect("answer").keyspaces;
        assert_eq!(all.iter().map(|meta| meta.id).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(pd.get_json("/pd/api/v2/keyspaces").await["keyspaces"][1]["state"], "DISABLED");
    });
}

#[test]
fn external_and_resolved_timestamps_never_fall() {
    with_pd(|pd| async move {
        pd.bootstrap().await;
        let set = async |timestamp| {
            let request = SetExternalTimestampRequest { header: pd.header(), timestamp };
            error_of(&pd.pd.set_external_timestamp(cx(), &request).await.expect("answer").header)
        };
        assert_eq!(set(100).await, None);
        assert!(set(100).await.is_some() && set(u64::MAX).await.is_some());
        let get = GetExternalTimestampRequest { header: pd.header() };
        assert_eq!(pd.pd.get_external_timestamp(cx(), &get).await.expect("answer").timestamp, 100);
        assert_eq!(pd.get_json("/pd/api/v1/min-resolved-ts").await["min_resolved_ts"], u64::MAX);
        for (ts, seen) in [(50, 50), (40, 50), (60, 60)] {
            let request = ReportMinResolvedTsRequest { header: pd.header(), store_id: 1, min_resolved_ts: ts };
            pd.pd.report_min_resolved_ts(cx(), &request).await.expect("answer");
            assert_eq!(pd.get_json("/pd/api/v1/min-resolved-ts").await["min_resolved_ts"], seen);
        }
    });
}

#[test]
fn the_rest_paths_have_the_shapes_that_tools_read() {
    with_pd(|pd| async move {
        pd.bootstrap().await;
        split_in_three(&pd).await;
        assert_eq!(pd.get_json("/pd/api/v1/version").await["version"], ANNOUNCED_VERSION);
        assert_eq!(pd.get_json("/pd/api/v1/members").await["header"]["cluster_id"], pd.server.cluster_id().0);
        assert_eq!(pd.get_json("/pd/api/v1/health").await[0]["health"], true);
        let regions = pd.get_json("/pd/api/v1/regions").await;
        assert_eq!(regions["count"], 3);
        assert_eq!(regions["regions"][1]["start_key"], "62");
        assert_eq!(regions["regions"][1]["leader"]["store_id"], 1);
        assert_eq!(regions["regions"][1]["approximate_size"], 5);
        assert_eq!(pd.get_json("/pd/api/v1/regions/key?key=b&limit=1").await["regions"][0]["id"], 3);
        assert_eq!(pd.get_json("/pd/api/v1/region/id/4").await["id"], 4);
        assert_eq!(pd.get_json("/pd/api/v1/region/key/c").await["id"], 3);
        assert_eq!(pd.get_json("/pd/api/v1/region/id/77").await, serde_json::Value::Null);
        let stats = pd.get_json("/pd/api/v1/stats/region?start_key=&end_key=").await;
        assert_eq!((&stats["count"], &stats["storage_keys"]), (&3.into(), &300.into()));
        let stores = pd.get_json("/pd/api/v1/stores").await;
        assert_eq!((&stores["count"], &stores["stores"][0]["store"]["state_name"]), (&1.into(), &"Up".into()));
        assert_eq!(stores["stores"][0]["status"]["leader_count"], 3);
        assert_eq!(pd.get_json("/pd/api/v1/store/1").await["store"]["address"], "127.0.0.1:20161");
        let (status, metrics) = pd.http("GET", "/metrics", "").await;
        assert!(status == 200 && metrics.contains("pd_regions 3\n"), "{metrics}");
        assert_eq!(pd.http("GET", "/pd/api/v1/store/9", "").await.0, 404);
        assert_eq!(pd.http("GET", "/pd/api/v1/nothing", "").await.0, 404);
        assert_eq!(pd.get_json("/pd/api/v1/config").await["replication"]["max-replicas"], 3);
        assert_eq!(pd.get_json("/pd/api/v1/config/rules").await[0]["id"], "default");
        assert_eq!(pd.http("POST", "/pd/api/v1/store/1/label", r#"{"zone":"z1"}"#).await.0, 200);
        assert_eq!(pd.get_json("/pd/api/v1/store/1").await["store"]["labels"][0]["value"], "z1");
    });
}

#[test]
fn a_restarted_member_is_the_same_cluster_with_the_same_regions() {
    on_core(|path| async move {
        let pd = start(&path).await;
        pd.bootstrap().await;
        split_in_three(&pd).await;
        let cluster = pd.server.cluster_id();
        // Region descriptions are kept in the background; an id waits for everything in front of it.
        pd.pd.alloc_id(cx(), &AllocIdRequest { header: pd.header() }).await.expect("an id");
        // Not stopped in order: dropped where it stands.
        drop(pd);
        let pd = start(&path).await;
        assert_eq!(pd.server.cluster_id(), cluster);
        let request = GetRegionRequest { header: pd.header(), region_key: "c".into(), need_buckets: false };
        let found = pd.pd.get_region(cx(), &request).await.expect("answer");
        assert_eq!((id_of(&found), found.leader), (Some(3), None), "its leader has not reported yet");
    });
}
