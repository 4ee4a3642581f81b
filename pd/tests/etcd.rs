//! etcd's API on the member's port: keys, transactions, leases, watches.

mod common;

use common::{cx, with_pd};
use proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use proto::etcdserverpb::request_op::Request;
use proto::etcdserverpb::watch_request::RequestUnion;
use proto::etcdserverpb::*;
use proto::mvccpb::event::EventType;
use proto::rpc::Code;

fn put(key: &'static str, value: &'static str, lease: i64) -> PutRequest {
    PutRequest { key: key.into(), value: value.into(), lease, ..PutRequest::default() }
}

fn range(key: &'static str, end: &'static str) -> RangeRequest {
    RangeRequest { key: key.into(), range_end: end.into(), ..RangeRequest::default() }
}

fn created(key: &'static str, revision: i64) -> Compare {
    Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Create.into(),
        key: key.into(),
        target_union: Some(TargetUnion::CreateRevision(revision)),
        ..Compare::default()
    }
}

fn op(request: Request) -> RequestOp {
    RequestOp { request: Some(request) }
}

#[test]
fn the_member_list_names_reachable_urls() {
    with_pd(|pd| async move {
        let cluster = ClusterClient::new(pd.channel.clone());
        let list = cluster.member_list(cx(), &MemberListRequest::default()).await.expect("members");
        assert_eq!(list.members.len(), 1);
        assert_eq!(list.members[0].client_urls, [pd.server.url().to_owned()]);
        assert!(!list.members[0].is_learner && list.header.is_some_and(|header| header.revision > 0));
        let maintenance = MaintenanceClient::new(pd.channel.clone());
        let status = maintenance.status(cx(), &StatusRequest::default()).await.expect("status");
        assert_eq!(status.leader, list.members[0].id);
    });
}

#[test]
fn keys_have_revisions_and_ranges_have_orders_and_a_past() {
    with_pd(|pd| async move {
        let first = pd.kv.put(cx(), &put("/a", "1", 0)).await.expect("put").header.expect("header").revision;
        pd.kv.put(cx(), &put("/b", "2", 0)).await.expect("put");
        let again = PutRequest { prev_kv: true, ..put("/a", "3", 0) };
        let again = pd.kv.put(cx(), &again).await.expect("put");
        assert_eq!(again.prev_kv.map(|kv| kv.value), Some("1".into()));
        let found = pd.kv.range(cx(), &range("/a", "")).await.expect("range").kvs;
        assert_eq!((found[0].create_revision, found[0].mod_revision, found[0].version), (first, first + 2, 2));
        let newest = RangeRequest {
            sort_order: range_request::SortOrder::Descend.into(),
            sort_target: range_request::SortTarget::Create.into(),
            limit: 1,
            ..range("/", "0")
        };
        let found = pd.kv.range(cx(), &newest).await.expect("range");
        assert_eq!((found.kvs[0].key.as_ref(), found.more, found.count >= 2), (&b"/b"[..], true, true));
        let before = RangeRequest { max_create_revision: first, ..newest };
        assert_eq!(pd.kv.range(cx(), &before).await.expect("range").kvs[0].key.as_ref(), b"/a");
        let past = RangeRequest { revision: first, ..range("/a", "/c") };
        let found = pd.kv.range(cx(), &past).await.expect("range").kvs;
        assert_eq!(found.iter().map(|kv| &kv.value[..]).collect::<Vec<_>>(), [b"1"]);

        pd.kv.compact(cx(), &CompactionRequest { revision: first + 1, physical: false }).await.expect("compacts");
        let status = pd.kv.range(cx(), &past).await.expect_err("compacted");
        assert_eq!(status.code, Code::OutOfRange);
        assert_eq!(status.message, "etcdserver: mvcc: required revision has been compacted");
        let future = RangeRequest { revision: 1 << 40, ..range("/a", "") };
        assert_eq!(pd.kv.range(cx(), &future).await.expect_err("future").code, Code::OutOfRange);
    });
}

