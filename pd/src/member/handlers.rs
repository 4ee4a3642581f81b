//! What the other members call: `memberpb.Members`.

use super::Member;
use super::change::from_wire;
use super::lines::REMOVED;
use crate::raft::{Roster, Snapshot};
use bytes::BytesMut;
use net::HttpRequest;
use prost::Message as _;
use proto::memberpb::{
    HttpAnswer, HttpCall, MemberAnswer, MemberCall, Members, RaftBatch, RaftDone, SnapshotChunk, SnapshotDone,
};
use proto::rpc::{CallContext, Inbound, Status};
use raftstore::LogPosition;
use raftstore::eraftpb::Message;
use std::rc::Rc;

/// Largest snapshot: the state lives in memory, so this is far above what one may be.
const SNAPSHOT_BYTES_MAX: u64 = 1 << 30;

/// Handles `memberpb.Members`.
pub(super) struct MembersHandler(pub(super) Rc<Member>);

impl MembersHandler {
    /// Who is of the group is asked of nobody but the group's number: a member may hear of a new one from itself first.
    fn check(&self, group: u64, from: u64, to: u64) -> Result<(), Status> {
        let own = self.0.group();
        if group != own.number || to != own.own_id || from == to {
            return Err(Status::failed_precondition("not of this group"));
        }
        if self.0.node.borrow().has_removed(from) {
            return Err(Status::failed_precondition(REMOVED));
        }
        Ok(())
    }

    async fn take_messages(&self, mut request: Inbound<RaftBatch>, from: &mut Option<u64>) -> Result<RaftDone, Status> {
        while let Some(batch) = request.next().await? {
            self.check(batch.group, batch.from, batch.to)?;
            *from = Some(batch.from);
            for message in batch.messages {
                let bytes = message.len();
                let message = Message::decode(message)
                    .map_err(|error| Status::invalid_argument(format!("a raft message: {error}")))?;
                if message.from != batch.from {
                    return Err(Status::invalid_argument("a raft message in another member's name"));
                }
                self.0.arrived(message, bytes);
            }
        }
        Ok(RaftDone {})
    }
}

impl Members for MembersHandler {
    async fn raft(&self, _cx: CallContext, request: Inbound<RaftBatch>) -> Result<RaftDone, Status> {
        let mut from = None;
        let outcome = self.take_messages(request, &mut from).await;
        // A process that dies closes its connections at once: nobody is to be sent to it.
        from.into_iter().for_each(|from| self.0.node.borrow_mut().lost(from));
        outcome
    }

    async fn snapshot(&self, _cx: CallContext, mut request: Inbound<SnapshotChunk>) -> Result<SnapshotDone, Status> {
        let Some(first) = request.next().await? else {
            return Err(Status::invalid_argument("a snapshot without its head"));
        };
        let head = first.head.ok_or_else(|| Status::invalid_argument("a snapshot without its head"))?;
        self.check(head.group, head.from, head.to)?;
        if head.length > SNAPSHOT_BYTES_MAX {
            return Err(Status::resource_exhausted("the snapshot is too large"));
        }
        let members = head.members.iter().map(from_wire).collect::<Option<Vec<_>>>();
        let members = members.ok_or_else(|| Status::invalid_argument("a member's role is not known"))?;
        let roster = Roster::new(head.group, members, head.removed);
        let mut data = BytesMut::from(&first.data[..]);
        while let Some(chunk) = request.next().await? {
            if (data.len() + chunk.data.len()) as u64 > head.length {
                return Err(Status::invalid_argument("the snapshot is longer than its head says"));
            }
            data.extend_from_slice(&chunk.data);
        }
        let data = data.freeze();
        if data.len() as u64 != head.length || crc32c::crc32c(&data) != head.crc32c {
            return Err(Status::invalid_argument("the snapshot is not what its head says"));
        }
        let position = LogPosition { index: head.index, term: head.log_term };
        self.0.snapshot_arrived(Snapshot { from: head.from, term: head.term, position, roster, data });
        Ok(SnapshotDone {})
    }

    async fn change(&self, _cx: CallContext, call: MemberCall) -> Result<MemberAnswer, Status> {
        self.0.change_members(call).await
    }

    async fn http(&self, cx: CallContext, call: HttpCall) -> Result<HttpAnswer, Status> {
        if call.group != self.0.group().number {
            return Err(Status::failed_precondition("not of this group"));
        }
        let request = HttpRequest {
            method: call.method,
            path: call.path,
            query: call.query,
            headers: Vec::new(),
            body: call.body,
            peer: cx.peer,
        };
        let answer = super::front::answer_here(&self.0, &request).await;
        Ok(HttpAnswer { status: answer.status.into(), content_type: answer.content_type, body: answer.body })
    }
}
