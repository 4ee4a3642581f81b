//! Wire messages and service traits: one module per protobuf package, and the seam between services and transports.
//!
//! - Messages are prost's, generated from `protos/*.proto`, which agree with TiKV's protocol of release 8.5 name by
//!   name and number by number (`facts.txt` pins them). Every bytes field is a [`bytes::Bytes`]: decoded from a `Bytes`
//!   it is a slice of that buffer, so one small field keeps the whole message's memory alive; copy what outlives
//!   its request.
//! - Fields that hold messages of `eraftpb` are plain bytes; raft-rs brings the types that decode them.
//! - Per service, e.g. `pdpb.PD`: the handlers' trait [`pdpb::Pd`], its adapter [`pdpb::PdService`], and the caller's
//!   stub [`pdpb::PdClient`]. [`rpc`] holds what they share. Nothing here names a transport, and nothing is `Send`.
//! - [`shallow`] reads the little that routing needs without decoding a message.

pub mod rpc;
pub mod shallow;

/// The `FileDescriptorSet` of all packages, imports included, for tools that compare or print the protocol.
pub const DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

macro_rules! packages {
    ($($(#[$doc:meta])* $module:ident = $package:literal;)*) => {
        $(
            $(#[$doc])*
            #[allow(missing_docs, clippy::all, reason = "generated; the protocol's own documents explain the fields")]
            pub mod $module {
                include!(concat!(env!("OUT_DIR"), "/", $package, ".rs"));
            }
        )*
    };
}

packages! {
    /// Envelopes of pushed-down work.
    coprocessor = "coprocessor";
    /// The deadlock detector's service.
    deadlock = "deadlock";
    /// How full a store's disk is.
    disk_usage = "disk_usage";
    /// TiFlash's disaggregated reads; named by [`tikvpb`], served by nobody here.
    disaggregated = "disaggregated";
    /// Encryption at rest, as far as region metadata and snapshots name it.
    encryptionpb = "encryptionpb";
    /// The one enum of raft's that administration commands name; raft-rs has the messages.
    eraftpb = "eraftpb";
    /// Region errors.
    errorpb = "errorpb";
    /// The part of etcd's API that stock clients call on the placement driver.
    etcdserverpb = "etcdserverpb";
    /// gRPC's standard health check (`grpc.health.v1`).
    health = "grpc.health.v1";
    /// Importing of SST files, as far as raft commands name it.
    import_sstpb = "import_sstpb";
    /// The placement driver's keyspace service.
    keyspacepb = "keyspacepb";
    /// Requests and answers of the key-value API.
    kvrpcpb = "kvrpcpb";
    /// What the members of our placement driver say to each other; no part of TiKV's protocol.
    memberpb = "memberpb";
    /// The placement driver's small key-value store for settings.
    meta_storagepb = "meta_storagepb";
    /// Clusters, stores, regions, peers.
    metapb = "metapb";
    /// TiDB's parallel processing; named by [`tikvpb`], served by nobody here.
    mpp = "mpp";
    /// etcd's keys and events.
    mvccpb = "mvccpb";
    /// The placement driver's service.
    pdpb = "pdpb";
    /// Commands in raft entries.
    raft_cmdpb = "raft_cmdpb";
    /// Messages between stores, and the states that a peer keeps.
    raft_serverpb = "raft_serverpb";
    /// Replication across data centres.
    replication_modepb = "replication_modepb";
    /// Resource groups and their token buckets.
    resource_manager = "resource_manager";
    /// The store's service.
    tikvpb = "tikvpb";
    /// Tracing of requests.
    tracepb = "tracepb";
}
