//! One life of the node: what is asked of it, in random order, and what the model says of it.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use base::{PeerId, Prng, RegionId, ShardId};
use bytes::Bytes;
use executor::Class;
use futures_util::future::join_all;
use mvcc::{Cf, Modify};
use proto::raft_serverpb::KeyValue;
use proto::{metapb, raft_cmdpb};
use shard::core::directory::MoveTicket;
use shard::core::moves;
use shard::core::records::{ApplyingRecord, HomeRecord};
use shard::core::{Done, RegionError};
use shard::engine::Engine as _;

use super::killable::Steps;
use super::model::{Data, Region};
use super::world::{Inner, Life, Plan, SHARDS, STORE, Store, context};

/// Opens the node, follows `plan`, and compares with the model at the beginning and at the end.
pub(crate) async fn live<S: Store>(
    world: Rc<Inner<S>>,
    steps: Arc<Steps>,
    plan: Plan,
    mut prng: Prng,
) -> Result<(), String> {
    let life = Life::open(world.clone(), steps, prng.next_u64()).await?;
    let mut script = Script { life, prng, writing: BTreeMap::new() };
    for _ in 0..plan.ops {
        script.act().await?;
        script.life.serve().await?;
        script.life.note_promises()?;
    }
    script.life.check()?;
    if plan.close {
        for shard in script.life.host.shards() {
            shard.close().await;
        }
        world.mark("close");
    }
    Ok(())
}

struct Script<S: Store> {
    life: Life<S>,
    prng: Prng,
    /// Regions that are written to.
    writing: BTreeMap<u64, executor::Task<Result<(), String>>>,
}

impl<S: Store> Script<S> {
    /// One thing, often beside writes to other regions.
    async fn act(&mut self) -> Result<(), String> {
        let act = self.prng.below(100);
        if act < 40 || self.prng.one_in(2) {
            self.begin_writes();
        }
        match act {
            _ if self.life.world.model.borrow().regions.is_empty() => {
                let (start, end) = self.gap().ok_or("no region and no room")?;
                self.create(start, end).await?;
            }
            0..40 => {}
            40..54 => self.split().await?,
            54..64 => self.destroy().await?,
            64..76 => self.fill().await?,
            76..82 => self.replace().await?,
            82..91 => self.relocate().await?,
            91..94 => self.raise_the_dead().await?,
            94..98 => self.flush().await?,
            // Long enough for the log to be sealed.
            _ => executor::sleep(Duration::from_millis(30)).await,
        }
        for writing in std::mem::take(&mut self.writing).into_values() {
            writing.await?;
        }
        Ok(())
    }

    /// A region that nothing is written to.
    fn quiet_region(&mut self) -> Option<Region> {
        let model = self.life.world.model.borrow();
        let quiet: Vec<&Region> = model.regions.values().filter(|r| !self.writing.contains_key(&r.id())).collect();
        self.prng.pick(&quiet).map(|region| (*region).clone())
    }

    /// Begins to write to one to three regions: a few entries each, at once or with pauses.
    fn begin_writes(&mut self) {
        for _ in 0..self.prng.range(1, 4) {
            let Some(region) = self.quiet_region() else { return };
            let mut states = vec![region.clone()];
            let mut asked = Vec::new();
            for _ in 0..self.prng.range(1, 6) {
                let changes: Vec<Modify> = (0..self.prng.range(1, 5)).map(|_| self.change(&region)).collect();
                states.push(states.last().expect("one at least").after(&changes));
                asked.push(changes);
            }
            let longest_pause = [0, 300, 3000][self.prng.below(3) as usize];
            let (shard, context, mut prng) = (self.life.shard(region.shard), context(&region.meta), self.prng.fork());
            let world = self.life.world.clone();
            let number = world.model.borrow_mut().begin(states.into_iter().map(|state| vec![state]).collect());
            let writing = async move {
                let acknowledge = |answer: Result<Done, RegionError>| -> Result<(), String> {
                    answer.map_err(|error| format!("write: {error}"))?;
                    world.model.borrow_mut().advance(number);
                    world.mark("write");
                    Ok(())
                };
                if longest_pause == 0 {
                    let (shard, context, acknowledge) = (&shard, &context, &acknowledge);
                    let answers = asked.into_iter().map(|changes| async move {
                        let answer = shard.write(context, changes, true, None).await;
                        acknowledge(answer)
                    });
                    return join_all(answers).await.into_iter().collect();
                }
                for changes in asked {
                    executor::sleep(Duration::from_micros(prng.below(longest_pause))).await;
                    acknowledge(shard.write(&context, changes, true, None).await)?;
                }
                Ok(())
            };
            self.writing.insert(region.id(), executor::spawn_local(Class::Foreground, writing));
        }
    }

