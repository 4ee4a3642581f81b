//! How raw keys and values stand in the engine (`compat/5-formats.md`, 5.2 and 5.6).

use base::codec::{decode_memcomparable, encode_memcomparable, encode_u64_desc};
use bytes::Bytes;

/// The format of raw keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RawMode {
    /// Keys and values as they are.
    V1,
    /// Keys as they are; values followed by 8 bytes, the time of expiry in big-endian seconds, 0 for never.
    V1Ttl,
    /// Keys memcomparable and followed by a timestamp, newest first; values followed by an optional time of expiry
    /// and a byte of flags.
    V2,
}

const FLAG_EXPIRES: u8 = 1;
const FLAG_DELETED: u8 = 2;
const TIMESTAMP_BYTES: usize = 8;

/// A value as it was put.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawValue {
    /// What the client stored.
    pub value: Bytes,
    /// Unix seconds from which on it is gone; 0 is never.
    pub expires: u64,
    /// It stands for a removal (V2 only).
    pub deleted: bool,
}

impl RawValue {
    /// True if a read at `now` (Unix seconds) finds it.
    pub fn is_alive(&self, now: u64) -> bool {
        !self.deleted && (self.expires == 0 || self.expires > now)
    }
}

/// A stored value that no encoder writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a raw value of {0} bytes is malformed")]
pub struct ValueError(pub usize);

impl RawMode {
    /// True if values may have a time of expiry.
    pub fn has_ttl(self) -> bool {
        self != RawMode::V1
    }

    /// The engine's key for `key`, written at `ts` (V2; other modes ignore it).
    pub fn encode_key(self, key: &[u8], ts: u64) -> Bytes {
        match self {
            RawMode::V1 | RawMode::V1Ttl => Bytes::copy_from_slice(key),
            RawMode::V2 => {
                let mut out = self.prefix(key);
                encode_u64_desc(ts, &mut out);
                out.into()
            }
        }
    }

    /// What all versions of `key` begin with; also where a range that begins or ends at `key` does.
    pub fn prefix(self, key: &[u8]) -> Vec<u8> {
        match self {
            RawMode::V1 | RawMode::V1Ttl => key.to_vec(),
            RawMode::V2 => {
                let mut out = Vec::with_capacity(base::codec::memcomparable_len(key.len()) + TIMESTAMP_BYTES);
                encode_memcomparable(key, &mut out);
                out
            }
        }
    }

    /// The first place after all versions of the key that begins with `prefix`.
    pub(crate) fn after(self, prefix: &[u8]) -> Vec<u8> {
        let mut out = prefix.to_vec();
        match self {
            RawMode::V1 | RawMode::V1Ttl => out.push(0),
            RawMode::V2 => out.extend([0xFF; TIMESTAMP_BYTES + 1]),
        }
        out
    }

    /// The part of an engine key that all versions of its key share.
    pub(crate) fn version_prefix(self, stored: &[u8]) -> &[u8] {
        match self {
            RawMode::V1 | RawMode::V1Ttl => stored,
            RawMode::V2 => &stored[..stored.len().saturating_sub(TIMESTAMP_BYTES)],
        }
    }

    /// The client's key behind an engine key; `None` if it is not one of this format.
    pub fn decode_key(self, stored: &Bytes) -> Option<Bytes> {
        match self {
            RawMode::V1 | RawMode::V1Ttl => Some(stored.clone()),
            RawMode::V2 => {
                let (key, used) = decode_memcomparable(stored).ok()?;
                (stored.len() == used + TIMESTAMP_BYTES).then(|| key.into())
            }
        }
    }

    /// The stored form of `value`, gone from `expires` (Unix seconds) on; 0 is never.
    pub fn encode_value(self, value: &Bytes, expires: u64) -> Bytes {
        let mut out = Vec::with_capacity(value.len() + 9);
        match self {
            RawMode::V1 => return value.clone(),
            RawMode::V1Ttl => {
                out.extend_from_slice(value);
                out.extend(expires.to_be_bytes());
            }
            RawMode::V2 if expires == 0 => {
                out.extend_from_slice(value);
                out.push(0);
            }
            RawMode::V2 => {
                out.extend_from_slice(value);
                out.extend(expires.to_be_bytes());
                out.push(FLAG_EXPIRES);
            }
        }
        out.into()
    }

