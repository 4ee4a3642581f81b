//! Runs `scripts/*.txt`: each is one behaviour of a raft group or of regions' epochs, named as a sentence.

mod harness;

use base::PeerId;
use bytes::Bytes;
use harness::{Cluster, region, text};
use prost::Message as _;
use proto::eraftpb::ConfChangeType;
use proto::metapb::{Peer as PeerMeta, PeerRole, Region, RegionEpoch};
use proto::raft_cmdpb::{
    AdminCmdType, AdminRequest, BatchSplitRequest, ChangePeerRequest, ChangePeerV2Request, SplitRequest,
};
use raftstore::command::{Header, encode_admin};
use raftstore::epoch::epoch_of;
use raftstore::eraftpb::ConfChangeV2;
use raftstore::membership::{change_peers, to_conf_change};
use raftstore::split::split_region;
use raftstore::{Input, RaftConfig, merge};
use std::collections::BTreeMap;
use std::fmt::Write;

#[test]
fn scripts() {
    script_runner::run_folder::<World>(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/scripts"), 16);
}

#[derive(Default)]
struct World {
    cluster: Option<Cluster>,
    config: RaftConfig,
    /// Regions of scripts about epochs.
    regions: BTreeMap<String, Region>,
}

/// A command's words: `name a b key=value`.
struct Words<'a> {
    plain: Vec<&'a str>,
    named: BTreeMap<&'a str, &'a str>,
}

impl<'a> Words<'a> {
    fn of(line: &'a str) -> Words<'a> {
        let (named, plain) = line.split_whitespace().partition::<Vec<_>, _>(|word| word.contains('='));
        let named = named.into_iter().filter_map(|word| word.split_once('='));
        Words { plain, named: named.collect() }
    }

    fn number(&self, at: usize) -> u64 {
        self.plain[at].parse().expect("a number")
    }

    fn named(&self, name: &str) -> Option<u64> {
        self.named.get(name).map(|value| value.parse().expect("a number"))
    }

    fn list(&self, name: &str) -> Vec<&'a str> {
        self.named.get(name).map_or(Vec::new(), |value| value.split(',').collect())
    }

    fn numbers(&self, name: &str) -> Vec<u64> {
        self.list(name).iter().map(|word| word.parse().expect("a number")).collect()
    }
}

impl script_runner::World for World {
    fn command(&mut self, line: &str, out: &mut String) {
        let words = Words::of(line);
        match words.plain[0] {
            "config" => self.configure(&words),
            "group" => {
                let region = region(&words.numbers("voters"), &words.numbers("learners"));
                self.cluster = Some(Cluster::new(&region, &self.config, 42));
            }
            "region" | "change" | "split" | "prepare_merge" | "commit_merge" | "rollback_merge" => {
                self.region_command(&words, out);
            }
            _ => {
                let cluster = self.cluster.as_mut().expect("a group comes first");
                cluster_command(cluster, &words, out);
            }
        }
    }
}

impl World {
    fn configure(&mut self, words: &Words<'_>) {
        for (name, value) in &words.named {
            let value: u64 = value.parse().expect("a number");
            match *name {
                "cache_bytes" => self.config.cache_bytes = value as usize,
                "proposals_max" => self.config.proposals_max = value as usize,
                "applying_bytes_max" => self.config.applying_bytes_max = value as usize,
                "message_bytes_max" => self.config.message_bytes_max = value,
                _ => panic!("no such setting: {name}"),
            }
        }
    }

    fn region_command(&mut self, words: &Words<'_>, out: &mut String) {
        let name = words.plain[1].to_string();
        let stored = |world: &World, name: &str| world.regions[name].clone();
        let result: Result<Vec<(String, Region)>, String> = match words.plain[0] {
            "region" => Ok(vec![(name.clone(), new_region(words))]),
            "change" => {
                let changes: Vec<_> = words.plain[2..].iter().map(|word| change(word)).collect();
                change_peers(&stored(self, &name), &changes)
                    .map(|region| vec![(name.clone(), region)])
                    .map_err(|error| error.to_string())
            }
            "split" => split_region(&stored(self, &name), &split_request(words))
                .map(|parts| parts.into_iter().map(|part| (format!("r{}", part.id), part)).collect())
                .map_err(|error| error.to_string()),
            "prepare_merge" => Ok(vec![(name.clone(), merge::prepare(&stored(self, &name)))]),
            "rollback_merge" => Ok(vec![(name.clone(), merge::rollback(&stored(self, &name)))]),
            _ => {
                let target = words.plain[2].to_string();
                merge::commit(&stored(self, &name), &stored(self, &target))
                    .map(|region| vec![(target, region)])
                    .map_err(|error| error.to_string())
            }
        };
        match result {
            Err(error) => drop(writeln!(out, "error: {error}")),
            Ok(regions) => {
                for (name, region) in regions {
                    let _ = writeln!(out, "{name} {}", show_region(&region));
                    self.regions.insert(name, region);
                }
            }
        }
    }
}

