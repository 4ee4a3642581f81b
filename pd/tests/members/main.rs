//! Members of a group as clients see them, changes of who they are, and folders of former versions.

mod changes;
#[path = "../common/mod.rs"]
mod common;
mod founding;
mod group;

use common::{cx, on_core};
use group::{Group, PATIENCE};
use pd::PdServer;
use proto::rpc::{CallContext, Code, Metadata};
use proto::{etcdserverpb, pdpb};
use std::path::Path;
use std::time::Duration;

fn forwarded_to(url: &str) -> CallContext {
    let mut metadata = Metadata::new();
    metadata.push("pd-forwarded-host", url);
    CallContext { metadata, ..CallContext::default() }
}

#[test]
fn every_member_tells_who_leads_and_only_the_leader_answers() {
    on_core(|path| async move {
        let group = Group::start(&path).await;
        let leader = group.leader().await;
        for at in 0..3 {
            let answer = group.knows(at, leader).await;
            let names: Vec<_> = answer.members.iter().map(|member| member.name.as_str()).collect();
            assert_eq!(names, ["pd-0", "pd-1", "pd-2"]);
            assert_eq!(answer.leader, answer.etcd_leader);
            let urls: Vec<_> = answer.members.iter().flat_map(|member| member.client_urls.clone()).collect();
            assert_eq!(urls, group.cluster.iter().map(|(_, url)| url.clone()).collect::<Vec<_>>());
            let etcd = etcdserverpb::ClusterClient::new(group.channel(at));
            let listed = etcd.member_list(cx(), &etcdserverpb::MemberListRequest::default()).await.expect("members");
            let listed: Vec<u64> = listed.members.iter().map(|member| member.id).collect();
            assert_eq!(listed, answer.members.iter().map(|member| member.member_id).collect::<Vec<_>>());
        }
        let follower = (leader + 1) % 3;
        let request = pdpb::AllocIdRequest { header: group.header(leader) };
        let refused = group.pd(follower).alloc_id(cx(), &request).await.expect_err("it does not lead");
        assert_eq!(refused.code, Code::Unavailable);
        assert!(refused.message.contains("not leader"), "{refused}");
        let (requests, mut answers) = group.pd(follower).tso(cx()).await.expect("the stream opens");
        drop(requests);
        assert!(answers.next().await.expect_err("no timestamps here").message.contains("not leader"));
        // A call that names the leader goes to it, as do streams.
        let url = &group.cluster[leader].1;
        let id = group.pd(follower).alloc_id(forwarded_to(url), &request).await.expect("passed on").id;
        let next = group.pd(leader).alloc_id(cx(), &request).await.expect("the leader's").id;
        assert_eq!(next, id + 1);
        let (requests, mut answers) = group.pd(follower).tso(forwarded_to(url)).await.expect("the stream opens");
        let ask = pdpb::TsoRequest { header: group.header(leader), count: 7, dc_location: String::new() };
        requests.send(&ask).await.expect("sent");
        assert_eq!(answers.next().await.expect("no error").expect("an answer").count, 7);
        requests.close();
        assert_eq!(answers.next().await, Ok(None));
    });
}

#[test]
fn rest_requests_are_answered_by_any_member() {
    on_core(|path| async move {
        let group = Group::start(&path).await;
        let leader = group.leader().await;
        for at in 0..3 {
            group.knows(at, leader).await;
            let (status, members) = group.http(at, "GET", "/pd/api/v1/members").await;
            assert_eq!((status, members["members"].as_array().map(Vec::len)), (200, Some(3)));
            assert_eq!(members["leader"]["name"], group.cluster[leader].0);
            let (_, health) = group.http(at, "GET", "/pd/api/v1/health").await;
            let healthy = health.as_array().expect("a list").iter().filter(|member| member["health"] == true).count();
            assert_eq!(healthy, 3, "{health}");
            let (status, config) = group.http(at, "GET", "/pd/api/v1/config").await;
            assert_eq!((status, &config["name"]), (200, &group.cluster[leader].0.as_str().into()));
        }
        let to = (leader + 1) % 3;
        let (status, text) = group.http((leader + 2) % 3, "POST", &format!("/pd/api/v1/leader/transfer/pd-{to}")).await;
        assert_eq!((status, text), (200, "The transfer command is submitted.".into()));
        assert_eq!(group.leader().await, to);
        assert_eq!(group.http(to, "POST", "/pd/api/v1/leader/transfer/nobody").await.0, 404);
        assert_eq!(group.http(to, "POST", "/pd/api/v1/leader/resign").await.0, 200);
        assert_ne!(group.leader().await, to);
    });
}

#[test]
fn a_member_that_stops_hands_over_and_catches_up_by_a_snapshot() {
    on_core(|path| async move {
        let mut group = Group::start(&path).await;
        let first = group.leader().await;
        let kv = |group: &Group, at| etcdserverpb::KvClient::new(group.channel(at));
        let put = |key: String, bytes: usize| etcdserverpb::PutRequest {
            key: key.into(),
            value: vec![7; bytes].into(),
            ..Default::default()
        };
        kv(&group, first).put(cx(), &put("/k/first".into(), 10)).await.expect("acknowledged");
        group.servers[first].take().expect("it runs").stop().await.expect("it stops");
        let second = group.leader().await;
        assert_ne!(second, first);
        // More than the leader's log keeps for those that lag.
        for number in 0..40 {
            kv(&group, second).put(cx(), &put(format!("/k/{number}"), 300_000)).await.expect("acknowledged");
        }
        group.begin(first).await;
        let revision = async {
            let request = etcdserverpb::StatusRequest::default();
            loop {
                let of = |at| etcdserverpb::MaintenanceClient::new(group.channel(at));
                let (ours, theirs) = (of(first).status(cx(), &request).await, of(second).status(cx(), &request).await);
                if let (Ok(ours), Ok(theirs)) = (ours, theirs)
                    && ours.raft_applied_index == theirs.raft_applied_index
                    && ours.db_size == theirs.db_size
                {
                    return ours.db_size;
                }
                executor::sleep(Duration::from_millis(20)).await;
            }
        };
        assert!(executor::timeout(PATIENCE, revision).await.expect("it catches up") > 12_000_000);
        // It can lead with all of that.
        let path = format!("/pd/api/v1/leader/transfer/pd-{first}");
        assert_eq!(group.http(second, "POST", &path).await.0, 200);
        assert_eq!(group.leader().await, first);
        let range = etcdserverpb::RangeRequest {
            key: "/k/".into(),
            range_end: "/k0".into(),
            count_only: true,
            ..Default::default()
        };
        assert_eq!(kv(&group, first).range(cx(), &range).await.expect("read").count, 41);
    });
}

