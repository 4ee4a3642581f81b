//! Recycling segments, copying forward what still holds, and keeping spare segments ready.
//!
//! Segments are freed from the oldest on. The steps keep this order, each durable before the next: what still holds
//! is at the head of the log; a block says that the old segments are not needed; only then are they written over.

#![allow(clippy::await_holding_refcell_ref, reason = "each borrow is dropped by hand before its await")]

use std::io;

use base::RegionId;

use super::block::Flags;
use super::record::Record;
use super::write::Reserve;
use super::{Disk, DiskFile, LogError, RaftLog};

/// Copies are written out when this much is pending, so that the core is not held for long and others may commit.
const COPY_BYTES: u64 = 64 << 10;
/// Regions that are looked at without a pause.
const REGIONS_PER_LOOK: usize = 512;

/// What [`RaftLog::maintain`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Maintained {
    /// Segments that were freed.
    pub segments_freed: u64,
    /// Segments whose live records were copied forward.
    pub segments_copied: u64,
    /// The log is about twice its cap or the disk is full, but most of the log is live: only a flush helps.
    pub flush_needed: bool,
    /// There is no room for the spare segments.
    pub disk_full: bool,
}

impl<D: Disk> RaftLog<D> {
    /// Whether [`maintain`](Self::maintain) has something to do. Cheap; to be asked every now and then.
    pub fn wants_maintenance(&self) -> bool {
        let state = self.state.borrow();
        state.check().is_ok()
            && (state.holds_unneeded()
                || state.used_bytes() > self.config.copy_above_bytes()
                || state.free.len() < self.config.spare_segments
                || !state.discard.is_empty())
    }

