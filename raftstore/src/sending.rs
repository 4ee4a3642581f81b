//! When a message may leave: at once, or after what it promises is durable.
//!
//! | message | promises | leaves |
//! |---|---|---|
//! | accepted append | the log up to its index | after all that is being persisted |
//! | vote, request for a vote, whatever a leader says, heartbeat answer | term and vote | after the last change of those |
//! | refusals, pre-vote and its answer, requests to a leader | nothing | at once |
//!
//! So a leader's appends go out in parallel with its own write (Raft dissertation 10.2.1), except right after a sole
//! voter elected itself: there the vote is not durable yet. A heartbeat answer does not wait for entries.

use crate::eraftpb::{Message, MessageType};
use std::collections::VecDeque;

/// The `Persist`s that are not durable yet.
#[derive(Debug, Default)]
pub(crate) struct Outstanding {
    numbers: VecDeque<u64>,
    /// The last of them that changed term or vote.
    vote: Option<u64>,
    /// The last `Ready` of raft-rs, with or without a `Persist`.
    last_ready: u64,
}

impl Outstanding {
    pub(crate) fn len(&self) -> usize {
        self.numbers.len()
    }

    pub(crate) fn begin(&mut self, number: u64, vote_changed: bool) {
        self.numbers.push_back(number);
        if vote_changed {
            self.vote = Some(number);
        }
    }

    /// The last one, if there is any.
    pub(crate) fn last(&self) -> Option<u64> {
        self.numbers.back().copied()
    }

    /// The last one that changed term or vote, if there is any.
    pub(crate) fn last_vote(&self) -> Option<u64> {
        self.vote
    }

    /// All up to `number` are durable. Answers up to which `Ready` raft-rs may be told so.
    pub(crate) fn persisted(&mut self, number: u64) -> Option<u64> {
        let before = self.numbers.len();
        while self.numbers.front().is_some_and(|first| *first <= number) {
            self.numbers.pop_front();
        }
        if self.numbers.len() == before {
            return None;
        }
        self.vote = self.vote.filter(|vote| *vote > number);
        // What was ready since then, and had nothing to persist, is done as well.
        Some(if self.numbers.is_empty() { self.last_ready } else { number })
    }

    /// Notes a `Ready`; answers its number if everything up to it is durable already.
    pub(crate) fn nothing_to_wait_for(&mut self, ready: u64) -> Option<u64> {
        self.last_ready = ready;
        self.numbers.is_empty().then_some(ready)
    }
}

/// Messages by when they may leave.
#[derive(Debug, Default)]
pub(crate) struct Batches {
    pub(crate) at_once: Vec<Message>,
    pub(crate) after_vote: Vec<Message>,
    pub(crate) after_log: Vec<Message>,
}

/// Sorts messages by what they promise, keeping their order within each batch.
pub(crate) fn split_by_promise(messages: Vec<Message>, outstanding: &Outstanding) -> Batches {
    let mut batches = Batches::default();
    let (vote, log) = (outstanding.last_vote(), outstanding.last());
    for message in messages {
        let batch = match promise(&message) {
            Promise::Log if log.is_some() => &mut batches.after_log,
            Promise::Vote if vote.is_some() => &mut batches.after_vote,
            _ => &mut batches.at_once,
        };
        batch.push(message);
    }
    batches
}

enum Promise {
    Nothing,
    Vote,
    Log,
}

fn promise(message: &Message) -> Promise {
    match message.msg_type() {
        MessageType::MsgAppendResponse if !message.reject => Promise::Log,
        MessageType::MsgAppendResponse
        | MessageType::MsgRequestPreVote
        | MessageType::MsgRequestPreVoteResponse
        | MessageType::MsgReadIndex
        | MessageType::MsgTransferLeader => Promise::Nothing,
        MessageType::MsgRequestVoteResponse if message.reject => Promise::Nothing,
        _ => Promise::Vote,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readies_without_a_write_are_told_with_the_last_write() {
        let mut outstanding = Outstanding::default();
        assert_eq!(outstanding.nothing_to_wait_for(1), Some(1));
        outstanding.begin(2, true);
        assert_eq!(outstanding.nothing_to_wait_for(2), None);
        outstanding.begin(3, false);
        assert_eq!(outstanding.nothing_to_wait_for(3), None);
        assert_eq!(outstanding.nothing_to_wait_for(4), None);
        assert_eq!((outstanding.last_vote(), outstanding.last()), (Some(2), Some(3)));
        assert_eq!(outstanding.persisted(1), None);
        assert_eq!(outstanding.persisted(2), Some(2));
        assert_eq!((outstanding.last_vote(), outstanding.last()), (None, Some(3)));
        assert_eq!(outstanding.persisted(3), Some(4));
        assert_eq!(outstanding.persisted(3), None);
    }
}
