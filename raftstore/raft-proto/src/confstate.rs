//! Comparing and building member lists.

use crate::eraftpb::ConfState;
use std::collections::BTreeSet;

impl<V, L> From<(V, L)> for ConfState
where
    V: IntoIterator<Item = u64>,
    L: IntoIterator<Item = u64>,
{
    /// Voters and learners, not joint.
    fn from((voters, learners): (V, L)) -> ConfState {
        ConfState {
            voters: voters.into_iter().collect(),
            learners: learners.into_iter().collect(),
            ..Default::default()
        }
    }
}

/// True if both name the same members in the same parts; order and repetition do not matter.
#[must_use]
pub fn conf_state_eq(lhs: &ConfState, rhs: &ConfState) -> bool {
    let parts = |state: &ConfState| {
        [&state.voters, &state.learners, &state.voters_outgoing, &state.learners_next]
            .map(|part| part.iter().copied().collect::<BTreeSet<u64>>())
    };
    lhs == rhs || (lhs.auto_leave == rhs.auto_leave && parts(lhs) == parts(rhs))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_does_not_matter_but_parts_do() {
        let state = |voters: &[u64], learners: &[u64]| ConfState::from((voters.to_vec(), learners.to_vec()));
        assert!(conf_state_eq(&state(&[1, 2], &[3]), &state(&[2, 1], &[3])));
        assert!(!conf_state_eq(&state(&[1, 2], &[3]), &state(&[1, 2, 3], &[])));
    }
}
