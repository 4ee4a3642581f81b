//! A disk in memory that knows what was synced, and can lose power at any operation.

#![allow(clippy::await_holding_refcell_ref, reason = "the borrow is dropped by hand before the await")]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use base::{Instant, Prng};
use executor::AlignedBuf;
use shard::log::{Disk, DiskFile};

/// What a disk writes whole or not at all.
const SECTOR: usize = 512;

/// Which unsynced sectors survive a power loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Survival {
    None,
    All,
    /// Any of 512 bytes.
    Random,
    /// Any of 4 KiB: then whole blocks survive behind lost ones.
    RandomUnits,
}

#[derive(Clone, Default)]
struct Content {
    durable: Vec<u8>,
    unsynced: Vec<Unsynced>,
}

/// A write that is not durable.
#[derive(Clone)]
struct Unsynced {
    at: usize,
    bytes: Vec<u8>,
    /// A failed sync covered it, so no later one does.
    orphan: bool,
}

impl Unsynced {
    /// A newer write is durable: where both wrote, this one has nothing to say any more.
    fn yield_to(&mut self, newer: &Unsynced) {
        let (low, high) = (self.at.max(newer.at), (self.at + self.bytes.len()).min(newer.at + newer.bytes.len()));
        if low < high {
            self.bytes[low - self.at..high - self.at].copy_from_slice(&newer.bytes[low - newer.at..high - newer.at]);
        }
    }
}

impl Content {
    fn read(&self, from: usize, len: usize) -> Vec<u8> {
        let mut bytes = self.durable[from..from + len].to_vec();
        for Unsynced { at, bytes: written, .. } in &self.unsynced {
            let (low, high) = ((*at).max(from), (at + written.len()).min(from + len));
            if low < high {
                bytes[low - from..high - from].copy_from_slice(&written[low - at..high - at]);
            }
        }
        bytes
    }

    fn sync(&mut self) {
        let mut orphans: Vec<Unsynced> = Vec::new();
        for write in self.unsynced.drain(..) {
            if write.orphan {
                orphans.push(write);
                continue;
            }
            self.durable[write.at..write.at + write.bytes.len()].copy_from_slice(&write.bytes);
            orphans.iter_mut().for_each(|orphan| orphan.yield_to(&write));
        }
        self.unsynced = orphans;
    }
}

#[derive(Clone)]
struct State {
    files: BTreeMap<String, Content>,
    prng: Prng,
    now: Instant,
    operations: u64,
    crash_at: Option<u64>,
    crashed: bool,
    fail_sync_at: Option<u64>,
    capacity: Option<u64>,
    writes: u64,
    bytes_written: u64,
}

impl State {
    /// Counts an operation; an error if power is lost in it, or was before.
    fn operate(&mut self) -> io::Result<()> {
        self.operations += 1;
        if self.crash_at == Some(self.operations) {
            self.crashed = true;
        }
        if self.crashed {
            return Err(io::Error::other("power was lost"));
        }
        Ok(())
    }
}

/// See the module. A clone is the same disk.
#[derive(Clone)]
pub struct FaultyDisk(Rc<RefCell<State>>);

/// A file on a [`FaultyDisk`].
pub struct FaultyFile {
    disk: FaultyDisk,
    name: String,
    len: u64,
}

impl FaultyDisk {
    pub fn new(seed: u64) -> FaultyDisk {
        FaultyDisk(Rc::new(RefCell::new(State {
            files: BTreeMap::new(),
            prng: Prng::new(seed),
            now: Instant(1_000_000),
            operations: 0,
            crash_at: None,
            crashed: false,
            fail_sync_at: None,
            capacity: None,
            writes: 0,
            bytes_written: 0,
        })))
    }

    /// Power is lost in the operation `count` operations from now, 1 being the next one.
    pub fn crash_after(&self, count: u64) {
        let mut state = self.0.borrow_mut();
        state.crash_at = Some(state.operations + count);
    }

    pub fn crashed(&self) -> bool {
        self.0.borrow().crashed
    }

    pub fn operations(&self) -> u64 {
        self.0.borrow().operations
    }

    /// Durable writes and their bytes so far.
    pub fn written(&self) -> (u64, u64) {
        let state = self.0.borrow();
        (state.writes, state.bytes_written)
    }

    pub fn fail_next_sync(&self) {
        let mut state = self.0.borrow_mut();
        state.fail_sync_at = Some(state.writes + 1);
    }

