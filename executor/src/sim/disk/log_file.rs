//! `LogFile` on a simulated disk.

use super::file::{File, PAGE};
use super::{FileRef, begin, clean, start_sync, sync_error};
use crate::metrics::add;
use crate::sim::answer::{Answer, promise};
use crate::sim::context::{self, Core};
use crate::sim::node::Node;
use crate::sim::world::{Note, World};
use crate::{AlignedBuf, LogSync};
use std::cell::RefCell;
use std::future::Future;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::rc::Rc;

/// A file of fixed length, written in whole pages. Operations run to their end though nobody waits for them, and
/// several under way may complete in any order.
pub(crate) struct SimLogFile {
    world: Rc<World>,
    node: Rc<Node>,
    file: FileRef,
    /// Only the end of the process can change a file's length, and that of its handles comes with it.
    len: u64,
    sync: LogSync,
}

impl SimLogFile {
    /// Creates a file of zeros; file and name are durable on return.
    ///
    /// # Errors
    /// `AlreadyExists`, `NotFound` for its folder, `StorageFull`, or `InvalidInput` for a length that is no multiple
    /// of 4096.
    pub(crate) async fn create(path: &Path, len_bytes: u64, sync: LogSync) -> io::Result<SimLogFile> {
        let core = context::current();
        let path = clean(path);
        let file = Rc::new(RefCell::new(File::zeroed(len_bytes)));
        let birth = {
            let mut disk = core.node.disk.borrow_mut();
            disk.check_room(&path, len_bytes, core.world.config.disk_capacity_bytes)?;
            if disk.names.contains_key(&path) || disk.births.values().any(|birth| birth.path == path) {
                return Err(ErrorKind::AlreadyExists.into());
            }
            if !len_bytes.is_multiple_of(PAGE as u64) {
                return Err(ErrorKind::InvalidInput.into());
            }
            disk.begin_birth(&path, file.clone(), false)
        };
        core.world.birth(&core.node, birth).await?;
        Ok(SimLogFile::on(&core, file, sync))
    }

    /// Opens a file. Its usable length is its size, rounded down to a multiple of 4096.
    ///
    /// # Errors
    /// `NotFound`, or `IsADirectory`.
    pub(crate) async fn open(path: &Path, sync: LogSync) -> io::Result<SimLogFile> {
        let core = context::current();
        let path = clean(path);
        let file = begin(move |disk| disk.file(&path)).await?;
        Ok(SimLogFile::on(&core, file, sync))
    }

    fn on(core: &Core, file: FileRef, sync: LogSync) -> SimLogFile {
        let len = file.borrow().len() / PAGE as u64 * PAGE as u64;
        SimLogFile { world: core.world.clone(), node: core.node.clone(), file, len, sync }
    }

    /// The usable length.
    pub(crate) fn len_bytes(&self) -> u64 {
        self.len
    }

    fn check(&self, offset: u64, len: usize) -> io::Result<()> {
        let end = offset.checked_add(len as u64);
        let inside = end.is_some_and(|end| end <= self.len_bytes());
        if inside && offset.is_multiple_of(PAGE as u64) {
            return Ok(());
        }
        Err(ErrorKind::InvalidInput.into())
    }

    /// Writes the buffer and gives it back. Begins at once. With `LogSync::Dsync` it is durable when it completes.
    ///
    /// # Errors
    /// `InvalidInput` if the range is not aligned or reaches beyond the file.
    pub(crate) fn write_at(
        &self,
        offset: u64,
        bytes: AlignedBuf,
    ) -> impl Future<Output = io::Result<AlignedBuf>> + 'static {
        let begun = self.check(offset, bytes.len()).map(|()| self.begin_write(offset, &bytes, false));
        async move {
            begun?.await?;
            Ok(bytes)
        }
    }

    /// Writes the buffer, and makes it durable before it gives it back. Begins at once.
    ///
    /// # Errors
    /// As [`SimLogFile::write_at`] and [`SimLogFile::sync`].
    pub(crate) fn write_durable(
        &self,
        offset: u64,
        bytes: AlignedBuf,
    ) -> impl Future<Output = io::Result<AlignedBuf>> + 'static {
        let begun = self.check(offset, bytes.len()).map(|()| self.begin_write(offset, &bytes, true));
        async move {
            begun?.await?;
            Ok(bytes)
        }
    }

    /// Starts the write; `synced` has a sync follow it where the file does not do so itself.
    fn begin_write(&self, offset: u64, bytes: &AlignedBuf, synced: bool) -> Answer<io::Result<()>> {
        let (world, node) = (&self.world, &self.node);
        context::with(|core| {
            add(&core.metrics.log_writes_total, 1);
            add(&core.metrics.log_bytes_total, bytes.len() as u64);
            add(&core.metrics.log_durable_total, u64::from(synced || self.sync == LogSync::Dsync));
        });
        world.note(Note::Write, offset);
        world.note_bytes(bytes.as_slice());
        let write = self.file.borrow_mut().begin_write(offset, bytes.as_slice());
        node.disk.borrow_mut().counters.count_write(bytes.len());
        let dsync = self.sync == LogSync::Dsync;
        let mut after = world.disk_delay(node);
        if dsync {
            after = after.saturating_add(world.sync_delay(node));
        }
        let (promise, answer) = promise();
        let (owner, file) = (node.clone(), self.file.clone());
        world.disk_later(node, after, move |world| {
            let failed = dsync && owner.disk.borrow().fails_syncs;
            file.borrow_mut().complete_write(write, dsync && !failed);
            if dsync {
                owner.disk.borrow_mut().counters.count_durable(failed);
            }
            if synced && !dsync {
                return start_sync(world, &owner, &file, promise);
            }
            promise.keep(if failed { Err(sync_error()) } else { Ok(()) });
        });
        answer
    }

    /// Makes durable what has completed by now; nothing to do with `LogSync::Dsync`. Begins at once.
    ///
    /// # Errors
    /// When the disk is told to fail syncs. What was to be synced is then never made durable by a later sync.
    pub(crate) fn sync(&self) -> impl Future<Output = io::Result<()>> + 'static {
        let (promise, answer) = promise();
        match self.sync {
            LogSync::Dsync => promise.keep(Ok(())),
            LogSync::Fdatasync => {
                context::with(|core| add(&core.metrics.log_durable_total, 1));
                start_sync(&self.world, &self.node, &self.file, promise);
            }
        }
        answer
    }

    /// Reads bytes as they are now, the length rounded up to a multiple of 4096. Begins at once.
    ///
    /// # Errors
    /// `InvalidInput` if the range is not aligned or reaches beyond the file.
    pub(crate) fn read_at(&self, offset: u64, len: usize) -> impl Future<Output = io::Result<AlignedBuf>> + 'static {
        let mut bytes = AlignedBuf::zeroed(len);
        let checked = self.check(offset, bytes.len());
        let (promise, answer) = promise();
        if checked.is_ok() {
            self.node.disk.borrow_mut().counters.reads_total += 1;
            let file = self.file.clone();
            let after = self.world.disk_delay(&self.node);
            self.world.disk_later(&self.node, after, move |_| {
                file.borrow().read_into(offset, bytes.as_mut_slice());
                promise.keep(bytes);
            });
        }
        async move {
            checked?;
            Ok(answer.await)
        }
    }
}
