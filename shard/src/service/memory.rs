//! What this core remembers of transactional reads and of locks on their way, and from when on that is all there is.
//!
//! Whoever served a region before it came here may have read it at higher timestamps than this core knows: its leader on
//! another node, another core, the leader of what was merged into it. So whenever a region begins to be served here
//! ([`CoreHost::void_timestamps`]), the first transaction that picks its own commit timestamp takes a fresh one of the
//! placement driver, which is above all reads that were answered before.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use base::{CoreId, Instant, RegionId};
use bytes::Bytes;
use mvcc::txn::{Lock, MemoryLocks, ReadOptions, TimeStamp, TxnError};

use crate::core::{Control, CoreHost, RegionError, reply};
use crate::engine::Engine;

/// How long a transaction waits for the placement driver. One that restarts is back by then.
const WAIT: Duration = Duration::from_secs(1);

/// How far ahead of the placement driver's clock a client's timestamp may be (`max-ts.max-drift`).
const DRIFT_MS_MAX: u64 = 60_000;

/// One core's memory.
#[derive(Default)]
pub(crate) struct TxnMemory {
    locks: RefCell<MemoryLocks>,
    /// The [`CoreHost::clock_life`] that `max_ts` covers.
    synced_in: Cell<Option<u64>>,
    /// The newest timestamp that came from the placement driver, and when.
    newest: Cell<Option<(TimeStamp, Instant)>>,
}

/// Locks in memory, there until this is dropped.
pub(crate) struct InMemory<'a> {
    memory: &'a TxnMemory,
    keys: Vec<Bytes>,
}

impl Drop for InMemory<'_> {
    fn drop(&mut self) {
        self.memory.locks.borrow_mut().remove(&self.keys);
    }
}

impl TxnMemory {
    /// Somebody is about to read at `ts`: `max_ts` rises. In the same moment, without an await in between, the reader
    /// looks at the locks and takes its snapshot.
    pub(crate) fn read_at(&self, ts: TimeStamp) {
        self.locks.borrow_mut().read_at(ts);
    }

    /// Whether a read of a key may go on.
    pub(crate) fn check(&self, key: &Bytes, options: &ReadOptions) -> Result<(), TxnError> {
        self.locks.borrow().check(key, options)
    }

    /// Whether a read of the encoded keys `[start, end)` may go on.
    pub(crate) fn check_range(&self, start: &[u8], end: &[u8], options: &ReadOptions) -> Result<(), TxnError> {
        self.locks.borrow().check_range(start, end, options)
    }

    /// Whether a search for locks would miss one that is on its way.
    pub(crate) fn check_scan_lock(&self, start: &[u8], end: &[u8], max: TimeStamp) -> Result<(), TxnError> {
        self.locks.borrow().check_scan_lock(start, end, max)
    }

    /// The highest timestamp that anybody read at.
    pub(crate) fn max_ts(&self) -> TimeStamp {
        self.locks.borrow().max_ts()
    }

    /// How many locks there are.
    pub(crate) fn len(&self) -> usize {
        self.locks.borrow().len()
    }

    /// From now on readers meet these locks.
    pub(crate) fn hold(&self, locks: &[(Bytes, Lock)]) -> InMemory<'_> {
        self.locks.borrow_mut().insert(locks);
        InMemory { memory: self, keys: locks.iter().map(|(key, _)| key.clone()).collect() }
    }

    /// Whether `max_ts` covers all reads of what this core serves.
    pub(crate) fn is_synced<E: Engine>(&self, host: &CoreHost<E>) -> bool {
        self.synced_in.get() == Some(host.clock_life())
    }

    /// Waits until [`is_synced`](Self::is_synced).
    ///
    /// # Errors
    /// [`RegionError::MaxTimestampNotSynced`] if the placement driver does not answer in time.
    pub(crate) async fn sync<E: Engine>(&self, host: &CoreHost<E>, region: RegionId) -> Result<(), RegionError> {
        let started = executor::now();
        while !self.is_synced(host) {
            let life = host.clock_life();
            let left = WAIT.saturating_sub(executor::now().since(started));
            let ts = self.fetch(host, left).await.map_err(|_| RegionError::MaxTimestampNotSynced(region))?;
            self.read_at(ts);
            self.synced_in.set(Some(life));
        }
        Ok(())
    }

    /// Whether a client's timestamp may be from the placement driver: one far in the future would force all commits
    /// behind it.
    ///
    /// # Errors
    /// [`RegionError::InvalidMaxTs`], [`RegionError::ServerIsBusy`] if the placement driver does not answer.
    pub(crate) async fn allow<E: Engine>(&self, host: &CoreHost<E>, ts: TimeStamp) -> Result<(), RegionError> {
        if ts.is_max() || self.is_plausible(ts) {
            return Ok(());
        }
        self.fetch(host, WAIT)
            .await
            .map_err(|why| RegionError::ServerIsBusy { reason: format!("timestamps: {why}"), backoff_ms: 100 })?;
        if self.is_plausible(ts) { Ok(()) } else { Err(RegionError::InvalidMaxTs(ts.0)) }
    }

    fn is_plausible(&self, ts: TimeStamp) -> bool {
        self.newest.get().is_some_and(|(newest, at)| {
            let since = executor::now().since(at).as_millis() as u64;
            ts.millis() <= newest.millis().saturating_add(since).saturating_add(DRIFT_MS_MAX)
        })
    }

    async fn fetch<E: Engine>(&self, host: &CoreHost<E>, wait: Duration) -> Result<TimeStamp, String> {
        let (place, answer) = reply();
        host.control(CoreId(0), Control::Timestamps { count: 1, reply: place });
        let answer = executor::timeout(wait, answer.wait()).await;
        let answer = answer.map_err(|_| "the placement driver does not answer".to_owned())?;
        let ts = TimeStamp(answer.ok_or_else(|| "the node is closing".to_owned())??);
        if self.newest.get().is_none_or(|(newest, _)| newest < ts) {
            self.newest.set(Some((ts, executor::now())));
        }
        Ok(ts)
    }
}
