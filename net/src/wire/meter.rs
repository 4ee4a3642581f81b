//! Counts HTTP/2 frames as they arrive and tells a flood.
//!
//! h2 bounds the memory of a connection, but lets a peer have as much CPU as its frames ask for. So each frame that
//! makes no progress (ping, settings, window update, priority, empty data, continuation, unknown kinds) costs one
//! credit. Credit is earned by what does: a request, data in either direction, and time. Stock clients ping after each
//! burst of data that they get (they measure bandwidth so), therefore what we send earns, too.
//! Resets have a purse of their own, which answered calls fill again.
//!
//! It reads only frame heads: nine bytes per frame, and skips the rest.

use std::time::Duration;

const HEAD_BYTES: usize = 9;
const PREFACE_BYTES: usize = 24;

/// Credit for one frame that makes progress. grpc-go answers one data frame with a ping and two window updates.
const EARNED_PER_FRAME: i64 = 8;

/// A peer that asks for work without end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flood {
    /// Frames without progress.
    Control,
    /// Streams opened and reset.
    Resets,
}

/// Credit in whole units; refilled by time at `burst / 4` per second.
#[derive(Debug)]
struct Purse {
    left: i64,
    burst: i64,
    /// What time has earned, in 1/4000 units.
    earning: i64,
}

impl Purse {
    fn new(burst: u32) -> Purse {
        Purse { left: i64::from(burst), burst: i64::from(burst), earning: 0 }
    }

    fn elapsed(&mut self, millis: i64) {
        self.earning += millis * self.burst;
        self.earn(self.earning / 4000);
        self.earning %= 4000;
    }

    fn earn(&mut self, amount: i64) {
        self.left = (self.left + amount).min(self.burst);
    }

    fn spend(&mut self) -> bool {
        self.left -= 1;
        self.left >= 0
    }
}

/// Follows the frames of one direction of one connection.
#[derive(Debug)]
pub(crate) struct Meter {
    preface_left: usize,
    head: [u8; HEAD_BYTES],
    head_len: usize,
    payload_left: usize,
    in_header_block: bool,
    settings_seen: bool,
    control: Purse,
    resets: Purse,
    unearned: Duration,
}

impl Meter {
    /// For what a client sends: the preface, then frames.
    pub(crate) fn of_client(control_burst: u32, resets_burst: u32) -> Meter {
        Meter {
            preface_left: PREFACE_BYTES,
            head: [0; HEAD_BYTES],
            head_len: 0,
            payload_left: 0,
            in_header_block: false,
            settings_seen: false,
            control: Purse::new(control_burst),
            resets: Purse::new(resets_burst),
            unearned: Duration::ZERO,
        }
    }

    /// Follows `bytes`, the next ones of the stream.
    ///
    /// # Errors
    /// [`Flood`] once a purse is empty. The meter is of no use afterwards.
    pub(crate) fn follow(&mut self, mut bytes: &[u8]) -> Result<(), Flood> {
        let skip = self.preface_left.min(bytes.len());
        self.preface_left -= skip;
        bytes = &bytes[skip..];
        while !bytes.is_empty() {
            let skip = self.payload_left.min(bytes.len());
            self.payload_left -= skip;
            bytes = &bytes[skip..];
            let take = (HEAD_BYTES - self.head_len).min(bytes.len());
            self.head[self.head_len..self.head_len + take].copy_from_slice(&bytes[..take]);
            self.head_len += take;
            bytes = &bytes[take..];
            if self.head_len == HEAD_BYTES {
                self.head_len = 0;
                self.frame()?;
            }
        }
        Ok(())
    }

    /// True inside of a frame, of a header block or of the preface: what was begun must go on.
    pub(crate) fn is_inside(&self) -> bool {
        self.head_len > 0 || self.payload_left > 0 || self.in_header_block || self.preface_left > 0
    }

    /// Whether the peer's first settings have come, the end of the handshake.
    pub(crate) fn has_settings(&self) -> bool {
        self.settings_seen
    }

    /// Frames with data were sent to the peer.
    pub(crate) fn sent(&mut self, frames: u64) {
        self.control.earn(EARNED_PER_FRAME.saturating_mul(frames.min(1 << 32) as i64));
    }

    /// Calls were answered.
    pub(crate) fn answered(&mut self, calls: u64) {
        self.resets.earn(calls.min(1 << 32) as i64);
    }

    /// Time went by.
    pub(crate) fn elapsed(&mut self, time: Duration) {
        // A purse is full after four seconds. What is less than a millisecond counts later.
        self.unearned += time.min(Duration::from_secs(4));
        let millis = self.unearned.as_millis() as i64;
        if millis > 0 {
            self.unearned -= Duration::from_millis(millis as u64);
            self.control.elapsed(millis);
            self.resets.elapsed(millis);
        }
    }

