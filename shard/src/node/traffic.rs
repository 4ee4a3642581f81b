//! What was read and written, on its way to the placement driver.
//!
//! Leaders count for as long as their reports are apart, a minute by default; the store reports every ten seconds, and the
//! placement driver takes each report's sums for those of its interval. So sums are paid out evenly, over as long a time as
//! they were counted in: nothing is lost, and a steady load looks steady.

use std::cell::RefCell;
use std::collections::BTreeMap;

use proto::pdpb;

/// Most regions whose reads a store heartbeat names. The placement driver looks for hot ones only.
const READ_PEERS_MAX: usize = 500;
/// What was counted for longer is paid out within so many seconds: the clock may have been set meanwhile.
const SECONDS_MAX: u64 = 600;

/// Sums that are not paid out yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Pot {
    bytes: u64,
    keys: u64,
    /// How long the rest takes.
    seconds: u64,
}

impl Pot {
    /// Adds what was counted within so many seconds.
    fn add(&mut self, bytes: u64, keys: u64, seconds: u64) {
        self.bytes += bytes;
        self.keys += keys;
        self.seconds = self.seconds.max(seconds.min(SECONDS_MAX));
    }

    /// Takes the bytes and keys of so many seconds.
    fn pay(&mut self, seconds: u64) -> (u64, u64) {
        let left = self.seconds.saturating_sub(seconds);
        // The rest may be large, and so may the seconds.
        let keep = |sum: u64| u64::try_from(u128::from(sum) * u128::from(left) / u128::from(self.seconds.max(1)));
        let (bytes, keys) = (keep(self.bytes).unwrap_or(0), keep(self.keys).unwrap_or(0));
        let paid = (self.bytes - bytes, self.keys - keys);
        *self = Pot { bytes, keys, seconds: left };
        paid
    }

    fn is_empty(&self) -> bool {
        self.bytes == 0 && self.keys == 0
    }
}

/// Of the whole store, and the reads of each region. Bounded by the regions that led here lately.
#[derive(Default)]
pub(super) struct Traffic(RefCell<Pots>);

#[derive(Default)]
struct Pots {
    writes: Pot,
    reads: Pot,
    reads_of: BTreeMap<u64, Pot>,
}

impl Traffic {
    /// Notes what a region's leader counted within so many seconds: bytes and keys that were written, and those read.
    pub(super) fn note(&self, region: u64, written: (u64, u64), read: (u64, u64), seconds: u64) {
        let mut pots = self.0.borrow_mut();
        pots.writes.add(written.0, written.1, seconds);
        pots.reads.add(read.0, read.1, seconds);
        if read != (0, 0) {
            pots.reads_of.entry(region).or_default().add(read.0, read.1, seconds);
        }
    }

    /// Fills in the sums of a store heartbeat that is about so many seconds.
    pub(super) fn pay(&self, stats: &mut pdpb::StoreStats, seconds: u64) {
        let mut pots = self.0.borrow_mut();
        (stats.bytes_written, stats.keys_written) = pots.writes.pay(seconds);
        (stats.bytes_read, stats.keys_read) = pots.reads.pay(seconds);
        let paid = pots.reads_of.iter_mut().map(|(region, pot)| (*region, pot.pay(seconds)));
        let mut peers: Vec<pdpb::PeerStat> = paid
            .map(|(region_id, (read_bytes, read_keys))| pdpb::PeerStat {
                region_id,
                read_bytes,
                read_keys,
                ..Default::default()
            })
            .collect();
        peers.sort_by_key(|peer| std::cmp::Reverse(peer.read_bytes));
        peers.truncate(READ_PEERS_MAX);
        stats.peer_stats = peers;
        pots.reads_of.retain(|_, pot| !pot.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minutes_reads_are_told_in_six_equal_parts() {
        let traffic = Traffic::default();
        traffic.note(7, (0, 0), (6000, 60), 60);
        for _ in 0..6 {
            let mut stats = pdpb::StoreStats::default();
            traffic.pay(&mut stats, 10);
            assert_eq!((stats.bytes_read, stats.keys_read), (1000, 10));
            assert_eq!((stats.peer_stats[0].region_id, stats.peer_stats[0].read_bytes), (7, 1000));
        }
        let mut stats = pdpb::StoreStats::default();
        traffic.pay(&mut stats, 10);
        assert_eq!((stats.bytes_read, stats.peer_stats.len()), (0, 0));
    }

    #[test]
    fn nothing_is_lost_whatever_the_intervals() {
        let traffic = Traffic::default();
        let (mut noted, mut paid) = (0, 0);
        for round in 1..100 {
            traffic.note(round % 5, (round * 1001, round), (0, 0), round % 7 + 1);
            noted += round * 1001;
            let mut stats = pdpb::StoreStats::default();
            traffic.pay(&mut stats, round % 3 + 1);
            paid += stats.bytes_written;
            assert!(stats.peer_stats.is_empty(), "nothing was read");
        }
        let mut stats = pdpb::StoreStats::default();
        traffic.pay(&mut stats, 100);
        assert_eq!(paid + stats.bytes_written, noted);
    }

    #[test]
    fn the_most_read_regions_are_named() {
        let traffic = Traffic::default();
        for region in 0..2000 {
            traffic.note(region, (0, 0), (region + 1, 1), 1);
        }
        let mut stats = pdpb::StoreStats::default();
        traffic.pay(&mut stats, 1);
        assert_eq!(stats.peer_stats.len(), READ_PEERS_MAX);
        assert_eq!(stats.peer_stats[0].region_id, 1999);
        assert!(stats.peer_stats.iter().all(|peer| peer.region_id >= 1500));
    }
}
