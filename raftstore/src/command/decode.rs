//! Bytes to commands.

use super::wire::next_field;
use super::{Admin, CfName, Command, DecodeError, Header, Write, WriteOp};
use crate::eraftpb::{ConfChange, ConfChangeV2, Entry, EntryType};
use bytes::Bytes;
use prost::Message;
use proto::raft_cmdpb::{AdminRequest, CmdType, RaftRequestHeader};
use raft_proto::ConfChangeI;

pub(super) fn entry(entry: &Entry) -> Result<Command, DecodeError> {
    match EntryType::try_from(entry.entry_type) {
        Ok(EntryType::EntryNormal) if entry.data.is_empty() => Ok(Command::Empty),
        Ok(EntryType::EntryNormal) => request(entry.data.clone()),
        Ok(EntryType::EntryConfChange) => {
            conf_change(message::<ConfChange>(entry.data.clone())?.into_v2())
        }
        Ok(EntryType::EntryConfChangeV2) => conf_change(message(entry.data.clone())?),
        Err(_) => Err(DecodeError::Malformed("unknown entry type")),
    }
}

fn message<M: Message + Default>(bytes: Bytes) -> Result<M, DecodeError> {
    M::decode(bytes).map_err(|_| DecodeError::Malformed("bad message"))
}

/// The command of a membership change stands in the change's context.
fn conf_change(mut change: ConfChangeV2) -> Result<Command, DecodeError> {
    match request(std::mem::take(&mut change.context))? {
        Command::Admin(mut admin) => {
            admin.conf_change = Some(change);
            Ok(Command::Admin(admin))
        }
        _ => Err(DecodeError::Malformed(
            "a membership change without its command",
        )),
    }
}

fn request(mut bytes: Bytes) -> Result<Command, DecodeError> {
    let mut header = None;
    let mut admin = None;
    let mut ops = Vec::new();
    while let Some((field, value)) = next_field(&mut bytes)? {
        match field {
            1 => header = Some(message::<RaftRequestHeader>(value.bytes()?)?),
            2 => ops.extend(write_op(value.bytes()?)?),
            3 => admin = Some(message::<AdminRequest>(value.bytes()?)?),
            _ => {}
        }
    }
    let header = Header::from_wire(header.ok_or(DecodeError::Malformed("no header"))?);
    match admin {
        Some(_) if !ops.is_empty() => Err(DecodeError::Malformed("writes beside an admin command")),
        Some(request) => Ok(Command::Admin(Box::new(Admin {
            header,
            request,
            conf_change: None,
        }))),
        None => Ok(Command::Write(Write { header, ops })),
    }
}

/// One `Request`; `None` for a read that went through the log.
fn write_op(mut bytes: Bytes) -> Result<Option<WriteOp>, DecodeError> {
    let mut kind = 0;
    let mut body = None;
    while let Some((field, value)) = next_field(&mut bytes)? {
        match field {
            1 => kind = value.number()?,
            2..=10 => body = Some((field, value.bytes()?)),
            _ => {}
        }
    }
    let unsupported = || DecodeError::Unsupported(i64::from_ne_bytes(kind.to_ne_bytes()));
    let kind = i32::try_from(kind).map_err(|_| unsupported())?;
    let wanted = match CmdType::try_from(kind) {
        Ok(CmdType::Put) => 4,
        Ok(CmdType::Delete) => 5,
        Ok(CmdType::DeleteRange) => 8,
        Ok(CmdType::Get | CmdType::Snap | CmdType::ReadIndex) => return Ok(None),
        _ => return Err(unsupported()),
    };
    let body = match body {
        Some((field, body)) if field == wanted => body,
        Some(_) => return Err(DecodeError::Malformed("a request of two kinds")),
        None => Bytes::new(),
    };
    let Body {
        cf,
        second,
        third,
        flag,
    } = Body::read(body)?;
    Ok(Some(match wanted {
        4 => WriteOp::Put {
            cf,
            key: second,
            value: third,
        },
        5 => WriteOp::Delete { cf, key: second },
        _ => WriteOp::DeleteRange {
            cf,
            start: second,
            end: third,
            notify_only: flag,
        },
    }))
}

/// What the inner messages of writes have in common.
struct Body {
    cf: CfName,
    second: Bytes,
    third: Bytes,
    flag: bool,
}

impl Body {
    fn read(mut bytes: Bytes) -> Result<Body, DecodeError> {
        let mut body = Body {
            cf: CfName::Default,
            second: Bytes::new(),
            third: Bytes::new(),
            flag: false,
        };
        while let Some((field, value)) = next_field(&mut bytes)? {
            match field {
                1 => {
                    let name = value.bytes()?;
                    body.cf = CfName::from_wire(&name).ok_or_else(|| {
                        DecodeError::UnknownCf(String::from_utf8_lossy(&name).into_owned())
                    })?;
                }
                2 => body.second = value.bytes()?,
                3 => body.third = value.bytes()?,
                4 => body.flag = value.number()? != 0,
                _ => {}
            }
        }
        Ok(body)
    }
}
