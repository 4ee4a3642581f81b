//! Settings that TiDB and old stores share through PD.

use crate::common::{Pd, cx, error_of, with_pd};
use proto::etcdserverpb::CompactionRequest;
use proto::pdpb::*;
use proto::rpc::Code;

const ROOT: &str = "/global/config";

fn item(name: &str, value: &str) -> GlobalConfigItem {
    GlobalConfigItem { name: name.into(), value: value.into(), ..Default::default() }
}

async fn store(pd: &Pd, path: &str, changes: Vec<GlobalConfigItem>) {
    let request = StoreGlobalConfigRequest { changes, config_path: path.into() };
    assert_eq!(pd.pd.store_global_config(cx(), &request).await.expect("stored").error, None);
}

async fn load(pd: &Pd, path: &str, names: &[&str]) -> LoadGlobalConfigResponse {
    let names = names.iter().map(|name| (*name).to_owned()).collect();
    pd.pd.load_global_config(cx(), &LoadGlobalConfigRequest { names, config_path: path.into() }).await.expect("answer")
}

#[test]
fn settings_are_kept_by_name_or_all_at_once() {
    with_pd(|pd| async move {
        let payload = GlobalConfigItem { name: "b".into(), payload: "\0raw".into(), ..Default::default() };
        store(&pd, "", vec![item("a", "1"), payload]).await;
        store(&pd, "/global/config/other/", vec![item("c", "3")]).await;
        let found = load(&pd, ROOT, &["b", "none", "a"]).await.items;
        assert_eq!((found[0].name.as_str(), &found[0].payload[..]), ("b", &b"\0raw"[..]));
        let error = found[1].error.clone().expect("missing");
        assert_eq!((error.r#type(), error.message.as_str()), (ErrorType::GlobalConfigNotFound, "key none not found"));
        assert_eq!(&found[2].payload[..], b"1", "values come back as payloads");
        let names = |items: Vec<GlobalConfigItem>| items.into_iter().map(|item| item.name).collect::<Vec<_>>();
        let all = load(&pd, "", &[]).await;
        assert!(all.revision > 0);
        assert_eq!(names(all.items), ["/global/config/a", "/global/config/b", "/global/config/other/c"]);
        assert_eq!(names(load(&pd, "/global/config/other", &[]).await.items), ["/global/config/other/c"]);
        let gone = GlobalConfigItem { kind: EventType::Delete.into(), ..item("a", "") };
        store(&pd, "", vec![gone]).await;
        assert!(load(&pd, "", &["a"]).await.items[0].error.is_some());
    });
}

#[test]
fn only_what_lies_under_the_root_is_theirs() {
    with_pd(|pd| async move {
        for path in ["/pd", "global/config", "/global/configs", "/global/config/../pd", "resource_group/controller/x"] {
            let request = LoadGlobalConfigRequest { names: Vec::new(), config_path: path.into() };
            let status = pd.pd.load_global_config(cx(), &request).await.expect_err(path);
            assert_eq!(status.code, Code::InvalidArgument, "{path}");
            let request = StoreGlobalConfigRequest { changes: vec![item("x", "1")], config_path: path.into() };
            assert_eq!(pd.pd.store_global_config(cx(), &request).await.expect_err(path).code, Code::InvalidArgument);
        }
        // The one exception, which stores read.
        assert!(load(&pd, "resource_group/controller", &[]).await.items.is_empty());
        let put = proto::etcdserverpb::PutRequest {
            key: "resource_group/controller".into(),
            value: "{}".into(),
            ..Default::default()
        };
        pd.kv.put(cx(), &put).await.expect("put");
        assert_eq!(&load(&pd, "resource_group/controller", &[]).await.items[0].payload[..], b"{}");
    });
}

#[test]
fn settings_are_watched_from_a_revision_on() {
    with_pd(|pd| async move {
        store(&pd, "", vec![item("a", "1")]).await;
        let from = load(&pd, "", &["a"]).await.revision;
        store(&pd, "", vec![item("a", "2"), item("b", "2")]).await;
        let watch = WatchGlobalConfigRequest { config_path: String::new(), revision: from + 1 };
        let mut seen = pd.pd.watch_global_config(cx(), &watch).await.expect("the stream opens");
        let told = seen.next().await.expect("no error").expect("changes");
        assert_eq!((error_of(&told.header), told.revision), (None, from + 1));
        assert_eq!(told.changes.iter().map(|item| &item.payload[..]).collect::<Vec<_>>(), [b"2", b"2"]);
        store(&pd, "", vec![GlobalConfigItem { kind: EventType::Delete.into(), ..item("b", "") }]).await;
        let told = seen.next().await.expect("no error").expect("changes");
        assert_eq!((told.changes.len(), told.changes[0].kind()), (1, EventType::Delete));

        let compact = CompactionRequest { revision: told.revision, physical: false };
        pd.kv.compact(cx(), &compact).await.expect("compacts");
        let mut late = pd.pd.watch_global_config(cx(), &watch).await.expect("the stream opens");
        let told = late.next().await.expect("no error").expect("an answer");
        assert_eq!(error_of(&told.header).map(|(kind, _)| kind), Some(ErrorType::DataCompacted));
        assert_eq!(late.next().await, Ok(None), "and it ends");
    });
}
