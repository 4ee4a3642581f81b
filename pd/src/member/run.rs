//! The loop of a member.
//!
//! One write of the journal is under way at a time. Meanwhile messages are taken, ticks pass, and changes gather: they are
//! proposed together when it has ended, so that each write carries all that came during the one before.

use super::Member;
use crate::clock::lease_now;
use crate::metrics::add;
use crate::raft::{NodeError, Output, Write};
use crate::storage::JournalError;
use base::Instant;
use futures_util::FutureExt as _;
use proto::rpc::LocalFuture;
use std::future::pending;
use std::rc::Rc;
use std::time::Duration;

/// After this time without a write the journal is sealed.
const REST_AFTER: Duration = Duration::from_millis(10);

/// Why a member ends.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    Node(#[from] NodeError),
    #[error("this member was removed from its group")]
    Removed,
    #[error("this member has lost its data")]
    LostData,
}

/// What the journal does.
struct Writing {
    done: LocalFuture<Result<(), JournalError>>,
    /// The node waits for it; else it is a seal.
    is_piece: bool,
}

/// When something is to be done though nothing has happened.
struct Pace {
    /// The next tick; none for a member that is alone.
    tick: Option<Instant>,
    /// When the journal is to be sealed.
    rest: Option<Instant>,
}

impl Member {
    /// Serves until [`Member::stop`], or until the member cannot go on.
    pub(crate) async fn run(self: Rc<Self>) -> Result<(), RunError> {
        let outcome = self.drive().await;
        self.end_term();
        self.over.set(true);
        self.changed.raise();
        outcome
    }

    async fn drive(self: &Rc<Self>) -> Result<(), RunError> {
        if self.node.borrow().is_sole_voter() {
            // Its vote is in the first image then.
            self.node.borrow_mut().campaign();
        }
        let mut pace = Pace { tick: None, rest: None };
        let mut writing: Option<Writing> = None;
        loop {
            self.take_in(&mut pace, writing.is_none());
            let leader = self.node.borrow().leader();
            let outputs = self.node.borrow_mut().poll()?;
            self.carry_out(outputs);
            self.follow_roster();
            self.follow_term();
            if self.node.borrow().leader() != leader {
                self.changed.raise();
            }
            if writing.is_none() {
                writing = self.begin_write(&mut pace);
            }
            let is_out = {
                let node = self.node.borrow();
                node.is_out() && !node.has_write()
            };
            if self.lost_data.get() && writing.is_none() {
                return Err(RunError::LostData);
            }
            if is_out && writing.is_none() {
                return Err(RunError::Removed);
            }
            if self.stopping.get() && writing.is_none() && self.has_settled() {
                return Ok(self.journal.rest().await?);
            }
            let written = self.wait(&mut writing, &pace).await;
            if let Some(outcome) = written {
                outcome?;
                if writing.take().is_some_and(|writing| writing.is_piece) {
                    self.node.borrow_mut().written();
                    pace.rest = Some(executor::now() + REST_AFTER);
                }
            }
        }
    }

    /// Gives the node all that has happened.
    fn take_in(&self, pace: &mut Pace, is_idle: bool) {
        let now = lease_now();
        let mut node = self.node.borrow_mut();
        if node.is_alone() {
            pace.tick = None;
        } else if pace.tick.is_none_or(|due| executor::now() >= due) {
            node.tick(now);
            // Ticks that were missed are lost: patience is not to run out while the member slept.
            pace.tick = Some(executor::now() + self.config.raft_tick);
            drop(node);
            self.promote_who_has_caught_up();
            node = self.node.borrow_mut();
        }
        if self.lines.told_removed() && !node.is_out() {
            node.was_removed();
        }
        self.inbox_bytes.set(0);
        self.inbox.borrow_mut().drain(..).for_each(|message| node.step(now, message));
        if let Some(snapshot) = self.snapshot.borrow_mut().take() {
            node.install(snapshot);
        }
        if !is_idle {
            return;
        }
        if let Some(term) = &*self.term.borrow() {
            term.core.line.collect();
            while let Some((number, changes)) = term.core.line.next_proposal() {
                node.propose(number, changes);
                if self.config.faults.answer_before_commit {
                    term.core.line.committed(number);
                }
                if node.is_alone() {
                    break;
                }
            }
        } else if node.is_sole_voter() && !node.has_write() && node.leads().is_none() {
            node.campaign();
        }
    }

