//! Commands against the protocol's own messages, byte for byte, and against garbage.

use base::Prng;
use bytes::Bytes;
use prost::Message;
use proto::metapb::{Peer, RegionEpoch};
use proto::raft_cmdpb::{
    AdminCmdType, AdminRequest, BatchSplitRequest, ChangePeerV2Request, CmdType, CompactLogRequest, DeleteRangeRequest,
    DeleteRequest, PutRequest, RaftCmdRequest, RaftRequestHeader, Request, SplitRequest,
};
use raftstore::command::{Admin, CfName, Command, DecodeError, Header, Write, WriteOp, encode_admin, encode_write};
use raftstore::eraftpb::{ConfChange, ConfChangeV2, Entry, EntryType};
use raftstore::membership::to_conf_change;

fn header() -> Header {
    Header {
        region_id: 7,
        peer_id: 8,
        store_id: 9,
        epoch: RegionEpoch { conf_ver: 3, version: 300 },
        term: 6,
        flags: 1,
    }
}

fn wire_header() -> RaftRequestHeader {
    RaftRequestHeader {
        region_id: 7,
        peer: Some(Peer { id: 8, store_id: 9, ..Default::default() }),
        region_epoch: Some(RegionEpoch { conf_ver: 3, version: 300 }),
        term: 6,
        flags: 1,
        ..Default::default()
    }
}

/// The message tree that stands for an operation.
fn tree(op: &WriteOp) -> Request {
    let name = |cf: &CfName| match cf {
        CfName::Default => String::new(),
        CfName::Lock => "lock".to_string(),
        CfName::Write => "write".to_string(),
    };
    match op {
        WriteOp::Put { cf, key, value } => Request {
            cmd_type: CmdType::Put as i32,
            put: Some(PutRequest { cf: name(cf), key: key.clone(), value: value.clone() }),
            ..Default::default()
        },
        WriteOp::Delete { cf, key } => Request {
            cmd_type: CmdType::Delete as i32,
            delete: Some(DeleteRequest { cf: name(cf), key: key.clone() }),
            ..Default::default()
        },
        WriteOp::DeleteRange { cf, start, end, notify_only } => Request {
            cmd_type: CmdType::DeleteRange as i32,
            delete_range: Some(DeleteRangeRequest {
                cf: name(cf),
                start_key: start.clone(),
                end_key: end.clone(),
                notify_only: *notify_only,
            }),
            ..Default::default()
        },
    }
}

fn any_bytes(prng: &mut Prng) -> Bytes {
    let len = *prng.pick(&[0, 1, 20, 127, 128, 300, 20_000]).expect("not empty");
    let mut bytes = vec![0; len];
    prng.fill(&mut bytes);
    bytes.into()
}

fn any_op(prng: &mut Prng) -> WriteOp {
    let cf = *prng.pick(&[CfName::Default, CfName::Lock, CfName::Write]).expect("not empty");
    let key = any_bytes(prng);
    match prng.below(3) {
        0 => WriteOp::Put { cf, key, value: any_bytes(prng) },
        1 => WriteOp::Delete { cf, key },
        _ => WriteOp::DeleteRange { cf, start: key, end: any_bytes(prng), notify_only: prng.one_in(2) },
    }
}

fn entry(data: impl Into<Bytes>) -> Entry {
    Entry { data: data.into(), ..Default::default() }
}

#[test]
fn writes_have_the_bytes_of_the_message_tree_and_read_back() {
    let mut prng = Prng::new(11);
    for _ in 0..300 {
        let ops: Vec<WriteOp> = (0..prng.below(6)).map(|_| any_op(&mut prng)).collect();
        let bytes = encode_write(&header(), &ops);
        let tree = RaftCmdRequest {
            header: Some(wire_header()),
            requests: ops.iter().map(tree).collect(),
            ..Default::default()
        };
        assert_eq!(bytes, tree.encode_to_vec());
        let read = Command::decode(&entry(bytes)).expect("its own bytes");
        assert_eq!(read, Command::Write(Write { header: header(), ops }));
    }
}

#[test]
fn keys_and_values_are_slices_of_the_entry() {
    let op = WriteOp::Put { cf: CfName::Default, key: Bytes::from_static(b"key"), value: vec![1; 5000].into() };
    let bytes = encode_write(&header(), &[op]);
    let Ok(Command::Write(write)) = Command::decode(&entry(bytes.clone())) else {
        panic!("a write");
    };
    let WriteOp::Put { value, .. } = &write.ops[0] else { panic!("a put") };
    let (outer, inner) = (bytes.as_ptr_range(), value.as_ptr_range());
    assert!(outer.start <= inner.start && inner.end <= outer.end, "the value was copied");
}

