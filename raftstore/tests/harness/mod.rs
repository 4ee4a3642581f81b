//! Peers of one region in memory: disks that know what is durable, a network that keeps messages until told otherwise.
//!
//! Nothing happens by itself. The scripts move it step by step, the model test by dice.

#![allow(dead_code, reason = "each test binary uses a part")]

pub(crate) mod node;
pub(crate) mod text;

use node::Node;
use proto::metapb::{Peer as PeerMeta, PeerRole, Region, RegionEpoch};
use raftstore::eraftpb::Message;
use raftstore::{Input, RaftConfig};
use std::collections::{BTreeMap, BTreeSet};

/// All peers of one region; peer `n` is on store `n`.
pub(crate) struct Cluster {
    pub(crate) nodes: BTreeMap<u64, Node>,
    /// Messages on their way, oldest first.
    pub(crate) net: Vec<Message>,
    /// Peers that nothing reaches and that reach nothing.
    /// Messages that are late.
    pub(crate) held: Vec<Message>,
    pub(crate) isolated: BTreeSet<u64>,
    pub(crate) seed: u64,
}

/// The region that every cluster here begins with.
pub(crate) fn region(voters: &[u64], learners: &[u64]) -> Region {
    let peer = |id: &u64, role: PeerRole| PeerMeta { id: *id, store_id: *id, role: role as i32, is_witness: false };
    let voters = voters.iter().map(|id| peer(id, PeerRole::Voter));
    let learners = learners.iter().map(|id| peer(id, PeerRole::Learner));
    Region {
        id: 1,
        region_epoch: Some(RegionEpoch { conf_ver: 1, version: 1 }),
        peers: voters.chain(learners).collect(),
        ..Default::default()
    }
}

impl Cluster {
    pub(crate) fn new(region: &Region, config: &RaftConfig, seed: u64) -> Cluster {
        let nodes = region.peers.iter().map(|peer| {
            let node = Node::first(region, peer, config, seed);
            (peer.id, node)
        });
        Cluster { nodes: nodes.collect(), net: Vec::new(), held: Vec::new(), isolated: BTreeSet::new(), seed }
    }

    pub(crate) fn node(&mut self, id: u64) -> &mut Node {
        self.nodes.get_mut(&id).expect("a peer of the cluster")
    }

    /// Gives an input to a running peer and carries out its effects, except for those that take time.
    pub(crate) fn input(&mut self, id: u64, input: Input) {
        let node = self.nodes.get_mut(&id).expect("a peer of the cluster");
        node.input(input);
        self.post(id);
    }

    /// Moves what a peer sent to the network.
    pub(crate) fn post(&mut self, id: u64) {
        let node = self.nodes.get_mut(&id).expect("a peer of the cluster");
        self.net.append(&mut node.outbox);
    }

    /// Makes the oldest `count` writes of a peer durable.
    pub(crate) fn persist(&mut self, id: u64, count: usize) {
        self.node(id).persist(count);
        self.post(id);
    }

    /// Applies the oldest batch that a peer handed out; false if there is none.
    pub(crate) fn apply(&mut self, id: u64) -> bool {
        let applied = self.node(id).apply();
        self.post(id);
        applied
    }

    /// Delivers the message at `at`, or drops it if its receiver is out of reach.
    pub(crate) fn deliver(&mut self, at: usize) {
        let message = self.net.remove(at);
        self.hand_over(message);
    }

    /// Hands a message to its receiver, if that can be reached.
    pub(crate) fn hand_over(&mut self, message: Message) {
        let reaches = |id: &u64| !self.isolated.contains(id);
        if !reaches(&message.to) || !reaches(&message.from) {
            return;
        }
        let to = message.to;
        if self.nodes.get(&to).is_some_and(|node| node.peer.is_some()) {
            self.input(to, Input::Step(message));
        }
    }

    /// Persists, delivers and applies everything until nothing is left to do.
    pub(crate) fn settle(&mut self) {
        let ids: Vec<u64> = self.nodes.keys().copied().collect();
        for _ in 0..10_000 {
            let mut idle = self.net.is_empty();
            for message in std::mem::take(&mut self.net) {
                self.hand_over(message);
            }
            for id in &ids {
                idle &= self.node(*id).persists.is_empty();
                self.persist(*id, usize::MAX);
                while self.apply(*id) {
                    idle = false;
                }
            }
            if idle {
                return;
            }
        }
        panic!("the cluster does not come to rest");
    }

    /// The peer that leads in the highest term.
    pub(crate) fn leader(&self) -> Option<u64> {
        let leaders = self.nodes.iter().filter_map(|(id, node)| {
            let peer = node.peer.as_ref().filter(|peer| peer.is_leader())?;
            Some((peer.term(), *id))
        });
        leaders.max().map(|(_, id)| id)
    }
}