    /// Room for segment files in bytes.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.0.borrow_mut().capacity = bytes;
    }

    pub fn bytes(&self) -> u64 {
        let state = self.0.borrow();
        state.files.values().map(|file| file.durable.len() as u64).sum()
    }

    pub fn advance(&self, by: Duration) {
        let mut state = self.0.borrow_mut();
        state.now = state.now + by;
    }

    /// The disk after power came back. Synced bytes are there; of the others, what `survival` says.
    pub fn after_power_loss(&self, survival: Survival, seed: u64) -> FaultyDisk {
        let mut state = self.0.borrow().clone();
        let mut prng = Prng::new(seed);
        for file in state.files.values_mut() {
            for Unsynced { at, bytes: written, .. } in std::mem::take(&mut file.unsynced) {
                let sector_bytes = if survival == Survival::RandomUnits { 4096 } else { SECTOR };
                for (i, sector) in written.chunks(sector_bytes).enumerate() {
                    let survives = match survival {
                        Survival::None => false,
                        Survival::All => true,
                        Survival::Random | Survival::RandomUnits => prng.one_in(2),
                    };
                    if survives {
                        let at = at + i * sector_bytes;
                        file.durable[at..at + sector.len()].copy_from_slice(sector);
                    }
                }
            }
        }
        Self::restarted(state)
    }

    /// The disk after the process was killed: what was written can be read, but power may still be lost.
    pub fn after_kill(&self) -> FaultyDisk {
        Self::restarted(self.0.borrow().clone())
    }

    fn restarted(mut state: State) -> FaultyDisk {
        (state.crashed, state.crash_at, state.fail_sync_at) = (false, None, None);
        FaultyDisk(Rc::new(RefCell::new(state)))
    }

    pub fn names(&self) -> Vec<String> {
        self.0.borrow().files.keys().cloned().collect()
    }

    /// What a reader of the file sees.
    pub fn content(&self, name: &str) -> Vec<u8> {
        let state = self.0.borrow();
        let file = &state.files[name];
        file.read(0, file.durable.len())
    }

    /// Changes durable bytes behind everybody's back.
    pub fn corrupt(&self, name: &str, at: usize, with: &[u8]) {
        let mut state = self.0.borrow_mut();
        let file = state.files.get_mut(name).expect("the file exists");
        file.durable[at..at + with.len()].copy_from_slice(with);
    }

    pub fn delete(&self, name: &str) {
        self.0.borrow_mut().files.remove(name);
    }

    /// Lets other futures run, sometimes.
    fn pause(&self) -> impl Future<Output = ()> + use<> {
        let mut rounds = self.0.borrow_mut().prng.below(3);
        std::future::poll_fn(move |_| {
            if rounds == 0 {
                return Poll::Ready(());
            }
            rounds -= 1;
            Poll::Pending
        })
    }

    fn open_file(&self, name: &str) -> io::Result<FaultyFile> {
        let state = self.0.borrow();
        let file = state.files.get(name);
        let file = file.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        Ok(FaultyFile { disk: self.clone(), name: name.to_owned(), len: (file.durable.len() / 4096 * 4096) as u64 })
    }
}

impl Disk for FaultyDisk {
    type File = FaultyFile;

    async fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.names())
    }

    async fn create(&self, name: &str, len: u64) -> io::Result<FaultyFile> {
        self.pause().await;
        {
            let mut state = self.0.borrow_mut();
            let used: u64 = state.files.values().map(|file| file.durable.len() as u64).sum();
            if state.capacity.is_some_and(|capacity| used + len > capacity) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            assert!(!state.files.contains_key(name), "{name} exists");
            if let Err(error) = state.operate() {
                // Half of it, or nothing.
                if state.prng.one_in(2) {
                    let durable = vec![0; len as usize / 2];
                    let unsynced = Vec::new();
                    let file = Content { durable, unsynced };
                    state.files.insert(name.to_owned(), file);
                }
                return Err(error);
            }
            let file = Content { durable: vec![0; len as usize], unsynced: Vec::new() };
            state.files.insert(name.to_owned(), file);
        }
        self.open_file(name)
    }

    async fn open(&self, name: &str) -> io::Result<FaultyFile> {
        self.open_file(name)
    }

    async fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.0.borrow_mut();
        state.operate()?;
        state.files.remove(name);
        Ok(())
    }

    fn now(&self) -> Instant {
        self.0.borrow().now
    }
}

impl DiskFile for FaultyFile {
    fn len_bytes(&self) -> u64 {
        self.len
    }

    async fn write_durable(&self, offset: u64, buffer: AlignedBuf) -> io::Result<AlignedBuf> {
        assert!(offset.is_multiple_of(4096) && buffer.len().is_multiple_of(4096));
        assert!(offset + buffer.len() as u64 <= self.len, "beyond the file");
        {
            let mut state = self.disk.0.borrow_mut();
            let was_dead = state.crashed;
            let operated = state.operate();
            let file = state.files.get_mut(&self.name).expect("an open file");
            if !was_dead {
                // Also if power is lost right now: some of it may have reached the disk.
                let bytes = buffer.as_slice().to_vec();
                file.unsynced.push(Unsynced { at: offset as usize, bytes, orphan: false });
            }
            operated?;
        }
        self.disk.pause().await;
        let mut state = self.disk.0.borrow_mut();
        state.operate()?;
        state.writes += 1;
        state.bytes_written += buffer.len() as u64;
        if state.fail_sync_at == Some(state.writes) {
            let file = state.files.get_mut(&self.name).expect("an open file");
            file.unsynced.iter_mut().for_each(|write| write.orphan = true);
            return Err(io::Error::other("the sync failed"));
        }
        let file = state.files.get_mut(&self.name).expect("an open file");
        file.sync();
        drop(state);
        self.disk.pause().await;
        Ok(buffer)
    }

    async fn read_at(&self, offset: u64, len: usize) -> io::Result<AlignedBuf> {
        self.disk.pause().await;
        let mut buffer = AlignedBuf::zeroed(len);
        let content = self.disk.0.borrow().files[&self.name].read(offset as usize, len);
        buffer.as_mut_slice()[..len].copy_from_slice(&content);
        self.disk.pause().await;
        Ok(buffer)
    }
}
