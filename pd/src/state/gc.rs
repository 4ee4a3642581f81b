//! Safe points and barriers of garbage collection.
//!
//! Per scope there are two points: transactions that began before the *txn safe point* are refused, versions that are
//! not visible from the *gc safe point* on may be removed. Neither ever falls, gc never passes txn, and txn never
//! passes a live barrier. The scope is the whole cluster, or one keyspace that manages its garbage alone.

use super::State;
use crate::kv::Op;
use base::UnixTime;
use serde::{Deserialize, Serialize};

/// TiDB servers keep the start of their oldest transaction under this prefix; those of a keyspace have the keyspace's in front.
pub const MIN_START_TS_PREFIX: &[u8] = b"/tidb/server/minstartts/";
/// Where the txn safe point is kept, as old clients read it.
const SAVED_SAFE_POINT: &str = "/tidb/store/gcworker/saved_safe_point";
/// The barrier id that old garbage collectors use for the txn safe point itself.
const GC_WORKER: &str = "gc_worker";
/// The barrier id that old backups use for a global barrier.
const NATIVE_BR: &str = "native_br";
/// The keyspace id that means "no keyspace".
const NULL_KEYSPACE: u32 = 0xFFFF_FFFF;
/// Most live barriers of a scope.
const BARRIERS_MAX: usize = 4096;
/// Longest barrier id, in bytes.
const BARRIER_ID_MAX: usize = 1024;

/// Whose garbage: the cluster's, or one keyspace's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GcScope(Option<u32>);

impl GcScope {
    /// The whole cluster.
    pub const CLUSTER: GcScope = GcScope(None);

    /// The keyspace, if it manages its garbage alone.
    pub fn keyspace(self) -> Option<u32> {
        self.0
    }
}

/// Something that holds the txn safe point back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Barrier {
    /// Who holds.
    pub id: String,
    /// At which timestamp.
    pub ts: u64,
    /// Until when, in seconds since the epoch; `i64::MAX` for ever.
    pub expires_at: i64,
}

impl Barrier {
    /// Seconds left; `i64::MAX` for ever.
    pub fn ttl(&self, now: UnixTime) -> i64 {
        if self.expires_at == i64::MAX { i64::MAX } else { self.expires_at - seconds(now) }
    }
}

/// The points of a scope, and what holds them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GcState {
    /// Older transactions are refused.
    pub txn_safe_point: u64,
    /// Older versions may be removed.
    pub gc_safe_point: u64,
    /// Live barriers by id.
    pub barriers: Vec<Barrier>,
}

/// What advancing the txn safe point did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TxnAdvance {
    /// Where it was.
    pub old: u64,
    /// Where it is.
    pub new: u64,
    /// Who kept it below its target, and the text for people; `None` if it got there.
    pub blocker: Option<(String, String)>,
}

/// The answer to an old client that keeps a service's safe point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceSafePoint {
    /// Who holds the smallest one.
    pub service_id: String,
    /// For how long, in seconds.
    pub ttl: i64,
    /// The smallest safe point.
    pub min_safe_point: u64,
}

