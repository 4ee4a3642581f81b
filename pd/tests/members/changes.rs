//! Members come and go while the group serves.

use crate::common::{self, cx, on_core};
use crate::group::{Group, PATIENCE, free_addresses};
use pd::{PdConfig, PdError, PdServer};
use proto::etcdserverpb as etcd;
use proto::pdpb;
use proto::rpc::Code;
use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

/// A group that begins with one member, with places for `count`.
async fn group_of_one(folder: &Path, count: usize) -> Group {
    let cluster = free_addresses(count).await;
    let mut group = Group { servers: Vec::new(), cluster, folder: folder.to_owned() };
    group.servers.push(Some(PdServer::start(config(&group, 0, &[])).await.expect("the first member")));
    group.servers.resize_with(count, || None);
    group
}

/// What a member is started with: `join` are the places of those that it is to ask.
fn config(group: &Group, at: usize, join: &[usize]) -> PdConfig {
    let join = join.iter().map(|at| group.cluster[*at].1.clone()).collect();
    PdConfig { initial_cluster: Vec::new(), join, ..group.config(at) }
}

async fn join(group: &mut Group, at: usize, through: usize) {
    let server = PdServer::start(config(group, at, &[through])).await.expect("the member joins");
    group.servers[at] = Some(server);
}

/// The members as a running one lists them: name, and whether it does not vote yet.
async fn list(group: &Group, at: usize) -> Vec<(String, bool)> {
    let client = etcd::ClusterClient::new(group.channel(at));
    let answer = client.member_list(cx(), &etcd::MemberListRequest::default()).await.expect("a list");
    answer.members.into_iter().map(|member| (member.name, member.is_learner)).collect()
}

/// Waits until each of these places lists exactly these members, all of which vote.
async fn until_members(group: &Group, places: &[usize]) {
    let wanted: Vec<(String, bool)> = places.iter().map(|at| (group.cluster[*at].0.clone(), false)).collect();
    for at in places {
        let wait = async {
            while list(group, *at).await != wanted {
                executor::sleep(Duration::from_millis(10)).await;
            }
        };
        let waited = executor::timeout(PATIENCE, wait).await;
        assert!(waited.is_ok(), "member {at} lists {:?}, not {wanted:?}", list(group, *at).await);
    }
}

/// Takes timestamps from whoever leads until it is cancelled: they rise. The cell counts them.
fn take_timestamps(group: &Group) -> (Rc<Cell<u64>>, executor::Task<()>) {
    let taken = Rc::new(Cell::new(0));
    let clients: Vec<_> = (0..group.cluster.len()).map(|at| group.pd(at)).collect();
    let (count, header) = (Rc::clone(&taken), group.header(0));
    let task = executor::spawn_local(executor::Class::Foreground, async move {
        let mut last = (0, 0);
        for client in clients.iter().cycle() {
            if let Ok((requests, mut answers)) = client.tso(cx()).await {
                let ask = pdpb::TsoRequest { header, count: 1, dc_location: String::new() };
                while requests.send(&ask).await.is_ok()
                    && let Ok(Some(answer)) = answers.next().await
                {
                    let timestamp = answer.timestamp.expect("a timestamp");
                    let now = (timestamp.physical, timestamp.logical);
                    assert!(now > last, "{now:?} after {last:?}");
                    last = now;
                    count.set(count.get() + 1);
                    executor::sleep(Duration::from_millis(1)).await;
                }
            }
            executor::sleep(Duration::from_millis(5)).await;
        }
    });
    (taken, task)
}

async fn until_more(taken: &Cell<u64>) {
    let before = taken.get();
    let wait = async {
        while taken.get() < before + 10 {
            executor::sleep(Duration::from_millis(5)).await;
        }
    };
    executor::timeout(PATIENCE, wait).await.expect("timestamps go on");
}

async fn ends_as_removed(mut server: PdServer) {
    let ended = executor::timeout(PATIENCE, server.failed()).await.expect("it ends");
    assert!(matches!(ended, PdError::Removed), "{ended}");
    // As its process would: the port is free then.
    server.stop().await.expect("it stops");
}

