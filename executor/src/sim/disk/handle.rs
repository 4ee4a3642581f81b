//! A test's view of a node's disk.

use super::Entry;
use crate::sim::node::Node;
use crate::sim::world::{Note, World};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

/// What a disk did since the node was added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskCounters {
    /// Writes of log files and whole small files.
    pub writes_total: u64,
    /// Bytes in those writes.
    pub write_bytes_total: u64,
    /// Reads.
    pub reads_total: u64,
    /// Syncs that succeeded, writes with `LogSync::Dsync` and files created or replaced included.
    pub syncs_total: u64,
    /// Syncs that failed.
    pub sync_failures_total: u64,
}

impl DiskCounters {
    pub(super) fn count_write(&mut self, len: usize) {
        self.writes_total += 1;
        self.write_bytes_total += len as u64;
    }

    pub(super) fn count_durable(&mut self, failed: bool) {
        if failed {
            self.sync_failures_total += 1;
        } else {
            self.syncs_total += 1;
        }
    }
}

/// A node's disk: to look into, and to make it fail. It outlives the node's process.
#[derive(Clone)]
pub struct SimDisk {
    world: Rc<World>,
    node: Rc<Node>,
}

impl SimDisk {
    pub(in crate::sim) fn new(world: &Rc<World>, node: Rc<Node>) -> SimDisk {
        SimDisk { world: world.clone(), node }
    }

    /// All files with their lengths, sorted by path.
    pub fn files(&self) -> Vec<(PathBuf, u64)> {
        let disk = self.node.disk.borrow();
        let files = disk.names.iter().filter_map(|(path, entry)| match entry {
            Entry::File(file) => Some((path.clone(), file.borrow().len())),
            Entry::Folder => None,
        });
        files.collect()
    }

    /// What a program would read; `None` if there is no such file.
    pub fn bytes(&self, path: impl AsRef<Path>) -> Option<Vec<u8>> {
        let file = self.node.disk.borrow().file(&super::clean(path.as_ref())).ok()?;
        let file = file.borrow();
        Some(file.read(0, file.len() as usize))
    }

    /// What would be left if the power failed now and every write that is not durable were lost; `None` if the name
    /// itself is not durable.
    pub fn durable_bytes(&self, path: impl AsRef<Path>) -> Option<Vec<u8>> {
        match self.node.disk.borrow().durable_names.get(&super::clean(path.as_ref()))? {
            Entry::File(file) => Some(file.borrow().read_durable()),
            Entry::Folder => None,
        }
    }

    /// Writes to the file that are not durable; 0 if there is no such file.
    pub fn unsynced_writes(&self, path: impl AsRef<Path>) -> usize {
        let file = self.node.disk.borrow().file(&super::clean(path.as_ref()));
        file.map_or(0, |file| file.borrow().unsynced_writes())
    }

    /// Damages the file for good; what lies beyond its end is ignored. False if there is no such file.
    pub fn corrupt(&self, path: impl AsRef<Path>, offset: u64, bytes: &[u8]) -> bool {
        let file = self.node.disk.borrow().file(&super::clean(path.as_ref()));
        self.world.note(Note::Disk, offset);
        self.world.note_bytes(bytes);
        file.map(|file| file.borrow_mut().corrupt(offset, bytes)).is_ok()
    }

    /// What the disk did so far.
    pub fn counters(&self) -> DiskCounters {
        self.node.disk.borrow().counters
    }

    /// With true, nothing new fits: no file can be created or replaced. Preallocated files can still be written.
    pub fn set_full(&self, full: bool) {
        self.node.disk.borrow_mut().free_max = full.then_some(0);
    }

    /// From now on no more than `bytes` are free, however much is written: others take what is left, and the rest as
    /// it is freed. [`SimDisk::set_full`] undoes it.
    pub fn leave_free(&self, bytes: u64) {
        self.node.disk.borrow_mut().free_max = Some(bytes);
    }

    /// Adds so much to every operation from now on.
    pub fn slow(&self, by: Duration) {
        self.node.disk.borrow_mut().slow = by;
    }

    /// With true, everything that makes durable fails, and what it covered may be lost.
    pub fn fail_syncs(&self, fail: bool) {
        self.node.disk.borrow_mut().fails_syncs = fail;
    }
}