#[test]
fn admin_commands_read_back() {
    let requests = [
        AdminRequest {
            cmd_type: AdminCmdType::CompactLog as i32,
            compact_log: Some(CompactLogRequest { compact_index: 9, compact_term: 6, ..Default::default() }),
            ..Default::default()
        },
        AdminRequest {
            cmd_type: AdminCmdType::BatchSplit as i32,
            splits: Some(BatchSplitRequest {
                requests: vec![SplitRequest {
                    split_key: "m".into(),
                    new_region_id: 10,
                    new_peer_ids: vec![11],
                    ..Default::default()
                }],
                right_derive: true,
                ..Default::default()
            }),
            ..Default::default()
        },
    ];
    for request in requests {
        let read = Command::decode(&entry(encode_admin(&header(), request.clone())));
        let admin = Admin { header: header(), request, conf_change: None };
        assert_eq!(read, Ok(Command::Admin(Box::new(admin))));
    }
}

#[test]
fn a_membership_entry_holds_its_command() {
    let request = AdminRequest {
        cmd_type: AdminCmdType::ChangePeerV2 as i32,
        change_peer_v2: Some(ChangePeerV2Request { changes: vec![] }),
        ..Default::default()
    };
    let command = encode_admin(&header(), request.clone());
    let change = to_conf_change(&[], command.clone());
    let mut second = entry(change.encode_to_vec());
    second.set_entry_type(EntryType::EntryConfChangeV2);
    let Ok(Command::Admin(admin)) = Command::decode(&second) else {
        panic!("an admin command");
    };
    assert_eq!(admin.request, request);
    assert!(admin.conf_change.is_some_and(|change| change.leave_joint()));

    let old = ConfChange { node_id: 4, context: command, ..Default::default() };
    let mut first = entry(old.encode_to_vec());
    first.set_entry_type(EntryType::EntryConfChange);
    let Ok(Command::Admin(admin)) = Command::decode(&first) else {
        panic!("an admin command");
    };
    assert_eq!(admin.conf_change.map(|change| change.changes[0].node_id), Some(4));

    let mut bare = entry(ConfChangeV2::default().encode_to_vec());
    bare.data = Bytes::from_static(&[8, 0]);
    bare.set_entry_type(EntryType::EntryConfChangeV2);
    assert!(Command::decode(&bare).is_err(), "a change without its command");
}

#[test]
fn what_cannot_be_applied_is_refused_by_name() {
    let with = |requests: Vec<Request>| {
        let command = RaftCmdRequest { header: Some(wire_header()), requests, ..Default::default() };
        Command::decode(&entry(command.encode_to_vec()))
    };
    let kind = |kind: CmdType| Request { cmd_type: kind as i32, ..Default::default() };
    assert_eq!(Command::decode(&entry("")), Ok(Command::Empty));
    assert_eq!(with(vec![kind(CmdType::IngestSst)]), Err(DecodeError::Unsupported(8)));
    assert_eq!(with(vec![kind(CmdType::Prewrite)]), Err(DecodeError::Unsupported(6)));
    assert_eq!(with(vec![kind(CmdType::Invalid)]), Err(DecodeError::Unsupported(0)));
    let reads = with(vec![kind(CmdType::Get), kind(CmdType::Snap)]);
    let nothing = Write { header: header(), ops: vec![] };
    assert_eq!(reads, Ok(Command::Write(nothing)), "reads through the log change nothing");
    let mut put = tree(&WriteOp::Put { cf: CfName::Default, key: "k".into(), value: "v".into() });
    put.put.as_mut().expect("a put").cf = "raft".into();
    assert_eq!(with(vec![put.clone()]), Err(DecodeError::UnknownCf("raft".into())));
    put.cmd_type = CmdType::Delete as i32;
    assert!(matches!(with(vec![put]), Err(DecodeError::Malformed(_))));
    let headless = RaftCmdRequest { requests: vec![kind(CmdType::Get)], ..Default::default() };
    assert_eq!(Command::decode(&entry(headless.encode_to_vec())), Err(DecodeError::Malformed("no header")));
    // TiKV's other encoding, which its first raft store cannot apply either.
    assert!(Command::decode(&entry(vec![0, 1, 2, 3])).is_err());
}

/// Any byte may be wrong anywhere: an error or some command, never a panic.
#[test]
fn garbage_does_not_panic() {
    let mut prng = Prng::new(5);
    for _ in 0..5000 {
        let ops: Vec<WriteOp> = (0..3).map(|_| any_op(&mut prng)).collect();
        let mut bytes = encode_write(&header(), &ops).to_vec();
        for _ in 0..prng.range(1, 4) {
            let at = prng.below(bytes.len() as u64) as usize;
            bytes[at] = prng.next_u64() as u8;
        }
        bytes.truncate(prng.below(bytes.len() as u64 + 1) as usize);
        let mut entry = entry(bytes);
        entry.entry_type = prng.below(5) as i32;
        let _ = Command::decode(&entry);
    }
}
