//! Pessimistic requests of this core that wait for a key, and how they are woken.
//!
//! A request takes its place in the queue while it holds the key's latch, and whoever removes the lock wakes it under the
//! same latch: so nobody begins to wait for a lock that is gone.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use base::{CoreId, Instant};
use bytes::Bytes;
use executor::Class;
use futures_channel::oneshot;
use mvcc::txn::{LockWaits, Released, TxnError, WAKE_UP_DELAY, Wait, Waiter, WaiterId, WaitsFull, Woken};
use proto::{deadlock, kvrpcpb as kv};

use crate::core::{Control, CoreHost, reply};
use crate::engine::Engine;

/// Requests of one core that wait at most.
const WAITERS_MAX: usize = 10_000;

/// How long a request waits for core 0's word on circles before it waits for the lock alone: a circle ends by its time, too.
const DETECT_WAIT: Duration = Duration::from_millis(500);

/// One core's queues.
pub(crate) struct TxnWaits {
    queues: RefCell<LockWaits>,
    turns: RefCell<BTreeMap<WaiterId, oneshot::Sender<Woken>>>,
}

/// A place in a queue, given up when this is dropped.
pub(crate) struct Place {
    waits: Rc<TxnWaits>,
    id: WaiterId,
    until: Instant,
    turn: oneshot::Receiver<Woken>,
}

impl Default for TxnWaits {
    fn default() -> TxnWaits {
        TxnWaits { queues: RefCell::new(LockWaits::new(WAITERS_MAX)), turns: RefCell::default() }
    }
}

impl TxnWaits {
    /// Takes a place in the queue of an encoded key.
    ///
    /// # Errors
    /// [`WaitsFull`].
    pub(crate) fn stand(self: &Rc<Self>, key: &Bytes, waiter: Waiter) -> Result<Place, WaitsFull> {
        let until = waiter.until;
        let id = self.queues.borrow_mut().wait(key, waiter)?;
        let (sender, turn) = oneshot::channel();
        self.turns.borrow_mut().insert(id, sender);
        Ok(Place { waits: self.clone(), id, until, turn })
    }

    /// Locks were removed: who waits for them goes on.
    pub(crate) fn released(self: &Rc<Self>, all: &[Released]) {
        let mut later = false;
        for released in all {
            let woken = self.queues.borrow_mut().released(executor::now(), released);
            if let Some((id, woken)) = woken {
                self.wake(id, woken);
                later = true;
            }
        }
        if later && self.len() > 0 {
            let waits = self.clone();
            executor::spawn_local(Class::Foreground, async move {
                executor::sleep(WAKE_UP_DELAY).await;
                let due = waits.queues.borrow_mut().due(executor::now());
                due.into_iter().for_each(|(id, woken)| waits.wake(id, woken));
            });
        }
    }

    /// A key was locked.
    pub(crate) fn locked(&self, key: &Bytes) {
        self.queues.borrow_mut().locked(key);
    }

    /// How many requests wait.
    pub(crate) fn len(&self) -> usize {
        self.queues.borrow().len()
    }

    fn wake(&self, id: WaiterId, woken: Woken) {
        if let Some(turn) = self.turns.borrow_mut().remove(&id) {
            // One that has just given up needs no word.
            let _ = turn.send(woken);
        }
    }
}

impl Place {
    /// Waits for its turn.
    pub(crate) async fn wait(mut self) -> Woken {
        let left = self.until.since(executor::now());
        match executor::timeout(left, &mut self.turn).await {
            Ok(Ok(woken)) => woken,
            Ok(Err(_)) | Err(_) => Woken::TimedOut,
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.waits.turns.borrow_mut().remove(&self.id);
        self.waits.queues.borrow_mut().give_up(self.id);
    }
}

/// An edge of the node's graph of waits, taken out when this is dropped.
pub(crate) struct Edge<E: Engine> {
    host: Rc<CoreHost<E>>,
    wait: Wait,
}

impl<E: Engine> Edge<E> {
    /// Notes a wait at core 0.
    ///
    /// # Errors
    /// [`TxnError::Deadlock`] if it would close a circle.
    pub(crate) async fn note(host: &Rc<CoreHost<E>>, wait: Wait) -> Result<Edge<E>, TxnError> {
        let (place, answer) = reply();
        host.control(CoreId(0), Control::Wait { wait: wait.clone(), reply: place });
        let edge = Edge { host: host.clone(), wait };
        match executor::timeout(DETECT_WAIT, answer.wait()).await {
            Ok(Some(Some(circle))) => Err(TxnError::Deadlock(Box::new(deadlock_of(&edge.wait, &circle)))),
            Ok(Some(None) | None) | Err(_) => Ok(edge),
        }
    }
}

impl<E: Engine> Drop for Edge<E> {
    fn drop(&mut self) {
        self.host.control(CoreId(0), Control::WaitEnded(self.wait.clone()));
    }
}

/// All waits of this node.
///
/// # Errors
/// If the node is closing.
pub(crate) async fn all<E: Engine>(host: &CoreHost<E>) -> Result<Vec<deadlock::WaitForEntry>, String> {
    let (place, answer) = reply();
    host.control(CoreId(0), Control::Waits { reply: place });
    let waits = answer.wait().await.ok_or("TiKV is Closing")?;
    let entry = |(wait, lasted): (Wait, Duration)| deadlock::WaitForEntry {
        wait_time: lasted.as_millis() as u64,
        ..entry_of(&wait)
    };
    Ok(waits.into_iter().map(entry).collect())
}

fn entry_of(wait: &Wait) -> deadlock::WaitForEntry {
    deadlock::WaitForEntry {
        txn: wait.txn.0,
        wait_for_txn: wait.holder.0,
        key: wait.key.clone(),
        resource_group_tag: wait.tag.clone(),
        ..Default::default()
    }
}

/// The circle as clients are told: from who is refused, back to it.
fn deadlock_of(refused: &Wait, circle: &[Wait]) -> kv::Deadlock {
    kv::Deadlock {
        lock_ts: refused.holder.0,
        lock_key: refused.key.clone(),
        wait_chain: std::iter::once(refused).chain(circle).map(entry_of).collect(),
        deadlock_key: circle.last().map(|wait| wait.key.clone()).unwrap_or_default(),
        ..Default::default()
    }
}
