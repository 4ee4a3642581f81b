//! One connection of the generator under closed load: as many requests in flight as it has slots, a new one as soon as
//! one is answered. [`Client`] is bytes in, bytes out; [`run`] carries them.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::rc::Rc;

use base::{Instant, Prng};
use executor::io::{AsyncReadExt, AsyncWriteExt};
use proto::kvrpcpb::Context;

use crate::deframe::Deframer;
use crate::frames::{self, Frame, PAYLOAD_MAX, RequestHeads, WINDOW_DEFAULT, kind};
use crate::latency::Latency;
use crate::template::{Template, VALUE_BYTES};
use crate::workload::{Answered, Carriage, Operation, Workload};

/// Bytes that wait to be taken apart; many frames of the largest size.
const INPUT_BYTES: usize = 256 << 10;
/// Bytes received after which the server is given as many to send again; far below the window.
const WINDOW_STEP: u32 = 8 << 20;
/// The one stream of batched work.
const BATCH_STREAM: u32 = 1;
/// Random bytes that values are cut from.
const VALUE_POOL_BYTES: u64 = 64 << 10;

/// What the connections of a cell are to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Work, but do not record.
    WarmUp,
    /// Work and record.
    Measure,
    /// Wait for what is in flight, then end.
    Stop,
}

/// What the connections of a cell share.
pub(crate) struct Progress {
    pub(crate) phase: Cell<Phase>,
    /// Commands answered since the beginning.
    pub(crate) commands: Cell<u64>,
    pub(crate) latency: RefCell<Latency>,
    /// The next number of keys in order.
    next_key: Cell<u64>,
}

impl Progress {
    pub(crate) fn new() -> Progress {
        Progress {
            phase: Cell::new(Phase::WarmUp),
            commands: Cell::new(0),
            latency: RefCell::new(Latency::new()),
            next_key: Cell::new(0),
        }
    }

    fn answered(&self, commands: u64, sent: Instant, now: Instant) {
        self.commands.set(self.commands.get() + commands);
        if self.phase.get() == Phase::Measure {
            self.latency.borrow_mut().record(now.since(sent), commands);
        }
    }
}

/// Which keys are asked for, of `0..count`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keys {
    /// Any, for as long as it takes.
    Random { count: u64 },
    /// Each once over all connections, then the load ends.
    EachOnce { count: u64 },
}

/// A request message and what it waits for.
struct Slot {
    message: Template,
    sent: Instant,
    unanswered: usize,
    /// Unary: the message that arrives.
    answer: Deframer,
}

/// The client's half of one connection.
pub(crate) struct Client {
    workload: Workload,
    progress: Rc<Progress>,
    keys: Keys,
    prng: Prng,
    values: Vec<u8>,
    heads: RequestHeads,
    commands: usize,
    slots: Vec<Slot>,
    idle: Vec<usize>,
    /// Unary: the slot of each open stream.
    streams: BTreeMap<u32, usize>,
    /// Batched echo: slots in the order in which they were sent, which is that of the answers.
    order: VecDeque<usize>,
    /// Batched: the messages that arrive.
    answers: Deframer,
    next_stream: u32,
    window: i64,
    stream_window: i64,
    stream_window_initial: i64,
    received: u32,
    out: Vec<u8>,
}

impl Client {
    /// A client with `slots` messages of `commands` commands in flight. What happens is counted in `progress`.
    pub(crate) fn new(
        workload: Workload,
        context: &Context,
        (slots, commands): (usize, usize),
        keys: Keys,
        mut prng: Prng,
        progress: Rc<Progress>,
    ) -> Client {
        let slot = |number| Slot {
            message: workload.message(context, number, commands),
            sent: Instant(0),
            unanswered: 0,
            answer: Deframer::default(),
        };
        let mut values = vec![0; VALUE_POOL_BYTES as usize + VALUE_BYTES];
        prng.fill(&mut values);
        let mut out = Vec::new();
        frames::put_opening(&mut out);
        Client {
            workload,
            progress,
            keys,
            prng,
            values,
            heads: RequestHeads::new(workload.path(), "localhost"),
            commands,
            slots: (0..slots).map(slot).collect(),
            idle: (0..slots).rev().collect(),
            streams: BTreeMap::new(),
            order: VecDeque::new(),
            answers: Deframer::default(),
            next_stream: BATCH_STREAM,
            window: WINDOW_DEFAULT,
            stream_window: WINDOW_DEFAULT,
            stream_window_initial: WINDOW_DEFAULT,
            received: 0,
            out,
        }
    }

