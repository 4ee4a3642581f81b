//! The naive model: whole states in ordered maps, and the list of what happened since the last flush.

use std::collections::BTreeMap;

use mvcc::Cf;
use serde::{Deserialize, Serialize};

/// Entries of one family.
pub(crate) type Family = BTreeMap<Vec<u8>, Vec<u8>>;

/// The contents of an engine.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct State {
    families: [Family; 4],
}

impl State {
    pub(crate) fn family(&self, cf: Cf) -> &Family {
        &self.families[cf.index()]
    }

    pub(crate) fn insert(&mut self, cf: Cf, key: Vec<u8>, value: Vec<u8>) {
        self.families[cf.index()].insert(key, value);
    }

    /// Entries in `[start, end)`, an empty `end` being none.
    pub(crate) fn range(&self, cf: Cf, start: &[u8], end: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
        self.family(cf)
            .iter()
            .filter(|(key, _)| key.as_slice() >= start && (end.is_empty() || key.as_slice() < end))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect()
    }

    /// Family, key, and the first bytes of either value, where they are not the same.
    fn differences(&self, other: &State) -> Vec<(usize, String, Option<String>, Option<String>)> {
        let mut differences = Vec::new();
        for number in 0..4 {
            let (ours, theirs) = (&self.families[number], &other.families[number]);
            let keys: std::collections::BTreeSet<_> = ours.keys().chain(theirs.keys()).collect();
            for key in keys {
                let show = |family: &Family| {
                    let value = family.get(key)?;
                    Some(format!("{:?}…{}", &value[..value.len().min(4)], value.len()))
                };
                let (a, b) = (show(ours), show(theirs));
                if a != b {
                    let name = String::from_utf8_lossy(key).into_owned();
                    differences.push((number, name, a, b));
                }
            }
        }
        differences
    }

    fn apply(&mut self, op: &Op) {
        match op {
            Op::Put(cf, key, value) => {
                self.families[*cf].insert(key.clone(), value.clone());
            }
            Op::Delete(cf, key) => {
                self.families[*cf].remove(key);
            }
            Op::DeleteRange(cf, start, end) => {
                self.families[*cf].retain(|key, _| key < start || key >= end);
            }
        }
    }
}

/// One change; the family by its number.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Op {
    Put(usize, Vec<u8>, Vec<u8>),
    Delete(usize, Vec<u8>),
    DeleteRange(usize, Vec<u8>, Vec<u8>),
}

/// What happened since the state that is surely durable.
#[derive(Clone, Debug, Serialize, Deserialize)]
enum Event {
    /// Durable with all before it, or not at all.
    Write(Vec<Op>),
    /// Durable.
    Ingest(Vec<Op>),
}

/// What an engine holds, and what it may hold after a kill.
#[derive(Clone, Default)]
pub(crate) struct Model {
    pub now: State,
    base: State,
    events: Vec<Event>,
}

impl Model {
    pub(crate) fn write(&mut self, ops: Vec<Op>) {
        for op in &ops {
            self.now.apply(op);
        }
        self.events.push(Event::Write(ops));
    }

    /// Adds the entries of a table file. A write that meets its range is durable then: either it was already, or the
    /// engine has found it in the memtable and flushed.
    pub(crate) fn ingest(&mut self, cf: Cf, entries: &[(Vec<u8>, Vec<u8>)]) {
        let (first, last) = (&entries[0].0, &entries[entries.len() - 1].0);
        let mut durable = 0;
        let mut state = self.base.clone();
        for (at, event) in self.events.iter().enumerate() {
            let (Event::Write(ops) | Event::Ingest(ops)) = event;
            for op in ops {
                let inside = |key: &Vec<u8>| (first..=last).contains(&key);
                let meets = match op {
                    Op::Put(number, key, _) | Op::Delete(number, key) => *number == cf.index() && inside(key),
                    Op::DeleteRange(number, start, end) => {
                        let hit = |key: &Vec<u8>| inside(key) && key >= start && key < end;
                        *number == cf.index() && state.family(cf).keys().any(hit)
                    }
                };
                if meets && matches!(event, Event::Write(_)) {
                    durable = at + 1;
                }
                state.apply(op);
            }
        }
        for event in self.events.drain(..durable) {
            let (Event::Write(ops) | Event::Ingest(ops)) = event;
            for op in &ops {
                self.base.apply(op);
            }
        }
        let puts = |(key, value): &(Vec<u8>, Vec<u8>)| Op::Put(cf.index(), key.clone(), value.clone());
        let ops: Vec<Op> = entries.iter().map(puts).collect();
        for op in &ops {
            self.now.apply(op);
        }
        self.events.push(Event::Ingest(ops));
    }

    pub(crate) fn flush(&mut self) {
        self.base = self.now.clone();
        self.events.clear();
    }

    /// Goes on from what an engine was found to hold after a kill.
    ///
    /// # Errors
    /// That is not a prefix of the order of writes together with all ingests.
    pub(crate) fn restart(&mut self, found: State) -> Result<(), String> {
        let writes = self.events.iter().filter(|event| matches!(event, Event::Write(_))).count();
        for kept in (0..=writes).rev() {
            let mut state = self.base.clone();
            let mut seen = 0;
            for event in &self.events {
                let ops = match event {
                    Event::Ingest(ops) => ops,
                    Event::Write(ops) => {
                        seen += 1;
                        if seen > kept {
                            continue;
                        }
                        ops
                    }
                };
                for op in ops {
                    state.apply(op);
                }
            }
            if state == found {
                self.now = found;
                self.flush();
                return Ok(());
            }
        }
        let differences = self.now.differences(&found);
        Err(format!(
            "it is no prefix of {writes} writes after the last flush; from all of them it differs in {differences:?}"
        ))
    }

    pub(crate) fn to_json(&self) -> String {
        let plain = |state: &State| Cf::ALL.map(|cf| state.range(cf, b"", b""));
        let saved = Saved { now: plain(&self.now), base: plain(&self.base), events: self.events.clone() };
        serde_json::to_string(&saved).expect("plain data")
    }

    pub(crate) fn from_json(text: &str) -> Model {
        let saved: Saved = serde_json::from_str(text).expect("written by to_json");
        let state = |plain: [Vec<(Vec<u8>, Vec<u8>)>; 4]| State { families: plain.map(Family::from_iter) };
        Model { now: state(saved.now), base: state(saved.base), events: saved.events }
    }
}

#[derive(Serialize, Deserialize)]
struct Saved {
    now: [Vec<(Vec<u8>, Vec<u8>)>; 4],
    base: [Vec<(Vec<u8>, Vec<u8>)>; 4],
    events: Vec<Event>,
}
