//! The journal in files: `image` and `journal-<number>` in one folder.
//!
//! Each open and each [`FileJournal::replace`] begins a new file, zero-filled before its first record, so that a file
//! never holds a byte of a former life, and a record once cut cannot come back. The order is: new file, new image
//! that names it, old files away. A crash in between leaves old files that the image has made superfluous, or a new
//! one without records.
//!
//! One write is in flight at a time, and each record waits for the sync of the one before. So of the records of a
//! file only the last can be torn: an unreadable one with a readable one behind it was acknowledged, and is damage.

use super::JournalError;
use super::block::{self, BLOCK, Header, Read};
use bytes::Bytes;
use executor::{AlignedBuf, LogFile, LogSync};
use proto::rpc::LocalFuture;
use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};
use std::rc::Rc;

const IMAGE: &str = "image";
const PREFIX: &str = "journal-";

/// How the journal is kept.
#[derive(Clone, Debug)]
pub struct JournalConfig {
    /// Bytes of a file. At 4 KiB a record and a record each two and a half seconds of timestamps, 4 MiB last three
    /// quarters of an hour before the image is written again.
    pub file_bytes: u64,
    /// What makes a write durable.
    pub sync: LogSync,
}

impl Default for JournalConfig {
    fn default() -> Self {
        JournalConfig { file_bytes: 4 << 20, sync: LogSync::Fdatasync }
    }
}

/// What was found at the open.
#[derive(Debug, Default)]
pub struct Opened {
    /// The image, if there is one.
    pub image: Option<Bytes>,
    /// The records behind it, oldest first.
    pub records: Vec<Bytes>,
    /// A torn tail that was cut: file and offset.
    pub cut: Option<(PathBuf, u64)>,
    /// Image and records are of the first version: runs of changes, without raft around them.
    pub is_first_version: bool,
}

/// Carries records to where they survive a crash.
///
/// One caller, one call at a time. After an error nothing more may be written: what the last call did is unknown.
#[derive(Debug)]
pub struct FileJournal {
    inner: Rc<Inner>,
}

#[derive(Debug)]
struct Inner {
    folder: PathBuf,
    config: JournalConfig,
    file: RefCell<Option<Rc<LogFile>>>,
    /// Number of the current file.
    number: Cell<u64>,
    incarnation: Cell<u64>,
    /// Where the next record goes.
    end: Cell<u64>,
    /// Sequence and CRC of the newest record.
    sequence: Cell<u64>,
    crc: Cell<u32>,
    /// The newest record is a seal, or the file's first.
    sealed: Cell<bool>,
}

impl FileJournal {
    /// Reads the journal in `folder`, which may be empty. Nothing is written before the first [`FileJournal::replace`].
    ///
    /// # Errors
    /// [`JournalError`] when files cannot be read or acknowledged records are missing.
    pub async fn open(folder: &Path, config: JournalConfig) -> Result<(FileJournal, Opened), JournalError> {
        let io = |action, path: &Path| {
            let path = path.to_owned();
            move |source| JournalError::Io { action, path, source }
        };
        executor::fs::create_dir_all(folder).await.map_err(io("create", folder))?;
        let names = executor::fs::read_dir(folder).await.map_err(io("list", folder))?;
        let image_path = folder.join(IMAGE);
        let mut opened = Opened::default();
        let (mut sequence, mut first) = (0, 0);
        if names.iter().any(|name| name == IMAGE) {
            let bytes = executor::fs::read(&image_path).await.map_err(io("read", &image_path))?;
            let damaged =
                || JournalError::Damaged { path: image_path.clone(), offset: 0, what: "its checksum is wrong" };
            let (version, upto, journal, payload) = block::decode_image(Bytes::from(bytes)).ok_or_else(damaged)?;
            (sequence, first, opened.image) = (upto, journal, Some(payload));
            opened.is_first_version = version == block::FIRST_VERSION;
        }
        let mut numbers: Vec<u64> = names.iter().filter_map(|name| number_of(name)).collect();
        numbers.sort_unstable();
        let newest = numbers.last().copied().unwrap_or(0).max(first);
        numbers.retain(|number| *number >= first);
        for number in &numbers {
            let path = folder.join(name_of(*number));
            // Not through a LogFile: one whose creation was cut short may have any length.
            let bytes = executor::fs::read(&path).await.map_err(io("read", &path))?;
            let scanned = scan(&path, *number, &bytes, sequence)?;
            sequence = scanned.sequence;
            // Files of both versions stand side by side if the first start with this one was cut short; then only those
            // of the first have payloads.
            opened.is_first_version |= scanned.is_first_version && !scanned.records.is_empty();
            opened.records.extend(scanned.records);
            if let Some(offset) = scanned.torn.filter(|offset| *offset > 0) {
                opened.cut = Some((path, offset));
            }
        }
        let inner = Inner {
            folder: folder.to_owned(),
            config,
            file: RefCell::new(None),
            number: Cell::new(newest),
            incarnation: Cell::new(0),
            end: Cell::new(0),
            sequence: Cell::new(sequence),
            crc: Cell::new(0),
            sealed: Cell::new(true),
        };
        Ok((FileJournal { inner: Rc::new(inner) }, opened))
    }