    /// What V2 writes to remove a key.
    pub fn tombstone() -> Bytes {
        Bytes::from_static(&[FLAG_DELETED])
    }

    /// The value behind its stored form. A slice of `stored`: nothing is copied.
    ///
    /// # Errors
    /// [`ValueError`] if it is too short for this format or has flags that we do not know.
    pub fn decode_value(self, stored: &Bytes) -> Result<RawValue, ValueError> {
        let error = ValueError(stored.len());
        let expiry = |end: usize| -> Result<(usize, u64), ValueError> {
            let at = end.checked_sub(8).ok_or(error)?;
            let bytes = stored[at..end].try_into().map_err(|_| error)?;
            Ok((at, u64::from_be_bytes(bytes)))
        };
        let (end, expires, deleted) = match self {
            RawMode::V1 => (stored.len(), 0, false),
            RawMode::V1Ttl => {
                let (end, expires) = expiry(stored.len())?;
                (end, expires, false)
            }
            RawMode::V2 => {
                let (flags, rest) = stored.split_last().ok_or(error)?;
                if flags & !(FLAG_EXPIRES | FLAG_DELETED) != 0 {
                    return Err(error);
                }
                let deleted = flags & FLAG_DELETED != 0;
                if flags & FLAG_EXPIRES != 0 {
                    let (end, expires) = expiry(rest.len())?;
                    (end, expires, deleted)
                } else {
                    (rest.len(), 0, deleted)
                }
            }
        };
        Ok(RawValue { value: stored.slice(..end), expires, deleted })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02X}")).collect()
    }

    #[test]
    fn the_known_vectors_hold() {
        let v = Bytes::from_static(b"v");
        assert_eq!(hex(&RawMode::V2.encode_key(b"r\0\0\0k", 10)), "720000006B000000FCFFFFFFFFFFFFFFF5");
        assert_eq!(hex(&RawMode::V1Ttl.encode_value(&v, 0)), "760000000000000000");
        assert_eq!(hex(&RawMode::V1Ttl.encode_value(&v, 1_700_000_000)), "76000000006553F100");
        assert_eq!(hex(&RawMode::V2.encode_value(&v, 0)), "7600");
        assert_eq!(hex(&RawMode::V2.encode_value(&v, 1_700_000_000)), "76000000006553F10001");
        assert_eq!(hex(&RawMode::tombstone()), "02");
    }

    #[test]
    fn values_come_back_and_malformed_ones_do_not() {
        let value = Bytes::from_static(b"value");
        for mode in [RawMode::V1, RawMode::V1Ttl, RawMode::V2] {
            for expires in [0, 7] {
                let decoded = mode.decode_value(&mode.encode_value(&value, expires)).expect("ours");
                let expires = if mode.has_ttl() { expires } else { 0 };
                assert_eq!(decoded, RawValue { value: value.clone(), expires, deleted: false });
            }
        }
        assert!(RawMode::V2.decode_value(&RawMode::tombstone()).expect("ours").deleted);
        assert!(RawMode::V1Ttl.decode_value(&Bytes::from_static(b"short")).is_err());
        assert!(RawMode::V2.decode_value(&Bytes::new()).is_err());
        assert!(RawMode::V2.decode_value(&Bytes::from_static(&[1])).is_err());
        assert!(RawMode::V2.decode_value(&Bytes::from_static(&[4])).is_err());
    }

    #[test]
    fn a_value_is_gone_at_the_second_of_its_expiry() {
        let value = RawValue { value: Bytes::new(), expires: 10, deleted: false };
        assert!(value.is_alive(9));
        assert!(!value.is_alive(10));
    }
}
