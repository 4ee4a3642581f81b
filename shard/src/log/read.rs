//! Reading entries and lifecycle records back.

use std::rc::Rc;

use base::RegionId;
use bytes::Bytes;

use super::block::{self, UNIT};
use super::record::{self, Lifecycle, LogEffect, LogEntry, Record};
use super::runs::{At, Run};
use super::{Disk, DiskFile, RaftLog};

/// Why entries cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The region has no log here.
    #[error("{0:?} has no log here")]
    NoSuchRegion(RegionId),
    /// The entries were truncated, or their segment was recycled.
    #[error("entry {index} of {region:?} is no longer in the log")]
    Compacted {
        /// The region.
        region: RegionId,
        /// The lowest index that was asked for.
        index: u64,
    },
    /// The log does not reach that far.
    #[error("entry {index} of {region:?} is not in the log")]
    Unavailable {
        /// The region.
        region: RegionId,
        /// The index that is missing.
        index: u64,
    },
    /// The segment cannot be read.
    #[error("a segment of the raft log cannot be read")]
    Io(#[from] std::io::Error),
    /// A durable block is no longer what was written: the peer is damaged.
    #[error("entry {index} of {region:?} is damaged on disk")]
    Damaged {
        /// The region.
        region: RegionId,
        /// The entry.
        index: u64,
    },
}

impl<D: Disk> RaftLog<D> {
    /// Reads entries from `low` (inclusive) to `high` (exclusive), as many as `max_bytes` hold but at least one.
    ///
    /// Cost: one read of up to 1 MiB, and a bit, per run. Recent entries are better kept by the caller.
    ///
    /// # Errors
    /// [`ReadError`]
    pub async fn entries(
        &self,
        region: RegionId,
        low: u64,
        high: u64,
        max_bytes: usize,
    ) -> Result<Vec<LogEntry>, ReadError> {
        let mut out = Vec::new();
        let mut bytes = 0;
        let mut at = low;
        while at < high && (out.is_empty() || bytes < max_bytes) {
            let run = self.locate(region, low, at)?;
            let found = self.read_run(region, run, at, high.min(run.next())).await?;
            let Some(found) = found else {
                // The segment was recycled while it was read; look where the entry is now, if it is.
                if self.locate(region, low, at)? == run {
                    return Err(ReadError::Damaged { region, index: at });
                }
                continue;
            };
            for entry in found {
                bytes += entry.data.len();
                if !out.is_empty() && bytes > max_bytes {
                    return Ok(out);
                }
                out.push(entry);
                at += 1;
            }
        }
        Ok(out)
    }

    fn locate(&self, region: RegionId, low: u64, index: u64) -> Result<Run, ReadError> {
        let state = self.state.borrow();
        let log = state.index.peers.get(&region);
        let log = log.ok_or(ReadError::NoSuchRegion(region))?;
        if index <= log.truncated.index {
            return Err(ReadError::Compacted { region, index: low });
        }
        log.runs.locate(index).copied().ok_or(ReadError::Unavailable { region, index })
    }

    /// The entries `[low, high)` of a run; `None` if its blocks do not hold them any more.
    pub(crate) async fn read_run(
        &self,
        region: RegionId,
        run: Run,
        low: u64,
        high: u64,
    ) -> Result<Option<Vec<LogEntry>>, ReadError> {
        let Some(blocks) = self.read_blocks(run.segment, run.start, run.end).await? else {
            return Ok(None);
        };
        let mut found: Vec<Option<LogEntry>> = vec![None; (high - low) as usize];
        for records in blocks {
            for framed in record::decode_all(records) {
                let Ok(framed) = framed else { return Ok(None) };
                if framed.copied && matches!(framed.record, Record::Lifecycle(_)) {
                    // It repeats entries as they were at the event; what still holds of them was copied by itself.
                    continue;
                }
                for_each_entries(&framed.record, region, |first, entries| {
                    let skip = low.saturating_sub(first);
                    let inside = (first + skip..high).zip(entries.iter().skip(skip as usize));
                    for (index, entry) in inside {
                        found[(index - low) as usize] = Some(entry.clone());
                    }
                });
            }
        }
        // Copies of their own, or each entry would keep its whole block in memory.
        let copy = |entry: LogEntry| LogEntry { data: Bytes::copy_from_slice(&entry.data), term: entry.term };
        let found: Option<Vec<LogEntry>> = found.into_iter().map(|entry| entry.map(copy)).collect();
        Ok(found.filter(|all| all.iter().all(|entry| entry.term == run.term)))
    }

