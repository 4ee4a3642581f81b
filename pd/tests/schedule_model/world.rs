//! A naive cluster that does what it is told, as stores would: late, not always, and with leaders that change.

use base::{Instant, Prng};
use pd::directory::Directory;
use pd::schedule::view::StoreView;
use pd::schedule::{Order, ScheduleConfig, Scheduler};
use proto::eraftpb::ConfChangeType;
use proto::metapb::{self, Peer, PeerRole, StoreState};
use proto::pdpb::{self, RegionHeartbeatResponse};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// One step of the world.
const STEP: Duration = Duration::from_secs(1);
/// Stores tell that they live this often.
const STORE_BEAT: Duration = Duration::from_secs(10);
/// Leaders report this often, besides after each change.
const REGION_BEAT: Duration = Duration::from_secs(20);
/// Without a leader, another one is there after so long.
const ELECTION: Duration = Duration::from_secs(5);
/// A leader tells that a peer is down after so long.
const PEER_DOWN: Duration = Duration::from_secs(600);
/// Nothing has begun for so long: it is over.
const QUIET: Duration = Duration::from_secs(180);

/// Faults in the model itself: with each of them some check must fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plant {
    /// Leaders are not transferred.
    LeadersStay,
    /// New peers do not come.
    AddsVanish,
    /// Peers do not go.
    RemovesVanish,
    /// The scheduler is told that every store lives.
    AllSeemAlive,
    /// The scheduler is told no labels.
    NoLabels,
    /// The sizes that are told change with each report.
    SizesFlicker,
    /// The scheduler waits a minute where it should wait longer.
    Impatient,
    /// The scheduler balances nothing.
    NoBalance,
}

pub(crate) struct Store {
    pub(crate) alive: bool,
    pub(crate) state: StoreState,
    pub(crate) zone: u64,
    died: Instant,
    heard: Instant,
}

pub(crate) struct Region {
    pub(crate) meta: metapb::Region,
    pub(crate) leader: Option<u64>,
    pub(crate) size_mib: u64,
    term: u64,
    leaderless_since: Instant,
    /// Peers that wait for their snapshot, and until when.
    pending: BTreeMap<u64, Instant>,
    next_report: Instant,
}

pub(crate) struct World {
    pub(crate) now: Instant,
    pub(crate) prng: Prng,
    pub(crate) stores: BTreeMap<u64, Store>,
    pub(crate) regions: BTreeMap<u64, Region>,
    pub(crate) directory: Directory,
    pub(crate) scheduler: Scheduler,
    /// One message in so many is lost; 0 for none.
    pub(crate) loss: u64,
    /// A leader changes by itself once in so many steps; 0 for never.
    pub(crate) unrest: u64,
    pub(crate) plant: Option<Plant>,
    pub(crate) orders: u64,
    next_id: u64,
    next_tick: Instant,
    under_way: Vec<(Instant, Order)>,
    created: u64,
    last_created: Instant,
}

/// What a check found wrong.
pub(crate) type Checked = Result<(), String>;

