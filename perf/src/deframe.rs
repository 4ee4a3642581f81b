//! gRPC messages out of the DATA frames of one stream.

const PREFIX_BYTES: usize = 5;

/// Puts a gRPC prefix before `message`: not compressed, and its length.
pub(crate) fn framed(message: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(PREFIX_BYTES + message.len());
    out.push(0);
    out.extend_from_slice(&(message.len() as u32).to_be_bytes());
    out.extend_from_slice(message);
    out
}

/// Keeps what is there of a message until it is whole. Bounded by one message, which the caller's server bounds.
#[derive(Default)]
pub(crate) struct Deframer {
    partial: Vec<u8>,
}

impl Deframer {
    /// Calls `each` for every message that `data` completes.
    ///
    /// # Errors
    /// A compressed message, which nobody asked for, and what `each` says.
    pub(crate) fn feed(
        &mut self,
        data: &[u8],
        each: &mut impl FnMut(&[u8]) -> Result<(), String>,
    ) -> Result<(), String> {
        if self.partial.is_empty() {
            let taken = take_messages(data, each)?;
            self.partial.extend_from_slice(&data[taken..]);
        } else {
            self.partial.extend_from_slice(data);
            let taken = take_messages(&self.partial, each)?;
            self.partial.drain(..taken);
        }
        Ok(())
    }
}

/// Bytes of whole messages at the front of `bytes`, after `each` has seen them.
fn take_messages(bytes: &[u8], each: &mut impl FnMut(&[u8]) -> Result<(), String>) -> Result<usize, String> {
    let mut at = 0;
    while let Some(prefix) = bytes[at..].first_chunk::<PREFIX_BYTES>() {
        if prefix[0] != 0 {
            return Err("the server compressed an answer".into());
        }
        let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
        let begin = at + PREFIX_BYTES;
        let Some(message) = bytes.get(begin..begin + length) else {
            break;
        };
        each(message)?;
        at = begin + length;
    }
    Ok(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_out_whole_however_they_are_cut() {
        let mut bytes = framed(b"one");
        bytes.extend(framed(b""));
        bytes.extend(framed(b"three"));
        for size in 1..=bytes.len() {
            let mut seen = Vec::new();
            let mut deframer = Deframer::default();
            for part in bytes.chunks(size) {
                let each = &mut |message: &[u8]| {
                    seen.push(message.to_vec());
                    Ok(())
                };
                deframer.feed(part, each).expect("not compressed");
            }
            assert_eq!(seen, [b"one".to_vec(), b"".to_vec(), b"three".to_vec()]);
        }
    }

    #[test]
    fn a_compressed_message_is_an_error() {
        let each = &mut |_: &[u8]| Ok(());
        assert!(Deframer::default().feed(&[1, 0, 0, 0, 0], each).is_err());
    }
}
