//! Changes of the members of a running group: `memberpb.Members.Change`, behind which etcd's `Cluster`, the REST paths and
//! `--join` stand as well.
//!
//! Any member takes a call; the leader carries it out. A member is added as a learner, gets the state, and votes when it has
//! caught up. One that leads and is to be removed hands over first, and its successor removes it.

use super::Member;
use super::group::names;
use crate::clock::lease_now;
use crate::raft::{ChangeError, MemberChange, MemberRecord, MemberRole, Roster, Stage, bare};
use base::Instant;
use proto::memberpb::{self, MemberAction, MemberAnswer, MemberCall, MembersClient};
use proto::rpc::{CallContext, Code, Status};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

/// How long a change may take: an election, and a little.
const CHANGE_LIMIT: Duration = Duration::from_secs(10);
/// The wait before a change is tried again that could not be begun.
const PAUSE: Duration = Duration::from_millis(50);
/// How often a member looks whether the group knows its name and URL.
const ANNOUNCE_PAUSE: Duration = Duration::from_millis(200);
/// How long another member may take to say whether this one is of its group.
const ASK_LIMIT: Duration = Duration::from_secs(1);
/// A voter that was not heard for so long does not count when another is to be removed.
const ACTIVE: Duration = Duration::from_secs(2);

/// Changes that somebody waits for, with what became of them.
#[derive(Default)]
pub(super) struct Changes {
    last: u64,
    waiting: BTreeMap<u64, Option<Changed>>,
}

/// What became of a change that was proposed.
#[derive(Clone, Debug)]
enum Changed {
    Done(Result<(), ChangeError>),
    /// It was not begun, or has given way.
    Not,
}

impl Changes {
    /// The next change, waited for as long as what is returned lives.
    fn begin(changes: &RefCell<Changes>) -> Waiting<'_> {
        let mut all = changes.borrow_mut();
        all.last += 1;
        let number = all.last;
        all.waiting.insert(number, None);
        Waiting { changes, number }
    }

    pub(super) fn done(&mut self, number: u64, outcome: Result<(), ChangeError>) {
        self.set(number, Changed::Done(outcome));
    }

    pub(super) fn not_begun(&mut self, number: u64) {
        self.set(number, Changed::Not);
    }

    fn set(&mut self, number: u64, outcome: Changed) {
        if let Some(waiting) = self.waiting.get_mut(&number) {
            *waiting = Some(outcome);
        }
    }
}

/// Somebody who waits for a change. A call that is given up by its caller waits no more.
struct Waiting<'a> {
    changes: &'a RefCell<Changes>,
    number: u64,
}

impl Waiting<'_> {
    fn outcome(&self) -> Option<Changed> {
        self.changes.borrow().waiting.get(&self.number).cloned().flatten()
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.changes.borrow_mut().waiting.remove(&self.number);
    }
}

/// Why a step was not done.
enum Step {
    /// It may be done later, or elsewhere.
    Again,
    /// It will not be done.
    Refused(Status),
}

impl Member {
    /// Carries a change out, here or at the leader.
    ///
    /// # Errors
    /// With etcd's codes and words: NOT_FOUND for a stranger, FAILED_PRECONDITION for what the group's rules do not allow,
    /// UNAVAILABLE if nobody led for too long. The change may have been made then.
    pub(crate) async fn change_members(&self, call: MemberCall) -> Result<MemberAnswer, Status> {
        if call.action() == MemberAction::Tell {
            return self.member_answer(self.own_id());
        }
        let deadline = executor::now() + CHANGE_LIMIT;
        let mut begun = false;
        while !self.is_over() {
            let leader = self.leader().map(|leader| leader.id);
            match leader {
                Some(id) if id == self.own_id() => match self.change_here(&call, &mut begun).await {
                    Ok(id) => return self.member_answer(id),
                    Err(Step::Refused(status)) => return Err(status),
                    Err(Step::Again) => {}
                },
                _ if call.hops > 1 => return Err(Status::unavailable("not leader")),
                Some(id) => {
                    if let Some(answer) = self.pass_on(id, &call, deadline).await {
                        return answer;
                    }
                }
                None if call.hops > 0 => return Err(Status::unavailable("no leader")),
                None => {}
            }
            if executor::now() >= deadline {
                return Err(Status::unavailable("etcdserver: no leader"));
            }
            executor::sleep(PAUSE).await;
        }
        Err(Status::unavailable("server not started"))
    }

    /// Another member's answer; `None` if it says that it cannot answer now.
    async fn pass_on(&self, to: u64, call: &MemberCall, deadline: Instant) -> Option<Result<MemberAnswer, Status>> {
        let channel = self.lines.channel(to)?;
        let call = MemberCall { hops: call.hops + 1, ..call.clone() };
        match MembersClient::new(channel).change(CallContext::with_deadline(deadline), &call).await {
            Err(status) if status.code == Code::Unavailable => None,
            answer => Some(answer),
        }
    }