    fn carry_out(&self, outputs: Vec<Output>) {
        for output in outputs {
            match output {
                Output::Send(message) => self.lines.send(&message),
                Output::Committed(number) => {
                    if let Some(term) = self.led_term() {
                        term.core.line.committed(number);
                    }
                }
                // The leader's state has what the group will not have: it must not go on from there.
                Output::Rejected(_) => {
                    self.end_term();
                    self.node.borrow_mut().step_back();
                }
                Output::Changed(number, outcome) => {
                    self.changes.borrow_mut().done(number, outcome);
                    self.changed.raise();
                }
                Output::NotChanged(number) => {
                    self.changes.borrow_mut().not_begun(number);
                    self.changed.raise();
                }
                Output::SnapshotWanted(to) => self.lines.send_snapshot(to, || self.node.borrow().snapshot()),
            }
        }
    }

    /// The term that is served, if the node still leads it: proposals of earlier ones have the same numbers.
    fn led_term(&self) -> Option<Rc<super::Term>> {
        let term = self.term.borrow().clone()?;
        (self.node.borrow().term() == term.number).then_some(term)
    }

    /// Begins and ends what belongs to a term.
    fn follow_term(self: &Rc<Self>) {
        let (leads, right) = {
            let node = self.node.borrow();
            (node.leads(), node.right())
        };
        self.right.set(right);
        let led = self.term.borrow().as_ref().map(|term| term.number);
        if led.is_some() && led != leads {
            self.end_term();
        }
        let is_led = self.term.borrow().is_some();
        if let Some(number) = leads
            && !is_led
            && !self.stopping.get()
            && right.holds(lease_now())
        {
            self.begin_term(number);
            self.wake.notify();
        }
    }

    fn begin_write(&self, pace: &mut Pace) -> Option<Writing> {
        let piece = self.node.borrow_mut().begin_write(|len| self.journal.has_room(len));
        match piece {
            Some(Write::Record(record)) => {
                add(&self.metrics.journal_records_total, 1);
                add(&self.metrics.journal_bytes_total, record.len() as u64);
                Some(Writing { done: self.journal.append(record), is_piece: true })
            }
            Some(Write::Image(image)) => {
                add(&self.metrics.journal_images_total, 1);
                Some(Writing { done: self.journal.replace(image), is_piece: true })
            }
            None if pace.rest.is_some_and(|due| executor::now() >= due) => {
                pace.rest = None;
                Some(Writing { done: self.journal.rest(), is_piece: false })
            }
            None => None,
        }
    }

    /// Whether all that was changed is committed here; what a follower has is the leader's care.
    fn has_settled(&self) -> bool {
        let is_empty = self.term.borrow().as_ref().is_none_or(|term| {
            term.core.line.collect();
            term.core.line.is_empty()
        });
        is_empty || self.node.borrow().leads().is_none()
    }

    /// Waits for something to happen; the outcome of the write, if it is that.
    async fn wait(&self, writing: &mut Option<Writing>, pace: &Pace) -> Option<Result<(), JournalError>> {
        let rest = pace.rest.filter(|_| writing.is_none());
        let due = match (pace.tick, rest) {
            (Some(tick), Some(rest)) => Some(tick.min(rest)),
            (tick, rest) => tick.or(rest),
        };
        let mut timer = std::pin::pin!(
            async {
                match due {
                    Some(due) => executor::sleep_until(due).await,
                    None => pending().await,
                }
            }
            .fuse()
        );
        let written = std::future::poll_fn(|cx| match writing {
            Some(writing) => writing.done.as_mut().poll(cx),
            None => std::task::Poll::Pending,
        });
        futures_util::select_biased! {
            outcome = written.fuse() => Some(outcome),
            () = self.wake.notified().fuse() => None,
            () = timer => None,
        }
    }
}
