//! Reads at any peer: what a client asks for with `replica_read`.
//!
//! ```text
//!  follower or learner                       leader
//!  ── MsgReadIndex, its name ─────────────▶  quorum confirms that it leads
//!  ◀── MsgReadIndexResp, index, name ──────
//!  applied up to the index, snapshot, read
//! ```
//!
//! The question begins after the read has come, so what was acknowledged before the read is at or below the index. An
//! answer counts only under the name of the question that is out, and names never come twice: not in a term, not after
//! a restart, not after a move to another shard. So an answer that was on its way for long finds nobody who waits for
//! it. A change of term or leader ends all questions (`Effect::Role`).

use base::{RegionId, hash};
use proto::kvrpcpb;

use super::error::RegionError;
use super::peer::check_store;
use super::planted::PlantedFault;
use super::shard::{RegionRead, Shard};
use crate::engine::Engine;

impl<E: Engine> Shard<E> {
    /// As [`read`](Shard::read), at any voter or learner: one that does not lead asks its leader up to where it must
    /// have applied the log, and waits for that. A leader waits for its lease, if it has none.
    ///
    /// `stale_read` without knowledge of safe timestamps: a leader reads what is newest, others refuse.
    ///
    /// Cost beside the leader: a round trip to it, and one of its heartbeats to a quorum, shared by all reads that come
    /// meanwhile.
    ///
    /// # Errors
    /// Every [`RegionError`] that the checks of a read can meet; [`RegionError::NotLeader`] if no leader is known or none
    /// answers within a second; [`RegionError::DataIsNotReady`] for a stale read.
    pub async fn read_at_any_peer(&self, context: &kvrpcpb::Context) -> Result<RegionRead<E>, RegionError> {
        check_store(self.store, context)?;
        let region = RegionId(context.region_id);
        let leads = {
            let peers = self.peers.borrow();
            let peer = peers.get(&region).ok_or(RegionError::RegionNotFound(region))?;
            peer.check_here(self.store, context)?;
            if context.stale_read && !peer.leads() {
                peer.check_age(context)?;
                return Err(RegionError::DataIsNotReady { region, peer: peer.meta.peer_id() });
            }
            peer.leads()
        };
        if self.closing.get() {
            return Err(RegionError::Closing);
        }
        if leads {
            self.lease(region).await?;
            return self.read(context);
        }
        let unasked = self.config.is_planted(PlantedFault::ReplicaReadUnasked);
        let index = if unasked { 0 } else { self.read_index(region).await? };
        let peers = self.peers.borrow();
        let peer = peers.get(&region).ok_or(RegionError::RegionNotFound(region))?;
        peer.check_here(self.store, context)?;
        // The epoch is looked at only now: a client may know of a split that this peer had not applied before.
        peer.check_age(context)?;
        if peer.meta.applied_index < index {
            // Another peer of the region has taken the place of the one that asked.
            return Err(RegionError::StaleCommand);
        }
        peer.work.begin();
        Ok(RegionRead {
            region: peer.meta.region.clone(),
            snapshot: self.engine.snapshot(),
            applied_index: peer.meta.applied_index,
            term: peer.term,
        })
    }

    /// Where the names of this life's proposals and reads begin. The range of names that an earlier life used, here or
    /// on another shard of the node, is met with a chance of 2^-60 for each of its names: the instant of the start, in
    /// nanoseconds, is mixed over 62 bits.
    pub(crate) fn first_name(&self) -> u64 {
        let started = [executor::unix_time().0, executor::now().0, u64::from(self.id.0), self.last_event.get()];
        started.into_iter().fold(self.seed, hash::fold) >> 2
    }
}
