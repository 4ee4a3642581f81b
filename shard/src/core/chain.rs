//! The consistency chain: a running hash over all that a region's entries did, the same on every replica.
//!
//! ```text
//!  h' = H(h, index, what the entry did)
//!
//!  leader     … ─ h(64) ─ … ─ h(128) ─ … ─ h(applied)
//!                               └── with its heartbeats ──▶ follower: the same at 128?
//! ```
//!
//! "What the entry did" are the changes as they go into the engine's batch ([`Effects`]), or the regions and members
//! that it made, or that it was refused. It is kept in the apply state, so it is durable with the effects and recovery
//! goes on with it; snapshots and moves carry it.
//!
//! Chains are comparable if they have the same origin: the region's birth, or the place where a leader began one
//! because it knew none (its state was written before there were chains, or damage was accepted). A follower of
//! another origin takes the leader's over as soon as both have applied the same entry.

use base::{RegionId, hash};
use bytes::Bytes;
use mvcc::Cf;
use prost::Message as _;
use proto::metapb;
use raftstore::command::{Command, WriteOp, encode_write};
use raftstore::eraftpb::Entry;

use super::apply::Outcome;
use super::error::RegionError;
use super::meta::{INITIAL_INDEX, PeerMeta};
use super::peer::{PeerState, Phase};
use super::planted::PlantedFault;
use super::shard::{Shard, add};
use crate::engine::{Engine, WriteBatch};

/// Every so many entries a peer remembers its chain: followers and leader rarely stand at the same entry.
const MARK_EVERY: u64 = 64;
/// Marks that it remembers. A claim about an earlier one cannot be looked at any more.
const MARKS: usize = 16;

/// A chain as records and messages carry it.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct ChainRecord {
    /// See [`Chain`].
    #[prost(fixed64, tag = "1")]
    pub origin: u64,
    /// See [`Chain`].
    #[prost(fixed64, tag = "2")]
    pub hash: u64,
}

/// What stands in an apply state beside TiKV's fields, which ignore it.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct ApplyExtra {
    /// The chain at the applied index; unknown if there is none.
    #[prost(message, optional, tag = "1000")]
    pub(crate) chain: Option<ChainRecord>,
}

/// What a leader says with its heartbeats, in `RaftMessage.extra_ctx`.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct Claim {
    #[prost(fixed64, tag = "1")]
    origin: u64,
    /// The last entry that it applied.
    #[prost(uint64, tag = "2")]
    index: u64,
    #[prost(fixed64, tag = "3")]
    hash: u64,
    /// Its last mark; 0 if it has none.
    #[prost(uint64, tag = "4")]
    mark: u64,
    #[prost(fixed64, tag = "5")]
    mark_hash: u64,
}

/// The chain up to a peer's applied index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chain {
    /// Where it began; 0 if it is unknown.
    origin: u64,
    hash: u64,
}

impl Chain {
    pub(crate) const UNKNOWN: Chain = Chain { origin: 0, hash: 0 };

    /// The chain of a region that has applied nothing yet.
    pub(crate) fn born(region: RegionId) -> Chain {
        Chain { origin: 1, hash: hash::fold(0, region.0) }
    }

    /// A chain that a leader begins after the entry `index` of `term`.
    fn begun(index: u64, term: u64) -> Chain {
        // No leader of another term begins the same one.
        let origin = hash::fold(index, term).max(2);
        Chain { origin, hash: origin }
    }

    /// What a record says; without one, only the first state of a region is known.
    pub(crate) fn of_record(record: Option<ChainRecord>, region: RegionId, applied: u64) -> Chain {
        match record {
            Some(ChainRecord { origin, hash }) => Chain { origin, hash },
            None if applied == INITIAL_INDEX => Chain::born(region),
            None => Chain::UNKNOWN,
        }
    }

    pub(crate) fn record(self) -> Option<ChainRecord> {
        let Chain { origin, hash } = self;
        self.is_known().then_some(ChainRecord { origin, hash })
    }

    fn is_known(self) -> bool {
        self.origin != 0
    }

    /// Adds an entry: what it came to, and the hash of what it wrote.
    pub(crate) fn link(&mut self, index: u64, outcome: &Outcome, effects: u64) {
        let did = match outcome {
            Outcome::Done => effects,
            Outcome::Refused(_) => 1,
            Outcome::Hash => 4,
            Outcome::Split(regions) => regions.iter().fold(2, fold_region),
            Outcome::Members { region, .. } => fold_region(3, region),
            Outcome::Merging { region, .. } => fold_region(4, region),
        };
        self.add(index, did);
    }

