//! Faults that are built in and off. Tests switch one on to show that they would find it; nothing else does.

use std::str::FromStr;

/// A mistake that a storage server could make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
}

impl PlantedFault {
    /// All of them.
    pub const ALL: [PlantedFault; 16] = [
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
