//! A region's way from one shard to another.
//!
//! ```text
//!  source (drives)                              target
//!  hand leadership over, if others vote
//!  freeze: refuse writes, drain
//!  ──────────────── prepare ──────────────▶  empty the range
//!  snapshot ─────── data, in pieces ──────▶  write
//!  ───── install, with the log's tail ────▶  flush, then one durable `home` record; asleep
//!  flush, durable `moved away` record, erase
//!  ──────────────── route, activate ──────▶  campaign, serve
//!  flush, then the directory may move it again
//! ```
//!
//! A peer that is alone in its group has applied all of its log before it goes, and serves no write meanwhile. One of
//! several is deaf on its way, as if its node were slow: its group goes on without it. Another one leads before it goes,
//! and if it led itself, it asks for the leadership back when it has arrived.
//!
//! A crash before the home record leaves data outside of all regions at the target, which recovery erases. A crash
//! after it leaves two copies, of which the higher move number wins. The flush at the end makes a return to the source
//! safe: nothing of the earlier stay can be replayed over it.

use std::rc::Rc;
use std::time::Duration;

use base::{CoreId, RegionId, ShardId};
use bytes::Bytes;
use executor::Class;
use futures_channel::oneshot;
use mvcc::Cf;

use super::directory::MoveTicket;
use super::error::RegionError;
use super::host::CoreHost;
use super::lifecycle::Departure;
use super::mail::{Control, MoveError, Reply, reply};
use super::records::HomeRecord;
use super::shard::{Input, Shard};
use crate::engine::{
    Engine, EngineIter as _, EngineSnapshot as _, Tier, WriteBatch as _, WriteError, WriteMode, data_range,
};
use crate::log::LogEntry;

/// Bytes of keys and values per piece.
const PIECE_BYTES: usize = 256 << 10;
/// How long another member may take to lead before a move is given up, and the time between two looks.
const STEP_DOWN_LIMIT: Duration = Duration::from_secs(3);
const STEP_DOWN_PAUSE: Duration = Duration::from_millis(20);

type Entries = Vec<(Cf, Bytes, Bytes)>;

/// Moves `ticket.region` away from a shard of this core. When this returns, the move is over on both sides. `at_once`:
/// though its group has no leader, as the source of a merge may have outlived its group.
///
/// # Errors
/// See [`MoveError`]. The region serves at the source again, unless the target is ending, and the process with it.
pub async fn move_away<E: Engine>(host: &Rc<CoreHost<E>>, ticket: &MoveTicket, at_once: bool) -> Result<(), MoveError> {
    let source = host.shard(ticket.source).ok_or(RegionError::RegionNotFound(ticket.region))?;
    let led = step_down(&source, ticket.region, at_once).await?;
    let (reply, answer) = oneshot::channel();
    source.push(Input::Freeze { region: ticket.region, reply });
    let mut departure = answer.await.map_err(|_| MoveError::Closing)?.inspect_err(|_| {
        source.push(Input::Unfreeze(ticket.region));
    })?;
    departure.home.move_number = ticket.move_number;
    if let Err(error) = hand_over(host, &source, ticket, departure).await {
        // Without an answer the target may own the region by a durable record: then nothing may be written here.
        if !matches!(error, MoveError::Closing) {
            source.push(Input::Unfreeze(ticket.region));
        }
        return Err(error);
    }
    // From here on requests ask the target, which has them wait; here the peer is gone in a moment.
    host.update_routes(&[(ticket.region, Some(ticket.target))]);
    // What was split off here must be durable before the log forgets the region's entries.
    source.flush().await?;
    let (reply, answer) = oneshot::channel();
    source.push(Input::End { region: ticket.region, reply });
    answer.await.map_err(|_| MoveError::Closing)??;
    host.control(CoreId(0), Control::Arrived { ticket: ticket.clone() });
    let (shard, region) = (ticket.target, ticket.region);
    host.control(host.core_of(ticket.target), Control::MoveActivate { shard, region, led });
    Ok(source.flush().await?)
}

