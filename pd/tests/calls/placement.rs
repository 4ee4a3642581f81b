//! Replicas and leaders: what leaders are asked for over their streams, and what operators and settings can be changed.

use crate::common::{Pd, cx, error_of, peer, region, store, with_pd};
use proto::metapb::{self, PeerRole, StoreState};
use proto::pdpb::*;
use proto::rpc::{Inbound, Outbound};
use serde_json::{Value, json};
use std::time::Duration;

async fn store_beat(pd: &Pd, store_id: u64) {
    let stats =
        StoreStats { store_id, capacity: 1 << 40, available: 1 << 39, region_count: 1, ..StoreStats::default() };
    let request = StoreHeartbeatRequest { header: pd.header(), stats: Some(stats), ..Default::default() };
    pd.pd.store_heartbeat(cx(), &request).await.expect("answer");
}

/// Stores 1, 3 and 4, all heard.
async fn three_stores(pd: &Pd) {
    pd.bootstrap().await;
    for id in [3, 4] {
        assert_eq!(pd.put_store(store(id)).await, None);
    }
    for id in [1, 3, 4] {
        store_beat(pd, id).await;
    }
}

/// A leader of region 2 that does what it is told.
struct Leader<'a> {
    pd: &'a Pd,
    meta: metapb::Region,
    leader: metapb::Peer,
    requests: Outbound<RegionHeartbeatRequest>,
    answers: Inbound<RegionHeartbeatResponse>,
}

