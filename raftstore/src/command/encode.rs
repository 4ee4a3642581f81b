//! Commands to bytes.

use super::wire::{bytes_len, delimited_len, put_bytes, put_delimited, put_small};
use super::{CfName, Header, WriteOp};
use bytes::{Bytes, BytesMut};
use prost::Message;
use proto::raft_cmdpb::{AdminRequest, CmdType, RaftCmdRequest};

/// Fields of `RaftCmdRequest`.
const HEADER: u8 = 1;
const REQUESTS: u8 = 2;
/// Fields of `Request`.
const CMD_TYPE: u8 = 1;
const PUT: u8 = 4;
const DELETE: u8 = 5;
const DELETE_RANGE: u8 = 8;

/// Encodes a write: one allocation, each byte written once.
pub fn encode_write(header: &Header, ops: &[WriteOp]) -> Bytes {
    let header = header.to_wire();
    let header_len = header.encoded_len();
    let ops_len: usize = ops
        .iter()
        .map(|op| delimited_len(Parts::of(op).request_len()))
        .sum();
    let mut out = BytesMut::with_capacity(delimited_len(header_len) + ops_len);
    put_delimited(&mut out, HEADER, header_len);
    header.encode(&mut out).expect("a BytesMut grows");
    for op in ops {
        Parts::of(op).write(&mut out);
    }
    out.freeze()
}

/// Encodes a change of the region itself.
pub fn encode_admin(header: &Header, request: AdminRequest) -> Bytes {
    let command = RaftCmdRequest {
        header: Some(header.to_wire()),
        admin_request: Some(request),
        ..Default::default()
    };
    command.encode_to_vec().into()
}

/// An operation as its message sees it: a family, and two fields of bytes.
struct Parts<'a> {
    kind: CmdType,
    field: u8,
    cf: CfName,
    second: &'a [u8],
    third: &'a [u8],
    flag: bool,
}

impl<'a> Parts<'a> {
    fn of(op: &'a WriteOp) -> Parts<'a> {
        match op {
            WriteOp::Put { cf, key, value } => Parts {
                kind: CmdType::Put,
                field: PUT,
                cf: *cf,
                second: key,
                third: value,
                flag: false,
            },
            WriteOp::Delete { cf, key } => Parts {
                kind: CmdType::Delete,
                field: DELETE,
                cf: *cf,
                second: key,
                third: &[],
                flag: false,
            },
            WriteOp::DeleteRange {
                cf,
                start,
                end,
                notify_only,
            } => Parts {
                kind: CmdType::DeleteRange,
                field: DELETE_RANGE,
                cf: *cf,
                second: start,
                third: end,
                flag: *notify_only,
            },
        }
    }

    /// Length of the inner message (`PutRequest` and its like).
    fn len(&self) -> usize {
        let cf = self.cf.on_wire().as_bytes();
        bytes_len(cf)
            + bytes_len(self.second)
            + bytes_len(self.third)
            + if self.flag { 2 } else { 0 }
    }

    /// Length of the `Request` around it.
    fn request_len(&self) -> usize {
        2 + delimited_len(self.len())
    }

    fn write(&self, out: &mut BytesMut) {
        put_delimited(out, REQUESTS, self.request_len());
        put_small(out, CMD_TYPE, self.kind as u8);
        put_delimited(out, self.field, self.len());
        put_bytes(out, 1, self.cf.on_wire().as_bytes());
        put_bytes(out, 2, self.second);
        put_bytes(out, 3, self.third);
        if self.flag {
            put_small(out, 4, 1);
        }
    }
}
