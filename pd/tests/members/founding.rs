//! How a group begins, and what becomes of a first member that has lost its folder.

use crate::common::{cx, on_core};
use crate::group::{Group, PATIENCE, free_addresses};
use pd::{GroupError, PdConfig, PdError, PdServer};
use proto::etcdserverpb as etcd;
use std::time::Duration;

/// Starts a member whose folder was emptied: the others know it from before.
async fn refused(group: &Group, at: usize) {
    let _ = executor::fs::remove_dir_all(&group.config(at).data_dir).await;
    let mut server = PdServer::start(group.config(at)).await.expect("it asks the others first");
    let ended = executor::timeout(PATIENCE, server.failed()).await.expect("it ends");
    assert!(matches!(ended, PdError::Group(GroupError::LostData)), "{ended}");
    server.stop().await.expect("it stops");
}

#[test]
fn a_first_member_without_its_folder_is_no_blank_voter() {
    on_core(|path| async move {
        let mut group = Group::start(&path).await;
        let leader = group.leader().await;
        let (wiped, behind) = ((leader + 1) % 3, (leader + 2) % 3);
        // Acknowledged by the leader and by the one that will lose it.
        group.servers[behind].take().expect("it runs").stop().await.expect("it stops");
        let kv = etcd::KvClient::new(group.channel(leader));
        let put = etcd::PutRequest { key: "/k".into(), value: "v".into(), ..Default::default() };
        kv.put(cx(), &put).await.expect("acknowledged");
        group.servers[wiped].take().expect("it runs").stop().await.expect("it stops");
        refused(&group, wiped).await;
        // The two that are left would be a majority, without the key.
        group.servers[leader].take().expect("it runs").stop().await.expect("it stops");
        group.begin(behind).await;
        refused(&group, wiped).await;
        assert!(!group.server(behind).is_leader());

        group.begin(leader).await;
        let leads = group.leader().await;
        let name = &group.cluster[wiped].0;
        assert_eq!(group.http(leads, "DELETE", &format!("/pd/api/v1/members/name/{name}")).await.0, 200);
        let join = vec![group.cluster[leads].1.clone()];
        let config = PdConfig { initial_cluster: Vec::new(), join, ..group.config(wiped) };
        group.servers[wiped] = Some(PdServer::start(config).await.expect("it joins"));
        let voters = async {
            let client = etcd::ClusterClient::new(group.channel(leads));
            loop {
                let list = client.member_list(cx(), &etcd::MemberListRequest::default()).await.expect("a list").members;
                if list.len() == 3 && list.iter().all(|member| !member.is_learner) {
                    return;
                }
                executor::sleep(Duration::from_millis(10)).await;
            }
        };
        executor::timeout(PATIENCE, voters).await.expect("it votes");
        let range = etcd::RangeRequest { key: "/k".into(), ..Default::default() };
        let kv = etcd::KvClient::new(group.channel(group.leader().await));
        assert_eq!(kv.range(cx(), &range).await.expect("read").count, 1);
    });
}

#[test]
fn a_new_group_waits_for_its_slowest_member() {
    on_core(|path| async move {
        let cluster = free_addresses(3).await;
        let mut group = Group { servers: vec![None, None, None], cluster, folder: path };
        group.begin(0).await;
        group.begin(1).await;
        for _ in 0..2 {
            executor::sleep(Duration::from_millis(1_000)).await;
            assert!(!group.server(0).is_leader() && !group.server(1).is_leader(), "two of three begin alone");
            // It has promised nothing: it may come back as it was, and without its folder.
            group.servers[1].take().expect("it runs").stop().await.expect("it stops");
            let _ = executor::fs::remove_dir_all(&group.config(1).data_dir).await;
            group.begin(1).await;
        }
        group.begin(2).await;
        let leader = group.leader().await;
        // From here on two are enough.
        let slow = (leader + 1) % 3;
        for at in [slow, leader] {
            group.servers[at].take().expect("it runs").stop().await.expect("it stops");
            group.leader().await;
            group.begin(at).await;
        }
    });
}