    fn begin(&self, before: Vec<Region>, after: Vec<Region>) -> u64 {
        self.life.world.model.borrow_mut().begin(vec![before, after])
    }

    fn done(&self, number: u64, what: &'static str) -> Result<(), String> {
        self.life.world.model.borrow_mut().advance(number);
        self.life.world.mark(what);
        Ok(())
    }

    fn change(&mut self, region: &Region) -> Modify {
        let cf = Cf::DATA[self.prng.below(3) as usize];
        let key = Bytes::from(self.key_in(region));
        match self.prng.below(10) {
            0 => {
                let other = Bytes::from(self.key_in(region));
                let (start, end) = if key < other { (key, other) } else { (other, key) };
                Modify::DeleteRange { cf, start, end: [end.as_ref(), b"\0"].concat().into() }
            }
            1..3 => Modify::Delete { cf, key },
            _ => Modify::Put { cf, key, value: self.value() },
        }
    }

    fn value(&mut self) -> Bytes {
        let longest = if self.prng.one_in(8) { 3000 } else { 40 };
        let mut value = vec![0; self.prng.below(longest) as usize];
        self.prng.fill(&mut value);
        value.into()
    }

    fn key(&mut self) -> Vec<u8> {
        (0..2).map(|_| b'a' + self.prng.below(16) as u8).collect()
    }

    /// A key of the region: one of the few hundred there are, if one of them happens to be in it.
    fn key_in(&mut self, region: &Region) -> Vec<u8> {
        for _ in 0..200 {
            let key = self.key();
            if region.contains(&key) {
                return key;
            }
        }
        let mut key = region.meta.start_key.to_vec();
        key.push(0);
        if region.contains(&key) { key } else { region.meta.start_key.to_vec() }
    }

    fn new_peer(&self) -> metapb::Peer {
        let id = 1000 + self.life.world.model.borrow_mut().next_id();
        metapb::Peer { id, store_id: STORE.0, ..Default::default() }
    }

    /// Splits a region into two or three.
    async fn split(&mut self) -> Result<(), String> {
        let Some(parent) = self.quiet_region() else { return Ok(()) };
        let mut keys: Vec<Vec<u8>> = (0..self.prng.range(1, 3)).map(|_| self.key_in(&parent)).collect();
        keys.sort();
        keys.dedup();
        keys.retain(|key| *key > parent.meta.start_key);
        if keys.is_empty() {
            return Ok(());
        }
        let mut epoch = parent.meta.region_epoch.expect("it has one");
        epoch.version += keys.len() as u64;
        let mut rest = parent.clone();
        rest.meta.region_epoch = Some(epoch);
        let mut after = Vec::new();
        let mut requests = Vec::new();
        for key in keys {
            let id = self.life.world.model.borrow_mut().next_id();
            let peer = self.new_peer();
            let key = Bytes::from(key);
            let mut child = Region { move_number: 0, ..rest.clone() };
            (child.meta.id, child.meta.peers) = (id, vec![peer]);
            child.meta.end_key = key.clone();
            child.data = rest.part(&child.meta.start_key, &key);
            rest.meta.start_key = key.clone();
            rest.data = rest.part(&key, &rest.meta.end_key);
            after.push(child);
            requests.push(raft_cmdpb::SplitRequest {
                split_key: key,
                new_region_id: id,
                new_peer_ids: vec![peer.id],
                ..Default::default()
            });
        }
        after.push(rest);
        let (shard, meta) = (self.life.shard(parent.shard), parent.meta.clone());
        let number = self.begin(vec![parent], after);
        shard.split(&meta, requests).await.map_err(|error| format!("split: {error}"))?;
        self.done(number, "split")
    }

