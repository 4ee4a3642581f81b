//! What the engine's calls cost on this machine: nanoseconds per operation of RocksDB through `shard::engine`, nothing
//! else around it. One thread, data in a temporary folder.
//!
//! `cargo run --release -p shard --example engine_costs -- [keys]` (default 1,000,000 keys of 20 bytes with values of 100)

use base::Prng;
use mvcc::{Cf, Cursor, ReadView};
use shard::engine::rocks::{BlockCache, RocksEngine, RocksOptions};
use shard::engine::{Engine, EngineIter, EngineSnapshot, RegionView, Tier, WriteBatch, WriteMode};

const VALUE: [u8; 100] = [7; 100];

fn key(number: u64) -> [u8; 20] {
    let mut key = [b'k'; 20];
    key[0] = base::keys::DATA_PREFIX;
    key[12..].copy_from_slice(&number.to_be_bytes());
    key
}

/// Nanoseconds that this thread has had a CPU: the honest measure on a machine that does other things too.
fn cpu_nanos() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let first = text.split(' ').next().and_then(|number| number.parse().ok());
    first.unwrap_or(0)
}

/// Runs `work` for `count` operations and prints a line.
fn measure(name: &str, count: u64, work: impl FnOnce(u64)) {
    let (start, cpu_start) = (executor::now(), cpu_nanos());
    work(count);
    let spent = (executor::now().0 - start.0) as f64 / count as f64;
    let cpu = (cpu_nanos() - cpu_start) as f64 / count as f64;
    println!("{name:<44} {cpu:>9.0} ns of CPU {spent:>9.0} ns in all, of {count}");
}

fn main() {
    let keys: u64 = std::env::args().nth(1).map_or(1_000_000, |text| text.parse().expect("a number of keys"));
    let config = executor::CoresConfig {
        cores: 1,
        io: executor::IoChoice::Epoll,
        pin: false,
        ..executor::CoresConfig::default()
    };
    executor::run_cores(config, move |_| Box::pin(async move { run(keys) })).expect("a core starts");
}

fn run(keys: u64) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let cache = BlockCache::new(1 << 30);
    let engine =
        RocksEngine::open(&folder.path().join("db"), &cache, &RocksOptions::default()).expect("the database opens");
    let mut prng = Prng::new(1);

    measure("write, batches of 128 puts (ascending)", keys, |count| {
        let mut at = 0;
        while at < count {
            let mut batch = engine.batch();
            for number in at..(at + 128).min(count) {
                batch.put(Cf::Default, &key(number * 2), &VALUE);
            }
            at += 128;
            engine.write(batch, WriteMode::Core).expect("written");
        }
    });
    measure("get from the memtable", 200_000, |count| {
        for _ in 0..count {
            let found = engine.get(Cf::Default, &key(prng.below(keys) * 2), Tier::Cache);
            assert!(found.expect("in memory").is_some());
        }
    });
    measure("flush", 1, |_| engine.flush().expect("flushed"));
    measure("compact", 1, |_| engine.compact(Cf::Default, b"", b"").expect("compacted"));

    let snapshot = engine.snapshot();
    measure("next (borrowed), blocks from disk", keys, |count| {
        let mut iter = snapshot.iter(Cf::Default, b"", b"", Tier::Disk, true);
        let mut seen = u64::from(iter.first().expect("readable").is_some());
        while iter.next().expect("readable").is_some() {
            seen += 1;
        }
        assert_eq!(seen, count);
    });
    measure("next (borrowed), cached", keys, |count| {
        let mut iter = snapshot.iter(Cf::Default, b"", b"", Tier::Cache, true);
        let mut seen = u64::from(iter.first().expect("cached").is_some());
        while iter.next().expect("cached").is_some() {
            seen += 1;
        }
        assert_eq!(seen, count);
    });
    measure("next_entry of a region's cursor, cached", keys, |count| {
        let view = RegionView::new(snapshot.clone(), Tier::Cache, Default::default(), Default::default());
        let mut cursor = view.cursor(Cf::Default, b"", b"").expect("a cursor");
        let mut seen = 0;
        while cursor.next_entry().expect("cached").is_some() {
            seen += 1;
        }
        assert_eq!(seen, count);
    });
    measure("get, cached", 500_000, |count| {
        for _ in 0..count {
            let found = engine.get(Cf::Default, &key(prng.below(keys) * 2), Tier::Cache);
            assert!(found.expect("cached").is_some());
        }
    });
    measure("get of a missing key, cached", 500_000, |count| {
        for _ in 0..count {
            let found = engine.get(Cf::Default, &key(prng.below(keys) * 2 + 1), Tier::Cache);
            assert!(found.expect("cached").is_none());
        }
    });
    measure("get from a snapshot, cached", 500_000, |count| {
        for _ in 0..count {
            let found = snapshot.get(Cf::Default, &key(prng.below(keys) * 2), Tier::Cache);
            assert!(found.expect("cached").is_some());
        }
    });
    for size in [16, 128] {
        measure(&format!("multi_get of {size}, cached, per key"), 512_000, |count| {
            for _ in 0..count / size {
                let wanted: Vec<[u8; 20]> = (0..size).map(|_| key(prng.below(keys) * 2)).collect();
                for found in engine.multi_get(Cf::Default, &wanted, Tier::Cache) {
                    assert!(found.expect("cached").is_some());
                }
            }
        });
    }
    measure("snapshot", 500_000, |count| {
        for _ in 0..count {
            drop(engine.snapshot());
        }
    });
    measure("iterator: open, seek, drop, cached", 200_000, |count| {
        for _ in 0..count {
            let at = key(prng.below(keys) * 2);
            let mut iter = snapshot.iter(Cf::Default, &at, b"{", Tier::Cache, true);
            assert!(iter.first().expect("cached").is_some());
        }
    });
    measure("batch of one put, not written", 500_000, |count| {
        for number in 0..count {
            let mut batch = engine.batch();
            batch.put(Cf::Default, &key(number), &VALUE);
            assert_eq!(batch.count(), 1);
        }
    });
    for size in [1, 16, 128] {
        measure(&format!("write, batches of {size} puts (random), per put"), 256_000, |count| {
            for _ in 0..count / size {
                let mut batch = engine.batch();
                for _ in 0..size {
                    batch.put(Cf::Default, &key(prng.below(keys) * 2), &VALUE);
                }
                engine.write(batch, WriteMode::Core).expect("written");
            }
        });
    }
    println!("{:?}", engine.stats());
}
