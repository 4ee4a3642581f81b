//! The paths over HTTP/1.1: what tools, TiDB and tests read of them.

use crate::common::{Pd, region, with_pd};
use serde_json::{Value, json};

async fn with_three_regions(pd: &Pd) {
    pd.bootstrap().await;
    pd.report(&[region(2, "", "b", 3), region(3, "b", "d", 3), region(4, "d", "", 3)]).await;
}

fn ids(list: &Value) -> Vec<u64> {
    list["regions"].as_array().expect("a list").iter().filter_map(|region| region["id"].as_u64()).collect()
}

#[test]
fn every_path_that_tools_read_has_its_shape() {
    with_pd(|pd| async move {
        with_three_regions(&pd).await;
        let url = pd.server.url().to_owned();
        // Path, a place inside of the answer, and what stands there.
        let table: Vec<(&str, &str, Value)> = vec![
            ("/pd/api/v1/status", "/version", json!("v8.1.0")),
            ("/pd/api/v1/version", "/version", json!("v8.1.0")),
            ("/pd/api/v1/leader", "/client_urls/0", json!(url)),
            ("/pd/api/v1/members", "/etcd_leader/client_urls/0", json!(url)),
            ("/pd/api/v2/members", "/members/0/name", json!("pd")),
            ("/pd/api/v1/health", "/0/client_urls/0", json!(url)),
            ("/pd/api/v1/cluster", "/max_peer_count", json!(3)),
            ("/pd/api/v1/cluster/status", "/is_initialized", json!(true)),
            ("/pd/api/v1/min-resolved-ts", "/is_real_time", json!(true)),
            ("/pd/api/v1/min-resolved-ts/1", "/persist_interval", json!("1s")),
            ("/pd/api/v1/regions/count", "/count", json!(3)),
            ("/pd/api/v1/regions/store/1", "/count", json!(3)),
            ("/pd/api/v1/regions/store/7", "/count", json!(0)),
            ("/pd/api/v1/regions/sibling/3", "/count", json!(2)),
            ("/pd/api/v1/regions/check/empty-region", "/count", json!(0)),
            ("/pd/api/v1/regions/replicated?startKey=&endKey=", "", json!("REPLICATED")),
            ("/pd/api/v1/stores?state=0", "/count", json!(1)),
            ("/pd/api/v1/stores?state=2", "/count", json!(0)),
            ("/pd/api/v1/hotspot/regions/write", "/as_leader", json!({})),
            ("/pd/api/v1/hotspot/regions/read", "/as_peer", json!({})),
            ("/pd/api/v1/operators", "", json!([])),
            ("/pd/api/v1/schedulers", "/1", json!("balance-region-scheduler")),
            ("/pd/api/v1/scheduler-config", "/balance-leader-scheduler/batch", json!(4)),
            ("/pd/api/v1/stores/limit", "/1/add-peer", json!(15.0)),
            ("/pd/api/v1/regions/check/miss-peer", "/count", json!(3)),
            ("/pd/api/v1/operators/records", "", json!([])),
            ("/pd/api/v1/config", "/replication/location-labels", json!("")),
            ("/pd/api/v1/config", "/pd-server/metric-storage", json!("")),
            ("/pd/api/v1/config/schedule", "/max-merge-region-size", json!(54)),
            ("/pd/api/v1/config/replicate", "/max-replicas", json!(3)),
            ("/pd/api/v1/config/cluster-version", "", json!("8.1.0")),
            ("/pd/api/v1/config/rules/group/pd", "/0/role", json!("voter")),
            ("/pd/api/v1/config/rules/group/tiflash", "", json!([])),
            ("/pd/api/v1/config/rule/pd/default", "/count", json!(3)),
            ("/pd/api/v1/config/placement-rule", "/0/group_id", json!("pd")),
            ("/pd/api/v1/config/placement-rule/pd", "/rules/0/id", json!("default")),
            ("/pd/api/v1/config/region-label/rules", "", json!([])),
            ("/pd/api/v1/config/region-label/rules/ids", "", json!([])),
            ("/pd/api/v1/gc/safepoint", "/gc_safe_point", json!(0)),
            ("/pd/api/v2/keyspaces", "/keyspaces/0/name", json!("DEFAULT")),
            ("/pd/api/v2/keyspaces/DEFAULT", "/state", json!("ENABLED")),
        ];
        for (path, place, expected) in table {
            let answer = pd.get_json(path).await;
            assert_eq!(answer.pointer(place), Some(&expected), "{path}: {answer}");
        }
        assert_eq!(pd.http("GET", "/pd/api/v1/ping", "").await, (200, String::new()));
        for (method, path, status) in [
            ("GET", "/pd/api/v1/operators/2", 404),
            ("GET", "/pd/api/v1/store/x", 400),
            ("GET", "/pd/api/v1/region/id/x", 400),
            ("GET", "/pd/api/v1/regions/sibling/99", 404),
            ("GET", "/pd/api/v1/regions/replicated?startKey=7&endKey=", 400),
            ("GET", "/", 404),
            ("POST", "/pd/api/v1/config/rules", 412),
            ("POST", "/pd/api/v1/schedulers", 400),
            ("DELETE", "/pd/api/v1/schedulers/x", 404),
            ("DELETE", "/pd/api/v1/operators/2", 404),
            ("DELETE", "/pd/api/v1/store/9", 404),
            ("POST", "/pd/api/v1/store/1/state?state=Sideways", 400),
        ] {
            let (got, body) = pd.http(method, path, "{}").await;
            assert_eq!(got, status, "{method} {path}: {body}");
            let is_text = serde_json::from_str::<Value>(&body).is_ok_and(|body| body.is_string());
            assert!(is_text, "an error is a JSON string: {body}");
        }
    });
}

