//! gzip of single messages, with a bound on what a small message may grow to.

use bytes::Bytes;
use flate2::Compression;
use flate2::read::{GzDecoder, GzEncoder};
use std::io::Read;

/// Messages smaller than this are not worth compressing.
pub(crate) const COMPRESS_BYTES_MIN: usize = 1024;

/// No byte of deflate's stands for more than this many (zlib's technical notes say 1032).
const DEFLATE_RATIO_MAX: usize = 1032;

/// Why a message could not be inflated.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InflateError {
    #[error("message inflates beyond the limit of {0} bytes")]
    TooLarge(usize),
    #[error("message is not valid gzip")]
    Corrupt,
}

/// What `message` says that it inflates to, in bytes: its last four (RFC 1952, section 2.3.1). [`inflate`] holds it to
/// that, so that memory can be set aside before.
///
/// # Errors
/// [`InflateError`] if that is above `bytes_max`, or more than deflate can make of so few bytes.
pub(crate) fn inflated_len(message: &[u8], bytes_max: usize) -> Result<usize, InflateError> {
    let (_, last) = message.split_last_chunk::<4>().ok_or(InflateError::Corrupt)?;
    let len = u32::from_le_bytes(*last) as usize;
    if len / DEFLATE_RATIO_MAX > message.len() {
        return Err(InflateError::Corrupt);
    }
    if len > bytes_max {
        return Err(InflateError::TooLarge(bytes_max));
    }
    Ok(len)
}

/// Inflates `message`, to at most `bytes_max`. Cost: CPU in proportion to the result.
///
/// # Errors
/// [`InflateError`] as [`inflated_len`], or if the message is no gzip or inflates to another length than it says.
pub(crate) fn inflate(message: &[u8], bytes_max: usize) -> Result<Bytes, InflateError> {
    let len = inflated_len(message, bytes_max)?;
    let mut out = Vec::with_capacity(len);
    GzDecoder::new(message).take(len as u64 + 1).read_to_end(&mut out).map_err(|_| InflateError::Corrupt)?;
    if out.len() != len {
        return Err(InflateError::Corrupt);
    }
    Ok(Bytes::from(out))
}

/// Compresses `message` at the fastest level.
pub(crate) fn deflate(message: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(message.len() / 2);
    GzEncoder::new(message, Compression::fast()).read_to_end(&mut out).expect("reading from memory does not fail");
    Bytes::from(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_compressed_inflates_to_the_same() {
        let message: Vec<u8> = (0..100_000u32).map(|i| (i % 251) as u8).collect();
        let small = deflate(&message);
        assert!(small.len() < message.len() / 4);
        assert_eq!(inflate(&small, message.len()).expect("fits"), message);
    }

    #[test]
    fn a_bomb_is_stopped_at_the_limit() {
        let bomb = deflate(&vec![0; 10 << 20]);
        assert!(bomb.len() < 100_000);
        assert_eq!(inflate(&bomb, 1 << 20), Err(InflateError::TooLarge(1 << 20)));
    }

    #[test]
    fn a_message_is_held_to_the_length_that_it_says() {
        let whole = deflate(&vec![0; 100_000]);
        assert_eq!(inflated_len(&whole, 100_000), Ok(100_000));
        for said in [0u32, 99_999, 100_001] {
            let mut lie = whole.to_vec();
            let at = lie.len() - 4;
            lie[at..].copy_from_slice(&said.to_le_bytes());
            assert_eq!(inflate(&lie, 1 << 20), Err(InflateError::Corrupt), "says {said}");
        }
        let mut wild = whole.to_vec();
        let at = wild.len() - 4;
        wild[at..].copy_from_slice(&(200u32 << 20).to_le_bytes());
        assert_eq!(inflated_len(&wild, 256 << 20), Err(InflateError::Corrupt), "more than deflate can");
        assert_eq!(inflate(&deflate(b""), 0), Ok(Bytes::new()));
    }

    #[test]
    fn junk_and_cut_streams_are_corrupt() {
        assert_eq!(inflate(b"not gzip", 100), Err(InflateError::Corrupt));
        let whole = deflate(b"some text that is long enough");
        assert_eq!(inflate(&whole[..whole.len() - 9], 100), Err(InflateError::Corrupt));
    }
}
