//! One life of an engine: random calls, each answer compared with the model.

use std::path::{Path, PathBuf};

use base::Prng;
use bytes::Bytes;
use mvcc::{Cf, Cursor, ReadError, ReadView};
use shard::engine::{Engine, EngineIter, EngineSnapshot, Entry, RegionView, Tier, WriteBatch, WriteError, WriteMode};

use super::model::{Model, Op, State};

type Pair = (Vec<u8>, Vec<u8>);

/// How often the interesting things happened, so that a script that tests nothing is noticed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Marks {
    pub incomplete: u64,
    pub not_cached: u64,
    pub flushes: u64,
    pub ingests: u64,
    pub erases: u64,
}

pub(crate) struct Script<'a, E: Engine> {
    pub engine: &'a E,
    pub model: &'a mut Model,
    pub folder: &'a Path,
    pub marks: &'a mut Marks,
    prng: Prng,
    snapshots: Vec<(E::Snapshot, State)>,
    tables: u32,
}

impl<'a, E: Engine> Script<'a, E> {
    pub(crate) fn new(engine: &'a E, model: &'a mut Model, folder: &'a Path, marks: &'a mut Marks, seed: u64) -> Self {
        Script { engine, model, folder, marks, prng: Prng::new(seed), snapshots: Vec::new(), tables: 0 }
    }

    /// Compares what the engine holds after it was opened with what it may hold.
    pub(crate) fn check_restart(&mut self) {
        let snapshot = self.engine.snapshot();
        let mut found = State::default();
        for cf in Cf::ALL {
            let mut iter = snapshot.iter(cf, b"", b"", Tier::Disk, false);
            let mut at = own(iter.first());
            while let Some((key, value)) = at {
                found.insert(cf, key, value);
                at = own(iter.next());
            }
        }
        self.model.restart(found).expect("the state after a kill");
    }

    pub(crate) fn run(&mut self, steps: u64) {
        for _ in 0..steps {
            match self.prng.below(100) {
                0..35 => self.write(),
                35..50 => self.read(),
                50..70 => self.iterate(),
                70..78 => self.scan(),
                78..86 => self.keep_snapshot(),
                86..91 => self.flush(),
                91..95 => self.ingest(),
                95..97 => self.erase(),
                _ => self.compact(),
            }
        }
    }

    fn write(&mut self) {
        let count = self.prng.range(1, 9);
        let ops: Vec<Op> = (0..count).map(|_| self.op()).collect();
        let mut batch = self.engine.batch();
        for op in &ops {
            match op {
                Op::Put(cf, key, value) => batch.put(Cf::ALL[*cf], key, value),
                Op::Delete(cf, key) => batch.delete(Cf::ALL[*cf], key),
                Op::DeleteRange(cf, start, end) => batch.delete_range(Cf::ALL[*cf], start, end),
            }
        }
        match self.engine.write(batch, WriteMode::Core) {
            Ok(()) => {}
            Err(WriteError::Incomplete(batch)) => {
                self.marks.incomplete += 1;
                self.engine.write(batch, WriteMode::Helper).expect("a healthy engine");
            }
            Err(error) => panic!("{error}"),
        }
        self.model.write(ops);
    }

    fn op(&mut self) -> Op {
        let cf = self.cf().index();
        match self.prng.below(20) {
            0 => {
                let (start, end) = self.bounds();
                Op::DeleteRange(cf, start, end)
            }
            1..6 => Op::Delete(cf, self.key()),
            _ => Op::Put(cf, self.key(), self.value()),
        }
    }

    fn read(&mut self) {
        let cf = self.cf();
        let keys: Vec<Vec<u8>> = (0..self.prng.range(1, 6)).map(|_| self.key()).collect();
        let expected: Vec<Option<&Vec<u8>>> = keys.iter().map(|key| self.model.now.family(cf).get(key)).collect();
        let found = self.engine.multi_get(cf, &keys, Tier::Cache);
        for ((key, expected), found) in keys.iter().zip(expected).zip(found) {
            for found in [found, self.engine.get(cf, key, Tier::Cache)] {
                let found = match found {
                    Err(ReadError::NotCached) => {
                        self.marks.not_cached += 1;
                        self.engine.get(cf, key, Tier::Disk)
                    }
                    other => other,
                };
                assert_eq!(found.expect("a healthy engine").as_deref(), expected.map(Vec::as_slice));
            }
        }
    }