impl World {
    /// `count` regions of `size_mib`, each with one peer on store 1, which is there.
    pub(crate) fn new(seed: u64, count: u64, size_mib: u64, config: ScheduleConfig, plant: Option<Plant>) -> World {
        let start = Instant(1_000_000_000_000);
        let mut config = config;
        if plant == Some(Plant::Impatient) {
            config.max_store_down_time = Duration::from_secs(60);
            config.split_merge_interval = Duration::from_secs(60);
        }
        if plant == Some(Plant::NoBalance) {
            config.schedulers.balance_leader = false;
        }
        let mut world = World {
            now: start,
            prng: Prng::new(seed),
            stores: BTreeMap::new(),
            regions: BTreeMap::new(),
            directory: Directory::default(),
            scheduler: Scheduler::new(config, start),
            loss: 0,
            unrest: 0,
            plant,
            orders: 0,
            next_id: 10_000,
            next_tick: start,
            under_way: Vec::new(),
            created: 0,
            last_created: start,
        };
        world.join(1, 1);
        let key = |at: u64| if at == 0 || at == count { Vec::new() } else { format!("{at:05}").into_bytes() };
        for at in 0..count {
            let peer = Peer { id: 1_000 + at, store_id: 1, ..Peer::default() };
            let meta = metapb::Region {
                id: 1 + at,
                start_key: key(at).into(),
                end_key: key(at + 1).into(),
                region_epoch: Some(metapb::RegionEpoch { conf_ver: 1, version: 1 }),
                peers: vec![peer],
                ..metapb::Region::default()
            };
            let region = Region {
                meta,
                leader: Some(peer.id),
                size_mib,
                term: 6,
                leaderless_since: start,
                pending: BTreeMap::new(),
                next_report: start,
            };
            world.regions.insert(1 + at, region);
        }
        world
    }

    pub(crate) fn join(&mut self, id: u64, zone: u64) {
        let store = Store { alive: true, state: StoreState::Up, zone, died: self.now, heard: self.now };
        self.stores.insert(id, store);
    }

    pub(crate) fn kill(&mut self, id: u64) {
        let now = self.now;
        let store = self.stores.get_mut(&id).expect("a store");
        (store.alive, store.died) = (false, now);
    }

    pub(crate) fn revive(&mut self, id: u64) {
        self.stores.get_mut(&id).expect("a store").alive = true;
    }

    pub(crate) fn configure(&mut self, change: impl FnOnce(&mut ScheduleConfig)) {
        let mut config = self.scheduler.config().clone();
        change(&mut config);
        self.scheduler.set_config(config);
    }

    /// Goes on for so long.
    pub(crate) fn run_for(&mut self, time: Duration) -> Checked {
        let end = self.now + time;
        while self.now < end {
            self.step()?;
        }
        Ok(())
    }

    /// Goes on until nothing has begun for a while.
    pub(crate) fn run_until_quiet(&mut self, longest: Duration) -> Checked {
        let end = self.now + longest;
        self.last_created = self.now;
        while self.now.since(self.last_created) < QUIET || self.scheduler.controller().operators().next().is_some() {
            self.step()?;
            if self.now >= end {
                return Err(format!("it does not end: {:?}", self.scheduler.controller().counts()));
            }
        }
        let influence = &self.scheduler.controller().influence;
        if influence.is_empty() { Ok(()) } else { Err(format!("something is expected for ever: {influence:?}")) }
    }

    /// Scatters every region, as one group.
    pub(crate) fn scatter(&mut self) -> Checked {
        let ids: Vec<u64> = self.regions.keys().copied().collect();
        for id in ids {
            let order = loop {
                match self.scheduler.scatter(self.now, &self.directory, id, "all") {
                    Ok(order) => break order,
                    Err(pd::schedule::Refused::NoIds | pd::schedule::Refused::Busy(_)) => self.step()?,
                    Err(refused) => return Err(format!("region {id} is not scattered: {refused}")),
                }
            };
            order.into_iter().for_each(|order| self.send(order));
        }
        Ok(())
    }

    /// Operators created so far, of one name or all.
    pub(crate) fn created(&self, name: &str) -> u64 {
        let counts = self.scheduler.controller().counts().iter();
        counts
            .filter(|((desc, event), _)| *event == "create" && (name.is_empty() || *desc == name))
            .map(|(_, n)| n)
            .sum()
    }

    fn step(&mut self) -> Checked {
        self.now = self.now + STEP;
        self.beat_stores();
        self.elect();
        self.deliver()?;
        self.report();
        if self.now >= self.next_tick {
            let ticked = self.scheduler.tick(self.now, &self.directory, &mut self.prng);
            self.next_tick = self.now + ticked.wait;
            ticked.orders.into_iter().for_each(|order| self.send(order));
        }
        let wanted = self.scheduler.controller().ids_wanted() as u64;
        if wanted > 0 {
            self.scheduler.controller_mut().take_ids(self.next_id..self.next_id + wanted);
            self.next_id += wanted;
        }
        let created = self.created("");
        if created > self.created {
            (self.created, self.last_created) = (created, self.now);
        }
        Ok(())
    }

