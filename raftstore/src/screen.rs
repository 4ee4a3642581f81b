//! A look at messages from outside, since raft-rs panics on some that no honest peer sends.

use crate::eraftpb::{Message, MessageType};

/// What a message is held against.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// The receiver.
    pub(crate) id: u64,
    /// Where its log ends.
    pub(crate) last_index: u64,
}

/// Why a message must not reach raft-rs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// No honest peer of this group sends it.
    #[error("{0}")]
    Dishonest(&'static str),
    /// It is honest, but comes another way.
    #[error("not taken from the network")]
    NotHere,
    /// The leader counts on entries that this log does not hold: it lost what it had acknowledged. Such a peer must not
    /// go on as if nothing had happened; it stays behind until it is replaced.
    #[error("commits what this log does not hold")]
    Lost,
}

/// Looks at a message before raft-rs does.
pub(crate) fn check(message: &Message, bounds: Bounds) -> Result<(), Refusal> {
    let kind = MessageType::try_from(message.msg_type).map_err(|_| Refusal::Dishonest("unknown type"))?;
    if message.to != bounds.id {
        return Err(Refusal::Dishonest("not for this peer"));
    }
    if message.from == 0 || message.from == bounds.id {
        return Err(Refusal::Dishonest("no sender"));
    }
    // A term of 0 marks a local message, which skips all comparison of terms.
    if message.term == 0 && kind != MessageType::MsgReadIndex {
        return Err(Refusal::Dishonest("no term"));
    }
    match kind {
        MessageType::MsgAppend => check_append(message),
        MessageType::MsgHeartbeat if message.commit > bounds.last_index => Err(Refusal::Lost),
        MessageType::MsgAppendResponse if !message.reject && message.index > bounds.last_index => {
            Err(Refusal::Dishonest("acknowledges what this log does not hold"))
        }
        MessageType::MsgReadIndex if message.entries.len() != 1 => Err(Refusal::Dishonest("a read without its name")),
        MessageType::MsgHup
        | MessageType::MsgBeat
        | MessageType::MsgUnreachable
        | MessageType::MsgSnapStatus
        | MessageType::MsgCheckQuorum
        | MessageType::MsgPropose => Err(Refusal::Dishonest("a local message")),
        // Snapshots come with their data, by the shard's hands, and a transfer is begun by Input::TransferLeader.
        MessageType::MsgSnapshot | MessageType::MsgTransferLeader => Err(Refusal::NotHere),
        _ => Ok(()),
    }
}

fn check_append(message: &Message) -> Result<(), Refusal> {
    if message.log_term == 0 && message.index != 0 {
        return Err(Refusal::Dishonest("an append without its place"));
    }
    let mut before = (message.index, message.log_term);
    for entry in &message.entries {
        if before.0.checked_add(1) != Some(entry.index) || entry.term < before.1 || entry.term > message.term {
            return Err(Refusal::Dishonest("entries that do not follow each other"));
        }
        before = (entry.index, entry.term);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eraftpb::Entry;

    fn append() -> Message {
        let entry = |index| Entry { index, term: 6, ..Default::default() };
        Message {
            msg_type: MessageType::MsgAppend as i32,
            to: 1,
            from: 2,
            term: 6,
            index: 5,
            log_term: 5,
            entries: vec![entry(6), entry(7)],
            ..Default::default()
        }
    }

    type Change = fn(&mut Message);

    fn refused(kind: MessageType, change: Change) -> Option<Refusal> {
        let mut message = append();
        message.set_msg_type(kind);
        change(&mut message);
        let bounds = Bounds { id: 1, last_index: 7 };
        check(&message, bounds).err()
    }

    #[test]
    fn dishonest_messages_are_refused() {
        use MessageType::*;
        assert_eq!(refused(MsgAppend, |_| {}), None);
        let cases: [(MessageType, Change); 14] = [
            (MsgAppend, |m| m.to = 3),
            (MsgAppend, |m| m.from = 0),
            (MsgAppend, |m| m.from = 1),
            (MsgAppend, |m| m.term = 0),
            (MsgAppend, |m| m.log_term = 0),
            (MsgAppend, |m| m.entries[1].index = 8),
            (MsgAppend, |m| m.entries[1].term = 5),
            (MsgAppend, |m| m.entries[1].term = 7),
            (MsgAppend, |m| m.msg_type = 99),
            (MsgHeartbeat, |m| m.commit = 8),
            (MsgAppendResponse, |m| m.index = 8),
            (MsgReadIndex, |m| m.entries.clear()),
            (MsgHup, |_| {}),
            (MsgPropose, |_| {}),
        ];
        for (kind, change) in cases {
            assert!(refused(kind, change).is_some(), "{kind:?} passed");
        }
        assert_eq!(
            refused(MsgAppend, |m| {
                m.index = u64::MAX;
                m.entries.truncate(1);
            }),
            Some(Refusal::Dishonest("entries that do not follow each other"))
        );
    }
}
