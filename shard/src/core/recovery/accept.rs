//! Damage on an operator's word: what is left is taken, the rest is given up, and the peers serve again.
//!
//! A peer whose log lost durable records stays closed, since to vote or to serve could break what it promised. With
//! other replicas it is removed and added again. A region with one replica has only what is left here:
//!
//! - the entries of each region up to its first lost one are applied, committed or not;
//! - a split whose entry is lost is carried out from its lifecycle record, and the region's writes before it are lost;
//! - a peer that only the log knows, since the record that made it is lost, is ended;
//! - a peer in whose range another one began has ended, though the record of its end is lost.
//!
//! All of it is flushed before the log says that the damage is accepted, so that it may be cut short and begun again.

use std::collections::BTreeMap;
use std::path::Path;

use base::{PeerId, RegionId, ShardId, StoreId};
use prost::Message as _;

use super::{Found, LogConfig, OpenError, Recovering, Replay, find, log_failed, put_event};
use crate::core::apply::apply_split;
use crate::core::chain::Chain;
use crate::core::records::{EndRecord, SplitRecord};
use crate::engine::Engine;
use crate::log::{HardState, Lifecycle, LifecycleKind, LogEffect, Position, RaftLog, Record, Scope};

/// What is wrong with a shard, and what was done about it.
#[derive(Clone, Debug, Default)]
pub struct DamageReport {
    /// What shows that durable records are missing, for people. Empty if the log is whole, or was accepted before for
    /// peers that wait to be replaced.
    pub evidence: Vec<String>,
    /// The peers that are closed, or were before the damage was accepted.
    pub regions: Vec<DamagedRegion>,
}

impl DamageReport {
    /// Nothing is wrong with the shard.
    pub fn is_whole(&self) -> bool {
        self.evidence.is_empty() && self.regions.is_empty()
    }
}

/// A peer whose log lost records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DamagedRegion {
    /// The region.
    pub region: RegionId,
    /// Its peer here.
    pub peer: PeerId,
    /// The last entry that is known to have been committed.
    pub committed: u64,
    /// The last entry that was applied, once the damage was accepted; before, the last that the engine contains.
    pub applied: u64,
    /// It serves from the next start on.
    pub is_accepted: bool,
}

/// Looks for damage in a shard of a node that does not run; with `accept`, its regions with one replica serve again
/// from the next start on. The parameters are those of [`open`](super::open).
///
/// # Errors
/// See [`OpenError`]. What was accepted by then stays so; it can be done again.
pub async fn examine<E: Engine>(
    id: ShardId,
    store: StoreId,
    engine: &E,
    log_dir: &Path,
    snap_dir: &Path,
    log_config: LogConfig,
    accept: bool,
) -> Result<DamageReport, OpenError> {
    let found = find(id, store, engine, log_dir, snap_dir, log_config, None).await?;
    let Found { log, mut replay, lifecycle, last_logged, damage } = found;
    let damaged: BTreeMap<RegionId, PeerId> = replay.damaged_peers();
    let mut report = DamageReport::default();
    for (&region, &peer) in &damaged {
        let applied = replay.peers.get(&region).map_or(0, |peer| peer.meta.applied_index);
        let logged = replay.logged.get(&region).and_then(|peer| peer.hard_state).map_or(0, |state| state.commit);
        let committed = replay.peers.get(&region).map_or(logged, |peer| peer.hard_state.commit.max(logged));
        report.regions.push(DamagedRegion { region, peer, committed, applied, is_accepted: false });
    }
    if let Some(damage) = &damage {
        report.evidence.clone_from(&damage.what);
    }
    if !accept || (damage.is_none() && damaged.is_empty()) {
        return Ok(report);
    }
    replay.accepting = true;
    replay.damaged = true;
    replay.run(lifecycle).await?;
    let last_event = replay.last_event.max(last_logged);
    put_event(&mut replay.batch, last_event);
    replay.write().await?;
    replay.flush().await?;
    let failed = |error| log_failed(id, &error);
    if let Some(damage) = &damage {
        log.accept_damage(damage).await.map_err(failed)?;
    }
    append_marks(&log, &replay, &damaged, last_event).map_err(failed)?;
    log.commit().await.map_err(failed)?;
    for region in &mut report.regions {
        if let Some(peer) = replay.peers.get(&region.region).filter(|peer| is_open(peer, &damaged)) {
            region.applied = peer.meta.applied_index;
            region.is_accepted = true;
        }
    }
    Ok(report)
}

