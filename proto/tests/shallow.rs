//! The shallow parsers against prost's full decoder, on random messages and on damaged ones.

use base::Prng;
use bytes::Bytes;
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};
use proto::shallow::{self, BATCH_COMMANDS_MAX, Command, ShallowError, tag};
use proto::tikvpb::batch_commands_request::{Request, request::Cmd};
use proto::tikvpb::{BatchCommandsEmptyRequest, BatchCommandsRequest, BatchCommandsResponse, batch_commands_response};
use proto::{coprocessor, kvrpcpb, metapb};

#[test]
fn region_id_is_the_one_that_prost_decodes() {
    for seed in 0..2_000 {
        let prng = &mut Prng::new(seed);
        for request in
            [any_get(prng).encode_to_vec(), any_batch_put(prng).encode_to_vec(), any_coprocessor(prng).encode_to_vec()]
        {
            // The second is merged into the first: contexts too.
            let merged = [request.clone(), any_get(prng).encode_to_vec()].concat();
            for message in [request, merged] {
                let expected = context_of(&message).expect("these are messages").region_id;
                assert_eq!(shallow::region_id(&message), Ok(expected), "seed {seed}");
            }
        }
    }
}

#[test]
fn region_id_of_a_damaged_request_is_prosts_or_an_error() {
    let (mut agreed, mut refused) = (0, 0);
    for seed in 0..20_000 {
        let prng = &mut Prng::new(seed);
        let message = damage(any_get(prng).encode_to_vec(), prng);
        match (shallow::region_id(&message), context_of(&message)) {
            (Ok(region_id), Some(context)) => {
                assert_eq!(region_id, context.region_id, "seed {seed}");
                agreed += 1;
            }
            (Err(error), Some(_)) => {
                panic!("seed {seed}: prost decodes what is refused with {error}")
            }
            (Err(_), None) => refused += 1,
            (Ok(_), None) => {}
        }
    }
    assert!(agreed > 1_000 && refused > 1_000, "both sides were reached: {agreed} and {refused}");
}

#[test]
fn region_id_wants_a_context_in_field_1() {
    let empty = BatchCommandsEmptyRequest { test_id: 7, delay_time: 0 }.encode_to_vec();
    assert_eq!(shallow::region_id(&empty), Err(ShallowError::WrongType { field: 1 }));
    assert_eq!(shallow::region_id(&[]), Ok(0));
    assert_eq!(shallow::region_id(&[0x0a, 2, 0x0d, 1]), Err(ShallowError::Truncated));
    assert_eq!(shallow::region_id(&[0x0a, 2, 0x0a, 0]), Err(ShallowError::WrongType { field: 1 }));
}

#[test]
fn commands_are_those_that_prost_decodes_and_share_the_batch() {
    for seed in 0..1_000 {
        let prng = &mut Prng::new(seed);
        let batch = any_batch(prng);
        let bytes = Bytes::from(batch.encode_to_vec());
        let commands = shallow::batch_commands(&bytes).expect("this is a batch");
        assert_same(&batch, &commands, seed);
        for command in commands.iter().filter(|command| !command.body.is_empty()) {
            assert!(bytes.as_ptr_range().contains(&command.body.as_ptr()), "seed {seed}: the body is a slice");
        }
        assert_eq!(shallow::encode_batch_request(&commands), bytes, "seed {seed}");
    }
}

#[test]
fn a_batch_from_an_odd_encoder_is_read_as_prost_reads_it() {
    for seed in 0..2_000 {
        let prng = &mut Prng::new(seed);
        let bytes = odd_batch(prng);
        let batch = BatchCommandsRequest::decode(bytes.clone()).expect("odd, but a batch");
        match shallow::batch_commands(&bytes) {
            Ok(commands) => assert_same(&batch, &commands, seed),
            Err(error) => {
                let (commands, ids) = (batch.requests.len(), batch.request_ids.len());
                assert_eq!(error, ShallowError::IdsDoNotMatch { commands, ids }, "seed {seed}");
                assert_ne!(commands, ids, "seed {seed}");
            }
        }
    }
}

