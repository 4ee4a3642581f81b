//! What the tests against real processes share.
#![allow(dead_code, reason = "each test file uses its part")]

pub(crate) mod clients;
pub(crate) mod raw;
pub(crate) mod rpc;
pub(crate) mod txn;

use basalt_wire::process::{Cluster, Start, config_file};
use bytes::Bytes;
use proto::kvrpcpb::{self as kv, Context};
use proto::{errorpb, metapb, pdpb};
use rpc::Rpc;

/// A cluster of one node with a connection to both of its processes.
pub(crate) struct Node {
    pub(crate) cluster: Cluster,
    pub(crate) tikv: Rpc,
    pub(crate) pd: Rpc,
    pub(crate) cluster_id: u64,
    dir: tempfile::TempDir,
}

/// Starts a cluster in a folder of its own.
pub(crate) fn start(cores: usize, io: &str, config: &str, flags: &[&str]) -> (Cluster, tempfile::TempDir) {
    let dir = tempfile::tempdir().expect("a folder");
    let config = config_file(dir.path(), config);
    let start = Start {
        data_dir: dir.path().join("data"),
        cores,
        io: io.into(),
        config: Some(config),
        flags: flags.iter().map(|flag| (*flag).to_string()).collect(),
    };
    (Cluster::start(&start), dir)
}

/// Runs `test` on a runtime of its own.
pub(crate) fn on_a_runtime<T>(test: impl Future<Output = T>) -> T {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(test)
}

/// Runs `test` against a node with `cores` and `config`, and stops it in order.
pub(crate) fn with_node(cores: usize, config: &str, test: impl AsyncFnOnce(&Node)) {
    let (cluster, dir) = start(cores, "auto", config, &[]);
    on_a_runtime(async {
        let node = Node::connect(cluster, dir).await;
        test(&node).await;
        let Node { cluster, .. } = node;
        cluster.stop();
    });
}

impl Node {
    pub(crate) async fn connect(cluster: Cluster, dir: tempfile::TempDir) -> Node {
        let tikv = Rpc::connect(cluster.address).await;
        let pd = Rpc::connect(cluster.pd.parse().expect("an address")).await;
        let members: pdpb::GetMembersResponse = pd.pd("GetMembers", &pdpb::GetMembersRequest::default()).await;
        let cluster_id = members.header.expect("a header").cluster_id;
        Node { cluster, tikv, pd, cluster_id, dir }
    }

    pub(crate) fn header(&self) -> Option<pdpb::RequestHeader> {
        Some(pdpb::RequestHeader { cluster_id: self.cluster_id, ..Default::default() })
    }

    /// The region of a key in the form of PD, as PD knows it now.
    pub(crate) async fn region(&self, key: &[u8]) -> metapb::Region {
        let request =
            pdpb::GetRegionRequest { header: self.header(), region_key: key.to_vec().into(), ..Default::default() };
        let answer: pdpb::GetRegionResponse = self.pd.pd("GetRegion", &request).await;
        answer.region.expect("a region for every key")
    }

    /// The context for a key in the form of PD.
    pub(crate) async fn context(&self, key: &[u8]) -> Context {
        context(&self.region(key).await)
    }

    /// Splits the region of `keys`, none of which is in PD's form; all regions that result.
    pub(crate) async fn split(&self, context: &Context, keys: &[&[u8]]) -> Vec<metapb::Region> {
        let answer: kv::SplitRegionResponse = self.tikv.tikv("SplitRegion", &split_request(context, keys)).await;
        assert_eq!(answer.region_error, None);
        answer.regions
    }

    /// Puts.
    pub(crate) async fn put(&self, key: &[u8], value: &[u8]) {
        self.routed(key, async |context| {
            let request = kv::RawPutRequest { context, key: bytes(key), value: bytes(value), ..Default::default() };
            let answer: kv::RawPutResponse = self.tikv.tikv("RawPut", &request).await;
            assert_eq!(answer.error, "");
            (answer.region_error, ())
        })
        .await;
    }

    /// Gets.
    pub(crate) async fn get(&self, key: &[u8]) -> Option<Bytes> {
        self.routed(key, async |context| {
            let request = kv::RawGetRequest { context, key: bytes(key), ..Default::default() };
            let answer: kv::RawGetResponse = self.tikv.tikv("RawGet", &request).await;
            assert_eq!(answer.error, "");
            (answer.region_error, (!answer.not_found).then_some(answer.value))
        })
        .await
    }

    /// Asks with the route that PD knows, again if the region was split since PD heard of it.
    async fn routed<T>(&self, key: &[u8], ask: impl AsyncFn(Option<Context>) -> (Option<errorpb::Error>, T)) -> T {
        for _ in 0..1000 {
            match ask(Some(self.context(key).await)).await {
                (None, answer) => return answer,
                (Some(error), _) if error.epoch_not_match.is_some() || error.region_not_found.is_some() => {}
                (Some(error), _) => panic!("{error:?}"),
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        panic!("the placement driver does not hear of a split");
    }
}

pub(crate) fn bytes(text: impl AsRef<[u8]>) -> Bytes {
    Bytes::copy_from_slice(text.as_ref())
}

/// The context of a request to the only peer of `region`.
pub(crate) fn context(region: &metapb::Region) -> Context {
    Context {
        region_id: region.id,
        region_epoch: region.region_epoch,
        peer: region.peers.first().copied(),
        ..Default::default()
    }
}

pub(crate) fn split_request(context: &Context, keys: &[&[u8]]) -> kv::SplitRegionRequest {
    kv::SplitRegionRequest {
        context: Some(context.clone()),
        split_keys: keys.iter().map(bytes).collect(),
        is_raw_kv: true,
        ..Default::default()
    }
}
