//! What every member answers, leader or not: who the members are, who leads, how far this one is.

use super::Member;
use super::change::from_wire;
use super::group::MemberInfo;
use crate::clock::lease_now;
use crate::raft::MemberRecord;
use bytes::Bytes;
use proto::etcdserverpb::{self as etcd, Cluster, Maintenance};
use proto::memberpb::{self, MemberAction, MemberCall};
use proto::pdpb::{self, ServiceMode};
use proto::rpc::{self, CallContext, Status};
use std::rc::Rc;
use std::time::Duration;

/// The release of etcd whose API this follows.
const ETCD_VERSION: &str = "3.5.0";

/// A leader that was not heard for so many ticks may be dead.
const HEARD_TICKS: u32 = 4;
/// How long a question for the members waits for a leader, and how often it looks.
const LEADER_WAIT: Duration = Duration::from_millis(900);
const LEADER_LOOK: Duration = Duration::from_millis(5);

impl Member {
    /// The member that leads and serves, as far as this one knows. Of itself it knows better than of others.
    pub(crate) fn leader(&self) -> Option<MemberInfo> {
        let group = self.group();
        if self.serving().is_some() {
            return Some(group.own().clone());
        }
        let leader = self.node.borrow().leader().filter(|leader| *leader != group.own_id)?;
        group.find(leader).cloned()
    }

    /// The answer to a unary call that is not the leader's alone; `None` for one that is.
    pub(super) fn answer(
        self: &Rc<Self>,
        service: &str,
        method: &str,
    ) -> Option<rpc::LocalFuture<Result<Bytes, Status>>> {
        if service != pdpb::PD_NAME {
            return None;
        }
        match method {
            "GetMembers" => {
                let member = Rc::clone(self);
                Some(Box::pin(async move {
                    member.until_somebody_leads().await;
                    member.get_members().map(|answer| rpc::encode(&answer))
                }))
            }
            "GetClusterInfo" => {
                Some(Box::pin(std::future::ready(self.get_cluster_info().map(|answer| rpc::encode(&answer)))))
            }
            _ => None,
        }
    }

    /// Waits, though not for long, while nobody leads who was heard just now. A client that is told of a dead leader, or of
    /// none, sleeps for a second before it asks again; an election takes less.
    async fn until_somebody_leads(&self) {
        let leads = || {
            let (now, node) = (lease_now(), self.node.borrow());
            let patience = self.config.raft_tick * HEARD_TICKS;
            let is_heard = |id| id != self.own_id() && node.heard(id).is_some_and(|at| now.since(at) < patience);
            node.leader().is_some_and(is_heard)
        };
        let deadline = executor::now() + LEADER_WAIT;
        while !self.is_over() && self.serving().is_none() && !leads() && executor::now() < deadline {
            executor::sleep(LEADER_LOOK).await;
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
        let leader = self.leader().map(|leader| self.to_pd(&leader));
        Ok(pdpb::GetMembersResponse {
            header: self.header()?,
            members: self.group().members.iter().map(|member| self.to_pd(member)).collect(),
            leader: leader.clone(),
            etcd_leader: leader,
            ..pdpb::GetMembersResponse::default()
        })
    }

    fn to_pd(&self, member: &MemberInfo) -> pdpb::Member {
        let own = member.id == self.own_id();
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
            member_id: self.own_id(),
            revision: node.state().space().revision(),
            raft_term: node.term(),
        }))
    }
}

/// Handles etcd's `Cluster` and `Maintenance`, as much of them as clients call.
pub(super) struct EtcdStatus(pub(super) Rc<Member>);

impl EtcdStatus {
    /// All members, as etcd tells them, after a change that was about `id`.
    async fn change(&self, action: MemberAction, id: u64, urls: Vec<String>) -> Result<(u64, Listed), Status> {
        let url = urls.into_iter().next().unwrap_or_default();
        let call = MemberCall { action: action.into(), id, name: String::new(), url, hops: 0 };
        let answer = self.0.change_members(call).await?;
        let info = |record: &memberpb::MemberRecord| {
            let MemberRecord { id, role, name, url } = from_wire(record)?;
            Some(MemberInfo { id, role, name, url }.to_etcd())
        };
        let members = answer.members.iter().filter_map(info).collect();
        Ok((answer.id, Listed { header: self.0.etcd_header()?, members }))
    }
}

/// What every answer about members has.
struct Listed {
    header: Option<etcd::ResponseHeader>,
    members: Vec<etcd::Member>,
}

impl Cluster for EtcdStatus {
    async fn member_list(
        &self,
        _cx: CallContext,
        _: etcd::MemberListRequest,
    ) -> Result<etcd::MemberListResponse, Status> {
        let members = self.0.group().members.iter().map(MemberInfo::to_etcd).collect();
        Ok(etcd::MemberListResponse { header: self.0.etcd_header()?, members })
    }

    async fn member_add(
        &self,
        _cx: CallContext,
        request: etcd::MemberAddRequest,
    ) -> Result<etcd::MemberAddResponse, Status> {
        let action = if request.is_learner { MemberAction::Learn } else { MemberAction::Add };
        let (id, Listed { header, members }) = self.change(action, 0, request.peer_urls).await?;
        let member = members.iter().find(|member| member.id == id).cloned();
        Ok(etcd::MemberAddResponse { header, member, members })
    }

    async fn member_remove(
        &self,
        _cx: CallContext,
        request: etcd::MemberRemoveRequest,
    ) -> Result<etcd::MemberRemoveResponse, Status> {
        let (_, Listed { header, members }) = self.change(MemberAction::Remove, request.id, Vec::new()).await?;
        Ok(etcd::MemberRemoveResponse { header, members })
    }

    async fn member_update(
        &self,
        _cx: CallContext,
        request: etcd::MemberUpdateRequest,
    ) -> Result<etcd::MemberUpdateResponse, Status> {
        let (_, Listed { header, members }) =
            self.change(MemberAction::Describe, request.id, request.peer_urls).await?;
        Ok(etcd::MemberUpdateResponse { header, members })
    }

    async fn member_promote(
        &self,
        _cx: CallContext,
        request: etcd::MemberPromoteRequest,
    ) -> Result<etcd::MemberPromoteResponse, Status> {
        let (_, Listed { header, members }) = self.change(MemberAction::Promote, request.id, Vec::new()).await?;
        Ok(etcd::MemberPromoteResponse { header, members })
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