    fn beat_stores(&mut self) {
        let (now, plant) = (self.now, self.plant);
        let mut views = BTreeMap::new();
        for (id, store) in &mut self.stores {
            if store.alive && now.since(store.heard) >= STORE_BEAT {
                store.heard = now;
            }
            let mut labels = BTreeMap::new();
            if plant != Some(Plant::NoLabels) {
                labels.insert("zone".to_owned(), format!("z{}", store.zone));
            }
            let heard = if plant == Some(Plant::AllSeemAlive) { now } else { store.heard };
            let (capacity, available) = (1 << 40, 1 << 39);
            let view = StoreView {
                id: *id,
                state: store.state,
                heard,
                has_reported: true,
                labels,
                capacity,
                available,
                ..StoreView::default()
            };
            views.insert(*id, view);
        }
        self.scheduler.set_stores(views);
    }

    fn is_alive(&self, peer: &Peer) -> bool {
        self.stores.get(&peer.store_id).is_some_and(|store| store.alive && store.state != StoreState::Tombstone)
    }

    /// Whether both of a region's configurations have a living majority; there is one unless it is joint.
    fn has_quorum(&self, peers: &[Peer], pending: &BTreeMap<u64, Instant>) -> bool {
        let majority = |roles: [PeerRole; 2]| {
            let voters: Vec<&Peer> = peers.iter().filter(|peer| roles.contains(&peer.role())).collect();
            let able = voters.iter().filter(|peer| self.is_alive(peer) && !pending.contains_key(&peer.id)).count();
            able * 2 > voters.len()
        };
        majority([PeerRole::Voter, PeerRole::DemotingVoter]) && majority([PeerRole::Voter, PeerRole::IncomingVoter])
    }

    fn elect(&mut self) {
        let ids: Vec<u64> = self.regions.keys().copied().collect();
        for id in ids {
            let region = &self.regions[&id];
            let leader = region.meta.peers.iter().find(|peer| Some(peer.id) == region.leader);
            let lost = leader.is_none_or(|leader| !self.is_alive(leader));
            let restless = self.prng.one_in(self.unrest);
            let quorum = self.has_quorum(&region.meta.peers, &region.pending);
            let able = |peer: &&Peer| {
                peer.role() != PeerRole::Learner && self.is_alive(peer) && !region.pending.contains_key(&peer.id)
            };
            let able: Vec<Peer> = region.meta.peers.iter().filter(able).copied().collect();
            let waited = self.now.since(region.leaderless_since) >= ELECTION;
            let (now, chosen) = (self.now, self.prng.pick(&able).copied());
            let region = self.regions.get_mut(&id).expect("a region");
            if lost && region.leader.is_some() {
                (region.leader, region.leaderless_since) = (None, now);
            } else if quorum && (restless || (region.leader.is_none() && waited)) {
                region.leader = chosen.map(|peer| peer.id);
                region.term += 1;
                region.next_report = now;
            }
        }
    }