    /// Puts as many requests out as there are slots and windows for.
    fn fill(&mut self, now: Instant) {
        while !self.is_stopping() && self.has_room() {
            let Some(slot) = self.idle.pop() else {
                return;
            };
            self.patch(slot);
            self.send(slot);
            let slot = &mut self.slots[slot];
            slot.sent = now;
            slot.unanswered = self.commands;
        }
    }

    fn is_stopping(&self) -> bool {
        let all_sent = match self.keys {
            Keys::Random { .. } => false,
            Keys::EachOnce { count } => self.progress.next_key.get() >= count,
        };
        all_sent || self.progress.phase.get() == Phase::Stop
    }

    /// Whether nothing is in flight and nothing will be.
    fn is_done(&self) -> bool {
        self.is_stopping() && self.idle.len() == self.slots.len()
    }

    fn has_room(&self) -> bool {
        self.window.min(self.stream_window) >= PAYLOAD_MAX as i64
    }

    /// New keys and values for a slot's message.
    fn patch(&mut self, slot: usize) {
        for position in 0..self.commands {
            let number = match self.keys {
                Keys::Random { count } => self.prng.below(count),
                Keys::EachOnce { count } => {
                    let number = self.progress.next_key.get();
                    self.progress.next_key.set(number + 1);
                    number % count
                }
            };
            let at = self.prng.below(VALUE_POOL_BYTES) as usize;
            let value = self.values[at..].first_chunk().expect("the pool is longer by a value");
            self.slots[slot].message.patch(position, number, value);
        }
    }

    fn send(&mut self, slot: usize) {
        let message = self.slots[slot].message.bytes();
        self.window -= message.len() as i64;
        match self.workload.carriage {
            Carriage::Unary => {
                let stream = self.next_stream;
                self.next_stream += 2;
                self.streams.insert(stream, slot);
                self.heads.put(&mut self.out, stream);
                frames::put_data(&mut self.out, stream, message, true);
            }
            Carriage::Batched => {
                if self.next_stream == BATCH_STREAM {
                    self.next_stream += 2;
                    self.heads.put(&mut self.out, BATCH_STREAM);
                }
                self.stream_window -= message.len() as i64;
                if self.workload.operation == Operation::Echo {
                    self.order.push_back(slot);
                }
                frames::put_data(&mut self.out, BATCH_STREAM, message, false);
            }
        }
    }

    /// Takes what arrived; returns how many bytes it took. The rest is no whole frame yet.
    ///
    /// # Errors
    /// What the server complains about, or what it must not send.
    fn receive(&mut self, bytes: &[u8], now: Instant) -> Result<usize, String> {
        let mut taken = 0;
        while let Some((frame, length)) = frames::next_frame(&bytes[taken..]) {
            taken += length;
            self.frame(&frame, now)?;
        }
        Ok(taken)
    }

    fn frame(&mut self, frame: &Frame<'_>, now: Instant) -> Result<(), String> {
        let is_end = frame.flags & frames::FLAG_END_STREAM != 0;
        match frame.kind {
            kind::DATA if frame.flags & frames::FLAG_PADDED != 0 => Err("padded data".into()),
            kind::DATA => {
                self.give_window(frame.payload.len() as u32);
                self.data(frame, now)?;
                if is_end { self.stream_ended(frame.stream) } else { Ok(()) }
            }
            kind::HEADERS if is_end => self.stream_ended(frame.stream),
            kind::SETTINGS if frame.flags & frames::FLAG_ACK == 0 => {
                if let Some(window) = frames::initial_window(frame.payload) {
                    self.stream_window += window - self.stream_window_initial;
                    self.stream_window_initial = window;
                }
                frames::put_settings_ack(&mut self.out);
                Ok(())
            }
            kind::PING if frame.flags & frames::FLAG_ACK == 0 => {
                frames::put_pong(&mut self.out, frame.payload);
                Ok(())
            }
            kind::WINDOW_UPDATE => {
                let more = i64::from(frames::number(frame.payload));
                match frame.stream {
                    0 => self.window += more,
                    BATCH_STREAM => self.stream_window += more,
                    _ => {}
                }
                Ok(())
            }
            kind::RST_STREAM => {
                let code = frames::number(frame.payload);
                Err(format!("the server reset a call (HTTP/2 error {code})"))
            }
            kind::GOAWAY => Err("the server closes the connection".into()),
            kind::CONTINUATION => Err("headers over 16 KiB".into()),
            _ => Ok(()),
        }
    }

