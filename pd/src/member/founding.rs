//! How the first members of a group begin: together, so that one that comes later with an empty folder is known to have had
//! data. [`Stage`] says why that holds.
//!
//! A quorum of them would do for raft, and would not do here: of three, two that have never heard of the third cannot tell
//! whether it is late, or has committed something with the one of them whose disk was replaced since.

use super::Member;
use super::change::stage_from_wire;
use super::group::MemberInfo;
use crate::raft::Stage;
use base::Instant;
use futures_util::future::join_all;
use proto::memberpb::{MemberAction, MemberCall, MembersClient};
use proto::rpc::CallContext;
use std::future::pending;
use std::time::Duration;

/// How long another member may take to say how far it has come.
const ASK_LIMIT: Duration = Duration::from_secs(1);
/// The wait before all are asked again.
const PAUSE: Duration = Duration::from_millis(50);
/// How often it is said who is waited for.
const SAY_AGAIN: Duration = Duration::from_secs(10);

impl Member {
    /// Returns when this member takes part in its group: at once, unless the group is new. A member that must not take part,
    /// since it has lost what it had, ends instead.
    pub(crate) async fn found(&self) {
        let mut say_at = executor::now() + PAUSE * 20;
        loop {
            let own = self.node.borrow().stage();
            if matches!(own, Stage::Begun | Stage::Out) {
                return;
            }
            let others: Vec<MemberInfo> = self.group().others().cloned().collect();
            let stages = join_all(others.iter().map(|other| self.stage_of(other.id))).await;
            let all = |fits: fn(Stage) -> bool| stages.iter().all(|stage| stage.is_some_and(fits));
            let has_begun = stages.contains(&Some(Stage::Begun));
            match own {
                Stage::Asking if has_begun => {
                    self.lost_data.set(true);
                    self.wake.notify();
                    return pending().await;
                }
                Stage::Asking if all(|_| true) => self.node.borrow_mut().make_ready(),
                Stage::Ready if has_begun || all(|stage| stage == Stage::Ready) => self.node.borrow_mut().begin(),
                _ => self.say_who_is_missing(&mut say_at, &others, &stages),
            }
            self.wake.notify();
            executor::sleep(PAUSE).await;
        }
    }

    /// How far another member has come; `None` if it does not say so, or somebody else answers in its place.
    async fn stage_of(&self, other: u64) -> Option<Stage> {
        let channel = self.lines.channel(other)?;
        let cx = CallContext::with_deadline(executor::now() + ASK_LIMIT);
        let call = MemberCall { action: MemberAction::Tell.into(), ..MemberCall::default() };
        let answer = MembersClient::new(channel).change(cx, &call).await.ok()?;
        (answer.group == self.group().number && answer.id == other).then(|| stage_from_wire(answer.stage))
    }

    fn say_who_is_missing(&self, at: &mut Instant, others: &[MemberInfo], stages: &[Option<Stage>]) {
        if executor::now() < *at {
            return;
        }
        *at = executor::now() + SAY_AGAIN;
        let missing = others.iter().zip(stages).filter(|(_, stage)| stage.is_none());
        let missing: Vec<String> = missing.map(|(other, _)| format!("{} at {}", other.name, other.url)).collect();
        tracing::warn!(missing = missing.join(", "), "a new group begins when all of its first members are there");
    }
}