    /// Adds the entry by which the region took over a neighbour's range.
    pub(crate) fn link_merge(&mut self, index: u64, region: &metapb::Region) {
        self.add(index, fold_region(5, region));
    }

    fn add(&mut self, index: u64, did: u64) {
        if self.is_known() {
            self.hash = hash::fold(hash::fold(self.hash, index), did);
        }
    }
}

impl std::fmt::Display for Chain {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.is_known() { write!(out, "{:016x}", self.hash) } else { out.write_str("unknown") }
    }
}

fn fold_region(sum: u64, region: &metapb::Region) -> u64 {
    let epoch = region.region_epoch.unwrap_or_default();
    let sum = [region.id, epoch.version, epoch.conf_ver].into_iter().fold(sum, hash::fold);
    let sum = hash::fold_bytes(hash::fold_bytes(sum, &region.start_key), &region.end_key);
    region
        .peers
        .iter()
        .fold(sum, |sum, peer| [peer.id, peer.store_id, peer.role as u64].into_iter().fold(sum, hash::fold))
}

/// An engine batch that entries are applied to: what goes into it goes into the chain.
pub(crate) struct Effects<'a, B> {
    batch: &'a mut B,
    pub(crate) sum: u64,
}

impl<'a, B: WriteBatch> Effects<'a, B> {
    pub(crate) fn new(batch: &'a mut B) -> Self {
        Effects { batch, sum: 0 }
    }

    fn note(&mut self, kind: u64, cf: Cf, key: &[u8], other: &[u8]) {
        let sum = hash::fold(self.sum, (kind << 8) | cf.index() as u64);
        self.sum = hash::fold_bytes(hash::fold_bytes(sum, key), other);
    }

    pub(crate) fn put_data(&mut self, cf: Cf, key: &[u8], value: &[u8]) {
        self.note(1, cf, key, value);
        self.batch.put_data(cf, key, value);
    }

    pub(crate) fn delete_data(&mut self, cf: Cf, key: &[u8]) {
        self.note(2, cf, key, &[]);
        self.batch.delete_data(cf, key);
    }

    /// With engine keys (`z`).
    pub(crate) fn delete_range(&mut self, cf: Cf, start: &[u8], end: &[u8]) {
        self.note(3, cf, start, end);
        self.batch.delete_range(cf, start, end);
    }
}

/// What a peer remembers of its chain's past, and a claim that it could not look at yet.
#[derive(Clone, Debug, Default)]
pub(crate) struct Marks {
    /// Index and hash, at the place of `index / MARK_EVERY` modulo their number.
    marks: [(u64, u64); MARKS],
    /// A mark that the leader had when this peer was not as far.
    ahead: Option<(u64, u64)>,
}

fn place(index: u64) -> usize {
    (index / MARK_EVERY) as usize % MARKS
}

impl Marks {
    /// To be called after each entry.
    pub(crate) fn note(&mut self, meta: &PeerMeta) {
        let index = meta.applied_index;
        if index.is_multiple_of(MARK_EVERY) {
            self.marks[place(index)] = (index, meta.chain.hash);
        }
    }

    fn at(&self, index: u64) -> Option<u64> {
        let (held, hash) = self.marks[place(index)];
        (held == index && index > 0).then_some(hash)
    }
}

/// Where two replicas differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Divergence {
    index: u64,
    own: u64,
    other: u64,
}

/// What a claim comes to for the peer that hears it.
fn look(meta: &mut PeerMeta, marks: &mut Marks, claim: &Claim) -> Result<(), Divergence> {
    if claim.origin != meta.chain.origin {
        if claim.origin != 0 && claim.index == meta.applied_index {
            meta.chain = Chain { origin: claim.origin, hash: claim.hash };
            *marks = Marks::default();
        }
        return Ok(());
    }
    if claim.origin == 0 {
        return Ok(());
    }
    let compare = |index, own, other| if own == other { Ok(()) } else { Err(Divergence { index, own, other }) };
    if claim.index == meta.applied_index {
        compare(claim.index, meta.chain.hash, claim.hash)?;
    }
    for (index, other) in [(claim.index, claim.hash), (claim.mark, claim.mark_hash)].into_iter().chain(marks.ahead) {
        if let Some(own) = marks.at(index) {
            compare(index, own, other)?;
        }
    }
    if marks.ahead.is_none_or(|(index, _)| index <= meta.applied_index) {
        marks.ahead = (claim.mark > meta.applied_index).then_some((claim.mark, claim.mark_hash));
    }
    Ok(())
}