#[test]
fn one_becomes_three_becomes_one() {
    on_core(|path| async move {
        let mut group = group_of_one(&path, 4).await;
        let (taken, task) = take_timestamps(&group);
        until_more(&taken).await;
        let put = |text: &'static str| etcd::PutRequest { key: text.into(), value: text.into(), ..Default::default() };
        let kv = |group: &Group, at| etcd::KvClient::new(group.channel(at));
        kv(&group, 0).put(cx(), &put("/k/alone")).await.expect("acknowledged");
        join(&mut group, 1, 0).await;
        until_members(&group, &[0, 1]).await;
        join(&mut group, 2, 1).await;
        until_members(&group, &[0, 1, 2]).await;
        until_more(&taken).await;
        let (status, members) = group.http(2, "GET", "/pd/api/v1/members").await;
        assert_eq!((status, members["members"].as_array().map(Vec::len)), (200, Some(3)));

        // Whoever leads goes away; the others go on, replace it, and its folder is of no use any more.
        let dead = group.leader().await;
        let left: Vec<usize> = (0..3).filter(|at| *at != dead).collect();
        group.servers[dead].take().expect("it runs").stop().await.expect("it stops");
        let leader = group.leader().await;
        until_more(&taken).await;
        let path = format!("/pd/api/v1/members/name/pd-{dead}");
        assert_eq!(group.http(left[0], "DELETE", &path).await.0, 200);
        assert_eq!(group.http(left[1], "DELETE", &path).await, (404, format!("not found, pd: pd-{dead}").into()));
        until_members(&group, &left).await;
        join(&mut group, 3, left[0]).await;
        until_members(&group, &[left[0], left[1], 3]).await;
        until_more(&taken).await;
        // It was away when it was removed: the others tell it.
        let back = PdServer::start(config(&group, dead, &[])).await.expect("its folder does not know yet");
        ends_as_removed(back).await;
        let refused = PdServer::start(config(&group, dead, &[])).await.expect_err("now it does").to_string();
        assert!(refused.contains("was removed from its group"), "{refused}");

        // Down to one, the leader among those that go.
        let etcd_client = etcd::ClusterClient::new(group.channel(3));
        let members = etcd_client.member_list(cx(), &etcd::MemberListRequest::default()).await.expect("a list").members;
        for at in [leader, left[0], left[1]].into_iter().take_while(|at| *at != 3) {
            let Some(server) = group.servers[at].take() else { continue };
            let id = members.iter().find(|member| member.name == group.cluster[at].0).expect("a member").id;
            let answer = etcd_client.member_remove(cx(), &etcd::MemberRemoveRequest { id }).await.expect("removed");
            assert!(answer.members.iter().all(|member| member.id != id));
            ends_as_removed(server).await;
        }
        until_members(&group, &[3]).await;
        assert_eq!(group.leader().await, 3);
        until_more(&taken).await;
        task.cancel();
        let range = etcd::RangeRequest { key: "/k/alone".into(), ..Default::default() };
        assert_eq!(kv(&group, 3).range(cx(), &range).await.expect("read").count, 1);
        // It starts again by its folder alone, and is the whole group.
        group.servers[3].take().expect("it runs").stop().await.expect("it stops");
        group.servers[3] = Some(PdServer::start(config(&group, 3, &[])).await.expect("it starts"));
        assert_eq!(group.leader().await, 3);
        assert_eq!(kv(&group, 3).range(cx(), &range).await.expect("read").count, 1);
    });
}

