//! Commands to bytes.

use super::{Header, WriteOp};
use bytes::Bytes;
use prost::Message;
use proto::raft_cmdpb::{
    AdminRequest, CmdType, DeleteRangeRequest, DeleteRequest, PutRequest, RaftCmdRequest, Request,
};

/// Encodes a write. Keys and values are copied once, into the answer.
pub fn encode_write(header: &Header, ops: &[WriteOp]) -> Bytes {
    let command = RaftCmdRequest {
        header: Some(header.to_wire()),
        requests: ops.iter().map(request).collect(),
        ..Default::default()
    };
    command.encode_to_vec().into()
}

/// Encodes a change of the region itself.
pub fn encode_admin(header: &Header, request: AdminRequest) -> Bytes {
    let command = RaftCmdRequest { header: Some(header.to_wire()), admin_request: Some(request), ..Default::default() };
    command.encode_to_vec().into()
}

fn request(op: &WriteOp) -> Request {
    let mut request = Request::default();
    match op {
        WriteOp::Put { cf, key, value } => {
            request.set_cmd_type(CmdType::Put);
            request.put = Some(PutRequest { cf: cf.on_wire().to_string(), key: key.clone(), value: value.clone() });
        }
        WriteOp::Delete { cf, key } => {
            request.set_cmd_type(CmdType::Delete);
            request.delete = Some(DeleteRequest { cf: cf.on_wire().to_string(), key: key.clone() });
        }
        WriteOp::DeleteRange { cf, start, end, notify_only } => {
            request.set_cmd_type(CmdType::DeleteRange);
            request.delete_range = Some(DeleteRangeRequest {
                cf: cf.on_wire().to_string(),
                start_key: start.clone(),
                end_key: end.clone(),
                notify_only: *notify_only,
            });
        }
    }
    request
}
