//! Effects as short lines, for scripts.

use raftstore::eraftpb::{Entry, EntryType, Message, MessageType};
use raftstore::{Effect, Peer, RejectReason, RoleKind};
use std::fmt::Write;

/// One line for one effect of peer `id`.
pub(crate) fn effect(id: u64, effect: &Effect) -> String {
    match effect {
        Effect::Persist { number, hard_state, entries } => {
            let mut line = format!("{id} persist #{number}");
            if let Some(state) = hard_state {
                let _ = write!(line, " term={} vote={} commit={}", state.term, state.vote, state.commit);
            }
            line + &list(entries)
        }
        Effect::Send { messages, after_persist } => {
            let when = after_persist.map_or("now".to_string(), |number| format!("after #{number}"));
            let messages: Vec<String> = messages.iter().map(message).collect();
            format!("{id} send {when}: {}", messages.join(", "))
        }
        Effect::Apply(committed) => {
            let mut line = format!("{id} apply");
            for one in committed {
                let _ = write!(line, " {}", entry(&one.entry));
                if let Some(proposal) = one.proposal {
                    let _ = write!(line, "(id {proposal})");
                }
            }
            line
        }
        Effect::Rejected { id: name, reason } => {
            format!("{id} rejected {name} {}", rejection(reason))
        }
        Effect::Role(role) => {
            let leader = role.leader.map_or("nobody".to_string(), |leader| leader.to_string());
            format!("{id} role {} term={} leader={leader}", kind(role.kind), role.term)
        }
        Effect::FetchEntries { low, high, .. } => format!("{id} fetch {low}..{high}"),
        Effect::ReadReady { id: name, index } => format!("{id} read {name} at {index}"),
        Effect::SnapshotWanted { to } => format!("{id} snapshot wanted by {to}"),
    }
}

/// One line for the state of a peer.
pub(crate) fn state(id: u64, peer: Option<&Peer>) -> String {
    let Some(peer) = peer else {
        return format!("{id} down");
    };
    let role = if peer.is_leader() { "leader" } else { "follower" };
    format!(
        "{id} {role} term={} last={} commit={} applied={}",
        peer.term(),
        peer.last_index(),
        peer.committed(),
        peer.applied()
    )
}

fn kind(kind: RoleKind) -> &'static str {
    match kind {
        RoleKind::Follower => "follower",
        RoleKind::PreCandidate => "pre_candidate",
        RoleKind::Candidate => "candidate",
        RoleKind::Leader => "leader",
    }
}

fn rejection(reason: &RejectReason) -> String {
    match reason {
        RejectReason::NotLeader { leader: Some(leader) } => format!("not_leader leader={leader}"),
        RejectReason::NotLeader { leader: None } => "not_leader".to_string(),
        RejectReason::Stale => "stale".to_string(),
        RejectReason::Busy => "busy".to_string(),
        RejectReason::Transferring => "transferring".to_string(),
        RejectReason::NotReady => "not_ready".to_string(),
        RejectReason::ConfChangeRefused => "conf_change_refused".to_string(),
        RejectReason::Unknown => "unknown".to_string(),
    }
}

fn list(entries: &[Entry]) -> String {
    let entries: Vec<String> = entries.iter().map(|one| format!(" {}", entry(one))).collect();
    entries.concat()
}

/// `index/term=data`.
pub(crate) fn entry(entry: &Entry) -> String {
    let data = match entry.entry_type() {
        EntryType::EntryNormal if entry.data.is_empty() => "-".to_string(),
        EntryType::EntryNormal => String::from_utf8_lossy(&entry.data).into_owned(),
        _ => "members".to_string(),
    };
    format!("{}/{}={data}", entry.index, entry.term)
}

/// `MsgAppend` and so on in plain words, with what matters of it.
pub(crate) fn message(message: &Message) -> String {
    let name = format!("{:?}", message.msg_type());
    let mut words = String::new();
    for letter in name.trim_start_matches("Msg").chars() {
        if letter.is_uppercase() && !words.is_empty() {
            words.push('_');
        }
        words.extend(letter.to_lowercase());
    }
    let mut line = format!("{words}->{}", message.to);
    if message.reject {
        line.push_str(" reject");
    }
    if message.index != 0 {
        let _ = write!(line, " at {}", message.index);
    }
    // The one entry of a read is its name, in bytes.
    if matches!(message.msg_type(), MessageType::MsgReadIndex | MessageType::MsgReadIndexResp) {
        return line;
    }
    line + &list(&message.entries)
}