/// Why a request about garbage collection is refused. The code in brackets is what clients match.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GcError {
    /// The txn safe point would fall.
    #[error(
        "[PD:gc:ErrDecreasingTxnSafePoint]trying to update txn safe point to a smaller value, current value: {current}, given: {given}"
    )]
    DecreasingTxn {
        /// Where it is.
        current: u64,
        /// Where it was to be.
        given: u64,
    },
    /// The gc safe point would fall.
    #[error(
        "[PD:gc:ErrDecreasingGCSafePoint]trying to update GC safe point to a smaller value, current value: {current}, given: {given}"
    )]
    DecreasingGc {
        /// Where it is.
        current: u64,
        /// Where it was to be.
        given: u64,
    },
    /// The gc safe point would pass the txn safe point.
    #[error(
        "[PD:gc:ErrGCSafePointExceedsTxnSafePoint]trying to update GC safe point to a too large value that exceeds the txn safe point, current value: {current}, given: {given}, current txn safe point: {txn}"
    )]
    GcExceedsTxn {
        /// Where it is.
        current: u64,
        /// Where it was to be.
        given: u64,
        /// Where the txn safe point is.
        txn: u64,
    },
    /// A barrier would stand behind the txn safe point.
    #[error(
        "[PD:gc:ErrGCBarrierTSBehindTxnSafePoint]trying to add a GC barrier with ts less than txn safe point, current txn safe point: {txn}, given barrier ts: {given}"
    )]
    BarrierBehind {
        /// Where the txn safe point is.
        txn: u64,
        /// Where the barrier was to be.
        given: u64,
    },
    /// The barrier's id is PD's own.
    #[error("[PD:gc:ErrReservedGCBarrierID]trying to set a GC barrier with reserved barrier ID: {0}")]
    Reserved(String),
    /// An argument makes no sense.
    #[error("[PD:gc:ErrInvalidArgument]{0}")]
    Argument(String),
    /// No such keyspace.
    #[error("[PD:keyspace:ErrKeyspaceNotFound]keyspace {0} does not exist")]
    Keyspace(u32),
    /// Too many barriers.
    #[error("[PD:gc:ErrTooManyBarriers]a scope holds at most {BARRIERS_MAX} barriers")]
    TooMany,
}

/// What PD stores for a barrier.
#[derive(Serialize, Deserialize)]
struct StoredBarrier {
    service_id: String,
    expired_at: i64,
    safe_point: u64,
    #[serde(default = "null_keyspace")]
    keyspace_id: u32,
}

fn null_keyspace() -> u32 {
    NULL_KEYSPACE
}

impl State {
    /// The scope that the keyspace `id` belongs to; `None` and 0xFFFFFFFF stand for the cluster.
    ///
    /// # Errors
    /// [`GcError::Keyspace`] for an unknown keyspace.
    pub fn gc_scope(&self, id: Option<u32>) -> Result<GcScope, GcError> {
        let Some(id) = id.filter(|id| *id != NULL_KEYSPACE) else {
            return Ok(GcScope::CLUSTER);
        };
        let meta = self.keyspace(id).ok_or(GcError::Keyspace(id))?;
        let own = meta.config.get("gc_management_type").is_some_and(|kind| kind == "keyspace_level");
        Ok(GcScope(own.then_some(id)))
    }

    /// Points and live barriers of a scope.
    pub fn gc_state(&self, scope: GcScope, now: UnixTime) -> GcState {
        GcState {
            txn_safe_point: self.txn_safe_point(scope),
            gc_safe_point: self.gc_safe_point(scope),
            barriers: self.barriers_at(&self.keys.gc_barriers(scope.0), now),
        }
    }

    /// Live barriers that hold for all scopes.
    pub fn global_gc_barriers(&self, now: UnixTime) -> Vec<Barrier> {
        self.barriers_at(&self.keys.global_gc_barriers(), now)
    }

    /// Older transactions are refused.
    pub fn txn_safe_point(&self, scope: GcScope) -> u64 {
        let text = self.space.value(&saved_safe_point(scope));
        text.and_then(|text| std::str::from_utf8(text).ok()?.parse().ok()).unwrap_or(0)
    }

    /// Older versions may be removed.
    pub fn gc_safe_point(&self, scope: GcScope) -> u64 {
        let text = self.space.value(&self.keys.gc_safe_point(scope.0));
        text.and_then(|text| u64::from_str_radix(std::str::from_utf8(text).ok()?, 16).ok()).unwrap_or(0)
    }

    /// Moves the txn safe point towards `target`, as far as barriers and running transactions let it.
    ///
    /// # Errors
    /// [`GcError::DecreasingTxn`] when the target lies behind.
    pub fn advance_txn_safe_point(
        &mut self,
        scope: GcScope,
        target: u64,
        now: UnixTime,
    ) -> Result<TxnAdvance, GcError> {
        let old = self.txn_safe_point(scope);
        if target < old {
            return Err(GcError::DecreasingTxn { current: old, given: target });
        }
        let mut new = target;
        let mut blocker = None;
        for (ts, name, text) in self.blockers(scope, now) {
            if ts < new {
                (new, blocker) = (ts, Some((name, text)));
            }
        }
        let new = new.max(old);
        if new > old {
            self.commit(vec![Op::put(saved_safe_point(scope), new.to_string().into_bytes())]);
        }
        Ok(TxnAdvance { old, new, blocker })
    }

