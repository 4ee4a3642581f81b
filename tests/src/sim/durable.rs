//! What is acknowledged is durable at a quorum: a look into all disks at the moment at which a client learns of it.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use base::StoreId;
use executor::sim::SimDisk;
use proto::metapb::{self, PeerRole};

use super::twins::TwinSource;
use super::watch::NodeView;
use super::workload::count;

/// One acknowledged write in so many is looked for: each look reads the logs of all nodes.
const ONE_IN: u64 = 50;
/// Bytes of a value that are looked for. It begins with the worker's number and a count of its writes.
const NEEDLE_BYTES: usize = 40;

/// The disks of all nodes.
#[derive(Default)]
pub(super) struct Disks {
    nodes: Vec<NodeDisks>,
    acknowledged: Cell<u64>,
    /// Writes that were looked for.
    pub(super) looked_for: Cell<u64>,
    /// A block was damaged on purpose: from then on a disk may lack what was once durable there.
    pub(super) are_damaged: Rc<Cell<bool>>,
}

pub(super) struct NodeDisks {
    pub(super) disk: SimDisk,
    pub(super) twins: TwinSource,
    /// The node's store while it serves, else 0.
    pub(super) serves: Arc<AtomicU64>,
}

impl Disks {
    pub(super) fn new(nodes: Vec<NodeDisks>, are_damaged: Rc<Cell<bool>>) -> Disks {
        Disks { nodes, are_damaged, ..Disks::default() }
    }

    /// `value` of `key` was acknowledged just now.
    ///
    /// # Panics
    /// If it is looked for and is not durable at a quorum of the voters.
    pub(super) fn acknowledged(&self, key: &[u8], value: &[u8]) {
        count(&self.acknowledged);
        if !self.acknowledged.get().is_multiple_of(ONE_IN) || self.are_damaged.get() {
            return;
        }
        let Some(quorum) = self.quorum(key) else { return };
        count(&self.looked_for);
        let needle = &value[..value.len().min(NEEDLE_BYTES)];
        let held = self.nodes.iter().filter(|node| node.holds(needle)).count();
        let what = String::from_utf8_lossy(needle);
        assert!(held >= quorum, "{what:?} was acknowledged and is durable at {held} nodes, fewer than {quorum}");
    }

    /// Fewest voters of the key's region that are a quorum, by what any node knows: some lag behind, and by what they know
    /// another number may do.
    fn quorum(&self, key: &[u8]) -> Option<usize> {
        let views = self.nodes.iter().filter_map(NodeDisks::view);
        views.filter_map(|view| view.region_of(key)).map(|region| quorum_of(&region)).min()
    }
}

/// Of a joint configuration, the smaller of both quorums.
fn quorum_of(region: &metapb::Region) -> usize {
    let voters = |gone: PeerRole| {
        let votes = |peer: &&metapb::Peer| !matches!(peer.role(), PeerRole::Learner) && peer.role() != gone;
        region.peers.iter().filter(votes).count()
    };
    let (new, old) = (voters(PeerRole::DemotingVoter), voters(PeerRole::IncomingVoter));
    new.min(old) / 2 + 1
}

impl NodeDisks {
    fn view(&self) -> Option<NodeView> {
        let store = self.serves.load(Ordering::Relaxed);
        (store != 0).then(|| NodeView { store: StoreId(store), engines: self.twins.engines() })
    }

    /// Whether it would be there after a power failure.
    fn holds(&self, needle: &[u8]) -> bool {
        self.twins.holds_value(needle) || self.is_logged(needle)
    }

    fn is_logged(&self, needle: &[u8]) -> bool {
        let files = self.disk.files().into_iter().map(|(path, _)| path);
        files.filter_map(|path| self.disk.durable_bytes(path)).any(|bytes| contains(&bytes, needle))
    }
}

fn contains(bytes: &[u8], needle: &[u8]) -> bool {
    let Some(first) = needle.first() else { return true };
    let mut rest = bytes;
    while let Some(at) = rest.iter().position(|byte| byte == first) {
        if rest[at..].starts_with(needle) {
            return true;
        }
        rest = &rest[at + 1..];
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_found_where_they_are() {
        assert!(contains(b"0:10:0:12:xx", b"0:12:"));
        assert!(!contains(b"0:10:0:13:xx0:1", b"0:12:"));
        assert!(contains(b"0:12", b"0:12") && !contains(b"", b"0"));
    }

    #[test]
    fn quorums_of_joint_configurations() {
        let region = |roles: &[PeerRole]| metapb::Region {
            peers: roles.iter().map(|role| metapb::Peer { role: *role as i32, ..Default::default() }).collect(),
            ..Default::default()
        };
        use PeerRole::*;
        assert_eq!(quorum_of(&region(&[Voter])), 1);
        assert_eq!(quorum_of(&region(&[Voter, Voter, Voter, Learner])), 2);
        assert_eq!(quorum_of(&region(&[Voter, Voter, Voter, IncomingVoter, DemotingVoter])), 3);
        assert_eq!(quorum_of(&region(&[Voter, IncomingVoter])), 1, "one did before");
    }
}
