//! What is known of one region.

use proto::{metapb, pdpb};

/// What went through a region since its last heartbeat.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// Bytes written.
    pub bytes_written: u64,
    /// Bytes read.
    pub bytes_read: u64,
    /// Keys written.
    pub keys_written: u64,
    /// Keys read.
    pub keys_read: u64,
}

/// One region.
#[derive(Clone, Debug, PartialEq)]
pub struct Region {
    /// Its description.
    pub meta: metapb::Region,
    /// Its leader; `None` until one has reported.
    pub leader: Option<metapb::Peer>,
    /// Peers that the leader has not heard for long.
    pub down_peers: Vec<pdpb::PeerStats>,
    /// Peers that still need a snapshot.
    pub pending_peers: Vec<metapb::Peer>,
    /// The raft term of the report; 0 until a leader has reported.
    pub term: u64,
    /// Bytes, about; 0 when unknown, 1 when empty.
    pub approximate_size: u64,
    /// Keys, about; 0 when unknown.
    pub approximate_keys: u64,
    /// What went through it.
    pub flow: Flow,
    /// What the leader's report covers, in seconds since the epoch.
    pub interval: Option<pdpb::TimeInterval>,
    /// When the leader reported, in seconds since the epoch; 0 until it has.
    pub reported_s: u64,
}

impl Region {
    /// A region of which only the description was kept.
    pub(super) fn kept(meta: metapb::Region) -> Region {
        Region {
            meta,
            leader: None,
            down_peers: Vec::new(),
            pending_peers: Vec::new(),
            term: 0,
            approximate_size: 0,
            approximate_keys: 0,
            flow: Flow::default(),
            interval: None,
            reported_s: 0,
        }
    }

    /// A description that did not come from the region's leader; what `known` tells besides stays.
    pub(super) fn described(meta: metapb::Region, known: Option<&Region>) -> Region {
        match known {
            Some(known) => Region { meta, ..known.clone() },
            None => Region::kept(meta),
        }
    }

    /// The region of a heartbeat. Sizes that the leader does not know stay what they were.
    pub(super) fn reported(request: &pdpb::RegionHeartbeatRequest, known: Option<&Region>, now_s: u64) -> Region {
        let kept = |given: u64, known: Option<u64>| {
            if given == 0 { known.unwrap_or(0) } else { given }
        };
        Region {
            meta: request.region.clone().unwrap_or_default(),
            leader: request.leader.filter(|leader| leader.id != 0),
            down_peers: request.down_peers.clone(),
            pending_peers: request.pending_peers.clone(),
            term: request.term,
            approximate_size: kept(request.approximate_size, known.map(|known| known.approximate_size)),
            approximate_keys: kept(request.approximate_keys, known.map(|known| known.approximate_keys)),
            flow: Flow {
                bytes_written: request.bytes_written,
                bytes_read: request.bytes_read,
                keys_written: request.keys_written,
                keys_read: request.keys_read,
            },
            interval: request.interval,
            reported_s: now_s,
        }
    }

    /// Raised by splits and merges.
    pub fn version(&self) -> u64 {
        self.meta.region_epoch.as_ref().map_or(0, |epoch| epoch.version)
    }

    /// Raised by changes of membership.
    pub fn conf_ver(&self) -> u64 {
        self.meta.region_epoch.as_ref().map_or(0, |epoch| epoch.conf_ver)
    }

    /// Whether `key` lies in its range.
    pub fn contains(&self, key: &[u8]) -> bool {
        self.meta.start_key <= key && (self.meta.end_key.is_empty() || key < self.meta.end_key)
    }

    /// Its size in MiB as PD's users see it: at least 1 once it is known to hold something.
    pub fn size_mib(&self) -> u64 {
        match self.approximate_size {
            0 => 0,
            bytes => (bytes >> 20).max(1),
        }
    }

    /// What one of its peers weighs on a store, in MiB: empty ones and those of unknown size weigh 1.
    pub fn load_mib(&self) -> u64 {
        self.size_mib().max(1)
    }

    /// Whether nothing differs that counts for the stores' tallies.
    pub(super) fn weighs_like(&self, other: &Region) -> bool {
        self.meta.peers == other.meta.peers
            && self.leader == other.leader
            && self.size_mib() == other.size_mib()
            && self.pending_peers == other.pending_peers
    }

    /// The region in pdpb's list form.
    pub fn to_list_entry(&self, buckets: Option<metapb::Buckets>) -> pdpb::Region {
        pdpb::Region {
            region: Some(self.meta.clone()),
            leader: Some(self.leader.unwrap_or_default()),
            down_peers: self.down_peers.clone(),
            pending_peers: self.pending_peers.clone(),
            buckets,
        }
    }

    /// For error texts.
    pub(super) fn describe(&self) -> String {
        format!(
            "{{id:{} start_key:\"{}\" end_key:\"{}\" version:{} conf_ver:{} term:{}}}",
            self.meta.id,
            self.meta.start_key.escape_ascii(),
            self.meta.end_key.escape_ascii(),
            self.version(),
            self.conf_ver(),
            self.term
        )
    }
}
