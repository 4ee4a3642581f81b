//! A node's disk, in memory: what a program sees, and what would be left of it if the power failed now.
//!
//! Bytes: a file has durable content, current content, and the writes that lie between (`file`). Names: changes show
//! at once and become durable in order, as with a journal; a power failure keeps a prefix of them. An operation that
//! changes names returns when they are durable, with all changes before them.

mod file;
pub(crate) mod fs;
mod handle;
mod log_file;

pub use handle::{DiskCounters, SimDisk};
pub(crate) use log_file::SimLogFile;

use super::answer::{Promise, promise};
use super::config::nanos;
use super::context;
use super::node::Node;
use super::process::Ending;
use super::timer::Event;
use super::world::{Note, World};
use base::Prng;
use file::File;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{self, ErrorKind};
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

/// Changes of names that may wait for their durability; the oldest are made durable beyond that.
const NAME_CHANGES_MAX: usize = 4096;

/// A shared file; handles keep it though its name is removed.
type FileRef = Rc<RefCell<File>>;

/// What a name stands for.
#[derive(Clone)]
enum Entry {
    Folder,
    File(FileRef),
}

type Names = BTreeMap<PathBuf, Entry>;

/// A change of one name; `None` removes it.
type Change = (PathBuf, Option<Entry>);

/// A file that is being created or replaced: not yet to be seen, but a power failure may leave some of it.
struct Birth {
    path: PathBuf,
    file: FileRef,
    /// Replaces what the path meant in one step, or is built in place.
    is_atomic: bool,
}

/// All that a node has on disk.
#[derive(Default)]
pub(super) struct Disk {
    names: Names,
    durable_names: Names,
    /// Changes of names that are not durable, the oldest first.
    changes: VecDeque<Change>,
    changes_total: u64,
    births: BTreeMap<u64, Birth>,
    births_total: u64,
    locks: BTreeSet<PathBuf>,
    /// No more than this is free, whatever is there.
    free_max: Option<u64>,
    fails_syncs: bool,
    slow: Duration,
    counters: DiskCounters,
}

impl Disk {
    fn change(&mut self, path: &Path, entry: Option<Entry>) {
        apply(&mut self.names, (path.to_owned(), entry.clone()));
        self.changes.push_back((path.to_owned(), entry));
        self.changes_total += 1;
        if self.changes.len() > NAME_CHANGES_MAX {
            self.settle(1);
        }
    }

    /// Makes the oldest `count` changes of names durable.
    fn settle(&mut self, count: usize) {
        for change in self.changes.drain(..count) {
            apply(&mut self.durable_names, change);
        }
    }

    /// Makes the changes up to the numbered one durable.
    fn settle_to(&mut self, change: u64) {
        let settled = self.changes_total - self.changes.len() as u64;
        self.settle(change.saturating_sub(settled) as usize);
    }

    fn is_folder(&self, path: &Path) -> bool {
        is_root(path) || matches!(self.names.get(path), Some(Entry::Folder))
    }

    fn file(&self, path: &Path) -> io::Result<FileRef> {
        match self.names.get(path) {
            Some(Entry::File(file)) => Ok(file.clone()),
            Some(Entry::Folder) => Err(ErrorKind::IsADirectory.into()),
            None if is_root(path) => Err(ErrorKind::IsADirectory.into()),
            None => Err(ErrorKind::NotFound.into()),
        }
    }

    /// The paths directly or indirectly below `path`.
    fn below<'a>(&'a self, path: &'a Path) -> impl Iterator<Item = (&'a PathBuf, &'a Entry)> + 'a {
        self.names
            .range::<Path, _>((std::ops::Bound::Excluded(path), std::ops::Bound::Unbounded))
            .take_while(move |(name, _)| name.starts_with(path))
    }

    fn used_bytes(&self) -> u64 {
        let lens = self.names.values().map(|entry| match entry {
            Entry::File(file) => file.borrow().len(),
            Entry::Folder => 0,
        });
        lens.sum::<u64>() + self.births.values().map(|birth| birth.file.borrow().len()).sum::<u64>()
    }

    fn free_bytes(&self, capacity: u64) -> u64 {
        capacity.saturating_sub(self.used_bytes()).min(self.free_max.unwrap_or(u64::MAX))
    }

    fn is_full(&self) -> bool {
        self.free_max == Some(0)
    }