    fn give_window(&mut self, received: u32) {
        self.received += received;
        if self.received >= WINDOW_STEP {
            frames::put_window_update(&mut self.out, 0, self.received);
            if self.workload.carriage == Carriage::Batched {
                frames::put_window_update(&mut self.out, BATCH_STREAM, self.received);
            }
            self.received = 0;
        }
    }

    fn data(&mut self, frame: &Frame<'_>, now: Instant) -> Result<(), String> {
        let workload = self.workload;
        let mut messages = Vec::new();
        let each = &mut |message: &[u8]| {
            messages.push(workload.check(message)?);
            Ok(())
        };
        match workload.carriage {
            Carriage::Unary => {
                let slot = *self.streams.get(&frame.stream).ok_or("data of no open call")?;
                self.slots[slot].answer.feed(frame.payload, each)?;
                for _ in messages {
                    self.answered(slot, now)?;
                }
            }
            Carriage::Batched => {
                self.answers.feed(frame.payload, each)?;
                for message in messages {
                    self.answered_batch(message, now)?;
                }
            }
        }
        Ok(())
    }

    fn answered_batch(&mut self, message: Answered, now: Instant) -> Result<(), String> {
        match message {
            Answered::All => {
                let slot = self.order.pop_front().ok_or("an answer to nothing")?;
                for _ in 0..self.commands {
                    self.answered(slot, now)?;
                }
                self.idle.push(slot);
            }
            Answered::Commands(numbers) => {
                for number in numbers {
                    let slot = number as usize / self.commands;
                    self.answered(slot, now)?;
                    if self.slots[slot].unanswered == 0 {
                        self.idle.push(slot);
                    }
                }
            }
        }
        Ok(())
    }

    /// One more command of the slot has its answer.
    fn answered(&mut self, slot: usize, now: Instant) -> Result<(), String> {
        let slot = self.slots.get_mut(slot).ok_or("an answer to nothing")?;
        if slot.unanswered == 0 {
            return Err("a second answer to a command".into());
        }
        slot.unanswered -= 1;
        self.progress.answered(1, slot.sent, now);
        Ok(())
    }

    /// A unary call is over; a batch's stream never is.
    fn stream_ended(&mut self, stream: u32) -> Result<(), String> {
        match self.streams.remove(&stream) {
            Some(slot) if self.slots[slot].unanswered == 0 => {
                self.idle.push(slot);
                Ok(())
            }
            _ => Err(format!("{}: a call ended with an error status", self.workload.name())),
        }
    }
}

