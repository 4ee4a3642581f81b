//! Members of a group on one core.

use crate::common::{self, cx};
use net::{Channel, ChannelConfig};
use pd::{PdConfig, PdServer};
use proto::pdpb;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Longest wait for a leader: an election takes about a second, on a machine that others use as well.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Group {
    pub(crate) servers: Vec<Option<PdServer>>,
    pub(crate) cluster: Vec<(String, String)>,
    pub(crate) folder: PathBuf,
}

impl Group {
    pub(crate) async fn start(folder: &Path) -> Group {
        let cluster = free_addresses(3).await;
        let mut group = Group { servers: vec![None, None, None], cluster, folder: folder.to_owned() };
        for at in 0..3 {
            group.begin(at).await;
        }
        group
    }

    pub(crate) fn config(&self, at: usize) -> PdConfig {
        let (name, url) = &self.cluster[at];
        PdConfig {
            listen: url["http://".len()..].parse().expect("an address"),
            data_dir: self.folder.join(name),
            name: name.clone(),
            initial_cluster: self.cluster.clone(),
            ..PdConfig::default()
        }
    }

    pub(crate) async fn begin(&mut self, at: usize) {
        self.servers[at] = Some(PdServer::start(self.config(at)).await.expect("the member starts"));
    }

    pub(crate) fn server(&self, at: usize) -> &PdServer {
        self.servers[at].as_ref().expect("it runs")
    }

    /// Waits until one of the running members serves.
    pub(crate) async fn leader(&self) -> usize {
        let found = async {
            loop {
                let is_leader = |at: &usize| self.servers[*at].as_ref().is_some_and(PdServer::is_leader);
                if let Some(leader) = (0..self.servers.len()).find(is_leader) {
                    return leader;
                }
                executor::sleep(Duration::from_millis(5)).await;
            }
        };
        executor::timeout(PATIENCE, found).await.expect("a leader")
    }

    /// Waits until a member knows that `leader` leads.
    pub(crate) async fn knows(&self, at: usize, leader: usize) -> pdpb::GetMembersResponse {
        let found = async {
            loop {
                let answer = self.pd(at).get_members(cx(), &pdpb::GetMembersRequest::default()).await;
                if let Ok(answer) = answer
                    && answer.leader.as_ref().is_some_and(|member| member.name == self.cluster[leader].0)
                {
                    return answer;
                }
                executor::sleep(Duration::from_millis(5)).await;
            }
        };
        executor::timeout(PATIENCE, found).await.expect("it hears of the leader")
    }

    pub(crate) fn channel(&self, at: usize) -> Channel {
        Channel::new(self.cluster[at].1.clone(), ChannelConfig::default())
    }

    pub(crate) fn pd(&self, at: usize) -> pdpb::PdClient<Channel> {
        pdpb::PdClient::new(self.channel(at))
    }

    pub(crate) fn header(&self, at: usize) -> Option<pdpb::RequestHeader> {
        Some(pdpb::RequestHeader { cluster_id: self.server(at).cluster_id().0, sender_id: 0 })
    }

    pub(crate) async fn http(&self, at: usize, method: &str, path: &str) -> (u16, serde_json::Value) {
        let (status, body) = common::http(self.server(at).addr(), method, path, "").await;
        (status, serde_json::from_str(&body).unwrap_or(serde_json::Value::Null))
    }
}

/// Names and URLs of members that do not run yet.
pub(crate) async fn free_addresses(count: usize) -> Vec<(String, String)> {
    let mut held = Vec::new();
    for _ in 0..count {
        let any = "127.0.0.1:0".parse().expect("an address");
        held.push(executor::net::TcpListener::bind(any).await.expect("a port"));
    }
    let url = |listener: &executor::net::TcpListener| format!("http://{}", listener.local_addr().expect("bound"));
    held.iter().enumerate().map(|(at, listener)| (format!("pd-{at}"), url(listener))).collect()
}
