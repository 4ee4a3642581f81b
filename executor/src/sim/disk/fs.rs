//! Folders and small files of the current node.
//!
//! Operations run to their end though nobody waits, as those of the helpers do. What changes a name is durable on
//! return, and may be on disk or not if the power fails before.

use super::file::File;
use super::{Disk, Entry, begin, clean, is_root, sync_error};
use crate::sim::answer::promise;
use crate::sim::context;
use crate::sim::node::Node;
use crate::sim::world::{Note, World};
use std::cell::RefCell;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// Creates a folder and those above it.
///
/// # Errors
/// `NotADirectory` if a file is in the way, `StorageFull`.
pub(crate) async fn create_dir_all(path: &Path) -> io::Result<()> {
    let path = clean(path);
    begin(move |disk| {
        let mut missing: Vec<&Path> = Vec::new();
        for folder in path.ancestors().take_while(|folder| !is_root(folder)) {
            match disk.names.get(folder) {
                Some(Entry::Folder) => break,
                Some(Entry::File(_)) => return Err(ErrorKind::NotADirectory.into()),
                None => missing.push(folder),
            }
        }
        if disk.is_full() && !missing.is_empty() {
            return Err(ErrorKind::StorageFull.into());
        }
        for folder in missing.into_iter().rev() {
            disk.change(folder, Some(Entry::Folder));
        }
        Ok(())
    })
    .await
}

/// The whole file.
///
/// # Errors
/// `NotFound`, or `IsADirectory`.
pub(crate) async fn read(path: &Path) -> io::Result<Vec<u8>> {
    let path = clean(path);
    begin(move |disk| {
        let file = disk.file(&path)?;
        disk.counters.reads_total += 1;
        let file = file.borrow();
        Ok(file.read(0, file.len() as usize))
    })
    .await
}

/// Replaces the file in one step.
///
/// # Errors
/// `NotFound` for its folder, `IsADirectory`, `StorageFull`, or a sync that fails.
pub(crate) async fn write_atomic(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let core = context::current();
    let path = clean(path);
    core.world.note_bytes(bytes);
    let birth = {
        let mut disk = core.node.disk.borrow_mut();
        disk.check_room(&path, bytes.len() as u64, core.world.config.disk_capacity_bytes)?;
        disk.counters.count_write(bytes.len());
        disk.begin_birth(&path, Rc::new(RefCell::new(File::holding(bytes))), true)
    };
    core.world.birth(&core.node, birth).await
}

/// Makes a file of zeros.
///
/// # Errors
/// `AlreadyExists`, `NotFound` for its folder, `StorageFull`, or a sync that fails.
pub(crate) async fn allocate(path: &Path, len: u64) -> io::Result<()> {
    let core = context::current();
    let path = clean(path);
    let birth = {
        let mut disk = core.node.disk.borrow_mut();
        disk.check_room(&path, len, core.world.config.disk_capacity_bytes)?;
        if disk.names.contains_key(&path) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        disk.begin_birth(&path, Rc::new(RefCell::new(File::zeroed(len))), false)
    };
    core.world.birth(&core.node, birth).await
}

/// Removes a file.
///
/// # Errors
/// `NotFound`, or `IsADirectory`.
pub(crate) async fn remove_file(path: &Path) -> io::Result<()> {
    let path = clean(path);
    begin(move |disk| {
        disk.file(&path)?;
        disk.change(&path, None);
        Ok(())
    })
    .await
}

/// Removes a folder with all that is in it, what is in it first.
///
/// # Errors
/// `NotFound`, or `NotADirectory`.
pub(crate) async fn remove_dir_all(path: &Path) -> io::Result<()> {
    let path = clean(path);
    begin(move |disk| {
        disk.check_folder(&path)?;
        let below: Vec<PathBuf> = disk.below(&path).map(|(name, _)| name.clone()).collect();
        below.iter().rev().for_each(|name| disk.change(name, None));
        disk.change(&path, None);
        Ok(())
    })
    .await
}

/// The names in a folder, sorted.
///
/// # Errors
/// `NotFound`, or `NotADirectory`.
pub(crate) async fn read_dir(path: &Path) -> io::Result<Vec<String>> {
    let path = clean(path);
    begin(move |disk| {
        disk.check_folder(&path)?;
        let here = disk.below(&path).filter(|(name, _)| name.parent() == Some(&path));
        let names = here.filter_map(|(name, _)| Some(name.file_name()?.to_string_lossy().into_owned()));
        let mut names: Vec<String> = names.collect();
        names.sort_unstable();
        Ok(names)
    })
    .await
}

/// True if there is a file or folder of this name.
///
/// # Errors
/// None so far; real disks have some.
pub(crate) async fn exists(path: &Path) -> io::Result<bool> {
    let path = clean(path);
    begin(move |disk| Ok(disk.is_folder(&path) || disk.names.contains_key(&path))).await
}

/// Holds a folder for this process; ends with the process or when dropped.
pub(crate) struct SimDirLock {
    node: Rc<Node>,
    run: u32,
    path: PathBuf,
}

/// Takes the lock of a folder, by a file `LOCK` in it.
///
/// # Errors
/// `WouldBlock` if it is held, `NotFound` if there is no such folder.
pub(crate) async fn lock_dir(path: &Path) -> io::Result<SimDirLock> {
    let core = context::current();
    let (path, folder) = (clean(path), clean(path));
    begin(move |disk| {
        disk.check_folder(&folder)?;
        let file = folder.join("LOCK");
        if !disk.names.contains_key(&file) {
            disk.change(&file, Some(Entry::File(Rc::default())));
        }
        if disk.locks.insert(folder) { Ok(()) } else { Err(ErrorKind::WouldBlock.into()) }
    })
    .await?;
    Ok(SimDirLock { node: core.node.clone(), run: core.run, path })
}

impl Drop for SimDirLock {
    fn drop(&mut self) {
        if self.node.run.get() == self.run {
            self.node.disk.borrow_mut().locks.remove(&self.path);
        }
    }
}

/// Capacity of the disk and what is available of it, in bytes.
///
/// # Errors
/// None so far; real disks have some.
pub(crate) async fn disk_space(_path: &Path) -> io::Result<(u64, u64)> {
    let capacity = context::with(|core| core.world.config.disk_capacity_bytes);
    begin(move |disk| Ok((capacity, disk.free_bytes(capacity)))).await
}

impl Disk {
    fn check_folder(&self, path: &Path) -> io::Result<()> {
        if self.is_folder(path) {
            return Ok(());
        }
        let known = self.names.contains_key(path);
        Err(if known { ErrorKind::NotADirectory } else { ErrorKind::NotFound }.into())
    }
}

impl World {
    /// Lets a file come to be, unless syncs fail.
    pub(super) async fn birth(&self, node: &Rc<Node>, birth: u64) -> io::Result<()> {
        self.note(Note::Disk, birth);
        let (promise, answer) = promise();
        let owner = node.clone();
        let after = self.disk_delay(node).saturating_add(self.sync_delay(node));
        self.disk_later(node, after, move |_| {
            let mut disk = owner.disk.borrow_mut();
            let failed = disk.fails_syncs;
            disk.counters.count_durable(failed);
            if failed {
                disk.births.remove(&birth);
            } else {
                disk.finish_birth(birth);
            }
            drop(disk);
            promise.keep(if failed { Err(sync_error()) } else { Ok(()) });
        });
        answer.await
    }
}