    /// Makes `record` durable, behind those before it.
    ///
    /// # Errors
    /// [`JournalError`]: what became of it is unknown.
    pub fn append(&self, record: Bytes) -> LocalFuture<Result<(), JournalError>> {
        let inner = Rc::clone(&self.inner);
        Box::pin(async move {
            assert!(!record.is_empty(), "an empty record would be a seal");
            if !inner.has_room(record.len()) {
                return Err(JournalError::TooLarge { len: record.len() });
            }
            inner.write(&record).await?;
            inner.sealed.set(false);
            Ok(())
        })
    }

    /// Puts `image` in the place of everything so far, durably.
    ///
    /// # Errors
    /// [`JournalError`]: what became of it is unknown.
    pub fn replace(&self, image: Bytes) -> LocalFuture<Result<(), JournalError>> {
        let inner = Rc::clone(&self.inner);
        Box::pin(async move { inner.replace(&image).await })
    }

    /// Whether a record of `len` bytes still fits, or [`FileJournal::replace`] must come first.
    pub fn has_room(&self, len: usize) -> bool {
        self.inner.has_room(len)
    }

    /// Tells that no record will follow soon: the place to note, cheaply, that all of them were acknowledged.
    ///
    /// # Errors
    /// [`JournalError`]: nothing more may be written.
    pub fn rest(&self) -> LocalFuture<Result<(), JournalError>> {
        let inner = Rc::clone(&self.inner);
        Box::pin(async move {
            // The last block is left to records: sealing is no reason to write the image anew.
            if inner.sealed.get() || !inner.has_room(BLOCK) {
                return Ok(());
            }
            inner.write(&[]).await?;
            inner.sealed.set(true);
            Ok(())
        })
    }
}

impl Inner {
    fn has_room(&self, len: usize) -> bool {
        self.file.borrow().is_some() && self.end.get() + block::record_len(len) as u64 <= self.config.file_bytes
    }

    /// Writes one record and makes it durable.
    async fn write(&self, payload: &[u8]) -> Result<(), JournalError> {
        let path = self.folder.join(name_of(self.number.get()));
        let file = self.file.borrow().clone().expect("the caller asked for room");
        let mut buf = AlignedBuf::zeroed(block::record_len(payload.len()));
        let len = buf.len() as u64;
        let header = Header {
            journal: self.number.get(),
            incarnation: self.incarnation.get(),
            sequence: self.sequence.get() + 1,
            durable: self.sequence.get(),
            previous: self.crc.get(),
        };
        let crc = block::encode(header, payload, buf.as_mut_slice());
        let io = |action, source| JournalError::Io { action, path: path.clone(), source };
        file.write_durable(self.end.get(), buf).await.map_err(|source| io("write and sync", source))?;
        self.end.set(self.end.get() + len);
        self.sequence.set(header.sequence);
        self.crc.set(crc);
        Ok(())
    }

