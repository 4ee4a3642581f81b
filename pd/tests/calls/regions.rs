//! Regions as leaders report them, and as clients look them up.

use crate::common::{Pd, cx, error_of, peer, region, store, with_pd};
use bytes::Bytes;
use proto::metapb;
use proto::pdpb::*;
use proto::rpc::Code;

fn by_key(pd: &Pd, key: &'static str) -> GetRegionRequest {
    GetRegionRequest { header: pd.header(), region_key: key.into(), need_buckets: true }
}

fn beat(pd: &Pd, region: metapb::Region) -> RegionHeartbeatRequest {
    RegionHeartbeatRequest {
        header: pd.header(),
        leader: region.peers.first().copied(),
        region: Some(region),
        ..RegionHeartbeatRequest::default()
    }
}

/// Regions 2, 3 and 4 with bounds b and d, of which 3 is then forgotten: a hole.
async fn with_a_hole(pd: &Pd) {
    pd.bootstrap().await;
    pd.report(&[region(2, "", "b", 3), region(3, "b", "d", 3), region(4, "d", "", 3)]).await;
    assert_eq!(pd.http("DELETE", "/pd/api/v1/admin/cache/region/3", "").await.0, 200);
}

#[test]
fn a_key_without_a_region_gets_a_header_and_nothing_else() {
    with_pd(|pd| async move {
        with_a_hole(&pd).await;
        let found = pd.pd.get_region(cx(), &by_key(&pd, "c")).await.expect("answer");
        assert_eq!((error_of(&found.header), found.region, found.leader), (None, None, None));
        let found = pd.pd.get_prev_region(cx(), &by_key(&pd, "d")).await.expect("answer");
        assert_eq!((error_of(&found.header), found.region), (None, None), "what lies in front of it is the hole");
        let scan = ScanRegionsRequest { header: pd.header(), start_key: "c".into(), ..Default::default() };
        let found = pd.pd.scan_regions(cx(), &scan).await.expect("answer");
        assert_eq!(found.region_metas.iter().map(|region| region.id).collect::<Vec<_>>(), [4]);
    });
}

#[test]
fn ranges_are_refused_with_the_words_that_clients_know() {
    with_pd(|pd| async move {
        with_a_hole(&pd).await;
        let range = |start: &'static str, end: &'static str| KeyRange { start_key: start.into(), end_key: end.into() };
        let scan = async |ranges: Vec<KeyRange>, contain_all_key_range| {
            let header = pd.header();
            let request = BatchScanRegionsRequest { header, ranges, contain_all_key_range, ..Default::default() };
            let answer = pd.pd.batch_scan_regions(cx(), &request).await.expect("answer");
            (answer.regions.len(), error_of(&answer.header))
        };
        assert_eq!(scan(vec![range("a", "z")], false).await, (2, None), "a hole is allowed");
        let (found, error) = scan(vec![range("a", "z")], true).await;
        let (kind, _) = error.expect("a hole is not allowed");
        assert_eq!((found, kind), (0, ErrorType::RegionsNotContainAllKeyRange));
        assert_eq!(scan(vec![range("a", "a1"), range("e", "")], true).await, (2, None), "the hole lies between");
        let overlapped = "invalid key range, ranges overlapped".to_owned();
        assert_eq!(scan(vec![range("a", "c"), range("b", "d")], false).await.1, Some((ErrorType::Unknown, overlapped)));
        let inverted = "invalid key range, start key > end key".to_owned();
        assert_eq!(scan(vec![range("c", "a")], false).await.1, Some((ErrorType::Unknown, inverted)));
    });
}

#[test]
fn a_scan_has_its_lists_in_step_and_stops_at_its_limit() {
    with_pd(|pd| async move {
        pd.bootstrap().await;
        pd.report(&[region(2, "", "b", 3), region(3, "b", "d", 3), region(4, "d", "", 3)]).await;
        // Nobody has said who leads region 5.
        let report = ReportBatchSplitRequest {
            header: pd.header(),
            regions: vec![
                metapb::Region { peers: vec![peer(50, 9)], ..region(5, "d", "e", 4) },
                metapb::Region { peers: vec![peer(40, 9)], ..region(4, "e", "", 4) },
            ],
        };
        pd.pd.report_batch_split(cx(), &report).await.expect("answer");
        let scan = async |start: &'static str, end: &'static str, limit| {
            let (start_key, end_key) = (start.into(), end.into());
            let request = ScanRegionsRequest { header: pd.header(), start_key, end_key, limit };
            pd.pd.scan_regions(cx(), &request).await.expect("answer")
        };
        let found = scan("", "", -1).await;
        let ids: Vec<u64> = found.region_metas.iter().map(|region| region.id).collect();
        assert_eq!(ids, [2, 3, 5, 4]);
        let leaders: Vec<u64> = found.leaders.iter().map(|leader| leader.id).collect();
        assert_eq!(leaders, [20, 30, 0, 0], "a leader that is not known is an empty peer");
        let entries: Vec<_> = found.regions.iter().map(|entry| entry.region.as_ref().map(|region| region.id)).collect();
        assert_eq!(entries, ids.iter().copied().map(Some).collect::<Vec<_>>());
        assert_eq!(scan("", "", 2).await.regions.len(), 2);
        assert_eq!(scan("c", "d", 0).await.region_metas.len(), 1, "the end is exclusive");
    });
}

