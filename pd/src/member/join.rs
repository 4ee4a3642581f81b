//! How a member with an empty folder comes into a running group.

use super::change::from_wire;
use super::group::full;
use crate::config::PdConfig;
use crate::raft::{Roster, Stored, bare};
use net::{Channel, ChannelConfig};
use proto::memberpb::{MemberAction, MemberAnswer, MemberCall, MembersClient};
use proto::rpc::{CallContext, Code, Status};
use std::time::Duration;

/// How long the group is asked, and how long one member may take to answer.
const JOIN_LIMIT: Duration = Duration::from_secs(30);
const CALL_LIMIT: Duration = Duration::from_secs(12);
/// The same for a question that needs no leader.
const TELL_LIMIT: Duration = Duration::from_secs(1);
/// The wait before all members are asked again.
const PAUSE: Duration = Duration::from_millis(200);

/// Has the group add this member, whose port is at `url`.
///
/// # Errors
/// The group's refusal, or why it could not be asked.
pub(crate) async fn join(config: &PdConfig, url: &str) -> Result<Stored, Status> {
    let call = MemberCall {
        action: MemberAction::Join.into(),
        id: 0,
        name: config.name.clone(),
        url: url.to_owned(),
        hops: 0,
    };
    let deadline = executor::now() + JOIN_LIMIT;
    loop {
        let mut last = Status::unavailable("no URL of a member was given");
        // Its own port listens, and answers nobody yet.
        for member in config.join.iter().filter(|member| bare(member) != bare(url)) {
            match ask(config, member, &call, CALL_LIMIT).await {
                Ok(answer) => {
                    let members = answer.members.iter().map(from_wire).collect::<Option<Vec<_>>>();
                    let members = members.ok_or_else(|| Status::internal("the group is of a later version"))?;
                    return Ok(Stored::joining(answer.id, Roster::new(answer.group, members, answer.removed)));
                }
                Err(status) if matches!(status.code, Code::Unavailable | Code::DeadlineExceeded) => last = status,
                Err(status) => return Err(status),
            }
        }
        if executor::now() >= deadline {
            return Err(last);
        }
        executor::sleep(PAUSE).await;
    }
}

async fn ask(config: &PdConfig, member: &str, call: &MemberCall, limit: Duration) -> Result<MemberAnswer, Status> {
    let channels = ChannelConfig { tls: config.server.tls.clone(), ..ChannelConfig::default() };
    let client = MembersClient::new(Channel::new(full(member, config), channels));
    client.change(CallContext::with_deadline(executor::now() + limit), call).await
}

/// Where the members of a group are, as far as those say so that this one was to ask when it joined.
pub(crate) async fn where_they_are(config: &PdConfig, url: &str, roster: &Roster) -> Vec<(u64, String)> {
    let call = MemberCall { action: MemberAction::Tell.into(), ..MemberCall::default() };
    for member in config.join.iter().filter(|member| bare(member) != bare(url)) {
        match ask(config, member, &call, TELL_LIMIT).await {
            Ok(answer) if answer.group == roster.group => {
                return answer.members.into_iter().map(|member| (member.id, member.url)).collect();
            }
            _ => {}
        }
    }
    Vec::new()
}
