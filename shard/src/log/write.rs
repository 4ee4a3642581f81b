//! Buffering, placing and writing of blocks.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::rc::Rc;
use std::task::{Poll, Waker};

use base::{Instant, PeerId, RegionId};
use bytes::Bytes;
use executor::AlignedBuf;

use super::block::{self, Flags, Header, UNIT};
use super::record::{self, LogEffect, LogEntry};
use super::runs::At;
use super::{Disk, DiskFile, Index, LogConfig, LogError, RECORD_BYTES_MAX, RaftLog, Record};

/// What a commit did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Durable {
    /// Every block up to this sequence is durable.
    pub sequence: u64,
    /// Bytes that this commit wrote; 0 if another one had taken its records along.
    pub bytes: u64,
    /// Writes that this commit made; more than one only across segments.
    pub writes: u64,
}

/// A segment file in use.
pub(crate) struct Segment<F> {
    pub(crate) name: String,
    pub(crate) file: Rc<F>,
}

/// A block that still takes records.
pub(crate) struct OpenBlock {
    pub(crate) at: At,
    pub(crate) records: Vec<u8>,
    count: u32,
}

/// A block whose place and records are settled, until it is durable.
pub(crate) struct ClosedBlock {
    pub(crate) at: At,
    pub(crate) payload: Bytes,
    pub(crate) length: u32,
    pub(crate) escapes: u32,
    count: u32,
    event: u64,
    flags: Flags,
}

impl ClosedBlock {
    pub(crate) fn units(&self) -> u32 {
        let (length, escapes) = (self.length, self.escapes);
        Header { length, escapes, ..Header::default() }.units()
    }
}

/// Where the next block goes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tail {
    pub(crate) segment: u64,
    pub(crate) unit: u32,
    /// Units of the segment; 0 before the first one.
    pub(crate) units: u32,
}

/// All that changes in a log.
pub(crate) struct State<F> {
    pub(crate) index: Index,
    pub(crate) segments: BTreeMap<u64, Segment<F>>,
    /// Segments that blocks were placed in, without a file yet: number and units.
    pub(crate) planned: BTreeMap<u64, u32>,
    /// Files of the ordinary length that hold nothing needed.
    pub(crate) free: Vec<Segment<F>>,
    /// Files of another length that hold nothing needed, to be removed.
    pub(crate) discard: Vec<Segment<F>>,
    pub(crate) segment_units: u32,
    block_bytes: usize,
    pub(crate) next_segment: u64,
    pub(crate) next_name: u64,
    pub(crate) tail: Tail,
    pub(crate) open: Option<OpenBlock>,
    pub(crate) closed: VecDeque<ClosedBlock>,
    /// Sequence and CRC of the last block that was written.
    pub(crate) sequence: u64,
    pub(crate) previous: u32,
    pub(crate) durable: u64,
    /// Segment of the last durable block.
    pub(crate) durable_segment: u64,
    pub(crate) incarnation: u64,
    /// Segments below are not needed, as the blocks to come will say.
    pub(crate) oldest: u64,
    pub(crate) refusal: Option<LogError>,
    /// Whether a later block witnesses that the last one with records is durable.
    pub(crate) sealed: bool,
    pub(crate) last_write: Instant,
}

impl<F> State<F> {
    pub(crate) fn new(config: &LogConfig) -> State<F> {
        State {
            index: Index::default(),
            segments: BTreeMap::new(),
            planned: BTreeMap::new(),
            free: Vec::new(),
            discard: Vec::new(),
            segment_units: u32::try_from(config.segment_bytes / UNIT as u64).expect("a segment is below 16 TiB"),
            block_bytes: config.block_bytes,
            next_segment: 1,
            next_name: 1,
            tail: Tail::default(),
            open: None,
            closed: VecDeque::new(),
            sequence: 0,
            previous: 0,
            durable: 0,
            durable_segment: 0,
            incarnation: 0,
            oldest: 1,
            refusal: None,
            sealed: true,
            last_write: Instant(0),
        }
    }

    pub(crate) fn check(&self) -> Result<(), LogError> {
        self.refusal.clone().map_or(Ok(()), Err)
    }

    /// Whether the record may follow what is in the log.
    pub(crate) fn check_record(&self, record: &Record) -> Result<(), LogError> {
        let stale = |region, peer| {
            if self.index.is_stale(region, peer) {
                return Err(LogError::StalePeer { region, peer });
            }
            Ok(())
        };
        match record {
            Record::HardState { region, peer, .. }
            | Record::Truncated { region, peer, .. }
            | Record::Damaged { region, peer, .. } => stale(*region, *peer),
            Record::Entries { region, peer, first_index, .. } => {
                stale(*region, *peer)?;
                self.check_follows(*region, *peer, *first_index)
            }
            Record::Lifecycle(lifecycle) => {
                for effect in &lifecycle.effects {
                    if let LogEffect::Start { region, peer, .. } = effect {
                        stale(*region, *peer)?;
                    }
                }
                Ok(())
            }
        }
    }