    /// Moves the gc safe point to `target`; returns where it was and is.
    ///
    /// # Errors
    /// [`GcError`] when the target lies behind, or beyond the txn safe point.
    pub fn advance_gc_safe_point(&mut self, scope: GcScope, target: u64) -> Result<(u64, u64), GcError> {
        let (current, txn) = (self.gc_safe_point(scope), self.txn_safe_point(scope));
        if target < current {
            return Err(GcError::DecreasingGc { current, given: target });
        }
        if target > txn {
            return Err(GcError::GcExceedsTxn { current, given: target, txn });
        }
        if target > current {
            self.commit(vec![Op::put(self.keys.gc_safe_point(scope.0), format!("{target:016x}").into_bytes())]);
        }
        Ok((current, target))
    }

    /// What old clients do in one step: both points move to `target`. A target behind is ignored; one that a barrier
    /// or a running transaction holds back is refused. PD itself refuses all beyond the txn safe point; clients that
    /// know no txn safe point could then never collect anything.
    ///
    /// # Errors
    /// [`GcError::GcExceedsTxn`] when something holds the txn safe point below `target`.
    pub fn update_gc_safe_point(&mut self, scope: GcScope, target: u64, now: UnixTime) -> Result<u64, GcError> {
        let (current, txn) = (self.gc_safe_point(scope), self.txn_safe_point(scope));
        if target <= current {
            return Ok(current);
        }
        if target > txn {
            if self.blockers(scope, now).iter().any(|(ts, ..)| *ts < target) {
                return Err(GcError::GcExceedsTxn { current, given: target, txn });
            }
            self.advance_txn_safe_point(scope, target, now)?;
        }
        self.advance_gc_safe_point(scope, target).map(|(_, new)| new)
    }

    /// Sets a barrier for `ttl` seconds (`i64::MAX` for ever).
    ///
    /// # Errors
    /// [`GcError`] for an id or a time that is none, or a barrier behind the txn safe point.
    pub fn set_gc_barrier(
        &mut self,
        scope: GcScope,
        id: &str,
        ts: u64,
        ttl: i64,
        now: UnixTime,
    ) -> Result<Barrier, GcError> {
        let barrier = new_barrier(id, ts, ttl, now)?;
        let txn = self.txn_safe_point(scope);
        if ts < txn {
            return Err(GcError::BarrierBehind { txn, given: ts });
        }
        let (prefix, key) = (self.keys.gc_barriers(scope.0), self.keys.gc_barrier(scope.0, id));
        self.store_barrier(&prefix, key, &barrier, scope.0, now)?;
        Ok(barrier)
    }

    /// Removes a barrier and returns it.
    ///
    /// # Errors
    /// [`GcError`] for an id that is none.
    pub fn delete_gc_barrier(&mut self, scope: GcScope, id: &str, now: UnixTime) -> Result<Option<Barrier>, GcError> {
        check_barrier_id(id)?;
        let key = self.keys.gc_barrier(scope.0, id);
        Ok(self.take_barrier(key, now))
    }

    /// Sets a barrier that holds for all scopes.
    ///
    /// # Errors
    /// As [`State::set_gc_barrier`], against the largest txn safe point.
    pub fn set_global_gc_barrier(&mut self, id: &str, ts: u64, ttl: i64, now: UnixTime) -> Result<Barrier, GcError> {
        let barrier = new_barrier(id, ts, ttl, now)?;
        let txn = self.gc_scopes().map(|scope| self.txn_safe_point(scope)).max().unwrap_or(0);
        if ts < txn {
            return Err(GcError::BarrierBehind { txn, given: ts });
        }
        let (prefix, key) = (self.keys.global_gc_barriers(), self.keys.global_gc_barrier(id));
        self.store_barrier(&prefix, key, &barrier, None, now)?;
        Ok(barrier)
    }

    /// Removes a barrier that holds for all scopes.
    ///
    /// # Errors
    /// [`GcError`] for an id that is none.
    pub fn delete_global_gc_barrier(&mut self, id: &str, now: UnixTime) -> Result<Option<Barrier>, GcError> {
        check_barrier_id(id)?;
        let key = self.keys.global_gc_barrier(id);
        Ok(self.take_barrier(key, now))
    }