    async fn replace(&self, image: &[u8]) -> Result<(), JournalError> {
        let (number, sequence) = (self.number.get() + 1, self.sequence.get());
        let path = self.folder.join(name_of(number));
        let io = |action, path: &Path| {
            let path = path.to_owned();
            move |source| JournalError::Io { action, path, source }
        };
        // A file of this number can only be left of a start that died before it named it in an image.
        if executor::fs::exists(&path).await.map_err(io("look at", &path))? {
            executor::fs::remove_file(&path).await.map_err(io("remove", &path))?;
        }
        let file =
            LogFile::create(&path, self.config.file_bytes, self.config.sync).await.map_err(io("create", &path))?;
        *self.file.borrow_mut() = Some(Rc::new(file));
        self.number.set(number);
        let moment = executor::unix_time().0;
        self.incarnation.set(executor::with_rng(base::Prng::next_u64) ^ moment);
        self.end.set(0);
        self.crc.set(0);
        self.write(&[]).await?;
        self.sealed.set(true);
        let image_path = self.folder.join(IMAGE);
        let bytes = block::encode_image(sequence, number, image);
        executor::fs::write_atomic(&image_path, &bytes).await.map_err(io("write", &image_path))?;
        let names = executor::fs::read_dir(&self.folder).await.map_err(io("list", &self.folder))?;
        for name in names.iter().filter(|name| number_of(name).is_some_and(|old| old < number)) {
            let path = self.folder.join(name);
            executor::fs::remove_file(&path).await.map_err(io("remove", &path))?;
        }
        Ok(())
    }
}

fn name_of(number: u64) -> String {
    format!("{PREFIX}{number:016}")
}

fn number_of(name: &str) -> Option<u64> {
    name.strip_prefix(PREFIX)?.parse().ok()
}

struct Scanned {
    records: Vec<Bytes>,
    /// Sequence of the newest record.
    sequence: u64,
    /// Where an unreadable record begins that nothing follows; 0 when not even the first could be read.
    torn: Option<u64>,
    is_first_version: bool,
}

/// Reads the records of a file behind `sequence`.
fn scan(path: &Path, number: u64, bytes: &[u8], sequence: u64) -> Result<Scanned, JournalError> {
    let mut scanned = Scanned { records: Vec::new(), sequence, torn: None, is_first_version: false };
    let damaged = |offset: usize, what| JournalError::Damaged { path: path.to_owned(), offset: offset as u64, what };
    let (mut at, mut previous, mut incarnation) = (0, 0, None);
    while at < bytes.len() {
        let expected = |read: &Read| {
            read.header.journal == number
                && read.header.previous == previous
                && incarnation.is_none_or(|incarnation| incarnation == read.header.incarnation)
        };
        match block::decode(&bytes[at..]).filter(expected) {
            Some(read) => {
                if read.header.sequence > scanned.sequence + 1 {
                    return Err(damaged(at, "records in front of it are missing"));
                }
                if read.header.sequence == scanned.sequence + 1 {
                    scanned.sequence += 1;
                    scanned.records.extend(Some(read.payload.clone()).filter(|payload| !payload.is_empty()));
                }
                scanned.is_first_version |= read.version == block::FIRST_VERSION;
                (previous, incarnation) = (read.crc, Some(read.header.incarnation));
                at += block::record_len(read.payload.len());
            }
            None => {
                if at == 0 && block::decode(bytes).is_none() && block::is_like_a_record(bytes) {
                    let version = bytes.get(4..6).map(|version| u16::from_le_bytes([version[0], version[1]]));
                    if version.is_some_and(|version| !(block::FIRST_VERSION..=block::VERSION).contains(&version)) {
                        return Err(JournalError::Foreign { path: path.to_owned(), what: "its version is unknown" });
                    }
                }
                if is_followed(bytes, at, number, incarnation) {
                    return Err(damaged(at, "a record is unreadable"));
                }
                let untouched = bytes[at..].iter().all(|byte| *byte == 0);
                scanned.torn = (!untouched || at == 0).then_some(at as u64);
                break;
            }
        }
    }
    Ok(scanned)
}

