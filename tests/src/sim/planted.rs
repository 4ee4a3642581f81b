//! Which runs find which planted fault.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use shard::core::PlantedFault;

use super::{Fault, Focus, Plan, World};

/// A run that is about what `fault` breaks. Nothing for those that need a crash between two steps of one event: the model
/// test of recovery (`shard/tests/recovery_model`) tries these one by one. Nor for the lease by one clock, which
/// [`World::suspend_a_leader`] finds in every seed.
pub fn plan(fault: PlantedFault) -> Option<Plan> {
    use PlantedFault as F;
    let (nodes, focus) = match fault {
        F::LeaseByOneClock
        | F::SplitBeforeRecord
        | F::EngineBeforeRecord
        | F::EndWithoutFlush
        | F::EndKeepsData
        | F::ReplayPastEnd
        | F::NoRedo => return None,
        F::AnswerBeforeLog
        | F::NoSync
        | F::ForgetTail
        | F::ForgetSplit
        | F::MoveUnfrozen
        | F::FlushUnfinished
        | F::NoLatches
        | F::MoveWithoutHome => (1, Focus::Crashes),
        F::ReadTooEarly => (1, Focus::Leaders),
        F::AckBeforeSync | F::AnswerBeforeCommit | F::TimestampsFromClock => (3, Focus::Crashes),
        F::VoteBeforePersist
        | F::HardStateLost
        | F::VoteAtOnce
        | F::LeaseFromReceipt
        | F::LeaseTooLong
        | F::LeaseUnchecked
        | F::TransferKeepsLease
        | F::FollowerReads
        | F::ReplicaReadUnasked
        | F::SwapAcrossTerms => (3, Focus::Leaders),
        F::EpochUnchecked
        | F::SnapshotHalfApplied
        | F::SnapshotTooWide
        | F::MoveWithoutTail
        | F::MembersForgotten
        | F::ApplyOtherwise
        | F::StalePeerStays => (3, Focus::Members),
    };
    let plan = Plan { nodes, focus, operations: 1000, duration: Duration::from_secs(40), ..Plan::default() };
    Some(Plan { planted: Some(fault), only: story(fault), ..plan })
}

/// The fault of several steps that leads to what `fault` breaks, where chance alone takes too many seeds.
fn story(fault: PlantedFault) -> Option<Fault> {
    match fault {
        PlantedFault::VoteAtOnce => Some(Fault::RestartBehindCut),
        PlantedFault::VoteBeforePersist => Some(Fault::LoseVote),
        PlantedFault::LeaseTooLong => Some(Fault::CutUntilReplaced),
        PlantedFault::SwapAcrossTerms => Some(Fault::ThereAndBack),
        PlantedFault::LeaseFromReceipt => Some(Fault::LateAnswers),
        PlantedFault::TransferKeepsLease => Some(Fault::HandOverBehindSlowLink),
        _ => None,
    }
}

/// Whether the run of `seed` finds what is planted: it panics, as a run must that finds something, and does not without it.
pub fn is_found(seed: u64, plan: Plan) -> bool {
    let fails = |plan| catch_unwind(AssertUnwindSafe(|| World::new(seed, plan).run())).is_err();
    fails(plan) && !fails(Plan { planted: None, ..plan })
}