#[test]
fn a_folder_belongs_to_its_group() {
    on_core(|path| async move {
        let mut group = Group::start(&path).await;
        let leader = group.leader().await;
        group.servers[leader].take().expect("it runs").stop().await.expect("it stops");
        let mut other = group.config(leader);
        other.name = group.cluster[(leader + 1) % 3].0.clone();
        assert!(PdServer::start(other).await.is_err(), "it is another member's folder");
    });
}

/// `folder_v1` was written by the version before members had a raft log: a cluster with a store, a region, five keys, an
/// id, a timestamp.
#[test]
fn a_folder_of_the_first_version_is_taken_over() {
    on_core(|path| async move {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/folder_v1");
        for name in ["image", "journal-0000000000000001"] {
            let bytes = executor::fs::read(&from.join(name)).await.expect("it is there");
            executor::fs::write_atomic(&path.join(name), &bytes).await.expect("copied");
        }
        // The second start reads what the first one made of it.
        for start in 0..2 {
            let pd = common::start(&path).await;
            assert_eq!(pd.server.cluster_id().0, 7_711_102_392_888_683_661);
            let range = etcdserverpb::RangeRequest {
                key: "/k/".into(),
                range_end: "/k0".into(),
                ..etcdserverpb::RangeRequest::default()
            };
            let found = pd.kv.range(cx(), &range).await.expect("keys").kvs;
            let values: Vec<_> = found.iter().map(|kv| kv.value.clone()).collect();
            assert_eq!(values, ["value 0", "value 1", "value 2", "value 3", "value 4"]);
            let region = pdpb::GetRegionByIdRequest { header: pd.header(), region_id: 2, need_buckets: false };
            assert!(pd.pd.get_region_by_id(cx(), &region).await.expect("answer").region.is_some());
            let id = pd.pd.alloc_id(cx(), &pdpb::AllocIdRequest { header: pd.header() }).await.expect("an id").id;
            assert_eq!(id, 1_001 + 1_000 * start);
            let (requests, mut answers) = pd.pd.tso(cx()).await.expect("the stream opens");
            requests
                .send(&pdpb::TsoRequest { header: pd.header(), count: 1, ..Default::default() })
                .await
                .expect("sent");
            let timestamp = answers.next().await.expect("no error").expect("an answer").timestamp.expect("one");
            assert!(timestamp.physical > 1_795_380_933_418);
            pd.server.stop().await.expect("it stops");
        }
    });
}

#[test]
fn a_folder_of_the_first_version_is_no_member_of_three() {
    on_core(|path| async move {
        let group = Group::start(&path.join("group")).await;
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/folder_v1");
        let mut config = group.config(0);
        config.data_dir = path.join("old");
        config.listen = "127.0.0.1:0".parse().expect("an address");
        executor::fs::create_dir_all(&config.data_dir).await.expect("a folder");
        let bytes = executor::fs::read(&from.join("image")).await.expect("it is there");
        executor::fs::write_atomic(&config.data_dir.join("image"), &bytes).await.expect("copied");
        let error = PdServer::start(config).await.expect_err("it is of a group of one").to_string();
        assert!(error.contains("belongs to a group of"), "{error}");
    });
}

/// `folder_v2` was written by the version whose members could not change: a group of one, with a setting.
#[test]
fn a_folder_of_before_members_could_change_is_taken_over() {
    on_core(|path| async move {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/folder_v2");
        for name in ["image", "journal-0000000000000001"] {
            let bytes = executor::fs::read(&from.join(name)).await.expect("it is there");
            executor::fs::write_atomic(&path.join(name), &bytes).await.expect("copied");
        }
        // The second start reads what the first one made of it.
        let mut numbers = Vec::new();
        for _ in 0..2 {
            let pd = common::start(&path).await;
            assert_eq!(pd.server.cluster_id().0, 7_711_167_288_574_090_862);
            assert_eq!(pd.get_json("/pd/api/v1/config/schedule").await["leader-schedule-limit"], 17);
            let members = pd.get_json("/pd/api/v1/members").await["members"].clone();
            numbers.push(members[0]["member_id"].as_u64().expect("a number"));
            // Others may join it now.
            let learner = r#"{"url": "http://127.0.0.1:1", "learner": true}"#;
            let (status, added) = pd.http("POST", "/pd/api/v1/members", learner).await;
            let added: serde_json::Value = serde_json::from_str(&added).expect("JSON");
            assert_eq!(status, 200, "{added}");
            let path = format!("/pd/api/v1/members/id/{}", added["member_id"]);
            assert_eq!(pd.http("DELETE", &path, "").await.0, 200);
            pd.server.stop().await.expect("it stops");
        }
        assert_eq!(numbers[0], numbers[1]);
    });
}