#[test]
fn what_a_leader_reports_is_told_to_those_who_look_up() {
    with_pd(|pd| async move {
        pd.bootstrap().await;
        let (requests, mut answers) = pd.pd.region_heartbeat(cx()).await.expect("the stream opens");
        let whole = metapb::Region { peers: vec![peer(20, 1), peer(21, 8), peer(22, 9)], ..region(2, "", "", 1) };
        let down = PeerStats { peer: Some(peer(21, 8)), down_seconds: 700 };
        let full = RegionHeartbeatRequest {
            down_peers: vec![down],
            pending_peers: vec![peer(22, 9)],
            approximate_size: 30 << 20,
            approximate_keys: 77,
            ..beat(&pd, whole.clone())
        };
        requests.send(&full).await.expect("sent");
        // A leader that does not know the sizes leaves those that are known.
        let vague = RegionHeartbeatRequest { approximate_size: 0, approximate_keys: 0, ..full };
        requests.send(&vague).await.expect("sent");
        requests.close();
        assert_eq!(answers.next().await.expect("taken"), None);
        let found = pd.pd.get_region(cx(), &by_key(&pd, "k")).await.expect("answer");
        assert_eq!((found.region, found.leader), (Some(whole), Some(peer(20, 1))));
        assert_eq!((found.down_peers, found.pending_peers), (vec![down], vec![peer(22, 9)]));
        let shown = pd.get_json("/pd/api/v1/region/id/2").await;
        assert_eq!((&shown["approximate_size"], &shown["approximate_keys"]), (&30.into(), &77.into()));
        assert_eq!(pd.get_json("/pd/api/v1/regions/replicated?startKey=&endKey=").await, "INPROGRESS");
        assert_eq!(pd.get_json("/pd/api/v1/regions/check/down-peer").await["count"], 1);
    });
}

#[test]
fn buckets_come_on_a_stream_of_their_own_and_only_to_those_who_ask() {
    with_pd(|pd| async move {
        pd.bootstrap().await;
        let buckets = |version, key: &'static str| {
            let keys: Vec<Bytes> = vec!["".into(), key.into(), "".into()];
            metapb::Buckets { region_id: 2, version, keys, ..Default::default() }
        };
        let (requests, done) = pd.pd.report_buckets(cx()).await.expect("the stream opens");
        for (version, key) in [(2, "m"), (1, "stale")] {
            let report =
                ReportBucketsRequest { header: pd.header(), region_epoch: None, buckets: Some(buckets(version, key)) };
            requests.send(&report).await.expect("sent");
        }
        requests.close();
        done.one().await.expect("taken");
        let found = pd.pd.get_region(cx(), &by_key(&pd, "k")).await.expect("answer");
        assert_eq!(found.buckets, Some(buckets(2, "m")));
        let without = GetRegionRequest { need_buckets: false, ..by_key(&pd, "k") };
        assert_eq!(pd.pd.get_region(cx(), &without).await.expect("answer").buckets, None);
    });
}

#[test]
fn streams_of_other_clusters_end() {
    with_pd(|pd| async move {
        pd.bootstrap().await;
        let foreign = Some(RequestHeader { cluster_id: 7, sender_id: 0 });
        let (requests, mut answers) = pd.pd.region_heartbeat(cx()).await.expect("the stream opens");
        let report = RegionHeartbeatRequest { header: foreign, ..beat(&pd, region(2, "", "", 1)) };
        requests.send(&report).await.expect("sent");
        assert_eq!(answers.next().await.expect_err("refused").code, Code::FailedPrecondition);
        let (requests, done) = pd.pd.report_buckets(cx()).await.expect("the stream opens");
        requests.send(&ReportBucketsRequest { header: foreign, ..Default::default() }).await.expect("sent");
        assert_eq!(done.one().await.expect_err("refused").code, Code::FailedPrecondition);
        let found = pd.pd.get_region(cx(), &by_key(&pd, "k")).await.expect("answer");
        assert_eq!(found.leader, None, "nothing of it was taken");
    });
}

#[test]
fn a_report_before_there_is_a_cluster_is_told_so_and_the_stream_ends() {
    with_pd(|pd| async move {
        let (requests, mut answers) = pd.pd.region_heartbeat(cx()).await.expect("the stream opens");
        requests.send(&beat(&pd, region(2, "", "", 1))).await.expect("sent");
        let refusal = answers.next().await.expect("no error").expect("an answer");
        assert_eq!(error_of(&refusal.header).map(|(kind, _)| kind), Some(ErrorType::NotBootstrapped));
        assert_eq!(answers.next().await, Ok(None));
    });
}