    fn report(&mut self) {
        let due: Vec<u64> =
            self.regions.iter().filter(|(_, region)| region.next_report <= self.now).map(|(id, _)| *id).collect();
        for id in due {
            let now = self.now;
            let lost = self.prng.one_in(self.loss);
            let flicker = (self.plant == Some(Plant::SizesFlicker)).then(|| self.prng.range(1, 2_000));
            let region = self.regions.get_mut(&id).expect("a region");
            region.next_report = now + REGION_BEAT;
            region.pending.retain(|_, until| *until > now);
            if let Some(next) = region.pending.values().min() {
                region.next_report = region.next_report.min(*next);
            }
            let region = &self.regions[&id];
            let Some(leader) = region.meta.peers.iter().find(|peer| Some(peer.id) == region.leader) else { continue };
            if lost {
                continue;
            }
            let down = region.meta.peers.iter().filter_map(|peer| {
                let store = self.stores.get(&peer.store_id).filter(|store| !store.alive)?;
                let silent = now.since(store.died);
                let down_seconds = silent.as_secs();
                (silent >= PEER_DOWN).then_some(pdpb::PeerStats { peer: Some(*peer), down_seconds })
            });
            let pending = region.meta.peers.iter().filter(|peer| region.pending.contains_key(&peer.id));
            let request = pdpb::RegionHeartbeatRequest {
                region: Some(region.meta.clone()),
                leader: Some(*leader),
                down_peers: down.collect(),
                pending_peers: pending.copied().collect(),
                approximate_size: flicker.unwrap_or(region.size_mib) << 20,
                approximate_keys: 100,
                term: region.term,
                ..Default::default()
            };
            let Ok(taken) = self.directory.heartbeat(&request, 0) else { continue };
            taken.overlapped.iter().for_each(|gone| self.scheduler.region_gone(now, *gone));
            if let Some(order) = self.scheduler.heartbeat(now, &self.directory, id) {
                self.send(order);
            }
        }
    }

    fn send(&mut self, order: Order) {
        self.orders += 1;
        if !self.prng.one_in(self.loss) {
            let late = Duration::from_millis(self.prng.below(3_000));
            self.under_way.push((self.now + late, order));
        }
    }

    fn deliver(&mut self) -> Checked {
        let now = self.now;
        let (due, later) = std::mem::take(&mut self.under_way).into_iter().partition(|(at, _)| *at <= now);
        self.under_way = later;
        let due: Vec<(Instant, Order)> = due;
        due.into_iter().try_for_each(|(_, order)| self.carry_out(&order.message))
    }

    fn carry_out(&mut self, order: &RegionHeartbeatResponse) -> Checked {
        let Some(region) = self.regions.get(&order.region_id) else { return Ok(()) };
        let leads = region.leader.is_some() && order.target_peer.map(|peer| peer.id) == region.leader;
        let fresh = order.region_epoch == region.meta.region_epoch;
        if !leads || !fresh || !self.has_quorum(&region.meta.peers, &region.pending) {
            return Ok(());
        }
        let id = order.region_id;
        if let Some(change) = &order.change_peer_v2 {
            return self.change_peers(id, &change.changes);
        }
        if let Some(to) = order.transfer_leader.as_ref().and_then(|transfer| transfer.peer) {
            self.transfer(id, &to);
        }
        if let Some(target) = order.merge.as_ref().and_then(|merge| merge.target.as_ref()) {
            self.merge(id, target.id)?;
        }
        Ok(())
    }

    fn transfer(&mut self, id: u64, to: &Peer) {
        let (now, alive) = (self.now, self.is_alive(to));
        let region = self.regions.get_mut(&id).expect("a region");
        let votes = region.meta.peers.iter().any(|peer| peer.id == to.id && peer.role() != PeerRole::Learner);
        if alive && votes && !region.pending.contains_key(&to.id) && self.plant != Some(Plant::LeadersStay) {
            region.leader = Some(to.id);
            region.term += 1;
            region.next_report = now;
        }
    }