#[test]
fn a_member_starts_again_by_what_its_folder_knows() {
    on_core(|path| async move {
        let mut group = group_of_one(&path, 3).await;
        for at in 1..3 {
            join(&mut group, at, 0).await;
            until_members(&group, &(0..=at).collect::<Vec<_>>()).await;
        }
        // All of them at once, without a word of who the others are.
        for at in 0..3 {
            group.servers[at].take().expect("it runs").stop().await.expect("it stops");
        }
        for at in 0..3 {
            group.servers[at] = Some(PdServer::start(config(&group, at, &[])).await.expect("it starts"));
        }
        group.leader().await;
        // One of them elsewhere: the others hear of it.
        group.servers[1].take().expect("it runs").stop().await.expect("it stops");
        let moved = free_addresses(1).await.remove(0).1;
        group.cluster[1].1.clone_from(&moved);
        group.servers[1] = Some(PdServer::start(config(&group, 1, &[])).await.expect("it starts"));
        let wait = async {
            loop {
                let client = etcd::ClusterClient::new(group.channel(2));
                let answer = client.member_list(cx(), &etcd::MemberListRequest::default()).await.expect("a list");
                if answer.members.iter().any(|member| member.client_urls == [moved.clone()]) {
                    return;
                }
                executor::sleep(Duration::from_millis(10)).await;
            }
        };
        executor::timeout(PATIENCE, wait).await.expect("the new URL is told");
    });
}

#[test]
fn what_would_harm_the_group_is_refused() {
    on_core(|path| async move {
        let mut group = group_of_one(&path, 4).await;
        let client = etcd::ClusterClient::new(group.channel(0));
        let id_of = async |name: &str| {
            let answer = client.member_list(cx(), &etcd::MemberListRequest::default()).await.expect("a list");
            answer.members.iter().find(|member| member.name == name).expect("a member").id
        };
        let alone = etcd::MemberRemoveRequest { id: id_of("pd-0").await };
        assert_eq!(client.member_remove(cx(), &alone).await.expect_err("the last one").code, Code::FailedPrecondition);
        let stranger = client.member_remove(cx(), &etcd::MemberRemoveRequest { id: 7 }).await.expect_err("a stranger");
        assert_eq!((stranger.code, stranger.message.as_str()), (Code::NotFound, "etcdserver: member not found"));

        // A learner that never starts costs nothing, and cannot be made a voter.
        let add = etcd::MemberAddRequest { peer_urls: vec![group.cluster[3].1.clone()], is_learner: true };
        let added = client.member_add(cx(), &add).await.expect("added");
        let learner = added.member.expect("the new member");
        assert!(learner.is_learner && learner.client_urls.is_empty() && added.members.len() == 2);
        let again = client.member_add(cx(), &add).await.expect_err("the URL is taken");
        assert_eq!(again.message, "etcdserver: Peer URLs already exists");
        let promoted = client.member_promote(cx(), &etcd::MemberPromoteRequest { id: learner.id }).await;
        assert!(promoted.expect_err("it has nothing").message.contains("in sync with leader"));
        client.member_remove(cx(), &etcd::MemberRemoveRequest { id: learner.id }).await.expect("removed");

        for at in 1..3 {
            join(&mut group, at, 0).await;
            until_members(&group, &(0..=at).collect::<Vec<_>>()).await;
        }
        let mut double = config(&group, 3, &[0]);
        double.name = "pd-1".into();
        let refused = PdServer::start(double).await.expect_err("there is a pd-1").to_string();
        assert!(refused.contains("there is a member of the name pd-1"), "{refused}");
        // With one of three away, no other may go.
        let leader = group.leader().await;
        let (away, stays) = ((leader + 1) % 3, (leader + 2) % 3);
        group.servers[away].take().expect("it runs").stop().await.expect("it stops");
        executor::sleep(Duration::from_millis(2_500)).await;
        let (status, text) = group.http(leader, "DELETE", &format!("/pd/api/v1/members/name/pd-{stays}")).await;
        assert_eq!(
            (status, text.as_str().is_some_and(|text| text.contains("not enough started members"))),
            (500, true)
        );
        let (status, _) = group.http(leader, "DELETE", &format!("/pd/api/v1/members/name/pd-{away}")).await;
        assert_eq!(status, 200);
        assert_eq!(common::http(group.server(leader).addr(), "DELETE", "/pd/api/v1/members/id/x", "").await.0, 400);
    });
}
