//! One file's bytes: durable, current, and the writes in between.
//!
//! A write becomes visible when it completes. A sync makes durable what had completed when it was issued. If the power
//! fails, each write that is not durable, complete or not, has its own fate: lost, kept, or torn at 512 or 4096 bytes.
//! What a failed sync covered is never made durable by a later one, as the kernel has marked those pages clean.

use base::{Prng, hash};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

/// The unit of storage and of the largest tear.
pub(super) const PAGE: usize = 4096;
/// The unit of the smallest tear: a disk's own sector.
const SECTOR: usize = 512;

/// Writes that wait for a sync; beyond that the oldest are written back, as a kernel does.
const UNSYNCED_MAX: usize = 8192;

type Page = Rc<[u8; PAGE]>;
/// By page number; absent pages are zeros.
type Pages = BTreeMap<u64, Page>;

/// A write of whole pages.
struct Write {
    first: u64,
    pages: Vec<Page>,
    /// A failed sync covered it.
    is_orphan: bool,
}

/// A file's content.
#[derive(Default)]
pub(super) struct File {
    len: u64,
    current: Pages,
    durable: Pages,
    /// Writes under way, by number.
    under_way: BTreeMap<u64, Write>,
    writes_total: u64,
    /// Completed writes that no sync has covered, in order of completion, with their place in that order.
    unsynced: VecDeque<(u64, Write)>,
    completed_total: u64,
}

impl File {
    /// A file of zeros.
    pub(super) fn zeroed(len: u64) -> File {
        File { len, ..File::default() }
    }

    /// A file that holds `bytes`, all of them durable.
    pub(super) fn holding(bytes: &[u8]) -> File {
        let pages: Pages = (0..).zip(bytes.chunks(PAGE).map(page)).collect();
        File { len: bytes.len() as u64, current: pages.clone(), durable: pages, ..File::default() }
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Shortens a file that nothing is written to.
    pub(super) fn cut(&mut self, len: u64) {
        self.len = len;
        let (whole, rest) = (len / PAGE as u64, (len % PAGE as u64) as usize);
        for pages in [&mut self.current, &mut self.durable] {
            pages.split_off(&len.div_ceil(PAGE as u64));
            if let Some(last) = pages.get_mut(&whole) {
                Rc::make_mut(last)[rest..].fill(0);
            }
        }
    }

    /// The current bytes; zeros beyond the end.
    pub(super) fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        self.read_into(offset, &mut out);
        out
    }

    /// Fills `out`, which holds zeros, with the current bytes.
    pub(super) fn read_into(&self, offset: u64, out: &mut [u8]) {
        copy(&self.current, offset, out);
    }

    /// The bytes that a power failure would leave if it lost every write.
    pub(super) fn read_durable(&self) -> Vec<u8> {
        let mut out = vec![0; self.len as usize];
        copy(&self.durable, 0, &mut out);
        out
    }

    /// A write of whole pages begins; it shows when it completes.
    pub(super) fn begin_write(&mut self, offset: u64, bytes: &[u8]) -> u64 {
        let pages = bytes.chunks(PAGE).map(page).collect();
        let first = offset / PAGE as u64;
        self.writes_total += 1;
        self.under_way.insert(self.writes_total, Write { first, pages, is_orphan: false });
        self.writes_total
    }

    /// A write completes; with `durable` it needs no sync.
    pub(super) fn complete_write(&mut self, write: u64, durable: bool) {
        let Some(write) = self.under_way.remove(&write) else {
            return;
        };
        write.apply(&mut self.current);
        self.completed_total += 1;
        if durable {
            write.apply(&mut self.durable);
            self.unsynced.iter_mut().for_each(|(_, older)| older.yield_to(&write));
            return;
        }
        self.unsynced.push_back((self.completed_total, write));
        if self.unsynced.len() > UNSYNCED_MAX
            && let Some((_, oldest)) = self.unsynced.pop_front()
        {
            oldest.apply(&mut self.durable);
        }
    }

    /// What a sync that is issued now will cover.
    pub(super) fn begin_sync(&self) -> u64 {
        self.completed_total
    }