    fn check_follows(&self, region: RegionId, peer: PeerId, first_index: u64) -> Result<(), LogError> {
        let last_index = self.index.peers.get(&region).filter(|log| log.peer == peer).map_or(0, |log| log.last().index);
        if first_index > last_index + 1 {
            return Err(LogError::Gap { region, first_index, last_index });
        }
        Ok(())
    }

    /// Places a record in a block and in the index.
    pub(crate) fn append(&mut self, mut record: Record, copied: bool) -> Result<(), LogError> {
        if let Record::Lifecycle(lifecycle) = &mut record
            && !copied
        {
            self.index.keep_promises(lifecycle);
        }
        let Record::Entries { region, peer, first_index, entries } = record else {
            return self.append_whole(&record, copied);
        };
        if let Some(entry) = entries.iter().find(|entry| entry.data.len() + 64 > RECORD_BYTES_MAX) {
            return Err(LogError::TooLarge(entry.data.len()));
        }
        let mut first_index = first_index;
        for piece in pieces(entries, self.block_bytes) {
            let count = piece.len() as u64;
            let record = Record::Entries { region, peer, first_index, entries: piece };
            self.append_whole(&record, copied)?;
            first_index += count;
        }
        Ok(())
    }

    fn append_whole(&mut self, record: &Record, copied: bool) -> Result<(), LogError> {
        let mut bytes = Vec::new();
        record::encode(record, copied, &mut bytes);
        if bytes.len() > RECORD_BYTES_MAX {
            return Err(LogError::TooLarge(bytes.len()));
        }
        let full = self.open.as_ref().is_some_and(|open| {
            let length = open.records.len() + bytes.len();
            length > self.block_bytes || open.at.unit + block::units_bound(length) > self.tail.units
        });
        if full {
            self.close();
        }
        let mut open = match self.open.take() {
            Some(open) => open,
            None => OpenBlock {
                at: self.place(block::units_bound(bytes.len())),
                records: Vec::with_capacity(bytes.len()),
                count: 0,
            },
        };
        open.records.extend_from_slice(&bytes);
        open.count += 1;
        self.index.apply(record, copied, bytes.len(), open.at);
        self.open = Some(open);
        Ok(())
    }

    /// The place of the next block, which takes at most `units`: in the current segment, or at the start of a new one.
    fn place(&mut self, units: u32) -> At {
        if self.tail.unit + units > self.tail.units {
            let length = units.max(self.segment_units);
            self.tail = Tail { segment: self.next_segment, unit: 0, units: length };
            self.planned.insert(self.next_segment, length);
            self.next_segment += 1;
        }
        At { segment: self.tail.segment, unit: self.tail.unit }
    }

    /// Ends the open block, if there is one.
    fn close(&mut self) {
        if let Some(open) = self.open.take() {
            self.push_closed(open.at, open.records, open.count, Flags::DATA);
        }
    }

    fn push_closed(&mut self, at: At, mut records: Vec<u8>, count: u32, flags: Flags) {
        let length = records.len() as u32;
        let escapes = block::escape(&mut records);
        let closed = ClosedBlock {
            at,
            payload: Bytes::from(records),
            length,
            escapes,
            count,
            event: self.index.last_event,
            flags,
        };
        self.tail.unit = at.unit + closed.units();
        self.closed.push_back(closed);
    }

    pub(crate) fn pending_bytes(&self) -> u64 {
        let open = self.open.as_ref().map_or(0, |open| open.records.len());
        let closed: usize = self.closed.iter().map(|block| block.payload.len()).sum();
        (open + closed) as u64
    }

    fn planned_bytes(&self) -> u64 {
        let planned: u64 = self.planned.values().map(|&units| u64::from(units)).sum();
        planned * UNIT as u64
    }

    fn header(&self, block: &ClosedBlock, shard: u32) -> Header {
        Header {
            flags: block.flags,
            crc: 0,
            length: block.length,
            shard,
            previous: self.previous,
            segment: block.at.segment,
            unit: block.at.unit,
            records: block.count,
            incarnation: self.incarnation,
            sequence: self.sequence + 1,
            durable: self.durable,
            oldest: self.oldest,
            event: block.event,
            escapes: block.escapes,
        }
    }
}