    /// This member leads. The id of whom the call was about.
    async fn change_here(&self, call: &MemberCall, begun: &mut bool) -> Result<u64, Step> {
        let roster = self.node.borrow().roster().clone();
        match call.action() {
            MemberAction::Tell => Ok(call.id),
            MemberAction::Join => {
                let at = |member: &&MemberRecord| bare(&member.url) == bare(&call.url);
                if let Some(old) = roster.members().iter().find(at).filter(|old| old.role != MemberRole::Voter) {
                    // Whoever it was has nothing that counts; with another number nothing of it is mistaken for the new one's.
                    self.propose(&MemberChange::Remove { id: old.id }).await?;
                }
                self.add(call, true).await
            }
            MemberAction::Learn => self.add(call, false).await,
            MemberAction::Add => self.add(call, true).await,
            MemberAction::Promote => {
                let is_learner = roster.find(call.id).is_some_and(|member| member.role != MemberRole::Voter);
                if is_learner && !self.node.borrow().has_caught_up(call.id) {
                    let text = "etcdserver: can only promote a learner member which is in sync with leader";
                    return Err(Step::Refused(Status::failed_precondition(text)));
                }
                self.propose(&MemberChange::Promote { id: call.id }).await.map(|()| call.id)
            }
            MemberAction::Remove if *begun && roster.was_removed(call.id) => Ok(call.id),
            MemberAction::Remove => self.remove(&roster, call.id, begun).await,
            MemberAction::Describe => {
                let name = if call.name.is_empty() {
                    roster.find(call.id).map(|member| member.name.clone()).unwrap_or_default()
                } else {
                    call.name.clone()
                };
                let change = MemberChange::Describe { id: call.id, name, url: call.url.clone() };
                self.propose(&change).await.map(|()| call.id)
            }
        }
    }

    async fn add(&self, call: &MemberCall, joining: bool) -> Result<u64, Step> {
        if bare(&call.url).is_empty() {
            return Err(Step::Refused(Status::invalid_argument("a member needs a URL")));
        }
        let id = executor::with_rng(base::Prng::next_u64) | 1;
        let change = MemberChange::Add { id, name: call.name.clone(), url: call.url.clone(), joining };
        self.propose(&change).await.map(|()| id)
    }

    async fn remove(&self, roster: &Roster, id: u64, begun: &mut bool) -> Result<u64, Step> {
        if roster.find(id).is_some_and(|member| member.role == MemberRole::Voter) && !roster.is_sole_voter(id) {
            let left: Vec<u64> = roster.voters().filter(|voter| *voter != id).collect();
            let now = lease_now();
            let node = self.node.borrow();
            let is_active =
                |voter: &&u64| **voter == self.own_id() || node.heard(**voter).is_some_and(|at| now.since(at) < ACTIVE);
            if left.iter().filter(is_active).count() <= left.len() / 2 {
                let text = "etcdserver: re-configuration failed due to not enough started members";
                return Err(Step::Refused(Status::failed_precondition(text)));
            }
        }
        if id == self.own_id() && !roster.is_sole_voter(id) {
            self.hand_over(None).await;
            return Err(Step::Again);
        }
        *begun = true;
        self.propose(&MemberChange::Remove { id }).await.map(|()| id)
    }

    /// Proposes a change and waits for what becomes of it.
    async fn propose(&self, change: &MemberChange) -> Result<(), Step> {
        let Some(term) = self.serving().map(|term| term.number) else { return Err(Step::Again) };
        let waiting = Changes::begin(&self.changes);
        self.node.borrow_mut().propose_change(waiting.number, change);
        self.wake.notify();
        let outcome = self.changed.wait(|| {
            let known = waiting.outcome();
            let is_over = || self.is_over() || self.node.borrow().leads() != Some(term);
            known.or_else(|| is_over().then_some(Changed::Not))
        });
        let outcome = executor::timeout(CHANGE_LIMIT, outcome).await;
        match outcome {
            Ok(Changed::Done(Ok(()))) => {
                tracing::info!(?change, members = names(self.node.borrow().roster()), "the members have changed");
                Ok(())
            }
            Ok(Changed::Done(Err(error))) => Err(Step::Refused(to_status(&error))),
            Ok(Changed::Not) => Err(Step::Again),
            Err(_) => Err(Step::Refused(Status::unavailable("etcdserver: request timed out"))),
        }
    }

    /// After each tick of a leader: the learner that was to become a voter, and has caught up, does.
    pub(super) fn promote_who_has_caught_up(&self) {
        let mut node = self.node.borrow_mut();
        if let Some(id) = node.ready_to_vote() {
            // What becomes of it shows in the roster.
            node.propose_change(0, &MemberChange::Promote { id });
        }
    }

