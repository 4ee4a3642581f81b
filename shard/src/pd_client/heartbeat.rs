//! The stream on which the regions' leaders report, and on which the placement driver asks something of them.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{Either, select};
use proto::pdpb::{RegionHeartbeatRequest, RegionHeartbeatResponse};
use proto::rpc::{CallContext, Inbound, Outbound, Status};

use super::{BACKOFF_MAX, Inner, PdClientError};

/// Wait before the stream is opened again. It doubles up to [`BACKOFF_MAX`] while streams cannot be opened, or end at
/// once: each new one has every region reported.
const REOPEN_WAIT: Duration = Duration::from_millis(200);
/// A stream that lived so long was a good one.
const GOOD_STREAM: Duration = Duration::from_secs(5);

/// What the stream brings.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "orders are the common case and are handed over at once")]
pub enum PdEvent {
    /// The stream is new. The placement driver may have forgotten who leads: report every region that this store
    /// leads.
    Connected,
    /// The placement driver asks something of a region, or refuses a report (then the header has an error).
    Order(RegionHeartbeatResponse),
}

type Handler = Rc<dyn Fn(PdEvent)>;

/// Reports on their way: the newest of each region, so it is bounded by the number of regions.
#[derive(Default)]
pub(super) struct Outbox {
    reports: RefCell<BTreeMap<u64, RegionHeartbeatRequest>>,
    wake: executor::Notify,
    handler: RefCell<Option<Handler>>,
    connected: Cell<bool>,
}

impl Outbox {
    pub(super) fn put(&self, mut report: RegionHeartbeatRequest) {
        let Some(id) = report.region.as_ref().map(|region| region.id) else {
            return;
        };
        let mut reports = self.reports.borrow_mut();
        if let Some(older) = reports.remove(&id) {
            join(&older, &mut report);
        }
        reports.insert(id, report);
        drop(reports);
        self.wake.notify();
    }

    pub(super) fn listen(&self, handler: Handler) {
        *self.handler.borrow_mut() = Some(handler);
        if self.connected.get() {
            self.tell(PdEvent::Connected);
        }
    }

    fn tell(&self, event: PdEvent) {
        let handler = self.handler.borrow().clone();
        if let Some(handler) = handler {
            handler(event);
        }
    }

    /// Puts a report back that was not sent, unless a newer one has come.
    fn put_back(&self, report: RegionHeartbeatRequest) {
        let Some(id) = report.region.as_ref().map(|region| region.id) else {
            return;
        };
        let mut reports = self.reports.borrow_mut();
        match reports.get_mut(&id) {
            Some(newer) => join(&report, newer),
            None => drop(reports.insert(id, report)),
        }
    }
}

/// Adds the traffic of a report that is not sent to the one that replaces it.
fn join(older: &RegionHeartbeatRequest, newer: &mut RegionHeartbeatRequest) {
    newer.bytes_written += older.bytes_written;
    newer.bytes_read += older.bytes_read;
    newer.keys_written += older.keys_written;
    newer.keys_read += older.keys_read;
    if let (Some(older), Some(newer)) = (&older.interval, &mut newer.interval) {
        newer.start_timestamp = newer.start_timestamp.min(older.start_timestamp);
    }
}

/// Keeps the stream open for as long as there is a client.
pub(super) async fn run(inner: Rc<Inner>) {
    let mut wait = REOPEN_WAIT;
    loop {
        match open(&inner).await {
            Ok((requests, answers)) => {
                let opened = executor::now();
                inner.heartbeats.connected.set(true);
                inner.heartbeats.tell(PdEvent::Connected);
                let ended = serve(&inner, requests, answers).await;
                inner.heartbeats.connected.set(false);
                if executor::now().since(opened) >= GOOD_STREAM {
                    wait = REOPEN_WAIT;
                }
                tracing::debug!(%ended, "the stream of region heartbeats has ended");
            }
            Err(error) => {
                tracing::debug!(%error, "the stream of region heartbeats cannot be opened")
            }
        }
        let leader = inner.leader.borrow().clone();
        leader.iter().for_each(|leader| inner.leader_failed(leader));
        executor::sleep(wait).await;
        wait = (wait * 2).min(BACKOFF_MAX);
    }
}

type Streams = (Outbound<RegionHeartbeatRequest>, Inbound<RegionHeartbeatResponse>);

async fn open(inner: &Rc<Inner>) -> Result<Streams, PdClientError> {
    let leader = inner.leader().await?;
    // A call that is left over is about the leader that was just found.
    let _ = inner.moved.notified().now_or_never();
    Ok(leader.stub.region_heartbeat(CallContext::default()).await?)
}

/// Sends reports and passes orders on until the stream ends.
async fn serve(
    inner: &Rc<Inner>,
    requests: Outbound<RegionHeartbeatRequest>,
    mut answers: Inbound<RegionHeartbeatResponse>,
) -> Status {
    let send = async {
        loop {
            let next = inner.heartbeats.reports.borrow_mut().pop_first();
            let Some((_, mut report)) = next else {
                inner.heartbeats.wake.notified().await;
                continue;
            };
            report.header = inner.header();
            if let Err(status) = requests.send(&report).await {
                inner.heartbeats.put_back(report);
                return status;
            }
        }
    };
    let receive = async {
        loop {
            match answers.next().await {
                Ok(Some(order)) => inner.heartbeats.tell(PdEvent::Order(order)),
                Ok(None) => return Status::unavailable("the placement driver has ended it"),
                Err(status) => return status,
            }
        }
    };
    // Whoever else finds another leader first: the reports belong there.
    let moved = async {
        inner.moved.notified().await;
        Status::unavailable("another member leads")
    };
    let (send, receive) = (pin!(send), pin!(receive));
    match select(select(send, receive), pin!(moved)).await {
        Either::Left((Either::Left((status, _)) | Either::Right((status, _)), _)) => status,
        Either::Right((status, _)) => status,
    }
}