impl<F: DiskFile> State<F> {
    pub(crate) fn used_bytes(&self) -> u64 {
        let files: u64 = self.segments.values().map(|s| s.file.len_bytes()).sum();
        files + self.planned_bytes()
    }

    pub(crate) fn free_bytes(&self) -> u64 {
        let files = self.free.iter().chain(&self.discard);
        files.map(|s| s.file.len_bytes()).sum()
    }

    /// Takes a file that holds nothing needed.
    pub(crate) fn put_aside(&mut self, segment: Segment<F>) {
        if segment.file.len_bytes() == u64::from(self.segment_units) * UNIT as u64 {
            self.free.push(segment);
        } else {
            self.discard.push(segment);
        }
    }

    /// The writes of all closed blocks, their number, and the sequence of the last one. Blocks in segments without a
    /// file, placed while another one was made, wait for the next commit.
    fn plan(&mut self, shard: u32) -> (Vec<Write<F>>, usize, u64) {
        let ready = self.closed.iter().take_while(|block| self.segments.contains_key(&block.at.segment)).count();
        let later = self.closed.split_off(ready);
        let writes = self.build(shard);
        self.closed.extend(later);
        (writes, ready, self.sequence)
    }

    /// Makes one buffer per segment out of all closed blocks, each with its header.
    fn build(&mut self, shard: u32) -> Vec<Write<F>> {
        let mut writes = Vec::new();
        let closed = std::mem::take(&mut self.closed);
        for blocks in Vec::from_iter(&closed).chunk_by(|a, b| a.at.segment == b.at.segment) {
            let first = blocks[0].at;
            let units: u32 = blocks.iter().map(|block| block.units()).sum();
            let mut buffer = AlignedBuf::zeroed(units as usize * UNIT);
            let mut rest = buffer.as_mut_slice();
            for block in blocks {
                let mut header = self.header(block, shard);
                let (out, after) = rest.split_at_mut(block.units() as usize * UNIT);
                block::write(&mut header, &block.payload, out);
                (self.sequence, self.previous) = (header.sequence, header.crc);
                rest = after;
            }
            writes.push(Write {
                file: Rc::clone(&self.segments[&first.segment].file),
                offset: u64::from(first.unit) * UNIT as u64,
                buffer,
            });
        }
        self.closed = closed;
        writes
    }
}

struct Write<F> {
    file: Rc<F>,
    offset: u64,
    buffer: AlignedBuf,
}

/// Cuts entries into records of about a block each.
fn pieces(entries: Vec<LogEntry>, block_bytes: usize) -> Vec<Vec<LogEntry>> {
    let mut pieces = vec![Vec::new()];
    let mut bytes = 0;
    for entry in entries {
        let len = entry.data.len() + 16;
        if bytes > 0 && bytes + len > block_bytes {
            pieces.push(Vec::new());
            bytes = 0;
        }
        bytes += len;
        pieces.last_mut().expect("never empty").push(entry);
    }
    pieces
}

/// Whether a commit may take the last spare segment.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reserve {
    Keep,
    Take,
}

impl<D: Disk> RaftLog<D> {
    /// Makes everything appended so far durable. Drive it to its end: dropped half-way it leaves the log failed.
    ///
    /// # Errors
    /// [`LogError::Failed`], and then for ever; [`LogError::DiskFull`]; [`LogError::Damaged`].
    pub async fn commit(&self) -> Result<Durable, LogError> {
        self.write_out(None, Reserve::Keep).await
    }

    /// Writes a block whose only content is that everything before it is durable, if [`next_seal`](Self::next_seal)
    /// is `Some`. It turns an undetectable loss of the last block into a detectable one.
    ///
    /// # Errors
    /// As [`commit`](Self::commit).
    pub async fn seal(&self) -> Result<Durable, LogError> {
        if self.next_seal().is_none() {
            return self.commit().await;
        }
        self.write_out(Some(Flags::SEAL), Reserve::Keep).await
    }

