//! gzip of single messages, with a bound on what a small message may grow to.

use bytes::Bytes;
use flate2::Compression;
use flate2::read::{GzDecoder, GzEncoder};
use std::io::Read;

/// Messages smaller than this are not worth compressing.
pub(crate) const COMPRESS_BYTES_MIN: usize = 1024;

/// Why a message could not be inflated.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InflateError {
    #[error("message inflates beyond the limit of {0} bytes")]
    TooLarge(usize),
    #[error("message is not valid gzip")]
    Corrupt,
}

/// Inflates `message`, to at most `bytes_max`. Cost: CPU in proportion to the result.
pub(crate) fn inflate(message: &[u8], bytes_max: usize) -> Result<Bytes, InflateError> {
    let mut out = Vec::new();
    GzDecoder::new(message).take(bytes_max as u64 + 1).read_to_end(&mut out).map_err(|_| InflateError::Corrupt)?;
    if out.len() > bytes_max {
        return Err(InflateError::TooLarge(bytes_max));
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
    fn junk_and_cut_streams_are_corrupt() {
        assert_eq!(inflate(b"not gzip", 100), Err(InflateError::Corrupt));
        let whole = deflate(b"some text that is long enough");
        assert_eq!(inflate(&whole[..whole.len() - 9], 100), Err(InflateError::Corrupt));
    }
}
