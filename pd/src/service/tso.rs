//! Timestamps for callers: the oracle, the clock and the durable bound brought together.
//!
//! Nothing runs while nobody asks: the oracle looks at the clock when a request finds its last look 50 ms old.

use super::Core;
use crate::metrics::add;
use crate::signal::Signal;
use crate::tso::{NotNow, Oracle, Timestamp};
use base::Instant;
use executor::Class;
use proto::pdpb::{self, TsoRequest, TsoResponse};
use proto::rpc::{Inbound, Outbound, Status};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

/// How often physical follows the clock.
const TICK: Duration = Duration::from_millis(50);
/// Ticks that a request waits for room before it fails.
const ROUNDS_MAX: u32 = 10;
/// How long a request waits for the bound to become durable before it fails.
const SAVE_TIMEOUT: Duration = Duration::from_secs(3);

/// The oracle and what surrounds it.
pub(crate) struct Clock {
    oracle: RefCell<Oracle>,
    ticked: Cell<Option<Instant>>,
    saving: Cell<bool>,
    saved: Signal,
}

impl Clock {
    pub(super) fn resume(bound: u64) -> Clock {
        Clock {
            oracle: RefCell::new(Oracle::resume(bound)),
            ticked: Cell::new(None),
            saving: Cell::new(false),
            saved: Signal::default(),
        }
    }
}

impl Core {
    /// Takes `count` timestamps in a row; the largest is returned.
    ///
    /// # Errors
    /// UNKNOWN for a count of zero or one that never fits, UNAVAILABLE when the bound does not become durable, or when the
    /// member does not lead.
    pub(crate) async fn timestamps(self: &Rc<Self>, count: u32) -> Result<Timestamp, Status> {
        let taken = self.take_timestamps(count).await;
        match &taken {
            Ok(_) => {
                add(&self.metrics.tso_requests_total, 1);
                add(&self.metrics.tso_timestamps_total, u64::from(count));
            }
            Err(_) => add(&self.metrics.tso_failures_total, 1),
        }
        taken
    }

    async fn take_timestamps(self: &Rc<Self>, count: u32) -> Result<Timestamp, Status> {
        if count == 0 {
            return Err(Status::unknown("tso count should be positive"));
        }
        self.tick_if_due();
        let mut rounds = 0;
        loop {
            let taken = self.clock.oracle.borrow_mut().take(count);
            match taken {
                // Given out under the lease: nobody else has given out higher ones before.
                Ok(timestamp) => return self.check_serving().map(|()| timestamp),
                Err(NotNow::NextTick) if rounds == ROUNDS_MAX => {
                    return Err(Status::unknown(
                        "[PD:tso:ErrGenerateTimestamp]generate timestamp failed, generate tso maximum number of retries exceeded",
                    ));
                }
                Err(NotNow::NextTick) => {
                    rounds += 1;
                    executor::sleep(TICK).await;
                    self.tick_if_due();
                }
                Err(NotNow::Bound) => {
                    self.tick();
                    self.bound_is_saved().await?;
                    self.tick();
                }
            }
        }
    }

    fn tick_if_due(self: &Rc<Self>) {
        let now = executor::now();
        if self.clock.ticked.get().is_none_or(|ticked| now.since(ticked) >= TICK) {
            self.tick();
        }
    }

    fn tick(self: &Rc<Self>) {
        self.clock.ticked.set(Some(executor::now()));
        self.clock.oracle.borrow_mut().tick(executor::unix_time().millis());
        let wanted = self.clock.oracle.borrow().wanted_bound();
        if let Some(bound) = wanted
            && !self.clock.saving.replace(true)
        {
            let core = Rc::clone(self);
            drop(executor::spawn_local(Class::Foreground, async move { core.save_bound(bound).await }));
        }
    }

    /// Makes a bound durable and tells the oracle. What else is kept now and then goes with it.
    async fn save_bound(self: Rc<Self>, bound: u64) {
        if self.config.faults.bound_not_persisted {
            self.clock.oracle.borrow_mut().saved(bound);
            self.clock.saving.set(false);
            self.clock.saved.raise();
            return;
        }
        let min_resolved_ts = self.min_resolved_ts();
        let outcome = self
            .write(|state| {
                state.set_timestamp_bound(bound);
                if let Some(ts) = min_resolved_ts {
                    state.set_min_resolved_ts(ts);
                }
            })
            .await;
        match outcome {
            Ok(()) => {
                add(&self.metrics.tso_bounds_total, 1);
                self.clock.oracle.borrow_mut().saved(bound);
            }
            Err(status) => tracing::warn!(%status, bound, "the bound of timestamps could not be saved"),
        }
        self.clock.saving.set(false);
        self.clock.saved.raise();
    }

    async fn bound_is_saved(&self) -> Result<(), Status> {
        let saved = self.clock.saved.wait(|| (!self.clock.saving.get()).then_some(()));
        let timely = executor::timeout(SAVE_TIMEOUT, saved).await;
        self.check_serving()?;
        if timely.is_err() {
            return Err(Status::unavailable(
                "[PD:tso:ErrGenerateTimestamp]generate timestamp failed, its bound cannot be saved",
            ));
        }
        Ok(())
    }

    /// A timestamp as one number.
    pub(crate) async fn fresh_timestamp(self: &Rc<Self>) -> Result<u64, Status> {
        Ok(self.timestamps(1).await?.compose())
    }

    /// Answers the requests of a stream in order, until the client half-closes.
    pub(super) async fn serve_tso(
        self: &Rc<Self>,
        mut requests: Inbound<TsoRequest>,
        answers: Outbound<TsoResponse>,
    ) -> Result<(), Status> {
        while let Some(request) = requests.next().await? {
            self.check_cluster(request.header.as_ref().map_or(0, |header| header.cluster_id))?;
            let timestamp = self.timestamps(request.count).await?;
            let answer =
                TsoResponse { header: self.header(), count: request.count, timestamp: Some(to_wire(timestamp)) };
            answers.send(&answer).await?;
        }
        Ok(())
    }
}

/// The timestamp on the wire.
pub(super) fn to_wire(timestamp: Timestamp) -> pdpb::Timestamp {
    pdpb::Timestamp {
        physical: i64::try_from(timestamp.physical).expect("milliseconds stay below 2^46"),
        logical: i64::try_from(timestamp.logical).expect("below 2^18"),
        suffix_bits: 0,
    }
}
