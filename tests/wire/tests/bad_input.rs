//! Bad input against a real node: each row gets its exact error, and afterwards the node serves, has kept what it had,
//! and has taken no more memory than its budgets allow. What a row's answer is stands in `compat/4-store.md`; the
//! budgets are those of `net::ServerConfig`.

mod common;
#[path = "../../../net/tests/common/raw.rs"]
mod raw;

use std::os::unix::process::CommandExt as _;
use std::time::Duration;

use basalt_wire::process::{Cluster, Start, wait_for};
use base::Prng;
use bytes::Bytes;
use common::rpc::{Failure, Rpc, code, framed};
use common::{Node, bytes, context, on_a_runtime, with_node};
use prost::Message;
use proto::kvrpcpb::{self as kv, Context};
use proto::tikvpb::batch_commands_request::{Request, request::Cmd};
use proto::tikvpb::{BatchCommandsEmptyRequest, BatchCommandsRequest};
use proto::{errorpb, metapb};
use raw::{DATA, END_HEADERS, END_STREAM, HEADERS, Raw, WINDOW_UPDATE, call, frame, message};

const MIB: u64 = 1 << 20;
/// Longest key.
const KEY_MAX: usize = 8 << 10;

/// What must be there after every attack.
const CANARIES: u32 = 20;

async fn put_canaries(node: &Node) {
    for i in 0..CANARIES {
        node.put(format!("canary-{i}").as_bytes(), format!("sings {i}").as_bytes()).await;
    }
}

async fn check_canaries(node: &Node) {
    for i in 0..CANARIES {
        let found = node.get(format!("canary-{i}").as_bytes()).await;
        assert_eq!(found.as_deref(), Some(format!("sings {i}").as_bytes()), "canary {i}");
    }
}

