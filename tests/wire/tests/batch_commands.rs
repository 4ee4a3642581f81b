//! `BatchCommands` through a plain HTTP/2 client: every id is answered once, whatever it asks for, and answers travel
//! together. What is expected stands in `compat/4-store.md`, 4.8.

mod common;

use std::collections::BTreeMap;

use common::rpc::{Call, code};
use common::{Node, bytes, context, with_node};
use prost::Message as _;
use proto::kvrpcpb::{self as kv, Context};
use proto::tikvpb::batch_commands_request::{Request, request::Cmd};
use proto::tikvpb::batch_commands_response::{Response, response::Cmd as Answer};
use proto::tikvpb::{BatchCommandsEmptyRequest, BatchCommandsRequest, BatchCommandsResponse};

const PATH: &str = "/tikvpb.Tikv/BatchCommands";

fn message(commands: Vec<(u64, Option<Cmd>)>) -> Vec<u8> {
    let (request_ids, requests) = commands.into_iter().map(|(id, cmd)| (id, Request { cmd })).unzip();
    BatchCommandsRequest { requests, request_ids }.encode_to_vec()
}

/// Answers by id until there are `count`; checks that none comes twice. Also the number of messages.
async fn answers(call: &mut Call, count: usize) -> (BTreeMap<u64, Response>, usize) {
    let (mut found, mut messages) = (BTreeMap::new(), 0);
    while found.len() < count {
        let Some(message) = call.next().await else {
            panic!("the stream ended after {} of {count} answers: {:?}", found.len(), call.end().await);
        };
        let message = BatchCommandsResponse::decode(message).expect("a batch");
        assert_eq!(message.responses.len(), message.request_ids.len());
        assert!((1..=128).contains(&message.responses.len()), "{} answers", message.responses.len());
        messages += 1;
        for (id, answer) in message.request_ids.into_iter().zip(message.responses) {
            assert!(found.insert(id, answer).is_none(), "{id} was answered twice");
        }
    }
    assert_eq!(found.len(), count, "nothing was answered that nobody asked for");
    (found, messages)
}

/// The stream ends well, with no further answer.
async fn end_well(mut call: Call) {
    call.close();
    assert_eq!(call.next().await, None, "everything was answered");
    assert_eq!(call.end().await.code, 0);
}

fn put(context: &Context, key: &str, value: &str) -> Option<Cmd> {
    let (key, value) = (bytes(key), bytes(value));
    Some(Cmd::RawPut(kv::RawPutRequest { context: Some(context.clone()), key, value, ..Default::default() }))
}

fn get(context: &Context, key: &str) -> Option<Cmd> {
    let key = bytes(key);
    Some(Cmd::RawGet(kv::RawGetRequest { context: Some(context.clone()), key, ..Default::default() }))
}

/// A context for each region after a split at `keys`, in order.
async fn split(node: &Node, keys: &[&str]) -> Vec<Context> {
    let keys: Vec<&[u8]> = keys.iter().map(|key| key.as_bytes()).collect();
    let regions = node.split(&node.context(b"").await, &keys).await;
    regions.iter().map(context).collect()
}