#[test]
fn regions_are_listed_by_raw_and_by_hexadecimal_keys() {
    with_pd(|pd| async move {
        with_three_regions(&pd).await;
        let all = pd.get_json("/pd/api/v1/regions").await;
        assert_eq!((all["count"].as_u64(), ids(&all)), (Some(3), vec![2, 3, 4]));
        assert_eq!((&all["regions"][0]["start_key"], &all["regions"][2]["end_key"]), (&"".into(), &"".into()));
        assert_eq!(all["regions"][1]["epoch"], json!({ "conf_ver": 1, "version": 3 }));
        assert_eq!(all["regions"][1]["peers"][0], json!({ "id": 30, "store_id": 1, "role_name": "Voter" }));
        for (path, expected) in [
            ("regions/key?key=b1", vec![3, 4]),
            ("regions/key?key=%62%31&end_key=c", vec![3]),
            ("regions/key?key=6231&format=hex&limit=1", vec![3]),
            ("regions/key?key=&limit=-1", vec![2, 3, 4]),
        ] {
            assert_eq!(ids(&pd.get_json(&format!("/pd/api/v1/{path}")).await), expected, "{path}");
        }
        for path in ["region/key/b1", "region/key/6231?format=hex", "region/key/%62%31"] {
            assert_eq!(pd.get_json(&format!("/pd/api/v1/{path}")).await["id"], 3, "{path}");
        }
        let part = pd.get_json("/pd/api/v1/stats/region?start_key=c&end_key=").await;
        assert_eq!((&part["count"], &part["store_leader_count"]["1"]), (&2.into(), &2.into()));
    });
}

#[test]
fn a_store_goes_and_comes_back() {
    with_pd(|pd| async move {
        pd.bootstrap().await;
        let state = async || pd.get_json("/pd/api/v1/store/1").await["store"]["state_name"].clone();
        assert_eq!(state().await, "Up");
        assert_eq!(pd.http("DELETE", "/pd/api/v1/store/1", "").await.0, 200);
        assert_eq!(state().await, "Offline");
        assert_eq!(pd.get_json("/pd/api/v1/stores?state=1").await["count"], 1);
        assert_eq!(pd.http("POST", "/pd/api/v1/store/1/state?state=Up", "").await.0, 200);
        assert_eq!(state().await, "Up");
        // One that will never come back does not.
        assert_eq!(pd.http("DELETE", "/pd/api/v1/store/1?force", "").await.0, 200);
        assert_eq!(pd.http("POST", "/pd/api/v1/store/1/state?state=Up", "").await.0, 400);
    });
}
