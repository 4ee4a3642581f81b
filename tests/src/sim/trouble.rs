//! Stories of one trouble each, without any other fault: what clients see of it, and that it ends.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use executor::sim::SimDisk;
use proto::metapb;
use shard::node::DiskConfig;

use super::watch;
use super::world::{PD_IP, PD_PORT, RECOVERY_LIMIT, World};
use crate::client::{Client, Fate};

/// Until a node has looked at its disk, told the others, and handed its leaders away.
const NOTICED: Duration = Duration::from_secs(3);
/// Of the reserve of 5 GiB that disks of 100 GiB have by default.
const ALMOST_FULL: u64 = 4 << 30;
const ALREADY_FULL: u64 = 1 << 30;

impl World {
    /// Starts the cluster and waits until its first region has a replica on each node.
    pub(super) fn begin_story(&mut self) -> Rc<Client> {
        self.calm_links();
        self.start_pd();
        (0..self.nodes.len()).for_each(|at| self.start_node(at));
        let client = Rc::new(Client::new(&SocketAddr::new(PD_IP, PD_PORT).to_string()));
        self.must_put(&client, "first", RECOVERY_LIMIT);
        let (sim, count) = (&self.sim, self.nodes.len() as u64);
        let is_voter = |peer: &metapb::Peer| peer.role() == metapb::PeerRole::Voter;
        let is_whole = || {
            let region = self.views().iter().find_map(|view| view.region_of(b"first"));
            region.is_some_and(|region| region.peers.len() as u64 == count && region.peers.iter().all(is_voter))
                && watch::compare(&self.views()).is_ok()
        };
        let whole = sim.run_until(RECOVERY_LIMIT, is_whole);
        assert!(whole, "seed {}: not every region has {count} replicas", self.seed);
        client
    }