fn new_region(words: &Words<'_>) -> Region {
    let peers = words.plain[2..].iter().map(|word| parse_peer(word)).collect();
    let key = |name: &str| Bytes::copy_from_slice(words.named.get(name).unwrap_or(&"").as_bytes());
    Region {
        id: words.plain[1].trim_start_matches('r').parse().expect("a region like r1"),
        start_key: key("start"),
        end_key: key("end"),
        region_epoch: Some(RegionEpoch { conf_ver: 1, version: 1 }),
        peers,
        ..Default::default()
    }
}

/// `2@1`: peer 2 on store 1.
fn parse_peer(word: &str) -> PeerMeta {
    let (id, store) = word.split_once('@').expect("peer@store");
    PeerMeta { id: id.parse().expect("a number"), store_id: store.parse().expect("a number"), ..Default::default() }
}

/// `add:2@1`, `learner:2@1`, `remove:2@1`.
fn change(word: &str) -> ChangePeerRequest {
    let (kind, peer) = word.split_once(':').expect("kind:peer@store");
    let kind = match kind {
        "add" => ConfChangeType::AddNode,
        "learner" => ConfChangeType::AddLearnerNode,
        "remove" => ConfChangeType::RemoveNode,
        _ => panic!("no such change: {kind}"),
    };
    ChangePeerRequest { change_type: kind as i32, peer: Some(parse_peer(peer)) }
}

/// `keys=g,m ids=10,20 peers=11:12,21:22 [derive=left]`.
fn split_request(words: &Words<'_>) -> BatchSplitRequest {
    let keys = words.list("keys");
    let ids = words.numbers("ids");
    let peers = words.list("peers");
    let requests = keys.iter().enumerate().map(|(at, key)| SplitRequest {
        split_key: Bytes::copy_from_slice(key.as_bytes()),
        new_region_id: ids[at],
        new_peer_ids: peers[at].split(':').map(|id| id.parse().expect("a number")).collect(),
        ..Default::default()
    });
    BatchSplitRequest {
        requests: requests.collect(),
        right_derive: words.named.get("derive") != Some(&"left"),
        share_source_region_size: false,
    }
}

fn show_region(region: &Region) -> String {
    let peers: Vec<String> = region
        .peers
        .iter()
        .map(|peer| {
            let role = match peer.role() {
                PeerRole::Voter => "",
                PeerRole::Learner => " learner",
                PeerRole::IncomingVoter => " incoming",
                PeerRole::DemotingVoter => " demoting",
            };
            format!("{}@{}{role}", peer.id, peer.store_id)
        })
        .collect();
    let epoch = epoch_of(region);
    let text = |key: &Bytes| String::from_utf8_lossy(key).into_owned();
    format!(
        "[{}, {}) {}/{} peers {}",
        text(&region.start_key),
        text(&region.end_key),
        epoch.conf_ver,
        epoch.version,
        peers.join(", ")
    )
}

