//! A block of a node's log is damaged while the node is down, and what an operator does about it.
//!
//! The node must notice: its shard neither votes nor serves. The operator accepts the damage, which makes the shard take
//! records again, and has the placement driver remove the damaged replicas, in whose place it makes new ones.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use proto::metapb::PeerRole;
use shard::node::examine_node;

use super::orders;
use super::world::{PD_IP, PD_PORT, World};
use crate::client::Client;

/// The unit of the log's blocks, in bytes, and how each block begins.
const UNIT: usize = 4096;
const MAGIC: &[u8] = b"BRLG";
/// A region's peers on the damaged node: its id and theirs.
type Damaged = Vec<(u64, u64)>;

impl World {
    /// Once in a run, and only while every region has three voters: with fewer, another fault may leave it without a quorum
    /// for good, or what was acknowledged is nowhere else.
    pub(super) fn damage_block(&mut self, at: usize) {
        if self.disks_are_damaged.get() || !self.has_three_voters_everywhere() {
            self.kill(at);
            self.pass(0, 2000);
            self.restart_node(at);
            return;
        }
        let (node, store) = (self.nodes[at].sim, self.nodes[at].serves.load(Ordering::Relaxed));
        // Stopped in peace, the log is sealed: what is damaged then never looks like a torn tail.
        self.sim.stop(node);
        let stopped = self.sim.run_until(Duration::from_secs(60), || !self.sim.running(node));
        assert!(stopped, "seed {}: the node does not stop when it is asked to", self.seed);
        self.nodes[at].twins.kill();
        self.disks_are_damaged.set(true);
        for _ in 0..self.prng.range(2, 10) {
            self.damage_one(at);
        }
        self.restart_node(at);
        self.pass(100, 4000);
        self.kill(at);
        let damaged = self.accept_damage(at);
        self.damaged += damaged.len() as u64;
        self.restart_node(at);
        if !damaged.is_empty() {
            let replacing = replace(SocketAddr::new(PD_IP, PD_PORT), store, damaged);
            self.sim.spawn_on(self.client, replacing);
        }
        self.pass(100, 4000);
    }

    fn has_three_voters_everywhere(&self) -> bool {
        let views = self.views();
        let is_voter = |role: PeerRole| matches!(role, PeerRole::Voter | PeerRole::DemotingVoter);
        let regions = || views.iter().flat_map(|view| view.regions());
        views.len() == self.nodes.len()
            && regions().count() > 0
            && regions().all(|region| region.peers.iter().filter(|peer| is_voter(peer.role())).count() >= 3)
    }

    /// Turns some bits of a block of a log.
    fn damage_one(&mut self, at: usize) {
        let disk = self.sim.disk(self.nodes[at].sim);
        let mut blocks: Vec<(PathBuf, u64)> = Vec::new();
        for (path, _) in disk.files() {
            let bytes = disk.durable_bytes(&path).unwrap_or_default();
            let starts = bytes.chunks(UNIT).enumerate().filter(|(_, unit)| unit.starts_with(MAGIC));
            blocks.extend(starts.map(|(unit, _)| (path.clone(), (unit * UNIT) as u64)));
        }
        if blocks.is_empty() {
            return;
        }
        // What was written last is needed most often.
        let newest = blocks.iter().map(|(path, _)| path.clone()).max();
        if self.prng.one_in(2) {
            blocks.retain(|(path, _)| Some(path) == newest.as_ref());
        }
        let (path, start) = &blocks[self.prng.below(blocks.len() as u64) as usize];
        let offset = start + self.prng.below(UNIT as u64 - 8);
        let noise = self.prng.next_u64().to_le_bytes();
        disk.corrupt(path, offset, &noise);
    }

    /// What `basalt ctl damage --accept` does; answers with the peers that must be replaced.
    fn accept_damage(&self, at: usize) -> Damaged {
        let node = &self.nodes[at];
        node.twins.kill();
        let (folder, source, log) =
            (node.config.data_dir.clone(), Arc::new(node.twins.clone()), node.config.log.clone());
        let found: Rc<RefCell<Option<Damaged>>> = Rc::default();
        let reported = found.clone();
        self.sim.start(node.sim, 1, move |_| {
            let (folder, source, log, reported) = (folder.clone(), source.clone(), log.clone(), reported.clone());
            Box::pin(async move {
                let reports = match examine_node(&folder, source, &log, true).await {
                    Ok(reports) => reports,
                    Err(error) => panic!("damage cannot be accepted: {error}"),
                };
                let regions = reports.iter().flat_map(|(_, report)| &report.regions);
                let closed = regions.filter(|region| !region.is_accepted);
                *reported.borrow_mut() = Some(closed.map(|region| (region.region.0, region.peer.0)).collect());
            })
        });
        let done = self.sim.run_until(Duration::from_secs(60), || found.borrow().is_some());
        assert!(done, "seed {}: the damage is not accepted within a minute", self.seed);
        self.sim.run_until(Duration::from_secs(5), || !self.sim.running(self.nodes[at].sim));
        self.sim.kill(self.nodes[at].sim);
        found.take().unwrap_or_default()
    }
}

/// Has each damaged peer removed, until none is a member.
async fn replace(pd: SocketAddr, store: u64, damaged: Damaged) {
    let client = Client::new(&pd.to_string());
    loop {
        executor::sleep(Duration::from_millis(500)).await;
        let Ok(regions) = client.regions().await else { continue };
        let members = regions.iter().flat_map(|region| region.peers.iter().map(|peer| (region.id, peer.id)));
        let left: Vec<u64> = members.filter(|member| damaged.contains(member)).map(|(region, _)| region).collect();
        for region in &left {
            let order = format!(r#"{{"name":"remove-peer","region_id":{region},"store_id":{store}}}"#);
            // A refused or lost one is sent again.
            drop(executor::timeout(Duration::from_secs(2), orders::post(pd, &order)).await);
        }
        if left.is_empty() && !regions.is_empty() {
            return;
        }
    }
}