#[test]
fn every_command_is_answered_by_its_kind() {
    with_node(4, "", async |node| {
        let parts = split(node, &["g", "p"]).await;
        let pair = |key: &str, value: &str| kv::KvPair { key: bytes(key), value: bytes(value), ..Default::default() };
        let mut call = node.tikv.open(PATH, &[]).await;
        let at = |part: usize| Some(parts[part].clone());
        let pairs = vec![pair("h1", "1"), pair("h2", "2"), pair("h3", "3")];
        let batch_put = kv::RawBatchPutRequest { context: at(1), pairs: pairs.clone(), ..Default::default() };
        call.send(&message(vec![(1, put(&parts[0], "a", "1")), (2, Some(Cmd::RawBatchPut(batch_put)))]), false);
        let (found, _) = answers(&mut call, 2).await;
        assert_eq!(found[&1].cmd, Some(Answer::RawPut(kv::RawPutResponse::default())));
        assert_eq!(found[&2].cmd, Some(Answer::RawBatchPut(kv::RawBatchPutResponse::default())));

        let keys: Vec<_> = ["h1", "h3", "h9"].iter().map(bytes).collect();
        let range = kv::KeyRange { start_key: bytes("h1"), end_key: bytes("h3") };
        let scan = kv::RawScanRequest { context: at(1), start_key: bytes("h"), limit: 2, ..Default::default() };
        let batch_scan =
            kv::RawBatchScanRequest { context: at(1), ranges: vec![range], each_limit: 9, ..Default::default() };
        let coprocessor = kv::RawCoprocessorRequest { context: at(1), ..Default::default() };
        let empty = |delay_time| Some(Cmd::Empty(BatchCommandsEmptyRequest { test_id: 77, delay_time }));
        let commands = vec![
            (u64::MAX, get(&parts[0], "a")),
            (0, get(&parts[0], "absent")),
            (4, Some(Cmd::RawBatchGet(kv::RawBatchGetRequest { context: at(1), keys, ..Default::default() }))),
            (5, Some(Cmd::RawScan(scan))),
            (6, Some(Cmd::RawBatchScan(batch_scan))),
            (7, empty(0)),
            (8, empty(50)),
            (9, Some(Cmd::RawCoprocessor(coprocessor))),
            // What this release does not serve, and what nobody knows.
            (10, Some(Cmd::Gc(kv::GcRequest::default()))),
            (11, None),
            // A region error does not disturb the others.
            (12, get(&Context { region_id: 999, ..parts[0].clone() }, "a")),
        ];
        call.send(&message(commands), false);
        let (found, _) = answers(&mut call, 11).await;
        let value = kv::RawGetResponse { value: bytes("1"), ..Default::default() };
        assert_eq!(found[&u64::MAX].cmd, Some(Answer::RawGet(value)));
        assert_eq!(found[&0].cmd, Some(Answer::RawGet(kv::RawGetResponse { not_found: true, ..Default::default() })));
        let some = |picked: &[usize]| picked.iter().map(|i| pairs[*i].clone()).collect::<Vec<_>>();
        let expected = kv::RawBatchGetResponse { pairs: some(&[0, 2]), ..Default::default() };
        assert_eq!(found[&4].cmd, Some(Answer::RawBatchGet(expected)));
        assert_eq!(
            found[&5].cmd,
            Some(Answer::RawScan(kv::RawScanResponse { kvs: some(&[0, 1]), ..Default::default() }))
        );
        let expected = kv::RawBatchScanResponse { kvs: some(&[0, 1]), ..Default::default() };
        assert_eq!(found[&6].cmd, Some(Answer::RawBatchScan(expected)));
        for id in [7, 8] {
            let Some(Answer::Empty(empty)) = &found[&id].cmd else { panic!("{:?}", found[&id]) };
            assert_eq!(empty.test_id, 77);
        }
        let Some(Answer::RawCoprocessor(refused)) = &found[&9].cmd else { panic!("{:?}", found[&9]) };
        assert!(refused.error.contains("not found"));
        assert_eq!((&found[&10].cmd, &found[&11].cmd), (&None, &None));
        let Some(Answer::RawGet(refused)) = &found[&12].cmd else { panic!("{:?}", found[&12]) };
        let error = refused.region_error.clone().and_then(|error| error.region_not_found).expect("RegionNotFound");
        assert_eq!(error.region_id, 999);

        let delete = kv::RawDeleteRequest { context: at(0), key: bytes("a"), ..Default::default() };
        let batch_delete = kv::RawBatchDeleteRequest { context: at(1), keys: vec![bytes("h1")], ..Default::default() };
        let (start_key, end_key) = (bytes("h3"), bytes("h4"));
        let delete_range = kv::RawDeleteRangeRequest { context: at(1), start_key, end_key, ..Default::default() };
        let commands = vec![
            (1, Some(Cmd::RawDelete(delete))),
            (2, Some(Cmd::RawBatchDelete(batch_delete))),
            (3, Some(Cmd::RawDeleteRange(delete_range))),
        ];
        call.send(&message(commands), false);
        let (found, _) = answers(&mut call, 3).await;
        assert_eq!(found[&1].cmd, Some(Answer::RawDelete(kv::RawDeleteResponse::default())));
        assert_eq!(found[&2].cmd, Some(Answer::RawBatchDelete(kv::RawBatchDeleteResponse::default())));
        assert_eq!(found[&3].cmd, Some(Answer::RawDeleteRange(kv::RawDeleteRangeResponse::default())));
        let keys = [("a", false), ("h1", false), ("h2", true), ("h3", false)];
        for (key, is_there) in keys {
            assert_eq!(node.get(key.as_bytes()).await.is_some(), is_there, "{key}");
        }
        end_well(call).await;
    });
}