    /// Frees the segments in which nothing is live, copies the live remains of the oldest ones forward when the log
    /// is about twice its cap or there is no room for spares, and makes or removes spare segments. A call during another one does nothing.
    ///
    /// # Errors
    /// As [`commit`](Self::commit).
    pub async fn maintain(&self) -> Result<Maintained, LogError> {
        let mut done = Maintained::default();
        if self.maintaining.replace(true) {
            return Ok(done);
        }
        let _reset = Reset(&self.maintaining);
        self.state.borrow().check()?;
        done.segments_freed += self.free_segments().await?;
        // Each round moves on by a segment; more rounds than segments would only turn in a circle.
        let rounds = self.state.borrow().segments.len();
        for _ in 0..rounds {
            if self.used_bytes() <= self.config.copy_above_bytes() || !self.free_oldest(&mut done).await? {
                break;
            }
        }
        self.keep_spares(&mut done).await?;
        if done.disk_full {
            match self.free_oldest(&mut done).await {
                Ok(true) => self.keep_spares(&mut done).await?,
                // No room even for the copies.
                Ok(false) | Err(LogError::DiskFull(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    /// Copies what is live in the oldest segment forward, and frees it; false if that would gain too little.
    async fn free_oldest(&self, done: &mut Maintained) -> Result<bool, LogError> {
        if self.live_bytes() > self.used_bytes() / 2 {
            done.flush_needed = true;
            return Ok(false);
        }
        let (oldest, newest) = {
            let state = self.state.borrow();
            (state.first_needed(), state.durable_segment)
        };
        if oldest >= newest {
            return Ok(false);
        }
        self.copy_forward(oldest).await?;
        done.segments_copied += 1;
        done.segments_freed += self.free_segments().await?;
        Ok(true)
    }

    /// Copies all that holds into new segments and frees the old ones.
    pub(crate) async fn copy_all(&self) -> Result<(), LogError> {
        self.write_out(Some(Flags::OPEN), Reserve::Take).await?;
        let newest = self.state.borrow().durable_segment;
        loop {
            let oldest = self.state.borrow().index.ledger.first_segment();
            match oldest {
                Some(oldest) if oldest < newest => self.copy_forward(oldest).await?,
                _ => break,
            }
        }
        self.free_segments().await?;
        Ok(())
    }

    async fn free_segments(&self) -> Result<u64, LogError> {
        let (needed, truncations) = {
            let state = self.state.borrow();
            if !state.holds_unneeded() {
                return Ok(0);
            }
            let needed = state.first_needed();
            (needed, state.index.truncations_below(needed))
        };
        for record in truncations {
            self.state.borrow_mut().append(record, true)?;
            self.commit_copies(COPY_BYTES).await?;
        }
        self.commit_copies(0).await?;
        self.state.borrow_mut().oldest = needed;
        self.write_out(Some(Flags::MARK), Reserve::Take).await?;
        let mut state = self.state.borrow_mut();
        let kept = state.segments.split_off(&needed);
        let freed = std::mem::replace(&mut state.segments, kept);
        let count = freed.len() as u64;
        freed.into_values().for_each(|file| state.put_aside(file));
        Ok(count)
    }

    /// Appends again all that is live in a segment, durably.
    async fn copy_forward(&self, segment: u64) -> Result<(), LogError> {
        let mut after = None;
        loop {
            let regions = {
                let state = self.state.borrow();
                state.index.regions_in(segment, after, REGIONS_PER_LOOK)
            };
            let Some(&last) = regions.last() else { break };
            for region in regions {
                self.copy_region(region, segment).await?;
                self.commit_copies(COPY_BYTES).await?;
            }
            after = Some(last);
        }
        let events = self.state.borrow().index.events_in(segment);
        for (event, at) in events {
            let lifecycle = self.read_event(event, at).await.map_err(|error| self.fail(&error.to_string()))?;
            let mut state = self.state.borrow_mut();
            if state.index.event_at(event) != Some(at) {
                continue;
            }
            let Some(lifecycle) = lifecycle else {
                drop(state);
                return Err(self.fail(&format!("lifecycle event {event} is damaged on disk")));
            };
            state.append(Record::Lifecycle(lifecycle), true)?;
            drop(state);
            self.commit_copies(COPY_BYTES).await?;
        }
        self.commit_copies(0).await
    }

    async fn copy_region(&self, region: RegionId, segment: u64) -> Result<(), LogError> {
        loop {
            let run = {
                let mut state = self.state.borrow_mut();
                for record in state.index.small_records_in(region, segment) {
                    state.append(record, true)?;
                }
                let log = state.index.peers.get(&region);
                log.and_then(|log| {
                    let low = log.released() + 1;
                    let mut runs = log.runs.iter();
                    let run = runs.find(|run| run.live && run.segment == segment)?;
                    Some((*run, low.max(run.first)))
                })
            };
            let Some((run, low)) = run else { return Ok(()) };
            let entries = self.read_run(region, run, low, run.next()).await;
            let entries = entries.map_err(|error| self.fail(&error.to_string()))?;
            let mut state = self.state.borrow_mut();
            let Some(log) = state.index.peers.get(&region) else {
                return Ok(());
            };
            if log.runs.locate(low) != Some(&run) {
                // It was cut, truncated or flushed while it was read.
                continue;
            }
            let Some(entries) = entries else {
                drop(state);
                return Err(self.fail(&format!("entry {low} of {region:?} is damaged on disk")));
            };
            let peer = log.peer;
            state.append(Record::Entries { region, peer, first_index: low, entries }, true)?;
            drop(state);
            self.commit_copies(COPY_BYTES).await?;
        }
    }

    /// Commits if more than `limit` bytes are pending.
    async fn commit_copies(&self, limit: u64) -> Result<(), LogError> {
        if self.pending_bytes() > limit {
            self.write_out(None, Reserve::Take).await?;
        }
        Ok(())
    }

    /// Fails the log for ever.
    fn fail(&self, what: &str) -> LogError {
        let error = LogError::Failed(what.to_owned());
        self.state.borrow_mut().refusal = Some(error.clone());
        error
    }

    async fn keep_spares(&self, done: &mut Maintained) -> Result<(), LogError> {
        done.disk_full = false;
        loop {
            let (excess, missing) = {
                let mut state = self.state.borrow_mut();
                let room = (2 * self.config.replay_cap_bytes).saturating_sub(state.used_bytes());
                let room = usize::try_from(room / self.config.segment_bytes).unwrap_or(usize::MAX);
                let spares = self.config.spare_segments.max(1);
                let excess = match state.discard.pop() {
                    None if state.free.len() > room.max(spares) => state.free.pop(),
                    discarded => discarded,
                };
                (excess, state.free.len() < spares)
            };
            if let Some(segment) = excess {
                let name = segment.name.clone();
                drop(segment);
                self.disk.remove(&name).await.map_err(|error| self.fail(&error.to_string()))?;
            } else if missing {
                match self.create_file(self.config.segment_bytes).await {
                    Ok(segment) => self.state.borrow_mut().free.push(segment),
                    Err(error) if is_full(&error) => {
                        done.disk_full = true;
                        return Ok(());
                    }
                    Err(error) => return Err(self.fail(&error.to_string())),
                }
            } else {
                return Ok(());
            }
        }
    }
}

impl<F: DiskFile> super::write::State<F> {
    /// The oldest segment that must stay: the first with something live in it, at most that of the last durable block.
    fn first_needed(&self) -> u64 {
        let live = self.index.ledger.first_segment();
        live.unwrap_or(u64::MAX).min(self.durable_segment).max(self.oldest)
    }

    /// Whether there are segments below the oldest that must stay.
    fn holds_unneeded(&self) -> bool {
        let first = self.segments.first_key_value();
        first.is_some_and(|(&number, _)| number < self.first_needed())
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

struct Reset<'a>(&'a std::cell::Cell<bool>);

impl Drop for Reset<'_> {
    fn drop(&mut self) {
        self.0.set(false);
    }
}
