//! Faults that are built in and off. Tests switch one on to show that they would find it; nothing else does.

use std::str::FromStr;

/// A mistake that a storage server could make.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PlantedFault {
    /// Writes are applied and answered, and then logged.
    AnswerBeforeLog,
    /// The log's writes are never synced.
    NoSync,
    /// Recovery forgets the last entry of each log.
    ForgetTail,
    /// Recovery passes over the records of splits.
    ForgetSplit,
    /// A split's children reach the engine before its record is in the log.
    SplitBeforeRecord,
    /// A region goes on writing while it is copied to another shard.
    MoveUnfrozen,
    /// The log is told of flushes that did not happen.
    FlushUnfinished,
    /// A new leader serves reads before it has applied what was committed.
    ReadTooEarly,
    /// Compare-and-swap reads and writes without a latch.
    NoLatches,
    /// The effects of an event are written before its record is durable.
    EngineBeforeRecord,
    /// A peer is destroyed without the flush before its record.
    EndWithoutFlush,
    /// Recovery does not erase the data of a peer that ended.
    EndKeepsData,
    /// Recovery goes on with a peer behind the record of its end.
    ReplayPastEnd,
    /// Recovery does not ingest files again.
    NoRedo,
    /// A follower reads what it has, without asking its leader.
    ReplicaReadUnasked,
    /// A follower applies some entries with a value of one byte more.
    ApplyOtherwise,
    /// Followers acknowledge entries that are not in their logs yet.
    AckBeforeSync,
    /// Votes leave before they are in the log.
    VoteBeforePersist,
    /// Terms and votes are not logged.
    HardStateLost,
    /// Leaders answer writes once their own logs have them.
    AnswerBeforeCommit,
    /// Peers vote straight after their start, though they may have granted a lease before it.
    VoteAtOnce,
    /// A lease counts from the answers instead of the question.
    LeaseFromReceipt,
    /// A lease lasts as long as the longest election time-out.
    LeaseTooLong,
    /// A lease is measured by a clock that stands still while the machine is suspended.
    LeaseByOneClock,
    /// Whoever was made leader reads until it hears of another one.
    LeaseUnchecked,
    /// A leader keeps its lease while it hands over.
    TransferKeepsLease,
    /// Followers read as leaders do.
    FollowerReads,
    /// Compare-and-swap writes though another one led since it read.
    SwapAcrossTerms,
    /// Writes go by any epoch, and to keys that are not the region's any more.
    EpochUnchecked,
    /// The last file of a snapshot is not ingested.
    SnapshotHalfApplied,
    /// A snapshot holds all keys from the region's first one on, and nobody compares them with its range.
    SnapshotTooWide,
    /// A region arrives on its new shard without a record of it.
    MoveWithoutHome,
    /// A region leaves the entries that it has not applied behind when it moves to another shard.
    MoveWithoutTail,
    /// Followers do not tell raft of changes of members.
    MembersForgotten,
    /// Peers that are no members any more stay.
    StalePeerStays,
    /// The bound of the placement driver's timestamps is not saved.
    TimestampsFromClock,
}

impl PlantedFault {
    /// All of them.
    pub const ALL: [PlantedFault; 36] = [
        PlantedFault::AnswerBeforeLog,
        PlantedFault::NoSync,
        PlantedFault::ForgetTail,
        PlantedFault::ForgetSplit,
        PlantedFault::SplitBeforeRecord,
        PlantedFault::MoveUnfrozen,
        PlantedFault::FlushUnfinished,
        PlantedFault::ReadTooEarly,
        PlantedFault::NoLatches,
        PlantedFault::EngineBeforeRecord,
        PlantedFault::EndWithoutFlush,
        PlantedFault::EndKeepsData,
        PlantedFault::ReplayPastEnd,
        PlantedFault::NoRedo,
        PlantedFault::ReplicaReadUnasked,
        PlantedFault::ApplyOtherwise,
        PlantedFault::AckBeforeSync,
        PlantedFault::VoteBeforePersist,
        PlantedFault::HardStateLost,
        PlantedFault::AnswerBeforeCommit,
        PlantedFault::VoteAtOnce,
        PlantedFault::LeaseFromReceipt,
        PlantedFault::LeaseTooLong,
        PlantedFault::LeaseByOneClock,
        PlantedFault::LeaseUnchecked,
        PlantedFault::TransferKeepsLease,
        PlantedFault::FollowerReads,
        PlantedFault::SwapAcrossTerms,
        PlantedFault::EpochUnchecked,
        PlantedFault::SnapshotHalfApplied,
        PlantedFault::SnapshotTooWide,
        PlantedFault::MoveWithoutHome,
        PlantedFault::MoveWithoutTail,
        PlantedFault::MembersForgotten,
        PlantedFault::StalePeerStays,
        PlantedFault::TimestampsFromClock,
    ];
}

impl FromStr for PlantedFault {
    type Err = String;

    /// By the name of the variant, as its `Debug` prints it.
    fn from_str(name: &str) -> Result<PlantedFault, String> {
        let found = PlantedFault::ALL.into_iter().find(|fault| format!("{fault:?}") == name);
        found.ok_or_else(|| format!("no planted fault is called {name}"))
    }
}
