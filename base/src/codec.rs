//! Order-preserving and compact byte encodings of TiKV.
//!
//! Memcomparable bytes: groups of 8 bytes, the last one padded with zeros, each followed by a marker byte
//! `0xFF - pad`. A full last group is followed by a group of padding alone. So `encoded(a) < encoded(b)` exactly
//! when `a < b`, and an encoded key followed by more bytes still sorts by the key.

const GROUP: usize = 8;

/// Why bytes could not be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// The input ended inside a value.
    Truncated,
    /// A marker, a pad byte or a length that no encoder writes.
    Malformed,
}

impl std::fmt::Display for DecodeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            DecodeError::Truncated => "encoded bytes end early",
            DecodeError::Malformed => "encoded bytes are malformed",
        })
    }
}

impl std::error::Error for DecodeError {}

/// Length of the memcomparable form of `len` bytes.
pub const fn memcomparable_len(len: usize) -> usize {
    (len / GROUP + 1) * (GROUP + 1)
}

/// Appends the memcomparable form of `bytes` to `out`.
pub fn encode_memcomparable(bytes: &[u8], out: &mut Vec<u8>) {
    out.reserve(memcomparable_len(bytes.len()));
    let mut rest = bytes;
    loop {
        let take = rest.len().min(GROUP);
        let (group, tail) = rest.split_at(take);
        out.extend_from_slice(group);
        out.resize(out.len() + GROUP - take, 0);
        out.push(0xFF - (GROUP - take) as u8);
        if take < GROUP {
            return;
        }
        rest = tail;
    }
}

/// The memcomparable form of `bytes`.
pub fn memcomparable(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    encode_memcomparable(bytes, &mut out);
    out
}

/// Decodes one memcomparable value from the front of `encoded`; returns it with the number of bytes it took.
///
/// # Errors
/// [`DecodeError`] if the input ends early, a marker is below `0xF7` or a pad byte is not zero.
pub fn decode_memcomparable(encoded: &[u8]) -> Result<(Vec<u8>, usize), DecodeError> {
    let mut out = Vec::with_capacity(encoded.len());
    for (i, group) in encoded.chunks(GROUP + 1).enumerate() {
        let [data @ .., marker] = group else {
            return Err(DecodeError::Truncated);
        };
        if data.len() != GROUP {
            return Err(DecodeError::Truncated);
        }
        let pad = usize::from(0xFF - marker);
        if pad > GROUP {
            return Err(DecodeError::Malformed);
        }
        let (value, padding) = data.split_at(GROUP - pad);
        if padding.iter().any(|&byte| byte != 0) {
            return Err(DecodeError::Malformed);
        }
        out.extend_from_slice(value);
        if pad > 0 {
            return Ok((out, (i + 1) * (GROUP + 1)));
        }
    }
    Err(DecodeError::Truncated)
}

/// Appends `value` so that larger values sort first: big endian of its complement.
pub fn encode_u64_desc(value: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(&(!value).to_be_bytes());
}

/// Reads what [`encode_u64_desc`] wrote, from exactly 8 bytes.
///
/// # Errors
/// [`DecodeError::Truncated`] if there are fewer.
pub fn decode_u64_desc(bytes: &[u8]) -> Result<u64, DecodeError> {
    let bytes = bytes.first_chunk::<8>().ok_or(DecodeError::Truncated)?;
    Ok(!u64::from_be_bytes(*bytes))
}

/// Appends `value` as unsigned LEB128, 1 to 10 bytes.
pub fn encode_varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Reads an unsigned LEB128 number from the front of `bytes` and moves `bytes` behind it.
///
/// # Errors
/// [`DecodeError`] if the input ends early or the number takes more than 64 bits.
pub fn decode_varint(bytes: &mut &[u8]) -> Result<u64, DecodeError> {
    let mut value = 0u64;
    for (i, &byte) in bytes.iter().enumerate().take(10) {
        if i == 9 && byte > 1 {
            return Err(DecodeError::Malformed);
        }
        value |= u64::from(byte & 0x7F) << (7 * i);
        if byte < 0x80 {
            *bytes = &bytes[i + 1..];
            return Ok(value);
        }
    }
    Err(if bytes.len() < 10 { DecodeError::Truncated } else { DecodeError::Malformed })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Prng;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02X}")).collect()
    }

    #[test]
    fn memcomparable_agrees_with_the_known_vectors() {
        let vectors: [(&[u8], &str); 6] = [
            (b"", "0000000000000000F7"),
            (b"a", "6100000000000000F8"),
            (b"abcdefg", "6162636465666700FE"),
            (b"abcdefgh", "6162636465666768FF0000000000000000F7"),
            (b"abcdefghi", "6162636465666768FF6900000000000000F8"),
            (&[0xFF; 8], "FFFFFFFFFFFFFFFFFF0000000000000000F7"),
        ];
        for (input, expected) in vectors {
            let encoded = memcomparable(input);
            assert_eq!(hex(&encoded), expected);
            assert_eq!(encoded.len(), memcomparable_len(input.len()));
            assert_eq!(decode_memcomparable(&encoded), Ok((input.to_vec(), encoded.len())));
        }
    }

    #[test]
    fn memcomparable_keeps_the_order_and_rejects_what_no_encoder_writes() {
        let mut prng = Prng::new(3);
        for _ in 0..2000 {
            let mut pair = [vec![0; prng.below(20) as usize], vec![0; prng.below(20) as usize]];
            for bytes in &mut pair {
                bytes.iter_mut().for_each(|byte| *byte = [0, 1, 0xFF][prng.below(3) as usize]);
            }
            let [a, b] = &pair;
            assert_eq!(a.cmp(b), memcomparable(a).cmp(&memcomparable(b)));
        }
        assert_eq!(decode_memcomparable(&[1, 2, 3]), Err(DecodeError::Truncated));
        assert_eq!(decode_memcomparable(&[0, 0, 0, 0, 0, 0, 0, 0, 0xF6]), Err(DecodeError::Malformed));
        assert_eq!(decode_memcomparable(&[b'a', 1, 0, 0, 0, 0, 0, 0, 0xF8]), Err(DecodeError::Malformed));
        assert_eq!(decode_memcomparable(&[0, 0, 0, 0, 0, 0, 0, 0, 0xFF]), Err(DecodeError::Truncated));
    }

    #[test]
    fn varints_round_trip_at_their_edges() {
        for value in [0, 1, 127, 128, 300, u64::from(u32::MAX), u64::MAX] {
            let mut out = Vec::new();
            encode_varint(value, &mut out);
            let mut rest = out.as_slice();
            assert_eq!(decode_varint(&mut rest), Ok(value));
            assert!(rest.is_empty());
        }
        assert_eq!(decode_varint(&mut [0x80u8].as_slice()), Err(DecodeError::Truncated));
        assert_eq!(decode_varint(&mut [0xFFu8; 10].as_slice()), Err(DecodeError::Malformed));
    }
}
