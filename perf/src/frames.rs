//! HTTP/2 as the load generator speaks it: requests out of constant header blocks, frames taken apart, and no header
//! decoding. Source: RFC 9113 (frames), RFC 7541 (header compression).

/// Frame types that the generator knows.
pub(crate) mod kind {
    pub(crate) const DATA: u8 = 0;
    pub(crate) const HEADERS: u8 = 1;
    pub(crate) const RST_STREAM: u8 = 3;
    pub(crate) const SETTINGS: u8 = 4;
    pub(crate) const PING: u8 = 6;
    pub(crate) const GOAWAY: u8 = 7;
    pub(crate) const WINDOW_UPDATE: u8 = 8;
    pub(crate) const CONTINUATION: u8 = 9;
}

/// `END_STREAM` of DATA and HEADERS; `ACK` of SETTINGS and PING.
pub(crate) const FLAG_END_STREAM: u8 = 1;
/// The same bit, by its other name.
pub(crate) const FLAG_ACK: u8 = 1;
const FLAG_END_HEADERS: u8 = 4;
/// `PADDED`: our servers never pad.
pub(crate) const FLAG_PADDED: u8 = 8;

/// Window of a connection and of a stream before anything is said.
pub(crate) const WINDOW_DEFAULT: i64 = 65_535;
const WINDOW_MAX: u32 = (1 << 31) - 1;
const HEAD_BYTES: usize = 9;
/// What a frame may carry unless the peer allows more.
pub(crate) const PAYLOAD_MAX: usize = 16_384;

/// One frame that arrived.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Frame<'a> {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: &'a [u8],
}

/// Takes the first frame off `bytes`: the frame, and how many bytes it took. `None` if it is not all there yet.
pub(crate) fn next_frame(bytes: &[u8]) -> Option<(Frame<'_>, usize)> {
    let head = bytes.first_chunk::<HEAD_BYTES>()?;
    let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
    let payload = bytes.get(HEAD_BYTES..HEAD_BYTES + length)?;
    let frame = Frame { kind: head[3], flags: head[4], stream: number(&head[5..]) & WINDOW_MAX, payload };
    Some((frame, HEAD_BYTES + length))
}

/// The big-endian number at the front of `bytes`; 0 if they are too few.
pub(crate) fn number(bytes: &[u8]) -> u32 {
    bytes.first_chunk::<4>().map_or(0, |four| u32::from_be_bytes(*four))
}

/// The new `SETTINGS_INITIAL_WINDOW_SIZE`, if this SETTINGS payload has one.
pub(crate) fn initial_window(settings: &[u8]) -> Option<i64> {
    let is_window = |setting: &&[u8]| setting[..2] == [0, 4];
    let found = settings.chunks_exact(6).rfind(is_window);
    found.map(|setting| i64::from(number(&setting[2..])))
}