    /// A sync that covers the writes up to `covered` has succeeded, or failed.
    pub(super) fn complete_sync(&mut self, covered: u64, failed: bool) {
        let mut left: VecDeque<(u64, Write)> = VecDeque::new();
        for (order, mut write) in std::mem::take(&mut self.unsynced) {
            if order > covered || write.is_orphan || failed {
                write.is_orphan |= failed && order <= covered;
                left.push_back((order, write));
            } else {
                write.apply(&mut self.durable);
                left.iter_mut().for_each(|(_, older)| older.yield_to(&write));
            }
        }
        self.unsynced = left;
    }

    /// Writes that are not durable.
    pub(super) fn unsynced_writes(&self) -> usize {
        self.unsynced.len() + self.under_way.len()
    }

    /// Damages bytes for good, in what is current and in what is durable.
    pub(super) fn corrupt(&mut self, offset: u64, bytes: &[u8]) {
        for (at, byte) in (offset..self.len).zip(bytes) {
            let (number, within) = (at / PAGE as u64, (at % PAGE as u64) as usize);
            for pages in [&mut self.current, &mut self.durable] {
                Rc::make_mut(pages.entry(number).or_insert_with(zeros))[within] = *byte;
            }
        }
    }

    /// What is left after the power failed.
    pub(super) fn after_crash(&self, prng: &mut Prng) -> File {
        let mut pages = self.durable.clone();
        let writes = self.unsynced.iter().map(|(_, write)| write).chain(self.under_way.values());
        for write in writes {
            match prng.below(3) {
                0 => {}
                1 => write.apply(&mut pages),
                _ => write.apply_torn(&mut pages, prng),
            }
        }
        File { len: self.len, current: pages.clone(), durable: pages, ..File::default() }
    }

    /// A hash of the durable bytes.
    pub(super) fn mark(&self) -> u64 {
        self.durable
            .iter()
            .fold(self.len, |mark, (number, page)| hash::fold_bytes(hash::fold(mark, *number), page.as_slice()))
    }
}

impl Write {
    fn apply(&self, pages: &mut Pages) {
        pages.extend((self.first..).zip(self.pages.iter().cloned()));
    }

    /// A newer write is durable: where both wrote, this one has nothing to say any more.
    fn yield_to(&mut self, newer: &Write) {
        for (number, page) in (self.first..).zip(&mut self.pages) {
            if let Some(at) = number.checked_sub(newer.first)
                && let Some(over) = newer.pages.get(at as usize)
            {
                *page = over.clone();
            }
        }
    }

    /// Applies some of its units: each by chance, or all before a point.
    fn apply_torn(&self, pages: &mut Pages, prng: &mut Prng) {
        let unit = if prng.one_in(2) { SECTOR } else { PAGE };
        let units = (self.pages.len() * PAGE / unit) as u64;
        let prefix = prng.one_in(2).then(|| prng.below(units + 1));
        for (number, new) in (self.first..).zip(&self.pages) {
            let page = Rc::make_mut(pages.entry(number).or_insert_with(zeros));
            for (at, sector) in (0u64..).zip(new.chunks(unit)) {
                let index = (number - self.first) * (PAGE / unit) as u64 + at;
                let kept = match prefix {
                    Some(prefix) => index < prefix,
                    None => prng.one_in(2),
                };
                if kept {
                    let start = at as usize * unit;
                    page[start..start + unit].copy_from_slice(sector);
                }
            }
        }
    }
}

fn zeros() -> Page {
    Rc::new([0; PAGE])
}

fn page(bytes: &[u8]) -> Page {
    // A whole page is copied straight to where it stays.
    Page::try_from(Rc::<[u8]>::from(bytes)).unwrap_or_else(|part| {
        let mut page = [0; PAGE];
        page[..part.len()].copy_from_slice(&part);
        Rc::new(page)
    })
}

fn copy(pages: &Pages, offset: u64, out: &mut [u8]) {
    let size = PAGE as u64;
    let end = offset + out.len() as u64;
    for (number, page) in pages.range(offset / size..end.div_ceil(size)) {
        let at = number * size;
        let (from, to) = (offset.max(at), end.min(at + size));
        let source = &page[(from - at) as usize..(to - at) as usize];
        out[(from - offset) as usize..(to - offset) as usize].copy_from_slice(source);
    }
}
