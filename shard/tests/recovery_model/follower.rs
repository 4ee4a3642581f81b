//! A region with members on other nodes, whose leader is this test.

use std::time::Duration;

use base::{PeerId, RegionId};
use prost::Message as _;
use proto::{metapb, raft_serverpb};
use raftstore::eraftpb::{Entry, Message, MessageType};
use shard::core::records::{ApplyingRecord, HomeRecord};

use super::world::{Life, STORE, Store};

const REGION: RegionId = RegionId(7);
const OWN: PeerId = PeerId(71);
const LEADER: u64 = 72;
const TERM: u64 = 9;
/// Where the log begins, what the follower acknowledges, and where the snapshot ends that comes then.
const BEGIN: u64 = 10;
const LAST: u64 = 30;
const MIDDLE: u64 = 20;
const LIMIT: Duration = Duration::from_secs(5);

fn region() -> metapb::Region {
    let peer = |id, store_id| metapb::Peer { id, store_id, ..Default::default() };
    metapb::Region {
        id: REGION.0,
        region_epoch: Some(metapb::RegionEpoch { conf_ver: 3, version: 2 }),
        peers: vec![peer(OWN.0, STORE.0), peer(LEADER, 2), peer(73, 3)],
        ..Default::default()
    }
}

fn letter(message: Message) -> Box<raft_serverpb::RaftMessage> {
    let region = region();
    let message = Message { from: LEADER, to: OWN.0, term: TERM, ..message };
    Box::new(raft_serverpb::RaftMessage {
        region_id: region.id,
        from_peer: Some(region.peers[1]),
        to_peer: Some(region.peers[0]),
        message: message.encode_to_vec().into(),
        region_epoch: region.region_epoch,
        ..Default::default()
    })
}

fn snapshot(index: u64, term: u64) -> ApplyingRecord {
    let home = HomeRecord {
        region: Some(region()),
        peer_id: OWN.0,
        term,
        applied_index: index,
        applied_term: term,
        ..Default::default()
    };
    ApplyingRecord { home: Some(home), ..Default::default() }
}

/// Waits until the peer has applied up to `index`.
async fn applies<S: Store>(life: &Life<S>, index: u64) -> Result<(), String> {
    let started = executor::now();
    loop {
        let regions = life.shard(0).describe(base::CoreId(0)).regions;
        let applied = regions.iter().find(|held| held.id == REGION.0).map(|held| held.applied_index);
        if applied == Some(index) {
            return Ok(());
        }
        if executor::now().since(started) > LIMIT {
            return Err(format!("applied up to {applied:?} instead of {index}"));
        }
        executor::sleep(Duration::from_millis(1)).await;
    }
}

/// The peer comes by a snapshot, takes entries, and then gets a snapshot that ends in the midst of them: in the turn that
/// takes them, or, if it `is_late`, when they are durable.
pub(crate) async fn gets_a_snapshot<S: Store>(life: Life<S>, is_late: bool) -> Result<(), String> {
    let shard = life.shard(0);
    shard.ingest(snapshot(BEGIN, TERM - 1)).await.map_err(|error| error.to_string())?;
    applies(&life, BEGIN).await?;
    shard.push_raft(letter(Message {
        msg_type: MessageType::MsgAppend as i32,
        index: BEGIN,
        log_term: TERM - 1,
        commit: BEGIN + 1,
        entries: (BEGIN + 1..=LAST).map(|index| Entry { index, term: TERM, ..Entry::default() }).collect(),
        ..Message::default()
    }));
    if is_late {
        applies(&life, BEGIN + 1).await?;
    }
    shard.ingest(snapshot(MIDDLE, TERM)).await.map_err(|error| error.to_string())?;
    applies(&life, MIDDLE).await
}

/// After a restart the leader says that what was acknowledged is committed.
pub(crate) async fn goes_on<S: Store>(life: Life<S>) -> Result<(), String> {
    applies(&life, MIDDLE).await?;
    let heartbeat = Message { msg_type: MessageType::MsgHeartbeat as i32, commit: LAST, ..Message::default() };
    life.shard(0).push_raft(letter(heartbeat));
    applies(&life, LAST).await
}