/// Runs a connection to `address` until the phase is [`Phase::Stop`], or all keys were sent, and everything is answered.
///
/// # Errors
/// What the server complains about, or why it cannot be reached.
pub(crate) async fn run(address: SocketAddr, tls: Option<net::Tls>, mut client: Client) -> Result<(), String> {
    let text = |error: std::io::Error| format!("{address}: {error}");
    let mut stream = net::Transport::dial(&address.to_string(), tls.as_ref()).await.map_err(text)?;
    let mut input = vec![0; INPUT_BYTES];
    let mut filled = 0;
    loop {
        client.fill(executor::now());
        if !client.out.is_empty() {
            stream.write_all(&client.out).await.map_err(text)?;
            stream.flush().await.map_err(text)?;
            client.out.clear();
        }
        if client.is_done() {
            return Ok(());
        }
        let read = stream.read(&mut input[filled..]).await.map_err(text)?;
        if read == 0 {
            return Err(format!("{address} closed the connection"));
        }
        filled += read;
        let taken = client.receive(&input[..filled], executor::now())?;
        input.copy_within(taken..filled, 0);
        filled -= taken;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deframe::framed;
    use std::time::Duration;

    const SENT: Instant = Instant(1_000);

    fn client(operation: Operation, carriage: Carriage, keys: Keys) -> Client {
        let mut client = Client::new(
            Workload::new(operation, carriage),
            &Context::default(),
            (2, if carriage == Carriage::Unary { 1 } else { 4 }),
            keys,
            Prng::new(1),
            Rc::new(Progress::new()),
        );
        client.progress.phase.set(Phase::Measure);
        client.out.clear();
        client
    }

    /// Frames that the client puts out.
    fn frames_out(client: &mut Client) -> Vec<(u8, u32, Vec<u8>)> {
        let bytes = std::mem::take(&mut client.out);
        let mut at = 0;
        let mut seen = Vec::new();
        while let Some((frame, length)) = frames::next_frame(&bytes[at..]) {
            seen.push((frame.kind, frame.stream, frame.payload.to_vec()));
            at += length;
        }
        assert_eq!(at, bytes.len());
        seen
    }

    const HEADERS_END: [u8; 5] = [0, 0, 0, kind::HEADERS, frames::FLAG_END_STREAM];

    fn trailers(stream: u32) -> Vec<u8> {
        [&HEADERS_END[..], &stream.to_be_bytes()].concat()
    }

    #[test]
    fn a_unary_slot_is_used_again_when_its_call_has_ended() {
        let keys = Keys::Random { count: 10 };
        let mut client = client(Operation::Echo, Carriage::Unary, keys);
        client.fill(SENT);
        let kinds: Vec<_> = frames_out(&mut client).iter().map(|frame| (frame.0, frame.1)).collect();
        assert_eq!(kinds, [(1, 1), (0, 1), (1, 3), (0, 3)]);
        let mut answer = Vec::new();
        frames::put_data(&mut answer, 3, &framed(b"echo"), false);
        let taken = client.receive(&answer, SENT + Duration::from_nanos(500));
        assert_eq!(taken, Ok(answer.len()));
        assert_eq!(client.progress.latency.borrow().count(), 1);
        client.fill(SENT);
        assert!(client.out.is_empty(), "the call has not ended");
        client.receive(&trailers(3), SENT).expect("a good end");
        client.fill(SENT);
        assert_eq!(frames_out(&mut client)[0].1, 5);
    }

    #[test]
    fn a_call_without_an_answer_is_an_error() {
        let keys = Keys::Random { count: 10 };
        let mut client = client(Operation::Echo, Carriage::Unary, keys);
        client.fill(SENT);
        assert!(client.receive(&trailers(1), SENT).is_err());
    }

    #[test]
    fn a_batch_may_be_answered_in_parts_and_out_of_order() {
        use proto::shallow::{Command, encode_batch_response, tag};
        let keys = Keys::EachOnce { count: 8 };
        let mut client = client(Operation::Put, Carriage::Batched, keys);
        client.fill(SENT);
        assert_eq!(frames_out(&mut client).len(), 3, "headers and two messages");
        for (ids, done) in [(&[7, 0, 1][..], false), (&[2, 6, 5, 4], false), (&[3], true)] {
            let command = |id: &u64| Command { id: *id, tag: tag::RAW_PUT, body: bytes::Bytes::new() };
            let commands: Vec<_> = ids.iter().map(command).collect();
            let mut answer = Vec::new();
            let message = framed(&encode_batch_response(&commands, None));
            frames::put_data(&mut answer, BATCH_STREAM, &message, false);
            client.receive(&answer, SENT).expect("answers");
            assert_eq!(client.is_done(), done);
        }
        assert_eq!(client.progress.commands.get(), 8);
        client.fill(SENT);
        assert!(client.out.is_empty(), "each key once");
    }

    #[test]
    fn a_second_answer_is_an_error() {
        let keys = Keys::Random { count: 10 };
        let mut client = client(Operation::Echo, Carriage::Batched, keys);
        client.fill(SENT);
        let mut answer = Vec::new();
        for _ in 0..3 {
            frames::put_data(&mut answer, BATCH_STREAM, &framed(b"echo"), false);
        }
        assert!(client.receive(&answer, SENT).is_err());
    }

    #[test]
    fn nothing_is_sent_over_the_window() {
        let keys = Keys::Random { count: 10 };
        let mut client = client(Operation::Put, Carriage::Batched, keys);
        client.stream_window = PAYLOAD_MAX as i64 - 1;
        client.fill(SENT);
        assert!(client.out.is_empty());
        let mut update = Vec::new();
        frames::put_window_update(&mut update, BATCH_STREAM, 1);
        client.receive(&update, SENT).expect("an update");
        client.fill(SENT);
        assert!(!client.out.is_empty());
    }

    #[test]
    fn pings_and_settings_are_answered() {
        let keys = Keys::Random { count: 10 };
        let mut client = client(Operation::Get, Carriage::Unary, keys);
        let ping = [&[0, 0, 8, kind::PING, 0, 0, 0, 0, 0][..], b"12345678"].concat();
        let settings = [0, 0, 6, kind::SETTINGS, 0, 0, 0, 0, 0, 0, 4, 0, 1, 0, 0];
        client.receive(&ping, SENT).expect("a ping");
        client.receive(&settings, SENT).expect("settings");
        let frames = frames_out(&mut client);
        assert_eq!(frames[0], (kind::PING, 0, b"12345678".to_vec()));
        assert_eq!(frames[1], (kind::SETTINGS, 0, Vec::new()));
        assert_eq!(client.stream_window, 65_536);
    }
}