    async fn destroy(&mut self) -> Result<(), String> {
        let Some(region) = self.quiet_region() else { return Ok(()) };
        let shard = self.life.shard(region.shard);
        let (id, peer) = (RegionId(region.id()), PeerId(region.peer()));
        if self.prng.one_in(4) {
            let error = shard.destroy(id, PeerId(peer.0 + 1)).await;
            let expected = RegionError::MismatchPeerId { region: id, request: PeerId(peer.0 + 1), actual: peer };
            if error != Err(expected) {
                return Err(format!("the wrong peer of {id}: {error:?}"));
            }
        }
        let number = self.begin(vec![region], vec![]);
        shard.destroy(id, peer).await.map_err(|error| format!("destroy: {error}"))?;
        self.done(number, "destroy")
    }

    /// A range that belongs to no region: all of some gap, or a part of it.
    fn gap(&mut self) -> Option<(Bytes, Bytes)> {
        let mut taken: Vec<(Bytes, Bytes)> = {
            let model = self.life.world.model.borrow();
            model.regions.values().map(|r| (r.meta.start_key.clone(), r.meta.end_key.clone())).collect()
        };
        taken.sort();
        let mut gaps = Vec::new();
        let mut at = Some(Bytes::new());
        for (start, end) in taken {
            if let Some(from) = at.filter(|from| *from < start) {
                gaps.push((from, start));
            }
            at = (!end.is_empty()).then_some(end);
        }
        gaps.extend(at.map(|from| (from, Bytes::new())));
        if gaps.is_empty() {
            return None;
        }
        let (mut start, mut end) = gaps.swap_remove(self.prng.below(gaps.len() as u64) as usize);
        let (a, b) = (Bytes::from(self.key()), Bytes::from(self.key()));
        if self.prng.one_in(3) && base::keys::contains(&start, &end, &a) {
            start = a;
        }
        if self.prng.one_in(3) && base::keys::contains(&start, &end, &b) && b > start {
            end = b;
        }
        Some((start, end))
    }

    /// A new region in a gap: a new id, or one whose peer ended here, with a newer peer.
    async fn fill(&mut self) -> Result<(), String> {
        let Some((start, end)) = self.gap() else { return Ok(()) };
        if self.prng.one_in(4) {
            return self.create(start, end).await;
        }
        let graves: Vec<u64> = self.life.world.model.borrow().graves().collect();
        let id = if graves.is_empty() || self.prng.one_in(2) {
            self.life.world.model.borrow_mut().next_id()
        } else {
            graves[self.prng.below(graves.len() as u64) as usize]
        };
        let region = self.region(id, start, end);
        let index = self.prng.range(6, 40);
        let term = self.prng.range(6, 9);
        self.ingest(None, region, index, term, "ingest").await
    }

    fn region(&mut self, id: u64, start: Bytes, end: Bytes) -> Region {
        let meta = metapb::Region {
            id,
            start_key: start,
            end_key: end,
            region_epoch: Some(metapb::RegionEpoch { conf_ver: 1, version: self.prng.range(1, 9) }),
            peers: vec![self.new_peer()],
            ..Default::default()
        };
        let shard = self.prng.below(u64::from(SHARDS)) as u32;
        Region { meta, shard, move_number: 0, data: Data::default() }
    }

    async fn create(&mut self, start: Bytes, end: Bytes) -> Result<(), String> {
        let id = self.life.world.model.borrow_mut().next_id();
        let region = self.region(id, start, end);
        let (shard, meta) = (self.life.shard(region.shard), region.meta.clone());
        let number = self.begin(vec![], vec![region]);
        shard.create(meta).await.map_err(|error| format!("create: {error}"))?;
        self.done(number, "create")
    }

    /// The same peer of a region comes again as files, with a later state, and perhaps another range.
    async fn replace(&mut self) -> Result<(), String> {
        let Some(before) = self.quiet_region() else { return Ok(()) };
        let shard = self.life.shard(before.shard);
        let descriptions = shard.describe(base::CoreId(0)).regions;
        let now = descriptions.iter().find(|r| r.id == before.id()).ok_or("the region is described")?;
        let (index, term) = (now.applied_index + self.prng.range(1, 10), now.term + self.prng.below(2));
        let mut after = before.clone();
        if self.prng.one_in(2) {
            let key = Bytes::from(self.key_in(&before));
            let epoch = after.meta.region_epoch.as_mut().expect("it has one");
            epoch.version += 1;
            if key > after.meta.start_key {
                after.meta.start_key = key;
            }
        }
        self.ingest(Some(before), after, index, term, "replace").await
    }