/// Whether an operator's word is enough: nobody else has a replica, and the log is not that of a later peer.
fn is_open(peer: &Recovering, damaged: &BTreeMap<RegionId, PeerId>) -> bool {
    let is_latest = damaged.get(&peer.meta.region_id()).is_none_or(|logged| *logged <= peer.meta.peer_id());
    peer.is_alone() && is_latest
}

/// What the log has to say of each peer from now on.
fn append_marks<E: Engine>(
    log: &RaftLog,
    replay: &Replay<'_, E>,
    damaged: &BTreeMap<RegionId, PeerId>,
    last_event: u64,
) -> Result<(), crate::log::LogError> {
    for peer in replay.peers.values().filter(|peer| is_open(peer, damaged)) {
        let (region, id) = (peer.meta.region_id(), peer.meta.peer_id());
        // Children of a split may be new to the log.
        if !damaged.contains_key(&region) && log.peer(region).is_some() {
            continue;
        }
        let at = Position { index: peer.meta.applied_index, term: peer.meta.applied_term };
        // A term and a vote may be among what is lost; with one voter the next term is nobody's.
        let state = HardState { term: peer.hard_state.term.max(at.term) + 1, vote: 0, commit: at.index };
        log.append(Record::HardState { region, peer: id, state })?;
        log.append(Record::Truncated { region, peer: id, at })?;
        log.append(Record::Damaged { region, peer: id, damaged: false })?;
    }
    let orphans = damaged.iter().filter(|(region, _)| !replay.peers.contains_key(region));
    for (event, (&region, &peer)) in (last_event + 1..).zip(orphans) {
        log.append(Record::Lifecycle(Lifecycle {
            event,
            region,
            peer,
            scope: Scope::default(),
            kind: LifecycleKind::MovedAway,
            effects: vec![LogEffect::End { region, peer }],
            payload: EndRecord::default().encode_to_vec().into(),
        }))?;
    }
    Ok(())
}

impl Recovering {
    /// The region has no other replica.
    fn is_alone(&self) -> bool {
        self.meta.region.peers.len() == 1
    }
}

impl<E: Engine> Replay<'_, E> {
    /// The peers whose log lost records.
    fn damaged_peers(&self) -> BTreeMap<RegionId, PeerId> {
        let held = self.peers.iter().filter(|(_, peer)| peer.damaged);
        let held = held.map(|(&region, peer)| (region, peer.meta.peer_id()));
        let logged = self.logged.iter().filter(|(_, peer)| peer.damaged);
        held.chain(logged.map(|(&region, peer)| (region, peer.peer))).collect()
    }

    /// Applies all entries that are left of regions with one replica, splits included: what is flushed afterwards needs
    /// no lifecycle record.
    pub(super) async fn take_what_is_there(&mut self) -> Result<(), OpenError> {
        let is_left = |peer: &Recovering| peer.is_alone() && !peer.entries.is_empty();
        while let Some(region) = self.peers.iter().find(|(_, peer)| is_left(peer)).map(|(&region, _)| region) {
            self.replay_through(region, u64::MAX, 0).await?;
        }
        Ok(())
    }

    /// Carries out a split whose entry is lost. What came before it in its region stays lost.
    pub(super) fn jump_to(&mut self, region: RegionId, record: SplitRecord, event: u64) {
        let Some(peer) = self.peers.get_mut(&region).filter(|peer| peer.meta.applied_index < record.index) else {
            return;
        };
        peer.entries.clear();
        peer.meta.applied_index = record.index;
        peer.meta.applied_term = peer.meta.applied_term.max(peer.hard_state.term);
        peer.meta.chain = Chain::UNKNOWN;
        let children = apply_split(&mut peer.meta, record.regions, self.store, &mut self.batch);
        self.bear(children, event);
    }

    /// A peer begins in `[start, end)`: whoever is there has ended.
    pub(super) fn make_room(&mut self, region: RegionId, start: &[u8], end: &[u8]) {
        let overlaps = |peer: &Recovering| {
            let other = &peer.meta.region;
            (end.is_empty() || other.start_key[..] < *end) && (other.end_key.is_empty() || *start < other.end_key[..])
        };
        let gone = self.peers.extract_if(.., |id, peer| *id != region && overlaps(peer));
        gone.for_each(|(_, peer)| peer.meta.erase(&mut self.batch));
    }
}