    fn frame(&mut self) -> Result<(), Flood> {
        const DATA: u8 = 0;
        const HEADERS: u8 = 1;
        const RST_STREAM: u8 = 3;
        const SETTINGS: u8 = 4;
        const PING: u8 = 6;
        const CONTINUATION: u8 = 9;
        const ACK_OR_END_STREAM: u8 = 1;
        const END_HEADERS: u8 = 4;

        let [a, b, c, kind, flags, ..] = self.head;
        self.payload_left = u32::from_be_bytes([0, a, b, c]) as usize;
        let is_free = match kind {
            DATA => {
                if self.payload_left > 0 {
                    self.control.earn(EARNED_PER_FRAME);
                }
                self.payload_left > 0 || flags & ACK_OR_END_STREAM != 0
            }
            HEADERS => {
                self.in_header_block = flags & END_HEADERS == 0;
                self.control.earn(EARNED_PER_FRAME);
                true
            }
            CONTINUATION => {
                self.in_header_block = flags & END_HEADERS == 0;
                false
            }
            RST_STREAM => {
                return if self.resets.spend() { Ok(()) } else { Err(Flood::Resets) };
            }
            SETTINGS => {
                self.settings_seen = true;
                flags & ACK_OR_END_STREAM != 0 && self.payload_left == 0
            }
            PING => false,
            _ => false,
        };
        if is_free || self.control.spend() { Ok(()) } else { Err(Flood::Control) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: usize) -> Vec<u8> {
        let mut out = (payload as u32).to_be_bytes()[1..].to_vec();
        out.extend_from_slice(&[kind, flags, 0, 0, 0, 1]);
        out.resize(HEAD_BYTES + payload, 0xAA);
        out
    }

    fn meter(control: u32, resets: u32) -> Meter {
        let mut meter = Meter::of_client(control, resets);
        meter.follow(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").expect("no frame yet");
        meter
    }

    #[test]
    fn any_cut_of_the_bytes_counts_the_same_frames() {
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        for _ in 0..10 {
            bytes.extend(frame(6, 0, 8));
            bytes.extend(frame(0xEE, 0, 3));
        }
        for step in 1..bytes.len() {
            let mut meter = Meter::of_client(20, 1);
            let mut at_boundaries = 0;
            for chunk in bytes.chunks(step) {
                assert_eq!(meter.follow(chunk), Ok(()), "in steps of {step}");
                at_boundaries += usize::from(!meter.is_inside());
            }
            assert!(at_boundaries > 0);
            assert_eq!(meter.follow(&frame(6, 0, 8)), Err(Flood::Control), "in steps of {step}");
        }
    }

    #[test]
    fn pings_are_paid_by_requests_by_answers_and_by_time() {
        let mut meter = meter(100, 10);
        for _ in 0..1000 {
            meter.follow(&frame(1, 4, 20)).expect("a request");
            for _ in 0..8 {
                meter.follow(&frame(6, 0, 8)).expect("paid by the request");
            }
        }
        for _ in 0..1000 {
            meter.sent(1);
            meter.follow(&frame(6, 0, 8)).expect("paid by the answer");
        }
        for _ in 0..1000 {
            meter.elapsed(Duration::from_millis(40));
            meter.follow(&frame(6, 0, 8)).expect("paid by time");
        }
    }

    #[test]
    fn floods_of_each_kind_are_told() {
        for (kind, flags, payload) in [(6, 0, 8), (4, 0, 6), (2, 0, 5), (8, 0, 4), (9, 0, 0), (0, 0, 0), (77, 0, 0)] {
            let mut meter = meter(50, 50);
            let taken = (0..1000).take_while(|_| meter.follow(&frame(kind, flags, payload)).is_ok()).count();
            assert_eq!(taken, 50, "kind {kind}");
        }
    }

    #[test]
    fn resets_are_paid_by_answered_calls_not_by_requests() {
        let mut meter = meter(50, 50);
        for _ in 0..50 {
            meter.follow(&frame(1, 4, 20)).expect("a request");
            meter.follow(&frame(3, 0, 4)).expect("out of the purse");
        }
        for _ in 0..1000 {
            meter.answered(1);
        }
        for _ in 0..50 {
            meter.follow(&frame(1, 4, 20)).expect("a request");
            meter.follow(&frame(3, 0, 4)).expect("the purse is full again, and no larger than it was");
        }
        meter.follow(&frame(1, 4, 20)).expect("a request");
        assert_eq!(meter.follow(&frame(3, 0, 4)), Err(Flood::Resets));
    }

    #[test]
    fn a_header_block_is_open_until_its_last_continuation() {
        let mut meter = meter(50, 50);
        assert!(!meter.is_inside());
        meter.follow(&frame(1, 0, 20)).expect("within limits");
        assert!(meter.is_inside());
        meter.follow(&frame(9, 4, 20)).expect("within limits");
        assert!(!meter.is_inside());
        assert!(!meter.has_settings());
        meter.follow(&frame(4, 0, 0)).expect("within limits");
        assert!(meter.has_settings());
    }
}
