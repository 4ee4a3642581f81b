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

pub(crate) use self::core::{Core, Identity};
pub(crate) use scheduling::OrderError;
pub(crate) use vitals::StoreVitals;

use proto::etcdserverpb::{ClusterService, KvService, LeaseService, MaintenanceService, WatchService};
use proto::keyspacepb::KeyspaceService;
use proto::meta_storagepb::MetaStorageService;
use proto::pdpb::PdService;
use std::rc::Rc;

/// Adds every service to `router`.
pub(crate) fn routes(router: net::Router, core: &Rc<Core>) -> net::Router {
    let pd = PdService::new(Rc::new(pd::PdHandler(Rc::clone(core))));
    let etcd = Rc::new(etcd::EtcdHandler(Rc::clone(core)));
    router
        .add(Rc::new(extra::PdWithExtras::new(pd, Rc::clone(core))))
        .add(Rc::new(KeyspaceService::new(Rc::new(keyspace::KeyspaceHandler(Rc::clone(core))))))
        .add(Rc::new(MetaStorageService::new(Rc::new(meta_storage::MetaStorageHandler(Rc::clone(core))))))
        .add(Rc::new(KvService::new(Rc::clone(&etcd))))
        .add(Rc::new(LeaseService::new(Rc::clone(&etcd))))
        .add(Rc::new(WatchService::new(Rc::clone(&etcd))))
        .add(Rc::new(ClusterService::new(Rc::clone(&etcd))))
        .add(Rc::new(MaintenanceService::new(etcd)))
}
