//! Timestamps: all who wait share one request on one stream.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use futures_channel::oneshot;
use proto::pdpb::{TsoRequest, TsoResponse};
use proto::rpc::{CallContext, Inbound, Outbound, Status};

use super::{BACKOFF_MAX, BACKOFF_MIN, Inner, PdClientError, TRIES};

/// Most timestamps of one request, well under the 2^18 of one physical value.
const BATCH_MAX: u32 = 65_536;
/// Most callers that wait.
const WAITING_MAX: usize = 65_536;
/// A stream without a request for so long is let go.
const IDLE: Duration = Duration::from_secs(60);

/// Callers that wait for timestamps.
#[derive(Default)]
pub(super) struct Queue {
    waiting: RefCell<VecDeque<Waiting>>,
    wake: executor::Notify,
}

struct Waiting {
    count: u32,
    answer: oneshot::Sender<Result<u64, PdClientError>>,
}

impl Queue {
    pub(super) async fn take(&self, count: u32) -> Result<u64, PdClientError> {
        if self.waiting.borrow().len() >= WAITING_MAX {
            return Err(PdClientError::Busy);
        }
        if count > BATCH_MAX {
            let text = format!("at most {BATCH_MAX} timestamps at once, not {count}");
            return Err(PdClientError::Call(Status::invalid_argument(text)));
        }
        let (answer, promise) = oneshot::channel();
        self.waiting.borrow_mut().push_back(Waiting { count, answer });
        self.wake.notify();
        promise.await.unwrap_or_else(|_| Err(PdClientError::Call(Status::cancelled("the client is closed"))))
    }

    /// As many callers as fit into one request; those that have given up are left out.
    fn batch(&self) -> Batch {
        let mut batch = Batch { count: 0, waiting: Vec::new() };
        let mut waiting = self.waiting.borrow_mut();
        while let Some(next) = waiting.front() {
            if batch.count + next.count > BATCH_MAX {
                break;
            }
            let next = waiting.pop_front().expect("just looked at");
            if !next.answer.is_canceled() {
                batch.count += next.count;
                batch.waiting.push(next);
            }
        }
        batch
    }
}

struct Batch {
    count: u32,
    waiting: Vec<Waiting>,
}

impl Batch {
    /// Deals out the timestamps up to `largest`.
    fn answer(self, largest: u64) {
        let mut given = largest - u64::from(self.count);
        for waiting in self.waiting {
            given += u64::from(waiting.count);
            // Whoever has given up meanwhile leaves a gap, which is harmless.
            let _ = waiting.answer.send(Ok(given));
        }
    }

    fn fail(self, error: &PdClientError) {
        for waiting in self.waiting {
            let _ = waiting.answer.send(Err(error.clone()));
        }
    }
}

/// An open stream.
struct Stream {
    requests: Outbound<TsoRequest>,
    answers: Inbound<TsoResponse>,
}

/// Serves the queue for as long as there is a client.
pub(super) async fn run(inner: Rc<Inner>) {
    let mut stream = None;
    loop {
        let batch = inner.tso.batch();
        if batch.waiting.is_empty() {
            if executor::timeout(IDLE, inner.tso.wake.notified()).await.is_err() {
                stream = None;
            }
            continue;
        }
        match fetch(&inner, batch.count, &mut stream).await {
            Ok(largest) => batch.answer(largest),
            Err(error) => batch.fail(&error),
        }
    }
}

/// One request, on a new stream when the old one broke. Timestamps of an answer that was lost are never used.
async fn fetch(inner: &Rc<Inner>, count: u32, stream: &mut Option<Stream>) -> Result<u64, PdClientError> {
    let mut wait = BACKOFF_MIN;
    let mut tries = 0;
    loop {
        tries += 1;
        let error = match executor::timeout(inner.call_timeout(), fetch_once(inner, count, stream)).await {
            Ok(Ok(largest)) => return Ok(largest),
            Ok(Err(error)) => error,
            Err(_) => PdClientError::Call(Status::deadline_exceeded("no timestamp in time")),
        };
        *stream = None;
        let leader = inner.leader.borrow().clone();
        leader.iter().for_each(|leader| inner.leader_failed(leader));
        if tries == TRIES {
            return Err(error);
        }
        executor::sleep(wait).await;
        wait = (wait * 2).min(BACKOFF_MAX);
    }
}

async fn fetch_once(inner: &Rc<Inner>, count: u32, stream: &mut Option<Stream>) -> Result<u64, PdClientError> {
    let open = match stream {
        Some(open) => open,
        None => {
            let leader = inner.leader().await?;
            let (requests, answers) = leader.stub.tso(CallContext::default()).await?;
            stream.insert(Stream { requests, answers })
        }
    };
    let request = TsoRequest { header: inner.header(), count, dc_location: "global".into() };
    open.requests.send(&request).await?;
    let answer = open.answers.next().await?;
    let answer = answer.ok_or_else(|| Status::unavailable("the stream of timestamps has ended"))?;
    super::check(answer.header.as_ref())?;
    let timestamp = answer.timestamp.unwrap_or_default();
    let (physical, logical) = (timestamp.physical.unsigned_abs(), timestamp.logical.unsigned_abs());
    if answer.count != count || logical < u64::from(count) {
        return Err(Status::internal(format!("{count} timestamps were asked for, not {}", answer.count)).into());
    }
    Ok((physical << 18) + logical)
}