    /// What old clients do to hold garbage collection back, in today's terms.
    ///
    /// # Errors
    /// [`GcError`] for an id or a time that is none.
    pub fn update_service_safe_point(
        &mut self,
        scope: GcScope,
        id: &str,
        ttl: i64,
        safe_point: u64,
        now: UnixTime,
    ) -> Result<ServiceSafePoint, GcError> {
        if id == GC_WORKER {
            return self.update_gc_worker(scope, ttl, safe_point, now);
        }
        let outcome = match (id == NATIVE_BR && scope == GcScope::CLUSTER, ttl > 0) {
            (true, true) => self.set_global_gc_barrier(id, safe_point, ttl, now).map(drop),
            (true, false) => self.delete_global_gc_barrier(id, now).map(drop),
            (false, true) => self.set_gc_barrier(scope, id, safe_point, ttl, now).map(drop),
            (false, false) => self.delete_gc_barrier(scope, id, now).map(drop),
        };
        match outcome {
            // The caller sees a minimum above its own safe point, and fails by itself.
            Ok(()) | Err(GcError::BarrierBehind { .. }) => Ok(ServiceSafePoint {
                service_id: GC_WORKER.into(),
                ttl: i64::MAX - seconds(now),
                min_safe_point: self.txn_safe_point(scope),
            }),
            Err(error) => Err(error),
        }
    }

    fn update_gc_worker(
        &mut self,
        scope: GcScope,
        ttl: i64,
        safe_point: u64,
        now: UnixTime,
    ) -> Result<ServiceSafePoint, GcError> {
        if ttl != i64::MAX {
            return Err(GcError::Argument("TTL of gc_worker's service safe point must be infinity".into()));
        }
        let current = self.txn_safe_point(scope);
        // PD answers a safe point behind with the one that stands.
        let advance = self.advance_txn_safe_point(scope, safe_point.max(current), now)?;
        let service_id = advance.blocker.map_or_else(|| GC_WORKER.to_owned(), |(name, _)| name);
        Ok(ServiceSafePoint { service_id, ttl: i64::MAX - seconds(now), min_safe_point: advance.new })
    }

    /// Every scope: the cluster, and each keyspace with garbage of its own.
    pub fn gc_scopes(&self) -> impl Iterator<Item = GcScope> {
        let keyspaces = self.keyspaces(0, 0).into_iter().filter_map(|meta| self.gc_scope(Some(meta.id)).ok());
        std::iter::once(GcScope::CLUSTER).chain(keyspaces.filter(|scope| *scope != GcScope::CLUSTER))
    }

