//! What core 0 tells the placement driver of its own accord: regions, the store, splits.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use base::{CoreId, RegionId};
use futures_util::FutureExt as _;
use proto::{metapb, pdpb};

use super::core_zero::CoreZero;
use super::disk::{self, Space};
use super::{EngineSource, Node};
use crate::core::{Control, CoreHost, DiskUsage, RegionReport};
use crate::engine::Engine;
use crate::pd_client::PdClient;

/// Less than the term of any leader.
const FIRST_TERM: u64 = 1;
/// A store's slow score, from 1 to 100; from 80 on PD takes it for slow.
const HEALTHY: u64 = 1;
const SLOW: u64 = 100;

impl<E: Engine> CoreZero<E> {
    /// Passes a leader's report on to PD.
    pub(super) fn heartbeat(&self, report: RegionReport) {
        // PD divides by the interval.
        let now = executor::unix_time().seconds().max(report.counted_since + 1);
        let (written, read) = ((report.bytes_written, report.keys_written), (report.bytes_read, report.keys_read));
        self.traffic.note(report.region.id, written, read, now - report.counted_since);
        let region = RegionId(report.region.id);
        self.directory.borrow_mut().note(region, report.approximate_bytes);
        self.note_members(&report.region);
        let Ok(pd) = self.pd() else { return };
        // The first region that a node makes may be one too many, and end again.
        if !self.registered.get() || self.split_is_unreported(&report.region) {
            return;
        }
        self.announce_children(&pd, &report.region);
        let interval = pdpb::TimeInterval { start_timestamp: report.counted_since, end_timestamp: now };
        pd.region_heartbeat(pdpb::RegionHeartbeatRequest {
            region: Some(report.region),
            leader: Some(report.leader),
            term: report.term,
            pending_peers: report.pending,
            down_peers: report
                .down
                .into_iter()
                .map(|(peer, seconds)| pdpb::PeerStats { peer: Some(peer), down_seconds: seconds })
                .collect(),
            approximate_size: report.approximate_bytes,
            approximate_keys: report.approximate_keys,
            bytes_written: report.bytes_written,
            keys_written: report.keys_written,
            bytes_read: report.bytes_read,
            keys_read: report.keys_read,
            interval: Some(interval),
            ..Default::default()
        });
    }

    /// With the first report of a region after its split, PD hears of those that were split off, in the name of their peers
    /// here, which are about to lead: a stock PD does not take them from the report of the split, and until their leaders
    /// report it would know nobody for their keys.
    fn announce_children(&self, pd: &PdClient, region: &metapb::Region) {
        let mut due = Vec::new();
        self.unannounced.borrow_mut().retain(|(parent, child)| {
            let is_due = *parent == region.id;
            if is_due {
                due.push(child.clone());
            }
            // Who reports needs no announcement.
            !is_due && child.id != region.id
        });
        let store = self.host().map_or(0, |host| host.node.store.0);
        for child in due {
            // A report without a leader would end the stream.
            let Some(leader) = child.peers.iter().find(|peer| peer.store_id == store).copied() else { continue };
            pd.region_heartbeat(pdpb::RegionHeartbeatRequest {
                region: Some(child),
                leader: Some(leader),
                // Any leader's own report replaces it.
                term: FIRST_TERM,
                ..Default::default()
            });
        }
    }

    /// True if PD must hear of `region` by the report of its split first: a heartbeat of one part alone would leave a
    /// hole where the others are.
    fn split_is_unreported(&self, region: &metapb::Region) -> bool {
        let version = region.region_epoch.as_ref().map_or(0, |epoch| epoch.version);
        let id = RegionId(region.id);
        let known = self.directory.borrow().placement(id).is_some_and(|placement| placement.version >= version);
        !known || self.splits.borrow().iter().any(|(_, regions)| regions.iter().any(|other| other.id == region.id))
    }