/// Whether a readable record of the same file stands behind `at`.
fn is_followed(bytes: &[u8], at: usize, number: u64, incarnation: Option<u64>) -> bool {
    (at + BLOCK..bytes.len()).step_by(BLOCK).filter_map(|at| block::decode(&bytes[at..])).any(|read| {
        read.header.journal == number && incarnation.is_none_or(|incarnation| incarnation == read.header.incarnation)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(payloads: &[&[u8]], from: u64) -> Vec<u8> {
        let (mut bytes, mut previous) = (Vec::new(), 0);
        for (at, payload) in payloads.iter().enumerate() {
            let mut block = vec![0; block::record_len(payload.len())];
            let sequence = from + at as u64 + 1;
            let header = Header { journal: 7, incarnation: 99, sequence, durable: sequence - 1, previous };
            previous = block::encode(header, payload, &mut block);
            bytes.extend(block);
        }
        bytes.resize(bytes.len() + 4 * BLOCK, 0);
        bytes
    }

    fn read(bytes: &[u8]) -> Result<Scanned, JournalError> {
        scan(Path::new("journal"), 7, bytes, 10)
    }

    #[test]
    fn records_come_back_in_order_and_seals_are_not_among_them() {
        let long = vec![7; 3 * BLOCK];
        let scanned = read(&file(&[b"", b"a", &long, b"", b"b"], 10)).expect("whole");
        assert_eq!(scanned.records, [&b"a"[..], &long, b"b"]);
        assert_eq!((scanned.sequence, scanned.torn), (15, None));
    }

    #[test]
    fn a_torn_tail_is_cut_and_damage_before_the_tail_is_reported() {
        let whole = file(&[b"", b"a", b"b"], 10);
        for torn_at in [HEADER_CRC, block::HEADER] {
            let mut torn = whole.clone();
            torn[2 * BLOCK + torn_at] ^= 1;
            let scanned = read(&torn).expect("a torn tail is no error");
            assert_eq!((scanned.records, scanned.torn), (vec![Bytes::from_static(b"a")], Some(2 * BLOCK as u64)));
        }
        for damaged_at in [0, BLOCK, BLOCK + block::HEADER] {
            let mut damaged = whole.clone();
            damaged[damaged_at] ^= 1;
            assert!(matches!(read(&damaged), Err(JournalError::Damaged { .. })), "at {damaged_at}");
        }
    }

    const HEADER_CRC: usize = 48;

    #[test]
    fn a_seal_makes_damage_of_the_last_record_visible() {
        let mut sealed = file(&[b"", b"a", b""], 10);
        sealed[BLOCK + block::HEADER] ^= 1;
        assert!(matches!(read(&sealed), Err(JournalError::Damaged { .. })));
    }

    #[test]
    fn missing_records_are_damage_and_known_ones_are_skipped() {
        assert!(matches!(read(&file(&[b"", b"a"], 12)), Err(JournalError::Damaged { .. })));
        let scanned = read(&file(&[b"", b"a", b"b", b"c"], 7)).expect("whole");
        assert_eq!((scanned.records, scanned.sequence), (vec![Bytes::from_static(b"c")], 11));
    }

    #[test]
    fn an_empty_file_holds_nothing() {
        let scanned = read(&vec![0; 8 * BLOCK]).expect("never written");
        assert_eq!((scanned.records.len(), scanned.sequence, scanned.torn), (0, 10, Some(0)));
    }

    #[test]
    fn an_image_with_a_flipped_bit_is_refused() {
        let image = block::encode_image(5, 6, b"payload");
        assert_eq!(block::decode_image(Bytes::from(image.clone())), Some((2, 5, 6, Bytes::from_static(b"payload"))));
        for at in 0..image.len() {
            let mut flipped = image.clone();
            flipped[at] ^= 4;
            assert_eq!(block::decode_image(Bytes::from(flipped)), None, "at {at}");
        }
    }
}