#[test]
fn a_damaged_batch_is_prosts_or_an_error() {
    let (mut agreed, mut refused) = (0, 0);
    for seed in 0..20_000 {
        let prng = &mut Prng::new(seed);
        let message = Bytes::from(damage(any_batch(prng).encode_to_vec(), prng));
        match (shallow::batch_commands(&message), BatchCommandsRequest::decode(message.clone())) {
            (Ok(commands), Ok(batch)) => {
                assert_same(&batch, &commands, seed);
                agreed += 1;
            }
            (Err(ShallowError::IdsDoNotMatch { commands, ids }), Ok(batch)) => {
                assert_eq!((commands, ids), (batch.requests.len(), batch.request_ids.len()), "seed {seed}");
            }
            (Err(error), Ok(_)) => {
                panic!("seed {seed}: prost decodes what is refused with {error}")
            }
            (Err(_), Err(_)) => refused += 1,
            (Ok(_), Err(_)) => {}
        }
    }
    assert!(agreed > 1_000 && refused > 1_000, "both sides were reached: {agreed} and {refused}");
}

#[test]
fn random_bytes_never_panic() {
    for seed in 0..20_000 {
        let prng = &mut Prng::new(seed);
        let message = any_bytes(prng, 64);
        let _ = shallow::region_id(&message);
        let _ = shallow::batch_commands(&message);
        let _ = shallow::batch_answers(&message);
    }
}

#[test]
fn counts_must_match_and_stay_in_bounds() {
    let batch = |commands: usize, ids: usize| {
        let batch = BatchCommandsRequest { requests: vec![Request::default(); commands], request_ids: vec![1; ids] };
        shallow::batch_commands(&Bytes::from(batch.encode_to_vec()))
    };
    assert_eq!(batch(0, 0), Ok(vec![]));
    assert_eq!(batch(2, 1), Err(ShallowError::IdsDoNotMatch { commands: 2, ids: 1 }));
    assert_eq!(batch(0, 3), Err(ShallowError::IdsDoNotMatch { commands: 0, ids: 3 }));
    assert_eq!(batch(BATCH_COMMANDS_MAX, BATCH_COMMANDS_MAX).map(|commands| commands.len()), Ok(BATCH_COMMANDS_MAX));
    assert_eq!(batch(BATCH_COMMANDS_MAX + 1, BATCH_COMMANDS_MAX + 1), Err(ShallowError::TooMany));
    assert_eq!(batch(0, BATCH_COMMANDS_MAX + 1), Err(ShallowError::TooMany));
}

#[test]
fn answers_have_the_numbers_of_their_commands() {
    let numbers = |message: &str| -> Vec<(u32, String)> {
        let line = include_str!("../facts.txt").lines().find_map(|line| line.strip_prefix(message));
        let fields = line.expect("the batch is in the protocol").split("; ");
        let words = fields.map(|field| field.split(' ').map(str::to_owned).collect::<Vec<_>>());
        words.map(|words| (words[0].parse().expect("a field has a number"), words[1].clone())).collect()
    };
    let commands = numbers("message tikvpb.BatchCommandsRequest.Request: ");
    assert_eq!(commands, numbers("message tikvpb.BatchCommandsResponse.Response: "));
    assert!(commands.len() > 30);
    for number in 0..400 {
        let named = commands.iter().find(|(tag, _)| *tag == number).map(|(_, name)| name.as_str());
        assert_eq!(tag::name(number), named);
    }
    assert_eq!((tag::RAW_GET, tag::RAW_BATCH_SCAN, tag::EMPTY), (13, 21, 255));
}

#[test]
fn an_unknown_command_keeps_its_id() {
    let batch = shallow::encode_batch_request(&[Command { id: 9, tag: 300, body: Bytes::from_static(b"new") }]);
    assert_eq!(shallow::batch_commands(&batch), Ok(vec![Command { id: 9, tag: 0, body: Bytes::new() }]));
}

