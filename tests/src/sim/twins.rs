//! The engines of a simulated node, over all its lives.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use base::{PeerId, Prng, RegionId, ShardId};
use shard::engine::twin::{TwinDisk, TwinEngine, TwinFaults};
use shard::node::EngineSource;

use super::watch::Leaders;

/// The engines' disks of one node: what survives a kill of the twin, and the engines that a kill must end.
#[derive(Clone, Default)]
pub(super) struct TwinSource {
    twins: Arc<Mutex<Twins>>,
    leaders: Arc<Mutex<Leaders>>,
}

#[derive(Default)]
struct Twins {
    disks: BTreeMap<ShardId, TwinDisk>,
    open: Vec<TwinEngine>,
    lives: u64,
    seed: u64,
    faults: TwinFaults,
}

impl TwinSource {
    /// With `misses`, many reads are not answered from memory.
    pub(super) fn new(prng: &mut Prng, leaders: &Arc<Mutex<Leaders>>, misses: bool) -> TwinSource {
        let source = TwinSource { leaders: leaders.clone(), ..TwinSource::default() };
        let faults = TwinFaults {
            // These close the shard, which ends the node: they are faults of their own.
            flush_fails_one_in: 0,
            background_error_one_in: 0,
            ..TwinFaults::arbitrary(prng)
        };
        let often = prng.range(2, 8);
        let faults = if misses { TwinFaults { not_cached_one_in: often, ..faults } } else { faults };
        source.with(|twins| {
            twins.seed = prng.next_u64();
            twins.faults = faults;
        });
        source
    }

    fn with<T>(&self, work: impl FnOnce(&mut Twins) -> T) -> T {
        work(&mut self.twins.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Ends the engines as the end of their process does.
    pub(super) fn kill(&self) {
        let open = self.with(|twins| std::mem::take(&mut twins.open));
        open.iter().for_each(TwinEngine::kill);
    }

    /// From now on one write in so many finds that the engine has failed.
    pub(super) fn fail(&self, one_in: u64) {
        let (engines, faults) = self.with(|twins| (twins.open.clone(), twins.faults));
        let faults = TwinFaults { background_error_one_in: one_in, ..faults };
        engines.iter().for_each(|engine| engine.set_faults(faults));
    }

    /// Whether a durable value on any of the disks begins with `start`.
    pub(super) fn holds_value(&self, start: &[u8]) -> bool {
        let disks: Vec<TwinDisk> = self.with(|twins| twins.disks.values().cloned().collect());
        disks.iter().any(|disk| disk.holds_value(start))
    }

    /// The engines of the node's present life.
    pub(super) fn engines(&self) -> Vec<TwinEngine> {
        self.with(|twins| twins.open.clone())
    }

    /// How many own this, the caller included.
    pub(super) fn owners(&self) -> usize {
        Arc::strong_count(&self.twins)
    }
}

impl EngineSource for TwinSource {
    type Engine = TwinEngine;

    fn open(&self, shard: ShardId, _dir: &Path) -> Result<TwinEngine, String> {
        self.with(|twins| {
            twins.lives += 1;
            let seed = base::hash::fold(twins.seed, twins.lives);
            let disk = twins.disks.entry(shard).or_default();
            let engine = TwinEngine::open(disk, seed, twins.faults).map_err(|error| error.to_string())?;
            twins.open.push(engine.clone());
            Ok(engine)
        })
    }

    fn leads(&self, region: RegionId, peer: PeerId, term: u64) {
        self.leaders.lock().unwrap_or_else(PoisonError::into_inner).note(region, peer, term);
    }
}
