//! `UnsafeDestroyRange`: what a range holds goes from this store at once, without raft.
//!
//! TiDB asks every store for it when a table was dropped and nobody reads it any more: the space comes back without an entry
//! for each region, and without tombstones. It is unsafe since writes to the range that come meanwhile may go, too, on one
//! store and not on another; and what a snapshot or a move had read before brings it back.

use std::rc::Rc;

use bytes::Bytes;
use executor::Class;
use mvcc::Cf;

use super::host::CoreHost;
use super::mail::Reply;
use super::peer::Phase;
use super::shard::Shard;
use crate::engine::{Engine, data_range};

impl<E: Engine> Shard<E> {
    /// Removes all data of `[start, end)` from this shard, durably. Keys without the `z`.
    ///
    /// Cost: a flush of the engine, and a look at what the range still holds.
    ///
    /// # Errors
    /// What the engine says.
    async fn destroy_range(self: &Rc<Self>, start: &Bytes, end: &Bytes) -> Result<(), String> {
        let engine = self.engine.clone();
        let (lower, upper) = data_range(start, end);
        let work = move || engine.erase(&Cf::DATA, &lower, &upper);
        executor::blocking(Class::Background, work).await.map_err(|error| error.to_string())?;
        for peer in self.peers.borrow_mut().values_mut() {
            let region = &peer.meta.region;
            if peer.phase == Phase::Serving && base::keys::overlaps(&region.start_key, &region.end_key, start, end) {
                self.measure(peer);
            }
        }
        Ok(())
    }
}

/// At every core: removes the range from all its shards.
pub(crate) fn begin<E: Engine>(host: &Rc<CoreHost<E>>, start: Bytes, end: Bytes, reply: Reply<Result<(), String>>) {
    let host = host.clone();
    executor::spawn_local(Class::Background, async move {
        let mut result = Ok(());
        for shard in host.shards() {
            result = result.and(shard.destroy_range(&start, &end).await);
        }
        reply.send(result);
    });
}
