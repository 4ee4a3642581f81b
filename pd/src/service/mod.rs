//! The services on PD's port, all over one [`Core`].

mod answers;
mod core;
mod etcd;
mod etcd_lease;
mod etcd_txn;
mod etcd_watch;
mod extra;
mod global_config;
mod heartbeat;
mod keyspace;
mod line;
mod lost;
mod meta_storage;
mod pd;
mod pd_gc;
mod pd_regions;
mod pd_stores;
mod scatter;
mod scheduling;
mod split;
mod tso;
mod vitals;
mod watch;

pub(crate) use self::core::{Core, Identity, Surroundings, not_leader};
pub(crate) use scheduling::OrderError;
pub(crate) use vitals::StoreVitals;

use proto::etcdserverpb::{KvService, LeaseService, WatchService};
use proto::keyspacepb::KeyspaceService;
use proto::meta_storagepb::MetaStorageService;
use proto::pdpb::PdService;
use proto::rpc::{Service, Shape};
use proto::{etcdserverpb, keyspacepb, meta_storagepb, pdpb};
use std::rc::Rc;

/// Every service that a leader has, over `core`.
pub(crate) fn services(core: &Rc<Core>) -> Vec<Rc<dyn Service>> {
    let pd = PdService::new(Rc::new(pd::PdHandler(Rc::clone(core))));
    let etcd = Rc::new(etcd::EtcdHandler(Rc::clone(core)));
    vec![
        Rc::new(extra::PdWithExtras::new(pd, Rc::clone(core))),
        Rc::new(KeyspaceService::new(Rc::new(keyspace::KeyspaceHandler(Rc::clone(core))))),
        Rc::new(MetaStorageService::new(Rc::new(meta_storage::MetaStorageHandler(Rc::clone(core))))),
        Rc::new(KvService::new(Rc::clone(&etcd))),
        Rc::new(LeaseService::new(Rc::clone(&etcd))),
        Rc::new(WatchService::new(etcd)),
    ]
}

/// The services that any member has, leader or not, by name, with their methods. etcd's `Cluster` and `Maintenance` are
/// answered by each member itself.
pub(crate) const SERVICES: &[(&str, &[(&str, Shape)])] = &[
    (pdpb::PD_NAME, pdpb::PD_METHODS),
    (pdpb::PD_NAME, &[("QueryRegion", Shape::Bidi)]),
    (keyspacepb::KEYSPACE_NAME, keyspacepb::KEYSPACE_METHODS),
    (meta_storagepb::META_STORAGE_NAME, meta_storagepb::META_STORAGE_METHODS),
    (etcdserverpb::KV_NAME, etcdserverpb::KV_METHODS),
    (etcdserverpb::LEASE_NAME, etcdserverpb::LEASE_METHODS),
    (etcdserverpb::WATCH_NAME, etcdserverpb::WATCH_METHODS),
];
