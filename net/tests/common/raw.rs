//! A client that speaks HTTP/2 byte by byte, as no decent client does.
#![allow(dead_code, reason = "each test file uses its part")]

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const ACK: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

pub(crate) struct Raw(pub TcpStream);

#[derive(Debug)]
pub(crate) struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

/// What ended a read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    Closed,
    Quiet,
}

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
    out
}

/// HPACK, literal and without index.
pub(crate) fn header(name: &str, value: &str) -> Vec<u8> {
    let mut out = vec![0];
    for text in [name, value] {
        if text.len() < 127 {
            out.push(text.len() as u8);
        } else {
            out.push(127);
            let mut rest = text.len() - 127;
            while rest >= 128 {
                out.push((rest % 128) as u8 | 128);
                rest /= 128;
            }
            out.push(rest as u8);
        }
        out.extend_from_slice(text.as_bytes());
    }
    out
}

/// The header block of a call.
pub(crate) fn call(path: &str) -> Vec<u8> {
    let pairs = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "test"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    pairs.iter().flat_map(|(name, value)| header(name, value)).collect()
}

/// A gRPC message.
pub(crate) fn message(body: &[u8]) -> Vec<u8> {
    let mut out = vec![0];
    out.extend_from_slice(&(body.len() as u32).to_be_bytes());
    out.extend_from_slice(body);
    out
}

impl Raw {
    pub(crate) fn connect(address: SocketAddr) -> Raw {
        let stream = TcpStream::connect(address).expect("the server accepts");
        stream.set_nodelay(true).expect("a socket");
        stream.set_write_timeout(Some(Duration::from_secs(5))).expect("a socket");
        Raw(stream)
    }

    /// Connected, and greeted with `settings`: pairs of number and value.
    pub(crate) fn greeted(address: SocketAddr, settings: &[(u16, u32)]) -> Raw {
        let mut raw = Raw::connect(address);
        let mut payload = Vec::new();
        for (number, value) in settings {
            payload.extend_from_slice(&number.to_be_bytes());
            payload.extend_from_slice(&value.to_be_bytes());
        }
        raw.send(PREFACE);
        raw.send(&frame(SETTINGS, 0, 0, &payload));
        raw.send(&frame(SETTINGS, ACK, 0, &[]));
        raw
    }

    /// Writes; the server may have closed by then.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> bool {
        self.0.write_all(bytes).is_ok()
    }

    /// The next frame; `Err` at the end, or after `patience` without a whole one.
    pub(crate) fn frame(&mut self, patience: Duration) -> Result<Frame, End> {
        self.0.set_read_timeout(Some(patience)).expect("a socket");
        let mut head = [0; 9];
        self.fill(&mut head)?;
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        self.fill(&mut payload)?;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        Ok(Frame { kind: head[3], flags: head[4], stream, payload })
    }

    /// Reads to the end of the connection, for at most `patience` of quiet; the frames and how it ended.
    pub(crate) fn rest(&mut self, patience: Duration) -> (Vec<Frame>, End) {
        let mut frames = Vec::new();
        loop {
            match self.frame(patience) {
                Ok(frame) => frames.push(frame),
                Err(end) => return (frames, end),
            }
        }
    }

    fn fill(&mut self, into: &mut [u8]) -> Result<(), End> {
        self.0.read_exact(into).map_err(|error| match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => End::Quiet,
            _ => End::Closed,
        })
    }
}

/// The error code of the first GOAWAY.
pub(crate) fn go_away(frames: &[Frame]) -> Option<u32> {
    let frame = frames.iter().find(|frame| frame.kind == GOAWAY)?;
    let code = frame.payload.get(4..8)?;
    Some(u32::from_be_bytes(code.try_into().expect("four bytes")))
}