#[test]
fn transactions_take_one_branch_at_one_revision() {
    with_pd(|pd| async move {
        let campaign = |value| TxnRequest {
            compare: vec![created("/owner", 0)],
            success: vec![
                op(Request::RequestPut(put("/owner", value, 0))),
                op(Request::RequestPut(put("/log", value, 0))),
            ],
            failure: vec![op(Request::RequestRange(range("/owner", "")))],
        };
        let won = pd.kv.txn(cx(), &campaign("a")).await.expect("txn");
        assert!(won.succeeded && won.responses.len() == 2);
        let lost = pd.kv.txn(cx(), &campaign("b")).await.expect("txn");
        assert!(!lost.succeeded);
        let Some(response_op::Response::ResponseRange(found)) = &lost.responses[0].response else { panic!("a range") };
        let revision = won.header.expect("header").revision;
        assert_eq!((found.kvs[0].value.as_ref(), found.kvs[0].create_revision), (&b"a"[..], revision));
        assert_eq!(lost.header.expect("header").revision, revision, "reading takes no revision");
        let log = pd.kv.range(cx(), &range("/log", "")).await.expect("range").kvs;
        assert_eq!(log[0].mod_revision, revision);

        let twice =
            TxnRequest { success: vec![op(Request::RequestPut(put("/x", "1", 0))); 2], ..TxnRequest::default() };
        let status = pd.kv.txn(cx(), &twice).await.expect_err("refused");
        assert_eq!(status.message, "etcdserver: duplicate key given in txn request");
        let many =
            TxnRequest { success: vec![op(Request::RequestRange(range("/x", ""))); 129], ..TxnRequest::default() };
        assert_eq!(pd.kv.txn(cx(), &many).await.expect_err("refused").code, Code::InvalidArgument);
        let delete = DeleteRangeRequest { key: "/".into(), range_end: "/p".into(), prev_kv: true };
        let deleted = pd.kv.delete_range(cx(), &delete).await.expect("deleted");
        assert_eq!((deleted.deleted, deleted.prev_kvs.len()), (2, 2));
    });
}

#[test]
fn bad_writes_get_etcds_words_and_the_clusters_own_keys_are_safe() {
    with_pd(|pd| async move {
        let refused = async |request: PutRequest| pd.kv.put(cx(), &request).await.expect_err("refused");
        assert_eq!(refused(put("", "v", 0)).await.message, "etcdserver: key is not provided");
        let status = refused(put("/k", "v", 77)).await;
        assert_eq!((status.code, status.message.as_str()), (Code::NotFound, "etcdserver: requested lease not found"));
        let large = PutRequest { value: vec![0; 2 << 20].into(), ..put("/k", "", 0) };
        assert_eq!(refused(large).await.message, "etcdserver: request is too large");
        let own = PutRequest { key: format!("/pd/{}/timestamp", pd.server.cluster_id()).into(), ..put("", "", 0) };
        assert_eq!(refused(own).await.code, Code::PermissionDenied);
        let all = DeleteRangeRequest { key: vec![0].into(), range_end: vec![0].into(), prev_kv: false };
        assert_eq!(pd.kv.delete_range(cx(), &all).await.expect_err("refused").code, Code::PermissionDenied);
        let ignore = PutRequest { ignore_value: true, ..put("/none", "", 0) };
        assert_eq!(refused(ignore).await.message, "etcdserver: key not found");
    });
}