/// What a row expects.
enum Expected {
    /// This answer.
    Answer(Vec<u8>),
    /// This status, and this text in its message.
    Status(u32, &'static str),
}

struct Row {
    name: String,
    method: &'static str,
    body: Vec<u8>,
    expected: Expected,
}

fn row(name: &str, method: &'static str, request: &impl Message, answer: &impl Message) -> Row {
    let expected = Expected::Answer(answer.encode_to_vec());
    Row { name: name.into(), method, body: request.encode_to_vec(), expected }
}

fn abort(text: &str) -> Vec<kv::KvPair> {
    let error = kv::KeyError { abort: text.into(), ..Default::default() };
    vec![kv::KvPair { error: Some(error), ..Default::default() }]
}

fn pair(key: &Bytes) -> kv::KvPair {
    kv::KvPair { key: key.clone(), value: bytes("v"), ..Default::default() }
}

/// A key above the limit, in every field that holds one.
fn keys_too_long(context: &Context) -> Vec<Row> {
    let key = bytes(vec![b'k'; KEY_MAX + 1]);
    let context = Some(context.clone());
    let error = format!("max key size exceeded, size: {}, limit: {KEY_MAX}", KEY_MAX + 1);
    let name = "key too long";
    vec![
        row(
            name,
            "RawGet",
            &kv::RawGetRequest { context: context.clone(), key: key.clone(), ..Default::default() },
            &kv::RawGetResponse { error: error.clone(), ..Default::default() },
        ),
        row(
            name,
            "RawBatchGet",
            &kv::RawBatchGetRequest {
                context: context.clone(),
                keys: vec![bytes("good"), key.clone()],
                ..Default::default()
            },
            &kv::RawBatchGetResponse { pairs: abort(&error), ..Default::default() },
        ),
        row(
            name,
            "RawPut",
            &kv::RawPutRequest { context: context.clone(), key: key.clone(), ..Default::default() },
            &kv::RawPutResponse { error: error.clone(), ..Default::default() },
        ),
        row(
            name,
            "RawBatchPut",
            &kv::RawBatchPutRequest {
                context: context.clone(),
                pairs: vec![pair(&bytes("not-put")), pair(&key)],
                ..Default::default()
            },
            &kv::RawBatchPutResponse { error: error.clone(), ..Default::default() },
        ),
        row(
            name,
            "RawDelete",
            &kv::RawDeleteRequest { context: context.clone(), key: key.clone(), ..Default::default() },
            &kv::RawDeleteResponse { error: error.clone(), ..Default::default() },
        ),
        row(
            name,
            "RawBatchDelete",
            &kv::RawBatchDeleteRequest {
                context: context.clone(),
                keys: vec![bytes("canary-1"), key.clone()],
                ..Default::default()
            },
            &kv::RawBatchDeleteResponse { error: error.clone(), ..Default::default() },
        ),
        row(
            name,
            "RawDeleteRange",
            &kv::RawDeleteRangeRequest { context: context.clone(), end_key: key.clone(), ..Default::default() },
            &kv::RawDeleteRangeResponse { error: error.clone(), ..Default::default() },
        ),
        row(
            name,
            "RawGetKeyTTL",
            &kv::RawGetKeyTtlRequest { context: context.clone(), key: key.clone(), ..Default::default() },
            &kv::RawGetKeyTtlResponse { error: error.clone(), ..Default::default() },
        ),
        row(
            name,
            "RawCompareAndSwap",
            &kv::RawCasRequest { context, key, previous_not_exist: true, ..Default::default() },
            &kv::RawCasResponse { error, ..Default::default() },
        ),
    ]
}

/// Values, ranges and numbers that are out of bounds.
fn beyond_bounds(context: &Context) -> Vec<Row> {
    let context = Some(context.clone());
    let region_id = context.as_ref().map_or(0, |context| context.region_id);
    let key = bytes("k");
    let range = |start: &str, end: &str| kv::KeyRange { start_key: bytes(start), end_key: bytes(end) };
    let value = bytes(vec![1; 9 << 20]);
    let entry_size = (value.len() + key.len() + 32) as u64;
    let too_large = Some(errorpb::Error {
        message: format!("raft entry of {entry_size} bytes is too large"),
        raft_entry_too_large: Some(errorpb::RaftEntryTooLarge { region_id, entry_size }),
        ..Default::default()
    });
    vec![
        row(
            "value too large",
            "RawPut",
            &kv::RawPutRequest { context: context.clone(), key: key.clone(), value, ..Default::default() },
            &kv::RawPutResponse { region_error: too_large, ..Default::default() },
        ),
        row(
            "inverted range",
            "RawScan",
            &kv::RawScanRequest {
                context: context.clone(),
                start_key: bytes("z"),
                end_key: bytes("a"),
                limit: 10,
                ..Default::default()
            },
            &kv::RawScanResponse::default(),
        ),
        row(
            "inverted range",
            "RawBatchScan",
            &kv::RawBatchScanRequest {
                context: context.clone(),
                ranges: vec![range("z", "a")],
                each_limit: 10,
                ..Default::default()
            },
            &kv::RawBatchScanResponse { kvs: abort("Invalid KeyRanges"), ..Default::default() },
        ),
        row(
            "inverted range",
            "RawDeleteRange",
            &kv::RawDeleteRangeRequest {
                context: context.clone(),
                start_key: bytes("z"),
                end_key: bytes("a"),
                ..Default::default()
            },
            &kv::RawDeleteRangeResponse::default(),
        ),
        row(
            "inverted range",
            "RawChecksum",
            &kv::RawChecksumRequest { context: context.clone(), ranges: vec![range("z", "a")], ..Default::default() },
            &kv::RawChecksumResponse::default(),
        ),
        row(
            "largest ttl",
            "RawPut",
            &kv::RawPutRequest { context: context.clone(), key: key.clone(), ttl: u64::MAX, ..Default::default() },
            &kv::RawPutResponse {
                error: "ttl is not enabled, but get put request with ttl".into(),
                ..Default::default()
            },
        ),
        row(
            "largest limit",
            "RawScan",
            &kv::RawScanRequest {
                context: context.clone(),
                start_key: bytes("x"),
                limit: u32::MAX,
                ..Default::default()
            },
            &kv::RawScanResponse::default(),
        ),
        row(
            "largest duration",
            "RawGet",
            &kv::RawGetRequest {
                context: context.clone().map(|context| Context { max_execution_duration_ms: u64::MAX, ..context }),
                key: key.clone(),
                ..Default::default()
            },
            &kv::RawGetResponse { not_found: true, ..Default::default() },
        ),
        row(
            "unknown family",
            "RawGet",
            &kv::RawGetRequest { context: context.clone(), key: key.clone(), cf: "x".repeat(5000) },
            &kv::RawGetResponse { error: format!("invalid cf name: {}", "x".repeat(5000)), ..Default::default() },
        ),
        row(
            "no pairs",
            "RawBatchPut",
            &kv::RawBatchPutRequest { context, ..Default::default() },
            &kv::RawBatchPutResponse::default(),
        ),
    ]
}

/// Requests for somebody or something else.
fn for_others(node: &Node, region: &metapb::Region) -> Vec<Row> {
    let good = context(region);
    let peer = good.peer.expect("a peer");
    let get = |context: Context| kv::RawGetRequest { context: Some(context), key: bytes("k"), ..Default::default() };
    let refused = |error: errorpb::Error| kv::RawGetResponse { region_error: Some(error), ..Default::default() };
    let (store, other) = (node.cluster.store_id, node.cluster.store_id + 1);
    let store_not_match = errorpb::Error {
        message: format!("request is for store {other}, this is store {store}"),
        store_not_match: Some(errorpb::StoreNotMatch { request_store_id: other, actual_store_id: store }),
        ..Default::default()
    };
    let epoch = region.region_epoch.expect("an epoch");
    let epoch_not_match = errorpb::Error {
        message: format!(
            "epoch of region {} is {}:{}, the request has another",
            region.id, epoch.version, epoch.conf_ver
        ),
        epoch_not_match: Some(errorpb::EpochNotMatch { current_regions: vec![region.clone()] }),
        ..Default::default()
    };
    let unknown = errorpb::Error {
        message: format!("region {} is not found", u64::MAX),
        region_not_found: Some(errorpb::RegionNotFound { region_id: u64::MAX }),
        ..Default::default()
    };
    let future = metapb::RegionEpoch { version: u64::MAX, conf_ver: u64::MAX };
    let version = "api version does not match, command: raw, storage_api_version: V1, req_api_version: unknown";
    vec![
        row(
            "wrong store",
            "RawGet",
            &get(Context { peer: Some(metapb::Peer { store_id: other, ..peer }), ..good.clone() }),
            &refused(store_not_match),
        ),
        row(
            "no epoch",
            "RawGet",
            &get(Context { region_epoch: None, ..good.clone() }),
            &refused(epoch_not_match.clone()),
        ),
        row(
            "epoch of the future",
            "RawGet",
            &get(Context { region_epoch: Some(future), ..good.clone() }),
            &refused(epoch_not_match),
        ),
        row("no such region", "RawGet", &get(Context { region_id: u64::MAX, ..good.clone() }), &refused(unknown)),
        row(
            "largest term",
            "RawGet",
            &get(Context { term: u64::MAX, ..good.clone() }),
            &kv::RawGetResponse { not_found: true, ..Default::default() },
        ),
        row(
            "api version that does not exist",
            "RawGet",
            &get(Context { api_version: 77, ..good.clone() }),
            &kv::RawGetResponse { error: version.into(), ..Default::default() },
        ),
        Row {
            name: "wrong cluster".into(),
            method: "RawGet",
            body: get(Context { cluster_id: 1, ..good }).encode_to_vec(),
            expected: Expected::Status(
                code::INVALID_ARGUMENT,
                "the cluster id of the request does not match the TiKV cluster",
            ),
        },
    ]
}

const METHODS: [&str; 15] = [
    "RawGet",
    "RawBatchGet",
    "RawPut",
    "RawBatchPut",
    "RawDelete",
    "RawBatchDelete",
    "RawScan",
    "RawBatchScan",
    "RawDeleteRange",
    "RawGetKeyTTL",
    "RawCompareAndSwap",
    "RawChecksum",
    "RawCoprocessor",
    "SplitRegion",
    "ReadIndex",
];

/// Bytes that are no message, for every method.
fn garbage(context: &Context) -> Vec<Row> {
    let cut = {
        let mut body = kv::RawGetRequest { context: Some(context.clone()), ..Default::default() }.encode_to_vec();
        body.extend([0x12, 0x7f]);
        body
    };
    let kinds = [
        ("endless varint", vec![0xff; 20]),
        ("field beyond the end", vec![0x0a, 0x7f]),
        ("context of another type", vec![0x08, 0x01]),
        ("groups without end", vec![0x0b; 5000]),
        ("field zero", vec![0x02, 0x00]),
        ("second field beyond the end", cut),
    ];
    let mut rows = Vec::new();
    for method in METHODS {
        for (name, body) in &kinds {
            let expected = Expected::Status(code::INTERNAL, "");
            rows.push(Row { name: (*name).into(), method, body: body.clone(), expected });
        }
    }
    for method in ["KvGC", "KvImport", "Coprocessor", "Nonsense", "rawget"] {
        let expected = Expected::Status(code::UNIMPLEMENTED, "");
        rows.push(Row { name: "unknown method".into(), method, body: Vec::new(), expected });
    }
    rows
}

#[test]
fn every_row_gets_its_exact_answer_and_the_node_lives() {
    with_node(2, "", async |node| {
        put_canaries(node).await;
        let region = node.region(b"k").await;
        let good = context(&region);
        let rows = [keys_too_long(&good), beyond_bounds(&good), for_others(node, &region), garbage(&good)];
        for Row { name, method, body, expected } in rows.into_iter().flatten() {
            let answer = node.tikv.bytes(&format!("/tikvpb.Tikv/{method}"), &body, &[]).await;
            match expected {
                Expected::Answer(expected) => assert_eq!(answer, Ok(Bytes::from(expected)), "{name}, {method}"),
                Expected::Status(code, text) => {
                    let failure = answer.expect_err(&name);
                    assert_eq!(failure.code, code, "{name}, {method}: {failure:?}");
                    assert!(failure.message.contains(text), "{name}, {method}: {failure:?}");
                }
            }
            assert!(node.get(b"canary-0").await.is_some(), "after {name}, {method}");
        }
        assert_eq!(node.get(b"not-put").await, None, "nothing of a refused batch was done");
        check_canaries(node).await;
        limits_are_inclusive(node).await;
        headers_that_make_no_sense(node, &good).await;
    });
}

async fn limits_are_inclusive(node: &Node) {
    let longest = vec![b'k'; KEY_MAX];
    node.put(&longest, b"v").await;
    assert_eq!(node.get(&longest).await.as_deref(), Some(&b"v"[..]));
    let large = vec![3; (8 << 20) - 1024];
    node.put(b"large", &large).await;
    assert!(node.get(b"large").await.is_some_and(|found| found == large));
}

async fn headers_that_make_no_sense(node: &Node, good: &Context) {
    let get = kv::RawGetRequest { context: Some(good.clone()), key: bytes("canary-0"), ..Default::default() };
    let get = get.encode_to_vec();
    for timeout in ["99999999H", "99999999S"] {
        let answer = node.tikv.bytes("/tikvpb.Tikv/RawGet", &get, &[("grpc-timeout", timeout)]).await;
        assert!(answer.is_ok(), "{timeout}: {answer:?}");
    }
    // What cannot be read is refused or ignored, and the connection goes on.
    for (name, value) in
        [("grpc-timeout", "soon"), ("grpc-timeout", "999999999999S"), ("grpc-encoding", "snappy"), ("x-bin", "%%%")]
    {
        let answer = node.tikv.bytes("/tikvpb.Tikv/RawGet", &get, &[(name, value)]).await;
        assert!(answer.as_ref().map_or_else(|failure| failure.code < 17, |_| true), "{name}: {answer:?}");
    }
    let mut late = node.tikv.open("/tikvpb.Tikv/BatchCommands", &[]).await;
    let empty = |delay_time| Request { cmd: Some(Cmd::Empty(BatchCommandsEmptyRequest { test_id: 1, delay_time })) };
    let batch = BatchCommandsRequest { requests: vec![empty(u64::MAX), empty(0)], request_ids: vec![1, 2] };
    late.send(&batch.encode_to_vec(), false);
    assert!(late.next().await.is_some(), "the one without a delay");
    drop(late);
    check_canaries(node).await;
}

/// Valid requests with a few bytes changed: whatever comes back, it comes, and nothing that was there is lost.
#[test]
fn mutated_requests_are_answered_and_harm_nobody() {
    const SEED: u64 = 20_260_722;
    with_node(2, "", async |node| {
        let regions = node.split(&node.context(b"").await, &[b"m"]).await;
        put_canaries(node).await;
        // The canaries' region is another one.
        let context = Some(context(&regions[1]));
        let key = bytes("z");
        let range = kv::KeyRange { start_key: bytes("y"), end_key: key.clone() };
        let requests: Vec<(&str, Vec<u8>)> = vec![
            (
                "RawGet",
                kv::RawGetRequest { context: context.clone(), key: key.clone(), cf: "lock".into() }.encode_to_vec(),
            ),
            (
                "RawBatchGet",
                kv::RawBatchGetRequest { context: context.clone(), keys: vec![key.clone(); 3], ..Default::default() }
                    .encode_to_vec(),
            ),
            (
                "RawPut",
                kv::RawPutRequest {
                    context: context.clone(),
                    key: key.clone(),
                    value: bytes("v"),
                    ..Default::default()
                }
                .encode_to_vec(),
            ),
            (
                "RawBatchPut",
                kv::RawBatchPutRequest { context: context.clone(), pairs: vec![pair(&key); 3], ..Default::default() }
                    .encode_to_vec(),
            ),
            (
                "RawScan",
                kv::RawScanRequest { context: context.clone(), start_key: key.clone(), limit: 5, ..Default::default() }
                    .encode_to_vec(),
            ),
            (
                "RawBatchScan",
                kv::RawBatchScanRequest {
                    context: context.clone(),
                    ranges: vec![range.clone(); 2],
                    each_limit: 3,
                    ..Default::default()
                }
                .encode_to_vec(),
            ),
            (
                "RawCompareAndSwap",
                kv::RawCasRequest {
                    context: context.clone(),
                    key: key.clone(),
                    value: bytes("w"),
                    ..Default::default()
                }
                .encode_to_vec(),
            ),
            (
                "RawChecksum",
                kv::RawChecksumRequest { context: context.clone(), ranges: vec![range], ..Default::default() }
                    .encode_to_vec(),
            ),
            ("ReadIndex", kv::ReadIndexRequest { context: context.clone(), ..Default::default() }.encode_to_vec()),
        ];
        let mut prng = Prng::new(SEED);
        let path = |method: &str| format!("/tikvpb.Tikv/{method}");
        for round in 0..300 {
            for (method, body) in &requests {
                let body = mutated(body.clone(), &mut prng);
                let answer = node.tikv.bytes(&path(method), &body, &[]).await;
                assert!(
                    answer.as_ref().map_or_else(|failure| failure.code < 17, |_| true),
                    "round {round}, {method}, {body:02x?}: {answer:?}"
                );
            }
            let get = kv::RawGetRequest { context: context.clone(), key: key.clone(), ..Default::default() };
            let batch = BatchCommandsRequest {
                requests: vec![Request { cmd: Some(Cmd::RawGet(get)) }; 3],
                request_ids: vec![1, 2, 3],
            };
            let mut stream = node.tikv.open(&path("BatchCommands"), &[]).await;
            stream.send(&mutated(batch.encode_to_vec(), &mut prng), true);
            let Failure { code, message } = stream.end().await;
            assert!(code < 17, "round {round}: {code} {message}");
        }
        check_canaries(node).await;
    });
}

fn mutated(mut body: Vec<u8>, prng: &mut Prng) -> Vec<u8> {
    for _ in 0..=prng.below(3) {
        let at = prng.below(body.len().max(1) as u64) as usize;
        match prng.below(4) {
            0 => body.insert(at, prng.next_u64() as u8),
            1 if !body.is_empty() => body.truncate(at),
            2 if !body.is_empty() => body[at] ^= 1 << prng.below(8),
            _ if !body.is_empty() => body[at] = prng.next_u64() as u8,
            _ => {}
        }
    }
    body
}

/// The node's memory must not have grown by more than this.
fn assert_grown(cluster: &Cluster, before: u64, limit: u64, what: &str) {
    let grown = cluster.resident_bytes().saturating_sub(before);
    println!("{what}: {} MiB", grown / MIB);
    assert!(grown <= limit, "{what}: {} MiB, at most {} MiB", grown / MIB, limit / MIB);
}

/// Puts until one is done: a node whose memory is used up refuses for a while.
async fn put_patiently(node: &Node, rpc: &Rpc, key: &str) {
    let context = Some(node.context(key.as_bytes()).await);
    let request = kv::RawPutRequest { context, key: bytes(key), value: bytes("v"), ..Default::default() };
    let mut refused = 0;
    loop {
        match rpc.call::<kv::RawPutResponse>("/tikvpb.Tikv/RawPut", &request).await {
            Ok(answer) => return assert_eq!(answer, kv::RawPutResponse::default()),
            Err(failure) => assert_eq!(failure.code, code::RESOURCE_EXHAUSTED, "{failure:?}"),
        }
        refused += 1;
        assert!(refused < 60, "refused for ever");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// Files that the flooded node may have open.
const FILES: u64 = 512;

fn few_files() -> std::io::Result<()> {
    let limit = libc::rlimit { rlim_cur: FILES, rlim_max: FILES };
    // SAFETY: `limit` is a valid limit.
    match unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

#[test]
fn a_flood_of_connections_leaves_files_for_the_engine() {
    const CONNECTIONS: usize = 1500;
    executor::open_files_max();
    let dir = tempfile::tempdir().expect("a folder");
    let start = Start { data_dir: dir.path().join("data"), cores: 1, io: "auto".into(), ..Default::default() };
    let mut command = start.command();
    // SAFETY: between fork and exec only one system call is made.
    unsafe { command.pre_exec(few_files) };
    let cluster = Cluster::launch(command);
    on_a_runtime(async {
        let node = Node::connect(cluster, dir).await;
        put_canaries(&node).await;
        let before = node.cluster.resident_bytes();
        let address = node.cluster.address;
        let mut flood = Vec::new();
        for i in 0..CONNECTIONS {
            let mut raw = Raw::connect(address);
            // Some say nothing, some half a greeting, some a whole one and no more.
            match i % 3 {
                0 => {}
                1 => {
                    raw.send(&raw::PREFACE[..10]);
                }
                _ => {
                    raw.send(&[raw::PREFACE, &frame(raw::SETTINGS, 0, 0, &[])].concat());
                }
            }
            flood.push(raw);
        }
        for i in 0..200 {
            node.put(format!("during-{i}").as_bytes(), &[1; 1000]).await;
        }
        wait_for("refused connections", || node.cluster.metric("basalt_net_connections_refused_total") > 0);
        assert!(node.cluster.metric("basalt_net_connections") <= FILES / 2);
        assert_grown(&node.cluster, before, 100 * MIB, "a flood of connections");
        drop(flood);
        wait_for("the flood is over", || node.cluster.metric("basalt_net_connections") < 20);
        let another = Rpc::connect(address).await;
        put_patiently(&node, &another, "after").await;
        check_canaries(&node).await;
        let Node { cluster, .. } = node;
        cluster.stop();
    });
}

#[test]
fn a_flood_of_streams_costs_what_streams_cost() {
    with_node(1, "", async |node| {
        put_canaries(node).await;
        let before = node.cluster.resident_bytes();
        let tasks = node.cluster.metric("basalt_core_tasks");
        let mut flood = Vec::new();
        for _ in 0..20 {
            let mut raw = Raw::greeted(node.cluster.address, &[]);
            for i in 0..1200 {
                // Half of them are calls that have begun and say nothing.
                let path = ["/tikvpb.Tikv/RawGet", "/tikvpb.Tikv/BatchCommands"][i % 2];
                raw.send(&frame(HEADERS, END_HEADERS, 2 * i as u32 + 1, &call(path)));
            }
            flood.push(raw);
        }
        let streams = 20 * 1024;
        wait_for("open streams", || node.cluster.metric("basalt_net_streams") >= streams);
        assert!(node.cluster.metric("basalt_net_streams") <= streams + 10, "no more than a connection may have");
        put_patiently(node, &node.tikv, "during").await;
        assert_grown(&node.cluster, before, 300 * MIB, "a flood of streams");
        drop(flood);
        wait_for("the streams are gone", || node.cluster.metric("basalt_net_streams") == 0);
        answers_that_are_wanted_in_a_hundred_years(node).await;
        wait_for("their tasks are gone", || node.cluster.metric("basalt_core_tasks") <= tasks + 20);
        check_canaries(node).await;
    });
}

async fn answers_that_are_wanted_in_a_hundred_years(node: &Node) {
    let before = node.cluster.resident_bytes();
    let empty = Request { cmd: Some(Cmd::Empty(BatchCommandsEmptyRequest { test_id: 1, delay_time: u64::MAX })) };
    let batch = BatchCommandsRequest { requests: vec![empty; 100], request_ids: (0..100).collect() };
    let batch = batch.encode_to_vec();
    let client = Rpc::connect(node.cluster.address).await;
    let mut calls = Vec::new();
    for _ in 0..200 {
        let mut call = client.open("/tikvpb.Tikv/BatchCommands", &[]).await;
        call.send(&batch, false);
        calls.push(call);
    }
    wait_for("delayed answers", || node.cluster.metric("basalt_core_tasks") >= 20_000);
    put_patiently(node, &node.tikv, "during-delays").await;
    assert_grown(&node.cluster, before, 200 * MIB, "answers that wait");
}

/// 64 connections that each want to send 64 MiB, of messages that never end.
#[test]
fn a_flood_of_half_sent_messages_stays_within_the_budget() {
    const CONNECTIONS: usize = 64;
    const STREAMS: usize = 8;
    with_node(1, "", async |node| {
        put_canaries(node).await;
        let before = node.cluster.resident_bytes();
        let body = Bytes::from(vec![0; 8 << 20]);
        let mut head = framed(&[]).to_vec();
        head[1..].copy_from_slice(&(200u32 << 20).to_be_bytes());
        let head = Bytes::from(head);
        let mut flood = Vec::new();
        for _ in 0..CONNECTIONS {
            let client = Rpc::connect(node.cluster.address).await;
            for _ in 0..STREAMS {
                let mut call = client.open("/tikvpb.Tikv/RawPut", &[]).await;
                call.send_raw(head.clone());
                call.send_raw(body.clone());
                flood.push((client.clone(), call));
            }
        }
        let mut most = 0;
        let mut during = 0;
        for i in 0..20 {
            most = most.max(node.cluster.metric("basalt_net_inbound_bytes"));
            during = during.max(node.cluster.resident_bytes().saturating_sub(before));
            put_patiently(node, &node.tikv, &format!("during-{i}")).await;
        }
        println!("half-sent messages: {} MiB counted, {} MiB resident", most / MIB, during / MIB);
        assert!(most >= 64 * MIB, "the flood arrives: {} MiB", most / MIB);
        // What a core may hold (core_inbound_bytes, 512 MiB), what the windows that it gave before allow
        // (core_window_bytes, the same), and what one pass reads; in memory, chunks take up to half as much again.
        assert!(most <= 1040 * MIB, "{} MiB of messages", most / MIB);
        assert_grown(&node.cluster, before, 1536 * MIB, "half-sent messages");
        drop(flood);
        wait_for("the messages are gone", || node.cluster.metric("basalt_net_inbound_bytes") == 0);
        let another = Rpc::connect(node.cluster.address).await;
        put_patiently(node, &another, "after").await;
        check_canaries(node).await;
    });
}

/// 24 connections that each ask for 256 MiB, and 8 that ask for more than a GiB in batches; none reads anything.
#[test]
fn slow_readers_stay_within_the_budget() {
    const CONNECTIONS: usize = 24;
    const GETS: u32 = 256;
    with_node(1, "", async |node| {
        put_canaries(node).await;
        node.put(b"large", &vec![5; 1 << 20]).await;
        let context = Some(node.context(b"large").await);
        let get = kv::RawGetRequest { context: context.clone(), key: bytes("large"), ..Default::default() };
        let scan = kv::RawScanRequest { context, start_key: bytes("large"), limit: 1, ..Default::default() };
        let batch = BatchCommandsRequest {
            requests: vec![Request { cmd: Some(Cmd::RawGet(get.clone())) }; 128],
            request_ids: (0..128).collect(),
        };
        let bodies = [("/tikvpb.Tikv/RawGet", get.encode_to_vec()), ("/tikvpb.Tikv/RawScan", scan.encode_to_vec())];
        let before = node.cluster.resident_bytes();
        let mut flood = Vec::new();
        let greedy = || {
            // Windows of 2 GiB, so that nothing but the socket holds the answers back.
            let mut raw = Raw::greeted(node.cluster.address, &[(4, 0x7fff_ffff)]);
            raw.send(&frame(WINDOW_UPDATE, 0, 0, &0x7fff_0000u32.to_be_bytes()));
            raw
        };
        for _ in 0..8 {
            let mut raw = greedy();
            raw.send(&frame(HEADERS, END_HEADERS, 1, &call("/tikvpb.Tikv/BatchCommands")));
            for _ in 0..10 {
                raw.send(&frame(DATA, 0, 1, &message(&batch.encode_to_vec())));
            }
            flood.push(raw);
        }
        for _ in 0..CONNECTIONS {
            let mut raw = greedy();
            for i in 0..GETS {
                let (path, body) = &bodies[i as usize % 2];
                raw.send(&frame(HEADERS, END_HEADERS, 2 * i + 1, &call(path)));
                raw.send(&frame(DATA, END_STREAM, 2 * i + 1, &message(body)));
            }
            flood.push(raw);
        }
        let (mut most, mut made, mut during) = (0, 0, 0);
        for i in 0..20 {
            made = made.max(node.cluster.metric("basalt_service_answer_bytes"));
            most = most.max(node.cluster.metric("basalt_net_outbound_bytes"));
            during = during.max(node.cluster.resident_bytes().saturating_sub(before));
            put_patiently(node, &node.tikv, &format!("during-{i}")).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        println!("slow readers: {} and {} MiB counted, {} MiB resident", most / MIB, made / MIB, during / MIB);
        assert!(most.max(made) >= 64 * MIB, "the answers pile up: {} and {} MiB", most / MIB, made / MIB);
        assert!(made <= 300 * MIB, "{} MiB of answers are made", made / MIB);
        assert!(most <= 600 * MIB, "{} MiB of answers", most / MIB);
        assert!(during <= 900 * MIB, "{} MiB resident", during / MIB);
        drop(flood);
        wait_for("the answers are gone", || node.cluster.metric("basalt_net_outbound_bytes") == 0);
        wait_for("nothing is made for nobody", || node.cluster.metric("basalt_service_answer_bytes") == 0);
        check_canaries(node).await;
    });
}

#[test]
fn messages_that_claim_or_become_too_much_are_refused() {
    with_node(1, "", async |node| {
        put_canaries(node).await;
        let before = node.cluster.resident_bytes();
        for claimed in [(256 << 20) + 1, u32::MAX] {
            let mut head = framed(b"some bytes of it").to_vec();
            head[1..5].copy_from_slice(&claimed.to_be_bytes());
            let mut call = node.tikv.open("/tikvpb.Tikv/RawPut", &[]).await;
            call.send_raw(head.into());
            let failure = call.end().await;
            assert_eq!(failure.code, code::RESOURCE_EXHAUSTED, "{claimed}: {failure:?}");
        }
        // 300 MiB of zeros, some 300 KiB on the wire.
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        for _ in 0..300 {
            std::io::Write::write_all(&mut packed, &[0; 1 << 20]).expect("memory");
        }
        let mut bomb = framed(&packed.finish().expect("memory")).to_vec();
        bomb[0] = 1;
        for encoding in [&[("grpc-encoding", "gzip")][..], &[]] {
            let mut call = node.tikv.open("/tikvpb.Tikv/RawPut", encoding).await;
            call.send_raw(bomb.clone().into());
            call.close();
            let failure = call.end().await;
            // Without a name for how it is compressed it cannot even be tried.
            let expected = if encoding.is_empty() { code::INTERNAL } else { code::RESOURCE_EXHAUSTED };
            assert_eq!(failure.code, expected, "{failure:?}");
        }
        assert_grown(&node.cluster, before, 400 * MIB, "messages that grow");
        check_canaries(node).await;
    });
}