fn put_head(out: &mut Vec<u8>, length: usize, kind: u8, flags: u8, stream: u32) {
    debug_assert!(length <= PAYLOAD_MAX);
    out.extend_from_slice(&(length as u32).to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
}

/// What a client says first: the preface, its settings (no push, the largest window) and the connection's window.
pub(crate) fn put_opening(out: &mut Vec<u8>) {
    out.extend_from_slice(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    put_head(out, 12, kind::SETTINGS, 0, 0);
    out.extend_from_slice(&[0, 2, 0, 0, 0, 0]);
    out.extend_from_slice(&[0, 4]);
    out.extend_from_slice(&WINDOW_MAX.to_be_bytes());
    put_window_update(out, 0, WINDOW_MAX - WINDOW_DEFAULT as u32);
}

/// Gives the peer `bytes` more to send, on `stream` or, for 0, on the connection.
pub(crate) fn put_window_update(out: &mut Vec<u8>, stream: u32, bytes: u32) {
    put_head(out, 4, kind::WINDOW_UPDATE, 0, stream);
    out.extend_from_slice(&bytes.to_be_bytes());
}

/// Confirms the peer's settings.
pub(crate) fn put_settings_ack(out: &mut Vec<u8>) {
    put_head(out, 0, kind::SETTINGS, FLAG_ACK, 0);
}

/// Answers a ping.
pub(crate) fn put_pong(out: &mut Vec<u8>, payload: &[u8]) {
    put_head(out, payload.len(), kind::PING, FLAG_ACK, 0);
    out.extend_from_slice(payload);
}

/// One message, or a part of it, on `stream`.
pub(crate) fn put_data(out: &mut Vec<u8>, stream: u32, payload: &[u8], end: bool) {
    let flags = if end { FLAG_END_STREAM } else { 0 };
    put_head(out, payload.len(), kind::DATA, flags, stream);
    out.extend_from_slice(payload);
}

/// The header blocks of one connection's calls, which all go to one path.
///
/// The first block puts its four fields into the server's table; the later ones, six bytes long, name them there.
pub(crate) struct RequestHeads {
    first: Option<Vec<u8>>,
}

/// `:method: POST`, `:scheme: http`, then path, authority, `te` and `content-type` from the dynamic table, whose
/// newest entry has number 62.
const LATER: [u8; 6] = [0x83, 0x86, 0x80 | 65, 0x80 | 64, 0x80 | 63, 0x80 | 62];

impl RequestHeads {
    /// For calls of `path` at `authority`. Both are shorter than 127 bytes.
    pub(crate) fn new(path: &str, authority: &str) -> RequestHeads {
        let mut first = vec![0x83, 0x86];
        put_field(&mut first, Some(4), "", path);
        put_field(&mut first, Some(1), "", authority);
        put_field(&mut first, None, "te", "trailers");
        put_field(&mut first, Some(31), "", "application/grpc");
        RequestHeads { first: Some(first) }
    }

    /// Begins a call on `stream`.
    pub(crate) fn put(&mut self, out: &mut Vec<u8>, stream: u32) {
        let first = self.first.take();
        let block = first.as_deref().unwrap_or(&LATER);
        put_head(out, block.len(), kind::HEADERS, FLAG_END_HEADERS, stream);
        out.extend_from_slice(block);
    }
}

/// A literal field that enters the table (RFC 7541, 6.2.1); its name by number in the static table, or in full.
fn put_field(out: &mut Vec<u8>, name_index: Option<u8>, name: &str, value: &str) {
    assert!(name.len() < 127 && value.len() < 127, "one length byte");
    out.push(0x40 | name_index.unwrap_or(0));
    if name_index.is_none() {
        out.push(name.len() as u8);
        out.extend_from_slice(name.as_bytes());
    }
    out.push(value.len() as u8);
    out.extend_from_slice(value.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_taken_apart_as_they_were_put_together() {
        let mut bytes = Vec::new();
        put_data(&mut bytes, 7, b"hello", true);
        put_window_update(&mut bytes, 0, 99);
        let (first, taken) = next_frame(&bytes).expect("whole");
        assert_eq!(first, Frame { kind: kind::DATA, flags: FLAG_END_STREAM, stream: 7, payload: b"hello" });
        let (second, rest) = next_frame(&bytes[taken..]).expect("whole");
        assert_eq!((second.kind, number(second.payload)), (kind::WINDOW_UPDATE, 99));
        assert_eq!(taken + rest, bytes.len());
        for end in 0..taken {
            assert_eq!(next_frame(&bytes[..end]), None);
        }
    }

    #[test]
    fn the_last_initial_window_counts() {
        let settings = [0, 3, 0, 0, 4, 0, 0, 4, 0, 0, 1, 0, 0, 4, 0, 0x20, 0, 0];
        assert_eq!(initial_window(&settings), Some(2 << 20));
        assert_eq!(initial_window(&settings[..6]), None);
    }

    #[test]
    fn only_the_first_call_spells_its_headers_out() {
        let mut heads = RequestHeads::new("/a.B/C", "localhost");
        let mut first = Vec::new();
        heads.put(&mut first, 1);
        let mut later = Vec::new();
        heads.put(&mut later, 3);
        assert!(first.windows(6).any(|window| window == b"/a.B/C"));
        assert_eq!(later[9..], LATER);
        assert_eq!(later[4], FLAG_END_HEADERS);
    }
}
