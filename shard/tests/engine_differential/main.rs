//! The same random scripts on RocksDB, on its twin and on a naive model: every answer must be the model's, and after a
//! kill the durable state must be a prefix of the order of writes that includes the last flush, with every ingest.
//!
//! RocksDB runs in a child process (this binary again), which the parent kills with SIGKILL at the end of each life. One
//! child carries a window of scripts, so a generation costs one process.

mod model;
mod script;

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};

use base::Prng;
use model::Model;
use script::{Marks, Script};
use shard::engine::Engine;
use shard::engine::rocks::{BlockCache, RocksEngine, RocksOptions};
use shard::engine::twin::{TwinDisk, TwinEngine, TwinFaults};

const LIVES: u64 = 4;
const STEPS: u64 = 80;
const ROCKS_SEEDS: std::ops::Range<u64> = 0..64;
const TWIN_SEEDS: std::ops::Range<u64> = 0..400;
/// Tells the child what to do: first seed, last seed, life, folder.
const CHILD: &str = "BASALT_ENGINE_CHILD";

fn seed_of_life(seed: u64, life: u64) -> u64 {
    Prng::new(seed ^ (life << 32)).next_u64()
}

/// One life up to its end, which is a clean close now and then.
fn live<E: Engine>(engine: &E, model: &mut Model, folder: &Path, marks: &mut Marks, seed: u64, life: u64) {
    let mut script = Script::new(engine, model, folder, marks, seed_of_life(seed, life));
    script.check_restart();
    script.run(STEPS);
    if seed_of_life(seed, life).is_multiple_of(4) {
        engine.close().expect("a healthy engine");
        model.flush();
        assert!(engine.flush().is_err(), "a closed engine takes no more");
    }
}

#[test]
fn the_twin_answers_and_forgets_like_the_model() {
    let mut marks = Marks::default();
    for seed in TWIN_SEEDS {
        let told = Told(seed);
        let disk = TwinDisk::new();
        let mut model = Model::default();
        for life in 0..LIVES {
            let mut prng = Prng::new(seed_of_life(seed, life));
            let faults = TwinFaults::arbitrary(&mut prng);
            let engine = TwinEngine::open(&disk, prng.next_u64(), faults).expect("the disk is free");
            live(&engine, &mut model, Path::new("/twin"), &mut marks, seed, life);
            engine.kill();
            assert!(engine.get(mvcc::Cf::Default, b"z", shard::engine::Tier::Disk).is_err());
        }
        std::mem::forget(told);
    }
    check_marks(marks);
}

#[test]
fn rocksdb_answers_and_forgets_like_the_model() {
    let folder = fast_folder();
    for life in 0..LIVES {
        kill_child_after(folder.path(), life);
    }
}

/// A kill of the process loses nothing that was written to a file, so memory is as good as a disk here, and syncs cost
/// nothing.
fn fast_folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a temporary folder")
}

/// Runs one life of all scripts in a child and kills it.
fn kill_child_after(folder: &Path, life: u64) {
    let program = std::env::current_exe().expect("this test");
    let order = format!("{} {} {life} {}", ROCKS_SEEDS.start, ROCKS_SEEDS.end, folder.display());
    let mut child = Command::new(program)
        .args(["child", "--exact", "--nocapture"])
        .env(CHILD, order)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the child starts");
    let output = BufReader::new(child.stdout.take().expect("piped"));
    let mut lines = output.lines().map_while(Result::ok);
    let ready = lines.any(|line| line.contains("ready to be killed"));
    child.kill().expect("ours to kill");
    child.wait().expect("it ends");
    assert!(ready, "life {life} failed in the child; its output stands above");
}

/// Not a test by itself: one life of a window of scripts, then a wait for the end.
#[test]
fn child() {
    let Ok(order) = std::env::var(CHILD) else {
        return;
    };
    let order: Vec<&str> = order.splitn(4, ' ').collect();
    let number = |at: usize| order[at].parse::<u64>().expect("written by the parent");
    let (seeds, life, folder) = (number(0)..number(1), number(2), Path::new(order[3]));
    let cache = BlockCache::new(256 << 10);
    // Small enough that RocksDB flushes by itself now and then.
    let options = RocksOptions { memtable_bytes_max: 64 << 10, ..RocksOptions::default() };
    let mut marks = Marks::default();
    let mut engines = Vec::new();
    for seed in seeds {
        let told = Told(seed);
        let folder = folder.join(seed.to_string());
        std::fs::create_dir_all(&folder).expect("a folder");
        let saved = folder.join("model.json");
        let mut model = match std::fs::read_to_string(&saved) {
            Ok(text) => Model::from_json(&text),
            Err(_) => Model::default(),
        };
        let engine = RocksEngine::open(&folder.join("db"), &cache, &options).expect("the database opens");
        live(&engine, &mut model, &folder, &mut marks, seed, life);
        std::fs::write(&saved, model.to_json()).expect("a file");
        // Open until the end, so that nothing is flushed on the way out.
        engines.push(engine);
        std::mem::forget(told);
    }
    check_marks(Marks { incomplete: 1, ..marks });
    println!("\nready to be killed");
    let _ = std::io::stdin().read(&mut [0]);
    drop(engines);
}

/// Everything worth testing happened at all.
fn check_marks(marks: Marks) {
    println!("{marks:?}");
    let Marks { incomplete, not_cached, flushes, ingests, erases } = marks;
    for mark in [incomplete, not_cached, flushes, ingests, erases] {
        assert!(mark > 0, "{marks:?}");
    }
}

/// Names the seed when a script fails.
struct Told(u64);

impl Drop for Told {
    fn drop(&mut self) {
        eprintln!("the failing seed is {}", self.0);
    }
}
