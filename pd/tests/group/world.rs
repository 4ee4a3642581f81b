//! The machines of the group and of its clients, and what is done to them.

use crate::calls::ask;
use crate::clients::{self, Told};
use base::Prng;
use executor::sim::{Sim, SimConfig, SimNode};
use pd::raft::Faults;
use pd::{PdConfig, PdServer};
use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

pub(crate) const MEMBERS: usize = 3;

/// Where each member listens.
pub(crate) fn address(at: usize) -> String {
    format!("10.0.0.{}:2379", at + 1)
}

pub(crate) fn addresses() -> Vec<String> {
    (0..MEMBERS).map(address).collect()
}

pub(crate) fn name(at: usize) -> String {
    format!("pd-{at}")
}

pub(crate) struct World {
    pub(crate) sim: Sim,
    pub(crate) told: Rc<Told>,
    members: Vec<SimNode>,
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
        let members = (0..MEMBERS).map(|at| node("pd", at, at + 1)).collect();
        let clients = (0..2).map(|at| node("client", at, at + 11)).collect();
        // Small journals: images, truncated logs and snapshots come up.
        let journal_bytes = if prng.one_in(2) { 256 << 10 } else { 4 << 20 };
        World {
            sim,
            told: Rc::default(),
            members,
            clients,
            faults,
            leader: Rc::default(),
            seed,
            journal_bytes,
            down: RefCell::default(),
        }
    }

    pub(crate) fn start_all(&self) {
        (0..MEMBERS).for_each(|at| self.start(at));
    }

    pub(crate) fn start(&self, at: usize) {
        let (faults, leader, journal_bytes) = (self.faults, Rc::clone(&self.leader), self.journal_bytes);
        self.sim.start(self.members[at], 1, move |_| {
            let leader = Rc::clone(&leader);
            Box::pin(async move {
                let mut config = PdConfig {
                    listen: address(at).parse().expect("an address"),
                    data_dir: PathBuf::from("/pd"),
                    name: name(at),
                    initial_cluster: (0..MEMBERS).map(|at| (name(at), format!("http://{}", address(at)))).collect(),
                    faults,
                    ..PdConfig::default()
                };
                config.journal.file_bytes = journal_bytes;
                let server = PdServer::start(config).await.expect("the member starts");
                {
                    let watch = async {
                        loop {
                            if server.is_leader() {
                                leader.set(at);
                            }
                            executor::sleep(Duration::from_millis(20)).await;
                        }
                    };
                    let stop = std::pin::pin!(executor::shutdown_signal());
                    let watch = std::pin::pin!(watch);
                    futures_util::future::select(stop, watch).await;
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
        let any = prng.below(MEMBERS as u64) as usize;
        let leader = self.leader.get();
        let (first, second) = ((leader + 1) % MEMBERS, (leader + 2) % MEMBERS);
        for at in self.down.take() {
            self.start(at);
        }
        match prng.below(12) {
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
                self.members.iter().for_each(|member| sim.kill(*member));
                sim.run_for(Duration::from_millis(prng.below(500)));
                self.start_all();
            }
            4 => self.members.iter().for_each(|member| {
                sim.step_clock(*member, prng.below(40_000_000_000) as i64 - 20_000_000_000);
            }),
            5 | 6 => {
                // The leader is cut off from the others, but not from its clients, or not from all of them.
                sim.partition(self.members[leader], self.members[first]);
                sim.partition(self.members[leader], self.members[second]);
                if prng.one_in(2) {
                    sim.partition(self.members[leader], self.clients[1]);
                }
                sim.run_for(Duration::from_millis(prng.below(4_000)));
                sim.heal_all();
            }
            7 => {
                sim.partition_one_way(self.members[first], self.members[leader]);
                sim.partition_one_way(self.members[second], self.members[leader]);
                sim.run_for(Duration::from_millis(prng.below(4_000)));
                sim.heal_all();
            }
            8 => {
                sim.isolate(self.members[any]);
                sim.run_for(Duration::from_millis(prng.below(4_000)));
                sim.heal_all();
            }
            9 => sim.pause(self.members[leader], Duration::from_millis(prng.below(3_000))),
            10 => {
                sim.step_clock(self.members[leader], 20_000_000_000);
                sim.run_for(Duration::from_millis(prng.below(3_000)));
                sim.kill(self.members[leader]);
                self.down.borrow_mut().push(leader);
            }
            _ => {
                let path = if prng.one_in(2) {
                    "/pd/api/v1/leader/resign".to_owned()
                } else {
                    format!("/pd/api/v1/leader/transfer/{}", name(any))
                };
                sim.spawn_on(self.clients[0], async move { drop(ask(any, "POST", &path, "").await) });
            }
        }
    }

    /// Everybody runs, and all is connected.
    pub(crate) fn end_of_disturbance(&self) {
        self.sim.heal_all();
        for at in 0..MEMBERS {
            if !self.sim.running(self.members[at]) {
                self.start(at);
            }
        }
        self.down.take();
    }

    /// Everything that was acknowledged is there, also after a power failure of all.
    pub(crate) fn check(&self) {
        self.clients.iter().for_each(|client| self.sim.kill(*client));
        self.members.iter().for_each(|member| self.sim.kill(*member));
        self.start_all();
        let told = Rc::clone(&self.told);
        let done = self.sim.block_on(self.clients[0], clients::check_all(told), Duration::from_secs(60));
        assert!(done.is_some(), "seed {}: the group cannot be asked", self.seed);
    }
}