/// Has another member lead, if this one does and there are others; whether it did.
///
/// Its group is to have a leader before it goes: an election may want its vote, and a new leader its first answer.
async fn step_down<E: Engine>(source: &Rc<Shard<E>>, region: RegionId, at_once: bool) -> Result<bool, MoveError> {
    let begun = executor::now();
    let mut led = false;
    loop {
        let heir = {
            let peers = source.peers.borrow();
            let peer = peers.get(&region).ok_or(RegionError::RegionNotFound(region))?;
            let is_led = peer.leader.is_some();
            if peer.raft.is_sole_voter() || (!peer.leads() && (is_led || (at_once && !led))) {
                return Ok(led);
            }
            if !led && !is_led {
                return Err(RegionError::NotLeader { region, leader: None }.into());
            }
            peer.heir().filter(|_| peer.leads())
        };
        if executor::now().since(begun) > STEP_DOWN_LIMIT {
            return Err(RegionError::ServerIsBusy { reason: "nobody else can lead".into(), backoff_ms: 1000 }.into());
        }
        if let Some(heir) = heir {
            source.transfer(region, heir);
            led = true;
        }
        executor::sleep(STEP_DOWN_PAUSE).await;
    }
}

async fn hand_over<E: Engine>(
    host: &Rc<CoreHost<E>>,
    source: &Rc<Shard<E>>,
    ticket: &MoveTicket,
    departure: Departure,
) -> Result<(), MoveError> {
    let Departure { home, tail } = departure;
    let target = host.core_of(ticket.target);
    let shard = ticket.target;
    let region = home.region.clone().unwrap_or_default();
    let (start, end) = (region.start_key.clone(), region.end_key.clone());
    ask(host, target, |reply| Control::MovePrepare { shard, start, end, reply }).await?;
    let snapshot = source.engine.snapshot();
    let (lower, upper) = data_range(&region.start_key, &region.end_key);
    for cf in Cf::DATA {
        let mut from = Some(lower.clone());
        while let Some(at) = from {
            let (snapshot, upper) = (snapshot.clone(), upper.clone());
            let (entries, next) =
                executor::blocking(Class::Background, move || read_piece::<E>(&snapshot, cf, &at, &upper))
                    .await
                    .map_err(MoveError::Failed)?;
            from = next;
            if !entries.is_empty() {
                ask(host, target, |reply| Control::MoveData { shard, entries, reply }).await?;
            }
        }
    }
    ask(host, target, |reply| Control::MoveInstall { shard, home, tail, reply }).await
}

async fn ask<E: Engine>(
    host: &Rc<CoreHost<E>>,
    core: CoreId,
    message: impl FnOnce(Reply<Result<(), MoveError>>) -> Control,
) -> Result<(), MoveError> {
    let (reply, answer) = reply();
    host.control(core, message(reply));
    answer.wait().await.ok_or(MoveError::Closing)?
}

