//! gRPC's message framing: one byte that says whether the message is compressed, four of length, the message.

use bytes::{Buf, Bytes, BytesMut};

/// Bytes before each message.
pub(crate) const PREFIX_BYTES: usize = 5;

/// One message as it came, still compressed if `is_compressed`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Framed {
    pub(crate) is_compressed: bool,
    pub(crate) bytes: Bytes,
}

/// Why a byte stream is not a stream of messages.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("message of {0} bytes is larger than the limit of {1}")]
    TooLarge(usize, usize),
    #[error("compressed flag is {0}, neither 0 nor 1")]
    BadFlag(u8),
}

/// Cuts a stream of chunks into messages.
///
/// A message that lies within one chunk is a slice of it; one that spans chunks is copied together once, into memory
/// that grows as the message arrives, so that a large announced length costs nothing by itself.
#[derive(Debug)]
pub(crate) struct Deframer {
    chunk: Bytes,
    prefix: [u8; PREFIX_BYTES],
    prefix_len: usize,
    body: BytesMut,
    message_bytes_max: usize,
}

impl Deframer {
    pub(crate) fn new(message_bytes_max: usize) -> Deframer {
        Deframer {
            chunk: Bytes::new(),
            prefix: [0; PREFIX_BYTES],
            prefix_len: 0,
            body: BytesMut::new(),
            message_bytes_max,
        }
    }

    /// Takes the next chunk. Only after [`Deframer::next_message`] has answered `None`.
    pub(crate) fn feed(&mut self, chunk: Bytes) {
        debug_assert!(self.chunk.is_empty(), "the chunk before is used up");
        self.chunk = chunk;
    }

    /// The next complete message, or `None` if more bytes are needed.
    pub(crate) fn next_message(&mut self) -> Result<Option<Framed>, FrameError> {
        if self.prefix_len < PREFIX_BYTES && !self.take_prefix()? {
            return Ok(None);
        }
        let len = self.message_len();
        let have = self.body.len() + self.chunk.len();
        if have < len {
            self.body.reserve(self.chunk.len().max((2 * self.body.len()).min(len - self.body.len())));
            self.body.extend_from_slice(&self.chunk);
            self.chunk.clear();
            return Ok(None);
        }
        let bytes = if self.body.is_empty() {
            self.chunk.split_to(len)
        } else {
            let rest = self.chunk.split_to(len - self.body.len());
            self.body.extend_from_slice(&rest);
            std::mem::take(&mut self.body).freeze()
        };
        self.prefix_len = 0;
        Ok(Some(Framed { is_compressed: self.prefix[0] == 1, bytes }))
    }

    /// True between messages: the stream may end here.
    pub(crate) fn is_at_boundary(&self) -> bool {
        self.prefix_len == 0 && self.chunk.is_empty()
    }

    fn take_prefix(&mut self) -> Result<bool, FrameError> {
        let take = (PREFIX_BYTES - self.prefix_len).min(self.chunk.len());
        self.chunk.copy_to_slice(&mut self.prefix[self.prefix_len..self.prefix_len + take]);
        self.prefix_len += take;
        if self.prefix_len > 0 && self.prefix[0] > 1 {
            return Err(FrameError::BadFlag(self.prefix[0]));
        }
        if self.prefix_len < PREFIX_BYTES {
            return Ok(false);
        }
        if self.message_len() > self.message_bytes_max {
            return Err(FrameError::TooLarge(self.message_len(), self.message_bytes_max));
        }
        Ok(true)
    }

    fn message_len(&self) -> usize {
        let [_, a, b, c, d] = self.prefix;
        u32::from_be_bytes([a, b, c, d]) as usize
    }
}

/// The five bytes before a message of `len` bytes.
pub(crate) fn prefix(is_compressed: bool, len: usize) -> [u8; PREFIX_BYTES] {
    let [a, b, c, d] = u32::try_from(len).expect("callers bound messages below 4 GiB").to_be_bytes();
    [u8::from(is_compressed), a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream_of(messages: &[&[u8]]) -> Vec<u8> {
        let mut out = Vec::new();
        for message in messages {
            out.extend_from_slice(&prefix(false, message.len()));
            out.extend_from_slice(message);
        }
        out
    }

    #[test]
    fn any_cut_of_the_stream_gives_the_same_messages() {
        let messages: [&[u8]; 4] = [b"", b"one", b"a longer second message", b""];
        let stream = stream_of(&messages);
        for step in 1..=stream.len() {
            let mut deframer = Deframer::new(100);
            let mut seen = Vec::new();
            for chunk in stream.chunks(step) {
                deframer.feed(Bytes::copy_from_slice(chunk));
                while let Some(message) = deframer.next_message().expect("well-formed") {
                    assert!(!message.is_compressed);
                    seen.push(message.bytes);
                }
            }
            assert_eq!(seen, messages, "in steps of {step}");
            assert!(deframer.is_at_boundary());
        }
    }

    #[test]
    fn a_message_inside_one_chunk_is_not_copied() {
        let chunk = Bytes::from(stream_of(&[b"hello"]));
        let mut deframer = Deframer::new(100);
        deframer.feed(chunk.clone());
        let message = deframer.next_message().expect("well-formed").expect("complete");
        assert_eq!(message.bytes.as_ptr(), chunk[PREFIX_BYTES..].as_ptr());
    }

    #[test]
    fn a_cut_inside_a_message_is_no_boundary() {
        let stream = stream_of(&[b"hello"]);
        for cut in 1..stream.len() {
            let mut deframer = Deframer::new(100);
            deframer.feed(Bytes::copy_from_slice(&stream[..cut]));
            assert_eq!(deframer.next_message(), Ok(None));
            assert!(!deframer.is_at_boundary(), "cut at {cut}");
        }
    }

    #[test]
    fn too_large_and_malformed_are_told_before_the_body_comes() {
        let mut deframer = Deframer::new(10);
        deframer.feed(Bytes::from_static(&[0, 0, 0, 0, 11]));
        assert_eq!(deframer.next_message(), Err(FrameError::TooLarge(11, 10)));
        let mut deframer = Deframer::new(10);
        deframer.feed(Bytes::from_static(&[7]));
        assert_eq!(deframer.next_message(), Err(FrameError::BadFlag(7)));
    }

    #[test]
    fn a_large_announced_length_reserves_little() {
        let mut deframer = Deframer::new(1 << 28);
        deframer.feed(Bytes::from_static(&[0, 0x10, 0, 0, 0, 1, 2, 3]));
        assert_eq!(deframer.next_message(), Ok(None));
        assert!(deframer.body.capacity() < 4096);
    }
}