    /// Writes what is pending; with `flags`, a block without records if nothing is.
    pub(crate) async fn write_out(&self, flags: Option<Flags>, reserve: Reserve) -> Result<Durable, LogError> {
        let _turn = self.gate.enter().await;
        {
            let mut state = self.state.borrow_mut();
            state.check()?;
            state.close();
            if state.closed.is_empty() {
                let Some(flags) = flags else {
                    return Ok(Durable { sequence: state.durable, ..Durable::default() });
                };
                let at = state.place(1);
                state.push_closed(at, Vec::new(), 0, flags);
            }
        }
        self.give_files_to_planned_segments(reserve).await?;
        let (writes, blocks, sequence) = self.state.borrow_mut().plan(self.shard.0);
        let mut failure = FailIfDropped { state: &self.state, armed: true };
        let written = self.carry_out(writes).await;
        failure.armed = false;
        drop(failure);
        let mut state = self.state.borrow_mut();
        let (bytes, writes) = match written {
            Ok(done) => done,
            Err(error) => {
                let error = LogError::Failed(error.to_string());
                state.refusal = Some(error.clone());
                return Err(error);
            }
        };
        let last = state.closed.drain(..blocks).next_back();
        let empty = last.as_ref().is_some_and(|block| block.length == 0);
        state.durable_segment = last.map_or(state.durable_segment, |block| block.at.segment);
        state.durable = sequence;
        state.sealed = empty;
        state.last_write = self.disk.now();
        Ok(Durable { sequence, bytes, writes })
    }

    async fn carry_out(&self, writes: Vec<Write<D::File>>) -> io::Result<(u64, u64)> {
        let count = writes.len() as u64;
        let mut bytes = 0;
        for write in writes {
            bytes += write.buffer.len() as u64;
            write.file.write_durable(write.offset, write.buffer).await?;
        }
        Ok((bytes, count))
    }

    /// Gives a file to each segment that blocks were placed in.
    async fn give_files_to_planned_segments(&self, reserve: Reserve) -> Result<(), LogError> {
        loop {
            let (number, units, spare) = {
                let mut state = self.state.borrow_mut();
                let Some((&number, &units)) = state.planned.first_key_value() else {
                    return Ok(());
                };
                let ordinary = units == state.segment_units;
                let spare = (ordinary && state.free.len() > 1).then(|| state.free.remove(0));
                (number, units, spare)
            };
            let segment = match spare {
                Some(segment) => segment,
                None => self.another_file(units, reserve).await?,
            };
            let mut state = self.state.borrow_mut();
            state.planned.remove(&number);
            state.segments.insert(number, segment);
        }
    }

    async fn another_file(&self, units: u32, reserve: Reserve) -> Result<Segment<D::File>, LogError> {
        let error = match self.create_file(u64::from(units) * UNIT as u64).await {
            Ok(segment) => return Ok(segment),
            Err(error) => error,
        };
        let mut state = self.state.borrow_mut();
        if reserve == Reserve::Take && units == state.segment_units && !state.free.is_empty() {
            return Ok(state.free.remove(0));
        }
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Err(LogError::DiskFull(error.to_string())),
            _ => {
                let error = LogError::Failed(error.to_string());
                state.refusal = Some(error.clone());
                Err(error)
            }
        }
    }

    pub(crate) async fn create_file(&self, bytes: u64) -> io::Result<Segment<D::File>> {
        let name = {
            let mut state = self.state.borrow_mut();
            state.next_name += 1;
            super::disk::file_name(state.next_name - 1)
        };
        match self.disk.create(&name, bytes).await {
            Ok(file) => Ok(Segment { name, file: Rc::new(file) }),
            Err(error) => {
                // Best effort: a part of a file without a block in it is removed by the next open, too.
                let _ = self.disk.remove(&name).await;
                Err(error)
            }
        }
    }
}

/// Marks the log as failed when a commit is dropped between its write and its sync: what is durable is unknown then.
struct FailIfDropped<'a, F> {
    state: &'a RefCell<State<F>>,
    armed: bool,
}

impl<F> Drop for FailIfDropped<'_, F> {
    fn drop(&mut self) {
        if self.armed {
            let error = LogError::Failed("a commit was dropped half-way".to_owned());
            self.state.borrow_mut().refusal = Some(error);
        }
    }
}

/// Lets one caller in at a time.
#[derive(Default)]
pub(crate) struct Gate {
    taken: Cell<bool>,
    waiting: RefCell<VecDeque<Waker>>,
}

impl Gate {
    pub(crate) async fn enter(&self) -> Turn<'_> {
        std::future::poll_fn(|cx| {
            if self.taken.replace(true) {
                let mut waiting = self.waiting.borrow_mut();
                if !waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
                    waiting.push_back(cx.waker().clone());
                }
                return Poll::Pending;
            }
            Poll::Ready(())
        })
        .await;
        Turn(self)
    }
}

/// The right to write, until it is dropped.
pub(crate) struct Turn<'a>(&'a Gate);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.taken.set(false);
        // All of them look again: a waiter that was dropped must not swallow the call.
        self.0.waiting.borrow_mut().drain(..).for_each(|waker| waker.wake());
    }
}
