//! Bytes to commands.

use super::{Admin, CfName, Command, DecodeError, Header, Write, WriteOp};
use crate::eraftpb::{ConfChange, ConfChangeV2, Entry, EntryType};
use bytes::Bytes;
use prost::Message;
use proto::raft_cmdpb::{CmdType, RaftCmdRequest, Request};
use raft_proto::ConfChangeI;

pub(super) fn entry(entry: &Entry) -> Result<Command, DecodeError> {
    match EntryType::try_from(entry.entry_type) {
        Ok(EntryType::EntryNormal) if entry.data.is_empty() => Ok(Command::Empty),
        Ok(EntryType::EntryNormal) => command(entry.data.clone()),
        Ok(EntryType::EntryConfChange) => conf_change(message::<ConfChange>(entry.data.clone())?.into_v2()),
        Ok(EntryType::EntryConfChangeV2) => conf_change(message(entry.data.clone())?),
        Err(_) => Err(DecodeError::Malformed("unknown entry type")),
    }
}

fn message<M: Message + Default>(bytes: Bytes) -> Result<M, DecodeError> {
    M::decode(bytes).map_err(|_| DecodeError::Malformed("bad message"))
}

/// The command of a membership change stands in the change's context.
fn conf_change(mut change: ConfChangeV2) -> Result<Command, DecodeError> {
    match command(std::mem::take(&mut change.context))? {
        Command::Admin(mut admin) => {
            admin.conf_change = Some(change);
            Ok(Command::Admin(admin))
        }
        _ => Err(DecodeError::Malformed("a membership change without its command")),
    }
}

fn command(bytes: Bytes) -> Result<Command, DecodeError> {
    let command: RaftCmdRequest = message(bytes)?;
    let header = command.header.ok_or(DecodeError::Malformed("no header"))?;
    let header = Header::from_wire(header);
    let mut ops = Vec::with_capacity(command.requests.len());
    for request in command.requests {
        ops.extend(write_op(request)?);
    }
    match command.admin_request {
        Some(_) if !ops.is_empty() => Err(DecodeError::Malformed("writes beside an admin command")),
        Some(request) => Ok(Command::Admin(Box::new(Admin { header, request, conf_change: None }))),
        None => Ok(Command::Write(Write { header, ops })),
    }
}

/// `None` for a read that went through the log.
fn write_op(request: Request) -> Result<Option<WriteOp>, DecodeError> {
    let missing = DecodeError::Malformed("a request without its body");
    let op = match CmdType::try_from(request.cmd_type) {
        Ok(CmdType::Put) => {
            let put = request.put.ok_or(missing)?;
            WriteOp::Put { cf: cf(&put.cf)?, key: put.key, value: put.value }
        }
        Ok(CmdType::Delete) => {
            let delete = request.delete.ok_or(missing)?;
            WriteOp::Delete { cf: cf(&delete.cf)?, key: delete.key }
        }
        Ok(CmdType::DeleteRange) => {
            let range = request.delete_range.ok_or(missing)?;
            WriteOp::DeleteRange {
                cf: cf(&range.cf)?,
                start: range.start_key,
                end: range.end_key,
                notify_only: range.notify_only,
            }
        }
        Ok(CmdType::Get | CmdType::Snap | CmdType::ReadIndex) => return Ok(None),
        _ => return Err(DecodeError::Unsupported(request.cmd_type)),
    };
    Ok(Some(op))
}

fn cf(name: &str) -> Result<CfName, DecodeError> {
    CfName::from_wire(name).ok_or_else(|| DecodeError::UnknownCf(name.to_string()))
}
