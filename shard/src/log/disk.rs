//! The files that a log needs, as a trait: the executor's in production, and ones that lose and tear what was not
//! synced in tests.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base::Instant;
use executor::{AlignedBuf, LogFile, LogSync};

const SUFFIX: &str = ".raftlog";
const PROBE: &str = "probe.tmp";
/// Writes that the probe times for each way, and their length.
const PROBE_WRITES: u64 = 16;
const PROBE_BYTES: usize = 4096;

/// Name of the segment file with this number. The number is the file's only: segments have their own, in each block.
pub(crate) fn file_name(number: u64) -> String {
    format!("{number:010}{SUFFIX}")
}

/// The number of a segment file; `None` for other names.
pub(crate) fn file_number(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(SUFFIX)?;
    (digits.len() == 10).then(|| digits.parse().ok()).flatten()
}

/// A folder of segment files, with a clock.
pub trait Disk {
    /// A segment file.
    type File: DiskFile;
    /// Names of all files in the folder.
    fn list(&self) -> impl Future<Output = io::Result<Vec<String>>>;
    /// Makes a file of `len` zero bytes, durably, its name included.
    fn create(&self, name: &str, len: u64) -> impl Future<Output = io::Result<Self::File>>;
    /// Opens a file.
    fn open(&self, name: &str) -> impl Future<Output = io::Result<Self::File>>;
    /// Removes a file.
    fn remove(&self, name: &str) -> impl Future<Output = io::Result<()>>;
    /// The time.
    fn now(&self) -> Instant;
}

/// A segment file. All offsets and lengths are multiples of 4 KiB.
pub trait DiskFile {
    /// Its length in bytes.
    fn len_bytes(&self) -> u64;
    /// Writes the buffer and makes it durable. Until then it may reach the disk in any order and in part.
    fn write_durable(&self, offset: u64, buffer: AlignedBuf) -> impl Future<Output = io::Result<AlignedBuf>>;
    /// Reads `len` bytes.
    fn read_at(&self, offset: u64, len: usize) -> impl Future<Output = io::Result<AlignedBuf>>;
}

/// Segment files through the executor.
#[derive(Clone, Debug)]
pub struct Files {
    folder: PathBuf,
    sync: LogSync,
    no_sync: bool,
}

/// A segment file of [`Files`].
#[derive(Debug)]
pub struct Segment {
    file: LogFile,
    no_sync: bool,
}

/// How long durable writes took in the probe, on average.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SyncProbe {
    /// A write followed by an fdatasync.
    pub fdatasync: Duration,
    /// A write to an `O_DSYNC` file.
    pub dsync: Duration,
}

impl SyncProbe {
    /// The faster way.
    pub fn choice(&self) -> LogSync {
        if self.dsync < self.fdatasync { LogSync::Dsync } else { LogSync::Fdatasync }
    }
}

impl Files {
    /// The files in `folder`, which is made if it is missing. `no_sync` is a planted fault: nothing is synced.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub async fn new(folder: &Path, sync: LogSync, no_sync: bool) -> io::Result<Files> {
        executor::fs::create_dir_all(folder).await?;
        let sync = if no_sync { LogSync::Fdatasync } else { sync };
        Ok(Files { folder: folder.to_owned(), sync, no_sync })
    }

    fn segment(&self, file: LogFile) -> Segment {
        Segment { file, no_sync: self.no_sync }
    }

    /// Times a few durable writes of 4 KiB each way, in a scratch file in `folder`.
    ///
    /// # Errors
    /// The scratch file cannot be made or written.
    pub async fn probe(folder: &Path) -> io::Result<SyncProbe> {
        executor::fs::create_dir_all(folder).await?;
        let path = folder.join(PROBE);
        if executor::fs::exists(&path).await? {
            executor::fs::remove_file(&path).await?;
        }
        let len = PROBE_WRITES * PROBE_BYTES as u64;
        let fdatasync = time(&LogFile::create(&path, len, LogSync::Fdatasync).await?).await?;
        let dsync = time(&LogFile::open(&path, LogSync::Dsync).await?).await?;
        executor::fs::remove_file(&path).await?;
        Ok(SyncProbe { fdatasync, dsync })
    }
}

async fn time(file: &LogFile) -> io::Result<Duration> {
    let mut buffer = AlignedBuf::zeroed(PROBE_BYTES);
    let start = executor::now();
    for write in 0..PROBE_WRITES {
        buffer = file.write_durable(write * PROBE_BYTES as u64, buffer).await?;
    }
    Ok(executor::now().since(start) / PROBE_WRITES as u32)
}

impl Disk for Files {
    type File = Segment;

    async fn list(&self) -> io::Result<Vec<String>> {
        executor::fs::read_dir(&self.folder).await
    }

    async fn create(&self, name: &str, len: u64) -> io::Result<Segment> {
        LogFile::create(&self.folder.join(name), len, self.sync).await.map(|file| self.segment(file))
    }

    async fn open(&self, name: &str) -> io::Result<Segment> {
        LogFile::open(&self.folder.join(name), self.sync).await.map(|file| self.segment(file))
    }

    async fn remove(&self, name: &str) -> io::Result<()> {
        executor::fs::remove_file(&self.folder.join(name)).await
    }

    fn now(&self) -> Instant {
        executor::now()
    }
}

impl DiskFile for Segment {
    fn len_bytes(&self) -> u64 {
        self.file.len_bytes()
    }

    async fn write_durable(&self, offset: u64, buffer: AlignedBuf) -> io::Result<AlignedBuf> {
        if self.no_sync {
            self.file.write_at(offset, buffer).await
        } else {
            self.file.write_durable(offset, buffer).await
        }
    }

    async fn read_at(&self, offset: u64, len: usize) -> io::Result<AlignedBuf> {
        self.file.read_at(offset, len).await
    }
}
