//! Files and folders, by the helpers. For what is read or written now and then; logs have [`LogFile`](crate::LogFile).

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::{Class, IoKind, blocking, context, sim};

/// Runs `work` on the path at a helper, or the simulator's counterpart.
macro_rules! on_disk {
    ($path:expr, $sim:expr, $work:expr) => {{
        let path: PathBuf = $path.as_ref().to_owned();
        if context::backend() == IoKind::Sim {
            return $sim(&path).await;
        }
        blocking(Class::Background, move || $work(&path)).await
    }};
}

/// Creates a folder and the folders above it; they are durable when this returns. No error if it exists.
///
/// # Errors
/// What the kernel says.
pub async fn create_dir_all(path: impl AsRef<Path>) -> io::Result<()> {
    on_disk!(path, sim::fs::create_dir_all, create_and_sync)
}

/// All bytes of a file.
///
/// # Errors
/// What the kernel says.
pub async fn read(path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
    on_disk!(path, sim::fs::read, |path: &Path| std::fs::read(path))
}

/// Replaces a file's content, all or nothing: a temporary file beside it is written, synced and renamed over it, and
/// the folder synced. After a crash the file has either its old bytes or the new ones.
///
/// # Errors
/// What the kernel says; the file is as it was then, or has the new bytes but not durably.
pub async fn write_atomic(path: impl AsRef<Path>, bytes: &[u8]) -> io::Result<()> {
    let path = path.as_ref().to_owned();
    if context::backend() == IoKind::Sim {
        return sim::fs::write_atomic(&path, bytes).await;
    }
    let bytes = bytes.to_owned();
    blocking(Class::Background, move || replace(&path, &bytes)).await
}

/// Makes a file that takes `len_bytes` of the disk; what is in it means nothing. It is durable when this returns.
///
/// # Errors
/// `AlreadyExists` if there is such a file, whatever its length; `StorageFull`; `Unsupported` if the filesystem cannot
/// allocate; and what the kernel says. No file is left then.
pub async fn allocate(path: impl AsRef<Path>, len_bytes: u64) -> io::Result<()> {
    let path = path.as_ref().to_owned();
    if context::backend() == IoKind::Sim {
        return sim::fs::allocate(&path, len_bytes).await;
    }
    blocking(Class::Background, move || allocate_file(&path, len_bytes)).await
}

/// Removes a file, durably.
///
/// # Errors
/// What the kernel says.
pub async fn remove_file(path: impl AsRef<Path>) -> io::Result<()> {
    on_disk!(path, sim::fs::remove_file, |path: &Path| { std::fs::remove_file(path).and_then(|()| sync_parent(path)) })
}

/// Removes a folder with all in it, durably.
///
/// # Errors
/// What the kernel says.
pub async fn remove_dir_all(path: impl AsRef<Path>) -> io::Result<()> {
    on_disk!(path, sim::fs::remove_dir_all, |path: &Path| {
        std::fs::remove_dir_all(path).and_then(|()| sync_parent(path))
    })
}

/// The names in a folder, sorted. Names that are no UTF-8 are shown with replacement characters.
///
/// # Errors
/// What the kernel says.
pub async fn read_dir(path: impl AsRef<Path>) -> io::Result<Vec<String>> {
    on_disk!(path, sim::fs::read_dir, |path: &Path| {
        let names = std::fs::read_dir(path)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        let mut names = names.collect::<io::Result<Vec<String>>>()?;
        names.sort_unstable();
        Ok(names)
    })
}

/// Whether there is a file or folder of this name.
///
/// # Errors
/// What the kernel says when it cannot tell.
pub async fn exists(path: impl AsRef<Path>) -> io::Result<bool> {
    on_disk!(path, sim::fs::exists, |path: &Path| path.try_exists())
}

/// Locks a folder against other processes, by `flock` on a file `LOCK` in it. The lock ends with the process.
///
/// # Errors
/// `WouldBlock` if another process, or another lock of this one, has it; and what the kernel says.
pub async fn lock_dir(path: impl AsRef<Path>) -> io::Result<DirLock> {
    let path = path.as_ref().to_owned();
    if context::backend() == IoKind::Sim {
        return Ok(DirLock(Lock::Sim(sim::fs::lock_dir(&path).await?)));
    }
    Ok(DirLock(Lock::Real(blocking(Class::Background, move || lock(&path)).await?)))
}

/// Bytes of the filesystem that holds `path`: (capacity, available to this process).
///
/// # Errors
/// What the kernel says.
pub async fn disk_space(path: impl AsRef<Path>) -> io::Result<(u64, u64)> {
    on_disk!(path, sim::fs::disk_space, space)
}

/// The lock of a folder, until it is dropped.
#[derive(Debug)]
pub struct DirLock(#[expect(dead_code, reason = "held for its drop alone")] Lock);

#[expect(dead_code, reason = "held for its drop alone")]
enum Lock {
    Real(File),
    Sim(sim::fs::SimDirLock),
}

impl std::fmt::Debug for Lock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("..")
    }
}

/// Syncs the folder that holds `path`, so that the name is durable, or durably gone.
pub(crate) fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => File::open(folder)?.sync_all(),
        Some(_) => File::open(".")?.sync_all(),
        None => Ok(()),
    }
}

fn create_and_sync(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(above) = path.parent().filter(|above| !above.as_os_str().is_empty()) {
        create_and_sync(above)?;
    }
    match std::fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        created => created.and_then(|()| sync_parent(path)),
    }
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
    name.push(".tmp");
    let temporary = path.with_file_name(name);
    let written = OpenOptions::new().write(true).create(true).truncate(true).open(&temporary).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    let replaced = written.and_then(|()| std::fs::rename(&temporary, path));
    if replaced.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    replaced.and_then(|()| sync_parent(path))
}

fn allocate_file(path: &Path, len_bytes: u64) -> io::Result<()> {
    let file = OpenOptions::new().write(true).create_new(true).open(path)?;
    let len = libc::off_t::try_from(len_bytes).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
    // SAFETY: the descriptor is open during the call.
    let allocated = match unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, len) } {
        0 => file.sync_all().and_then(|()| sync_parent(path)),
        _ => Err(io::Error::last_os_error()),
    };
    if allocated.is_err() {
        let _ = std::fs::remove_file(path);
    }
    allocated
}

fn lock(folder: &Path) -> io::Result<File> {
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(folder.join("LOCK"))?;
    // SAFETY: the descriptor is open during the call.
    match unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } {
        0 => Ok(file),
        _ => Err(io::Error::last_os_error()),
    }
}

fn space(path: &Path) -> io::Result<(u64, u64)> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: all-zero is a valid value of this plain struct.
    let mut stat: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: `path` ends with a zero byte and `stat` is a valid place for the result.
    if unsafe { libc::statvfs(path.as_ptr(), &raw mut stat) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize))
}