    fn keep_snapshot(&mut self) {
        if self.snapshots.len() >= 3 {
            let at = self.prng.below(3) as usize;
            self.snapshots.swap_remove(at);
        }
        self.snapshots.push((self.engine.snapshot(), self.model.now.clone()));
    }

    /// A kept snapshot, or one of now.
    fn any_snapshot(&mut self) -> (E::Snapshot, State) {
        let old = self.prng.one_in(2);
        match self.prng.pick(&self.snapshots) {
            Some(kept) if old => kept.clone(),
            _ => (self.engine.snapshot(), self.model.now.clone()),
        }
    }

    /// Random moves of an iterator. Where the cache has not what a move needs, an iterator that may read the disk goes
    /// on from the last known place.
    fn iterate(&mut self) {
        let (snapshot, state) = self.any_snapshot();
        let cf = self.cf();
        let (lower, upper) = self.bounds();
        let expected = state.range(cf, &lower, &upper);
        let mut iter = snapshot.iter(cf, &lower, &upper, Tier::Cache, self.prng.one_in(2));
        let mut at: Option<usize> = None;
        let mut sought = false;
        for _ in 0..self.prng.range(3, 20) {
            let key = self.key();
            let choice = self.prng.below(10);
            let next = match choice {
                0 => (!expected.is_empty()).then_some(0),
                1 => expected.len().checked_sub(1),
                2 => expected.iter().position(|(found, _)| *found >= key),
                3 => expected.iter().rposition(|(found, _)| *found <= key),
                4..8 => at.map(|at| at + 1).filter(|at| *at < expected.len()),
                _ => at.and_then(|at| at.checked_sub(1)),
            };
            // Where a move past an end leads is the business of the next seek.
            if choice >= 4 && !sought {
                continue;
            }
            let go = |iter: &mut <E::Snapshot as EngineSnapshot>::Iter| {
                let found = match choice {
                    0 => iter.first(),
                    1 => iter.last(),
                    2 => iter.seek(&key),
                    3 => iter.seek_for_prev(&key),
                    4..8 => iter.next(),
                    _ => iter.prev(),
                };
                found.map(|entry| entry.map(|(key, value)| (key.to_vec(), value.to_vec())))
            };
            let mut found = go(&mut iter);
            if found == Err(ReadError::NotCached) {
                self.marks.not_cached += 1;
                iter = snapshot.iter(cf, &lower, &upper, Tier::Disk, false);
                if let Some(at) = at {
                    own(iter.seek(&expected[at].0));
                }
                found = go(&mut iter);
            }
            let found = found.expect("a healthy engine");
            assert_eq!(found.as_ref(), next.map(|at| &expected[at]), "move {choice} to {key:?}");
            assert_eq!(iter.entry().map(|(key, _)| key.to_vec()), found.map(|(key, _)| key));
            at = next;
            sought = at.is_some();
        }
    }