fn cluster_command(cluster: &mut Cluster, words: &Words<'_>, out: &mut String) {
    let ids: Vec<u64> = cluster.nodes.keys().copied().collect();
    let many = words.named("times").unwrap_or(1);
    match words.plain[0] {
        "campaign" => cluster.input(words.number(1), Input::Campaign),
        "retire" => cluster.input(words.number(1), Input::Retire),
        "tick" => (0..many).for_each(|_| cluster.input(words.number(1), Input::Tick)),
        "propose" => {
            let data = Bytes::copy_from_slice(words.named.get("data").unwrap_or(&"").as_bytes());
            let id = words.named("id").expect("a proposal has an id");
            let context = Bytes::new();
            let inputs = (id..id + many).map(|id| {
                let (data, context) = (data.clone(), context.clone());
                Input::Propose { id, data, context }
            });
            if words.plain.contains(&"together") {
                cluster.node(words.number(1)).inputs(inputs);
                cluster.post(words.number(1));
            } else {
                inputs.for_each(|input| cluster.input(words.number(1), input));
            }
        }
        "change_peers" => propose_change(cluster, words),
        "read" => {
            let id = words.named("id").expect("a read has an id");
            cluster.input(words.number(1), Input::ReadIndex { id });
        }
        "transfer" => {
            let to = PeerId(words.named("to").expect("a transfer has a receiver"));
            cluster.input(words.number(1), Input::TransferLeader { to });
        }
        "persist" => cluster.persist(words.number(1), words.named("count").unwrap_or(u64::MAX) as usize),
        "apply" => while cluster.apply(words.number(1)) {},
        "deliver" => {
            for message in std::mem::take(&mut cluster.net) {
                cluster.hand_over(message);
            }
        }
        "unreachable" => {
            let peer = PeerId(words.named("peer").expect("somebody is out of reach"));
            cluster.input(words.number(1), Input::Unreachable { peer });
        }
        "drop" => cluster.net.clear(),
        "hold" => {
            let (held, rest) =
                std::mem::take(&mut cluster.net).into_iter().partition(|message| message.from == words.number(1));
            cluster.net = rest;
            cluster.held.extend(Vec::from_iter(held));
        }
        "double" => cluster.held.extend(cluster.net.iter().cloned()),
        "release" => cluster.net.append(&mut cluster.held),
        "settle" => cluster.settle(),
        "isolate" => drop(cluster.isolated.insert(words.number(1))),
        "heal" => cluster.isolated.clear(),
        "flush" => cluster.node(words.number(1)).flush(),
        "compact" => {
            let index = words.named("index").expect("a compaction has an index");
            cluster.node(words.number(1)).compact(index);
        }
        "crash" => cluster.node(words.number(1)).crash(0),
        "restart" => {
            let node = cluster.node(words.number(1));
            if words.plain.contains(&"purged") {
                node.purge();
            }
            node.restart(words.named("quiet").unwrap_or(0) as u32);
        }
        "quiet" => {}
        "effects" => {
            for line in std::mem::take(&mut cluster.node(words.number(1)).log) {
                let _ = writeln!(out, "{line}");
            }
        }
        "net" => {
            for message in &cluster.net {
                let _ = writeln!(out, "{} {}", message.from, text::message(message));
            }
        }
        "show" => {
            for id in &ids {
                let _ = writeln!(out, "{}", text::state(*id, cluster.nodes[id].peer.as_ref()));
            }
        }
        "data" => {
            for id in &ids {
                let data = cluster.nodes[id].data.iter().map(|(_, data)| String::from_utf8_lossy(data));
                let _ = writeln!(out, "{id} {}", data.collect::<Vec<_>>().join(" "));
            }
        }
        "members" => {
            for id in &ids {
                let peer = cluster.nodes[id].peer.as_ref().expect("running");
                let _ = writeln!(out, "{id} {}", show_region(peer.region()));
            }
        }
        "reads" => {
            let peer = cluster.nodes[&words.number(1)].peer.as_ref().expect("running");
            let word = if peer.has_applied_what_others_read() { "may read" } else { "must ask" };
            let _ = writeln!(out, "{word}");
        }
        "heirs" => {
            let peer = cluster.nodes[&words.number(1)].peer.as_ref().expect("running");
            let heirs: Vec<String> =
                ids.iter().filter(|id| peer.can_take_over(PeerId(**id))).map(u64::to_string).collect();
            let _ = writeln!(out, "heirs {}", heirs.join(" "));
        }
        "leader" => {
            let leader = cluster.leader().map_or("nobody".to_string(), |id| id.to_string());
            let _ = writeln!(out, "leader {leader}");
        }
        "forget" => cluster.nodes.values_mut().for_each(|node| node.log.clear()),
        name => panic!("no such command: {name}"),
    }
}

/// `change_peers 1 id=5 add:2@2 ...`, by the leader, for the region as it knows it.
fn propose_change(cluster: &mut Cluster, words: &Words<'_>) {
    let at = words.number(1);
    let changes: Vec<_> = words.plain[2..].iter().map(|word| change(word)).collect();
    for peer in changes.iter().filter_map(|change| change.peer.as_ref()) {
        // The new peer's store starts it from nothing but the region's first state, as there are no snapshots here.
        assert!(cluster.nodes.contains_key(&peer.id), "peers of all stores are there from the start");
    }
    let region = cluster.nodes[&at].peer.as_ref().expect("running").region().clone();
    let request = AdminRequest {
        cmd_type: AdminCmdType::ChangePeerV2 as i32,
        change_peer_v2: Some(ChangePeerV2Request { changes: changes.clone() }),
        ..Default::default()
    };
    let header =
        Header { region_id: region.id, peer_id: at, store_id: at, epoch: epoch_of(&region), ..Default::default() };
    let change: ConfChangeV2 = to_conf_change(&changes, encode_admin(&header, request));
    assert!(change.encoded_len() > 0);
    let input = Input::ProposeConfChange {
        id: words.named("id").expect("a proposal has an id"),
        change,
        context: Bytes::new(),
    };
    cluster.input(at, input);
}