/// Reads about [`PIECE_BYTES`] from `at` on; answers with the key to go on from, if there is more.
pub(crate) fn read_piece<E: Engine>(
    snapshot: &E::Snapshot,
    cf: Cf,
    at: &[u8],
    upper: &[u8],
) -> Result<(Entries, Option<Vec<u8>>), String> {
    let mut iter = snapshot.iter(cf, at, upper, Tier::Disk, false);
    let mut entries = Vec::new();
    let mut bytes = 0;
    let mut entry = iter.seek(at).map_err(|error| error.to_string())?;
    while let Some((key, value)) = entry {
        if bytes >= PIECE_BYTES {
            return Ok((entries, Some(key.to_vec())));
        }
        bytes += key.len() + value.len();
        entries.push((cf, Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
        entry = iter.next().map_err(|error| error.to_string())?;
    }
    Ok((entries, None))
}

/// At the target: empties the range that a region is about to come to.
///
/// # Errors
/// [`MoveError::Failed`] if a region of this shard has keys there, or the engine failed.
pub async fn prepare<E: Engine>(shard: &Rc<Shard<E>>, start: Bytes, end: Bytes) -> Result<(), MoveError> {
    let taken = shard
        .peers
        .borrow()
        .values()
        .any(|peer| base::keys::overlaps(&peer.meta.region.start_key, &peer.meta.region.end_key, &start, &end));
    if taken {
        return Err(MoveError::Failed("the range is not free at the target".into()));
    }
    let mut batch = shard.engine.batch();
    super::meta::erase_range(&mut batch, &start, &end);
    write(shard, batch).await
}

/// At the target: writes a piece of the region's data.
///
/// # Errors
/// [`MoveError::Failed`] if the engine failed.
pub async fn receive<E: Engine>(shard: &Rc<Shard<E>>, entries: Entries) -> Result<(), MoveError> {
    let mut batch = shard.engine.batch();
    for (cf, key, value) in &entries {
        batch.put(*cf, key, value);
    }
    write(shard, batch).await
}

/// At the target: makes the data durable and takes the peer over, asleep.
///
/// # Errors
/// [`MoveError`] if the engine failed or the shard has the region already.
pub async fn install<E: Engine>(
    shard: &Rc<Shard<E>>,
    home: Box<HomeRecord>,
    tail: Vec<LogEntry>,
) -> Result<(), MoveError> {
    let engine = shard.engine.clone();
    executor::blocking(Class::Background, move || engine.flush())
        .await
        .map_err(|error| MoveError::Failed(error.to_string()))?;
    let (reply, answer) = oneshot::channel();
    shard.push(Input::Install { home, tail, reply });
    Ok(answer.await.map_err(|_| MoveError::Closing)??)
}

/// At the target: the source has let go. `led`: the peer led its group before it moved.
pub fn activate<E: Engine>(shard: &Shard<E>, region: RegionId, led: bool) {
    shard.push(Input::Campaign(region));
    if led {
        shard.push(Input::Reclaim(region));
    }
}

/// Writes from a helper, since neither side's data may hold a core.
async fn write<E: Engine>(shard: &Rc<Shard<E>>, batch: E::Batch) -> Result<(), MoveError> {
    let engine = shard.engine.clone();
    let result = executor::blocking(Class::Background, move || engine.write(batch, WriteMode::Helper)).await;
    result.map_err(|error| match error {
        WriteError::Incomplete(_) => MoveError::Failed("the engine has no room".into()),
        WriteError::Failed(error) => MoveError::Failed(error.to_string()),
    })
}

/// What one core does with the letters of a move, and with the order to move.
pub fn handle<E: Engine>(host: &Rc<CoreHost<E>>, control: Control) {
    let host = host.clone();
    executor::spawn_local(Class::Background, async move {
        match control {
            Control::Move { ticket, at_once, reply } => {
                let result = move_away(&host, &ticket, at_once).await;
                reply.send(result);
            }
            Control::MovePrepare { shard, start, end, reply } => {
                let result = match find(&host, shard) {
                    Ok(shard) => prepare(&shard, start, end).await,
                    Err(error) => Err(error),
                };
                reply.send(result);
            }
            Control::MoveData { shard, entries, reply } => {
                let result = match find(&host, shard) {
                    Ok(shard) => receive(&shard, entries).await,
                    Err(error) => Err(error),
                };
                reply.send(result);
            }
            Control::MoveInstall { shard, home, tail, reply } => {
                let region = super::lifecycle::region_of(&home);
                let result = match find(&host, shard) {
                    Ok(shard) => install(&shard, home, tail).await,
                    Err(error) => Err(error),
                };
                if result.is_ok() {
                    // What the source sends on must not come back to it.
                    host.update_routes(&[(region, Some(shard))]);
                }
                reply.send(result);
            }
            Control::MoveActivate { shard, region, led } => {
                if let Ok(found) = find(&host, shard) {
                    activate(&found, region, led);
                }
            }
            _ => {}
        }
    });
}

fn find<E: Engine>(host: &CoreHost<E>, shard: ShardId) -> Result<Rc<Shard<E>>, MoveError> {
    host.shard(shard).ok_or_else(|| MoveError::Failed(format!("shard {shard} is not on this core")))
}
