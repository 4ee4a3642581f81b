//! Core 0's part in merges: source and target come to one shard, and peers that a merge has left behind are ended.

use std::rc::Rc;
use std::time::Duration;

use base::{RegionId, ShardId};
use executor::Class;
use proto::metapb;

use super::core_zero::CoreZero;
use crate::core::directory::MoveTicket;
use crate::core::{Control, MoveError, PeerView, reply};
use crate::engine::Engine;

/// Regions of a merge stay where they are for so long after they were asked to come together.
const PINNED: Duration = Duration::from_secs(5);
/// Regions that may be pinned. Beyond, balancing may part some of them, and they come together again.
const PINS_MAX: usize = 1024;
/// Between two looks at the same region that may have been left behind.
const SUSPICION: Duration = Duration::from_secs(2);

impl<E: Engine> CoreZero<E> {
    /// Regions that balancing leaves where they are.
    pub(super) fn is_pinned(&self, region: RegionId) -> bool {
        self.pinned.borrow().get(&region).is_some_and(|until| executor::now() < *until)
    }

    /// Moves `source` to the shard of `target`, unless it is there or on its way.
    pub(super) fn bring_together(self: &Rc<Self>, source: RegionId, target: RegionId) {
        let now = executor::now();
        {
            let mut pinned = self.pinned.borrow_mut();
            pinned.retain(|_, until| now < *until);
            if pinned.len() < PINS_MAX {
                pinned.insert(source, now + PINNED);
                pinned.insert(target, now + PINNED);
            }
        }
        let ticket = {
            let mut directory = self.directory.borrow_mut();
            let goal = directory.placement(target).map(|held| held.shard);
            match goal.filter(|_| !directory.is_moving(target)) {
                Some(goal) => directory.reserve(source, goal),
                None => None,
            }
        };
        let Some(ticket) = ticket else { return };
        let zero = self.clone();
        executor::spawn_local(Class::Background, async move {
            match zero.carry_out(&ticket).await {
                Some(Ok(())) => tracing::debug!(?ticket, "a source has come to its target"),
                Some(Err(error)) => tracing::debug!(?ticket, %error, "a source stays"),
                None => {}
            }
        });
    }

    /// Carries a reserved move out; `None` if the node is closing.
    pub(super) async fn carry_out(&self, ticket: &MoveTicket) -> Option<Result<(), MoveError>> {
        let host = self.host().ok()?;
        let (reply, answer) = reply();
        host.control(host.core_of(ticket.source), Control::Move { ticket: ticket.clone(), reply });
        let result = answer.wait().await;
        self.directory.borrow_mut().release(ticket);
        result
    }

    /// A region took over a neighbour's range.
    pub(super) fn merged(&self, shard: ShardId, region: &metapb::Region, bytes: u64) {
        self.born(shard, region, bytes);
        self.wake_balancer.notify();
    }

    /// A snapshot of `region` cannot come in, since others here have keys of its range. Those that the placement driver
    /// no longer knows, and whose range it gives to a region of a later version, were left behind by a merge: their
    /// group is gone, and they end. A target that could still take them over by its log gets no snapshot.
    pub(super) fn suspect_those_within(self: &Rc<Self>, region: &metapb::Region) {
        let now = executor::now();
        {
            let mut suspected = self.suspected.borrow_mut();
            suspected.retain(|_, until| now < *until);
            if suspected.contains_key(&RegionId(region.id)) {
                return;
            }
            suspected.insert(RegionId(region.id), now + SUSPICION);
        }
        let coming = RegionId(region.id);
        let within = self.directory.borrow().within(coming, &region.start_key, &region.end_key);
        let zero = self.clone();
        executor::spawn_local(Class::Background, async move {
            for (held, shard) in within {
                zero.end_if_left_behind(held, shard, coming).await;
            }
        });
    }

    /// What a shard's peer knows of its region.
    async fn ask(&self, region: RegionId) -> Option<PeerView> {
        let host = self.host().ok()?;
        let shard = self.directory.borrow().placement(region)?.shard;
        let (reply, answer) = reply();
        host.control(host.core_of(shard), Control::WhoIs { shard, region, reply });
        answer.wait().await?
    }

    async fn end_if_left_behind(&self, held: RegionId, shard: ShardId, coming: RegionId) {
        let (Ok(pd), Ok(host)) = (self.pd(), self.host()) else { return };
        let Some(source) = self.ask(held).await else { return };
        let takes = match source.merges_into.as_ref().map(|target| (RegionId(target.id), version(target))) {
            // It lags behind its own end. Only what comes for its range may take its place.
            None => None,
            Some((target, _)) if target == coming => None,
            // A target that has followed its log since before the merge takes the source over by that.
            Some((target, expected)) => self.ask(target).await.filter(|target| target.began_version <= expected),
        };
        let lags = source.merges_into.is_none() && self.directory.borrow().placement(coming).is_none();
        if takes.is_some() || lags {
            return;
        }
        let start = source.region.start_key.clone();
        let (Ok(None), Ok(Some((owner, _)))) = (pd.region_by_id(held.0).await, pd.region(start).await) else { return };
        if owner.id != held.0 && version(&owner) > version(&source.region) {
            tracing::info!(region = %held, owner = owner.id, "a merge has left this peer behind");
            let (reply, _) = reply();
            host.control(host.core_of(shard), Control::End { shard, region: held, peer: source.peer, reply });
        }
    }
}

fn version(region: &metapb::Region) -> u64 {
    region.region_epoch.map_or(0, |epoch| epoch.version)
}
