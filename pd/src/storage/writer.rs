//! The one task that writes the journal, and the line in front of it.
//!
//! Commands change the state in memory at once; their changes stand in line here and become durable together, as
//! many as have come while the last write was under way. Nobody is answered before what they did, or saw, is durable.

use super::{Journal, JournalError};
use crate::metrics::{PdMetrics, add};
use crate::signal::Signal;
use crate::state::State;
use bytes::{Bytes, BytesMut};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

/// Most bytes of one record, unless a single command has more.
const RECORD_BYTES: usize = 512 << 10;
/// With more than this in line, new commands wait.
const LINE_BYTES_MAX: usize = 8 << 20;
/// How long a command waits for room in the line before it is refused.
const ADMIT_TIMEOUT: Duration = Duration::from_secs(2);
/// After this time without a change the journal is sealed.
const REST_AFTER: Duration = Duration::from_millis(10);

/// The journal has failed or was closed: nothing can become durable any more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the placement driver's journal is closed: {0}")]
pub(crate) struct Closed(pub(crate) String);

/// The line is full and did not move in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the placement driver's journal is too slow: {0} bytes wait for it")]
pub(crate) struct Backlog(pub(crate) usize);

struct Waiting {
    number: u64,
    revision: i64,
    changes: Bytes,
}

/// The line, and how far it has got.
pub(crate) struct Writer {
    state: Rc<RefCell<State>>,
    journal: Rc<dyn Journal>,
    metrics: Rc<PdMetrics>,
    line: RefCell<VecDeque<Waiting>>,
    line_bytes: Cell<usize>,
    /// Numbers of the newest changes in line and of the newest durable ones.
    queued: Cell<u64>,
    durable: Cell<u64>,
    /// The newest durable revision of the keys: what watchers may see.
    durable_revision: Cell<i64>,
    closed: RefCell<Option<Closed>>,
    stopping: Cell<bool>,
    /// Changes came in, or the writer shall stop.
    work: Signal,
    /// Something became durable, or never will.
    progress: Signal,
}

impl Writer {
    pub(crate) fn new(state: Rc<RefCell<State>>, journal: Rc<dyn Journal>, metrics: Rc<PdMetrics>) -> Writer {
        Writer {
            state,
            journal,
            metrics,
            line: RefCell::default(),
            line_bytes: Cell::new(0),
            // The first image has a number too: nobody is answered before it is there.
            queued: Cell::new(1),
            durable: Cell::new(0),
            durable_revision: Cell::new(0),
            closed: RefCell::new(None),
            stopping: Cell::new(false),
            work: Signal::default(),
            progress: Signal::default(),
        }
    }

    /// Waits until there is room for a command's changes.
    pub(crate) async fn admit(&self) -> Result<(), Backlog> {
        if self.line_bytes.get() <= LINE_BYTES_MAX {
            return Ok(());
        }
        let room = self
            .progress
            .wait(|| (self.line_bytes.get() <= LINE_BYTES_MAX || self.closed.borrow().is_some()).then_some(()));
        executor::timeout(ADMIT_TIMEOUT, room).await.map_err(|_| Backlog(self.line_bytes.get()))
    }

    /// Bytes in line.
    pub(crate) fn backlog(&self) -> usize {
        self.line_bytes.get()
    }

    /// Puts what the state has changed in line; returns the number to wait for.
    pub(crate) fn collect(&self) -> u64 {
        let (changes, revision) = {
            let mut state = self.state.borrow_mut();
            (state.take_changes(), state.space().revision())
        };
        if !changes.is_empty() {
            let mut bytes = BytesMut::new();
            changes.iter().for_each(|change| change.encode(&mut bytes));
            self.queued.set(self.queued.get() + 1);
            self.line_bytes.set(self.line_bytes.get() + bytes.len());
            let waiting = Waiting { number: self.queued.get(), revision, changes: bytes.freeze() };
            self.line.borrow_mut().push_back(waiting);
            self.work.raise();
        }
        self.queued.get()
    }

    /// Waits until everything that the state has changed so far is durable.
    pub(crate) async fn settle(&self) -> Result<(), Closed> {
        let number = self.collect();
        self.progress
            .wait(|| {
                if self.durable.get() >= number {
                    return Some(Ok(()));
                }
                self.closed.borrow().clone().map(Err)
            })
            .await
    }