#[test]
fn orders_go_to_the_newest_stream_of_the_leaders_store() {
    with_pd(|pd| async move {
        pd.bootstrap().await;
        assert_eq!(pd.put_store(store(3)).await, None);
        let led_by = |store_id| metapb::Region { peers: vec![peer(20, store_id)], ..region(2, "", "", 1) };
        let (old, mut on_old) = pd.pd.region_heartbeat(cx()).await.expect("the stream opens");
        let (new, mut on_new) = pd.pd.region_heartbeat(cx()).await.expect("the stream opens");
        old.send(&beat(&pd, led_by(3))).await.expect("sent");
        pd.leader_is(2, 3).await;
        new.send(&beat(&pd, led_by(1))).await.expect("sent");
        pd.leader_is(2, 1).await;
        let split = |policy: &str| format!(r#"{{"name":"split-region","region_id":2,"policy":"{policy}"}}"#);
        for policy in ["approximate", "scan"] {
            assert_eq!(pd.http("POST", "/pd/api/v1/operators", &split(policy)).await.0, 200);
            let order = on_new.next().await.expect("no error").expect("an order");
            let wanted = order.split_region.expect("a split");
            assert_eq!((order.region_id, order.region_epoch.map(|epoch| epoch.version)), (2, Some(1)));
            assert_eq!(wanted.policy().as_str_name().to_lowercase(), policy);
        }
        // The store reports on another stream from now on: orders follow it there.
        old.send(&beat(&pd, metapb::Region { region_epoch: version(2), ..led_by(1) })).await.expect("sent");
        pd.epoch_is(2, 2).await;
        let at = r#"{"name":"split-region","region_id":2,"policy":"usekey","keys":["6B"]}"#;
        assert_eq!(pd.http("POST", "/pd/api/v1/operators", at).await.0, 200);
        let order = on_old.next().await.expect("no error").expect("an order");
        assert_eq!(order.split_region.map(|split| split.keys), Some(vec!["k".into()]));
        // Without a stream nobody can be asked.
        old.close();
        new.close();
        assert_eq!((on_old.next().await, on_new.next().await), (Ok(None), Ok(None)));
        assert_eq!(pd.http("POST", "/pd/api/v1/operators", at).await.0, 500);
        for (body, status) in [
            (r#"{"name":"split-region","region_id":9,"policy":"scan"}"#, 404),
            (r#"{"name":"split-region","region_id":2,"policy":"half"}"#, 400),
            (r#"{"name":"split-region","region_id":2,"policy":"usekey"}"#, 400),
            (r#"{"name":"split-region","region_id":2,"policy":"usekey","keys":["6"]}"#, 400),
            (r#"{"name":"transfer-leader","region_id":2}"#, 400),
        ] {
            assert_eq!(pd.http("POST", "/pd/api/v1/operators", body).await.0, status, "{body}");
        }
    });
}

fn version(version: u64) -> Option<metapb::RegionEpoch> {
    Some(metapb::RegionEpoch { conf_ver: 1, version })
}

#[test]
fn scattering_is_over_at_once_where_there_is_nowhere_to_go() {
    with_pd(|pd| async move {
        pd.bootstrap().await;
        let scatter = async |request: ScatterRegionRequest| {
            let request = ScatterRegionRequest { header: pd.header(), ..request };
            let answer = pd.pd.scatter_region(cx(), &request).await.expect("answer");
            (error_of(&answer.header).map(|(kind, _)| kind), answer.finished_percentage)
        };
        // client-java names one region, client-go a list.
        #[allow(deprecated, reason = "the field of old clients")]
        let one = |region_id| ScatterRegionRequest { region_id, ..Default::default() };
        assert_eq!(scatter(one(2)).await, (None, 100));
        assert_eq!(scatter(one(9)).await.0, Some(ErrorType::RegionNotFound));
        let many = ScatterRegionRequest { regions_id: vec![2], group: "g".into(), ..Default::default() };
        assert_eq!(scatter(many).await, (None, 100));
        let split =
            SplitAndScatterRegionsRequest { header: pd.header(), split_keys: vec!["".into()], ..Default::default() };
        let answer = pd.pd.split_and_scatter_regions(cx(), &split).await.expect("answer");
        assert_eq!((answer.split_finished_percentage, answer.scatter_finished_percentage), (100, 100));
    });
}

#[test]
fn timestamps_for_reads_are_refused_with_pds_words() {
    with_pd(|pd| async move {
        pd.bootstrap().await;
        let set = async |timestamp| {
            let request = SetExternalTimestampRequest { header: pd.header(), timestamp };
            error_of(&pd.pd.set_external_timestamp(cx(), &request).await.expect("answer").header)
        };
        let get = GetExternalTimestampRequest { header: pd.header() };
        assert_eq!(pd.pd.get_external_timestamp(cx(), &get).await.expect("answer").timestamp, 0);
        let future = "the external timestamp should not be larger than global ts".to_owned();
        assert_eq!(set(u64::MAX).await, Some((ErrorType::Unknown, future)));
        let report = ReportMinResolvedTsRequest { header: pd.header(), store_id: 9, min_resolved_ts: 5 };
        let answer = pd.pd.report_min_resolved_ts(cx(), &report).await.expect("answer");
        assert!(error_of(&answer.header).is_some(), "a store that is not known");
    });
}
