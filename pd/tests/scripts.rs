//! Runs `scripts/*.txt`, which are about the pure parts. Each command answers with a line; `-` stands for the empty key.

use base::{ClusterId, UnixTime};
use bytes::Bytes;
use pd::directory::{Directory, ScanRange};
use pd::kv::{Op, RangeQuery};
use pd::state::{Barrier, GcScope, State};
use proto::keyspacepb::KeyspaceState;
use proto::{metapb, pdpb};
use std::collections::BTreeMap;
use std::fmt::Display;

struct World {
    state: State,
    directory: Directory,
    now: UnixTime,
}

fn shown<T: Display>(result: Result<T, impl Display>) -> String {
    match result {
        Ok(value) => value.to_string(),
        Err(error) => format!("error: {error}"),
    }
}

fn done(result: Result<(), impl Display>) -> String {
    shown(result.map(|()| "ok"))
}

fn key(text: &str) -> Bytes {
    if text == "-" { Bytes::new() } else { Bytes::copy_from_slice(text.as_bytes()) }
}

fn number(text: &str) -> u64 {
    if text == "max" { i64::MAX.unsigned_abs() } else { text.parse().unwrap_or_else(|_| panic!("{text} is no number")) }
}

fn peer(id: u64, store_id: u64) -> metapb::Peer {
    metapb::Peer { id, store_id, ..metapb::Peer::default() }
}

fn barriers(barriers: &[Barrier]) -> String {
    barriers.iter().map(|barrier| format!(" {}={}", barrier.id, barrier.ts)).collect()
}

fn ids<'a>(regions: impl IntoIterator<Item = &'a std::rc::Rc<pd::directory::Region>>) -> String {
    let ids: Vec<String> = regions.into_iter().map(|region| region.meta.id.to_string()).collect();
    if ids.is_empty() { "none".into() } else { ids.join(" ") }
}

impl Default for World {
    fn default() -> World {
        World { state: State::create(ClusterId(77)), directory: Directory::default(), now: UnixTime(1_000_000_000_000) }
    }
}

impl script_runner::World for World {
    fn command(&mut self, line: &str, out: &mut String) {
        out.push_str(&self.run(line));
        out.push('\n');
    }
}