fn key_of(number: u64) -> String {
    format!("key-{}", number % 10_000 * 7 % 10_000)
}

/// True if the region of `key` does not lead yet; else the answer must be right.
fn was_refused(key: &str, answer: &Response, is_put: bool) -> bool {
    let (error, is_right) = match &answer.cmd {
        Some(Answer::RawPut(answer)) if is_put => (&answer.region_error, *answer == kv::RawPutResponse::default()),
        Some(Answer::RawGet(answer)) if !is_put => (&answer.region_error, answer.value == format!("value of {key}")),
        other => panic!("{key}: {other:?}"),
    };
    let is_refused = error.as_ref().is_some_and(|error| error.not_leader.is_some() || error.server_is_busy.is_some());
    assert!(is_refused || is_right, "{key}: {answer:?}");
    is_refused
}

#[test]
fn thousands_of_commands_are_answered_once_each_and_together() {
    const MESSAGES: u64 = 100;
    const COMMANDS: u64 = 128;
    with_node(4, "", async |node| {
        let parts = split(node, &["key-2", "key-4", "key-6", "key-8"]).await;
        let part = |key: &str| &parts[usize::from(key.as_bytes()[4] - b'0') / 2];
        let mut call = node.tikv.open(PATH, &[]).await;
        for (base, is_put) in [(0, true), (1 << 40, false)] {
            let mut numbers: Vec<u64> = (0..MESSAGES * COMMANDS).collect();
            for pass in 0..60 {
                for numbers in numbers.chunks(COMMANDS as usize) {
                    let command = |number: &u64| {
                        let key = key_of(*number);
                        let cmd = match is_put {
                            true => put(part(&key), &key, &format!("value of {key}")),
                            false => get(part(&key), &key),
                        };
                        (base + number, cmd)
                    };
                    call.send(&message(numbers.iter().map(command).collect()), false);
                }
                let (found, messages) = answers(&mut call, numbers.len()).await;
                assert!(numbers.iter().all(|number| found.contains_key(&(base + number))));
                assert!(pass > 0 || messages * 4 <= numbers.len(), "{} answers in {messages}", numbers.len());
                // A region that moved for longer than a second says so: its clients come again.
                numbers.retain(|number| was_refused(&key_of(*number), &found[&(base + number)], is_put));
                if numbers.is_empty() {
                    break;
                }
            }
            assert!(numbers.is_empty(), "{} are refused for ever", numbers.len());
        }
        end_well(call).await;
    });
}