    /// A whole scan in either direction through a region's view, handed to a "helper" when the cache fails it.
    fn scan(&mut self) {
        let (snapshot, state) = self.any_snapshot();
        let cf = self.cf();
        let (start, end) = self.bounds();
        let (start, end) = (start[1..].to_vec(), end[1..].to_vec());
        let strip = |(key, value): Pair| (key[1..].to_vec(), value);
        let (from, to) = shard::engine::data_range(&start, &end);
        let mut expected: Vec<Pair> = state.range(cf, &from, &to).into_iter().map(strip).collect();
        let up = self.prng.one_in(2);
        if !up {
            expected.reverse();
        }
        let view = RegionView::new(snapshot, Tier::Cache, start.clone().into(), end.clone().into());
        let mut found: Vec<Pair> = Vec::new();
        let mut cursor = view.cursor(cf, b"", b"").expect("cursors open");
        loop {
            let entry = if up { cursor.next_entry() } else { cursor.prev_entry() };
            match entry {
                Ok(Some((key, value))) => found.push((key.to_vec(), value.to_vec())),
                Ok(None) => break,
                Err(ReadError::NotCached) => {
                    self.marks.not_cached += 1;
                    cursor = view.clone().at(Tier::Disk).cursor(cf, b"", b"").expect("cursors open");
                    if let Some((last, _)) = found.pop() {
                        let sought = if up { cursor.seek(&last) } else { cursor.seek_for_prev(&last) };
                        sought.expect("a healthy engine");
                    }
                }
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(found, expected);
    }

    fn flush(&mut self) {
        self.engine.flush().expect("a healthy engine");
        assert_eq!(self.engine.flushed_sequence(), self.engine.last_sequence());
        self.model.flush();
        self.marks.flushes += 1;
    }

    fn ingest(&mut self) {
        let cf = self.cf();
        let mut files: Vec<PathBuf> = Vec::new();
        for _ in 0..self.prng.range(1, 3) {
            let mut entries: Vec<Pair> = (0..self.prng.range(1, 12)).map(|_| (self.key(), self.value())).collect();
            entries.sort();
            entries.dedup_by(|a, b| a.0 == b.0);
            self.tables += 1;
            let path = self.folder.join(format!("table-{}", self.tables));
            let bytes = entries.iter().map(|(key, value)| (Bytes::from(key.clone()), Bytes::from(value.clone())));
            let info = self.engine.build_table(cf, &path, bytes.collect::<Vec<_>>()).expect("ascending entries");
            assert_eq!(info.entries, entries.len() as u64);
            // One call a file, so that the model need not know in which order one call orders overlapping files.
            self.engine.ingest(cf, std::slice::from_ref(&path)).expect("a healthy engine");
            self.model.ingest(cf, &entries);
            files.push(path);
        }
        // An ingest that was cut short is done again from the same file.
        if self.prng.one_in(4) {
            let path = files.last().expect("at least one");
            assert!(self.engine.ingest(cf, std::slice::from_ref(path)).is_ok());
        }
        self.marks.ingests += 1;
    }

    fn erase(&mut self) {
        let (start, end) = self.bounds();
        // Their keys in the range may go.
        self.snapshots.clear();
        self.engine.erase(&Cf::DATA, &start, &end).expect("a healthy engine");
        let bury = |cf: Cf| Op::DeleteRange(cf.index(), start.clone(), end.clone());
        self.model.write(Cf::DATA.map(bury).to_vec());
        self.model.flush();
        self.marks.erases += 1;
    }

    fn compact(&mut self) {
        let (start, end) = self.bounds();
        self.engine.compact(self.cf(), &start, &end).expect("a healthy engine");
    }

    fn cf(&mut self) -> Cf {
        // Mostly one family, so that its keys meet.
        Cf::ALL[[0, 0, 0, 0, 1, 2, 3][self.prng.below(7) as usize]]
    }

    /// Few keys, with neighbours at zero distance and such that end in 0x00 or 0xFF.
    fn key(&mut self) -> Vec<u8> {
        let mut key = vec![b'z', b'a' + self.prng.below(6) as u8, b'a' + self.prng.below(6) as u8];
        match self.prng.below(8) {
            0 => key.push(0),
            1 => key.push(0xFF),
            _ => {}
        }
        key
    }

    fn value(&mut self) -> Vec<u8> {
        let len = if self.prng.one_in(30) { 5000 } else { self.prng.below(40) };
        let mut value = vec![0; len as usize];
        self.prng.fill(&mut value);
        value
    }

    fn bounds(&mut self) -> (Vec<u8>, Vec<u8>) {
        let (a, b) = (self.key(), self.key());
        if a < b { (a, b) } else { (b, a) }
    }
}

fn own(found: Result<Option<Entry<'_>>, ReadError>) -> Option<Pair> {
    found.expect("a read that may go to the disk").map(|(key, value)| (key.to_vec(), value.to_vec()))
}
