//! What the encodings of locks and write records have in common.

use base::codec::{DecodeError, decode_varint, encode_varint};
use bytes::{Buf, Bytes};

use super::TimeStamp;

/// Values up to this many bytes stand in the lock and in the write record; longer ones in family `default`.
pub const SHORT_VALUE_BYTES_MAX: usize = 255;

/// The last change of a key's data before a record that changes none, so that readers need not step there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LastChange {
    /// Nobody looked.
    #[default]
    Unknown,
    /// There is none.
    NotExist,
    /// It was committed at `ts`, which `versions` steps lead to.
    Exists {
        /// Its `commit_ts`.
        ts: TimeStamp,
        /// Records to step over from here, its own one included.
        versions: u64,
    },
}

impl LastChange {
    /// `last_change_ts` and `versions_to_last_change` as answers carry them.
    pub fn to_parts(self) -> (u64, u64) {
        match self {
            LastChange::Unknown => (0, 0),
            LastChange::NotExist => (0, 1),
            LastChange::Exists { ts, versions } => (ts.0, versions),
        }
    }

    fn from_parts(ts: u64, versions: u64) -> LastChange {
        match (ts, versions) {
            (0, 0) => LastChange::Unknown,
            (0, _) => LastChange::NotExist,
            (ts, versions) => LastChange::Exists { ts: TimeStamp(ts), versions },
        }
    }
}

/// Appends parts of a record.
#[derive(Default)]
pub(super) struct Writer(pub(super) Vec<u8>);

impl Writer {
    pub(super) fn byte(&mut self, byte: u8) -> &mut Self {
        self.0.push(byte);
        self
    }

    pub(super) fn varint(&mut self, value: u64) -> &mut Self {
        encode_varint(value, &mut self.0);
        self
    }

    pub(super) fn fixed(&mut self, value: u64) -> &mut Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    /// Length as a zigzag number, and the bytes.
    pub(super) fn compact(&mut self, bytes: &[u8]) -> &mut Self {
        self.varint((bytes.len() as u64) << 1);
        self.0.extend_from_slice(bytes);
        self
    }

    /// `v`, a byte of length, the value.
    ///
    /// # Panics
    /// If the value is not a short one.
    pub(super) fn short_value(&mut self, value: &[u8]) -> &mut Self {
        let len = u8::try_from(value.len()).expect("a short value has at most 255 bytes");
        self.byte(b'v').byte(len);
        self.0.extend_from_slice(value);
        self
    }

    pub(super) fn last_change(&mut self, last: LastChange) -> &mut Self {
        if last != LastChange::Unknown {
            let (ts, versions) = last.to_parts();
            self.byte(b'l').fixed(ts).varint(versions);
        }
        self
    }

    pub(super) fn finish(self) -> Bytes {
        self.0.into()
    }
}

/// Takes parts off a record. Byte strings are slices of it: nothing is copied.
pub(super) struct Parts(pub(super) Bytes);

impl Parts {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn byte(&mut self) -> Result<u8, DecodeError> {
        Ok(self.take(1)?[0])
    }

    pub(super) fn varint(&mut self) -> Result<u64, DecodeError> {
        let mut rest = self.0.as_ref();
        let value = decode_varint(&mut rest)?;
        let used = self.0.len() - rest.len();
        self.0.advance(used);
        Ok(value)
    }

    pub(super) fn fixed(&mut self) -> Result<u64, DecodeError> {
        Ok(self.take(8)?.get_u64())
    }

    pub(super) fn ts(&mut self) -> Result<TimeStamp, DecodeError> {
        self.fixed().map(TimeStamp)
    }

    pub(super) fn compact(&mut self) -> Result<Bytes, DecodeError> {
        let len = self.varint()?;
        // A negative length in zigzag is odd.
        if len & 1 == 1 {
            return Err(DecodeError::Malformed);
        }
        self.take(len >> 1)
    }

    pub(super) fn short_value(&mut self) -> Result<Bytes, DecodeError> {
        let len = self.byte()?;
        self.take(u64::from(len))
    }

    pub(super) fn last_change(&mut self) -> Result<LastChange, DecodeError> {
        Ok(LastChange::from_parts(self.fixed()?, self.varint()?))
    }

    /// `count` of something, each of which takes a byte at least.
    pub(super) fn list<T>(
        &mut self,
        each: impl Fn(&mut Parts) -> Result<T, DecodeError>,
    ) -> Result<Vec<T>, DecodeError> {
        let count = self.varint()?;
        if count > self.0.len() as u64 {
            return Err(DecodeError::Truncated);
        }
        (0..count).map(|_| each(self)).collect()
    }

    fn take(&mut self, len: u64) -> Result<Bytes, DecodeError> {
        match usize::try_from(len) {
            Ok(len) if len <= self.0.len() => Ok(self.0.split_to(len)),
            _ => Err(DecodeError::Truncated),
        }
    }
}
