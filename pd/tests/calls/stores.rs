//! What a store calls, in the order of its life.

use crate::common::{Pd, cx, error_of, peer, region, store, with_pd};
use proto::meta_storagepb as meta;
use proto::metapb::{self, NodeState, StoreState};
use proto::pdpb::*;
use proto::rpc::Code;

async fn id(pd: &Pd) -> u64 {
    pd.pd.alloc_id(cx(), &AllocIdRequest { header: pd.header() }).await.expect("an id").id
}

async fn get(pd: &Pd, store_id: u64) -> GetStoreResponse {
    let request = GetStoreRequest { header: pd.header(), store_id };
    pd.pd.get_store(cx(), &request).await.expect("answer")
}

async fn beat(pd: &Pd, stats: StoreStats) -> StoreHeartbeatResponse {
    let request = StoreHeartbeatRequest { header: pd.header(), stats: Some(stats), ..Default::default() };
    pd.pd.store_heartbeat(cx(), &request).await.expect("answer")
}

#[test]
fn a_first_store_starts_as_tikv_does() {
    with_pd(|pd| async move {
        let recovering = IsSnapshotRecoveringRequest { header: pd.header() };
        assert!(!pd.pd.is_snapshot_recovering(cx(), &recovering).await.expect("answer").marked);
        let (requests, mut answers) = pd.pd.tso(cx()).await.expect("the stream opens");
        requests.send(&TsoRequest { header: pd.header(), count: 1, ..Default::default() }).await.expect("sent");
        assert!(answers.next().await.expect("no error").is_some(), "timestamps are there before there is a cluster");
        // Resource groups: what is there, then what changes from that revision on.
        let (key, range_end) = ("resource_group/settings".into(), "resource_group/settingt".into());
        let header = Some(meta::RequestHeader { cluster_id: pd.server.cluster_id().0, source: "tikv".into() });
        let groups = meta::GetRequest { header: header.clone(), key, range_end, ..Default::default() };
        let start_revision = pd.meta.get(cx(), &groups).await.expect("answer").header.expect("a header").revision;
        assert!(start_revision > 0);
        let (key, range_end) = (groups.key.clone(), groups.range_end.clone());
        let watch = meta::WatchRequest { header, key, range_end, start_revision, prev_kv: true };
        let _events = pd.meta.watch(cx(), &watch).await.expect("the stream opens");

        let (store_id, region_id, peer_id) = (id(&pd).await, id(&pd).await, id(&pd).await);
        assert_eq!((store_id, region_id, peer_id), (1, 2, 3), "ids begin at 1");
        let ask = IsBootstrappedRequest { header: pd.header() };
        assert!(!pd.pd.is_bootstrapped(cx(), &ask).await.expect("answer").bootstrapped);
        let first = metapb::Region { peers: vec![peer(peer_id, store_id)], ..region(region_id, "", "", 1) };
        let bootstrap = BootstrapRequest { header: pd.header(), store: Some(store(store_id)), region: Some(first) };
        let answer = pd.pd.bootstrap(cx(), &bootstrap).await.expect("answer");
        assert_eq!(error_of(&answer.header), None);
        // Another store that was second learns whose region it is.
        let request = GetRegionRequest { header: pd.header(), ..Default::default() };
        let found = pd.pd.get_region(cx(), &request).await.expect("answer");
        assert_eq!((found.region.map(|region| region.id), found.leader), (Some(region_id), None));
        assert_eq!(pd.put_store(store(store_id)).await, None);
        let all = GetAllStoresRequest { header: pd.header(), exclude_tombstone_stores: false };
        assert_eq!(pd.pd.get_all_stores(cx(), &all).await.expect("answer").stores.len(), 1);
    });
}

