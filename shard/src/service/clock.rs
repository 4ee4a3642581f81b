//! Timestamps for raw writes of API V2: batches from the placement driver by way of core 0, handed out in order.

use std::cell::Cell;
use std::time::Duration;

use base::CoreId;

use crate::core::{Control, CoreHost, RegionError, reply};
use crate::engine::Engine;

/// Timestamps fetched at once. An idle core keeps none longer than it needs: unused ones are simply skipped.
const BATCH: u32 = 256;

/// How long a write waits for one. A placement driver that restarts is back by then.
const WAIT: Duration = Duration::from_secs(1);

/// One core's supply.
#[derive(Default)]
pub(crate) struct CausalClock {
    next: Cell<u64>,
    end: Cell<u64>,
    /// The [`CoreHost::clock_life`] in which the supply was fetched.
    life: Cell<u64>,
}

impl CausalClock {
    /// A timestamp above all that this core handed out before. A batch is used up within one refill, so a timestamp is
    /// never older than the last refill.
    ///
    /// # Errors
    /// [`RegionError::ServerIsBusy`] if the placement driver does not answer.
    pub(crate) async fn next<E: Engine>(&self, host: &CoreHost<E>) -> Result<u64, RegionError> {
        loop {
            let life = host.clock_life();
            if self.life.replace(life) != life {
                // A write with a lower timestamp than an earlier one would be hidden behind it.
                self.end.set(self.next.get());
            }
            let next = self.next.get();
            if next < self.end.get() {
                self.next.set(next + 1);
                return Ok(next);
            }
            let (place, answer) = reply();
            host.control(CoreId(0), Control::Timestamps { count: BATCH, reply: place });
            let busy =
                |why: String| RegionError::ServerIsBusy { reason: format!("timestamps: {why}"), backoff_ms: 100 };
            let last = match executor::timeout(WAIT, answer.wait()).await {
                Ok(answer) => answer.ok_or(RegionError::Closing)?.map_err(busy)?,
                Err(_) => return Err(busy("the placement driver does not answer".into())),
            };
            // Another task may have refilled meanwhile; the newer batch is the higher one.
            if life == host.clock_life() && last >= self.end.get() {
                self.next.set((last + 1).saturating_sub(u64::from(BATCH)).max(self.end.get()));
                self.end.set(last + 1);
            }
        }
    }
}
