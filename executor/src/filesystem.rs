//! What a folder's filesystem is called, and whether it can bypass the page cache.

use std::ffi::CString;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A filesystem that refuses `O_DIRECT`.
#[derive(Debug, thiserror::Error)]
#[error(
    "the filesystem of {} ({filesystem}) has no O_DIRECT, which log files need: put the data on ext4 or xfs, or allow \
     buffered log files, which is meant for tests",
    folder.display()
)]
pub(crate) struct NoDirectIo {
    pub(crate) folder: PathBuf,
    pub(crate) filesystem: String,
}

impl NoDirectIo {
    pub(crate) fn new(folder: &Path) -> NoDirectIo {
        NoDirectIo { folder: folder.to_owned(), filesystem: name(folder) }
    }
}

/// The filesystem's name, or its number if we know none.
pub(crate) fn name(folder: &Path) -> String {
    let Ok(path) = CString::new(folder.as_os_str().as_bytes()) else {
        return "unknown".to_owned();
    };
    // SAFETY: all-zero is a valid value of this plain struct.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: `path` ends with a zero byte and `stat` is a valid place for the result.
    if unsafe { libc::statfs(path.as_ptr(), &raw mut stat) } != 0 {
        return "unknown".to_owned();
    }
    // Numbers of include/uapi/linux/magic.h.
    match stat.f_type as u64 & 0xFFFF_FFFF {
        0xEF53 => "ext4".to_owned(),
        0x5846_5342 => "xfs".to_owned(),
        0x9123_683E => "btrfs".to_owned(),
        0x0102_1994 => "tmpfs".to_owned(),
        0x794C_7630 => "overlayfs".to_owned(),
        0x2FC1_2FC1 => "zfs".to_owned(),
        0x6969 => "nfs".to_owned(),
        0x0102_1997 => "9p".to_owned(),
        0x6573_5546 => "fuse".to_owned(),
        0x8584_58F6 => "ramfs".to_owned(),
        0xF2F5_2010 => "f2fs".to_owned(),
        number => format!("type {number:#x}"),
    }
}

/// Whether files of `folder` can be opened with `O_DIRECT`.
pub(crate) fn has_direct_io(folder: &Path) -> io::Result<bool> {
    let probe = folder.join(format!(".direct-io-probe-{}", std::process::id()));
    let opened = OpenOptions::new().write(true).create(true).custom_flags(libc::O_DIRECT).open(&probe);
    let _ = std::fs::remove_file(&probe);
    match opened {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
        Err(error) => Err(error),
    }
}
