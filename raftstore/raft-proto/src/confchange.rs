//! Both shapes of a membership change seen as one, and their short text form (`v1 l2 r3`).

use crate::eraftpb::{ConfChange, ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2};
use std::borrow::Cow;

/// What [`ConfChange`] and [`ConfChangeV2`] have in common.
pub trait ConfChangeI {
    /// The change as a [`ConfChangeV2`], consumed.
    fn into_v2(self) -> ConfChangeV2;

    /// The change as a [`ConfChangeV2`].
    fn as_v2(&self) -> Cow<'_, ConfChangeV2>;

    /// The change as a [`ConfChange`], if it is one.
    fn as_v1(&self) -> Option<&ConfChange>;
}

impl ConfChangeI for ConfChange {
    fn into_v2(self) -> ConfChangeV2 {
        ConfChangeV2 {
            transition: ConfChangeTransition::Auto as i32,
            changes: vec![ConfChangeSingle { change_type: self.change_type, node_id: self.node_id }],
            context: self.context,
        }
    }

    fn as_v2(&self) -> Cow<'_, ConfChangeV2> {
        Cow::Owned(self.clone().into_v2())
    }

    fn as_v1(&self) -> Option<&ConfChange> {
        Some(self)
    }
}

impl ConfChangeI for ConfChangeV2 {
    fn into_v2(self) -> ConfChangeV2 {
        self
    }

    fn as_v2(&self) -> Cow<'_, ConfChangeV2> {
        Cow::Borrowed(self)
    }

    fn as_v1(&self) -> Option<&ConfChange> {
        None
    }
}

impl ConfChangeV2 {
    /// Whether the change goes through a joint configuration: `Some(true)` if raft leaves it by itself.
    ///
    /// Any change of more than one member does, and any that says so.
    pub fn enter_joint(&self) -> Option<bool> {
        match self.transition() {
            ConfChangeTransition::Auto => (self.changes.len() > 1).then_some(true),
            ConfChangeTransition::Implicit => Some(true),
            ConfChangeTransition::Explicit => Some(false),
        }
    }

    /// True if the change ends a joint configuration: it changes nothing and asks for no transition.
    pub fn leave_joint(&self) -> bool {
        self.changes.is_empty() && self.transition() == ConfChangeTransition::Auto
    }
}

/// One step of a change.
pub fn new_conf_change_single(node_id: u64, kind: ConfChangeType) -> ConfChangeSingle {
    ConfChangeSingle { change_type: kind as i32, node_id }
}

/// Reads `v1 l2 r3`: peer 1 becomes a voter, 2 a learner, 3 leaves.
///
/// # Errors
/// A sentence that names the word which is none of these.
pub fn parse_conf_change(text: &str) -> Result<Vec<ConfChangeSingle>, String> {
    text.split_ascii_whitespace()
        .map(|word| {
            let kind = match word.as_bytes()[0] {
                b'v' => ConfChangeType::AddNode,
                b'l' => ConfChangeType::AddLearnerNode,
                b'r' => ConfChangeType::RemoveNode,
                _ => return Err(format!("unknown change {word}")),
            };
            let id = word[1..].parse().map_err(|e| format!("bad peer id in {word}: {e}"))?;
            Ok(new_conf_change_single(id, kind))
        })
        .collect()
}

/// Writes what [`parse_conf_change`] reads.
pub fn stringify_conf_change(changes: &[ConfChangeSingle]) -> String {
    let words: Vec<String> = changes
        .iter()
        .map(|change| {
            let letter = match change.change_type() {
                ConfChangeType::AddNode => 'v',
                ConfChangeType::AddLearnerNode => 'l',
                ConfChangeType::RemoveNode => 'r',
            };
            format!("{letter}{}", change.node_id)
        })
        .collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_form_reads_back() {
        let changes = parse_conf_change(" v1  l2 r3 ").expect("well formed");
        assert_eq!(stringify_conf_change(&changes), "v1 l2 r3");
        assert!(parse_conf_change("x1").is_err());
        assert!(parse_conf_change("v").is_err());
    }

    #[test]
    fn two_changes_are_joint_and_none_leaves() {
        let mut change = ConfChangeV2 { changes: parse_conf_change("v1").expect("well formed"), ..Default::default() };
        assert_eq!(change.enter_joint(), None);
        change.changes = parse_conf_change("v1 r2").expect("well formed");
        assert_eq!(change.enter_joint(), Some(true));
        change.set_transition(ConfChangeTransition::Explicit);
        assert_eq!(change.enter_joint(), Some(false));
        assert!(ConfChangeV2::default().leave_joint());
    }
}
