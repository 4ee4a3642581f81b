//! What a peer starts from: the state that its shard recovered, checked.

use crate::eraftpb::{ConfState, Entry, HardState};
use crate::log_view::{LogView, TermRun};
use proto::metapb::{self, PeerRole};

/// Index of the last entry that a new region's log is said to have had (`RAFT_INIT_LOG_INDEX` of TiKV).
pub const RAFT_INIT_LOG_INDEX: u64 = 5;
/// Term of that entry (`RAFT_INIT_LOG_TERM` of TiKV).
pub const RAFT_INIT_LOG_TERM: u64 = 5;

/// A place in a log: an index and the term of the entry there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogPosition {
    /// The index.
    pub index: u64,
    /// The term.
    pub term: u64,
}

/// What a peer starts from.
#[derive(Clone, Debug)]
pub struct PeerInit {
    /// The region as of the applied index.
    pub region: metapb::Region,
    /// Which of its peers this is.
    pub peer: metapb::Peer,
    /// The newest durable one.
    pub hard_state: HardState,
    /// Up to where the log was truncated by command.
    pub truncated: LogPosition,
    /// Up to where the engine durably holds the log's effects.
    pub applied: LogPosition,
    /// The durable entries, following each other, to the log's end. They must begin at or before the entry after
    /// `applied`; what lies at or before `truncated` is left out. If they begin later than the entry after `truncated`,
    /// the log was purged, and it is taken as truncated at `applied`.
    pub entries: Vec<Entry>,
    /// For so many ticks a member of a group with several voters neither votes nor campaigns: before it stopped it may
    /// have granted a lease that it has forgotten. The longest lease, in ticks. A transfer of leadership goes around that.
    pub quiet_ticks: u32,
    /// Election time-outs are drawn from this, the peer id and the term.
    pub seed: u64,
}

impl PeerInit {
    /// What every peer of a new region starts from: bootstrapped, or born by a split.
    pub fn first(region: metapb::Region, peer: metapb::Peer) -> PeerInit {
        let start = LogPosition { index: RAFT_INIT_LOG_INDEX, term: RAFT_INIT_LOG_TERM };
        PeerInit {
            region,
            peer,
            hard_state: first_hard_state(),
            truncated: start,
            applied: start,
            entries: Vec::new(),
            quiet_ticks: 0,
            seed: 0,
        }
    }
}

/// The hard state of every peer of a new region.
pub fn first_hard_state() -> HardState {
    HardState { term: RAFT_INIT_LOG_TERM, vote: 0, commit: RAFT_INIT_LOG_INDEX }
}

/// Recovered state that no correct run leaves behind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InitError {
    /// The peer does not belong to its region, or its id is 0.
    #[error("peer {peer} is not a member of region {region}")]
    NotAMember {
        /// The peer's id.
        peer: u64,
        /// The region's id.
        region: u64,
    },
    /// The applied index lies before the truncated one.
    #[error("applied index {applied} is before truncated index {truncated}")]
    AppliedBehindTruncated {
        /// Applied index.
        applied: u64,
        /// Truncated index.
        truncated: u64,
    },
    /// Entries are missing.
    #[error("the log has entry {found} where entry {expected} should be")]
    Gap {
        /// The index that is missing.
        expected: u64,
        /// The index found in its place.
        found: u64,
    },
    /// An entry's term is below its predecessor's, or above the hard state's.
    #[error("entry {index} has term {term}, which cannot follow")]
    Term {
        /// The entry's index.
        index: u64,
        /// Its term.
        term: u64,
    },
    /// The log ends before an index that is known to be committed.
    #[error("the log ends at {last}, but {commit} was committed")]
    CommitBeyondLog {
        /// Committed index.
        commit: u64,
        /// Last index of the log.
        last: u64,
    },
}

/// The members of `region` as raft counts them.
///
/// A region with an incoming or demoting voter is in a joint configuration.
pub fn conf_state(region: &metapb::Region) -> ConfState {
    let with = |roles: &[PeerRole]| -> Vec<u64> {
        let peers = region.peers.iter();
        peers.filter(|peer| roles.contains(&peer.role())).map(|peer| peer.id).collect()
    };
    let joint =
        region.peers.iter().any(|peer| matches!(peer.role(), PeerRole::IncomingVoter | PeerRole::DemotingVoter));
    ConfState {
        voters: with(&[PeerRole::Voter, PeerRole::IncomingVoter]),
        learners: with(&[PeerRole::Learner]),
        voters_outgoing: if joint { with(&[PeerRole::Voter, PeerRole::DemotingVoter]) } else { Vec::new() },
        learners_next: with(&[PeerRole::DemotingVoter]),
        auto_leave: false,
    }
}

