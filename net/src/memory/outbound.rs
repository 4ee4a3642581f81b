//! An answer, or a client's request, on its way to the socket.

use super::ConnectionMemory;
use crate::grpc::message::{PREFIX_BYTES, prefix};
use crate::metrics::{add, sub};
use bytes::{Buf, Bytes};
use std::cell::Cell;
use std::io::IoSlice;
use std::rc::Rc;

/// A framed message on its way through h2 to the socket. It is charged to its connection, and to its stream if that
/// counts, until its bytes have been copied out.
pub(crate) struct OutMessage {
    prefix: [u8; PREFIX_BYTES],
    prefix_at: usize,
    body: Bytes,
    memory: Rc<ConnectionMemory>,
    stream: Option<Rc<Cell<u64>>>,
}

impl OutMessage {
    pub(crate) fn new(
        memory: &Rc<ConnectionMemory>,
        stream: Option<Rc<Cell<u64>>>,
        is_compressed: bool,
        body: Bytes,
    ) -> OutMessage {
        let message = OutMessage {
            prefix: prefix(is_compressed, body.len()),
            prefix_at: 0,
            body,
            memory: Rc::clone(memory),
            stream,
        };
        let bytes = message.remaining() as u64;
        add(&memory.outbound, bytes);
        add(&memory.core.metrics.outbound_bytes, bytes);
        if let Some(stream) = &message.stream {
            add(stream, bytes);
        }
        message
    }

    /// No message at all: what carries the end of a stream.
    pub(crate) fn end(memory: &Rc<ConnectionMemory>) -> OutMessage {
        OutMessage {
            prefix: [0; PREFIX_BYTES],
            prefix_at: PREFIX_BYTES,
            body: Bytes::new(),
            memory: Rc::clone(memory),
            stream: None,
        }
    }

    fn discharge(&self, bytes: usize) {
        let bytes = bytes as u64;
        sub(&self.memory.outbound, bytes);
        sub(&self.memory.core.metrics.outbound_bytes, bytes);
        if let Some(stream) = &self.stream {
            sub(stream, bytes);
        }
        self.memory.has_drained.set(true);
    }
}

impl Buf for OutMessage {
    fn remaining(&self) -> usize {
        PREFIX_BYTES - self.prefix_at + self.body.len()
    }

    fn chunk(&self) -> &[u8] {
        if self.prefix_at < PREFIX_BYTES { &self.prefix[self.prefix_at..] } else { &self.body }
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let parts = [&self.prefix[self.prefix_at..], &self.body[..]];
        let filled = parts.into_iter().filter(|part| !part.is_empty());
        slices.iter_mut().zip(filled).map(|(slice, part)| *slice = IoSlice::new(part)).count()
    }

    fn advance(&mut self, count: usize) {
        let of_prefix = count.min(PREFIX_BYTES - self.prefix_at);
        self.prefix_at += of_prefix;
        self.body.advance(count - of_prefix);
        self.discharge(count);
        self.memory.frames_sent.set(self.memory.frames_sent.get() + 1);
    }
}

impl Drop for OutMessage {
    fn drop(&mut self) {
        self.discharge(self.remaining());
    }
}
