//! How transactional keys stand in the families (`compat/5-formats.md`, 5.2).
//!
//! ```text
//!  lock     memcomparable(key)
//!  default  memcomparable(key) ++ descending start_ts
//!  write    memcomparable(key) ++ descending commit_ts      so that the newest record of a key comes first
//! ```

use base::codec::{DecodeError, decode_memcomparable, decode_u64_desc, encode_u64_desc, memcomparable};
use bytes::Bytes;

use super::TimeStamp;
use crate::ReadError;

const TS_BYTES: usize = 8;

/// The encoded form of a client's key: what stands in family `lock`, and before the timestamp in the others.
pub fn encode(user_key: &[u8]) -> Bytes {
    memcomparable(user_key).into()
}

/// The client's key behind its encoded form.
///
/// # Errors
/// [`ReadError::Failed`] if no encoder writes this.
pub fn decode(encoded: &[u8]) -> Result<Bytes, ReadError> {
    let decoded = decode_memcomparable(encoded).and_then(|(key, used)| match used == encoded.len() {
        true => Ok(key.into()),
        false => Err(DecodeError::Malformed),
    });
    decoded.map_err(|error| ReadError::Failed(format!("a transactional key of {} bytes: {error}", encoded.len())))
}

/// The place of a version of an encoded key.
pub fn versioned(encoded: &[u8], ts: TimeStamp) -> Bytes {
    let mut out = Vec::with_capacity(encoded.len() + TS_BYTES);
    out.extend_from_slice(encoded);
    encode_u64_desc(ts.0, &mut out);
    out.into()
}

/// The encoded key and the timestamp of a place that [`versioned`] made.
///
/// # Errors
/// [`ReadError::Failed`] if it is too short.
pub fn split(place: &[u8]) -> Result<(&[u8], TimeStamp), ReadError> {
    let short = || ReadError::Failed(format!("a versioned key of {} bytes has no timestamp", place.len()));
    let at = place.len().checked_sub(TS_BYTES).ok_or_else(short)?;
    let (encoded, ts) = place.split_at(at);
    Ok((encoded, TimeStamp(decode_u64_desc(ts).map_err(|_| short())?)))
}

/// The first place after all versions of an encoded key. No other key's versions begin with an encoded key.
pub fn after(encoded: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(encoded.len() + TS_BYTES + 1);
    out.extend_from_slice(encoded);
    out.extend([0xFF; TS_BYTES + 1]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_of_k_at_5_stands_where_tikv_puts_it() {
        let place = versioned(&encode(b"k"), TimeStamp(5));
        assert_eq!(place, b"\x6B\0\0\0\0\0\0\0\xF8\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFA".as_slice());
        assert_eq!(split(&place), Ok((encode(b"k").as_ref(), TimeStamp(5))));
        assert_eq!(decode(&encode(b"k")), Ok(Bytes::from_static(b"k")));
    }

    #[test]
    fn all_versions_of_a_key_come_before_its_end_and_those_of_the_next_key_after_it() {
        let end = after(&encode(b"k"));
        for ts in [0, 1, u64::MAX] {
            assert!(versioned(&encode(b"k"), TimeStamp(ts)) < end);
            assert!(versioned(&encode(b"k\0"), TimeStamp(ts)) > end);
        }
    }

    #[test]
    fn what_no_encoder_writes_is_an_error() {
        assert!(decode(b"k").is_err());
        assert!(decode(&versioned(&encode(b"k"), TimeStamp(1))).is_err());
        assert!(split(b"short").is_err());
    }
}