impl World {
    fn run(&mut self, line: &str) -> String {
        let words: Vec<&str> = line.split_whitespace().collect();
        let now = self.now;
        let scope = GcScope::CLUSTER;
        match words.as_slice() {
            ["now", seconds] => {
                self.now = UnixTime(number(seconds) * 1_000_000_000);
                "ok".into()
            }
            // What the journal holds, or what an image holds, makes the same state.
            ["restart"] => {
                let image = self.state.image();
                self.state = State::load([&image]).expect("an image loads");
                self.directory = Directory::from_kept(self.state.regions());
                "ok".into()
            }
            ["bootstrap"] => {
                let store =
                    metapb::Store { id: 1, address: "a1".into(), version: "8.1.0".into(), ..Default::default() };
                let region = metapb::Region { id: 2, peers: vec![peer(3, 1)], ..Default::default() };
                let outcome = self.state.bootstrap(Some(&store), Some(&region), 3, now);
                self.directory.report(&region).expect("the first region");
                done(outcome)
            }
            ["alloc", count] => self.state.alloc_id(number(count) as u32).to_string(),
            ["put_store", id, address, version, labels @ ..] => {
                let label = |text: &&str| {
                    let (key, value) = text.split_once('=').expect("key=value");
                    metapb::StoreLabel { key: key.into(), value: value.into() }
                };
                done(self.state.put_store(&metapb::Store {
                    id: number(id),
                    address: (*address).into(),
                    version: (*version).into(),
                    labels: labels.iter().map(label).collect(),
                    ..metapb::Store::default()
                }))
            }
            ["store", id] => match self.state.store(number(id)) {
                None => "none".into(),
                Some(store) => {
                    let labels: String =
                        store.labels.iter().map(|label| format!(" {}={}", label.key, label.value)).collect();
                    format!(
                        "{} {} {}{labels}",
                        store.state().as_str_name(),
                        store.node_state().as_str_name(),
                        store.address
                    )
                }
            },
            ["alive", id] => done(self.state.store_is_alive(number(id)).map(drop)),
            ["remove_store", id] => done(self.state.remove_store(number(id), false)),
            ["bury", id] => {
                self.state.bury_store(number(id));
                "ok".into()
            }
            ["version"] => self.state.cluster_version().map_or("none".into(), |version| version.to_string()),
            ["txn", target] => {
                let advance = self.state.advance_txn_safe_point(scope, number(target), now);
                shown(advance.map(|advance| {
                    let blocker = advance.blocker.map_or(String::new(), |(name, _)| format!(" blocked by {name}"));
                    format!("{} -> {}{blocker}", advance.old, advance.new)
                }))
            }
            ["gc", target] => {
                let advance = self.state.advance_gc_safe_point(scope, number(target));
                shown(advance.map(|(old, new)| format!("{old} -> {new}")))
            }
            ["update_gc", target] => shown(self.state.update_gc_safe_point(scope, number(target), now)),
            ["barrier", id, ts, ttl] => {
                done(self.state.set_gc_barrier(scope, id, number(ts), number(ttl) as i64, now).map(drop))
            }
            ["unbarrier", id] => shown(
                self.state.delete_gc_barrier(scope, id, now).map(|gone| if gone.is_some() { "ok" } else { "none" }),
            ),
            ["global_barrier", id, ts, ttl] => {
                done(self.state.set_global_gc_barrier(id, number(ts), number(ttl) as i64, now).map(drop))
            }
            ["service", id, ttl, ts] => {
                let ttl = if *ttl == "max" { i64::MAX } else { ttl.parse().expect("a number") };
                let held = self.state.update_service_safe_point(scope, id, ttl, number(ts), now);
                shown(held.map(|held| format!("{} {}", held.service_id, held.min_safe_point)))
            }
            ["points"] => {
                let state = self.state.gc_state(scope, now);
                format!("txn={} gc={}{}", state.txn_safe_point, state.gc_safe_point, barriers(&state.barriers))
            }
            ["put", name, value] => {
                self.state.commit(vec![Op::put(key(name), key(value))]);
                format!("at {}", self.state.space().revision())
            }
            ["put", name, value, "lease", lease] => {
                self.state.commit(vec![Op::Put { key: key(name), value: key(value), lease: number(lease) as i64 }]);
                format!("at {}", self.state.space().revision())
            }
            ["delete", name] => {
                self.state.commit(vec![Op::delete(key(name))]);
                format!("at {}", self.state.space().revision())
            }
            ["get", name] => self.state.space().get(name.as_bytes()).map_or("none".into(), |record| {
                let value = String::from_utf8_lossy(&record.value);
                format!("{value} {} {} {}", record.create_revision, record.mod_revision, record.version)
            }),
            ["range", start, end, revision] => {
                let revision = number(revision) as i64;
                let query = RangeQuery { key: key(start), end: key(end), revision, ..RangeQuery::default() };
                shown(self.state.space().range(&query).map(|found| {
                    let text = |(key, record): &(Bytes, pd::kv::Record)| {
                        format!("{}={}", String::from_utf8_lossy(key), String::from_utf8_lossy(&record.value))
                    };
                    found.records.iter().map(text).collect::<Vec<_>>().join(" ")
                }))
            }
            ["compact", revision] => {
                self.state.compact(number(revision) as i64);
                "ok".into()
            }
            ["events", after] => match self.state.space().events(number(after) as i64, i64::MAX) {
                None => "compacted".into(),
                Some(events) => {
                    let text = |event: &std::rc::Rc<pd::kv::Event>| {
                        let sign = if event.now.is_some() { '+' } else { '-' };
                        format!("{}{sign}{}", event.revision, String::from_utf8_lossy(&event.key))
                    };
                    let events: Vec<String> = events.map(text).collect();
                    if events.is_empty() { "none".into() } else { events.join(" ") }
                }
            },
            ["lease", id, ttl] => {
                self.state.grant_lease(number(id) as i64, number(ttl) as i64);
                "ok".into()
            }
            ["end_lease", id] => self.state.end_lease(number(id) as i64).to_string(),
            ["keyspace", name] => shown(self.state.create_keyspace(name, BTreeMap::new(), now).map(|meta| meta.id)),
            ["keyspace_state", id, to] => {
                let to = KeyspaceState::from_str_name(to).expect("a state");
                shown(self.state.set_keyspace_state(number(id) as u32, to, now).map(|meta| meta.state().as_str_name()))
            }
            ["heartbeat", id, start, end, version, conf_ver, term] => {
                let (id, epoch) =
                    (number(id), metapb::RegionEpoch { version: number(version), conf_ver: number(conf_ver) });
                let request = pdpb::RegionHeartbeatRequest {
                    region: Some(metapb::Region {
                        id,
                        start_key: key(start),
                        end_key: key(end),
                        region_epoch: Some(epoch),
                        peers: vec![peer(10 * id, 1)],
                        ..metapb::Region::default()
                    }),
                    leader: Some(peer(10 * id, 1)),
                    term: number(term),
                    ..pdpb::RegionHeartbeatRequest::default()
                };
                let taken = self.directory.heartbeat(&request, 0);
                if let (Ok(taken), Some(region)) = (&taken, &request.region) {
                    taken.overlapped.iter().for_each(|id| self.state.drop_region(*id));
                    self.state.put_region(region);
                }
                shown(taken.map(|taken| match (taken.changed, taken.overlapped.as_slice()) {
                    (false, _) => "known".to_owned(),
                    (true, []) => "new".to_owned(),
                    (true, replaced) => format!("new, replaces {replaced:?}"),
                }))
            }
            ["find", name] => ids(self.directory.by_key(&key(name))),
            ["before", name] => ids(self.directory.before_key(&key(name))),
            ["scan", start, end] => ids(self.directory.scan(&key(start), &key(end))),
            ["ranges", limit, whole, ranges @ ..] => {
                let range = |text: &&str| {
                    let (start, end) = text.split_once("..").expect("start..end");
                    ScanRange {
                        start: key(if start.is_empty() { "-" } else { start }),
                        end: key(if end.is_empty() { "-" } else { end }),
                    }
                };
                let ranges: Vec<ScanRange> = ranges.iter().map(range).collect();
                let found = self.directory.scan_ranges(&ranges, number(limit) as usize, *whole == "whole");
                shown(found.map(|found| ids(&found)))
            }
            _ => panic!("no such command: {line}"),
        }
    }
}

#[test]
fn scripts() {
    script_runner::run_folder::<World>(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/scripts"), 9);
}