impl PeerInit {
    /// Checks the state and builds the view that raft-rs starts from.
    pub(crate) fn check(&mut self) -> Result<LogView, InitError> {
        if self.peer.id == 0 || !self.region.peers.iter().any(|peer| peer.id == self.peer.id) {
            return Err(InitError::NotAMember { peer: self.peer.id, region: self.region.id });
        }
        if self.applied.index < self.truncated.index {
            return Err(InitError::AppliedBehindTruncated {
                applied: self.applied.index,
                truncated: self.truncated.index,
            });
        }
        let mut entries = std::mem::take(&mut self.entries);
        let first = entries.first().map(|entry| entry.index);
        let start = match first {
            Some(first) if first <= self.truncated.index + 1 => self.truncated,
            _ => self.applied,
        };
        entries.retain(|entry| entry.index > start.index);
        self.check_chain(start, &entries)?;

        let last = entries.last().map_or(start.index, |entry| entry.index);
        let commit = self.hard_state.commit.max(self.applied.index);
        if commit > last {
            return Err(InitError::CommitBeyondLog { commit, last });
        }
        // raft-rs panics if the applied index is above the committed one.
        self.hard_state.commit = commit;
        let runs = vec![TermRun { first: start.index, term: start.term }];
        Ok(LogView::new(self.hard_state, conf_state(&self.region), runs, start.index, entries))
    }

    fn check_chain(&self, start: LogPosition, entries: &[Entry]) -> Result<(), InitError> {
        let mut before = start;
        for entry in entries {
            if entry.index != before.index + 1 {
                return Err(InitError::Gap { expected: before.index + 1, found: entry.index });
            }
            if entry.term < before.term || entry.term > self.hard_state.term {
                return Err(InitError::Term { index: entry.index, term: entry.term });
            }
            before = LogPosition { index: entry.index, term: entry.term };
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use raft::Storage;

    fn init() -> PeerInit {
        let peer = metapb::Peer { id: 2, store_id: 1, ..Default::default() };
        let region = metapb::Region { id: 1, peers: vec![peer], ..Default::default() };
        PeerInit::first(region, peer)
    }

    fn entries(range: std::ops::RangeInclusive<u64>, term: u64) -> Vec<Entry> {
        range.map(|index| Entry { index, term, ..Default::default() }).collect()
    }

    #[test]
    fn commit_is_raised_to_applied() {
        let mut init = init();
        init.hard_state = HardState { term: 6, vote: 2, commit: 5 };
        init.applied = LogPosition { index: 8, term: 6 };
        init.entries = entries(6..=9, 6);
        let view = init.check().expect("sound");
        assert_eq!(init.hard_state.commit, 8);
        assert_eq!((view.first_index(), view.last_index()), (Ok(6), Ok(9)));
    }

    #[test]
    fn a_purged_log_begins_after_applied() {
        let mut init = init();
        init.hard_state = HardState { term: 6, vote: 2, commit: 5 };
        init.applied = LogPosition { index: 8, term: 6 };
        let view = init.clone().check().expect("nothing left of the log");
        assert_eq!((view.first_index(), view.last_index(), view.term(8)), (Ok(9), Ok(8), Ok(6)));
        init.entries = entries(7..=9, 6);
        let view = init.check().expect("a part of the log is left");
        assert_eq!((view.first_index(), view.last_index(), view.term(8)), (Ok(9), Ok(9), Ok(6)));
    }

    #[test]
    fn unsound_state_is_refused_by_name() {
        let sound = || PeerInit {
            hard_state: HardState { term: 7, vote: 2, commit: 7 },
            applied: LogPosition { index: 6, term: 6 },
            entries: [entries(6..=7, 6), entries(8..=9, 7)].concat(),
            ..init()
        };
        sound().check().expect("sound");
        let broken = |change: fn(&mut PeerInit)| {
            let mut init = sound();
            change(&mut init);
            init.check().expect_err("unsound")
        };
        assert_eq!(broken(|init| init.peer.id = 3), InitError::NotAMember { peer: 3, region: 1 });
        assert_eq!(
            broken(|init| init.truncated.index = 7),
            InitError::AppliedBehindTruncated { applied: 6, truncated: 7 }
        );
        assert_eq!(broken(|init| drop(init.entries.remove(1))), InitError::Gap { expected: 7, found: 8 });
        assert_eq!(broken(|init| drop(init.entries.drain(..2))), InitError::Gap { expected: 7, found: 8 });
        assert_eq!(broken(|init| init.hard_state.term = 6), InitError::Term { index: 8, term: 7 });
        assert_eq!(broken(|init| init.entries[3].term = 6), InitError::Term { index: 9, term: 6 });
        assert_eq!(broken(|init| init.hard_state.commit = 10), InitError::CommitBeyondLog { commit: 10, last: 9 });
    }
}