    /// Tells the group this member's name and URL until it knows them. If nobody leads who is heard, asks whether this one
    /// is a member still: nothing is sent to one that was removed, and a learner would wait for ever.
    pub(crate) async fn announce(&self) {
        loop {
            if self.is_lonely() || self.node.borrow().is_leaving() {
                self.ask_whether_removed().await;
            }
            let known = self.node.borrow().roster().find(self.own_id()).cloned();
            let own = &self.known;
            if let Some(record) = known
                && (record.name != own.name || record.url != own.url)
            {
                let call = MemberCall {
                    action: MemberAction::Describe.into(),
                    id: own.own_id,
                    name: own.name.clone(),
                    url: own.url.clone(),
                    hops: 0,
                };
                let told = match self.leader() {
                    Some(_) => self.change_members(call).await.map(drop),
                    // The leader may know it by another URL only, and is not heard then.
                    None => self.ask_anybody(&call).await,
                };
                if let Err(status) = told {
                    tracing::warn!(%status, name = own.name, url = own.url, "the group does not take this name and URL");
                    executor::sleep(CHANGE_LIMIT).await;
                }
            }
            executor::sleep(ANNOUNCE_PAUSE).await;
        }
    }

    /// Has any other member see to a change; nothing if none of them can.
    async fn ask_anybody(&self, call: &MemberCall) -> Result<(), Status> {
        let others: Vec<u64> = self.group().others().map(|other| other.id).collect();
        for other in others {
            if let Some(answer) = self.pass_on(other, call, executor::now() + ASK_LIMIT).await {
                return answer.map(drop);
            }
        }
        Ok(())
    }

    fn is_lonely(&self) -> bool {
        let (now, node) = (lease_now(), self.node.borrow());
        let is_heard = |id| id == self.own_id() || node.heard(id).is_some_and(|at| now.since(at) < ACTIVE);
        !node.leader().is_some_and(is_heard)
    }

    async fn ask_whether_removed(&self) {
        let others: Vec<u64> = self.group().others().map(|other| other.id).collect();
        for channel in others.into_iter().filter_map(|other| self.lines.channel(other)) {
            let cx = CallContext::with_deadline(executor::now() + ASK_LIMIT);
            let call = MemberCall { action: MemberAction::Tell.into(), ..MemberCall::default() };
            let answer = MembersClient::new(channel).change(cx, &call).await;
            let own = self.group().number;
            if answer.is_ok_and(|answer| answer.group == own && answer.removed.contains(&self.own_id())) {
                return self.lines.tell_removed();
            }
        }
    }

    fn member_answer(&self, id: u64) -> Result<MemberAnswer, Status> {
        let cluster_id = self.cluster_id().0;
        let group = self.group();
        let node = self.node.borrow();
        // URLs as this member knows them: those of members that have not announced themselves yet are in its flags.
        let mut members: Vec<memberpb::MemberRecord> = node.roster().members().iter().map(to_wire).collect();
        for member in &mut members {
            if let Some(info) = group.find(member.id) {
                member.url.clone_from(&info.url);
            }
        }
        // Only what this member will not forget: who reads of itself here is gone for good.
        let removed = node.removed().to_vec();
        let stage = stage_to_wire(node.stage());
        Ok(MemberAnswer { group: group.number, cluster_id, id, members, removed, stage })
    }
}

fn to_status(error: &ChangeError) -> Status {
    let text = format!("etcdserver: {error}");
    match error {
        ChangeError::NotAMember => Status::not_found(text),
        _ => Status::failed_precondition(text),
    }
}

fn stage_to_wire(stage: Stage) -> u32 {
    match stage {
        Stage::Begun | Stage::Out => 0,
        Stage::Asking => 1,
        Stage::Ready => 2,
    }
}

/// What is not known is taken for a member that has begun: members of former versions say nothing.
pub(super) fn stage_from_wire(stage: u32) -> Stage {
    match stage {
        1 => Stage::Asking,
        2 => Stage::Ready,
        _ => Stage::Begun,
    }
}

pub(super) fn to_wire(record: &MemberRecord) -> memberpb::MemberRecord {
    memberpb::MemberRecord {
        id: record.id,
        role: record.role.to_number().into(),
        name: record.name.clone(),
        url: record.url.clone(),
    }
}

/// `None` for a role of a later version.
pub(crate) fn from_wire(record: &memberpb::MemberRecord) -> Option<MemberRecord> {
    let role = MemberRole::from_number(u8::try_from(record.role).ok()?)?;
    Some(MemberRecord { id: record.id, role, name: record.name.clone(), url: record.url.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_is_given_up_leaves_nothing() {
        let changes = RefCell::new(Changes::default());
        let (first, second) = (Changes::begin(&changes), Changes::begin(&changes));
        changes.borrow_mut().done(first.number, Ok(()));
        assert!(matches!(first.outcome(), Some(Changed::Done(Ok(())))) && second.outcome().is_none());
        drop(second);
        changes.borrow_mut().not_begun(2);
        assert_eq!(changes.borrow().waiting.len(), 1);
        drop(first);
        assert!(changes.borrow().waiting.is_empty());
    }
}
