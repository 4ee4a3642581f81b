//! What the placement driver says on the stream of region heartbeats, and what core 0 does with it.
//!
//! A new stream may lead to a placement driver that has forgotten who leads, or that never heard: everything is
//! reported at once. Orders go to the core of their region.

use std::cell::Cell;
use std::fmt::Write as _;
use std::rc::Rc;

use base::{PeerId, RegionId};
use proto::pdpb::RegionHeartbeatResponse;
use proto::{pdpb, raft_cmdpb};

use super::NodeError;
use super::core_zero::CoreZero;
use super::heartbeats::ask_for_reports;
use crate::core::Control;
use crate::core::orders::{Order, SplitOrder};
use crate::engine::Engine;
use crate::pd_client::PdEvent;

/// What a message of the stream is. If it asks for several things, the first in this order counts, as in TiKV.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A report was refused; the header says why.
    Refusal,
    ChangePeer,
    TransferLeader,
    SplitRegion,
    Merge,
    SwitchWitnesses,
    ChangeSplit,
    /// A sign of life.
    Empty,
}

impl Kind {
    const ALL: [(Kind, &'static str); 8] = [
        (Kind::Refusal, "refusal"),
        (Kind::ChangePeer, "change_peer"),
        (Kind::TransferLeader, "transfer_leader"),
        (Kind::SplitRegion, "split_region"),
        (Kind::Merge, "merge"),
        (Kind::SwitchWitnesses, "switch_witnesses"),
        (Kind::ChangeSplit, "change_split"),
        (Kind::Empty, "empty"),
    ];

    fn of(order: &RegionHeartbeatResponse) -> Kind {
        let refused = order.header.as_ref().is_some_and(|header| header.error.is_some());
        let asked = [
            (refused, Kind::Refusal),
            (order.change_peer.is_some() || order.change_peer_v2.is_some(), Kind::ChangePeer),
            (order.transfer_leader.is_some(), Kind::TransferLeader),
            (order.split_region.is_some(), Kind::SplitRegion),
            (order.merge.is_some(), Kind::Merge),
            (order.switch_witnesses.is_some(), Kind::SwitchWitnesses),
            (order.change_split.is_some(), Kind::ChangeSplit),
        ];
        asked.into_iter().find(|(is, _)| *is).map_or(Kind::Empty, |(_, kind)| kind)
    }
}

/// Counters of the stream.
#[derive(Debug, Default)]
pub(super) struct PdEvents {
    /// Times that the stream was opened.
    streams_total: Cell<u64>,
    /// Messages, by kind in the order of [`Kind::ALL`].
    orders_total: [Cell<u64>; 8],
    /// Orders of kinds that are not carried out.
    ignored_total: Cell<u64>,
}

impl PdEvents {
    fn count(cell: &Cell<u64>) {
        cell.set(cell.get() + 1);
    }

    /// The counters as lines of the Prometheus text format.
    pub(super) fn metrics_text(&self, out: &mut String) {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "basalt_pd_streams_total{{core=\"0\"}} {}", self.streams_total.get());
        let _ = writeln!(out, "basalt_pd_orders_ignored_total{{core=\"0\"}} {}", self.ignored_total.get());
        for ((_, name), counter) in Kind::ALL.iter().zip(&self.orders_total) {
            let _ = writeln!(out, "basalt_pd_orders_total{{core=\"0\",kind=\"{name}\"}} {}", counter.get());
        }
    }
}

impl<E: Engine> CoreZero<E> {
    /// Hears the client's events from now on. To be called when the placement driver knows this store; if the stream
    /// is open by then, everything is reported at once.
    pub(super) fn listen_to_pd(self: &Rc<Self>) -> Result<(), NodeError> {
        // The client is ours: what it holds of us must not keep us alive.
        let zero = Rc::downgrade(self);
        self.pd()?.listen(move |event| {
            let Some(zero) = zero.upgrade() else { return };
            match event {
                PdEvent::Connected => zero.report_everything(),
                PdEvent::Order(order) => zero.take_order(order),
            }
        });
        Ok(())
    }

    fn report_everything(&self) {
        PdEvents::count(&self.pd_events.streams_total);
        if let Ok(host) = self.host() {
            ask_for_reports(&host);
        }
        self.wake_store_heartbeat.notify();
    }

    fn take_order(&self, order: RegionHeartbeatResponse) {
        let kind = Kind::of(&order);
        let at = Kind::ALL.iter().position(|(other, _)| *other == kind).expect("every kind is in the table");
        PdEvents::count(&self.pd_events.orders_total[at]);
        let region = RegionId(order.region_id);
        let epoch = order.region_epoch.unwrap_or_default();
        match (kind, order.split_region) {
            (Kind::Empty, _) => {}
            (Kind::ChangePeer, _) => {
                let change = |change: pdpb::ChangePeer| raft_cmdpb::ChangePeerRequest {
                    change_type: change.change_type,
                    peer: change.peer,
                };
                let several = order.change_peer_v2.map(|changes| changes.changes);
                let changes = several.unwrap_or_else(|| order.change_peer.into_iter().collect());
                self.order(region, Order::Peers { region, epoch, changes: changes.into_iter().map(change).collect() });
            }
            (Kind::TransferLeader, _) => {
                let transfer = order.transfer_leader.unwrap_or_default();
                let to = transfer.peer.iter().chain(&transfer.peers).map(|peer| PeerId(peer.id)).collect();
                self.order(region, Order::Transfer { region, to });
            }
            (Kind::Refusal, _) => {
                let error = order.header.and_then(|header| header.error).unwrap_or_default();
                tracing::debug!(region = order.region_id, error = error.message, "a region's report is refused");
            }
            (Kind::SplitRegion, Some(split)) => {
                let policy = split.policy();
                self.order(region, Order::Split(SplitOrder { region, epoch, policy, keys: split.keys }));
            }
            (Kind::Merge, _) => {
                let target = order.merge.and_then(|merge| merge.target).unwrap_or_default();
                self.order(region, Order::Merge { region, epoch, target: Box::new(target) });
            }
            (kind, _) => {
                PdEvents::count(&self.pd_events.ignored_total);
                tracing::debug!(%region, ?kind, "an order of this kind is not carried out");
            }
        }
    }

    fn order(&self, region: RegionId, order: Order) {
        if let Ok(host) = self.host() {
            host.control(host.route(region), Control::Order(order));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_several_orders_counts() {
        let mut order = RegionHeartbeatResponse::default();
        assert_eq!(Kind::of(&order), Kind::Empty);
        order.merge = Some(pdpb::Merge::default());
        assert_eq!(Kind::of(&order), Kind::Merge);
        order.split_region = Some(pdpb::SplitRegion::default());
        assert_eq!(Kind::of(&order), Kind::SplitRegion);
        // An empty list of changes is an order too: it leaves a joint configuration.
        order.change_peer_v2 = Some(pdpb::ChangePeerV2::default());
        assert_eq!(Kind::of(&order), Kind::ChangePeer);
        order.header = Some(pdpb::ResponseHeader { error: Some(pdpb::Error::default()), ..Default::default() });
        assert_eq!(Kind::of(&order), Kind::Refusal);
    }
}