#[test]
fn answers_are_encoded_as_prost_encodes_them() {
    use batch_commands_response::{Response, response};
    for seed in 0..1_000 {
        let prng = &mut Prng::new(seed);
        let mut whole = BatchCommandsResponse::default();
        let mut parts = Vec::new();
        for _ in 0..prng.below(6) {
            let id = prng.next_u64() >> prng.below(64);
            let value = any_bytes(prng, 300);
            let get = kvrpcpb::RawGetResponse { value, ..Default::default() };
            let (command, body, cmd) = match prng.below(3) {
                0 => (0, Bytes::new(), None),
                1 => (tag::EMPTY, Bytes::new(), Some(response::Cmd::Empty(Default::default()))),
                _ => (tag::RAW_GET, get.encode_to_vec().into(), Some(response::Cmd::RawGet(get))),
            };
            parts.push(Command { id, tag: command, body });
            whole.request_ids.push(id);
            whole.responses.push(Response { cmd });
        }
        whole.health_feedback = prng.one_in(2).then(|| kvrpcpb::HealthFeedback {
            store_id: prng.below(9),
            feedback_seq_no: prng.next_u64(),
            slow_score: 1,
        });
        let encoded = shallow::encode_batch_response(&parts, whole.health_feedback.as_ref());
        assert_eq!(encoded, whole.encode_to_vec(), "seed {seed}");
        assert_eq!(shallow::batch_answers(&encoded), Ok(parts), "seed {seed}");
    }
}

#[test]
fn a_command_in_a_million_pieces_is_merged_in_one_go() {
    let mut request = Vec::new();
    for _ in 0..1_000_000 {
        request.extend([13 << 3 | 2, 2, 0x12, 0]);
    }
    let mut batch = Vec::new();
    put(1, &request, &mut batch);
    batch.extend([0x10, 5]);
    let commands = shallow::batch_commands(&batch.into()).expect("this is a batch");
    assert_eq!((commands[0].id, commands[0].tag, commands[0].body.len()), (5, tag::RAW_GET, 2_000_000));
}

fn assert_same(batch: &BatchCommandsRequest, commands: &[Command], seed: u64) {
    let ids: Vec<u64> = commands.iter().map(|command| command.id).collect();
    assert_eq!(ids, batch.request_ids, "seed {seed}");
    for (command, request) in commands.iter().zip(&batch.requests) {
        let mut alone = Vec::new();
        if command.tag != 0 {
            put(command.tag, &command.body, &mut alone);
        }
        assert_eq!(Request::decode(&alone[..]).as_ref(), Ok(request), "seed {seed}");
    }
}

/// What prost reads in field 1 of a `GetRequest`-like message, whatever else is in it.
fn context_of(message: &[u8]) -> Option<kvrpcpb::Context> {
    /// Field 1 of all requests.
    #[derive(Clone, PartialEq, prost::Message)]
    struct HasContext {
        #[prost(message, optional, tag = "1")]
        context: Option<kvrpcpb::Context>,
    }
    Some(HasContext::decode(message).ok()?.context.unwrap_or_default())
}

fn any_context(prng: &mut Prng) -> Option<kvrpcpb::Context> {
    (!prng.one_in(8)).then(|| kvrpcpb::Context {
        region_id: if prng.one_in(4) { 0 } else { prng.next_u64() >> prng.below(64) },
        region_epoch: prng.one_in(2).then(|| metapb::RegionEpoch { conf_ver: prng.below(4), version: prng.below(300) }),
        peer: prng.one_in(2).then(|| metapb::Peer {
            id: prng.next_u64(),
            store_id: prng.below(9),
            ..Default::default()
        }),
        term: prng.below(9),
        request_source: if prng.one_in(2) { "external".into() } else { String::new() },
        resolved_locks: (0..prng.below(4)).map(|_| prng.next_u64()).collect(),
        ..Default::default()
    })
}

fn any_bytes(prng: &mut Prng, limit: u64) -> Bytes {
    let mut bytes = vec![0; prng.below(limit) as usize];
    prng.fill(&mut bytes);
    bytes.into()
}

fn any_get(prng: &mut Prng) -> kvrpcpb::RawGetRequest {
    kvrpcpb::RawGetRequest { context: any_context(prng), key: any_bytes(prng, 40), cf: "default".into() }
}

