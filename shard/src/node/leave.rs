//! Handing leaders away before a stop, so that clients wait for a transfer and not for an election.

use std::time::Duration;

use crate::core::CoreHost;
use crate::engine::Engine;

/// How long that may take. A transfer takes a few round trips; what is not away by then is elected elsewhere once this
/// node is gone.
pub(super) const LIMIT: Duration = Duration::from_secs(3);
/// Time between two looks.
const ROUND: Duration = Duration::from_millis(20);
/// How long none leads here before the node goes. Clients still hear from here who leads instead.
const LAST_WORDS: Duration = Duration::from_millis(100);
/// Leaders that are asked to go at a time, per shard: each makes another node campaign.
const LEADERS_PER_ROUND: usize = 64;

/// Hands all leaders of this core to followers that answer and have the log. Returns at once if there are none, as on a
/// cluster of one node.
pub(super) async fn hand_over<E: Engine>(host: &CoreHost<E>) {
    let until = executor::now() + LIMIT;
    let mut first = None;
    let mut quiet_since = None;
    loop {
        let left: usize = host.shards().iter().map(|shard| shard.hand_leaders_over(LEADERS_PER_ROUND)).sum();
        let (first, now) = (*first.get_or_insert(left), executor::now());
        // Some that were under way to this node may still come, and go again.
        quiet_since = (left == 0).then(|| quiet_since.unwrap_or(now));
        let is_done = first == 0 || quiet_since.is_some_and(|since| now.since(since) >= LAST_WORDS);
        if is_done || now >= until {
            if first > 0 {
                let handed_over = first.saturating_sub(left);
                tracing::info!(core = host.core.0, handed_over, left, "leaders were handed to other nodes");
            }
            return;
        }
        executor::sleep(ROUND).await;
    }
}
