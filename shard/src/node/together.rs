//! Core 0's part in merges: source and target come to one shard, and peers that a merge has left behind are ended.

use std::rc::Rc;
use std::time::Duration;

use base::{PeerId, RegionId, ShardId};
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
/// For how long it is known that a snapshot was refused. Its sender tries again sooner.
const REFUSED_FOR: Duration = Duration::from_secs(10);

impl<E: Engine> CoreZero<E> {
    /// Regions that balancing leaves where they are.
    pub(super) fn is_pinned(&self, region: RegionId) -> bool {
        self.pinned.borrow().get(&region).is_some_and(|until| executor::now() < *until)
    }

    /// Moves `source` to the shard of `target`, unless it is there or on its way. A target that was itself merged away
    /// leaves a source that waits in vain: `version` is the target's when the merge was prepared.
    pub(super) fn bring_together(self: &Rc<Self>, source: RegionId, target: RegionId, version: u64) {
        let (has_source, has_target) = {
            let directory = self.directory.borrow();
            (directory.placement(source).is_some(), directory.placement(target).is_some())
        };
        if !has_target {
            self.void(source, target, version);
            return;
        }
        if !has_source {
            self.give_up(source, target);
            return;
        }
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
            match zero.carry_out(&ticket, true).await {
                Some(Ok(())) => tracing::debug!(?ticket, "a source has come to its target"),
                Some(Err(error)) => tracing::debug!(?ticket, %error, "a source stays"),
                None => {}
            }
        });
    }

    /// Tells a source that its target has ended without it, if the target had followed its log since `version`.
    fn void(&self, source: RegionId, target: RegionId, version: u64) {
        let merged = self.buried.borrow().get(&target).and_then(|tombstone| tombstone.merged.clone());
        let since = merged.map(|merged| merged.began_version);
        let placed = self.directory.borrow().placement(source).map(|held| held.shard);
        if let (Some(since), Some(shard), Ok(host)) = (since, placed, self.host())
            && since <= version
        {
            host.control(host.core_of(shard), Control::VoidMerge { shard, region: source, target });
        }
    }

    /// Tells a target that its source has ended here without it.
    fn give_up(&self, source: RegionId, target: RegionId) {
        let placed = self.directory.borrow().placement(target).map(|held| held.shard);
        let Some(tombstone) = self.buried.borrow().get(&source).cloned() else { return };
        if let (Some(shard), Ok(host)) = (placed, self.host()) {
            let peer = tombstone.peer;
            host.control(host.core_of(shard), Control::SourceEnded { shard, region: target, source, peer });
        }
    }

    /// Carries a reserved move out, `at_once` though its group has no leader; `None` if the node is closing.
    pub(super) async fn carry_out(&self, ticket: &MoveTicket, at_once: bool) -> Option<Result<(), MoveError>> {
        let host = self.host().ok()?;
        let (reply, answer) = reply();
        host.control(host.core_of(ticket.source), Control::Move { ticket: ticket.clone(), at_once, reply });
        let result = answer.wait().await;
        self.directory.borrow_mut().release(ticket);
        result
    }

    /// A region has another range or version.
    pub(super) fn reranged(&self, shard: ShardId, region: &metapb::Region, bytes: u64) {
        self.born(shard, region, bytes);
        self.wake_balancer.notify();
    }

    /// A snapshot of `region` cannot come in, since others here have keys of its range. If it is the target of a merge
    /// that left them behind, they end: the target does not come by them with its log any more.
    pub(super) fn note_refused(&self, region: &metapb::Region) {
        let now = executor::now();
        let mut refused = self.refused.borrow_mut();
        refused.retain(|_, (until, _)| now < *until);
        if refused.len() < PINS_MAX {
            refused.insert(RegionId(region.id), (now + REFUSED_FOR, version(region)));
        }
    }

    /// What a shard's peer knows of its region.
    async fn view(&self, region: RegionId) -> Option<PeerView> {
        let host = self.host().ok()?;
        let shard = self.directory.borrow().placement(region)?.shard;
        let (reply, answer) = reply();
        host.control(host.core_of(shard), Control::WhoIs { shard, region, reply });
        answer.wait().await?
    }

    /// Ends a peer whose region has merged into `target`, which had this epoch and range before, unless that takes it
    /// over here by its log.
    ///
    /// The merge is committed, so a quorum of the target's members has it in their logs, and these keep their peer of the
    /// source until it is taken over: the target is there, and followed its log from before the merge on. Where it came
    /// later, by a snapshot, or comes no more, nobody waits for the source. Where it is there and waits for a snapshot
    /// that is past the merge, since the log before that is gone, the source is in the way: its sender has the source's
    /// data, and the third member still keeps them.
    pub(super) async fn end_if_merged_elsewhere(
        &self,
        shard: ShardId,
        region: RegionId,
        peer: PeerId,
        target: &metapb::Region,
    ) {
        let id = RegionId(target.id);
        let is_here = self.directory.borrow().placement(id).is_some();
        let refused = self.refused.borrow().get(&id).map(|(_, version)| *version);
        // What is broken cannot be taken over: the target gets a snapshot.
        let is_broken = self.view(region).await.is_some_and(|source| source.is_broken);
        let takes = !is_broken
            && match self.view(id).await {
                Some(here) => {
                    here.began_version <= version(target) && refused.is_none_or(|later| later <= version(target))
                }
                None => is_here || self.directory.borrow().may_bear(region, target),
            };
        let Some(host) = self.host().ok().filter(|_| !takes) else { return };
        tracing::info!(%region, target = target.id, "a merge has left this peer behind");
        let (reply, _) = reply();
        host.control(host.core_of(shard), Control::End { shard, region, peer, reply });
    }
}

fn version(region: &metapb::Region) -> u64 {
    region.region_epoch.map_or(0, |epoch| epoch.version)
}