    /// The newest revision that watchers may see.
    pub(crate) fn durable_revision(&self) -> i64 {
        self.durable_revision.get()
    }

    /// Waits until a revision above `seen` is durable, or never will be.
    pub(crate) async fn revision_above(&self, seen: i64) -> Result<i64, Closed> {
        self.progress
            .wait(|| {
                let durable = self.durable_revision.get();
                if durable > seen {
                    return Some(Ok(durable));
                }
                self.closed.borrow().clone().map(Err)
            })
            .await
    }

    /// Why nothing becomes durable any more.
    pub(crate) fn closed(&self) -> Option<Closed> {
        self.closed.borrow().clone()
    }

    /// Waits until nothing becomes durable any more.
    pub(crate) async fn until_closed(&self) -> Closed {
        self.progress.wait(|| self.closed.borrow().clone()).await
    }

    /// Lets [`Writer::run`] return when the line is empty.
    pub(crate) fn stop(&self) {
        self.stopping.set(true);
        self.work.raise();
    }

    /// Writes until [`Writer::stop`] or an error. Begins with a new image, so that a torn tail is behind us.
    pub(crate) async fn run(&self) -> Result<(), JournalError> {
        let outcome = self.write_all().await;
        let why = match &outcome {
            Ok(()) => String::from("stopped"),
            Err(error) => error.to_string(),
        };
        *self.closed.borrow_mut() = Some(Closed(why));
        self.progress.raise();
        outcome
    }

    async fn write_all(&self) -> Result<(), JournalError> {
        self.replace().await?;
        loop {
            self.collect();
            if !self.line.borrow().is_empty() {
                self.write_some().await?;
                continue;
            }
            if self.stopping.get() {
                return self.journal.rest().await;
            }
            if executor::timeout(REST_AFTER, self.wait_for_work()).await.is_err() {
                self.journal.rest().await?;
                self.wait_for_work().await;
            }
        }
    }

    async fn wait_for_work(&self) {
        let ready = || !self.line.borrow().is_empty() || self.stopping.get();
        self.work.wait(|| ready().then_some(())).await;
    }

    /// Makes the front of the line durable.
    async fn write_some(&self) -> Result<(), JournalError> {
        let (record, number, revision) = self.front();
        if !self.journal.has_room(record.len()) {
            return self.replace().await;
        }
        let len = record.len() as u64;
        self.journal.append(record).await?;
        add(&self.metrics.journal_records_total, 1);
        add(&self.metrics.journal_bytes_total, len);
        self.is_durable(number, revision);
        Ok(())
    }

    /// Writes an image, which makes everything in line durable too.
    async fn replace(&self) -> Result<(), JournalError> {
        let number = self.collect();
        let (image, revision) = {
            let state = self.state.borrow();
            (state.image(), state.space().revision())
        };
        self.journal.replace(image).await?;
        add(&self.metrics.journal_images_total, 1);
        self.is_durable(number, revision);
        Ok(())
    }

    /// One record's worth of the line's front, which stays in line.
    fn front(&self) -> (Bytes, u64, i64) {
        let line = self.line.borrow();
        let first = line.front().expect("the caller saw the line");
        if line.get(1).is_none_or(|second| first.changes.len() + second.changes.len() > RECORD_BYTES) {
            return (first.changes.clone(), first.number, first.revision);
        }
        let (mut record, mut last) = (BytesMut::new(), first);
        for waiting in line.iter() {
            if record.len() + waiting.changes.len() > RECORD_BYTES {
                break;
            }
            record.extend_from_slice(&waiting.changes);
            last = waiting;
        }
        (record.freeze(), last.number, last.revision)
    }

    fn is_durable(&self, number: u64, revision: i64) {
        let mut line = self.line.borrow_mut();
        while line.front().is_some_and(|waiting| waiting.number <= number) {
            let waiting = line.pop_front().expect("just looked at");
            self.line_bytes.set(self.line_bytes.get() - waiting.changes.len());
        }
        drop(line);
        self.durable.set(number);
        self.durable_revision.set(revision);
        self.progress.raise();
    }
}