impl PeerState {
    /// A leader that knows no chain begins one.
    pub(crate) fn begin_chain(&mut self) {
        if !self.meta.chain.is_known() && self.leads() {
            self.meta.chain = Chain::begun(self.meta.applied_index, self.term);
            self.marks = Marks::default();
        }
    }

    /// What this peer says of its chain; nothing if it is unknown.
    pub(crate) fn claim(&self) -> Bytes {
        let Chain { origin, hash } = self.meta.chain;
        if origin == 0 {
            return Bytes::new();
        }
        let index = self.meta.applied_index;
        let mark = index - index % MARK_EVERY;
        let mark_hash = self.marks.at(mark);
        let mark = mark_hash.map_or(0, |_| mark);
        Claim { origin, index, hash, mark, mark_hash: mark_hash.unwrap_or(0) }.encode_to_vec().into()
    }
}

/// The chain at `index` as a snapshot's message says it (see [`snapshot_claim`]).
pub(crate) fn claimed_at(claim: &Bytes, index: u64) -> Option<ChainRecord> {
    let claim = Claim::decode(claim.clone()).ok()?;
    (claim.origin != 0 && claim.index == index).then_some(ChainRecord { origin: claim.origin, hash: claim.hash })
}

/// What the message of a snapshot of `meta`'s data says of its chain.
pub(crate) fn snapshot_claim(meta: &PeerMeta) -> Bytes {
    let Some(ChainRecord { origin, hash }) = meta.chain.record() else { return Bytes::new() };
    Claim { origin, index: meta.applied_index, hash, ..Claim::default() }.encode_to_vec().into()
}

impl<E: Engine> Shard<E> {
    /// Compares `peer` with what its leader says; false if they differ. Then the peer is closed: it reads, votes and
    /// applies nothing more, and stays for whoever wants to know why, until it is removed or replaced by a snapshot.
    /// Nobody knows which of both is right; but the leader's data are those that clients have read.
    ///
    /// # Panics
    /// On a difference, if [`ShardConfig::halts_on_divergence`](super::ShardConfig) is set.
    pub(crate) fn agrees(&self, peer: &mut PeerState, leader: u64, claim: &Bytes) -> bool {
        // What others put into this field is none of our business.
        let Ok(claim) = Claim::decode(claim.clone()) else { return true };
        let Err(Divergence { index, own, other }) = look(&mut peer.meta, &mut peer.marks, &claim) else { return true };
        let (region, id) = (peer.meta.region_id(), peer.meta.peer_id());
        tracing::error!(
            %region, peer = id.0, leader, index,
            own = format!("{own:016x}"), other = format!("{other:016x}"),
            "this replica differs from its leader's: it is closed"
        );
        add(&self.metrics.divergence_total, 1);
        assert!(!self.config.halts_on_divergence, "region {region}: peer {id} differs from peer {leader} at {index}");
        peer.phase = Phase::Diverged;
        (peer.leader, peer.readable) = (None, false);
        peer.fail_waiters(&RegionError::Undetermined);
        false
    }

    /// For [`PlantedFault::ApplyOtherwise`]: at a follower, some entries with a value of one byte more.
    pub(crate) fn maybe_tampered(&self, peer: &PeerState, entry: Entry) -> Entry {
        let is_picked = self.config.is_planted(PlantedFault::ApplyOtherwise) && !peer.leads();
        if is_picked && entry.index.is_multiple_of(40) { tampered(entry) } else { entry }
    }
}