fn any_batch_put(prng: &mut Prng) -> kvrpcpb::RawBatchPutRequest {
    let pairs = (0..prng.below(5))
        .map(|_| kvrpcpb::KvPair { key: any_bytes(prng, 20), value: any_bytes(prng, 200), error: None })
        .collect();
    kvrpcpb::RawBatchPutRequest { context: any_context(prng), pairs, for_cas: prng.one_in(2), ..Default::default() }
}

fn any_coprocessor(prng: &mut Prng) -> coprocessor::Request {
    coprocessor::Request { context: any_context(prng), tp: 103, data: any_bytes(prng, 100), ..Default::default() }
}

fn any_request(prng: &mut Prng) -> Request {
    let cmd = match prng.below(5) {
        0 => None,
        1 => Some(Cmd::Empty(BatchCommandsEmptyRequest { test_id: prng.below(200), delay_time: 0 })),
        2 => Some(Cmd::RawBatchPut(any_batch_put(prng))),
        3 => Some(Cmd::Coprocessor(any_coprocessor(prng))),
        _ => Some(Cmd::RawGet(any_get(prng))),
    };
    Request { cmd }
}

fn any_batch(prng: &mut Prng) -> BatchCommandsRequest {
    let requests: Vec<_> = (0..prng.below(5)).map(|_| any_request(prng)).collect();
    let request_ids = requests.iter().map(|_| prng.next_u64() >> prng.below(64)).collect();
    BatchCommandsRequest { requests, request_ids }
}

/// A batch as no sane encoder writes it: ids packed, split and alone, between and before commands; commands in
/// pieces, overridden, of unknown numbers; unknown fields everywhere.
fn odd_batch(prng: &mut Prng) -> Bytes {
    let mut batch = Vec::new();
    for _ in 0..prng.below(4) {
        odd_ids(prng, &mut batch);
        let mut request = Vec::new();
        for _ in 0..prng.below(4) {
            match prng.below(4) {
                0 => odd_field(prng, &mut request),
                1 => put(1000, b"newer", &mut request),
                _ => any_request(prng).encode(&mut request).expect("a Vec grows"),
            }
        }
        put(1, &request, &mut batch);
        odd_field(prng, &mut batch);
    }
    odd_ids(prng, &mut batch);
    batch.into()
}

fn odd_ids(prng: &mut Prng, out: &mut Vec<u8>) {
    match prng.below(4) {
        0 => {}
        1 => {
            let mut packed = Vec::new();
            (0..prng.below(3)).for_each(|_| encode_varint(prng.next_u64(), &mut packed));
            put(2, &packed, out);
        }
        _ => {
            encode_key(2, WireType::Varint, out);
            encode_varint(prng.below(1000), out);
        }
    }
}

fn odd_field(prng: &mut Prng, out: &mut Vec<u8>) {
    match prng.below(4) {
        0 => {
            encode_key(900, WireType::StartGroup, out);
            encode_key(1, WireType::ThirtyTwoBit, out);
            out.extend([1, 2, 3, 4]);
            encode_key(900, WireType::EndGroup, out);
        }
        1 => {
            encode_key(901, WireType::SixtyFourBit, out);
            out.extend([0; 8]);
        }
        2 => put(902, b"unknown", out),
        _ => {
            encode_key(903, WireType::Varint, out);
            encode_varint(prng.next_u64(), out);
        }
    }
}

fn put(field: u32, body: &[u8], out: &mut Vec<u8>) {
    encode_key(field, WireType::LengthDelimited, out);
    encode_varint(body.len() as u64, out);
    out.extend(body);
}

/// Flips, cuts, inserts or doubles a little.
fn damage(mut message: Vec<u8>, prng: &mut Prng) -> Vec<u8> {
    for _ in 0..=prng.below(2) {
        if message.is_empty() {
            return message;
        }
        let at = prng.below(message.len() as u64) as usize;
        match prng.below(4) {
            0 => message[at] ^= 1 << prng.below(8),
            1 => message.truncate(at),
            2 => message.insert(at, prng.next_u64() as u8),
            _ => {
                let tail = message[at..].to_vec();
                message.extend(tail);
            }
        }
    }
    message
}
