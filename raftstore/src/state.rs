//! What a peer keeps in family `raft`, next to the data that it describes.
//!
//! The keys are [`base::keys::apply_state`] and [`base::keys::region_state`].

use crate::init::LogPosition;
use prost::{DecodeError, Message};
use proto::metapb::Region;
use proto::raft_serverpb::{MergeState, PeerState, RaftApplyState, RaftTruncatedState, RegionLocalState};

/// Encodes how far the data has come. It must be written in one batch with that data.
///
/// The protocol has no term of the applied index; it stands in `commit_index` and `commit_term`, which TiKV defines as an
/// index known to be committed, and its term. A peer whose log was purged up to the applied index needs it to start.
pub fn encode_apply_state(applied: LogPosition, truncated: LogPosition) -> Vec<u8> {
    let state = RaftApplyState {
        applied_index: applied.index,
        truncated_state: Some(RaftTruncatedState { index: truncated.index, term: truncated.term }),
        last_commit_index: applied.index,
        commit_index: applied.index,
        commit_term: applied.term,
    };
    state.encode_to_vec()
}

/// How far the data of a peer has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApplyState {
    /// Up to where the log is applied. The term is 0 if it is not known (written by TiKV).
    pub applied: LogPosition,
    /// Up to where the log was truncated by command.
    pub truncated: LogPosition,
}

/// Decodes what [`encode_apply_state`] wrote.
///
/// # Errors
/// If the bytes are no such message.
pub fn decode_apply_state(bytes: &[u8]) -> Result<ApplyState, DecodeError> {
    let state = RaftApplyState::decode(bytes)?;
    let truncated = state.truncated_state.unwrap_or_default();
    let truncated = LogPosition { index: truncated.index, term: truncated.term };
    let index = state.applied_index;
    let term = if index == truncated.index {
        truncated.term
    } else if index == state.commit_index {
        state.commit_term
    } else {
        0
    };
    Ok(ApplyState { applied: LogPosition { index, term }, truncated })
}

/// Encodes a region and what this peer is in it. `merge` is for [`PeerState::Merging`].
pub fn encode_region_state(state: PeerState, region: &Region, merge: Option<MergeState>) -> Vec<u8> {
    let state = RegionLocalState {
        state: state as i32,
        region: Some(region.clone()),
        merge_state: merge,
        ..Default::default()
    };
    state.encode_to_vec()
}

/// Decodes what [`encode_region_state`] wrote.
///
/// # Errors
/// If the bytes are no such message.
pub fn decode_region_state(bytes: &[u8]) -> Result<RegionLocalState, DecodeError> {
    RegionLocalState::decode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_apply_state_keeps_the_term_of_the_applied_index() {
        let position = |index, term| LogPosition { index, term };
        let bytes = encode_apply_state(position(9, 7), position(5, 5));
        let state = decode_apply_state(&bytes).expect("its own bytes");
        assert_eq!((state.applied, state.truncated), (position(9, 7), position(5, 5)));
        assert!(decode_apply_state(&[0xff]).is_err());
    }

    #[test]
    fn a_state_written_by_tikv_may_lack_that_term() {
        let state = RaftApplyState {
            applied_index: 9,
            truncated_state: Some(RaftTruncatedState { index: 5, term: 5 }),
            commit_index: 8,
            commit_term: 6,
            ..Default::default()
        };
        let state = decode_apply_state(&state.encode_to_vec()).expect("well formed");
        assert_eq!(state.applied, LogPosition { index: 9, term: 0 });
    }

    #[test]
    fn a_region_state_reads_back() {
        let region = Region { id: 4, start_key: "a".into(), ..Default::default() };
        let bytes = encode_region_state(PeerState::Tombstone, &region, None);
        let state = decode_region_state(&bytes).expect("its own bytes");
        assert_eq!(state.state(), PeerState::Tombstone);
        assert_eq!(state.region, Some(region));
    }
}