fn tampered(entry: Entry) -> Entry {
    let Ok(Command::Write(mut write)) = Command::decode(&entry) else { return entry };
    let Some(WriteOp::Put { value, .. }) = write.ops.first_mut() else { return entry };
    *value = [&value[..], &b"!"[..]].concat().into();
    Entry { data: encode_write(&write.header, &write.ops), ..entry }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta() -> PeerMeta {
        let peer = metapb::Peer { id: 2, store_id: 1, ..Default::default() };
        let region = metapb::Region { id: 7, peers: vec![peer], ..Default::default() };
        PeerMeta::first(region, base::StoreId(1)).expect("a peer of this store")
    }

    /// A replica: its chain and what it remembers.
    struct Replica {
        meta: PeerMeta,
        marks: Marks,
    }

    impl Replica {
        fn new() -> Replica {
            Replica { meta: meta(), marks: Marks::default() }
        }

        fn apply(&mut self, effects: u64) {
            self.meta.applied_index += 1;
            let index = self.meta.applied_index;
            self.meta.chain.link(index, &Outcome::Done, effects);
            self.marks.note(&self.meta);
        }

        fn apply_to(&mut self, index: u64) {
            while self.meta.applied_index < index {
                self.apply(self.meta.applied_index);
            }
        }

        fn claim(&self) -> Claim {
            let index = self.meta.applied_index;
            let mark = index - index % MARK_EVERY;
            let Chain { origin, hash } = self.meta.chain;
            Claim { origin, index, hash, mark, mark_hash: self.marks.at(mark).unwrap_or(0) }
        }

        fn hear(&mut self, claim: &Claim) -> Result<(), Divergence> {
            look(&mut self.meta, &mut self.marks, claim)
        }
    }

    #[test]
    fn replicas_that_did_the_same_agree_wherever_they_stand() {
        let (mut leader, mut follower) = (Replica::new(), Replica::new());
        leader.apply_to(500);
        for at in [6, 64, 65, 130, 447, 448, 500, 501, 600, 2000] {
            follower.apply_to(at);
            assert_eq!(follower.hear(&leader.claim()), Ok(()), "at {at}");
        }
    }

    #[test]
    fn one_different_entry_is_found_ahead_behind_and_at_the_same_place() {
        for (leads_at, follows_at) in [(300, 300), (300, 260), (260, 300)] {
            let (mut leader, mut follower) = (Replica::new(), Replica::new());
            leader.apply_to(leads_at);
            follower.apply_to(99);
            follower.apply(12345);
            follower.apply_to(follows_at);
            let found = follower.hear(&leader.claim()).expect_err("entry 100 differs");
            assert_eq!(found.index, if leads_at == follows_at { 300 } else { 256 });
        }
        // A leader that is always ahead: its mark is looked at once the follower is there.
        let (mut leader, mut follower) = (Replica::new(), Replica::new());
        leader.apply_to(200);
        follower.apply_to(99);
        assert_eq!(follower.hear(&leader.claim()), Ok(()));
        follower.apply(12345);
        follower.apply_to(195);
        leader.apply_to(400);
        assert_eq!(follower.hear(&leader.claim()).expect_err("entry 100 differs").index, 192);
    }

    #[test]
    fn a_follower_of_another_origin_takes_the_leaders_over() {
        for chain in [Chain::UNKNOWN, Replica::new().meta.chain] {
            let (mut leader, mut follower) = (Replica::new(), Replica::new());
            leader.apply_to(100);
            leader.meta.chain = Chain::begun(100, 8);
            follower.meta.chain = chain;
            follower.apply_to(99);
            assert_eq!(follower.hear(&leader.claim()), Ok(()));
            assert_ne!(follower.meta.chain, leader.meta.chain, "it does not stand where the leader stands");
            follower.apply_to(leader.meta.applied_index);
            assert_eq!(follower.hear(&leader.claim()), Ok(()));
            assert_eq!(follower.meta.chain, leader.meta.chain);
            leader.apply(5);
            follower.apply(6);
            assert!(follower.hear(&leader.claim()).is_err(), "from here on they are compared");
            let unknown = Claim { origin: 0, ..leader.claim() };
            assert_eq!(follower.hear(&unknown), Ok(()), "who knows nothing says nothing");
        }
    }

    #[test]
    fn outcomes_differ() {
        let mut region = (*meta().region).clone();
        let split = |region: &metapb::Region| Outcome::Split(vec![region.clone()]);
        let mut chains = std::collections::BTreeSet::new();
        let mut see = |outcome: &Outcome, effects| {
            let mut chain = Chain::born(RegionId(7));
            chain.link(6, outcome, effects);
            assert!(chains.insert(chain.hash), "{outcome:?}");
        };
        see(&Outcome::Done, 0);
        see(&Outcome::Done, 1 << 40);
        see(&Outcome::Refused(RegionError::StaleCommand), 0);
        see(&split(&region), 0);
        see(&Outcome::Members { change: Default::default(), region: region.clone() }, 0);
        region.end_key = "m".into();
        see(&split(&region), 0);
        region.peers[0].role = 1;
        see(&split(&region), 0);
    }

    #[test]
    fn records_without_a_chain_are_unknown_but_for_the_first_state() {
        let region = RegionId(7);
        assert_eq!(Chain::of_record(None, region, INITIAL_INDEX), Chain::born(region));
        assert_eq!(Chain::of_record(None, region, 20), Chain::UNKNOWN);
        let chain = Chain::begun(20, 6);
        assert_eq!(Chain::of_record(chain.record(), region, 20), chain);
        assert_eq!(Chain::UNKNOWN.record(), None);
    }
}
