//! The machines of the group and of its clients, and what is done to them.

use crate::calls::ask;
use crate::clients::{self, Told};
use base::Prng;
use executor::sim::{Sim, SimConfig, SimNode};
use futures_util::FutureExt as _;
use pd::raft::Faults;
use pd::{GroupError, PdConfig, PdError, PdServer};
use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

/// Members that the group begins with, and places for those that come later.
const MEMBERS: usize = 3;
pub(crate) const PLACES: usize = 5;

/// Where each member listens.
pub(crate) fn address(at: usize) -> String {
    format!("10.0.0.{}:2379", at + 1)
}

pub(crate) fn addresses() -> Vec<String> {
    (0..PLACES).map(address).collect()
}

/// The name of the member that is the `life`th at a place.
fn name(at: usize, life: u32) -> String {
    format!("pd-{at}-{life}")
}

/// What became of a place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Place {
    /// Members that there have been, this one included. Each has a folder of its own.
    life: u32,
    /// It is a member, or was when it was heard last.
    taken: bool,
}

pub(crate) struct World {
    pub(crate) sim: Sim,
    pub(crate) told: Rc<Told>,
    members: Vec<SimNode>,
    places: Rc<RefCell<[Place; PLACES]>>,
    clients: Vec<SimNode>,
    faults: Faults,
    /// The member that said last that it leads.
    leader: Rc<Cell<usize>>,
    seed: u64,
    journal_bytes: u64,
    down: RefCell<Vec<usize>>,
}

impl World {
    pub(crate) fn new(seed: u64, faults: Faults) -> World {
        let mut prng = Prng::new(seed);
        let config = if seed.is_multiple_of(2) { SimConfig::default() } else { SimConfig::arbitrary(&mut prng) };
        let sim = Sim::new(seed, config);
        let node = |kind: &str, at: usize, ip: usize| {
            let ip = format!("10.0.0.{ip}").parse().expect("an address");
            sim.add_node(&format!("{kind}-{at}"), ip)
        };
        let members = (0..PLACES).map(|at| node("pd", at, at + 1)).collect();
        let place = |at| Place { life: 0, taken: at < MEMBERS };
        let clients = (0..2).map(|at| node("client", at, at + 11)).collect();
        // Small journals: images, truncated logs and snapshots come up.
        let journal_bytes = if prng.one_in(2) { 256 << 10 } else { 4 << 20 };
        World {
            sim,
            told: Rc::default(),
            members,
            places: Rc::new(RefCell::new(std::array::from_fn(place))),
            clients,
            faults,
            leader: Rc::default(),
            seed,
            journal_bytes,
            down: RefCell::default(),
        }
    }

    pub(crate) fn start_all(&self) {
        self.taken().into_iter().for_each(|at| self.start(at));
    }

    /// The places of members.
    pub(crate) fn taken(&self) -> Vec<usize> {
        (0..PLACES).filter(|at| self.places.borrow()[*at].taken).collect()
    }

    pub(crate) fn start(&self, at: usize) {
        let (faults, leader, journal_bytes) = (self.faults, Rc::clone(&self.leader), self.journal_bytes);
        let (places, life) = (Rc::clone(&self.places), self.places.borrow()[at].life);
        self.sim.start(self.members[at], 1, move |_| {
            let (leader, places) = (Rc::clone(&leader), Rc::clone(&places));
            let first = |at: usize| (name(at, 0), format!("http://{}", address(at)));
            let is_first = at < MEMBERS && life == 0;
            let initial_cluster = if is_first { (0..MEMBERS).map(first).collect() } else { Vec::new() };
            let join = if is_first { Vec::new() } else { addresses() };
            Box::pin(async move {
                let mut config = PdConfig {
                    listen: address(at).parse().expect("an address"),
                    data_dir: PathBuf::from(format!("/pd-{life}")),
                    name: name(at, life),
                    initial_cluster,
                    join,
                    faults,
                    ..PdConfig::default()
                };
                config.journal.file_bytes = journal_bytes;
                let ends = || places.borrow_mut()[at].taken = false;
                let mut server = loop {
                    match PdServer::start(config.clone()).await {
                        Ok(server) => break server,
                        // It is not a member yet, and nobody has time for it; or it was one.
                        Err(PdError::Join(_)) => executor::sleep(Duration::from_millis(100)).await,
                        Err(PdError::Group(GroupError::Removed)) => return ends(),
                        Err(error) => panic!("member {at} does not start: {error}"),
                    }
                };
                {
                    let mut stop = std::pin::pin!(executor::shutdown_signal().fuse());
                    loop {
                        if server.is_leader() {
                            leader.set(at);
                        }
                        futures_util::select_biased! {
                            () = stop => break,
                            error = server.failed().fuse() => {
                                assert!(matches!(error, PdError::Removed), "member {at} fails: {error}");
                                return ends();
                            }
                            () = executor::sleep(Duration::from_millis(20)).fuse() => {}
                        }
                    }
                }
                server.stop().await.expect("the member stops");
            })
        });
    }

    pub(crate) fn start_clients(&self) {
        for (at, client) in self.clients.iter().enumerate() {
            self.sim.spawn_on(*client, clients::take_timestamps(Rc::clone(&self.told)));
            self.sim.spawn_on(*client, clients::take_ids(Rc::clone(&self.told)));
            self.sim.spawn_on(*client, clients::write_keys(Rc::clone(&self.told), at as u64));
        }
        self.sim.spawn_on(self.clients[0], clients::register_stores(Rc::clone(&self.told)));
        self.sim.spawn_on(self.clients[1], clients::change_settings(Rc::clone(&self.told)));
        self.sim.spawn_on(self.clients[1], clients::read_keys(Rc::clone(&self.told)));
    }

