//! What a leader has changed and the group has not committed yet.
//!
//! Commands change the leader's state in memory at once; their changes stand in line here, go to the group as proposals,
//! as many in one as have come while the last write was under way, and leave the line when they are committed. Nobody is
//! answered before what they did, or saw, is.
//!
//! A line belongs to one term of one leader, as its state does: when the term ends, all who wait are told so.

use crate::signal::Signal;
use crate::state::State;
use bytes::{Bytes, BytesMut};
use executor::Notify;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

/// Most bytes of one proposal, unless a single command has more.
const PROPOSAL_BYTES: usize = 512 << 10;
/// With more than this in line, new commands wait.
const LINE_BYTES_MAX: usize = 8 << 20;
/// How long a command waits for room in the line before it is refused.
const ADMIT_TIMEOUT: Duration = Duration::from_secs(2);

/// The term is over: nothing of this line can be committed any more, or nobody knows whether it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
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
pub(crate) struct Line {
    state: Rc<RefCell<State>>,
    waiting: RefCell<VecDeque<Waiting>>,
    bytes: Cell<usize>,
    /// Numbers of the newest changes in line, of the newest ones proposed, and of the newest ones committed.
    queued: Cell<u64>,
    proposed: Cell<u64>,
    committed: Cell<u64>,
    /// The newest committed revision of the keys: what watchers may see.
    revision: Cell<i64>,
    closed: RefCell<Option<Closed>>,
    /// Called when there is something to propose.
    wake: Rc<Notify>,
    /// Something was committed, or never will be.
    progress: Signal,
}

impl Line {
    /// The line of `state`; what that holds is committed, except for what its outbox has.
    pub(crate) fn new(state: Rc<RefCell<State>>, wake: Rc<Notify>) -> Line {
        let revision = state.borrow().space().revision();
        Line {
            state,
            waiting: RefCell::default(),
            bytes: Cell::new(0),
            queued: Cell::new(0),
            proposed: Cell::new(0),
            committed: Cell::new(0),
            revision: Cell::new(revision),
            closed: RefCell::new(None),
            wake,
            progress: Signal::default(),
        }
    }

    /// Waits until there is room for a command's changes.
    pub(crate) async fn admit(&self) -> Result<(), Backlog> {
        if self.bytes.get() <= LINE_BYTES_MAX {
            return Ok(());
        }
        let room =
            self.progress.wait(|| (self.bytes.get() <= LINE_BYTES_MAX || self.closed.borrow().is_some()).then_some(()));
        executor::timeout(ADMIT_TIMEOUT, room).await.map_err(|_| Backlog(self.bytes.get()))
    }

    /// Bytes in line.
    pub(crate) fn backlog(&self) -> usize {
        self.bytes.get()
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
            self.bytes.set(self.bytes.get() + bytes.len());
            let waiting = Waiting { number: self.queued.get(), revision, changes: bytes.freeze() };
            self.waiting.borrow_mut().push_back(waiting);
            self.wake.notify();
        }
        self.queued.get()
    }

    /// Waits until everything that the state has changed so far is committed.
    pub(crate) async fn settle(&self) -> Result<(), Closed> {
        let number = self.collect();
        self.progress
            .wait(|| {
                if self.committed.get() >= number {
                    return Some(Ok(()));
                }
                self.closed.borrow().clone().map(Err)
            })
            .await
    }

    /// The newest revision that watchers may see.
    pub(crate) fn committed_revision(&self) -> i64 {
        self.revision.get()
    }

    /// Waits until a revision above `seen` is committed, or never will be.
    pub(crate) async fn revision_above(&self, seen: i64) -> Result<i64, Closed> {
        self.progress
            .wait(|| {
                let committed = self.revision.get();
                if committed > seen {
                    return Some(Ok(committed));
                }
                self.closed.borrow().clone().map(Err)
            })
            .await
    }

    /// Why nothing is committed any more.
    pub(crate) fn closed(&self) -> Option<Closed> {
        self.closed.borrow().clone()
    }

    /// Waits until nothing is committed any more.
    pub(crate) async fn until_closed(&self) -> Closed {
        self.progress.wait(|| self.closed.borrow().clone()).await
    }

    /// The term is over. The first reason stays.
    pub(crate) fn close(&self, why: &str) {
        self.closed.borrow_mut().get_or_insert_with(|| Closed(why.to_owned()));
        self.progress.raise();
    }

    /// One proposal's worth of what was not proposed yet, with the number of its last changes. They stay in line.
    pub(crate) fn next_proposal(&self) -> Option<(u64, Bytes)> {
        let line = self.waiting.borrow();
        let mut rest = line.iter().skip_while(|waiting| waiting.number <= self.proposed.get()).peekable();
        let first = rest.next()?;
        let fits = |bytes: usize, more: &Waiting| bytes + more.changes.len() <= PROPOSAL_BYTES;
        let (mut last, mut record) = (first.number, first.changes.clone());
        if rest.peek().is_some_and(|second| fits(record.len(), second)) {
            let mut joined = BytesMut::from(&record[..]);
            for waiting in rest {
                if !fits(joined.len(), waiting) {
                    break;
                }
                joined.extend_from_slice(&waiting.changes);
                last = waiting.number;
            }
            record = joined.freeze();
        }
        self.proposed.set(last);
        Some((last, record))
    }

    /// Whether something is in line.
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.borrow().is_empty()
    }

    /// All changes up to `number` are committed.
    pub(crate) fn committed(&self, number: u64) {
        let mut line = self.waiting.borrow_mut();
        while line.front().is_some_and(|waiting| waiting.number <= number) {
            let waiting = line.pop_front().expect("just looked at");
            self.bytes.set(self.bytes.get() - waiting.changes.len());
            self.revision.set(waiting.revision);
        }
        drop(line);
        self.committed.set(self.committed.get().max(number));
        self.progress.raise();
    }
}
