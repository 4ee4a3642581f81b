//! The few pieces of protobuf's wire format that commands need. All field numbers here are below 16.

use super::DecodeError;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::encoding::{WireType, decode_key, decode_varint, encode_varint, encoded_len_varint};

const VARINT: u8 = 0;
const LENGTH: u8 = 2;

/// Bytes that a length-delimited field of `len` bytes takes.
pub(super) fn delimited_len(len: usize) -> usize {
    1 + encoded_len_varint(len as u64) + len
}

/// As [`delimited_len`], but an empty field is left out.
pub(super) fn bytes_len(value: &[u8]) -> usize {
    if value.is_empty() {
        0
    } else {
        delimited_len(value.len())
    }
}

/// Begins a length-delimited field; its `len` bytes must follow.
pub(super) fn put_delimited(out: &mut BytesMut, field: u8, len: usize) {
    out.put_u8(field << 3 | LENGTH);
    encode_varint(len as u64, out);
}

/// Writes a field of bytes, unless it is empty.
pub(super) fn put_bytes(out: &mut BytesMut, field: u8, value: &[u8]) {
    if !value.is_empty() {
        put_delimited(out, field, value.len());
        out.put_slice(value);
    }
}

/// Writes a field of a small number that is not 0.
pub(super) fn put_small(out: &mut BytesMut, field: u8, value: u8) {
    debug_assert!(0 < value && value < 0x80, "one byte of varint");
    out.put_u8(field << 3 | VARINT);
    out.put_u8(value);
}

/// The value of one field.
pub(super) enum Value {
    /// A number.
    Number(u64),
    /// Bytes, a string or a message: a slice of what is being read.
    Bytes(Bytes),
    /// Of a kind that no field here has.
    Other,
}

impl Value {
    pub(super) fn bytes(self) -> Result<Bytes, DecodeError> {
        match self {
            Value::Bytes(bytes) => Ok(bytes),
            _ => Err(DecodeError::Malformed("a number where bytes should be")),
        }
    }

    pub(super) fn number(self) -> Result<u64, DecodeError> {
        match self {
            Value::Number(number) => Ok(number),
            _ => Err(DecodeError::Malformed("bytes where a number should be")),
        }
    }
}

/// Reads the next field; `None` at the end.
pub(super) fn next_field(buffer: &mut Bytes) -> Result<Option<(u32, Value)>, DecodeError> {
    let malformed = |_| DecodeError::Malformed("bad field");
    if buffer.is_empty() {
        return Ok(None);
    }
    let (field, kind) = decode_key(buffer).map_err(malformed)?;
    let value = match kind {
        WireType::Varint => Value::Number(decode_varint(buffer).map_err(malformed)?),
        WireType::LengthDelimited => {
            let len = decode_varint(buffer).map_err(malformed)?;
            let len = usize::try_from(len).ok().filter(|len| *len <= buffer.len());
            Value::Bytes(buffer.split_to(len.ok_or(DecodeError::Malformed("cut short"))?))
        }
        WireType::SixtyFourBit => skip(buffer, 8)?,
        WireType::ThirtyTwoBit => skip(buffer, 4)?,
        WireType::StartGroup | WireType::EndGroup => return Err(DecodeError::Malformed("a group")),
    };
    Ok(Some((field, value)))
}

fn skip(buffer: &mut Bytes, len: usize) -> Result<Value, DecodeError> {
    if buffer.len() < len {
        return Err(DecodeError::Malformed("cut short"));
    }
    buffer.advance(len);
    Ok(Value::Other)
}