#[test]
fn a_cluster_begins_with_one_peer_of_one_region_on_one_store() {
    with_pd(|pd| async move {
        let whole = region(2, "", "", 1);
        let cases = [
            (None, Some(whole.clone()), "missing store meta"),
            (Some(store(0)), Some(whole.clone()), "invalid zero store id"),
            (Some(store(1)), None, "missing region meta"),
            (Some(store(1)), Some(region(0, "", "", 1)), "invalid zero region id"),
            (Some(store(1)), Some(region(2, "a", "", 1)), "invalid first region key range"),
            (Some(store(1)), Some(region(2, "", "z", 1)), "invalid first region key range"),
            (
                Some(store(1)),
                Some(metapb::Region { peers: vec![], ..whole.clone() }),
                "invalid first region peer count",
            ),
            (
                Some(store(1)),
                Some(metapb::Region { peers: vec![peer(3, 1), peer(4, 1)], ..whole.clone() }),
                "invalid first region peer count",
            ),
            (
                Some(store(1)),
                Some(metapb::Region { peers: vec![peer(3, 5)], ..whole.clone() }),
                "invalid peer store id",
            ),
            (Some(store(1)), Some(metapb::Region { peers: vec![peer(0, 1)], ..whole }), "invalid zero peer id"),
        ];
        for (store, region, text) in cases {
            let request = BootstrapRequest { header: pd.header(), store, region };
            let (kind, message) =
                error_of(&pd.pd.bootstrap(cx(), &request).await.expect("answer").header).expect("refused");
            assert_eq!(kind, ErrorType::Unknown);
            assert!(message.contains(text), "{message}");
        }
        let ask = IsBootstrappedRequest { header: pd.header() };
        assert!(!pd.pd.is_bootstrapped(cx(), &ask).await.expect("answer").bootstrapped);
    });
}

#[test]
fn a_store_is_known_by_what_it_told_last() {
    with_pd(|pd| async move {
        pd.bootstrap().await;
        let stats = StoreStats { store_id: 1, capacity: 1 << 40, available: 1 << 39, ..StoreStats::default() };
        let before = i64::try_from(executor::unix_time().0).expect("nanoseconds");
        beat(&pd, stats.clone()).await;
        let known = get(&pd, 1).await;
        assert_eq!(known.stats, Some(stats));
        assert!(known.store.expect("a store").last_heartbeat >= before, "nanoseconds since the epoch");
        // An address that has changed, and a label more.
        let zone = metapb::StoreLabel { key: "zone".into(), value: "z1".into() };
        let moved = metapb::Store { address: "127.0.0.1:9".into(), labels: vec![zone.clone()], ..store(1) };
        assert_eq!(pd.put_store(moved).await, None);
        assert_eq!(pd.put_store(store(1)).await, None);
        let known = get(&pd, 1).await.store.expect("a store");
        assert_eq!((known.address, known.labels), (store(1).address, vec![zone]), "labels are merged");
        assert_eq!(known.node_state, i32::from(NodeState::Serving));
    });
}

#[test]
fn a_store_that_does_not_fit_is_refused() {
    with_pd(|pd| async move {
        pd.bootstrap().await;
        let with_peer_address = |id, address: &str| metapb::Store { peer_address: address.into(), ..store(id) };
        assert_eq!(pd.put_store(with_peer_address(3, "10.0.0.3:1")).await, None);
        let (kind, text) = pd.put_store(with_peer_address(4, "10.0.0.3:1")).await.expect("refused");
        assert_eq!(kind, ErrorType::Unknown);
        assert!(text.starts_with("duplicated store address"), "{text}");
        // A version that is not told counts as 1.0.0, which is too old for this cluster.
        let (kind, text) = pd.put_store(metapb::Store { version: String::new(), ..store(4) }).await.expect("refused");
        assert_eq!(kind, ErrorType::Unknown);
        assert!(text.contains("version should compatible with version"), "{text}");
        let (kind, _) = pd.put_store(store(0)).await.expect("refused");
        assert_eq!(kind, ErrorType::Unknown);
        let answer = pd.pd.put_store(cx(), &PutStoreRequest { header: pd.header(), store: None }).await;
        assert!(error_of(&answer.expect("answer").header).is_some());
        assert!(get(&pd, 4).await.store.is_none());
        let without_stats = StoreHeartbeatRequest { header: pd.header(), ..Default::default() };
        let status = pd.pd.store_heartbeat(cx(), &without_stats).await.expect_err("no stats");
        assert_eq!(status.code, Code::Unknown);
    });
}