    /// Gives `after` a random lot of data and has it ingested: as files, or, in half of the cases, in its record.
    async fn ingest(
        &mut self,
        before: Option<Region>,
        mut after: Region,
        index: u64,
        term: u64,
        what: &'static str,
    ) -> Result<(), String> {
        after.move_number = before.as_ref().map_or(0, |before| before.move_number);
        after.data = Data::default();
        for _ in 0..self.prng.below(12) {
            let family = self.prng.below(3) as usize;
            let (key, value) = (self.key_in(&after), self.value().to_vec());
            after.data[family].insert(key, value);
        }
        let shard = self.life.shard(after.shard);
        // Not drawn, so that stories which found something stay what they were.
        let is_small = base::hash::fold(after.id(), index).is_multiple_of(2);
        let mut files = Vec::new();
        let mut pairs = Vec::new();
        for (cf, data) in Cf::DATA.into_iter().zip(&after.data) {
            if is_small {
                pairs.extend(data.iter().map(|(key, value)| KeyValue {
                    key: [&[cf.index() as u8][..], &base::keys::data_key(key)].concat().into(),
                    value: Bytes::copy_from_slice(value),
                }));
                continue;
            }
            if data.is_empty() {
                files.push(String::new());
                continue;
            }
            let name = format!("{}.{}", self.life.world.model.borrow_mut().next_id(), cf.name());
            let path = shard.snap_dir.join(&name);
            let entries: Vec<(Bytes, Bytes)> = data
                .iter()
                .map(|(key, value)| (base::keys::data_key(key).into(), Bytes::copy_from_slice(value)))
                .collect();
            let engine = shard.engine.clone();
            let built = executor::blocking(Class::Background, move || engine.build_table(cf, &path, entries)).await;
            built.map_err(|error| format!("table: {error}"))?;
            files.push(name);
        }
        let home = HomeRecord {
            region: Some(after.meta.clone()),
            peer_id: after.peer(),
            term,
            vote: if self.prng.one_in(2) { after.peer() } else { 0 },
            applied_index: index,
            applied_term: term,
            ..Default::default()
        };
        let record = ApplyingRecord { home: Some(home), files, pairs };
        let number = self.begin(before.into_iter().collect(), vec![after]);
        shard.ingest(record).await.map_err(|error| format!("{what}: {error}"))?;
        let left = shard.engine.tables(&shard.snap_dir).map_err(|error| error.to_string())?;
        if !left.is_empty() {
            return Err(format!("{left:?} were left behind"));
        }
        if is_small {
            self.life.world.mark("without files");
        }
        self.done(number, what)
    }

    /// Moves a region to the other shard.
    async fn relocate(&mut self) -> Result<(), String> {
        let Some(before) = self.quiet_region() else { return Ok(()) };
        let mut after = before.clone();
        after.shard = (before.shard + 1) % SHARDS;
        after.move_number += 1;
        let ticket = MoveTicket {
            region: RegionId(before.id()),
            source: ShardId(before.shard),
            target: ShardId(after.shard),
            move_number: after.move_number,
        };
        let number = self.begin(vec![before], vec![after]);
        moves::move_away(&self.life.host, &ticket, true).await.map_err(|error| format!("move: {error}"))?;
        self.done(number, "move")
    }

    /// A peer that was destroyed shall not come back, whatever still asks for it.
    async fn raise_the_dead(&mut self) -> Result<(), String> {
        let Some((start, end)) = self.gap() else { return Ok(()) };
        let graves: Vec<u64> = self.life.world.model.borrow().graves().collect();
        if graves.is_empty() {
            return self.create(start, end).await;
        }
        let id = graves[self.prng.below(graves.len() as u64) as usize];
        let mut region = self.region(id, start, end);
        // The shard that buried it knows; that the others hear of it is for the directory.
        let buried = |shard: u32| Some((self.life.shard(shard), self.life.shard(shard).buried(RegionId(id))?));
        let (shard, peer) = (0..SHARDS).find_map(buried).ok_or_else(|| format!("nobody knows that {id} ended"))?;
        region.meta.peers[0].id = peer.0;
        let refusal = shard.create(region.meta).await;
        if refusal != Err(RegionError::StaleCommand) {
            return Err(format!("peer {peer} of region {id} came back: {refusal:?}"));
        }
        self.life.world.mark("refusal");
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), String> {
        let shard = self.prng.below(u64::from(SHARDS)) as u32;
        self.life.shard(shard).flush().await.map_err(|error| format!("flush: {error}"))?;
        self.life.world.mark("flush");
        Ok(())
    }
}
