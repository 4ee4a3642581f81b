//! Bare RocksDB: the engine's calls on the server's CPU, with nothing around them.

use std::path::Path;
use std::time::Duration;

use base::{Prng, keys};
use executor::Class;
use mvcc::Cf;
use shard::engine::rocks::{BlockCache, RocksEngine, RocksOptions};
use shard::engine::{Engine, Tier, WriteBatch, WriteMode};

use crate::cpus::Cpus;
use crate::latency::{Latency, LatencySummary};
use crate::procfs;
use crate::template::{VALUE_BYTES, key};
use crate::workload::BATCH;

const CACHE_BYTES: usize = 256 << 20;
/// Calls between two looks at the limit of time.
const ROUND: u64 = 64;

/// One kind of call.
#[derive(Clone, Debug, serde::Serialize)]
pub(crate) struct RocksCell {
    pub(crate) call: String,
    /// Keys of one call.
    pub(crate) keys_per_call: usize,
    pub(crate) keys_per_second: f64,
    /// CPU time of the calling thread, in microseconds per key. Flushes and compactions are not in it.
    pub(crate) cpu_micros: f64,
    /// Of a whole call, in microseconds, the reading of the clock included.
    pub(crate) latency: LatencySummary,
}

/// The calls that are compared with a server's operations.
pub(crate) const GET: &str = "get, memtable";
pub(crate) const MULTI_GET: &str = "multi_get, memtable";
pub(crate) const PUT: &str = "put";
pub(crate) const PUT_BATCH: &str = "put, batched";

/// Measures get and put, each for `window`, over `keys` keys.
///
/// # Errors
/// What the engine says.
pub(crate) async fn measure(
    folder: &Path,
    cpus: Cpus,
    keys: u64,
    window: Duration,
    seed: u64,
) -> Result<Vec<RocksCell>, String> {
    let folder = folder.to_owned();
    // On a helper, since the calls take the thread for as long as they like.
    executor::blocking(Class::Background, move || {
        cpus.pin_to_server();
        let cache = BlockCache::new(CACHE_BYTES);
        let engine = RocksEngine::open(&folder, &cache, &RocksOptions::default());
        let engine = engine.map_err(|error| error.to_string())?;
        let mut bench = Bench { engine, keys, window, prng: Prng::new(seed) };
        let cells = bench.run();
        let closed = bench.engine.close().map_err(|error| error.to_string());
        closed.and(cells)
    })
    .await
}

struct Bench {
    engine: RocksEngine,
    keys: u64,
    window: Duration,
    prng: Prng,
}

impl Bench {
    fn run(&mut self) -> Result<Vec<RocksCell>, String> {
        for number in 0..self.keys {
            self.put(std::iter::once(number))?;
        }
        let mut cells = vec![self.time(GET, 1, Bench::get)?, self.time(MULTI_GET, BATCH, Bench::multi_get)?];
        self.engine.flush().map_err(|error| error.to_string())?;
        for number in 0..self.keys {
            self.look_up(number, Tier::Disk)?;
        }
        cells.push(self.time("get, block cache", 1, Bench::get)?);
        cells.push(self.time("multi_get, block cache", BATCH, Bench::multi_get)?);
        cells.push(self.time(PUT, 1, Bench::put_random)?);
        cells.push(self.time(PUT_BATCH, BATCH, Bench::put_random)?);
        Ok(cells)
    }

    /// Calls `call` for the window. Each call is for `keys` keys.
    fn time(
        &mut self,
        name: &str,
        keys: usize,
        call: impl Fn(&mut Bench, usize) -> Result<(), String>,
    ) -> Result<RocksCell, String> {
        let mut latency = Latency::new();
        let (begin, cpu) = (executor::now(), procfs::thread_cpu_nanos());
        let mut last = begin;
        while last.since(begin) < self.window {
            for _ in 0..ROUND {
                call(self, keys)?;
                let now = executor::now();
                latency.record(now.since(last), 1);
                last = now;
            }
        }
        let count = (latency.count() * keys as u64) as f64;
        let cpu = procfs::thread_cpu_nanos().saturating_sub(cpu) as f64;
        Ok(RocksCell {
            call: name.to_owned(),
            keys_per_call: keys,
            keys_per_second: count / last.since(begin).as_secs_f64(),
            cpu_micros: cpu / count / 1000.0,
            latency: latency.summary(),
        })
    }

    fn get(&mut self, _keys: usize) -> Result<(), String> {
        let number = self.prng.below(self.keys);
        self.look_up(number, Tier::Cache)
    }

    fn look_up(&mut self, number: u64, tier: Tier) -> Result<(), String> {
        let found = self.engine.get(Cf::Default, &engine_key(number), tier);
        check(found)
    }

    fn multi_get(&mut self, keys: usize) -> Result<(), String> {
        let count = self.keys;
        let keys: Vec<_> = (0..keys).map(|_| engine_key(self.prng.below(count))).collect();
        let found = self.engine.multi_get(Cf::Default, &keys, Tier::Cache);
        found.into_iter().try_for_each(check)
    }

    fn put_random(&mut self, keys: usize) -> Result<(), String> {
        let mut prng = self.prng.fork();
        let count = self.keys;
        self.put((0..keys).map(|_| prng.below(count)))
    }

    /// One batch. As a helper, so that a full memtable delays it rather than ends the run.
    fn put(&mut self, numbers: impl Iterator<Item = u64>) -> Result<(), String> {
        let mut batch = self.engine.batch();
        for number in numbers {
            let mut value = [0; VALUE_BYTES];
            self.prng.fill(&mut value);
            batch.put(Cf::Default, &engine_key(number), &value);
        }
        let written = self.engine.write(batch, WriteMode::Helper);
        written.map_err(|_| "RocksDB refused a write".to_owned())
    }
}

fn engine_key(number: u64) -> Vec<u8> {
    keys::data_key(&key(number))
}

fn check<E: std::fmt::Display>(found: Result<Option<bytes::Bytes>, E>) -> Result<(), String> {
    match found {
        Ok(Some(value)) if value.len() == VALUE_BYTES => Ok(()),
        Ok(_) => Err("RocksDB lost a key".into()),
        Err(error) => Err(format!("RocksDB: {error}")),
    }
}
