//! Settings of a raft group. They are the same for all peers of a node.

use base::Prng;

/// Settings of a peer. Times are in ticks; the caller decides how long a tick is (100 ms in production).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RaftConfig {
    /// Ticks between two heartbeats of a leader.
    pub heartbeat_ticks: u32,
    /// Fewest ticks without a leader before a peer campaigns; the most are one less than twice as many. Six
    /// heartbeats, so that a lost one starts no election and a dead leader is replaced within a second.
    pub election_ticks: u32,
    /// Ticks by which a candidate is more patient than that, at least. The others hear no candidate within `election_ticks` of
    /// their leader's last message, and who was not heard waits for a whole time-out more; their ticks may be one behind. Two
    /// spare a group that wait.
    pub election_margin_ticks: u32,
    /// Entries of one append message, in bytes. TiKV's value.
    pub message_bytes_max: u64,
    /// Append messages that may be on their way to one follower. TiKV's value.
    pub messages_inflight_max: u32,
    /// Committed entries that one [`Apply`](crate::Effect::Apply) holds, in bytes. TiKV's value.
    pub apply_bytes_max: u64,
    /// Bytes of entries handed out to apply and not applied yet, above which a leader refuses proposals and a follower
    /// takes no more entries. Four full `Apply`s: a slow engine is felt before memory is.
    pub applying_bytes_max: usize,
    /// Bytes of proposals not committed yet, above which a leader refuses more. One proposal is always allowed.
    pub uncommitted_bytes_max: u64,
    /// Proposals not applied yet, above which a leader refuses more.
    pub proposals_max: usize,
    /// Reads that wait for a quorum, above which a leader refuses more.
    pub reads_max: usize,
    /// Bytes of applied entries that are kept for followers that lag; 0 is used where there are none.
    pub cache_bytes: usize,
    /// A peer whose leader commits what it acknowledged and no longer has ends the program instead of staying behind, for
    /// tests that must not miss it.
    pub halts_on_loss: bool,
}

impl Default for RaftConfig {
    fn default() -> RaftConfig {
        RaftConfig {
            heartbeat_ticks: 1,
            election_ticks: 6,
            election_margin_ticks: 0,
            message_bytes_max: 1 << 20,
            messages_inflight_max: 256,
            apply_bytes_max: 16 << 20,
            applying_bytes_max: 64 << 20,
            uncommitted_bytes_max: 64 << 20,
            proposals_max: 16 << 10,
            reads_max: 4 << 10,
            cache_bytes: 1 << 20,
            halts_on_loss: false,
        }
    }
}

impl RaftConfig {
    /// Odd but valid settings, for the simulator.
    pub fn arbitrary(prng: &mut Prng) -> RaftConfig {
        let heartbeat_ticks = prng.range(1, 4) as u32;
        RaftConfig {
            heartbeat_ticks,
            election_ticks: heartbeat_ticks * prng.range(3, 12) as u32,
            election_margin_ticks: 0,
            message_bytes_max: prng.range(0, 4 << 10),
            messages_inflight_max: prng.range(1, 300) as u32,
            apply_bytes_max: prng.range(0, 64 << 10),
            applying_bytes_max: prng.range(1 << 10, 1 << 20) as usize,
            uncommitted_bytes_max: prng.range(4 << 10, 1 << 20),
            proposals_max: prng.range(1, 1000) as usize,
            reads_max: prng.range(1, 100) as usize,
            cache_bytes: prng.range(0, 16 << 10) as usize,
            halts_on_loss: false,
        }
    }

    /// Ticks without a leader after which a peer campaigns: at least, and below.
    pub(crate) fn patience_ticks(&self) -> (usize, usize) {
        let (low, high) = (self.election_ticks as usize, 2 * self.election_ticks as usize);
        (low + (self.election_margin_ticks as usize).min((high - low) / 2), high)
    }

    pub(crate) fn to_raft(&self, id: u64, applied: u64) -> raft::Config {
        raft::Config {
            id,
            applied,
            heartbeat_tick: self.heartbeat_ticks as usize,
            election_tick: self.election_ticks as usize,
            max_size_per_msg: self.message_bytes_max,
            max_inflight_msgs: self.messages_inflight_max as usize,
            max_committed_size_per_ready: self.apply_bytes_max,
            max_uncommitted_size: self.uncommitted_bytes_max,
            check_quorum: true,
            pre_vote: true,
            skip_bcast_commit: true,
            batch_append: true,
            ..raft::Config::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_settings_are_valid() {
        let mut prng = Prng::new(3);
        for _ in 0..1000 {
            let config = RaftConfig::arbitrary(&mut prng);
            config.to_raft(1, 0).validate().expect("valid by construction");
        }
    }
}