#[test]
fn a_store_that_leaves_is_told_as_a_tombstone() {
    with_pd(|pd| async move {
        pd.bootstrap().await;
        assert_eq!(pd.put_store(store(3)).await, None);
        assert_eq!(pd.http("DELETE", "/pd/api/v1/store/3", "").await.0, 200);
        let leaving = get(&pd, 3).await.store.expect("a store");
        assert_eq!((leaving.state(), leaving.node_state()), (StoreState::Offline, NodeState::Removing));
        beat(&pd, StoreStats { store_id: 3, ..StoreStats::default() }).await;
        let gone = get(&pd, 3).await.store.expect("tombstones are told");
        assert_eq!((gone.state(), gone.node_state()), (StoreState::Tombstone, NodeState::Removed));
        // Its address is free again.
        assert_eq!(pd.put_store(metapb::Store { address: store(3).address, ..store(4) }).await, None);
        // A store with a region stays, however often it reports none.
        assert_eq!(pd.http("DELETE", "/pd/api/v1/store/1", "").await.0, 200);
        let answer = beat(&pd, StoreStats { store_id: 1, ..StoreStats::default() }).await;
        assert_eq!((error_of(&answer.header), answer.state()), (None, NodeState::Removing));
    });
}

#[test]
fn the_cluster_has_the_version_of_its_oldest_store() {
    with_pd(|pd| async move {
        pd.bootstrap().await;
        assert_eq!(pd.put_store(metapb::Store { version: "8.5.0".into(), ..store(3) }).await, None);
        let version = async || beat(&pd, StoreStats { store_id: 3, ..StoreStats::default() }).await.cluster_version;
        assert_eq!(version().await, "8.1.0");
        assert_eq!(pd.put_store(metapb::Store { version: "8.5.1".into(), ..store(1) }).await, None);
        assert_eq!(version().await, "8.5.0");
        assert_eq!(pd.get_json("/pd/api/v1/config/cluster-version").await, "8.5.0");
    });
}

#[test]
fn old_stores_split_in_two() {
    with_pd(|pd| async move {
        pd.bootstrap().await;
        let ask = AskSplitRequest { header: pd.header(), region: Some(region(2, "", "", 1)) };
        let ids = pd.pd.ask_split(cx(), &ask).await.expect("answer");
        assert!(error_of(&ids.header).is_none() && ids.new_region_id > 0 && ids.new_peer_ids.len() == 1);
        let report = async |left, right| {
            let request = ReportSplitRequest { header: pd.header(), left: Some(left), right: Some(right) };
            error_of(&pd.pd.report_split(cx(), &request).await.expect("answer").header)
        };
        assert_eq!(report(region(5, "", "k", 2), region(2, "k", "", 2)).await, None);
        assert!(report(region(5, "", "k", 2), region(2, "l", "", 2)).await.is_some(), "they do not join");
        let none = AskSplitRequest { header: pd.header(), region: None };
        assert!(error_of(&pd.pd.ask_split(cx(), &none).await.expect("answer").header).is_some());
    });
}

#[test]
fn the_clusters_description_can_be_replaced_by_one_of_the_same_id() {
    with_pd(|pd| async move {
        pd.bootstrap().await;
        let ask = GetClusterConfigRequest { header: pd.header() };
        let cluster = pd.pd.get_cluster_config(cx(), &ask).await.expect("answer").cluster.expect("a cluster");
        assert_eq!((cluster.id, cluster.max_peer_count), (pd.server.cluster_id().0, 3));
        let replace = async |cluster| {
            let request = PutClusterConfigRequest { header: pd.header(), cluster: Some(cluster) };
            error_of(&pd.pd.put_cluster_config(cx(), &request).await.expect("answer").header)
        };
        assert_eq!(replace(metapb::Cluster { max_peer_count: 5, ..cluster }).await, None);
        assert!(replace(metapb::Cluster { id: 7, max_peer_count: 1 }).await.is_some());
        let cluster = pd.pd.get_cluster_config(cx(), &ask).await.expect("answer").cluster.expect("a cluster");
        assert_eq!(cluster.max_peer_count, 5);
    });
}
