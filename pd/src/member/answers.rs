//! What every member answers, leader or not: who the members are, who leads, how far this one is.

use super::Member;
use super::group::MemberInfo;
use bytes::Bytes;
use proto::etcdserverpb::{self as etcd, Cluster, Maintenance};
use proto::pdpb::{self, ServiceMode};
use proto::rpc::{self, CallContext, Status};
use std::rc::Rc;

/// The release of etcd whose API this follows.
const ETCD_VERSION: &str = "3.5.0";

impl Member {
    /// The member that leads and serves, as far as this one knows. Of itself it knows better than of others.
    pub(crate) fn leader(&self) -> Option<&MemberInfo> {
        if self.serving().is_some() {
            return Some(self.group.own());
        }
        let leader = self.node.borrow().leader().filter(|leader| *leader != self.group.own_id)?;
        self.group.find(leader)
    }

    /// The answer to a unary call that is not the leader's alone; `None` for one that is.
    pub(super) fn answer(&self, service: &str, method: &str) -> Option<Result<Bytes, Status>> {
        if service != pdpb::PD_NAME {
            return None;
        }
        match method {
            "GetMembers" => Some(self.get_members().map(|answer| rpc::encode(&answer))),
            "GetClusterInfo" => Some(self.get_cluster_info().map(|answer| rpc::encode(&answer))),
            _ => None,
        }
    }

    fn header(&self) -> Result<Option<pdpb::ResponseHeader>, Status> {
        let cluster_id = self.cluster_id().0;
        if cluster_id == 0 || self.is_over() {
            return Err(Status::unavailable("server not started"));
        }
        Ok(Some(pdpb::ResponseHeader { cluster_id, error: None }))
    }

    fn get_members(&self) -> Result<pdpb::GetMembersResponse, Status> {
        let leader = self.leader().map(|leader| self.to_pd(leader));
        Ok(pdpb::GetMembersResponse {
            header: self.header()?,
            members: self.group.members.iter().map(|member| self.to_pd(member)).collect(),
            leader: leader.clone(),
            etcd_leader: leader,
            ..pdpb::GetMembersResponse::default()
        })
    }

    fn to_pd(&self, member: &MemberInfo) -> pdpb::Member {
        let own = member.id == self.group.own_id;
        let deploy_path = if own { self.config.data_dir.display().to_string() } else { String::new() };
        pdpb::Member { deploy_path, ..member.to_pd() }
    }

    fn get_cluster_info(&self) -> Result<pdpb::GetClusterInfoResponse, Status> {
        Ok(pdpb::GetClusterInfoResponse {
            header: self.header()?,
            service_modes: vec![ServiceMode::PdSvcMode.into()],
            tso_urls: Vec::new(),
        })
    }

    fn etcd_header(&self) -> Result<Option<etcd::ResponseHeader>, Status> {
        let cluster_id = self.header()?.map_or(0, |header| header.cluster_id);
        let node = self.node.borrow();
        Ok(Some(etcd::ResponseHeader {
            cluster_id,
            member_id: self.group.own_id,
            revision: node.state().space().revision(),
            raft_term: node.term(),
        }))
    }
}

/// Handles etcd's `Cluster` and `Maintenance`, as much of them as clients call.
pub(super) struct EtcdStatus(pub(super) Rc<Member>);

impl Cluster for EtcdStatus {
    async fn member_list(
        &self,
        _cx: CallContext,
        _: etcd::MemberListRequest,
    ) -> Result<etcd::MemberListResponse, Status> {
        let members = self.0.group.members.iter().map(MemberInfo::to_etcd).collect();
        Ok(etcd::MemberListResponse { header: self.0.etcd_header()?, members })
    }
}

impl Maintenance for EtcdStatus {
    async fn status(&self, _cx: CallContext, _: etcd::StatusRequest) -> Result<etcd::StatusResponse, Status> {
        let header = self.0.etcd_header()?;
        let leader = self.0.leader().map_or(0, |leader| leader.id);
        let node = self.0.node.borrow();
        let bytes = i64::try_from(node.state().space().bytes()).unwrap_or(i64::MAX);
        Ok(etcd::StatusResponse {
            header,
            version: ETCD_VERSION.to_owned(),
            db_size: bytes,
            db_size_in_use: bytes,
            leader,
            raft_index: node.applied().index,
            raft_term: node.term(),
            raft_applied_index: node.applied().index,
            ..etcd::StatusResponse::default()
        })
    }
}
