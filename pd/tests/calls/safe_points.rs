//! Safe points as clients of every age move them, and where those without these calls read them.

use crate::common::{Pd, cx, with_pd};
use proto::etcdserverpb::{PutRequest, RangeRequest};
use proto::pdpb::*;
use proto::rpc::{Code, Status};

async fn update(pd: &Pd, safe_point: u64) -> Result<u64, Status> {
    let request = UpdateGcSafePointRequest { header: pd.header(), safe_point };
    pd.pd.update_gc_safe_point(cx(), &request).await.map(|answer| answer.new_safe_point)
}

async fn hold(pd: &Pd, service: &'static str, ttl: i64, safe_point: u64) -> Result<(String, i64, u64), Status> {
    let service_id = service.into();
    let request = UpdateServiceGcSafePointRequest { header: pd.header(), service_id, ttl, safe_point };
    let answer = pd.pd.update_service_gc_safe_point(cx(), &request).await?;
    let service = String::from_utf8(answer.service_id.to_vec()).expect("text");
    Ok((service, answer.ttl, answer.min_safe_point))
}

async fn kept(pd: &Pd, key: String) -> Option<String> {
    let found = pd.kv.range(cx(), &RangeRequest { key: key.into(), ..RangeRequest::default() }).await.expect("answer");
    found.kvs.first().map(|kv| String::from_utf8(kv.value.to_vec()).expect("text"))
}

#[test]
fn safe_points_lie_under_the_keys_that_clients_read() {
    with_pd(|pd| async move {
        pd.bootstrap().await;
        assert_eq!(update(&pd, 0).await, Ok(0), "zero reads");
        assert_eq!(update(&pd, 0xABC).await, Ok(0xABC));
        assert_eq!(update(&pd, 0).await, Ok(0xABC));
        let get = GetGcSafePointRequest { header: pd.header() };
        assert_eq!(pd.pd.get_gc_safe_point(cx(), &get).await.expect("answer").safe_point, 0xABC);
        let cluster = pd.server.cluster_id();
        assert_eq!(kept(&pd, "/tidb/store/gcworker/saved_safe_point".into()).await.as_deref(), Some("2748"));
        assert_eq!(kept(&pd, format!("/pd/{cluster}/gc/safe_point")).await.as_deref(), Some("0000000000000abc"));
        hold(&pd, "cdc", 1_000, 0xBCD).await.expect("held");
        let barrier = kept(&pd, format!("/pd/{cluster}/gc/safe_point/service/cdc")).await.expect("kept");
        let barrier: serde_json::Value = serde_json::from_str(&barrier).expect("JSON");
        assert_eq!((&barrier["service_id"], &barrier["safe_point"]), (&"cdc".into(), &0xBCD.into()));
        let shown = pd.get_json("/pd/api/v1/gc/safepoint").await;
        assert_eq!(
            (&shown["gc_safe_point"], &shown["service_gc_safe_points"][0]["service_id"]),
            (&0xABC.into(), &"cdc".into())
        );
    });
}

#[test]
fn the_gc_worker_is_told_who_holds_it_back() {
    with_pd(|pd| async move {
        pd.bootstrap().await;
        let (service, ttl, min) = hold(&pd, "gc_worker", i64::MAX, 10).await.expect("answer");
        assert!((service.as_str(), min) == ("gc_worker", 10) && ttl > i64::MAX / 2, "{service} {ttl} {min}");
        // A backup holds all keyspaces back, a running transaction of TiDB this one.
        hold(&pd, "native_br", 1_000, 20).await.expect("answer");
        let running = PutRequest { key: "/tidb/server/minstartts/s1".into(), value: "30".into(), ..Default::default() };
        pd.kv.put(cx(), &running).await.expect("put");
        let (service, _, min) = hold(&pd, "gc_worker", i64::MAX, 40).await.expect("answer");
        assert_eq!((service.as_str(), min), ("native_br", 20));
        hold(&pd, "native_br", 0, 0).await.expect("let go");
        let (service, _, min) = hold(&pd, "gc_worker", i64::MAX, 40).await.expect("answer");
        assert_eq!((service.as_str(), min), ("tidb_min_start_ts_/tidb/server/minstartts/s1", 30));
        assert!(hold(&pd, "gc_worker", 60, 40).await.is_err(), "the gc worker's has no end");
        assert!(hold(&pd, "", 60, 40).await.is_err(), "a service has a name");
    });
}

#[test]
fn keyspaces_with_garbage_of_their_own_have_their_own_points() {
    with_pd(|pd| async move {
        pd.bootstrap().await;
        for body in [r#"{"name":"shared"}"#, r#"{"name":"own","config":{"gc_management_type":"keyspace_level"}}"#] {
            assert_eq!(pd.http("POST", "/pd/api/v2/keyspaces", body).await.0, 200);
        }
        let (shared, own) = (1, 2);
        let update = async |keyspace_id, safe_point| {
            let request = UpdateGcSafePointV2Request { header: pd.header(), keyspace_id, safe_point };
            pd.pd.update_gc_safe_point_v2(cx(), &request).await.map(|answer| answer.new_safe_point)
        };
        let get = async |keyspace_id| {
            let request = GetGcSafePointV2Request { header: pd.header(), keyspace_id };
            pd.pd.get_gc_safe_point_v2(cx(), &request).await.map(|answer| answer.safe_point)
        };
        assert_eq!(update(own, 50).await, Ok(50));
        assert_eq!((get(own).await, get(shared).await, get(u32::MAX).await), (Ok(50), Ok(0), Ok(0)));
        assert_eq!(update(shared, 7).await, Ok(7), "one that has none moves the cluster's");
        assert_eq!((get(own).await, get(shared).await, get(u32::MAX).await), (Ok(50), Ok(7), Ok(7)));
        let hold = UpdateServiceSafePointV2Request {
            header: pd.header(),
            keyspace_id: own,
            service_id: "cdc".into(),
            safe_point: 60,
            ttl: 1_000,
        };
        pd.pd.update_service_safe_point_v2(cx(), &hold).await.expect("held");
        assert!(update(own, 70).await.is_err() && update(shared, 70).await.is_ok(), "it holds its own keyspace");
        let all = pd.pd.get_all_gc_safe_point_v2(cx(), &GetAllGcSafePointV2Request { header: pd.header() }).await;
        let points = all.expect("answer").gc_safe_points;
        assert_eq!(points, [GcSafePointV2 { keyspace_id: own, gc_safe_point: 50 }]);
        let status = get(99).await.expect_err("no such keyspace");
        assert_eq!(status.code, Code::Unknown);
        let key = format!("/keyspaces/tidb/{own}/tidb/store/gcworker/saved_safe_point");
        assert_eq!(kept(&pd, key).await.as_deref(), Some("50"));
    });
}