#[test]
fn a_stream_tells_once_a_second_how_the_store_feels() {
    with_node(1, "", async |node| {
        let mut call = node.tikv.open(PATH, &[]).await;
        let mut feedback = Vec::new();
        let started = std::time::Instant::now();
        for id in 0.. {
            call.send(&message(vec![(id, Some(Cmd::Empty(BatchCommandsEmptyRequest::default())))]), false);
            let answer = BatchCommandsResponse::decode(call.next().await.expect("an answer")).expect("a batch");
            assert_eq!(answer.request_ids, [id]);
            feedback.extend(answer.health_feedback);
            if feedback.len() >= 3 {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        assert!(started.elapsed().as_millis() >= 1900, "three within {} ms", started.elapsed().as_millis());
        assert!(feedback.iter().all(|told| told.store_id == node.cluster.store_id && told.slow_score == 1));
        assert!(feedback.is_sorted_by(|a, b| a.feedback_seq_no < b.feedback_seq_no), "{feedback:?}");
        end_well(call).await;
    });
}

#[test]
fn a_message_that_cannot_be_served_ends_its_stream_and_no_other() {
    with_node(4, "", async |node| {
        let parts = split(node, &["m"]).await;
        let mut decent = node.tikv.open(PATH, &[]).await;
        let stranger = Context { cluster_id: node.cluster_id + 1, ..parts[0].clone() };
        // The delayed one is answered before the stream ends: it came before the stranger.
        let delayed = Some(Cmd::Empty(BatchCommandsEmptyRequest { test_id: 1, delay_time: 100 }));
        let mut call = node.tikv.open(PATH, &[]).await;
        call.send(&message(vec![(1, delayed)]), false);
        call.send(&message(vec![(2, put(&parts[0], "k", "not done")), (3, get(&stranger, "k"))]), false);
        let (found, _) = answers(&mut call, 1).await;
        assert!(found.contains_key(&1));
        let end = call.end().await;
        assert_eq!(end.code, code::INVALID_ARGUMENT, "{end:?}");
        assert_eq!(end.message, "the cluster id of the request does not match the TiKV cluster");
        assert_eq!(node.get(b"k").await, None, "no command of that message was started");

        let uneven =
            BatchCommandsRequest { requests: vec![Request { cmd: get(&parts[0], "k") }], request_ids: vec![1, 2] };
        for garbage in [uneven.encode_to_vec(), b"\x0a\x05\x01".to_vec(), vec![0xff; 100]] {
            let mut call = node.tikv.open(PATH, &[]).await;
            call.send(&garbage, false);
            let end = call.end().await;
            assert_eq!(end.code, code::INTERNAL, "{end:?}");
        }
        // A command that cannot be read is answered like the others: by its id.
        let body = kv::RawGetRequest { context: Some(parts[1].clone()), ..Default::default() }.encode_to_vec();
        let mut part = vec![];
        let tag = proto::shallow::tag::RAW_GET;
        prost::encoding::encode_key(tag, prost::encoding::WireType::LengthDelimited, &mut part);
        prost::encoding::encode_varint(body.len() as u64 + 2, &mut part);
        part.extend(&body);
        part.extend([0x12, 0x7f]);
        let mut whole = vec![0x0a, part.len() as u8];
        whole.extend(&part);
        whole.extend([0x12, 0x01, 0x09]);
        decent.send(&whole, false);
        let (found, _) = answers(&mut decent, 1).await;
        let Some(Answer::RawGet(refused)) = &found[&9].cmd else { panic!("{found:?}") };
        assert!(refused.region_error.as_ref().is_some_and(|error| !error.message.is_empty()), "{refused:?}");

        // A deadline ends a stream, with what it has in flight.
        let mut late = node.tikv.open(PATH, &[("grpc-timeout", "300m")]).await;
        let slow = Some(Cmd::Empty(BatchCommandsEmptyRequest { test_id: 1, delay_time: 3_600_000 }));
        late.send(&message(vec![(1, slow)]), false);
        assert_eq!(late.end().await.code, code::DEADLINE_EXCEEDED);

        decent.send(&message(vec![(5, get(&parts[1], "z"))]), false);
        assert_eq!(answers(&mut decent, 1).await.0.len(), 1);
        end_well(decent).await;
    });
}