    /// What is refused by a store is refused here; what would cost the quorum is an error of who asked for it.
    fn change_peers(&mut self, id: u64, changes: &[pdpb::ChangePeer]) -> Checked {
        let snapshot = self.now + Duration::from_millis(500 + self.prng.below(20_000));
        let now = self.now;
        let region = &self.regions[&id];
        let mut peers = region.meta.peers.clone();
        let mut pending = region.pending.clone();
        let joint = |peer: &Peer| matches!(peer.role(), PeerRole::IncomingVoter | PeerRole::DemotingVoter);
        let is_joint = peers.iter().any(joint);
        let mut count = changes.len() as u64;
        match changes {
            [] => {
                let leader = peers.iter().find(|peer| Some(peer.id) == region.leader);
                if leader.is_some_and(|leader| leader.role() == PeerRole::DemotingVoter) {
                    return Ok(());
                }
                count = peers.iter().filter(|peer| joint(peer)).count() as u64;
                for peer in &mut peers {
                    match peer.role() {
                        PeerRole::IncomingVoter => peer.set_role(PeerRole::Voter),
                        PeerRole::DemotingVoter => peer.set_role(PeerRole::Learner),
                        _ => {}
                    }
                }
            }
            _ if is_joint => return Ok(()),
            [change] => {
                let peer = change.peer.expect("a change has a peer");
                let known = peers.iter().position(|known| known.store_id == peer.store_id);
                match (change.change_type(), known) {
                    (ConfChangeType::AddLearnerNode, None) if self.plant != Some(Plant::AddsVanish) => {
                        if peer.id == 0 {
                            return Err(format!("region {id}: a new peer has no id"));
                        }
                        peers.push(peer);
                        pending.insert(peer.id, snapshot);
                    }
                    (ConfChangeType::AddNode, Some(at)) if peers[at].id == peer.id => {
                        peers[at].set_role(PeerRole::Voter);
                    }
                    (ConfChangeType::RemoveNode, Some(at))
                        if peers[at].id == peer.id
                            && region.leader != Some(peer.id)
                            && self.plant != Some(Plant::RemovesVanish) =>
                    {
                        peers.remove(at);
                    }
                    _ => return Ok(()),
                }
            }
            changes => {
                for change in changes {
                    let peer = change.peer.expect("a change has a peer");
                    let Some(known) = peers.iter_mut().find(|known| known.id == peer.id) else { return Ok(()) };
                    match change.change_type() {
                        ConfChangeType::AddNode => known.set_role(PeerRole::IncomingVoter),
                        ConfChangeType::AddLearnerNode => known.set_role(PeerRole::DemotingVoter),
                        ConfChangeType::RemoveNode => return Err(format!("region {id}: a joint change removes")),
                    }
                }
            }
        }
        if !self.has_quorum(&peers, &pending) {
            return Err(format!("region {id} has lost its quorum: {peers:?} by {changes:?}"));
        }
        let region = self.regions.get_mut(&id).expect("a region");
        (region.meta.peers, region.pending, region.next_report) = (peers, pending, now);
        region.meta.region_epoch.as_mut().expect("an epoch").conf_ver += count;
        Ok(())
    }

    fn merge(&mut self, source: u64, target: u64) -> Checked {
        let Some(other) = self.regions.get(&target) else { return Ok(()) };
        let stores =
            |region: &Region| -> BTreeSet<u64> { region.meta.peers.iter().map(|peer| peer.store_id).collect() };
        let region = &self.regions[&source];
        if stores(region) != stores(other) {
            return Err(format!("regions {source} and {target} are to be merged from different stores"));
        }
        let in_front = region.meta.end_key == other.meta.start_key && !region.meta.end_key.is_empty();
        let behind = other.meta.end_key == region.meta.start_key && !other.meta.end_key.is_empty();
        if !in_front && !behind {
            return Err(format!("regions {source} and {target} are no neighbours"));
        }
        let gone = self.regions.remove(&source).expect("a region");
        let (now, version) = (self.now, |region: &Region| region.meta.region_epoch.map_or(0, |epoch| epoch.version));
        let region = self.regions.get_mut(&target).expect("a region");
        let newer = version(&gone).max(version(region)) + 1;
        if in_front {
            region.meta.start_key = gone.meta.start_key;
        } else {
            region.meta.end_key = gone.meta.end_key;
        }
        region.meta.region_epoch.as_mut().expect("an epoch").version = newer;
        region.size_mib += gone.size_mib;
        region.next_report = now;
        Ok(())
    }
}
