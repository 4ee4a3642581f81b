//! A few stores and regions for the tests beside the pieces.

use super::view::{Cluster, StoreView};
use super::{Controller, ScheduleConfig, placement::Scene};
use crate::directory::Directory;
use base::Instant;
use proto::metapb::{self, Peer, PeerRole};
use proto::pdpb;
use std::collections::BTreeMap;

pub(super) const NOW: Instant = Instant(1_000_000_000_000_000);

pub(super) struct Small {
    pub(super) config: ScheduleConfig,
    pub(super) stores: BTreeMap<u64, StoreView>,
    pub(super) directory: Directory,
    pub(super) controller: Controller,
    pub(super) now: Instant,
}

pub(super) fn peer(store_id: u64, role: PeerRole) -> Peer {
    Peer { id: 100 + store_id, store_id, role: role.into(), is_witness: false }
}

pub(super) fn voter(store_id: u64) -> Peer {
    peer(store_id, PeerRole::Voter)
}

impl Small {
    /// Stores 1 to `stores`, and no region.
    pub(super) fn new(stores: u64) -> Small {
        let view = |id| StoreView { id, heard: NOW, has_reported: true, ..StoreView::default() };
        let mut controller = Controller::default();
        controller.take_ids(1_000..1_100);
        Small {
            config: ScheduleConfig::default(),
            stores: (1..=stores).map(|id| (id, view(id))).collect(),
            directory: Directory::default(),
            controller,
            now: NOW,
        }
    }

    pub(super) fn report(&mut self, request: pdpb::RegionHeartbeatRequest) {
        self.directory.heartbeat(&request, 0).expect("it is taken");
    }

    /// Region 1 with these peers, led by the first.
    pub(super) fn region(&mut self, conf_ver: u64, peers: &[Peer]) {
        self.report(beat(1, ("", ""), conf_ver, peers));
    }

    pub(super) fn cluster(&self) -> Cluster<'_> {
        Cluster { now: self.now, config: &self.config, stores: &self.stores, directory: &self.directory }
    }

    pub(super) fn scene(&self) -> Scene<'_> {
        Scene { cluster: self.cluster(), controller: &self.controller }
    }

    /// Runs with the controller, which must not be looked at meanwhile.
    pub(super) fn with<T>(&mut self, run: impl FnOnce(&mut Controller, &Cluster<'_>) -> T) -> T {
        let cluster = Cluster { now: self.now, config: &self.config, stores: &self.stores, directory: &self.directory };
        run(&mut self.controller, &cluster)
    }
}

pub(super) fn beat(id: u64, range: (&str, &str), conf_ver: u64, peers: &[Peer]) -> pdpb::RegionHeartbeatRequest {
    pdpb::RegionHeartbeatRequest {
        leader: peers.first().copied(),
        region: Some(metapb::Region {
            id,
            start_key: range.0.as_bytes().to_vec().into(),
            end_key: range.1.as_bytes().to_vec().into(),
            region_epoch: Some(metapb::RegionEpoch { conf_ver, version: 1 }),
            peers: peers.to_vec(),
            ..Default::default()
        }),
        approximate_size: 5 << 20,
        approximate_keys: 10,
        ..Default::default()
    }
}
