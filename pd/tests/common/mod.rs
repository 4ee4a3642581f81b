//! A placement driver on a core of its own, with stubs to call it.
#![allow(dead_code, reason = "each test file uses a part")]

use executor::io::{AsyncReadExt, AsyncWriteExt};
use executor::{IoChoice, LogFile};
use net::{Channel, ChannelConfig};
use pd::{PdConfig, PdServer};
use proto::rpc::CallContext;
use proto::{etcdserverpb, keyspacepb, meta_storagepb, metapb, pdpb};
use std::path::Path;
use std::time::Duration;

/// A running member and the stubs of its services.
pub(crate) struct Pd {
    pub server: PdServer,
    pub channel: Channel,
    pub pd: pdpb::PdClient<Channel>,
    pub keyspaces: keyspacepb::KeyspaceClient<Channel>,
    pub meta: meta_storagepb::MetaStorageClient<Channel>,
    pub kv: etcdserverpb::KvClient<Channel>,
    pub lease: etcdserverpb::LeaseClient<Channel>,
    pub watch: etcdserverpb::WatchClient<Channel>,
}

/// Runs `test` on a core. `data_dir` outlives it.
pub(crate) fn on_core<F: Future<Output = ()> + 'static>(test: impl FnOnce(std::path::PathBuf) -> F + Send + 'static) {
    LogFile::allow_buffered(true);
    let folder = tempfile::tempdir().expect("a folder for the journal");
    let path = folder.path().to_owned();
    executor::run_one(IoChoice::Epoll, move || test(path));
}

/// Runs `test` with a member that is not bootstrapped.
pub(crate) fn with_pd<F: Future<Output = ()> + 'static>(test: impl FnOnce(Pd) -> F + Send + 'static) {
    on_core(move |path| async move { test(start(&path).await).await });
}

/// Starts a member on a free port.
pub(crate) async fn start(data_dir: &Path) -> Pd {
    let config = PdConfig {
        listen: "127.0.0.1:0".parse().expect("an address"),
        data_dir: data_dir.to_owned(),
        ..PdConfig::default()
    };
    let server = PdServer::start(config).await.expect("the member starts");
    let channel = Channel::new(server.addr().to_string(), ChannelConfig::default());
    Pd {
        pd: pdpb::PdClient::new(channel.clone()),
        keyspaces: keyspacepb::KeyspaceClient::new(channel.clone()),
        meta: meta_storagepb::MetaStorageClient::new(channel.clone()),
        kv: etcdserverpb::KvClient::new(channel.clone()),
        lease: etcdserverpb::LeaseClient::new(channel.clone()),
        watch: etcdserverpb::WatchClient::new(channel.clone()),
        channel,
        server,
    }
}

pub(crate) fn cx() -> CallContext {
    CallContext::default()
}

impl Pd {
    pub(crate) fn header(&self) -> Option<pdpb::RequestHeader> {
        Some(pdpb::RequestHeader { cluster_id: self.server.cluster_id().0, sender_id: 0 })
    }

    /// Bootstraps with store 1 and region 2, and reports the region's leader.
    pub(crate) async fn bootstrap(&self) {
        let request =
            pdpb::BootstrapRequest { header: self.header(), store: Some(store(1)), region: Some(region(2, "", "", 1)) };
        let answer = self.pd.bootstrap(cx(), &request).await.expect("bootstrap");
        assert_eq!(error_of(&answer.header), None);
    }

    /// Has each region reported by its first peer, as one store's stream brings it, and waits until all are taken.
    pub(crate) async fn report(&self, regions: &[metapb::Region]) {
        let (requests, mut answers) = self.pd.region_heartbeat(cx()).await.expect("the stream opens");
        for region in regions {
            let request = pdpb::RegionHeartbeatRequest {
                header: self.header(),
                leader: region.peers.first().copied(),
                region: Some(region.clone()),
                approximate_size: 5 << 20,
                approximate_keys: 100,
                term: 6,
                ..pdpb::RegionHeartbeatRequest::default()
            };
            requests.send(&request).await.expect("the heartbeat goes out");
        }
        requests.close();
        assert_eq!(answers.next().await.expect("the stream ends well"), None);
    }

    /// Registers a store; the refusal, if there is one.
    pub(crate) async fn put_store(&self, store: metapb::Store) -> Option<(pdpb::ErrorType, String)> {
        let request = pdpb::PutStoreRequest { header: self.header(), store: Some(store) };
        error_of(&self.pd.put_store(cx(), &request).await.expect("answer").header)
    }

    /// Waits until `id` is led from `store`.
    pub(crate) async fn leader_is(&self, id: u64, store: u64) {
        self.until(id, |found| found.leader.is_some_and(|leader| leader.store_id == store)).await;
    }

    /// Waits until `id` has the epoch `version`.
    pub(crate) async fn epoch_is(&self, id: u64, version: u64) {
        let epoch = |region: &metapb::Region| region.region_epoch.map(|epoch| epoch.version);
        self.until(id, |found| found.region.as_ref().and_then(epoch) == Some(version)).await;
    }

    async fn until(&self, region_id: u64, holds: impl Fn(&pdpb::GetRegionResponse) -> bool) {
        let request = pdpb::GetRegionByIdRequest { header: self.header(), region_id, need_buckets: false };
        let wait = async {
            while !holds(&self.pd.get_region_by_id(cx(), &request).await.expect("answer")) {
                executor::sleep(Duration::from_millis(2)).await;
            }
        };
        executor::timeout(Duration::from_secs(30), wait).await.expect("the report is taken");
    }

    /// An HTTP request; status and body.
    pub(crate) async fn http(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        http(self.server.addr(), method, path, body).await
    }

    pub(crate) async fn get_json(&self, path: &str) -> serde_json::Value {
        let (status, body) = self.http("GET", path, "").await;
        assert_eq!(status, 200, "{path}: {body}");
        serde_json::from_str(&body).unwrap_or_else(|error| panic!("{path}: {error}: {body}"))
    }
}

/// An HTTP request to a member; status and body.
pub(crate) async fn http(addr: std::net::SocketAddr, method: &str, path: &str, body: &str) -> (u16, String) {
    let mut stream = executor::net::TcpStream::connect(addr).await.expect("connects");
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: pd\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.expect("writes");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.expect("reads");
    let answer = String::from_utf8(answer).expect("text");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    (status, body.to_owned())
}

/// The error in a header: its type and text.
pub(crate) fn error_of(header: &Option<pdpb::ResponseHeader>) -> Option<(pdpb::ErrorType, String)> {
    let header = header.as_ref().expect("every answer has a header");
    assert_ne!(header.cluster_id, 0, "every header has the cluster's id");
    header.error.as_ref().map(|error| (error.r#type(), error.message.clone()))
}

pub(crate) fn store(id: u64) -> metapb::Store {
    metapb::Store { id, address: format!("127.0.0.1:2016{id}"), version: "8.1.0".into(), ..metapb::Store::default() }
}

pub(crate) fn region(id: u64, start: &str, end: &str, version: u64) -> metapb::Region {
    metapb::Region {
        id,
        start_key: start.as_bytes().to_vec().into(),
        end_key: end.as_bytes().to_vec().into(),
        region_epoch: Some(metapb::RegionEpoch { conf_ver: 1, version }),
        peers: vec![peer(id * 10, 1)],
        ..metapb::Region::default()
    }
}

pub(crate) fn peer(id: u64, store_id: u64) -> metapb::Peer {
    metapb::Peer { id, store_id, ..metapb::Peer::default() }
}