impl<'a> Leader<'a> {
    async fn new(pd: &'a Pd) -> Leader<'a> {
        let (requests, answers) = pd.pd.region_heartbeat(cx()).await.expect("the stream opens");
        Leader { pd, meta: region(2, "", "", 1), leader: peer(20, 1), requests, answers }
    }

    async fn report(&self) {
        let request = RegionHeartbeatRequest {
            header: self.pd.header(),
            region: Some(self.meta.clone()),
            leader: Some(self.leader),
            approximate_size: 5 << 20,
            term: 6,
            ..Default::default()
        };
        self.requests.send(&request).await.expect("sent");
    }

    /// The next order that is for the region as it is now; older ones may have been asked for again.
    async fn order(&mut self) -> RegionHeartbeatResponse {
        loop {
            let next = executor::timeout(Duration::from_secs(30), self.answers.next()).await.expect("an order in time");
            let order = next.expect("no error").expect("an order");
            assert_eq!(error_of(&order.header), None);
            if order.region_epoch == self.meta.region_epoch && order.region_id == 2 {
                return order;
            }
        }
    }

    /// Does the next order, which is about peers, and reports.
    async fn obey(&mut self) {
        let order = self.order().await;
        self.change(&order);
        self.report().await;
    }

    /// Does what an order says about peers.
    fn change(&mut self, order: &RegionHeartbeatResponse) {
        for change in &order.change_peer_v2.as_ref().expect("a change of peers").changes {
            let peer = change.peer.expect("a peer");
            self.meta.peers.retain(|known| known.id != peer.id);
            if change.change_type() != proto::eraftpb::ConfChangeType::RemoveNode {
                self.meta.peers.push(peer);
            }
            self.meta.region_epoch.as_mut().expect("an epoch").conf_ver += 1;
        }
    }
}

#[test]
fn a_region_gets_its_replicas_when_there_are_stores_for_them() {
    with_pd(|pd| async move {
        three_stores(&pd).await;
        let mut leader = Leader::new(&pd).await;
        leader.report().await;
        for (stores, role) in
            [(2, PeerRole::Learner), (2, PeerRole::Voter), (3, PeerRole::Learner), (3, PeerRole::Voter)]
        {
            let order = leader.order().await;
            assert_eq!(order.target_peer, Some(leader.leader));
            leader.change(&order);
            let newest = leader.meta.peers.last().expect("a peer");
            assert!(newest.id > 0 && newest.store_id != 1, "{newest:?}");
            assert_eq!((leader.meta.peers.len(), newest.role()), (stores, role));
            leader.report().await;
        }
        let ended = async || {
            let answer = pd.pd.get_operator(cx(), &GetOperatorRequest { header: pd.header(), region_id: 2 }).await;
            answer.expect("answer")
        };
        while ended().await.status() == OperatorStatus::Running {
            executor::sleep(Duration::from_millis(5)).await;
        }
        let last = ended().await;
        assert_eq!((last.desc.as_ref(), last.status()), (&b"make-up-replica"[..], OperatorStatus::Success));
        let text = pd.get_json("/pd/api/v1/operators/2").await;
        assert!(
            text.as_str().is_some_and(|text| text.starts_with("status: SUCCESS, operator: make-up-replica")),
            "{text}"
        );
        let (_, metrics) = pd.http("GET", "/metrics", "").await;
        let line = "pd_schedule_operators_count{type=\"make-up-replica\",event=\"finish\"} 2\n";
        assert!(metrics.contains(line), "{metrics}");
    });
}

#[test]
fn operators_come_from_people_and_go_by_their_word() {
    with_pd(|pd| async move {
        three_stores(&pd).await;
        // Nothing happens by itself here.
        assert_eq!(pd.http("POST", "/pd/api/v1/config", r#"{"replica-schedule-limit":0}"#).await.0, 200);
        let mut leader = Leader::new(&pd).await;
        leader.report().await;
        pd.leader_is(2, 1).await;
        let post = async |body: &str| pd.http("POST", "/pd/api/v1/operators", body).await;
        let add = r#"{"name":"add-peer","region_id":2,"store_id":3}"#;
        assert_eq!(post(add).await, (200, "\"The operator is created.\"".into()));
        assert_eq!(post(add).await.0, 500, "there is one already");
        let shown = pd.get_json("/pd/api/v1/operators").await;
        assert!(shown[0].as_str().is_some_and(|text| text.contains("admin-add-peer")), "{shown}");
        assert_eq!(pd.get_json("/pd/api/v1/operators?kind=leader").await, json!([]));
        leader.obey().await;
        leader.obey().await;
        while pd.get_json("/pd/api/v1/operators").await != json!([]) {
            executor::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(post(r#"{"name":"transfer-leader","region_id":2,"to_store_id":3}"#).await.0, 200);
        let order = leader.order().await.transfer_leader.expect("a transfer");
        assert_eq!(order.peer.map(|peer| peer.store_id), Some(3));
        assert_eq!(pd.http("DELETE", "/pd/api/v1/operators/2", "").await.0, 200);
        assert_eq!(pd.http("DELETE", "/pd/api/v1/operators/2", "").await.0, 404);
        assert_eq!(pd.http("DELETE", "/pd/api/v1/operators", "").await.0, 200);
        assert_eq!(pd.get_json("/pd/api/v1/operators/records").await.as_array().map(Vec::len), Some(2));
        for (body, status) in [
            ("{", 400),
            (r#"{"name":"dance","region_id":2}"#, 400),
            (r#"{"name":"transfer-leader","region_id":2}"#, 400),
            (r#"{"name":"transfer-leader","region_id":2,"to_store_id":4}"#, 400),
            (r#"{"name":"transfer-leader","region_id":9,"to_store_id":1}"#, 404),
            (r#"{"name":"add-peer","region_id":2,"store_id":77}"#, 404),
            (r#"{"name":"add-peer","region_id":2,"store_id":1}"#, 400),
            (r#"{"name":"add-learner","region_id":2}"#, 400),
            (r#"{"name":"remove-peer","region_id":2,"store_id":4}"#, 400),
            (r#"{"name":"transfer-peer","region_id":2,"from_store_id":4,"to_store_id":1}"#, 400),
            (r#"{"name":"transfer-region","region_id":2,"to_store_ids":[]}"#, 400),
            (r#"{"name":"merge-region","source_region_id":2,"target_region_id":7}"#, 404),
            (r#"{"name":"merge-region","source_region_id":2,"target_region_id":2}"#, 400),
            (r#"{"name":"scatter-region","region_id":9}"#, 500),
        ] {
            assert_eq!(post(body).await.0, status, "{body}");
        }
        assert_eq!(pd.get_json("/pd/api/v1/regions/check/miss-peer").await["count"], 1);
    });
}

#[test]
fn settings_are_changed_kept_and_told() {
    crate::common::on_core(|path| async move {
        let pd = crate::common::start(&path).await;
        pd.bootstrap().await;
        for (path, body, status) in [
            ("config", json!({ "schedule.leader-schedule-limit": 8, "max-store-down-time": "10m" }), 200),
            ("config", json!({ "replication": { "max-replicas": 5 } }), 200),
            ("config/schedule", json!({ "merge-schedule-limit": "3" }), 200),
            ("config/replicate", json!({ "location-labels": "zone,host", "isolation-level": "zone" }), 200),
            ("config", json!({ "no-such-thing": 1 }), 400),
            ("config/schedule", json!({ "leader-schedule-limit": 9, "max-replicas": 0 }), 400),
            ("config", json!([]), 400),
            ("config/rules", json!([]), 412),
            ("store/1/weight", json!({ "leader": 2, "region": 0.5 }), 200),
            ("store/1/weight", json!({ "leader": 2 }), 400),
            ("store/9/weight", json!({ "leader": 2, "region": 1 }), 404),
            ("store/1/limit", json!({ "rate": 30, "type": "add-peer" }), 200),
            ("store/1/limit", json!({ "rate": 30, "type": "both" }), 400),
            ("store/9/limit", json!({ "rate": 30 }), 404),
            ("stores/limit", json!({ "rate": -1 }), 400),
            ("stores/limit", json!({ "rate": 7, "type": "remove-peer" }), 200),
            ("schedulers", json!({ "name": "evict-leader-scheduler", "store_id": 1 }), 200),
            ("schedulers", json!({ "name": "evict-leader-scheduler", "store_id": 9 }), 404),
            ("schedulers", json!({ "name": "evict-leader-scheduler" }), 400),
            ("schedulers", json!({ "name": "dance-scheduler" }), 400),
            ("schedulers/balance-leader-scheduler", json!({ "delay": 60 }), 200),
            ("schedulers/all", json!({ "delay": 0 }), 200),
            ("schedulers/balance-region-scheduler", json!({ "delay": 60 }), 200),
            ("schedulers/dance-scheduler", json!({ "delay": 60 }), 404),
        ] {
            let (got, answer) = pd.http("POST", &format!("/pd/api/v1/{path}"), &body.to_string()).await;
            assert_eq!(got, status, "{path} {body}: {answer}");
        }
        let names = json!(["balance-leader-scheduler", "balance-region-scheduler", "evict-leader-scheduler-1"]);
        assert_eq!(pd.get_json("/pd/api/v1/schedulers").await, names);
        let paused = pd.get_json("/pd/api/v1/schedulers?status=paused").await;
        assert_eq!(paused, json!(["balance-region-scheduler"]));
        pd.server.stop().await.expect("stops");

        let pd = crate::common::start(&path).await;
        let table: Vec<(&str, &str, Value)> = vec![
            ("config/schedule", "/leader-schedule-limit", json!(8)),
            ("config/schedule", "/max-store-down-time", json!("10m0s")),
            ("config", "/schedule/merge-schedule-limit", json!(3)),
            ("config/replicate", "/max-replicas", json!(5)),
            ("config", "/replication/location-labels", json!("zone,host")),
            ("config/rule/pd/default", "/count", json!(5)),
            ("stores/limit", "/1/add-peer", json!(30.0)),
            ("stores/limit", "/1/remove-peer", json!(7.0)),
            ("store/1", "/status/leader_weight", json!(2.0)),
            ("schedulers", "", names),
            ("scheduler-config/evict-leader-scheduler/list", "/store-id-ranges/1/0/start-key", json!("")),
        ];
        for (path, place, expected) in table {
            let answer = pd.get_json(&format!("/pd/api/v1/{path}")).await;
            assert_eq!(answer.pointer(place), Some(&expected), "{path}: {answer}");
        }
        for (path, status) in [
            ("schedulers/evict-leader-scheduler-1", 200),
            ("schedulers/evict-leader-scheduler-1", 404),
            ("schedulers/balance-region-scheduler", 200),
            ("scheduler-config/evict-leader-scheduler/delete/1", 404),
        ] {
            assert_eq!(pd.http("DELETE", &format!("/pd/api/v1/{path}"), "").await.0, status, "{path}");
        }
        assert_eq!(pd.get_json("/pd/api/v1/schedulers").await, json!(["balance-leader-scheduler"]));
        let disabled = pd.get_json("/pd/api/v1/schedulers?status=disabled").await;
        assert_eq!(disabled, json!(["balance-region-scheduler"]));
    });
}

#[test]
fn a_store_that_leaves_is_drained_and_then_a_tombstone() {
    with_pd(|pd| async move {
        three_stores(&pd).await;
        assert_eq!(pd.http("POST", "/pd/api/v1/config", r#"{"max-replicas":1}"#).await.0, 200);
        let mut leader = Leader::new(&pd).await;
        assert_eq!(pd.http("DELETE", "/pd/api/v1/store/1", "").await.0, 200);
        leader.report().await;
        // A learner elsewhere, its vote, the leadership, and then the last peer goes.
        leader.obey().await;
        leader.obey().await;
        let to = leader.order().await.transfer_leader.and_then(|transfer| transfer.peer).expect("a transfer");
        leader.leader = to;
        leader.report().await;
        let order = leader.order().await;
        assert_eq!(order.target_peer.map(|peer| peer.store_id), Some(to.store_id));
        leader.change(&order);
        assert_eq!(leader.meta.peers.iter().map(|peer| peer.store_id).collect::<Vec<_>>(), [to.store_id]);
        leader.report().await;
        let get = async || {
            let stats = StoreStats { store_id: 1, ..StoreStats::default() };
            let beat = StoreHeartbeatRequest { header: pd.header(), stats: Some(stats), ..Default::default() };
            pd.pd.store_heartbeat(cx(), &beat).await.expect("answer");
            let request = GetStoreRequest { header: pd.header(), store_id: 1 };
            pd.pd.get_store(cx(), &request).await.expect("answer").store.expect("a store").state()
        };
        while get().await != StoreState::Tombstone {
            executor::sleep(Duration::from_millis(5)).await;
        }
    });
}

/// Two small regions of one replica, which could be merged; one of them asks for the ids of a split.
#[test]
fn a_region_that_is_about_to_split_is_not_merged() {
    with_pd(|pd| async move {
        pd.bootstrap().await;
        store_beat(&pd, 1).await;
        let settings = json!({ "max-replicas": 1, "split-merge-interval": "1500ms" }).to_string();
        assert_eq!(pd.http("POST", "/pd/api/v1/config", &settings).await.0, 200);
        executor::sleep(Duration::from_millis(1_600)).await;
        // The report of what became of it is lost.
        let asked = executor::now();
        let ask = AskBatchSplitRequest {
            header: pd.header(),
            region: Some(region(2, "", "", 1)),
            split_count: 1,
            ..Default::default()
        };
        let answer = pd.pd.ask_batch_split(cx(), &ask).await.expect("answer");
        assert_eq!(error_of(&answer.header), None);
        let new = answer.ids[0].new_region_id;
        let (requests, mut answers) = pd.pd.region_heartbeat(cx()).await.expect("the stream opens");
        while executor::now().since(asked) < Duration::from_secs(30) {
            for meta in [region(new, "", "m", 2), region(2, "m", "", 2)] {
                let report = RegionHeartbeatRequest {
                    header: pd.header(),
                    leader: meta.peers.first().copied(),
                    region: Some(meta),
                    approximate_size: 5 << 20,
                    approximate_keys: 100,
                    term: 6,
                    ..Default::default()
                };
                requests.send(&report).await.expect("sent");
            }
            let next = executor::timeout(Duration::from_millis(50), answers.next()).await;
            if next.is_ok_and(|next| next.expect("no error").expect("an order").merge.is_some()) {
                let passed = executor::now().since(asked);
                assert!(passed >= Duration::from_millis(1_500), "merged after {passed:?}");
                return;
            }
        }
        panic!("the regions are never merged");
    });
}
