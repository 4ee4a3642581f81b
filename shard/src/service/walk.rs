//! Scans that a request walks through in slices, on the core or a helper.

use mvcc::raw::{ScanState, Step};
use mvcc::txn::{LockScan, Scan, TxnError};
use mvcc::{ReadError, ReadView};

/// A scan under way that holds no view.
pub(super) trait Walk: Send + 'static {
    /// Takes some `entries` of the view.
    fn step(&mut self, view: &impl ReadView, entries: usize) -> Result<Step, ReadError>;
    /// Bytes of keys and values that are held.
    fn bytes(&self) -> u64;
    /// Entries that were looked at.
    fn stepped(&self) -> u64;
}

impl Walk for ScanState {
    fn step(&mut self, view: &impl ReadView, entries: usize) -> Result<Step, ReadError> {
        ScanState::step(self, view, entries)
    }

    fn bytes(&self) -> u64 {
        ScanState::bytes(self)
    }

    fn stepped(&self) -> u64 {
        ScanState::stepped(self)
    }
}

/// A scan of a transaction, which ends with its first error.
pub(super) struct TxnWalk {
    pub(super) scan: Scan,
    pub(super) error: Option<TxnError>,
}

impl Walk for TxnWalk {
    fn step(&mut self, view: &impl ReadView, entries: usize) -> Result<Step, ReadError> {
        match self.scan.step(view, entries as u64) {
            Ok(step) => Ok(step),
            Err(TxnError::Read(error)) => Err(error),
            Err(error) => {
                self.error = Some(error);
                Ok(Step::Done)
            }
        }
    }

    fn bytes(&self) -> u64 {
        self.scan.stats().bytes
    }

    fn stepped(&self) -> u64 {
        self.scan.stats().stepped
    }
}

impl Walk for LockScan {
    fn step(&mut self, view: &impl ReadView, entries: usize) -> Result<Step, ReadError> {
        LockScan::step(self, view, entries as u64)
    }

    fn bytes(&self) -> u64 {
        self.held() as u64 * LOCK_BYTES
    }

    fn stepped(&self) -> u64 {
        LockScan::stepped(self)
    }
}

/// What a found lock takes, roughly.
const LOCK_BYTES: u64 = 512;

impl Walk for mvcc::txn::command::StartTsSearch {
    fn step(&mut self, view: &impl ReadView, entries: usize) -> Result<Step, ReadError> {
        mvcc::txn::command::StartTsSearch::step(self, view, entries as u64)
    }

    fn bytes(&self) -> u64 {
        0
    }

    fn stepped(&self) -> u64 {
        0
    }
}
