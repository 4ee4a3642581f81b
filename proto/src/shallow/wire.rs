//! Protobuf's wire format, one field at a time, borrowed from the message.

use super::ShallowError;

const GROUP_DEPTH_MAX: u32 = 100;
const FIELD_MAX: u64 = (1 << 29) - 1;

/// The value of a field, as far as its wire type tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value<'a> {
    /// Wire type 0.
    Varint(u64),
    /// Wire type 2: bytes, text, a message, or packed numbers.
    Bytes(&'a [u8]),
    /// Fixed-size numbers and groups, which nobody here reads.
    Other,
}

impl<'a> Value<'a> {
    /// The value of the integer `field`.
    pub(super) fn varint(self, field: u32) -> Result<u64, ShallowError> {
        match self {
            Value::Varint(number) => Ok(number),
            _ => Err(ShallowError::WrongType { field }),
        }
    }

    /// The bytes of the message `field`.
    pub(super) fn message(self, field: u32) -> Result<&'a [u8], ShallowError> {
        match self {
            Value::Bytes(bytes) => Ok(bytes),
            _ => Err(ShallowError::WrongType { field }),
        }
    }
}

/// Iterates over the fields of a message: number and value, in order. After an error it ends.
pub(super) struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(super) fn of(message: &'a [u8]) -> Fields<'a> {
        Fields { rest: message }
    }

    fn read(&mut self) -> Result<(u32, Value<'a>), ShallowError> {
        let (field, wire_type) = self.key()?;
        Ok((field, self.value(field, wire_type, 0)?))
    }

    fn key(&mut self) -> Result<(u32, u8), ShallowError> {
        let key = varint(&mut self.rest)?;
        match key >> 3 {
            field @ 1..=FIELD_MAX => Ok((field as u32, (key & 7) as u8)),
            _ => Err(ShallowError::BadKey(key)),
        }
    }

    fn value(&mut self, field: u32, wire_type: u8, depth: u32) -> Result<Value<'a>, ShallowError> {
        match wire_type {
            0 => Ok(Value::Varint(varint(&mut self.rest)?)),
            1 => self.take(8).map(|_| Value::Other),
            2 => {
                let len = varint(&mut self.rest)?;
                self.take(len).map(Value::Bytes)
            }
            3 => self.skip_group(field, depth).map(|()| Value::Other),
            4 => Err(ShallowError::BadGroup),
            5 => self.take(4).map(|_| Value::Other),
            _ => Err(ShallowError::BadKey(u64::from(field) << 3 | u64::from(wire_type))),
        }
    }

    fn take(&mut self, len: u64) -> Result<&'a [u8], ShallowError> {
        let len = usize::try_from(len).map_err(|_| ShallowError::Truncated)?;
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(ShallowError::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    fn skip_group(&mut self, group: u32, depth: u32) -> Result<(), ShallowError> {
        if depth == GROUP_DEPTH_MAX {
            return Err(ShallowError::BadGroup);
        }
        loop {
            match self.key()? {
                (field, 4) if field == group => return Ok(()),
                (field, wire_type) => self.value(field, wire_type, depth + 1)?,
            };
        }
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Value<'a>), ShallowError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.read();
        if field.is_err() {
            self.rest = &[];
        }
        Some(field)
    }
}

/// Takes a variable-length integer off the front of `bytes`.
pub(super) fn varint(bytes: &mut &[u8]) -> Result<u64, ShallowError> {
    let mut number = 0;
    for (at, &byte) in bytes.iter().enumerate().take(10) {
        if at == 9 && byte > 1 {
            return Err(ShallowError::VarintTooLong);
        }
        number |= u64::from(byte & 0x7f) << (7 * at);
        if byte < 0x80 {
            *bytes = &bytes[at + 1..];
            return Ok(number);
        }
    }
    Err(ShallowError::Truncated)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(message: &[u8]) -> Result<Vec<(u32, Value<'_>)>, ShallowError> {
        Fields::of(message).collect()
    }

    #[test]
    fn each_wire_type_is_read_or_skipped() {
        let message = [
            0x08, 0x96, 0x01, // 1: varint 150
            0x11, 1, 2, 3, 4, 5, 6, 7, 8, // 2: 64 bits
            0x1a, 2, b'h', b'i', // 3: bytes
            0x23, 0x08, 1, 0x2b, 0x2c, 0x24, // 4: group with a varint and an empty group
            0x2d, 1, 2, 3, 4, // 5: 32 bits
        ];
        assert_eq!(
            fields(&message),
            Ok(vec![
                (1, Value::Varint(150)),
                (2, Value::Other),
                (3, Value::Bytes(b"hi")),
                (4, Value::Other),
                (5, Value::Other)
            ])
        );
    }

    #[test]
    fn malformed_bytes_have_their_error() {
        use ShallowError::*;
        for (message, error) in [
            (&[0x08][..], Truncated),
            (&[0x08, 0x80], Truncated),
            (&[0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02], VarintTooLong),
            (&[0x0a, 3, 1, 2], Truncated),
            (&[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01], Truncated),
            (&[0x09, 1, 2, 3, 4, 5, 6, 7], Truncated),
            (&[0x0d, 1, 2, 3], Truncated),
            (&[0x00, 0x00], BadKey(0)),
            (&[0x0e], BadKey(0x0e)),
            (&[0x80, 0x80, 0x80, 0x80, 0x10, 0], BadKey(1 << 32)),
            (&[0x0c], BadGroup),
            (&[0x0b, 0x14], BadGroup),
            (&[0x0b, 0x08, 1], Truncated),
        ] {
            assert_eq!(fields(message), Err(error), "{message:x?}");
        }
        assert_eq!(
            fields(&[0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]),
            Ok(vec![(1, Value::Varint(u64::MAX))])
        );
    }

    #[test]
    fn groups_nest_a_hundred_deep_and_no_deeper() {
        let nested = |depth: usize| [vec![0x0b; depth], vec![0x0c; depth]].concat();
        assert_eq!(fields(&nested(100)), Ok(vec![(1, Value::Other)]));
        assert_eq!(fields(&nested(101)), Err(ShallowError::BadGroup));
        assert_eq!(fields(&vec![0x0b; 1 << 20]), Err(ShallowError::BadGroup));
    }
}