    /// What holds the txn safe point of a scope: timestamp, name, text.
    fn blockers(&self, scope: GcScope, now: UnixTime) -> Vec<(u64, String, String)> {
        let own = self.barriers_at(&self.keys.gc_barriers(scope.0), now);
        let global = self.global_gc_barriers(now);
        let named = |kind: &'static str| {
            move |barrier: Barrier| {
                let text = format!("BlockedBy {kind}{{ID: {:?}, TS: {}}}", barrier.id, barrier.ts);
                (barrier.ts, barrier.id, text)
            }
        };
        let prefixes = self.min_start_ts_prefixes(scope);
        let running = prefixes.iter().flat_map(|prefix| self.space.prefix(prefix)).map(|(key, record)| {
            let ts = std::str::from_utf8(&record.value).ok().and_then(|text| text.parse().ok());
            let key = String::from_utf8_lossy(key);
            let told = ts.map_or_else(|| format!("{:?}", record.value), |ts: u64| ts.to_string());
            // Nobody knows what reads that server, if its word cannot be read.
            (
                ts.unwrap_or(0),
                format!("tidb_min_start_ts_{key}"),
                format!("BlockedBy TiDBMinStartTS{{Key: {key:?}, MinStartTS: {told}}}"),
            )
        });
        own.into_iter()
            .map(named("GCBarrier"))
            .chain(global.into_iter().map(named("GlobalGCBarrier")))
            .chain(running)
            .collect()
    }

    /// Where those servers keep the start of their oldest transaction whose versions a scope's safe points are about: the
    /// cluster's are about those of the keyspaces as well that do not manage their garbage alone.
    fn min_start_ts_prefixes(&self, scope: GcScope) -> Vec<Vec<u8>> {
        let of = |id: u32| [format!("/keyspaces/tidb/{id}").as_bytes(), MIN_START_TS_PREFIX].concat();
        match scope.0 {
            Some(id) => vec![of(id)],
            None => {
                let all = self.keyspaces(0, 0).into_iter().map(|meta| meta.id);
                let shared = all.filter(|id| self.gc_scope(Some(*id)) == Ok(GcScope::CLUSTER)).map(of);
                std::iter::once(MIN_START_TS_PREFIX.to_owned()).chain(shared).collect()
            }
        }
    }

    fn barriers_at(&self, prefix: &[u8], now: UnixTime) -> Vec<Barrier> {
        let stored = self.space.prefix(prefix).filter_map(|(_, record)| read_barrier(&record.value));
        stored.filter(|barrier| barrier.id != GC_WORKER && barrier.expires_at > seconds(now)).collect()
    }

    fn store_barrier(
        &mut self,
        prefix: &[u8],
        key: Vec<u8>,
        barrier: &Barrier,
        keyspace: Option<u32>,
        now: UnixTime,
    ) -> Result<(), GcError> {
        let mut ops = Vec::new();
        let mut live = 0;
        for (other, record) in self.space.prefix(prefix) {
            match read_barrier(&record.value) {
                Some(barrier) if barrier.expires_at <= seconds(now) && *other != key => {
                    ops.push(Op::delete(other.clone()));
                }
                _ => live += 1,
            }
        }
        if live >= BARRIERS_MAX && self.space.get(&key).is_none() {
            return Err(GcError::TooMany);
        }
        let stored = StoredBarrier {
            service_id: barrier.id.clone(),
            expired_at: barrier.expires_at,
            safe_point: barrier.ts,
            keyspace_id: keyspace.unwrap_or(NULL_KEYSPACE),
        };
        let json = serde_json::to_vec(&stored).expect("a barrier has no map keys that JSON lacks");
        ops.push(Op::put(key, json));
        self.commit(ops);
        Ok(())
    }

    fn take_barrier(&mut self, key: Vec<u8>, now: UnixTime) -> Option<Barrier> {
        let barrier = read_barrier(self.space.value(&key)?)?;
        self.commit(vec![Op::delete(key)]);
        (barrier.expires_at > seconds(now)).then_some(barrier)
    }
}

fn read_barrier(value: &[u8]) -> Option<Barrier> {
    let stored: StoredBarrier = serde_json::from_slice(value).ok()?;
    Some(Barrier { id: stored.service_id, ts: stored.safe_point, expires_at: stored.expired_at })
}

fn new_barrier(id: &str, ts: u64, ttl: i64, now: UnixTime) -> Result<Barrier, GcError> {
    check_barrier_id(id)?;
    if ttl <= 0 {
        return Err(GcError::Argument(format!("ttl of a GC barrier must be positive, given: {ttl}")));
    }
    if ts == 0 {
        return Err(GcError::Argument("timestamp of a GC barrier must not be 0".into()));
    }
    Ok(Barrier { id: id.to_owned(), ts, expires_at: seconds(now).saturating_add(ttl) })
}

fn check_barrier_id(id: &str) -> Result<(), GcError> {
    match id {
        "" => Err(GcError::Argument("the id of a GC barrier must not be empty".into())),
        GC_WORKER => Err(GcError::Reserved(id.to_owned())),
        id if id.len() > BARRIER_ID_MAX => Err(GcError::Argument("the id of a GC barrier is too long".into())),
        _ => Ok(()),
    }
}

fn saved_safe_point(scope: GcScope) -> Vec<u8> {
    match scope.0 {
        None => SAVED_SAFE_POINT.to_owned(),
        Some(id) => format!("/keyspaces/tidb/{id}{SAVED_SAFE_POINT}"),
    }
    .into_bytes()
}

fn seconds(now: UnixTime) -> i64 {
    i64::try_from(now.seconds()).unwrap_or(i64::MAX)
}