    /// Runs `ask` at the client's machine.
    pub(super) fn ask<T: 'static>(&self, limit: Duration, ask: impl Future<Output = T> + 'static) -> T {
        let answer = self.sim.block_on(self.client, ask, limit);
        answer.unwrap_or_else(|| panic!("seed {}: no answer within {limit:?}", self.seed))
    }

    pub(super) fn must_put(&self, client: &Rc<Client>, key: &'static str, limit: Duration) {
        let client = client.clone();
        self.ask(limit, async move { while client.put(&key.into(), &"value".into()).await != Fate::Done(()) {} });
    }

    /// A put that the cluster must refuse because disks are full: as often as a client tries within its patience.
    fn must_not_put(&self, client: &Rc<Client>, key: &'static str) {
        let client = client.clone();
        let fate = self.ask(RECOVERY_LIMIT, async move { client.put(&key.into(), &"value".into()).await });
        let is_refused = matches!(&fate, Fate::Refused(why) if why.contains("are full"));
        assert!(is_refused, "seed {}: {key}: {fate:?}", self.seed);
    }

    fn must_read(&self, client: &Rc<Client>, key: &'static str, value: Option<&'static str>) {
        let client = client.clone();
        let fate = self.ask(RECOVERY_LIMIT, async move { client.get(&key.into(), None).await });
        assert_eq!(fate, Fate::Done(value.map(Bytes::from)), "seed {}: {key}", self.seed);
    }

    fn must_delete(&self, client: &Rc<Client>, key: &'static str) {
        let client = client.clone();
        let fate = self.ask(RECOVERY_LIMIT, async move { client.delete(&key.into()).await });
        assert_eq!(fate, Fate::Done(()), "seed {}: {key}", self.seed);
    }

    /// Which of the peers of `key`'s region is on node `at`.
    fn peer_at(&self, key: &[u8], at: usize) -> usize {
        self.find_peer(key, at).unwrap_or_else(|| panic!("seed {}: node {at} has no peer", self.seed))
    }

    /// The machine of a leader that may read is suspended, long enough for another one to be elected, and hears of nobody
    /// when it wakes: it must not read by its old lease.
    ///
    /// # Panics
    /// If it does.
    pub fn suspend_a_leader(mut self) {
        const SUSPENDED: Duration = Duration::from_secs(20);
        let client = self.begin_story();
        let at = self.leader_of(b"first").unwrap_or_else(|| panic!("seed {}: nobody leads", self.seed));
        let (peer, node) = (self.peer_at(b"first", at), self.nodes[at].sim);
        self.must_read(&client, "first", Some("value"));
        let others = self.nodes.iter().map(|other| other.sim).filter(|other| *other != node);
        others.for_each(|other| self.sim.partition(node, other));
        self.sim.suspend(node, SUSPENDED);
        let wakes = self.sim.now() + SUSPENDED;
        let writer = client.clone();
        self.ask(
            SUSPENDED,
            async move { while writer.put(&"first".into(), &"newer".into()).await != Fate::Done(()) {} },
        );
        assert!(self.sim.now() < wakes, "seed {}: the write took as long as the sleep", self.seed);
        self.sim.run_for(wakes.since(self.sim.now()));
        let fate = self.ask(RECOVERY_LIMIT, async move { client.read_once(&"first".into(), Some(peer), false).await });
        assert!(!matches!(fate, Fate::Done(_)), "seed {}: a leader of long ago reads {fate:?}", self.seed);
    }

    fn disks(&self) -> Vec<SimDisk> {
        self.nodes.iter().map(|node| self.sim.disk(node.sim)).collect()
    }

    /// The disk of the only node fills: it refuses writes and goes on with the rest, up to zero bytes free and through a
    /// restart, and takes writes again when there is room.
    ///
    /// # Panics
    /// If it is not so.
    pub fn fill_the_only_disk(mut self) {
        self.nodes.iter_mut().for_each(|node| node.config.disk = DiskConfig::default());
        let client = self.begin_story();
        let disk = self.disks().remove(0);
        for (left, key) in [(ALMOST_FULL, "second"), (ALREADY_FULL, "third"), (0, "fourth")] {
            self.must_put(&client, key, RECOVERY_LIMIT);
            disk.leave_free(left);
            self.sim.run_for(NOTICED);
            self.must_not_put(&client, "refused");
            self.must_read(&client, key, Some("value"));
            self.must_read(&client, "refused", None);
            self.must_delete(&client, key);
            self.must_read(&client, key, None);
            if left == 0 {
                // What it writes at its start is small, and in the end needs some room.
                disk.leave_free(1 << 20);
                self.sim.kill(self.nodes[0].sim);
                self.restart_node(0);
                self.must_read(&client, "first", Some("value"));
                self.must_not_put(&client, "refused");
            }
            disk.set_full(false);
            self.sim.run_for(NOTICED);
        }
        self.must_put(&client, "fifth", RECOVERY_LIMIT);
        self.must_read(&client, "fifth", Some("value"));
    }

    /// Disks of three nodes fill one after the other: with one that is full the leader leaves it and writes go on, with
    /// two they are refused and deletes go on.
    ///
    /// # Panics
    /// If it is not so.
    pub fn fill_disks_of_many(mut self) {
        self.nodes.iter_mut().for_each(|node| node.config.disk = DiskConfig::default());
        let client = self.begin_story();
        let disks = self.disks();
        let at = self.leader_of(b"first").unwrap_or_else(|| panic!("seed {}: nobody leads", self.seed));
        disks[at].leave_free(ALREADY_FULL);
        self.sim.run_for(NOTICED);
        self.must_put(&client, "second", NOTICED);
        let next = self.leader_of(b"first");
        assert!(next.is_some_and(|next| next != at), "seed {}: the leader stays on a full disk", self.seed);
        let other = (0..3).find(|other| *other != at && Some(*other) != next).unwrap_or(at);
        disks[other].leave_free(ALREADY_FULL);
        self.sim.run_for(NOTICED);
        self.must_not_put(&client, "third");
        self.must_read(&client, "second", Some("value"));
        self.must_delete(&client, "second");
        // The whole disk of one: the other two are a quorum for what frees room.
        disks[other].leave_free(0);
        self.sim.run_for(NOTICED);
        self.must_delete(&client, "first");
        self.must_not_put(&client, "third");
        disks.iter().for_each(|disk| disk.set_full(false));
        self.sim.run_for(NOTICED);
        self.must_put(&client, "third", NOTICED);
        let equal = self.sim.run_until(RECOVERY_LIMIT, || watch::compare(&self.views()).is_ok());
        assert!(equal, "seed {}: replicas differ after all is over", self.seed);
    }
}
