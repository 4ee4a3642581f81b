//! Percent-encoding of `grpc-message`: printable ASCII except `%` stands for itself.

/// Encodes `message` for a header. The result is plain ASCII.
pub(crate) fn encode(message: &str) -> String {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let mut out = String::with_capacity(message.len());
    for &byte in message.as_bytes() {
        if (0x20..=0x7E).contains(&byte) && byte != b'%' {
            out.push(char::from(byte));
        } else {
            out.push('%');
            out.push(char::from(HEX[usize::from(byte >> 4)]));
            out.push(char::from(HEX[usize::from(byte & 15)]));
        }
    }
    out
}

/// Decodes a `grpc-message`. Broken escapes stand for themselves and broken UTF-8 is replaced: a peer's odd message
/// must not hide its status.
pub(crate) fn decode(value: &[u8]) -> String {
    let mut out = Vec::with_capacity(value.len());
    let mut at = 0;
    while at < value.len() {
        match (value[at], hex(value.get(at + 1)), hex(value.get(at + 2))) {
            (b'%', Some(high), Some(low)) => {
                out.push(high << 4 | low);
                at += 3;
            }
            (byte, _, _) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn hex(digit: Option<&u8>) -> Option<u8> {
    char::from(*digit?).to_digit(16).map(|value| value as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encoding_is_ascii_and_reads_back() {
        for text in ["", "plain text", "100% sûr\n", "\u{7f}", "%41", "日本"] {
            let encoded = encode(text);
            assert!(encoded.bytes().all(|b| (0x20..=0x7E).contains(&b)), "{encoded}");
            assert_eq!(decode(encoded.as_bytes()), text);
        }
        assert_eq!(encode("a%\n"), "a%25%0A");
    }

    #[test]
    fn broken_escapes_stand_for_themselves() {
        assert_eq!(decode(b"50%"), "50%");
        assert_eq!(decode(b"%4"), "%4");
        assert_eq!(decode(b"%zz!"), "%zz!");
        assert_eq!(decode(b"%FF"), "\u{fffd}");
    }
}
