//! Batches of commands (`tikvpb.Tikv/BatchCommands`), taken apart and put together without touching the commands.
//!
//! A batch is `repeated Request requests = 1; repeated uint64 request_ids = 2`, a `Request` is one `oneof` of
//! messages, and answers look the same and use the same numbers.

use super::wire::{Fields, Value, varint};
use super::{ShallowError, tag};
use crate::kvrpcpb::HealthFeedback;
use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use prost::encoding::{encode_varint, encoded_len_varint};
use std::borrow::Cow;

/// How many commands a batch may hold. Clients send 128 unless they are configured otherwise.
///
/// An empty command takes 3 bytes of a message and 48 of ours, so without a bound a message of the permitted size
/// could fill gigabytes.
pub const BATCH_COMMANDS_MAX: usize = 1 << 16;

const PARTS: u32 = 1;
const IDS: u32 = 2;
const HEALTH_FEEDBACK: u32 = 4;
const LEN: u32 = 2;

/// One command of a batch, or the answer to one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// The client's number for it; unique among those in flight on its stream.
    pub id: u64,
    /// Which command: its number in `BatchCommandsRequest.Request.cmd`, which is also that of its answer ([`tag`]).
    /// 0 = none that this release knows, to be answered by none.
    pub tag: u32,
    /// The encoded request, e.g. a `kvrpcpb.RawGetRequest`; it shares the batch's memory.
    pub body: Bytes,
}

/// Takes a `BatchCommandsRequest` apart. The commands share its memory.
///
/// # Errors
/// [`ShallowError`] if the bytes are no batch, if commands and ids are not equally many, or if they are more than
/// [`BATCH_COMMANDS_MAX`].
pub fn batch_commands(request: &Bytes) -> Result<Vec<Command>, ShallowError> {
    split(request)
}

/// Takes a `BatchCommandsResponse` apart, for clients. Load and health are not looked at.
///
/// # Errors
/// As [`batch_commands`].
pub fn batch_answers(response: &Bytes) -> Result<Vec<Command>, ShallowError> {
    split(response)
}

/// Puts a `BatchCommandsRequest` together, for clients. `tag` 0 becomes a request without a command.
pub fn encode_batch_request(commands: &[Command]) -> Bytes {
    join(commands, 0).freeze()
}

/// Puts a `BatchCommandsResponse` together. `tag` 0 becomes an answer without a command.
///
/// Cost: each body is copied once into the message.
pub fn encode_batch_response(answers: &[Command], health: Option<&HealthFeedback>) -> Bytes {
    let feedback_len = health.map_or(0, |health| delimited_len(HEALTH_FEEDBACK, health.encoded_len()));
    let mut out = join(answers, feedback_len);
    if let Some(health) = health {
        encode_varint(key(HEALTH_FEEDBACK), &mut out);
        health.encode_length_delimited(&mut out).expect("a BytesMut grows as needed");
    }
    out.freeze()
}

fn split(batch: &Bytes) -> Result<Vec<Command>, ShallowError> {
    let (count, ids) = count(batch)?;
    if count > BATCH_COMMANDS_MAX || ids > BATCH_COMMANDS_MAX {
        return Err(ShallowError::TooMany);
    }
    if count != ids {
        return Err(ShallowError::IdsDoNotMatch { commands: count, ids });
    }
    let mut commands = Vec::with_capacity(count);
    let mut ids = Vec::with_capacity(count);
    for field in Fields::of(batch) {
        match field? {
            (PARTS, value) => commands.push(command(batch, value.message(PARTS)?)?),
            (IDS, value) => each_id(value, |id| ids.push(id))?,
            _ => {}
        }
    }
    for (command, id) in commands.iter_mut().zip(ids) {
        command.id = id;
    }
    Ok(commands)
}

/// How many commands and ids there are, so that nothing is allocated for too many.
fn count(batch: &[u8]) -> Result<(usize, usize), ShallowError> {
    let (mut commands, mut ids) = (0, 0);
    for field in Fields::of(batch) {
        match field? {
            (PARTS, _) => commands += 1,
            (IDS, value) => each_id(value, |_| ids += 1)?,
            _ => {}
        }
    }
    Ok((commands, ids))
}

/// Ids come packed, or one by one from old encoders.
fn each_id(value: Value<'_>, mut take: impl FnMut(u64)) -> Result<(), ShallowError> {
    let Value::Bytes(mut packed) = value else {
        take(value.varint(IDS)?);
        return Ok(());
    };
    while !packed.is_empty() {
        take(varint(&mut packed)?);
    }
    Ok(())
}

/// Reads one `Request`: the last command wins, and repeated occurrences of it are merged, which on the wire is to
/// put one behind the other.
fn command(batch: &Bytes, part: &[u8]) -> Result<Command, ShallowError> {
    let (mut command, mut body) = (0, Cow::Borrowed(&[][..]));
    for field in Fields::of(part) {
        let (field, value) = field?;
        if tag::name(field).is_none() {
            continue;
        }
        let more = value.message(field)?;
        if field == command {
            body.to_mut().extend_from_slice(more);
        } else {
            (command, body) = (field, Cow::Borrowed(more));
        }
    }
    let body = match body {
        Cow::Borrowed(body) => batch.slice_ref(body),
        Cow::Owned(merged) => Bytes::from(merged),
    };
    Ok(Command { id: 0, tag: command, body })
}

/// Both kinds of batch up to their ids, with room for `extra` bytes.
fn join(parts: &[Command], extra: usize) -> BytesMut {
    let ids_len: usize = parts.iter().map(|part| encoded_len_varint(part.id)).sum();
    let ids_field = if parts.is_empty() { 0 } else { delimited_len(IDS, ids_len) };
    let parts_len: usize = parts.iter().map(|part| delimited_len(PARTS, part_len(part))).sum();
    let mut out = BytesMut::with_capacity(parts_len + ids_field + extra);
    for part in parts {
        put_prefix(PARTS, part_len(part), &mut out);
        if part.tag != 0 {
            put_prefix(part.tag, part.body.len(), &mut out);
            out.put_slice(&part.body);
        }
    }
    if !parts.is_empty() {
        put_prefix(IDS, ids_len, &mut out);
        for part in parts {
            encode_varint(part.id, &mut out);
        }
    }
    out
}

fn part_len(part: &Command) -> usize {
    if part.tag == 0 { 0 } else { delimited_len(part.tag, part.body.len()) }
}

fn delimited_len(field: u32, len: usize) -> usize {
    encoded_len_varint(key(field)) + encoded_len_varint(len as u64) + len
}

fn put_prefix(field: u32, len: usize, out: &mut BytesMut) {
    encode_varint(key(field), out);
    encode_varint(len as u64, out);
}

fn key(field: u32) -> u64 {
    u64::from(field << 3 | LEN)
}