#[test]
fn a_lease_takes_its_keys_with_it_and_watchers_see_that() {
    with_pd(|pd| async move {
        let (requests, mut events) = pd.watch.watch(cx()).await.expect("the stream opens");
        let create =
            WatchCreateRequest { key: "/s/".into(), range_end: "/s0".into(), prev_kv: true, ..Default::default() };
        let create = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        requests.send(&create).await.expect("sent");
        assert!(events.next().await.expect("no error").expect("an answer").created);

        let lease = pd.lease.lease_grant(cx(), &LeaseGrantRequest { ttl: 60, id: 0 }).await.expect("a lease");
        pd.kv.put(cx(), &put("/s/1", "one", lease.id)).await.expect("put");
        pd.kv.put(cx(), &put("/other", "", 0)).await.expect("put");
        let told = events.next().await.expect("no error").expect("an event");
        assert_eq!((told.events.len(), told.events[0].r#type()), (1, EventType::Put));
        let (keepalives, mut alive) = pd.lease.lease_keep_alive(cx()).await.expect("the stream opens");
        keepalives.send(&LeaseKeepAliveRequest { id: lease.id }).await.expect("sent");
        assert_eq!(alive.next().await.expect("no error").map(|answer| answer.ttl), Some(60));
        keepalives.send(&LeaseKeepAliveRequest { id: 4711 }).await.expect("sent");
        assert_eq!(alive.next().await.expect("no error").map(|answer| answer.ttl), Some(0));
        let left = LeaseTimeToLiveRequest { id: lease.id, keys: true };
        let left = pd.lease.lease_time_to_live(cx(), &left).await.expect("answer");
        assert_eq!((left.granted_ttl, left.keys.len()), (60, 1));

        pd.lease.lease_revoke(cx(), &LeaseRevokeRequest { id: lease.id }).await.expect("revoked");
        let told = events.next().await.expect("no error").expect("an event");
        assert_eq!(told.events[0].r#type(), EventType::Delete);
        assert_eq!(told.events[0].prev_kv.as_ref().map(|kv| &kv.value[..]), Some(&b"one"[..]));
        let again = pd.lease.lease_revoke(cx(), &LeaseRevokeRequest { id: lease.id }).await.expect_err("gone");
        assert_eq!(again.code, Code::NotFound);
    });
}

#[test]
fn a_watch_from_the_past_gets_every_event_once_and_one_from_too_far_is_cancelled() {
    with_pd(|pd| async move {
        let mut revisions = Vec::new();
        for value in ["1", "2", "3"] {
            revisions.push(pd.kv.put(cx(), &put("/w", value, 0)).await.expect("put").header.expect("header").revision);
        }
        let (requests, mut events) = pd.watch.watch(cx()).await.expect("the stream opens");
        let from = |start_revision, watch_id| {
            let create = WatchCreateRequest { key: "/w".into(), start_revision, watch_id, ..Default::default() };
            WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) }
        };
        requests.send(&from(revisions[1], 5)).await.expect("sent");
        assert!(events.next().await.expect("no error").expect("an answer").created);
        let told = events.next().await.expect("no error").expect("events");
        let seen: Vec<_> = told.events.iter().filter_map(|event| Some(event.kv.as_ref()?.mod_revision)).collect();
        assert_eq!((told.watch_id, seen), (5, revisions[1..].to_vec()));

        pd.kv.compact(cx(), &CompactionRequest { revision: revisions[2], physical: false }).await.expect("compacts");
        requests.send(&from(revisions[0], 6)).await.expect("sent");
        assert!(events.next().await.expect("no error").expect("an answer").created);
        let told = events.next().await.expect("no error").expect("an answer");
        assert!(told.canceled && told.watch_id == 6 && told.compact_revision > revisions[0]);
        let cancel =
            WatchRequest { request_union: Some(RequestUnion::CancelRequest(WatchCancelRequest { watch_id: 5 })) };
        requests.send(&cancel).await.expect("sent");
        assert!(events.next().await.expect("no error").expect("an answer").canceled);
        requests.close();
        assert_eq!(events.next().await, Ok(None));
    });
}

#[test]
fn meta_storage_shows_the_same_keys() {
    with_pd(|pd| async move {
        use proto::meta_storagepb as meta;
        let header = Some(meta::RequestHeader { cluster_id: pd.server.cluster_id().0, source: String::new() });
        let put = meta::PutRequest {
            header: header.clone(),
            key: "resource_group/settings/a".into(),
            value: "x".into(),
            ..Default::default()
        };
        let written = pd.meta.put(cx(), &put).await.expect("put").header.expect("header").revision;
        let get = meta::GetRequest {
            header: header.clone(),
            key: "resource_group/settings".into(),
            range_end: "resource_group/settingt".into(),
            ..Default::default()
        };
        let found = pd.meta.get(cx(), &get).await.expect("get");
        assert_eq!((found.count, found.header.map(|header| header.revision)), (1, Some(written)));
        let watch = meta::WatchRequest {
            header,
            key: get.key,
            range_end: get.range_end,
            start_revision: written,
            prev_kv: true,
        };
        let mut events = pd.meta.watch(cx(), &watch).await.expect("the stream opens");
        let told = events.next().await.expect("no error").expect("an event");
        assert_eq!(told.events[0].kv.as_ref().map(|kv| &kv.value[..]), Some(&b"x"[..]));
    });
}