    /// Refuses a file of `len` bytes if the disk is full or would be, or if its folder is missing.
    fn check_room(&self, path: &Path, len: u64, capacity: u64) -> io::Result<()> {
        if !path.parent().is_some_and(|folder| self.is_folder(folder)) {
            return Err(ErrorKind::NotFound.into());
        }
        if self.is_folder(path) {
            return Err(ErrorKind::IsADirectory.into());
        }
        // A full disk has no room for a name either.
        if self.is_full() || len > self.free_bytes(capacity) {
            return Err(ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    fn begin_birth(&mut self, path: &Path, file: FileRef, is_atomic: bool) -> u64 {
        self.births_total += 1;
        let path = path.to_owned();
        self.births.insert(self.births_total, Birth { path, file, is_atomic });
        self.births_total
    }

    /// The file is there, and durable with every name before it.
    fn finish_birth(&mut self, birth: u64) {
        if let Some(Birth { path, file, .. }) = self.births.remove(&birth) {
            self.change(&path, Some(Entry::File(file)));
            self.settle_to(self.changes_total);
        }
    }

    /// The power fails: a prefix of the names survives, and of the bytes what the seed leaves.
    fn crash(&mut self, prng: &mut Prng) -> u64 {
        self.locks.clear();
        self.settle(prng.below(self.changes.len() as u64 + 1) as usize);
        self.changes.clear();
        self.names = self.durable_names.clone();
        self.interrupt_births(prng);
        self.settle(self.changes.len());
        let mut marks = 0u64;
        for entry in self.durable_names.values() {
            if let Entry::File(file) = entry {
                let survivor = file.borrow().after_crash(prng);
                marks = marks.rotate_left(1) ^ survivor.mark();
                *file.borrow_mut() = survivor;
            }
        }
        marks
    }

    /// Files that were being created or replaced are there or not, or half done: one that replaces leaves its temporary
    /// file behind, another is cut short.
    fn interrupt_births(&mut self, prng: &mut Prng) {
        for birth in std::mem::take(&mut self.births).into_values() {
            let Birth { mut path, file, is_atomic } = birth;
            let whole = file.borrow().len();
            let fate = prng.below(3);
            if fate == 0 || !path.parent().is_some_and(|folder| self.is_folder(folder)) {
                continue;
            }
            if fate == 1 && is_atomic {
                path.as_mut_os_string().push(".tmp");
                file.borrow_mut().cut(prng.below(whole + 1));
            } else if fate == 1 {
                file.borrow_mut().cut(prng.below(whole / 4096 + 1) * 4096);
            }
            self.change(&path, Some(Entry::File(file)));
        }
    }
}

fn apply(names: &mut Names, (path, entry): Change) {
    match entry {
        Some(entry) => names.insert(path, entry),
        None => names.remove(&path),
    };
}

/// The path without `.` and `..`; both roots, absolute and relative, exist on every disk.
fn clean(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                out.pop();
            }
            other => out.push(other),
        }
    }
    out
}

/// Has the current node's disk do something after a while, and sync what names it changed before it answers.
fn begin<T: 'static>(work: impl FnOnce(&mut Disk) -> io::Result<T> + 'static) -> impl Future<Output = io::Result<T>> {
    let core = context::current();
    let (world, node) = (&core.world, core.node.clone());
    let (promise, answer) = promise();
    let after = world.disk_delay(&node);
    world.note(Note::Disk, after & 0xFFFF_FFFF);
    world.disk_later(&core.node, after, move |world| {
        let mut disk = node.disk.borrow_mut();
        let before = disk.changes_total;
        let result = work(&mut disk);
        let changes = disk.changes_total;
        drop(disk);
        if changes == before {
            return promise.keep(result);
        }
        let (after, owner) = (world.sync_delay(&node), node.clone());
        world.disk_later(&node, after, move |_| {
            let mut disk = owner.disk.borrow_mut();
            let failed = disk.fails_syncs;
            disk.counters.count_durable(failed);
            if !failed {
                disk.settle_to(changes);
            }
            drop(disk);
            promise.keep(if failed { Err(sync_error()) } else { result });
        });
    });
    answer
}

/// Starts a sync of what has completed so far; its outcome goes to `promise`.
fn start_sync(world: &World, node: &Rc<Node>, file: &FileRef, promise: Promise<io::Result<()>>) {
    let covered = file.borrow().begin_sync();
    let after = world.sync_delay(node);
    world.note(Note::Sync, covered);
    let (owner, file) = (node.clone(), file.clone());
    world.disk_later(node, after, move |_| {
        let failed = owner.disk.borrow().fails_syncs;
        file.borrow_mut().complete_sync(covered, failed);
        owner.disk.borrow_mut().counters.count_durable(failed);
        promise.keep(if failed { Err(sync_error()) } else { Ok(()) });
    });
}

fn sync_error() -> io::Error {
    io::Error::other("the disk fails syncs")
}

fn is_root(path: &Path) -> bool {
    path.as_os_str().is_empty() || path.parent().is_none()
}

impl World {
    /// Draws how long the disk takes for a small operation, in nanoseconds.
    fn disk_delay(&self, node: &Node) -> u64 {
        let drawn = self.config.disk.draw(&mut self.chance.disk.borrow_mut());
        drawn + nanos(node.disk.borrow().slow)
    }

    /// Draws how long a sync takes.
    fn sync_delay(&self, node: &Node) -> u64 {
        let drawn = self.config.disk_sync.draw(&mut self.chance.disk.borrow_mut());
        drawn + nanos(node.disk.borrow().slow)
    }

    /// Lets the disk finish something later. It does so though nobody waits, unless the power fails before.
    fn disk_later(&self, node: &Node, after: u64, done: impl FnOnce(&Rc<World>) + 'static) {
        self.after(after, Event::Disk { node: node.index, done: Box::new(done) });
    }

    /// Brings the disk to what the end of its process leaves of it. Operations under way are not ended by this.
    pub(super) fn end_disk(&self, node: &Node, ending: Ending) {
        let mut disk = node.disk.borrow_mut();
        let mut prng = self.chance.disk.borrow_mut();
        disk.locks.clear();
        match ending {
            Ending::PowerLoss => self.note(Note::Crash, disk.crash(&mut prng) >> 8),
            // A helper may have been done with it in the last moment.
            Ending::Killed if prng.one_in(2) => disk.interrupt_births(&mut prng),
            Ending::Exit | Ending::Killed => {}
        }
    }
}