    fn store_stats(&self, store: u64, started: u64, interval: (u64, u64), space: Space) -> pdpb::StoreStats {
        let directory = self.directory.borrow();
        let Space { capacity, available } = space;
        let host = self.host();
        let is_slow = host.as_ref().is_ok_and(|host| host.node.stalls.load(Ordering::Relaxed) > 0);
        let is_full = host.is_ok_and(|host| host.node.disk.usage() > DiskUsage::Normal);
        // No place for more replicas or leaders. That it stops, a stock PD does not look at everywhere.
        let is_busy = is_slow || is_full || self.is_leaving.get();
        let mut stats = pdpb::StoreStats {
            store_id: store,
            capacity,
            available,
            used_size: directory.total_bytes(),
            region_count: u32::try_from(directory.routes().count()).unwrap_or(u32::MAX),
            receiving_snap_count: self.snapshots_under_way(),
            start_time: u32::try_from(started).unwrap_or(0),
            interval: Some(pdpb::TimeInterval { start_timestamp: interval.0, end_timestamp: interval.1 }),
            is_busy,
            slow_score: if is_slow { SLOW } else { HEALTHY },
            is_stopping: self.is_leaving.get(),
            ..Default::default()
        };
        self.traffic.pay(&mut stats, interval.1 - interval.0);
        stats
    }

    /// Tells PD that the node is about to stop, so that it sends no leaders here.
    pub(super) fn say_goodbye(&self) {
        self.is_leaving.set(true);
        self.wake_store_heartbeat.notify();
    }
}

/// Tells PD of splits, one after the other, and then lets the leaders report themselves.
pub(super) async fn report_splits<E: Engine>(zero: Rc<CoreZero<E>>) {
    loop {
        let next = zero.splits.borrow().front().cloned();
        let (Some((shard, regions)), Ok(pd), Ok(host)) = (next, zero.pd(), zero.host()) else {
            zero.wake_reporter.notified().await;
            continue;
        };
        if let Err(error) = pd.report_batch_split(regions.clone()).await {
            tracing::debug!(%error, "split was not reported; heartbeats will tell");
        }
        zero.splits.borrow_mut().pop_front();
        // The parent is the oldest of them, and ids rise.
        if let Some(parent) = regions.iter().map(|region| region.id).min() {
            let children = regions.into_iter().filter(|region| region.id != parent);
            zero.unannounced.borrow_mut().extend(children.map(|child| (parent, child)));
        }
        host.control(host.core_of(shard), Control::Report);
    }
}

/// Reports the store's numbers, once per period and whenever the stream to PD is new.
pub(super) async fn store_heartbeats<S: EngineSource>(
    node: Arc<Node<S>>,
    zero: Rc<CoreZero<S::Engine>>,
    started: base::UnixTime,
) {
    let mut since = started.seconds();
    loop {
        let space = disk::space(&node, &zero).await;
        // PD divides by the interval.
        let now = executor::unix_time().seconds().max(since + 1);
        let (Ok(pd), Ok(host)) = (zero.pd(), zero.host()) else { return };
        let stats = zero.store_stats(host.node.store.0, started.seconds(), (since, now), space);
        since = now;
        if let Err(error) = pd.store_heartbeat(stats).await {
            tracing::warn!(%error, "store heartbeat failed");
        }
        futures_util::select_biased! {
            () = zero.wake_store_heartbeat.notified().fuse() => {}
            () = executor::sleep(node.config.store_heartbeat).fuse() => {}
        }
    }
}

/// Asks every core for its leaders' reports, once per period.
pub(super) async fn region_heartbeats<S: EngineSource>(node: Arc<Node<S>>, host: Rc<CoreHost<S::Engine>>) {
    loop {
        executor::sleep(node.config.region_heartbeat).await;
        ask_for_reports(&host);
    }
}

/// Has every core report all regions that lead there.
pub(super) fn ask_for_reports<E: Engine>(host: &CoreHost<E>) {
    for core in 0..host.node.mail.len() {
        host.control(CoreId(core as u16), Control::Report);
    }
}