    /// The lifecycle record of `event` in the block at `at`.
    pub(crate) async fn read_event(&self, event: u64, at: At) -> Result<Option<Lifecycle>, ReadError> {
        let blocks = self.read_blocks(at.segment, at.unit, at.unit).await?;
        let records = blocks.into_iter().flatten().flat_map(record::decode_all);
        Ok(records
            .filter_map(|framed| match framed {
                Ok(framed) => Some(framed.record),
                Err(_) => None,
            })
            .find_map(|record| match record {
                Record::Lifecycle(lifecycle) if lifecycle.event == event => Some(lifecycle),
                _ => None,
            }))
    }

    /// The records of the whole blocks that begin at `start ..= end` of a segment; `None` if the segment is gone.
    async fn read_blocks(&self, segment: u64, start: u32, end: u32) -> Result<Option<Vec<Bytes>>, ReadError> {
        // Taken before the read: a block may become durable, and leave the memory, while it runs.
        let (memory, durable_end, file) = self.blocks_in_memory(segment, start, end);
        let mut blocks = Vec::new();
        if start < durable_end {
            let Some(file) = file else { return Ok(None) };
            let last = end.min(durable_end - 1);
            self.read_from_file(&*file, segment, start, last, &mut blocks).await?;
        }
        for records in memory {
            match records {
                Some(records) => blocks.push(records),
                None => return Ok(None),
            }
        }
        Ok(Some(blocks))
    }

    /// Blocks of the range that are not durable yet, the first unit that is not, and the segment's file.
    #[allow(clippy::type_complexity, reason = "three things that must be seen at one moment, used by the caller alone")]
    fn blocks_in_memory(&self, segment: u64, start: u32, end: u32) -> (Vec<Option<Bytes>>, u32, Option<Rc<D::File>>) {
        let state = self.state.borrow();
        let mut records = Vec::new();
        let mut first = u32::MAX;
        let closed = state.closed.iter().filter(|block| block.at.segment == segment);
        for block in closed {
            first = first.min(block.at.unit);
            if (start..=end).contains(&block.at.unit) {
                let payload = block.payload.clone();
                records.push(block::unescape(payload, block.length, block.escapes));
            }
        }
        if let Some(open) = state.open.as_ref().filter(|open| open.at.segment == segment) {
            first = first.min(open.at.unit);
            if (start..=end).contains(&open.at.unit) {
                records.push(Some(Bytes::copy_from_slice(&open.records)));
            }
        }
        let file = state.segments.get(&segment).map(|s| Rc::clone(&s.file));
        (records, first, file)
    }

    /// Appends the records of the blocks that begin at `start ..= last`. A block that is not whole is left out: after
    /// damage others around it are still read, and whoever reads sees what is missing.
    async fn read_from_file(
        &self,
        file: &D::File,
        segment: u64,
        start: u32,
        last: u32,
        blocks: &mut Vec<Bytes>,
    ) -> Result<(), ReadError> {
        let units = u32::try_from(file.len_bytes() / UNIT as u64).unwrap_or(u32::MAX);
        let mut reach = (last + block::units_bound(self.config.block_bytes)).min(units);
        loop {
            let len = (reach - start) as usize * UNIT;
            let bytes = file.read_at(u64::from(start) * UNIT as u64, len).await?;
            let before = blocks.len();
            let mut unit = start;
            while unit <= last {
                let at = (unit - start) as usize * UNIT;
                let block = match block::parse(self.shard, unit, &bytes.as_slice()[at..]) {
                    block::Parsed::Block(header) if header.segment == segment => {
                        block::records(&header, &bytes.as_slice()[at..]).map(|records| (records, header.units()))
                    }
                    _ => None,
                };
                match block {
                    Some((records, block_units)) => {
                        blocks.push(records);
                        unit += block_units;
                    }
                    // A block longer than most, perhaps: read to the end of the segment.
                    None if reach < units => break,
                    None => unit += 1,
                }
            }
            if unit > last {
                return Ok(());
            }
            blocks.truncate(before);
            reach = units;
        }
    }
}

/// Calls `each` with the entries of `region` in a record, and the index of the first.
fn for_each_entries(record: &Record, region: RegionId, mut each: impl FnMut(u64, &[LogEntry])) {
    match record {
        Record::Entries { region: of, first_index, entries, .. } if *of == region => each(*first_index, entries),
        Record::Lifecycle(lifecycle) => {
            for effect in &lifecycle.effects {
                if let LogEffect::Start { region: of, truncated, entries, .. } = effect
                    && *of == region
                {
                    each(truncated.index + 1, entries);
                }
            }
        }
        _ => {}
    }
}