    /// One fault, sometimes with its end.
    pub(crate) fn disturb(&self, prng: &mut Prng) {
        let sim = &self.sim;
        for at in self.down.take() {
            self.start(at);
        }
        let taken = self.taken();
        let any = taken[prng.below(taken.len() as u64) as usize];
        let leader = Some(self.leader.get()).filter(|at| taken.contains(at)).unwrap_or(any);
        let others: Vec<usize> = taken.iter().copied().filter(|at| *at != leader).collect();
        match prng.below(16) {
            0 => {
                sim.kill(self.members[leader]);
                self.down.borrow_mut().push(leader);
            }
            1 => {
                sim.kill_process(self.members[any]);
                self.start(any);
            }
            2 => {
                sim.kill(self.members[any]);
                sim.run_for(Duration::from_millis(prng.below(300)));
                self.start(any);
            }
            3 => {
                taken.iter().for_each(|at| sim.kill(self.members[*at]));
                sim.run_for(Duration::from_millis(prng.below(500)));
                self.start_all();
            }
            4 => self.members.iter().for_each(|member| {
                sim.step_clock(*member, prng.below(40_000_000_000) as i64 - 20_000_000_000);
            }),
            5 | 6 => {
                // The leader is cut off from the others, but not from its clients, or not from all of them.
                others.iter().for_each(|at| sim.partition(self.members[leader], self.members[*at]));
                if prng.one_in(2) {
                    sim.partition(self.members[leader], self.clients[1]);
                }
                sim.run_for(Duration::from_millis(prng.below(4_000)));
                sim.heal_all();
            }
            7 => {
                others.iter().for_each(|at| sim.partition_one_way(self.members[*at], self.members[leader]));
                sim.run_for(Duration::from_millis(prng.below(4_000)));
                sim.heal_all();
            }
            8 => {
                sim.isolate(self.members[any]);
                sim.run_for(Duration::from_millis(prng.below(4_000)));
                sim.heal_all();
            }
            9 if prng.one_in(2) => sim.pause(self.members[leader], Duration::from_millis(prng.below(3_000))),
            9 => self.stand_still(prng, leader, &others),
            10 => {
                sim.step_clock(self.members[leader], 20_000_000_000);
                sim.run_for(Duration::from_millis(prng.below(3_000)));
                sim.kill(self.members[leader]);
                self.down.borrow_mut().push(leader);
            }
            11 => {
                let life = self.places.borrow()[any].life;
                let path = if prng.one_in(2) {
                    "/pd/api/v1/leader/resign".to_owned()
                } else {
                    format!("/pd/api/v1/leader/transfer/{}", name(any, life))
                };
                sim.spawn_on(self.clients[0], async move { drop(ask(any, "POST", &path, "").await) });
            }
            _ => self.change_members(prng, any, taken.len()),
        }
    }

    /// The leader stands still while others are elected and answer, and goes on without having heard of it: it has the clients
    /// that reach nobody else, whose questions wait for it.
    fn stand_still(&self, prng: &mut Prng, leader: usize, others: &[usize]) {
        for other in others {
            self.sim.partition(self.members[leader], self.members[*other]);
            self.sim.partition(self.clients[1], self.members[*other]);
        }
        let pause = Duration::from_millis(1_500 + prng.below(1_500));
        self.sim.pause(self.members[leader], pause);
        self.sim.run_for(pause + Duration::from_millis(prng.below(1_500)));
        self.sim.heal_all();
    }

    /// A member comes, or goes, whatever else is going on.
    fn change_members(&self, prng: &mut Prng, any: usize, taken: usize) {
        let free = (0..PLACES).find(|at| !self.places.borrow()[*at].taken && !self.sim.running(self.members[*at]));
        match free {
            Some(at) if prng.below(PLACES as u64) >= taken as u64 - 1 => {
                let mut places = self.places.borrow_mut();
                places[at] = Place { life: places[at].life + 1, taken: true };
                drop(places);
                self.start(at);
            }
            _ => {
                let path = format!("/pd/api/v1/members/name/{}", name(any, self.places.borrow()[any].life));
                let told = Rc::clone(&self.told);
                self.sim.spawn_on(self.clients[0], async move {
                    let answer = ask(any, "DELETE", &path, "").await;
                    told.removed.set(told.removed.get() + u64::from(answer.is_some_and(|(status, _)| status == 200)));
                });
            }
        }
    }

    /// Everybody runs, and all is connected.
    pub(crate) fn end_of_disturbance(&self) {
        self.sim.heal_all();
        for at in self.taken() {
            if !self.sim.running(self.members[at]) {
                self.start(at);
            }
        }
        self.down.take();
    }

    /// Everything that was acknowledged is there, also after a power failure of all.
    pub(crate) fn check(&self) {
        self.clients.iter().for_each(|client| self.sim.kill(*client));
        self.taken().iter().for_each(|at| self.sim.kill(self.members[*at]));
        self.start_all();
        // Whoever was removed and has not heard of it does now.
        self.sim.run_for(Duration::from_secs(5));
        let (told, members) = (Rc::clone(&self.told), self.taken());
        let done = self.sim.block_on(self.clients[0], clients::check_all(told, members), Duration::from_secs(60));
        assert!(done.is_some(), "seed {}: the group cannot be asked", self.seed);
    }
}
